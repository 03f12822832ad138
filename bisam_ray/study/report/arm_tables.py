"""What a report says of a comparison's arms: the table, the picture by method and kind, the contrasts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..wording import estimate, percent, points
from .canvas import MILLION, Look

if TYPE_CHECKING:
    from ..contrasts import Contrast
    from ..outcome import ArmResult, Summary

ARM_COLUMNS = (
    *("arm", "method", "radius_policy", "how", "n", "restarts", "rho_final"),
    *("test_accuracy", "test_low", "test_high", "single_accuracy", "single_low", "single_high"),
    *("best_weights_accuracy", "val_accuracy", "cost_gradients", "cost_seconds"),
    *("winner_ahead_by", "winner_ahead_low", "winner_ahead_high"),
)
KINDS = {  # the columns of the picture, in this order
    "fixed": "published ρ",
    "warm-up": "warmed up",
    "scheduled": "scheduled",
    "searched": "searched",
    "learned": "learned",
    "around": "learned, then searched around",
    "replayed": "learned ρ(t) replayed",
}


def arm_row(arm: ArmResult) -> list[Any]:
    """An arm in the order of ARM_COLUMNS."""
    row = [arm.arm, arm.method, arm.radius_policy, arm.how, arm.n, arm.restarts, arm.rho_final]
    row += [arm.test_accuracy, *arm.ci95, arm.single_accuracy, *arm.single_ci95, arm.best_weights_accuracy]
    return [*row, arm.val_accuracy, arm.cost_gradients, arm.cost_seconds, *(arm.difference or ("", "", ""))]


class Scale:
    """Where accuracies lie on the little bars of the tables, from 3 to 97 on a width of 100."""

    def __init__(self, arms: Sequence[ArmResult]) -> None:
        values = [v for arm in arms for v in (arm.test_accuracy, *arm.ci95) if math.isfinite(v)] or [0.0, 1.0]
        self.low, self.span = min(values), max(max(values) - min(values), 1e-3)

    def __call__(self, value: float) -> float:
        return round(3 + 94 * min(1.0, max(0.0, (value - self.low) / self.span)), 1)


def shown(arm: ArmResult, look: Look, summary: Summary, scale: Scale) -> dict[str, Any]:
    """What the page says about an arm."""
    ahead, *span = [points(value) for value in arm.difference or (math.nan, math.nan, math.nan)]
    return {
        "name": arm.arm,
        "how": arm.how,
        "look": look,
        "wins": arm.arm == summary.winner,
        "rho": rho(arm.rho_final),
        "accuracy": percent(arm.test_accuracy),
        "interval": interval(arm.ci95),
        "bar": [scale(v) for v in arm.ci95] if all(map(math.isfinite, arm.ci95)) else None,
        "dot": scale(arm.test_accuracy) if math.isfinite(arm.test_accuracy) else None,
        "single": percent(arm.single_accuracy),
        "single_interval": interval(arm.single_ci95),
        "val": percent(arm.val_accuracy),
        "best_weights": percent(arm.best_weights_accuracy),
        "ahead": ahead,
        "ahead_interval": f"[{', '.join(span)}]" if "–" not in span else "",
        "relative": f"{relative(arm, summary):.2f}",
        "millions": f"{arm.cost_gradients / MILLION:.2f}",
        "seconds": f"{arm.cost_seconds:.0f}" if math.isfinite(arm.cost_seconds) else "–",
        "n": arm.n,
    }


def matrix(
    arms: Sequence[ArmResult], cells: Mapping[str, dict[str, Any]], families: Iterable[str]
) -> dict[str, Any] | None:
    """Methods by kinds of radius, each cell a list of arms; None when there are fewer than two methods with a radius.

    Args:
        arms: the arms.
        cells: what is shown of each arm, by name.
        families: in their order.
    """
    with_radius = {arm.family for arm in arms if arm.radius_policy != "none"}
    methods = [name for name in families if name in with_radius]
    if len(methods) < 2:
        return None
    kinds = [kind for kind in dict.fromkeys((*KINDS, *map(kind_of, arms))) if any(kind_of(a) == kind for a in arms)]
    kinds = [kind for kind in kinds if kind != "none"]
    found = {
        method: [[cells[a.arm] for a in arms if (a.family, kind_of(a)) == (method, kind)] for kind in kinds]
        for method in methods
    }
    return {
        "none": [cells[arm.arm] for arm in arms if arm.radius_policy == "none"],
        "kinds": [(kind, KINDS.get(kind, kind)) for kind in kinds],
        "rows": found,
    }


def kind_of(arm: ArmResult) -> str:
    """Where an arm's radius is from, warmed up apart."""
    warm = arm.radius_policy == "fixed" and (arm.config.get("optim") or {}).get("warmup")
    return "warm-up" if warm else arm.radius_policy


def by_question(contrasts: Sequence[Contrast]) -> dict[str, list[dict[str, Any]]]:
    """What the page says about the contrasts, by question."""
    found: dict[str, list[dict[str, Any]]] = {}
    for made in contrasts:
        told = f"{made.first if made.mean > 0 else made.second} is better" if made.shown else "no difference shown"
        row = {
            "pair": f"{made.first} − {made.second}",
            "difference": points(made.mean, made.low, made.high),
            "p": probability(made.p),
            "p_holm": probability(made.p_holm),
            "effect": f"{made.effect:+.2f}".replace("-", "−") if math.isfinite(made.effect) else "–",
            "told": told,
            "shown": made.shown,
        }
        found.setdefault(made.question, []).append(row)
    return found


def probability(p: float) -> str:
    """A p-value as papers print it."""
    if not math.isfinite(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def table(summary: Summary) -> str:
    """The comparison for a terminal: a line per arm, at most 78 columns wide."""
    lines = [f"  {'arm':<24} {f'test {summary.score} [95 %]':<21} {'radius':>8} {'cost / C':>9} {'seconds':>8}"]
    for arm in sorted(summary.arms, key=lambda arm: -ranked(arm)):
        name = arm.arm if len(arm.arm) <= 24 else f"{arm.arm[:22]}.."
        accuracy = estimate(arm.test_accuracy, arm.ci95).replace("–", "-")
        cells = [f"{name:<24} {accuracy:<21}", f"{rho(arm.rho_final, '-'):>8}"]
        cells += [f"{relative(arm, summary):>9.2f}", f"{arm.cost_seconds:>8.0f}"]
        lines.append(f"{'*' if arm.arm == summary.winner else ' '} {' '.join(cells)}")
    budget = f"C = {summary.budget / MILLION:.2f} M gradients x examples"
    return "\n".join([*lines, f"* wins, by validation; n = {summary.n}; {budget}"])


def relative(arm: ArmResult, summary: Summary) -> float:
    """What an arm cost, in units of the budget C."""
    return arm.cost_gradients / summary.budget if summary.budget else math.nan


def rho(value: float, none: str = "–") -> str:
    """A radius with three digits."""
    return f"{value:.3g}" if math.isfinite(value) else none


def interval(ends: tuple[float, float]) -> str:
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if all(map(math.isfinite, ends)) else ""


def ranked(arm: ArmResult) -> float:
    """Test accuracy for sorting; arms without one come last."""
    return arm.test_accuracy if math.isfinite(arm.test_accuracy) else -math.inf
