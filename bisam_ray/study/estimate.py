"""What a search would cost, told before it is made."""

from __future__ import annotations

import os
from typing import Any

from ..config import ConfigError, gradients_per_step
from ..progress import clock
from ..training.launch import Measured
from .request import Request
from .sampler import GRID
from .settings import UNBOUNDED


def estimate(asked: Request, measured: Measured) -> dict[str, Any]:
    """Trials, gradients and hours of a search; see `bisam_ray.api.estimate`.

    Raises:
        ConfigError: the number of trials is not known beforehand.
    """
    how, epochs = asked.settings, asked.epochs
    trials = min(how.most, len(asked.space.grid(GRID)) if how.sampler == "grid" else how.most)
    if trials >= UNBOUNDED:
        raise ConfigError("--dry-run: give --trials; a budget of gradients or hours needs no estimate")
    found = how.forecast(epochs, trials)
    steps = epochs * measured.steps_per_epoch * how.folds
    again = 0 if how.several else min(how.confirm, trials) * how.replicates / how.folds
    at_once = how.concurrency or max(1, (os.cpu_count() or 1) // max(asked.example.scale.threads, 1))
    each = gradients_per_step(asked.example) * asked.example.data.batch_size * steps
    hours = (found.cost + again) * steps * measured.seconds_per_step / at_once / 3600
    stages = ", ".join(f"{count:.0f} to epoch {epoch}" for epoch, count in found.reach)
    told = [
        f"{trials} trials of {epochs} epochs, probably {stages}",
        f"gradients × examples: about {(found.cost + again) * each:.3g}, at most {(found.most + again) * each:.3g}",
        f"time: about {clock(3600 * hours)} with {at_once} at once ({1000 * measured.seconds_per_step:.2g} ms a step)",
    ]
    if again:
        told.insert(1, f"then the best {min(how.confirm, trials)} again, on {how.replicates} fresh draws each")
    return {
        "trials": trials,
        "reach": found.reach,
        "at_once": at_once,
        "gradients": (found.cost + again) * each,
        "most_gradients": (found.most + again) * each,
        "hours": hours,
        "told": told,
    }
