"""SAM as a torch optimizer, for anybody's own training loop.

    1. a = ∇A(w)              ascent gradient: of the loss (SAM), or of another objective (BiSAM: `lower_bound`)
    2. ε = ρ u(a)             see perturbation.py
    3. h = ∇L(w + ε)
    4. w ← Opt(w, h)          Opt: any torch optimizer

Source: P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", 2021; adaptive: J. Kwon, J. Kim, H. Park, I. K. Choi, "ASAM", 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import frozen_statistics
from .comm import Tensors
from .lets import LETS
from .perturbation import Perturbation
from .radius import LossGradient, Perturbed
from .sensitivity import sensitivity

Closure = Callable[[], Tensor]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization around any base optimizer.

    Args:
        params: parameters or parameter groups; a group may carry its own "rho".
        base_optimizer: class of the base optimizer, e.g. torch.optim.SGD; or any function of (groups, **base_kwargs).
        rho: radius ρ ≥ 0 of the perturbation, in the norm of all groups together.
        adaptive: perturb each weight in proportion to its size (ASAM; its radii are about ten times larger).
        xi: ξ ≥ 0 of the adaptive geometry.
        model: if given, its batch-norm statistics do not move at the perturbed weights.
        lets: options of `LETS`: learn the radius, starting from rho. `step` needs a hyper_closure then.
        **base_kwargs: arguments of the base optimizer (lr, momentum, …).

    Raises:
        ValueError: rho < 0, or options of LETS that do not go together.
        RuntimeError: a call out of order, or no gradient to ascend.

    Example (closures; the optimizer zeroes the gradients itself):
        >>> model = torch.nn.Linear(2, 2)
        >>> x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
        >>> opt = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)

    Example (two calls):
        >>> _ = closure(); opt.first_step()
        >>> _ = closure(); opt.second_step()

    BiSAM: `opt.step(closure, ascent_closure)`, where ascent_closure runs `lower_bound(model(x), y).backward()`.
    Gradient accumulation: call backward() for every part of the batch, in both passes. Clipping: clip the gradients
    between the second backward() and `second_step`. A loss scaler: `second_step(scaler)`; see the README.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        xi: float = 0.01,
        model: nn.Module | None = None,
        lets: dict[str, Any] | None = None,
        **base_kwargs: Any,
    ) -> None:
        self.base_optimizer: torch.optim.Optimizer | None = None
        self.geometry, self.xi, self.model = ("adaptive" if adaptive else "l2"), xi, model
        self.ball: Perturbation | None = None
        self.ascended = ExitStack()  # leaving it restores the weights; empty between steps
        self.is_ascended = False
        super().__init__(params, {"rho": rho, **base_kwargs})
        for group in self.param_groups:
            if group["rho"] < 0:
                raise ValueError(f"rho={group['rho']}: the radius must not be negative")
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.share()
        self.radius: LETS | None = None
        if lets is not None:
            if lets.get("curvature") == "exact" or lets.get("learn"):
                raise ValueError("lets: closures leave no graph: not with curvature='exact' or learn; see Sequential")
            self.radius = LETS(self.trained(), self.base_optimizer, rho, **lets)

    def share(self) -> None:
        """One state and one list of groups for both: learning-rate schedulers and state_dict see the real thing."""
        assert self.base_optimizer is not None
        self.state, self.param_groups = self.base_optimizer.state, self.base_optimizer.param_groups

    def trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    @torch.no_grad()
    def first_step(self, zero_grad: bool = True, rho: Tensor | list[Tensor] | None = None) -> None:
        """Move to w + ε along the gradients at hand, then zero them; `rho`: another radius than the groups' own."""
        if self.is_ascended:
            raise RuntimeError("first_step twice: second_step must come between")
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        params = [p for _, members in groups for p in members]
        if not params:
            raise RuntimeError("no gradient to ascend: call backward() before first_step()")
        if rho is None:
            radii = [g["rho"] for g, members in groups for _ in members]
            rho = radii[0] if len(set(radii)) == 1 else radii
        if self.ball is None or [id(p) for p in self.ball.params] != [id(p) for p in params]:
            self.ball = Perturbation(params, self.geometry, self.xi)  # type: ignore[arg-type]
        self.ball.aim([p.grad for p in params], rho)
        self.ascended.enter_context(self.ball.there())
        if self.model is not None:
            self.ascended.enter_context(frozen_statistics(self.model))
        self.is_ascended = True
        if zero_grad:
            self.zero_grad()

    def restore(self) -> None:
        """Back to w, bit for bit."""
        self.ascended.close()
        self.is_ascended = False

    @torch.no_grad()
    def second_step(self, scaler: torch.amp.GradScaler | None = None, zero_grad: bool = True) -> None:
        """Restore w, update it with the gradients taken at w + ε, then zero them.

        Args:
            scaler: the loss scaler of both passes. The ascent needs no unscaling: its direction does not depend on the
                scale, and an overflow in it reaches the second pass as NaN, which the scaler then skips on every
                process. To clip, call `scaler.unscale_(opt.base_optimizer)` before, once; `scaler.update()` after.
        """
        if not self.is_ascended:
            raise RuntimeError("second_step without first_step")
        self.restore()
        assert self.base_optimizer is not None
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Closure | None = None,
        ascent_closure: Closure | None = None,
        hyper_closure: Closure | None = None,
    ) -> Tensor:
        """One whole step; returns the loss of `closure` at w + ε.

        Args:
            closure: forward, backward, return the loss; called at w (unless ascent_closure is given) and at w + ε.
            ascent_closure: the same for the ascent objective.
            hyper_closure: the same as closure on a batch of held-out data, for a learned radius; called after the
                update, and like closure at w it must not move batch-norm statistics: give `model=`.
        """
        if closure is None:
            raise RuntimeError("SAM.step needs a closure; or call first_step() and second_step()")
        self.zero_grad()
        if self.radius is not None:
            return self.learned_step(self.radius, closure, ascent_closure, hyper_closure)
        torch.enable_grad()(ascent_closure or closure)()
        self.first_step()
        try:
            loss = torch.enable_grad()(closure)()
        except BaseException:
            self.restore()
            raise
        self.second_step()
        return loss

    def learned_step(
        self, radius: LETS, closure: Closure, ascent_closure: Closure | None, hyper_closure: Closure | None
    ) -> Tensor:
        """One step with a learned radius."""
        if hyper_closure is None:
            raise RuntimeError("a learned radius needs hyper_closure: the loss and gradient of held-out data")
        assert self.base_optimizer is not None
        params = self.trained()

        def gradient(run: Closure, frozen: bool = True) -> LossGradient:
            with ExitStack() as stack:
                if frozen and self.model is not None:
                    stack.enter_context(frozen_statistics(self.model))
                loss = torch.enable_grad()(run)().detach()
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            self.zero_grad()
            return loss, found

        def product(t: Tensors) -> Tensors:
            raise ValueError("curvature='finite_difference' is for Sequential; here take 'secant' or 'diagonal'")

        needs, g = radius.needs_gradient(), None
        loss = None
        if needs or ascent_closure is None:
            loss, g = gradient(closure, frozen=False)
        a = g if ascent_closure is None else gradient(ascent_closure, frozen=needs)[1]
        rho = radius.on_ascent(loss, g)
        assert a is not None
        for p, each in zip(params, a, strict=True):
            p.grad = each
        self.first_step(rho=rho)
        try:
            loss, h = gradient(closure)
            assert self.ball is not None
            radius.on_perturbed(Perturbed(h, self.ball.epsilon, list, product))
        finally:
            self.restore()
        base = self.base_optimizer

        def answer(v: Tensors) -> Tensors:
            return [t * s for t, s in zip(v, sensitivity(base, params, h), strict=True)]

        radius.on_descent(h, answer)
        for p, each in zip(params, h, strict=True):
            p.grad = each
        base.step()
        self.zero_grad()
        radius.after_update(lambda: gradient(closure), lambda: gradient(hyper_closure))
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.base_optimizer is None:
            super().add_param_group(param_group)
        else:
            self.base_optimizer.add_param_group({"rho": self.defaults["rho"], **param_group})

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's complete state (momentum and all), the groups with their rho, and a learned radius."""
        if self.is_ascended:
            raise RuntimeError("state_dict between first_step and second_step: the weights are perturbed")
        assert self.base_optimizer is not None
        radius = {} if self.radius is None else {"radius": self.radius.state_dict()}
        return {**self.base_optimizer.state_dict(), **radius}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.base_optimizer is not None
        if (self.radius is None) != ("radius" not in state_dict):
            raise ValueError("state_dict: a learned radius is on one side only; give lets= as it was when saved")
        base = {k: v for k, v in state_dict.items() if k != "radius"}
        self.base_optimizer.load_state_dict(base)
        self.share()
        if self.radius is not None:
            self.radius.load_state_dict(state_dict["radius"])
