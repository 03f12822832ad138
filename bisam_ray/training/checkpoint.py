"""One file or object per run, written atomically: what `resume` needs to be bitwise the uninterrupted run.

Format: torch.save of a dict, read with weights_only=True.

    format    3
    config    the resolved configuration (nested dict)
    state     history: the metrics of every epoch so far; and EpochRecord.state(): epoch, step, sums of the metrics of
              the epoch under way, model, base optimizer, radius policy (with its pending hypergradient), the schedule
              (SAMPa's gradients, a loss scaler), ρ of every step, best weights on val, cost so far; of a run on folds,
              `folds`: a list of such states, all after that epoch

Random numbers and the order of the examples are functions of (seed, step): the step is their whole state.

A place is a path or the URL of an object (objects.py). Beside a file lies its predecessor, `<name>.previous`: whatever
happens to the newest one (a disk that lies about what it has written), the one before it is there.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError, resolve
from . import objects

FORMAT = 3
Place = Path | str


class NotSaved(RuntimeError):
    """The storage takes nothing more; what it took before is still there."""


class Missing(ConfigError):
    """There is no such checkpoint."""


class Unreadable(ConfigError):
    """Cut off, or never a checkpoint."""


def save(place: Place, config: Config, state: dict[str, Any], last: bool = False) -> None:
    """Write the checkpoint; a reader sees the old one or the new one, never a part of either.

    The last one of a run leaves no predecessor beside it.

    Raises:
        NotSaved: the disk is full, or the object store has been away for too long.
    """
    try:
        write(place, config, state, last)
    except OSError as error:
        why = error.strerror or objects.told(error)
        raise NotSaved(f"{place}: not saved ({why}); mend that, then go on with --resume: the rest is kept") from error


def copied(state: Any) -> Any:
    """The same numbers in the memory of this process, which no later step changes."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.detach().clone() if state.device.type == "cpu" else state.detach().cpu()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state


def write(place: Place, config: Config, state: dict[str, Any], last: bool) -> None:
    import torch

    content = {"format": FORMAT, "config": config.model_dump(), "state": state}
    if isinstance(place, str):
        stream = io.BytesIO()
        torch.save(content, stream)
        objects.write(place, stream.getbuffer())
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=".checkpoint-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            os.replace(place, previous(place))
        os.replace(name, place)
        if last:
            previous(place).unlink(missing_ok=True)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def place(named: str | Path) -> Place:
    """The place that a person named."""
    return str(named) if objects.is_url(named) else Path(named)


def previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def exists(place: Place) -> bool:
    if isinstance(place, str):
        return objects.exists(place)
    return place.exists() or previous(place).exists()


def remove(place: Place) -> None:
    """Remove a checkpoint, if there is one."""
    if isinstance(place, str):
        objects.remove(place)
    else:
        place.unlink(missing_ok=True)
        previous(place).unlink(missing_ok=True)


def load(place: Place) -> tuple[Config, dict[str, Any]]:
    """The configuration and the state of a checkpoint.

    Raises:
        ConfigError: no such checkpoint, cut off, or not one of ours.
    """
    import torch

    source: Any = place
    if isinstance(place, str):
        try:
            source = io.BytesIO(objects.read(place))
        except FileNotFoundError:
            raise Missing(f"{place}: no such checkpoint") from None
    elif not place.is_file():
        raise Missing(f"{place}: no such checkpoint")
    try:
        content = torch.load(source, weights_only=True, map_location="cpu")
    except Exception:  # torch's restricted unpickler fails in a dozen ways on what is not its own
        raise Unreadable(f"{place}: not a readable checkpoint (cut off, or another kind of file)") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"{place}: not a bisam-ray checkpoint of format {FORMAT}")
    return resolve(content["config"]), content["state"]


def last_good(place: Place) -> tuple[Config, dict[str, Any]] | None:
    """What to continue from: the checkpoint, else its predecessor, else None; what is unreadable is told on stderr."""
    candidates: list[Place] = [place] if isinstance(place, str) else [p for p in (place, previous(place)) if p.exists()]
    for candidate, before in zip_longest(candidates, candidates[1:]):
        try:
            return load(candidate)
        except Missing:
            return None
        except Unreadable as error:
            where = "the one before it" if before else "the start"
            print(f"{error}; going on from {where}", file=sys.stderr, flush=True)
    return None
