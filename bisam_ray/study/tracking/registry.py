"""A study's winner in MLflow's model registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...config import ConfigError
from ...training import checkpoint as checkpoints
from ..ledger import Run, Study, read
from ..outcome import summarize
from ..selection import winner
from ..session import Session, held
from .client import connect, told, tracking_uri, without_password
from .mirror import Mirror

PATIENCE_S = 60.0  # of MLflow, without progress
ALIAS = "winner"


def register(directory: Path, name: str | None = None) -> dict[str, Any]:
    """Register the network that a study came to as a model version, exporting it first if that was not done yet.

    It is the run of the winner with the best val accuracy among those that count: a comparison's winning arm, a
    search's winning trial or its re-runs, the latest run of `train`. The version gets the tags study, arm, run and
    digest and the alias "winner", which older versions lose. A run that is registered already is not registered
    again.

    Returns:
        name, version, new (False: it was there), run, arm, uri (models:/NAME/VERSION), tracking_uri, load (a line of
        Python).

    Raises:
        ConfigError: a name that MLflow refuses, nothing finished, or the checkpoint is gone.
        RuntimeError: MLflow could not be reached.
    """
    study = read(directory)
    run = chosen(study)
    name = name or f"bisam-ray-{run.begin['dataset'].replace('/', '-')}"
    if not name.strip() or re.search(r"[/:]", name):
        raise ConfigError(f"--as {name}: a model's name has no '/' and no ':' (nearest: {re.sub('[/:]', '-', name)})")
    uri = tracking_uri(directory.parent)
    with held(directory) as ledger:
        session = Session(directory, ledger)
        if not study.exported(run.name):
            if not checkpoints.exists(session.checkpoint(run.name)):
                raise ConfigError(f"{study.name}: the checkpoint of {run.name} is gone; bisam-ray train makes it anew")
            session.log_model(run.name)
        with Mirror(directory, uri) as mirror:
            if not mirror.drain(PATIENCE_S):
                mirror.close(0.0)  # the patience is at an end
                raise RuntimeError(f"MLflow at {without_password(uri)}: {mirror.problem}")
            known = mirror.shown.runs.get(run.name)
    if known is None:
        raise ConfigError(f"{study.name}: {run.name} was deleted in MLflow")
    tags = {"study": study.name, "arm": run.arm, "run": run.name, "digest": run.begin["digest"]}
    try:
        version, new = versioned(uri, name, known.id, tags)
    except Exception as error:
        raise RuntimeError(f"MLflow at {without_password(uri)}: {told(error)}") from error
    safe = without_password(uri)
    model = f'mlflow.pyfunc.load_model("models:/{name}@{ALIAS}")'
    load = f'import mlflow; mlflow.set_tracking_uri("{safe}"); model = {model}'
    found = {"name": name, "version": version, "new": new, "run": run.name, "arm": run.arm}
    return {**found, "uri": f"models:/{name}/{version}", "tracking_uri": safe, "load": load}


def versioned(uri: str, name: str, run: str, tags: dict[str, str]) -> tuple[int, bool]:
    """The version that a run's model has under a name, and whether it is new."""
    client = connect(uri)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Registered by bisam-ray register.")
    same = [version for version in client.search_model_versions(f"name = '{name}'") if version.run_id == run]
    source = f"{client.get_run(run).info.artifact_uri}/model"
    found = same[0] if same else client.create_model_version(name, source, run, tags)
    client.set_registered_model_alias(name, ALIAS, found.version)
    return int(found.version), not same


def chosen(study: Study) -> Run:
    """The run whose network a study stands for.

    Raises:
        ConfigError: nothing was finished.
    """
    runs: list[Run] = []
    if study.header.get("kind") == "compare":
        summary = summarize(study)
        runs = [study.runs[name] for name in summary.of(summary.winner).kept] if summary else []
    elif study.header.get("kind") == "search":
        done = study.of(phase="final", outcome="completed")
        for trial in filter(None, (winner(study, arm) for arm in study.searched_arms())):
            runs = [run for run in done if run.begin.get("trial") == trial.name] or [trial]
    else:
        runs = study.of(outcome="completed")[-1:]
    if not runs:
        raise ConfigError(f"{study.name}: nothing is finished there; 'bisam-ray studies' shows what is")
    return max(runs, key=lambda run: run.value("final/val_accuracy"))
