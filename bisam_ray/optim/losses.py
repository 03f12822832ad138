"""The losses of a step: the cross entropy that is minimised, the lower bounds of the 0-1 loss that are ascended.

With logits f(x) ∈ R^K and margins F_j = f_j − f_y (so F_y = 0, and an example is misclassified iff max_j F_j > 0):

    0-1 loss        1[max_j F_j > 0]
    BiSAM bound     Q_{φ,µ} = (1/µ) log Σ_j exp(µ φ(F_j)) − (log K)/µ   ≤   max_j φ(F_j)   ≤   0-1 loss
    tanh            φ(x) = tanh(αx)
    log             φ(x) = 1 − log(1 + e^{γ−x}),   γ = log(e − 1)

Source: W. Xie, F. Latorre, K. Antonakopoulos, T. Pethick, V. Cevher, "Improving SAM Requires Rethinking its
Optimization Formulation", 2024.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Phi = Literal["tanh", "log"]
Reduction = Literal["mean", "none"]

GAMMA = math.log(math.e - 1)  # makes φ_log(0) = 0
DEFAULT_MU = {"tanh": 10.0, "log": 1.0}


def cross_entropy(
    logits: Tensor, target: Tensor, label_smoothing: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Cross entropy with label smoothing: the loss every method descends.

        L = −Σ_j t_j log softmax(f)_j,   t = (1 − s)·onehot(y) + s/K

    Args:
        logits: (N, K) floating point.
        target: (N,) class indices, int64.
        label_smoothing: s in [0, 1), PyTorch's convention (mass s/K on every class). Code that spreads s over the
            K − 1 wrong classes is matched by s·K/(K − 1).
        reduction: "mean" over the examples, or "none".

    Returns:
        A scalar, or (N,) with reduction="none".
    """
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction=reduction)


def lower_bound(
    logits: Tensor,
    target: Tensor,
    phi: Phi = "tanh",
    mu: float | None = None,
    alpha: float = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """BiSAM's smooth lower bound of the 0-1 loss: the objective of the ascent step.

        Q = (1/µ) log Σ_{j=1..K} exp(µ φ(f_j − f_y)) − (log K)/µ

    The constant makes Q a true lower bound, for every µ > 0; it does not change the gradient. An example that is
    already misclassified has φ' → 0: the perturbation is spent on the examples that are still right.

    Args:
        logits: (N, K) floating point; not modified.
        target: (N,) class indices, int64.
        phi: "tanh" or "log" (see the module's docstring).
        mu: µ > 0, sharpness of the soft maximum; None: 10 for tanh, 1 for log. With tanh and µα = 1 the ascent
            direction is close to SAM's.
        alpha: α > 0, slope of tanh; unused by "log".
        reduction: "mean" over the examples, or "none".

    Returns:
        A scalar, or (N,) with reduction="none"; ≤ the 0-1 loss of each example.

    Raises:
        ValueError: unknown phi, or mu or alpha not positive.

    Example:
        >>> import torch
        >>> lower_bound(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), phi="log").item() <= 0
        True

    Source: Xie et al., 2024 (see the module's docstring).
    """
    if phi not in DEFAULT_MU:
        raise ValueError(f"phi={phi!r}: expected one of {', '.join(DEFAULT_MU)}")
    mu = DEFAULT_MU[phi] if mu is None else mu
    if mu <= 0 or alpha <= 0:
        raise ValueError(f"mu={mu}, alpha={alpha}: both must be positive")
    classes = logits.shape[-1]
    margins = logits - logits.gather(-1, target.unsqueeze(-1))
    # φ_log(x) = 1 − log(1 + e^{γ−x}) = 1 + logsigmoid(x − γ), without overflow; a constant added to all logits is
    # nothing to a cross entropy, so the 1 is left out
    squashed = torch.tanh(margins.mul_(alpha)) if phi == "tanh" else F.logsigmoid(margins.sub_(GAMMA))
    # φ(F_y) = φ(0) = 0: log Σ_j exp(µφ(F_j)) is the cross entropy of the logits µφ(F); one fused kernel, whose class
    # weights take care of 1/µ and of the mean. Ten small kernels would cost as much as a layer of a small network
    share = 1 / mu if reduction == "none" else 1 / (mu * len(target))
    weight = logits.new_full((classes,), share)
    reduced = "none" if reduction == "none" else "sum"
    value = F.cross_entropy(squashed if mu == 1 else mu * squashed, target, weight, reduction=reduced)
    return value - math.log(classes) / mu
