"""Is any lower bound of the 0-1 loss better to ascend than SAM's cross entropy? All bounds × µ × α, on digits.

    python benchmarks/bounds_ablation.py            about 300 runs; continues when started again

φ = tanh, ramp and erf with µ {3, 10, 30} × α {.1, .3}, log with µ {.3, 1, 3, 10}; each at the published radius
(.05, no warm-up) and at one of the best region (.7, with a warm-up of a quarter of training). 40 % label noise, 16
epochs.

1. Development draws 0 and 1 choose µ and α for every bound and radius, and SAM's own best radius among .5, .7, 1 and
   1.4, all by validation. They never see test.
2. Fresh draws 100–109 run what was chosen, the published µ and α, and SAM. Every difference to SAM (at its own best
   radius, or at the published one) is paired by draw; p-values of t-tests are corrected by Holm over all of them.
3. What came out of 2 as the largest difference in the best region, log with µ = 1, once more: one question, on draws
   110–129, which had no part in asking it.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import harness

RECORDS = harness.RESULTS / "bounds_ablation.jsonl"
NOISE, EPOCHS, DEVELOPMENT, FRESH = 0.4, 16, range(2), range(100, 110)
AGAIN, SUSPECT = range(110, 130), ("log", (1.0, None), "best region, ρ .7")
REGIONS: dict[str, dict[str, Any]] = {
    "published ρ .05": {"optim.rho": 0.05},
    "best region, ρ .7": {"optim.rho": 0.7, "optim.warmup": 0.25},
}
SAM_RADII = (0.5, 0.7, 1.0, 1.4)
SLOPED = {"µ": (3.0, 10.0, 30.0), "α": (0.1, 0.3)}
Setting = tuple[float, float | None]  # µ, α
GRIDS: dict[str, list[Setting]] = {
    **{phi: [(mu, alpha) for mu in SLOPED["µ"] for alpha in SLOPED["α"]] for phi in ("tanh", "ramp", "erf")},
    "log": [(mu, None) for mu in (0.3, 1.0, 3.0, 10.0)],
}
PUBLISHED: dict[str, Setting] = {"tanh": (10.0, 0.1), "ramp": (10.0, 0.1), "erf": (10.0, 0.1), "log": (1.0, None)}


def name(phi: str, setting: Setting, region: str) -> str:
    mu, alpha = setting
    return f"{phi} µ {mu:g}" + (f" α {alpha:g}" if alpha else "") + f", {region}"


def layer(phi: str, setting: Setting, region: str) -> dict[str, Any]:
    mu, alpha = setting
    made = {"method": f"bisam-{phi}", "optim.mu": mu, **REGIONS[region]}
    return made | ({"optim.alpha": alpha} if alpha else {})


def sam(rho: float) -> tuple[str, dict[str, Any]]:
    """At the published radius without a warm-up, at all others with."""
    return f"sam ρ {rho:g}", {"method": "sam", "optim.rho": rho} | ({"optim.warmup": 0.25} if rho != 0.05 else {})


def development() -> Iterator[harness.Record]:
    for draw in DEVELOPMENT:
        for region in REGIONS:
            for phi, grid in GRIDS.items():
                for setting in grid:
                    made = layer(phi, setting, region)
                    yield harness.job("development", name(phi, setting, region), NOISE, draw, made, EPOCHS)
        for rho in SAM_RADII:
            arm, made = sam(rho)
            yield harness.job("development", arm, NOISE, draw, made, EPOCHS)


def chosen() -> tuple[dict[tuple[str, str], Setting], float]:
    """(φ, region) → its best (µ, α); SAM's best radius: by validation on the development draws."""
    val = harness.by_arm(harness.load(RECORDS), "val", stage="development")
    best = {
        (phi, region): max(grid, key=lambda s: fmean(val[name(phi, s, region)].values()))
        for region in REGIONS
        for phi, grid in GRIDS.items()
    }
    return best, max(SAM_RADII, key=lambda rho: fmean(val[sam(rho)[0]].values()))


def confirmed() -> dict[str, tuple[str, dict[str, Any]]]:
    """arm → (the SAM arm it is held against, its layer); SAM's own against themselves."""
    best, rho = chosen()
    against = dict(zip(REGIONS, (sam(0.05)[0], sam(rho)[0]), strict=True))
    found = {arm: (arm, made) for arm, made in (sam(0.05), sam(rho))}
    for (phi, region), setting in best.items():
        for s in (PUBLISHED[phi], setting):
            found[name(phi, s, region)] = (against[region], layer(phi, s, region))
    return found


def fresh() -> Iterator[harness.Record]:
    for draw in FRESH:
        for arm, (_, made) in confirmed().items():
            yield harness.job("fresh", arm, NOISE, draw, made, EPOCHS, test=True)


def again() -> Iterator[harness.Record]:
    for draw in AGAIN:
        for arm, made in ((name(*SUSPECT), layer(*SUSPECT)), sam(chosen()[1])):
            yield harness.job("again", arm, NOISE, draw, made, EPOCHS, test=True)


def once_more() -> str:
    test = harness.by_arm(harness.load(RECORDS), "test", stage="again")
    left, right = test[name(*SUSPECT)], test[sam(chosen()[1])[0]]
    difference, p = harness.points(*harness.paired(left, right), sign="+"), harness.p_value(left, right)
    values = [harness.points(*harness.interval(at.values())) for at in (left, right)]
    return (
        f"  {name(*SUSPECT)}, once more on {len(left)} other draws: {values[0]} against SAM's {values[1]}, difference "
        f"{difference} points, p = {p:.3f} (one test)."
    )


def tables() -> list[str]:
    records = harness.load(RECORDS)
    val = harness.by_arm(records, "val", stage="development")
    test = harness.by_arm(records, "test", stage="fresh")
    best, rho = chosen()
    lines = ["", f"development draws, mean validation accuracy, % (of labels {NOISE:.0%} are wrong); * chosen"]
    for region in REGIONS:
        lines.append(f"  {region}")
        for phi, grid in GRIDS.items():
            cells = []
            for mu, alpha in grid:
                shown = f"µ {mu:g}" + (f" α {alpha:g}" if alpha else "")
                mean = 100 * fmean(val[name(phi, (mu, alpha), region)].values())
                cells.append(f"{shown} {mean:.1f}{'*' if best[phi, region] == (mu, alpha) else ' '}")
            lines.append(f"    {phi:6}{'  '.join(cells)}")
    cells = [f"ρ {r:g} {100 * fmean(val[sam(r)[0]].values()):.1f}{'*' if r == rho else ' '}" for r in SAM_RADII]
    lines += [
        f"  SAM   {'  '.join(cells)}",
        "",
        f"fresh draws, test accuracy {'':22}{'':22}against SAM             p (Holm)",
    ]
    for arm, p in corrected().items():
        base = confirmed()[arm][0]
        line = f"  {arm:46}{harness.points(*harness.interval(test[arm].values())):22}"
        lines.append(line + ("" if arm == base else f"{difference(arm):24}{p:.2f}   (against {base})"))
    return lines


def difference(arm: str) -> str:
    test = harness.by_arm(harness.load(RECORDS), "test", stage="fresh")
    return harness.points(*harness.paired(test[arm], test[confirmed()[arm][0]]), sign="+")


def corrected() -> dict[str, float]:
    """arm → p-value of its difference to SAM; 1 for SAM itself."""
    test = harness.by_arm(harness.load(RECORDS), "test", stage="fresh")
    arms = confirmed()
    p = harness.holm({a: harness.p_value(test[a], test[base]) for a, (base, _) in arms.items() if a != base})
    return {arm: p.get(arm, 1.0) for arm in arms}


def verdict() -> list[str]:
    test = harness.by_arm(harness.load(RECORDS), "test", stage="fresh")
    p, arms = corrected(), confirmed()
    compared = [arm for arm, (base, _) in arms.items() if arm != base]
    gain = {arm: fmean(test[arm].values()) - fmean(test[arms[arm][0]].values()) for arm in compared}
    better, worse = ([a for a in compared if p[a] < 0.05 and sign * gain[a] > 0] for sign in (1, -1))
    lines = ["", f"Is any bound better than SAM? Of {len(compared)} comparisons, p < .05 after Holm's correction:"]
    for said, found in (("better", better), ("worse", worse)):
        shown = "; ".join(f"{arm} ({difference(arm)} points)" for arm in found)
        lines.append(f"  {said} in {len(found)}{': ' + shown if found else ''}")
    largest = max(compared, key=lambda arm: gain[arm])
    lines.append(f"  no difference shown in {len(compared) - len(better) - len(worse)}. The largest: {largest}, "
                 f"{difference(largest)} points over {arms[largest][0]}.")  # fmt: skip
    return [*lines, once_more()]


def figure() -> Any:
    """Every arm's paired difference to SAM, one panel for each radius."""
    plt = harness.plotting()
    test = harness.by_arm(harness.load(RECORDS), "test", stage="fresh")
    colours = {"tanh": "#009e73", "ramp": "#56b4e9", "erf": "#e69f00", "log": "#d55e00"}
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    arms = confirmed()
    for ax, region in zip(axes, REGIONS, strict=True):
        listed = [arm for arm in arms if arm.endswith(region)]
        for i, arm in enumerate(listed):
            phi = arm.split()[0]
            mean, half = harness.paired(test[arm], test[arms[arm][0]])
            marker = "o" if arm == name(phi, PUBLISHED[phi], region) else "D"
            ax.errorbar(100 * mean, -i, xerr=100 * half, fmt=marker, color=colours[phi], markersize=5)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_yticks([-i for i in range(len(listed))], [arm.partition(",")[0] for arm in listed])
        ax.set_title(f"{region}; zero: {arms[listed[0]][0]}", fontsize=9)
        ax.set_xlabel("test accuracy minus SAM's, points, 95 %")
    fig.suptitle(
        "Lower bounds of the 0-1 loss against the cross entropy; ● published µ and α, ◆ chosen ones, where others",
        fontsize=10,
    )
    return fig


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        harness.make(RECORDS, development(), options.processes)
        harness.make(RECORDS, fresh(), options.processes)
        harness.make(RECORDS, again(), options.processes)
    text = [
        f"Lower bounds as ascent objectives, {NOISE:.0%} label noise; mean and 95 % t-interval, differences paired by "
        "draw, their intervals uncorrected.",
        *tables(),
        *verdict(),
        "",
        f"digits, CNN, {EPOCHS} epochs, {harness.where(len(FRESH))} fresh draws; "
        f"chosen on draws {', '.join(map(str, DEVELOPMENT))}",
    ]
    harness.save("bounds_ablation", "\n".join(text), figure())


if __name__ == "__main__":
    main()
