"""Objects in a bucket, by URL (s3://bucket/key, gs://bucket/key), through pyarrow, which comes with Ray.

Credentials and endpoints come from the environment as usual: AWS_PROFILE, AWS_ACCESS_KEY_ID, an instance's own role;
AWS_ENDPOINT_URL for other services that speak S3. An object is replaced whole or not at all, so nobody sees a part.

What fails because the network or the service is away is tried again for `PATIENCE_S`: a training run is worth waiting.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

PATIENCE_S = 300.0
HOPELESS = (
    "NO_SUCH_BUCKET",
    "ACCESS_DENIED",
    "not found",
    "INVALID_ACCESS_KEY",
    "SIGNATURE",
    "Unrecognized filesystem",
)


WORDS = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "access denied",
    "NETWORK_CONNECTION": "the service cannot be reached",
    "INVALID_ACCESS_KEY_ID": "the access key is not known there",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong",
    "NO_CREDENTIALS": "no credentials; AWS_PROFILE or AWS_ACCESS_KEY_ID name them",
}


def told(error: Exception) -> str:
    """An error of pyarrow's in a few words."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return next((words for code, words in WORDS.items() if code in text), text[:200])


def is_url(place: str | Path) -> bool:
    return isinstance(place, str) and "://" in place


@functools.cache
def filesystem(bucket: str) -> Any:
    """The file system of `scheme://bucket`."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(bucket)[0]


def located(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme, _, path = url.partition("://")
    return filesystem(f"{scheme}://{path.split('/')[0]}"), path


def patient(action: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """`action()`, again and again with growing pauses while the service is away."""
    deadline, pause = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if time.monotonic() + pause > deadline or any(word in str(error) for word in HOPELESS):
                raise
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def write(url: str, content: bytes | memoryview, patience_s: float = PATIENCE_S) -> None:
    files, path = located(url)

    def put() -> None:
        with files.open_output_stream(path) as stream:
            stream.write(content)

    patient(put, patience_s)


def read(url: str, patience_s: float = PATIENCE_S) -> bytes:
    """The content of an object.

    Raises:
        FileNotFoundError: there is none.
    """
    files, path = located(url)

    def get() -> bytes:
        with files.open_input_file(path) as stream:
            content: bytes = stream.read()
            return content

    return patient(get, patience_s)


def sizes(url: str) -> dict[str, int]:
    """Every object below a URL, by its name from there on, in order, and its bytes."""
    from pyarrow import fs

    files, path = located(url)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    found = {info.path: info.size for info in patient(lambda: files.get_file_info(selector)) if info.is_file}
    return {name.removeprefix(f"{path}/"): found[name] for name in sorted(found)}


def age_s(url: str) -> float | None:
    """Seconds between the last write of an object and of one written now, both by the service's clock; None: no such
    object."""
    files, path = located(url)
    probe = f"{url}.now"
    write(probe, b"now")
    then, now = patient(lambda: files.get_file_info([path, located(probe)[1]]))
    remove(probe)
    return (now.mtime - then.mtime).total_seconds() if then.is_file else None


def exists(url: str) -> bool:
    files, path = located(url)
    return bool(patient(lambda: files.get_file_info(path)).is_file)


def remove(url: str) -> None:
    """Remove an object, if there is one."""
    files, path = located(url)
    with suppress(FileNotFoundError):
        patient(lambda: files.delete_file(path))


def put(path: Path, url: str) -> None:
    """Upload a file, or everything in a directory."""
    if path.is_dir():
        inside = [p for p in path.rglob("*") if p.is_file()]
        with ThreadPoolExecutor(8) as several:
            list(several.map(lambda p: write(f"{url}/{p.relative_to(path).as_posix()}", p.read_bytes()), inside))
    else:
        write(url, path.read_bytes())


def get(url: str, path: Path) -> bool:
    """Download an object to a file, whole or not at all; False when there is none."""
    try:
        content = read(url)
    except FileNotFoundError:
        return False
    replace(path, content)
    return True


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(name, path)
