"""SAMPa: the two gradients of a step at once, on two processes or groups of them.

    x̃_t     = x_t + ρ u(∇A_{B_t}(y_t))
    y_{t+1} = Opt(x_t, ∇L_{B_t}(y_t))                               the base optimizer's own step, not kept
    x_{t+1} = Opt(x_t, (1 − λ) ∇L_{B_t}(x̃_t) + λ ∇L_{B_{t+1}}(y_{t+1}))

∇L(x̃_t) and ∇(y_{t+1}) do not need each other: role 0 computes the first, on the step's batch, role 1 the second, on
the next one, which is where the next step's ascent comes from. One exchange of both follows, so that λ = 0 works and
every process makes the same update. On one process both are computed after each other, to the same result.

∇L(x_t) is never computed: the secant of a learned radius pays a gradient for it, and its hypergradient has the factor
1 − λ. Batch-norm statistics move at y.

Source: W. Xie, T. Pethick, V. Cevher, "SAMPa: Sharpness-aware Minimization Parallelized", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .batchnorm import frozen_statistics
from .comm import Roles, Tensors
from .lookahead import innermost
from .radius import Perturbed
from .step import BACKWARD, Step, StepStats, add, finite, pieces


class Parallel(Step):
    """One step of SAMPa; see the module's docstring.

    Args:
        lam: λ in [0, 1], the weight of ∇L(y_{t+1}) in the update.
        comm: `Roles` for two roles; else this process plays both.
        others: see `Sequential`. A radius of any kind; l2, adaptive or subset geometry.

    Example:
        >>> from bisam_ray.optim import FixedRadius, Losses
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> def evaluate(batch):
        ...     loss = (w * w).sum()
        ...     return Losses(loss, loss)
        >>> step = Parallel([w], torch.optim.SGD([w], lr=0.1), evaluate, FixedRadius(0.1))
        >>> stats = step(None, following=lambda: None)
        >>> [round(x, 3) for x in w.tolist()]
        [0.797, 0.797]
    """

    def __init__(self, *args: Any, lam: float = 0.2, **options: Any) -> None:
        super().__init__(*args, **options)
        if not 0 <= lam <= 1:
            raise ValueError(f"lam={lam}: must lie in [0, 1]")
        if self.radius is None:
            raise ValueError("SAMPa without a radius is the base optimizer: use Sequential")
        self.roles = self.comm if isinstance(self.comm, Roles) else None
        if self.roles is not None and getattr(self.radius, "curvature", "secant") != "secant":
            raise ValueError("SAMPa on several processes learns its radius by curvature='secant' only")
        self.lam = lam
        # of the last exchange: L(y_t), ∇L(y_t), and ∇A(y_t) where the ascent climbs something else
        self.loss: Tensor | None = None
        self.k: list[Tensor] = []
        self.a: list[Tensor] = []

    def __call__(
        self, batch: Any, hyper: Callable[[], Any] | None = None, following: Callable[[], Any] | None = None
    ) -> StepStats:
        """Make one step on `batch`; `following` draws the batch of the next step, `hyper` one of held-out data."""
        radius, self.cost = self.radius, 0.0
        assert radius is not None
        if following is None:
            raise ValueError("SAMPa looks one batch ahead: pass following=, a function that draws the next batch")
        self.step += 1
        if not self.k:  # y_0 = x_0
            with frozen_statistics(self.norm_layers):
                self.keep(self.averaged(self.extrapolated(batch)))
        here = self.measured(batch) if radius.needs_gradient() else (None, None)
        rho = radius.on_ascent(*here)
        del here
        loss, k = self.loss, self.k
        assert loss is not None
        norm = self.ball.aim(self.a or k, rho, seed=self.step)

        descent: list[Tensor] = []
        ahead: list[Tensor] = []
        if self.roles is None or self.roles.role == 0:
            with self.ball.there(), frozen_statistics(self.norm_layers):
                perturbed_loss, gradient = self.gradient(batch, radius.needs_graph())
                product = partial(self.product, batch, gradient, 1.0)
                radius.on_perturbed(Perturbed(gradient, self.ball.epsilon, list, product))
            descent = [perturbed_loss, *(t.detach() for t in gradient)]
        if self.roles is None or self.roles.role == 1:
            lost = self.scaler is not None and not finite(k)  # y is nowhere then, which statistics must not see
            with extrapolation(self.base, self.params, k), frozen_statistics(self.norm_layers if lost else []):
                ahead = self.extrapolated(following())
        if self.roles is None:
            descent, ahead = self.averaged(descent), self.averaged(ahead)
        else:
            like = [loss, *self.params]
            self.cost += (1 + BACKWARD if self.a else 1) if self.roles.role == 0 else 1  # what the other one computed
            descent, ahead = self.roles.exchange(descent or ahead, like, [*like, *self.params] if self.a else like)
        perturbed_loss, *h = descent
        self.keep(ahead)
        mixed = torch._foreach_mul(h, 1 - self.lam)
        torch._foreach_add_(mixed, self.k, alpha=self.lam)
        if not self.descend(mixed, h, 1 - self.lam):
            self.k = []  # it may have overflowed: the next step starts anew, from y = x
        self.learn(batch, hyper)
        shown = torch.stack(rho).mean() if isinstance(rho, list) else rho
        return StepStats(loss, norm, perturbed_loss, shown, self.cost)

    @torch.enable_grad()
    def extrapolated(self, batch: Any) -> list[Tensor]:
        """[L, ∇L…] at the present weights, and [∇A…] behind them where the ascent climbs another objective."""
        loss: Tensor | None = None
        k: Tensors | None = None
        a: Tensors | None = None
        for piece, share in pieces(batch, self.accumulate):
            losses = self.evaluate(piece)
            if losses.ascent is not losses.descent:
                value = losses.ascent() if callable(losses.ascent) else losses.ascent
                a = add(a, self.differentiate(value, retain_graph=True), share)
                self.cost += BACKWARD * share
            k = add(k, self.differentiate(losses.descent), share)
            value = losses.descent.detach() * share
            loss = value if loss is None else loss + value
        self.cost += 1
        assert loss is not None
        return [loss, *(k or ()), *(a or ())]

    def averaged(self, tensors: list[Tensor]) -> list[Tensor]:
        """Means over the processes that share a batch."""
        if self.comm.world > 1:
            tensors = [t.clone() for t in tensors]
            self.comm.mean_(tensors)
        return tensors

    def keep(self, ahead: list[Tensor]) -> None:
        self.loss, n = ahead[0], len(self.params)
        self.k, self.a = list(ahead[1 : n + 1]), list(ahead[n + 1 :])

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss": self.loss, "k": self.k, "a": self.a}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        device = self.params[0].device
        self.loss = None if state["loss"] is None else state["loss"].to(device)
        self.k, self.a = ([t.to(device) for t in state[name]] for name in ("k", "a"))


@contextmanager
def extrapolation(base: torch.optim.Optimizer, params: Tensors, gradient: Tensors) -> Iterator[None]:
    """Inside the context the parameters are where the base optimizer's step along `gradient` leads.

    Momentum, decay and all; afterwards parameters and optimizer are what they were. Of Lookahead or RAPP it is the
    step of the optimizer within.
    """
    inner = innermost(base)
    weights = [p.data for p in params]
    before = {
        p: {name: v.clone() if isinstance(v, Tensor) else v for name, v in inner.state[p].items()}
        for p in params
        if p in inner.state
    }
    try:
        for p, w, g in zip(params, weights, gradient, strict=True):
            p.data, p.grad = w.clone(), g
        inner.step()
        inner.zero_grad(set_to_none=True)
        for p in params:
            if p in before:
                inner.state[p].update(before[p])
            else:
                inner.state.pop(p, None)
        yield
    finally:
        for p, w in zip(params, weights, strict=True):
            p.data = w
