"""How often a comparison claims a difference that is not there, holds the truth in its intervals, and finds what is.

    python benchmarks/comparison_errors.py              about two minutes on one core

Simulated comparisons of 4 methods × 6 arms and SGD on n draws go through study/contrasts.py as it stands. A draw is
common to all arms (it cancels in pairs), the noise of an arm on a draw is its own:

    normal, t(3), exponential        with standard deviation 1 (t: 1.7), each arm alike
    collapse                         normal, but one run in ten is 8 lower
    digits                           residuals of 15 arms on 16 fresh draws of digits with 40 % label noise, as recorded
                                     in results/lets_study.jsonl: draws are resampled, and arms on every draw
    digits, own                      the same, but an arm keeps its row: equal means, unlike distributions (some arms
                                     fail now and then). No test of few values holds its level for equal means alone

false: share of studies without any difference that claim at least one; uncorrected: without Holm's correction.
held: share of 95 % intervals that hold the true difference. found: share of true differences of 1, 2 noise standard
deviations (between every learned, searched, … arm and the published ones) that are claimed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np

from bisam_ray.study.contrasts import Contrast, contrasts_of
from bisam_ray.study.statistics import LEVEL, detectable, needed

RESULTS = Path(__file__).parent / "results"
METHODS = ("sam", "asam", "bisam-tanh", "bisam-log")
POLICIES = ("fixed", "searched", "learned", "around", "replayed")
Noise = Callable[[np.random.Generator, int, int], np.ndarray]


def residuals() -> np.ndarray:
    """Test accuracy less its means over arms and draws, in standard deviations: arms × draws."""
    lines = (RESULTS / "lets_study.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [r for r in map(json.loads, lines) if r["stage"] == "confirm" and r["noise"] == 0.4]
    arms, draws = (list(dict.fromkeys(r[key] for r in runs)) for key in ("arm", "draw"))
    table = np.zeros((len(arms), len(draws)))
    for run in runs:
        table[arms.index(run["arm"]), draws.index(run["draw"])] = run.get("test", 0.0)
    table -= table.mean(1, keepdims=True)
    table -= table.mean(0)
    return table / table.std()


def noises() -> dict[str, Noise]:
    """Name → (generator, arms, n) ↦ an array of arms × n, mean 0."""
    seen = residuals()

    def resampled(rng: np.random.Generator, arms: int, n: int, own: bool = False) -> np.ndarray:
        return seen[rng.integers(len(seen), size=(arms, 1 if own else n)), rng.integers(seen.shape[1], size=n)]

    return {
        "normal": lambda rng, arms, n: rng.normal(size=(arms, n)),
        "t(3)": lambda rng, arms, n: rng.standard_t(3, (arms, n)),
        "exponential": lambda rng, arms, n: 1 - rng.exponential(size=(arms, n)),
        "collapse": lambda rng, arms, n: rng.normal(size=(arms, n)) - 8 * (rng.random((arms, n)) < 0.1) + 0.8,
        "digits": resampled,
        "digits, own": partial(resampled, own=True),
    }


def study(noise: np.ndarray, shift: float) -> list[Contrast]:
    """The contrasts of one comparison; every arm but the published ones and SGD is better by `shift`."""
    names = [("sgd", "none"), *((method, policy) for method in METHODS for policy in POLICIES)]
    arms: list[Any] = []
    for (method, policy), row in zip(names, noise, strict=True):
        test = row + (shift if policy not in ("none", "fixed") else 0.0)
        name = method if policy in ("none", "fixed") else f"{method} {policy}"
        found = {"arm": name, "method": method, "family": method, "radius_policy": policy, "test": test.tolist()}
        arms.append(SimpleNamespace(**found))
    return contrasts_of(arms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--replicates", type=int, nargs="+", default=[3, 5, 10, 16])
    given = parser.parse_args()
    arms = 1 + len(METHODS) * len(POLICIES)
    head = f"{'noise':12} {'n':>3}  {'false':>6} {'uncorrected':>12} {'held':>6}  {'found 1':>8} {'found 2':>8}"
    print(f"{given.studies} studies of {arms} arms each, {len(study(np.zeros((arms, 2)), 0))} comparisons\n\n{head}")
    for name, noise in noises().items():
        for n in given.replicates:
            rng = np.random.default_rng(n)
            null = [study(noise(rng, arms, n), 0.0) for _ in range(given.studies)]
            false = fmean(any(c.shown for c in made) for made in null)
            uncorrected = fmean(any(c.p <= LEVEL for c in made) for made in null)
            held = fmean(c.low <= 0 <= c.high for made in null for c in made)
            found = []
            for size in (1.0, 2.0):
                made = [study(noise(rng, arms, n), size) for _ in range(given.studies // 5)]
                published = [c for one in made for c in one if "published" in c.question]
                found.append(fmean(c.shown for c in published))
            print(f"{name:12} {n:3}  {false:6.3f} {uncorrected:12.3f} {held:6.3f}  {found[0]:8.2f} {found[1]:8.2f}")
    print(
        "\nthe fewest replicates that can show anything, and what is found with 80 % power (in standard deviations of"
    )
    print("the paired difference), by the number of comparisons:")
    for comparisons in (1, 3, 8, 24):
        sizes = "  ".join(f"n={n}: {detectable(n, comparisons):.2f}" for n in (3, 5, 6, 8, 10, 12, 16, 20))
        print(f"  {comparisons:2} comparisons: {needed(comparisons):2} replicates   {sizes}")
    print(f"\n{datetime.date.today()}, Python {platform.python_version()}, seeds 3–16")


if __name__ == "__main__":
    main()
