"""Many small runs of the engine, resumable: one line of JSON for each in a file that a later start completes.

A record: stage, arm, noise, draw (= seed = split_seed = noise_seed), val (final weights), test where the stage may look
at it, cost in gradients × examples, and for learned radii per epoch rho, gap and hypergradient.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
CURVES = {"rho": "sam/rho", "gap": "lets/gap", "hypergradient": "lets/hypergradient"}
# Okabe and Ito's colours, told apart by colour-blind readers too, and a marker for each
COLOURS = {"sgd": "#555555", "sam": "#0072b2", "asam": "#e69f00", "bisam-tanh": "#009e73", "bisam-log": "#d55e00"}
MARKERS = {"sgd": "x", "sam": "o", "asam": "s", "bisam-tanh": "^", "bisam-log": "v"}
Record = dict[str, Any]


def job(
    stage: str,
    arm: str,
    noise: float,
    draw: int,
    layer: dict[str, Any],
    epochs: int,
    test: bool = False,
    curves: Iterable[str] = tuple(CURVES),
) -> Record:
    """What a run is, as plain data; `curves` are kept of a learned radius, each per epoch."""
    named = {"stage": stage, "arm": arm, "noise": noise, "draw": draw}
    return {**named, "layer": layer, "epochs": epochs, "test": test, "curves": tuple(curves)}


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
        for name in job["curves"]:
            record[name] = [float(f"{r.metrics[CURVES[name]]:.3g}") for r in curve]
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


def make(path: Path, jobs: Iterable[Record], processes: int | None = None, work: Callable[[Record], str] = run) -> None:
    """Make the runs that are not in the file yet, with a progress line; `work` makes one, as a line of JSON."""
    done = {(r["stage"], r["arm"], r["noise"], r["draw"]) for r in load(path)}
    missing = [j for j in jobs if (j["stage"], j["arm"], j["noise"], j["draw"]) not in done]
    began = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for i, line in enumerate(pool.imap_unordered(work, missing), 1):
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


def p_value(left: dict[int, float], right: dict[int, float]) -> float:
    """Two-sided, of the t-test of left − right over the draws that both have."""
    from scipy.stats import t

    differences = [left[d] - right[d] for d in sorted(left.keys() & right.keys())]
    spread = stdev(differences) / math.sqrt(len(differences))
    if not spread:
        return 0.0 if any(differences) else 1.0
    return float(2 * t.sf(abs(fmean(differences)) / spread, len(differences) - 1))


def holm(p_values: dict[Any, float]) -> dict[Any, float]:
    """p-values corrected for being that many (Holm, 1979)."""
    corrected, least = {}, 0.0
    for i, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - i) * p))
        corrected[key] = least
    return corrected


def points(mean: float, half: float, sign: str = "") -> str:
    """A share and its interval in per cent (a difference: in points)."""
    return f"{100 * mean:{sign}.1f} [{100 * (mean - half):{sign}.1f}, {100 * (mean + half):{sign}.1f}]"


def options(doc: str) -> argparse.Namespace:
    """Of a study's command: processes, report."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--report", action="store_true", help="from what there is, without further runs")
    return parser.parse_args()


def where(n: int) -> str:
    """Date, machine, n: the last line of a table."""
    import torch

    version = torch.__version__.split("+")[0]
    return f"{datetime.date.today()}, {os.cpu_count()} CPUs {platform.machine()}, torch {version}, n = {n}"


def save(name: str, text: str, figure: Any) -> None:
    """Print and keep the text, keep the figure."""
    print(text)
    (RESULTS / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    (RESULTS / f"{name}.svg").write_text(re.sub(r"<[^>]*>", shorter, svg.getvalue()), encoding="utf-8")


def legend(fig: Any, axes: Iterable[Any], columns: int) -> None:
    """Below the figure: what is labelled in these panels, in their order."""
    shown = [ax.get_legend_handles_labels() for ax in axes]
    both = ([one for some in part for one in some] for part in zip(*shown, strict=True))
    fig.legend(*both, loc="outside lower center", ncols=columns, frameon=False)


def shorter(tag: re.Match[str]) -> str:
    """An element of an SVG file in tenths of a point, without rotations by nothing and names of groups."""
    text = re.sub(r' transform="rotate\(-0[^"]*"|(?<=^<g) id="[^"]*"', "", tag[0])
    return re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"(\d\d\.\d)\d+", r"\1", text))


def plotting() -> Any:
    """matplotlib.pyplot, set for small SVG files that come out the same every time."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "bisam_ray", "svg.fonttype": "none", "font.size": 9})
    plt.rcParams.update({"font.sans-serif": ["DejaVu Sans", "Arial"], "xtick.minor.bottom": False})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white"})
    return plt
