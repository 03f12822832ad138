"""Where studies live: directories under one root, each written by one driver at a time.

Of a root in an object store (s3://bucket/prefix) there is a working directory on this machine, in which all is as in
any other root; `.url` in it says where it belongs, and bucket.py repeats it there.

<storage>/<study>/ledger.jsonl       the record (ledger.py)
<storage>/<study>/runs/<run>.pt      a checkpoint per run (training/checkpoint.py)
<storage>/<study>/report.html        the report, with figures/ beside it (report.py)
<storage>/mlflow.db, mlartifacts/    MLflow's store, unless MLFLOW_TRACKING_URI names another (tracking/)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from ..config import ConfigError, suggest
from ..training import objects
from . import bucket
from .ledger import FILE, read

URL = ".url"

KEPT = 3  # checkpoints of a search's best trials


def known(storage: str) -> Path:
    """The absolute root directory, which need not exist, or the working directory of a root in an object store."""
    if not objects.is_url(storage):
        return Path(storage).expanduser().resolve()
    url = storage.rstrip("/")
    parts = urlsplit(url)
    if parts.username or parts.password or "@" in parts.netloc:
        raise ConfigError(
            f"--storage {parts.scheme}://…@…: no passwords in URLs; AWS_… variables or a profile name them"
        )
    if not parts.netloc:
        raise ConfigError(f"--storage {storage}: names no bucket (nearest: {parts.scheme}://BUCKET/runs)")
    cache = Path(os.environ.get("BISAM_RAY_CACHE") or Path.home() / ".cache" / "bisam_ray")
    path = cache / f"{re.sub(r'[^A-Za-z0-9]+', '-', url)}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    objects.replace(path / URL, url.encode())
    return path


def root(storage: str) -> Path:
    """`known`, made and found to be writable.

    Raises:
        ConfigError: it cannot be written.
    """
    path = known(storage)
    probe = f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / probe).touch()
        (path / probe).unlink()
    except OSError as error:
        raise ConfigError(f"--storage {path}: cannot be written ({error.strerror}); choose another directory") from None
    if objects.is_url(storage):
        try:
            objects.write(f"{remote(path)}/{probe}", b"", patience_s=5)
            objects.remove(f"{remote(path)}/{probe}")
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"--storage {storage}: cannot be written ({objects.told(error)})") from None
    return path


def remote(path: Path) -> str | None:
    """The URL of a root, or of a study, that is the working directory of one in an object store."""
    for root in (path, path.parent):
        with suppress(OSError):
            return "/".join([(root / URL).read_text(encoding="utf-8"), *path.relative_to(root).parts])
    return None


def create(storage: Path, name: str) -> Path:
    """A new directory for a study: `name`, or `name-2`, `name-3`, … when it is taken."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise ConfigError(f"--study {name}: use letters, digits, '.', '_' and '-' only")
    number, url = 1, remote(storage)
    while True:
        directory = storage / (name if number == 1 else f"{name}-{number}")
        number += 1
        if url is None or not bucket.parts(f"{url}/{directory.name}"):
            with suppress(FileExistsError):
                directory.mkdir()
                return directory


def existing(storage: Path, name: str) -> Path:
    """The directory of a study by its name, or by its path.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if url := remote(storage):
        bucket.fetch(f"{url}/{name}", storage / name)
    for directory in (storage / name, Path(name)):
        if (directory / FILE).exists():
            return directory.resolve()
    raise ConfigError(f"{name}: no such study in {storage}{suggest(name, [d.name for d in studies(storage)])}")


def studies(storage: Path) -> list[Path]:
    """Every study of a storage, oldest first."""
    if url := remote(storage):
        for name in {name.split("/")[0] for name in objects.sizes(url) if "/ledger/" in name}:
            bucket.fetch(f"{url}/{name}", storage / name)
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
    if url := remote(directory):
        return bucket.driver(url)
    path = directory / ".driver"
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read() or "?"
    return None
