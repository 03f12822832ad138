"""bisam_ray: which radius should I train with, and could it have been learned instead?

    bisam_ray.train(method="lets-sam")               one run
    bisam_ray.search("rho", trials=16)               Ray Tune + Optuna + ASHA over a search space
    bisam_ray.compare(["bisam_tanh"], seeds=5)       fixed against searched against learned, at equal cost
    bisam_ray.load_study("demo")                     what a study found, as dataframes
    bisam_ray.optim                                  SAM, BiSAM, LETS for your own training loop (torch alone)

Everything is imported on first use: importing this package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import optim as optim
    from .api import compare, evaluate, export_radius, load_study, search, train
    from .config import Config, ConfigError, resolve
    from .results import Comparison, SearchResult, TrainResult

__version__ = "0.1.0"
_HOMES = {
    **dict.fromkeys(("train", "search", "compare", "evaluate", "export_radius", "load_study"), "api"),
    **dict.fromkeys(("TrainResult", "SearchResult", "Comparison"), "results"),
    **dict.fromkeys(("Config", "ConfigError", "resolve"), "config"),
}
__all__ = [
    "Comparison", "Config", "ConfigError", "SearchResult", "TrainResult", "compare", "evaluate", "export_radius",
    "load_study", "optim", "resolve", "search", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "optim":
        return importlib.import_module(".optim", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
