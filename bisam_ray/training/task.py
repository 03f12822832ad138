"""What is learned: from what a network says and what is true to losses and scores.

The training loop, and all that knows of sharpness, asks nothing else of a task; what a batch holds is the network's
business. A task belongs to the data set, which names it.

    Classification    logits (N, K), classes y (N,)
    Regression        numbers (N, 1), targets y (N,) floating point
    Translation       logits (N, T, V) for every place of a sentence, tokens y (N, T), PADDED where there is none
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Optim
from ..optim.losses import cross_entropy, lower_bound
from ..optim.step import Losses

if TYPE_CHECKING:
    from .data import Split

PADDED = -100  # a target that is none; PyTorch's own number for it
LARGEST = 1 << 24  # numbers in the inputs of one piece of an evaluation
CORRELATIONS = ("matthews", "pearson", "spearman")
OF_A_TOKEN = 1024  # as many as a network makes of it, about

Score = Callable[[Tensor, Tensor], float]  # of predictions and targets (N,), in [0, 1] or [−1, 1]


@dataclass(frozen=True)
class Evaluation:
    """Loss and score of one split, and the score of its even- and odd-numbered halves.

    `accuracy` is the score that decides: the task's own where that is not the accuracy. `more`: all but the accuracy,
    by their names.
    """

    loss: float
    accuracy: float
    halves: tuple[float, float]
    more: dict[str, float] = field(default_factory=dict)


def mean_evaluation(found: list[Evaluation]) -> Evaluation:
    even, odd = (fmean(e.halves[half] for e in found) for half in (0, 1))
    more = {name: fmean(e.more[name] for e in found) for name in found[0].more}
    return Evaluation(fmean(e.loss for e in found), fmean(e.accuracy for e in found), (even, odd), more)


def accuracy(found: Tensor, y: Tensor) -> float:
    return (found == y).double().mean().item()


class Classification:
    """Cross entropy, and BiSAM's bounds of the 0-1 loss.

    Args:
        scores: by name, of predicted and true classes; the first one decides. The accuracy is first if it is one.
    """

    def __init__(self, **scores: Score) -> None:
        self.scores: dict[str, Score] = scores or {"accuracy": accuracy}

    @property
    def score(self) -> str:
        """The name of what decides."""
        return next(iter(self.scores))

    def losses(self, optim: Optim, out: Tensor, y: Tensor, learned: dict[str, Tensor] | None = None) -> Losses:
        """What the method ascends and what it descends, from one forward pass; `learned`: µ and α, if LETS learns
        them."""
        descent = self.descent(out, y, optim.label_smoothing)

        def examples() -> Tensor:
            return self.each(out, y, optim.label_smoothing)

        phi = optim.objective
        if phi == "none" or phi == "cross_entropy":
            return Losses(descent, descent, examples)
        learned = learned or {}
        mu, alpha = learned.get("mu", optim.mu), learned.get("alpha", optim.alpha or 0.1)
        return Losses(lambda: self.bound(out, y, phi=phi, mu=mu, alpha=alpha), descent, examples)

    def descent(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of a batch."""
        return cross_entropy(out, y, smoothing)

    def each(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of every example, (N,)."""
        return cross_entropy(out, y, smoothing, reduction="none")

    def bound(self, out: Tensor, y: Tensor, **parameters: Any) -> Tensor:
        """A lower bound of the 0-1 loss of a batch; the parameters are those of `lower_bound`."""
        return lower_bound(out, y, **parameters)

    def agreement(self, out: Tensor, y: Tensor) -> Tensor:
        """How much of a batch is right, a 0-d tensor that nobody waits for."""
        return (out.argmax(-1) == y).float().mean()

    def error(self, out: Tensor, y: Tensor) -> Tensor:
        """The share of a batch that is wrong."""
        return (out.argmax(-1) != y).double().mean()

    def predictions(self, out: Tensor) -> Tensor:
        return out.argmax(-1)

    @torch.no_grad()
    def assess(self, model: nn.Module, split: Split) -> Evaluation:
        """Loss and scores of one split, in evaluation mode; in pieces that fit the memory."""
        was_training = model.training
        model.eval()
        sorted_split, back = by_length(split)
        out = torch.cat([model(part.inputs) for part in sorted_split.batches(piece(split))])[back]
        model.train(was_training)
        found = self.predictions(out)
        score = self.scores[self.score]
        return Evaluation(
            self.descent(out.double(), split.y).item(),
            score(found, split.y),
            (score(found[::2], split.y[::2]), score(found[1::2], split.y[1::2])),
            {name: other(found, split.y) for name, other in self.scores.items() if name != "accuracy"},
        )

    def standard_error(self, score: float, examples: int) -> float:
        """Of a score on so many examples, as that of a correlation or of a share: exact of the accuracy only."""
        if self.score in CORRELATIONS:
            return (1 - score * score) / math.sqrt(examples)
        return math.sqrt(max(0.0, score * (1 - score)) / examples)


class Regression(Classification):
    """The squared error. There is no 0-1 loss to be bounded, hence no BiSAM."""

    def descent(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        return F.mse_loss(out.squeeze(-1), y.to(out.dtype))

    def each(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        return F.mse_loss(out.squeeze(-1), y.to(out.dtype), reduction="none")

    def bound(self, out: Tensor, y: Tensor, **parameters: Any) -> Tensor:
        raise TypeError("a regression has no 0-1 loss")

    def agreement(self, out: Tensor, y: Tensor) -> Tensor:
        """The correlation with the targets; 0 where either is constant."""
        both = torch.stack([out.squeeze(-1).float(), y.float()])
        both = both - both.mean(dim=1, keepdim=True)
        return (both[0] @ both[1]) / (both[0].norm() * both[1].norm()).clamp_min(1e-12)

    def error(self, out: Tensor, y: Tensor) -> Tensor:
        """What is missing to a correlation of 1."""
        return 1 - self.agreement(out, y).double()

    def predictions(self, out: Tensor) -> Tensor:
        return out.squeeze(-1)


class Translation(Classification):
    """Token by token: every place of a sentence is classified into the vocabulary; its padding counts for nothing.

    A batch's loss is the mean over its tokens. Scored by BLEU / 100 of beam search.

    Args:
        tokens: of both languages.
        beam: width of the search.
    """

    def __init__(self, tokens: Any, beam: int) -> None:
        super().__init__(bleu=accuracy)
        self.tokens, self.beam = tokens, beam

    def descent(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        return cross_entropy(out.flatten(0, 1), aligned(y, out).flatten(), smoothing)

    def each(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean over a sentence's tokens."""
        y = aligned(y, out)
        found = cross_entropy(out.flatten(0, 1), y.flatten(), smoothing, reduction="none").view_as(y)
        return found.sum(1) / (y != PADDED).sum(1).clamp_min(1)

    def bound(self, out: Tensor, y: Tensor, **parameters: Any) -> Tensor:
        y = aligned(y, out)
        there = y.flatten() != PADDED
        found = lower_bound(out.flatten(0, 1), y.flatten().clamp_min(0), **parameters, reduction="none")
        return (found * there).sum() / there.sum()

    def agreement(self, out: Tensor, y: Tensor) -> Tensor:
        y = aligned(y, out)
        there = y != PADDED
        return ((out.argmax(-1) == y) & there).sum() / there.sum()

    def error(self, out: Tensor, y: Tensor) -> Tensor:
        """The share of the tokens that is wrong."""
        return 1 - self.agreement(out, y).double()

    @torch.no_grad()
    def assess(self, model: nn.Module, split: Split) -> Evaluation:
        from .metrics import bleu
        from .translation import translate

        was_training = model.training
        model.eval()
        total, count = torch.zeros((), dtype=torch.float64, device=split.y.device), 0
        hypotheses, references = list[str](), list[str]()
        sorted_split, back = by_length(split)
        for part in sorted_split.batches(piece(split)):
            there = int((part.y != PADDED).sum())
            total += self.descent(model(part.inputs).double(), part.y) * there
            count += there
            hypotheses += map(self.tokens.decode, translate(model, part.inputs, self.beam, self.tokens))
            references += (self.tokens.decode([t for t in row if t != PADDED]) for row in part.y.tolist())
        model.train(was_training)
        hypotheses, references = ([found[at] for at in back.tolist()] for found in (hypotheses, references))
        even, odd = (bleu(hypotheses[half::2], references[half::2]) / 100 for half in (0, 1))
        whole = bleu(hypotheses, references) / 100
        return Evaluation(total.item() / count, whole, (even, odd), {"bleu": whole})


def aligned(y: Tensor, out: Tensor) -> Tensor:
    """Targets (N, longest of all) for the places (N, T) of a batch, which is as long as its own longest sentence."""
    return F.pad(y, (0, out.shape[1] - y.shape[1]), value=PADDED)


def by_length(split: Split) -> tuple[Split, Tensor]:
    """Texts of like length beside each other, which need little padding, and the way back; others as they are."""
    lengths: Tensor | None = getattr(split.x, "lengths", None)
    if lengths is None:
        return split, torch.arange(len(split.y), device=split.y.device)
    order = lengths.argsort(stable=True)
    return split[order], order.argsort().to(split.y.device)


def piece(split: Split) -> int:
    """How many examples are evaluated at once."""
    of_one = math.prod(split.shape) * (OF_A_TOKEN if split.text else 1)
    return min(1024, max(16, LARGEST // of_one))
