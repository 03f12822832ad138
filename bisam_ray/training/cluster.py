"""The Ray cluster of a session: joining or starting it, what there is room for, and noticing that it died."""

from __future__ import annotations

import _thread
import importlib
import importlib.metadata
import os
import secrets
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError
from . import objects

LOOK_EVERY_S = 2.0
TRAIN = {  # settings of Train's controller and workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # an epoch is heard of, and a dead worker noticed, so soon
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a worker that does not answer is dead; the default is 600
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # an elastic group then starts with the workers there is room for
}
died: str | None = None
"""Why the work cannot go on, once the cluster is gone."""


def prepare() -> None:
    """Set what Ray reads from the environment when it is imported: call it before whatever imports Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean what they meant to the user
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # `uv run`: workers use this environment as it is
    os.environ.setdefault(
        "TUNE_DISABLE_SIGINT_HANDLER", "1"
    )  # it swallows the first Ctrl-C, and stays after the search
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # a token of this process's own: nobody else on the network may join, and no token file is left in the home
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        for name, value in {**TRAIN, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("RAY_worker_niceness", "0")  # else any other work on the machine starves the runs


def connect() -> None:
    """Join the cluster named by RAY_ADDRESS, or start a quiet local one that only this process can talk to."""
    prepare()
    address = os.environ.get("RAY_ADDRESS")
    import ray

    if ray.is_initialized():
        return
    terminated = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if address:
        refuse_dead(address)
        ray.init(address=address, **quiet)
    else:
        # ray.init waits seconds for its processes: what a search needs is imported meanwhile
        threading.Thread(target=importlib.import_module, args=("ray.tune",), daemon=True).start()
        ray.init(address="local", include_dashboard=False, num_cpus=os.cpu_count(), **quiet)
        threading.Thread(target=watch, daemon=True).start()
    # it prints on stdout, between our lines, whenever a process dies; what matters of that is told by the run itself
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    tighten()
    if callable(terminated) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray put its own there, which aborts


def refuse_dead(address: str) -> None:
    """Raise ConfigError where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address} does not answer ({error.strerror or error}); start it (ray start --head), correct "
            "RAY_ADDRESS, or unset it for a local cluster"
        ) from None


def tighten() -> None:
    """Let nobody else read the file with this cluster's token, if that is where Ray has it from: Ray makes it 0644."""
    with suppress(OSError):
        if (path := token_file()) and path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def token_file() -> Path | None:
    """The file that Ray reads its token from, if it does: a token in the environment comes first."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path if path.exists() else None


def watch() -> None:
    """Interrupt the main thread when a process of the local cluster is dead: Ray itself would wait for it for ever."""
    global died
    import ray

    node = ray._private.worker._global_node
    while ray.is_initialized() and node is not None:
        gone = [kind for kind, process in node.dead_processes() if kind in ("raylet", "gcs_server")]
        if gone and ray.is_initialized():
            died = f"Ray's {gone[0]} died; what was done is kept, and goes on with --resume"
            _thread.interrupt_main()
            return
        time.sleep(LOOK_EVERY_S)


def cpus() -> int:
    """Processors of the cluster that `connect` joined."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def room(config: Config, wanted: int | None) -> tuple[int, str]:
    """How many trials run at once in the cluster that `connect` joined, and the arithmetic in a line.

    Raises:
        ConfigError: there is no room for a single one.
    """
    import ray

    scale, there = config.scale, ray.cluster_resources()
    needs: dict[str, float] = {"CPU": scale.threads if scale.workers == 1 else scale.workers}
    if scale.gpus_per_worker:
        needs["GPU"] = scale.gpus_per_worker * scale.workers
    fits = {name: int(there.get(name, 0) / need + 1e-9) for name, need in needs.items()}
    takes = " and ".join(f"{need:g} {name}{'s' if need > 1 else ''}" for name, need in needs.items())
    has = " and ".join(f"{there.get(name, 0):g}" for name in needs)
    most = min(fits.values())
    if most < 1:
        short = min(fits, key=lambda name: fits[name])
        field = "scale.gpus_per_worker" if short == "GPU" else "scale.workers" if scale.workers > 1 else "scale.threads"
        joined = os.environ.get("RAY_ADDRESS")
        scales = "; if it scales from zero, ask for nodes first: see cluster.yaml" if joined else ""
        raise ConfigError(f"{field}: a trial takes {takes}, the cluster has {has}{scales}")
    at_once = min(most, wanted) if wanted else most
    limited = f" (--concurrency {wanted})" if wanted and wanted < most else ""
    return at_once, f"{at_once} trials at once{limited}: each takes {takes} of {has}"


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    names = ("bisam-ray", "torch", "ray", "optuna", "mlflow", "numpy", "scikit-learn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_shared(root: Path | str) -> None:
    """Find out, before anything is trained, whether every node of the cluster reads and writes the same storage.

    Args:
        root: a directory that the driver can write, or the URL of an object store.

    Raises:
        ConfigError: naming a node that does not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others or str(root) in SHARED:
        return
    mark = secrets.token_hex(8)
    probe = f"{root}/.shared-{mark}"
    if isinstance(root, Path):
        Path(probe).write_text(mark)
    else:
        objects.write(probe, mark.encode())
    look = ray.remote(num_cpus=0, max_retries=0)(sees)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            probe, isinstance(root, Path)
        ): node["NodeManagerHostname"]
        for node in others
    }
    try:
        for reference, host in asked.items():
            if (found := ray.get(reference)) != mark:
                raise ConfigError(
                    f"--storage {root}: node {host} does not have it ({found}); give a directory that all nodes share, "
                    "or s3://BUCKET/…"
                )
    finally:
        if isinstance(root, Path):
            Path(probe).unlink(missing_ok=True)
        else:
            objects.remove(probe)
    SHARED.add(str(root))


SHARED: set[str] = set()  # storages that were found to be


def sees(probe: str, file: bool) -> str:
    """What a node finds at a place, after writing beside it; or why it cannot."""
    try:
        if file:
            Path(f"{probe}-too").touch()
            Path(f"{probe}-too").unlink()
            return Path(probe).read_text()
        objects.write(f"{probe}-too", b"", patience_s=10)
        objects.remove(f"{probe}-too")
        return objects.read(probe).decode()
    except OSError as error:
        return error.strerror or objects.told(error)
