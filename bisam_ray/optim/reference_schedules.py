"""Slow, literal transcription of SAMPa, Lookahead and RAPP; like reference.py the oracle of the tests, not for use.

Sources:
    SAMPa       Xie, Pethick, Cevher, "SAMPa: Sharpness-aware Minimization Parallelized", 2024
    Lookahead   Zhang, Lucas, Ba, Hinton, "Lookahead Optimizer: k steps forward, 1 step back", 2019
    RAPP        Pethick, Xie, Cevher, "Stable Nonconvex-Nonconcave Training via Linear Interpolation", 2023
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .reference import (
    Batch,
    Learning,
    LetsState,
    Method,
    Optimizer,
    OptimizerState,
    Pending,
    Trace,
    curvature_along,
    direction,
    finish,
    gradient,
    lets_state,
    optimizer_step,
    sensitivity,
    warmup_factor,
)

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SampaState:
    """Weights x, state of the base optimizer; L_B(y), k = ∇L_B(y), a = ∇A_B(y) at the auxiliary y; steps made.

    B is the batch of the step to come.
    """

    x: Tensor
    loss: Tensor
    k: Tensor
    a: Tensor
    optimizer: OptimizerState = field(default_factory=OptimizerState)
    step: int = 0


def sampa_state(method: Method, x: Tensor, batch: Batch) -> SampaState:
    """The state before the first step: y₀ = x₀, with the gradients of B₀ there."""
    loss, k = gradient(method.descent, x, batch)
    _, a = gradient(method.ascent, x, batch)
    return SampaState(x, loss, k, a)


def sampa_step(
    method: Method, state: SampaState, batch: Batch, next_batch: Batch, mask: Tensor | None = None
) -> tuple[SampaState, Trace]:
    """One step of SAMPa: the two gradients in it, h and k⁺, do not wait for each other.

        x̃ = x + ρ u(a);   h = ∇L_B(x̃)
        y⁺ = Opt(x, k);    k⁺ = ∇L_B⁺(y⁺),   a⁺ = ∇A_B⁺(y⁺)
        x ← Opt(x, (1 − λ) h + λ k⁺)

    Both steps begin from the same state of the base optimizer; only that of x advances it. The adaptive geometry
    takes |x|. With SGD, y⁺ = x − ηk.

    Args:
        method: λ = method.lam.
        state: see there.
        batch, next_batch: B, whose gradients the state has, and B⁺.
        mask: of the subset geometry, (P,).

    Returns:
        The state, and the trace with L_B(y) in the place of L_B(x), which is not computed.

    Source: SAMPa, 2024; for SGD. The base optimizer's own step to y⁺ and the ascent objective are this project's.
    """
    assert method.gamma == 1, "a selection of examples needs L_i(x)"
    u, norm = direction(method, state.x, state.a, mask)
    rho = torch.tensor(method.rho * warmup_factor(method, state.step), dtype=state.x.dtype)
    perturbed_loss, h = gradient(method.descent, state.x + rho * u, batch)
    y, _ = optimizer_step(method.optimizer, state.optimizer, state.x, state.k)
    loss, k = gradient(method.descent, y, next_batch)
    _, a = gradient(method.ascent, y, next_batch)
    mixed = (1 - method.lam) * h + method.lam * k
    x, optimizer = optimizer_step(method.optimizer, state.optimizer, state.x, mixed)
    return SampaState(x, loss, k, a, optimizer, state.step + 1), Trace(state.loss, perturbed_loss, norm, rho)


def sampa_upper_level(
    method: Method,
    state: SampaState,
    r: Tensor,
    batch: Batch,
    next_batch: Batch,
    train: Batch,
    hyper: Batch,
    mask: Tensor | None = None,
) -> Tensor:
    """The upper level as a function of r = log ρ, for central differences of the hypergradient.

        J(r) = ½ (L_V(x⁺) − L_B'(x⁺))²,   x⁺ = Opt(x, (1 − λ) ∇L_B(x + ρu) + λ k⁺)
        ρ = exp(r) · min(1, t / (warmup · T))
        dJ/dr = −Δ (1 − λ) (S ⊙ d)ᵀ (∇L_V(x⁺) − ∇L_B'(x⁺)),   S at the mixed gradient,   d = ρ ∇²L_B(x + ρu) u

    Args:
        method, state: before the step.
        r: scalar.
        batch, next_batch, train, hyper: B, B⁺, B' and V.
        mask: of the subset geometry, (P,).
    """
    u, _ = direction(method, state.x, state.a, mask)
    rho = r.exp() * warmup_factor(method, state.step)
    _, h = gradient(method.descent, state.x + rho * u, batch)
    y, _ = optimizer_step(method.optimizer, state.optimizer, state.x, state.k)
    _, k = gradient(method.descent, y, next_batch)
    mixed = (1 - method.lam) * h + method.lam * k
    x, _ = optimizer_step(method.optimizer, state.optimizer, state.x, mixed)
    return (method.descent(x, hyper) - method.descent(x, train)) ** 2 / 2


@dataclass(frozen=True, kw_only=True)
class SampaLetsState(LetsState):
    """That of LETS, with L_B(y), k = ∇L_B(y), a = ∇A_B(y) of SAMPa's y."""

    loss: Tensor
    k: Tensor
    a: Tensor


def sampa_lets_state(method: Method, x: Tensor, batch: Batch) -> SampaLetsState:
    """The state before the first step: y₀ = x₀, r = log ρ₀."""
    start = sampa_state(method, x, batch)
    return SampaLetsState(x, r=lets_state(method, x).r, loss=start.loss, k=start.k, a=start.a)


def sampa_lets_step(
    method: Method, learning: Learning, state: SampaLetsState, batch: Batch, next_batch: Batch, hyper: Batch
) -> tuple[SampaLetsState, Trace]:
    """One step of SAMPa with the learned radius; see `sampa_step` and `reference.lets_step`.

        next:  finish dJ/dr of the step before with B' = B, at x
        ρ = exp(r) · min(1, t / (warmup · T));   x̃ = x + ρ u(a);   h = ∇L_B(x̃)
        x⁺ = Opt(x, q),   q = (1 − λ) h + λ k⁺
        keep (1 − λ) S(q) ⊙ d, L_V(x⁺), ∇L_V(x⁺);   d = ∂h/∂r, for its secant with ∇L_B(x)
        same:  finish dJ/dr of this step with B' = B

    Args:
        method, learning, state: see there.
        batch, next_batch, hyper: B, whose gradients the state has, B⁺ and V.
    """
    x, starts = state.w, state.step % learning.every == 0
    here, g = gradient(method.descent, x, batch)
    if state.pending is not None:
        state = finish(learning, state, here, g)
    rho = state.r.exp() * warmup_factor(method, state.step)
    u, norm = direction(method, x, state.a)
    perturbed_loss, h = gradient(method.descent, x + rho * u, batch)
    y, _ = optimizer_step(method.optimizer, state.optimizer, x, state.k)
    loss, k = gradient(method.descent, y, next_batch)
    _, a = gradient(method.ascent, y, next_batch)
    mixed = (1 - method.lam) * h + method.lam * k
    x_next, optimizer = optimizer_step(method.optimizer, state.optimizer, x, mixed)
    trace = Trace(state.loss, perturbed_loss, norm, rho)
    if starts:
        d = curvature_along(method, learning, x, rho * u, g, h, batch)
        s = (1 - method.lam) * sensitivity(method.optimizer, state.optimizer, x, mixed)
        state = replace(state, pending=Pending(s * d, *gradient(method.descent, x_next, hyper)))
        if learning.train_batch == "same":
            state = finish(learning, state, *gradient(method.descent, x_next, batch))
    return replace(state, w=x_next, optimizer=optimizer, step=state.step + 1, loss=loss, k=k, a=a), trace


def lookahead_step(
    opt: Optimizer, s: OptimizerState, z: Tensor, fields: Sequence[Field], outer_lr: float
) -> tuple[Tensor, OptimizerState]:
    """One outer step of Lookahead.

        w⁰ = z;   wⁱ⁺¹ = Opt(wⁱ, Fᵢ(wⁱ)), i < τ;   z⁺ = (1 − λ) z + λ w^τ

    Args:
        opt, s: base optimizer and its state, which is kept from one outer step to the next.
        z: weights, (P,).
        fields: F₀ … F_{τ−1}: the gradient field, on the batch of each inner step.
        outer_lr: λ.

    Source: Lookahead, 2019.
    """
    w = z
    for f in fields:
        w, s = optimizer_step(opt, s, w, f(w))
    return (1 - outer_lr) * z + outer_lr * w, s


def rapp_step(
    opt: Optimizer, s: OptimizerState, z: Tensor, fields: Sequence[Field], outer_lr: float
) -> tuple[Tensor, OptimizerState]:
    """One outer step of RAPP.

        w⁰ = z;   wⁱ⁺¹ = z − ηFᵢ(wⁱ), i < τ − 1;   z⁺ = Opt(z, λF_{τ−1}(w^{τ−1}))

    Args:
        opt, s, z, fields, outer_lr: as in lookahead_step; η is the base optimizer's learning rate.

    Source: RAPP, 2023; there Opt is SGD, and z⁺ = (1 − λ) z + λ w^τ.
    """
    w = z
    for f in fields[:-1]:
        w = z - opt.lr * f(w)
    return optimizer_step(opt, s, z, outer_lr * fields[-1](w))
