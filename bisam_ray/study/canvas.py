"""What a report's figures are drawn with: one style, colours for arms, and SVG that fits into a page.

In the page a figure has no outside references: its ids are its own, its font is the reader's, and its ink is
`currentColor`, so that it follows the page's light or dark scheme.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1f23"  # drawn with this, shown in currentColor
COLOURS = ("#1f7fc4", "#d55e00", "#009e73", "#b5659b", "#6f6fd0", "#c2453d", "#3a8f9e", "#8a6d1f")
GREY = "#7d8389"  # arms without a radius: what the others are held against
SHAPES = {"none": "s", "fixed": "o", "searched": "D", "learned": "^"}
PANEL = (4.4, 3.3)  # inches: one column of the page
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.borderpad": 0.2,
    "legend.handlelength": 1.3,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
}
DASHES = (0, (5, 3))
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, everywhere: a colour of its own, and a shape for where its radius comes from."""

    colour: str
    policy: str

    @property
    def shape(self) -> str:
        return SHAPES.get(self.policy, "o")


@dataclass(frozen=True)
class Drawing:
    """A figure in the page: one SVG, or one per column."""

    name: str
    title: str
    caption: str
    panels: list[str]


@dataclass
class Canvas:
    """A figure being drawn. `tips` are the tooltips of the points in the group of that id."""

    name: str
    directory: Path
    figure: Figure
    columns: int = 1
    tips: dict[str, list[str]] = field(default_factory=dict)

    @property
    def height(self) -> float:
        """In inches."""
        return float(self.figure.get_figheight())

    def dots(
        self,
        axes: Axes,
        look: Look,
        x: Sequence[float],
        y: Sequence[float],
        tips: Sequence[str],
        **style: Any,
    ) -> None:
        """Marks with a tooltip each; those without a finite place are left out."""
        kept = [row for row in zip(x, y, tips, strict=True) if math.isfinite(row[0] + row[1])]
        if kept:
            gid = f"points{len(self.tips)}"
            xs, ys, self.tips[gid] = (list(column) for column in zip(*kept, strict=True))
            common = {"color": look.colour, "marker": look.shape, "linestyle": "none"}
            axes.plot(xs, ys, gid=gid, **{**common, **style})

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        write_csv(self.directory / f"{self.name}.csv", head, rows)

    def save(self, title: str, caption: str, text: str) -> Drawing:
        """Write the files; `text` is for who cannot see the figure."""
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            nothing = dict.fromkeys(("Date", "Creator", "Type", "Format"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        self.figure.savefig(self.directory / f"{self.name}.png", dpi=150, facecolor="white")
        svg = buffer.getvalue()
        alone = panel(svg, self.name, text, self.tips).replace("currentColor", INK)
        alone = alone.replace("<svg ", f'<svg xmlns="{SVG}" ', 1)
        (self.directory / f"{self.name}.svg").write_text(alone, encoding="utf-8")
        parts = [(i, self.columns) for i in range(self.columns)]
        panels = [panel(svg, f"{self.name}{i}", text, self.tips, (i, n)) for i, n in parts]
        return Drawing(self.name, title, caption, panels)


def panel(svg: bytes, name: str, text: str, tips: Mapping[str, Sequence[str]], part: tuple[int, int] = (0, 1)) -> str:
    """Column i of n of a figure, as SVG to put into a page; all the ids begin with `name`."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = (float(value) for value in root.attrib["viewBox"].split())
    for defs in root.findall(f"{{{SVG}}}defs"):
        if defs.find(f"{{{SVG}}}style") is not None:  # it would reach beyond the figure
            root.remove(defs)
    for group in root.findall(f".//{{{SVG}}}g[@id]"):
        points = group.findall(f".//{{{SVG}}}use")
        for use, tip in zip(points, tips.get(group.attrib["id"], ()), strict=False):
            ElementTree.SubElement(use, "title").text = printable(tip)
    for element in root.iter():
        if not isinstance(element.tag, str):  # a comment
            continue
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        for key, value in attributes.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value[1:]}"
            elif key == "style":
                value = re.sub(r"font-family:[^;]*;?\s*", "", value)
            attributes[key] = value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
        element.attrib.clear()
        element.attrib.update(attributes)
    i, n = part
    root.attrib.clear()
    root.set("viewBox", f"{width * i / n:g} 0 {width / n:g} {height:g}")
    root.set("role", "img")
    root.set("aria-label", printable(text))
    root.set("style", f"font-family:{FONT};stroke-linejoin:round;stroke-linecap:butt")
    return ElementTree.tostring(root, encoding="unicode")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def in_percent(axes: Axes, which: Literal["x", "y"]) -> None:
    """Ticks of an accuracy or a share in [0, 1]."""
    axes.locator_params(axis=which, nbins=6, steps=[1, 2, 5, 10])
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 · 10^k between two positive numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for k in decades for m in (1, 2, 5) if low <= (v := float(f"{m}e{k}")) <= high]


def short(name: str, length: int = 22) -> str:
    """A name as a label: printable, and not too long."""
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def printable(text: str) -> str:
    """Text without what XML forbids."""
    return "".join(c for c in text if c.isprintable())


def percent(value: float) -> str:
    """An accuracy in [0, 1] as "95.5 %"; a dash when there is none."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def estimate(value: float, interval: tuple[float, float]) -> str:
    """An accuracy with its interval: "95.5 % [94.1, 96.9]"."""
    if not all(map(math.isfinite, interval)):
        return percent(value)
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
