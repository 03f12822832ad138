"""How a study stands while it runs: its ledger's events, one by one, as the few numbers that a person watches."""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import gradients_per_step, resolve

NOTES = 3
LOST = ("failed", "diverged")
VALUE, RHO, COST = "val/accuracy", "sam/rho", "cost/gradients"


@dataclass
class Seen:
    """A run, as far as its events tell."""

    arm: Arm
    phase: str
    replicate: int | None
    config: Mapping[str, Any]
    outcome: str = "running"
    epoch: int = 0
    cost: float = 0.0
    rho: float = math.nan


@dataclass
class Arm:
    """A row of the board; costs in gradient evaluations × examples."""

    name: str
    planned: int | None = None  # trials
    trials: Counter[str] = field(default_factory=Counter)  # by outcome, "running" among them
    passed: list[int] = field(default_factory=list)  # trials that went on from each rung
    finals: Counter[str] = field(default_factory=Counter)  # runs that are no trials, by outcome
    expected: Counter[int] = field(default_factory=Counter)  # runs to be made, by replicate; known once all are
    ended: Counter[int] = field(default_factory=Counter)  # of them
    cost: float = 0.0
    found: dict[str, tuple[bool, float, float]] = field(default_factory=dict)  # by phase: (final?, accuracy, ρ)

    @property
    def best(self) -> tuple[float, float]:
        """Highest accuracy on validation and its ρ: of the replicates as soon as one has ended, else of the trials.

        Final weights count; those of some epoch only until the first run has ended.
        """
        final, search = self.found.get("final"), self.found.get("search")
        found = final if final and (final[0] or not search) else search or self.found.get("probe")
        return found[1:] if found else (math.nan, math.nan)

    @property
    def begun(self) -> int:
        return self.trials.total()

    @property
    def over(self) -> int:
        """Trials that have ended."""
        return self.begun - self.trials["running"] - self.trials["killed"]

    @property
    def replicates(self) -> tuple[int, int]:
        """(finished, planned)."""
        return sum(self.ended[r] >= n for r, n in self.expected.items()), len(self.expected)

    @property
    def state(self) -> str:
        """waiting | searching | searched | running | done."""
        if self.finals["running"]:
            return "running"
        if self.expected:
            return "done" if self.replicates[0] == len(self.expected) else "waiting"
        if self.begun:
            return "searched" if self.over == self.planned else "searching"
        return "done" if self.finals else "waiting"


class Board:
    """The state of a study. `take` hears the events, also those of earlier sessions; `lock` is held by who reads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self.study, self.kind, self.finished = "", "", ""
        self.arms: dict[str, Arm] = {}
        self.runs: dict[str, Seen] = {}
        self.notes: deque[str] = deque(maxlen=NOTES)
        self.protocol: Mapping[str, Any] = {}
        self.epochs, self.rungs = 0, list[int]()
        self.cost, self.unit = 0.0, math.nan  # spent; one run of SAM

    def take(self, event: Mapping[str, Any]) -> None:
        """Hear one event of the ledger."""
        with self.lock:
            self.version += 1
            match event["event"]:
                case "study":
                    self.header(event)
                case "begin":
                    self.begin(event)
                case "epoch" if event["run"] in self.runs:
                    self.epoch(self.runs[event["run"]], event["epoch"], event["metrics"])
                case "end" if event["run"] in self.runs:
                    self.end(self.runs[event["run"]], event)
                case "finish":
                    self.finished = event["outcome"]

    def expect(self, runs: Iterable[tuple[str, int | None]]) -> None:
        """All runs that will be made beside trials, those that have ended before too: (arm, replicate)."""
        with self.lock:
            self.version += 1
            for arm in self.arms.values():
                arm.expected.clear()
            for name, replicate in runs:
                if replicate is not None:
                    self.arm(name).expected[replicate] += 1

    def arm(self, name: str) -> Arm:
        if name not in self.arms:
            planned = self.protocol.get("trials") if self.kind == "search" else None
            self.arms[name] = Arm(name, planned, passed=[0] * len(self.rungs))
        return self.arms[name]

    def header(self, event: Mapping[str, Any]) -> None:
        """A session of the study begins: whatever was under way is no more."""
        self.study, self.kind, self.finished = event["study"], event["kind"], ""
        self.protocol = event.get("protocol") or {}
        self.rungs = list((self.protocol.get("settings") or {}).get("rungs") or [])
        self.epochs = ((event.get("config") or {}).get("train") or {}).get("epochs", 0)
        for name in self.protocol.get("arms") or []:
            self.arm(name)
        for arm in self.arms.values():
            arm.planned = self.protocol.get("trials") if arm.planned is not None or self.kind == "search" else None
        for run in self.runs.values():
            if run.outcome == "running":
                self.become(run, "killed")

    def begin(self, event: Mapping[str, Any]) -> None:
        name = event["run"]
        if name in self.runs:
            if self.runs[name].outcome != "running":
                self.become(self.runs[name], "running")
            return
        phase = event["phase"]
        arm = self.arm(f"{event['arm']} probe" if phase == "probe" else event["arm"])
        if phase == "search" and event.get("radius_policy") == "searched":
            arm.planned = self.protocol.get("trials")  # the others end with what the first ones have spent
        self.runs[name] = run = Seen(arm, phase, event.get("replicate"), event.get("config") or {})
        self.counted(run)["running"] += 1

    def epoch(self, run: Seen, epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch <= run.epoch:
            return  # told again
        if run.phase == "search":
            for k, rung in enumerate(self.rungs):
                run.arm.passed[k] += run.epoch <= rung < epoch
        cost = metrics.get(COST, run.cost)
        run.arm.cost += cost - run.cost
        self.cost += cost - run.cost
        run.epoch, run.cost, run.rho = epoch, cost, metrics.get(RHO, math.nan)
        self.improve(run, False, metrics.get(VALUE, math.nan))
        if math.isnan(self.unit) and cost > 0:
            self.unit = self.measured(run)

    def end(self, run: Seen, event: Mapping[str, Any]) -> None:
        outcome, error = event["outcome"], event.get("error")
        self.become(run, outcome)
        if outcome == "completed":
            self.improve(run, True, (event.get("metrics") or {}).get("final/val_accuracy", math.nan))
        elif outcome in LOST or error:
            last = str(error or "").strip().splitlines()[-1:] or ["no reason told"]
            self.notes.append(f"{event['run']} {outcome}: {last[0]}")

    def become(self, run: Seen, outcome: str) -> None:
        """A run ends, or goes on."""
        counted = self.counted(run)
        counted[run.outcome] -= 1
        counted[outcome] += 1
        if run.replicate is not None and run.phase == "final":
            run.arm.ended[run.replicate] += over(outcome) - over(run.outcome)
        run.outcome = outcome

    def counted(self, run: Seen) -> Counter[str]:
        return run.arm.trials if run.phase == "search" else run.arm.finals

    def improve(self, run: Seen, final: bool, value: float) -> None:
        before = run.arm.found.get(run.phase, (False, -math.inf, math.nan))
        if math.isfinite(value) and (final, value) > before[:2]:
            run.arm.found[run.phase] = (final, value, run.rho)

    def measured(self, run: Seen) -> float:
        """What one run of SAM costs, after what a run has cost so far; steps and batches are the same in all."""
        folds = (self.protocol.get("settings") or {}).get("folds", 1) if run.phase == "search" else 1
        work = gradients_per_step(resolve(run.config)) * run.epoch * folds
        return 2 * (self.epochs or run.epoch) * run.cost / work

    @property
    def spent(self) -> float:
        """In runs of SAM."""
        return self.cost / self.unit if self.unit > 0 else 0.0

    @property
    def best(self) -> Arm | None:
        """The arm with the highest accuracy so far."""
        known = [arm for arm in self.arms.values() if math.isfinite(arm.best[0])]
        return max(known, key=lambda arm: arm.best[0], default=None)


def over(outcome: str) -> bool:
    """Whether a run has ended for good."""
    return outcome not in ("running", "killed")
