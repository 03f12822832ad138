"""The figures of flatness: the loss around the final weights, and the top eigenvalue of its Hessian."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from ..generalization import kept
from ..ledger import Run, Study
from ..series import finals, number
from .canvas import Figure, Look, axis, hue, lit, rows, shapes, short, tall, told

if TYPE_CHECKING:
    from ..outcome import Summary

COLOURS = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")  # viridis, reversed
FINE = 126  # pixels of a bitmap's side
ACROSS = 3  # pictures beside each other in a panel
SIDE = 2.0  # of a picture, in units of its axis, which goes from −1 to 1
GAP = 0.25
HEAD = 0.5  # for its name
PIXELS = 140  # of a picture's side


def measured(study: Study, arm: str, summary: Summary | None) -> list[tuple[Run, dict[str, Any]]]:
    """The kept runs whose flatness was measured, or else any final run of the arm for which it was."""
    names = next((result.kept for result in summary.arms if result.arm == arm), []) if summary else []
    runs = finals(study, arm)
    some = [run for run in runs if run.name in names] or kept(study, arm)
    for group in (some, runs):
        if found := [(run, flat) for run in group if (flat := run.measured.get("flatness"))]:
            return found
    return []


def eigenvalue(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """The top Hessian eigenvalue at the final weights, a row per arm; None when it was measured nowhere."""
    found: dict[str, list[tuple[str, float]]] = {}
    for arm in seen:
        values = [(run.name, number(flat.get("eigenvalue"))) for run, flat in measured(study, arm, summary)]
        if positive := [(name, value) for name, value in values if 0 < value < math.inf]:
            found[arm] = positive
    if not found:
        return None
    means = {arm: math.exp(fmean(math.log(value) for _, value in values)) for arm, values in found.items()}
    order = sorted(found, key=lambda arm: means[arm])
    each = [{"arm": arm, "x": value, "run": name} for arm, values in found.items() for name, value in values]
    mean = [{"arm": arm, "x": value, "n": len(found[arm])} for arm, value in means.items()]
    everything = [value for values in found.values() for _, value in values]
    label = {"grid": False, "labelLimit": 150, "labelOverlap": False, "labelFontSize": 11.5}
    row = {"field": "arm", "type": "nominal", "sort": order, "title": None, "axis": label}
    x = axis("x", "top eigenvalue (logarithmic)", "log", domain=[min(everything) / 1.15, max(everything) * 1.15])
    common = {"y": row, "x": x, "color": hue(seen)}
    tip = told(("arm", "arm", None), ("run", "run", None), ("x", "top eigenvalue", ".3~g"))
    of_mean = told(("arm", "arm", None), ("x", "geometric mean", ".3~g"), ("n", "runs", "d"))
    dot = {"type": "tick", "thickness": 1.4, "size": 7, "yOffset": -8}
    layers: list[dict[str, Any]] = [
        {"data": rows(each), "mark": dot, "encoding": {**common, "opacity": lit(0.75), "tooltip": tip}},
        {
            "data": rows(mean),
            "mark": {"type": "point", "size": 85},
            "encoding": {**common, "shape": shapes(seen), "opacity": lit(), "tooltip": of_mean},
        },
    ]
    return Figure(
        "eigenvalue",
        "Curvature at the final weights",
        "The largest eigenvalue of the Hessian of the training loss: the geometric mean; ticks above: the replicates. "
        "Small is flat.",
        f"Top Hessian eigenvalue: {'; '.join(f'{arm} {means[arm]:.3g}' for arm in order)}.",
        [{**tall(26, len(order)), "layer": layers}],
        ("arm", "run", "top_eigenvalue"),
        [(arm, name, value) for arm in order for name, value in found[arm]],
    )


def landscape(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """The loss along two filter-normalised directions, a small picture per arm; None when it was measured nowhere."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for arm in seen:
        with_one = [
            (run.name, flat["landscape"]) for run, flat in measured(study, arm, summary) if flat.get("landscape")
        ]
        if with_one:
            found[arm] = with_one[0]
    if not found:
        return None
    losses = [number(value) for _, of in found.values() for row in of["loss"] for value in row]
    levels = steps([loss for loss in losses if math.isfinite(loss)])
    families: dict[str, list[str]] = {}
    none = [arm for arm in found if seen[arm].policy == "none"]
    for arm in found:
        if arm not in none:
            families.setdefault(seen[arm].family, [*none]).append(arm)
    groups = families if families and len(found) > 2 * ACROSS else {"": list(found)}
    panels = []
    for name, arms in groups.items():
        one = small_multiples({arm: found[arm] for arm in arms}, levels)
        panels.append({**one, "title": name} if name else one)
    rims = {
        arm: median(number(v) for row in (of["loss"][0], of["loss"][-1]) for v in row) for arm, (_, of) in found.items()
    }
    return Figure(
        "landscape",
        "Loss around the final weights",
        "Training loss along two random directions, scaled filter by filter to the norms of the weights, −1 to 1; the "
        "cross is the final weights. One scale for all, in equal factors; of each arm the first replicate measured.",
        f"Median loss at the rim: {'; '.join(f'{arm} {rim:.3g}' for arm, rim in rims.items())}.",
        panels,
        ("arm", "run", "x", "y", "loss", "error"),
        [
            (arm, run, x, y, of["loss"][i][j], of["error"][i][j])
            for arm, (run, of) in found.items()
            for i, y in enumerate(of["axis"])
            for j, x in enumerate(of["axis"])
        ],
        wide=len(panels) > 1,
    )


def steps(losses: Sequence[float]) -> list[float]:
    """Borders between as many steps as COLOURS, in equal factors; the steepest tenth of all points is one step."""
    ordered = sorted(losses)
    low, high = max(ordered[0], 1e-3), ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    high = max(high, 1.2 * low)
    n = len(COLOURS) - 1
    return [low * (high / low) ** (k / n) for k in range(1, n + 1)]


def small_multiples(found: Mapping[str, tuple[str, Mapping[str, Any]]], levels: Sequence[float]) -> dict[str, Any]:
    """One panel: pictures in rows of ACROSS, each with its name above and a cross in the middle."""
    pictures, heads, middles = [], [], []
    for number_, (arm, (run, of)) in enumerate(found.items()):
        left, top = (number_ % ACROSS) * (SIDE + GAP), -(number_ // ACROSS) * (SIDE + GAP + HEAD)
        place = {"x": left, "to": left + SIDE, "y": top - SIDE, "top": top}
        pictures.append({"arm": arm, **place, "url": bitmap(of["loss"], levels)})
        heads.append({"arm": arm, "x": left, "y": top + 0.12, "label": short(arm, 18), "run": run})
        middles.append({"arm": arm, "x": left + 1, "y": top - 1, "step": 0.5})
    width, whole = ACROSS * (SIDE + GAP) - GAP, math.ceil(len(found) / ACROSS) * (SIDE + GAP + HEAD) - GAP
    x: dict[str, Any] = {"field": "x", "type": "quantitative", "axis": None}
    x["scale"] = {"domain": [0, width], "nice": False, "zero": False}
    y: dict[str, Any] = {"field": "y", "type": "quantitative", "axis": None}
    y["scale"] = {"domain": [HEAD - whole, HEAD], "nice": False, "zero": False}
    colour = {
        "field": "step",
        "type": "quantitative",
        "scale": {"type": "threshold", "domain": list(range(1, len(COLOURS))), "range": list(COLOURS)},
        "legend": {
            "title": "training loss",
            "gradientThickness": 9,
            "labelFontSize": 9,
            "labelOverlap": False,
            "labelExpr": f"{[f'{level:.2g}' for level in levels]}[datum.value - 1]",
        },
    }
    both = {"x": x, "y": y, "opacity": lit()}
    ends = {"x2": {"field": "to"}, "y2": {"field": "top"}, "url": {"field": "url"}}
    keyed = {"type": "point", "opacity": 0}  # the bitmaps have no scale that a key could tell
    cross = {"type": "point", "shape": "cross", "size": 45, "color": "white", "stroke": "black", "strokeWidth": 0.8}
    text = {"type": "text", "align": "left", "baseline": "bottom", "fontSize": 11}
    layers: list[dict[str, Any]] = [
        {"data": rows(pictures), "mark": {"type": "image", "aspect": False}, "encoding": {**both, **ends}},
        {"data": rows(middles), "mark": keyed, "encoding": {"x": x, "y": y, "color": colour}},
        {"data": rows(middles), "mark": cross, "encoding": both},
        {"data": rows(heads), "mark": text, "encoding": {**both, "text": {"field": "label"}}},
    ]
    return {"height": round(PIXELS * whole / SIDE), "layer": layers}


def bitmap(loss: Sequence[Sequence[float]], levels: Sequence[float]) -> str:
    """A PNG as a data URL: the step of every pixel, the loss being linear between the points where it was measured.

    The first row is at the bottom. A loss that is no number counts as the highest.
    """
    import numpy as np

    grid = np.array([[number(value) for value in row] for row in loss])
    grid = np.where(np.isfinite(grid), grid, max(levels) * 10)
    for _ in range(2):  # along one axis, then along the other
        at = np.linspace(0, len(grid) - 1, FINE)
        low = np.minimum(at.astype(int), len(grid) - 2)
        share = (at - low)[:, None]
        grid = ((1 - share) * grid[low] + share * grid[low + 1]).T
    steps_ = np.searchsorted(levels, grid[::-1], side="right").astype(np.uint8)
    palette = b"".join(bytes.fromhex(colour[1:]) for colour in COLOURS)
    lines = b"".join(b"\0" + row.tobytes() for row in steps_)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", FINE, FINE, 8, 3, 0, 0, 0)), (b"PLTE", palette)]
    parts += [(b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()
