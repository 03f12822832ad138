"""A search: Ray Tune asks Optuna for radii, trains them inline in reused actors, and stops the poor ones by ASHA."""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import gradients_per_step, resolve
from ..progress import Progress
from ..training import launch
from ..training.launch import Epoch, Job
from .ledger import Run, Study
from .session import Session
from .spaces import Space, domains

METRIC = "val/accuracy"
REDUCTION_FACTOR = 3


def grace_period(epochs: int) -> int:
    """Epochs before a trial may be stopped: a quarter of the run.

    A large radius learns slowly at first and is best in the end: with a grace period of a tenth, ASHA stops just the
    trials that a search of the radius is looking for.
    """
    return max(1, round(epochs / 4))


def search(
    session: Session,
    space: Space,
    layers: Sequence[Mapping[str, Any]],
    trials: int,
    seed: int,
    progress: Progress,
    arm: str,
    at_once: int | None = None,
) -> None:
    """Make `trials` trials of `space`, and record them in the session's ledger.

    Args:
        session: where the trials are recorded.
        space: what is searched.
        layers: configuration layers below and above the space: (files, overrides).
        trials: how many.
        seed: of Optuna's sampler. With at_once=1 the whole search repeats decision by decision.
        progress: told after every epoch.
        arm: the trials' tag.
        at_once: how many trials run beside each other; None: as many as there are processors for.
    """
    files, overrides = layers
    example = resolve(files, space.fix, overrides, {k: d.ends()[0] for k, d in space.search.items()})
    launch.connect()
    silence()
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", module="ray.tune.search.optuna")
    epochs = example.train.epochs
    at_once = at_once or max(1, launch.cpus() // example.scale.threads)
    searcher = searcher_class()(
        epochs,
        metric=METRIC,
        mode="max",
        points_to_evaluate=[dict(point) for point in space.start] or None,
        sampler=optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, trials // 3), multivariate=True, constant_liar=True
        ),
    )
    trainable = tune.with_parameters(
        trainable_class(), layers=(files, space.fix), overrides=overrides, directory=session.directory
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": example.scale.threads, "GPU": example.scale.gpus_per_worker}),
        param_space=domains(space),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=trials,
            search_alg=searcher,
            # max_t beyond the last epoch: else every full trial counts as stopped at its last report
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=epochs + 1,
                grace_period=grace_period(epochs),
                reduction_factor=REDUCTION_FACTOR,
            ),
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(session.directory / ".tune" / arm.replace(" ", "-")),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[recorder_class()(session, (files, space.fix), overrides, arm, trials, progress)],
        ),
    )
    tuner.fit()


def silence() -> None:
    """Tune writes no tables, no tensorboard files and no snapshots: the ledger is the record."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_SYNCER"] = "1"
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def searcher_class() -> Any:
    """OptunaSearch that tells Optuna the truth; a class made on demand, so that importing this module is cheap."""
    from optuna.trial import TrialState
    from ray.tune.search.optuna import OptunaSearch

    class Truthful(OptunaSearch):
        """A trial that ASHA stopped is PRUNED, with its intermediate values; a diverged or failed one is FAIL.

        As it ships, OptunaSearch calls both COMPLETE with their last value, and TPE takes them for results.
        """

        def __init__(self, epochs: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.epochs = epochs

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            lost = error or not result or "diverged" in result
            if not lost and result and result["epoch"] >= self.epochs:
                super().on_trial_complete(trial_id, result, error)
            elif trial_id not in self._completed_trials:
                self._ot_study.tell(self._ot_trials[trial_id], state=TrialState.FAIL if lost else TrialState.PRUNED)
                self._completed_trials.add(trial_id)

    return Truthful


def trainable_class() -> Any:
    """One trial: the engine inside a reused actor, an epoch per step."""
    from ray import tune

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any], layers: Sequence[Mapping], overrides: Mapping, directory: Path) -> None:
            self.layers, self.overrides, self.directory = layers, overrides, directory
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """A reused actor starts over from nothing but the new configuration."""
            resolved = resolve(*self.layers, new_config, self.overrides)
            checkpoint = self.directory / "runs" / f"{self.trial_id}.pt"
            self.resolved = resolved
            self.stream: Iterator[Epoch] = launch.steps(Job(self.trial_id, resolved, checkpoint, test=False))
            self.last = 0
            return True

        def step(self) -> dict[str, Any]:
            from ..training.engine import Diverged

            try:
                epoch = next(self.stream)
            except Diverged as error:
                return {"epoch": self.last + 1, METRIC: 0.0, "diverged": str(error), "done": True}
            self.last = epoch.epoch
            final = epoch.final or {}
            return {**epoch.metrics, **final, "epoch": epoch.epoch, "done": epoch.final is not None}

    return Trial


def recorder_class() -> Any:
    """Tune's events → the ledger."""
    from ray import tune

    class Recorder(tune.Callback):
        def __init__(
            self,
            session: Session,
            layers: Sequence[Mapping],
            overrides: Mapping,
            arm: str,
            trials: int,
            progress: Progress,
        ) -> None:
            self.session, self.layers, self.overrides = session, layers, overrides
            self.arm, self.trials, self.progress = arm, trials, progress
            self.names: dict[str, str] = {}
            self.ended, self.best = 0, 0.0
            self.cost: dict[str, float] = {}

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            if trial.trial_id in self.names:
                return
            name = self.names[trial.trial_id] = f"{self.arm.replace(' ', '-')}-{len(self.names):03d}"
            config = resolve(*self.layers, trial.config, self.overrides)
            self.cost[name] = gradients_per_step(config)
            self.session.begin(name, config, arm=self.arm, phase="search", suggested=trial.config, policy="searched")

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            name = self.names[trial.trial_id]
            if "diverged" not in result:
                metrics = {k: v for k, v in result.items() if k.split("/")[0] in LOGGED and isinstance(v, int | float)}
                self.session.epoch(name, Epoch(result["epoch"], metrics))
                self.best = max(self.best, result[METRIC])
                self.progress.update(self.line(), self.cost[name])

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles callbacks for Tuner.restore, which is never used: the ledger is the record

        def line(self) -> str:
            return f"{self.arm}: {self.ended} of {self.trials} trials ended, best val {self.best:.1%}"

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            result = trial.last_result or {}
            final = {k: v for k, v in result.items() if k.startswith("final/")}
            outcome = "diverged" if "diverged" in result else "completed" if final else "pruned"
            self.close(trial, outcome, final, result.get("diverged"))

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            error = trial.get_pickled_error() or trial.get_error()
            cause = getattr(error, "cause", None) or error
            self.close(trial, "failed", {}, "".join(traceback.format_exception(cause))[-4000:])

        def close(self, trial: Any, outcome: str, final: dict, error: str | None) -> None:
            self.ended += 1
            checkpoint = self.session.directory / "runs" / f"{trial.trial_id}.pt"
            epoch = (trial.last_result or {}).get("epoch", 0)
            self.session.end(self.names[trial.trial_id], outcome, epoch, final, error, checkpoint)
            self.progress.update(self.line())

    return Recorder


LOGGED = ("train", "val", "sam", "lets", "cost", "best")


def best(study: Study, arm: str) -> Run | None:
    """The completed trial whose final weights are best on val; the earlier one of equals."""
    done = study.of(arm=arm, phase="search", outcome="completed")
    return max(done, key=lambda run: run.value("final/val_accuracy"), default=None)
