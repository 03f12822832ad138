"""What lies in a storage: its studies at a glance, and what of them nobody needs any more."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..training import objects
from . import storage
from .ledger import Run, Study, read
from .selection import winner
from .session import UNFINISHED


@dataclass(frozen=True)
class Overview:
    """A study at a glance; `size` in bytes, `best` an accuracy in [0, 1] (of val for a search, of test otherwise)."""

    study: str
    kind: str
    runs: int
    state: str
    size: int
    best: float | None


@dataclass(frozen=True)
class Rubbish:
    """A file or directory that may go, and why."""

    path: Path | str  # a str: an object's URL
    why: str
    size: int


def overview(directory: Path) -> Overview:
    """A study at a glance."""
    study = read(directory)
    return Overview(
        directory.name,
        study.header.get("kind", "?"),
        len(study.runs),
        state(directory, study),
        size(directory) + sum(objects.sizes(url).values() if (url := storage.remote(directory)) else ()),
        best(study),
    )


def state(directory: Path, study: Study) -> str:
    """completed | interrupted | failed | running (by which process) | killed: it can be resumed."""
    driver = storage.driver(directory)
    if driver is not None:
        return f"running, process {driver}"
    return study.finish["outcome"] if study.finish else "killed"


def best(study: Study) -> float | None:
    """The best that a study has found so far."""
    if study.header.get("kind") == "search":
        found = [run.value("final/val_accuracy") for arm in study.searched_arms() if (run := winner(study, arm))]
    else:
        found = [run.value("final/test_accuracy") for run in study.of(phase="final", outcome="completed")]
    return max((value for value in found if value == value), default=None)


def rubbish(directory: Path) -> list[Rubbish]:
    """What nobody needs of a study that no process is driving.

    Checkpoints of trials and replicates that are over and not the best ones; what a killed process left behind.
    """
    if storage.driver(directory) is not None:
        return []
    study, runs = read(directory), directory / "runs"
    needed, over = set(keep(study)), "checkpoint of a run that is over, and not the best"
    there = []
    if url := storage.remote(directory):
        sizes = objects.sizes(f"{url}/runs")
        there = [
            Rubbish(f"{url}/runs/{name}", over, sizes[name]) for name in sizes if name.removesuffix(".pt") not in needed
        ]
    found = [(path, over) for path in sorted(runs.glob("*.pt*")) if path.name.split(".pt")[0] not in needed]
    left = [*runs.glob(".checkpoint-*"), *directory.glob(".tune"), *runs.glob("ray_train"), *directory.glob("*.tmp")]
    left += directory.glob("models/.*")
    found += [(path, "left behind by a process") for path in left]
    return [*there, *(Rubbish(path, why, size(path)) for path, why in found)]


def keep(study: Study) -> Iterator[str]:
    """The runs whose checkpoints are needed: unfinished ones, and the best."""
    kept: dict[tuple[str, str, int | None], list[Run]] = defaultdict(list)
    for run in study.runs.values():
        if run.outcome in UNFINISHED or study.header.get("kind") == "train":
            yield run.name
        elif run.outcome == "completed":
            begin = run.begin
            replicate = None if begin.get("trial") else begin.get("replicate")  # re-runs are kept as trials are
            kept[run.arm, run.phase, replicate].append(run)
    for (_, phase, replicate), equals in kept.items():
        ranked = sorted(equals, key=lambda run: -run.value("final/val_accuracy"))
        yield from (run.name for run in ranked[: 1 if phase == "final" and replicate is not None else storage.KEPT])


def remove(found: list[Rubbish]) -> None:
    for item in found:
        if isinstance(item.path, str):
            objects.remove(item.path)
        elif item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, or of everything in a directory."""
    return sum(p.lstat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
