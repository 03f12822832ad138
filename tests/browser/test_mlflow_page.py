"""What a person sees who opens a study in MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from bisam_ray.study.ledger import Run, Study
from bisam_ray.study.outcome import summarize

from .conftest import Keep, Server
from .small import ARMS, EPOCHS, REPLICATES, SPACES, TRIALS, WINNER

Visit = Callable[..., Any]


def settled(page: Any, text: str) -> Any:
    """The page once it shows a text, without MLflow's assistant beside it."""
    page.get_by_text(text).first.wait_for()
    close = page.get_by_role("button", name="Close", exact=True)
    if close.count():
        close.first.click()
    return page


def matching(page: Any, number: int) -> None:
    page.get_by_text(re.compile(rf"^{number} matching runs?$")).wait_for()


def becomes(expected: Any, value: Callable[[], Any], patience_s: float = 20.0) -> None:
    """Wait until a value is what it should be; it is compared once more in the end, so that a failure tells it."""
    deadline = time.monotonic() + patience_s
    while value() != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    assert value() == expected


def columns(page: Any) -> list[str]:
    """Titles from left to right."""
    cells = [(cell.bounding_box(), cell.inner_text().strip()) for cell in page.locator(".ag-header-cell").all()]
    return [title for box, title in sorted((box["x"], title) for box, title in cells if box) if title]


def test_the_comparison_is_there_at_once(server: Server, study: Study, visit: Visit, keep: Keep) -> None:
    assert list(server.views) == ["comparison", "radius", "search"]
    page = settled(visit(server.views["comparison"], server.url), "lets-sam")
    matching(page, len(ARMS))
    shown = ["final/test_accuracy", "final/test_low", "final/test_high", "final/val_accuracy", "best/val_accuracy"]
    becomes(["Run Name", "Created", *shown], lambda: columns(page)[:7])
    found = summarize(study)
    assert found is not None
    cells = page.locator(".ag-row [col-id='metrics.`final/test_accuracy`']").all_inner_texts()
    assert [float(cell) for cell in cells] == pytest.approx([arm.test_accuracy for arm in found.arms], abs=1e-4)
    names = page.locator(".ag-row [col-id='attributes.`Run Name`']").all_inner_texts()
    assert [name.split("\n")[-1] for name in names] == [arm.arm for arm in found.arms]
    assert page.get_by_text("Views:").is_visible()
    keep(page, "mlflow-table")

    page.get_by_test_id("saved-views-trigger").click()  # MLflow's own menu has them too
    for name in server.views:
        page.get_by_role("menuitem", name=name).wait_for()


FILTERS: dict[str, Callable[[Run, list[str]], bool]] = {
    "tags.kept = 'yes'": lambda run, kept: run.name in kept,
    "tags.arm = 'lets-sam' and tags.phase = 'final'": lambda run, _: (run.arm, run.phase) == ("lets-sam", "final"),
    "tags.family = 'bisam-tanh' and tags.phase = 'final'": lambda run, _: (
        run.begin["method"].removeprefix("lets-") == "bisam-tanh" and run.phase == "final"
    ),
    "tags.radius_policy = 'learned' and tags.phase = 'final'": lambda run, _: run.begin["radius_policy"] == "learned",
    "tags.phase = 'search' and tags.outcome = 'pruned'": lambda run, _: run.outcome == "pruned",
    "metrics.`final/test_accuracy` > 0.93 and tags.phase = 'final'": lambda run, _: (
        run.value("final/test_accuracy") > 0.93
    ),
}


def test_the_filters_of_the_readme(server: Server, study: Study, visit: Visit) -> None:
    kept = next(made["kept"] for made in reversed(study.artifacts) if made["kind"] == "summary")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [text for text in FILTERS if text not in readme] == []
    page = settled(visit(server.views["comparison"], server.url), "matching runs")
    box = page.get_by_placeholder(re.compile("metrics.rmse"))
    for text, chosen in FILTERS.items():
        box.fill(text)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url, text=text: text in unquote_plus(url))
        expected = sum(chosen(run, kept) for run in study.runs.values())
        assert 0 < expected < len(study.runs)
        matching(page, expected)


def test_radii_over_time_arm_by_arm(server: Server, visit: Visit, keep: Keep) -> None:
    page = settled(visit(server.views["radius"], server.url), "sam/rho")
    plots = page.locator(".js-plotly-plot")
    plots.nth(1).locator(".scatterlayer .trace").first.wait_for()
    matching(page, len(ARMS) * REPLICATES)
    for metric in ("sam/rho", "val/accuracy"):
        page.get_by_text(f"{WINNER} ({metric})").wait_for()
    lengths = "plots => plots.slice(0, 2).map(plot => plot.data.map(trace => trace.y.length))"
    becomes(True, lambda: all(lines.count(EPOCHS) >= len(ARMS) for lines in plots.evaluate_all(lengths)))
    heights = plots.nth(0).evaluate("plot => plot.data.flatMap(trace => Array.from(trace.y))")
    heights = [height for height in heights if height is not None]
    assert max(heights) > 0.5  # what was learned
    assert min(heights) == 0.0  # SGD has none
    keep(page, "mlflow-charts")


def test_what_was_searched_in_parallel_coordinates(server: Server, visit: Visit, keep: Keep) -> None:
    page = settled(visit(server.views["search"], server.url), "Parallel Coordinates")
    matching(page, len(SPACES) * TRIALS)
    drawn = page.locator(".parcoords")
    drawn.nth(1).locator(".dimension").first.wait_for()
    for number, space in enumerate(SPACES):
        axes = drawn.nth(number).locator(".dimension .label").all_text_contents()
        assert axes == [*space["search"], "best/val_accuracy"]
    keep(page, "mlflow-parallel")


def test_two_runs_side_by_side(server: Server, visit: Visit) -> None:
    table = server.views["search"].replace("&compareRunsMode=CHART", "")
    page = settled(visit(table, server.url), "matching runs")
    matching(page, len(SPACES) * TRIALS)
    rows = page.get_by_role("checkbox", name=re.compile("Press Space to toggle row selection"))
    rows.nth(0).check()
    rows.nth(1).check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.get_by_text("optim.rho", exact=True).first.wait_for()
    page.get_by_text("best/val_accuracy", exact=True).first.wait_for()


def test_the_parent_run_carries_the_result(server: Server, visit: Visit, keep: Keep) -> None:
    address = f"{server.url}/#/experiments/{server.experiment}/runs/{server.parent}"
    page = settled(visit(address, server.url), "Description")
    page.get_by_text("Show more").click()
    rows = page.get_by_role("table").filter(has_text=WINNER).first.get_by_role("row")
    assert rows.count() == 1 + len(ARMS)
    page.get_by_text(re.compile("At equal cost")).first.wait_for()
    keep(page, "mlflow-parent")
    page.get_by_role("link", name="final/test_accuracy").wait_for()
    with page.context.expect_page() as opened:  # the link leads to the view
        page.get_by_role("link", name="comparison", exact=True).click()
    opened.value.get_by_text("lets-bisam-tanh").first.wait_for()

    page = visit(f"{address}/artifacts/report/report.html", server.url)
    framed = page.frame_locator("iframe")
    framed.get_by_text(re.compile("At equal cost")).first.wait_for()
