"""The hypergradient against central differences of the upper level J, on a network whose J is not quadratic.

J is found without any code of LETS: the step itself is made again from a copy of the whole state with another radius
(another µ, another α), and the losses of V and of B' are taken at the weights it leads to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bisam_ray.optim import LETS, RAPP, FixedRadius, Lookahead, Sequential
from bisam_ray.optim import reference as ref
from bisam_ray.optim import reference_schedules as schedules
from bisam_ray.optim.sampa import Parallel
from bisam_ray.optim.step import Step

from .network import BASES, METHODS, Batch, Evaluation, batches, flat, network, oracle

STEPS, CHECKED, SIZE = 12, (3, 5), 6  # of Lookahead and RAPP below 5 is an outer step, 3 an inner one
WARMUP = {"warmup": 0.4, "total_steps": STEPS}  # 3 lies within it, 5 behind
DELTA = 8e-3  # of log ρ: the errors of rounding (1/δ) and truncation (δ⁴) are about equal
ROUNDING = 1e-13  # of such a difference, where J is about 1


class Recording(LETS):
    """LETS that notes the logarithms a step used."""

    def on_ascent(self, *args: Any, **options: Any) -> Any:
        before = self.log.tolist()  # the ascent is made already where its batch is the B' of the step before
        rho = super().on_ascent(*args, **options)
        self.used = self.log.tolist()[: self.radii] + before[self.radii :]
        return rho


class Given(FixedRadius):
    """Any radius, or one for each parameter, and the µ and α that the objective takes."""

    def __init__(self, rho: Any, learned: dict[str, float]) -> None:
        super().__init__(0.0)
        self.given, self.learned = rho, learned

    def on_ascent(self, *args: Any, **options: Any) -> Any:
        return self.given


class Selecting(Sequential):
    """A step that notes which examples it selected, and can be told to select them again."""

    selected: list[Any]
    told: list[Any] | None = None

    def rising(self, batch: Any, before: Tensor | None) -> Any:
        if self.told is not None:
            return self.told.pop(0)
        self.selected.append(super().rising(batch, before))
        return self.selected[-1]


@dataclass
class Run:
    """A run of the fast code, in one piece so that it can be copied in one piece."""

    model: nn.Module
    evaluate: Evaluation
    step: Step
    radius: Recording

    def make(self, t: int) -> None:
        self.step.selected = []
        following = {"following": lambda: TRAIN[t + 1]} if isinstance(self.step, Parallel) else {}
        self.step(TRAIN[t], hyper=lambda: HELD_OUT[t], **following)


def listed(seed: int) -> list[Batch]:
    stream = batches(seed, SIZE)
    return [next(stream) for _ in range(STEPS + 2)]


TRAIN, HELD_OUT = listed(1), listed(2)


def wrapped(name: str, params: list[Tensor]) -> torch.optim.Optimizer:
    if name in BASES:
        cls, options = BASES[name]
        return cls(params, **options)
    wrapper, base = {
        "lookahead": (Lookahead, torch.optim.SGD(params, lr=0.1, momentum=0.8)),
        "rapp": (RAPP, torch.optim.SGD(params, lr=0.1, momentum=0.8, dampening=0.4, weight_decay=1e-2)),
        "rapp-adam": (RAPP, torch.optim.Adam(params, lr=0.02, weight_decay=0.1)),
    }[name]
    return wrapper(base, every=3, outer_lr=0.6)


EVERY_BASE = (*BASES, "lookahead", "rapp", "rapp-adam")


def build(objective: str, base: str, rho: float, lets: dict[str, Any], smoothing: float = 0.0, **options: Any) -> Run:
    """A run at its start; with lam it is SAMPa's."""
    model = network()
    params = list(model.parameters())
    optimizer = wrapped(base, params)
    radius = Recording(params, optimizer, **{"rho": rho, "curvature": "exact", "lr": 0.1, "rho_max": 3.0, **lets})
    evaluate = Evaluation(model, objective, smoothing, radius)
    schedule = Parallel if "lam" in options else Selecting
    return Run(model, evaluate, schedule(params, optimizer, evaluate, radius, **options), radius)


def upper_level(before: Run, selected: list[Any], logs: list[float], t: int, goal: str, train: Batch) -> float:
    """J of the given logarithms: the step made from a copy of the state before it."""
    run = copy.deepcopy(before)
    radius = run.radius
    ramp = 1.0 if radius.warmup == 0 else min(1.0, t / (radius.warmup * radius.total_steps))
    rho = [math.exp(log) * ramp for log in logs[: radius.radii]]
    learned = {name: math.exp(log) for name, log in zip(radius.names, logs[radius.radii :], strict=True)}
    policy = Given(
        rho[0] if radius.radii == 1 else [torch.tensor(rho[k], dtype=torch.float64) for k in radius.groups], learned
    )
    run.step.radius = run.evaluate.source = policy
    run.step.told = list(selected)
    run.make(t)
    with torch.no_grad():
        held_out, trained = (
            F.cross_entropy(run.model(x), y, label_smoothing=run.evaluate.smoothing).item()
            for x, y in (HELD_OUT[t], train)
        )
    return held_out if goal == "validation" else (held_out - trained) ** 2 / 2


def central(j: Callable[[float], float], delta: float = DELTA) -> float:
    """j'(0), to the fourth order."""
    return (8 * (j(delta) - j(-delta)) - (j(2 * delta) - j(-2 * delta))) / (12 * delta)


def differences(before: Run, selected: list[Any], t: int, used: list[float], goal: str, train: Batch) -> Tensor:
    """∂J/∂log, for every learned number."""

    def along(k: int) -> float:
        return central(
            lambda x: upper_level(before, selected, [v + x * (i == k) for i, v in enumerate(used)], t, goal, train)
        )

    return torch.tensor([along(k) for k in range(len(used))], dtype=torch.float64)


def hold(run: Run, tolerance: float, checked: tuple[int, ...] = CHECKED) -> None:
    """Every component of `LETS.slope`, at several steps along a run, against differences of J."""
    goal, train_batch = run.radius.goal, run.radius.train_batch
    at_once = goal == "validation" or train_batch == "same"
    waiting = None
    for t in range(max(checked) + 2):
        before = copy.deepcopy(run) if t in checked else None
        run.make(t)
        if waiting is not None:
            agree(run.radius.slope, *waiting, tolerance)
            waiting = None
        if before is None:
            continue
        train = TRAIN[t] if train_batch == "same" else TRAIN[t + 1]
        expected = differences(before, run.step.selected, t, run.radius.used, goal, train)
        if at_once:
            agree(run.radius.slope, expected, t, tolerance)
        else:
            waiting = expected, t  # B' is the next step's batch
    assert waiting is None


def agree(slope: Tensor, expected: Tensor, t: int, tolerance: float) -> None:
    """Every component to the tolerance, but for the rounding of the differences."""
    error = ((slope - expected).abs() / (expected.abs() + ROUNDING / tolerance)).max().item()
    assert expected.abs().min() > 1e-9, "nothing to see"
    assert error <= tolerance, f"step {t}: {slope.tolist()} should be {expected.tolist()}, relative error {error:.1e}"


UPPER = {"next": {}, "same": {"train_batch": "same"}, "validation": {"goal": "validation"}}
SAMPA = {"sampa": ("cross_entropy", "l2", 0.1), "sampa-log": ("log", "adaptive", 0.5)}
CASES = list(product((METHODS | SAMPA).items(), EVERY_BASE, UPPER))


@pytest.mark.parametrize(
    ("case", "method", "base", "upper"),
    [pytest.param(i, m, base, upper, id=f"{name}-{base}-{upper}") for i, ((name, m), base, upper) in enumerate(CASES)],
)
def test_exact(case: int, method: tuple[str, str, float], base: str, upper: str) -> None:
    """dJ/d log ρ of any method and base optimizer, to 1e-6; warm-up, active clipping and label smoothing take turns."""
    objective, geometry, rho = method
    lets = {**UPPER[upper], **(WARMUP if case % 2 else {})}
    options: dict[str, Any] = {"clip": 0.05} if case // 2 % 2 else {}
    if CASES[case][0][0] in SAMPA:
        options["lam"] = 0.3
    run = build(objective, base, rho, lets, smoothing=0.1 if case % 5 < 2 else 0.0, geometry=geometry, **options)
    hold(run, 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["momentum", "adam", "rapp"])
def test_finite_difference(base: str, method: str) -> None:
    objective, geometry, rho = METHODS[method]
    lets = {"curvature": "finite_difference", "goal": "validation", **WARMUP}
    hold(build(objective, base, rho, lets, geometry=geometry), 1e-5)


def test_finite_difference_of_sampa() -> None:
    hold(build("cross_entropy", "nesterov", 0.1, {"curvature": "finite_difference"}, lam=0.3), 1e-5)


GROUPS = {"kind": [0, 1, 0, 1], "tensor": [0, 1, 2, 3]}


@pytest.mark.parametrize("schedule", ["sequential", "parallel"])
@pytest.mark.parametrize("geometry", ["l2", "adaptive", "subset"])
@pytest.mark.parametrize("groups", GROUPS)
def test_a_radius_for_every_group(groups: str, geometry: str, schedule: str) -> None:
    """Each group's derivative, all of the others' radii held."""
    lets = {"groups": GROUPS[groups], "goal": "validation", **WARMUP}
    options: dict[str, Any] = {"lam": 0.3} if schedule == "parallel" else {}
    run = build("tanh", "momentum", 0.2, lets, geometry=geometry, beta=0.6, clip=0.1, **options)
    hold(run, 1e-6)
    assert len(set(run.radius.rho.tolist())) == run.radius.radii, "the radii went their own ways"


LEARNED = {"tanh": {"mu": 10.0, "alpha": 0.1}, "erf": {"mu": 10.0, "alpha": 0.1}, "log": {"mu": 1.0}}
SHAPES = {
    "l2": {},
    "adaptive": {"geometry": "adaptive"},
    "published": {"geometry": "subset", "beta": 0.6},
    "renormalised": {"geometry": "subset", "beta": 0.6, "renormalise": True},
}


@pytest.mark.parametrize("upper", ["next", "validation"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("objective", LEARNED)
def test_mu_and_alpha(objective: str, shape: str, upper: str) -> None:
    """Beside dJ/d log ρ also dJ/d log µ and dJ/d log α."""
    lets = {"learn": LEARNED[objective], **UPPER[upper]}
    run = build(objective, "adamw" if upper == "next" else "momentum", 0.2, lets, **SHAPES[shape])
    start = dict(LEARNED[objective])
    hold(run, 1e-6, (3, 8))
    assert all(abs(value.item() / start[name] - 1) > 1e-3 for name, value in run.radius.learned.items())


def test_mu_and_alpha_beside_a_radius_for_every_group() -> None:
    """Also where a step accumulates and where every m examples have their own perturbation."""
    for options in ({}, {"accumulate": 2}, {"scope": 2}, {"ascent_fraction": 0.5}):
        lets = {"learn": LEARNED["tanh"], "groups": GROUPS["kind"], "goal": "validation"}
        hold(build("tanh", "momentum", 0.2, lets, geometry="adaptive", **options), 1e-6)


@pytest.mark.parametrize("curvature", ["exact", "finite_difference"])
@pytest.mark.parametrize("upper", UPPER)
@pytest.mark.parametrize("method", METHODS)
def test_several_perturbations_in_a_step(method: str, upper: str, curvature: str) -> None:
    """scope = 2: three perturbations for a batch of six."""
    objective, geometry, rho = METHODS[method]
    run = build(objective, "adam", rho, {"curvature": curvature, **UPPER[upper]}, geometry=geometry, scope=2, clip=0.1)
    hold(run, 1e-6 if curvature == "exact" else 1e-5)


@pytest.mark.parametrize("upper", UPPER)
@pytest.mark.parametrize("objective", ["cross_entropy", "log"])
def test_selected_examples(objective: str, upper: str) -> None:
    """ESAM: the selection does not change with ρ but at jumps, so it is held."""
    shape = {"geometry": "subset", "beta": 0.6, "gamma": 0.5}
    hold(build(objective, "momentum", 0.2, UPPER[upper], **shape), 1e-6)
    hold(build(objective, "momentum", 0.2, UPPER[upper], **shape, scope=3, accumulate=2), 1e-6)


@pytest.mark.parametrize("learn", [False, True], ids=["radius", "mu-too"])
@pytest.mark.parametrize("between", ["direction", "descent"])
@pytest.mark.parametrize("upper", UPPER)
def test_steps_in_between(upper: str, between: str, learn: bool) -> None:
    """A perturbation along an earlier gradient: the same derivative, and none by the µ of a bound it does not climb."""
    lets = {**UPPER[upper], "learn": {"mu": 10.0} if learn else {}}
    run = build("tanh", "momentum", 0.2, lets, every=3, between=between)
    if not learn:
        hold(run, 1e-6, (3, 4, 5, 7, 10))
        return
    for t in range(6):
        run.make(t)
        if t in (2, 3, 5) and upper != "next":
            assert (run.radius.slope[1] == 0) == (t % 3 != 0)
    hold(build("tanh", "momentum", 0.2, lets, every=3, between=between), 1e-6, (3, 6, 9))


def test_in_between_plain_steps_only_finish() -> None:
    """between = plain: a hypergradient begins where the step ascends, and the next step, whatever it is, ends it."""
    run = build("tanh", "nesterov", 0.2, {}, every=3)
    hold(run, 1e-6, (3, 6, 9))
    assert (run.radius.updates, run.radius.perturbations) == (4, 4)
    run = build("tanh", "nesterov", 0.2, {"every": 2}, every=2)  # at every second perturbation, that is fourth step
    hold(run, 1e-6, (4,))
    assert (run.radius.updates, run.radius.perturbations) == (2, 3)


STATES = {"sgd": "sgd", "momentum": "sgd", "nesterov": "sgd", "adam": "adam", "adamw": "adamw"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", BASES)
def test_the_reference_has_the_same_upper_level(base: str, method: str) -> None:
    """The fast hypergradient is the derivative of `reference.upper_level`, on the reference's own trajectory."""
    objective, geometry, rho = METHODS[method]
    run = build(objective, base, rho, {"train_batch": "same", **WARMUP}, smoothing=0.1, geometry=geometry)
    expected = oracle(objective, base, 0.1, rho=rho, geometry=geometry, **WARMUP)
    state = ref.State(flat(run.model))
    for t in range(6):
        run.make(t)
        (log,) = run.radius.used
        if t >= 4:

            def j(x: float, state: ref.State = state, log: float = log, t: int = t) -> float:
                r = torch.tensor(log + x, dtype=torch.float64)
                return ref.upper_level(expected, state, r, TRAIN[t], TRAIN[t], HELD_OUT[t]).item()

            agree(run.radius.slope, torch.tensor([central(j)], dtype=torch.float64), t, 1e-6)
        state, _ = ref.sam_step(replace(expected, rho=math.exp(log)), state, TRAIN[t])


@pytest.mark.parametrize("objective", ["cross_entropy", "tanh"])
@pytest.mark.parametrize("base", BASES)
def test_the_reference_of_sampa_has_the_same_upper_level(base: str, objective: str) -> None:
    """The fast hypergradient is the derivative of `reference_schedules.sampa_upper_level`."""
    run = build(objective, base, 0.1, {"goal": "gap", "train_batch": "same", **WARMUP}, lam=0.3)
    expected = oracle(objective, base, rho=0.1, lam=0.3, **WARMUP)
    state = schedules.sampa_state(expected, flat(run.model), TRAIN[0])
    for t in range(6):
        run.make(t)
        (log,) = run.radius.used
        pair = TRAIN[t], TRAIN[t + 1]
        if t >= 4:

            def j(
                x: float, state: schedules.SampaState = state, log: float = log, t: int = t, pair: Any = pair
            ) -> float:
                r = torch.tensor(log + x, dtype=torch.float64)
                return schedules.sampa_upper_level(expected, state, r, *pair, TRAIN[t], HELD_OUT[t]).item()

            agree(run.radius.slope, torch.tensor([central(j)], dtype=torch.float64), t, 1e-6)
        state, _ = schedules.sampa_step(replace(expected, rho=math.exp(log)), state, *pair)
