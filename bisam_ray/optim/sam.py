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
from contextlib import ExitStack, nullcontext
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
        base_optimizer: class of the base optimizer, e.g. torch.optim.SGD; or any function of (groups, **base_kwargs),
            e.g. `lambda groups, **kwargs: Lookahead(torch.optim.SGD(groups, **kwargs))`.
        rho: radius ρ ≥ 0 of the perturbation, in the norm of all groups together.
        adaptive: perturb each weight in proportion to its size (ASAM; its radii are about ten times larger).
        xi: ξ ≥ 0 of the adaptive geometry.
        model: if given, its batch-norm statistics do not move at the perturbed weights.
        lets: options of `LETS`: learn the radius, starting from rho. `step` needs a hyper_closure then.
        **base_kwargs: arguments of the base optimizer (lr, momentum, …).

    Raises:
        ValueError: rho < 0, or options of LETS that do not go together.
        RuntimeError: a call out of order, or no gradient to ascend, or one that is sparse or complex.

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
    Gradient accumulation: call backward() for every part of the batch, in both passes. Clipping: in the closure, or
    before `second_step`; an ascent direction is the same clipped or not. A loss scaler: `second_step(scaler)`.

    State, groups and defaults are the base optimizer's own, so a learning-rate scheduler may hold either object. Beside
    them one copy of the parameters is kept.
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
        self.ball: Perturbation | None = None
        self.ascended: ExitStack | None = None  # while the weights are w + ε: closing it restores them
        self.base_optimizer = base_optimizer(params, **base_kwargs)
        self.base_optimizer.defaults["rho"] = rho
        self.complete(self.param_groups, rho)
        self.geometry, self.xi, self.model = ("adaptive" if adaptive else "l2"), xi, model
        self.radius: LETS | None = None
        if lets is not None:
            if lets.get("curvature", "secant") not in ("secant", "diagonal") or lets.get("groups") or lets.get("learn"):
                raise ValueError(
                    "lets: with closures only curvature='secant' or 'diagonal', no groups, no learn; see Sequential"
                )
            if any(group["rho"] != rho for group in self.param_groups):
                raise ValueError("lets: learns one radius for all groups: give rho= alone, no group's own")
            trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            self.radius = LETS(trained, self.base_optimizer, rho, **lets)
        self.__setstate__({"defaults": self.base_optimizer.defaults})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base_optimizer.state

    @torch.no_grad()
    def first_step(self, zero_grad: bool = True, rho: Tensor | list[Tensor] | None = None) -> None:
        """Move to w + ε along the gradients at hand, then zero them; `rho`: another radius than the groups' own."""
        self.refuse_perturbed("first_step twice: second_step must come between")
        if self.radius is not None and rho is None:
            raise RuntimeError("a learned radius needs closures: step(closure, hyper_closure=...)")
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        params = [p for _, members in groups for p in members]
        if not params:
            raise RuntimeError("no gradient to ascend: backward() comes before first_step(), and in every closure")
        if any(p.is_complex() or p.grad.layout != torch.strided for p in params):
            raise RuntimeError(
                "sparse or complex gradients: SAM perturbs dense real parameters (Embedding: sparse=False)"
            )
        if rho is None:
            radii = [g["rho"] for g, members in groups for _ in members]
            rho = radii[0] if len(set(radii)) == 1 else radii
        if self.ball is None or [id(p) for p in self.ball.params] != [id(p) for p in params]:
            self.ball = None  # its memory, before that of the next
            self.ball = Perturbation(params, self.geometry, self.xi)  # type: ignore[arg-type]
        self.ball.aim([p.grad for p in params], rho)
        with ExitStack() as stack:
            stack.enter_context(self.ball.there())
            if self.model is not None:
                stack.enter_context(frozen_statistics(self.model))
            self.ascended = stack.pop_all()
        if zero_grad:
            self.zero_grad()

    def restore(self) -> None:
        """Back to w, bit for bit."""
        if self.ascended is not None:
            self.ascended.close()
            self.ascended = None

    def second_step(self, scaler: torch.amp.GradScaler | None = None, zero_grad: bool = True) -> None:
        """Restore w, update it with the gradients taken at w + ε, then zero them.

        Args:
            scaler: the loss scaler of both passes. The ascent needs no unscaling: its direction does not depend on the
                scale. An overflow in it reaches the second pass as NaN, on every process, and the scaler skips the
                update; give `model=`, or batch-norm statistics see that NaN. To clip, call `scaler.unscale_(opt)`
                before this, once; `scaler.update()` comes after.
        """
        if self.ascended is None:
            raise RuntimeError("second_step without first_step")
        try:
            if scaler is None:
                self.step()
            else:
                scaler.step(self)  # which calls step(), or not
        finally:
            self.restore()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Closure | None = None,
        ascent_closure: Callable[[], Any] | None = None,
        hyper_closure: Closure | None = None,
    ) -> Tensor | None:
        """One whole step; returns the loss of `closure` at w + ε. After `first_step`, without arguments: the update.

        Args:
            closure: forward, backward, return the loss; called at w (unless ascent_closure is given) and at w + ε.
            ascent_closure: the same for the ascent objective; what it returns is not used.
            hyper_closure: the same as closure on a batch of held-out data, for a learned radius; called after the
                update, and like closure at w it must not move batch-norm statistics: give `model=`.
        """
        if closure is None:
            if self.ascended is None:
                raise RuntimeError("SAM.step needs a closure; or call first_step() and second_step()")
            self.restore()
            self.base_optimizer.step()
            return None
        self.refuse_perturbed("step(closure) after first_step: second_step must come between")
        if self.radius is not None:
            return self.learned_step(self.radius, closure, ascent_closure, hyper_closure)
        self.zero_grad()
        torch.enable_grad()(ascent_closure or closure)()
        self.first_step()
        try:
            loss = torch.enable_grad()(closure)()
        finally:
            self.restore()
        self.base_optimizer.step()
        self.zero_grad()
        return loss

    def learned_step(
        self,
        radius: LETS,
        closure: Closure,
        ascent_closure: Callable[[], Any] | None,
        hyper_closure: Closure | None,
    ) -> Tensor:
        """One step with a learned radius."""
        if hyper_closure is None:
            raise RuntimeError("a learned radius needs hyper_closure: the loss and gradient of held-out data")
        params = radius.params

        def backward(run: Callable[[], Any], frozen: bool = True) -> tuple[Any, list[Tensor]]:
            self.zero_grad()
            with frozen_statistics(self.model) if frozen and self.model is not None else nullcontext():
                loss = torch.enable_grad()(run)()
            if all(p.grad is None for p in params):
                raise RuntimeError("no gradient: every closure must call backward()")
            return loss, [torch.zeros_like(p) if p.grad is None else p.grad for p in params]

        def gradient(run: Closure, frozen: bool = True) -> LossGradient:
            loss, found = backward(run, frozen)
            loss = loss.detach().clone()
            radius.comm.mean_([loss])  # of the gradients, DistributedDataParallel has made means
            return loss, found

        first = ascent_closure is None or radius.needs_gradient()
        loss, g = gradient(closure, frozen=False) if first else (None, None)
        a = g if ascent_closure is None else backward(ascent_closure, frozen=first)[1]
        assert a is not None
        for p, each in zip(params, a, strict=True):
            p.grad = each
        self.first_step(rho=radius.on_ascent(loss, g))
        assert self.ball is not None
        try:
            loss, h = gradient(closure)
            radius.on_perturbed(Perturbed(h, self.ball.epsilon, list, list))
        finally:
            self.restore()

        def answer(v: Tensors) -> Tensors:
            return [t * s for t, s in zip(v, sensitivity(self.base_optimizer, params, h), strict=True)]

        radius.on_descent(h, answer)
        self.base_optimizer.step()
        radius.after_update(lambda: gradient(closure), lambda: gradient(hyper_closure))
        self.zero_grad()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.radius is not None:
            raise RuntimeError("a learned radius takes no new parameters: make the optimizer anew")
        self.complete([param_group], self.defaults["rho"])
        self.base_optimizer.add_param_group(param_group)

    @staticmethod
    def complete(groups: list[dict[str, Any]], rho: float) -> None:
        """Every group has a radius."""
        for group in groups:
            if group.setdefault("rho", rho) < 0:
                raise ValueError(f"rho={group['rho']}: the radius must not be negative")

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's complete state (momentum and all), the groups with their rho, and a learned radius."""
        self.refuse_perturbed("state_dict between first_step and second_step: the weights are perturbed")
        radius = {} if self.radius is None else {"radius": self.radius.state_dict()}
        return {**self.base_optimizer.state_dict(), **radius}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` returned, or that of the base optimizer alone, whose groups then get their rho here."""
        self.refuse_perturbed("load_state_dict between first_step and second_step: the weights are perturbed")
        if (self.radius is None) != ("radius" not in state_dict):
            raise ValueError("state_dict: a learned radius is on one side only; give lets= as it was when saved")
        self.base_optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != "radius"})
        self.complete(self.param_groups, self.defaults["rho"])
        if self.radius is not None:
            self.radius.load_state_dict(state_dict["radius"])

    def refuse_perturbed(self, message: str) -> None:
        if self.ascended is not None:
            raise RuntimeError(message)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy; hooks stay behind, as those of every torch optimizer do."""
        self.refuse_perturbed("a copy between first_step and second_step: the weights are perturbed")
        return {k: getattr(self, k) for k in ("defaults", "base_optimizer", "radius", "model", "geometry", "xi")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "ball": None, "ascended": None})
