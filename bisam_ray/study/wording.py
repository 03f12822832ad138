"""Numbers as sentences and tables say them: accuracies in per cent, differences in points, a true minus sign."""

from __future__ import annotations

import math


def capital(text: str) -> str:
    """The beginning of a sentence."""
    return text[:1].upper() + text[1:]


def counted(n: int, what: str) -> str:
    """ "1 trial", "2 trials"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def percent(value: float) -> str:
    """An accuracy in [0, 1] as "95.5 %"; a dash when there is none."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def estimate(value: float, interval: tuple[float, float]) -> str:
    """An accuracy with its interval: "95.5 % [94.1, 96.9]"."""
    if not all(map(math.isfinite, interval)):
        return percent(value)
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def points(mean: float, low: float = math.nan, high: float = math.nan, unit: str = "") -> str:
    """A difference of accuracies in points, with its interval if there is one: "+1.2 points [−0.5, +2.9]"."""
    if not math.isfinite(mean):
        return "–"
    span = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if math.isfinite(low + high) else ""
    return f"{100 * mean:+.1f}{unit}{span}".replace("-", "−")
