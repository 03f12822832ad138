"""For all tests: one thread each, and what a process of pytest-xdist makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadFileScheduling

# they start servers, process groups and Ray, and look at what is left of them: one after the other
ALONE = tuple(f"tests/{folder}/" for folder in ("browser", "distributed", "ray"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On tiny tensors a second one only waits, and on a busy machine it waits for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ByFile(LoadFileScheduling):
    """The tests of a file in one process, and all of ALONE in one."""

    def _split_scope(self, nodeid: str) -> str:
        return "alone" if nodeid.startswith(ALONE) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)
