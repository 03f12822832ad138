"""The ascent perturbation ε = ρu: its direction, its size, and moving the weights there and back.

    l2         u = a / ‖a‖                                              (SAM: Foret et al., 2021)
    adaptive   u = T²a / ‖Ta‖,  T = |w| + ξ on weights, 1 on biases and norm parameters
                                                                        (ASAM: Kwon et al., 2021)
    subset     u = b ⊙ a / (β‖a‖),  b a random 0/1 mask of every element, P(b = 1) = β
                                                                        (ESAM: Du et al., 2022)
               renormalised: u = b ⊙ a / ‖b ⊙ a‖. As published, ‖ε‖ is about ρ/√β; renormalised it is ρ

All three are u = Pa/n with a diagonal P and a number n. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from .comm import Tensors

Geometry = Literal["l2", "adaptive", "subset"]
Radii = Tensor | float | list[Tensor]  # of all parameters, or one for each of them


def global_norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of all tensors taken as one vector, a 0-d tensor."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def readable(number: Tensor) -> bool:
    """Whether Python may read it at no cost: a GPU would first finish all that it has been given."""
    return number.device.type == "cpu"


def dot(left: Tensors, right: Tensors) -> Tensor:
    """Inner product of two lists of tensors taken as vectors, a 0-d tensor."""
    return torch.stack([torch.dot(*lines(a, b)) for a, b in zip(left, right, strict=True)]).sum()


def lines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors as vectors with the same order of elements; without a copy where their layouts are one."""
    if a.stride() == b.stride() and a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        return a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,))
    return a.reshape(-1), b.reshape(-1)


class Perturbation:
    """The second set of weights w + ρu of some parameters, and the way there and back.

    `aim` writes w + ρu into memory of its own; inside `there` the parameters point to that memory. The weights
    themselves are never touched: restoring them is free, and exact whatever happens meanwhile.

    Args:
        params: the parameters.
        geometry: "l2", "adaptive" or "subset"; see the module's docstring.
        xi: ξ ≥ 0 of the adaptive geometry: how far a weight that is exactly zero may still move.
        beta: β in (0, 1] of the subset geometry.
        renormalise: subset only: give the masked direction length 1.
        exchange: False where the memory of a parameter must stay what it is (CUDA graphs, sharded parameters): the
            values are then copied there and back, at two more passes over them, to the same bits.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> ball = Perturbation([w])
        >>> ball.aim([torch.tensor([3.0, 4.0])], rho=1.0).item()
        5.0
        >>> with ball.there():
        ...     print([round(x, 2) for x in w.tolist()])
        [0.6, 0.8]
        >>> w.tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        geometry: Geometry = "l2",
        xi: float = 0.01,
        beta: float = 1.0,
        renormalise: bool = False,
        exchange: bool = True,
    ) -> None:
        if xi < 0 or not 0 < beta <= 1:
            raise ValueError(f"xi={xi} ≥ 0 and beta={beta} in (0, 1] needed")
        if geometry not in ("l2", "adaptive", "subset"):
            raise ValueError(f"geometry={geometry!r}: expected one of l2, adaptive, subset")
        self.params, self.geometry, self.exchange = list(params), geometry, exchange
        self.xi, self.beta, self.renormalise = xi, beta, renormalise
        self.moved: list[Tensor] = []  # w + ρu
        self.origin: list[Tensor] = []  # w, while the parameters are `there`

    @torch.no_grad()
    def aim(self, ascent: Tensors, rho: Radii, seed: int = 0) -> Tensor:
        """Write w + ρu for the ascent gradient a, one tensor per parameter, which is not modified.

        A zero gradient aims at w itself. `seed` draws the mask of the subset geometry.

        Returns:
            The norm that ascended: ‖a‖, ‖Ta‖ (adaptive) or ‖b ⊙ a‖ (renormalised), 0-d.
        """
        params = self.params
        if not self.moved:
            self.moved = [torch.empty_like(p) for p in params]
        scaled: Tensors = ascent
        if self.geometry == "adaptive":
            scaled = self.moved  # T, then T²a, in the memory of what they become
            for p, t in zip(params, scaled, strict=True):
                torch.abs(p, out=t).add_(self.xi) if p.dim() > 1 else t.fill_(1.0)
            along = torch._foreach_mul(ascent, scaled)
            norm = global_norm(along)
            torch._foreach_mul_(scaled, along)
        elif self.geometry == "subset":
            masked = torch._foreach_mul(ascent, self.mask(seed))
            norm = global_norm(masked if self.renormalise else ascent)
            scaled = list(masked)
        else:
            norm = global_norm(ascent)
        # ‖a‖ = 0 stays where it is, never NaN: √tiny is far below any real gradient, and ρ/√tiny is finite
        tiny = torch.finfo(norm.dtype).tiny ** 0.5
        if readable(norm) and not isinstance(rho, list):  # in one pass
            ratio = float(rho) / (max(float(norm), tiny) * self.published)
            for p, s, m in zip(params, scaled, self.moved, strict=True):
                torch.add(p, s, alpha=ratio, out=m)
            return norm
        length = norm.clamp_min(tiny) * self.published
        # 1/length: a number divided by a tensor is that times it, so a learned ρ given again as a number is the same
        if isinstance(rho, list):
            for p, s, m, r in zip(params, scaled, self.moved, rho, strict=True):
                torch.add(p, s * (r / length), out=m)
        else:
            if scaled is not self.moved:
                torch._foreach_copy_(self.moved, scaled)
            torch._foreach_mul_(self.moved, length.reciprocal() * rho)
            torch._foreach_add_(self.moved, params)
        return norm

    @property
    def published(self) -> float:
        """What divides u beside the norm: β of the subset geometry as it was published."""
        return self.beta if self.geometry == "subset" and not self.renormalise else 1.0

    def mask(self, seed: int) -> list[Tensor]:
        """b: a pure function of (seed, β) on each kind of device."""
        device = self.params[0].device
        draws = torch.Generator(device).manual_seed(seed)
        return [(torch.rand(p.shape, generator=draws, device=device) < self.beta).to(p.dtype) for p in self.params]

    @contextmanager
    def there(self) -> Iterator[None]:
        """Inside the context the parameters are w + ρu; after it they are w again, bit for bit."""
        self.origin = [p.data if self.exchange else p.detach().clone() for p in self.params]
        self.put(self.moved)
        try:
            yield
        finally:
            self.put(self.origin)
            self.origin = []

    @torch.no_grad()
    def put(self, values: list[Tensor]) -> None:
        if not self.exchange:
            torch._foreach_copy_(self.params, values)
        else:
            for p, value in zip(self.params, values, strict=True):
                p.data = value
        torch.clear_autocast_cache()  # it would go on with casts of the weights that were here before

    @torch.no_grad()
    def epsilon(self) -> list[Tensor]:
        """ε = (w + ρu) − w."""
        return list(torch._foreach_sub(self.moved, self.origin or self.params))

    @torch.no_grad()
    def derivative(self, ascent: Tensors, slope: Tensors, rho: Radii, seed: int = 0) -> list[Tensor]:
        """∂ε/∂θ = ρ (Pȧ − Pa ṅ/n)/n for something θ that the ascent gradient depends on, with ȧ = ∂a/∂θ (`slope`)."""
        scale: Tensors | None = None
        if self.geometry == "adaptive":
            scale = [
                (p.abs() + self.xi).square() if p.dim() > 1 else torch.ones_like(p) for p in self.origin or self.params
            ]
        elif self.geometry == "subset":
            scale = self.mask(seed)
        pa, ps = (ascent, slope) if scale is None else (torch._foreach_mul(t, scale) for t in (ascent, slope))
        flat = self.geometry == "subset" and not self.renormalise  # n = β‖a‖
        norm = dot(ascent, ascent if flat else pa).sqrt()
        length = norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
        shrink = dot(ascent, slope if flat else ps) / length**2
        radii = rho if isinstance(rho, list) else [rho] * len(self.params)
        length = length * self.published
        return [r / length * (s - shrink * p) for r, s, p in zip(radii, ps, pa, strict=True)]
