"""Still pictures of a report's figures: SVG that fits into a page, files that stand alone, images of what is heavy."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

INK = "#1b1f23"  # in files, what is currentColor in the page
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
STYLE: dict[str, Any] = {
    "font": FONT,
    "background": None,
    "aria": False,  # the page describes a figure as a whole; its numbers are in the table
    "padding": 2,
    "view": {"stroke": None},
    "text": {"color": "currentColor", "fontSize": 11},
    "rule": {"color": "currentColor"},
    "line": {"strokeWidth": 1.8, "strokeJoin": "round"},
    "point": {"filled": True, "size": 60, "opacity": 1},
    "title": {"color": "currentColor", "fontSize": 12, "fontWeight": 600, "anchor": "start", "offset": 8},
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": "currentColor",
        "gridOpacity": 0.13,
        "gridWidth": 0.8,
        "labelColor": "currentColor",
        "labelFontSize": 11,
        "labelPadding": 6,
        "labelOverlap": "greedy",
        "titleColor": "currentColor",
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "axisX": {"tickCount": 5, "labelSeparation": 6},
    "axisY": {"tickCount": 5},
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "orient": "top",
        "symbolStrokeColor": "currentColor",
        "labelLimit": 220,
    },
}
WIDTH, GAP = 440, 32  # pixels, of still panels
HEAVY = 120_000  # bytes; a still picture of more than that is shown as an image
SVG = "http://www.w3.org/2000/svg"


def in_page(svg: str, name: str) -> str:
    """A picture as HTML: an SVG whose ink is the page's, or an image when that is too heavy."""
    import vl_convert

    inside = within_page(svg, name)
    if len(inside) <= HEAVY:
        return inside
    image = vl_convert.svg_to_jpeg(on_white(inked(svg)), scale=1.5, quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(image).decode()}">'


def png(svg: str) -> bytes:
    import vl_convert

    return vl_convert.svg_to_png(on_white(svg), scale=2)


def inked(svg: str) -> str:
    """For a file, which has no page to take its ink from."""
    return svg.replace("currentColor", INK)


def together(pictures: Sequence[str], name: str) -> str:
    """A figure's panels as one SVG, two beside each other."""
    parts = [ElementTree.fromstring(within_page(svg, f"{name}{i}")) for i, svg in enumerate(pictures)]
    sizes = [tuple(map(float, part.attrib["viewBox"].split()[2:])) for part in parts]
    columns, y, right = min(2, len(parts)), 0.0, 0.0
    whole = ElementTree.Element("svg", {"xmlns": SVG, "font-family": FONT})
    for first in range(0, len(parts), columns):
        row = range(first, min(first + columns, len(parts)))
        for k in row:
            width, height = sizes[k]
            x = (k - first) * (WIDTH + GAP)
            parts[k].attrib.update({"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}"})
            whole.append(parts[k])
            right = max(right, x + width)
        y += max(sizes[k][1] for k in row) + GAP
    size = {"width": f"{right:g}", "height": f"{y - GAP:g}"}
    whole.attrib.update({**size, "viewBox": f"0 0 {right:g} {y - GAP:g}"})
    return ElementTree.tostring(whole, encoding="unicode")


def picture(spec: Mapping[str, Any]) -> str:
    """A specification as an SVG, without what the library adds for a page of its own."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg({**spec, "config": STYLE})
    root = ElementTree.fromstring(svg)
    width, height = root.attrib["width"], root.attrib["height"]
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        kept = {key: value for key, value in element.attrib.items() if key not in ("class", "role", "pointer-events")}
        element.attrib.clear()
        for key, value in kept.items():
            if not key.startswith("aria-") and not (key == "font-family" and value == FONT):
                element.set(key.rpartition("}")[2], re.sub(r"(\.\d\d)\d+", r"\1", value))
    root.attrib.clear()
    root.attrib.update({"xmlns": SVG, "viewBox": f"0 0 {width} {height}", "width": width, "height": height})
    root.set("font-family", FONT)
    return ElementTree.tostring(root, encoding="unicode")


def within_page(svg: str, name: str) -> str:
    """An SVG to stand in a page: ids of its own, and as wide as its place."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in element.attrib.items():
            value = f"{name}-{value}" if key == "id" else value.replace("url(#", f"url(#{name}-")
            element.set(key, f"#{name}-{value[1:]}" if key == "href" and value[0] == "#" else value)
    for key in ("width", "height", "font-family"):
        root.attrib.pop(key, None)
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode")


def on_white(svg: str) -> str:
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)
