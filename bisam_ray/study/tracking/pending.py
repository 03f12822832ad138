"""What one round of the mirror (mirror.py) has to tell MLflow about a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"running": "RUNNING", "completed": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}
STATUS |= dict.fromkeys(("pruned", "killed", "interrupted"), "KILLED")
PARENT = ""  # where the parent stands among the runs: no run of a ledger has an empty name


@dataclass
class Run:
    """A run that MLflow has, and what this round has to tell about it."""

    id: str
    name: str
    state: str  # running, or how it ended
    has_params: bool
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, milliseconds, step
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    status: tuple[str, int] | None = None

    def measured(self, metrics: Mapping[str, Any] | None, at: int, epoch: int | None) -> None:
        numbers = {key: value for key, value in (metrics or {}).items() if isinstance(value, int | float)}
        self.metrics += [(key, float(value), at, epoch or 0) for key, value in numbers.items()]

    def becomes(self, outcome: str, at: int) -> None:
        self.state, self.status = outcome, (STATUS[outcome], at)
        if self.name != PARENT:  # so that a filter by outcome lists trials and replicates only
            self.tags["outcome"] = outcome

    def goes_on(self, at: int) -> None:
        if self.state != "running":
            self.becomes("running", at)
            if self.name != PARENT:
                self.tags["error"] = ""

    def configured(self, config: Mapping[str, Any]) -> None:
        """Params are written once: MLflow refuses other values later."""
        if not self.has_params:
            self.params = {key: value[:500] for key, value in flat(config)}
            self.has_params = True

    def last_epoch(self, client: MlflowClient) -> int:
        """The epoch at which it ended, as far as MLflow knows or is about to be told."""
        steps = [step for *_, step in self.metrics]
        steps = steps or [point.step for point in client.get_metric_history(self.id, "cost/gradients")]
        return max(steps, default=0)

    def tell(self, client: MlflowClient) -> Run:
        """One batch, which the client cuts to MLflow's limits, then the files, then the status; returns what is left:
        nothing to tell."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in self.metrics]
        params = [Param(key, value) for key, value in self.params.items()]
        tags = [RunTag(key, value) for key, value in self.tags.items()]
        if metrics or params or tags:
            client.log_batch(self.id, metrics, params, tags, synchronous=True)
        for path, kind in self.artifacts:
            if path.is_dir():
                client.log_artifacts(self.id, str(path), kind)
            elif path.exists():
                client.log_artifact(self.id, str(path), kind)
        if self.status and self.status[0] == "RUNNING":
            client.update_run(self.id, "RUNNING")
        elif self.status:
            client.set_terminated(self.id, *self.status)
        return Run(self.id, self.name, self.state, self.has_params)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of what is set."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)
