"""Steps on the CPU do not hand their memory back and forth."""

import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from bisam_ray.training import memory
if sys.argv[1] == "keep":
    memory.keep()
def step():
    parts = [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each
for _ in range(30):  # a heap may still grow by a buffer in its first steps
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_is_freed_is_not_faulted_in_again():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "leave")
    )
    pages = 20 * 3 * 40_000_000 // resource.getpagesize()
    assert kept < pages / 100
    assert given_back > pages / 2
