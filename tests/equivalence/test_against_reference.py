"""The fast code against its oracle, step by step, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bisam_ray.optim import LETS, SAM, FixedRadius, Losses, Sequential, cross_entropy, lower_bound
from bisam_ray.optim import reference as ref

STEPS, FEATURES, HIDDEN, CLASSES = 50, 4, 6, 3
MU = {"tanh": 10.0, "log": 1.0}
Batch = tuple[Tensor, Tensor]

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.3}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.4, "weight_decay": 1e-2}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
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

    return ref.Method(
        ascent=descent if objective == "cross_entropy" else bound,
        descent=descent,
        optimizer=ref.Optimizer("adamw" if cls is torch.optim.AdamW else "sgd", **options),
        is_weight=IS_WEIGHT,
        **method,
    )


def evaluation(model: nn.Module, objective: str, smoothing: float = 0.0) -> Callable[[Batch], Losses]:
    def evaluate(batch: Batch) -> Losses:
        logits = model(batch[0])
        descent = cross_entropy(logits, batch[1], smoothing)
        ascent = descent if objective == "cross_entropy" else lower_bound(logits, batch[1], objective)
        return Losses(ascent, descent)

    return evaluate


def check(stats: Any, model: nn.Module, trace: ref.Trace, state: ref.State, t: int) -> None:
    same(stats.rho, trace.rho, f"rho at step {t}")
    same(stats.loss, trace.loss, f"loss at step {t}")
    same(stats.grad_norm, trace.grad_norm, f"grad_norm at step {t}")
    same(stats.sharpness, trace.perturbed_loss - trace.loss, f"sharpness at step {t}")
    same(flat(model), state.w, f"parameters after step {t}")


METHODS = {
    "sam": ("cross_entropy", "l2", 0.1),
    "asam": ("cross_entropy", "adaptive", 0.5),
    "bisam-tanh": ("tanh", "l2", 0.1),
    "bisam-log": ("log", "l2", 0.1),
}


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
        evaluation(model, objective, smoothing),
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
        params, optimizer, evaluation(model, objective, smoothing), radius, geometry=geometry, xi=0.02
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
    base = ("sgd", "momentum", "nesterov")[case % 3]
    smoothing = (0.0, 0.1)[case // 3 % 2]
    gap_ema = 0.7 if case % 7 in (2, 5) else 0.0
    geometry = "adaptive" if case % 5 == 3 else "l2"
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
    run_step = Sequential(params, optimizer, evaluation(model, "tanh"), LETS(params, optimizer, every=3))
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
    run_step = Sequential(list(model.parameters()), optimizer, evaluation(model, "tanh"), FixedRadius(0.1))
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
    evaluate = evaluation(model, objective)
    evaluate(batch).ascent.backward()
    opt.first_step()
    loss = evaluate(batch).descent
    loss.backward()
    opt.second_step()
    return loss


@pytest.mark.parametrize("drive", [drive_closures, drive_two_calls])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_sam_class(method: str, base: str, drive: Callable[..., Tensor]) -> None:
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
