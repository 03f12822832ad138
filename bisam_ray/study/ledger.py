"""The append-only record of a study: the source of truth for reports, MLflow and resuming.

Format: JSON Lines, UTF-8, one event per line, `<storage>/<study>/ledger.jsonl`; only the driver writes.
Every event has `event` and `time` (seconds since 1970, UTC).

    study     study, kind (search | compare | train), config, space, protocol, versions, git, hardware
    begin     run, phase (search | probe | final), arm, method, radius_policy, seed, replicate, restart, digest,
              dataset, config, suggested (the searched values, or null); in a comparison also family (the arm's,
              whatever method a search chooses); of a trial also number and params (Optuna's), control (never stopped
              early); of a trial's re-run also trial
    epoch     run, epoch, metrics                          (README: names of the metrics)
    end       run, outcome (completed | pruned | failed | diverged | killed), epoch, metrics, error, checkpoint; of a
              trial also stopped (the epoch at which the scheduler stopped it, or would have stopped the control)
    measure   run, what (flatness), values: what was found in its final weights; lists of numbers are allowed
    space     arm, space: of an arm whose space follows from an earlier run
    artifact  kind (report | model | …), path relative to the study's directory, run (or null)
    finish    outcome (completed | interrupted | failed)

A line that was cut off by a crash is ignored by readers and cut away by the next writer.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..config import score_of

FILE = "ledger.jsonl"
DURABLE = ("study", "begin", "end", "finish")


class Ledger:
    """The writer: one line per event, handed to the operating system at once.

    With the events of `DURABLE` all lines are brought to the disk, and `durable` is called: it may send them further.
    `listeners` are called with every event once it is written.
    """

    def __init__(self, directory: Path, durable: Callable[[], None] = lambda: None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path, self.durable = directory / FILE, durable
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        whole = sum(len(line) for line in whole_lines(self.path))
        self.file: IO[bytes] = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        self.file.truncate(whole)

    def write(self, event: str, **fields: Any) -> None:
        whole = {"event": event, "time": time.time(), **fields}
        self.file.write(json.dumps(whole, default=str).encode() + b"\n")
        self.file.flush()
        if event in DURABLE:
            os.fsync(self.file.fileno())
            self.durable()
        for listener in self.listeners:
            listener(whole)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Run:
    """One trial or replicate, as the ledger tells it."""

    name: str
    begin: dict[str, Any]
    epochs: list[dict[str, float]] = field(default_factory=list)  # metrics per epoch, each with its "epoch"
    end: dict[str, Any] | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """completed | pruned | failed | diverged | killed | running (no end recorded)."""
        return self.end["outcome"] if self.end else "running"

    @property
    def epoch(self) -> int:
        """The last epoch that is recorded."""
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    @property
    def arm(self) -> str:
        return self.begin["arm"]

    @property
    def family(self) -> str:
        """What its arm is of: a method without where its radius comes from, unless the ledger says otherwise."""
        return self.begin.get("family") or self.begin["method"].removeprefix("lets-")

    @property
    def phase(self) -> str:
        return self.begin["phase"]

    @property
    def metrics(self) -> dict[str, float]:
        """The last epoch's metrics, and the final ones."""
        return {**(self.epochs[-1] if self.epochs else {}), **((self.end or {}).get("metrics") or {})}

    @property
    def cost(self) -> float:
        """Gradient evaluations × examples spent."""
        return self.metrics.get("cost/gradients", 0.0)

    @property
    def seconds(self) -> float:
        return self.metrics.get("cost/seconds", 0.0)

    def value(self, key: str) -> float:
        """A metric, NaN when it was never recorded."""
        value = self.metrics.get(key)
        return math.nan if value is None else value


@dataclass
class Study:
    """A whole ledger, read."""

    directory: Path
    header: dict[str, Any]
    runs: dict[str, Run]
    artifacts: list[dict[str, Any]]
    finish: dict[str, Any] | None
    spaces: dict[str, Any] = field(default_factory=dict)  # by arm, where they are not the header's

    @property
    def name(self) -> str:
        return self.header["study"]

    @property
    def score(self) -> str:
        """What decides, where it is no accuracy: the data set's own score."""
        return score_of(((self.header.get("config") or {}).get("data") or {}).get("name", ""))

    def of(self, *, arm: str | None = None, phase: str | None = None, outcome: str | None = None) -> list[Run]:
        """The runs that match, in the order they began."""
        return [
            run
            for run in self.runs.values()
            if arm in (None, run.arm) and phase in (None, run.phase) and outcome in (None, run.outcome)
        ]

    def searched_arms(self) -> list[str]:
        """The arms with trials, in the order in which they began."""
        return list(dict.fromkeys(run.arm for run in self.of(phase="search")))

    def exported(self, run: str) -> bool:
        """Whether a run's network was written as a model."""
        return any(made["kind"] == "model" and made["run"] == run for made in self.artifacts)


def whole_lines(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The complete lines from a byte offset; none when the file does not exist."""
    if path.exists():
        with open(path, "rb") as file:
            file.seek(offset)
            yield from (line for line in file if line.endswith(b"\n"))


def events(directory: Path) -> Iterator[dict[str, Any]]:
    """Everything that happened, in order."""
    yield from map(json.loads, whole_lines(directory / FILE))


def read(directory: Path) -> Study:
    """Read a study's ledger."""
    study = Study(directory, {}, {}, [], None)
    for event in events(directory):
        match event["event"]:
            case "study":
                study.header, study.finish = event, None
            case "begin":
                again = study.runs.get(event["run"])  # a resumed run goes on where it was
                study.runs[event["run"]] = Run(event["run"], event, again.epochs if again else [])
            case "epoch":
                run = study.runs[event["run"]]
                run.epochs = [e for e in run.epochs if e["epoch"] < event["epoch"]]
                run.epochs.append({"epoch": event["epoch"], **event["metrics"]})
            case "end":
                study.runs[event["run"]].end = event
            case "measure":
                study.runs[event["run"]].measured[event["what"]] = event["values"]
            case "space":
                study.spaces[event["arm"]] = event["space"]
            case "artifact":
                study.artifacts.append(event)
            case "finish":
                study.finish = event
    return study
