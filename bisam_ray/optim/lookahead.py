"""Lookahead and RAPP: a base optimizer under slow weights z, which follow it by a fraction λ every τ-th step.

    Lookahead   w⁰ = z,   wⁱ⁺¹ = Opt(wⁱ, F(wⁱ)),          z⁺ = (1 − λ) z + λ w^τ
    RAPP        w⁰ = z,   wⁱ⁺¹ = z − ηF(wⁱ), i < τ − 1,   z⁺ = Opt(z, λF(w^{τ−1}))

F is whatever stands in .grad, one batch a step: the plain gradient, or SAM's at the perturbed weights. With plain
SGD, RAPP's last line is (1 − λ) z + λ w^τ too: it interpolates towards an approximate *implicit* step
w = z − ηF(w) where Lookahead interpolates towards τ explicit ones, so a larger τ is more of the same damping for
RAPP and more of the base optimizer for Lookahead.

Source: M. Zhang, J. Lucas, J. Ba, G. Hinton, "Lookahead Optimizer: k steps forward, 1 step back", 2019;
T. Pethick, W. Xie, V. Cevher, "Stable Nonconvex-Nonconcave Training via Linear Interpolation", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SlowWeights(torch.optim.Optimizer):
    """What both share: the base optimizer, the copy of z, the count of inner steps, and their checkpoint.

    Stands wherever the base optimizer stood. Groups and state are the base's own, so a learning-rate scheduler may
    hold either object. z is copied at the first inner step and dropped at the outer one, when it is in the weights.

    Attributes:
        base, every, outer_lr: as given.
        inner: steps made since the last outer one, 0 … every − 1.
        slow: z of every parameter; empty while inner is 0.
    """

    def __init__(self, base: torch.optim.Optimizer, every: int = 5, outer_lr: float = 0.5) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        if not 0 < outer_lr <= 1:
            raise ValueError(f"outer_lr={outer_lr}: must lie in (0, 1]")
        self.base, self.every, self.outer_lr = base, every, outer_lr
        self.inner = 0
        self.slow: dict[Tensor, Tensor] = {}
        self.__setstate__({"defaults": base.defaults})  # torch's hooks, without groups and state of our own

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    def is_outer(self) -> bool:
        """Whether the next step() is the outer one."""
        return self.inner + 1 >= self.every

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One inner or outer step with the gradients at hand, or with those `closure` makes; returns its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        if self.inner == 0:
            self.slow = {p: p.clone() for p in params}
        if self.is_outer():
            self.outer_step(params, [self.slow[p] for p in params])
            self.inner, self.slow = 0, {}
        else:
            self.inner_step(params, [self.slow[p] for p in params])
            self.inner += 1
        return loss

    def inner_step(self, params: list[Tensor], slow: list[Tensor]) -> None:
        raise NotImplementedError

    def outer_step(self, params: list[Tensor], slow: list[Tensor]) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the base; within an inner loop the newcomers' z is their present value."""
        self.base.add_param_group(param_group)
        if self.inner:
            self.slow |= {p: p.detach().clone() for p in self.param_groups[-1]["params"]}

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, z and the inner counter. Live tensors, as in torch: save or copy them."""
        slow = [self.slow[p] for group in self.param_groups for p in group["params"]] if self.inner else []
        return {"base": self.base.state_dict(), "inner": self.inner, "slow": slow}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict["base"])
        params = [p for group in self.param_groups for p in group["params"]] if state_dict["inner"] else []
        self.slow = {p: torch.empty_like(p).copy_(z) for p, z in zip(params, state_dict["slow"], strict=True)}
        self.inner = state_dict["inner"]

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy; hooks stay behind, as those of every torch optimizer do."""
        return {k: getattr(self, k) for k in ("defaults", "base", "every", "outer_lr", "inner", "slow")}


class Lookahead(SlowWeights):
    """τ steps of the base optimizer, then back part of the way.

        w⁰ = z,   wⁱ⁺¹ = Opt(wⁱ, F(wⁱ)),   z⁺ = (1 − λ) z + λ w^τ

    The state of the base optimizer (momentum, Adam's moments) is kept across outer steps, not reset or
    interpolated. λ = 1 is the base optimizer, bit for bit.

    Args:
        base: any torch optimizer that steps without a closure.
        every: τ ≥ 1; the τ-th step is the outer one.
        outer_lr: λ in (0, 1].

    Raises:
        ValueError: every or outer_lr out of its range.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> opt = Lookahead(torch.optim.SGD([w], lr=0.5), every=2, outer_lr=0.5)
        >>> for _ in range(2):  # 1 → 0.5 → 0.25, and half of the way back to 1
        ...     w.grad = w.detach().clone()
        ...     opt.step()
        >>> w.item()
        0.625

    Source: Zhang, Lucas, Ba, Hinton, 2019.
    """

    def inner_step(self, params: list[Tensor], slow: list[Tensor]) -> None:
        self.base.step()

    def outer_step(self, params: list[Tensor], slow: list[Tensor]) -> None:
        self.base.step()
        torch._foreach_lerp_(params, slow, 1 - self.outer_lr)


class RAPP(SlowWeights):
    """Relaxed approximate proximal point: τ − 1 trial steps, all of them from z, then one real step from z.

        w⁰ = z,   wⁱ⁺¹ = z − ηF(wⁱ),  i < τ − 1,   z⁺ = Opt(z, λF(w^{τ−1}))

    The trial steps are plain gradient steps at the group's present learning rate η; momentum and weight decay
    belong to the outer step, which is the base optimizer's own. τ = 2 over plain SGD is EG+,
    z − λγF(z − γFz); τ = 1 is the base optimizer on the gradient λF. A base that is blind to the gradient's scale
    (Adam) is blind to λ too. The base makes no step before the first outer one: a scheduler that is attached to it,
    and not to the wrapper, will warn that it was called too early.

    Args:
        base: any torch optimizer with a learning rate that steps without a closure.
        every: τ ≥ 1; the τ-th step is the outer one.
        outer_lr: λ in (0, 1].

    Raises:
        ValueError: every or outer_lr out of its range.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> opt = RAPP(torch.optim.SGD([w], lr=0.5), every=2, outer_lr=0.5)
        >>> for _ in range(2):  # a trial step 1 → 0.5, then 1 − λγ · 0.5
        ...     w.grad = w.detach().clone()
        ...     opt.step()
        >>> w.item()
        0.875

    Source: Pethick, Xie, Cevher, 2023.
    """

    def inner_step(self, params: list[Tensor], slow: list[Tensor]) -> None:
        torch._foreach_copy_(params, slow)
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving:
                eta = -group["lr"] if group.get("maximize") else group["lr"]
                torch._foreach_sub_(moving, torch._foreach_mul([p.grad for p in moving], eta))

    def outer_step(self, params: list[Tensor], slow: list[Tensor]) -> None:
        torch._foreach_copy_(params, slow)
        moving = [p for p in params if p.grad is not None]
        gradients = [p.grad for p in moving if p.grad is not None]
        if moving:
            for p, scaled in zip(moving, torch._foreach_mul(gradients, self.outer_lr), strict=True):
                p.grad = scaled
        self.base.step()
        for p, gradient in zip(moving, gradients, strict=True):  # the caller's own, as it was
            p.grad = gradient


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The base optimizer within any number of wrappers."""
    while isinstance(optimizer, SlowWeights):
        optimizer = optimizer.base
    return optimizer
