"""One configuration on several folds at once, reported as one run: a choice on val is made with less noise.

    for each epoch:
        fold i of seed + i, for i = 0 … k − 1: an epoch of training/engine.py
        metrics: the means over the folds; what was spent (cost/*) is their sum

The runs share nothing: each is bitwise the run of its configuration alone. If one diverges, all of them end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from ..config import Config
from ..optim.comm import Comm
from . import engine
from .engine import EpochRecord, Evaluation


def run(
    config: Config, folds: int, comm: Comm | None = None, state: dict[str, Any] | None = None
) -> Iterator[EpochRecord]:
    """Train on folds data.fold, …, data.fold + folds − 1 with seeds seed, …, seed + folds − 1, in lockstep.

    A record's metrics are those of `engine.run`. `val/standard_error` is the standard deviation of val/accuracy over
    the folds ÷ √folds, not the binomial one of a single run. `best/val_accuracy` is the mean of each fold's best,
    at an epoch of its own: the accuracy of the weights that `evaluate(split, "best")` takes. `state()` is {"epoch",
    "folds": a state for every fold}.

    Args:
        config: of the first fold.
        folds: how many, at least 2.
        comm: as `engine.run` takes it.
        state: what an earlier record's `state()` returned: continue after that epoch.

    Raises:
        Diverged: one of the runs did.
        ConfigError: the data have no such fold.
    """
    states = state["folds"] if state is not None else [None] * folds
    runs = [engine.run(engine.on_fold(config, i), comm, single) for i, single in zip(range(folds), states, strict=True)]
    for records in zip(*runs, strict=True):
        yield together(records)


def together(records: Sequence[EpochRecord]) -> EpochRecord:
    """The records of one epoch of every fold as one."""
    epoch = records[0].epoch
    metrics = {
        name: (sum if name.startswith("cost/") else fmean)([r.metrics[name] for r in records])
        for name in records[0].metrics
    }
    metrics["val/standard_error"] = stdev(r.metrics["val/accuracy"] for r in records) / math.sqrt(len(records))

    def state() -> dict[str, Any]:
        return {"epoch": epoch, "folds": [r.state() for r in records]}

    def evaluate(split: str, weights: str = "final") -> Evaluation:
        return engine.mean_evaluation([r.evaluate(split, weights) for r in records])

    return EpochRecord(epoch, metrics, state, evaluate)
