"""The figures of sensitivity, importance, gap and flatness, drawn from a ledger whose truth is known."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bisam_ray.study.generalization import gaps
from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.report import fig_gap, fig_importance, fig_landscape, fig_sensitivity
from bisam_ray.study.report.canvas import Figure, Look, save
from bisam_ray.study.report.fig_landscape import bitmap, steps
from bisam_ray.study.report.figures import looks

DRAW = {
    "sensitivity": fig_sensitivity.sensitivity,
    "importance": fig_importance.importance,
    "parallel": fig_importance.parallel,
    "gap": fig_gap.gap,
    "landscape": fig_landscape.landscape,
    "eigenvalue": fig_landscape.eigenvalue,
}
EPOCHS = 8
SPACES = [
    {"name": "rho", "fix": {"method": "sam"}, "search": {"optim.rho": {"log": [0.02, 2.0]}}},
    {
        "name": "bisam_tanh",
        "fix": {"method": "bisam-tanh"},
        "search": {
            "optim.rho": {"log": [0.02, 2.0]},
            "optim.mu": {"log": [1, 30]},
            "optim.alpha": {"choice": [0.05, 0.1, 0.2]},
        },
    },
]
ARMS = {  # arm: method, policy, curvature
    "sgd": ("sgd", "none", 60.0),
    "sam": ("sam", "fixed", 20.0),
    "rho searched": ("sam", "searched", 14.0),
    "lets-sam": ("lets-sam", "learned", 11.0),
    "sam around": ("sam", "around", 12.0),
    "bisam-tanh": ("bisam-tanh", "fixed", 18.0),
    "bisam_tanh searched": ("bisam-tanh", "searched", 9.0),
    "lets-bisam-tanh": ("lets-bisam-tanh", "learned", 10.0),
}


def ledger_of(directory: Path, replicates: int = 3, trials: int = 16) -> Study:
    """Two families; accuracy is best at ρ .2 and lower with µ away from 8; every third trial is stopped early."""
    rng = np.random.default_rng(3)
    protocol = {"val_examples": 900, "settings": {"rungs": [3]}}
    with Ledger(directory) as ledger:
        ledger.write("study", study="made", kind="compare", space=SPACES, protocol=protocol)
        for arm, (method, policy, curvature) in ARMS.items():
            common = {"arm": arm, "method": method, "radius_policy": policy}
            for i in range(trials if policy in ("searched", "around") else 0):
                rho = float(np.exp(rng.uniform(np.log(0.02), np.log(2.0)))) if policy == "searched" else 0.1 * 1.1**i
                point: dict[str, Any] = {"optim.rho": rho}
                best = 0.88 - 0.03 * math.log(rho / 0.2) ** 2
                if method == "bisam-tanh":
                    point |= {
                        "optim.mu": float(np.exp(rng.uniform(0, np.log(30)))),
                        "optim.alpha": [0.05, 0.1, 0.2][i % 3],
                    }
                    best -= 0.01 * math.log(point["optim.mu"] / 8) ** 2
                pruned = i % 3 == 2 and policy == "searched"
                best += float(rng.normal(0, 0.008)) - 0.1 * pruned
                name, n = f"{arm.replace(' ', '-')}-{i:03d}", 3 if pruned else EPOCHS
                begin(ledger, name, "search", rho, suggested=point, **common)
                epochs(ledger, name, [best * (1 - 0.3 / e) if e < EPOCHS else best for e in range(1, n + 1)], rho)
                done = {} if pruned else {"final/val_accuracy": best, "final/test_accuracy": best}
                ledger.write("end", run=name, outcome="pruned" if pruned else "completed", epoch=n, metrics=done)
            for r in range(replicates):
                name, best = f"{arm.replace(' ', '-')}-r{r}-s0", 0.86 + float(rng.normal(0, 0.01))
                begin(ledger, name, "final", 0.2, replicate=r, restart=0, **common)
                curve = [best * (1 - 0.3 / e) if e < EPOCHS else best for e in range(1, EPOCHS + 1)]
                epochs(ledger, name, curve, 0.2 + 0.05 * r, 0.02 * math.sqrt(curvature))
                done = {"final/val_accuracy": best, "final/test_accuracy": best}
                ledger.write("end", run=name, outcome="completed", epoch=EPOCHS, metrics=done)
                axis = [-1 + 0.1 * k for k in range(21)]
                loss = [[0.4 + 0.02 * curvature * (x * x + 0.6 * y * y + 0.3 * x * y) for x in axis] for y in axis]
                plane = {"axis": axis, "loss": loss, "error": [[0.1] * 21] * 21, "seed": 0} if r == 0 else None
                flat = {"eigenvalue": curvature * math.exp(rng.normal(0, 0.2)), "residual": 0.01, "landscape": plane}
                ledger.write("measure", run=name, what="flatness", values=flat)
    return read(directory)


def begin(ledger: Ledger, name: str, phase: str, rho: float, **more: Any) -> None:
    config = {"method": more["method"], "optim": {"rho": rho}, "train": {"epochs": EPOCHS}}
    ledger.write("begin", run=name, phase=phase, config=config, **{"suggested": None, "replicate": None, **more})


def epochs(ledger: Ledger, name: str, curve: list[float], rho: float, gap: float = 0.05) -> None:
    for e, value in enumerate(curve, 1):
        metrics = {"val/accuracy": value, "val/loss": 1 - value + gap * e, "train/loss": 1 - value, "sam/rho": rho}
        metrics |= {"train/accuracy": value + gap / 10 * e, "cost/gradients": 100.0 * e}
        ledger.write("epoch", run=name, epoch=e, metrics=metrics)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return ledger_of(tmp_path_factory.mktemp("figures") / "made")


@pytest.fixture(scope="module")
def drawn(study: Study) -> dict[str, Figure]:
    seen = looks(study, None)
    return {name: figure for name, draw in DRAW.items() if (figure := draw(study, None, seen))}


def data(part: Any) -> list[Mapping[str, Any]]:
    """All rows of a specification."""
    if isinstance(part, dict):
        own = part["data"]["values"] if "data" in part else []
        return [*own, *(row for key, value in part.items() if key != "data" for row in data(value))]
    return [row for item in part for row in data(item)] if isinstance(part, list) else []


def test_all_are_drawn_and_saved(drawn: dict[str, Figure], tmp_path: Path) -> None:
    assert list(drawn) == list(DRAW)
    for figure in drawn.values():
        assert figure.text
        assert figure.caption.endswith(".")
        saved = save(figure, tmp_path)
        assert len(saved.stills) == len(figure.panels)
        for kind in ("svg", "png", "csv"):
            assert (tmp_path / f"{figure.name}.{kind}").stat().st_size > 100
        with open(tmp_path / f"{figure.name}.csv", newline="", encoding="utf-8") as file:
            assert {len(row) for row in csv.reader(file)} == {len(figure.head)}


def test_nothing_to_show(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="made", kind="compare")
        begin(ledger, "one", "final", 0.1, arm="sam", method="sam", radius_policy="fixed")
    study = read(tmp_path)
    assert [draw(study, None, looks(study, None)) for draw in DRAW.values()] == [None] * len(DRAW)


def test_whatever_belongs_to_an_arm_can_be_switched_off(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        if name != "parallel":  # whose axes stay
            assert {row["arm"] for panel in figure.panels for row in data(panel)} <= set(ARMS), name


def test_the_plateau_is_shaded_and_said(study: Study, drawn: dict[str, Figure]) -> None:
    sam, tanh = drawn["sensitivity"].panels
    assert (sam["title"], tanh["title"]) == ("sam", "bisam-tanh")
    (shaded,) = [layer for layer in tanh["layer"] if layer["mark"] == "rect"]
    (at,) = shaded["data"]["values"]
    assert at["rho"] < 0.35 < at["to"]
    assert f"any ρ in [{at['rho']:.2g}, {at['to']:.2g}] is within noise" in str(tanh)
    (best,) = [row for row in data(tanh) if row.get("outcome") == "completed" and star(tanh, row)]
    values = {run.name: run.value("final/val_accuracy") for run in study.of(arm="bisam_tanh searched", phase="search")}
    assert values[best["run"]] == max(value for value in values.values() if math.isfinite(value))
    early = [row for row in data(sam) if str(row.get("outcome")).startswith("pruned")]
    assert len(early) == 5
    ends = [row for row in data(sam) if row["arm"] == "lets-sam"]
    assert [row["rho"] for row in ends] == [0.2, 0.25]
    assert ends[0]["to"] == pytest.approx(0.3)


def star(panel: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    stars = [part for part in panel["layer"] if isinstance(part["mark"], dict) and part["mark"].get("size") == 220]
    return any(row in part["data"]["values"] for part in stars)


def test_a_line_per_trial_across_all_parameters(drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["parallel"].panels
    points = [row for row in panel["layer"][1]["data"]["values"] if row["run"] == "bisam_tanh-searched-000"]
    assert [point["axis"] for point in points] == [0, 1, 2, 3]
    assert all(0 <= point["y"] <= 1 for point in points)
    assert points[2]["y"] == 0  # the first choice of α
    runs = {row["run"]: row for row in panel["layer"][1]["data"]["values"]}
    assert len(runs) == 16
    assert sum(not row["done"] for row in runs.values()) == 5
    assert list(runs.values())[-1]["good"] == 1  # the best is drawn last, on top


def test_a_panel_per_family_of_many_arms(study: Study) -> None:
    extra = {f"more {i}": Look("sam", "#000000", "fixed") for i in range(2)}
    for arm in extra:
        for name in [run.name for run in study.of(arm="sam", phase="final")]:
            run = study.runs[name]
            study.runs[f"{arm} {name}"] = replace(run, name=f"{arm} {name}", begin={**run.begin, "arm": arm})
    seen = {**looks(study, None), **extra}
    figure = fig_gap.gap(study, None, seen)
    assert figure is not None
    assert [panel["title"] for panel in figure.panels] == ["sam", "bisam-tanh"]
    assert "sgd" in {row["arm"] for row in data(figure.panels[1])}
    for name in [name for name in study.runs if name.startswith("more")]:
        del study.runs[name]


def test_of_training_no_other_score_than_the_accuracy_is_known(study: Study) -> None:
    whole, other = (
        fig_gap.gap(
            replace(study, header={**study.header, "config": {"data": {"name": name}}}), None, looks(study, None)
        )
        for name in ("glue/mrpc", "glue/cola")
    )
    assert whole is not None
    assert other is not None
    assert (len(whole.panels), len(other.panels)) == (2, 1)
    assert [name for name in whole.head if name not in other.head] == [
        "accuracy", "accuracy_least", "accuracy_most"
    ]  # fmt: skip
    assert len(other.rows[0]) == len(other.head)


def test_gaps_of_the_kept_runs(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="made", kind="compare")
        for r, s, best, gap in ((0, 0, 0.8, 0.9), (0, 1, 0.9, 0.1), (1, 0, 0.7, 0.3)):
            begin(ledger, f"{r}{s}", "final", 0.1, arm="sam", method="sam", replicate=r, restart=s)
            epochs(ledger, f"{r}{s}", [best] * (3 - r), 0.1, gap)
            ledger.write("end", run=f"{r}{s}", outcome="completed", epoch=3, metrics={"final/val_accuracy": best})
    first, second = gaps(read(tmp_path), "sam")  # two epochs are in both
    assert (second.epoch, second.n) == (2, 2)
    assert (first.loss, first.loss_least, first.loss_most) == pytest.approx((0.2, 0.1, 0.3))
    assert (second.accuracy, second.accuracy_least, second.accuracy_most) == pytest.approx((0.04, 0.02, 0.06))
    assert [gap.loss for gap in gaps(read(tmp_path), "sam", ["00"])] == pytest.approx([0.9, 1.8, 2.7])
    assert gaps(read(tmp_path), "asam") == []


def pixels(url: str) -> np.ndarray:
    """The palette's indices of a bitmap, as a reader of PNG sees them, the last row at the bottom."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_a_landscape_in_steps() -> None:
    last = fig_landscape.FINE - 1
    rising = pixels(bitmap([[0.0, 1.0, 4.0]] * 3, [0.5, 2.0]))
    assert rising.shape == (last + 1, last + 1)
    assert (np.diff(rising.astype(int), axis=0) == 0).all()
    borders = np.flatnonzero(np.diff(rising[0].astype(int))) / last
    assert borders == pytest.approx([0.25, 2 / 3], abs=0.01)  # where the loss, linear in between, crosses them
    upward = pixels(bitmap([[0.0] * 3, [1.0] * 3, [math.nan] * 3], [0.5, 2.0]))
    assert (upward[-1, 0], upward[last // 2, 0], upward[0, 0]) == (0, 1, 2)


def test_borders_in_equal_factors() -> None:
    borders = steps([1.0, *[2.0] * 8, 128.0, 1e9])
    assert borders == pytest.approx([2.0**k for k in range(1, 8)])


def test_curvature_is_sorted_flat_first(drawn: dict[str, Figure]) -> None:
    order = [arm for arm, *_ in drawn["eigenvalue"].rows]
    assert order[0] == "bisam_tanh searched"
    assert order[-1] == "sgd"
    assert len(order) == 3 * len(ARMS)


def test_two_parameters_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="made", kind="search", space=None)
        for i in range(12):
            point = {"optim.lr": float(rng.uniform(0.01, 0.1)), "lets.lr": float(rng.uniform(0.01, 0.1)), "optim.mu": i}
            common = {"arm": "lets searched", "method": "lets-sam", "radius_policy": "searched"}
            begin(ledger, f"t{i}", "search", 0.1, suggested=point, **common)
            epochs(ledger, f"t{i}", [0.5, 0.8 + point["optim.lr"]], 0.1)
            done = {"final/val_accuracy": 0.8 + point["optim.lr"]}
            ledger.write("end", run=f"t{i}", outcome="completed", epoch=2, metrics=done)
    study = read(tmp_path)
    bars, lines = (DRAW[name](study, None, looks(study, None)) for name in ("importance", "parallel"))
    assert bars is not None
    assert lines is not None
    assert {row["key"] for row in data(bars.panels[0])} == {"optim.lr", "lets.lr", "mu"}
    assert "optim.lr 0.0" in lines.text
    assert [row["label"] for row in data(lines.panels[0]["layer"][-3:])] == ["optim.lr", "lets.lr", "mu", "accuracy"]
