"""Which radius on text, and can it be learned? Names of Unicode's characters → their categories, BERT-tiny, AdamW.

    pip install -e '.[text,benchmarks]'
    python benchmarks/text_radius.py            about 560 runs, two hours on 2 cores; continues when restarted

SGD's place is AdamW's (the base optimizer alone). SAM, ASAM and BiSAM with φ = tanh and log: the published radius, the
best of a grid of constant ones with a learned radius's warm-up, and LETS by either upper level, from ρ₀ = .2 and .05
(ASAM's radii are ten times as large), without an upper bound of its own (lets.rho_max is the preset's):

    gap            ½(L_V − L_B')², as LETS is published
    validation     L_V

Clean labels and 40 % wrong ones. Radii, and the ρ₀ and the goal that are shown first, were chosen on development draws
0 to 2 by validation; fresh draws 100–109 are read on test. Paired by draw; p-values of t-tests, corrected by Holm over
the family of all differences in a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import harness
import radii

RECORDS = harness.RESULTS / "text_radius.jsonl"
EPOCHS, NOISES, DEVELOPMENT, FRESH = 12, (0.0, 0.4), range(3), range(100, 110)
GRID, STARTS, GOALS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7), (0.2, 0.05), ("gap", "validation")
BASE: dict[str, Any] = {
    "data": {"name": "unicode", "limit": 1200, "vocabulary": 1000, "length": 24, "batch_size": 32, "bucket": 10},
    "model.name": "bert-tiny",
    "optim": {"base": "adamw", "lr": 1e-3, "lr_schedule": "linear", "lr_warmup": 0.1},
}
ADAMW: radii.Arm = ("adamw", {"method": "sgd"})


def learned(method: str, goal: str, rho: float = STARTS[0]) -> radii.Arm:
    start = radii.scaled(method, rho)
    return f"lets-{method} {goal} ρ₀ {start:g}", {"method": f"lets-{method}", "optim.rho": start, "lets.goal": goal}


def jobs(stage: str, arms: list[radii.Arm], noise: float, draws: range) -> Iterator[harness.Record]:
    for draw in draws:
        for name, layer in arms:
            yield harness.job(stage, name, noise, draw, BASE | layer, EPOCHS, test=stage == "fresh", curves=["rho"])


def grid(method: str) -> list[radii.Arm]:
    return [radii.fixed(method, rho) for rho in GRID]


def candidates() -> list[radii.Arm]:
    """Of the development draws."""
    found = [ADAMW]
    for method in radii.METHODS:
        found += [*grid(method), *(learned(method, goal, rho) for goal in GOALS for rho in STARTS)]
    return found


def values(stage: str, noise: float) -> dict[str, dict[int, float]]:
    return harness.by_arm(harness.load(RECORDS), "test" if stage == "fresh" else "val", stage=stage, noise=noise)


def best(noise: float, method: str) -> float:
    """The best radius of the grid, by validation on the development draws."""
    val = values("development", noise)
    return max(GRID, key=lambda rho: fmean(val[radii.fixed(method, rho)[0]].values()))


def arms(noise: float) -> dict[str, radii.Arm]:
    """Of the fresh draws, by what they are."""
    found = {"adamw": ADAMW}
    for m in radii.METHODS:
        found |= {f"{m} published": radii.published(m), f"{m} best fixed": radii.fixed(m, best(noise, m))}
        found |= {f"{m} {goal}": learned(m, goal) for goal in GOALS}
    return found


def make(processes: int | None) -> None:
    todo = [job for noise in NOISES for job in jobs("development", candidates(), noise, DEVELOPMENT)]
    harness.make(RECORDS, todo, processes)
    todo = [job for noise in NOISES for job in jobs("fresh", list(arms(noise).values()), noise, FRESH)]
    harness.make(RECORDS, sorted(todo, key=lambda job: job["draw"]), processes)


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        make(options.processes)


if __name__ == "__main__":
    main()
