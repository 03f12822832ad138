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
from .perturbation import perturbation, perturbed

Closure = Callable[[], Tensor]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization around any base optimizer.

    Args:
        params: parameters or parameter groups; a group may carry its own "rho".
        base_optimizer: class of the base optimizer, e.g. torch.optim.SGD.
        rho: radius ρ ≥ 0 of the perturbation, in the norm of all groups together.
        adaptive: perturb each weight in proportion to its size (ASAM; its radii are about ten times larger).
        xi: ξ ≥ 0 of the adaptive geometry.
        model: if given, its batch-norm statistics do not move at the perturbed weights.
        **base_kwargs: arguments of the base optimizer (lr, momentum, …).

    Raises:
        ValueError: rho < 0.
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
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        base_optimizer: type[torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        xi: float = 0.01,
        model: nn.Module | None = None,
        **base_kwargs: Any,
    ) -> None:
        self.base_optimizer: torch.optim.Optimizer | None = None
        self.adaptive, self.xi, self.model = adaptive, xi, model
        self.ascended = ExitStack()  # leaving it restores the weights; empty between steps
        self.is_ascended = False
        super().__init__(params, {"rho": rho, **base_kwargs})
        for group in self.param_groups:
            if group["rho"] < 0:
                raise ValueError(f"rho={group['rho']}: the radius must not be negative")
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.share()

    def share(self) -> None:
        """One state and one list of groups for both: learning-rate schedulers and state_dict see the real thing."""
        assert self.base_optimizer is not None
        self.state, self.param_groups = self.base_optimizer.state, self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = True) -> None:
        """Move to w + ε along the gradients at hand, then zero them."""
        if self.is_ascended:
            raise RuntimeError("first_step twice: second_step must come between")
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        params = [p for _, members in groups for p in members]
        if not params:
            raise RuntimeError("no gradient to ascend: call backward() before first_step()")
        radii = {g["rho"] for g, members in groups if members}
        gradients = [p.grad for p in params]
        rho = radii.pop() if len(radii) == 1 else 1.0
        epsilon, _ = perturbation(params, gradients, rho, "adaptive" if self.adaptive else "l2", self.xi)
        if radii:  # several radii: one direction, each group to its own distance
            own = iter(epsilon)
            for group, members in groups:
                for _ in members:
                    next(own).mul_(group["rho"])
        self.ascended.enter_context(perturbed(params, epsilon))
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
    def second_step(self, zero_grad: bool = True) -> None:
        """Restore w, update it with the gradients taken at w + ε, then zero them."""
        if not self.is_ascended:
            raise RuntimeError("second_step without first_step")
        self.restore()
        assert self.base_optimizer is not None
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Closure | None = None, ascent_closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One whole step; returns the loss of `closure` at w + ε.

        Args:
            closure: forward, backward, return the loss; called at w (unless ascent_closure is given) and at w + ε.
            ascent_closure: the same for the ascent objective.
        """
        if closure is None:
            raise RuntimeError("SAM.step needs a closure; or call first_step() and second_step()")
        descend = torch.enable_grad()(closure)
        ascend = torch.enable_grad()(ascent_closure or closure)
        self.zero_grad()
        ascend()
        self.first_step()
        try:
            loss = descend()
        except BaseException:
            self.restore()
            raise
        self.second_step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.base_optimizer is None:
            super().add_param_group(param_group)
        else:
            self.base_optimizer.add_param_group({"rho": self.defaults["rho"], **param_group})

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's complete state (momentum and all) and the groups with their rho."""
        if self.is_ascended:
            raise RuntimeError("state_dict between first_step and second_step: the weights are perturbed")
        assert self.base_optimizer is not None
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.base_optimizer is not None
        self.base_optimizer.load_state_dict(state_dict)
        self.share()
