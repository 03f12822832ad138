"""What must hold of a search space before anything runs; a mistake is a ConfigError of one line that names the key."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConfigError, paths, resolve, suggest
from .domain import Domain, short
from .probes import every

if TYPE_CHECKING:
    from .spaces import Space


def check(space: Space, path: Path) -> None:
    """Keys and conditions make sense; every end of every domain and every start point is a valid configuration.

    Raises:
        ConfigError: in one line.
    """
    try:
        if space.function:
            ranges_are_constant(space)
        else:
            keys_exist(space)
            conditions_can_hold(space)
        points = ends(space)
        if not any(points):
            raise ConfigError("search: nothing is ever searched")
        for number, point in enumerate(space.start, 1):
            belongs(space, point, f"start point {number}")
            points.append(space.complete(point))
        for values in points:
            resolve(space.fix, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:  # of a function of the user's own
        if not space.function:
            raise
        lines = str(error).strip().splitlines() or [""]
        raise ConfigError(f"{path}: {type(error).__name__}: {lines[0]}") from None


def ends(space: Space) -> list[dict[str, Any]]:
    """Config values at every end of every domain; for a file, under every combination of its conditions' keys."""
    if space.function:
        return [values for _, values in space.runs]
    deciding = conditioning(space)
    points = []
    for _, base in every(
        space.suggest, lambda name, d: d.ends() if name.partition("@")[0] in deciding else d.ends()[:1]
    ):
        domains = space.domains_at(base)
        points += [{**base, key: end} for key in base if key not in deciding for end in domains[key].ends()] or [base]
    return points


def conditioning(space: Space) -> set[str]:
    """The searched keys on which others depend."""
    return {on for domains in space.search.values() for domain in domains for on in domain.when or ()} & set(
        space.search
    )


def keys_exist(space: Space) -> None:
    known = set(paths())
    for key in space.search:
        if key not in known:
            raise ConfigError(f"search: {key}: no config path{suggest(key, known)}")


def conditions_can_hold(space: Space) -> None:
    """Conditions name choices, or what is fixed, and alternatives never hold together (circles: `Space.order`)."""
    for key, domains in space.search.items():
        for on, values in ((on, v) for domain in domains for on, v in (domain.when or {}).items()):
            if on in space.search:
                choices = [d.choice for d in space.search[on]]
                if None in choices:
                    raise ConfigError(f"search: {key}: when: {on} is searched, but not as a choice")
                known = [value for choice in choices for value in choice or ()]
                for value in values:
                    if value not in known:
                        near = suggest(short(value), map(short, known))
                        raise ConfigError(f"search: {key}: when: {on}={short(value)}: not one of its choices{near}")
            elif on not in space.fixed:
                known = [*space.search, *space.fixed]
                raise ConfigError(f"search: {key}: when: {on}: neither searched nor fixed{suggest(on, known)}")
        for one, other in itertools.combinations(domains, 2):
            if not disjoint(one.when or {}, other.when or {}):
                raise ConfigError(
                    f"search: {key}: {one.text} and {other.text} may hold together; "
                    "give each a `when` with other values of the same key"
                )


def disjoint(one: Mapping[str, list[Any]], other: Mapping[str, list[Any]]) -> bool:
    return any(key in other and not any(value in other[key] for value in values) for key, values in one.items())


def ranges_are_constant(space: Space) -> None:
    """Optuna's rule: a parameter has the same range in every trial."""
    known: dict[str, Domain] = {}
    for domains, _ in space.runs:
        for name, domain in domains.items():
            if known.setdefault(name, domain) != domain:
                raise ConfigError(
                    f"{name}: {known[name].text} in one trial, {domain.text} in another; give each range its own name"
                )


def belongs(space: Space, point: Mapping[str, Any], where: str) -> None:
    """A start point holds values of active keys, within their domains."""
    active = space.domains_at(point)
    known = space.parameters if space.function else space.search
    for key, value in point.items():
        if key not in known:
            raise ConfigError(f"{where}: {key} is not searched{suggest(key, known)}")
        if key not in active:
            told = "" if space.function else ", only when " + ", or when ".join(d.condition for d in space.search[key])
            raise ConfigError(f"{where}: {key} is not searched there{told}")
        if problem := active[key].outside(value):
            raise ConfigError(f"{where}: {key}={value}: {problem}")
