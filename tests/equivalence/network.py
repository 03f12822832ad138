"""What the tests of this folder share: a small smooth network, its batches, its oracle, and what counts as equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bisam_ray.optim import Losses, cross_entropy, lower_bound
from bisam_ray.optim import reference as ref

STEPS, FEATURES, HIDDEN, CLASSES = 50, 4, 6, 3
MU = {"tanh": 10.0, "log": 1.0, "erf": 10.0}
Batch = tuple[Tensor, Tensor]

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.4, "weight_decay": 1e-2}),
    # foreach, the default on a GPU, writes to .grad here
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "foreach": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}

METHODS = {
    "sam": ("cross_entropy", "l2", 0.1),
    "asam": ("cross_entropy", "adaptive", 0.5),
    "bisam-tanh": ("tanh", "l2", 0.1),
    "bisam-log": ("log", "l2", 0.1),
}


def same(actual: Tensor | float, expected: Tensor, what: str) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12, msg=lambda text: f"{what}: {text}")


def same_tiny(actual: Tensor, expected: Tensor, what: str) -> None:
    """Relative to the value itself, however small: a hypergradient of 1e-11 has a sign to get right."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-20, msg=lambda text: f"{what}: {text}")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)
    return nn.Sequential(*layers).double()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def forward(w: Tensor, x: Tensor) -> Tensor:
    """The network's logits, as a function of its flat parameters."""
    sizes = [HIDDEN * FEATURES, HIDDEN, CLASSES * HIDDEN, CLASSES]
    w1, b1, w2, b2 = w.split(sizes)
    return torch.tanh(x @ w1.view(HIDDEN, FEATURES).T + b1) @ w2.view(CLASSES, HIDDEN).T + b2


IS_WEIGHT = torch.cat([torch.full((p.numel(),), p.dim() > 1) for p in network().parameters()])


def batches(seed: int, size: int = 5, n: int = 40) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (n,), generator=generator)
    while True:
        chosen = torch.randperm(n, generator=generator)[:size]
        yield x[chosen], y[chosen]


def oracle(objective: str, base: str, smoothing: float = 0.0, **method: Any) -> ref.Method:
    cls, options = BASES[base]

    def descent(w: Tensor, batch: Batch) -> Tensor:
        return ref.cross_entropy(forward(w, batch[0]), batch[1], smoothing)

    def bound(w: Tensor, batch: Batch) -> Tensor:
        return ref.lower_bound(forward(w, batch[0]), batch[1], objective, MU[objective])

    def per_example(w: Tensor, batch: Batch) -> Tensor:
        return torch.stack([descent(w, (x[None], y[None])) for x, y in zip(*batch, strict=True)])

    return ref.Method(
        ascent=descent if objective == "cross_entropy" else bound,
        descent=descent,
        optimizer=ref.Optimizer(cls.__name__.lower(), **{k: v for k, v in options.items() if k != "foreach"}),
        is_weight=IS_WEIGHT,
        per_example=per_example,
        **method,
    )


@dataclass
class Evaluation:
    """The fast code's losses of a batch; `source.learned` holds µ and α where they are not the defaults."""

    model: nn.Module
    objective: str = "cross_entropy"
    smoothing: float = 0.0
    source: Any = None

    def __call__(self, batch: Batch) -> Losses:
        logits = self.model(batch[0])
        descent = cross_entropy(logits, batch[1], self.smoothing)
        ascent = descent
        if self.objective != "cross_entropy":
            ascent = lower_bound(logits, batch[1], self.objective, **getattr(self.source, "learned", {}))
        return Losses(ascent, descent, lambda: cross_entropy(logits, batch[1], self.smoothing, reduction="none"))


def check(stats: Any, model: nn.Module, trace: ref.Trace, state: ref.State, t: int) -> None:
    same(stats.rho, trace.rho, f"rho at step {t}")
    same(stats.loss, trace.loss, f"loss at step {t}")
    same(stats.grad_norm, trace.grad_norm, f"grad_norm at step {t}")
    same(stats.sharpness, trace.perturbed_loss - trace.loss, f"sharpness at step {t}")
    same(flat(model), state.w, f"parameters after step {t}")
