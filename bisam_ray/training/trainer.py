"""One run under a Ray Train TorchTrainer, from any process: a driver, or a trial that is an actor itself."""

from __future__ import annotations

import os
import queue
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from ..config import ConfigError
from . import checkpoint
from .cluster import TRAIN, connect
from .launch import Epoch, Job, steps

GUARD_S = 10
TRIES = 3
TRAINS = ("WorkerGroupError", "ControllerError")  # Train gave up: tried again if it had come further before
LEAVE_S = 5.0


def distributed(job: Job) -> Iterator[Epoch]:
    """One run under a TorchTrainer with `scale.workers` workers; whatever is lost, it goes on from the last checkpoint.

    Train itself replaces lost workers; if the actors around it are lost, the run is started again here. Both give up
    after `TRIES` tries in which no epoch was made. What another try would only repeat (the run diverged, the input is
    bad, the storage is full) is not tried again; a mistake in a user's network looks like a lost worker, and is.
    """
    if not job.resume:
        checkpoint.remove(job.checkpoint)  # workers that are started again continue from what lies there
    connect()
    from ray.exceptions import RayActorError, RayError, RayTaskError

    seen = tries = 0
    while True:
        try:
            with closing(attempt(job)) as epochs:
                for epoch in epochs:
                    if epoch.epoch > seen:  # epochs between the checkpoint and the failure come again
                        seen, tries = epoch.epoch, 0
                        yield epoch
            return
        except (RayActorError, RayTaskError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            tries += 1
            lost = isinstance(cause, RayError) or (type(cause).__name__ in TRAINS and seen and tries == 1)
            if not lost or tries == TRIES:
                raise cause from None


def attempt(job: Job) -> Generator[Epoch, None, None]:
    """The run, as long as its manager lives.

    However it ends (normally, by an error, closed before its end, or with the actor that iterates over it killed), its
    processes and its placement group are gone seconds later. Ray does the first: an actor dies with the one that
    started it, and all of the run hangs on `manager`. `Guard` does the second.
    """
    import ray

    mark = secrets.randbelow(1 << 20) + (1 << 20)
    settings = {"env_vars": {name: value for name, value in TRAIN.items() if name not in os.environ}}
    # a cluster of ours has them; in another one, processes of this run's own are started with them
    environment = {"runtime_env": settings} if settings["env_vars"] else {}
    manager = ray.remote(num_cpus=0, max_concurrency=3, **environment)(Manager).remote()
    # outside the placement group of a trial that this may be part of, and alive when that is gone
    guard = ray.remote(num_cpus=0)(Guard).options(lifetime="detached", scheduling_strategy="DEFAULT").remote()
    guard.watch.remote(manager, mark)
    try:
        for reference in manager.epochs.options(num_returns="streaming").remote(job, mark):
            yield ray.get(reference)
    finally:
        if ray.is_initialized():
            ray.kill(manager)


class Manager:
    """The actor that owns a distributed run: Train's controller is its child, and the workers are the controller's."""

    def __init__(self) -> None:
        self.told: queue.Queue[Epoch | Exception | None] = queue.Queue()

    def tell(self, message: Epoch | Exception | None) -> None:
        """What a worker has to say: an epoch, or an error that another try would only repeat."""
        self.told.put(message)

    def alive(self) -> None:
        """Never returns."""
        threading.Event().wait()

    def epochs(self, job: Job, mark: int) -> Iterator[Epoch]:
        threading.Thread(target=self.fit, args=(job, mark), daemon=True).start()
        while (message := self.told.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message
            if message.final is not None:  # Train gives back what it had reserved, for which another run may wait
                with suppress(queue.Empty):
                    self.told.get(timeout=LEAVE_S)
                return

    def fit(self, job: Job, mark: int) -> None:
        """Run the trainer to its end. `mark` is the number of bytes of memory by which `Guard` knows its group."""
        try:
            connect()
            import ray
            from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
            from ray.train.torch import TorchTrainer

            class Trainer(TorchTrainer):
                """Without Train's own cleaner: it asks the dashboard, and where there is none it stays for ever."""

                def _create_default_callbacks(self) -> list[Any]:
                    found = super()._create_default_callbacks()
                    return [c for c in found if type(c).__name__ != "PlacementGroupCleanerCallback"]

            scale = job.config.scale
            gpus = {"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {}
            Trainer(
                worker_loop,
                train_loop_config={"job": job, "manager": ray.get_runtime_context().current_actor},
                scaling_config=ScalingConfig(
                    num_workers=(scale.min_workers, scale.workers) if scale.min_workers else scale.workers,
                    use_gpu=bool(gpus),
                    resources_per_worker={"CPU": 1, "memory": mark, **gpus},
                    placement_strategy=scale.placement.upper(),
                ),
                run_config=RunConfig(
                    # a used name would silently resume, and train nothing
                    name=f"{job.name}-{secrets.token_hex(4)}",
                    storage_path=f"{str(job.checkpoint).rpartition('/')[0]}/ray_train",
                    failure_config=FailureConfig(max_failures=TRIES - 1),
                    logging_config=LoggingConfig(log_level="ERROR"),
                ),
            ).fit()
            self.tell(None)
        except Exception as error:
            self.tell(error)


class Guard:
    """The actor that removes a distributed run's placement group.

    Ray removes one when the whole program ends, not when the actor that made it does.
    """

    def watch(self, manager: Any, mark: int) -> None:
        """Wait until `manager` is gone, remove every group whose bundles carry `mark`, and leave."""
        import ray

        ray.wait([manager.alive.remote()])
        for _ in range(GUARD_S):  # a controller in its last second may ask for another one
            remove_groups(mark)
            time.sleep(1)
        ray.actor.exit_actor()


def remove_groups(mark: int) -> None:
    """Remove the placement groups whose bundles ask for `mark` bytes of memory."""
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED" and any(b.get("memory") == mark for b in group["bundles"].values()):
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def worker_loop(config: dict[str, Any]) -> None:
    """What each worker of the trainer does."""
    import ray
    import ray.train

    from ..optim.comm import Distributed, Roles
    from .engine import Diverged

    job, manager = config["job"], config["manager"]
    if checkpoint.exists(job.checkpoint):
        job = replace(job, resume=True)
    comm = Roles() if job.config.optim.schedule == "parallel" else Distributed()
    try:
        for epoch in steps(job, comm):
            if ray.train.get_context().get_world_rank() == 0:
                ray.get(manager.tell.remote(epoch))
            ray.train.report(epoch.metrics)
    except (Diverged, ConfigError, checkpoint.NotSaved) as error:
        ray.get(manager.tell.remote(error))
        raise
