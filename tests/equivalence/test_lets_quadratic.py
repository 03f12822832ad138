"""On quadratics the secant is exact: the hypergradient must equal dJ/dr, found by other means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bisam_ray.optim import LETS, Losses, Sequential
from bisam_ray.optim import reference as ref

P, STEPS, WARMUP = 10, 12, {"warmup": 0.25, "total_steps": 12}
Quadratic = tuple[Tensor, Tensor]  # L(w) = ½ (w − c)ᵀ A (w − c)

BASES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "weight_decay": 0.01},
    "momentum": {"lr": 0.05, "momentum": 0.9},
    "dampening": {"lr": 0.05, "momentum": 0.7, "dampening": 0.3},
    "nesterov": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"lr": 0.05, "weight_decay": 0.1},
    "adamw": {"lr": 0.05, "weight_decay": 0.1},
}
CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def quadratics(seed: int) -> list[Quadratic]:
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(P, P, generator=generator, dtype=torch.float64) for _ in range(STEPS + 1)]
    return [(m @ m.T / P, torch.randn(P, generator=generator, dtype=torch.float64)) for m in roots]


TRAIN, HELD_OUT = quadratics(1), quadratics(2)
OPTIMIZERS = {k: ref.Optimizer(k if k in CLASSES else "sgd", **v) for k, v in BASES.items()}
START = torch.linspace(-1, 1, P, dtype=torch.float64)


def descent(w: Tensor, batch: Quadratic) -> Tensor:
    a, c = batch
    return (w - c) @ a @ (w - c) / 2


def other_ascent(w: Tensor, batch: Quadratic) -> Tensor:
    return torch.tanh((w - batch[1]) / 2).sum() + w.prod()


def oracle(optimizer: ref.Optimizer, bound: bool) -> ref.Method:
    return ref.Method(other_ascent if bound else descent, descent, optimizer, rho=0.3, **WARMUP)


def slope(method: ref.Method, state: ref.LetsState, r: Tensor, t: int, train: Quadratic) -> Tensor:
    """dJ/dr at step t by a central difference of fourth order."""

    def at(x: float) -> Tensor:
        return ref.upper_level(method, state, r + x, TRAIN[t], train, HELD_OUT[t])

    step = 5e-3
    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def close(actual: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("bound", [False, True], ids=["sam", "other-ascent"])
@pytest.mark.parametrize("train_batch", ["next", "same"])
@pytest.mark.parametrize("base", BASES)
def test_secant_is_exact(base: str, train_batch: str, bound: bool) -> None:
    halves = [torch.nn.Parameter(START[:4].clone().view(2, 2)), torch.nn.Parameter(START[4:].clone())]

    def evaluate(batch: Quadratic) -> Losses:
        w = torch.cat([p.flatten() for p in halves])
        loss = descent(w, batch)
        return Losses(other_ascent(w, batch) if bound else loss, loss)

    optimizer = CLASSES.get(base, torch.optim.SGD)(halves, **BASES[base])
    radius = LETS(halves, optimizer, rho=0.3, train_batch=train_batch, lr=0.1, **WARMUP)
    run_step = Sequential(halves, optimizer, evaluate, radius)

    method = oracle(OPTIMIZERS[base], bound)
    exact = ref.Learning(train_batch, "exact", lr=0.1)
    state = ref.lets_state(method, START)
    begun, furthest = [], 0.0
    for t in range(STEPS):
        before = state
        run_step(TRAIN[t], hyper=lambda t=t: HELD_OUT[t])
        state, _ = ref.lets_step(method, exact, state, TRAIN[t], HELD_OUT[t])
        # with "next", the radius of a step is the one it has learned from its own batch
        begun.append((before, before.r if train_batch == "same" else state.r, t))
        if train_batch == "next" and t == 0:
            assert radius.hypergradient is None
            continue
        start, r, since = begun[t] if train_batch == "same" else begun[t - 1]
        close(radius.hypergradient, state.hypergradient, f"exact reference, begun at step {since}")
        close(radius.hypergradient, slope(method, start, r, since, TRAIN[t]), f"difference, step {since}")
        assert (radius.hypergradient == 0) == (since == 0), "dJ/dr = ρ dJ/dρ = 0 where the warm-up starts"
        furthest = max(furthest, abs(float(radius.rho) - 0.3))
    assert furthest > 0.02


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_sensitivity_is_the_derivative_of_the_update(optimizer: ref.Optimizer) -> None:
    generator = torch.Generator().manual_seed(3)
    w, s = START, ref.OptimizerState()
    for _ in range(4):
        h = torch.randn(P, generator=generator, dtype=torch.float64).requires_grad_()
        w_next, s_next = ref.optimizer_step(optimizer, s, w, h)
        jacobian = torch.autograd.functional.jacobian(
            lambda h, s=s, w=w: ref.optimizer_step(optimizer, s, w, h)[0], h.detach()
        )
        close(torch.diag(-ref.sensitivity(optimizer, s, w, h.detach())), jacobian, "S")
        w = w_next.detach()
        s = replace(s_next, **{k: v.detach() for k in "bmv" if (v := getattr(s_next, k)) is not None})


@pytest.mark.parametrize(
    ("cls", "options", "told"),
    [(torch.optim.RMSprop, {}, "RMSprop"), (torch.optim.Adam, {"amsgrad": True}, "Adam with amsgrad")],
)
def test_an_optimizer_without_a_known_sensitivity_is_refused(
    cls: type[torch.optim.Optimizer], options: dict[str, Any], told: str
) -> None:
    """At once, not in the first step."""
    w = torch.nn.Parameter(START.clone())
    with pytest.raises(ValueError, match=told):
        LETS([w], cls([w], lr=0.05, **options))
