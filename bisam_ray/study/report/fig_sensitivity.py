"""The figure of the radius's sensitivity: validation accuracy over ρ, and the plateau on which any ρ will do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ..arms import family
from ..generalization import kept
from ..ledger import Run, Study
from ..selection import winner
from ..sensitivity import Sensitivity, method, radius, sensitivities
from ..series import number, val_accuracy
from ..wording import percent
from .canvas import HOVER, STAR, Figure, Look, axis, hue, lit, rows, shapes, short, told

if TYPE_CHECKING:
    from ..outcome import Summary

TALL = 270  # pixels
DEEP = 10.0  # s below the best: where the axis ends at the latest
LEAST_DEPTH = 0.03
UNKNOWN = 0.012  # s, where there is no curve


def sensitivity(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """A panel per family with a search of the radius; None when there is none."""
    found = [one for one in sensitivities(study) if one.arm in seen]
    groups: dict[str, list[Sensitivity]] = {}
    for one in found:
        groups.setdefault(family(one.method), []).append(one)
    learned = {arm: ends for arm, look in seen.items() if look.policy == "learned" and (ends := final(study, arm))}
    panels, deep = [], False
    for name, some in groups.items():
        arms = {arm: ends for arm, ends in learned.items() if seen[arm].family == name}
        made, cut = panel(study, some, arms, seen)
        deep = deep or cut
        if made:
            panels.append({"title": name, **made})
    if not panels:
        return None
    others = sorted({key.rpartition(".")[2] for one in found for key in one.others})
    told = [f"Validation {study.score} at the end of a trial, with a smooth curve and its 95 % band."]
    told.append("Shaded: radii that are within a run's noise of the best. Pale: stopped early, at its last value.")
    told += ["Marks on the axis: ρ at the end of learned runs, with its range."] if learned else []
    told += [f"{' and '.join(others)} differed, too: the curve is an average over what was tried."] if others else []
    told += ["Trials far below the others stand at the lower edge."] if deep else []
    sentences = [f"{one.arm}: {one.sentence}" for one in found]
    table: list[tuple[Any, ...]] = []
    for one in found:
        table += [("curve", one.arm, one.method, "", *point, "") for point in one.curve]
        if at := one.plateau:
            table += [("plateau", one.arm, one.method, "", at.low, "", "", "", "")]
            table += [("plateau", one.arm, one.method, "", at.high, "", "", "", "")]
        tried = [(run, radius(run), val_accuracy(run)) for run in trials_of(study, one)]
        table += [("trial", one.arm, one.method, r.name, rho, value, "", "", r.outcome) for r, rho, value in tried]
    for arm, ends in learned.items():
        table += [("learned", arm, seen[arm].family, "", rho, "", "", "", "") for rho in ends]
    return Figure(
        "sensitivity",
        "How much the radius matters",
        " ".join(told),
        " ".join(sentences),
        panels,
        ("kind", "arm", "method", "trial", "rho", "val_accuracy", "low", "high", "outcome"),
        table,
        wide=len(panels) > 1,
    )


def final(study: Study, arm: str) -> list[float]:
    """The radii that the kept runs of a learned arm ended with."""
    return [rho for run in kept(study, arm) if 0 < (rho := number(run.value("sam/rho"))) < math.inf]


def trials_of(study: Study, one: Sensitivity) -> list[Run]:
    """The trials of its arm and method with a radius and an accuracy."""
    runs = [run for run in study.of(arm=one.arm, phase="search") if method(run) == one.method]
    return [run for run in runs if radius(run) > 0 and math.isfinite(val_accuracy(run))]


def panel(
    study: Study, found: Sequence[Sensitivity], learned: Mapping[str, Sequence[float]], seen: Mapping[str, Look]
) -> tuple[dict[str, Any], bool]:
    """One family's panel (empty: nothing was tried), and whether a trial lies below its axis."""
    trials = [(one.arm, run) for one in found for run in trials_of(study, one)]
    if not trials:
        return {}, False
    full = [val_accuracy(run) for _, run in trials if run.outcome == "completed"]
    tops = [*(full or [val_accuracy(run) for _, run in trials]), *(p.high for one in found for p in one.curve)]
    noise = max((one.noise for one in found if math.isfinite(one.noise)), default=UNKNOWN)
    best = max(full, default=max(tops))
    depth = max(LEAST_DEPTH, DEEP * noise, 3 * (max(tops) - best))
    bottoms = [*(val_accuracy(run) for _, run in trials), *(p.low for one in found for p in one.curve)]
    floor = min((one.floor for one in found), default=-math.inf)
    low = max(best - depth, min(bottoms) - 0.05 * depth, floor, 0.0)
    high = max(tops) + 0.22 * (max(tops) - low)
    rhos = [radius(run) for _, run in trials] + [rho for ends in learned.values() for rho in ends]
    x = axis("rho", "radius ρ (logarithmic)", "log", domain=[min(rhos) / 1.15, max(rhos) * 1.15])
    y = axis("y", f"validation {study.score}", "percent", domain=[low, high])
    both = {"x": x, "y": y, "color": hue(seen), "opacity": lit()}
    return {"height": TALL, "layer": layers(study, found, trials, learned, both, low, seen)}, min(bottoms) < low


def layers(
    study: Study,
    found: Sequence[Sensitivity],
    trials: Sequence[tuple[str, Run]],
    learned: Mapping[str, Sequence[float]],
    both: Mapping[str, Any],
    low: float,
    seen: Mapping[str, Look],
) -> list[dict[str, Any]]:
    """Plateau, band, curve, trials, choice, learned radii and the plateau in words, from the back to the front."""
    x, y = both["x"], both["y"]
    flat = [(one.arm, one.plateau) for one in found if one.plateau]
    shaded = [{"arm": arm, "rho": at.low, "to": at.high} for arm, at in flat]
    curve = [{"arm": one.arm, "rho": p.rho, "y": p.mean} for one in found for p in one.curve]
    band = [
        {"arm": one.arm, "rho": p.rho, "y": max(p.low, low), "top": max(p.high, low)}
        for one in found
        for p in one.curve
    ]
    chosen = {arm: run.name for arm in dict.fromkeys(arm for arm, _ in trials) if (run := winner(study, arm))}
    marks: dict[str, list[dict[str, Any]]] = {"chosen": [], "completed": [], "early": []}
    for arm, run in trials:
        value, outcome = val_accuracy(run), run.outcome
        kind = "completed" if outcome == "completed" else "early"
        row = {"arm": arm, "rho": radius(run), "y": max(value, low), "run": run.name, "value": percent(value)}
        told_as = f"{outcome} at epoch {run.epoch}" if kind == "early" else outcome
        marks["chosen" if run.name == chosen.get(arm) else kind].append({**row, "outcome": told_as})
    tip = told(("run", "trial", None), ("rho", "ρ", ".3~g"), ("value", "validation", None), ("outcome", "", None))
    on_curve = told(("arm", "arm", None), ("rho", "ρ", ".3~g"), ("y", "expected", ".1%"))
    many = len(trials) > 100
    star = {"type": "point", "shape": STAR, "size": 220, "stroke": "currentColor", "strokeWidth": 0.6}
    across = {"x": x, "x2": {"field": "to"}, "color": both["color"]}
    edges = [{"arm": row["arm"], "rho": row[end]} for row in shaded for end in ("rho", "to")]
    dashed = {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 1}
    made: list[dict[str, Any]] = [
        {"data": rows(shaded), "mark": "rect", "encoding": {**across, "opacity": lit(0.13, 0.02)}},
        {"data": rows(edges), "mark": dashed, "encoding": {"x": x, "color": both["color"], "opacity": lit(0.7)}},
        {
            "data": rows(band),
            "mark": {"type": "area", "line": False},
            "encoding": {**both, "y2": {"field": "top"}, "opacity": lit(0.18, 0.03)},
        },
        {
            "data": rows(marks["early"]),
            "mark": {"type": "point", "size": 10 if many else 26, "filled": False, "strokeWidth": 1},
            "encoding": {**both, "opacity": lit(0.5, 0.05), "tooltip": tip},
        },
        {"data": rows(curve), "mark": {"type": "line", "strokeWidth": 2, "clip": True}, "encoding": both},
        {
            "name": HOVER,
            "data": rows(curve),
            "mark": {"type": "point", "size": 60, "opacity": 0, "clip": True},
            "encoding": {"x": x, "y": y, "tooltip": on_curve},
        },
        {
            "data": rows(marks["completed"]),
            "mark": {"type": "point", "size": 12 if many else 40},
            "encoding": {**both, "opacity": lit(0.4 if many else 0.85), "tooltip": tip},
        },
        {"data": rows(marks["chosen"]), "mark": star, "encoding": {**both, "tooltip": tip}},
    ]
    return [*(layer for layer in made if layer["data"]["values"]), *ends(learned, both, seen), *words(found)]


def ends(learned: Mapping[str, Sequence[float]], both: Mapping[str, Any], seen: Mapping[str, Look]) -> list[Any]:
    """Where learned radii ended: their range as a bar on the x axis, a mark at the median."""
    if not learned:
        return []
    values = [{"arm": arm, "rho": min(rhos), "to": max(rhos)} for arm, rhos in learned.items()]
    middle = [
        {"arm": arm, "rho": median(rhos), "told": f"{min(rhos):.3g}–{max(rhos):.3g}"} for arm, rhos in learned.items()
    ]
    common = {"y": {"value": TALL - 1}, "color": both["color"], "opacity": lit()}
    tip = told(("arm", "arm", None), ("rho", "learned ρ, median", ".3~g"), ("told", "range", None))
    bar = {"type": "rule", "strokeWidth": 4}
    point = {"type": "point", "size": 90, "stroke": "currentColor", "strokeWidth": 0.6}
    shape = {**shapes(seen)}
    return [
        {"data": rows(values), "mark": bar, "encoding": {**common, "x": both["x"], "x2": {"field": "to"}}},
        {"data": rows(middle), "mark": point, "encoding": {**common, "x": both["x"], "shape": shape, "tooltip": tip}},
    ]


def words(found: Sequence[Sensitivity]) -> list[dict[str, Any]]:
    """What the panel says, a line per search, above its curve."""
    made = []
    for i, one in enumerate(found):
        who = f"{short(one.arm, 20)}: " if len(found) > 1 else ""
        if at := one.plateau:
            low, high = f"{'≤ ' if at.open_low else ''}{at.low:.2g}", f"{'≥ ' if at.open_high else ''}{at.high:.2g}"
            text = f"{who or 'any ρ in '}[{low}, {high}] {'' if who else 'is '}within noise"
        else:
            text = f"{who}no plateau is shown" if one.curve else f"{who}{one.n} full-length trials: no curve"
        place = {"x": {"value": 4}, "y": {"value": 9 + 15 * i}}
        data = {"values": [{"arm": one.arm}]}
        made.append({"data": data, "mark": {"type": "text", "align": "left", "text": text}, "encoding": place})
    return made
