"""The report shows what the ledger holds, needs nothing else, and survives whatever a study leaves behind."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from bisam_ray.config import load, resolve
from bisam_ray.study.contrasts import Contrast
from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.outcome import ArmResult, Summary, summarize, verdict
from bisam_ray.study.remarks import based, scored
from bisam_ray.study.report.arm_tables import table
from bisam_ray.study.report.canvas import COLOURS, OTHERS, Figure, axis, save, still
from bisam_ray.study.report.canvas import rows as points
from bisam_ray.study.report.markdown import text
from bisam_ray.study.report.page import render
from bisam_ray.study.report.stills import picture
from bisam_ray.study.selection import winner
from bisam_ray.study.series import anytime, learned_paths, searched, spending
from bisam_ray.study.wording import percent

from .synthetic import EPOCHS, FAMILIES, INJECTED, STEP, begin, run, write_big, write_search, write_small, write_whole

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = "x</script><b>&'\u2028"


class Page(HTMLParser):
    """What a test wants to know of a page: its tags are closed, its text, its ids and where it points."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.pointers: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attributes:
            self.ids += [value or ""] if key == "id" else []
            self.pointers += [value or ""] if key in ("href", "src", "data", "action") else []

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture
def pictures() -> None:
    """Asked for by the tests that look at pictures; drawing them takes a second or more per report."""


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        blank = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1" width="1" height="1"/>'
        monkeypatch.setattr("bisam_ray.study.report.canvas.picture", lambda spec: blank)
        monkeypatch.setattr("vl_convert.svg_to_png", lambda svg, scale: b"")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return write_small(tmp_path / "synthetic")


def arm(name: str, policy: str, accuracy: float, **more: Any) -> ArmResult:
    base = ArmResult(
        arm=name,
        method=name,
        family="sgd" if policy == "none" else "bisam-tanh",
        radius_policy=policy,
        how=f"how {name} came about",
        n=2,
        restarts=2,
        test=[accuracy - 0.01, accuracy + 0.01],
        test_accuracy=accuracy,
        ci95=(accuracy - 0.0213, accuracy + 0.0213),
        single_accuracy=accuracy - 0.02,
        single_ci95=(accuracy - 0.04, accuracy),
        best_weights_accuracy=accuracy - 0.005,
        val_accuracy=0.6,
        cost_gradients=12_000.0,
        cost_seconds=61.4,
        rho_final=0.213,
        difference=(0.0123, -0.0052, 0.0291),
        kept=[],
        config=resolve({"method": "lets-bisam-tanh", "seed": 100}).model_dump(),
    )
    return replace(base, **more)


def contrast(first: str, second: str, shown: bool, **more: Any) -> Contrast:
    mean = 0.0123 if shown else 0.001
    numbers = {"mean": mean, "low": mean - 0.006, "high": mean + 0.006, "effect": 0.81, "spread": 0.01}
    numbers |= {"p": 0.002 if shown else 0.4, "p_holm": 0.004 if shown else 0.4, "n": 2}
    base = {"question": "Search or learn?", "first": first, "second": second, "family": "bisam-tanh", "shown": shown}
    return Contrast(**{**base, **numbers, "told": f"{first} against {second}", **more})


def result(**more: Any) -> Summary:
    arms = [
        arm("bisam_tanh searched", "searched", 0.9321, restarts=1),
        arm("sgd <b>&", "none", 0.7811, rho_final=math.nan),
        arm("lets-bisam-tanh", "learned", 0.9551, difference=None),
    ]
    made = [contrast("lets-bisam-tanh", "sgd <b>&", True), contrast("lets-bisam-tanh", "bisam_tanh searched", False)]
    common = {"arms": arms, "winner": "lets-bisam-tanh", "verdict": "Learning <wins> by 2 points.", "n": 2}
    common |= {"notes": ["Replicates differ."], "contrasts": made, "power": "Two points would be shown in 80 %."}
    return Summary(**{**common, "indicative": True, "budget": 12_500.0, **more})


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def specs(page: Page) -> dict[str, list[dict[str, Any]]]:
    """What the page's script draws, by figure."""
    return json.loads(gzip.decompress(base64.b64decode(page.scripts[1])))["figures"]


def test_page_stands_alone_and_says_it(study: Study, pictures: None) -> None:
    path = render(study, result())
    page = Page(path)
    assert path == study.directory / "report.html"
    assert path.stat().st_size < 700_000
    assert len(page.scripts) == 3
    assert "default-src 'none'" in page.source
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|url\((?!#)|@import", page.source)
    local = [p for p in page.pointers if not p.startswith(("#", "data:"))]
    assert local
    assert all((study.directory / p).is_file() for p in local)
    assert len(page.ids) == len(set(page.ids))
    assert {p[1:] for p in page.pointers if p.startswith("#")} <= set(page.ids)
    for expected in ("Learning <wins> by 2 points.", "indicative", "95.5 % [93.4, 97.6]", "Replicates differ.", "61"):
        assert expected in page.text
    assert "+1.2[−0.5, +2.9]" in page.text
    assert page.text.index("lets-bisam-tanh · winner") < page.text.index("how bisam_tanh searched came about")
    assert page.text.index("Too few seeds: with 2 replicates") < page.text.index("The arms")
    assert "partial" not in page.text


def test_what_is_shown(study: Study) -> None:
    page = Page(render(study, result()))
    assert "lets-bisam-tanh − sgd <b>&+1.2 [+0.6, +1.8].002.004+0.81lets-bisam-tanh is better" in page.text
    assert "lets-bisam-tanh − bisam_tanh searched+0.1 [−0.5, +0.7].400.400+0.81no difference shown" in page.text
    assert page.text.count("Search or learn?") == 1
    assert "Two points would be shown in 80 %." in page.text
    assert "bisam_tanh searched is better" in Page(render(study, worse())).text


def worse() -> Summary:
    return result(contrasts=[contrast("lets-bisam-tanh", "bisam_tanh searched", True, mean=-0.02)])


def test_everything_is_escaped(study: Study, pictures: None) -> None:
    hostile = result()
    hostile = replace(hostile, arms=[*hostile.arms, arm(HOSTILE, "fixed", 0.9, how=HOSTILE)])
    hostile = replace(hostile, contrasts=[contrast(HOSTILE, "lets-bisam-tanh", True, question=HOSTILE)])
    page = Page(render(study, hostile))
    assert f"ValueError: {INJECTED}" in page.text  # the last line of the traceback, as text
    assert "Traceback" not in page.text
    assert "sgd <b>&" in page.text
    assert "b" not in page.tags
    assert len(page.scripts) == 3
    assert page.text.count("became nan") == 1
    shown = HOSTILE.replace("\u2028", "")
    assert shown in json.dumps(specs(page)["accuracy"], ensure_ascii=False)
    for name in ("accuracy", "differences"):
        assert shown in "".join(ElementTree.parse(study.directory / "figures" / f"{name}.svg").getroot().itertext())


def test_figures_and_their_numbers(study: Study, pictures: None) -> None:
    page = Page(render(study, result()))
    figures = study.directory / "figures"
    names = ["accuracy", "differences", "cost", "radius"]
    assert [name for name in specs(page) if name in names] == names
    for name, panels in specs(page).items():
        svg = ElementTree.parse(figures / f"{name}.svg").getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert "currentColor" not in (figures / f"{name}.svg").read_text(encoding="utf-8")
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert rows(figures / f"{name}.csv")
        assert page.source.count(f'data-figure="{name}"') == len(panels)  # without the script, a picture for each
    stills = re.findall(r'class="panel"[^>]*><(\w+)', page.source)
    assert len(stills) == sum(map(len, specs(page).values()))
    assert set(stills) <= {"svg", "img"}
    assert "trial-1" in json.dumps(specs(page)["radius"])
    accuracy = rows(figures / "accuracy.csv")
    assert [float(r["test_accuracy"]) for r in accuracy if r["arm"] == "sgd <b>&"] == pytest.approx([0.7711, 0.7911])
    differences = rows(figures / "differences.csv")
    assert [(r["second"], float(r["difference"]), r["shown"]) for r in differences] == [
        ("sgd <b>&", 0.0123, "True"),
        ("bisam_tanh searched", 0.001, "False"),
    ]
    arms = rows(figures / "arms.csv")
    assert [r["arm"] for r in arms] == ["lets-bisam-tanh", "bisam_tanh searched", "sgd <b>&"]
    assert float(arms[1]["winner_ahead_by"]) == 0.0123
    trials = rows(figures / "trials.csv")
    assert [r["outcome"] for r in trials] == [
        "completed",
        "completed",
        "pruned",
        "diverged",
        "failed",
        "killed",
    ]
    assert [float(r["optim.mu"]) for r in trials][:2] == [3.25, 10.0]
    cost = [r for r in rows(figures / "cost.csv") if r["arm"] == "lets-bisam-tanh"]
    assert (float(cost[-1]["spent_gradients"]), float(cost[-1]["best_val_accuracy_so_far"])) == (12_000, 0.62)
    radius = rows(figures / "radius.csv")
    assert {r["kind"] for r in radius} == {"learned", "searched"}
    assert {r["rho_median"] for r in radius if r["kind"] == "learned"} == {"0.15000000000000002"}


def test_an_arm_that_is_switched_off_is_gone(study: Study, pictures: None) -> None:
    page = Page(render(study, result()))
    for name in ("accuracy", "differences", "cost", "radius"):
        for panel in specs(page)[name]:
            off = {**panel, "params": [{"name": "off", "value": ["lets-bisam-tanh"]}, {"name": "lit", "value": None}]}
            assert "lets-bisam-tanh" in picture(still(panel))
            assert "lets-bisam-tanh" not in picture(still(off))


def test_colours_can_be_seen_on_both_pages() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colour in (*COLOURS.values(), *OTHERS):
        for page in ("#ffffff", "#14171a"):
            low, high = sorted((luminance(colour), luminance(page)))
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, page)


def test_twenty_five_arms(tmp_path: Path) -> None:
    study = write_whole(tmp_path / "s")
    summary = summarize(study)
    assert summary is not None
    assert len(summary.arms) == 25
    page = Page(render(study, summary))
    for family in FAMILIES:
        assert f"{family}{percent(summary.of(family).test_accuracy)}[" in page.text
    assert "All 25 arms" in page.text
    assert page.source.count('type="checkbox"') == 25
    assert len(specs(page)["cost"]) == len(specs(page)["radius"]) == len(FAMILIES)
    for name, panel in zip(FAMILIES, specs(page)["cost"], strict=True):
        assert panel["title"] == name
        arms = panel["layer"][0]["encoding"]["color"]["scale"]["domain"]
        assert len(arms) == 7
        assert "sgd" in arms  # what the others are held against


@pytest.mark.slow
def test_size_of_the_page(tmp_path: Path, pictures: None) -> None:
    study = write_whole(tmp_path / "s", replicates=10, trials=20)
    path = render(study, summarize(study))
    assert path.stat().st_size < 3_000_000


def test_a_heavy_still_picture_is_an_image(tmp_path: Path, pictures: None) -> None:
    many = [{"arm": "a", "x": i / 7, "y": math.sin(i)} for i in range(2_000)]
    both = {"x": axis("x", None), "y": axis("y", None)}
    panel = {"layer": [{"data": points(many), "mark": {"type": "point"}, "encoding": both}]}
    drawing = save(Figure("many", "Many", "", "", [panel], ("x",), [(1,)]), tmp_path)
    assert drawing.stills[0].startswith('<img alt="" src="data:image/jpeg;base64,')


def test_series(study: Study) -> None:
    arm = "bisam_tanh searched"
    assert [(t.run, t.outcome) for t in searched(study, arm)] == [
        ("trial-0", "completed"),
        ("trial-1", "completed"),
        ("trial-2", "pruned"),
        ("trial-5", "killed"),
    ]
    best = winner(study, arm)
    assert best is not None
    assert best.name == "trial-1"
    x, y = spending(study, arm)
    assert x[-1] == (6 + 6 + 2 + 1 + 2) * STEP  # failed and killed trials were paid for too
    assert y == sorted(y)
    assert y[-1] == 0.62
    first, second = learned_paths(study, "lets-bisam-tanh")  # started at 0.05 and at 0.1
    assert len(first) == len(second) == EPOCHS
    assert first[-1].fraction == 1
    assert (first[0].least, first[0].most) == (0.1, 0.2)
    assert first[0].mean == pytest.approx(math.sqrt(0.1 * 0.2))
    assert anytime([]) == ([], [])
    assert spending(study, "nobody") == ([], [])


def test_winner_can_be_trained(study: Study) -> None:
    render(study, result())
    path = study.directory / "winner.yaml"
    assert resolve(load(path)) == resolve({"method": "lets-bisam-tanh", "seed": 100})
    text = path.read_text(encoding="utf-8")
    assert "null" not in text
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert [line.split()[1] for line in header] == ["study", "verdict", "date", "again"]
    render(study, result(verdict="two\nlines: {"))
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["method"] == "lets-bisam-tanh"
    render(study, None)
    assert not path.exists()  # nobody has won


def test_missing_numbers(study: Study, pictures: None) -> None:
    nothing = (math.nan, math.nan)
    first, second, third = (
        replace(a, ci95=nothing, single_ci95=nothing, n=1, test=[a.test_accuracy]) for a in result().arms
    )
    first = replace(first, difference=(0.01, math.nan, math.nan))
    second = replace(second, test_accuracy=math.nan, test=[math.nan], val_accuracy=math.nan, cost_seconds=math.nan)
    lost = dict.fromkeys(("low", "high", "effect", "p", "p_holm"), math.nan)
    some = result(arms=[first, second, third], contrasts=[contrast("lets-bisam-tanh", "sgd <b>&", False, **lost)])
    page = Page(render(study, some))
    assert "nan" not in page.text.replace("became nan", "")
    assert "95.5 %" in page.text
    assert "+1.0" in page.text
    assert len(table(some).splitlines()) == 5


def test_search_alone(tmp_path: Path) -> None:
    with Ledger(tmp_path / "s") as ledger:
        begin(ledger, "search")
        write_search(ledger)
        ledger.write("finish", outcome="completed")
    page = Page(render(read(tmp_path / "s"), None))
    assert "The best of 6 trials" in page.text
    assert "62.0 % on validation with rho 0.12, mu 10." in page.text
    assert resolve(load(tmp_path / "s" / "winner.yaml")).optim.rho == 0.12
    assert not (tmp_path / "s" / "figures" / "accuracy.svg").exists()


def test_a_confirmed_search(tmp_path: Path) -> None:
    study = write_big(tmp_path / "s", 40)
    best = winner(study, "bisam_tanh searched")
    assert best is not None
    page = Page(render(study, result()))  # a summary of the re-runs would be none of arms
    rho = f"{best.begin['suggested']['optim.rho']:.4g}"
    assert f"Confirmed on 3 fresh draws: rho {rho} reaches 83.0 % [80.5, 85.5] on validation" in page.text
    assert "the best of 2 candidates from 40 trials (20 completed, 20 pruned)" in page.text
    assert f"{best.name} · winner" in page.text
    assert page.source.count("<h2>The search</h2>") == 1
    for expected in ("40 came to epoch 2, where 20 were stopped", "rank correlation", "2nd in the search", "controls"):
        assert expected in page.text
    assert "Learning <wins>" not in page.text
    assert resolve(load(study.directory / "winner.yaml")) == resolve(best.begin["config"])
    table = rows(study.directory / "figures" / "rungs.csv")
    assert len(table) == 20
    assert sum(row["control"] == "True" for row in table) == 4
    assert float(table[0]["val_accuracy_early"]) == pytest.approx(float(table[0]["val_accuracy_final"]) / 3)
    assert not (study.directory / "figures" / "pareto.svg").exists()
    shown = [row for layer in specs(page)["rungs"][0]["layer"] for row in layer["data"]["values"]]
    assert len(shown) == 20
    assert sum(row["best"] for row in shown) == 1


def test_two_objectives(tmp_path: Path) -> None:
    study = write_big(tmp_path / "s", 20, ("accuracy", "cost"), again=False)
    page = Page(render(study, None))
    assert "on the front of accuracy and cost" in page.text
    assert "Accuracy against the cost of a run" in page.text
    assert len(rows(study.directory / "figures" / "pareto.csv")) == 10
    assert "Confirmed" not in page.text


def test_a_thousand_trials(tmp_path: Path) -> None:
    study = write_big(tmp_path / "s", 1_000)
    began = time.perf_counter()
    path = render(study, None)
    assert time.perf_counter() - began < 20
    assert path.stat().st_size < 3_000_000
    page = Page(path)
    assert "The best 100; 900 more are in trials.csv" in page.text
    assert len(rows(study.directory / "figures" / "trials.csv")) == 1_000


def test_a_comparison_says_what_its_searches_were(study: Study) -> None:
    page = Page(render(study, result()))
    assert page.text.index("The search ") < page.text.index("6 trials: ") < page.text.index("too few to tell")


@pytest.mark.parametrize("kind", ["compare", "search", "train"])
@pytest.mark.parametrize("written", ["nothing", "begun", "search"])
def test_partial(tmp_path: Path, kind: str, written: str) -> None:
    with Ledger(tmp_path / "s") as ledger:
        begin(ledger, kind)
        if written == "begun":
            shared = {"phase": "final", "policy": "fixed", "arm": "sam", "outcome": "running"}
            run(ledger, "r", resolve({"method": "sam"}), accuracies=[], **shared)
        elif written == "search":
            write_search(ledger)
        ledger.write("finish", outcome="interrupted")
    study = read(tmp_path / "s")
    page = Page(render(study, None))
    assert "interrupted: partial" in page.text
    assert ("Accuracy against cost" in page.text) == (written == "search")
    if written != "search":
        unfinished = Page(render(replace(study, finish=None), None))
        assert ("unfinished: partial" in unfinished.text) == (written == "begun")


def test_report_follows_the_ledger(study: Study) -> None:
    """A later report leaves no figure of an earlier one behind."""
    render(study, result())
    render(replace(study, runs={}), None)
    assert sorted(p.name for p in (study.directory / "figures").iterdir()) == ["arms.csv", "trials.csv"]


def test_it_is_told_what_sgd_is_where_it_is_another() -> None:
    sam, alone = (SimpleNamespace(arm=arm, config={"optim": {"base": "adamw"}}) for arm in ("sam", "sgd"))
    assert based([sam, alone]) == ["sgd is the base optimizer alone: AdamW here."]
    assert based([sam]) == []
    alone.config["optim"]["base"] = "sgd"
    assert based([sam, alone]) == []


def test_another_score_is_called_by_its_name(study: Study, pictures: None) -> None:
    """CoLA's is Matthews' correlation."""
    study.header["config"]["data"]["name"] = "glue/cola"
    some = result(score="MCC", notes=scored(study))
    page = Page(render(study, some))
    visible = page.text.partition("winner.yaml")[0]
    assert "accuracy" not in visible.replace("files call it accuracy", "")
    assert "test MCC" in visible
    drawn = json.dumps(specs(page), ensure_ascii=False)
    assert "best validation MCC so far" in drawn
    assert not re.search(r'"title": "[^"]*accuracy', drawn)
    assert "test MCC [95 %]" in table(some)
    assert "test MCC" in text(study, some)
    assert verdict(some.arms, some.winner, [], "MCC").startswith("At equal cost lets-bisam-tanh wins, chosen on")
    assert "95.5 % test MCC" in verdict(some.arms, some.winner, [], "MCC")


def test_table_fits_a_terminal() -> None:
    some = result(score="Pearson r")
    some.arms.append(arm("a-very-long-name-" * 4, "fixed", 1.0, ci95=(0.999, 1.0), cost_seconds=123_456.0))
    lines = table(some).splitlines()
    assert all(len(line) <= 78 for line in lines)
    assert len(lines) == len(some.arms) + 2
    assert [line for line in lines[1:-1] if line.startswith("*")] == [lines[2]]
    assert lines[2].split() == ["*", "lets-bisam-tanh", "95.5", "%", "[93.4,", "97.6]", "0.213", "0.96", "61"]
    assert "- " in lines[4]  # no radius


def test_importing_it_is_cheap() -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "matplotlib", "jinja2", "vl_convert"}
    assert imported(heavy, "import bisam_ray.study.report.page") == set()


def test_it_needs_neither_ray_nor_mlflow_nor_torch(study: Study) -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "matplotlib"}
    where = f"Path({str(study.directory)!r})"
    reports = "from bisam_ray.study.ledger import read; from bisam_ray.study.report.page import render"
    assert imported(heavy, f"from pathlib import Path; {reports}; render(read({where}), None)") == set()


def imported(names: set[str], code: str) -> set[str]:
    """Which of these libraries the code imports, in a new process."""
    told = f"import sys; {code}; print(*sorted({names} & set(sys.modules)))"
    return set(subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split())
