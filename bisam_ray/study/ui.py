"""The MLflow UI of a storage, on this machine's loopback only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import ConfigError
from .ledger import read
from .session import reap
from .storage import existing, studies
from .tracking.client import tracking_uri, without_password
from .tracking.mirror import FILE
from .tracking.projection import searched
from .tracking.views import TOLD, link, views


def serve(storage: Path, port: int, study: str | None = None) -> dict[str, Any]:
    """Run the MLflow UI of a storage on 127.0.0.1 until it ends or Ctrl-C; print where to look.

    Args:
        study: the one whose views are told; None: the newest that MLflow has.

    Raises:
        ConfigError: nothing was tracked there yet, no such study, or the port is taken.
    """
    uri = tracking_uri(storage)
    directory = existing(storage, study) if study else None
    if uri.startswith(("http://", "https://")):
        url = without_password(uri.rstrip("/"))
        print(f"MLFLOW_TRACKING_URI is set: open {url}{places(url, storage, directory)}", flush=True)
        return {"url": url}
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"--storage {storage}: nothing tracked there yet; 'bisam-ray demo' makes a study")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"--port {port}: is taken; try --port {port + 1}") from None
    for each in studies(storage):
        reap(each)
    url = f"http://127.0.0.1:{port}"
    told = f"MLflow UI of {storage}: {url}   (ready in some seconds, Ctrl-C ends it)"
    print(f"{told}{places(url, storage, directory)}", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", uri, "--default-artifact-root", str(storage / "mlartifacts"), "--workers", "1"]
    # its job runner would be eight more processes, which outlive the server
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return {"url": url}
    raise RuntimeError(f"mlflow server ended with exit code {process.returncode}")


def places(url: str, storage: Path, directory: Path | None = None) -> str:
    """The views of a study, or of the newest that MLflow has, a line each."""
    for candidate in [directory] if directory else reversed(studies(storage)):
        with suppress(OSError, ValueError, KeyError):
            experiment = json.loads((candidate / FILE).read_bytes())["experiment"]
            header = read(candidate).header
            names = views(header["kind"], searched(header))
            if not names and directory is None:
                continue
            return "".join(f"\n  {TOLD[name]}:\n    {url}/{link(experiment, name)}" for name in names)
    return ""
