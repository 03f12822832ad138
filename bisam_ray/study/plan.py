"""What a comparison will do: its arms and their configurations, how it searches, how much that will cost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ASCENT_ONLY, PRESETS, Config, ConfigError, gradients_per_step, resolve, suggest
from ..progress import clock
from ..training.launch import Measured
from .arms import KINDS, METHODS, Arm, arms_of, kinds_of, space_of
from .ledger import Study
from .request import Layer, digest, merged, recorded, refuse_changes, refuse_searched
from .settings import DECIDING, Settings
from .spaces import Space, flat, read

SEEDS = 5
PARAMETERS = ("rho", "warmup", "radius", "rho_schedule", "mu", "alpha", "beta", "gamma", "lam")  # of methods
OWN = {"method", *(f"optim.{key}" for key in PARAMETERS)}
METHOD = {f"optim.{key}" for preset in PRESETS.values() for key in preset} - OWN  # what tells methods apart
ASCENT = {f"optim.{key}" for key in ASCENT_ONLY}
OF_SEARCH = {"confirm": "", "replicates": " (fresh draws: seeds)", "objectives": "", "folds": ""}


@dataclass(frozen=True)
class Plan:
    """The arms, their configurations before a search fills in its values, and the settings of the searches."""

    spaces: tuple[Space, ...]
    arms: list[Arm]
    kinds: tuple[str, ...]
    also: tuple[str, ...]
    files: Layer
    overrides: Layer
    base: dict[str, Config]
    settings: Settings
    seeds: int

    @classmethod
    def of(
        cls,
        spaces: Sequence[str | Path],
        files: Layer,
        overrides: Layer,
        seeds: int | None,
        kinds: Sequence[str] | None,
        also: Sequence[str] | None,
        settings: Layer,
        like: Study | None = None,
    ) -> Plan:
        """A plan; what is not given is as in the study `like`, and the layers lie over that study's.

        Raises:
            ConfigError: an unknown method, space or kind of arm, configurations that contradict themselves, or arms
                that would not differ in what they are named for, or in more than that.
        """
        for name, instead in OF_SEARCH.items():
            if name in settings:
                raise ConfigError(f"{name}={settings[name]}: of a search, not of a comparison{instead}")
        chosen = [read(space_of(str(space))) for space in spaces]
        if like is not None:
            header, protocol = recorded(like), recorded(like)["protocol"]
            chosen = chosen or [Space.model_validate(content) for content in header["space"]]
            files, overrides = (merged(a, b) for a, b in zip(header["layers"], (files, overrides), strict=True))
            settings = Settings.stored({**protocol["settings"], "trials": protocol["trials"]}, settings)
            seeds = protocol["replicates"] if seeds is None else seeds
            kinds = kinds or protocol.get("kinds")
            also = protocol["also"] if also is None else also
        chosen = chosen or [read(space_of(method)) for method in METHODS]
        seeds = SEEDS if seeds is None else seeds
        if seeds < 1:
            raise ConfigError(f"--seeds {seeds}: must be at least 1")
        for method in also or ():
            if method not in PRESETS:
                raise ConfigError(f"--also {method}: unknown method{suggest(method, PRESETS)}")
        made = kinds_of(kinds) if kinds else KINDS
        arms = arms_of(chosen, also or (), made)
        refuse_searched([space for space in chosen if any(arm.space is space for arm in arms)], overrides)
        refuse_own(arms, overrides)
        files = merged(files, shared(chosen))
        base = configurations(arms, files, overrides)
        how = Settings(**{"trials": 16, "confirm": 0, **settings})  # replicates confirm what was found
        return cls(tuple(chosen), arms, made, tuple(also or ()), files, overrides, base, how, seeds)

    @property
    def example(self) -> Config:
        """One of the configurations: data, network and length are the same in all."""
        return next(iter(self.base.values()))

    @property
    def name(self) -> str:
        """The study's: equal for equal spaces, arms and configurations."""
        names = [space.name for space in self.spaces]
        known = [space_of(method) for method in METHODS]
        named = "methods" if names == known else "-".join(names)
        kinds = () if self.kinds == KINDS else self.kinds
        return f"{named}-{digest(self.files, self.overrides, self.contents, kinds, self.also)}"

    def layers(self, arm: Arm, values: Layer) -> tuple[Layer, ...]:
        """An arm's layers of configuration, with `values` of what it searches."""
        return layers(arm, self.files, values, self.overrides)

    @property
    def contents(self) -> list[dict[str, Any]]:
        return [space.model_dump(mode="json", exclude_none=True) for space in self.spaces]

    def header(self, text: str) -> dict[str, Any]:
        """What the ledger says of it."""
        epochs = self.example.train.epochs
        return {
            "space": self.contents,
            "layers": [self.files, self.overrides],
            "protocol": {
                "trials": self.settings.most,
                "replicates": self.seeds,
                "also": list(self.also),
                "kinds": list(self.kinds),
                "arms": [arm.name for arm in self.arms],
                "settings": self.settings.for_epochs(epochs).recorded(epochs),
                "text": text,
            },
        }

    def refuse_changes(self, study: Study) -> None:
        """Raise ConfigError where a study that is gone on with was begun otherwise, with the differences."""
        before, now = recorded(study), json.loads(json.dumps(self.header(""), default=str))
        old, new = ({key: header.get(key) for key in ("space", "layers")} for header in (before, now))
        for header, compared in ((before, old), (now, new)):
            protocol = header["protocol"]
            compared["arms"] = protocol.get("arms")
            compared["settings"] = {key: protocol["settings"].get(key) for key in DECIDING}
        refuse_changes(study.name, old, new)
        trials, asked = before["protocol"]["trials"], self.settings.most
        if asked != trials and study.of(phase="final"):
            raise ConfigError(
                f"--trials {asked}: {study.name} has replicates of what {trials} trials found (nearest: {trials}; or "
                "begin a new study)"
            )

    def forecast(self) -> Forecast:
        """What it will probably cost: searches as random trials would go; the rest follows from the protocol."""
        epochs = self.example.train.epochs
        trials = self.settings.for_epochs(epochs).forecast(epochs, min(self.settings.most, 1000)).cost
        cost = {arm.name: run_cost(self.base[arm.name]) for arm in self.arms}
        searched = [cost[arm.name] for arm in self.arms if arm.space is not None]
        budget = max(((trials + 1) * each for each in searched), default=3 * max(cost.values()))
        finals = self.seeds * (sum(searched) + budget * (len(self.arms) - len(searched)))
        return Forecast(
            len(self.arms), self.seeds, budget, trials, trials * sum(searched) + finals, finals, 2.0 * epochs
        )

    def told(self, measured: Measured) -> dict[str, Any]:
        """The forecast in gradients and hours: arms, seeds, budget and gradients (gradient evaluations × examples),
        hours, at_once; and `told`, the same in lines of text.

        Args:
            measured: what a step of `example` costs here.
        """
        found, example = self.forecast(), self.example
        steps = measured.steps_per_epoch
        examples = steps * example.data.batch_size
        at_once = self.settings.concurrency or max(1, (os.cpu_count() or 1) // max(example.scale.threads, 1))
        seconds = found.total * steps * measured.seconds_per_step / gradients_per_step(example) / at_once
        told = [
            found.told(),
            f"gradients × examples: about {found.budget * examples:.3g} an arm and draw, "
            f"{found.total * examples:.3g} in all",
            f"time: about {clock(seconds)} with {at_once} at once",
            f"arms: {', '.join(arm.name for arm in self.arms)}",
        ]
        return {
            "arms": [arm.name for arm in self.arms],
            "seeds": self.seeds,
            "budget": found.budget * examples,
            "gradients": found.total * examples,
            "hours": seconds / 3600,
            "at_once": at_once,
            "told": told,
        }


@dataclass(frozen=True)
class Forecast:
    """What a comparison will probably cost, in gradient evaluations per step × epochs; `unit` is one run of SAM.

    `trials` is the cost of a search in full runs of its method; `finals` is the part of the replicates in `total`.
    """

    arms: int
    seeds: int
    budget: float
    trials: float
    total: float
    finals: float
    unit: float

    def told(self) -> str:
        """In a line."""
        return (
            f"{self.arms} arms on {self.seeds} draws: budget C of each about {self.budget / self.unit:.1f} full runs "
            f"of SAM, {self.total / self.unit:.0f} runs in all"
        )


def configurations(arms: Sequence[Arm], files: Layer, overrides: Layer) -> dict[str, Config]:
    """Every arm's configuration, before anything runs: what contradicts itself is refused now."""
    configs = {}
    for arm in arms:
        try:
            configs[arm.name] = resolve(*layers(arm, files, {}, overrides))
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from None
    return configs


def layers(arm: Arm, files: Layer, values: Layer, overrides: Layer) -> tuple[Layer, ...]:
    """An arm's layers of configuration; what is said of ascents does not concern one that makes none."""
    found = (files, arm.layer, values, overrides)
    if arm.policy != "none":
        return found
    return tuple({key: value for key, value in flat(layer).items() if key not in ASCENT} for layer in found)


def shared(spaces: Sequence[Space]) -> dict[str, Any]:
    """What spaces fix beside a method and its parameters: it holds for every arm, or unlike things would be compared.

    Raises:
        ConfigError: two spaces disagree, or one fixes what makes another method of its own.
    """
    found: dict[str, Any] = {}
    for space in spaces:
        for key, value in space.fixed.items():
            if key in METHOD:
                raise ConfigError(
                    f"space {space.name}: fix: {key}={value}: makes another method of {space.method}, which its other "
                    f"arms would not be (nearest: bisam-ray search {space.name})"
                )
            if key not in OWN and found.setdefault(key, value) != value:
                raise ConfigError(
                    f"space {space.name}: fix: {key}={value}: holds for every arm, and another space fixes {found[key]}"
                )
    return found


def refuse_own(arms: Sequence[Arm], overrides: Layer) -> None:
    """An override of what an arm is would make the same of several arms.

    Raises:
        ConfigError: naming the key and the arm.
    """
    given = flat(overrides)
    for arm in arms:
        for key in given.keys() & flat(arm.layer).keys() if arm.space is None else ():
            instead = "methods are named without method=" if key == "method" else "leave it out, or the arm (--arms)"
            raise ConfigError(f"{key}={given[key]}: arm {arm.name} sets it itself; {instead}")


def run_cost(config: Config) -> float:
    """Of one run, in gradient evaluations per step × epochs: steps and batches are the same for every arm."""
    return gradients_per_step(config) * config.train.epochs
