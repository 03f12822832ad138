"""Many small runs of the engine, resumable: one line of JSON for each in a file that a later start completes.

A record: stage, arm, noise, draw (= seed = split_seed = noise_seed), val (final weights), test where the stage may look
at it, cost in gradients × examples, and for learned radii per epoch rho, gap and hypergradient.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def job(
    stage: str, arm: str, noise: float, draw: int, layer: dict[str, Any], epochs: int, test: bool = False
) -> Record:
    """What a run is, as plain data."""
    return {"stage": stage, "arm": arm, "noise": noise, "draw": draw, "layer": layer, "epochs": epochs, "test": test}


def run(job: Record) -> str:
    """One run, as a line of JSON."""
    from bisam_ray.config import resolve
    from bisam_ray.training import engine

    record = {k: job[k] for k in ("stage", "arm", "noise", "draw")}
    draw = {"seed": job["draw"], "data.split_seed": job["draw"], "data.noise_seed": job["draw"]}
    try:
        config = resolve({"data.label_noise": job["noise"], "train.epochs": job["epochs"]}, job["layer"], draw)
        curve = list(engine.run(config))
    except engine.Diverged as error:
        return json.dumps({**record, "diverged": str(error)}, ensure_ascii=False)
    last = curve[-1]
    record["val"] = round(last.metrics["val/accuracy"], 5)
    if job["test"]:
        record["test"] = round(last.evaluate("test").accuracy, 5)
    record["cost"] = round(last.metrics["cost/gradients"], 1)
    if "lets/gap" in last.metrics:
        for key in ("sam/rho", "lets/gap", "lets/hypergradient"):
            record[key.split("/")[1]] = [float(f"{r.metrics[key]:.3g}") for r in curve]
    return json.dumps(record, ensure_ascii=False)


def load(path: Path) -> list[Record]:
    """The runs there are; a line that a kill cut off is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def make(path: Path, jobs: Iterable[Record], processes: int | None = None) -> None:
    """Make the runs that are not in the file yet, with a progress line."""
    done = {(r["stage"], r["arm"], r["noise"], r["draw"]) for r in load(path)}
    missing = [j for j in jobs if (j["stage"], j["arm"], j["noise"], j["draw"]) not in done]
    began = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for i, line in enumerate(pool.imap_unordered(run, missing), 1):
            file.write(line + "\n")
            file.flush()
            left = (time.monotonic() - began) / i * (len(missing) - i)
            print(f"\r{i} of {len(missing)} runs, {left / 60:.0f} min left  ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def by_arm(records: Iterable[Record], value: str, **where: Any) -> dict[str, dict[int, float]]:
    """arm → draw → value; a run that diverged counts 0."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        if all(record[k] == v for k, v in where.items()):
            found.setdefault(record["arm"], {})[record["draw"]] = record.get(value, 0.0)
    return found


def interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width of its Student-t interval)."""
    from scipy.stats import t

    values = list(values)
    half = t.ppf(0.5 + confidence / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values), float(half)


def paired(left: dict[int, float], right: dict[int, float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width) of left − right over the draws that both have."""
    return interval([left[d] - right[d] for d in sorted(left.keys() & right.keys())], confidence)
