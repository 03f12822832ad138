"""Radius policies: which ρ a step uses. Fixed and scheduled here; learned in lets.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .comm import Tensors

LossGradient = tuple[Tensor, Tensors]


@dataclass
class Perturbed:
    """What a policy may look at while the weights are at θ + ε."""

    h: Tensors  # ∇L_B(θ + ε), of this process and these examples
    epsilon: Callable[[], Tensors]
    slopes: Callable[[], list[Tensors]]  # ∂ε/∂θ_k for every one of the policy's `parameters`
    product: Callable[[Tensors], Tensors]  # t ↦ ∇²L_B(θ + ε) t, as the policy's `curvature` asks


class RadiusPolicy(Protocol):
    """Decides ρ, and may look at what a step computes anyway.

    A step calls, in this order: `needs_gradient`, `on_ascent`, `on_perturbed` (for each perturbation of the step),
    `on_descent`, `after_update`. A step without a perturbation calls only the first two, with ascends=False.
    """

    hypergradient: Tensor | None  # dJ/d log ρ of the last completed upper-level update, 0-d
    gap: Tensor | None  # L_V − L_B' of the same update, 0-d
    parameters: list[Tensor]  # 0-d leaves of the ascent objective that are learned too (µ, α)

    def needs_gradient(self, ascends: bool = True) -> bool:
        """Whether this step must hand over ∇L_B(θ), even if its ascent objective is another one."""

    def needs_graph(self) -> bool:
        """Whether ∇L_B(θ + ε) must be differentiable."""

    def on_ascent(self, loss: Tensor | None, gradient: Tensors | None, ascends: bool = True) -> Any:
        """Given L_B(θ) and ∇L_B(θ) (mean over all processes) if needed, return this step's ρ (or one per parameter)."""

    def on_perturbed(self, seen: Perturbed, share: float = 1.0) -> None:
        """At θ + ε; several perturbations of one step come with their share of its examples."""

    def on_descent(self, h: Tensors, sensitivity: Callable[[Tensors], Tensors]) -> None:
        """Given h (mean over all processes) and v ↦ ∂θ⁺/∂h v up to sign, before the base optimizer's update."""

    def after_update(self, batch_loss: Callable[[], LossGradient], hyper_loss: Callable[[], LossGradient]) -> None:
        """At the new weights; each argument evaluates (loss, gradient): on the step's batch, on a hyper batch."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def warmup_factor(step: int, warmup: float, total_steps: int) -> float:
    """Linear ramp from 0 at the first step to 1 after the fraction `warmup` of training."""
    ramp = warmup * total_steps
    return 1.0 if step >= ramp else step / ramp


class ScheduledRadius:
    """ρ(t) = ρ(t/T) · min(1, t / (warmup · T)) for any function of the fraction of training; see shapes.py.

    Args:
        rho: s ∈ [0, 1] ↦ ρ ≥ 0.
        warmup: fraction of training, in [0, 1), over which the radius grows from zero. Radii that slow or trap a
            network in its first steps are often the best ones later.
        total_steps: T, the number of optimizer steps of the run.

    Example:
        >>> radius = ScheduledRadius(lambda s: 1 - s, total_steps=4)
        >>> [radius.on_ascent(None, None) for _ in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    hypergradient: Tensor | None = None
    gap: Tensor | None = None

    def __init__(self, rho: Callable[[float], float], warmup: float = 0.0, total_steps: int = 1) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup}: a fraction of training, in [0, 1)")
        self.rho, self.warmup, self.total_steps = rho, warmup, total_steps
        self.parameters: list[Tensor] = []
        self.step = 0

    def needs_gradient(self, ascends: bool = True) -> bool:
        return False

    def needs_graph(self) -> bool:
        return False

    def on_ascent(self, loss: Tensor | None, gradient: Tensors | None, ascends: bool = True) -> float:
        rho = self.rho(self.step / self.total_steps) * warmup_factor(self.step, self.warmup, self.total_steps)
        self.step += 1
        return rho

    def on_perturbed(self, seen: Perturbed, share: float = 1.0) -> None:
        pass

    def on_descent(self, h: Tensors, sensitivity: Callable[[Tensors], Tensors]) -> None:
        pass

    def after_update(self, batch_loss: Callable[[], LossGradient], hyper_loss: Callable[[], LossGradient]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


class FixedRadius(ScheduledRadius):
    """ρ(t) = ρ · min(1, t / (warmup · T)): a constant radius, after a linear warm-up.

    Example:
        >>> radius = FixedRadius(0.1, warmup=0.5, total_steps=4)
        >>> [round(radius.on_ascent(None, None), 3) for _ in range(4)]
        [0.0, 0.05, 0.1, 0.1]
    """

    def __init__(self, rho: float, warmup: float = 0.0, total_steps: int = 1) -> None:
        if rho < 0:
            raise ValueError(f"rho={rho}: the radius must not be negative")
        super().__init__(lambda _: rho, warmup, total_steps)


class FollowsLR(ScheduledRadius):
    """ρ(t) = ρ · η(t)/η₀: the radius shrinks as the learning rate does (GSAM: Zhuang et al., 2022).

    Args:
        base: whose first group's learning rate is followed; η₀ is its "initial_lr" where a scheduler set one.
    """

    def __init__(self, rho: float, base: torch.optim.Optimizer, warmup: float = 0.0, total_steps: int = 1) -> None:
        if rho < 0:
            raise ValueError(f"rho={rho}: the radius must not be negative")
        group = base.param_groups[0]
        first = float(group.get("initial_lr", group["lr"]))
        super().__init__(lambda _: rho * float(base.param_groups[0]["lr"]) / first, warmup, total_steps)
