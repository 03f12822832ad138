"""What one optimizer step is: ascend, descend at the perturbed weights, restore, update, and learn the radius."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from .batchnorm import frozen_statistics
from .comm import Tensors, owned
from .perturbation import Geometry, Radii
from .radius import Perturbed, RadiusPolicy
from .step import BACKWARD, FORWARD, Losses, Step, StepStats, add, length, part_of, pieces, rows

Scope = Literal["local", "global"] | int
Between = Literal["plain", "direction", "descent"]


@dataclass
class Ascent:
    """The first pass: what it found at θ."""

    loss: Tensor | None = None  # L_B(θ)
    a: Tensors | None = None  # ∇A_B(θ)
    g: Tensors | None = None  # ∇L_B(θ), where the radius policy needs it
    averaged: bool = False  # whether a is the mean over all processes already
    slopes: list[Tensors] = field(default_factory=list)  # ∂a/∂θ_k for the policy's parameters
    examples: Tensor | None = None  # L_i(θ) of every example


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
