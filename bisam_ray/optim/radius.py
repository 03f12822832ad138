"""Radius policies: which ρ a step uses. Fixed here; learned in lets.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .comm import Tensors


class RadiusPolicy(Protocol):
    """Decides ρ, and may look at what a step computes anyway.

    A step calls, in this order: `needs_gradient`, `on_ascent`, `on_descent`, `after_update`.
    """

    hypergradient: Tensor | None  # dJ/d log ρ of the last completed upper-level update, 0-d
    gap: Tensor | None  # L_V − L_B' of the same update, 0-d

    def needs_gradient(self) -> bool:
        """Whether this step must hand over ∇L_B(θ), even if its ascent objective is another one."""

    def on_ascent(self, loss: Tensor, gradient: Tensors | None) -> Tensor | float:
        """Given L_B(θ) and ∇L_B(θ) (mean over all processes), return this step's ρ."""

    def on_descent(self, h: Tensors, epsilon: Tensors) -> None:
        """Given h = ∇L_B(θ + ε) (mean over all processes) and ε, before the base optimizer's update."""

    def after_update(self, batch_loss: Callable[[], LossGradient], hyper_loss: Callable[[], LossGradient]) -> None:
        """At the new weights; each argument evaluates (loss, gradient): on the step's batch, on a hyper batch."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


LossGradient = tuple[Tensor, Tensors]


def warmup_factor(step: int, warmup: float, total_steps: int) -> float:
    """Linear ramp from 0 at the first step to 1 after the fraction `warmup` of training."""
    ramp = warmup * total_steps
    return 1.0 if step >= ramp else step / ramp


class FixedRadius:
    """ρ(t) = ρ · min(1, t / (warmup · T)): a constant radius, after a linear warm-up.

    Args:
        rho: ρ ≥ 0.
        warmup: fraction of training, in [0, 1), over which the radius grows from zero. Radii that destroy a network
            in its first steps are often the best ones later.
        total_steps: T, the number of optimizer steps of the run.

    Example:
        >>> radius = FixedRadius(0.1, warmup=0.5, total_steps=4)
        >>> [round(radius.on_ascent(None, None), 3) for _ in range(4)]
        [0.0, 0.05, 0.1, 0.1]
    """

    hypergradient: Tensor | None = None
    gap: Tensor | None = None

    def __init__(self, rho: float, warmup: float = 0.0, total_steps: int = 1) -> None:
        if rho < 0:
            raise ValueError(f"rho={rho}: the radius must not be negative")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup}: a fraction of training, in [0, 1)")
        self.rho, self.warmup, self.total_steps = rho, warmup, total_steps
        self.step = 0

    def needs_gradient(self) -> bool:
        return False

    def on_ascent(self, loss: Tensor, gradient: Tensors | None) -> float:
        rho = self.rho * warmup_factor(self.step, self.warmup, self.total_steps)
        self.step += 1
        return rho

    def on_descent(self, h: Tensors, epsilon: Tensors) -> None:
        pass

    def after_update(self, batch_loss: Callable[[], LossGradient], hyper_loss: Callable[[], LossGradient]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
