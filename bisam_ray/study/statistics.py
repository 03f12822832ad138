"""What paired replicates show, and what they could have shown.

    x_r = a_r − b_r            the difference of two arms on draw r of data, noise and seed, r = 1 … n
    interval   x̄ ± t(n−1, .975) · s/√n                                           studentized
    p          share of the 2ⁿ sign flips ±x_r with |Σ ±x_r| ≥ |Σ x_r|           exact if a and b are exchangeable
    Holm       p_(i) · (m − i + 1), made monotone: any false claim among m comparisons in at most 5 % of the studies
    g          x̄/s · J(n−1)                                                      Hedges, 1981

Flipping signs keeps Σ x², so the studentized statistic and the sum order the flips alike: it is one test. What is
claimed follows from Holm's p alone; intervals are not corrected. `python benchmarks/comparison_errors.py` measures
false claims and coverage on simulated studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
EXACT = 14  # up to so many replicates every flip is made; beyond, FLIPS random ones
FLIPS = 20_000
SIMULATED, OF_POWER = 500, 4096  # studies, and flips of each
LEAST = 0.002  # of a standard deviation of accuracies: replicates may agree by chance, or as examples are few
FAR = 10.0  # robust standard deviations: a replicate further off is told; by chance in 1 arm of 250 (n = 6), 1,000 (10)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval (NaN: fewer than two values)."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Mean and t-interval.

        In simulations it holds the truth in 94.5–96.5 % of normal, Laplace, t(3) and differences of exponential values
        for n = 3 … 20. No interval of few values knows of what it has not seen: where one replicate in ten collapses,
        80 % for n = 10 (a bootstrap of the studentized mean: as many, and infinite for n = 3). `outlying` tells.
        """
        if len(values) < 2:
            return cls(fmean(values) if values else math.nan)
        from scipy.special import stdtrit  # the t quantile; scipy.stats takes three times as long to import

        mean, half = fmean(values), float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p value of the sign-flip permutation test (Fisher, 1935); NaN without values, or where one is missing.

    Example:
        >>> sign_flip([1, 2, 3, 4, 5])
        0.0625
        >>> sign_flip([1, -1])
        1.0
    """
    import numpy as np

    x = np.asarray(differences, float)
    if not len(x) or np.isnan(x).any():
        return math.nan
    sums = np.abs(flips(len(x)) @ x)
    extreme = int((sums >= abs(x.sum()) - 1e-9 * np.abs(x).sum()).sum())
    if len(x) <= EXACT:
        return extreme / len(sums)
    return (extreme + 1) / (len(sums) + 1)


@cache
def flips(n: int) -> np.ndarray:
    """All sign vectors, or random ones (seed n) of many replicates: an array of rows of ±1."""
    import numpy as np

    if n > EXACT:
        return np.random.default_rng(n).choice(np.array([-1.0, 1.0]), (FLIPS, n))
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979); the order stays, NaN stays and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, worst = list(values), 0.0
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    for rank, (p, i) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        corrected[i] = worst
    return corrected


def effect(differences: Sequence[float]) -> float:
    """Hedges' g of paired differences: x̄/s · (1 − 3/(4(n−1) − 1)). Infinite when they are all the same but not zero."""
    if len(differences) < 2:
        return math.nan
    mean, spread = fmean(differences), stdev(differences)
    if not spread:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / spread * (1 - 3 / (4 * (len(differences) - 1) - 1))


def outlying(values: Sequence[float]) -> list[int]:
    """Which accuracies are so far off that no interval of so few is to be trusted."""
    if len(values) < 6:
        return []
    centre = sorted(values)[len(values) // 2]
    scale = max(LEAST, 1.4826 * sorted(abs(v - centre) for v in values)[len(values) // 2])
    return [i for i, v in enumerate(values) if abs(v - centre) > FAR * scale]


def needed(comparisons: int) -> int:
    """The fewest replicates with which one of so many comparisons can be shown at all: 2 · 2⁻ⁿ · m ≤ 5 %.

    Example:
        >>> needed(1), needed(4), needed(24)
        (6, 8, 10)
    """
    return math.ceil(math.log2(2 * max(1, comparisons) / LEVEL))


@cache
def detectable(n: int, comparisons: int, power: float = 0.8) -> float:
    """The true difference, in standard deviations of the paired ones, that the sign-flip test shows with this power.

    At Holm's first and hardest step, p ≤ 5 %/m; normal differences, by simulation (seed 0). Infinite when no
    result could be shown.

    Example:
        >>> detectable(5, 1)
        inf
        >>> 0.9 < detectable(10, 1) < 1.1
        True
    """
    import numpy as np

    if n < needed(comparisons):
        return math.inf
    signs = flips(n)
    if len(signs) > OF_POWER:
        signs = signs[np.random.default_rng(1).choice(len(signs), OF_POWER, replace=False)]
    noise, plus = np.random.default_rng(0).standard_normal((n, SIMULATED)), signs.sum(1)
    flipped, own = signs @ noise, noise.sum(0)
    most = int(LEVEL / comparisons * len(signs))  # flips that may reach the observed sum

    def found(d: float) -> float:
        reached = (np.abs(flipped + d * plus[:, None]) >= np.abs(own + d * n) - 1e-9).sum(0)
        return float((reached <= most).mean())

    low, high = 0.0, 8.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high
