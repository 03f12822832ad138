"""What the steps of all schedules share: gradients of a batch, the update, the upper level, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import frozen_statistics, tracking_layers
from .comm import Comm, Solo, Tensors, laid_out, owned
from .perturbation import Geometry, Perturbation, dot, global_norm
from .radius import LossGradient, RadiusPolicy
from .sensitivity import sensitivity

BACKWARD = 2 / 3  # the share of a gradient's cost that its backward pass is
FORWARD = 1 - BACKWARD
HESSIAN_PRODUCT = 2.0  # of a gradient differentiated once more: about two gradients


@dataclass
class Losses:
    """The two losses of a batch, from one forward pass.

    `ascent` is the very tensor `descent` when the ascent climbs the descent loss; another objective may be a function
    that computes it, since only the first of a step's passes asks for it. `examples`: the descent loss of every
    example, which only the selection of data asks for.
    """

    ascent: Tensor | Callable[[], Tensor]
    descent: Tensor
    examples: Callable[[], Tensor] | None = None


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


class Step:
    """What all schedules share: gradients of a batch, the update, the upper level, and what they cost."""

    def __init__(
        self,
        params: Iterable[Tensor],
        base: torch.optim.Optimizer,
        evaluate: Callable[[Any], Losses],
        radius: RadiusPolicy | None,
        geometry: Geometry = "l2",
        xi: float = 0.01,
        beta: float = 1.0,
        renormalise: bool = False,
        model: nn.Module | None = None,
        comm: Comm | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        exchange: bool = True,
    ) -> None:
        self.params, self.base, self.evaluate, self.radius = list(params), base, evaluate, radius
        if not self.params:
            raise ValueError("no trainable parameter: every parameter has requires_grad=False, or the model has none")
        if accumulate < 1 or (clip is not None and clip <= 0):
            raise ValueError(f"accumulate={accumulate} ≥ 1 and clip={clip} > 0 needed")
        self.ball = Perturbation(self.params, geometry, xi, beta, renormalise, exchange)
        self.norm_layers = tracking_layers(model) if model is not None else []
        self.comm = comm or Solo()
        self.accumulate, self.clip = accumulate, clip
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.step, self.cost = 0, 0.0

    @torch.enable_grad()
    def gradient(self, batch: Any, graph: bool = False, cost: float = 1.0) -> tuple[Tensor, Tensors]:
        """(L, ∇L) of the descent loss at the present weights, on this process's examples."""
        total: Tensors | None = None
        loss: Tensor | None = None
        for piece, share in pieces(batch, self.accumulate):
            value = self.evaluate(piece).descent
            found = self.differentiate(value, create_graph=graph)
            value = value.detach() if share == 1 else value.detach() * share
            loss, total = value if loss is None else loss + value, add(total, found, share)
        assert loss is not None
        assert total is not None
        self.cost += cost
        return loss, total

    def differentiate(self, value: Tensor, **options: Any) -> Tensors:
        """Gradient by the parameters; with a loss scaler, of the scaled loss and divided by the scale again."""
        if self.scaler is not None:
            value, one = self.scaler.scale(value), value.detach().new_ones((), dtype=torch.float32)
        try:
            found: Tensors = torch.autograd.grad(value, self.params, **options)
        except RuntimeError:
            check_reached(value, self.params)
            raise
        found = [laid_out(g, p) for g, p in zip(found, self.params, strict=True)]
        return found if self.scaler is None else torch._foreach_div(found, self.scaler.scale(one))

    def mean(self, loss: Tensor, gradient: Tensors) -> LossGradient:
        """Means over the processes."""
        if self.comm.world == 1:
            return loss, gradient
        loss, gradient = loss.clone(), owned(gradient)
        self.comm.mean_([loss, *gradient])
        return loss, gradient

    def measured(self, batch: Any) -> LossGradient:
        """(L, ∇L) for the upper level: over all processes, without moving any statistics."""
        with frozen_statistics(self.norm_layers):
            return self.mean(*self.gradient(batch))

    def product(self, batch: Any, h: Tensors, share: float, t: Tensors) -> Tensors:
        """∇²L_B t at the present weights, where h = ∇L_B: h differentiated once more, or a difference."""
        assert self.radius is not None
        if self.radius.needs_graph():
            self.cost += HESSIAN_PRODUCT * share
            return torch.autograd.grad(h, self.params, t, retain_graph=True)
        with torch.no_grad(), frozen_statistics(self.norm_layers):
            size = global_norm(t)
            small = torch.finfo(size.dtype)
            delta = small.eps**0.5 * (1 + global_norm(self.params)) / size.clamp_min(small.tiny**0.5)
            weights = torch._foreach_clone(self.params)
            torch._foreach_add_(self.params, torch._foreach_mul(t, delta))
            try:
                _, moved = self.gradient(batch, cost=share)
            finally:
                torch._foreach_copy_(self.params, weights)
            return torch._foreach_div(torch._foreach_sub(moved, h), delta)

    def descend(self, gradient: Tensors, h: Tensors | None = None, share: float = 1.0) -> bool:
        """Update by the descent gradient (a mean over the processes).

        `gradient` is h itself, or h is `share` of it (SAMPa). It is clipped first, and what the weights answer to a
        change v of h follows: share · S ⊙ Cv, with C the derivative of the clipping. Under a loss scaler a gradient
        that is not finite skips the update and the learning.

        Returns:
            Whether the update was made.
        """
        norm = factor = None
        if self.scaler is not None:
            # unscale_ records what is not finite, and wants gradients times its scale. The optimizer is not left to
            # scaler.step: a fused SGD that skips its first step keeps uninitialised memory as its momentum
            scaled = torch._foreach_mul(gradient, self.scaler.scale(torch.ones((), device=gradient[0].device)))
            updates = finite(scaled)
            self.give(scaled)
            self.scaler.unscale_(self.base)
            self.scaler.update()
            if not updates:
                self.base.zero_grad(set_to_none=True)
                return False
        if self.clip is not None:
            norm = global_norm(gradient)
            factor = (self.clip / norm.clamp_min(1e-12)).clamp_max(1.0)
            applied: Tensors = torch._foreach_mul(gradient, factor)
        else:
            applied = gradient
        self.give(applied)

        def answer(v: Tensors) -> Tensors:
            if factor is not None and norm is not None:  # along the gradient a clipped one does not change
                along = torch.where(factor < 1, dot(gradient, v) / norm.square(), 0.0)
                for t, g in zip(v, gradient, strict=True):
                    t.addcmul_(g, along, value=-1).mul_(factor)
            for t, each in zip(v, sensitivity(self.base, self.params, applied), strict=True):
                t.mul_(share * each)
            return v

        if self.radius is not None:
            self.radius.on_descent(gradient if h is None else h, answer)
        self.base.step()
        for p in self.params:
            p.grad = None
        return True

    def give(self, gradient: Tensors) -> None:
        for p, g in zip(self.params, gradient, strict=True):
            p.grad = g

    def learn(self, batch: Any, hyper: Callable[[], Any] | None) -> None:
        """The radius policy's upper level, at the new weights."""
        assert self.radius is not None
        self.radius.after_update(lambda: self.measured(batch), lambda: self.measured((hyper or missing_hyper)()))

    def plain(self, batch: Any) -> StepStats:
        """The base optimizer's own step; its gradient may finish what an earlier step began to learn."""
        loss, h = self.mean(*self.gradient(batch))
        if self.radius is not None:
            self.radius.on_ascent(loss, h, ascends=False)
        norm = global_norm(h)  # before the update: torch's Nesterov writes to .grad
        self.descend(h)
        return StepStats(loss, norm, loss, 0.0, self.cost)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside weights, base optimizer and radius. Live tensors: save or copy them."""
        return {"step": self.step, "scaler": self.scaler.state_dict() if self.scaler is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


def check_reached(value: Tensor, params: Tensors) -> None:
    """Refuse parameters that a loss does not depend on; walks through its graph: for when a gradient has failed."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        if (node := nodes.pop()) is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    reached = {id(value), *(id(getattr(node, "variable", None)) for node in seen)}
    missed = [f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(params) if id(p) not in reached]
    if missed:
        raise ValueError(
            f"the loss does not depend on every parameter: not on number {', '.join(missed[:3])}"
            f"{f' and {len(missed) - 3} more' if len(missed) > 3 else ''} (requires_grad_(False), or leave them out)"
        )


def missing_hyper() -> Any:
    raise ValueError("this radius policy learns from held-out data: pass hyper=, a function that draws a batch of it")


def finite(tensors: Iterable[Tensor]) -> bool:
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all())


def add(total: Tensors | None, found: Tensors, share: float) -> Tensors:
    """total + share · found; the found tensors themselves where they are the whole."""
    if share == 1:
        return found
    found = torch._foreach_mul(found, share)
    return found if total is None else torch._foreach_add(total, found)


def part_of(value: Tensor, share: float) -> Tensor:
    """share · value, without an operation where it is the whole."""
    return value if share == 1 else share * value


def rows(batch: Any, chosen: slice | Tensor) -> Any:
    """Some examples of a batch: a tensor, or a tuple, list or dict of tensors, examples along the first dimension."""
    if isinstance(batch, Tensor):
        return batch[chosen if isinstance(chosen, slice) else chosen.to(batch.device)]
    if isinstance(batch, dict):
        return type(batch)((k, rows(v, chosen)) for k, v in batch.items())
    if isinstance(batch, tuple | list):
        cut = [rows(part, chosen) for part in batch]
        return type(batch)(*cut) if hasattr(batch, "_fields") else type(batch)(cut)
    raise TypeError(
        f"a batch of type {type(batch).__name__} cannot be cut: use tensors, or tuples, lists, dicts of them"
    )


def length(batch: Any) -> int:
    """How many examples a batch has."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return len(batch)


def pieces(batch: Any, n: int) -> Iterator[tuple[Any, float]]:
    """The batch in n parts of nearly equal size, each with its share of the examples."""
    if n == 1:
        yield batch, 1.0
        return
    size = length(batch)
    bounds = [round(i * size / n) for i in range(n + 1)]
    for low, high in pairwise(bounds):
        if high > low:
            yield rows(batch, slice(low, high)), (high - low) / size
