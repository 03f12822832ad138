"""A search whose trials replay curves that an earlier study recorded: settings can be tried in seconds.

A suggested point is answered by the nearest point that ran to its end, in units of the space's ranges (logarithms
where the domain is logarithmic); by one that differs in a choice only if no other has the same. Time is simulated: an
epoch takes as long as it took then, and the trials that would run at once do. The same settings give the same study.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import ConfigError
from ..training.launch import Epoch
from .ledger import Run, Study
from .search import Search
from .spaces import Space

FAR = 100.0
AT_ONCE = 2  # simulated trials beside each other, unless told otherwise


@dataclass(frozen=True)
class Curves:
    """What a study recorded of the trials that ran to their end."""

    space: Space
    runs: list[Run]

    @classmethod
    def of(cls, study: Study, space: Space) -> Curves:
        """The curves of a study.

        Raises:
            ConfigError: too few of its trials ran to their end.
        """
        runs = study.of(phase="search", outcome="completed")
        if len(runs) < 2:
            raise ConfigError(
                f"--replay {study.name}: {len(runs)} of its trials ran to the end, 2 are needed; record some with "
                "--scheduler none"
            )
        return cls(space, runs)

    def nearest(self, params: Mapping[str, Any]) -> Run:
        """The recorded trial that answers for a point; the earlier of equals."""
        return min(self.runs, key=lambda run: self.distance(params, parameters(run)))

    def distance(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
        """Squared, in units of the ranges; what one of the points lacks, or chooses otherwise, is far away."""
        domains, total = self.space.parameters, 0.0
        for name in {**a, **b}:
            domain = domains.get(name)
            if name in a and name in b and domain is not None and domain.choice is None:
                total += (domain.share(a[name]) - domain.share(b[name])) ** 2
            else:
                total += FAR * (name not in a or name not in b or a[name] != b[name])
        return total


def parameters(run: Run) -> dict[str, Any]:
    """What Optuna suggested for a run."""
    return run.begin.get("params") or run.begin["suggested"] or {}


def replay(search: Search, curves: Curves) -> None:
    """Make the trials that `search` asks for from recorded curves, in simulated time."""
    order, now = itertools.count(), 0.0
    running: list[tuple[float, int, str, Run, int]] = []  # when, tie-breaker, trial, its curve, the epoch it reaches

    def due(run: Run, at: int) -> float:
        before = run.epochs[at - 2]["cost/seconds"] if at > 1 else 0.0
        return now + max(1e-6, run.epochs[at - 1]["cost/seconds"] - before)

    while True:
        while len(running) < search.at_once and (trial := search.next()) is not None:
            search.begin(trial)
            run = curves.nearest(trial.params)
            heapq.heappush(running, (due(run, 1), next(order), trial.name, run, 1))
        if not running:
            return
        now, _, name, run, at = heapq.heappop(running)
        metrics = {k: v for k, v in run.epochs[at - 1].items() if k != "epoch"}
        assert run.end is not None
        final = run.end["metrics"] if at == len(run.epochs) else None
        if search.tell(name, Epoch(at, metrics, final)):
            heapq.heappush(running, (due(run, at + 1), next(order), name, run, at + 1))
