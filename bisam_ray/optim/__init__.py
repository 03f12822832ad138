"""What a step is: sharpness-aware training with torch alone, usable in anybody's own loop."""

from .batchnorm import frozen_statistics
from .lets import LETS
from .losses import cross_entropy, lower_bound
from .radius import FixedRadius, RadiusPolicy
from .sam import SAM
from .schedule import Losses, Sequential, StepStats

__all__ = [
    "LETS",
    "SAM",
    "FixedRadius",
    "Losses",
    "RadiusPolicy",
    "Sequential",
    "StepStats",
    "cross_entropy",
    "frozen_statistics",
    "lower_bound",
]
