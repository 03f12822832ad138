"""Test accuracy as labels become noisier: 0, 20, 40, 60 and 80 % of them wrong, clean ones in test.

    python benchmarks/noise.py            about 890 runs, 180 shared with rho_sensitivity.py; continues when restarted

SGD, and SAM, ASAM and BiSAM with φ = tanh and log each with three radii: the published one; the best of a grid, chosen
for every method and noise by validation (labels as noisy as in training) on development draws 0 to 2; the learned one
(LETS by its preset). Fresh draws 100–109. Compared, paired by draw; p-values of t-tests, corrected by Holm over each
family:

    every best fixed radius against SAM's best (15), and every learned against its method's best fixed radius (20)
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import harness
import radii

NOISES, GRID = (0.0, 0.2, 0.4, 0.6, 0.8), (0.2, 0.5, 1.0, 2.0)
POLICIES = ("published", "best fixed", "learned")
Found = dict[str, dict[int, float]]  # "method policy" → draw → test accuracy


def chosen(noise: float) -> dict[str, float]:
    """Every method's radius, by validation on the development draws."""
    val = harness.by_arm(harness.load(radii.RECORDS), "val", stage="development", noise=noise)
    return {m: max(GRID, key=lambda rho: fmean(val[radii.fixed(m, rho)[0]].values())) for m in radii.METHODS}


def arms(noise: float) -> dict[str, radii.Arm]:
    best, found = chosen(noise), {"sgd": radii.SGD}
    for method in radii.METHODS:
        made = (radii.published(method), radii.fixed(method, best[method]), radii.learned(method))
        found |= {f"{method} {policy}": arm for policy, arm in zip(POLICIES, made, strict=True)}
    return found


def make(processes: int | None) -> None:
    grid = [radii.fixed(method, rho) for method in radii.METHODS for rho in GRID]
    jobs = [job for noise in NOISES for job in radii.development(grid, noise)]
    harness.make(radii.RECORDS, jobs, processes)
    jobs = [job for noise in NOISES for job in radii.fresh(list(arms(noise).values()), noise)]
    harness.make(radii.RECORDS, sorted(jobs, key=lambda job: job["draw"]), processes)


def read(noise: float) -> Found:
    test = radii.tested(noise)
    return {name: test[arm] for name, (arm, _) in arms(noise).items()}


def families(found: dict[float, Found]) -> dict[str, dict[tuple[float, str], float]]:
    """family → (noise, method) → p-value, corrected within the family."""
    methods: dict[tuple[float, str], float] = {}
    policies: dict[tuple[float, str], float] = {}
    for noise, at in found.items():
        for m in radii.METHODS:
            policies[noise, m] = harness.p_value(at[f"{m} learned"], at[f"{m} best fixed"])
            if m != "sam":
                methods[noise, m] = harness.p_value(at[f"{m} best fixed"], at["sam best fixed"])
    return {"methods": harness.holm(methods), "policies": harness.holm(policies)}


def tables(found: dict[float, Found]) -> list[str]:
    tests, lines = families(found), []
    for noise, at in found.items():
        best = chosen(noise)
        lines += ["", f"label noise {noise:.0%}: sgd {harness.points(*harness.interval(at['sgd'].values()))}"]
        lines.append(f"  {'':12}{'published ρ':20}{'best of the grid':20}{'at ρ':>5}   {'learned':20}{'it ends':14}"
                     f"{'best − SAM’s best':20}{'p':>5}   {'learned − best':20}{'p':>5}")  # fmt: skip
        for m in radii.METHODS:
            cells = [harness.points(*harness.interval(at[f"{m} {policy}"].values())) for policy in POLICIES]
            last = radii.ends(radii.learned(m)[0], noise)
            line = f"  {m:12}{cells[0]:20}{cells[1]:20}{radii.scaled(m, best[m]):5g}   {cells[2]:20}"
            line += f"{f'{last[0]:.2g}–{last[-1]:.2g}':14}"
            if m == "sam":
                line += " " * 28
            else:
                line += f"{harness.points(*harness.paired(at[f'{m} best fixed'], at['sam best fixed']), sign='+'):20}"
                line += f"{tests['methods'][noise, m]:5.2f}   "
            line += f"{harness.points(*harness.paired(at[f'{m} learned'], at[f'{m} best fixed']), sign='+'):20}"
            lines.append(f"{line}{tests['policies'][noise, m]:5.2f}")
    return lines


def verdict(found: dict[float, Found]) -> list[str]:
    lines, tests = ["", "What was found (p < .05 after Holm's correction within a family)"], families(found)
    for policy in POLICIES:
        parts = []
        for noise, at in found.items():
            mean, half = harness.paired(at[f"sam {policy}"], at["sgd"])
            parts.append(f"{harness.points(mean, half, '+')} at {noise:.0%}")
        lines.append(f"SAM, {policy}, against SGD, points: {'; '.join(parts)}.")
    for family, what in (
        ("methods", "the best fixed radius of {} and SAM's"),
        ("policies", "{} learned and best fixed"),
    ):
        shown = [key for key, p in tests[family].items() if p < 0.05]
        for noise, m in shown:
            left, right = (
                (f"{m} best fixed", "sam best fixed") if family == "methods" else (f"{m} learned", f"{m} best fixed")
            )
            difference = harness.points(*harness.paired(found[noise][left], found[noise][right]), sign="+")
            lines.append(f"Label noise {noise:.0%}, {what.format(m)}: {difference} points.")
        lines.append(f"{what.format('a method')}: no difference shown in the other {len(tests[family]) - len(shown)}.")
    lines[-1] += (
        f" A grid of {len(GRID)} radii costs {len(GRID)} runs for each draw that chooses, the learned one is one run."
    )
    return lines


def figure(found: dict[float, Found]) -> Any:
    """Four methods, three radii each, over noise; then what the method and what learning changes."""
    plt = harness.plotting()
    fig, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    at = [100 * noise for noise in found]
    panels = [axes[0][0], axes[0][1], axes[1][0], axes[1][1]]
    styles = {"published": ("o", "--"), "best fixed": ("s", "-"), "learned": ("D", "-")}

    def line(ax: Any, rows: list[tuple[float, float]], x: list[float], **style: Any) -> None:
        ax.errorbar(x, [100 * m for m, _ in rows], [100 * h for _, h in rows], markersize=4, linewidth=1.2,
                    **style)  # fmt: skip

    for ax, m in zip(panels, radii.METHODS, strict=True):
        line(ax, [harness.interval(f["sgd"].values()) for f in found.values()], at, color=harness.COLOURS["sgd"],
             marker="x", linestyle=":", label="SGD")  # fmt: skip
        for policy in POLICIES:
            marker, style = styles[policy]
            rows = [harness.interval(f[f"{m} {policy}"].values()) for f in found.values()]
            line(ax, rows, at, color=radii.COLOURS[policy], marker=marker, linestyle=style, label=f"{policy} ρ")
        ax.set(title=m, ylim=(15, 101), xlabel="label noise, %", ylabel="test accuracy, %, 95 %")
    for i, m in enumerate(radii.METHODS):
        x = [noise + 1.5 * (i - 1.5) for noise in at]
        dots = {"color": harness.COLOURS[m], "marker": harness.MARKERS[m], "linestyle": "none", "label": m}
        rows = [harness.paired(f[f"{m} learned"], f[f"{m} best fixed"]) for f in found.values()]
        line(axes[1][2], rows, x, **dots)
        if m != "sam":
            rows = [harness.paired(f[f"{m} best fixed"], f["sam best fixed"]) for f in found.values()]
            line(axes[0][2], rows, x, **dots)
    axes[0][2].set_title("best fixed ρ minus SAM's, points")
    axes[1][2].set_title("learned minus best fixed ρ, points")
    for ax in axes[:, 2]:
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(xlabel="label noise, %", xticks=at)
    harness.legend(fig, (panels[0], axes[1][2]), 8)
    return fig


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        make(options.processes)
    found = {noise: read(noise) for noise in NOISES}
    text = [
        "Label noise; test accuracy, mean and 95 % t-interval; differences paired by draw, their intervals "
        "uncorrected, p corrected by Holm over the family.",
        *tables(found),
        *verdict(found),
        "",
        f"digits, CNN, {radii.EPOCHS} epochs, {harness.where(len(radii.FRESH))} fresh draws; radii chosen on draws "
        f"{', '.join(map(str, radii.DEVELOPMENT))} among {', '.join(f'{rho:g}' for rho in GRID)} (ASAM: "
        "× 10), by validation",
    ]
    harness.save("noise", "\n".join(text), figure(found))


if __name__ == "__main__":
    main()
