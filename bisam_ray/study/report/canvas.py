"""What a report's figures are drawn with: one style, a look per arm, and from one specification every form of a figure.

A figure is one or more panels, each a Vega-Lite 6 specification as a plain dict, and its numbers. To add one:

    write `fig_something.py` with `draw(study, summary, seen) -> Figure | None` (None: nothing to show) and add it to
    `figures.ALL`;
    give each layer its own rows (`rows([{"arm": …, "x": …}])`); a row with a field `arm` disappears when the reader
    switches that arm off (`other`: a second arm that it is about), and names the arm when the mouse is over it;
    take colours, shapes and dashes from `hue`, `shapes`, `dashes`, the reader's highlight from `lit`, axes from
    `axis`, the tooltip from `told`; write no width, and a height if 240 pixels are not right (`**tall(20, n)`: n rows
    of 20); a panel's `title` is its heading; a layer named HOVER is for the mouse alone; a layer that does not
    depend on data has the data `ONCE`.

`save` writes the .svg, .png and .csv, and gives the page both forms: the specification, which a script draws as wide
as the page is, and a still picture, which stands there without scripts and on paper. In the page ink is
`currentColor`, so that it follows the light or dark scheme.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .stills import WIDTH, in_page, inked, picture, png, together

GREY = "#7d8389"  # what the others are held against
COLOURS = {"sgd": GREY, "sam": "#1f78c1", "asam": "#0d9069", "bisam-tanh": "#d55e00", "bisam-log": "#bd6499"}
OTHERS = ("#8f7a00", "#3a8f9e", "#6f6fd0", "#c2453d")  # like COLOURS at least 3:1 on white and on the dark page
SHAPES = {
    "none": "square",
    "fixed": "circle",
    "searched": "diamond",
    "learned": "triangle-up",
    "around": "triangle-down",
    "replayed": "cross",
}
MARKS = {  # the same in a box of 12, for the page's keys
    "none": "M2 2H10V10H2Z",
    "fixed": "M6 1.6A4.4 4.4 0 1 1 5.99 1.6Z",
    "searched": "M6 .8 11.2 6 6 11.2 .8 6Z",
    "learned": "M6 1.2 11 10.6H1Z",
    "around": "M6 10.8 1 1.4H11Z",
    "replayed": "M4.4 1H7.6V4.4H11V7.6H7.6V11H4.4V7.6H1V4.4H4.4Z",
}
DASHES = {"fixed": [2, 2], "searched": [6, 3], "around": [7, 2, 2, 2], "replayed": [1, 3]}  # else a whole line
STAR = "M0,-1 L.24,-.31 .95,-.31 .38,.12 .59,.81 0,.39 -.59,.81 -.38,.12 -.95,-.31 -.24,-.31Z"
HEIGHT = 240  # pixels, unless a panel says otherwise
FEW = 8  # arms or contrasts in one panel; of more, a panel per family or question
LABEL = 13  # pixels between names beside lines
MILLION = 1e6
ONCE: dict[str, Any] = {"values": [{}]}
HOVER = "hover"  # the name of layers that are there for the mouse alone


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, everywhere: its method's family gives the colour, its radius's source shape and dash."""

    family: str
    colour: str
    policy: str

    @property
    def shape(self) -> str:
        return SHAPES.get(self.policy, "circle")

    @property
    def dash(self) -> list[int]:
        return DASHES.get(self.policy, [1, 0])


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn: what it is called and says, its panels, and its numbers as a table.

    `text` is for who cannot see it: what it shows, in a sentence. `wide`: it takes the whole width of the page.
    """

    name: str
    title: str
    caption: str
    text: str
    panels: list[dict[str, Any]]
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    wide: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure for the page: for each panel a specification and a still picture (HTML)."""

    figure: Figure
    specs: list[dict[str, Any]]
    stills: list[str]


def save(figure: Figure, directory: Path) -> Drawing:
    """Write the figure's files, and return what stands in the page."""
    write_csv(directory / f"{figure.name}.csv", figure.head, figure.rows)
    specs = [live(panel) for panel in figure.panels]
    pictures = [picture(still(spec)) for spec in specs]
    alone = inked(together(pictures, figure.name))
    (directory / f"{figure.name}.svg").write_text(alone, encoding="utf-8")
    (directory / f"{figure.name}.png").write_bytes(png(alone))
    return Drawing(figure, specs, [in_page(svg, f"{figure.name}{i}") for i, svg in enumerate(pictures)])


def live(panel: Mapping[str, Any]) -> dict[str, Any]:
    """A panel as the page's script draws it: it fits its place, and `off` and `lit` can be set from outside."""
    spec = {"height": HEIGHT, **clean(panel), "width": "container"}
    spec = narrowed(spec, set(arms_of(spec)))
    params = [{"name": "off", "value": []}, {"name": "lit", "value": None}]
    return {**switched(spec), "params": params, "autosize": {"type": "fit-x", "contains": "padding"}}


def switched(part: Any) -> Any:
    """Wherever there is data, rows of arms that are switched off are left out."""
    if isinstance(part, list):
        return [switched(item) for item in part]
    if not isinstance(part, dict):
        return part
    found = {key: value if key == "data" else switched(value) for key, value in part.items()}
    if "data" in part:
        on = {"filter": "indexof(off, datum.arm) < 0 && indexof(off, datum.other) < 0"}
        found["transform"] = [on, *found.get("transform", [])]
    return found


def arms_of(part: Any) -> Iterable[str]:
    """The arms that a panel's rows name."""
    if isinstance(part, list):
        for item in part:
            yield from arms_of(item)
    elif isinstance(part, dict):
        for row in part.get("data", {}).get("values", ()):
            yield from (row[key] for key in ("arm", "other") if key in row)
        for key, value in part.items():
            if key != "data":
                yield from arms_of(value)


def narrowed(part: Any, arms: set[str]) -> Any:
    """A panel whose colours, shapes and dashes are those of its own arms: of many arms, most are in other panels."""
    if isinstance(part, list):
        return [narrowed(item, arms) for item in part]
    if not isinstance(part, dict):
        return part
    found = {key: value if key == "data" else narrowed(value, arms) for key, value in part.items()}
    scale = found.get("scale")
    if found.get("field") == "arm" and isinstance(scale, dict) and "range" in scale:
        pairs = [pair for pair in zip(scale["domain"], scale["range"], strict=True) if pair[0] in arms]
        found["scale"] = {**scale, "domain": [arm for arm, _ in pairs], "range": [look for _, look in pairs]}
    return found


def clean(part: Any) -> Any:
    """A specification without what XML and JSON forbid; numbers with five digits."""
    if isinstance(part, Mapping):
        return {key: clean(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [clean(item) for item in part]
    if isinstance(part, str):
        return printable(part)
    if isinstance(part, float):
        return float(f"{part:.5g}") if math.isfinite(part) else None
    return part


def still(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A panel without the marks that only the mouse finds."""
    kept = {"layer": [layer for layer in spec["layer"] if layer.get("name") != HOVER]} if "layer" in spec else {}
    return {**spec, **kept, "width": WIDTH}


def rows(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The data of a layer; rows with a number that is not finite are left out."""
    return {"values": [row for row in values if all(map(finite, row.values()))]}


def finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def hue(seen: Mapping[str, Look], field: str = "arm") -> dict[str, Any]:
    """The colour channel: an arm's colour."""
    return per_arm(seen, field, {arm: look.colour for arm, look in seen.items()})


def shapes(seen: Mapping[str, Look], field: str = "arm") -> dict[str, Any]:
    """The shape channel: where an arm's radius comes from."""
    return per_arm(seen, field, {arm: look.shape for arm, look in seen.items()})


def dashes(seen: Mapping[str, Look], field: str = "arm") -> dict[str, Any]:
    """The strokeDash channel: where an arm's radius comes from."""
    return per_arm(seen, field, {arm: look.dash for arm, look in seen.items()})


def per_arm(seen: Mapping[str, Look], field: str, values: Mapping[str, Any]) -> dict[str, Any]:
    scale = {"domain": list(seen), "range": list(values.values())}
    return {"field": field, "type": "nominal", "scale": scale, "legend": None}


def by_family(arms: Iterable[str], seen: Mapping[str, Look]) -> dict[str, list[str]]:
    """Arms by panel: all in one if they are FEW, else those of a family together with those without a radius."""
    arms = list(arms)
    if len(arms) <= FEW:
        return {"": arms}
    families = dict.fromkeys(look.family for arm, look in seen.items() if look.policy != "none" and arm in arms)
    return {name: [a for a in arms if seen[a].family == name or seen[a].policy == "none"] for name in families}


def lit(opacity: float = 1.0, dim: float = 0.18) -> dict[str, Any]:
    """The opacity channel: the arm under the mouse stands out, in every figure at once."""
    other = "isValid(lit) && isValid(datum.arm) && datum.arm !== lit && datum.other !== lit"
    return {"condition": {"test": other, "value": min(dim, opacity)}, "value": opacity}


def axis(field: str, title: str | None, kind: str = "number", **scale: Any) -> dict[str, Any]:
    """A position channel: a plain `number`, a `percent` of a share, `points` of a share, or `log`."""
    channel: dict[str, Any] = {"field": field, "type": "quantitative", "title": title}
    if kind == "number":
        channel["axis"] = {"format": "~g"}
    elif kind == "percent":
        channel["axis"] = {"labelExpr": "format(100 * datum.value, '.6~g') + ' %'"}
    elif kind == "points":
        signed = "replace(format(100 * datum.value, '+.6~g'), '-', '−')"
        channel["axis"] = {"labelExpr": f"datum.value == 0 ? '0' : {signed}"}
    elif kind == "log":
        low, high = scale["domain"]
        values = ticks(low, high)
        channel["axis"] = {"values": values, "tickCount": len(values), "format": "~g", "labelOverlap": False}
        scale["type"] = "log"
    if kind != "log":
        scale = {"zero": False, **({} if "domain" in scale else {"padding": 6}), **scale}
    return {**channel, "scale": {"nice": False, **scale}}


def names(seen: Mapping[str, Look], values: Sequence[Mapping[str, Any]], y: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two layers: the `label` of each row at its height right of the axes, and before it the arm's mark."""
    place = {"x": {"value": "width"}, "y": y, "opacity": lit()}
    mark, text = {"type": "point", "size": 34, "xOffset": 12}, {"type": "text", "align": "left", "dx": 20}
    return [
        {"data": rows(values), "mark": mark, "encoding": {**place, "color": hue(seen), "shape": shapes(seen)}},
        {"data": rows(values), "mark": text, "encoding": {**place, "text": {"field": "label"}}},
    ]


def tall(step: int, rows: int) -> dict[str, Any]:
    """The height of a panel with a row per arm: when arms are switched off, the page's script makes it less."""
    return {"height": step * rows, "usermeta": {"step": step}}


def told(*fields: tuple[str, str, str | None]) -> list[dict[str, Any]]:
    """The tooltip: (field, title, format) each; a format is d3's, None for text."""
    return [
        {"field": field, "title": title, "type": "nominal" if how is None else "quantitative"}
        | ({} if how is None else {"format": how})
        for field, title, how in fields
    ]


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def apart(heights: Mapping[str, float], domain: tuple[float, float], height: float) -> dict[str, float]:
    """Heights near the given ones at which names do not overlap; the axis has `height` pixels."""
    low, high = domain
    gap, arms = LABEL / height * (high - low), sorted(heights, key=lambda arm: heights[arm])
    at: list[float] = []
    for arm in arms:
        at.append(max(heights[arm], at[-1] + gap if at else low))
    for i in reversed(range(len(at))):
        at[i] = min(at[i], at[i + 1] - gap if i + 1 < len(at) else high)
    return dict(zip(arms, at, strict=True))


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 · 10^k between two positive numbers; powers of ten alone where they are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [v for k in decades for m in steps if low <= (v := float(f"{m}e{k}")) <= high]


def short(name: str, length: int = 22) -> str:
    """A name as a label: printable, and not too long."""
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def printable(text: str) -> str:
    """Text without what XML forbids."""
    return "".join(c for c in text if c.isprintable())
