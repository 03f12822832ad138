"""What a search was asked for, and whether a study that is gone on with is still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Config, ConfigError, merge, resolve
from .ledger import Study
from .settings import DECIDING, UNBOUNDED, Settings
from .spaces import Space, flat

Layer = Mapping[str, Any]
SHOWN = 6  # differences in a message


@dataclass(frozen=True)
class Request:
    """A space, the layers of configuration below and above it, and the settings of the search."""

    space: Space
    files: Layer
    overrides: Layer
    settings: Settings
    example: Config
    """The configuration of one point of the space."""

    @classmethod
    def of(
        cls, space: Space | None, files: Layer, overrides: Layer, settings: Layer, like: Study | None = None
    ) -> Request:
        """A request; what it leaves out is as in the study `like`, and its layers lie over that study's.

        Raises:
            ConfigError: no space, or settings that contradict each other.
        """
        if like is not None:
            header = recorded(like)
            space = space or Space.model_validate(header["space"][0])
            files, overrides = (merged(a, b) for a, b in zip(header["layers"], (files, overrides), strict=True))
        if space is None:
            raise ConfigError("SPACE: missing")
        refuse_searched([space], overrides)
        example = resolve(files, space.fix, space.example(), overrides)
        how = Settings(**settings).for_epochs(space.epochs(example))
        return cls(space, files, overrides, how, example)

    @classmethod
    def again(
        cls, study: Study, space: Space | None, files: Layer, overrides: Layer, settings: Layer, allow_change: bool
    ) -> Request:
        """A study gone on with: settings that are not given are as they were.

        Raises:
            ConfigError: the space, the configuration, or what decides on trials is not as it was; with the differences.
        """
        before = recorded(study)["protocol"]["settings"]
        old = cls.of(None, {}, {}, Settings.stored(before, {}), like=study)
        now = cls.of(space, files, overrides, Settings.stored(before, settings), like=study)
        if not allow_change:
            refuse_changes(study.name, old.deciding(), now.deciding())
        return now

    @property
    def epochs(self) -> int:
        """Of the longest run."""
        return self.space.epochs(self.example)

    @property
    def arm(self) -> str:
        return f"{self.space.name} searched"

    @property
    def name(self) -> str:
        """The study's: equal for equal spaces and configurations."""
        return f"{self.space.name}-{digest(self.files, self.overrides, plain(self.space))}"

    def header(self, replayed: str | None = None) -> dict[str, Any]:
        """What the ledger says of it; `replayed`: the study whose curves answer in place of training."""
        most = self.settings.most
        return {
            "space": [plain(self.space)],
            "layers": [self.files, self.overrides],
            "protocol": {
                "trials": most if most < UNBOUNDED else None,
                "settings": self.settings.recorded(self.epochs),
                **({"replayed": f"{replayed}: recorded curves answered, nothing was trained"} if replayed else {}),
            },
        }

    def deciding(self) -> dict[str, Any]:
        """What may not change from one session to the next."""
        header = self.header()
        settings = {k: v for k, v in header["protocol"]["settings"].items() if k in DECIDING}
        config = self.example.model_dump(exclude_none=True)
        return {"space": header["space"][0], "config": config, **settings}


def recorded(study: Study) -> dict[str, Any]:
    """The header of a study that knows how it was made.

    Raises:
        ConfigError: it does not.
    """
    if not {"space", "layers", "protocol"} <= set(study.header):
        raise ConfigError(
            f"{study.name}: a {study.header.get('kind', 'study')} without a search that could be gone on with"
        )
    return study.header


def plain(space: Space) -> dict[str, Any]:
    return json.loads(json.dumps(space.model_dump(mode="json", exclude_none=True)))


def merged(*layers: Layer) -> dict[str, Any]:
    into: dict[str, Any] = {}
    for layer in layers:
        merge(into, layer)
    return into


def refuse_changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on under other settings than the study was begun with.

    Raises:
        ConfigError: with the differences.
    """
    changed = differences(before, now)
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ConfigError(
            f"{name}: was begun with other settings: {'; '.join(changed[:SHOWN])}{more}. Give the old ones, begin a "
            "new study, or go on with the new ones by --allow-change"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every leaf that differs, as "key: old → new"."""
    old, new = dict(leaves(before)), dict(leaves(now))
    return [
        f"{key}: {told(old.get(key))} → {told(new.get(key))}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is set."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list | tuple) and any(isinstance(item, Mapping) for item in content):
        for number, item in enumerate(content, 1):
            yield from leaves(item, f"{prefix}[{number}]")
    elif content is not None:
        yield prefix, list(content) if isinstance(content, tuple) else content


def told(value: Any) -> str:
    return "none" if value is None else str(value)


def refuse_searched(spaces: Sequence[Space], given: Layer) -> None:
    """An override of what is searched would silently do nothing, or undo the search.

    Raises:
        ConfigError: naming the key; also one that the space fixes and its conditions look at.
    """
    overridden = flat(given)
    for space in spaces:
        conditions = {on for domain in space.parameters.values() for on in domain.when or () if on in space.fixed}
        for key in overridden:
            if key in space.searched or key in conditions:
                what = "is searched" if key in space.searched else "decides what is searched"
                raise ConfigError(f"{key}: {what} in space {space.name}; leave the override out, or use another space")


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
