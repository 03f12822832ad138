"""A study as lines and points: accuracy against cost, the learned radius, the trials of a search."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from .ledger import Run, Study

POINTS = 200  # per line


class Trial(NamedTuple):
    """A trial that has both a radius and a validation accuracy."""

    rho: float
    accuracy: float
    outcome: str
    run: str


class Radius(NamedTuple):
    """A radius over replicates, at one point of training."""

    fraction: float
    mean: float  # geometric
    least: float
    most: float
    median: float


def finals(study: Study, arm: str) -> list[Run]:
    """The runs that count for a comparison; of a study without replicates, all of them."""
    runs = study.of(arm=arm, phase="final")
    return [run for run in runs if run.begin.get("replicate") is not None] or runs


def spending(study: Study, arm: str) -> tuple[list[float], list[float]]:
    """What an arm had spent, and the best validation accuracy it had then: mean over replicates.

    Of an arm with a search, that one search. Only the span of costs that every replicate has reached.
    """
    replicates: dict[Any, list[Run]] = defaultdict(list)
    for run in study.of(arm=arm, phase="search") or finals(study, arm):
        replicates[run.begin.get("replicate")].append(run)
    curves = [curve for runs in replicates.values() if (curve := anytime(sorted(runs, key=order)))[0]]
    if not curves:
        return [], []
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    costs = {cost for x, _ in curves for cost in x if start <= cost <= stop}
    grid = thinned(sorted(costs | {max(start, stop)}))
    return grid, [sum(y[bisect.bisect(x, at) - 1] for x, y in curves) / len(curves) for at in grid]


def order(run: Run) -> tuple[float, float]:
    """Restarts by number, trials by when they ended."""
    return run.begin.get("restart") or 0, (run.end or {}).get("time", math.inf)


def anytime(runs: Iterable[Run]) -> tuple[list[float], list[float]]:
    """Cumulated cost, and the best validation accuracy so far, of runs made one after the other."""
    before, best, x, y = 0.0, -math.inf, [], []
    for run in runs:
        for epoch in run.epochs:
            accuracy, cost = number(epoch.get("val/accuracy")), number(epoch.get("cost/gradients"))
            if math.isfinite(accuracy) and math.isfinite(cost):
                best = max(best, accuracy)
                x.append(before + cost)
                y.append(best)
        before += number(run.cost) if math.isfinite(number(run.cost)) else 0.0
    return x, y


def learned_paths(study: Study, arm: str) -> list[list[Radius]]:
    """The radius in training, one line per starting radius ρ₀ in the order in which the restarts use them."""
    starts: dict[Any, dict[float, list[float]]] = {}
    for run in finals(study, arm):
        config = run.begin.get("config") or {}
        total = (config.get("train") or {}).get("epochs") or max((e["epoch"] for e in run.epochs), default=1)
        for epoch in run.epochs:
            rho = number(epoch.get("sam/rho"))
            if 0 < rho < math.inf:
                line = starts.setdefault((config.get("optim") or {}).get("rho"), defaultdict(list))
                line[epoch["epoch"] / total].append(rho)
    return [
        thinned(
            [
                Radius(at, math.exp(sum(map(math.log, rhos)) / len(rhos)), min(rhos), max(rhos), median(rhos))
                for at, rhos in sorted(line.items())
            ]
        )
        for line in starts.values()
    ]


def searched(study: Study, arm: str) -> list[Trial]:
    """The trials of an arm that can be shown: a radius was searched, and an accuracy measured."""
    found = []
    for run in study.of(arm=arm, phase="search"):
        rho, accuracy = number((run.begin.get("suggested") or {}).get("optim.rho")), val_accuracy(run)
        if 0 < rho < math.inf and math.isfinite(accuracy):
            found.append(Trial(rho, accuracy, run.outcome, run.name))
    return found


def val_accuracy(run: Run) -> float:
    """Validation accuracy of the final weights, or else the last one known."""
    final = number(run.value("final/val_accuracy"))
    return final if math.isfinite(final) else number(run.value("val/accuracy"))


def number(value: Any) -> float:
    """A number as it is, NaN for anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def thinned(points: Sequence[Any]) -> list[Any]:
    """At most POINTS of them, evenly, with the last."""
    stride = max(1, math.ceil(len(points) / POINTS))
    return list(points[::-1][::stride][::-1])
