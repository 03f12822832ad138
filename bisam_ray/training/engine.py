"""The training loop. One configuration in, one record per epoch out; no Ray, no MLflow, no files.

    for each step t:
        lr(t) = lr · ½ (1 + cos(πt/T)), or another schedule
        ascend on a batch of train, descend at the perturbed weights, restore, update      (optim/schedule.py)
        let the radius policy look at a batch of hyper, if it learns                      (optim/lets.py)
    after each epoch: accuracy on val

Fixed and searched radii train on train ∪ hyper, learned ones on train; all take the same number of steps, so an
"epoch" is |train ∪ hyper| // batch_size steps for everybody. Everything random is a function of (seed, step): a run
continued from a checkpoint is bitwise the uninterrupted one, and both passes of a step draw the same dropout masks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..config import Config, ConfigError, Optim, Scale
from ..optim import shapes
from ..optim.comm import Comm, Roles, Solo
from ..optim.lets import LETS
from ..optim.lookahead import RAPP, Lookahead
from ..optim.radius import FixedRadius, FollowsLR, RadiusPolicy, ScheduledRadius
from ..optim.sampa import Parallel
from ..optim.schedule import Sequential
from ..optim.step import Losses
from . import data, memory, models
from .feed import Batch, Feed
from .plugins import load_function
from .task import Evaluation, mean_evaluation


class Diverged(RuntimeError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch left behind.

    `metrics` holds plain numbers under the names of the README; `state()` is everything that `run` needs to continue
    after this epoch; `evaluate(split, weights)` gives accuracies of "final" (present) or "best" (on val) weights.
    Both read the run as it stands: call them before asking for the next record.
    """

    epoch: int
    metrics: dict[str, float]
    state: Callable[[], dict[str, Any]]
    evaluate: Callable[..., Evaluation]


class StepRecord(NamedTuple):
    """What a step left behind.

    How many steps were made and how many an epoch has; the seconds that the first one of this process took to come,
    and took itself (compiling included); `state()` as of an `EpochRecord`.
    """

    step: int
    of: int
    to_first: float
    first: float
    state: Callable[[], dict[str, Any]]


def run(
    config: Config,
    comm: Comm | None = None,
    state: dict[str, Any] | None = None,
    after_step: Callable[[StepRecord], None] = lambda step: None,
) -> Iterator[EpochRecord]:
    """Train, yielding an `EpochRecord` after every epoch.

    Args:
        config: the resolved configuration.
        comm: the other processes of a data-parallel run.
        state: what an earlier record's `state()` returned: continue after that epoch, or that step.
        after_step: called after every step. Of several processes, `state()` is complete in each one after every
            `train.save_steps` steps only: the others keep parts of it (batch-norm statistics, sums of the metrics).

    Raises:
        Diverged: the training loss is not finite.
    """
    called = time.perf_counter()
    comm = comm or Solo()
    torch.set_num_threads(config.scale.threads)
    device = device_of(config.scale)
    if device.type == "cpu":
        memory.keep()

    optim, seed = config.optim, config.seed
    learned = optim.radius == "learned"
    splits = data.load(config.data)
    task = splits.task
    fit, hyper = (split.to(device) for split in splits.fitting(learned))
    val = splits.val[: config.train.val_examples].to(device)
    epoch_steps = max(1, (len(splits.train) + len(splits.hyper)) // config.data.batch_size)
    total_steps = epoch_steps * config.train.epochs
    fit_batch = Feed(fit, config.data, data.mixed(seed, 3), comm)
    hyper_batch = Feed(hyper, config.data, data.mixed(seed, 4), comm)

    torch.manual_seed(data.mixed(seed, 5))
    model = network(config, splits, config.model.weights if state is None else None)  # a checkpoint has its own
    model = model.to(device)
    if len(fit.shape) == 3:
        model = model.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if config.scale.compile else model
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ConfigError(f"model.name={config.model.name}: no trainable parameter (all have requires_grad=False)")
    base = base_optimizer(optim, params)
    radius = radius_policy(config, params, base, total_steps, comm.everyone if isinstance(comm, Roles) else comm)
    scaler = torch.amp.GradScaler(device.type) if config.scale.precision == "float16" else None
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(config.scale.precision)
    reduced = torch.autocast(device.type, half) if half is not None else nullcontext()
    twice = learned and config.lets.curvature == "exact"  # fused kernels of attention have no second derivative
    attention = partial(sdpa_kernel, SDPBackend.MATH) if twice else nullcontext

    # torch.manual_seed would do, but formats a traceback at every call for devices that are not initialised
    masks = (
        torch.cuda.default_generators[torch.cuda.current_device()] if device.type == "cuda" else torch.default_generator
    )
    first: tuple[Tensor, Tensor] | None = None  # logits and targets of a step's first pass

    def evaluate(batch: Batch) -> Losses:
        nonlocal first
        x, y, position = batch
        masks.manual_seed(data.mixed(seed, 6, int(position[0])))  # all passes over an example draw the same masks
        with reduced, attention():
            logits = forward(x)
        logits = logits if half is None else logits.float()
        first = (logits.detach(), y) if first is None else first
        return task.losses(optim, logits, y, radius.learned if isinstance(radius, LETS) else {})

    take_step = schedule(config, params, base, evaluate, radius, model=model, comm=comm, scaler=scaler)
    radii = torch.zeros(total_steps, dtype=torch.float64, device=device)
    start, done, cost, seconds = 0, 0, 0.0, 0.0
    totals = torch.zeros(7, dtype=torch.float64, device=device)  # of the epoch under way
    counted = torch.zeros_like(totals)
    best: dict[str, Any] = {"val_accuracy": -math.inf, "epoch": 0, "weights": None}
    if state is not None:
        model.load_state_dict(state["model"])
        base.load_state_dict(state["base"])
        if radius is not None:
            radius.load_state_dict(state["radius"])
        take_step.load_state_dict(state["schedule"])
        radii = state["radii"].to(device).clone()
        start, cost, seconds, best = state["epoch"], state["cost"], state["seconds"], state["best"]
        done = state["step"]
        totals, counted = (sums.to(device).clone() for sums in state["sums"])

    def snapshot() -> dict[str, Any]:
        return {
            "epoch": done // epoch_steps,
            "step": done,
            "sums": (totals, counted),
            "model": model.state_dict(),
            "base": base.state_dict(),
            "radius": radius.state_dict() if radius is not None else None,
            "schedule": take_step.state_dict(),
            "radii": radii,
            "best": best,
            "cost": cost,
            "seconds": seconds + (time.perf_counter() - began if done % epoch_steps else 0.0),
            "metrics": metrics,
        }

    found: dict[tuple[str, int], Evaluation] = {}  # by split and the epoch of the weights

    def evaluated(split: str, weights: str = "final") -> Evaluation:
        epoch = done // epoch_steps
        of = split, best["epoch"] if weights == "best" else epoch
        if of not in found:
            present = {k: v.clone() for k, v in model.state_dict().items()} if of[1] != epoch else {}
            if present:
                model.load_state_dict(best["weights"])
            found[of] = task.assess(model, getattr(splits, split).to(device))
            if present:
                model.load_state_dict(present)
        return found[of]

    metrics = {} if state is None else state["metrics"]
    took: tuple[float, float] | None = None  # seconds to the first step, and of it
    if start == config.train.epochs:  # the run was finished before: its last record once more
        yield EpochRecord(start, metrics, snapshot, evaluated)
    for epoch in range(start + 1, config.train.epochs + 1):
        began = time.perf_counter()
        model.train()
        for step in range(done, epoch * epoch_steps):
            for group in base.param_groups:
                group["lr"] = optim.lr * learning_rate(optim, step, total_steps)
            first, step_began = None, time.perf_counter()
            ahead = {"following": partial(fit_batch, step + 1)} if isinstance(take_step, Parallel) else {}
            stats = take_step(fit_batch(step), hyper=partial(hyper_batch, step), **ahead)
            cost += stats.cost * fit_batch.stream.batch_size
            radii[step] = stats.rho
            assert first is not None
            accuracy = task.agreement(*first)
            learning = (radius.hypergradient, radius.gap) if radius is not None else (None, None)
            seen = [
                stats.loss,
                accuracy,
                stats.rho,
                stats.sharpness,
                stats.grad_norm,
                *(v if v is not None else 0.0 for v in learning),
            ]
            row = torch.stack([on_device(v, totals) for v in seen])
            if scaler is not None:  # steps that overflowed are in no mean; if all did, it is NaN
                counted += row.isfinite()
                row.nan_to_num_(0.0, 0.0, 0.0)
            totals += row
            done = step + 1
            if config.train.save_steps and done % config.train.save_steps == 0:
                synchronise(comm, [totals, counted], list(model.buffers()), radius)
            if took is None:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                took = step_began - called, time.perf_counter() - step_began
            after_step(StepRecord(done, epoch_steps, *took, snapshot))
        means_of = totals / (epoch_steps if scaler is None else counted)
        totals.zero_()
        counted.zero_()
        synchronise(comm, [means_of], list(model.buffers()), radius)
        means = dict(zip(STEP_METRICS, means_of.tolist(), strict=True))
        seconds += time.perf_counter() - began
        if not math.isfinite(means["train/loss"]):
            raise Diverged(f"the training loss became {means['train/loss']} in epoch {epoch}")

        now = task.assess(model, val)
        if len(val) == len(splits.val):
            found["val", epoch] = now
        if now.accuracy > best["val_accuracy"]:
            weights = {k: v.clone() for k, v in model.state_dict().items()}
            best = {"val_accuracy": now.accuracy, "epoch": epoch, "weights": weights}
        metrics = {
            **{k: v for k, v in means.items() if learned or not k.startswith("lets/")},
            "val/loss": now.loss,
            "val/accuracy": now.accuracy,
            **{f"val/{name}": value for name, value in now.more.items()},
            "val/standard_error": task.standard_error(now.accuracy, len(val)),
            "best/val_accuracy": best["val_accuracy"],
            "cost/gradients": cost,
            "cost/seconds": seconds,
        }

        yield EpochRecord(epoch, metrics, snapshot, evaluated)


def on_device(value: Tensor | float, like: Tensor) -> Tensor:
    """A number beside others. One of Python's is filled in: to copy it to a GPU would wait for what runs there."""
    return value.to(like) if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype, device=like.device)


STEP_METRICS = (
    "train/loss", "train/accuracy", "sam/rho", "sam/sharpness", "sam/grad_norm", "lets/hypergradient", "lets/gap",
)  # fmt: skip


def synchronise(comm: Comm, sums: list[Tensor], buffers: list[Tensor], radius: RadiusPolicy | None = None) -> None:
    """Mean metrics and batch-norm statistics over the processes; with two roles, those of the one that moves them.

    What processes keep of an unfinished hypergradient counts by its mean only, and a checkpoint is of one process.
    """
    if not isinstance(comm, Roles):
        pending: list[Tensor] = []
        if isinstance(radius, LETS) and radius.curved is not None and radius.hyper is not None:
            pending = [radius.hyper[1], *chain.from_iterable(radius.curved)]
        comm.mean_([*sums, *(b for b in buffers if b.is_floating_point()), *pending])
        return
    # the first pass of role 1 is at other weights, on another batch: metrics are those of role 0
    moved = [b.double() for b in buffers]
    found, fresh = comm.exchange(sums if comm.role == 0 else moved, sums, moved)
    for buffer, value in zip([*sums, *buffers], [*found, *fresh], strict=True):
        buffer.copy_(value)


def learning_rate(optim: Optim, step: int, total_steps: int) -> float:
    """Of a step, as a factor: linear growth over `lr_warmup`, then the schedule over what is left."""
    warm = round(optim.lr_warmup * total_steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    done, whole = step - warm, total_steps - warm
    if optim.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done / whole))
    if optim.lr_schedule == "linear":
        return 1 - done / whole
    if optim.lr_schedule == "inverse_sqrt":
        return math.sqrt((warm + 1) / (step + 1))
    return 1.0


def base_optimizer(optim: Optim, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that takes the descent gradient, within Lookahead or RAPP where the configuration says so."""
    base: torch.optim.Optimizer
    groups: list[Any] = list(params)
    if optim.decay == "weights":
        still = {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}
        groups = [{"params": [p for p in params if p.dim() >= 2]}, still]
        groups = [group for group in groups if group["params"]]
    if optim.base == "sgd":
        base = torch.optim.SGD(
            groups,
            lr=optim.lr,
            momentum=optim.momentum,
            dampening=optim.dampening,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
            fused=True,
        )
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.base]
        base = kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True)
    if optim.wrapper == "none":
        return base
    return {"lookahead": Lookahead, "rapp": RAPP}[optim.wrapper](base, optim.outer_every, optim.outer_lr)


def schedule(
    config: Config,
    params: list[nn.Parameter],
    base: torch.optim.Optimizer,
    evaluate: Callable[[Any], Losses],
    radius: RadiusPolicy | None,
    **parts: Any,
) -> Sequential | Parallel:
    """The step of a configuration."""
    optim = config.optim
    shared: dict[str, Any] = {
        "geometry": optim.geometry,
        "xi": optim.xi,
        "beta": 1.0 if optim.beta is None else optim.beta,
        "renormalise": optim.renormalise,
        "accumulate": config.scale.accumulate,
        "clip": optim.clip,
        **parts,
    }
    if optim.schedule == "parallel":
        return Parallel(params, base, evaluate, radius, lam=0.2 if optim.lam is None else optim.lam, **shared)
    return Sequential(
        params,
        base,
        evaluate,
        radius,
        scope=optim.perturbation_scope,
        every=optim.every,
        between=optim.between,
        ascent_fraction=optim.ascent_fraction,
        gamma=1.0 if optim.gamma is None else optim.gamma,
        **shared,
    )


def radius_policy(
    config: Config, params: list[nn.Parameter], base: torch.optim.Optimizer, total_steps: int, comm: Comm
) -> RadiusPolicy | None:
    """None for a method without an ascent step."""
    optim = config.optim
    if optim.rho is None:
        return None
    if optim.radius == "fixed":
        return FixedRadius(optim.rho, optim.warmup, total_steps)
    if optim.radius == "scheduled":
        if optim.rho_schedule == "lr":
            return FollowsLR(optim.rho, base, optim.warmup, total_steps)
        return ScheduledRadius(radius_shape(optim, total_steps), optim.warmup, total_steps)
    lets = config.lets.model_dump()
    kind, learn = lets.pop("groups"), lets.pop("learn")
    groups = {"one": None, "kind": [int(p.dim() < 2) for p in params], "tensor": list(range(len(params)))}[kind]
    if kind == "kind" and len(set(groups or ())) < 2:
        groups = None
    starts = {"mu": optim.mu or (1.0 if optim.objective == "log" else 10.0), "alpha": optim.alpha or 0.1}
    learned = {name: starts[name] for name in learn}
    return LETS(params, base, optim.rho, optim.warmup, total_steps, groups=groups, learn=learned, comm=comm, **lets)


def radius_shape(optim: Optim, total_steps: int) -> Callable[[float], float]:
    """ρ as a function of the fraction of training."""
    name, rho = optim.rho_schedule, optim.rho or 0.0
    if name == "cosine":
        return shapes.cosine(rho)
    if name == "theorem":
        return shapes.theorem(rho, total_steps)
    if isinstance(name, str) and ":" in name:
        return load_function("optim.rho_schedule", name)
    try:
        recorded = shapes.table(name or ())
    except ValueError as error:
        raise ConfigError(f"optim.rho_schedule={error}") from None
    return recorded if isinstance(name, str) else lambda s: rho * recorded(s)


def device_of(scale: Scale) -> torch.device:
    """Where a worker computes; it may allocate no more of its GPU's memory than its share of the GPU."""
    if not scale.gpus_per_worker:
        return torch.device("cpu")
    torch.cuda.set_per_process_memory_fraction(min(1.0, scale.gpus_per_worker))
    return torch.device("cuda")


def members(config: Config, state: dict[str, Any]) -> list[tuple[Config, dict[str, Any]]]:
    """The single runs of a checkpoint: itself, or one for every fold (training/folds.py)."""
    return [(on_fold(config, i), single) for i, single in enumerate(state.get("folds", [state]))]


def on_fold(config: Config, i: int) -> Config:
    """The same configuration i folds and i seeds on."""
    data_section = config.data.model_copy(update={"fold": config.data.fold + i})
    return config.model_copy(update={"seed": config.seed + i, "data": data_section})


def trained(config: Config, state: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The network of a checkpoint's state (of its first fold), on the CPU in evaluation mode, and some inputs."""
    model, splits = restored(*members(config, state)[0])
    return model, splits.val[:4].ready().inputs


def restored(config: Config, state: dict[str, Any]) -> tuple[nn.Module, data.Splits]:
    """The network of a single run's state, on the CPU in evaluation mode, and its data."""
    splits = data.load(config.data)
    model = network(config, splits)
    model.load_state_dict(state["model"])
    return model.eval(), splits


def network(config: Config, splits: data.Splits, weights: str | None = None) -> nn.Module:
    return models.build(config.model.name, splits.train.shape, splits.classes, weights, tokens=splits.tokens)


def evaluate(config: Config, state: dict[str, Any], split: str) -> Evaluation:
    """Accuracy of a checkpoint's state on one split of its own data; the mean over its folds."""
    found = []
    for one in members(config, state):
        model, splits = restored(*one)
        found.append(splits.task.assess(model, getattr(splits, split)))
    return mean_evaluation(found)
