"""Slow, literal transcription of SAM, ASAM, BiSAM, ESAM and LETS: the oracle of the tests, not for use.

SAMPa, Lookahead and RAPP: reference_schedules.py.

All parameters are one flat vector w of shape (P,), in double precision. One line of mathematics is one line
of code; nothing is fused or updated in place, nothing is imported from the rest of the package. A loss is a
function (w, batch) → scalar; a step is a pure function state → state.

Sources:
    SAM    Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
           Generalization", 2021
    ASAM   Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning
           of Deep Neural Networks", 2021
    BiSAM  Xie, Latorre, Antonakopoulos, Pethick, Cevher, "Improving SAM Requires Rethinking its Optimization
           Formulation", 2024
    ESAM   Du, Yan, Feng, Zhou, Zhen, Goh, Tan, "Efficient Sharpness-aware Minimization for Improved Training
           of Neural Networks", 2022
    LETS   "Enhancing Sharpness-Aware Minimization by Learning Perturbation Radius", 2024: the upper level;
           the one-step hypergradient, the secant and the next-batch gradient are this project's own
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Batch = Any
Objective = Callable[[Tensor, Batch], Tensor]
Phi = Literal["tanh", "log", "ramp", "erf"]


def cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy, example by example.

        L = −(1/N) Σ_i Σ_j t_ij log(exp f_ij / Σ_k exp f_ik),   t_i = (1 − s)·onehot(y_i) + s/K

    Args:
        logits: f, (N, K).
        target: y, (N,).
        label_smoothing: s.
    """
    n, k = logits.shape
    total = torch.zeros((), dtype=logits.dtype)
    for i in range(n):
        log_p = logits[i] - logits[i].exp().sum().log()
        t = torch.full((k,), label_smoothing / k, dtype=logits.dtype)
        t[target[i]] += 1 - label_smoothing
        total = total - (t * log_p).sum()
    return total / n


def lower_bound(logits: Tensor, target: Tensor, phi: Phi, mu: float, alpha: float = 0.1) -> Tensor:
    """BiSAM's lower bound of the 0-1 loss, example by example, as it is printed: large logits overflow.

        Q = (1/N) Σ_i [ (1/µ) log Σ_j exp(µ φ(f_ij − f_iy)) − (log K)/µ ]
        φ_tanh(x) = tanh(αx),   φ_log(x) = 1 − log(1 + exp(γ − x)),   γ = log(e − 1)
        φ_ramp(x) = min(1, max(−1, αx)),   φ_erf(x) = erf(√π/2 · αx)

    Args:
        logits: f, (N, K).
        target: y, (N,).
        phi, mu, alpha: φ, µ, and the α of all but log: their slope at 0.

    Source: BiSAM, 2024; ramp and erf are this project's own.
    """
    n, k = logits.shape
    gamma = math.log(math.e - 1)
    shapes: dict[Phi, Callable[[Tensor], Tensor]] = {
        "tanh": lambda x: torch.tanh(alpha * x),
        "log": lambda x: 1 - torch.log(1 + torch.exp(gamma - x)),
        "ramp": lambda x: (alpha * x).clip(-1, 1),
        "erf": lambda x: torch.erf(math.sqrt(math.pi) / 2 * alpha * x),
    }
    total = torch.zeros((), dtype=logits.dtype)
    for i in range(n):
        x = logits[i] - logits[i, target[i]]
        total = total + torch.log(torch.exp(mu * shapes[phi](x)).sum()) / mu - math.log(k) / mu
    return total / n


def gradient(objective: Objective, w: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(A(w), ∇A(w)) on one batch: a scalar and (P,)."""
    w = w.detach().requires_grad_()
    value = objective(w, batch)
    return value.detach(), torch.autograd.grad(value, w)[0]


@dataclass(frozen=True)
class Optimizer:
    """Hyperparameters of the base optimizer, with the meaning they have in PyTorch."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class OptimizerState:
    """Steps made t; momentum buffer b (SGD), first and second moments m, v (Adam), (P,) each."""

    t: int = 0
    b: Tensor | None = None
    m: Tensor | None = None
    v: Tensor | None = None


def optimizer_step(opt: Optimizer, s: OptimizerState, w: Tensor, h: Tensor) -> tuple[Tensor, OptimizerState]:
    """One step of the base optimizer with the gradient h.

        SGD    q = h + λw;  b = q at first, then mb + (1 − τ)q;  w⁺ = w − ηb,  Nesterov: w⁺ = w − η(q + mb)
        Adam   q = h + λw (AdamW: q = h, w ← w − ηλw);  w⁺ = w − η m̂ / (√v̂ + ε)

    Args:
        opt, s: hyperparameters and state.
        w, h: weights and gradient, (P,).
    """
    t = s.t + 1
    if opt.name == "sgd":
        q = h + opt.weight_decay * w
        if opt.momentum == 0:
            return w - opt.lr * q, OptimizerState(t)
        b = q if s.b is None else opt.momentum * s.b + (1 - opt.dampening) * q
        p = q + opt.momentum * b if opt.nesterov else b
        return w - opt.lr * p, OptimizerState(t, b=b)
    q, m_hat, v_hat, m, v = adam_moments(opt, s, w, h)
    decayed = w - opt.lr * opt.weight_decay * w if opt.name == "adamw" else w
    return decayed - opt.lr * m_hat / (v_hat.sqrt() + opt.eps), OptimizerState(t, m=m, v=v)


def adam_moments(
    opt: Optimizer, s: OptimizerState, w: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(q, m̂, v̂, m, v) of Adam after the gradient h; all (P,)."""
    t = s.t + 1
    q = h + opt.weight_decay * w if opt.name == "adam" else h
    m = opt.beta1 * (torch.zeros_like(w) if s.m is None else s.m) + (1 - opt.beta1) * q
    v = opt.beta2 * (torch.zeros_like(w) if s.v is None else s.v) + (1 - opt.beta2) * q**2
    m_hat = m / (1 - opt.beta1**t)
    v_hat = v / (1 - opt.beta2**t)
    return q, m_hat, v_hat, m, v


def sensitivity(opt: Optimizer, s: OptimizerState, w: Tensor, h: Tensor) -> Tensor:
    """S of ∂w⁺/∂h = −diag(S).

        SGD         η
        momentum    η(1 − τ); η on the first step
        Nesterov    η(1 + m)
        Adam(W)     η[ ((1 − β₁)/c₁)/(√v̂ + ε) − m̂ ((1 − β₂)/c₂) q / (√v̂ (√v̂ + ε)²) ],   0 where v̂ = 0,
                    c_i = 1 − β_iᵗ

    Args:
        opt, s, w, h: as in optimizer_step; the state before the step.
    """
    if opt.name == "sgd":
        if opt.momentum == 0:
            return torch.full_like(w, opt.lr)
        if opt.nesterov:
            return torch.full_like(w, opt.lr * (1 + opt.momentum))
        return torch.full_like(w, opt.lr if s.b is None else opt.lr * (1 - opt.dampening))
    q, m_hat, v_hat, _, _ = adam_moments(opt, s, w, h)
    t = s.t + 1
    root = v_hat.sqrt()
    along_m = (1 - opt.beta1) / (1 - opt.beta1**t) / (root + opt.eps)
    along_v = m_hat * (1 - opt.beta2) / (1 - opt.beta2**t) * q / (root * (root + opt.eps) ** 2)
    return torch.where(v_hat == 0, torch.zeros_like(w), opt.lr * (along_m - along_v))


@dataclass(frozen=True)
class Method:
    """What is ascended, what is descended, in which geometry, how far, and with which base optimizer.

    SAM: ascent = descent = cross entropy, l2. ASAM: adaptive. BiSAM: ascent = a lower bound of the 0-1 loss.
    ESAM: subset, with γ < 1; the descent is then the mean of `per_example`.
    """

    ascent: Objective
    descent: Objective
    optimizer: Optimizer = Optimizer()
    rho: float = 0.05
    warmup: float = 0.0
    total_steps: int = 1
    geometry: Literal["l2", "adaptive", "subset"] = "l2"
    xi: float = 0.01
    is_weight: Tensor | None = None  # (P,) bool: entries of tensors with more than one dimension
    beta: float = 1.0  # subset: the probability of an entry of the mask
    renormalise: bool = False  # subset: a direction of length 1
    gamma: float = 1.0  # the fraction of the examples that the descent uses
    per_example: Callable[[Tensor, Batch], Tensor] | None = None  # (w, batch) → L_i, (N,)
    lam: float = 0.2  # SAMPa's λ


@dataclass(frozen=True)
class State:
    """Weights w (P,), state of the base optimizer, steps made."""

    w: Tensor
    optimizer: OptimizerState = OptimizerState()
    step: int = 0


@dataclass(frozen=True)
class Trace:
    """What a step saw: L_B(w), L_B(w + ε) of all examples, the norm of `direction`, the ρ it used; scalars."""

    loss: Tensor
    perturbed_loss: Tensor
    grad_norm: Tensor
    rho: Tensor


def warmup_factor(method: Method, step: int) -> float:
    """min(1, step / (warmup · T))."""
    return 1.0 if method.warmup == 0 else min(1.0, step / (method.warmup * method.total_steps))


def direction(method: Method, w: Tensor, a: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ascent direction and the norm it was divided by; zero for a zero gradient.

        l2             u = a / ‖a‖
        adaptive       u = T²a / ‖Ta‖,   T = |w| + ξ on weights, 1 on the others
        subset         u = (b ⊙ a) / (‖a‖ β)
        renormalised   u = (b ⊙ a) / ‖b ⊙ a‖

    Args:
        method: geometry, ξ, which entries are weights, β.
        w, a: weights and ascent gradient, (P,).
        mask: b of the subset geometry, 0 or 1, (P,).

    Source: SAM, 2021; ASAM, 2021; ESAM, 2022; the renormalised subset is this project's own.
    """
    t, beta = torch.ones_like(w), 1.0
    if method.geometry == "adaptive":
        assert method.is_weight is not None
        t = torch.where(method.is_weight, w.abs() + method.xi, t)
    norm = (t * a).square().sum().sqrt()
    if method.geometry == "subset":
        assert mask is not None
        t, beta = mask, 1.0 if method.renormalise else method.beta
        norm = (mask * a).square().sum().sqrt() if method.renormalise else norm
    return (torch.zeros_like(a) if norm == 0 else t * t * a / (norm * beta)), norm


def descended(method: Method, w: Tensor, epsilon: Tensor, batch: Batch) -> Objective:
    """What the descent descends: L_B, or its mean over the examples whose loss rises most under ε.

        C = the max(1, round(γN)) largest of L_i(w + ε) − L_i(w);   w ↦ (1/|C|) Σ_{i ∈ C} L_i(w)

    Args:
        method: γ, and L_i if γ < 1.
        w, epsilon: weights and perturbation, (P,).
        batch: B.

    Source: ESAM, 2022.
    """
    per_example = method.per_example
    if method.gamma == 1:
        return method.descent
    assert per_example is not None
    rise = (per_example(w + epsilon, batch) - per_example(w, batch)).detach()
    chosen = rise.argsort(descending=True)[: max(1, round(method.gamma * len(rise)))]
    return lambda w, batch: per_example(w, batch)[chosen].mean()


def sam_step(method: Method, state: State, batch: Batch, mask: Tensor | None = None) -> tuple[State, Trace]:
    """One step of SAM, ASAM, BiSAM or ESAM.

        a = ∇A_B(w);   ε = ρ u(a);   h = ∇L_C(w + ε);   w ← Opt(w, h)

    Args:
        method, state: see there.
        batch: B, whatever the objectives take; C, what `descended` leaves of it.
        mask: of the subset geometry, (P,).

    Source: SAM, 2021; ASAM, 2021; BiSAM, 2024; ESAM, 2022.
    """
    loss, _ = gradient(method.descent, state.w, batch)
    _, a = gradient(method.ascent, state.w, batch)
    u, norm = direction(method, state.w, a, mask)
    rho = torch.tensor(method.rho * warmup_factor(method, state.step), dtype=state.w.dtype)
    perturbed_loss, _ = gradient(method.descent, state.w + rho * u, batch)
    _, h = gradient(descended(method, state.w, rho * u, batch), state.w + rho * u, batch)
    w, optimizer = optimizer_step(method.optimizer, state.optimizer, state.w, h)
    return State(w, optimizer, state.step + 1), Trace(loss, perturbed_loss, norm, rho)


@dataclass(frozen=True)
class Learning:
    """How the radius is learned; the rest of LETS is a Method, whose rho is ρ₀."""

    train_batch: Literal["next", "same"] = "next"
    curvature: Literal["secant", "diagonal", "finite_difference", "exact"] = "secant"
    every: int = 1
    lr: float = 0.02
    rho_min: float = 1e-3
    rho_max: float = 1.0
    gap_ema: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-12


@dataclass(frozen=True)
class Pending:
    """A hypergradient that waits for B': S ⊙ d (P,), and L_V, ∇L_V (P,) at the weights after its step."""

    sd: Tensor
    hyper_loss: Tensor
    hyper_gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class LetsState(State):
    """Also r = log ρ, with Adam's n, m, v; the averaged gap; the last dJ/dr and gap that were finished."""

    r: Tensor
    n: int = 0
    m: float | Tensor = 0.0
    v: float | Tensor = 0.0
    mean_gap: float | Tensor = 0.0
    pending: Pending | None = None
    hypergradient: Tensor | None = None
    gap: Tensor | None = None


S = TypeVar("S", bound=LetsState)


def lets_state(method: Method, w: Tensor) -> LetsState:
    """The state before the first step: r = log ρ₀."""
    return LetsState(w, r=torch.tensor(math.log(method.rho), dtype=w.dtype))


def curvature_along(
    method: Method, learning: Learning, w: Tensor, epsilon: Tensor, g: Tensor, h: Tensor, batch: Batch
) -> Tensor:
    """d ≈ Hε = dh/dr, with H = ∇²L_B(w + ε).

        secant              d = h − g,  g = ∇L_B(w)
        diagonal            d = h ⊙ h ⊙ ε
        finite_difference   d = (∇L_B(w + ε + δε) − h)/δ,  δ = √eps (1 + ‖w‖)/‖ε‖,  eps of the dtype;  0 for ε = 0
        exact               d = Hε, by differentiating twice

    Args:
        w, epsilon, g, h: weights, perturbation, gradients at w and at w + ε, (P,).
        batch: B.
    """
    if learning.curvature == "secant":
        return h - g
    if learning.curvature == "diagonal":
        return h * h * epsilon
    if learning.curvature == "finite_difference":
        if epsilon.norm() == 0:
            return torch.zeros_like(h)
        delta = math.sqrt(torch.finfo(w.dtype).eps) * (1 + w.norm()) / epsilon.norm()
        return (gradient(method.descent, w + epsilon + delta * epsilon, batch)[1] - h) / delta
    at = (w + epsilon).detach().requires_grad_()
    first = torch.autograd.grad(method.descent(at, batch), at, create_graph=True)[0]
    return torch.autograd.grad((first * epsilon).sum(), at)[0]


def finish(learning: Learning, state: S, loss: Tensor, grad: Tensor) -> S:
    """The pending hypergradient, now that L_B' and ∇L_B' at its weights are known, and one Adam update of r.

        Δ = L_V − L_B';   dJ/dr = −Δ (S ⊙ d)ᵀ (∇L_V − ∇L_B');   r ← clip(r − η m̂ / (√v̂ + ε))

    With gap_ema = β the first factor is the average M/(1 − βⁿ), M ← βM + (1 − β)Δ.

    Args:
        loss, grad: L_B' and ∇L_B' (P,), at the weights after the step that began the hypergradient.
    """
    pending, n = state.pending, state.n + 1
    assert pending is not None
    gap = pending.hyper_loss - loss
    mean_gap = learning.gap_ema * state.mean_gap + (1 - learning.gap_ema) * gap
    delta = mean_gap / (1 - learning.gap_ema**n)
    hypergradient = -delta * (pending.sd * (pending.hyper_gradient - grad)).sum()
    m = learning.beta1 * state.m + (1 - learning.beta1) * hypergradient
    v = learning.beta2 * state.v + (1 - learning.beta2) * hypergradient**2
    m_hat = m / (1 - learning.beta1**n)
    v_hat = v / (1 - learning.beta2**n)
    r = state.r - learning.lr * m_hat / (v_hat.sqrt() + learning.eps)
    r = r.clip(math.log(learning.rho_min), math.log(learning.rho_max))
    return replace(state, r=r, n=n, m=m, v=v, mean_gap=mean_gap, pending=None, hypergradient=hypergradient, gap=gap)


def lets_step(
    method: Method, learning: Learning, state: LetsState, batch: Batch, hyper: Batch, mask: Tensor | None = None
) -> tuple[LetsState, Trace]:
    """One step with the learned radius; hypergradients start on steps that are multiples of `every`.

        next:  finish dJ/dr of the step before with B' = B
        ρ = exp(r) · min(1, t / (warmup · T))
        a = ∇A_B(w);   ε = ρ u(a);   h = ∇L_C(w + ε);   w⁺ = Opt(w, h)
        d = ∂h/∂r, from L_C alone
        keep S ⊙ d, L_V(w⁺), ∇L_V(w⁺)
        same:  finish dJ/dr of this step with B' = B

    Args:
        method, learning, state: see there.
        batch, hyper: B and V; V is used only on steps that start a hypergradient. C: as in sam_step.
        mask: of the subset geometry, (P,).

    Source: LETS, 2024, with this project's one-step hypergradient.
    """
    starts = state.step % learning.every == 0
    w = state.w
    loss, full = gradient(method.descent, w, batch)
    if state.pending is not None:
        state = finish(learning, state, loss, full)
    rho = state.r.exp() * warmup_factor(method, state.step)
    _, a = gradient(method.ascent, w, batch)
    u, norm = direction(method, w, a, mask)
    epsilon = rho * u
    perturbed_loss, _ = gradient(method.descent, w + epsilon, batch)
    chosen = replace(method, descent=descended(method, w, epsilon, batch))
    _, g = gradient(chosen.descent, w, batch)
    _, h = gradient(chosen.descent, w + epsilon, batch)
    w_next, optimizer = optimizer_step(method.optimizer, state.optimizer, w, h)
    if starts:
        d = curvature_along(chosen, learning, w, epsilon, g, h, batch)
        s = sensitivity(method.optimizer, state.optimizer, w, h)
        state = replace(state, pending=Pending(s * d, *gradient(method.descent, w_next, hyper)))
        if learning.train_batch == "same":
            state = finish(learning, state, *gradient(method.descent, w_next, batch))
    state = replace(state, w=w_next, optimizer=optimizer, step=state.step + 1)
    return state, Trace(loss, perturbed_loss, norm, rho)


def upper_level(
    method: Method, state: State, r: Tensor, batch: Batch, train: Batch, hyper: Batch, mask: Tensor | None = None
) -> Tensor:
    """The upper level as a function of r = log ρ, for central differences of the hypergradient.

        J(r) = ½ (L_V(w⁺) − L_B'(w⁺))²,   w⁺ = Opt(w, ∇L_C(w + ρu)),   ρ = exp(r) · min(1, t / (warmup · T))

    Args:
        method, state: before the step.
        r: scalar.
        batch, train, hyper: B, B' and V. C: as in sam_step.
        mask: of the subset geometry, (P,).
    """
    _, a = gradient(method.ascent, state.w, batch)
    u, _ = direction(method, state.w, a, mask)
    rho = r.exp() * warmup_factor(method, state.step)
    _, h = gradient(descended(method, state.w, rho * u, batch), state.w + rho * u, batch)
    w, _ = optimizer_step(method.optimizer, state.optimizer, state.w, h)
    return (method.descent(w, hyper) - method.descent(w, train)) ** 2 / 2
