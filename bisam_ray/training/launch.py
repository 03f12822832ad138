"""The same run in three places: in this process, in worker processes beside each other, or spread over a trainer.

    inline        in this process
    parallel      many runs, each inside one of a few reused Ray actors
    distributed   one run under a Ray Train TorchTrainer, data-parallel over N workers on any number of nodes

All three drive `steps`, which adds checkpoints and the final evaluation to the engine's records; the engine cannot
tell which of them it is in.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from ..config import Config, ConfigError, Data, Model, Scale
from . import checkpoint
from .cluster import connect, cpus
from .plugins import load_function

CHECKPOINT_EVERY_S = 5.0  # a kill costs about this much work, a short run writes no more than its last epoch
SAVING = 0.05  # or more seldom: saving takes no more than this share of the time


@dataclass(frozen=True)
class Epoch:
    """What a run tells the outside after an epoch: plain numbers only; `final` after the last epoch."""

    epoch: int
    metrics: dict[str, float]
    final: dict[str, float] | None = None


@dataclass(frozen=True)
class Job:
    """One run to be made: its name, its configuration, where its checkpoint lies (a path, or the URL of an object), and
    whether to look at test.

    `folds` > 1: the configuration on several folds at once (folds.py). `save_at`: epochs after which the checkpoint is
    saved in any case, such as the rungs at which a scheduler may stop the run and later take it up again.
    """

    name: str
    config: Config
    checkpoint: Path | str
    test: bool = True
    resume: bool = False
    folds: int = 1
    save_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result: outcome is "diverged", "failed" or "killed"."""

    outcome: str
    error: str


class Saver:
    """Writes a run's checkpoints when they are due, beside the training: that waits only until the state is copied."""

    def __init__(self, job: Job, history: list[dict[str, float]]) -> None:
        self.job, self.history = job, history
        self.saved, self.pause = time.monotonic(), CHECKPOINT_EVERY_S
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None

    def due(self) -> bool:
        under_way = self.writing is not None and not self.writing.done()
        return not under_way and time.monotonic() - self.saved > self.pause

    def save(self, state: dict[str, Any], wait: bool = False, last: bool = False) -> None:
        """Write it; with `wait`, it is on the disk when this returns.

        Raises:
            NotSaved: this one could not be written, or the one before.
        """
        self.finish()
        content = {**state, "history": list(self.history)}
        if wait or last:
            self.write(content, last)
        else:
            self.writing = self.writer.submit(self.write, checkpoint.copied(content), last)

    def write(self, state: dict[str, Any], last: bool) -> None:
        began = time.monotonic()
        checkpoint.save(self.job.checkpoint, self.job.config, state, last)
        self.saved = time.monotonic()
        self.pause = max(CHECKPOINT_EVERY_S, (self.saved - began) / SAVING)

    def finish(self) -> None:
        """Wait for what is being written."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()


def steps(job: Job, comm: Any = None, on_step: Callable[[Any], None] = lambda step: None) -> Iterator[Epoch]:
    """Train `job`, saving its checkpoint every few seconds, after the epochs of `save_at` and after the last.

    With `resume`, continues from the checkpoint if there is one, and first tells its epochs once more: what a killed
    listener did not hear is not lost. The last `Epoch` carries the final metrics: on val, and on test if the job asks
    for it; this is the only place where test is ever looked at. `on_step` hears of every step (`engine.StepRecord`).
    """
    from . import engine, folds

    state, history = None, list[dict[str, float]]()
    if job.resume and (found := checkpoint.last_good(job.checkpoint)):
        stored, state = found
        if stored != job.config:
            raise ConfigError(f"{job.checkpoint}: belongs to another configuration ({stored.digest()})")
        if (stored_folds := len(engine.members(stored, state))) != job.folds:
            raise ConfigError(f"{job.checkpoint}: of a run on folds={stored_folds}, not {job.folds}")
        history = state.pop("history", [])[: job.config.train.epochs - 1]  # the last epoch comes again, with its end
        for epoch, metrics in enumerate(history, 1):
            yield Epoch(epoch, metrics)
    alone = comm is None or comm.world == 1
    writer = comm is None or getattr(comm, "everyone", comm).rank == 0  # of two roles, one process writes
    saver = Saver(job, history)

    def after_step(step: engine.StepRecord) -> None:
        """Within an epoch; at its end there is its record to be saved with."""
        every = job.config.train.save_steps
        due = saver.due() if alone else bool(every) and step.step % every == 0
        if writer and due and step.step % step.of:
            saver.save(step.state())
        on_step(step)

    one = job.folds == 1
    runs = engine.run(job.config, comm, state, after_step) if one else folds.run(job.config, job.folds, comm, state)
    try:
        for record in runs:
            last, wanted = record.epoch == job.config.train.epochs, record.epoch in job.save_at
            history.append(record.metrics)
            if writer and (last or wanted or saver.due()):
                saver.save(record.state(), wanted, last)
            yield Epoch(record.epoch, record.metrics, final_metrics(record, job.test) if last else None)
    finally:
        saver.finish()


class Measured(NamedTuple):
    """What a step costs here, in seconds, and how many an epoch has."""

    seconds_per_step: float
    steps_per_epoch: int


def measure(config: Config, seconds: float = 3.0) -> Measured:
    """Time a few real steps of a run in this process, of all its workers' examples; nothing is kept.

    The median over blocks of steps, each long enough for every kind of step that the method alternates between. Loading
    the data and the first three steps are not counted; the run is broken off after `seconds` more (at least one step).
    """
    from . import engine

    class Enough(Exception):
        pass

    marks, steps_per_epoch = [time.perf_counter()], 0
    period = config.optim.every * config.lets.every

    def after_step(step: engine.StepRecord) -> None:
        nonlocal steps_per_epoch
        steps_per_epoch = step.of
        if config.scale.gpus_per_worker:
            import torch

            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        if len(marks) > WARM_UP + 1 and marks[-1] - marks[WARM_UP] > seconds:
            raise Enough

    with suppress(Enough, engine.Diverged):
        for _ in engine.run(config, after_step=after_step):
            pass
    took = [after - before for before, after in pairwise(marks)]
    took = took[WARM_UP:] or took[-1:]
    blocks = [took[i : i + period] for i in range(0, len(took) - period + 1, period)] or [took]
    return Measured(median(map(fmean, blocks)), steps_per_epoch)


WARM_UP = 3  # steps; the first ones allocate, compile and choose kernels


def final_metrics(record: Any, test: bool) -> dict[str, float]:
    """The end of a run. The final weights decide; the weights that were best on val are a second column."""
    val = record.evaluate("val")
    final = {
        "final/val_accuracy": val.accuracy,
        "final/val_even": val.halves[0],
        "final/val_odd": val.halves[1],
        "best/val_accuracy": record.metrics["best/val_accuracy"],
        **{f"final/val_{name}": value for name, value in val.more.items()},
    }
    if test:
        found = record.evaluate("test")
        final["final/test_accuracy"] = found.accuracy
        final |= {f"final/test_{name}": value for name, value in found.more.items()}
        final["best/test_accuracy"] = record.evaluate("test", "best").accuracy
    return final


def check_feasible(config: Config, folds: int = 1) -> None:
    """Refuse, before anything starts, what cannot run here.

    A network or data set that cannot be imported; more folds than the data have; workers that the machine does not
    have, for which Ray would wait for ever.

    Raises:
        ConfigError: naming the largest number that fits.
    """
    for field, name in (("data.name", config.data.name), ("model.name", config.model.name)):
        if ":" in name:
            load_function(field, name)
    if config.data.name != Data().name:
        from . import datasets

        datasets.check(config.data)
    if config.model != Model():
        from . import models

        models.check(config.model.name, config.model.weights)
    if config.optim.rho_schedule not in (None, "lr"):
        from .engine import radius_shape

        radius_shape(config.optim, total_steps=1)
    scale = config.scale
    if folds > 1 and scale.workers > 1:
        raise ConfigError(f"scale.workers={scale.workers}: {folds} folds are trained in one process (nearest: 1)")
    if folds > 1:
        from . import data, engine

        try:
            data.load(engine.on_fold(config, folds - 1).data)
        except ConfigError as error:
            raise ConfigError(f"--folds {folds}: {error}") from None
    fewest = scale.min_workers or scale.workers
    if fewest > scale.workers:
        raise ConfigError(
            f"scale.min_workers={fewest}: more than scale.workers={scale.workers} (nearest: {scale.workers})"
        )
    if fewest < scale.workers and config.optim.schedule == "parallel":
        raise ConfigError(
            f"scale.min_workers={fewest}: the two roles of optim.schedule=parallel need all their workers"
        )
    size, every = config.data.batch_size, math.lcm(*range(fewest, scale.workers + 1))
    if size % every:
        counts = f"{scale.workers}" if fewest == scale.workers else f"every number from {fewest} to {scale.workers}"
        nearest = max(1, round(size / every)) * every
        raise ConfigError(
            f"data.batch_size={size}: cannot be divided among scale.workers={counts} (nearest: {nearest})"
        )
    if scale.gpus_per_worker and not os.environ.get("RAY_ADDRESS"):
        import torch

        if torch.cuda.device_count() < scale.workers * scale.gpus_per_worker:
            raise ConfigError(
                f"scale.gpus_per_worker={scale.gpus_per_worker:g}: this machine has {torch.cuda.device_count()} GPUs "
                f"for {scale.workers} workers (nearest: {torch.cuda.device_count() / scale.workers:g})"
            )
    if scale.workers > 1:
        ray = sys.modules.get("ray")
        if os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized()):
            connect()
            available = cpus()
        else:  # the answer without starting a cluster
            available = os.cpu_count() or 1
        if fewest > available:
            field = "min_workers" if scale.min_workers else "workers"
            raise ConfigError(f"scale.{field}={fewest}: only {available} CPUs here (nearest: {available})")


def launch(job: Job, on_step: Callable[[Any], None] = lambda step: None) -> Iterator[Epoch]:
    """One run, in this process or distributed, as its configuration says; `on_step` hears of the steps of the first."""
    check_feasible(job.config, job.folds)
    if job.config.scale.workers == 1:
        return steps(job, on_step=on_step)
    from .trainer import distributed

    return distributed(job)


def parallel(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, Epoch | Failure]]:
    """Many runs of equal needs in `at_once` reused actors; yields what each tells, as it comes.

    A run that raises, or whose process dies, ends with a `Failure` and disturbs no other.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    scale = jobs[0].config.scale
    inside = scale.workers == 1  # else the runs' own workers hold what they need
    Worker = ray.remote(Runner).options(
        num_cpus=scale.threads if inside else 0, num_gpus=scale.gpus_per_worker if inside else 0
    )
    waiting = iter(jobs)
    streams: dict[Any, tuple[Job, Any]] = {}

    def assign(worker: Any) -> None:
        if (job := next(waiting, None)) is not None:
            streams[worker.steps.remote(job)] = job, worker

    workers = [Worker.remote() for _ in range(at_once)]
    for worker in workers:
        assign(worker)
    while streams:
        ready, _ = ray.wait(list(streams), num_returns=1, fetch_local=False)
        stream = ready[0]
        job, worker = streams[stream]
        try:
            yield job, ray.get(next(stream))
            continue
        except StopIteration:
            pass
        except RayTaskError as error:
            outcome = {"Diverged": "diverged", "NotSaved": "killed"}.get(type(error.cause).__name__, "failed")
            yield job, Failure(outcome, str(error) if outcome == "failed" else str(error.cause))
        except RayActorError as error:
            workers.append(worker := Worker.remote())
            yield job, Failure("killed", f"the process of this run died: {str(error).splitlines()[0]}")
        del streams[stream]
        assign(worker)
    for worker in workers:
        ray.kill(worker)  # their processors are wanted by what comes next


class Runner:
    """An actor that makes one run after the other: the imports are paid once."""

    def steps(self, job: Job) -> Iterator[Epoch]:
        yield from launch(job)


def measured(
    places: Sequence[tuple[str, checkpoint.Place, bool]], scale: Scale, at_once: int
) -> Iterator[tuple[str, dict[str, Any] | Failure]]:
    """How flat the minima are that finished runs of equal needs ended in (flatness.py), `at_once` beside each other.

    Args:
        places: of each run its name, where its checkpoint lies, and whether to draw the landscape too.
        scale: of these runs; the threads and GPUs that one takes.

    Yields, as they come, (name, values of the ledger's `measure` event), or a `Failure` that disturbs no other.
    """
    if not places:
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(flatness_of).options(num_cpus=scale.threads, num_gpus=scale.gpus_per_worker, max_retries=0)
    waiting, running = iter(places), dict[Any, str]()
    while True:
        for name, place, landscape in islice(waiting, at_once - len(running)):
            running[task.remote(place, landscape)] = name
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        name = running.pop(ready[0])
        try:
            yield name, ray.get(ready[0])
        except RayTaskError as error:
            outcome = "diverged" if type(error.cause).__name__ == "Diverged" else "failed"
            yield name, Failure(outcome, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            yield name, Failure("killed", f"the process that measured it died: {str(error).splitlines()[0]}")


def flatness_of(place: checkpoint.Place, landscape: bool) -> dict[str, Any]:
    from . import flatness  # the driver need not import torch

    return flatness.measure(place, landscape)
