"""How a search is made: how much of it, by whose suggestions, what is stopped early, what is confirmed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import ConfigError, suggest
from .stopping import SCHEDULERS, Forecast, forecast, grace_period, rungs

SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random", "nsga2", "grid")
OBJECTIVES = ("accuracy", "cost")
TRIALS = 16
UNBOUNDED = 1_000_000  # trials, when a budget of gradients or hours ends the search
DECIDING = (
    "sampler", "scheduler", "grace", "reduction", "objectives", "folds", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings of a search. The first four end it: whichever comes first; what runs then is finished.

    Args:
        trials: at most so many; 16 unless another budget is given.
        gradients: begin no trial after so many gradient evaluations × examples.
        hours: begin no trial after so many hours.
        sampler: tpe | gp | cmaes | qmc | random | nsga2 | grid.
        scheduler: asha | median | hyperband | none: what stops poor trials early.
        grace: epochs before a trial may be stopped; a quarter of the run unless given.
        reduction: η: one trial in η goes on from a rung.
        controls: trials that are never stopped, to measure what stopping early costs; an eighth of the trials.
        objectives: ("accuracy",) or ("accuracy", "cost"); two exclude stopping early and name no single winner.
        folds: a trial is the mean over so many disjoint validation splits (cross-validation), at their cost.
        confirm: the best k trials are run again on fresh draws before a winner is named; 0: the best value wins.
        replicates: fresh draws for each of them.
        retries: how often a trial whose process died, or whose memory did not suffice, is tried again.
        concurrency: trials at once; None: what the cluster has room for. With 1 a search repeats decision by decision.
        seed: of every suggestion.

    Raises:
        ConfigError: in one line.
    """

    trials: int | None = None
    gradients: float | None = None
    hours: float | None = None
    sampler: str = "tpe"
    scheduler: str = "asha"
    grace: int | None = None
    reduction: float = 3.0
    controls: int | None = None
    objectives: tuple[str, ...] = ("accuracy",)
    folds: int = 1
    confirm: int = 3
    replicates: int = 3
    retries: int = 1
    concurrency: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("sampler", SAMPLERS), ("scheduler", SCHEDULERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"--{name} {getattr(self, name)}: unknown{suggest(getattr(self, name), known)}")
        for name, least in (
            ("trials", 1), ("grace", 1), ("controls", 0), ("folds", 1), ("confirm", 0), ("replicates", 1),
            ("retries", 0), ("concurrency", 1), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name} {value}: must be at least {least}")
        for name in ("gradients", "hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name} {value}: must be more than 0")
        if not self.reduction > 1:
            raise ConfigError(f"--reduction {self.reduction:g}: must be more than 1 (3: a third goes on)")
        object.__setattr__(self, "objectives", tuple(self.objectives))
        for objective in self.objectives:
            if objective not in OBJECTIVES:
                raise ConfigError(f"--objectives {objective}: unknown{suggest(objective, OBJECTIVES)}")
        if self.objectives not in (("accuracy",), ("accuracy", "cost")):
            raise ConfigError(f"--objectives {','.join(self.objectives)}: either accuracy, or accuracy,cost")
        if self.several and self.scheduler != "none":
            raise ConfigError(
                f"--scheduler {self.scheduler}: two objectives exclude stopping early (--scheduler none): a cheap, "
                "poor trial may be on the front"
            )
        if self.sampler in ("cmaes",) and self.several:
            raise ConfigError(f"--sampler {self.sampler}: knows one objective only; take tpe, nsga2, gp, qmc or random")

    @property
    def several(self) -> bool:
        """Whether there is more than one objective."""
        return len(self.objectives) > 1

    @property
    def most(self) -> int:
        """Trials at most."""
        if self.trials is not None:
            return self.trials
        return UNBOUNDED if self.gradients or self.hours or self.sampler == "grid" else TRIALS

    def for_epochs(self, epochs: int) -> Settings:
        """With what depends on the length of a run filled in.

        Raises:
            ConfigError: a grace period as long as the run.
        """
        grace = grace_period(epochs) if self.grace is None else self.grace
        if self.grace is not None and grace >= epochs > 1 and self.scheduler != "none":
            raise ConfigError(
                f"--grace {grace}: a run has {epochs} epochs, so nothing would ever be stopped (nearest: {epochs - 1}, "
                "or --scheduler none)"
            )
        few = self.scheduler == "none" or self.most < 8
        controls = self.controls if self.controls is not None else 0 if few else max(2, min(self.most, 64) // 8)
        return dataclasses.replace(self, grace=grace, controls=controls)

    def rungs(self, epochs: int) -> list[int]:
        """Where ASHA decides."""
        if self.scheduler not in ("asha", "hyperband") or self.grace is None:
            return []
        return rungs(self.grace, self.reduction, epochs)

    def forecast(self, epochs: int, trials: int) -> Forecast:
        """What so many trials will probably be."""
        return forecast(self.scheduler, self.grace or 1, self.reduction, epochs, trials, self.controls or 0, self.seed)

    def startup(self, at_once: int) -> int:
        """Trials before a sampler's model is trusted: no fewer than run at once."""
        return max(at_once, min(10, max(4, self.most // 3)))

    def recorded(self, epochs: int) -> dict[str, Any]:
        """What the ledger's header says of them."""
        return {**dataclasses.asdict(self), "objectives": list(self.objectives), "rungs": self.rungs(epochs)}

    @classmethod
    def stored(cls, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for those of an earlier session of a study, with what is given now."""
        known = {field.name for field in dataclasses.fields(cls)}
        return {**{k: v for k, v in recorded.items() if k in known}, **given}
