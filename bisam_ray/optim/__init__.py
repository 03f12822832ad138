"""What a step is: sharpness-aware training with torch alone, usable in anybody's own loop."""

from .batchnorm import frozen_statistics
from .lets import LETS
from .lookahead import RAPP, Lookahead
from .losses import cross_entropy, lower_bound
from .perturbation import Perturbation
from .radius import FixedRadius, FollowsLR, RadiusPolicy, ScheduledRadius
from .sam import SAM
from .sampa import Parallel
from .schedule import Sequential
from .step import Losses, StepStats

__all__ = [
    "LETS",
    "RAPP",
    "SAM",
    "FixedRadius",
    "FollowsLR",
    "Lookahead",
    "Losses",
    "Parallel",
    "Perturbation",
    "RadiusPolicy",
    "ScheduledRadius",
    "Sequential",
    "StepStats",
    "cross_entropy",
    "frozen_statistics",
    "lower_bound",
]
