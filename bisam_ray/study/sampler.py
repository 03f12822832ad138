"""What to try next: an Optuna study that is told the truth, and that says what the ledger says.

    completed        COMPLETE, with its value (or values, when there are several objectives)
    stopped early    PRUNED, with its intermediate values: never its last one as if it were a result
    failed, diverged FAIL

Everything is a function of (seed, number of the trial, what was told so far): a sampler is made anew for every
question, so a search that was killed and resumed goes on as if it had not been. The study is kept in
`<study>/optuna.journal`, which optuna-dashboard opens; it is a projection of the ledger, mended or written anew from it
when a kill left it behind.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConfigError
from .ledger import whole_lines
from .spaces import Space

if TYPE_CHECKING:
    import optuna

FILE = "optuna.journal"
GRID = 5  # points of a continuous range
DIRECTIONS = {"accuracy": "maximize", "cost": "minimize"}
METRICS = ("val/accuracy", "cost/gradients")


@dataclass
class Trial:
    """A point of the space, and how far it has come."""

    name: str
    number: int
    params: dict[str, Any]
    """Optuna's names and values; they differ from `values` where a key has alternatives."""
    values: dict[str, Any]
    """Config paths and values."""
    control: bool = False
    config: dict[str, Any] | None = None
    """The recorded configuration of a trial that a study goes on with."""
    curve: dict[int, float] = field(default_factory=dict)
    """Validation accuracy by epoch."""
    cost: float = 0.0
    stopped: int | None = None
    """The epoch at which the scheduler stopped it, or would have, were it not a control."""
    outcome: str | None = None
    result: tuple[float, ...] | None = None
    """The objectives' values once completed."""

    @property
    def epoch(self) -> int:
        return max(self.curve, default=0)


def samplers(conditional: bool) -> dict[str, Callable[[int, int, int], Any]]:
    """(seed of the search, number of the trial, startup trials) → a sampler of Optuna, for spaces with conditions or
    without."""
    import optuna.samplers as of

    def each(seed: int, number: int) -> int:
        return (seed * 1_000_003 + number) % 2**31

    return {
        "tpe": lambda seed, number, startup: of.TPESampler(
            seed=each(seed, number), n_startup_trials=startup, multivariate=True, group=conditional, constant_liar=True
        ),
        "gp": lambda seed, number, startup: of.GPSampler(seed=each(seed, number), n_startup_trials=startup),
        "cmaes": lambda seed, number, startup: of.CmaEsSampler(seed=each(seed, number), n_startup_trials=startup),
        "qmc": lambda seed, number, startup: of.QMCSampler(seed=seed, scramble=True),  # it counts its points itself
        "random": lambda seed, number, startup: of.RandomSampler(seed=each(seed, number)),
        "nsga2": lambda seed, number, startup: of.NSGAIISampler(seed=each(seed, number)),
        "grid": lambda seed, number, startup: of.RandomSampler(seed=each(seed, number)),  # its points come first
    }  # fmt: skip


class Sampler:
    """Optuna's study of one space.

    Args:
        space: what is searched.
        kind: tpe | gp | cmaes | qmc | random | nsga2 | grid.
        seed: of every suggestion.
        objectives: ("accuracy",), or ("accuracy", "cost"), for which Optuna takes no intermediate values.
        name: the study's name in the journal.
        journal: where it is kept; None: in memory.
    """

    def __init__(
        self,
        space: Space,
        kind: str,
        seed: int,
        objectives: Sequence[str],
        name: str,
        journal: Path | None = None,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module="optuna")
        self.space, self.seed, self.name, self.journal = space, seed, name, journal
        self.directions = [DIRECTIONS[objective] for objective in objectives]
        self.make = samplers(self.conditional())[kind]
        if kind == "cmaes":
            try:
                import cmaes  # noqa: F401
            except ImportError:
                raise ConfigError("--sampler cmaes: needs 'pip install cmaes'") from None
        self.first = [space.params(point) for point in (space.grid(GRID) if kind == "grid" else space.start)]
        self.finite = len(self.first) if kind == "grid" else None
        self.live: dict[int, optuna.Trial] = {}
        self.study = self.open()

    def conditional(self) -> bool:
        """Whether some parameters are asked for only sometimes."""
        return self.space.function is not None or any(domain.when for domain in self.space.parameters.values())

    def open(self) -> optuna.Study:
        """The study as it is kept; one that a kill left unreadable is given up: the ledger knows what it said."""
        import optuna
        from optuna.storages import InMemoryStorage, JournalStorage
        from optuna.storages.journal import JournalFileBackend

        def opened(storage: Any) -> optuna.Study:
            study = optuna.create_study(
                storage=storage, study_name=self.name, directions=self.directions, load_if_exists=True
            )
            study.set_metric_names(list(METRICS)[: len(self.directions)])
            return study

        if self.journal is None:
            return opened(InMemoryStorage())
        self.journal.with_name(f"{FILE}.lock").unlink(missing_ok=True)  # of a driver that was killed: one at a time
        if self.journal.exists():  # cut away a line that was cut off: what is appended to it could not be read
            with open(self.journal, "r+b") as file:
                file.truncate(sum(map(len, whole_lines(self.journal))))
        try:
            return opened(JournalStorage(JournalFileBackend(str(self.journal))))
        except Exception:  # not a journal at all
            self.journal.unlink()
            return opened(JournalStorage(JournalFileBackend(str(self.journal))))

    def ask(self, startup: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """(number, Optuna's parameters, config values) of the next trial.

        `startup`: trials before a model is trusted; of keys with a prior they are drawn around it.
        """
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.make(self.seed, number, startup)
        if number < len(self.first):
            self.study.enqueue_trial(self.first[number])
        elif number < max(startup, len(self.first)):
            rng = random.Random(f"{self.seed} {number}")
            if expected := self.space.prior_point(rng):
                self.study.enqueue_trial(self.space.params(expected))
        trial = self.live[number] = self.study.ask()
        values = self.space.suggest(trial)
        return trial.number, dict(trial.params), values

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """An intermediate value."""
        if len(self.directions) == 1:
            self.at(trial.number).report(value, epoch)

    def tell(self, trial: Trial) -> None:
        """How a trial ended."""
        self.study.tell(trial.number, values=trial.result, state=state_of(trial))
        self.live.pop(trial.number, None)

    def at(self, number: int) -> optuna.Trial:
        """A trial that is under way, of this driver or of an earlier one."""
        import optuna

        if number not in self.live:
            stored = self.study.get_trials(deepcopy=False)[number]
            self.live[number] = optuna.Trial(self.study, stored._trial_id)
        return self.live[number]

    def restore(self, trials: Sequence[Trial]) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """Make the study say what the ledger says; return what was asked, but never begun."""
        if not self.mended(trials):
            self.rebuild(trials)
        known = {trial.number for trial in trials}
        asked = [
            t for t in self.study.get_trials(deepcopy=False) if t.number not in known and not t.state.is_finished()
        ]
        return [(t.number, dict(t.params), self.space.suggest(self.at(t.number))) for t in asked]

    def mended(self, trials: Sequence[Trial]) -> bool:
        """Tell the study what a kill kept from it; False when it contradicts the ledger."""
        stored = self.study.get_trials(deepcopy=False)
        for trial in trials:
            found = stored[trial.number] if trial.number < len(stored) else None
            if found is None or dict(found.params) != trial.params:
                return False
            if found.state.is_finished():
                if trial.outcome is None or found.state != state_of(trial):
                    return False
                continue
            for epoch, value in trial.curve.items():
                if epoch not in found.intermediate_values:
                    self.report(trial, epoch, value)
            if trial.outcome is not None:
                self.tell(trial)
        return True

    def rebuild(self, trials: Sequence[Trial]) -> None:
        """Write the study anew from the ledger."""
        import optuna
        from optuna.trial import FixedTrial, TrialState, create_trial

        optuna.delete_study(study_name=self.name, storage=self.study._storage)
        self.study, self.live = self.open(), {}
        several, by_number = len(self.directions) > 1, {trial.number: trial for trial in trials}
        for number in range(1 + max(by_number, default=-1)):
            trial = by_number.get(number)
            fixed = FixedTrial(trial.params if trial else {}, number)
            try:
                if trial is None:
                    raise ValueError("asked, and never begun")
                self.space.suggest(fixed)
            except (ValueError, ConfigError):  # or of an earlier, wider space: it holds its number's place
                self.study.add_trial(create_trial(state=TrialState.FAIL))
                continue
            running = trial.outcome is None
            made = create_trial(
                state=TrialState.RUNNING if running else state_of(trial),
                params=fixed.params,
                distributions=fixed.distributions,
                values=trial.result,
                intermediate_values={} if several else trial.curve,
            )
            self.study.add_trial(made)
        sampler = self.make(self.seed, 0, 0)
        if isinstance(sampler, optuna.samplers.QMCSampler) and trials:  # it counted its points in what was lost
            first = self.study.get_trials(deepcopy=False)[0]
            domains = sampler.infer_relative_search_space(self.study, first)
            for _ in trials:
                sampler.sample_relative(self.study, first, domains)


def state_of(trial: Trial) -> Any:
    from optuna.trial import TrialState

    known = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    return known.get(trial.outcome or "", TrialState.FAIL)
