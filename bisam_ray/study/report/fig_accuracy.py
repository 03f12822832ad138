"""The figures of a comparison's result: test accuracy per arm, and the differences between arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..ledger import Study
from ..wording import estimate, points
from .canvas import FEW, ONCE, Figure, Look, axis, by_family, hue, lit, rows, shapes, short, tall, told

if TYPE_CHECKING:
    from ..contrasts import Contrast
    from ..outcome import ArmResult, Summary


def accuracy(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """Test accuracy with intervals, a row per arm; of many arms, a panel per family."""
    if not summary or not summary.arms:
        return None
    arms = sorted(summary.arms, key=lambda arm: -arm.test_accuracy if math.isfinite(arm.test_accuracy) else math.inf)
    again = any(arm.restarts > 1 for arm in arms)
    groups = by_family([arm.arm for arm in arms], seen)
    ends = [v for a in arms for v in (*a.test, *a.ci95, *(a.single_ci95 if a.restarts > 1 else ())) if math.isfinite(v)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.03 * max(high - low, 0.001)
    domain = (low - margin, high + margin)
    caption = "Mean and 95 % interval at equal cost. Ticks above: the replicates."
    caption += " Hollow, below: one run alone, without restarts." if again else ""
    text = "; ".join(f"{arm.arm} {estimate(arm.test_accuracy, arm.ci95)}" for arm in arms)
    return Figure(
        "accuracy",
        f"Test {study.score}",
        caption,
        f"Test {study.score}: {text}.",
        [
            ranking(title, [a for a in arms if a.arm in some], domain, study.score, seen)
            for title, some in groups.items()
        ],
        ("arm", "replicate", "test_accuracy"),
        [(arm.arm, i, value) for arm in arms for i, value in enumerate(arm.test)],
        wide=len(groups) > 1,
    )


def ranking(
    title: str, arms: Sequence[ArmResult], domain: tuple[float, float], score: str, seen: Mapping[str, Look]
) -> dict[str, Any]:
    """One panel of accuracies, the best arm first."""
    means, spans, alone, alone_spans, each = [], [], [], [], []
    for arm in arms:
        name = {"arm": arm.arm}
        means.append({**name, "x": arm.test_accuracy, "mean": estimate(arm.test_accuracy, arm.ci95), "how": arm.how})
        spans.append({**name, "low": arm.ci95[0], "high": arm.ci95[1]})
        each += [{**name, "x": value, "replicate": i} for i, value in enumerate(arm.test)]
        if arm.restarts > 1:
            low, high = arm.single_ci95
            mean = estimate(arm.single_accuracy, (low, high))
            alone.append({**name, "x": arm.single_accuracy, "mean": mean})
            alone_spans.append({**name, "low": low, "high": high})
    axis_y = {"grid": False, "labelLimit": 150, "labelOverlap": False, "labelFontSize": 11.5}
    y = {"field": "arm", "type": "nominal", "sort": [arm.arm for arm in arms], "title": None, "axis": axis_y}
    x = axis("x", None if title else f"test {score}", "percent", domain=list(domain))
    common = {"y": y, "color": hue(seen), "opacity": lit()}
    span = {**common, "x": {**x, "field": "low"}, "x2": {"field": "high"}}
    marks = {**common, "x": x, "shape": shapes(seen)}
    tick = {"type": "tick", "thickness": 1.2, "size": 6, "yOffset": -8}
    hollow = {"type": "point", "size": 26, "filled": False, "strokeWidth": 1.2, "yOffset": 8}
    one = told(("arm", "arm", None), ("replicate", "replicate", "d"), ("x", f"test {score}", ".1%"))
    tip = told(("arm", "arm", None), ("mean", f"test {score}", None), ("how", "how", None))
    tip_alone = told(("arm", "arm", None), ("mean", "one run alone", None))
    layers = [
        {"data": rows(each), "mark": tick, "encoding": {**common, "x": x, "opacity": lit(0.6), "tooltip": one}},
        {"data": rows(spans), "mark": {"type": "rule", "strokeWidth": 2}, "encoding": span},
        {"data": rows(means), "mark": {"type": "point", "size": 75}, "encoding": {**marks, "tooltip": tip}},
    ]
    if alone:
        thin = {"type": "rule", "strokeWidth": 0.8, "yOffset": 8}
        layers += [
            {"data": rows(alone_spans), "mark": thin, "encoding": span},
            {"data": rows(alone), "mark": hollow, "encoding": {**marks, "tooltip": tip_alone}},
        ]
    panel = {**tall(30 if alone else 24, len(arms)), "layer": layers}
    return {**panel, "title": title} if title else panel


def differences(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """The contrasts, a row each: difference, interval, and whether it is shown; of many, a panel per question."""
    if not summary or not summary.contrasts:
        return None
    made = summary.contrasts
    ends = [end for c in made for end in (c.low, c.high, c.mean, 0.0) if math.isfinite(end)]
    margin = 0.04 * max(max(ends) - min(ends), 0.001)
    domain = (min(ends) - margin, max(ends) + margin)
    groups = {question: [c for c in made if c.question == question] for question in (c.question for c in made)}
    if len(made) <= FEW:
        groups = {"": list(made)}
    return Figure(
        "differences",
        "Differences",
        f"First minus second in points of test {study.score}, with 95 % intervals. "
        "Filled: shown, after Holm's correction.",
        f"Differences of test {study.score}. {'; '.join(c.told for c in made)}.",
        [contrasts(question, some, domain, study.score, seen) for question, some in groups.items()],
        ("first", "second", "question", "difference", "low", "high", "p", "p_holm", "hedges_g", "n", "shown"),
        [(c.first, c.second, c.question, c.mean, c.low, c.high, c.p, c.p_holm, c.effect, c.n, c.shown) for c in made],
        wide=len(groups) > 1,
    )


def contrasts(
    title: str, made: Sequence[Contrast], domain: tuple[float, float], score: str, seen: Mapping[str, Look]
) -> dict[str, Any]:
    """One panel of differences."""
    names, spans, means = [], [], []
    for i, c in enumerate(made):
        row = {"arm": c.first, "other": c.second, "row": i}
        pair, value = f"{short(c.first)} − {short(c.second)}", points(c.mean, c.low, c.high)
        names.append({**row, "pair": pair, "value": value, "shown": c.shown})
        spans.append({**row, "low": c.low, "high": c.high})
        p = f"{c.p_holm:.3f}" if math.isfinite(c.p_holm) else "–"
        means.append({**names[-1], "x": c.mean, "p": p, "question": c.question})
    y = {"field": "row", "type": "ordinal", "axis": None}
    x = axis("x", None if title else f"points of test {score}", "points", domain=list(domain))
    common = {"y": y, "color": hue(seen), "opacity": lit()}
    above = {"type": "text", "dy": -10, "baseline": "middle"}
    facts = ("value", "points", None), ("p", "p (Holm)", None), ("question", "question", None)
    tip = told(("pair", "difference", None), *facts)
    left = {"y": y, "x": {"value": 0}, "text": {"field": "pair"}, "opacity": lit()}
    far = {"y": y, "x": {"value": "width"}, "text": {"field": "value"}, "opacity": lit()}
    span = {"type": "rule", "strokeWidth": 2, "yOffset": 5}
    zero = {"type": "rule", "strokeWidth": 1, "opacity": 0.35}
    layers: list[dict[str, Any]] = [
        {"data": ONCE, "mark": zero, "encoding": {"x": {"datum": 0}}},
        {"data": rows(names), "mark": {**above, "align": "left"}, "encoding": left},
        {
            "data": rows(spans),
            "mark": span,
            "encoding": {**common, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
    ]
    for shown in (True, False):
        mark = {"type": "point", "size": 75, "yOffset": 5, "filled": shown, "strokeWidth": 1.6}
        bold = {**above, "align": "right", "fontWeight": 650 if shown else 400}
        some = [{k: v for k, v in mean.items() if k != "shown"} for mean in means if mean["shown"] is shown]
        layers.append({"data": rows(some), "mark": mark, "encoding": {**common, "x": x, "tooltip": tip}})
        layers.append({"data": rows(some), "mark": bold, "encoding": far})
    panel = {**tall(38, len(made)), "layer": layers}
    return {**panel, "title": title} if title else panel
