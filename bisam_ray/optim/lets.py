"""LETS: the radius learned inside the training loop, by a one-step hypergradient.

Upper level (`goal="gap"`): make the loss on held-out "hyper" data V agree with the training loss,

    J(ρ) = ½ (L_V(θ⁺) − L_B'(θ⁺))²,     θ⁺ = Opt(θ, h),   h = ∇L_B(θ + ρu).

u does not depend on ρ and ∂θ⁺/∂h = −diag(S) (see sensitivity.py), so with r = log ρ, the gap Δ = L_V − L_B' and
H = ∇²L_B(θ + ρu)

    dJ/dr = −Δ · (S ⊙ d)ᵀ (∇L_V(θ⁺) − ∇L_B'(θ⁺)),     d = ρHu   (`curvature`):

    secant              d = h − ∇L_B(θ)            both gradients exist already; exact on quadratics; safe at ρ = 0
    diagonal            d = h ⊙ h ⊙ ε              the squared gradient for H; the sign is usable, the scale is not
    exact               d = Hε                     differentiating twice, about two gradients
    finite_difference   d = (∇L_B(θ + ε + δε) − h)/δ                              one gradient

`goal="validation"` makes L_V(θ⁺) itself small: dJ/dr = −(S ⊙ d)ᵀ∇L_V(θ⁺), and no B' is needed.

The same chain, with ∂ε/∂θ_k in the place of ε, learns a radius for each of several groups of parameters and the µ and α
of a lower bound; every one of them costs its own d, so it needs `exact` or `finite_difference`.

Which training batch B' the upper level sees (`train_batch`):

    next       the next step's batch, whose gradient at θ⁺ is the next step's own first gradient: nothing to pay
    same       B' = B, one more gradient a step. A larger ρ makes this step fit B better, so the measured gap widens
               whatever ρ does to generalization: kept for comparison

The update is Adam on the logarithms, which are then clipped to their bounds; the warm-up multiplies ρ only.

Source: the upper level is that of "Enhancing Sharpness-Aware Minimization by Learning Perturbation Radius"
(LETS), 2024; the secant, the next-batch gradient and `goal="validation"` are this project's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .comm import Comm, Solo, Tensors, owned
from .perturbation import dot, readable
from .radius import LossGradient, Perturbed, warmup_factor
from .sensitivity import known

TrainBatch = Literal["next", "same"]
Curvature = Literal["secant", "diagonal", "exact", "finite_difference"]
Goal = Literal["gap", "validation"]
BOUNDS = {"mu": (0.1, 100.0), "alpha": (1e-3, 10.0)}  # of what may be learned beside the radius


class LETS:
    """A radius policy that learns log ρ; see the module's docstring for the mathematics.

    Args:
        params: the parameters of the run.
        base: the base optimizer; see sensitivity.py for those that are known.
        rho: ρ₀ > 0.
        warmup: fraction of training over which ρ is multiplied by a linear ramp from zero.
        total_steps: T, the number of optimizer steps of the run.
        train_batch: "next" or "same".
        curvature: "secant", "diagonal", "exact" or "finite_difference".
        goal: "gap" or "validation".
        every: a hypergradient at every k-th perturbation.
        lr: learning rate of Adam on log ρ: roughly the relative change of ρ per update.
        rho_min, rho_max: bounds of ρ.
        gap_ema: in [0, 1): Δ is a moving average with this decay, so that Δ and the gradients' difference are not
            computed from the same noise. 0: off.
        groups: for every parameter the number of its group, from 0, each with a radius of its own; None: one radius.
        learn: starting values of "mu" and "alpha" where those of the ascent objective are learned too. The objective
            must use `LETS.mu` and `LETS.alpha`, 0-d tensors, then.
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
        goal: Goal = "gap",
        every: int = 1,
        lr: float = 0.05,
        rho_min: float = 1e-3,
        rho_max: float = 1.0,
        gap_ema: float = 0.0,
        groups: Sequence[int] | None = None,
        learn: dict[str, float] | None = None,
        comm: Comm | None = None,
    ) -> None:
        learn = learn or {}
        if not 0 < rho_min <= rho <= rho_max:
            raise ValueError(f"rho={rho}: must lie within [rho_min={rho_min}, rho_max={rho_max}]")
        for name, value, choices in (
            ("train_batch", train_batch, ("next", "same")),
            ("curvature", curvature, ("secant", "diagonal", "exact", "finite_difference")),
            ("goal", goal, ("gap", "validation")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")
        if every < 1 or lr <= 0 or not 0 <= gap_ema < 1 or not 0 <= warmup < 1:
            raise ValueError(f"every={every} ≥ 1, lr={lr} > 0, gap_ema={gap_ema} and warmup={warmup} in [0, 1) needed")
        known(base)  # refuses an unknown base optimizer now, not in the first step
        self.params, self.comm = list(params), comm or Solo()
        self.warmup, self.total_steps = warmup, total_steps
        self.train_batch, self.curvature, self.goal, self.every = train_batch, curvature, goal, every
        self.lr, self.gap_ema = lr, gap_ema
        self.groups = list(groups or [0] * len(self.params))
        self.radii, self.names = max(self.groups) + 1, list(learn)
        if self.radii + len(learn) > 1 and curvature not in ("exact", "finite_difference"):
            raise ValueError(
                f"curvature={curvature!r}: learning more than one radius needs 'exact' or 'finite_difference'"
            )
        first = self.params[0]
        dtype = torch.promote_types(first.dtype, torch.float32)
        bounds = [(rho_min, rho_max)] * self.radii + [BOUNDS[name] for name in learn]

        def logs(values: Iterable[float]) -> Tensor:
            return torch.tensor([math.log(v) for v in values], dtype=dtype, device=first.device)

        self.log = logs([rho] * self.radii + list(learn.values()))  # what is learned: (radii…, µ, α), logarithms
        self.log_min, self.log_max = logs(low for low, _ in bounds), logs(high for _, high in bounds)
        self.moment, self.moment2 = torch.zeros_like(self.log), torch.zeros_like(self.log)
        self.mean_gap = torch.zeros((), dtype=dtype, device=first.device)
        self.updates = self.step = self.perturbations = 0
        self.starting = False  # whether the present step begins a hypergradient
        self.gradient: list[Tensor] | None = None  # g = ∇L_B(θ) of this step, until h is known
        self.along: list[list[Tensor]] = []  # d, one for each learned number, until S is known
        self.sign = -1.0 if curvature == "secant" else 1.0  # the secant keeps −d, in the memory of g
        self.curved: list[list[Tensor]] | None = None  # v = S ⊙ d, until ∇L_B' is known
        self.hyper: tuple[Tensor, Tensor] | None = None  # L_V(θ⁺) and v·∇L_V(θ⁺), likewise
        self.hypergradient: Tensor | None = None
        self.gap: Tensor | None = None
        self.parameters: list[Tensor] = []
        self.expose()
        self.ascended = self.parameters  # those that this step's ascent used

    def expose(self) -> None:
        """µ and α as leaves that the ascent objective may be differentiated by."""
        self.parameters = [self.log[self.radii + i].exp().requires_grad_() for i in range(len(self.names))]

    @property
    def rho(self) -> Tensor:
        """The learned radius, before the warm-up's factor: 0-d, or one for each group."""
        return self.log[: self.radii].exp().squeeze()

    @property
    def learned(self) -> dict[str, Tensor]:
        """µ and α where they are learned, 0-d each."""
        return dict(zip(self.names, self.parameters, strict=True))

    def starts(self) -> bool:
        return self.perturbations % self.every == 0

    def needs_gradient(self, ascends: bool = True) -> bool:
        pending = self.hyper is not None
        return pending or (ascends and self.curvature == "secant" and self.starts())

    def needs_graph(self) -> bool:
        return self.starting and self.curvature == "exact"

    @torch.no_grad()
    def on_ascent(self, loss: Tensor | None, gradient: Tensors | None, ascends: bool = True) -> Tensor | list[Tensor]:
        self.ascended = self.parameters  # finish() makes new ones, for the next step
        if self.hyper is not None:  # train_batch="next": this batch is the previous step's B'
            assert loss is not None
            assert gradient is not None
            self.finish(loss, gradient)
        self.starting, self.along = ascends and self.starts(), []
        if self.starting and self.curvature == "secant":
            assert gradient is not None
            self.gradient = owned(gradient)
        rho = self.rho * warmup_factor(self.step, self.warmup, self.total_steps)
        self.step += 1
        self.perturbations += ascends
        return rho if self.radii == 1 else [rho[group] for group in self.groups]

    def on_perturbed(self, seen: Perturbed, share: float = 1.0) -> None:
        if not self.starting or self.curvature == "secant":
            return
        if self.curvature == "diagonal":
            found = [list(torch._foreach_mul(torch._foreach_mul(seen.h, seen.h), seen.epsilon()))]
        else:
            epsilon = seen.epsilon()
            tangents = [
                [e if group == k else torch.zeros_like(e) for e, group in zip(epsilon, self.groups, strict=True)]
                for k in range(self.radii)
            ]
            with torch.no_grad():
                for value, slope in zip(self.ascended, seen.slopes(), strict=True):
                    tangents.append(list(torch._foreach_mul(slope, value.detach())))  # ∂/∂log µ = µ ∂/∂µ
            found = [list(seen.product(tangent)) for tangent in tangents]
        with torch.no_grad():
            for d in found:
                torch._foreach_mul_(d, share)
            for total, d in zip(self.along, found, strict=bool(self.along)):
                torch._foreach_add_(total, d)
            self.along = self.along or found

    @torch.no_grad()
    def on_descent(self, h: Tensors, sensitivity: Callable[[Tensors], Tensors]) -> None:
        if not self.starting:
            return
        if self.curvature == "secant":
            assert self.gradient is not None
            torch._foreach_sub_(self.gradient, h)
            self.along, self.gradient = [self.gradient], None
        self.curved, self.along = [list(sensitivity(d)) for d in self.along], []

    @torch.no_grad()
    def after_update(self, batch_loss: Callable[[], LossGradient], hyper_loss: Callable[[], LossGradient]) -> None:
        if not self.starting or self.curved is None:
            self.gradient, self.along = None, []  # a step that was skipped has nothing to learn from
            return
        loss, gradient = hyper_loss()
        self.hyper = loss, torch.stack([dot(v, gradient) for v in self.curved])
        del gradient
        if self.goal == "validation":
            self.finish(loss, None)
        elif self.train_batch == "same":
            self.finish(*batch_loss())

    def finish(self, loss: Tensor, gradient: Tensors | None) -> None:
        """Complete the pending hypergradient with L_B'(θ⁺) and ∇L_B'(θ⁺), and update the logarithms by Adam."""
        assert self.hyper is not None
        assert self.curved is not None
        hyper_loss, along = self.hyper
        self.gap = gap = hyper_loss - loss
        if gradient is not None:
            # losses and gradients are means over the processes already; v may be each process's own
            along = along - torch.stack([dot(v, gradient) for v in self.curved])
        self.comm.mean_([along])
        self.curved = self.hyper = None
        before = self.log, self.moment, self.moment2, self.mean_gap
        kept = None
        if not readable(gap):
            kept = [t.clone() for t in before]
        elif not all(map(math.isfinite, (float(gap), *along.tolist()))):
            return  # an overflow, under a loss scaler, teaches nothing
        self.updates += 1
        if gradient is None:
            g = along * -self.sign
        else:
            if self.gap_ema:
                self.mean_gap.lerp_(gap, 1 - self.gap_ema)
                gap = self.mean_gap / (1 - self.gap_ema**self.updates)
            g = gap * along * -self.sign
        self.slope, self.hypergradient = g, g[: self.radii].sum()
        # Adam, r ← r − η m̂ / (√v̂ + ε), in few kernels; a tiny ε: the scale of g says nothing, its sign does
        beta1, beta2, tiny = 0.9, 0.999, 1e-12
        self.moment.lerp_(g, 1 - beta1)
        self.moment2.lerp_(g * g, 1 - beta2)
        correction = math.sqrt(1 - beta2**self.updates)
        rate = self.lr * correction / (1 - beta1**self.updates)
        self.log.addcdiv_(self.moment, self.moment2.sqrt().add_(tiny * correction), value=-rate)
        torch.clamp(self.log, self.log_min, self.log_max, out=self.log)
        if kept is not None:
            known = g.isfinite().all()
            for now, then in zip(before, kept, strict=True):
                now.copy_(torch.where(known, now, then))
        if self.names:
            self.expose()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, the pending hypergradient included. Live tensors: save or copy them."""
        return {k: getattr(self, k) for k in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.log.device
        for k, value in copy.deepcopy({k: state[k] for k in STATE}).items():
            setattr(self, k, moved(value, device))
        self.expose()


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a list or tuple of them, on a device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(moved(v, device) for v in value) if isinstance(value, list | tuple) else value


STATE = (
    "log", "moment", "moment2", "mean_gap", "updates", "step", "perturbations", "curved", "hyper", "hypergradient",
    "gap",
)  # fmt: skip
