"""The same run in three places: in this process, in worker processes beside each other, or spread over a trainer.

    inline        in this process
    parallel      many runs, each inside one of a few reused Ray actors
    distributed   one run under a Ray Train TorchTrainer, data-parallel over N workers on any number of nodes

All three drive `steps`, which adds checkpoints and the final evaluation to the engine's records; the engine cannot
tell which of them it is in.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError
from .plugins import load_function

CHECKPOINT_EVERY_S = 5.0  # a kill costs at most this much work, a short run writes no more than its last epoch


@dataclass(frozen=True)
class Epoch:
    """What a run tells the outside after an epoch: plain numbers only; `final` after the last epoch."""

    epoch: int
    metrics: dict[str, float]
    final: dict[str, float] | None = None


@dataclass(frozen=True)
class Job:
    """One run to be made: its name, its configuration, where its checkpoint lies, and whether to look at test."""

    name: str
    config: Config
    checkpoint: Path
    test: bool = True
    resume: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result: outcome is "diverged", "failed" or "killed"."""

    outcome: str
    error: str


def steps(job: Job, comm: Any = None) -> Iterator[Epoch]:
    """Train `job`, saving its checkpoint every few seconds and after the last epoch.

    With `resume`, continues from the checkpoint if there is one. The last `Epoch` carries the final metrics: on val,
    and on test if the job asks for it; this is the only place where test is ever looked at.
    """
    from . import checkpoint, engine

    state = None
    if job.resume and job.checkpoint.exists():
        stored, state = checkpoint.load(job.checkpoint)
        if stored != job.config:
            raise ConfigError(f"{job.checkpoint}: belongs to another configuration ({stored.digest()})")
    writer = comm is None or getattr(comm, "everyone", comm).rank == 0  # of two roles, one process writes
    saved = time.monotonic()
    for record in engine.run(job.config, comm, state):
        last = record.epoch == job.config.train.epochs
        if writer and (last or time.monotonic() - saved > CHECKPOINT_EVERY_S):
            checkpoint.save(job.checkpoint, job.config, record.state())
            saved = time.monotonic()
        yield Epoch(record.epoch, record.metrics, final_metrics(record, job.test) if last else None)


def final_metrics(record: Any, test: bool) -> dict[str, float]:
    """The end of a run. The final weights decide; the weights that were best on val are a second column."""
    val = record.evaluate("val")
    final = {
        "final/val_accuracy": val.accuracy,
        "final/val_even": val.halves[0],
        "final/val_odd": val.halves[1],
        "best/val_accuracy": record.metrics["best/val_accuracy"],
    }
    if test:
        final["final/test_accuracy"] = record.evaluate("test").accuracy
        final["best/test_accuracy"] = record.evaluate("test", "best").accuracy
    return final


def connect() -> None:
    """Join the cluster named by RAY_ADDRESS, or start a quiet local one that only this process can talk to."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean what they meant to the user
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # `uv run`: workers use this environment as it is
    os.environ.setdefault(
        "TUNE_DISABLE_SIGINT_HANDLER", "1"
    )  # it swallows the first Ctrl-C, and stays after the search
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not address and "ray" not in sys.modules:  # Ray reads these once, when it is imported
        # a token of this process's own: nobody else on the network may join, and no token file is left in the home
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")  # else any other work on the machine starves the runs
    import ray

    if ray.is_initialized():
        return
    terminated = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if address:
        ray.init(address=address, **quiet)
    else:
        # ray.init waits seconds for its processes: what a search needs is imported meanwhile
        threading.Thread(target=importlib.import_module, args=("ray.tune",), daemon=True).start()
        ray.init(address="local", include_dashboard=False, num_cpus=os.cpu_count(), **quiet)
    if callable(terminated) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray put its own there, which aborts


def cpus() -> int:
    """Processors of the cluster that `connect` joined."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def check_feasible(config: Config) -> None:
    """Refuse, before anything starts, what cannot run here.

    A network or data set that cannot be imported; workers that the machine does not have, for which Ray would wait
    for ever.

    Raises:
        ConfigError: naming the largest number that fits.
    """
    for field, name in (("data.name", config.data.name), ("model.name", config.model.name)):
        if ":" in name:
            load_function(field, name)
    if config.optim.rho_schedule not in (None, "lr"):
        from .engine import radius_shape

        radius_shape(config.optim, total_steps=1)
    scale = config.scale
    if config.data.batch_size % scale.workers:
        raise ConfigError(
            f"scale.workers={scale.workers}: data.batch_size={config.data.batch_size} cannot be divided among them"
        )
    if scale.gpus_per_worker and not os.environ.get("RAY_ADDRESS"):
        import torch

        if torch.cuda.device_count() < scale.workers * scale.gpus_per_worker:
            raise ConfigError(
                f"scale.gpus_per_worker={scale.gpus_per_worker}: this machine has {torch.cuda.device_count()} GPUs "
                f"for {scale.workers} workers"
            )
    if scale.workers > 1:
        ray = sys.modules.get("ray")
        if os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized()):
            connect()
            available = cpus()
        else:  # the answer without starting a cluster
            available = os.cpu_count() or 1
        if scale.workers > available:
            raise ConfigError(f"scale.workers={scale.workers}: only {available} CPUs here (nearest: {available})")


def launch(job: Job) -> Iterator[Epoch]:
    """One run, in this process or distributed, as its configuration says."""
    check_feasible(job.config)
    return steps(job) if job.config.scale.workers == 1 else distributed(job)


def parallel(jobs: Iterable[Job], at_once: int) -> Iterator[tuple[Job, Epoch | Failure]]:
    """Many runs in `at_once` reused actors; yields what each tells, as it comes.

    A run that raises, or whose process dies, ends with a `Failure` and disturbs no other.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    Worker = ray.remote(Runner)
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
            diverged = type(error.cause).__name__ == "Diverged"
            yield job, Failure("diverged" if diverged else "failed", str(error.cause) if diverged else str(error))
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
        yield from steps(job)


def distributed(job: Job, max_failures: int = 2) -> Iterator[Epoch]:
    """One run under a TorchTrainer with `scale.workers` workers; a lost worker restarts from the last checkpoint."""
    if not job.resume:
        job.checkpoint.unlink(missing_ok=True)  # workers that are started again continue from what lies there
    connect()
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Empty, Queue

    scale = job.config.scale
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={"job": job, "queue": queue},
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, **({"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {})},
            placement_strategy=scale.placement.upper(),
        ),
        run_config=RunConfig(
            # a used name would silently resume, and train nothing
            name=f"{job.name}-{secrets.token_hex(4)}",
            storage_path=str(job.checkpoint.parent / "ray_train"),
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    problem: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    seen = 0
    while thread.is_alive() or queue.qsize():
        try:
            message: Epoch = queue.get(timeout=0.2)
        except Empty:
            continue
        if message.epoch > seen:  # after a restart, epochs between the checkpoint and the failure come again
            seen = message.epoch
            yield message
            if message.final is not None:
                break
    thread.join()
    queue.shutdown()
    if problem and seen < job.config.train.epochs:
        raise problem[0]


def worker_loop(config: dict[str, Any]) -> None:
    """What each worker of the trainer does."""
    import ray.train

    from ..optim.comm import Distributed, Roles

    job: Job = config["job"]
    if ray.train.get_checkpoint() is None and job.checkpoint.exists():
        job = Job(job.name, job.config, job.checkpoint, job.test, resume=True)
    comm = Roles() if job.config.optim.schedule == "parallel" else Distributed()
    for epoch in steps(job, comm):
        if ray.train.get_context().get_world_rank() == 0:
            config["queue"].put(epoch)
        ray.train.report(epoch.metrics)


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    names = ("bisam-ray", "torch", "ray", "optuna", "mlflow", "numpy", "scikit-learn")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
