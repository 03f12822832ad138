"""The runs that noise.py, rho0.py and rho_sensitivity.py share: every method at fixed, published and learned radii.

Radii are named on SAM's scale; ASAM's are ten times as large (`SCALE`). A radius is fixed with the warm-up that a
learned one has, a quarter of training; `published` is the method's preset, without. Digits, CNN, 16 epochs, batch 64.
All in results/radii.jsonl, so that no study repeats a run of another. Test is read on fresh draws only, and decides
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness

RECORDS = harness.RESULTS / "radii.jsonl"
EPOCHS, FRESH, DEVELOPMENT = 16, range(100, 110), range(3)
METHODS = ("sam", "asam", "bisam-tanh", "bisam-log")
SCALE = {"asam": 10.0}
COLOURS = {"published": "#999933", "best fixed": "#000000", "learned": "#882255"}  # unlike those of the methods
Arm = tuple[str, dict[str, Any]]

SGD: Arm = ("sgd", {"method": "sgd"})


def scaled(method: str, rho: float) -> float:
    return round(rho * SCALE.get(method, 1.0), 6)


def fixed(method: str, rho: float) -> Arm:
    radius = scaled(method, rho)
    return f"{method} ρ {radius:g}", {"method": method, "optim.rho": radius, "optim.warmup": 0.25}


def published(method: str) -> Arm:
    """The preset: ρ = .05, ASAM's .5."""
    return f"{method} published", {"method": method}


def learned(method: str) -> Arm:
    """LETS by its preset: from ρ₀ = .2, at most 1."""
    return f"lets-{method}", {"method": f"lets-{method}"}


def started(method: str, rho: float, bound: float, goal: str = "gap") -> Arm:
    """LETS by its preset from another ρ₀, with another upper bound of the radius, or another upper level."""
    if (rho, bound, goal) == (0.2, 1.0, "gap"):
        return learned(method)
    radius, most = scaled(method, rho), scaled(method, bound)
    name = f"lets-{method} ρ₀ {radius:g}" + (f" ≤ {most:g}" if bound == 1.0 else "")
    layer = {"method": f"lets-{method}", "optim.rho": radius, "lets.rho_max": most}
    return (name, layer) if goal == "gap" else (f"{name}, {goal}", layer | {"lets.goal": goal})


def fresh(arms: list[Arm], noise: float, draws: range = FRESH) -> Iterator[harness.Record]:
    for draw in draws:
        for name, layer in arms:
            yield harness.job("fresh", name, noise, draw, layer, EPOCHS, test=True, curves=["rho"])


def development(arms: list[Arm], noise: float, draws: range = DEVELOPMENT) -> Iterator[harness.Record]:
    for draw in draws:
        for name, layer in arms:
            yield harness.job("development", name, noise, draw, layer, EPOCHS)


def tested(noise: float) -> dict[str, dict[int, float]]:
    """arm → draw → test accuracy of the fresh runs there are."""
    return harness.by_arm(harness.load(RECORDS), "test", stage="fresh", noise=noise)


def ends(arm: str, noise: float) -> list[float]:
    """Where a learned radius ended, in every fresh run, in order."""
    found = [r for r in harness.load(RECORDS) if (r["stage"], r["arm"], r["noise"]) == ("fresh", arm, noise)]
    return sorted(r["rho"][-1] for r in found if "rho" in r)
