"""Every schedule, geometry and saving of the fast code, recomputed literally and compared after every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bisam_ray.optim import LETS, RAPP, FixedRadius, FollowsLR, Lookahead, ScheduledRadius, Sequential
from bisam_ray.optim import reference as ref
from bisam_ray.optim import reference_schedules as schedules
from bisam_ray.optim.radius import RadiusPolicy
from bisam_ray.optim.sampa import Parallel
from bisam_ray.optim.shapes import cosine, table, write_table
from bisam_ray.optim.step import Step, StepStats

from .network import BASES, METHODS, STEPS, Batch, Evaluation, batches, check, flat, network, oracle, same, same_tiny

WARMUP = {"warmup": 0.25, "total_steps": STEPS}


def listed(seed: int, size: int = 6) -> list[Batch]:
    stream = batches(seed, size)
    return [next(stream) for _ in range(STEPS + 1)]


TRAIN, HELD_OUT = listed(1), listed(2, 4)
Policy = Callable[[list[Tensor], torch.optim.Optimizer], RadiusPolicy]


def fast(
    objective: str,
    base: str | Callable[[list[Tensor]], torch.optim.Optimizer],
    radius: RadiusPolicy | Policy,
    smoothing: float = 0.0,
    **options: Any,
) -> tuple[nn.Module, Step]:
    """The network and a step of the fast code on it; with lam that of SAMPa."""
    model = network()
    params = list(model.parameters())
    optimizer = BASES[base][0](params, **BASES[base][1]) if isinstance(base, str) else base(params)
    policy = radius if hasattr(radius, "on_ascent") else radius(params, optimizer)
    schedule = Parallel if "lam" in options else Sequential
    return model, schedule(params, optimizer, Evaluation(model, objective, smoothing), policy, **options)


def make(step: Step, t: int, hyper: bool = False) -> StepStats:
    following = {"following": lambda: TRAIN[t + 1]} if isinstance(step, Parallel) else {}
    return step(TRAIN[t], hyper=(lambda: HELD_OUT[t]) if hyper else None, **following)


def update(method: ref.Method, state: ref.State, h: Tensor) -> ref.State:
    w, optimizer = ref.optimizer_step(method.optimizer, state.optimizer, state.w, h)
    return ref.State(w, optimizer, state.step + 1)


def perturbed(method: ref.Method, w: Tensor, a: Tensor, rho: float | Tensor, batch: Batch) -> Tensor:
    """∇L_B(w + ρ u(a))."""
    return ref.gradient(method.descent, w + rho * ref.direction(method, w, a)[0], batch)[1]


# -- SAMPa

SAMPA = list(product(("cross_entropy", "tanh", "log"), ("l2", "adaptive"), (0.0, 0.2, 1.0)))


@pytest.mark.parametrize(
    ("case", "objective", "geometry", "lam"),
    [pytest.param(i, *c, id="-".join(map(str, c))) for i, c in enumerate(SAMPA)],
)
def test_sampa(case: int, objective: str, geometry: str, lam: float) -> None:
    base = (*BASES, "momentum")[case % 6]  # as the warm-up and the smoothing: the axes without a name take turns
    smoothing, warmup = (0.1 if case % 4 == 1 else 0.0), (WARMUP if case % 5 < 2 else {})
    rho = 0.5 if geometry == "adaptive" else 0.1
    model, step = fast(objective, base, FixedRadius(rho, **warmup), smoothing, geometry=geometry, lam=lam)
    method = oracle(objective, base, smoothing, rho=rho, geometry=geometry, lam=lam, **warmup)
    state = schedules.sampa_state(method, flat(model), TRAIN[0])
    for t in range(STEPS):
        stats = make(step, t)
        state, trace = schedules.sampa_step(method, state, TRAIN[t], TRAIN[t + 1])
        check(stats, model, trace, ref.State(state.x), t)
    assert (flat(model) - flat(network())).norm() > 0.1


@pytest.mark.parametrize("base", ["momentum", "nesterov", "adam"])
def test_sampa_with_a_subset(base: str) -> None:
    model, step = fast("tanh", base, FixedRadius(0.2), geometry="subset", beta=0.6, lam=0.2)
    method = oracle("tanh", base, rho=0.2, geometry="subset", beta=0.6, lam=0.2)
    state = schedules.sampa_state(method, flat(model), TRAIN[0])
    for t in range(STEPS):
        stats = make(step, t)
        state, trace = schedules.sampa_step(method, state, TRAIN[t], TRAIN[t + 1], masked(step, t))
        check(stats, model, trace, ref.State(state.x), t)


SAMPA_LETS = list(product(("cross_entropy", "tanh"), ("next", "same"), ("secant", "diagonal"), (1, 3)))


@pytest.mark.parametrize(
    ("case", "objective", "train_batch", "curvature", "every"),
    [pytest.param(i, *c, id="-".join(map(str, c))) for i, c in enumerate(SAMPA_LETS)],
)
def test_sampa_with_a_learned_radius(case: int, objective: str, train_batch: str, curvature: str, every: int) -> None:
    base, warmup, lam = tuple(BASES)[case % 5], (WARMUP if case % 3 == 0 else {}), (0.2, 0.0, 0.6)[case % 3]
    learning = ref.Learning(train_batch, curvature, every, lr=0.05, gap_ema=0.5 if case % 4 == 1 else 0.0)
    choices = {"train_batch": train_batch, "curvature": curvature, "every": every, "gap_ema": learning.gap_ema}
    model, step = fast(
        objective, base, lambda params, opt: LETS(params, opt, 0.1, lr=0.05, **warmup, **choices), lam=lam
    )
    method = oracle(objective, base, rho=0.1, lam=lam, **warmup)
    state = schedules.sampa_lets_state(method, flat(model), TRAIN[0])
    for t in range(STEPS):
        stats = make(step, t, hyper=True)
        state, trace = schedules.sampa_lets_step(method, learning, state, TRAIN[t], TRAIN[t + 1], HELD_OUT[t])
        check(stats, model, trace, state, t)
        same(step.radius.rho, state.r.exp(), f"learned rho after step {t}")
        if state.hypergradient is not None:
            same_tiny(step.radius.hypergradient, state.hypergradient, f"hypergradient at step {t}")
    assert abs(float(step.radius.rho) - 0.1) > 0.002


# -- ESAM


def masked(step: Step, t: int) -> Tensor:
    """The mask of step t, counted from 0."""
    return torch.cat([b.flatten() for b in step.ball.mask(t + 1)])


@pytest.mark.parametrize("objective", ["cross_entropy", "log"])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("renormalise", [False, True], ids=["published", "renormalised"])
def test_esam(renormalise: bool, gamma: float, objective: str) -> None:
    """The mask is the fast code's own draw; what is done with it is not."""
    options = {"geometry": "subset", "beta": 0.6, "renormalise": renormalise, "gamma": gamma}
    warmup = WARMUP if gamma == 1 else {}  # at ρ = 0 no loss rises most
    model, step = fast(objective, "momentum", FixedRadius(0.3, **warmup), 0.1, **options)
    method = oracle(objective, "momentum", 0.1, rho=0.3, **options, **warmup)
    state, masks = ref.State(flat(model)), []
    for t in range(STEPS):
        masks.append(masked(step, t))
        before, stats = state, make(step, t)
        state, trace = ref.sam_step(method, state, TRAIN[t], masks[-1])
        if gamma == 1:
            check(stats, model, trace, state, t)
            continue
        same(stats.rho, trace.rho, f"rho at step {t}")
        same(stats.grad_norm, trace.grad_norm, f"grad_norm at step {t}")
        same(flat(model), state.w, f"parameters after step {t}")
        _, a = ref.gradient(method.ascent, before.w, TRAIN[t])
        epsilon = trace.rho * ref.direction(method, before.w, a, masks[-1])[0]
        chosen = ref.descended(method, before.w, epsilon, TRAIN[t])
        same(stats.perturbed_loss, chosen(before.w + epsilon, TRAIN[t]), f"loss of the selected at step {t}")
    assert 0.5 < torch.stack(masks).mean() < 0.7
    assert all((m != masks[0]).any() for m in masks[1:])


@pytest.mark.parametrize("train_batch", ["next", "same"])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_esam_with_a_learned_radius(gamma: float, train_batch: str) -> None:
    options = {"geometry": "subset", "beta": 0.6, "gamma": gamma}
    curvature = "secant" if gamma == 1 else "diagonal"
    learning = ref.Learning(train_batch, curvature, lr=0.05)
    model, step = fast(
        "tanh",
        "adam",
        lambda params, opt: LETS(params, opt, 0.2, lr=0.05, curvature=curvature, train_batch=train_batch),
        **options,
    )
    method = oracle("tanh", "adam", rho=0.2, **options)
    state = ref.lets_state(method, flat(model))
    for t in range(STEPS):
        make(step, t, hyper=True)
        state, _ = ref.lets_step(method, learning, state, TRAIN[t], HELD_OUT[t], masked(step, t))
        same(step.radius.rho, state.r.exp(), f"learned rho after step {t}")
        same(flat(model), state.w, f"parameters after step {t}")
    assert abs(float(step.radius.rho) - 0.2) > 0.001


# -- what a step saves: an ascent now and then, or on a part of the batch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("between", ["plain", "direction", "descent"])
def test_an_ascent_at_every_third_step(between: str, method: str) -> None:
    objective, geometry, rho = METHODS[method]
    base = "adamw" if method == "bisam-log" else "nesterov"
    radius = FixedRadius(rho, **WARMUP)
    model, step = fast(objective, base, radius, geometry=geometry, every=3, between=between)
    literal = oracle(objective, base, geometry=geometry, **WARMUP)
    state = ref.State(flat(model))
    a = h = torch.zeros(())
    for t in range(STEPS):
        stats = make(step, t)
        if t % 3 == 0:
            _, a = ref.gradient(literal.ascent, state.w, TRAIN[t])
        climbed = a if t % 3 == 0 or between == "direction" else h
        used = 0.0 if t % 3 and between == "plain" else rho * ref.warmup_factor(literal, t)
        h = perturbed(literal, state.w, climbed, used, TRAIN[t])
        same(stats.rho, torch.tensor(used, dtype=torch.float64), f"rho at step {t}")
        norm = h.norm() if t % 3 and between == "plain" else ref.direction(literal, state.w, climbed)[1]
        same(stats.grad_norm, norm, f"grad_norm at step {t}")
        state = update(literal, state, h)
        same(flat(model), state.w, f"parameters after step {t}")


@pytest.mark.parametrize("objective", ["cross_entropy", "log"])
def test_an_ascent_on_a_part_of_the_batch(objective: str) -> None:
    """The first half; the descent sees all examples, and so does the secant's ∇L_B(w)."""
    for lets in (False, True):
        radius = (lambda p, o: LETS(p, o, 0.1, lr=0.05)) if lets else FixedRadius(0.1)
        model, step = fast(objective, "momentum", radius, ascent_fraction=0.5)
        method = oracle(objective, "momentum", rho=0.1)
        state = ref.lets_state(method, flat(model))
        half = replace(method, ascent=lambda w, batch, full=method.ascent: full(w, (batch[0][:3], batch[1][:3])))
        for t in range(STEPS):
            make(step, t, hyper=lets)
            if lets:
                state, _ = ref.lets_step(half, ref.Learning(lr=0.05), state, TRAIN[t], HELD_OUT[t])
                same(step.radius.rho, state.r.exp(), f"learned rho after step {t}")
            else:
                state, _ = ref.sam_step(half, state, TRAIN[t])
            same(flat(model), state.w, f"parameters after step {t}")


# -- whose examples share a perturbation, and in how many parts a batch is computed


@pytest.mark.parametrize("method", METHODS)
def test_m_sharpness(method: str) -> None:
    """scope = 2: the mean of three SAM gradients, each of two examples at its own perturbed weights."""
    objective, geometry, rho = METHODS[method]
    model, step = fast(objective, "momentum", FixedRadius(rho, **WARMUP), 0.1, geometry=geometry, scope=2)
    literal = oracle(objective, "momentum", 0.1, geometry=geometry, **WARMUP)
    state = ref.State(flat(model))
    for t in range(STEPS):
        make(step, t)
        used, found = rho * ref.warmup_factor(literal, t), []
        for i in (0, 2, 4):
            part = TRAIN[t][0][i : i + 2], TRAIN[t][1][i : i + 2]
            _, a = ref.gradient(literal.ascent, state.w, part)
            found.append(perturbed(literal, state.w, a, used, part))
        state = update(literal, state, torch.stack(found).mean(0))
        same(flat(model), state.w, f"parameters after step {t}")


@pytest.mark.parametrize("train_batch", ["next", "same"])
@pytest.mark.parametrize("objective", ["cross_entropy", "tanh"])
def test_m_sharpness_with_a_learned_radius(objective: str, train_batch: str) -> None:
    """One radius for the three perturbations; d = h − g of their means."""
    learning = ref.Learning(train_batch, lr=0.05)
    model, step = fast(objective, "momentum", lambda p, o: LETS(p, o, 0.1, lr=0.05, train_batch=train_batch), scope=2)
    method = oracle(objective, "momentum", rho=0.1)
    state = ref.lets_state(method, flat(model))
    for t in range(STEPS):
        stats = make(step, t, hyper=True)
        loss, g = ref.gradient(method.descent, state.w, TRAIN[t])
        if state.pending is not None:
            state = ref.finish(learning, state, loss, g)
        same(stats.rho, state.r.exp(), f"rho at step {t}")
        same(stats.loss, loss, f"loss at step {t}")
        found = []
        for i in (0, 2, 4):
            part = TRAIN[t][0][i : i + 2], TRAIN[t][1][i : i + 2]
            _, a = ref.gradient(method.ascent, state.w, part)
            found.append(perturbed(method, state.w, a, state.r.exp(), part))
        h = torch.stack(found).mean(0)
        sd = ref.sensitivity(method.optimizer, state.optimizer, state.w, h) * (h - g)
        after = update(method, state, h)
        pending = ref.Pending(sd, *ref.gradient(method.descent, after.w, HELD_OUT[t]))
        state = replace(state, w=after.w, optimizer=after.optimizer, step=t + 1, pending=pending)
        if train_batch == "same":
            state = ref.finish(learning, state, *ref.gradient(method.descent, after.w, TRAIN[t]))
        same(step.radius.rho, state.r.exp(), f"learned rho after step {t}")
        same(flat(model), state.w, f"parameters after step {t}")


ACCUMULATED: dict[str, dict[str, Any]] = {
    "sam": {},
    "bisam-adaptive": {"objective": "tanh", "geometry": "adaptive"},
    "part": {"objective": "log", "ascent_fraction": 0.5},
    "esam": {"geometry": "subset", "beta": 0.6, "gamma": 0.5, "lets": {"curvature": "diagonal"}},
    "exact": {"objective": "log", "lets": {"curvature": "exact"}},
    "m-sharpness": {"objective": "tanh", "scope": 3, "lets": {"curvature": "finite_difference"}},
    "sampa": {"lam": 0.2},
    "sampa-bisam": {"objective": "log", "lam": 0.2, "lets": {"curvature": "exact"}},
}


@pytest.mark.parametrize("name", ACCUMULATED)
def test_a_batch_in_parts(name: str) -> None:
    """accumulate = 4, on six examples (parts of one and of two): the step of the whole batch, learned radius and all.

    To 1e-12, but for differences of gradients, which divide the rounding by their small step.
    """
    options = dict(ACCUMULATED[name])
    objective, lets = options.pop("objective", "cross_entropy"), options.pop("lets", {})
    tolerance = 1e-6 if lets.get("curvature") == "finite_difference" else 1e-12
    policy = lambda p, o: LETS(p, o, 0.2, lr=0.01, **lets)  # noqa: E731
    (whole, one), (parts, four) = (fast(objective, "momentum", policy, accumulate=n, **options) for n in (1, 4))
    for t in range(STEPS):
        expected, stats = make(one, t, hyper=True), make(four, t, hyper=True)
        for field in ("loss", "perturbed_loss", "grad_norm", "rho"):
            torch.testing.assert_close(getattr(stats, field), getattr(expected, field), rtol=tolerance, atol=tolerance)
        assert stats.cost == pytest.approx(expected.cost)
        torch.testing.assert_close(flat(parts), flat(whole), rtol=tolerance, atol=tolerance)


# -- clipping, and slow weights around SAM


@pytest.mark.parametrize("method", METHODS)
def test_clipping(method: str) -> None:
    """The descent gradient alone, and only where it is too long."""
    objective, geometry, rho = METHODS[method]
    model, step = fast(objective, "momentum", FixedRadius(rho), geometry=geometry, clip=0.4)
    literal = oracle(objective, "momentum", geometry=geometry)
    state, lengths = ref.State(flat(model)), []
    for t in range(STEPS):
        make(step, t)
        _, a = ref.gradient(literal.ascent, state.w, TRAIN[t])
        h = perturbed(literal, state.w, a, rho, TRAIN[t])
        lengths.append(h.norm())
        state = update(literal, state, h * min(1.0, 0.4 / float(lengths[-1])))
        same(flat(model), state.w, f"parameters after step {t}")
    assert min(lengths) < 0.4 < max(lengths)


def test_clipping_of_sampa() -> None:
    """What is clipped is the update's gradient (1 − λ) h + λ k⁺, and y goes unclipped."""
    model, step = fast("tanh", "sgd", FixedRadius(0.1), lam=0.2, clip=0.4)
    method = oracle("tanh", "sgd", rho=0.1, lam=0.2)
    state, lengths = schedules.sampa_state(method, flat(model), TRAIN[0]), []
    for t in range(STEPS):
        make(step, t)
        after, _ = schedules.sampa_step(method, state, TRAIN[t], TRAIN[t + 1])
        mixed = (state.x - after.x) / 0.3
        lengths.append(mixed.norm())
        state = replace(after, x=state.x - 0.3 * mixed * min(1.0, 0.4 / float(lengths[-1])))
        same(flat(model), state.x, f"parameters after step {t}")
    assert min(lengths) < 0.4 < max(lengths)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["lookahead", "rapp"])
@pytest.mark.parametrize("method", ["sam", "bisam-log"])
def test_slow_weights_around_sam(method: str, name: str, base: str) -> None:
    """An outer step at every fifth batch, SAM's gradient being the field."""
    objective, geometry, rho = METHODS[method]
    wrapper, literal_step = {
        "lookahead": (Lookahead, schedules.lookahead_step),
        "rapp": (RAPP, schedules.rapp_step),
    }[name]
    cls, options = BASES[base]
    model, step = fast(objective, lambda params: wrapper(cls(params, **options), 5, 0.4), FixedRadius(rho))
    literal = oracle(objective, base, geometry=geometry)
    z, state = flat(model), ref.OptimizerState()

    def field(batch: Batch) -> Callable[[Tensor], Tensor]:
        return lambda w: perturbed(literal, w, ref.gradient(literal.ascent, w, batch)[1], rho, batch)

    for t in range(STEPS):
        make(step, t)
        if t % 5 == 4:
            z, state = literal_step(literal.optimizer, state, z, [field(b) for b in TRAIN[t - 4 : t + 1]], 0.4)
            same(flat(model), z, f"parameters after step {t}")


# -- radii that are not learned


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_a_scheduled_radius(warmup: float) -> None:
    model, step = fast("tanh", "momentum", ScheduledRadius(cosine(0.2), warmup, STEPS))
    method = oracle("tanh", "momentum")
    state = ref.State(flat(model))
    for t in range(STEPS):
        stats = make(step, t)
        rho = 0.2 * (1 + math.cos(math.pi * t / STEPS)) / 2 * (min(1.0, t / (warmup * STEPS)) if warmup else 1.0)
        same(stats.rho, torch.tensor(rho, dtype=torch.float64), f"rho at step {t}")
        if t == 5:  # a resumed one goes on where it was
            saved, step.radius = step.radius.state_dict(), ScheduledRadius(cosine(0.2), warmup, STEPS)
            step.radius.load_state_dict(saved)
        state, _ = ref.sam_step(replace(method, rho=rho), state, TRAIN[t])
        same(flat(model), state.w, f"parameters after step {t}")


def test_a_radius_that_follows_the_learning_rate() -> None:
    """ρη(t)/η₀, with a scheduler that was there before the radius or not."""
    for scheduler_first in (False, True):
        w = nn.Parameter(torch.ones(3, dtype=torch.float64))
        base = torch.optim.SGD([w], lr=0.4)
        if scheduler_first:
            scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda t: 0.5 ** (t + 1))
        radius = FollowsLR(0.1, base, 0.5, 8)
        if not scheduler_first:
            scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda t: 0.5 ** (t + 1))
        for t in range(8):
            assert radius.on_ascent(None, None) == pytest.approx(0.1 * 0.5 ** (t + 1) * min(1, t / 4), rel=1e-12)
            base.step()
            scheduler.step()


REPLAYED: dict[str, dict[str, Any]] = {
    "sam": {},
    "bisam": {"objective": "tanh", "geometry": "adaptive"},
    "direction": {"every": 3, "between": "direction"},
    "descent": {"every": 3, "between": "descent"},
    "plain": {"every": 3, "objective": "log"},
    "m-sharpness": {"scope": 3},
    "sampa": {"lam": 0.2},
}


@pytest.mark.parametrize(
    ("dtype", "train_batch"), [(torch.float64, "next"), (torch.float32, "same")], ids=["float64-next", "float32-same"]
)
@pytest.mark.parametrize("name", REPLAYED)
def test_a_recorded_radius_gives_the_learned_run_again(
    name: str, dtype: torch.dtype, train_batch: str, tmp_path: Path
) -> None:
    """Bit for bit, radii and weights: learning looks at a step, and changes nothing in it but ρ."""
    options = dict(REPLAYED[name])
    objective = options.pop("objective", "cross_entropy")

    def go(radius: RadiusPolicy | Policy) -> tuple[list[float], list[Tensor]]:
        model, step = fast(objective, "nesterov", radius, **options)
        model.to(dtype)
        if isinstance(step.radius, LETS):
            step.radius = LETS(step.params, step.base, 0.1, lr=0.05, train_batch=train_batch, **WARMUP)
        radii, visited = [], []
        for t in range(STEPS):
            batch, after, hyper = ((x.to(dtype), y) for x, y in (TRAIN[t], TRAIN[t + 1], HELD_OUT[t]))
            following = {"following": lambda after=after: after} if isinstance(step, Parallel) else {}
            radii.append(float(step(batch, hyper=lambda hyper=hyper: hyper, **following).rho))
            visited.append(flat(model))
        return radii, visited

    learned, visited = go(lambda p, o: LETS(p, o, 0.1))
    path = tmp_path / "rho.csv"
    write_table(path, [(t / STEPS, rho) for t, rho in enumerate(learned)])
    replayed, again = go(ScheduledRadius(table(path), total_steps=STEPS))
    assert replayed == learned
    assert all(torch.equal(a, b) for a, b in zip(visited, again, strict=True))
    assert len(set(learned)) > STEPS // 4
    assert visited[0].dtype == dtype
