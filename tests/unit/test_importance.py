"""Which parameters matter, on searches whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bisam_ray.study import importance as module
from bisam_ray.study.importance import columns_of, importance, resampled
from bisam_ray.study.ledger import Ledger, Study, read

ARM = "bisam_tanh searched"
SPACE = {
    "name": "bisam_tanh",
    "fix": {"method": "bisam-tanh"},
    "search": {
        "optim.rho": {"log": [0.02, 2.0]},
        "optim.mu": {"log": [1, 30]},
        "optim.alpha": {"choice": [0.05, 0.1, 0.2]},
    },
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLED", 12)


def of(directory: Path, points: Sequence[Mapping[str, Any]], values: Sequence[float], space: Any = SPACE) -> Study:
    with Ledger(directory) as ledger:
        ledger.write("study", study="made", kind="search", space=[space] if space else None)
        for i, (point, value) in enumerate(zip(points, values, strict=True)):
            ledger.write("begin", run=f"t{i}", arm=ARM, phase="search", suggested=dict(point), config={})
            ledger.write("end", run=f"t{i}", outcome="completed", epoch=1, metrics={"final/val_accuracy": float(value)})
        ledger.write("begin", run="stopped", arm=ARM, phase="search", suggested={"optim.rho": 0.1}, config={})
        ledger.write("epoch", run="stopped", epoch=1, metrics={"val/accuracy": 0.1})
        ledger.write("end", run="stopped", outcome="pruned", epoch=1, metrics={})
    return read(directory)


def points_of(n: int, seed: int = 0) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    rho, mu = np.exp(rng.uniform(math.log(0.02), math.log(2), n)), np.exp(rng.uniform(0, math.log(30), n))
    return [
        {"optim.rho": float(r), "optim.mu": float(m), "optim.alpha": float(rng.choice([0.05, 0.1, 0.2]))}
        for r, m in zip(rho, mu, strict=True)
    ]


def test_the_one_that_matters_comes_first(tmp_path: Path) -> None:
    points, rng = points_of(20), np.random.default_rng(1)
    values = [0.88 - 0.03 * math.log(p["optim.rho"] / 0.2) ** 2 + rng.normal(0, 0.01) for p in points]
    found = importance(of(tmp_path, points, values), ARM)
    first, *others = found.shares
    assert (found.n, first.key, first.shown) == (20, "optim.rho", True)
    assert first.value > 0.6
    assert not any(share.shown for share in others)
    for share in found.shares:
        assert 0 <= share.low <= share.value <= share.high <= 1
        assert 0 <= share.chance <= share.most <= 1
    assert sum(share.value for share in found.shares) <= 1 + 1e-9
    assert found.sentence.startswith("Shown to matter: optim.rho ")
    assert found == importance(of(tmp_path / "again", points, values), ARM)


def test_chance_is_rarely_shown() -> None:
    rng = np.random.default_rng(5)
    shown = 0
    for _ in range(6):
        columns = [(key, rng.random(16).tolist(), 0) for key in "ab"]
        shown += sum(share.shown for share in resampled(columns, rng.normal(size=16).tolist()))
    assert shown <= 3  # of 12


def test_ranges_count_on_their_own_scale(tmp_path: Path) -> None:
    points = [{"optim.rho": 0.2, "optim.mu": 30.0, "optim.alpha": 0.1}, {**points_of(1)[0], "optim.alpha": 0.05}]
    study = of(tmp_path, points, [0.8, 0.9])
    rho, mu, alpha = columns_of(study, ARM, study.of(outcome="completed"))
    assert (rho[1][0], mu[1][0]) == (pytest.approx(0.5), 1.0)
    assert (alpha[1], alpha[2]) == ([0, 1], 2)


def test_without_a_space_the_values_tell_the_range(tmp_path: Path) -> None:
    points = [{"a": 0.01, "b": 1, "c": "x"}, {"a": 0.1, "b": 2, "c": "y"}, {"a": 1.0, "b": 3, "c": "x"}]
    study = of(tmp_path, points, [0.8, 0.9, 0.85], space=None)
    a, b, c = columns_of(study, ARM, study.of(outcome="completed"))
    assert a[1] == pytest.approx([0, 0.5, 1])
    assert b[1] == pytest.approx([0, 0.5, 1])
    assert c[1:] == ([0, 1, 0], 2)


def test_a_parameter_that_some_trials_lack_is_left_out(tmp_path: Path) -> None:
    points = points_of(3)
    del points[1]["optim.mu"]
    study = of(tmp_path, points, [0.8, 0.9, 0.85])
    assert [key for key, *_ in columns_of(study, ARM, study.of(outcome="completed"))] == ["optim.rho", "optim.alpha"]


@pytest.mark.parametrize(
    ("n", "keys", "same", "reason"),
    [
        (7, 3, False, "7 full-length trials: too few to tell what matters, which takes 8."),
        (9, 1, False, "optim.rho alone was searched in every trial: there is nothing to compare."),
        (9, 3, True, "All 9 full-length trials have the same accuracy."),
    ],
)
def test_why_there_is_none(n: int, keys: int, same: bool, reason: str, tmp_path: Path) -> None:
    points = [dict(list(point.items())[:keys]) for point in points_of(n)]
    found = importance(of(tmp_path, points, [0.8 if same else 0.8 + 0.01 * i for i in range(n)]), ARM)
    assert (found.shares, found.sentence) == ([], reason)
