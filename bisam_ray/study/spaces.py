"""Search spaces: a YAML file, or a function of a trial → what to ask an Optuna trial, define-by-run; without Optuna.

name: mine
fix:    {optim.base: adamw}                                   config layers below the trial
search:
  method:       {choice: [sam, bisam-tanh]}
  optim.rho:    {log: [0.02, 2.0], prior: 0.1}                log-uniform; a good value is expected near .1
  optim.warmup: {uniform: [0, 0.5], step: 0.05}               uniform, on a grid with step
  train.epochs: {int: [10, 40], step: 10}                     integers, both ends included
  optim.mu:     {log: [1, 30], when: {method: bisam-tanh}}    searched only then; [several, values] may stand there
start:                                                        points that are tried first
  - {method: sam, optim.rho: 0.05}

A list of domains with disjoint conditions gives a key other ranges under other conditions. `function: module:function`
in place of `search` names a function of an optuna.Trial that returns config values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from ..config import Config, ConfigError, load, merge, resolve, suggest
from ..training.plugins import load_function
from .checks import check
from .domain import Domain, repaired
from .probes import Probe, every, explored

HERE = Path(__file__).resolve().parent.parent
DIRECTORIES = (HERE / "search_spaces", HERE.parent / "search_spaces")  # installed; in a checkout
UNKNOWN = object()
Alternatives = Annotated[tuple[Domain, ...], Field(min_length=1)]


class Space(BaseModel):
    """A search space; see the module's docstring.

    A point (of `start`, `grid`, `prior_point`) holds values of keys that are active together, by config
    paths; that of a function by the names of its trial's parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[\w.-]+$")
    fix: dict[str, Any] = {}
    search: dict[str, Alternatives] = {}
    start: list[dict[str, Any]] = []
    function: str | None = None

    @field_validator("search", mode="before")
    @classmethod
    def listed(cls, search: Any) -> Any:
        if not isinstance(search, Mapping):
            return search
        return {key: value if isinstance(value, list | tuple) else [value] for key, value in search.items()}

    @field_serializer("search")
    def unlisted(self, search: dict[str, tuple[Domain, ...]]) -> dict[str, Any]:
        return {key: domains[0] if len(domains) == 1 else list(domains) for key, domains in search.items()}

    @field_validator("start")
    @classmethod
    def repaired_start(cls, start: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: repaired(value) for key, value in point.items()} for point in start]

    @model_validator(mode="after")
    def one_source(self) -> Space:
        if bool(self.search) == bool(self.function):
            raise ValueError("needs either search, a mapping of config paths, or function: module:function")
        return self

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """`fix` by config paths."""
        return flat(self.fix)

    @property
    def method(self) -> str:
        return self.methods[0]

    @property
    def methods(self) -> list[str]:
        """The methods that it can suggest."""
        default = self.fixed.get("method", Config.model_fields["method"].default)
        if self.function or "method" in self.search:
            return list(dict.fromkeys(values.get("method", default) for _, values in self.runs))
        return [default]

    @property
    def searched(self) -> list[str]:
        """The config paths that it sets."""
        return list(self.search or dict.fromkeys(key for _, values in self.runs for key in values))

    @cached_property
    def runs(self) -> list[tuple[dict[str, Domain], dict[str, Any]]]:
        """(what it asks for, what it suggests), with every parameter at each of its ends at least once."""
        return [(probe.domains, values) for probe, values in explored(self.suggest)]

    @property
    def parameters(self) -> dict[str, Domain]:
        """The domains by the names under which Optuna knows them."""
        if self.function:
            return {name: domain for domains, _ in self.runs for name, domain in domains.items()}
        return {name: domain for key in self.order for name, domain in self.alternatives(key)}

    def alternatives(self, key: str) -> Iterator[tuple[str, Domain]]:
        """A key's domains with a name for each: one name may only ever have one range."""
        for number, domain in enumerate(self.search[key]):
            conditions = {on: "+".join(map(str, values)) for on, values in (domain.when or {}).items()}
            if len(conditions) > 1:
                conditions = {on: f"{on}={values}" for on, values in conditions.items()}
            yield f"{key}@{','.join(conditions.values())}" if number else key, domain

    @cached_property
    def order(self) -> list[str]:
        """The keys as in the file, but each behind those that its conditions name.

        Raises:
            ConfigError: conditions that go round in a circle.
        """
        needs = {key: {on for domain in of for on in domain.when or ()} for key, of in self.search.items()}
        order: list[str] = []
        while waiting := [key for key in self.search if key not in order]:
            ready = next((key for key in waiting if not needs[key] & set(waiting)), None)
            if ready is None:
                circle = [waiting[0]]
                while circle[-1] not in circle[:-1]:
                    circle.append(next(key for key in waiting if key in needs[circle[-1]]))
                circle = circle[circle.index(circle[-1]) :]
                raise ConfigError(f"search: {circle[0]}: when: depends on itself: {' → '.join(circle)}")
            order.append(ready)
        return order

    def walk(self, choose: Callable[[str, str, Domain], Any]) -> Iterator[tuple[str, str, Domain, Any]]:
        """(key, name, domain, value) of the active keys; `choose` gives a value, or UNKNOWN: no condition holds."""
        known = dict(self.fixed)
        for key in self.order:
            for name, domain in self.alternatives(key):
                if domain.holds(known):
                    value = known[key] = choose(key, name, domain)
                    yield key, name, domain, value
                    break

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Config values of the active keys, asked of an Optuna trial, or of anything that answers like one.

        Raises:
            ConfigError: a function that does not return config values.
        """
        if self.function is None:
            return {key: value for key, _, _, value in self.walk(lambda _, name, domain: domain.suggest(trial, name))}
        values = load_function("space", self.function)(trial)
        if not isinstance(values, Mapping):
            raise ConfigError(f"{self.function}: returned {values!r:.40}, expected a mapping of config values")
        try:
            return flat(values)
        except ConfigError as error:
            raise ConfigError(f"{self.function}: {error}") from None

    def domains_at(self, point: Mapping[str, Any]) -> dict[str, Domain]:
        """The domains of a point's active keys, whether it has values for them or not."""
        if self.function is None:
            return {key: domain for key, _, domain, _ in self.walk(lambda key, *_: point.get(key, UNKNOWN))}
        probe = Probe(lambda name, domain: point.get(name, domain.ends()[0]))
        self.suggest(probe)
        return probe.domains

    def active(self, values: Mapping[str, Any]) -> list[str]:
        """The keys that are searched at a point, in order."""
        return list(self.domains_at(values))

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A point by the names under which Optuna knows its keys, e.g. for `study.enqueue_trial`."""
        if self.function:
            return dict(values)
        found = self.walk(lambda key, *_: values.get(key, UNKNOWN))
        return {name: value for _, name, _, value in found if value is not UNKNOWN}

    def prior_point(self, rng: random.Random) -> dict[str, Any]:
        """A point near what is expected: values of the active keys that have a prior."""
        if self.function:
            return {}
        found = self.walk(lambda key, name, domain: UNKNOWN if domain.prior is None else domain.around(rng))
        return {key: value for key, _, _, value in found if value is not UNKNOWN}

    def grid(self, points: int = 5) -> list[dict[str, Any]]:
        """Every distinct point of a grid: all values of choices and steps, `points` of other domains, ends included."""
        found = [
            params if self.function else values
            for params, values in every(self.suggest, lambda _, domain: domain.grid(points))
        ]
        return list({repr(point): point for point in found}.values())

    def example(self) -> dict[str, Any]:
        """Config values of one valid point: the first start point, completed, or else of first ends."""
        return self.complete(self.start[0] if self.start else {})

    def epochs(self, example: Config) -> int:
        """The length of the longest run: that of the example, unless lengths are searched."""
        found = [values["train.epochs"] for _, values in self.runs if "train.epochs" in values]
        return max(found, default=example.train.epochs)

    def complete(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point's config values, with first ends where it has none."""
        if self.function is None:
            found = self.walk(lambda key, _, domain: point.get(key, domain.ends()[0]))
            return {key: value for key, _, _, value in found}
        return self.suggest(Probe(lambda name, domain: point.get(name, domain.ends()[0])))


def flat(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A config layer by dotted paths; unknown ones are refused."""
    merged: dict[str, Any] = {}
    merge(merged, layer)
    found = {}
    for key, value in merged.items():
        found.update({f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value})
    return found


def find(name: str | Path) -> Path:
    """A space's file: a path, or the name of one that ships with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.exists():
        return path
    candidates = [d / f"{path.stem}.yaml" for d in DIRECTORIES]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        known = sorted({p.stem for d in DIRECTORIES if d.is_dir() for p in d.glob("*.yaml")})
        raise ConfigError(f"{name}: no such search space{suggest(path.stem, known)}")
    return found


def read(name: str | Path) -> Space:
    """Load and check a space: a file, the name of one that ships with the package, or `module:function`.

    Raises:
        ConfigError: in one line, naming the key.
    """
    function = str(name) if ":" in str(name) and not Path(name).exists() else None
    path = Path(name) if function else find(name)
    content: dict[str, Any] = {"function": function} if function else load(path)
    content.setdefault("name", function.rpartition(":")[2] if function else path.stem)
    try:
        space = Space.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {told(error)}") from None
    check(space, path)
    return space


def told(error: ValidationError) -> str:
    """The first thing pydantic found wrong, in one line."""
    first = error.errors()[0]
    where = ": ".join(part for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        fields = (Domain if len(first["loc"]) > 1 else Space).model_fields
        known = [field.alias or name for name, field in fields.items()]
        return f"{where}: unknown key{suggest(str(first['loc'][-1]), known)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] != "value_error":
        message = f"{first['input']!r:.40}: {message[0].lower()}{message[1:]}"
    return f"{where}: {message}" if where else message


def at_border(space: Space, suggested: Mapping[str, Any], margin: float = 0.05) -> list[str]:
    """The keys whose value lies within `margin` of an end of their range that could lie further out: the best may be
    there. A function's ranges belong to its parameters, not to config paths; nothing is said of them."""
    if space.function:
        return []
    found = []
    for key, domain in space.domains_at(suggested).items():
        if key not in suggested or domain.choice is not None:
            continue
        share = domain.share(suggested[key])
        if min(share, 1 - share) < margin and allowed(space, {**suggested, key: domain.beyond(share)}):
            found.append(key)
    return found


def allowed(space: Space, values: Mapping[str, Any]) -> bool:
    try:
        resolve(space.fix, values)
    except ConfigError:
        return False
    return True
