"""The values of one key of a search space: kind and range, when it is searched, where a good one is expected."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..config import suggest as nearest_word

SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def repaired(value: Any) -> Any:
    """PyYAML reads `1e-3` as a string; no configuration field takes such a word."""
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


class Domain(BaseModel):
    """One kind of log, uniform, int and choice; where it makes sense a `step`, a `prior`, and a condition `when`."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, allow_inf_nan=False)
    log: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    whole: tuple[int, int] | None = Field(None, alias="int")
    choice: list[Any] | None = Field(None, min_length=1)
    step: float | None = Field(None, gt=0)
    when: dict[str, list[Any]] | None = None
    """Searched only if each of these keys has one of these values."""
    prior: Any = None
    """Where a good value is expected."""

    @field_validator("choice")
    @classmethod
    def plain_values(cls, choice: list[Any] | None) -> list[Any] | None:
        if choice is None:
            return None
        choice = [repaired(value) for value in choice]
        for at, value in enumerate(choice):
            if not (value is None or isinstance(value, bool | int | float | str)) or value != value:
                raise ValueError(f"choice: {value!r}: expected a word, a number, true, false or null")
            if value in choice[:at]:
                raise ValueError(f"choice: {value!r} is there twice")
        return choice

    @field_validator("when", mode="before")
    @classmethod
    def values_of_conditions(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        listed = {key: list(v) if isinstance(v, list | tuple) else [v] for key, v in when.items()}
        if empty := [key for key, values in listed.items() if not values]:
            raise ValueError(f"when: {empty[0]}: no value")
        return {key: [repaired(value) for value in values] for key, values in listed.items()}

    @field_validator("prior", mode="before")
    @classmethod
    def number_of_prior(cls, prior: Any) -> Any:
        return repaired(prior)

    @model_validator(mode="after")
    def one_kind(self) -> Domain:
        given = {"log": self.log, "uniform": self.uniform, "int": self.whole, "choice": self.choice}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of log, uniform, int, choice; has {', '.join(kinds) or 'none'}")
        if self.choice is None:
            low, high = self.ends()
            if low >= high or (self.log and low <= 0):
                raise ValueError(f"{self.kind}: [{low}, {high}]: needs {'0 < ' if self.log else ''}low < high")
        if self.step is not None:
            self.check_step(self.step)
        if self.prior is not None and (told := self.outside(self.prior)):
            raise ValueError(f"prior={self.prior}: {told}")
        return self

    def check_step(self, step: float) -> None:
        if self.choice is not None or self.log:
            raise ValueError(f"step={step:g}: a {self.kind} has none")
        if self.whole and not step.is_integer():
            raise ValueError(f"step={step:g}: integers need a whole one")
        low, high = self.ends()
        steps = (high - low) / step
        if abs(steps - round(steps)) > 1e-8:
            end = low + max(1, math.floor(steps)) * step
            raise ValueError(f"step={step:g}: does not lead from {low:g} to {high:g} (nearest end: {end:g})")

    @property
    def kind(self) -> str:
        return "log" if self.log else "uniform" if self.uniform else "int" if self.whole else "choice"

    @property
    def text(self) -> str:
        """The values on a terminal."""
        if self.choice is not None:
            return f"choice [{', '.join(short(value) for value in self.choice)}]"
        low, high = self.ends()
        return f"{self.kind} [{low:g}, {high:g}]" + (f" step {self.step:g}" if self.step else "")

    @property
    def condition(self) -> str:
        """ "method = sam, asam"; empty if there is none."""
        return " and ".join(f"{key} = {', '.join(map(short, v))}" for key, v in (self.when or {}).items())

    def holds(self, known: Mapping[str, Any]) -> bool:
        """Whether the condition does; an unknown key fulfils none."""
        return all(key in known and known[key] in values for key, values in (self.when or {}).items())

    def ends(self) -> Sequence[Any]:
        """The extreme values, all of a choice: to be tried against the configuration before anything runs."""
        return self.choice or self.log or self.uniform or self.whole or ()

    def suggest(self, trial: Any, name: str) -> Any:
        """Ask a trial of Optuna's for a value."""
        if self.choice is not None:
            return trial.suggest_categorical(name, list(self.choice))
        low, high = self.ends()
        if self.whole:
            return trial.suggest_int(name, low, high, step=int(self.step or 1))
        return self.nearest(trial.suggest_float(name, low, high, step=self.step, log=self.log is not None))

    def outside(self, value: Any) -> str | None:
        """Why a value does not belong here, and the nearest that does; None if it does."""
        if self.choice is not None:
            return (
                None if value in self.choice else f"not of {self.text}{nearest_word(str(value), map(str, self.choice))}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"not a number, as {self.text} needs"
        nearest = self.nearest(value)
        return None if math.isclose(nearest, value, abs_tol=1e-12) else f"not of {self.text} (nearest: {nearest:g})"

    def nearest(self, value: float) -> float:
        """The nearest number of the range, on the grid if there is a step: .15, not .15000000000000002."""
        low, high = self.ends()
        value = min(max(value, low), high)
        if self.whole:
            step = int(self.step or 1)
            return int(low + round((value - low) / step) * step)
        return float(f"{low + round((value - low) / self.step) * self.step:.12g}") if self.step else value

    def share(self, value: float) -> float:
        """Where in the range a number lies, on the domain's own scale: 0 at the lower end, 1 at the upper."""
        low, high = self.ends()
        return math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)

    def at(self, share: float) -> float:
        """The number at a share of the range."""
        low, high = self.ends()
        if share in (0, 1):
            return high if share else low
        return self.nearest(self.scaled(share))

    def scaled(self, share: float) -> float:
        """The number at a share of the range, which may be below 0 or above 1; not rounded."""
        low, high = self.ends()
        return low * (high / low) ** share if self.log else low + share * (high - low)

    def beyond(self, share: float) -> float:
        """A number just outside the end that is nearer to a share of the range."""
        step, low_or_high = int(self.step or 1), self.ends()[share > 0.5]
        if self.whole:
            return low_or_high + (step if share > 0.5 else -step)
        return self.scaled(1.05 if share > 0.5 else -0.05)

    def grid(self, points: int) -> list[Any]:
        """All values of a choice or a step; integers if they are at most `points`; else so many, ends included."""
        if self.choice is not None:
            return list(self.choice)
        low, high = self.ends()
        steps = round((high - low) / self.step) if self.step else high - low if self.whole else math.inf
        if self.step or steps < points:
            return [self.at(step / steps) for step in range(int(steps) + 1)]
        return [self.at(step / (points - 1)) for step in range(points)] if points > 1 else [self.at(0.5)]

    def sample(self, rng: random.Random) -> Any:
        """A value drawn uniformly on the domain's scale."""
        if self.whole:
            low, high = self.whole
            return rng.randrange(low, high + 1, int(self.step or 1))
        if self.choice is not None or self.step:
            return rng.choice(self.grid(0))
        return self.at(rng.random())

    def around(self, rng: random.Random) -> Any:
        """A value near the prior.

        A number is drawn from a normal distribution on the domain's scale, truncated to the range, whose standard
        deviation is a sixth of it; of a choice, the prior with probability ½, else any.
        """
        if self.choice is not None:
            return self.prior if rng.random() < 0.5 else rng.choice(self.choice)
        while not 0 <= (share := rng.gauss(self.share(self.prior), 1 / 6)) <= 1:
            pass
        return self.at(share)


def short(value: Any) -> str:
    """A value in few characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)
