"""The fast code against its oracle, step by step, in double precision."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from bisam_ray.optim import LETS, SAM, FixedRadius, Sequential, cross_entropy, lower_bound
from bisam_ray.optim import reference as ref

from .network import (
    BASES,
    FEATURES,
    METHODS,
    STEPS,
    Batch,
    Evaluation,
    batches,
    check,
    flat,
    network,
    oracle,
    same,
    same_tiny,
)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_fixed_radius(method: str, base: str) -> None:
    objective, geometry, rho = METHODS[method]
    smoothing = 0.1 if base in ("momentum", "adamw") else 0.0
    warmup = 0.25 if base in ("nesterov", "adamw") else 0.0
    schedule = {"warmup": warmup, "total_steps": STEPS}

    model = network()
    cls, options = BASES[base]
    run_step = Sequential(
        list(model.parameters()),
        cls(model.parameters(), **options),
        Evaluation(model, objective, smoothing),
        FixedRadius(rho, **schedule),
        geometry=geometry,
        xi=0.01,
    )
    expected = oracle(objective, base, smoothing, rho=rho, geometry=geometry, xi=0.01, **schedule)
    state, train = ref.State(flat(model)), batches(1)
    for t in range(STEPS):
        batch = next(train)
        stats = run_step(batch)
        state, trace = ref.sam_step(expected, state, batch)
        check(stats, model, trace, state, t)
    assert (flat(model) - flat(network())).norm() > 0.1


def run_lets(
    objective: str,
    base: str,
    smoothing: float,
    rho: float,
    geometry: str,
    warmup: float,
    learning: ref.Learning,
) -> list[float]:
    """Both versions side by side; returns the radii."""
    model = network()
    params = list(model.parameters())
    cls, options = BASES[base]
    optimizer = cls(params, **options)
    schedule = {"warmup": warmup, "total_steps": STEPS}
    choices = {
        name: getattr(learning, name)
        for name in ("train_batch", "curvature", "every", "lr", "rho_min", "rho_max", "gap_ema")
    }
    radius = LETS(params, optimizer, rho=rho, **schedule, **choices)
    run_step = Sequential(
        params, optimizer, Evaluation(model, objective, smoothing), radius, geometry=geometry, xi=0.02
    )
    method = oracle(objective, base, smoothing, rho=rho, geometry=geometry, xi=0.02, **schedule)
    state = ref.lets_state(method, flat(model))
    train, held_out, radii = batches(1), batches(2, size=4), []
    for t in range(STEPS):
        batch, hyper = next(train), next(held_out)
        stats = run_step(batch, hyper=lambda hyper=hyper: hyper)
        state, trace = ref.lets_step(method, learning, state, batch, hyper)
        check(stats, model, trace, state, t)
        same(radius.rho, state.r.exp(), f"learned rho after step {t}")
        assert (radius.hypergradient is None) == (state.hypergradient is None), f"finished at step {t}?"
        if state.hypergradient is not None:
            same_tiny(radius.hypergradient, state.hypergradient, f"hypergradient at step {t}")
            same(radius.gap, state.gap, f"gap at step {t}")
        radii.append(float(radius.rho))
    return radii


LETS_CASES = list(
    product(("cross_entropy", "tanh", "log"), ("next", "same"), ("secant", "diagonal"), (0.0, 0.25), (1, 3))
)


@pytest.mark.parametrize(
    ("case", "objective", "train_batch", "curvature", "warmup", "every"),
    [pytest.param(i, *c, id="-".join(map(str, c))) for i, c in enumerate(LETS_CASES)],
)
def test_learned_radius(case: int, objective: str, train_batch: str, curvature: str, warmup: float, every: int) -> None:
    # the axes that the identifiers leave out take turns
    base = ("sgd", "momentum", "nesterov", "adam", "adamw")[case % 5]
    smoothing = (0.0, 0.1)[case // 3 % 2]
    gap_ema = 0.7 if case % 11 in (2, 5, 6) else 0.0
    geometry = "adaptive" if case % 7 in (1, 3) else "l2"
    learning = ref.Learning(train_batch, curvature, every, lr=0.05, gap_ema=gap_ema)
    radii = run_lets(objective, base, smoothing, 0.1, geometry, warmup, learning)
    assert max(abs(rho - 0.1) for rho in radii) > 0.002, "a radius that does not move shows nothing"


def test_learned_radius_is_clipped() -> None:
    learning = ref.Learning(lr=0.1, rho_min=0.095, rho_max=0.105)
    radii = run_lets("cross_entropy", "momentum", 0.0, 0.1, "l2", 0.0, learning)
    assert min(radii) == pytest.approx(0.095, rel=1e-12) or max(radii) == pytest.approx(0.105, rel=1e-12)


def test_hyper_batches_are_drawn_only_when_a_hypergradient_starts() -> None:
    model, drawn = network(), []
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.1)
    run_step = Sequential(params, optimizer, Evaluation(model, "tanh"), LETS(params, optimizer, every=3))
    train, held_out = batches(1), batches(2)
    for t in range(7):
        run_step(next(train), hyper=lambda t=t: (drawn.append(t), next(held_out))[1])
    assert drawn == [0, 3, 6]


def test_no_gradient_no_perturbation() -> None:
    """A saturated example: the ascent gradient is exactly zero, the step is the base optimizer's."""
    model = network()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([1e6, 0.0, 0.0]))
    x, y = torch.randn(5, FEATURES, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    before = flat(model)
    run_step = Sequential(list(model.parameters()), optimizer, Evaluation(model, "tanh"), FixedRadius(0.1))
    stats = run_step((x, y))
    assert float(stats.grad_norm) == 0
    torch.testing.assert_close(flat(model), before * (1 - 0.01), rtol=1e-15, atol=0)


def test_objectives_differ() -> None:
    """Guards the tests above: what they tell apart really is different after as many steps."""
    results = []
    for objective, geometry, rho in [*METHODS.values(), ("cross_entropy", "l2", 0.0)]:
        method = oracle(objective, "sgd", rho=rho, geometry=geometry)
        state, train = ref.State(flat(network())), batches(1)
        for _ in range(STEPS):
            state, _ = ref.sam_step(method, state, next(train))
        results.append(state.w)
    for i in range(len(results)):
        for j in range(i):
            assert (results[i] - results[j]).norm() > 1e-3, (i, j)


def drive_closures(opt: SAM, model: nn.Module, batch: Batch, objective: str) -> Tensor:
    def closure() -> Tensor:
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    def ascent() -> Tensor:
        bound = lower_bound(model(batch[0]), batch[1], objective)
        bound.backward()
        return bound

    for p in model.parameters():
        p.grad = torch.ones_like(p)  # left over from something else: step zeroes it
    return opt.step(closure) if objective == "cross_entropy" else opt.step(closure, ascent_closure=ascent)


def drive_two_calls(opt: SAM, model: nn.Module, batch: Batch, objective: str) -> Tensor:
    evaluate = Evaluation(model, objective)
    evaluate(batch).ascent.backward()
    opt.first_step()
    loss = evaluate(batch).descent
    loss.backward()
    opt.second_step()
    return loss


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_sam_class(method: str, base: str) -> None:
    # the two ways to drive it take turns
    drive = (drive_closures, drive_two_calls)[(list(METHODS).index(method) + list(BASES).index(base)) % 2]
    objective, geometry, rho = METHODS[method]
    model = network()
    cls, options = BASES[base]
    opt = SAM(model.parameters(), cls, rho=rho, adaptive=geometry == "adaptive", **options)
    expected = oracle(objective, base, rho=rho, geometry=geometry)
    state, train = ref.State(flat(model)), batches(1)
    for t in range(STEPS):
        batch = next(train)
        loss = drive(opt, model, batch, objective)
        state, trace = ref.sam_step(expected, state, batch)
        same(loss, trace.perturbed_loss, f"loss at step {t}")
        same(flat(model), state.w, f"parameters after step {t}")
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("base", BASES)
def test_sam_class_resumed_equals_uninterrupted(base: str) -> None:
    model = network()
    cls, options = BASES[base]
    opt = SAM(model.parameters(), cls, rho=0.1, **options)
    expected = oracle("cross_entropy", base, rho=0.1)
    state, train = ref.State(flat(model)), batches(1)
    for t in range(10):
        if t == 5:
            saved = copy.deepcopy(opt.state_dict())
            weights, model = model.state_dict(), network()
            model.load_state_dict(weights)
            opt = SAM(model.parameters(), cls, rho=0.9, **{**options, "lr": 9.0})
            opt.load_state_dict(saved)
        batch = next(train)
        drive_closures(opt, model, batch, "cross_entropy")
        state, _ = ref.sam_step(expected, state, batch)
        same(flat(model), state.w, f"parameters after step {t}")
