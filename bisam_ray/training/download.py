"""Published data sets on the disk: what must lie where, and how it gets there.

Several processes, also of several nodes that share `data.root`, may do this at once: one holds the lock, downloads and
unpacks beside the target, and renames what is complete; the others wait and find it. Nobody ever sees half a data set,
and what a killed process leaves is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from ..config import ConfigError, Data

# what is read → the published file that holds it, both below data.root, as torchvision lays them out
PARTS = {
    "cifar10": {"cifar-10-batches-py": "cifar-10-python.tar.gz"},
    "cifar100": {"cifar-100-python": "cifar-100-python.tar.gz"},
    "svhn": {"train_32x32.mat": "train_32x32.mat", "test_32x32.mat": "test_32x32.mat"},
    "flowers102": {
        "flowers-102/jpg": "flowers-102/102flowers.tgz",
        "flowers-102/imagelabels.mat": "flowers-102/imagelabels.mat",
        "flowers-102/setid.mat": "flowers-102/setid.mat",
    },
    "pets": {
        "oxford-iiit-pet/images": "oxford-iiit-pet/images.tar.gz",
        "oxford-iiit-pet/annotations": "oxford-iiit-pet/annotations.tar.gz",
    },
}
PATIENCE = 15.0  # seconds a server may be silent


def root_of(config: Data) -> Path:
    return Path(config.root).expanduser().absolute()


def missing(config: Data) -> list[str]:
    """The parts that must be downloaded or unpacked before reading.

    Raises:
        ConfigError: some part can be neither, or may not be read.
    """
    root, parts = root_of(config), PARTS[config.name]
    lacking = [part for part in parts if not there(config, root / part)]
    hopeless = [part for part in lacking if not there(config, root / parts[part])]
    if hopeless and not config.download:
        packed = root / parts[hopeless[0]]
        raise ConfigError(
            f"data.name={config.name}: no {' and no '.join(str(root / part) for part in hopeless)}; "
            f"set data.download=true, or put {packed.name} into {packed.parent}"
        )
    return lacking


def there(config: Data, path: Path) -> bool:
    """Whether it exists; a ConfigError if it does but may not be read."""
    with told(config):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        what = "chmod -R a+rX" if os.path.isdir(path) else "chmod a+r"
        raise ConfigError(f"data.name={config.name}: no permission to read {path} (mode {found.st_mode:o}); {what}")
    return True


def obtain(config: Data, part: str) -> None:
    """Unpack, and before that download if need be, one part; no part appears before it is complete.

    Raises:
        ConfigError: no network, a wrong checksum, no room, no permission to write.
    """
    from torchvision.datasets.utils import calculate_md5, download_url, extract_archive

    target, packed = root_of(config) / part, root_of(config) / PARTS[config.name][part]
    url, md5 = addresses(config.name)[packed.name]
    stage = target.parent / f".{target.name}.part"
    with locked(config):
        if target.exists():  # another process has done it
            return
        try:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
            if not packed.exists():
                with patience(), hinted(config, url, packed):
                    download_url(url, stage, packed.name, None)
            file = packed if packed.exists() else stage / packed.name
            if (found := calculate_md5(file)) != md5:
                remedy = f"delete {file}" if file == packed else f"try again, or put {packed.name} into {packed.parent}"
                where = file if file == packed else url
                raise ConfigError(f"data.name={config.name}: {where} has md5 {found}, not {md5} (truncated?); {remedy}")
            if target.name == packed.name:
                os.rename(file, target)
            else:
                extract_archive(file, stage)
                os.rename(stage / target.name, target)
        except OSError as error:
            raise ConfigError(
                f"data.name={config.name}: cannot write {target}: {error.strerror or error}; "
                "make room there, or choose another data.root"
            ) from None
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def addresses(name: str) -> dict[str, tuple[str, str]]:
    """File name → (address, md5), as torchvision knows them."""
    from torchvision import datasets

    if name == "svhn":
        known = [datasets.SVHN.split_list[split] for split in ("train", "test")]
        return {file: (url, md5) for url, file, md5 in known}
    if name == "flowers102":
        flowers = datasets.Flowers102
        return {file: (flowers._download_url_prefix + file, md5) for file, md5 in flowers._file_dict.values()}
    if name == "pets":
        return {url.rpartition("/")[2]: (url, md5) for url, md5 in datasets.OxfordIIITPet._RESOURCES}
    cifar = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return {cifar.filename: (cifar.url, cifar.tgz_md5)}


@contextlib.contextmanager
def locked(config: Data) -> Iterator[None]:
    """One process at a time; who has to wait says so."""
    from filelock import FileLock, Timeout

    root = root_of(config)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{config.name}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            text = f"data.name={config.name}: waits for another process that writes into {root}"
            print(text, file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"data.root={config.root}: cannot write there: {error.strerror or error}; choose another data.root"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """A server that does not answer is given up soon; urllib alone would wait for minutes, without a word."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def hinted(config: Data, url: str, packed: Path) -> Iterator[None]:
    """A failed download as one line."""
    import http.client

    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename and not hasattr(error, "code"):
            raise  # of the disk
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise ConfigError(
            f"data.name={config.name}: cannot download {url} ({reason}); check the network, or put {packed.name} "
            f"into {packed.parent}"
        ) from None


@contextlib.contextmanager
def told(config: Data) -> Iterator[None]:
    """An error of the file system as one line."""
    try:
        yield
    except OSError as error:
        what = "; give yourself the permission to read it" if isinstance(error, PermissionError) else ""
        raise ConfigError(
            f"data.name={config.name}: {error.filename}: {error.strerror or error}{what or '; check data.root'}"
        ) from None
