"""The generalization gap over training: how much better a network does on what it is trained on."""

from __future__ import annotations

import math
from collections.abc import Collection
from statistics import fmean
from typing import NamedTuple

from .ledger import Run, Study
from .series import finals, number, thinned, val_accuracy


class Gap(NamedTuple):
    """Val loss − train loss, and train accuracy − val accuracy, after an epoch: mean, least and most over n runs.

    Loss and accuracy on train are means over the epoch's steps, on val those of the weights at its end: an epoch in
    which the network learns much has a gap that is too small.
    """

    epoch: int
    n: int
    loss: float
    loss_least: float
    loss_most: float
    accuracy: float
    accuracy_least: float
    accuracy_most: float


def gaps(study: Study, arm: str, names: Collection[str] | None = None) -> list[Gap]:
    """The gap after every epoch that all the runs have; empty when there are none.

    Args:
        study: the ledger.
        arm: whose runs.
        names: the runs that count; None: of each replicate the one with the best final val accuracy.
    """
    runs = kept(study, arm) if names is None else [run for run in finals(study, arm) if run.name in names]
    rows = [found for run in runs if (found := of_run(run))]
    if not rows:
        return []
    return thinned(
        [
            Gap(epoch, len(rows), *spread([row[epoch][0] for row in rows]), *spread([row[epoch][1] for row in rows]))
            for epoch in sorted(set.intersection(*map(set, rows)))
        ]
    )


def kept(study: Study, arm: str) -> list[Run]:
    """The completed run of each replicate whose final weights are best on val."""
    best: dict[int | None, Run] = {}
    for run in finals(study, arm):
        if run.outcome == "completed" and math.isfinite(value := val_accuracy(run)):
            replicate = run.begin.get("replicate")
            if replicate not in best or value > val_accuracy(best[replicate]):
                best[replicate] = run
    return list(best.values())


def of_run(run: Run) -> dict[int, tuple[float, float]]:
    """(gap of the loss, gap of the accuracy) by epoch, where all four numbers are known."""
    found = {}
    for epoch in run.epochs:
        loss = number(epoch.get("val/loss")) - number(epoch.get("train/loss"))
        accuracy = number(epoch.get("train/accuracy")) - number(epoch.get("val/accuracy"))
        if math.isfinite(loss + accuracy):
            found[int(epoch["epoch"])] = loss, accuracy
    return found


def spread(values: Collection[float]) -> tuple[float, float, float]:
    return fmean(values), min(values), max(values)
