"""A driver at work on one study: its lock, its ledger, and MLflow following the ledger."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..config import Config
from ..provenance import git_state
from ..training import checkpoint as checkpoints
from ..training import cluster
from ..training.checkpoint import Place
from ..training.launch import Epoch, Failure, Job
from . import storage
from .bucket import Bucket
from .ledger import Ledger, Study, events, read
from .spaces import Space
from .storage import driver_lock
from .tracking.client import tracking_uri
from .tracking.export import save_model
from .tracking.mirror import Mirror

UNFINISHED = ("running", "killed")  # outcomes of runs that a resumed study goes on with


class Session:
    """Writes what happens to the runs of a study, and keeps it at hand as the ledger's readers see it."""

    def __init__(self, directory: Path, ledger: Ledger, stored: bool = True) -> None:
        self.directory, self.ledger = directory, ledger
        self.url = storage.remote(directory)
        self.stored = stored  # whether runs leave more behind than their record: checkpoints, Optuna's study

    def begin(
        self,
        name: str,
        config: Config,
        *,
        arm: str,
        phase: str,
        replicate: int | None = None,
        restart: int | None = None,
        suggested: Mapping[str, Any] | None = None,
        policy: str | None = None,
        **more: Any,
    ) -> None:
        optim = config.optim
        natural = "none" if optim.objective == "none" else optim.radius
        self.ledger.write(
            "begin",
            run=name,
            arm=arm,
            phase=phase,
            method=config.method,
            radius_policy=policy or natural,
            seed=config.seed,
            replicate=replicate,
            restart=restart,
            digest=config.digest(),
            dataset=config.data.name,
            config=config.model_dump(exclude_none=True),
            suggested=dict(suggested) if suggested else None,
            **more,
        )

    def epoch(self, name: str, epoch: Epoch) -> None:
        self.ledger.write("epoch", run=name, epoch=epoch.epoch, metrics=epoch.metrics)

    def end(
        self,
        name: str,
        outcome: str,
        epoch: int = 0,
        final: Mapping[str, float] | None = None,
        error: str | None = None,
        checkpoint: Place | None = None,
        **more: Any,
    ) -> None:
        where = f"runs/{name}.pt" if checkpoint and checkpoints.exists(checkpoint) else None
        ended = {"outcome": outcome, "epoch": epoch, "metrics": dict(final or {}), "error": error, "checkpoint": where}
        self.ledger.write("end", run=name, **ended, **more)

    def follow(self, job: Job, message: Epoch | Failure, after: int = 0) -> bool:
        """Record what a job tells, if it is of a later epoch than `after`; True when that was its last word."""
        if isinstance(message, Failure):
            self.end(job.name, message.outcome, error=message.error, checkpoint=job.checkpoint)
            return True
        if message.epoch > after:
            self.epoch(job.name, message)
        if message.final is None:
            return False
        self.end(job.name, "completed", message.epoch, message.final, checkpoint=job.checkpoint)
        return True

    def artifact(self, kind: str, path: Path, run: str | None = None, **more: Any) -> None:
        self.ledger.write("artifact", kind=kind, path=str(path.relative_to(self.directory)), run=run, **more)

    def measure(self, name: str, what: str, values: Mapping[str, Any]) -> None:
        self.ledger.write("measure", run=name, what=what, values=dict(values))

    def space(self, arm: str, space: Space, known: Study) -> None:
        content = space.model_dump(mode="json", exclude_none=True)
        if known.spaces.get(arm) != content:
            self.ledger.write("space", arm=arm, space=content)

    def log_model(self, name: str) -> None:
        """Export a finished run's network, loadable by MLflow without executing a pickle; it joins the run there."""
        from ..training import engine

        config, state = checkpoints.load(self.checkpoint(name))
        model, example = engine.trained(config, state)
        path = self.directory / "models" / name
        making = path.with_name(f".{name}")  # a kill leaves nothing that looks like a model
        shutil.rmtree(making, ignore_errors=True)
        save_model(model, example, making)
        shutil.rmtree(path, ignore_errors=True)
        making.rename(path)
        self.artifact("model", path, name)

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Let it hear every event of the study: those that there are, and those to come."""
        for event in self.events():
            listener(event)
        self.ledger.listeners.append(listener)

    def study(self) -> Study:
        return read(self.directory)

    def events(self) -> list[dict[str, Any]]:
        return list(events(self.directory))

    @property
    def root(self) -> Place:
        """Of the storage: what every node of a cluster must have."""
        return self.url.rpartition("/")[0] if self.url else self.directory.parent

    def checkpoint(self, name: str) -> Place:
        return f"{self.url}/runs/{name}.pt" if self.url else self.directory / "runs" / f"{name}.pt"


def reap(directory: Path) -> bool:
    """Tell the ledger and MLflow that a driver was killed: what it left open is closed; False if nothing was.

    A study that is gone on with needs no such thing, and one that is closed can still be gone on with.
    """
    if read(directory).finish is not None or storage.driver(directory) is not None:
        return False
    with held(directory) as ledger, Mirror(directory, tracking_uri(directory.parent)):
        close(ledger, directory, "interrupted")
    return True


def close(ledger: Ledger, directory: Path, outcome: str) -> None:
    """Whoever is under way is killed: a resumed study goes on with it."""
    for run in read(directory).runs.values():
        if run.end is None:
            fields = {"outcome": "killed", "epoch": run.epoch, "metrics": {}, "error": None, "checkpoint": None}
            ledger.write("end", run=run.name, **fields)
    ledger.write("finish", outcome=outcome)


@contextmanager
def held(directory: Path) -> Iterator[Ledger]:
    """The ledger of a study, for its only driver."""
    url = storage.remote(directory)
    with driver_lock(directory):
        if url is None:
            with Ledger(directory) as ledger:
                yield ledger
            return
        with Bucket(directory, url) as bucket, Ledger(directory, bucket.push) as ledger:
            yield ledger


@contextmanager
def session(
    directory: Path, kind: str, config: Config | None, tracked: bool = True, **header: Any
) -> Iterator[Session]:
    """Drive the study in `directory`; whatever happens inside, the ledger says how it ended.

    Ctrl-C and SIGTERM end it as interrupted, with everything done so far kept. Untracked, it is in the ledger alone.
    """
    mirror = Mirror(directory, tracking_uri(directory.parent)) if tracked else nullcontext()
    with held(directory) as ledger, mirror:
        ledger.write(
            "study",
            study=directory.name,
            kind=kind,
            config=config.model_dump(exclude_none=True) if config else None,
            versions=cluster.versions(),
            git=git_state(),
            hardware=f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
            **header,
        )
        outcome = "failed"
        try:
            yield Session(directory, ledger, stored=tracked)
            outcome = "completed"
        except KeyboardInterrupt:
            outcome = "interrupted"
            if cluster.died:
                raise RuntimeError(cluster.died) from None
            raise
        finally:
            close(ledger, directory, outcome)
