"""The curve of accuracy over the radius and its plateau, on searches whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.sensitivity import expected_loss, fitted, sensitivities, sensitivity

ARM, S = "rho searched", 0.017
TRUTH: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # loss by the distance of ln ρ from the optimum
    "hump": lambda t: 0.02 * (t / 0.7) ** 2,
    "wide": lambda t: 0.02 * (t / 2) ** 2,
    "collapse": lambda t: np.where(t < 0, 0.02 * (t / 2) ** 2, 0) + 0.5 / (1 + np.exp((1.2 - t) * 5)),
}


def of(directory: Path, rhos: np.ndarray, values: np.ndarray, examples: int = 350) -> Study:
    """The ledger of a search, with trials that were stopped early and re-runs on other draws among the rest."""
    with Ledger(directory) as ledger:
        ledger.write("study", study="made", kind="search", protocol={"val_examples": examples})
        for i, (rho, value) in enumerate(zip(rhos, values, strict=True)):
            trial(ledger, f"t{i}", float(rho), float(value), control=i == 0)
        trial(ledger, "stopped", 0.2, 0.3, outcome="pruned")
        trial(ledger, "lost", 0.2, 0.3, outcome="diverged")
        trial(ledger, "again", 0.2, 0.3, phase="final", replicate=0)
    return read(directory)


def trial(ledger: Ledger, name: str, rho: float, value: float, outcome: str = "completed", **more: object) -> None:
    begin = {"phase": "search", "suggested": {"optim.rho": rho, "optim.mu": 1.0}, "method": "sam", **more}
    ledger.write("begin", run=name, arm=ARM, config={"optim": {"rho": rho}}, **begin)
    ledger.write("epoch", run=name, epoch=1, metrics={"val/accuracy": value})
    metrics = {"final/val_accuracy": value} if outcome == "completed" else {}
    ledger.write("end", run=name, outcome=outcome, epoch=1, metrics=metrics)


def simulated(shape: str, seed: int, n: int = 16) -> tuple[np.ndarray, np.ndarray, float]:
    """ln ρ − optimum of n trials, their values, and the optimum."""
    rng = np.random.default_rng(seed)
    optimum, x = rng.uniform(math.log(0.08), math.log(0.6)), rng.uniform(math.log(0.02), math.log(2), n)
    return x - optimum, 0.88 - TRUTH[shape](x - optimum) + rng.normal(0, S, n), optimum


@pytest.mark.parametrize("shape", TRUTH)
def test_the_plateau_is_one(shape: str) -> None:
    """Its radii lose less than 2 s, and the best is among them; the docstring has the numbers of more searches."""
    good = has = 0
    for seed in range(12):
        t, y, optimum = simulated(shape, seed)
        _, found, noise, _ = fitted(np.exp(t + optimum).tolist(), y.tolist(), S)
        assert noise == S
        assert found is not None
        inside = np.linspace(math.log(found.low) - optimum, math.log(found.high) - optimum, 50)
        tried = np.linspace(t.min(), t.max(), 400)
        best = TRUTH[shape](tried).min()
        good += bool((TRUTH[shape](inside) - best < 2 * S).all())
        has += bool(inside[0] - 0.1 <= tried[TRUTH[shape](tried) <= best + 1e-4].max())
        has -= bool(inside[-1] + 0.1 < tried[TRUTH[shape](tried) <= best + 1e-4].min())
    assert good >= 10
    assert has >= 10


def test_a_flat_curve_is_all_plateau(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = sensitivity(of(tmp_path, np.geomspace(0.02, 2, 12), 0.88 + rng.normal(0, S, 12)), ARM, "sam")
    assert found.plateau is not None
    assert found.plateau.open_low
    assert found.plateau.open_high
    assert (found.plateau.low, found.plateau.high) == pytest.approx((0.02, 2))
    assert "0.02 (the smallest tried), 2 (the largest tried)" in found.sentence
    assert found.others == ("optim.mu",)


def test_only_whole_trials_of_the_search_count(tmp_path: Path) -> None:
    t, y, optimum = simulated("hump", 1)
    found = sensitivity(of(tmp_path, np.exp(t + optimum), y), ARM, "sam")
    assert found.n == 16  # the control among them
    assert found.curve == fitted(np.exp(t + optimum).tolist(), y.tolist(), found.noise)[0]
    assert found.noise == pytest.approx(math.sqrt(np.mean(y * (1 - y)) / 350))
    middle = [point for point in found.curve if 0.15 < point.rho < 0.3]
    assert min(point.low for point in middle) > 0.7  # not drawn to the .3 of what was stopped


def test_less_is_known_where_nothing_was_tried() -> None:
    rhos = [*np.geomspace(0.02, 0.06, 6), *np.geomspace(0.8, 2, 6)]
    rng = np.random.default_rng(0)
    curve = fitted(rhos, (0.85 + rng.normal(0, S, 12)).tolist(), S)[0]
    width = {round(math.log(p.rho / 0.02) / math.log(100), 1): p.high - p.low for p in curve}
    assert width[0.5] > 1.5 * max(width[0.1], width[0.9])


def test_how_bad_bad_is_does_not_matter() -> None:
    rhos = np.geomspace(0.02, 2, 12).tolist()
    mild, wild = [*[0.85, 0.86, 0.87, 0.88, 0.885, 0.88, 0.87, 0.86, 0.8], *[0.6] * 3], [0.1] * 3
    assert fitted(rhos, mild, S) == fitted(rhos, [*mild[:9], *wild], S)


def test_noise_that_is_not_known_is_fitted() -> None:
    t, y, optimum = simulated("hump", 2, n=40)
    assert fitted(np.exp(t + optimum).tolist(), y.tolist(), None)[2] == pytest.approx(S, rel=0.4)


def test_expected_loss_of_two_equals() -> None:
    assert expected_loss(np.zeros(2), np.eye(2)) == pytest.approx([1 / math.sqrt(math.pi)] * 2, abs=0.06)
    assert expected_loss(np.array([0.0, 9.0]), np.eye(2)) == pytest.approx([9, 0], abs=0.15)


@pytest.mark.parametrize(
    ("rhos", "values", "reason"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], [0.8] * 5, "5 full-length trials: too few for a curve over ρ, which takes 6."),
        ([0.10, 0.11, 0.12, 0.13, 0.14, 0.15], [0.8] * 6, "between 0.1 and 0.15: too narrow a range."),
    ],
)
def test_why_there_is_none(rhos: list[float], values: list[float], reason: str, tmp_path: Path) -> None:
    found = sensitivity(of(tmp_path, np.array(rhos), np.array(values)), ARM, "sam")
    assert found.sentence.endswith(reason)
    assert (found.curve, found.plateau) == ([], None)


def test_all_alike_and_nothing_known_of_the_noise(tmp_path: Path) -> None:
    found = sensitivity(of(tmp_path, np.geomspace(0.02, 2, 8), np.full(8, 0.8), examples=0), ARM, "sam")
    assert found.sentence == "All 8 full-length trials have the same accuracy, 80.0 %."


def test_each_method_has_its_own(tmp_path: Path) -> None:
    t, y, optimum = simulated("hump", 3)
    study = of(tmp_path, np.exp(t + optimum), y)
    for name, run in list(study.runs.items()):
        begin = {**run.begin, "run": f"b{name}", "method": "asam"}
        begin["suggested"] = {"optim.rho": 10 * run.begin["suggested"]["optim.rho"]}
        study.runs[f"b{name}"] = replace(run, name=f"b{name}", begin=begin)
    sam, asam = sensitivities(study)
    assert (sam.method, asam.method, sam.n, asam.n) == ("sam", "asam", 16, 16)
    assert asam.best == pytest.approx(10 * sam.best, rel=0.2)


def test_no_search_of_the_radius(tmp_path: Path) -> None:
    study = of(tmp_path, np.array([]), np.array([]))
    for run in study.runs.values():
        run.begin["suggested"] = {"optim.lr": 0.1}
    assert sensitivities(study) == []
