"""Where studies live: directories under one root, each written by one driver at a time.

<storage>/<study>/ledger.jsonl       the record (ledger.py)
<storage>/<study>/runs/<run>.pt      a checkpoint per run (training/checkpoint.py)
<storage>/<study>/report.html        the report, with figures/ beside it (report.py)
<storage>/mlflow.db, mlartifacts/    MLflow's store, unless MLFLOW_TRACKING_URI names another (tracking.py)
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import ConfigError, suggest
from .ledger import FILE, read

KEPT = 3  # checkpoints of a search's best trials


def root(storage: str) -> Path:
    """The absolute root directory, made and known to be writable.

    Raises:
        ConfigError: it cannot be written, or is an object store (not supported yet).
    """
    if "://" in storage:
        raise ConfigError(f"--storage {storage}: only directories are supported; mount the bucket, or give a path")
    path = Path(storage).expanduser().resolve()
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--storage {storage}: cannot be written ({error.strerror}); choose another directory"
        ) from None
    return path


def create(storage: Path, name: str) -> Path:
    """A new directory for a study: `name`, or `name-2`, `name-3`, … when it is taken."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise ConfigError(f"--study {name}: use letters, digits, '.', '_' and '-' only")
    number = 1
    while True:
        directory = storage / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            number += 1


def existing(storage: Path, name: str) -> Path:
    """The directory of a study by its name, or by its path.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    for directory in (storage / name, Path(name)):
        if (directory / FILE).exists():
            return directory.resolve()
    raise ConfigError(f"{name}: no such study in {storage}{suggest(name, [d.name for d in studies(storage)])}")


def studies(storage: Path) -> list[Path]:
    """Every study of a storage, oldest first."""
    found = (p.parent for p in storage.glob(f"*/{FILE}")) if storage.is_dir() else ()
    return sorted(found, key=lambda d: (d / FILE).stat().st_ctime)


def newest(root: Path, name: str, kind: str) -> Path:
    """The latest study called `name`, or `name-2`, … as `create` calls them.

    Raises:
        ConfigError: there is none.
    """
    found = [d for d in studies(root) if d.name == name or d.name.removeprefix(f"{name}-").isdigit()]
    found = [d for d in found if read(d).header.get("kind") == kind]
    if not found:
        raise ConfigError(
            f"--resume: no {kind} of this configuration in {root}; leave --resume out to begin one, or name it: --study"
        )
    return found[-1]


@contextmanager
def driver_lock(directory: Path) -> Iterator[None]:
    """One driver per study; the operating system lets go of the lock when the process ends, however it ends.

    Raises:
        ConfigError: another process is driving this study.
    """
    with open(directory / ".driver", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(f"{directory.name}: process {file.read() or '?'} is driving this study already") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def driver(directory: Path) -> str | None:
    """The process that is driving a study now, if any."""
    path = directory / ".driver"
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read() or "?"
    return None
