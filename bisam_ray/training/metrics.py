"""Scores of text tasks: of predictions and targets (N,), on any device. A score that is not defined is 0.

They are those of scikit-learn and scipy, whose import would cost every worker process seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..config import ConfigError


def accuracy(found: Tensor, y: Tensor) -> float:
    return (found == y).double().mean().item()


def f1(found: Tensor, y: Tensor) -> float:
    """Harmonic mean of precision and recall of class 1: 2·TP / (2·TP + FP + FN), in [0, 1]."""
    predicted, true = found == 1, y == 1
    return ratio(2 * (predicted & true).sum().item(), (predicted.sum() + true.sum()).item())


def matthews(found: Tensor, y: Tensor) -> float:
    """Correlation of predicted and true classes 0 and 1, in [−1, 1]: 0 for guesses, however frequent the classes."""
    return pearson(found, y)


def pearson(found: Tensor, y: Tensor) -> float:
    """Linear correlation, in [−1, 1]."""
    x, y = found.double(), y.double()
    if not len(x):
        return 0.0
    x, y = (part - part.mean() if bool((part != part[0]).any()) else 0 * part for part in (x, y))
    return ratio((x @ y).item(), (x.norm() * y.norm()).item())


def spearman(found: Tensor, y: Tensor) -> float:
    """Correlation of the ranks, in [−1, 1]."""
    return pearson(ranks(found), ranks(y)) if bool(found.isfinite().all()) else 0.0


def ranks(x: Tensor) -> Tensor:
    """(N,) → (N,), from 1; equals have their mean rank."""
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place]


def ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0  # NaN, as of a network that diverged, is not above 0 either


SCORES = {score.__name__: score for score in (accuracy, f1, matthews, pearson, spearman)}


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus, one reference per hypothesis, in [0, 100]: with sacrebleu's own tokens (13a) and smoothing.

    Source: Post, "A Call for Clarity in Reporting BLEU Scores", 2018.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        raise ConfigError("BLEU: needs sacrebleu, which is not installed: pip install '.[text]'") from None
    return float(corpus_bleu(list(hypotheses), [list(references)]).score)
