"""The trials of searches trained by Ray Tune: the engine inside reused actors, some epochs per step.

Tune places the actors and brings their results; what is tried and what is stopped, `Search` says. Several searches
share the actors and take turns. Nothing of Tune's own is kept: the ledger is the record, and checkpoints are the
engine's.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..config import Config
from ..progress import Progress
from ..training import cluster, launch
from ..training.checkpoint import NotSaved
from ..training.launch import Epoch, Failure, Job
from .search import Search
from .session import Session
from .settings import Settings
from .spaces import Space

TOLD_EVERY_S = 0.25  # a trial collects its epochs for so long; rungs and its end it tells at once


def search(
    session: Session,
    space: Space,
    layers: Sequence[Mapping[str, Any]],
    settings: Settings,
    progress: Progress,
    arm: str,
) -> Search:
    """Make a search, or what the session's ledger does not have of it yet."""
    if not session.study().of(arm=arm, phase="search"):
        cluster.connect()  # it takes seconds, in which the rest is imported
    searching = Search(session, space, layers, settings, progress, arm)
    if not searching.over():
        cluster.connect()
        cluster.check_shared(session.root)
        at_once, told = cluster.room(searching.example, settings.concurrency)
        for line in [told, *searching.announce()]:
            progress.say(line)
        train([searching], at_once)
    return searching


def train(searches: Sequence[Search], at_once: int) -> None:
    """Make the trials that searches of equal needs ask for, until they ask for no more: `at_once` beside each other."""
    silence()
    from ray import tune

    first = searches[0]
    for one in searches:
        one.at_once = math.ceil(at_once / len(searches))
    directory = first.session.directory / ".tune"
    adapters = adapter_classes()
    owners = dict[str, Search]()
    tuner = tune.Tuner(
        tune.with_resources(trainable_class(), resources(first.example)),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=adapters.Ask(searches, at_once, owners),
            scheduler=adapters.Judge(owners),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(directory),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=first.settings.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[adapters.Recorder(owners)],
        ),
    )
    tuner.fit()
    shutil.rmtree(directory, ignore_errors=True)


def resources(config: Config) -> dict[str, float]:
    """What the trial's own actor holds: everything; or next to nothing (a byte) when its workers do, lest it take the
    processors that they wait for."""
    scale = config.scale
    if scale.workers == 1:
        return {"CPU": scale.threads, "GPU": scale.gpus_per_worker}
    return {"memory": 1}


def silence() -> None:
    """Tune writes no tables, no tensorboard files and no snapshots: the ledger is the record."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_SYNCER"] = "1"
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # ours are shown once
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray").setLevel(logging.CRITICAL)


def trainable_class() -> Any:
    """One trial after the other in one actor; classes are made on demand, so that importing this module is cheap."""
    from ray import tune

    def begun(job: Job) -> Generator[Epoch, None, None]:
        yield from launch.launch(job)  # what fails here is the trial's failure, told with its first epoch

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            from ..training import engine  # noqa: F401 - its imports belong to the start, not to the first epoch

            self.stream, self.rungs = begun(config["job"]), config["job"].save_at

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """A reused actor starts over from nothing but the new job."""
            self.cleanup()
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            """The epochs of a moment, or up to a rung: every result costs Tune and this driver some milliseconds.

            A failure of the trial's own is its result; want of memory is Tune's, which tries again.
            """
            from ..training.engine import Diverged

            told, until = list[Epoch | Failure](), time.monotonic() + TOLD_EVERY_S
            try:
                for epoch in self.stream:
                    told.append(epoch)
                    if epoch.final is not None or epoch.epoch in self.rungs or time.monotonic() > until:
                        break
            except (Diverged, NotSaved) as error:
                told.append(Failure("diverged" if isinstance(error, Diverged) else "killed", str(error)))
            except Exception as error:
                if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                    raise
                told.append(Failure("failed", "".join(traceback.format_exception(error))[-4000:]))
            last = told[-1]
            return {"told": told, "done": isinstance(last, Failure) or last.final is not None}

        def cleanup(self) -> None:
            """Whatever runs elsewhere for this trial ends with it."""
            self.stream.close()

    return Trial


def adapter_classes() -> Any:
    """Tune's three interfaces to `Search`; `owners` says which search a trial is of."""
    from types import SimpleNamespace

    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    def name(trial: Any) -> str:
        job: Job = trial.config["job"]
        return job.name

    class Unkept:
        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its parts for Tuner.restore, which is never used

    class Ask(Unkept, Searcher):
        def __init__(self, searches: Sequence[Search], at_once: int, owners: dict[str, Search]) -> None:
            super().__init__()
            self.left, self.at_once, self.owners = list(searches), at_once, owners
            self.running = dict[str, Search]()

        def suggest(self, trial_id: str) -> Any:
            """Of the search that has the fewest trials under way: its model then knows most of those before."""
            if len(self.running) >= self.at_once:
                return None
            while self.left:
                under_way = list(self.running.values())
                search = min(self.left, key=under_way.count)
                if (trial := search.next()) is not None:
                    self.left = [one for one in self.left if one is not search] + [search]  # they take turns
                    self.running[trial_id] = self.owners[trial.name] = search
                    return {"job": search.job(trial)}
                self.left.remove(search)
            return Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.running.pop(trial_id, None)

        def save(self, checkpoint_path: str) -> None: ...

        def restore(self, checkpoint_path: str) -> None: ...

    class Judge(Unkept, FIFOScheduler):
        def __init__(self, owners: dict[str, Search]) -> None:
            super().__init__()
            self.owners = owners

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            search = self.owners[name(trial)]
            goes_on = all(search.tell(name(trial), told) for told in result["told"])
            return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

        def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self.on_trial_result(controller, trial, result)  # Tune asks nobody about a last result

    class Recorder(Unkept, tune.Callback):
        def __init__(self, owners: dict[str, Search]) -> None:
            self.owners = owners

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            search = self.owners[name(trial)]
            search.begin(search.trials[name(trial)])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.on_trial_start(iteration, trials, trial)  # it may not even have started
            error = trial.get_pickled_error() or trial.get_error()
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, Exception) and "Actor" not in type(cause).__name__:
                told = Failure("failed", "".join(traceback.format_exception(cause))[-4000:])
            else:
                why = str(cause).strip().splitlines()[0] if cause else "it did not start"
                told = Failure("killed", f"the process of this trial died: {why}")
            self.owners[name(trial)].tell(name(trial), told)

    return SimpleNamespace(Ask=Ask, Judge=Judge, Recorder=Recorder)
