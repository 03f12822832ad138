"""A search's diagnosis, on ledgers whose truth is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bisam_ray.study import diagnosis
from bisam_ray.study.early import Leaning, leaning, rank_correlation, survival
from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.ranking import by_chance, correlation, larger_share, ranks
from bisam_ray.study.selection import confirmation, judge, pareto, regret, winner

ARM = "rho searched"
SPACE = {"name": "rho", "fix": {"method": "sam"}, "search": {"optim.rho": {"log": [0.02, 2.0]}}}
SETTINGS = {"scheduler": "asha", "grace": 2, "reduction": 3, "rungs": [2], "controls": 2, "confirm": 2, "folds": 1}


class Made:
    """A ledger of runs of four epochs that is written as a search writes it."""

    def __init__(self, directory: Path, kind: str = "search", **header: Any) -> None:
        self.directory, self.ledger = directory, Ledger(directory)
        self.ledger.write("study", study="made", kind=kind, **header)

    def trial(
        self,
        name: str,
        curve: Sequence[float],
        rho: float = 0.1,
        outcome: str = "completed",
        cost: float = 1.0,
        error: float | None = None,
        **more: Any,
    ) -> None:
        begin, stopped = {k: v for k, v in more.items() if k != "stopped"}, more.get("stopped")
        config = {"method": "sam", "optim": {"rho": rho}, "train": {"epochs": 4}}
        begin = {"phase": "search", "suggested": {"optim.rho": rho}, **begin}
        self.ledger.write("begin", run=name, arm=ARM, config=config, **begin)
        for epoch, value in enumerate(curve, 1):
            metrics = {"val/accuracy": value, "cost/gradients": cost * epoch}
            metrics |= {"val/standard_error": error} if error is not None else {}
            self.ledger.write("epoch", run=name, epoch=epoch, metrics=metrics)
        if outcome != "running":
            done = {"final/val_accuracy": curve[-1], "final/test_accuracy": curve[-1] + 0.02}
            metrics = done if outcome == "completed" else {}
            self.ledger.write("end", run=name, outcome=outcome, epoch=len(curve), metrics=metrics, stopped=stopped)

    def again(self, trial: str, values: Sequence[float], outcome: str = "completed") -> None:
        for r, value in enumerate(values):
            more = {"phase": "final", "trial": trial, "replicate": r}
            self.trial(f"{trial}-r{r}", [value] * 4, outcome=outcome, **more)

    def read(self) -> Study:
        self.ledger.close()
        return read(self.directory)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    protocol = {"settings": SETTINGS, "val_examples": 300}
    return Made(tmp_path / "made", space=[SPACE], protocol=protocol)


def crossing(made: Made, stopped_larger: bool = True) -> Study:
    """Eight trials: the larger the radius, the lower at epoch 2 and the higher at the end. Three more were stopped."""
    for i in range(8):
        rho = 0.03 * 1.4**i
        made.trial(f"t{i}", [0.1, 0.5 - 0.01 * i, 0.6, 0.7 + 0.01 * i], rho, control=i in (0, 7), number=i)
    for i in range(3):
        rho = 1.0 + i if stopped_larger else 0.021 + 0.001 * i
        made.trial(f"s{i}", [0.1, 0.3 + 0.01 * i], rho, "pruned", stopped=2)
    return made.read()


def test_survival_counts(made: Made) -> None:
    for i in range(5):
        made.trial(f"t{i}", [0.1, 0.5, 0.6, 0.7])
    made.trial("spared", [0.1, 0.3, 0.4, 0.5], control=True, stopped=2)
    made.trial("late", [0.1, 0.5, 0.6], outcome="diverged")
    for value in (0.2, 0.35):
        made.trial(f"s{value}", [0.1, value], outcome="pruned", stopped=2)
    made.trial("broken", [0.1], outcome="failed")
    rung, end = survival(made.read(), ARM)
    assert (rung.epoch, rung.reached, rung.stopped, rung.went_on, rung.spared) == (2, 9, 2, 7, 1)
    assert rung.cutoff == 0.35
    assert (end.epoch, end.reached, end.went_on, end.last) == (4, 6, 6, True)


def test_ranks_and_their_correlation() -> None:
    assert ranks([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]
    from scipy.stats import mannwhitneyu, spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 40), rng.integers(0, 9, 40)
    found = correlation(x.tolist(), (x + y).tolist())
    assert found.value == pytest.approx(spearmanr(x, x + y).statistic)
    assert found.low < found.value < found.high < 1
    assert larger_share(x.tolist(), y.tolist()) == pytest.approx(mannwhitneyu(x, y).statistic / 1600)
    assert np.isnan(correlation([1, 2, 3, 4], [1, 2, 3, 4]).value)
    assert np.isnan(correlation([1] * 9, list(range(9))).value)
    perfect = correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert perfect.value == 1
    assert perfect.low < 0.2  # five pairs prove little
    one_sided = spearmanr(x, y, alternative="greater").pvalue
    assert by_chance(x.tolist(), y.tolist())[1] == pytest.approx(one_sided, abs=0.04)


def test_interval_of_the_correlation_covers() -> None:
    rng, inside, truth = np.random.default_rng(0), 0, 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal with .6
    for _ in range(400):
        x = rng.standard_normal(20)
        found = correlation(x.tolist(), (0.6 * x + 0.8 * rng.standard_normal(20)).tolist())
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_early_accuracy_against_the_final_one(made: Made) -> None:
    for i in range(12):
        control = i < 6
        end = 0.7 + 0.01 * (5 - i if control else i)  # controls turn round, the others do not
        made.trial(f"t{i}", [0.1, 0.4 + 0.01 * i, 0.5, end], control=control)
    made.trial("pruned", [0.1, 0.9], outcome="pruned", stopped=2)
    (found,) = rank_correlation(made.read(), ARM)
    assert (found.epoch, found.all.n, found.controls.n) == (2, 12, 6)
    assert found.controls.value == pytest.approx(-1)
    assert 0 < found.all.value < 1


def test_too_few_to_tell(made: Made) -> None:
    for i in range(4):
        made.trial(f"t{i}", [0.1, 0.4 + 0.01 * i, 0.5, 0.7 + 0.01 * i])
    told = diagnosis.sentences(made.read(), ARM)
    assert "4 full-length trials: too few to tell whether accuracy at epoch 2 predicts the final one." in told


def test_leaning_to_small_radii(made: Made) -> None:
    found = leaning(crossing(made), ARM)
    assert (found.epoch, found.n, found.longer) == (2, 8, 3)
    assert found.rise == pytest.approx(1)
    assert found.p < 0.01
    assert found.larger == 1
    assert found.leans
    assert found.warning is not None
    assert "leans to small radii" in found.warning
    assert "--grace 3" in found.warning


def test_both_signs_are_needed(made: Made) -> None:
    """Large radii that rise, but of which none was stopped, are no reason to wait."""
    found = leaning(crossing(made, stopped_larger=False), ARM)
    assert found.rise == pytest.approx(1)
    assert found.larger == 0
    assert found.warning is None
    assert not Leaning(2, 5, rise=1.0, p=0.001, larger=1.0).leans  # too few


def test_chance_rarely_leans() -> None:
    rng = np.random.default_rng(0)
    seen = [by_chance(rng.random(10).tolist(), rng.random(10))[1] < 0.1 for _ in range(200)]
    assert 0.05 < np.mean(seen) < 0.16


def test_a_control_that_was_to_be_stopped_wins(made: Made) -> None:
    for i in range(6):
        made.trial(f"t{i}", [0.1, 0.5, 0.6, 0.7 + 0.01 * i])
    made.trial("control", [0.1, 0.2, 0.5, 0.74], control=True, stopped=2)  # third of seven: not among the best third
    first = read(made.directory)
    assert leaning(first, ARM).missed == []
    made.trial("late", [0.1, 0.2, 0.5, 0.8], control=True, stopped=2)
    found = leaning(made.read(), ARM)
    assert [(m.run.name, m.epoch, m.place) for m in found.missed] == [("late", 2, 1)]
    assert found.warning is not None
    assert "late, to be stopped at epoch 2, came 1st of 8" in found.warning


@pytest.mark.parametrize("spread", [0.015, 0.03])
def test_expected_regret_is_calibrated(spread: float) -> None:
    rng, noise, rows = np.random.default_rng(2), 0.018, []
    for _ in range(500):
        theta = rng.normal(0.9, spread, 30)
        y = theta + rng.normal(0, noise, 30)
        best = int(y.argmax())
        shrunken, expected, _ = judge(y.tolist(), noise**2, best, draws=500)
        rows.append((theta.max() - theta[best], expected, theta[best], shrunken, y[best]))
    true, expected, worth, shrunken, raw = np.mean(rows, axis=0)
    assert expected == pytest.approx(true, rel=0.15)
    assert shrunken == pytest.approx(worth, abs=0.0025)
    assert raw - worth > 0.015  # what is hidden without shrinking


def test_a_tail_of_poor_trials_does_not_stop_the_shrinking() -> None:
    """A normal prior alone would leave most of the raw value's bias."""
    rng, noise, rows = np.random.default_rng(2), 0.018, []
    for _ in range(200):
        theta = 0.95 - rng.exponential(0.06, 30)
        y = theta + rng.normal(0, noise, 30)
        best = int(y.argmax())
        rows.append((theta[best], judge(y.tolist(), noise**2, best, draws=100)[0], y[best]))
    worth, shrunken, raw = np.mean(rows, axis=0)
    assert shrunken - worth < 0.5 * (raw - worth)


def test_reruns_lower_the_regret() -> None:
    rng, noise, rows = np.random.default_rng(3), 0.02, []
    for _ in range(300):
        theta = rng.normal(0.9, 0.02, 20)
        y, shift = theta + rng.normal(0, noise, 20), rng.normal(0, 0.05)  # fresh draws are harder, or easier, for all
        among = np.argsort(-y)[:5]
        z = {int(i): float(theta[i] + shift + rng.normal(0, noise / 2)) for i in among}
        best = max(z, key=lambda i: z[i])
        shrunken, expected, _ = judge(y.tolist(), noise**2, best, z, noise**2 / 4, draws=500)
        before = judge(y.tolist(), noise**2, int(among[0]), draws=500)[1]
        rows.append((theta.max() - theta[best], expected, before, theta[best], shrunken))
    true, expected, before, worth, shrunken = np.mean(rows, axis=0)
    assert expected == pytest.approx(true, rel=0.2)
    assert expected < 0.8 * before
    assert shrunken == pytest.approx(worth, abs=0.003)


def test_where_the_noise_comes_from(made: Made) -> None:
    for i in range(6):
        made.trial(f"t{i}", [0.1, 0.2, 0.3, 0.8])
    study = read(made.directory)
    found = regret(study, ARM)
    assert found is not None
    assert found.noise == pytest.approx((0.8 * 0.2 / 300) ** 0.5)
    blind = replace(study, header={**study.header, "protocol": {}})
    assert regret(blind, ARM) is None
    for i in range(6):
        made.trial(f"t{i}", [0.1, 0.2, 0.3, 0.8], error=0.05)
    folds = made.read()
    assert (wide := regret(folds, ARM)) is not None
    assert wide.noise == pytest.approx(0.05)


def test_confirmation(made: Made) -> None:
    for i, value in enumerate([0.80, 0.90, 0.89, 0.70]):
        made.trial(f"t{i}", [0.1, 0.2, 0.3, value])
    made.again("t1", [0.84, 0.86, 0.85])
    assert winner(read(made.directory), ARM).name == "t1"  # type: ignore[union-attr]
    assert confirmation(read(made.directory), ARM).winner is None  # type: ignore[union-attr] # t2 is still to come
    made.again("t2", [0.86, 0.88, 0.87])
    study = made.read()
    found = confirmation(study, ARM)
    assert found is not None
    assert [c.trial.name for c in found.candidates] == ["t2", "t1"]
    assert found.winner is winner(study, ARM) is study.runs["t2"]
    best = found.candidates[0]
    assert (best.selected, best.n) == (0.89, 3)
    assert best.val.value == pytest.approx(0.87)
    assert best.val.high - best.val.value == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert best.test.value == pytest.approx(0.89)
    assert found.regression.value == pytest.approx((0.05 + 0.02) / 2)
    assert found.regression_of_best.value == pytest.approx(0.05)
    assert found.regression.low < 0.035 < found.regression.high
    told = " ".join(diagnosis.sentences(study, ARM))
    assert "On 3 fresh draws the 2 candidates came to 3.5 points less" in told
    assert "t2, which had been 2nd in the search" in told


def test_candidates_are_compared_on_the_same_draws(made: Made) -> None:
    made.trial("t0", [0.1, 0.2, 0.3, 0.9])
    made.trial("t1", [0.1, 0.2, 0.3, 0.8])
    made.again("t0", [0.7, 0.9])
    made.again("t1", [0.75])  # not done with the easy draw yet
    study = made.read()
    found = confirmation(study, ARM)
    assert found is not None
    assert (found.n, found.winner) == (1, study.runs["t1"])


def test_a_candidate_that_diverges_again_cannot_win(made: Made) -> None:
    made.trial("t0", [0.1, 0.2, 0.3, 0.9])
    made.trial("t1", [0.1, 0.2, 0.3, 0.8])
    made.again("t0", [0.95])
    made.trial("t0-r1", [0.3], outcome="diverged", phase="final", trial="t0", replicate=1)
    made.again("t1", [0.7, 0.7])
    study = made.read()
    assert winner(study, ARM) is study.runs["t1"]
    assert [c.lost for c in confirmation(study, ARM).candidates] == [False, True]  # type: ignore[union-attr]
    assert any("t0 failed or diverged" in sentence for sentence in diagnosis.sentences(study, ARM))


def test_pareto(made: Made) -> None:
    for name, value, cost in [
        ("a", 0.7, 1),
        ("b", 0.8, 2),
        ("c", 0.75, 3),
        ("d", 0.8, 4),
        ("e", 0.9, 5),
        ("f", 0.6, 1),
    ]:
        made.trial(name, [0.1, 0.2, 0.3, value], cost=cost)
    made.trial("cheap", [0.99], outcome="pruned", cost=0.1)
    study = made.read()
    assert [run.name for run in pareto(study, ARM)] == ["a", "b", "e"]
    two = {"settings": {**SETTINGS, "objectives": ["accuracy", "cost"], "rungs": []}}
    told = diagnosis.sentences(replace(study, header={**study.header, "protocol": two}), ARM)
    assert told[-1].startswith("3 trials on the front of accuracy and cost: from 70.0 %")


def test_winner_at_the_border(made: Made) -> None:
    made.trial("t0", [0.1, 0.2, 0.3, 0.9], rho=1.98)
    study = made.read()
    assert diagnosis.borders(study, ARM) == ["optim.rho"]
    other = {**SPACE, "name": "other", "search": {"optim.rho": {"log": [0.02, 20.0]}}}
    for space in (SPACE, [SPACE], [other, SPACE]):
        assert diagnosis.borders(replace(study, header={**study.header, "space": space}), ARM) == ["optim.rho"]
    for space in (None, [], [{"name": "old", "unknown": 1}]):
        assert diagnosis.borders(replace(study, header={**study.header, "space": space}), ARM) == []


@pytest.mark.parametrize("header", [{}, {"protocol": {"trials": 6}}, {"protocol": None, "space": None}])
def test_older_studies(tmp_path: Path, header: dict[str, Any]) -> None:
    """No settings, no controls, no epoch of the stop; replicates of a comparison are no re-runs."""
    made = Made(tmp_path / "old", kind="compare", **header)
    assert diagnosis.sentences(read(made.directory), ARM) == []
    for i in range(7):
        made.trial(f"t{i}", [0.1, 0.4 + 0.01 * i, 0.5, 0.7 + 0.01 * i])
    made.trial("s", [0.1, 0.2], outcome="pruned")
    made.trial("r", [0.9] * 4, phase="final", replicate=0)
    made.trial("under way", [0.3], outcome="running")
    study = made.read()
    assert [(rung.epoch, rung.stopped) for rung in survival(study, ARM)] == [(2, 1), (4, 0)]
    assert confirmation(study, ARM) is None
    assert winner(study, ARM) is study.runs["t6"]
    assert 1 <= len(diagnosis.sentences(study, ARM)) <= 8
    assert diagnosis.sentences(study, "nobody") == []
    assert winner(study, "nobody") is None


def test_importing_it_is_cheap() -> None:
    heavy = {"torch", "ray", "mlflow", "optuna", "matplotlib", "numpy", "scipy"}
    code = f"import sys, bisam_ray.study.diagnosis; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
