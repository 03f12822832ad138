"""LETS: the radius learned inside the training loop, by a one-step hypergradient.

Upper level: make the loss on held-out "hyper" data V agree with the training loss,

    J(ρ) = ½ (L_V(θ⁺) − L_B'(θ⁺))²,     θ⁺ = Opt(θ, h),   h = ∇L_B(θ + ρu).

u does not depend on ρ and ∂θ⁺/∂h = −diag(S) (see `sensitivity`), so with r = log ρ, the gap Δ = L_V − L_B' and
H = ∇²L_B(θ + ρu)

    dJ/dr = −Δ · (S ⊙ d)ᵀ (∇L_V(θ⁺) − ∇L_B'(θ⁺)),     d = ρHu   (`curvature`):

    secant     d = h − ∇L_B(θ)       both gradients exist already; exact on quadratics; no division, safe at ρ = 0
    diagonal   d = h ⊙ h ⊙ ε         the squared gradient in the place of H; the sign is usable, the scale is not

Which training batch B' the upper level sees (`train_batch`):

    next       the next step's batch, whose gradient at θ⁺ is the next step's own first gradient: nothing to pay
    same       B' = B, one more gradient a step. A larger ρ makes this step fit B better, so the measured gap widens
               whatever ρ does to generalization: kept for comparison, it drives ρ towards zero

The update is Adam on r, then ρ is clipped to [rho_min, rho_max]; the warm-up multiplies ρ, the update ignores it.

Source: the upper level is that of "Enhancing Sharpness-Aware Minimization by Learning Perturbation Radius"
(LETS), 2024; the secant and the next-batch gradient are this project's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from .comm import Comm, Solo, Tensors
from .perturbation import dot
from .radius import LossGradient, warmup_factor

TrainBatch = Literal["next", "same"]
Curvature = Literal["secant", "diagonal"]


def sensitivity(base: torch.optim.Optimizer) -> float:
    """S of ∂θ⁺/∂h = −diag(S), for the update that `base` is about to make from its present state.

        SGD, momentum m, dampening τ     S = η (1 − τ);   η on a tensor's first step
        Nesterov                         S = η (1 + m)

    Returns:
        One number; it is the same for every parameter of every group.

    Raises:
        ValueError: another optimizer, or groups that disagree.
    """
    if not isinstance(base, torch.optim.SGD) or any(group["maximize"] for group in base.param_groups):
        raise ValueError(f"LETS needs a minimising SGD as its base optimizer, not {type(base).__name__}")
    values = set()
    for group in base.param_groups:
        eta, m = float(group["lr"]), group["momentum"]
        first = m == 0 or base.state.get(group["params"][0], {}).get("momentum_buffer") is None
        values.add(eta * (1 + m if group["nesterov"] else 1.0 if first else 1 - group["dampening"]))
    if len(values) > 1:
        raise ValueError(f"LETS needs the same learning rate and momentum in every group, not {sorted(values)}")
    return values.pop()


class LETS:
    """A radius policy that learns log ρ; see the module's docstring for the mathematics.

    Args:
        params: the parameters of the run.
        base: the base optimizer (SGD with or without momentum, dampening, Nesterov).
        rho: ρ₀ > 0.
        warmup: fraction of training over which ρ is multiplied by a linear ramp from zero.
        total_steps: T, the number of optimizer steps of the run.
        train_batch: "next" or "same".
        curvature: "secant" or "diagonal".
        every: a hypergradient every k-th step.
        lr: learning rate of Adam on log ρ: roughly the relative change of ρ per update.
        rho_min, rho_max: bounds of ρ.
        gap_ema: in [0, 1): Δ is a moving average with this decay, so that Δ and the gradients' difference are not
            computed from the same noise. 0: off.
        comm: means over the processes of a data-parallel run.

    Gradients a step, on top of SAM's 2: next 1 (every-th step); same 2. With a BiSAM ascent, ∇L_B(θ) is one more
    backward pass over a forward pass that exists already (⅔).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        warmup: float = 0.0,
        total_steps: int = 1,
        train_batch: TrainBatch = "next",
        curvature: Curvature = "secant",
        every: int = 1,
        lr: float = 0.02,
        rho_min: float = 1e-3,
        rho_max: float = 1.0,
        gap_ema: float = 0.0,
        comm: Comm | None = None,
    ) -> None:
        if not 0 < rho_min <= rho <= rho_max:
            raise ValueError(f"rho={rho}: must lie within [rho_min={rho_min}, rho_max={rho_max}]")
        for name, value, known in (
            ("train_batch", train_batch, ("next", "same")),
            ("curvature", curvature, ("secant", "diagonal")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
        if every < 1 or lr <= 0 or not 0 <= gap_ema < 1 or not 0 <= warmup < 1:
            raise ValueError(f"every={every} ≥ 1, lr={lr} > 0, gap_ema={gap_ema} and warmup={warmup} in [0, 1) needed")
        sensitivity(base)  # refuses an unknown base optimizer now, not in the first step
        self.params, self.base, self.comm = list(params), base, comm or Solo()
        self.warmup, self.total_steps = warmup, total_steps
        self.train_batch, self.curvature, self.every = train_batch, curvature, every
        self.lr, self.gap_ema = lr, gap_ema
        self.log_min, self.log_max = math.log(rho_min), math.log(rho_max)
        first = self.params[0]
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.log_rho = torch.tensor(math.log(rho), dtype=dtype, device=first.device)
        self.moment, self.moment2, self.mean_gap = (torch.zeros_like(self.log_rho) for _ in range(3))
        self.updates = self.step = 0
        self.gradient: list[Tensor] | None = None  # g = ∇L_B(θ) of this step, until h is known
        self.curved: list[Tensor] | None = None  # v = S ⊙ d, until ∇L_B' is known
        self.hyper: tuple[Tensor, Tensor] | None = None  # L_V(θ⁺) and v·∇L_V(θ⁺), likewise
        self.hypergradient: Tensor | None = None
        self.gap: Tensor | None = None

    @property
    def rho(self) -> Tensor:
        """The learned radius, before the warm-up's factor; 0-d."""
        return self.log_rho.exp()

    def starts(self) -> bool:
        """Whether the present step begins a hypergradient."""
        return self.step % self.every == 0

    def needs_gradient(self) -> bool:
        return self.hyper is not None or (self.curvature == "secant" and self.starts())

    @torch.no_grad()
    def on_ascent(self, loss: Tensor, gradient: Tensors | None) -> Tensor:
        if self.hyper is not None:  # train_batch="next": this batch is the previous step's B'
            assert gradient is not None
            self.finish(loss, gradient)
        if self.curvature == "secant" and self.starts():
            assert gradient is not None
            self.gradient = list(gradient)
        return self.rho * warmup_factor(self.step, self.warmup, self.total_steps)

    @torch.no_grad()
    def on_descent(self, h: Tensors, epsilon: Tensors) -> None:
        if not self.starts():
            return
        if self.curvature == "secant":
            assert self.gradient is not None
            d = torch._foreach_sub(h, self.gradient)
        else:
            d = torch._foreach_mul(torch._foreach_mul(h, h), epsilon)
        torch._foreach_mul_(d, sensitivity(self.base))
        self.curved, self.gradient = list(d), None

    @torch.no_grad()
    def after_update(self, batch_loss: Callable[[], LossGradient], hyper_loss: Callable[[], LossGradient]) -> None:
        if self.starts():
            assert self.curved is not None
            loss, gradient = hyper_loss()
            self.hyper = loss, dot(self.curved, gradient)
            if self.train_batch == "same":
                self.finish(*batch_loss())
        self.step += 1

    def finish(self, loss: Tensor, gradient: Tensors) -> None:
        """Complete the pending hypergradient with L_B'(θ⁺) and ∇L_B'(θ⁺), and update log ρ by Adam."""
        assert self.hyper is not None
        assert self.curved is not None
        hyper_loss, along_hyper = self.hyper
        # the losses and gradients are means over the processes already; with the diagonal, v is each process's own
        along = along_hyper - dot(self.curved, gradient)
        self.comm.mean_([along])
        self.gap = hyper_loss - loss
        self.updates += 1
        gap = self.gap
        if self.gap_ema:
            self.mean_gap.lerp_(gap, 1 - self.gap_ema)
            gap = self.mean_gap / (1 - self.gap_ema**self.updates)
        g = self.hypergradient = -gap * along
        beta1, beta2, tiny = 0.9, 0.999, 1e-12  # a tiny ε: the hypergradient's scale says nothing, its sign does
        self.moment.lerp_(g, 1 - beta1)
        self.moment2.lerp_(g * g, 1 - beta2)
        mean = self.moment / (1 - beta1**self.updates)
        rms = (self.moment2 / (1 - beta2**self.updates)).sqrt()
        self.log_rho.sub_(self.lr * mean / (rms + tiny)).clamp_(self.log_min, self.log_max)
        self.curved = self.hyper = None

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, the pending hypergradient included. Live tensors: save or copy them."""
        return {k: getattr(self, k) for k in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.log_rho.device
        for k, value in copy.deepcopy({k: state[k] for k in STATE}).items():
            setattr(self, k, moved(value, device))


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a list or tuple of them, on a device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(v, device) for v in value) if isinstance(value, list | tuple) else value


STATE = ("log_rho", "moment", "moment2", "mean_gap", "updates", "step", "curved", "hyper", "hypergradient", "gap")
