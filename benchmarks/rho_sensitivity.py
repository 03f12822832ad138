"""How much does accuracy depend on the radius, and where does the learned one lie? The sensitivity figure of LETS.

    python benchmarks/rho_sensitivity.py            660 runs; continues when started again

Fixed radii (with a warm-up of a quarter of training, as the learned one) for SAM, ASAM and BiSAM with φ = tanh and log,
at label noise 0 and 40 %; beside them LETS by its preset: its accuracy, and the radii where its runs end. Fresh draws
100–109, test accuracy, clean labels. Two widths of the plateau around the best radius, both of radii that were tried:

    within 1 point    the mean is less than a point below that of the best radius
    not shown         the paired 95 % interval of the difference to the best contains zero

The best radius is the best of these very runs, so it is flattered. The runs are kept in results/radii.jsonl, which
rho0.py and noise.py share.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import harness
import radii

RADII = {0.4: (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1.0, 2.0), 0.0: (0.05, 0.2, 0.5, 1.0, 2.0)}
FLOOR = {0.4: 73, 0.0: 95}  # of the figure; what lies below is written there


def arms(noise: float) -> list[radii.Arm]:
    grid = [radii.fixed(method, rho) for method in radii.METHODS for rho in RADII[noise]]
    return [radii.SGD, *grid, *map(radii.learned, radii.METHODS)]


def plateau(test: dict[str, dict[int, float]], method: str, noise: float) -> dict[str, Any]:
    """The best radius of a method and the radii that are about as good."""
    names = {rho: radii.fixed(method, rho)[0] for rho in RADII[noise]}
    best = max(names, key=lambda rho: fmean(test[names[rho]].values()))
    differences = {rho: harness.paired(test[name], test[names[best]]) for rho, name in names.items() if rho != best}
    return {
        "best": best,
        "within": [rho for rho in names if rho == best or differences[rho][0] > -0.01],
        "not shown": [rho for rho in names if rho == best or abs(differences[rho][0]) <= differences[rho][1]],
    }


def width(rhos: list[float], method: str, noise: float) -> str:
    """From the least to the largest of the radii, and their ratio; 'not all' where one in between is missing."""
    low, high = min(rhos), max(rhos)
    between = [rho for rho in RADII[noise] if low <= rho <= high]
    gaps = "" if len(between) == len(rhos) else ", not all"
    return f"{radii.scaled(method, low):g}–{radii.scaled(method, high):g} (×{high / low:.3g}{gaps})"


def tables() -> list[str]:
    lines = []
    for noise in RADII:
        test = radii.tested(noise)
        lines += ["", f"label noise {noise:.0%}, test accuracy"]
        lines.append(f"  {'':12}" + "".join(f"{f'ρ {rho:g}':>20}" for rho in RADII[noise]))
        for method in radii.METHODS:
            cells = [harness.interval(test[radii.fixed(method, rho)[0]].values()) for rho in RADII[noise]]
            lines.append(f"  {method:12}" + "".join(f"{harness.points(*cell):>20}" for cell in cells))
        lines += ["  (asam: ten times these radii)", ""]
        sgd = harness.points(*harness.interval(test["sgd"].values()))
        lines.append(f"  {f'sgd {sgd}':30}{'best ρ':>8}  {'within 1 point':24}{'not shown to differ':26}"
                     f"{'learned':20}{'where it ends':20}learned − best")  # fmt: skip
        for method in radii.METHODS:
            found, name = plateau(test, method, noise), radii.learned(method)[0]
            last = radii.ends(name, noise)
            best = test[radii.fixed(method, found["best"])[0]]
            lines.append(
                f"  {method:30}{radii.scaled(method, found['best']):8g}  {width(found['within'], method, noise):24}"
                f"{width(found['not shown'], method, noise):26}"
                f"{harness.points(*harness.interval(test[name].values())):20}{f'{last[0]:.2g}–{last[-1]:.2g}':20}"
                f"{harness.points(*harness.paired(test[name], best), sign='+')}"
            )
    return lines


def verdict() -> list[str]:
    lines = ["", "What was found"]
    for noise in RADII:
        test = radii.tested(noise)
        parts = []
        for method in radii.METHODS:
            means = [fmean(test[radii.fixed(method, rho)[0]].values()) for rho in RADII[noise]]
            last = radii.ends(radii.learned(method)[0], noise)
            within = [radii.scaled(method, rho) for rho in plateau(test, method, noise)["within"]]
            inside = sum(min(within) <= rho <= max(within) for rho in last)
            parts.append(
                f"{method}: {100 * (max(means) - min(means)):.1f} points between the best and the worst radius, the "
                f"learned one ends within the plateau of 1 point in {inside} of {len(last)} runs, "
                f"at its upper bound in {sum(rho > 0.99 * radii.scaled(method, 1.0) for rho in last)}"
            )
        lines.append(f"Label noise {noise:.0%}: {'; '.join(parts)}.")
    return lines


def figure() -> Any:
    """Accuracy over the radius; in colour, where the learned one ends (least to largest) and what it reaches."""
    plt = harness.plotting()
    fig, axes = plt.subplots(2, len(radii.METHODS), figsize=(12, 6), layout="constrained", sharey="row")
    for line, (noise, grid) in zip(axes, RADII.items(), strict=True):
        test = radii.tested(noise)
        sgd = 100 * fmean(test["sgd"].values())
        for ax, method in zip(line, radii.METHODS, strict=True):
            colour = radii.COLOURS["learned"]
            at = [radii.scaled(method, rho) for rho in grid]
            rows = [harness.interval(test[radii.fixed(method, rho)[0]].values()) for rho in grid]
            mean, half = harness.interval(test[radii.learned(method)[0]].values())
            last = radii.ends(radii.learned(method)[0], noise)
            ax.axvspan(
                last[0] * 0.97, last[-1] * 1.03, color=colour, alpha=0.2, linewidth=0, label="learned: its final ρ"
            )
            ax.axhspan(100 * (mean - half), 100 * (mean + half), color=colour, alpha=0.35, linewidth=0,
                       label="learned: accuracy, 95 %")  # fmt: skip
            ax.errorbar(at, [100 * m for m, _ in rows], [100 * h for _, h in rows], color="black", marker="o",
                        markersize=3, linewidth=1, label="fixed ρ, 95 %")  # fmt: skip
            ax.axhline(sgd, color=harness.COLOURS["sgd"], linewidth=1, linestyle=":", label="SGD")
            for rho, (low, _) in zip(at, rows, strict=True):
                if 100 * low < FLOOR[noise]:
                    ax.annotate(f"↓ {100 * low:.0f}", (rho, FLOOR[noise]), ha="center", va="bottom", fontsize=8)
            ax.set(xscale="log", ylim=(FLOOR[noise], None))
            ax.minorticks_off()
            ax.set_xticks(at, [f"{x:g}".removeprefix("0") for x in at], fontsize=8)
            if noise == 0.4:
                ax.set_title(method)
            else:
                ax.set_xlabel("ρ")
        line[0].set_ylabel(f"test accuracy, %\nlabel noise {noise:.0%}")
    harness.legend(fig, [axes[0][0]], 4)
    return fig


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        jobs = [job for noise in RADII for job in radii.fresh(arms(noise), noise)]
        harness.make(radii.RECORDS, jobs, options.processes)
    text = [
        "Accuracy against the radius; mean and 95 % t-interval, differences paired by draw, uncorrected. The best "
        "radius is the best of these draws, so flattered.",
        *tables(),
        *verdict(),
        "",
        f"digits, CNN, {radii.EPOCHS} epochs, {harness.where(len(radii.FRESH))} fresh draws",
    ]
    harness.save("rho_sensitivity", "\n".join(text), figure())


if __name__ == "__main__":
    main()
