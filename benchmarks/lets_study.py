"""Does learning the radius work, with which of its options, and against which fixed radius? Digits, CNN, 20 epochs.

    python benchmarks/lets_study.py run                  about 1,700 runs, 50 minutes on 2 quiet cores; continues when
                                                         started again
    python benchmarks/lets_study.py run --stage extra    what the main stage left open (below)
    python benchmarks/lets_study.py run --stage confirm  the recommendation, once, on draws that chose nothing
    python benchmarks/lets_study.py report               table and figure from what there is

Stages, over label noise {0, .4}, extra .4 alone:

    main      SAM and both BiSAM bounds × {next-secant, next-exact, next-diagonal, same-secant} × ρ₀ {.05, .2} × warm-up
              {0, ¼}, against SGD and a grid of fixed radii with and without warm-up; development draws 0–7
    extra     other upper levels, learning rates, starts and bounds for the radius; the same draws
    confirm   what the first two recommend, with the best fixed radii beside it; draws 100–115, read on test

A draw is seed = split_seed = noise_seed. The first two stages never read test. One line of JSON for each run in
results/lets_study.jsonl: stage, arm, noise, draw, val, test (confirm only), and per epoch rho, gap, hypergradient.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

import harness

RECORDS = harness.RESULTS / "lets_study.jsonl"
EPOCHS, DRAWS, NOISES = 20, range(8), (0.0, 0.4)
CONFIRM = range(100, 116)
METHODS = ("sam", "bisam-tanh", "bisam-log")
RADII = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.8)
VARIANTS = {
    "next-secant": {},
    "next-exact": {"lets.curvature": "exact"},
    "next-diagonal": {"lets.curvature": "diagonal"},
    "same-secant": {"lets.train_batch": "same"},
}
EXTRA: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {  # what changes, from which ρ₀
    "gap, faster": ((0.05, 0.2), {"lets.lr": 0.05}),
    "gap, EMA .9": ((0.05, 0.2), {"lets.gap_ema": 0.9}),
    "gap, ρ ≤ 5": ((0.2,), {"lets.rho_max": 5.0}),
    "gap": ((0.5,), {}),
    "validation": ((0.05, 0.2, 0.5), {"lets.goal": "validation"}),
    "validation, faster": ((0.05, 0.2, 0.5), {"lets.goal": "validation", "lets.lr": 0.05}),
    "validation, ρ ≤ 5": ((0.2,), {"lets.goal": "validation", "lets.rho_max": 5.0}),
}
Arm = tuple[str, dict[str, Any]]


def main_arms() -> Iterator[Arm]:
    yield "sgd", {"method": "sgd"}
    for method in METHODS:
        for warmup in (0.0, 0.25):
            for rho in RADII:
                yield (
                    f"{method} ρ {rho:g} warm-up {warmup:g}",
                    {"method": method, "optim.rho": rho, "optim.warmup": warmup},
                )
            for variant, layer in VARIANTS.items():
                for rho in (0.05, 0.2):
                    name = f"lets-{method} {variant} ρ₀ {rho:g} warm-up {warmup:g}"
                    yield name, {"method": f"lets-{method}", "optim.rho": rho, "optim.warmup": warmup, **layer}


def extra_arms() -> Iterator[Arm]:
    for method in METHODS:
        for variant, (starts, layer) in EXTRA.items():
            for rho in starts:
                name = f"lets-{method} {variant} ρ₀ {rho:g} warm-up 0.25"
                yield name, {"method": f"lets-{method}", "optim.rho": rho, **layer}


def confirm_arms() -> Iterator[Arm]:
    """What the development draws recommend: the best fixed radius of each method, and the defaults of LETS."""
    yield "sgd", {"method": "sgd"}
    for method, best in zip(METHODS, (0.6, 0.8, 1.2), strict=True):
        yield f"{method} ρ 0.05 warm-up 0", {"method": method, "optim.rho": 0.05}
        yield f"{method} ρ {best:g} warm-up 0.25", {"method": method, "optim.rho": best, "optim.warmup": 0.25}
        for goal in ("gap", "validation"):
            for rho in (0.2, 0.5) if method == "bisam-log" else (0.2,):  # .5 was added when .2 had been seen to fail
                layer = {"method": f"lets-{method}", "optim.rho": rho, "lets.lr": 0.05, "lets.goal": goal}
                yield f"lets-{method} {goal}, faster ρ₀ {rho:g} warm-up 0.25", layer


STAGES = {
    "main": (main_arms, DRAWS, NOISES),
    "extra": (extra_arms, DRAWS, (0.4,)),
    "confirm": (confirm_arms, CONFIRM, NOISES),
}


def jobs(stage: str) -> Iterator[harness.Record]:
    """Every run of a stage; all arms of a draw next to each other."""
    arms, draws, noises = STAGES[stage]
    for draw in draws:
        for noise in noises:
            for name, layer in arms():
                yield harness.job(stage, name, noise, draw, layer, EPOCHS, test=stage == "confirm")


def report() -> None:
    records = harness.load(RECORDS)
    lines = [
        f"{datetime.date.today()}  digits, CNN, {EPOCHS} epochs, {os.cpu_count()} CPUs {platform.machine()}; "
        "mean and 95 % t-interval",
        "val: development draws, labels as noisy as in training; test: fresh draws, clean labels. "
        "'against': paired by draw, the best fixed radius of the same method and noise",
        "(chosen on the same draws among 18, so flattered). shrank: share of runs that end below ρ₀. gap > 0: share of "
        "epochs with a positive mean gap.",
    ]
    for stage in STAGES:
        for noise in STAGES[stage][2]:
            lines += table(records, stage, noise)
    text = "\n".join(lines)
    print(text)
    (harness.RESULTS / "lets_study.txt").write_text(text + "\n", encoding="utf-8")
    figure(records)


def table(records: list[harness.Record], stage: str, noise: float) -> list[str]:
    value = "test" if stage == "confirm" else "val"
    # the extra stage is held against the fixed radii of the main one
    found = harness.by_arm([r for r in records if r["stage"] in (stage, "main")], value, noise=noise)
    if stage == "confirm":
        found = harness.by_arm(records, value, stage=stage, noise=noise)
    own = {r["arm"] for r in records if r["stage"] == stage and r["noise"] == noise}
    if not own:
        return []
    n = max(len(found[arm]) for arm in own)
    lines = ["", f"{stage}: label noise {noise:.0%}, n = {n}, {value} accuracy"]
    lines += [f"  {'sgd':58} {shown(*harness.interval(found['sgd'].values()))}"] if "sgd" in own else []
    for method in METHODS:
        fixed = {arm: v for arm, v in found.items() if arm.startswith(f"{method} ρ")}
        best = max(fixed, key=lambda arm: fmean(fixed[arm].values()))
        listed = fixed if stage == "confirm" else {best, f"{method} ρ 0.05 warm-up 0"}
        for arm in sorted(own & set(listed)):
            lines.append(f"  {arm:58} {shown(*harness.interval(found[arm].values()))}")
        for arm in (a for a in found if a in own and a.startswith(f"lets-{method} ")):
            difference = harness.paired(found[arm], found[best])
            lines.append(
                f"  {arm:58} {shown(*harness.interval(found[arm].values()))}   against {shown(*difference, sign='+')}"
                f"   {ends([r for r in records if (r['stage'], r['arm'], r['noise']) == (stage, arm, noise)])}"
            )
    return lines


def shown(mean: float, half: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}5.1f} [{100 * (mean - half):{sign}5.1f}, {100 * (mean + half):{sign}5.1f}]"


def ends(runs: list[harness.Record]) -> str:
    runs = [r for r in runs if "rho" in r]
    last = [r["rho"][-1] for r in runs]
    text = f"ρ ends {median(last):.2f} ({min(last):.2f}–{max(last):.2f})"
    if "ρ₀" in runs[0]["arm"]:
        start = float(runs[0]["arm"].split("ρ₀ ")[1].split()[0])
        text += f", shrank {fmean(rho < start for rho in last):.0%}"
    return text + f", gap > 0 {fmean(gap > 0 for r in runs for gap in r['gap']):.0%}"


def figure(records: list[harness.Record], noise: float = 0.4) -> None:
    """Above: accuracy over fixed radii, and learned ones where they ended. Below: ρ over training."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "bisam_ray"
    found = harness.by_arm(records, "val", stage="main", noise=noise)
    fig, axes = plt.subplots(2, len(METHODS), figsize=(12, 7), layout="constrained", sharey="row")
    for column, method in enumerate(METHODS):
        top, bottom = axes[0][column], axes[1][column]
        for warmup, style in ((0.0, "--"), (0.25, "-")):
            rows = [harness.interval(found[f"{method} ρ {rho:g} warm-up {warmup:g}"].values()) for rho in RADII]
            low, high = ([100 * (m + s * h) for m, h in rows] for s in (-1, 1))
            top.plot(RADII, [100 * m for m, _ in rows], style, color="black", label=f"fixed, warm-up {warmup:g}")
            top.fill_between(RADII, low, high, color="gray", alpha=0.15)
        for i, variant in enumerate(VARIANTS):
            arm = f"lets-{method} {variant} ρ₀ 0.2 warm-up 0.25"
            runs = [r for r in records if r["stage"] == "main" and r["arm"] == arm and r["noise"] == noise]
            mean, half = harness.interval(100 * r["val"] for r in runs)
            end = median(r["rho"][-1] for r in runs)
            top.errorbar(end, mean, half, fmt="o", color=f"C{i}", capsize=2, label=f"learned, {variant}")
            for r in runs:
                bottom.plot(range(1, EPOCHS + 1), r["rho"], color=f"C{i}", alpha=0.5, linewidth=0.9)
        top.set(xscale="log", title=method, xlabel="ρ (learned: where it ended)")
        bottom.set(yscale="log", xlabel="epoch")
    axes[0][0].set_ylabel("validation accuracy, %")
    axes[1][0].set_ylabel("ρ, warm-up included")
    axes[0][0].legend(fontsize=7)
    fig.suptitle(
        f"Digits, {noise:.0%} label noise, development draws, 95 % intervals; learned from ρ₀ = .2", fontsize=10
    )
    fig.savefig(harness.RESULTS / "lets_study.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--stage", choices=tuple(STAGES), default="main")
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    if options.what == "run":
        harness.make(RECORDS, jobs(options.stage), options.processes)
    else:
        report()


if __name__ == "__main__":
    main()
