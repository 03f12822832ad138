"""Which trials go on: a scheduler of Ray Tune, spoken to by the names of runs.

It needs no cluster: the same object judges trials as they train, trials that a ledger tells of (a study is resumed by
telling it everything again, which fills its rungs) and trials that only replay recorded curves.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..training import cluster

SCHEDULERS = ("asha", "median", "hyperband", "none")
BRACKETS = 3  # of hyperband


def grace_period(epochs: int) -> int:
    """Epochs before a trial may be stopped: a quarter of the run.

    A large radius learns slowly at first and is best in the end: with a grace period of a tenth, ASHA stops just the
    trials that a search of the radius is looking for.
    """
    return max(1, round(epochs / 4))


def rungs(grace: int, reduction: float, epochs: int) -> list[int]:
    """The epochs before the last at which ASHA compares: grace · reductionᵏ."""
    found, at = [], float(grace)
    while math.ceil(at) < epochs:
        found.append(math.ceil(at))
        at *= reduction
    return found


@dataclass(frozen=True)
class Named:
    """What Tune's schedulers want to know of a trial."""

    trial_id: str


class Stopping:
    """A scheduler.

    Args:
        kind: asha; hyperband: ASHA in three brackets with grace, grace·η, grace·η²; median: stops what is worse than
            the median of the others so far; none.
        grace: epochs before a trial may be stopped.
        reduction: η, one trial in η goes on from a rung.
        epochs: of a whole run.
        seed: draws a trial's bracket.
    """

    def __init__(self, kind: str, grace: int, reduction: float, epochs: int, seed: int = 0) -> None:
        cluster.prepare()
        from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

        self.epochs, self.seed = epochs, seed
        measure: dict[str, Any] = {"time_attr": "epoch", "metric": "value", "mode": "max", "grace_period": grace}
        self.scheduler: Any = None
        if kind in ("asha", "hyperband"):
            brackets = min(BRACKETS, 1 + len(rungs(grace, reduction, epochs))) if kind == "hyperband" else 1
            # max_t beyond the last epoch: else every full trial counts as stopped at its last report
            self.scheduler = ASHAScheduler(**measure, max_t=epochs + 1, reduction_factor=reduction, brackets=brackets)
        elif kind == "median":
            self.scheduler = MedianStoppingRule(**measure, min_time_slice=math.inf)  # it never pauses

    def begin(self, name: str) -> None:
        if self.scheduler is not None:
            with numpy_seeded(f"{self.seed} {name}"):
                self.scheduler.on_trial_add(None, Named(name))

    def stops(self, name: str, epoch: int, value: float) -> bool:
        """Whether a trial that came to `value` should end here."""
        if self.scheduler is None or epoch >= self.epochs:
            return False
        return self.scheduler.on_trial_result(None, Named(name), {"epoch": epoch, "value": value}) == "STOP"


@contextmanager
def numpy_seeded(key: str) -> Iterator[None]:
    """Tune draws brackets from numpy's global generator."""
    import numpy as np

    before = np.random.get_state()
    np.random.seed(random.Random(key).randrange(2**32))
    try:
        yield
    finally:
        np.random.set_state(before)


@dataclass(frozen=True)
class Forecast:
    """What a search will probably be."""

    reach: list[tuple[int, float]]
    """(epoch, trials that come so far), for every rung and the last epoch."""
    cost: float
    """In full runs of one trial."""
    most: float
    """The cost if nothing is stopped."""


def forecast(
    kind: str, grace: int, reduction: float, epochs: int, trials: int, controls: int = 0, seed: int = 0
) -> Forecast:
    """What stopping early will probably save.

    The scheduler itself judges trials of random, constant quality, one after the other; the mean of some such searches.
    """
    at = rungs(grace, reduction, epochs) if kind in ("asha", "hyperband") else []
    repeats, reached = max(1, min(50, 2000 // trials)), Counter(dict.fromkeys([*at, epochs], 0))
    for repeat in range(repeats):
        stopping, rng = Stopping(kind, grace, reduction, epochs, seed + repeat), random.Random(seed + repeat)
        for number in range(trials):
            name, value, control = str(number), rng.random(), number < controls
            stopping.begin(name)
            for epoch in at:
                reached[epoch] += 1
                if stopping.stops(name, epoch, value) and not control:
                    break
            else:
                reached[epochs] += 1
    reach = [(epoch, reached[epoch] / repeats) for epoch in [*at, epochs]]
    spans = [end - start for start, end in zip([0, *at], [*at, epochs], strict=True)]
    cost = sum(span * count for span, (_, count) in zip(spans, reach, strict=True)) / epochs
    return Forecast(reach, cost, float(trials))
