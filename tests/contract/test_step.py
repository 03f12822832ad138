"""What every step keeps to, whatever its parts: it fails without a trace, and stays finite where there is no slope."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bisam_ray.config import ConfigError, Lets, Optim, resolve
from bisam_ray.optim import LETS, FixedRadius, Losses, Parallel, Sequential, cross_entropy, lower_bound
from bisam_ray.training import engine

from .points import words
from .test_methods import same

GEOMETRIES: dict[str, dict[str, Any]] = {
    name: {"geometry": name, **({"beta": 0.6} if name == "subset" else {})}
    for name in words(Optim.model_fields["geometry"].annotation)
} | {"subset, selecting": {"geometry": "subset", "beta": 0.6, "gamma": 0.5}}
OBJECTIVES = [name for name in words(Optim.model_fields["objective"].annotation) if name != "none"]
SCHEDULES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sequential": (Sequential, {}),
    "plain": (Sequential, {"every": 2}),
    "direction": (Sequential, {"every": 2, "between": "direction"}),
    "descent": (Sequential, {"every": 2, "between": "descent"}),
    "part": (Sequential, {"ascent_fraction": 0.5}),
    "m": (Sequential, {"scope": 4}),
    "parallel": (Parallel, {}),
}
RADII: dict[str, Callable[[list[Tensor], torch.optim.Optimizer], Any]] = {
    "fixed": lambda params, base: FixedRadius(0.1),
    **{
        curvature: lambda params, base, curvature=curvature: LETS(params, base, 0.1, curvature=curvature)
        for curvature in words(Lets.model_fields["curvature"].annotation)
    },
}
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.4}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
}


def goes(geometry: str, schedule: str, radius: str = "fixed") -> bool:
    """A selection needs every example's loss at θ, and no secant."""
    return geometry != "subset, selecting" or (schedule in ("sequential", "plain", "m") and radius != "secant")


class Small:
    """A step over a small network with batch norm, on batches of eight examples; evaluate fails at pass `fails`."""

    def __init__(
        self, geometry: str, schedule: str, radius: str, objective: str = "tanh", base: str = "momentum", **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        self.objective, self.slope, self.passes, self.fails = objective, 1.0, 0, -1
        params = list(self.model.parameters())
        kind, settings = BASES[base]
        self.base = kind(params, lr=0.05, **settings)
        self.radius = RADII[radius](params, self.base)
        shape, more = SCHEDULES[schedule]
        options = {**GEOMETRIES[geometry], **more, **options}
        self.step = shape(params, self.base, self.evaluate, self.radius, model=self.model, **options)

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> Losses:
        self.passes += 1
        if self.passes == self.fails:
            raise KeyboardInterrupt
        logits = self.slope * self.model(batch[0])
        descent = cross_entropy(logits, batch[1])
        bound = descent if self.objective == "cross_entropy" else lower_bound(logits, batch[1], self.objective)
        return Losses(bound, descent, lambda: cross_entropy(logits, batch[1], reduction="none"))

    def go(self, steps: int) -> None:
        for t in range(steps):
            ahead = {"following": lambda t=t: batch(t + 1)} if isinstance(self.step, Parallel) else {}
            self.step(batch(t), hyper=lambda t=t: batch(t + 100), **ahead)


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def combinations(radii: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("geometry", "schedule", "radius"),
        [(g, s, r) for g in GEOMETRIES for s in SCHEDULES for r in radii if goes(g, s, r)],
    )


@pytest.mark.parametrize("exchange", [True, False])
@combinations(["fixed", "finite_difference"])
def test_a_step_that_fails_leaves_no_trace(geometry: str, schedule: str, radius: str, exchange: bool) -> None:
    """In whichever pass before its update: weights bit for bit, in their own memory; moments, gradients, batch norm."""
    whole = Small(geometry, schedule, radius, exchange=exchange)
    whole.go(2)
    failed = 0
    for fails in range(whole.passes + 1, whole.passes + 6):
        small = Small(geometry, schedule, radius, exchange=exchange)
        small.go(2)
        small.fails = fails
        pointers = [p.data_ptr() for p in small.step.params]
        weights = [p.detach().clone() for p in small.step.params]
        before = copy.deepcopy(small.base.state_dict())
        try:
            small.go(1)
        except KeyboardInterrupt:
            if updated(small, before):
                continue  # a pass of the upper level, at the new weights
            failed += 1
            same(weights, [p.detach() for p in small.step.params])
            assert [p.data_ptr() for p in small.step.params] == pointers
            assert [p.grad for p in small.step.params] == [None] * len(pointers)
        assert all(layer.track_running_stats for layer in small.step.norm_layers)
    assert failed >= 2


def updated(small: Small, before: dict[str, Any]) -> bool:
    try:
        same(small.base.state_dict(), before)
    except AssertionError:
        return True
    return False


@combinations(list(RADII))
def test_moving_pointers_or_values_is_the_same_run(geometry: str, schedule: str, radius: str) -> None:
    """exchange=True and exchange=False: weights, moments, statistics and radius, bit for bit."""
    runs = [Small(geometry, schedule, radius, exchange=exchange) for exchange in (True, False)]
    for small in runs:
        small.go(6)
    one, other = ([s.model.state_dict(), s.base.state_dict(), s.radius.state_dict()] for s in runs)
    same(one, other)


@pytest.mark.parametrize("objective", OBJECTIVES)
@combinations(list(RADII))
def test_a_zero_gradient_gives_no_nan(geometry: str, schedule: str, radius: str, objective: str) -> None:
    """On a flat loss nothing divides by the length of its gradient."""
    small = Small(geometry, schedule, radius, objective)
    small.slope = 0.0
    small.go(3)
    learned = getattr(small.radius, "log", torch.zeros(1))
    assert all(bool(t.isfinite().all()) for t in [learned, *small.model.state_dict().values()])


# -- what cannot be trained is told


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
def test_no_trainable_parameter_is_told_in_one_line(schedule: str) -> None:
    with pytest.raises(ValueError, match=r"^no trainable parameter.*requires_grad=False.*$"):
        SCHEDULES[schedule][0]([], torch.optim.SGD([torch.zeros(1)], lr=0.1), None, FixedRadius(0.1))


def test_a_frozen_network_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).requires_grad_(False)

    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(frozen=frozen))
    with pytest.raises(ConfigError, match=r"^model\.name=mine:frozen: no trainable parameter.*$"):
        next(engine.run(resolve({"model.name": "mine:frozen"})))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_parameter_that_the_loss_does_not_reach_is_told_in_one_line(schedule: str) -> None:
    """By its number and shape, in the first step, which leaves the weights as they were."""
    small = Small("l2", schedule, "fixed", "cross_entropy")
    unused = nn.Parameter(torch.ones(7))
    small.step.params.insert(2, unused)
    small.step.ball.params = small.step.params
    with pytest.raises(
        ValueError, match=r"^the loss does not depend on every parameter: not on number 2 of shape \(7,\)"
    ):
        small.go(1)
    assert bool((unused == 1).all())


# -- several groups


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
@pytest.mark.parametrize("base", BASES)
def test_every_groups_own_learning_rate_enters_the_hypergradient(base: str, schedule: str) -> None:
    """dJ/d log ρ at a later step, against a central difference of J = ½ (L_V(θ⁺) − L_B(θ⁺))²."""
    kind, settings = BASES[base]
    shape, _ = SCHEDULES[schedule]

    def after(rho: float) -> tuple[LETS, float]:
        """The radius policy and J when the fourth step is made with this ρ; those before it with 0.1."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        first, second = model[0].parameters(), model[2].parameters()
        optimizer = kind([{"params": first, "lr": 0.3}, {"params": second, "lr": 0.01}], lr=1.0, **settings)
        params = list(model.parameters())
        radius = LETS(params, optimizer, 0.1, lr=1e-12, curvature="exact", train_batch="same")

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            return cross_entropy(model(batch[0].double()), batch[1])

        def evaluate(batch: tuple[Tensor, Tensor]) -> Losses:
            value = loss(batch)
            return Losses(value, value)

        step = shape(params, optimizer, evaluate, radius)
        for t in range(4):
            radius.log.fill_(math.log(rho if t == 3 else 0.1))
            ahead = {"following": lambda t=t: batch(t + 1)} if shape is Parallel else {}
            step(batch(t), hyper=lambda t=t: batch(t + 100), **ahead)
        with torch.no_grad():
            return radius, 0.5 * float(loss(batch(103)) - loss(batch(3))) ** 2

    small = 1e-4
    (_, above), (_, below) = after(0.1 * math.exp(small)), after(0.1 * math.exp(-small))
    radius, _ = after(0.1)
    assert radius.hypergradient is not None
    assert float(radius.hypergradient) == pytest.approx((above - below) / (2 * small), rel=1e-4)
