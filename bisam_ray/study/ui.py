"""The MLflow UI of a storage, on this machine's loopback only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..config import ConfigError
from .session import reap
from .storage import studies
from .tracking import tracking_uri


def serve(storage: Path, port: int) -> dict[str, Any]:
    """Run the MLflow UI of a storage on 127.0.0.1 until it ends or Ctrl-C.

    Raises:
        ConfigError: nothing was tracked there yet, or the port is taken.
    """
    uri = tracking_uri(storage)
    if uri.startswith(("http://", "https://")):
        print(f"MLFLOW_TRACKING_URI is set: open {uri}", flush=True)
        return {"url": uri}
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"--storage {storage}: nothing tracked there yet; 'bisam-ray demo' makes a study")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"--port {port}: is taken; try --port {port + 1}") from None
    for directory in studies(storage):
        reap(directory)
    url = f"http://127.0.0.1:{port}"
    print(f"MLflow UI of {storage}: {url}   (ready in some seconds, Ctrl-C ends it)", flush=True)
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
