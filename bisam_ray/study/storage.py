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
from .ledger import FILE


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
