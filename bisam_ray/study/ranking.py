"""Ranks: how alike two orders are, and how much of it chance would bring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST = 5  # pairs below which a correlation says nothing
PERMUTATIONS = 2_000


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of n pairs with a 95 % interval (NaN: fewer than LEAST, or all alike)."""

    n: int
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


def correlation(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Spearman's coefficient; 95 % by Fisher's z with standard deviation 1.06 / √(n − 3) (Fieller, 1957).

    At ±1 the interval is that of the nearest value a sample without ties can have, two neighbours swapped.
    """
    n = len(x)
    if n < LEAST:
        return Correlation(n)
    value = spearman(ranks(x), ranks(y))
    if not math.isfinite(value):
        return Correlation(n)
    most = 1 - 12 / (n * (n * n - 1))
    z, half = math.atanh(min(most, max(-most, value))), 1.96 * 1.06 / math.sqrt(n - 3)
    return Correlation(n, value, math.tanh(z - half), math.tanh(z + half))


def ranks(values: Sequence[float]) -> np.ndarray:
    """1 for the least; equals share the mean of their ranks."""
    import numpy as np

    _, place, count = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks; NaN when one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale else math.nan


def by_chance(x: Sequence[float], y: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Spearman's coefficient, and the share of permutations that bring as much or more; the generator's seed is 0."""
    import numpy as np

    a, b, rng = ranks(x), ranks(list(y)), np.random.default_rng(0)
    value = spearman(a, b)
    if not math.isfinite(value):
        return math.nan, math.nan
    a, b = a - a.mean(), b - b.mean()
    seen = sum(float(rng.permutation(a) @ b) >= float(a @ b) - 1e-9 for _ in range(PERMUTATIONS))
    return value, (1 + seen) / (1 + PERMUTATIONS)


def larger_share(a: Sequence[float], b: Sequence[float]) -> float:
    """Mann and Whitney's U over its maximum: P(a > b) + P(a = b) / 2; NaN when one side is empty."""
    if not a or not b:
        return math.nan
    together = ranks([*a, *b])[: len(a)]
    return float(together.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b))
