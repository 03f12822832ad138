"""What one optimizer step is: ascend, descend at the perturbed weights, restore, update, and learn the radius."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .batchnorm import frozen_statistics, tracking_layers
from .comm import Comm, Solo, Tensors, laid_out, owned
from .perturbation import Geometry, Perturbation, Radii, dot, global_norm
from .radius import LossGradient, Perturbed, RadiusPolicy
from .sensitivity import sensitivity

Scope = Literal["local", "global"] | int
Between = Literal["plain", "direction", "descent"]
BACKWARD = 2 / 3  # the share of a gradient's cost that its backward pass is
FORWARD = 1 - BACKWARD
HESSIAN_PRODUCT = 2.0  # differentiating a gradient once more: as measured, about two gradients


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


@dataclass
class Ascent:
    """The first pass: what it found at θ."""

    loss: Tensor | None = None  # L_B(θ)
    a: Tensors | None = None  # ∇A_B(θ)
    g: Tensors | None = None  # ∇L_B(θ), where the radius policy needs it
    averaged: bool = False  # whether a is the mean over all processes already
    slopes: list[Tensors] = field(default_factory=list)  # ∂a/∂θ_k for the policy's parameters
    examples: Tensor | None = None  # L_i(θ) of every example


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


class Sequential(Step):
    """One step of any ascent objective × geometry × radius policy, two passes after each other.

        1. a = ∇A_B(θ),  g = ∇L_B(θ) where the radius policy needs it      (one forward pass)
        2. ε = ρu(a)
        3. h = ∇L_B(θ + ε)                                                 (statistics frozen, same randomness)
        4. θ ← Opt(θ, h), from the exactly restored weights
        5. the radius policy's upper level at the new weights

    Cheaper: an ascent at every k-th step only (`every`), or on a part of the batch (`ascent_fraction`), or a descent
    on the examples whose loss rises most (`gamma`).

    Args:
        params: the trainable parameters, all of them reached by the loss.
        base: the base optimizer over the same parameters; its step sees h in .grad.
        evaluate: batch → Losses, one forward pass in training mode. Called again for the same batch it must draw the
            same randomness (dropout masks), or the secant of the two gradients measures the difference of the masks.
        radius: the radius policy; None makes the plain step of the base optimizer, one gradient.
        geometry, xi, beta, renormalise, exchange: see `Perturbation`.
        model: whose batch-norm statistics move in a step's first pass only.
        comm: means over the processes.
        scope: whose examples share a perturbation. "local": those of each process; "global": all; m: every m
            examples (m-sharpness), whatever the number of processes; needs equal parts.
        every: an ascent at every k-th step.
        between: what the other steps do: "plain" steps of the base optimizer, or a perturbation along the last ascent
            gradient ("direction") or the last descent gradient ("descent"), one gradient a step all three.
        ascent_fraction: in (0, 1]: the share of the examples, the first ones, that the ascent gradient sees.
        gamma: in (0, 1]: the share of the examples, those with the largest L_i(θ + ε) − L_i(θ), that the descent
            gradient sees (ESAM); at the price of one more forward pass.
        accumulate: parts into which a batch is cut for every pass, to save memory. Batch norm sees the parts.
        clip: largest norm of the descent gradient; the ascent gradient is never clipped.
        scaler: loss scaler for float16; the ascent direction does not depend on its scale.

    A batch is a tensor, or a tuple, list or dict of them with the examples along the first dimension (anything at all
    where it need not be cut).

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
        scope: Scope = "local",
        every: int = 1,
        between: Between = "plain",
        ascent_fraction: float = 1.0,
        gamma: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(params, base, evaluate, radius, geometry, xi, **options)
        if every < 1 or not 0 < ascent_fraction <= 1 or not 0 < gamma <= 1:
            raise ValueError(f"every={every} ≥ 1, ascent_fraction={ascent_fraction} and gamma={gamma} in (0, 1] needed")
        if between not in ("plain", "direction", "descent"):
            raise ValueError(f"between={between!r}: expected one of plain, direction, descent")
        if gamma < 1 and getattr(radius, "curvature", None) == "secant":
            raise ValueError("curvature='secant': with gamma < 1 the two gradients see different examples")
        if gamma < 1 and (ascent_fraction < 1 or (every > 1 and between != "plain")):
            raise ValueError(f"gamma={gamma}: needs the loss of every example before the perturbation, at every step")
        self.scope, self.every, self.between = scope, every, between
        self.ascent_fraction, self.gamma = ascent_fraction, gamma
        self.ranks = 1  # processes that share a perturbation, when scope is a number
        self.kept: list[list[Tensor]] = []  # the gradients that `between` ascends, one for each perturbation

    def __call__(self, batch: Any, hyper: Callable[[], Any] | None = None) -> StepStats:
        """Make one step on `batch`; `hyper` draws a batch of held-out data when the radius policy asks for one."""
        radius, self.cost = self.radius, 0.0
        ascends = self.step % self.every == 0 or (self.between != "plain" and not self.kept)
        self.step += 1
        if radius is None or (not ascends and self.between == "plain"):
            return self.plain(batch)
        parts = list(self.parts(batch))
        loss = g = None
        if needs_g := radius.needs_gradient():
            # a learned radius looks at all of ∇L_B(θ) before it says how far to go
            firsts = [self.ascend(part, share, ascends, True) for part, share in parts]
            loss, g = together((f.loss, f.g, share) for f, (_, share) in zip(firsts, parts, strict=True))
            if self.comm.world > 1 and self.scope != "global" and g is firsts[0].a:
                firsts = [replace(firsts[0], a=torch._foreach_clone(g))]  # it climbs its own, not the mean
            loss, g = self.mean(loss, g)
            if self.scope == "global" and firsts[0].a is firsts[0].g:
                firsts = [replace(firsts[0], a=g, averaged=True)]
        rho = radius.on_ascent(loss, g)
        del g  # what is kept of it, the policy keeps: from here on a copy of the parameters is memory to save
        seen = [
            self.perturb(i, part, share, firsts.pop(0) if needs_g else self.ascend(part, share, ascends, False), rho)
            for i, (part, share) in enumerate(parts)
        ]
        first_losses, norms = [entry[0] for entry in seen], [entry[1] for entry in seen]
        perturbed_loss, h = self.mean(*together(passed for _, _, passed in seen))
        del seen
        if not self.descend(h):
            self.kept = []  # they may have overflowed
        del h
        self.learn(batch, hyper)
        if loss is None:
            known = [value for value in first_losses if value is not None]  # none where the last direction is kept
            loss = sum(known[1:], start=known[0]) if known else perturbed_loss
        shown = torch.stack(rho).mean() if isinstance(rho, list) else rho
        return StepStats(loss, norms[0], perturbed_loss, shown, self.cost)

    @torch.enable_grad()
    def ascend(self, batch: Any, part: float, ascends: bool, needs_g: bool) -> Ascent:
        """The pass at θ: what is asked for of ∇A_B, ∇L_B, and the derivatives of the first by µ and α.

        `part`: the share of the step's examples that these are.
        """
        found = Ascent()
        alone = not ascends or self.ascent_fraction < 1  # ∇L_B does not come with ∇A_B then
        if needs_g and alone:
            found.loss, found.g = self.gradient(batch, cost=part)
        if not ascends:
            return found
        if self.ascent_fraction < 1:
            batch = rows(batch, slice(max(1, round(self.ascent_fraction * length(batch)))))
        self.cost += part * self.ascent_fraction
        inner = self.radius.parameters if self.radius is not None else []
        examples = []
        loss: Tensor | None = None
        with frozen_statistics(self.norm_layers) if needs_g and alone else nullcontext():
            for piece, share in pieces(batch, self.accumulate):
                losses = self.evaluate(piece)
                shared = losses.ascent is losses.descent
                value = losses.ascent() if callable(losses.ascent) else losses.ascent
                needs_own = needs_g and not alone and not shared
                along = torch.autograd.grad(value, inner, create_graph=True) if inner else ()
                a = self.differentiate(value, retain_graph=needs_own or bool(inner))
                slopes = [list(self.differentiate(s, retain_graph=True)) for s in along]
                if needs_own:
                    found.g = add(found.g, self.differentiate(losses.descent), share)
                    self.cost += BACKWARD * share * part
                self.cost += BACKWARD * len(slopes) * share * part
                found.a = add(found.a, a, share)
                earlier: list[Any] = found.slopes or [None] * len(slopes)
                found.slopes = [add(t, s, share) for t, s in zip(earlier, slopes, strict=True)]
                descent = losses.descent.detach()
                loss = part_of(descent, share) if loss is None else loss + share * descent
                if self.gamma < 1 and losses.examples is not None:
                    with torch.no_grad():
                        examples.append(losses.examples())
        if found.loss is None:
            found.loss = loss
        if needs_g and not alone and shared:
            found.g = found.a
        found.examples = torch.cat(examples) if examples else None
        return found

    def perturb(
        self, i: int, batch: Any, share: float, first: Ascent, rho: Any
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor, Tensors, float]]:
        """The pass at θ + ε, for one part of the batch: (share of L(θ), ‖a‖, (L(θ + ε), h, share))."""
        radius = self.radius
        assert radius is not None
        loss = None if first.loss is None else part_of(first.loss, share)
        visited = first.loss is not None  # statistics have moved at θ, where they should
        a = first.a if first.a is not None else self.kept[i]
        sharing = {"local": 1, "global": self.comm.world}.get(str(self.scope), self.ranks)  # processes
        if sharing > 1 and not first.averaged:
            a, first = owned(a), replace(first, slopes=[owned(s) for s in first.slopes])
            self.comm.subgroup(sharing).mean_([*a, *chain.from_iterable(first.slopes)])
        norm = self.ball.aim(a, rho, seed=self.step)
        slopes = partial(self.derivatives, a if first.slopes else (), first.slopes, rho)  # else a stays alive
        if self.every > 1 and self.between == "direction":
            self.kept[i : i + 1] = [list(torch._foreach_clone(a))]  # the memory of a may be the policy's, too
        before = first.examples
        del first, a
        with self.ball.there(), frozen_statistics(self.norm_layers) if visited else nullcontext():
            if self.gamma < 1:
                batch = self.rising(batch, before)
                self.cost += FORWARD * share
            perturbed_loss, h = self.gradient(batch, radius.needs_graph(), self.gamma * share)
            shown: Tensors = h
            if sharing > 1 and getattr(radius, "curvature", None) == "diagonal":  # not linear in h
                self.comm.subgroup(sharing).mean_(shown := [t.detach().clone() for t in h])
            product = partial(self.product, batch, h, share)
            radius.on_perturbed(Perturbed(shown, self.ball.epsilon, slopes, product), share)
        if radius.needs_graph():
            h = [t.detach() for t in h]
        if self.every > 1 and self.between == "descent":
            self.kept[i : i + 1] = [list(torch._foreach_clone(h))]  # torch's Nesterov writes to .grad
        return loss, norm, (perturbed_loss, h, share)

    def derivatives(self, a: Tensors, slopes: list[Tensors], rho: Radii) -> list[Tensors]:
        """∂ε/∂θ_k; zero in a step in between, whose ascent gradient is an earlier one."""
        if not slopes and self.radius is not None:
            return [[torch.zeros_like(p) for p in self.params] for _ in self.radius.parameters]
        return [self.ball.derivative(a, slope, rho, self.step) for slope in slopes]

    @torch.no_grad()
    def rising(self, batch: Any, before: Tensor | None) -> Any:
        """The share γ of the examples whose loss rose most."""
        if before is None:
            raise ValueError("gamma < 1 needs Losses.examples, the loss of every example")
        after = []
        for piece, _ in pieces(batch, self.accumulate):
            examples = self.evaluate(piece).examples
            assert examples is not None
            after.append(examples())
        rise = torch.cat(after) - before
        return rows(batch, rise.topk(max(1, round(self.gamma * len(rise)))).indices)

    def parts(self, batch: Any) -> Iterable[tuple[Any, float]]:
        """The examples of this process, cut so that each part has a perturbation of its own; with their shares."""
        if not isinstance(self.scope, int):
            return [(batch, 1.0)]
        size, m = length(batch), self.scope
        if (m % size and size % m) or self.comm.world % max(1, m // size):
            raise ValueError(
                f"scope={m}: must divide the {size} examples of a process, or be a multiple of them that divides "
                f"those of {self.comm.world} processes"
            )
        self.ranks = max(1, m // size)
        return pieces(batch, max(1, size // m))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept = [[t.to(p.device) for t, p in zip(k, self.params, strict=True)] for k in state["kept"]]


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


def together(parts: Iterable[tuple[Any, Any, float]]) -> tuple[Tensor, Tensors]:
    """(loss, gradient) of the whole from those of its parts and their shares."""
    loss: Tensor | None = None
    gradient: Tensors | None = None
    for value, found, share in parts:
        loss = part_of(value, share) if loss is None else loss + share * value
        gradient = add(gradient, found, share)
    assert loss is not None
    assert gradient is not None
    return loss, gradient


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
