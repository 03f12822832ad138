"""The losses of a step: the cross entropy that is minimised, the lower bounds of the 0-1 loss that are ascended.

With logits f(x) ∈ R^K and margins F_j = f_j − f_y (so F_y = 0, and an example is misclassified iff max_j F_j > 0):

    0-1 loss        1[max_j F_j > 0]
    BiSAM bound     Q_{φ,µ} = (1/µ) log Σ_j exp(µ φ(F_j)) − (log K)/µ   ≤   max_j φ(F_j)   ≤   0-1 loss
    its gradient    ∂Q/∂f_j = p_j φ'(F_j) for j ≠ y,   ∂Q/∂f_y = −Σ_{j≠y} p_j φ'(F_j),   p = softmax(µ φ(F))

Every φ is non-decreasing, with φ(0) = 0 and φ(x) ≤ 1[x > 0]; that is all the inequality needs. They differ in their
slope, which decides which examples the perturbation is spent on:

    tanh    φ(x) = tanh(αx)                                   slope α at 0, exponential tails on both sides
    log     φ(x) = 1 − log(1 + e^{γ−x}),  γ = log(e − 1)      slope → 1 for x → −∞: confident examples keep theirs
    ramp    φ(x) = clip(αx, −1, 1)                            slope α, then exactly 0: those examples leave the step
    erf     φ(x) = erf((√π/2)·αx)                             slope α at 0, Gaussian tails: between tanh and ramp

A further φ is one function and one line of `BOUNDS`.

Source: W. Xie, F. Latorre, K. Antonakopoulos, T. Pethick, V. Cevher, "Improving SAM Requires Rethinking its
Optimization Formulation", 2024: the bound, tanh and log. ramp and erf are this project's, for the ablation of φ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Phi = Literal["tanh", "log", "ramp", "erf"]
Reduction = Literal["mean", "none"]

GAMMA = math.log(math.e - 1)  # makes φ_log(0) = 0


@dataclass(frozen=True)
class Bound:
    """One φ of the lower bound, and what belongs to it.

    Args:
        phi: (margins, α) → φ(margins) up to a constant, which is nothing to a cross entropy. It owns the margins and
            may overwrite them.
        mu: default µ.
        uses_alpha: whether φ depends on α.
    """

    phi: Callable[[Tensor, float | Tensor], Tensor]
    mu: float
    uses_alpha: bool


def _scaled(margins: Tensor, alpha: float | Tensor) -> Tensor:
    """α·margins: in place for a number, out of place for a tensor (whose gradient needs the margins)."""
    return margins * alpha if isinstance(alpha, Tensor) else margins.mul_(alpha)


def _tanh(margins: Tensor, alpha: float | Tensor) -> Tensor:
    """φ(x) = tanh(αx)."""
    return _scaled(margins, alpha).tanh_()


def _log(margins: Tensor, alpha: float | Tensor) -> Tensor:
    """φ(x) − 1 = −log(1 + e^{γ−x}) = logsigmoid(x − γ), without overflow."""
    return F.logsigmoid(margins.sub_(GAMMA))


def _ramp(margins: Tensor, alpha: float | Tensor) -> Tensor:
    """φ(x) = clip(αx, −1, 1)."""
    return _scaled(margins, alpha).clamp(-1, 1)


def _erf(margins: Tensor, alpha: float | Tensor) -> Tensor:
    """φ(x) = erf((√π/2)·αx)."""
    return torch.erf(_scaled(margins, alpha * (math.sqrt(math.pi) / 2)))


BOUNDS = {
    "tanh": Bound(_tanh, mu=10.0, uses_alpha=True),
    "log": Bound(_log, mu=1.0, uses_alpha=False),
    "ramp": Bound(_ramp, mu=10.0, uses_alpha=True),
    "erf": Bound(_erf, mu=10.0, uses_alpha=True),
}


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
    mu: float | Tensor | None = None,
    alpha: float | Tensor = 0.1,
    reduction: Reduction = "mean",
) -> Tensor:
    """BiSAM's smooth lower bound of the 0-1 loss: the objective of the ascent step.

        Q = (1/µ) log Σ_{j=1..K} exp(µ φ(f_j − f_y)) − (log K)/µ

    The constant makes Q a true lower bound, for every µ > 0; it does not change the gradient with respect to the
    logits. An example that is already misclassified has φ' → 0: the perturbation is spent on the examples that are
    still right. As α → 0 with µα = 1, µQ + log K → the cross entropy, for every φ with slope α at 0.

    µ and α may be 0-d tensors: Q is then differentiable with respect to them too, any number of times.

    Args:
        logits: (N, K) floating point; not modified. Half precision is computed, and returned, in float32.
        target: (N,) class indices, int64.
        phi: a name in `BOUNDS` (see the module's docstring).
        mu: µ > 0, sharpness of the soft maximum; None: the default of `BOUNDS`, 1 for log and 10 for the others.
        alpha: α > 0, slope of φ at 0; unused by "log".
        reduction: "mean" over the examples, or "none".

    Returns:
        A scalar, or (N,) with reduction="none"; ≤ the 0-1 loss of each example.

    Raises:
        ValueError: unknown phi; mu or alpha a number that is not positive and finite. Tensors are not looked at:
            it would make the host wait for the device.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> lower_bound(logits, target, phi="log").item() <= 0
        True
        >>> mu = torch.tensor(10.0, requires_grad=True)
        >>> lower_bound(logits, target, "erf", mu).backward()
        >>> mu.grad.item() > 0
        True

    Source: Xie et al., 2024 (see the module's docstring).
    """
    bound = BOUNDS.get(phi)
    if bound is None:
        raise ValueError(f"phi={phi!r}: expected one of {', '.join(BOUNDS)}")
    if mu is None:
        mu = bound.mu
    if not isinstance(mu, Tensor) and not 0 < mu < math.inf:
        raise ValueError(f"mu={mu}: must be positive and finite")
    if not isinstance(alpha, Tensor) and not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha}: must be positive and finite")
    if logits.element_size() < 4:
        logits = logits.float()
    n, classes = logits.shape
    squashed = bound.phi(logits - logits.gather(-1, target.unsqueeze(-1)), alpha)
    # log Σ_j exp(µ(φ(F_j) − φ(F_y))), and φ(F_y) = φ(0) = 0: the cross entropy of the logits µφ(F), one fused kernel
    if isinstance(mu, Tensor):
        return (F.cross_entropy(mu * squashed, target, reduction=reduction) - math.log(classes)) / mu
    # its class weights take care of 1/µ and of the mean (they are no function of µ to autograd, hence the branch
    # above): ten small kernels would cost as much as a layer of a small network
    mean = reduction == "mean"
    weight = logits.new_full((classes,), 1 / (mu * n) if mean else 1 / mu)
    scaled = squashed if mu == 1 else squashed * mu
    return F.cross_entropy(scaled, target, weight, reduction="sum" if mean else "none") - math.log(classes) / mu
