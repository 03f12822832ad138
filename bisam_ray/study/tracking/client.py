"""Where MLflow is, and a quiet client for it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the mirror retries; MLflow's own seven take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def tracking_uri(storage: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI when set, else a SQLite file in the storage directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.resolve().as_posix()}/mlflow.db"


def is_server(uri: str) -> bool:
    """Whether a tracking URI names a server, which keeps the artifacts too."""
    return uri.startswith(("http:", "https:", "databricks"))


def connect(uri: str) -> MlflowClient:
    """A silent client for one tracking URI; the first call imports MLflow, which takes seconds.

    Sets ENVIRONMENT where the variables are not set yet, and the loggers of MLflow and its database to ERROR.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="mlflow")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3.connectionpool"):  # the import set them to INFO
        logging.getLogger(name).setLevel(logging.ERROR)
    make_whole(uri, MlflowClient)
    return MlflowClient(tracking_uri=uri)


def make_whole(uri: str, client: Any) -> None:
    """Make a SQLite store whole or not at all.

    MLflow creates its tables one after the other for a second or more, and a store that a kill left half made it can
    neither use nor mend.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as making:
        first, whole = Path(making) / "first.db", Path(making) / "whole.db"
        client(tracking_uri=f"sqlite:///{first}").search_experiments(max_results=1)
        shutil.copyfile(first, whole)  # this process keeps the first one open
        with suppress(FileExistsError):  # another process was faster
            os.link(whole, path)


def told(error: Exception) -> str:
    """One line, without a password that stood in a URL."""
    first = (str(error).strip().splitlines() or [""])[0]
    return without_password(f"{type(error).__name__}: {first}")[:300]


def without_password(text: str) -> str:
    """A text whose URLs name no users and no passwords."""
    return re.sub(r"//[^/@\s]+@", "//", text)
