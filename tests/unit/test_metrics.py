"""Scores equal those of scikit-learn and scipy, and are 0 where these have none."""

import math

import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from bisam_ray.config import ConfigError
from bisam_ray.training import metrics


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_classes_are_those_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(2, 1, generator=generator)
    y, found = (torch.rand(2, 3 + 7 * seed, generator=generator) < share).long()
    assert metrics.accuracy(found, y) == pytest.approx(reference.accuracy_score(y, found))
    assert metrics.f1(found, y) == pytest.approx(reference.f1_score(y, found, zero_division=0))
    assert metrics.matthews(found, y) == pytest.approx(reference.matthews_corrcoef(y, found), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_correlations_are_those_of_scipy(seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 6, (10 + 5 * seed,), generator=generator).float()  # many equals
    found = (y + torch.randn(len(y), generator=generator)).round(decimals=1)
    assert metrics.pearson(found, y) == pytest.approx(stats.pearsonr(found.double(), y.double()).statistic)
    assert metrics.spearman(found, y) == pytest.approx(stats.spearmanr(found, y).statistic)


def test_what_is_not_defined_is_zero():
    some, none = torch.tensor([0.0, 1, 1, 0, 0, 1, 0]), torch.zeros(7)
    same = torch.full((7,), 0.1, dtype=torch.float64)  # whose mean is not exactly 0.1
    for score in (metrics.pearson, metrics.spearman, metrics.matthews):
        assert score(same, some) == score(some, same) == score(same, same) == 0.0
        assert score(some[:0], some[:0]) == 0.0
        assert score(torch.tensor([0.0, math.nan, 1, 0, 0, 1, 1]), some) == 0.0
    assert metrics.f1(none, none) == metrics.f1(none, some) == 0.0


def test_bleu_is_sacrebleu_s(monkeypatch):
    assert metrics.bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
    assert metrics.bleu(["a b c d"], ["e f g h"]) < 20
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"needs sacrebleu.*\[text\]"):
        metrics.bleu(["a"], ["a"])
