"""Memory that a training loop frees and takes again at every step stays with the process."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep() -> None:
    """Tell glibc to give no freed memory back to the kernel; nothing where the C library is another one.

    Activations are large enough for glibc to unmap them when they are freed. Every step then faults them in anew, page
    by page, up to a tenth of its time and unequally from step to step (benchmarks/loop_overhead.py). The process keeps
    the peak of its memory instead, which the next step needs again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**30)
