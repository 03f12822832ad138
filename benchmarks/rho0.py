"""Is LETS robust to where its radius starts? Accuracy and final ρ against ρ₀, beside a radius fixed at that value.

    python benchmarks/rho0.py            1,240 runs, 360 shared with rho_sensitivity.py; continues when restarted

ρ₀ from .01 to 2 (ASAM: ten times that) for LETS with SAM, ASAM and both BiSAM bounds, by its preset: with the preset's
upper bound lets.rho_max = 1, and with 5, so that it is seen what is the learning's doing and what the bound's; and with
5 by lets.goal = validation, which follows the validation loss L_V itself in place of the gap. The control is the same
method with the radius fixed at that value, the same warm-up and the same steps: robust is what varies less than that.
40 % label noise, fresh draws 100–109, test accuracy, clean labels.

    within 1 point    starts up to 1 whose mean accuracy is less than a point below that of the best one
    a blind start     mean accuracy over the seven ρ₀ up to 1: what somebody gets who picks one of them without knowing
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import nan
from statistics import fmean, median
from typing import Any

import harness
import radii

STARTS, COMMON, NOISE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0), (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), 0.4
FIXED = "fixed"
LEARNED: dict[str, dict[str, Any]] = {
    "gap, ρ ≤ 1": {"bound": 1.0},
    "gap, ρ ≤ 5": {"bound": 5.0},
    "L_V, ρ ≤ 5": {"bound": 5.0, "goal": "validation"},
}
POLICIES: dict[str, Callable[[str, float], radii.Arm]] = {
    **{name: partial(radii.started, **layer) for name, layer in LEARNED.items()},
    FIXED: radii.fixed,
}
Found = dict[float, dict[int, float]]  # ρ₀ → draw → test accuracy


def starts(policy: str) -> tuple[float, ...]:
    return COMMON if LEARNED.get(policy) == {"bound": 1.0} else STARTS


def arms() -> list[radii.Arm]:
    return [arm(m, rho) for policy, arm in POLICIES.items() for m in radii.METHODS for rho in starts(policy)]


def by_start(test: dict[str, dict[int, float]], policy: str, method: str) -> Found:
    return {rho: test[POLICIES[policy](method, rho)[0]] for rho in starts(policy)}


def finals(policy: str, method: str) -> dict[float, list[float]]:
    """ρ₀ → where every run ended."""
    return {rho: radii.ends(POLICIES[policy](method, rho)[0], NOISE) for rho in starts(policy)}


def blind(found: Found) -> dict[int, float]:
    """draw → mean over the starts up to 1."""
    return {draw: fmean(found[rho][draw] for rho in COMMON) for draw in found[COMMON[0]]}


def within(found: Found, method: str) -> str:
    """From the least to the largest start within a point of the best, and their ratio."""
    means = {rho: fmean(found[rho].values()) for rho in COMMON}
    good = [rho for rho in COMMON if means[rho] > max(means.values()) - 0.01]
    low, high = min(good), max(good)
    gaps = "" if len(good) == sum(low <= rho <= high for rho in COMMON) else ", not all"
    return f"{radii.scaled(method, low):g}–{radii.scaled(method, high):g} (×{high / low:.3g}{gaps})"


def forgotten(ends: dict[float, list[float]]) -> float:
    """Rank correlation of ρ₀ and final ρ over all runs from starts up to 1: 0 if the start is forgotten."""
    from scipy.stats import spearmanr

    return float(spearmanr([(rho, end) for rho in COMMON for end in ends[rho]]).statistic)


def tables(test: dict[str, dict[int, float]]) -> list[str]:
    lines = []
    for method in radii.METHODS:
        found = {policy: by_start(test, policy, method) for policy in POLICIES}
        ends = {policy: finals(policy, method) for policy in LEARNED}
        factor = "" if method not in radii.SCALE else " (all ten times)"
        lines += ["", f"{method + factor:24}" + "".join(f"{policy:20}" for policy in POLICIES)
                  + "".join(f"{policy + ' − fixed':24}" for policy in LEARNED)
                  + "".join(f"{'final: ' + policy:22}" for policy in LEARNED)]  # fmt: skip
        for rho in STARTS:
            row = f"  ρ₀ {radii.scaled(method, rho):<19g}"
            for at in found.values():
                row += f"{harness.points(*harness.interval(at[rho].values())) if rho in at else '-':20}"
            for policy in LEARNED:
                at = found[policy]
                row += f"{harness.points(*harness.paired(at[rho], found[FIXED][rho]), '+') if rho in at else '-':24}"
            for policy in LEARNED:
                last = ends[policy].get(rho)
                row += f"{f'{median(last):.2g} ({last[0]:.2g}–{last[-1]:.2g})' if last else '-':22}"
            lines.append(row.rstrip())
        row = f"  {'a blind start':22}"
        row += "".join(f"{harness.points(*harness.interval(blind(at).values())):20}" for at in found.values())
        for policy in LEARNED:
            row += f"{harness.points(*harness.paired(blind(found[policy]), blind(found[FIXED])), sign='+'):24}"
        lines.append(row.rstrip())
        lines.append(f"  {'within 1 point':22}" + "".join(f"{within(at, method):20}" for at in found.values()))
    return lines


def verdict(test: dict[str, dict[int, float]]) -> list[str]:
    lines = ["", "What was found, for ρ₀ up to 1 (ASAM 10)"]
    for method in radii.METHODS:
        fixed = by_start(test, FIXED, method)
        lines.append(f"{method}: fixed, within 1 point of the best {within(fixed, method)}, worst {worst(fixed)}.")
        for policy, layer in LEARNED.items():
            found, ends = by_start(test, policy, method), finals(policy, method)
            gain, half = harness.paired(blind(found), blind(fixed))
            said = "better" if gain > half else "worse" if -gain > half else "no difference shown"
            most = 0.99 * radii.scaled(method, layer["bound"])
            at_bound = [end > most for rho in COMMON for end in ends[rho]]
            lines.append(
                f"  learned, {policy}: within 1 point of the best {within(found, method)}, worst {worst(found)}; a "
                f"blind start against fixed {harness.points(gain, half, '+')} points ({said}); {sum(at_bound)} of "
                f"{len(at_bound)} runs end at the bound; rank correlation of ρ₀ and final ρ {forgotten(ends):.2f}."
            )
    return lines


def worst(found: Found) -> str:
    means = [fmean(found[rho].values()) for rho in COMMON]
    return f"{100 * (max(means) - min(means)):.1f} points below it"


def figure(test: dict[str, dict[int, float]]) -> Any:
    """Above: accuracy over ρ₀, learned and fixed. Below: the final ρ over ρ₀, every run."""
    plt = harness.plotting()
    fig, axes = plt.subplots(2, len(radii.METHODS), figsize=(12, 6), layout="constrained", sharey="row", sharex="col")
    looks = ((radii.COLOURS["learned"], "o", "-"), ("#44aa99", "^", "-"), ("#4477aa", "s", "-"), ("black", "x", "--"))
    styles = dict(zip(POLICIES, looks, strict=True))
    for (top, bottom), method in zip(axes.T, radii.METHODS, strict=True):
        at = [radii.scaled(method, rho) for rho in STARTS]
        scale = radii.SCALE.get(method, 1.0)
        for policy, (colour, marker, line) in styles.items():
            rows = [harness.interval(v.values()) for v in by_start(test, policy, method).values()]
            top.errorbar(at[: len(rows)], [100 * m for m, _ in rows], [100 * h for _, h in rows], color=colour,
                         marker=marker, linestyle=line, markersize=4, linewidth=1,
                         label="fixed at ρ₀" if policy == FIXED else f"learned by {policy}")  # fmt: skip
        for policy, shift in zip(LEARNED, (0.85, 1.0, 1.18), strict=True):  # a dash for each run
            x, y = [], []  # a dash for each run, all of them one line with gaps
            for rho, ends in finals(policy, method).items():
                for end in ends:
                    x += [radii.scaled(method, rho) * shift * side for side in (0.94, 1.06)] + [nan]
                    y += [end / scale] * 2 + [nan]
            bottom.plot(x, y, color=styles[policy][0], linewidth=1.3)
        bottom.plot(at, STARTS, color="black", linestyle=":", linewidth=0.8, label="ρ = ρ₀")
        top.set(xscale="log", title=method)
        bottom.set(yscale="log", xlabel="ρ₀")
        bottom.minorticks_off()
        bottom.set_xticks(at, [f"{x:g}".removeprefix("0") for x in at], fontsize=8)
        bottom.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    axes[0][0].set_ylabel("test accuracy, %, 95 %")
    axes[1][0].set_ylabel("final ρ of each run (asam: ÷ 10)")
    harness.legend(fig, (axes[0][0], axes[1][0]), 5)
    return fig


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        harness.make(radii.RECORDS, radii.fresh(arms(), NOISE), options.processes)
    test = radii.tested(NOISE)
    text = [
        f"Where a radius starts, and what becomes of it: {NOISE:.0%} label noise, test accuracy; mean and 95 % "
        "t-interval, differences paired by draw, uncorrected.",
        *tables(test),
        *verdict(test),
        "",
        f"digits, CNN, {radii.EPOCHS} epochs, {harness.where(len(radii.FRESH))} fresh draws",
    ]
    harness.save("rho0", "\n".join(text), figure(test))


if __name__ == "__main__":
    main()
