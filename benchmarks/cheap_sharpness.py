"""How much of SAM's gain is left when the ascent is made cheaper? Accuracy against gradient cost on digits.

    python benchmarks/cheap_sharpness.py run        about 1,100 runs, 15 minutes on 2 quiet cores; resumable
    python benchmarks/cheap_sharpness.py report     table, figure, and the verdict on the cheapest arm

40 % label noise, 20 epochs, the same number of steps for everybody. Every arm has its own radius, chosen on the
validation accuracy of development draws 0–7 among the same six, all with a warm-up of a quarter of training; then
the chosen one runs on draws 100–123, read on test. The question of the last column: is the arm within 1 point of
SAM at 95 % (one-sided, paired by draw)? "n needed" is how many draws that answer needs at 80 % power, given the
spread that was seen and no true difference.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
from collections.abc import Iterator
from statistics import fmean, stdev
from typing import Any

import harness

RECORDS = harness.RESULTS / "cheap_sharpness.jsonl"
RADII = (0.1, 0.2, 0.4, 0.6, 0.9, 1.4)
DEVELOPMENT, FRESH, NOISE, EPOCHS, MARGIN = range(8), range(100, 124), 0.4, 20, 0.01
ARMS: dict[str, dict[str, Any]] = {
    "sam": {},
    "esam": {"method": "esam", "optim.beta": 0.6, "optim.gamma": 0.5},
    **{f"ascent on 1/{k} of the batch": {"optim.ascent_fraction": 1 / k} for k in (2, 4, 8)},
    **{f"every {k}, plain between": {"optim.every": k} for k in (2, 4)},
    **{f"every {k}, last ascent kept": {"optim.every": k, "optim.between": "direction"} for k in (2, 4, 8)},
    **{f"every {k}, last descent between": {"optim.every": k, "optim.between": "descent"} for k in (2, 4, 8, 300)},
    "every 2, 1/4 of the batch, last descent between": {
        "optim.every": 2, "optim.ascent_fraction": 0.25, "optim.between": "descent",
    },
}  # fmt: skip


def layer(arm: str, rho: float) -> dict[str, Any]:
    return {"method": "sam", "optim.rho": rho, "optim.warmup": 0.25, **ARMS[arm]}


def development() -> Iterator[harness.Record]:
    for draw in DEVELOPMENT:
        for arm in ARMS:
            for rho in RADII:
                yield harness.job("development", f"{arm} ρ {rho:g}", NOISE, draw, layer(arm, rho), EPOCHS)


def chosen() -> dict[str, float]:
    """The radius of every arm, by validation on the development draws."""
    val = harness.by_arm(harness.load(RECORDS), "val", stage="development")
    return {arm: max(RADII, key=lambda rho: fmean(val[f"{arm} ρ {rho:g}"].values())) for arm in ARMS}


def fresh() -> Iterator[harness.Record]:
    radii = chosen()
    for draw in FRESH:
        yield harness.job("fresh", "sgd", NOISE, draw, {"method": "sgd"}, EPOCHS, test=True)
        for arm in ARMS:
            yield harness.job("fresh", arm, NOISE, draw, layer(arm, radii[arm]), EPOCHS, test=True)


def needed(differences: list[float]) -> int:
    """Draws for 80 % power to show non-inferiority when there is no difference: ((z.95 + z.80) sd / margin)²."""
    return math.ceil(((1.645 + 0.842) * stdev(differences) / MARGIN) ** 2)


def report() -> None:
    records, radii = harness.load(RECORDS), chosen()
    test = harness.by_arm(records, "test", stage="fresh")
    cost = {arm: fmean(v.values()) for arm, v in harness.by_arm(records, "cost", stage="fresh").items()}
    unit = cost["sgd"]
    n = len(test["sam"])
    lines = [
        f"{datetime.date.today()}  digits, {NOISE:.0%} label noise, {EPOCHS} epochs, {os.cpu_count()} CPUs "
        f"{platform.machine()}; radius chosen on draws 0–{DEVELOPMENT[-1]} (val), n = {n} fresh draws (test)",
        "",
        f"{'arm':50} {'cost/SGD':>8} {'ρ':>5}  test [95 %]            arm − SAM [95 %]     within 1 point  n needed",
    ]
    rows = []
    for arm in sorted(test, key=lambda a: cost[a]):
        mean, half = harness.interval(test[arm].values())
        row = f"{arm:50} {cost[arm] / unit:8.2f} {radii.get(arm, 0):5g}  "
        row += f"{mean:.1%} [{mean - half:.1%}, {mean + half:.1%}]"
        if arm != "sam":
            d, wide = harness.paired(test[arm], test["sam"])
            _, one_sided = harness.paired(test[arm], test["sam"], confidence=0.90)
            if arm != "sgd":
                rows.append((arm, cost[arm] / unit, d, wide))
            differences = [test[arm][i] - test["sam"][i] for i in test["sam"]]
            shown = "yes" if d - one_sided > -MARGIN else "no: inferior" if d + one_sided < -MARGIN else "not shown"
            row += f"   {d:+.1%} [{d - wide:+.1%}, {d + wide:+.1%}]   {shown:14} {needed(differences):6}"
        lines.append(row)
    text = "\n".join(lines)
    print(text)
    (harness.RESULTS / "cheap_sharpness.txt").write_text(text + "\n", encoding="utf-8")
    figure(rows)


def figure(rows: list[tuple[str, float, float, float]]) -> None:
    """Every arm's difference from SAM, cheapest first; SGD is far off to the left."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "bisam_ray"
    fig, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for i, (_, cost, mean, half) in enumerate(rows):
        axes.errorbar(100 * mean, -i, xerr=100 * half, fmt="o", color="C0" if cost <= 1.3 else "gray", capsize=2)
    axes.set_yticks([-i for i in range(len(rows))], [f"{arm}   {cost:.2f}" for arm, cost, *_ in rows])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(-100 * MARGIN, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("test accuracy minus SAM's, points, 95 % interval; dotted: the margin")
    axes.set_title("Cheaper ascents, cost in gradients (SGD 1, SAM 2); blue: at most 1.3", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(harness.RESULTS / "cheap_sharpness.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    if options.what == "run":
        harness.make(RECORDS, development(), options.processes)
        harness.make(RECORDS, fresh(), options.processes)
    else:
        report()


if __name__ == "__main__":
    main()
