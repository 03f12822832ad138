"""How flat the minimum is that a run ended in: the largest eigenvalue of the Hessian, and the loss around the weights.

Both are of L(w) = mean cross entropy without label smoothing, at the final weights, in evaluation mode and float32, on
the train split: the examples on which every method of a comparison took its gradient steps, with the labels as they
were trained on.

Two caveats. Batch-norm statistics are those of the end of training and do not follow the weights, so a network with
batch norm can look sharper along a direction than one whose statistics were taken anew at every point. And neither
measure is more than a description: the eigenvalue, unlike the landscape, changes with rescalings of the weights that
leave the function as it is (Dinh et al., "Sharp Minima Can Generalize For Deep Nets", 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import ConfigError
from . import checkpoint, data, engine
from .task import Classification

CLASSIFICATION = Classification()
EXAMPLES = 2048  # of the Hessian
SHOWN = 512  # of the landscape
BATCH = 256  # examples in memory at once; results do not depend on it but for rounding
PRODUCTS = 24
TOLERANCE = 0.01  # of the residual; the eigenvalue's error goes with its square, and was below 0.1 %
DIGITS = 5  # significant ones that are kept
SEED = 0  # of everything drawn here: networks of one architecture are looked at along the same directions


class Eigenvalue(NamedTuple):
    """An eigenvalue λ of a symmetric operator, how good it is, and how many products with a vector it took.

    `residual` = ‖Hv − λv‖/|λ|: a true eigenvalue lies that close to λ, relatively. λ itself is never too large.
    """

    value: float
    residual: float
    products: int


class Landscape(NamedTuple):
    """Loss and error of w + a·d₁ + b·d₂: row i is a = axis[i], column j is b = axis[j]; the centre is w."""

    axis: list[float]
    loss: list[list[float]]
    error: list[list[float]]
    seed: int


def measure(place: checkpoint.Place, landscape: bool) -> dict[str, Any]:
    """Flatness of a checkpoint's final weights (of its first fold), in plain numbers of five digits.

    Returns:
        eigenvalue, residual, examples, split, and landscape (axis, loss, error, seed) or None. A loss of the landscape
        that is not finite is None.

    Raises:
        ConfigError: no such checkpoint.
        Diverged: the weights are not finite.
    """
    config, state = engine.members(*checkpoint.load(place))[0]
    torch.set_num_threads(config.scale.threads)
    model, splits = engine.restored(config, state)
    device = engine.device_of(config.scale)
    model = model.to(device)
    train = splits.train.to(device)
    if len(train.shape) == 3:
        model = model.to(memory_format=torch.channels_last)  # halves the time of the landscape
    chosen = subset(train, EXAMPLES)
    found = hessian_eigenvalue(model, chosen, task=splits.task)
    shown = loss_landscape(model, subset(train, SHOWN), task=splits.task)._asdict() if landscape else None
    values = {"eigenvalue": found.value, "residual": found.residual, "landscape": shown}
    return {**rounded(values), "examples": len(chosen), "split": "train"}


def rounded(values: Any) -> Any:
    """Floats, however deep, to `DIGITS` significant digits; what is not finite is None."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    if isinstance(values, float):
        return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None
    return values


def subset(split: data.Split, most: int, seed: int = SEED) -> data.Split:
    """All of a split, or `most` of its examples, drawn without replacement."""
    if len(split) <= most:
        return split.ready()
    chosen = torch.randperm(len(split), generator=data.seeded(seed, 7))[:most].to(split.y.device)
    return split[chosen].ready()


def hessian_eigenvalue(
    model: nn.Module,
    split: data.Split,
    batch_size: int = BATCH,
    seed: int = SEED,
    task: Classification = CLASSIFICATION,
) -> Eigenvalue:
    """The algebraically largest eigenvalue of ∇²L at the model's weights (its trainable parameters).

    Memory: about 3 × what a gradient of one batch takes, and up to 25 × the weights.

    Raises:
        Diverged: the weights are not finite.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in params]
    start = torch.randn(sum(sizes), generator=data.seeded(seed, 8)).to(params[0])

    def product(vector: Tensor) -> Tensor:
        """∇²L·v, the gradient of ⟨∇L, v⟩, summed over batches."""
        direction = [part.view_as(p) for part, p in zip(vector.split(sizes), params, strict=True)]
        total = torch.zeros_like(vector)
        for x, y in zip(split.inputs.split(batch_size), split.y.split(batch_size), strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels of attention have no second derivative
                loss = task.descent(model(x), y) * (len(y) / len(split))
            # parameters that the loss does not depend on have zeros
            gradient = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
            slope = torch.stack([(g * v).sum() for g, v in zip(gradient, direction, strict=True)]).sum()
            parts = torch.autograd.grad(slope, params, materialize_grads=True)
            total += torch.cat([part.flatten() for part in parts])
        return total

    was_training = model.training
    model.eval()
    try:
        return lanczos(product, start)
    finally:
        model.train(was_training)


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = TOLERANCE, most: int = PRODUCTS
) -> Eigenvalue:
    """The algebraically largest eigenvalue of a symmetric operator, whatever the size of negative ones.

    In the Krylov space of `start`, with every new vector made orthogonal to all before it (twice), until the residual
    is below `tolerance` or `most` products were made. On networks of digits it takes 5 to 10 products to 1 %, a power
    iteration 7 to 30; and that finds the eigenvalue of largest modulus, which may be a negative one. (The smallest one
    does not come for free: at that point its estimate is still far off.)

    Args:
        product: v ↦ Hv, (n,) → (n,).
        start: (n,), not zero; of the dtype of the computation.

    Raises:
        Diverged: a product is not finite.
    """
    steps = min(most, len(start))
    basis = start.new_zeros(steps, len(start))
    basis[0] = start / start.norm()
    diagonal, beside = list[float](), list[float]()
    while True:
        k = len(diagonal)
        known = basis[: k + 1]
        image = product(basis[k])
        diagonal.append((basis[k] @ image).item())
        for _ in range(2):
            image = image - known.T @ (known @ image)
        rest = image.norm().item()
        if not math.isfinite(rest):
            raise engine.Diverged("the loss is not finite at these weights, or not twice differentiable")
        ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            off = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
            ritz = ritz + off + off.T
        values, vectors = torch.linalg.eigh(ritz)
        largest, residual = values[-1].item(), rest * abs(vectors[-1, -1].item())
        if residual <= tolerance * abs(largest) or k + 1 == steps:
            relative = residual / abs(largest) if residual and largest else residual
            return Eigenvalue(largest, relative, k + 1)
        beside.append(rest)
        basis[k + 1] = image / rest


def direction(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction in the space of the weights, filter-normalised.

    Each filter (the weights into one output: a slice along the first dimension) is Gaussian, scaled to the norm of the
    network's own filter; biases and the parameters of norms stay 0. Then the network's own scale does not matter: a
    layer of ReLUs made larger and the next one smaller gives the same landscape.

    Source: H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, "Visualizing the Loss Landscape of Neural Nets", 2018.
    """
    drawn = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            weights = parameter.detach()
            noise = torch.randn(weights.shape, generator=generator).to(weights)
            own, random = (w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)) for w in (weights, noise))
            drawn[name] = noise * (own / random)
    return drawn


@torch.no_grad()
def loss_landscape(
    model: nn.Module,
    split: data.Split,
    grid: int = 21,
    span: float = 1.0,
    seed: int = SEED,
    batch_size: int = BATCH,
    task: Classification = CLASSIFICATION,
) -> Landscape:
    """Loss and error on a grid × grid square over [−span, span]² along two random directions (`direction`).

    As in the source, the two are not made orthogonal: in so many dimensions they nearly are, and making them so would
    undo the norms of the filters. The model's weights are moved, and put back bit for bit.

    Raises:
        ConfigError: an even grid, which has no centre.
    """
    if grid < 3 or grid % 2 == 0:
        raise ConfigError(
            f"grid={grid}: must be odd, so that the weights are in its centre (nearest: {max(3, grid + 1)})"
        )
    generator = data.seeded(seed, 9)
    first, second = direction(model, generator), direction(model, generator)
    params: list[Tensor] = [p for name, p in model.named_parameters() if name in first]
    weights = [p.clone() for p in params]
    axis = [span * (2 * i / (grid - 1) - 1) for i in range(grid)]

    def at(a: float, b: float) -> tuple[float, float]:
        moved = torch._foreach_add(weights, list(first.values()), alpha=a)
        torch._foreach_add_(moved, list(second.values()), alpha=b)
        torch._foreach_copy_(params, moved)  # twice as fast here as torch.func.functional_call
        logits = torch.cat([model(x) for x in split.inputs.split(batch_size)])
        return task.descent(logits.double(), split.y).item(), task.error(logits, split.y).item()

    was_training = model.training
    model.eval()
    try:
        rows = [[at(a, b) for b in axis] for a in axis]
    finally:
        torch._foreach_copy_(params, weights)
        model.train(was_training)
    return Landscape(axis, [[loss for loss, _ in row] for row in rows], [[e for _, e in row] for row in rows], seed)
