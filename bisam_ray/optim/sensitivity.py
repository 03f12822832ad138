"""How the weights after an update answer to its gradient: S of ∂θ⁺/∂h = −diag(S), with θ⁺ = Opt(θ, h).

    SGD                          S = η
    momentum m, dampening τ      S = η (1 − τ);   η on a tensor's first step
    Nesterov                     S = η (1 + m)
    Adam, AdamW                  S = η [ ((1 − β₁)/c₁)/(√v̂ + ε) − m̂ ((1 − β₂)/c₂) q/(√v̂ (√v̂ + ε)²) ],  0 where v̂ = 0
                                 m̂, v̂ after the update, c_i = 1 − β_iᵗ, q = h (AdamW) or h + wd·θ (Adam)
    Lookahead                    λS on its outer steps, S otherwise
    RAPP                         η on its inner steps, λS(λh) on its outer ones

The rule of the optimizer, differentiated; checked against central differences of the upper level in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .comm import Tensors
from .lookahead import RAPP, Lookahead, innermost

Sensitivity = Iterator[Tensor | float]  # one for each parameter, made when asked for: as large as it, or a number


def sensitivity(
    base: torch.optim.Optimizer, params: Tensors, h: Tensors, weights: Tensors | None = None
) -> Sensitivity:
    """S for the update that `base` is about to make with the gradient h, from its present state.

    Args:
        base: the base optimizer, possibly within Lookahead or RAPP.
        params: parameters of `base`.
        h: the gradient of each of them.
        weights: where it steps from, if that is not where the parameters are (RAPP steps from its slow weights).

    Raises:
        ValueError: an optimizer whose rule is not known here.
    """
    if isinstance(base, RAPP) and not base.is_outer():
        rates = {p: float(group["lr"]) for group in base.param_groups for p in group["params"]}
        return (rates[p] for p in params)
    if isinstance(base, RAPP):
        slow = [base.slow.get(p, p) for p in params]
        share = base.outer_lr
        inner = sensitivity(base.base, params, torch._foreach_mul(h, share), slow)
        return (share * s for s in inner)
    if isinstance(base, Lookahead):
        share = base.outer_lr if base.is_outer() else 1.0
        return (share * s for s in sensitivity(base.base, params, h))
    known(base)
    rule = sgd if isinstance(base, torch.optim.SGD) else adam
    decoupled = isinstance(base, torch.optim.AdamW) or base.param_groups[0].get("decoupled_weight_decay", False)
    groups = {p: group for group in base.param_groups for p in group["params"]}
    return (
        rule(base.state.get(p, {}), groups[p], decoupled, w, g)
        for p, w, g in zip(params, weights or params, h, strict=True)
    )


def known(base: torch.optim.Optimizer) -> None:
    """Refuse an optimizer without a known rule."""
    base = innermost(base)
    group = base.param_groups[0]
    if (
        not isinstance(base, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW)
        or group["maximize"]
        or group.get("amsgrad")
    ):
        odd = [name for name in ("maximize", "amsgrad") if group.get(name)]
        raise ValueError(
            f"{type(base).__name__}{' with ' + odd[0] if odd else ''}: a learned radius needs a base optimizer whose "
            "sensitivity is known: SGD (momentum, dampening, Nesterov), Adam or AdamW"
        )


def sgd(state: dict[str, Any], group: dict[str, Any], decoupled: bool, w: Tensor, h: Tensor) -> float:
    eta, m = float(group["lr"]), group["momentum"]
    if group["nesterov"]:
        return eta * (1 + m)
    first = m == 0 or state.get("momentum_buffer") is None
    return eta if first else eta * (1 - group["dampening"])


def adam(state: dict[str, Any], group: dict[str, Any], decoupled: bool, w: Tensor, h: Tensor) -> Tensor:
    (beta1, beta2), eps, wd = group["betas"], group["eps"], group["weight_decay"]
    # a fused optimizer counts its steps on the device, from where they are not read
    t = state["step"].double() + 1 if state else 1.0
    q = h if decoupled or wd == 0 else h + wd * w
    m = torch.lerp(state["exp_avg"], q, 1 - beta1) if state else (1 - beta1) * q
    v = (beta2 * state["exp_avg_sq"] if state else torch.zeros_like(q)).addcmul_(q, q, value=1 - beta2)
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    # ((1 − β₁)/c₁ − m̂ ((1 − β₂)/c₂) q / (√v̂ below)) / below in the memory of m and v: the largest tensor of a network
    # for text is a good part of it
    root = v.div_(c2).sqrt_()
    still = root == 0
    m.mul_(q).mul_(-(1 - beta2) / (c1 * c2)).div_(root)
    below = root.add_(eps)
    m.div_(below).add_((1 - beta1) / c1).div_(below)
    return m.mul_(float(group["lr"])).masked_fill_(still, 0.0)
