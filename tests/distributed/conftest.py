"""What the processes of worker.py found, started once for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], list[Any]]:
    """(world, case) → what each process of that world found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number in range(4):
        for key, cases in torch.load(folder / f"{number}.pt", weights_only=False).items():
            found.setdefault(key, {}).update(cases)

    def look(world: int, case: str) -> list[Any]:
        return [found[world, rank][case] for rank in range(world)]

    return look
