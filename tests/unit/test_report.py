"""The report shows what the ledger holds, needs nothing else, and survives whatever a study leaves behind."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from bisam_ray.config import Config, load, resolve
from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.report import render, table
from bisam_ray.study.selection import winner
from bisam_ray.study.series import anytime, learned_paths, searched, spending

EPOCHS = 6
STEP = 1000.0
INJECTED = "<script>alert('x')</script>"
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """What a test wants to know of a page: its tags are closed, its text, its ids and where it points."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.pointers: list[str] = []
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
        if self.open and self.open[-1] != "style":
            self.text += data


def run(
    ledger: Ledger,
    name: str,
    config: Config,
    *,
    phase: str,
    policy: str,
    arm: str,
    accuracies: Iterable[float | None],
    outcome: str = "completed",
    error: str | None = None,
    rhos: Iterable[float] = (),
    **more: Any,
) -> None:
    """One run of the ledger, as a driver writes it."""
    ledger.write(
        "begin",
        run=name,
        arm=arm,
        phase=phase,
        method=config.method,
        radius_policy=policy,
        seed=config.seed,
        digest=config.digest(),
        dataset="digits",
        config=config.model_dump(exclude_none=True),
        **{"replicate": None, "restart": None, "suggested": None, **more},
    )
    radii = list(rhos)
    epoch = 0
    for epoch, value in enumerate(accuracies, 1):
        metrics = {"train/loss": 1.0, "cost/gradients": epoch * STEP, "cost/seconds": 0.5 * epoch}
        metrics |= {} if value is None else {"val/accuracy": value}
        metrics |= {"sam/rho": radii[epoch - 1]} if radii else {}
        ledger.write("epoch", run=name, epoch=epoch, metrics=metrics)
    if outcome == "running":
        return
    final = {"final/val_accuracy": value, "final/test_accuracy": 0.9} if outcome == "completed" else {}
    ledger.write("end", run=name, outcome=outcome, epoch=epoch, metrics=final, error=error, checkpoint=None)


def rising(best: float, epochs: int = EPOCHS) -> list[float]:
    return [best * epoch / epochs for epoch in range(1, epochs + 1)]


def begin(ledger: Ledger, kind: str) -> None:
    ledger.write(
        "study",
        study="synthetic",
        kind=kind,
        config=resolve({"method": "bisam-tanh"}).model_dump(exclude_none=True),
        space=[{"name": "bisam_tanh", "search": {"optim.rho": {"log": [0.02, 2]}}}],
        protocol={"trials": 6, "replicates": 2, "text": "1. Search.\n2. Compare."},
        versions={"torch": "2.9.1"},
        hardware="2 CPUs, x86_64",
    )


def write_search(ledger: Ledger, arm: str = "bisam_tanh searched") -> None:
    """Six trials: two completed, and one of each other kind."""
    trials: list[tuple[float, list[float | None], str, str | None]] = [
        (0.05, [*rising(0.5)], "completed", None),
        (0.12, [*rising(0.62)], "completed", None),
        (0.9, [*rising(0.2, 2)], "pruned", None),
        (1.5, [None], "diverged", "the training loss became nan in epoch 2"),
        (0.3, [], "failed", f"Traceback (most recent call last):\n  line\nValueError: {INJECTED}"),
        (0.4, [math.nan, 0.1], "killed", None),
    ]
    for number, (rho, accuracies, outcome, error) in enumerate(trials):
        suggested = {"optim.rho": rho, "optim.mu": 10.0 if number else 3.25}
        config = resolve({"method": "bisam-tanh"}, suggested)
        shared = {"phase": "search", "policy": "searched", "arm": arm, "suggested": suggested, "error": error}
        run(ledger, f"trial-{number}", config, accuracies=accuracies, outcome=outcome, **shared)


def write_finals(ledger: Ledger) -> None:
    for replicate in range(2):
        for restart in range(2):
            config = resolve({"method": "lets-bisam-tanh", "seed": 100 + replicate, "train.epochs": EPOCHS})
            config = resolve(config.model_dump(exclude_none=True), {"optim.rho": 0.05 * (restart + 1)})
            name = f"lets-r{replicate}-s{restart}"
            shared = {"phase": "final", "policy": "learned", "arm": "lets-bisam-tanh"}
            where = {"replicate": replicate, "restart": restart}
            rhos = [0.1 * (1 + replicate)] * EPOCHS
            run(ledger, name, config, accuracies=rising(0.6 + 0.02 * restart), rhos=rhos, **shared, **where)
        config = resolve({"method": "sgd", "seed": 100 + replicate})
        where = {"phase": "final", "policy": "none", "arm": "sgd <b>&", "replicate": replicate, "restart": 0}
        run(ledger, f"sgd-r{replicate}", config, accuracies=rising(0.4), **where)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    with Ledger(tmp_path / "synthetic") as ledger:
        begin(ledger, "compare")
        write_search(ledger)
        write_finals(ledger)
        ledger.write("finish", outcome="completed")
    return read(tmp_path / "synthetic")


def arm(name: str, policy: str, accuracy: float, **more: Any) -> SimpleNamespace:
    base = SimpleNamespace(
        arm=name,
        method=name,
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
        config=resolve({"method": "lets-bisam-tanh", "seed": 100}).model_dump(),
    )
    base.__dict__.update(more)
    return base


def result(**more: Any) -> Any:
    arms = [
        arm("bisam_tanh searched", "searched", 0.9321, restarts=1),
        arm("sgd <b>&", "none", 0.7811, rho_final=math.nan),
        arm("lets-bisam-tanh", "learned", 0.9551, difference=None),
    ]
    common = {"arms": arms, "winner": "lets-bisam-tanh", "verdict": "Learning <wins> by 2 points.", "n": 2}
    return SimpleNamespace(**{**common, "indicative": True, "budget": 12_500.0, "notes": ["Few seeds."], **more})


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_page_stands_alone_and_says_it(study: Study) -> None:
    path = render(study, result())
    page = Page(path)
    assert path == study.directory / "report.html"
    assert path.stat().st_size < 1_000_000
    assert "script" not in page.tags
    assert not re.search(r"https?://|//cdn|url\((?!#)|@import", page.source)
    local = [p for p in page.pointers if not p.startswith("#")]
    assert local
    assert all((study.directory / p).is_file() for p in local)
    assert len(page.ids) == len(set(page.ids))
    assert {p[1:] for p in page.pointers if p.startswith("#")} <= set(page.ids)
    for expected in ("Learning <wins> by 2 points.", "indicative", "95.5 % [93.4, 97.6]", "Few seeds.", "61"):
        assert expected in page.text
    assert "+1.2[−0.5, +2.9]" in page.text
    assert page.text.index("lets-bisam-tanh · winner") < page.text.index("how bisam_tanh searched came about")
    assert "partial" not in page.text


def test_everything_is_escaped(study: Study) -> None:
    page = Page(render(study, result()))
    assert f"ValueError: {INJECTED}" in page.text  # the last line of the traceback, as text
    assert "Traceback" not in page.text
    assert "sgd <b>&" in page.text
    assert "b" not in page.tags
    assert page.text.count("became nan") == 1


def test_figures_and_their_numbers(study: Study) -> None:
    render(study, result())
    figures = study.directory / "figures"
    for name in ("accuracy", "cost", "radius"):
        svg = ElementTree.parse(figures / f"{name}.svg").getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    titles = [e.text or "" for e in ElementTree.parse(figures / "radius.svg").iter() if e.tag.endswith("title")]
    assert "trial-1, the choice: ρ 0.12, val 62.0 %" in titles
    accuracy = rows(figures / "accuracy.csv")
    assert [float(r["test_accuracy"]) for r in accuracy if r["arm"] == "sgd <b>&"] == pytest.approx([0.7711, 0.7911])
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


def test_missing_numbers(study: Study) -> None:
    nothing = (math.nan, math.nan)
    some = result()
    some.arms = [
        SimpleNamespace(**{**a.__dict__, "ci95": nothing, "single_ci95": nothing, "n": 1, "test": [a.test_accuracy]})
        for a in some.arms
    ]
    some.arms[0].difference = (0.01, math.nan, math.nan)
    some.arms[1].__dict__.update(test_accuracy=math.nan, test=[math.nan], val_accuracy=math.nan, cost_seconds=math.nan)
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


SETTINGS = {"scheduler": "asha", "grace": 2, "rungs": [2], "controls": 2, "confirm": 2, "objectives": ["accuracy"]}


def write_big(directory: Path, trials: int, objectives: tuple[str, ...] = ("accuracy",), again: bool = True) -> Study:
    """Half of the trials are stopped at epoch 2, every tenth is a control; the two best are run again."""
    arm, settings = "bisam_tanh searched", {**SETTINGS, "objectives": list(objectives)}
    with Ledger(directory) as ledger:
        begin(ledger, "search")
        space = [{"name": "bisam_tanh", "fix": {"method": "bisam-tanh"}, "search": {"optim.rho": {"log": [0.02, 2]}}}]
        protocol = {"trials": trials, "settings": settings, "val_examples": 300}
        ledger.write("study", study="big", kind="search", space=space, protocol=protocol)
        shared = {"phase": "search", "policy": "searched", "arm": arm}
        for i in range(trials):
            rho, pruned, control = 0.02 + 1.98 * i / trials, i % 2 == 1, i % 10 == 0
            config = resolve({"method": "bisam-tanh", "train.epochs": EPOCHS}, {"optim.rho": rho})
            values = rising(0.5 + 0.4 * ((7 * i) % trials) / trials, 2 if pruned else EPOCHS)
            more = {"suggested": {"optim.rho": rho}, "number": i, "control": control}
            run(
                ledger,
                f"t{i}",
                config,
                accuracies=values,
                outcome="pruned" if pruned else "completed",
                **shared,
                **more,
            )
        best = sorted(range(0, trials, 2), key=lambda i: -((7 * i) % trials))[:2] if again else []
        for replicate in range(3):
            for place, i in enumerate(best):
                value = 0.8 + 0.02 * place + 0.01 * replicate  # the second one is better than it had looked
                where = {**shared, "phase": "final", "trial": f"t{i}", "replicate": replicate}
                config = resolve({"method": "bisam-tanh", "seed": 100 + replicate})
                run(ledger, f"t{i}-r{replicate}", config, accuracies=rising(value), **where)
        ledger.write("finish", outcome="completed")
    return read(directory)


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
    titles = [e.text or "" for e in ElementTree.parse(study.directory / "figures" / "rungs.svg").iter()]
    assert sum(" at epoch 2, " in title for title in titles) == 20


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


def test_table_fits_a_terminal() -> None:
    some = result()
    some.arms.append(arm("a-very-long-name-" * 4, "fixed", 1.0, ci95=(0.999, 1.0), cost_seconds=123_456.0))
    lines = table(some).splitlines()
    assert all(len(line) <= 78 for line in lines)
    assert len(lines) == len(some.arms) + 2
    assert [line for line in lines[1:-1] if line.startswith("*")] == [lines[2]]
    assert lines[2].split() == ["*", "lets-bisam-tanh", "95.5", "%", "[93.4,", "97.6]", "0.213", "0.96", "61"]
    assert "- " in lines[4]  # no radius


def test_importing_it_is_cheap() -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "matplotlib", "jinja2"}
    code = f"import sys, bisam_ray.study.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
