"""What one optimizer step is: ascend, descend at the perturbed weights, restore, update, and learn the radius."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .batchnorm import frozen_statistics, tracking_layers
from .comm import Comm, Solo, Tensors
from .perturbation import Geometry, global_norm, perturbation, perturbed
from .radius import LossGradient, RadiusPolicy

Scope = Literal["local", "global"]
BACKWARD = 2 / 3  # the share of a gradient's cost that its backward pass is


@dataclass
class Losses:
    """The two losses of a batch, from one forward pass.

    `ascent` is the very tensor `descent` when the ascent climbs the descent loss; another objective may be a function
    that computes it, since only the first of a step's passes asks for it.
    """

    ascent: Tensor | Callable[[], Tensor]
    descent: Tensor


@dataclass
class StepStats:
    """What a step saw, as 0-d tensors on the device (nothing here waits for it)."""

    loss: Tensor  # L_B(θ), the descent loss before the update
    grad_norm: Tensor  # norm of the ascent gradient, in the geometry's metric
    perturbed_loss: Tensor  # L_B(θ + ε)
    rho: Tensor | float
    cost: float  # gradient evaluations; one backward pass without its forward pass counts ⅔

    @property
    def sharpness(self) -> Tensor:
        """L_B(θ + ε) − L_B(θ)."""
        return self.perturbed_loss - self.loss


class Sequential:
    """One step of any ascent objective × geometry × radius policy, two passes after each other.

        1. a = ∇A_B(θ),  g = ∇L_B(θ) where the radius policy needs it      (one forward pass)
        2. ε = ρu(a)
        3. h = ∇L_B(θ + ε)                                                 (statistics frozen, same randomness)
        4. θ ← Opt(θ, h), from the exactly restored weights
        5. the radius policy's upper level at the new weights

    Args:
        params: the trainable parameters, all of them reached by the loss.
        base: the base optimizer over the same parameters; its step sees h in .grad.
        evaluate: batch → Losses, one forward pass in training mode. Called again for the same batch it must draw the
            same randomness (dropout masks), or the secant of the two gradients measures the difference of the masks.
        radius: the radius policy; None makes the plain step of the base optimizer, one gradient.
        geometry, xi: see `perturbation`.
        model: whose batch-norm statistics move in the first pass only.
        comm, scope: means over the processes. "local": every process ascends its own batch; "global": the mean.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> sgd = torch.optim.SGD([w], lr=0.1)
        >>> from bisam_ray.optim.radius import FixedRadius
        >>> def evaluate(batch):
        ...     loss = (w * w).sum()
        ...     return Losses(loss, loss)
        >>> step = Sequential([w], sgd, evaluate, FixedRadius(0.1))
        >>> round(step(None).sharpness.item(), 4)
        0.2928
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        base: torch.optim.Optimizer,
        evaluate: Callable[[Any], Losses],
        radius: RadiusPolicy | None,
        geometry: Geometry = "l2",
        xi: float = 0.01,
        model: nn.Module | None = None,
        comm: Comm | None = None,
        scope: Scope = "local",
    ) -> None:
        self.params, self.base, self.evaluate, self.radius = list(params), base, evaluate, radius
        self.geometry, self.xi, self.scope = geometry, xi, scope
        self.norm_layers = tracking_layers(model) if model is not None else []
        self.comm = comm or Solo()

    def __call__(self, batch: Any, hyper: Callable[[], Any] | None = None) -> StepStats:
        """Make one step on `batch`; `hyper` draws a batch of held-out data when the radius policy asks for one."""
        if self.radius is None:
            return self.plain(batch)
        radius, cost = self.radius, 2.0

        losses = self.evaluate(batch)
        loss = losses.descent.detach()
        needs_g, shared = radius.needs_gradient(), losses.ascent is losses.descent
        ascent = losses.ascent() if callable(losses.ascent) else losses.ascent
        a: Tensors = torch.autograd.grad(ascent, self.params, retain_graph=needs_g and not shared)
        g: Tensors = a
        if needs_g:
            if not shared:
                g = torch.autograd.grad(losses.descent, self.params)
                cost += BACKWARD
            if self.comm.world > 1:
                loss, g = loss.clone(), [t.clone() for t in g]  # a local ascent is still needed as it is
                self.comm.mean_([loss, *g])
        if self.scope == "global" and self.comm.world > 1:
            if needs_g and shared:
                a = g
            else:
                self.comm.mean_(a)

        rho = radius.on_ascent(loss, g if needs_g else None)
        epsilon, norm = perturbation(self.params, a, rho, self.geometry, self.xi)
        with perturbed(self.params, epsilon), frozen_statistics(self.norm_layers):
            perturbed_loss, h = self.gradient(batch)
        radius.on_descent(h, epsilon)
        del a, g, epsilon
        self.update(h)

        def counted(draw: Callable[[], Any]) -> Callable[[], LossGradient]:
            def evaluate() -> LossGradient:
                nonlocal cost
                cost += 1
                with frozen_statistics(self.norm_layers):
                    return self.gradient(draw())

            return evaluate

        radius.after_update(counted(lambda: batch), counted(hyper or missing_hyper))
        return StepStats(loss, norm, perturbed_loss, rho, cost)

    def plain(self, batch: Any) -> StepStats:
        """The base optimizer's own step."""
        loss, h = self.gradient(batch)
        self.update(h)
        return StepStats(loss, global_norm(h), loss, 0.0, 1.0)

    @torch.enable_grad()
    def gradient(self, batch: Any) -> tuple[Tensor, Tensors]:
        """(L, ∇L) of the descent loss at the present weights, means over the processes."""
        loss = self.evaluate(batch).descent
        gradient = torch.autograd.grad(loss, self.params)
        loss = loss.detach()
        self.comm.mean_([loss, *gradient])
        return loss, gradient

    def update(self, h: Tensors) -> None:
        for p, gradient in zip(self.params, h, strict=True):
            p.grad = gradient
        self.base.step()
        self.base.zero_grad(set_to_none=True)


def missing_hyper() -> Any:
    raise ValueError("this radius policy learns from held-out data: pass hyper=, a function that draws a batch of it")
