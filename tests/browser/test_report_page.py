"""What a person sees who opens the report: whole, readable, in reach, and nothing but the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Keep
from .small import ARMS

Visit = Callable[..., Any]
PANELS = "[data-figure]"
DRAWN = f"{PANELS} svg.marks"
WIDTHS = (400, 1600)


@pytest.fixture
def read(visit: Visit, report: Path) -> Visit:
    """Opens the report and waits until every figure is drawn, those further down too."""

    def read(width: int = 1600, scheme: str = "light", **options: Any) -> Any:
        page = visit(report.as_uri(), "file:", width=width, color_scheme=scheme, **options)
        for panel in page.locator(PANELS).all():
            if panel.is_visible():
                panel.scroll_into_view_if_needed()
                panel.locator("svg.marks").wait_for()
        page.evaluate("scrollTo(0, 0)")
        return page

    return read


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_readable_by_everybody(read: Visit, keep: Keep, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = read(width, scheme)
    assert page.locator(DRAWN).count() >= 5
    keep(page, f"report-{scheme}-{width}")
    found = Axe().run(page).response["violations"]
    told = [(rule["id"], [node["target"] for node in rule["nodes"]][:3], rule["help"]) for rule in found]
    assert told == []


CLIPPED = """() => [...document.querySelectorAll('body *')].filter(element => {
    const style = getComputedStyle(element);
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const hidden = ['hidden', 'clip'].includes(style.overflowX) && style.position !== 'absolute';
    return own && hidden && element.checkVisibility() && element.scrollWidth > element.clientWidth + 1;
}).map(element => element.textContent.trim().slice(0, 60))"""
OUTSIDE = """() => [...document.querySelectorAll('[data-figure] svg.marks')].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.width && (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
            || box.bottom > frame.bottom + 2);
    }).map(text => text.textContent);
})"""


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(read: Visit, width: int) -> None:
    page = read(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(OUTSIDE) == []


def test_every_control_is_reached_by_tab(read: Visit) -> None:
    page = read()
    controls = "a[href], button, input, select, textarea, summary, [tabindex='0']"
    number = page.evaluate(
        """selector => {
            const all = [...document.querySelectorAll(selector)].filter(one => one.checkVisibility());
            all.forEach((one, index) => one.dataset.stop = index);
            return all.length;
        }""",
        controls,
    )
    assert number > len(ARMS)
    reached = set()
    for _ in range(number + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement?.dataset.stop ?? null"))
    missed = set(map(str, range(number))) - reached
    assert [page.locator(f"[data-stop='{stop}']").first.evaluate("one => one.outerHTML") for stop in missed] == []


def test_the_key_hides_an_arm(read: Visit) -> None:
    page = read()
    radius = page.locator("[data-figure=radius] svg.marks").first
    accuracy = page.locator("[data-figure=accuracy] svg.marks").first
    labels = accuracy.locator("text", has_text=re.compile("^sam$"))
    assert labels.count() == 1
    before = radius.inner_html()
    box = page.get_by_role("checkbox", name="sam", exact=True)
    box.focus()
    page.keyboard.press("Space")
    labels.wait_for(state="detached")
    assert radius.inner_html() != before
    page.keyboard.press("Space")
    labels.wait_for()


def test_a_mark_tells_its_numbers(read: Visit) -> None:
    page = read()
    marks = page.locator(
        "[data-figure=accuracy] svg.marks [aria-roledescription='point'], "
        "[data-figure=accuracy] svg.marks .mark-symbol path"
    )
    marks.first.scroll_into_view_if_needed()
    marks.first.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for()
    text = tooltip.inner_text()
    assert any(arm in text for arm in ARMS)
    assert re.search(r"\d\d\.\d", text)


def test_prints_and_weighs_little(read: Visit, report: Path) -> None:
    page = read()
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 1
    assert report.stat().st_size < 3_000_000
