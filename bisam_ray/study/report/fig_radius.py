"""The figure of the radius: what was learned over training, beside what was searched and how far that came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..early import length
from ..ledger import Study
from ..selection import winner
from ..series import Radius, Trial, learned_paths, searched
from ..wording import percent
from .canvas import HOVER, STAR, Figure, Look, apart, axis, dashes, hue, lit, names, rows, short, told

if TYPE_CHECKING:
    from ..outcome import Summary

TALL = 270  # pixels
LEARNED = ("learned", "replayed")


def radius(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """A panel per family: learned radii over training, and a line per trial as far as it came, on one axis."""
    paths = {a: found for a, look in seen.items() if look.policy in LEARNED and (found := learned_paths(study, a))}
    trials = {arm: some for arm in seen if (some := searched(study, arm))}
    best = {arm: run.name for arm in trials if (run := winner(study, arm))}
    families = dict.fromkeys(seen[arm].family for arm in (*paths, *trials))
    if not families:
        return None
    panels = []
    for name in families:
        learned = {arm: lines for arm, lines in paths.items() if seen[arm].family == name}
        mine = {arm: some for arm, some in trials.items() if seen[arm].family == name}
        panels.append(panel(study, name if len(families) > 1 else "", learned, mine, best, seen))
    table: list[tuple[Any, ...]] = []
    for arm, lines in paths.items():
        table += [("learned", arm, i, *at[:4], "", "", at.median) for i, line in enumerate(lines) for at in line]
    for arm, some in trials.items():
        table += [("searched", arm, t.run, part(study, t), t.rho, "", "", t.accuracy, t.outcome, "") for t in some]
    choices = chosen(trials, best)
    caption, text = [], [f"{arm} learned {lines[0][-1].median:.3g}" for arm, lines in paths.items()]
    if paths:
        caption.append("Learned: median and range over replicates; thin lines began at other radii.")
    if trials:
        caption.append("Searched: a line per trial until it was stopped, hollow when early; the star is the choice.")
        text += [f"{arm} chose {trial.rho:.3g}" for arm, trial in choices.items()]
    return Figure(
        "radius",
        "The radius, learned beside searched" if paths and trials else "The radius",
        " ".join(caption),
        f"Radius: {'; '.join(text) or 'no choice yet'}.",
        panels,
        (
            "kind",
            "arm",
            "start_or_trial",
            "fraction",
            "rho",
            "rho_least",
            "rho_most",
            "val_accuracy",
            "outcome",
            "rho_median",
        ),
        table,
        wide=len(families) > 1,
    )


def chosen(trials: Mapping[str, list[Trial]], best: Mapping[str, str]) -> dict[str, Trial]:
    return {arm: trial for arm, tried in trials.items() for trial in tried if trial.run == best.get(arm)}


def part(study: Study, trial: Trial) -> float:
    """The share of its training that a trial did."""
    run = study.runs[trial.run]
    return min(1.0, run.epoch / max(1, length(run)))


def panel(
    study: Study,
    title: str,
    paths: Mapping[str, list[list[Radius]]],
    trials: Mapping[str, list[Trial]],
    best: Mapping[str, str],
    seen: Mapping[str, Look],
) -> dict[str, Any]:
    """Radius against the share of training, both searched and learned."""
    rhos = [trial.rho for tried in trials.values() for trial in tried]
    rhos += [rho for lines in paths.values() for line in lines for at in line for rho in (at.least, at.most)]
    low, high = min(rhos) / 1.25, max(rhos) * 1.25
    done = {"labelExpr": "format(100 * datum.value, '~g') + ' %'", "grid": False}
    x = {**axis("x", "share of training done", domain=[0, 1]), "axis": done}
    y = axis("rho", "radius ρ (logarithmic)", "log", domain=[low, high])
    both = {"x": x, "y": y, "color": hue(seen), "opacity": lit()}
    layers = [*of_trials(study, trials, best, both), *of_paths(paths, both, seen)]
    ends: dict[str, float] = {}
    for arm, lines in paths.items():
        ends[arm] = lines[0][-1].median
    ends |= {arm: trial.rho for arm, trial in chosen(trials, best).items()}
    places = apart({arm: math.log(at) for arm, at in ends.items()}, (math.log(low), math.log(high)), TALL)
    labels = [{"arm": arm, "rho": math.exp(at), "label": label(arm, ends[arm])} for arm, at in places.items()]
    layers += names(seen, labels, y)
    found = {"height": TALL, "layer": layers}
    return {**found, "title": title} if title else found


def label(arm: str, rho: float) -> str:
    return f"{short(arm, 20)} · ρ {rho:.2g}"


def of_trials(
    study: Study, trials: Mapping[str, list[Trial]], best: Mapping[str, str], both: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A line per trial as far as it came, and a mark where it ended."""
    values = [
        {
            "arm": arm,
            "rho": t.rho,
            "from": 0,
            "x": part(study, t),
            "run": t.run,
            "accuracy": percent(t.accuracy),
            "outcome": "chosen" if t.run == best.get(arm) else t.outcome,
        }
        for arm, tried in trials.items()
        for t in tried
    ]
    if not values:
        return []
    facts = ("run", "trial", None), ("rho", "ρ", ".3~g"), ("accuracy", "validation", None), ("outcome", "outcome", None)
    tip = told(("arm", "arm", None), *facts)
    few = min(1.0, max(0.15, 60 / len(values)))  # of many, each is faint
    line = {"type": "rule", "strokeWidth": 0.8}
    across = {**both, "x": {**both["x"], "field": "from"}, "x2": {"field": "x"}, "opacity": lit(0.4 * few, 0.05)}
    layers: list[dict[str, Any]] = [{"data": rows(values), "mark": line, "encoding": across}]
    chosen = [value for value in values if value["outcome"] == "chosen"]
    for full in (True, False):
        some = [v for v in values if (v["outcome"] == "completed") is full and v["outcome"] != "chosen"]
        mark = {"type": "point", "size": 30, "filled": full, "strokeWidth": 1}
        layers.append(
            {"data": rows(some), "mark": mark, "encoding": {**both, "opacity": lit(0.8 * few), "tooltip": tip}}
        )
    dashed = {"type": "rule", "strokeDash": [6, 3], "strokeWidth": 1.2}
    star = {"type": "point", "shape": STAR, "size": 220, "stroke": "currentColor", "strokeWidth": 0.6}
    layers.append({"data": rows(chosen), "mark": dashed, "encoding": {k: both[k] for k in ("y", "color", "opacity")}})
    layers.append({"data": rows(chosen), "mark": star, "encoding": {**both, "tooltip": tip}})
    return layers


def of_paths(
    paths: Mapping[str, list[list[Radius]]], both: Mapping[str, Any], seen: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """Learned radii: the first start bold with its range over replicates, the others thin."""
    bands: list[dict[str, Any]] = []
    main: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for arm, lines in paths.items():
        for i, line in enumerate(lines):
            points = [{"arm": arm, "start": i, "x": at.fraction, "rho": at.median} for at in line]
            (others if i else main).extend(points)
            if not i and seen[arm].policy == "learned":
                bands += [{"arm": arm, "x": at.fraction, "rho": at.least, "most": at.most} for at in line]
    if not main:
        return []
    tip = told(("arm", "arm", None), ("x", "training done", ".0%"), ("rho", "median ρ", ".3~g"))
    return [
        {
            "data": rows(bands),
            "mark": {"type": "area", "line": False},
            "encoding": {**both, "y2": {"field": "most"}, "opacity": lit(0.16, 0.03)},
        },
        {
            "data": rows(others),
            "mark": {"type": "line", "strokeWidth": 0.9},
            "encoding": {**both, "detail": {"field": "start"}, "opacity": lit(0.8), "strokeDash": dashes(seen)},
        },
        {
            "data": rows(main),
            "mark": {"type": "line", "strokeWidth": 2.2},
            "encoding": {**both, "strokeDash": dashes(seen)},
        },
        {
            "name": HOVER,
            "data": rows(main),
            "mark": {"type": "point", "size": 90, "opacity": 0},
            "encoding": {**{k: both[k] for k in ("x", "y")}, "tooltip": tip},
        },
    ]
