"""Search spaces: a YAML file → a validated model → Ray Tune domains.

name: rho
fix:    {method: sam}                              config layers below the trial
search:
  optim.rho:    {log: [0.02, 2.0]}                 log-uniform
  optim.warmup: {uniform: [0, 0.5], step: 0.05}    uniform, on a grid with step
  train.epochs: {int: [10, 40], step: 10}          integers, both ends included
  optim.alpha:  {choice: [0.05, 0.1, 0.2]}
start:                                             points that are tried first
  - {optim.rho: 0.05, optim.warmup: 0, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config import Config, ConfigError, load, paths, resolve, suggest

HERE = Path(__file__).resolve().parent.parent
DIRECTORIES = (HERE / "search_spaces", HERE.parent / "search_spaces")  # installed; in a checkout


class Domain(BaseModel):
    """The values of one key: exactly one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)
    log: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    whole: tuple[int, int] | None = Field(None, alias="int")
    choice: list[Any] | None = Field(None, min_length=1)
    step: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def one_kind(self) -> Domain:
        given = {"log": self.log, "uniform": self.uniform, "int": self.whole, "choice": self.choice}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of log, uniform, int, choice; has {', '.join(kinds) or 'none'}")
        kind = kinds[0]
        if kind != "choice":
            low, high = self.ends()
            if low >= high or (kind == "log" and low <= 0):
                raise ValueError(f"{kind}: [{low}, {high}]: needs {'0 < ' if kind == 'log' else ''}low < high")
        elif self.step is not None:
            raise ValueError("step: a choice has none")
        return self

    def ends(self) -> list[Any]:
        """The extreme values, to be tried against the configuration before anything runs."""
        return list(self.choice or self.log or self.uniform or self.whole or [])

    def tune(self) -> Any:
        """The Ray Tune domain."""
        from ray import tune

        if self.choice is not None:
            return tune.choice(self.choice)
        if self.whole is not None:
            low, high = self.whole
            return tune.qrandint(low, high, round(self.step)) if self.step else tune.randint(low, high + 1)
        if self.log is not None:
            return tune.qloguniform(*self.log, self.step) if self.step else tune.loguniform(*self.log)
        assert self.uniform is not None
        return tune.quniform(*self.uniform, self.step) if self.step else tune.uniform(*self.uniform)


class Space(BaseModel):
    """A search space; see the module's docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[\w.-]+$")
    fix: dict[str, Any] = {}
    search: dict[str, Domain] = Field(min_length=1)
    start: list[dict[str, Any]] = []

    @property
    def method(self) -> str:
        return self.fix.get("method", Config.model_fields["method"].default)


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
    """Load and check a space: its keys are config paths, its ends and start points make valid configurations.

    Raises:
        ConfigError: in one line, naming the key.
    """
    path = find(name)
    content = load(path)
    content.setdefault("name", path.stem)
    try:
        space = Space.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ("log", "uniform", "int", "choice", "step") if len(first["loc"]) > 1 else tuple(Space.model_fields)
            raise ConfigError(f"{path}: {where}: unknown key{suggest(str(first['loc'][-1]), known)}") from None
        raise ConfigError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    known_paths = set(paths())
    for key in space.search:
        if key not in known_paths:
            raise ConfigError(f"{path}: search: {key}: no config path{suggest(key, known_paths)}")
    check(space, path)
    return space


def check(space: Space, path: Path) -> None:
    """Resolve one configuration for every end of every domain and for every start point."""
    anywhere = {key: domain.ends()[0] for key, domain in space.search.items()}
    points = [{**anywhere, key: end} for key, domain in space.search.items() for end in domain.ends()]
    for number, start in enumerate(space.start, 1):
        for key in start:
            if key not in space.search:
                raise ConfigError(f"{path}: start point {number}: {key} is not searched{suggest(key, space.search)}")
        points.append({**anywhere, **start})
    for point in points:
        try:
            resolve(space.fix, point)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def domains(space: Space) -> dict[str, Any]:
    """Ray Tune's param_space."""
    return {key: domain.tune() for key, domain in space.search.items()}


def at_border(space: Space, suggested: Mapping[str, Any], margin: float = 0.05) -> list[str]:
    """The keys whose suggested value lies within `margin` of its range's end: the best may be outside."""
    import math

    found = []
    for key, value in suggested.items():
        domain = space.search.get(key)
        ends = domain and (domain.log or domain.uniform)
        if not domain or not ends:
            continue
        scale = math.log if domain.log else float
        low, high, at = scale(ends[0]), scale(ends[1]), scale(value)
        if min(at - low, high - at) < margin * (high - low):
            found.append(key)
    return found
