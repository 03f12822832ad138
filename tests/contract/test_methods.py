"""What every method keeps to: the presets, a covering of all pairs of choices, and (-m slow) points at random.

Each point trains a small network for three epochs of eight steps, with ascents, outer steps and hypergradients pending
at their ends, and is held to the clauses below, every one a test of its own.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bisam_ray.config import PRESETS, Config, ConfigError, Lets, Optim, gradients_per_step, paths, resolve
from bisam_ray.training import checkpoint, data, engine

from .grammar import write, write_pairs
from .points import (
    AXES,
    EPOCH_STEPS,
    FUNCTION,
    HELD,
    QUICK,
    ROWS,
    TABLE,
    accepted,
    covering,
    layer,
    pairs,
    told,
    wandered,
)

COVERING, NEVER = covering()
POINTS = {name: resolve(QUICK, {"method": name}) for name in PRESETS} | {told(p): accepted(p) for p in COVERING}
# on text: of each kind one, the others with -m slow; dropout is left to the network
ADAMW = {**QUICK, "optim.base": "adamw", "data.root": "."}
TRANSLATION = {"data.name": "iwslt14", "data.vocabulary": 150, "data.length": 24, "data.bucket": 4, "data.beam": 2}
TRANSLATION |= {"data.label_noise": 0, "model.name": "transformer-tiny", "optim.lr": 2e-3, "train.val_examples": 16}
KINDS = ("sam", "lets-bisam-tanh", "sampa")
ON_TEXT = {f"text {name}": resolve(ADAMW, TRANSLATION, {"method": name}) for name in PRESETS}
POINTS |= {name: config for name, config in ON_TEXT.items() if config.method in KINDS}
STEPS = EPOCH_STEPS * 3
TENSORS = 8  # of the network: two hidden layers of a matrix, a scale and a shift, and a matrix and a bias


@pytest.fixture(autouse=True, scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The data read once, texts to read, and the user's own radius as a module to import."""
    plugin = SimpleNamespace(radius=lambda s: 0.1 * s * (1 - s))
    with pytest.MonkeyPatch.context() as patch:
        here = tmp_path_factory.mktemp("contract")
        write(here)
        write_pairs(here)
        patch.chdir(here)
        patch.setattr(data, "load", cache(data.load))
        patch.setitem(sys.modules, FUNCTION.partition(":")[0], plugin)
        yield


# -- the configurations


def test_every_point_of_the_product_resolves_or_is_refused_in_one_line_that_names_a_field() -> None:
    """And no two values that the covering holds to be incompatible are accepted together."""
    order, fields = random.Random(0), tuple(f"{path}{mark}" for path in paths() for mark in ":=")
    for _ in range(20_000):
        point = {name: order.randrange(len(values)) for name, values in AXES.items()}
        try:
            resolve(QUICK, layer(point))
        except ConfigError as error:
            text = str(error)
            assert "\n" not in text, text
            assert text.startswith(fields), text
        else:
            assert not (accepted(point) and pairs(point) & NEVER), told(point)


def test_every_field_of_a_method_is_an_axis_or_held() -> None:
    """A field that is added is varied here, or named among those that are not."""
    varied = {path for values in AXES.values() for value in values for path in value}
    fields = {f"{s.__name__.lower()}.{name}" for s in (Optim, Lets) for name in s.model_fields}
    assert fields - varied == HELD


# -- the runs


@dataclass
class Run:
    """A finished run and the file it left after its first epoch."""

    config: Config
    file: Path
    metrics: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in engine.run(self.config):
            if record.epoch == 1:
                checkpoint.save(self.file, self.config, record.state())
        self.state, self.metrics = record.state(), record.metrics

    @property
    def parts(self) -> int:
        """Into how many parts with perturbations of their own a batch is cut."""
        m = self.config.optim.perturbation_scope
        return self.config.data.batch_size // m if isinstance(m, int) else 1

    @property
    def skipped(self) -> int:
        """Steps whose float16 gradient overflowed: each halved the loss scale."""
        scaler = self.state["schedule"]["scaler"]
        return 0 if scaler is None else round(math.log2(2**16 / scaler["scale"]))


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(POINTS[request.param], tmp_path_factory.mktemp("contract") / "run.pt")


def every_point(where: Callable[[Config], bool] = lambda config: True) -> pytest.MarkDecorator:
    chosen = [name for name, config in POINTS.items() if where(config)]
    return pytest.mark.parametrize("run", chosen, ids=chosen, indirect=True, scope="module")


def tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor within a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors(value)


def same(a: Any, b: Any, where: str = "state") -> None:
    """Two nested states, bit for bit; the clock aside."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "cost/seconds"}:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30)), where
    else:
        assert a == b, where


@torch.no_grad()
def fitted(config: Config, model: nn.Module) -> float:
    """The loss on all training data, normalised by their own statistics: what the weights alone have learned.

    Not the metric, which SAMPa and RAPP measure one extrapolation ahead of their weights.
    """
    splits = data.load(config.data)
    split = splits.train.ready()
    model.train(not splits.train.text)  # no norm of a text's network has statistics, but there is dropout
    return float(splits.task.descent(model(split.inputs), split.y))


@every_point()
def test_it_learns(run: Run) -> None:
    """The training loss falls below that of the initial weights, and no weight, moment or statistic overflows."""
    torch.manual_seed(data.mixed(run.config.seed, 5))
    initial = engine.network(run.config, data.load(run.config.data))
    assert fitted(run.config, engine.trained(run.config, run.state)[0]) < fitted(run.config, initial)
    assert all(bool(t.isfinite().all()) for t in tensors([run.state["model"], run.state["base"]]))
    # a float16 Hessian product may overflow: its hypergradient is recorded as NaN, and not learned from
    overflows = {"lets/hypergradient"} if run.config.scale.precision == "float16" else set()
    assert all(math.isfinite(v) for k, v in run.metrics.items() if k not in overflows)


@every_point()
def test_a_resumed_run_is_the_same_run(run: Run) -> None:
    """Through a file, from the first epoch on: the whole state at the end, bit for bit."""
    config, state = checkpoint.load(run.file)
    assert config == run.config
    *_, resumed = engine.run(config, state=state)
    same(resumed.state(), run.state)


@every_point()
def test_the_planned_cost_is_the_counted_cost(run: Run) -> None:
    """Of exactly these steps, and no less exactly: a hypergradient that is pending at the end is not yet paid for.

    A step that is skipped (float16) saves its upper level, and forgets the gradient that `between` ascends.
    """
    planned = gradients_per_step(run.config, STEPS, tensors=TENSORS) * STEPS
    counted = run.metrics["cost/gradients"] / run.config.data.batch_size
    if run.skipped:
        assert counted <= planned + run.skipped
    else:
        assert counted == pytest.approx(planned, rel=1e-9)


@every_point()
def test_statistics_move_once_a_step(run: Run) -> None:
    """Batch norm sees one pass of every step.

    Of a batch that is cut it sees all pieces: those of `accumulate` in each, and the perturbations' own parts, which a
    plain step has not.
    """
    optim = run.config.optim
    perturbed = STEPS if optim.between != "plain" else len(range(0, STEPS, optim.every))
    pieces = run.config.scale.accumulate * (perturbed * run.parts + STEPS - perturbed)
    counts = {int(v) for k, v in run.state["model"].items() if k.endswith("num_batches_tracked")}
    assert counts == (set() if "iwslt" in run.config.data.name else {pieces})


def expected_radius(config: Config, step: int) -> float:
    """ρ(t) of a radius that is not learned, after warm-up; 0 in a plain step."""
    optim, s = config.optim, step / STEPS
    if optim.rho is None or (step % optim.every and optim.between == "plain"):
        return 0.0
    falling = 0.5 * (1 + math.cos(math.pi * s))
    followed = engine.learning_rate(optim, step, STEPS)
    shape = {
        None: optim.rho,
        "cosine": optim.rho * falling,
        "lr": optim.rho * followed,
        "theorem": optim.rho / math.sqrt(STEPS),
        ROWS: optim.rho * (2 * s if s < 0.5 else 1 - 0.8 * (s - 0.5)),
        TABLE: 0.02 + 0.12 * s if s < 0.5 else 0.08 - 0.08 * (s - 0.5),
        FUNCTION: 0.1 * s * (1 - s),
    }[optim.rho_schedule]
    return shape * min(1.0, s / optim.warmup if optim.warmup else 1.0)


@every_point(lambda config: config.optim.radius != "learned")
def test_the_radius_is_the_one_that_was_asked_for(run: Run) -> None:
    """At every step, warm-up and plain steps included."""
    found = run.state["radii"].tolist()
    assert found == pytest.approx([expected_radius(run.config, step) for step in range(STEPS)], rel=1e-6)


@every_point(lambda config: config.optim.radius == "learned")
def test_a_learned_radius_learns(run: Run) -> None:
    """One update for every hypergradient but a last one that is pending; within the bounds; every number moves."""
    optim, lets, state = run.config.optim, run.config.lets, run.state["radius"]
    perturbed = [step for step in range(STEPS) if optim.between != "plain" or step % optim.every == 0]
    starts = perturbed[:: lets.every]
    waits = lets.goal == "gap" and lets.train_batch == "next"
    pending = waits and starts[-1] == STEPS - 1
    assert len(starts) - pending - run.skipped <= state["updates"] <= len(starts) - pending
    assert (state["hyper"] is not None) == pending or run.skipped
    radii, others = state["log"].exp().split([len(state["log"]) - len(lets.learn), len(lets.learn)])
    assert lets.rho_min <= radii.min() <= radii.max() <= lets.rho_max
    mu, alpha = optim.mu or (1.0 if optim.objective == "log" else 10.0), optim.alpha or 0.1
    before = [optim.rho] * len(radii) + [{"mu": mu, "alpha": alpha}[name] for name in lets.learn]
    assert all(after != value for after, value in zip([*radii, *others], torch.tensor(before), strict=True))


def zero_is_base(config: Config) -> bool:
    """Where ρ = 0 can be had, and leaves the base optimizer's own gradient of all examples.

    Left out: a learned radius trains on other examples, SAMPa mixes two gradients, a selection drops examples, plain
    steps between those on parts see the whole batch, the mean over parts of parts rounds differently from the mean
    over all of them, and in float16 an ascent gradient that overflows skips its step.
    """
    optim = config.optim
    fixed = optim.radius == "fixed" or (optim.radius == "scheduled" and optim.rho_schedule not in (TABLE, FUNCTION))
    parts = isinstance(optim.perturbation_scope, int)
    mixed = parts and (config.scale.accumulate > 1 or (optim.every > 1 and optim.between == "plain"))
    selects = optim.gamma is not None and optim.gamma < 1
    sequential = optim.rho is not None and optim.schedule == "sequential"
    return fixed and sequential and not selects and not mixed and config.scale.precision != "float16"


@every_point(zero_is_base)
def test_radius_zero_is_the_base_optimizer_bit_for_bit(run: Run) -> None:
    """Within its wrapper, and m-sharpness on a batch that is cut into the same parts; weights, moments, statistics.

    An ascent on a part of the batch moves the statistics by that part: weights and moments only, then.
    """
    config = run.config
    *_, zero = engine.run(resolve(config.model_dump(), {"optim.rho": 0}))
    kept = ("wrapper", "outer_every", "outer_lr", "base", "lr", "lr_schedule", "lr_warmup", "decay", "momentum",
            "dampening", "nesterov", "betas", "eps", "weight_decay", "clip", "label_smoothing")  # fmt: skip
    optim = {name: getattr(config.optim, name) for name in kept}
    whole = config.model_dump() | {"method": "sgd", "optim": {"objective": "none", **optim}}
    *_, plain = engine.run(resolve(whole, {"scale.accumulate": run.parts * config.scale.accumulate}))
    ours, theirs = zero.state(), plain.state()
    same(ours["base"], theirs["base"])
    for key in ours["model"]:
        if config.optim.ascent_fraction == 1 or not key.rpartition(".")[2].startswith(("running", "num_batches")):
            same(ours["model"][key], theirs["model"][key], key)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_any_other_point(seed: int, tmp_path: Path) -> None:
    """All clauses, at a point at random."""
    point = wandered(seed)
    print(told(point))
    config = accepted(point)
    assert config is not None
    hold(config, tmp_path)


def hold(config: Config, tmp_path: Path) -> None:
    run = Run(config, tmp_path / "run.pt")
    test_it_learns(run)
    test_a_resumed_run_is_the_same_run(run)
    test_the_planned_cost_is_the_counted_cost(run)
    test_statistics_move_once_a_step(run)
    if config.optim.radius == "learned":
        test_a_learned_radius_learns(run)
    else:
        test_the_radius_is_the_one_that_was_asked_for(run)
    if zero_is_base(config):
        test_radius_zero_is_the_base_optimizer_bit_for_bit(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ON_TEXT.keys() - POINTS.keys()))
def test_any_other_method_on_text(name: str, tmp_path: Path) -> None:
    hold(ON_TEXT[name], tmp_path)


# -- two tasks that can be learned


LEARNT = {"train.epochs": 8, "data.batch_size": 32, "optim.lr_warmup": 0.1, "optim.lr_schedule": "linear"}
CLASSES = {"data.name": "glue/sst2", "data.vocabulary": 200, "data.length": 16, "data.bucket": 2}
CLASSES |= {"model.name": "bert-tiny", "optim.lr": 1e-3}
# RAPP moves at every fifth step, ESAM learns from half of what it sees; ASAM's learned radius becomes large
LONGER = {"rapp": 5, "esam": 3, "lets-asam": 2}


def every_preset(but: str = "") -> pytest.MarkDecorator:
    """All of them, with -m slow `but` one."""
    marks = {name: [pytest.mark.slow] * (name != but) for name in PRESETS}
    return pytest.mark.parametrize("method", [pytest.param(name, marks=marks[name]) for name in PRESETS])


def learned(method: str, *layers: dict[str, Any]) -> float:
    """The test score of a run by a preset, as it is."""
    longer = next((times for word, times in LONGER.items() if word in method), 1)
    config = resolve(ADAMW, LEARNT, *layers, {"method": method})
    *_, record = engine.run(resolve(config.model_dump(), {"train.epochs": longer * config.train.epochs}))
    return record.evaluate("test").accuracy


@every_preset(but="sam")
def test_the_grammar_is_learned(method: str) -> None:
    """97 % of 200 held-out sentences, from 900 of which every tenth has the wrong label.

    ESAM descends the half of a batch whose loss the ascent raises most. Where that is BiSAM's, which spares what is
    wrong already, what is wrong is never descended: it learns with the whole batch only.
    """
    whole = {"optim.gamma": 1.0} if method == "bisam-log-esam" else {}
    assert learned(method, CLASSES, whole) > 0.97


@every_preset()
def test_the_language_is_translated(method: str) -> None:
    """BLEU above 97 by beam search, of 100 sentences that are not among the 1,000 of training."""
    assert learned(method, TRANSLATION, {"train.epochs": 10, "optim.label_smoothing": 0.1}) > 0.97
