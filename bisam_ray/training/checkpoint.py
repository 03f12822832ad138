"""One file per run, written atomically: what `resume` needs to be bitwise the uninterrupted run.

Format: torch.save of a dict, read with weights_only=True.

    format    2
    config    the resolved configuration (nested dict)
    state     history: the metrics of every epoch so far; and EpochRecord.state(): epoch, model, base optimizer, radius
              policy (with its pending hypergradient), the schedule (SAMPa's gradients, a loss scaler), ρ of every step,
              best weights on val, cost so far; of a run on folds, `folds`: a list of such states, all after that epoch

Random numbers and the order of the examples are functions of (seed, step): the epoch is their whole state.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..config import Config, ConfigError, resolve

FORMAT = 2


def save(path: Path, config: Config, state: dict[str, Any]) -> None:
    """Write the checkpoint; a reader sees the old file or the new one, never a part of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".checkpoint-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, "config": config.model_dump(), "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration and the state of a checkpoint.

    Raises:
        ConfigError: no such file, cut off, or not one of ours.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # torch's restricted unpickler fails in a dozen ways on what is not its own
        raise ConfigError(f"{path}: not a readable checkpoint (cut off, or another kind of file)") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a bisam-ray checkpoint of format {FORMAT}")
    return resolve(content["config"]), content["state"]
