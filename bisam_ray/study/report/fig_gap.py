"""The figure of the generalization gap over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..generalization import Gap, gaps
from ..ledger import Study
from .canvas import HOVER, Figure, Look, apart, axis, by_family, dashes, hue, lit, names, rows, short, told

if TYPE_CHECKING:
    from ..outcome import Summary

TALL = 270  # pixels
OF = ("loss", "accuracy")


def gap(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """Val loss − train loss, and train accuracy − val accuracy, over epochs; of many arms the loss alone."""
    shown = OF if study.score == "accuracy" else OF[:1]  # of training no other score is known
    names_of = {arm.arm: arm.kept for arm in summary.arms} if summary else {}
    lines = {arm: found for arm in seen if (found := gaps(study, arm, names_of.get(arm)))}
    if not lines:
        return None
    if "" in (groups := by_family(lines, seen)):
        panels = [panel(of, lines, seen) for of in shown]
    else:
        ends = span("loss", lines)
        panels = [
            {**panel("loss", {arm: lines[arm] for arm in arms}, seen, ends), "title": name}
            for name, arms in groups.items()
        ]
    fields = [name for name in Gap._fields if not name.startswith(OF) or name.startswith(shown)]
    told = "Of the kept runs: mean and range over replicates. On train, means over the epoch's steps; on validation, at"
    last = "; ".join(f"{arm} {line[-1].loss:.2f}" for arm, line in lines.items())
    return Figure(
        "gap",
        "Generalization gap over training",
        f"{told} its end.",
        f"Validation loss minus training loss at the end: {last}.",
        panels,
        ("arm", *fields),
        [(arm, *(getattr(at, name) for name in fields)) for arm, line in lines.items() for at in line],
        wide=len(panels) > 1,
    )


def span(of: str, lines: Mapping[str, list[Gap]]) -> tuple[float, float]:
    """The ends of the axis."""
    low = min(0.0, *(getattr(at, f"{of}_least") for line in lines.values() for at in line))
    high = max(0.0, *(getattr(at, f"{of}_most") for line in lines.values() for at in line))
    edge = 0.04 * (high - low or 1.0)
    return low - edge, high + edge


def panel(
    of: str, lines: Mapping[str, list[Gap]], seen: Mapping[str, Look], ends: tuple[float, float] | None = None
) -> dict[str, Any]:
    """The gap of the loss or of the accuracy, a line per arm."""
    low, high = ends or span(of, lines)
    title, kind = {
        "loss": ("validation loss − training loss", "number"),
        "accuracy": ("training − validation accuracy, points", "points"),
    }[of]
    x = axis("epoch", "epoch")
    y = axis("y", title, kind, domain=[low, high])
    both = {"x": {**x, "axis": {"grid": False, "format": "~g"}}, "y": y, "color": hue(seen), "opacity": lit()}
    means, bands = [], []
    for arm, line in lines.items():
        for at in line:
            value, least, most = (getattr(at, f"{of}{end}") for end in ("", "_least", "_most"))
            told_as = f"{value:.3f}" if of == "loss" else f"{100 * value:+.1f} points".replace("-", "−")
            means.append({"arm": arm, "epoch": at.epoch, "y": value, "told": told_as})
            bands += [{"arm": arm, "epoch": at.epoch, "y": least, "most": most}] if at.n > 1 else []
    places = apart({arm: getattr(line[-1], of) for arm, line in lines.items()}, (low, high), TALL)
    labels = [{"arm": arm, "y": at, "label": short(arm, 19)} for arm, at in places.items()]
    tip = told(("arm", "arm", None), ("epoch", "epoch", "d"), ("told", "gap", None))
    band = {"type": "area", "line": False}
    layers: list[dict[str, Any]] = [
        {"data": rows(bands), "mark": band, "encoding": both | {"y2": {"field": "most"}, "opacity": lit(0.12, 0.02)}},
        {"data": rows(means), "mark": {"type": "line"}, "encoding": {**both, "strokeDash": dashes(seen)}},
        {
            "name": HOVER,
            "data": rows(means),
            "mark": {"type": "point", "size": 80, "opacity": 0},
            "encoding": {"x": both["x"], "y": y, "tooltip": tip},
        },
        *names(seen, labels, y),
    ]
    return {"height": TALL, "layer": [layer for layer in layers if layer["data"]["values"]]}
