"""The figures of what was searched: how much each parameter matters, and every trial across all parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..diagnosis import space_of
from ..domain import short as brief
from ..importance import importance as shares_in
from ..importance import is_number
from ..ledger import Run, Study
from ..series import val_accuracy
from ..wording import percent
from .canvas import GREY, Figure, Look, axis, hue, rows, short, tall, ticks, told

if TYPE_CHECKING:
    from ..outcome import Summary

TALL = 270  # pixels
MANY = 150  # trials in a panel; of more, every k-th from the worst to the best
SHOWN = 5  # values written on an axis, at most


def importance(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """Shares of fANOVA, a panel per arm that searched several parameters; None when none did, or too little ran."""
    found = [one for arm in searching(study, seen) if (one := shares_in(study, arm)).shares]
    if not found:
        return None
    panels: list[dict[str, Any]] = []
    for one in found:
        labels = named(share.key for share in one.shares)
        values = [
            {
                "arm": one.arm,
                "key": labels[share.key],
                "x": share.value,
                "low": share.low,
                "high": share.high,
                "most": share.most,
                "from": 0.0,
                "shown": share.shown,
                "told": f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]",
                "chance": f"up to {share.most:.0%}",
            }
            for share in one.shares
        ]
        y = {
            "field": "key",
            "type": "nominal",
            "sort": [value["key"] for value in values],
            "title": None,
            "axis": {"grid": False, "labelLimit": 150, "labelFontSize": 11.5, "labelOverlap": False},
        }
        x = axis("from", f"share of the variance of {study.score}", "percent", domain=[0, 1])
        tip = told(("key", "parameter", None), ("told", "share", None), ("chance", "by chance", None))
        bar = {"y": y, "x": x, "tooltip": tip}
        dim = {"condition": {"test": "!datum.shown", "value": 0.4}, "value": 1}
        layers: list[dict[str, Any]] = [
            {
                "data": rows(values),
                "mark": {"type": "bar", "color": GREY, "opacity": 0.25, "height": 20},
                "encoding": {**bar, "x2": {"field": "most"}},
            },
            {
                "data": rows(values),
                "mark": {"type": "bar", "height": 8},
                "encoding": {**bar, "x2": {"field": "x"}, "color": hue(seen), "opacity": dim},
            },
            {
                "data": rows(values),
                "mark": {"type": "rule", "strokeWidth": 1.2},
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
        ]
        panels.append({**tall(30, len(values)), "title": one.arm, "layer": layers})
    caption = (
        "What each parameter explains alone (fANOVA), with 90 % of bootstrap samples. Grey: in 95 of 100 shuffled "
    )
    caption += "searches none is beyond it; nor is a pale bar. The rest is their interplay, and noise."
    return Figure(
        "importance",
        "Which parameters matter",
        caption,
        " ".join(f"{one.arm}: {one.sentence}" for one in found),
        panels,
        ("arm", "parameter", "share", "low", "high", "by_chance", "by_chance_95", "trials"),
        [(one.arm, s.key, s.value, s.low, s.high, s.chance, s.most, one.n) for one in found for s in one.shares],
        wide=len(panels) > 1,
    )


@dataclass(frozen=True)
class Scale:
    """One of the parallel axes: where a value stands, from 0 to 1, and what is written beside it."""

    places: Mapping[str, float]
    """By the value as text."""
    marks: Sequence[tuple[float, str]]


def parallel(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """Every trial as a line across its parameters to its accuracy; None when fewer than two were searched."""
    panels: list[dict[str, Any]] = []
    table: list[tuple[Any, ...]] = []
    said = []
    for arm in searching(study, seen):
        trials = [run for run in study.of(arm=arm, phase="search") if math.isfinite(val_accuracy(run))]
        trials.sort(key=lambda run: (run.outcome == "completed", val_accuracy(run)))
        trials = trials[::-1][:: max(1, math.ceil(len(trials) / MANY))][::-1]
        keys = keys_of(trials)
        if len(keys) < 2:
            continue
        panels.append({"title": arm, **crossing(study, arm, trials, keys, seen[arm].colour, len(panels))})
        for run in trials:
            table += [(arm, run.name, key, given(run).get(key, ""), val_accuracy(run), run.outcome) for key in keys]
        best = trials[-1]
        values = told_of(best, named(key for run in trials for key in given(run)))
        said.append(f"{arm}: the best of {len(trials)} trials had {values} and {percent(val_accuracy(best))}.")
    if not panels:
        return None
    return Figure(
        "parallel",
        "Every trial, across what was searched",
        "A line per trial, the stronger the better it was; grey ones were stopped early, at their last value. "
        "Point at one to see it alone.",
        " ".join(said),
        panels,
        ("arm", "trial", "parameter", "value", "val_accuracy", "outcome"),
        table,
        wide=True,
    )


def searching(study: Study, seen: Mapping[str, Look]) -> list[str]:
    """The arms with a search of two parameters or more."""
    return [arm for arm in seen if len(keys_of(study.of(arm=arm, phase="search"))) > 1]


def given(run: Run) -> dict[str, Any]:
    return run.begin.get("suggested") or {}


def keys_of(trials: Sequence[Run]) -> list[str]:
    """The parameters that differ between trials."""
    keys = dict.fromkeys(key for run in trials for key in given(run))
    return [key for key in keys if len({str(given(run)[key]) for run in trials if key in given(run)}) > 1]


def crossing(
    study: Study, arm: str, trials: Sequence[Run], keys: Sequence[str], colour: str, number: int
) -> dict[str, Any]:
    """One arm's panel."""
    accuracies = [val_accuracy(run) for run in trials]
    full = [val_accuracy(run) for run in trials if run.outcome == "completed"] or accuracies
    labels = named(key for run in trials for key in given(run))
    scales = [scale_of(study, arm, key, [given(run)[key] for run in trials if key in given(run)]) for key in keys]
    low, high = min(accuracies), max(accuracies)
    scales.append(
        Scale(
            {str(value): (value - low) / (high - low or 1) for value in accuracies},
            [(0, percent(low)), (1, percent(high))],
        )
    )
    values = []
    for run in trials:
        done, accuracy = run.outcome == "completed", val_accuracy(run)
        row = {"arm": arm, "run": run.name, "done": done, "told": told_of(run, labels), "accuracy": percent(accuracy)}
        good = (accuracy - min(full)) / (max(full) - min(full) or 1) if done else 0.0
        points = [str(given(run)[key]) if key in given(run) else None for key in keys]
        for i, (scale, value) in enumerate(zip(scales, [*points, str(accuracy)], strict=True)):
            place = None if value is None else scale.places[value]
            values.append({**row, "axis": i, "y": place, "good": good, "outcome": run.outcome})
    over = f"over{number}"
    most = len(scales) - 1
    x = {
        "field": "axis",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [-0.12, most + 0.12], "nice": False, "zero": False},
    }
    y = {"field": "y", "type": "quantitative", "axis": None, "scale": {"domain": [-0.04, 1.04], "nice": False}}
    shade = {
        "field": "good",
        "type": "quantitative",
        "legend": None,
        "scale": {"domain": [0, 1], "range": [GREY, colour], "interpolate": "lab"},
    }
    alone = {"param": over, "empty": False}
    most_opaque = 0.95 if len(trials) <= 60 else 0.6
    opacity = {
        "condition": [
            {**alone, "value": 1},
            {"test": {"not": {"param": over}}, "value": 0.1},  # with nothing pointed at, all count as chosen
            {"test": "!datum.done", "value": 0.25},
        ],
        **shade,
        "scale": {"domain": [0, 1], "range": [0.4 * most_opaque, most_opaque]},
    }
    width = {"condition": [{**alone, "value": 4}], "value": 1.4}
    tip = told(
        ("run", "trial", None), ("told", "values", None), ("accuracy", "validation", None), ("outcome", "", None)
    )
    line = {"type": "line", "tooltip": None}
    marks = [
        {"axis": i, "y": place, "label": text, "right": i == most}
        for i, s in enumerate(scales)
        for place, text in s.marks
    ]
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": [{"axis": i} for i in range(len(scales))]},
            "mark": {"type": "rule", "opacity": 0.4},
            "encoding": {"x": x},
        },
        {
            "data": rows(values),
            "mark": line,
            "encoding": {
                "x": x,
                "y": y,
                "detail": {"field": "run"},
                "color": shade,
                "opacity": opacity,
                "strokeWidth": width,
            },
        },
        {
            "data": rows([value for value in values if value["y"] is not None]),
            "params": [
                {
                    "name": over,
                    "select": {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["run"]},
                }
            ],
            "mark": {"type": "point", "size": 26, "strokeWidth": 0},
            "encoding": {"x": x, "y": y, "color": shade, "opacity": opacity, "tooltip": tip},
        },
    ]
    for right in (False, True):
        text = {"type": "text", "align": "left" if right else "right", "dx": 6 if right else -6, "fontSize": 10}
        here = [mark for mark in marks if mark["right"] is right]
        layers.append({"data": rows(here), "mark": text, "encoding": {"x": x, "y": y, "text": {"field": "label"}}})
    heads = [
        {"axis": i, "label": short(name, 20)} for i, name in enumerate([*(labels[key] for key in keys), study.score])
    ]
    head = {"type": "text", "fontWeight": 600, "baseline": "bottom"}
    for name, some in (("left", heads[:1]), ("center", heads[1:-1]), ("right", heads[-1:])):
        if some:
            above = {"x": x, "y": {"value": -4}, "text": {"field": "label"}}
            layers.append({"data": rows(some), "mark": {**head, "align": name}, "encoding": above})
    return {"height": TALL, "layer": layers}


def scale_of(study: Study, arm: str, key: str, values: Sequence[Any]) -> Scale:
    """A parameter's axis: its range in the space where it has one, else the values' own; logarithmic where that is."""
    space = space_of(study, arm)
    domains = space.search.get(key, ()) if space else ()
    if all(is_number(value) for value in values) and not any(domain.choice for domain in domains):
        ends = [end for domain in domains for end in domain.ends()] or list(values)
        low, high = min([*ends, *values]), max([*ends, *values])
        if any(domain.log for domain in domains) or (not domains and low > 0 and high > 10 * low):
            marks = [low, *fewer([t for t in ticks(low, high) if 1.3 * low < t < high / 1.3]), high]
            places = {str(v): math.log(v / low) / math.log(high / low) for v in [*values, *marks]}
        else:
            marks = [low, (low + high) / 2, high]
            places = {str(v): (v - low) / (high - low) for v in [*values, *marks]}
        return Scale(places, [(places[str(mark)], f"{mark:.3g}") for mark in marks])
    known = [value for domain in domains for value in domain.choice or ()]
    choices = list(dict.fromkeys(map(str, known))) or sorted(set(map(str, values)))
    choices += [text for text in dict.fromkeys(map(str, values)) if text not in choices]
    places = {text: i / max(1, len(choices) - 1) for i, text in enumerate(choices)}
    return Scale(places, [(place, short(text, 12)) for text, place in places.items()])


def fewer(marks: Sequence[float]) -> list[float]:
    """At most SHOWN of them."""
    return list(marks[:: max(1, math.ceil(len(marks) / SHOWN))])


def told_of(run: Run, labels: Mapping[str, str]) -> str:
    """What a trial was given, in a line."""
    return ", ".join(f"{labels[key]} {brief(value)}" for key, value in given(run).items())


def named(keys: Iterable[str]) -> dict[str, str]:
    """Config paths without their groups, where that still tells them apart."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: name if count[name] == 1 else key for key, name in last.items()}
