"""The figure of accuracy against cost: what each arm had reached when it had spent how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..ledger import Study
from ..series import spending
from ..wording import capital, percent
from .canvas import (
    HOVER,
    MILLION,
    ONCE,
    Figure,
    Look,
    apart,
    axis,
    by_family,
    dashes,
    hue,
    lit,
    names,
    rows,
    shapes,
    short,
    told,
)

if TYPE_CHECKING:
    from ..outcome import Summary

TALL = 270  # pixels
Line = tuple[list[float], list[float], tuple[float, float]]  # costs, accuracies, and where the arm ended


def cost(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """The best validation accuracy so far against what was spent."""
    lines = {arm: line for arm in seen if (line := spending(study, arm))[0]}
    if not lines:
        return None
    ends = {arm: (x[-1], y[-1]) for arm, (x, y) in lines.items()}
    kept = {arm.arm: (arm.cost_gradients, arm.val_accuracy) for arm in summary.arms} if summary else {}
    ends |= {arm: end for arm, end in kept.items() if arm in lines and all(map(math.isfinite, end))}
    tops = [value for arm, (_, y) in lines.items() for value in (y[-1], ends[arm][1])]
    span = max(0.1, max(tops) - min(tops))
    y = (max(0.0, min(tops) - 0.6 * span), min(1.0, max(tops) + 0.15 * span))
    x = (0.0, 1.02 * max(at for at, _ in ends.values()) / MILLION)
    budget = summary.budget / MILLION if summary else None
    groups = by_family(lines, seen)
    caption = "Lines: the best an arm had reached, trial after trial or restart after restart"
    marks = ", mean over replicates. Marks: what was kept, judged on validation data that did not choose it."
    text = "; ".join(f"{arm} {percent(v)} after {at / MILLION:.2f} million" for arm, (at, v) in ends.items())
    return Figure(
        "cost",
        f"{capital(study.score)} against cost",
        caption + (marks if summary else "."),
        f"Best validation {study.score} so far: {text}.",
        [
            spent(name, {a: (*lines[a], ends[a]) for a in arms}, (x, y), budget, study.score, seen)
            for name, arms in groups.items()
        ],
        ("arm", "spent_gradients", "best_val_accuracy_so_far"),
        [(arm, a, b) for arm, line in lines.items() for a, b in zip(*line, strict=True)],
        wide=len(groups) > 1,
    )


def spent(
    title: str,
    lines: Mapping[str, Line],
    domains: tuple[tuple[float, float], tuple[float, float]],
    budget: float | None,
    score: str,
    seen: Mapping[str, Look],
) -> dict[str, Any]:
    """One panel of accuracy against cost."""
    steps, ends, rest = [], [], []
    for arm, (xs, ys, (end_x, end_y)) in lines.items():
        last = {"x": xs[-1] / MILLION, "y": ys[-1]}
        known = [(a, b) for i, (a, b) in enumerate(zip(xs, ys, strict=True)) if not i or b != ys[i - 1]]
        steps += [{"arm": arm, "x": a / MILLION, "y": b} for a, b in known] + [{"arm": arm, **last}]
        end = {"x": end_x / MILLION, "y": end_y}
        rest += [{"arm": arm, **last}, {"arm": arm, **end}]
        ends.append({"arm": arm, **end})
    places = apart({arm: end[1] for arm, (_, _, end) in lines.items()}, domains[1], TALL)
    labels = [{"arm": arm, "y": at, "label": short(arm, 20)} for arm, at in places.items()]
    x = axis("x", "gradient evaluations × examples, millions", domain=list(domains[0]))
    y = axis("y", f"best validation {score} so far", "percent", domain=list(domains[1]))
    both = {"x": {**x, "axis": {"grid": False, "format": "~g"}}, "y": y, "color": hue(seen), "opacity": lit()}
    tip = told(("arm", "arm", None), ("x", "spent, millions", ".3f"), ("y", "best so far", ".1%"))
    kept = told(("arm", "arm", None), ("x", "spent, millions", ".3f"), ("y", "kept network", ".1%"))
    line, thin = {"type": "line", "clip": True}, {"type": "line", "strokeWidth": 1, "opacity": 0.7, "clip": True}
    layers: list[dict[str, Any]] = [
        {
            "data": rows(steps),
            "mark": {**line, "interpolate": "step-after", "tooltip": None},
            "encoding": {**both, "strokeDash": dashes(seen)},
        },
        {"data": rows(rest), "mark": {**thin, "strokeDash": [1, 3]}, "encoding": both},
        {
            "name": HOVER,
            "data": rows(steps),
            "mark": {"type": "point", "size": 90, "opacity": 0, "clip": True},
            "encoding": {**{k: both[k] for k in ("x", "y")}, "tooltip": tip},
        },
        {
            "data": rows(ends),
            "mark": {"type": "point"},
            "encoding": {**both, "shape": shapes(seen), "tooltip": kept},
        },
        *names(seen, labels, y),
    ]
    if budget is not None:
        at = {"x": {"datum": budget}}
        layers += [
            {"data": ONCE, "mark": {"type": "rule", "strokeDash": [5, 3], "opacity": 0.6}, "encoding": at},
            {
                "data": ONCE,
                "mark": {"type": "text", "text": "budget C", "align": "right", "dx": -4, "dy": -5},
                "encoding": {**at, "y": {"value": "height"}},
            },
        ]
    panel = {"height": TALL, "layer": layers}
    return {**panel, "title": title} if title else panel
