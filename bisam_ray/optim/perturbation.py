"""The ascent perturbation ε = ρu: its direction, its size, and moving the weights there and back.

    l2         u = a / ‖a‖                                      (SAM: Foret et al., 2021)
    adaptive   u = T²a / ‖Ta‖,  T = |w| + ξ on weights, 1 on biases and norm parameters
                                                                (ASAM: Kwon et al., 2021)

Everything is done with foreach kernels and 0-d tensors: no loop over tensors in Python, no device synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from .comm import Tensors

Geometry = Literal["l2", "adaptive"]


def global_norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of all tensors taken as one vector, a 0-d tensor."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def dot(left: Tensors, right: Tensors) -> Tensor:
    """Inner product of two lists of tensors taken as vectors, a 0-d tensor."""
    return torch.stack([torch.vdot(a.flatten(), b.flatten()) for a, b in zip(left, right, strict=True)]).sum()


@torch.no_grad()
def perturbation(
    params: Tensors,
    ascent: Tensors,
    rho: Tensor | float,
    geometry: Geometry = "l2",
    xi: float = 0.01,
) -> tuple[list[Tensor], Tensor]:
    """The perturbation ε = ρu of every parameter, and the norm it was divided by.

    Args:
        params: the weights w.
        ascent: the ascent gradient a, one tensor per parameter; not modified.
        rho: radius ρ ≥ 0, a float or a 0-d tensor.
        geometry: "l2" or "adaptive".
        xi: ξ ≥ 0 of the adaptive geometry: how far a weight that is exactly zero may still move.

    Returns:
        (ε, ‖a‖ or ‖Ta‖). A zero gradient gives ε = 0.

    Example:
        >>> eps, norm = perturbation([torch.zeros(2)], [torch.tensor([3.0, 4.0])], rho=1.0)
        >>> eps[0].tolist(), norm.item()
        ([0.6000000238418579, 0.800000011920929], 5.0)
    """
    if geometry == "adaptive":
        scale = [p.abs().add_(xi) if p.dim() > 1 else torch.ones_like(p) for p in params]
        scaled: Tensors = torch._foreach_mul(ascent, scale)
        norm = global_norm(scaled)
        torch._foreach_mul_(scaled, scale)
    else:
        scaled, norm = ascent, global_norm(ascent)
    # ‖a‖ = 0 stays where it is, never NaN: √tiny is far below any real gradient, and ρ/√tiny is finite
    ratio = rho / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
    return list(torch._foreach_mul(scaled, ratio)), norm


@contextmanager
def perturbed(params: Tensors, epsilon: Tensors) -> Iterator[None]:
    """Inside the context the parameters are w + ε; after it they are w again, bit for bit.

    The sum is written into fresh memory and the parameters point to it meanwhile: the weights themselves are not
    touched, so restoring them is free and exact, whatever happens inside.
    """
    weights = [p.data for p in params]
    for p, w, moved in zip(params, weights, torch._foreach_add(weights, epsilon), strict=True):
        # a sum may choose other strides, and cost a channels-last network its layout
        p.data = moved if moved.stride() == w.stride() else torch.empty_like(w).copy_(moved)
    try:
        yield
    finally:
        for p, w in zip(params, weights, strict=True):
            p.data = w
