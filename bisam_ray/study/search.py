"""A search: what is tried next, for how long, and what the ledger says of it.

`Search` decides and records; who trains is another matter: Ray Tune (tuning.py), or curves that were recorded before
(replay.py). Its three questions are the whole interface:

    next()              the next trial, unfinished ones of an earlier session first; None: nothing (more) to begin
    begin(trial)        it starts, or goes on
    tell(name, what)    an epoch's result, or why there is none; True while the trial should go on

A study is resumed by telling a new `Search` everything that the ledger recorded, in its order: rungs, Optuna's history,
costs and trials come out as they were, because they came about the same way.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config import Config, ConfigError, gradients_per_step, resolve
from ..progress import Progress
from ..training import checkpoint
from ..training.launch import Epoch, Failure, Job
from .replicate import redrawn, run_all
from .sampler import FILE, Sampler, Trial
from .selection import pareto
from .session import Session
from .settings import UNBOUNDED, Settings
from .spaces import Space
from .stopping import Forecast, Stopping
from .storage import KEPT

METRIC = "val/accuracy"
POLICY = {"policy": "searched"}
INVALID = 50  # suggestions in a row that contradict themselves: the space is wrong, not the luck


class Search:
    """The decisions of one search.

    Args:
        session: where it is recorded; the ledger may hold a part of it already.
        space: what is searched.
        layers: configuration layers below and above the space: (files, overrides).
        settings: how.
        progress: told after every epoch.
        arm: the trials' tag; their names begin with it.
        at_once: how many trials run beside each other; may be set later.
        begin: what the trials' `begin` events say of their arm: policy and, in a comparison, family; arms.py.
        history: the ledger's events so far, if they are at hand.
    """

    def __init__(
        self,
        session: Session,
        space: Space,
        layers: Sequence[Mapping[str, Any]],
        settings: Settings,
        progress: Progress,
        arm: str,
        at_once: int = 1,
        begin: Mapping[str, Any] = POLICY,
        history: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        self.session, self.space, (self.files, self.overrides) = session, space, layers
        self.progress, self.arm, self.at_once, self.tags = progress, arm, at_once, begin
        self.example = self.resolve(space.example())
        self.epochs = space.epochs(self.example)
        self.settings = settings.for_epochs(self.epochs)
        self.stopping = Stopping(
            settings.scheduler, self.settings.grace or 1, settings.reduction, self.epochs, settings.seed
        )
        self.sampler = Sampler(
            space,
            settings.sampler,
            settings.seed,
            settings.objectives,
            arm,
            session.directory / FILE if session.stored else None,
        )
        self.trials: dict[str, Trial] = {}
        self.waiting: list[Trial] = []  # of an earlier session
        self.begun: set[str] = set()
        self.ended, self.best = 0, list[Trial]()
        self.told: set[str] = set()  # errors that were shown
        self.seconds_before, self.since = 0.0, time.monotonic()
        self.restore(session.events() if history is None else history)

    # --- what is tried -----------------------------------------------------------------------------------------------

    def next(self) -> Trial | None:
        """The next trial to begin."""
        if self.waiting:
            return self.waiting.pop(0)
        if self.exhausted():
            return None
        for _ in range(INVALID):
            number, params, values = self.sampler.ask(self.settings.startup(self.at_once))
            trial = self.known(number, params, values)
            try:
                self.config(trial)
            except ConfigError as error:
                problem = error
                trial.outcome = "failed"
                self.sampler.tell(trial)
                continue
            self.trials[trial.name] = trial
            return trial
        raise ConfigError(f"space {self.space.name}: {INVALID} suggestions in a row cannot be trained: {problem}")

    def known(self, number: int, params: dict[str, Any], values: dict[str, Any]) -> Trial:
        """A trial by its number: the first ones after the start points are the controls, spread over the space."""
        first = len(self.space.start)
        control = first <= number < first + (self.settings.controls or 0)
        return Trial(f"{self.arm.replace(' ', '-')}-{number:03d}", number, params, values, control)

    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.waiting and self.exhausted()

    def exhausted(self) -> bool:
        """Whether no new trial may begin."""
        settings, number = self.settings, len(self.trials)
        if number >= settings.most or (self.sampler.finite is not None and number >= self.sampler.finite):
            return True
        if settings.gradients is not None and sum(t.cost for t in self.trials.values()) >= settings.gradients:
            return True
        return settings.hours is not None and self.seconds() >= 3600 * settings.hours

    def seconds(self) -> float:
        """The time spent, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.since

    def resolve(self, values: Mapping[str, Any]) -> Config:
        return resolve(self.files, self.space.fix, values, self.overrides)

    def config(self, trial: Trial) -> Config:
        """What a trial trains: what the ledger recorded, if it began before."""
        return resolve(trial.config) if trial.config is not None else self.resolve(trial.values)

    def job(self, trial: Trial) -> Job:
        """The run to be made, from its checkpoint if there is one."""
        return Job(
            trial.name,
            self.config(trial),
            self.session.checkpoint(trial.name),
            test=False,
            resume=True,
            folds=self.settings.folds,
            save_at=tuple(self.settings.rungs(self.epochs)),
        )

    # --- what came of it ---------------------------------------------------------------------------------------------

    def begin(self, trial: Trial) -> None:
        """A trial starts; once a session, however often its process is started."""
        if trial.name in self.begun:
            return
        self.begun.add(trial.name)
        if trial.config is None:
            self.stopping.begin(trial.name)
        config = self.config(trial)
        trial.config = config.model_dump(exclude_none=True)
        more: dict[str, Any] = {"number": trial.number, "params": trial.params, "control": trial.control}
        self.session.begin(
            trial.name, config, arm=self.arm, phase="search", suggested=trial.values, **self.tags, **more
        )

    def tell(self, name: str, message: Epoch | Failure) -> bool:
        """Record what a trial came to; False when it is over, or should be."""
        trial = self.trials[name]
        if trial.outcome is not None:
            return False
        if isinstance(message, Failure):
            self.end(trial, message.outcome, error=message.error)
            return False
        if message.epoch > trial.epoch:  # else it is an epoch between the last checkpoint and a kill
            self.session.epoch(name, message)
            self.sampler.report(trial, message.epoch, message.metrics[METRIC])
            self.take(trial, message.epoch, message.metrics)
        done = message.final is not None
        stopped = trial.stopped is not None and not trial.control
        if done:
            final = message.final or {}
            trial.result = self.objectives(final.get("final/val_accuracy", 0.0), trial.cost)
            self.end(trial, "completed", final)
        elif stopped:
            self.end(trial, "pruned")
        self.progress.update(f"{self.arm}: {self.ended} of {self.planned()} trials ended", self.share(trial))
        return not done and not stopped

    def take(self, trial: Trial, epoch: int, metrics: Mapping[str, float]) -> None:
        """Note an epoch, and let the scheduler judge it: of a running trial, or of the ledger's."""
        trial.curve[epoch] = value = metrics[METRIC]
        trial.cost = metrics.get("cost/gradients", trial.cost)
        if self.stopping.stops(trial.name, epoch, value) and trial.stopped is None:
            trial.stopped = epoch

    def objectives(self, accuracy: float, cost: float) -> tuple[float, ...]:
        return (accuracy, cost) if self.settings.several else (accuracy,)

    def end(
        self, trial: Trial, outcome: str, final: Mapping[str, float] | None = None, error: str | None = None
    ) -> None:
        """The last word on a trial: first in the ledger, then for Optuna."""
        trial.outcome = outcome
        self.ended += 1
        kept = self.session.checkpoint(trial.name) if outcome == "completed" else None
        self.session.end(trial.name, outcome, trial.epoch, final, error, kept, stopped=trial.stopped)
        self.sampler.tell(trial)
        self.tidy(trial)
        if error is not None and (last := error.strip().splitlines()[-1]) not in self.told:
            self.told.add(last)
            self.progress.say(f"{trial.name} {outcome}, the search goes on:\n{error.strip()}")

    def tidy(self, trial: Trial) -> None:
        """Keep the checkpoints of the best trials only."""
        if self.settings.several:  # which ones are on the front is known in the end: `confirm`
            return
        late = [trial]
        if trial.result is not None:
            self.best = sorted([*self.best, trial], key=lambda t: (-(t.result or (0.0,))[0], t.number))
            most = max(KEPT, self.settings.confirm)
            self.best, late = self.best[:most], self.best[most:]
        for one in late:
            checkpoint.remove(self.session.checkpoint(one.name))

    def planned(self) -> str:
        """How many trials there will be, as far as one knows."""
        most = min(self.settings.most, self.sampler.finite or self.settings.most)
        return str(most) if most < 100_000 else "?"

    def share(self, trial: Trial) -> float:
        """What an epoch of a trial costs, in gradients a step."""
        return gradients_per_step(self.config(trial)) * self.settings.folds

    def announce(self) -> list[str]:
        """What is about to happen; the progress line learns how much work it is."""
        settings, lines = self.settings, []
        if self.trials:
            lines.append(f"{self.arm}: {self.ended} of {self.planned()} trials ended before, {len(self.waiting)} go on")
        if found := self.expected():
            if len(found.reach) > 1:
                epochs, counts = (", ".join(f"{part[k]:.0f}" for part in found.reach) for k in (0, 1))
                lines.append(f"{settings.scheduler}: about {counts} trials will come to epochs {epochs}")
            times = f" × {settings.folds} folds" if settings.folds > 1 else ""
            lines.append(f"cost: about {found.cost:.1f} full runs{times}, at most {found.most:.0f}")
        again = 0 if settings.several else settings.confirm * settings.replicates
        self.progress.later = again * gradients_per_step(self.example) * self.epochs
        self.progress.phase(self.remaining(found), "searching")
        return lines

    def expected(self) -> Forecast | None:
        """What the trials will probably be; None where their number does not end the search."""
        most = min(self.settings.most, self.sampler.finite or self.settings.most)
        return self.settings.forecast(self.epochs, most) if most < UNBOUNDED else None

    def remaining(self, expected: Forecast | None) -> float:
        """What is probably left to do, in gradient evaluations per step × epochs; 0 where nobody knows."""
        work, budget, board = math.inf, self.settings.gradients, self.progress.board
        if expected is not None:
            run = gradients_per_step(self.example) * self.epochs * self.settings.folds
            work = expected.cost * run - sum(self.share(trial) * trial.epoch for trial in self.trials.values())
        if budget is not None and board.unit > 0:
            left = budget - sum(trial.cost for trial in self.trials.values())
            work = min(work, left / board.unit * self.progress.run)
        return max(0.0, work) if math.isfinite(work) else 0.0

    # --- resuming ----------------------------------------------------------------------------------------------------

    def restore(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Hear everything that the ledger has to tell."""
        last = 0.0
        for event in history:
            match event["event"]:
                case "study":
                    last = event["time"]
                case "begin" if event["arm"] == self.arm and event["phase"] == "search":
                    self.recall(event)
                case "epoch" if event["run"] in self.trials:
                    trial = self.trials[event["run"]]
                    if event["epoch"] > trial.epoch:
                        self.take(trial, event["epoch"], event["metrics"])
                case "end" if event["run"] in self.trials and event["outcome"] != "killed":
                    trial = self.trials[event["run"]]
                    trial.outcome = event["outcome"]
                    if trial.outcome == "completed":
                        trial.result = self.objectives(event["metrics"]["final/val_accuracy"], trial.cost)
                        self.tidy(trial)
            self.seconds_before += max(0.0, event["time"] - last)
            last = event["time"]
        trials = sorted(self.trials.values(), key=lambda t: t.number)
        self.ended = sum(t.outcome is not None for t in trials)
        asked = self.sampler.restore(trials)
        for number, params, values in asked:
            trial = self.known(number, params, values)
            self.trials[trial.name] = trial
        for trial in sorted(self.trials.values(), key=lambda t: t.number):
            if trial.outcome is None and trial.stopped is not None and not trial.control:
                self.end(trial, "pruned")  # the kill came between the scheduler's word and its execution
            elif trial.outcome is None:
                self.waiting.append(trial)

    def recall(self, event: Mapping[str, Any]) -> None:
        """A trial that began in an earlier session."""
        if event["run"] in self.trials:
            self.trials[event["run"]].outcome = None
            return
        values = event["suggested"] or {}
        trial = Trial(
            event["run"],
            event["number"],
            event.get("params") or values,
            values,
            bool(event.get("control")),
            event["config"],
        )
        self.trials[trial.name] = trial
        self.stopping.begin(trial.name)


def confirm(search: Search) -> None:
    """Run the best trials again on fresh draws, before a winner is named: the best of many values is partly luck."""
    settings = search.settings
    if settings.several:
        front = {run.name for run in pareto(search.session.study(), search.arm)}
        for name in search.trials.keys() - front:
            checkpoint.remove(search.session.checkpoint(name))
    if not settings.confirm or settings.several:
        return
    done = search.session.study().of(arm=search.arm, phase="search", outcome="completed")
    best = sorted(done, key=lambda run: -run.value("final/val_accuracy"))[: settings.confirm]
    jobs = []
    for replicate, run in itertools.product(range(settings.replicates), best):
        name = f"{run.name}-r{replicate}"
        config = redrawn(run.begin["config"], replicate)
        begin = {"arm": search.arm, "replicate": replicate, "policy": "searched", "trial": run.name}
        jobs.append((Job(name, config, search.session.checkpoint(name), resume=True), begin))
    search.progress.later = 0.0
    run_all(search.session, jobs, search.progress, settings.concurrency, f"the best {len(best)} again, on fresh draws")
