"""Is everything there that a study needs? One line per check, with what to do where something is wrong.

A check is a function of the storage's name that returns a `Result`. One that raises is a fault, told in one line; those
of ON_CLUSTER are skipped when there is no cluster. Here are the checks of this machine; cluster_checks.py asks the
nodes. Nothing stays behind, except what MLflow keeps of deleted runs until `mlflow gc`, and of a bucket its working
directory.
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import cluster_checks as nodes
from .cluster_checks import Result, one_line, version
from .training import objects
from .training.cluster import token_file

WALK_S = 10.0  # through the current directory
LARGEST_UPLOAD = 100_000_000  # bytes
TOLD = ("torch", "torchvision", "ray", "optuna", "mlflow", "pydantic", "click", "bisam-ray")
EXPERIMENT = "bisam-ray-doctor"


def examine(storage: str, tell: Callable[[str], object] = print) -> dict[str, Any]:
    """Make every check, telling each line as it is known; {"checks": [{name, ok, found, advice}], "ok": no ✗}.

    Those of MEANWHILE are made in a thread: while Ray starts, this process mostly waits.
    """
    directory = None if objects.is_url(storage) else Path(storage).expanduser()
    fresh, checks = directory is not None and not directory.exists(), []
    with ThreadPoolExecutor(1) as beside:
        begun = {name: beside.submit(attempt, name, CHECKS[name], storage) for name in MEANWHILE if name in CHECKS}
        for name, check in CHECKS.items():
            result = begun[name].result() if name in begun else attempt(name, check, storage)
            tell(result.line(name))
            checks.append({"name": name, **asdict(result)})
    if fresh and directory is not None:
        with suppress(OSError):  # never made, or not empty
            directory.rmdir()
    return {"checks": checks, "ok": all(check["ok"] is not False for check in checks)}


def attempt(name: str, check: Callable[[str], Result], storage: str) -> Result:
    if name in ON_CLUSTER and not joined():
        return Result(None, "there is no cluster to ask")
    try:
        return check(storage)
    except Exception as error:
        return Result(False, one_line(error))


def joined() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def packages(storage: str) -> Result:
    """The versions installed here, against those that this package's metadata ask for."""
    from packaging.requirements import Requirement

    short, install = [], []
    for text in importlib.metadata.requires("bisam-ray") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        here = version(need.name)
        if here is None or not need.specifier.contains(here, prereleases=True):
            need.marker = None
            short.append(f"{need.name} {here or 'is missing'}, needed {need.specifier}")
            install.append(f"'{need}'")
    if short:
        return Result(False, " · ".join(short), f"pip install -U {' '.join(install)}")
    return Result(True, " · ".join(f"{name} {version(name)}" for name in TOLD))


def mlflow(storage: str) -> Result:
    """A metric and an artifact to MLflow and back, in an experiment that is deleted afterwards."""
    from .study import storage as stores
    from .study.tracking.client import connect, told, tracking_uri, without_password

    root = stores.known(storage)
    uri = tracking_uri(root)
    server, place = uri.startswith(("http:", "https:", "databricks")), without_password(uri)
    artifacts = None if server else root / "mlartifacts" / EXPERIMENT
    database = Path(uri.removeprefix("sqlite:///"))
    fresh = uri.startswith("sqlite:///") and not database.exists()
    try:
        if artifacts:
            artifacts.mkdir(parents=True, exist_ok=True)
        took = round_trip(connect(uri), artifacts)
    except Exception as error:
        if server and unanswered(error):
            return Result(False, f"{place} does not answer", "start the server, or correct MLFLOW_TRACKING_URI")
        advice = "look at the server's log and the credentials" if server else "give another --storage"
        return Result(False, f"{place} refuses: {told(error)}", advice)
    finally:
        if fresh:
            database.unlink(missing_ok=True)
    return Result(True, f"{place}, a metric and an artifact there and back in {took:.1f} s")


def unanswered(error: BaseException | None) -> bool:
    """Whether an error comes from the network, and not from the server."""
    while error is not None:
        if isinstance(error, OSError):  # requests' errors are
            return True
        error = error.__cause__ or error.__context__
    return False


def round_trip(client: Any, artifacts: Path | None) -> float:
    """Seconds for it. Without a server, artifacts lie in a directory of this machine."""
    began, word = time.monotonic(), secrets.token_hex(8)
    old = client.get_experiment_by_name(EXPERIMENT)
    if old is None:
        experiment = client.create_experiment(EXPERIMENT, artifacts.as_uri() if artifacts else None)
    else:  # of an earlier visit: MLflow keeps the name of a deleted experiment, and where its artifacts lie
        experiment = old.experiment_id
        artifacts = artifacts and Path(urlsplit(old.artifact_location).path)
        if old.lifecycle_stage == "deleted":
            client.restore_experiment(experiment)
    try:
        run = client.create_run(experiment).info.run_id
        client.log_metric(run, "value", 0.5)
        client.log_text(run, word, "word.txt")
        value = client.get_run(run).data.metrics.get("value")
        with tempfile.TemporaryDirectory() as scratch:
            text = Path(client.download_artifacts(run, "word.txt", scratch)).read_text()
        client.delete_run(run)
    finally:
        client.delete_experiment(experiment)
        if artifacts and artifacts.name == EXPERIMENT:
            shutil.rmtree(artifacts, ignore_errors=True)
            with suppress(OSError):  # other experiments' are beside it
                artifacts.parent.rmdir()
    if (value, text) != (0.5, word):
        raise RuntimeError(f"0.5 came back as {value}, {word!r} as {text[:20]!r}")
    return time.monotonic() - began


def upload(storage: str) -> Result:
    """What `ray job submit --working-dir .` would send from here, by Ray's own rules."""
    from .terminal import readable

    try:
        from ray._private.ray_constants import get_runtime_env_default_excludes
        from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
    except ImportError as error:
        return Result(None, one_line(error))
    here, sizes, deadline = Path.cwd(), dict[str, int](), time.monotonic() + WALK_S

    def seen(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(here))] = path.stat().st_size
        if time.monotonic() > deadline:
            raise TimeoutError

    git, silent, more = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1", logging.Logger("silent", 100), ""
    try:
        _dir_travel(here, [_get_excludes(here, get_runtime_env_default_excludes())], seen, git, silent)
    except TimeoutError:
        more = "more than "
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    found = f"--working-dir . would send {more}{len(sizes)} files, {readable(sum(sizes.values()))}"
    found += f" ({', '.join(f'{name} {readable(sizes[name])}' for name in largest)})" if largest else ""
    if more or sum(sizes.values()) > LARGEST_UPLOAD:
        return Result(False, found, "name in .rayignore what the job does not need")
    return Result(True, found)


def security(storage: str) -> Result:
    """Who else can run code on this cluster, and read what is sent to MLflow."""
    from .study import storage as stores
    from .study.tracking.client import tracking_uri, without_password

    found, wrong = [], []
    if joined() and token_in_force():
        found.append("Ray asks for a token")
    elif joined():
        wrong.append(("whoever reaches this Ray can run code on it", "start and join it with RAY_AUTH_MODE=token"))
    if (path := token_file()) and (mode := path.stat().st_mode & 0o777) & 0o077:
        wrong.append((f"{path} has mode {mode:04o}", f"chmod 600 {path}"))
    elif path:
        found.append(f"{path} is private")
    uri = tracking_uri(stores.known(storage))
    if private(uri):
        found.append(f"MLflow's {urlsplit(uri).scheme or 'address'} is local or encrypted")
    else:
        advice = "https, or a tunnel to 127.0.0.1"
        wrong.append((f"{without_password(uri)} is neither encrypted nor on this machine", advice))
    if wrong:
        return Result(False, " · ".join(what for what, _ in wrong), "; ".join(advice for _, advice in wrong))
    return Result(True, ", ".join(found))


def token_in_force() -> bool:
    """Ray also turns tokens on by itself when it finds one; its own word counts, not the environment's."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def private(uri: str) -> bool:
    """Whether what goes to a tracking URI stays on this machine, or is encrypted."""
    parts = urlsplit(uri)
    if parts.scheme in ("https", "sqlite", "file", "databricks", ""):
        return True
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


CHECKS = {
    "python packages": packages,
    "cluster": nodes.cluster,
    "same versions": nodes.same_versions,
    "storage": nodes.shared_storage,
    "MLflow": mlflow,
    "distributed": nodes.distributed,
    "determinism": nodes.determinism,
    "upload": upload,
    "security": security,
}
MEANWHILE = ("MLflow",)
ON_CLUSTER = ("same versions", "storage", "distributed", "determinism")
