"""Which radius on text, and can it be learned? Names of Unicode's characters → their categories, BERT-tiny, AdamW.

    pip install -e '.[text,benchmarks]'
    python benchmarks/text_radius.py            586 runs, two hours on 2 cores; continues when restarted

SAM, ASAM, BiSAM with φ = tanh and log, beside AdamW alone: at the published radius; at the best of a grid of constant
ones, with a learned radius's warm-up; learned, by either upper level:

    gap            ½(L_V − L_B')², as LETS is published
    validation     L_V

Clean labels, and 40 % wrong ones. 1,200 names that are no test: fixed radii train on 922, learned ones on 784 and
learn ρ on 138 (data.limit); 278 are val. Development draws 0 to 2 compare radii, goals and ρ₀ by validation; what they
recommend, and the published goal from the same ρ₀, is read on test on fresh draws 100 to 109, paired by draw. p-values
of t-tests, corrected by Holm over all differences of the table. Radii are named on SAM's scale; ASAM's are ten times as
large.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

import harness
import radii

RECORDS = harness.RESULTS / "text_radius.jsonl"
EPOCHS, NOISES, DEVELOPMENT, FRESH = 12, (0.0, 0.4), range(3), range(100, 110)
GRID, STARTS, GOALS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7), (0.2, 0.05), ("gap", "validation")
START = 0.05  # of the fresh draws
POLICIES = ("published", "best fixed", *GOALS)
BASE: dict[str, Any] = {
    "data": {"name": "unicode", "limit": 1200, "vocabulary": 1000, "length": 24, "batch_size": 32, "bucket": 10},
    "model.name": "bert-tiny",
    "optim": {"base": "adamw", "lr": 1e-3, "lr_schedule": "linear", "lr_warmup": 0.1},
}
ADAMW: radii.Arm = ("adamw", {"method": "sgd"})
Found = dict[str, dict[int, float]]


def learned(method: str, goal: str, rho: float = START) -> radii.Arm:
    start = radii.scaled(method, rho)
    return f"lets-{method} {goal} ρ₀ {start:g}", {"method": f"lets-{method}", "optim.rho": start, "lets.goal": goal}


def jobs(stage: str, arms: list[radii.Arm], noise: float, draws: range) -> Iterator[harness.Record]:
    for draw in draws:
        for name, layer in arms:
            yield harness.job(stage, name, noise, draw, BASE | layer, EPOCHS, test=stage == "fresh", curves=["rho"])


def candidates() -> list[radii.Arm]:
    """Of the development draws."""
    found = [ADAMW]
    for method in radii.METHODS:
        found += [radii.fixed(method, rho) for rho in GRID]
        found += [learned(method, goal, rho) for goal in GOALS for rho in STARTS]
    return found


def values(stage: str, noise: float) -> Found:
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


def read(noise: float) -> Found:
    test = values("fresh", noise)
    return {name: test[arm] for name, (arm, _) in arms(noise).items()}


def ends(stage: str, arm: str, noise: float) -> list[float]:
    """Where a learned radius ended, in every run, in order."""
    found = [r for r in harness.load(RECORDS) if (r["stage"], r["arm"], r["noise"]) == (stage, arm, noise)]
    return sorted(r["rho"][-1] for r in found if "rho" in r)


def corrected(found: dict[float, Found]) -> dict[tuple[float, str, str], float]:
    """(noise, method, policy) → p-value of the difference from AdamW, and of what is learned from the best fixed ρ."""
    tests = {}
    for noise, at in found.items():
        for m in radii.METHODS:
            for policy in POLICIES:
                tests[noise, m, policy] = harness.p_value(at[f"{m} {policy}"], at["adamw"])
            for goal in GOALS:
                tests[noise, m, f"{goal} − best fixed"] = harness.p_value(at[f"{m} {goal}"], at[f"{m} best fixed"])
    return harness.holm(tests)


def developed(noise: float) -> list[str]:
    """Validation accuracy of the development draws: over the radius, and of what is learned by goal and ρ₀."""
    val = values("development", noise)
    named = [*(f"{rho:g}" for rho in GRID), *(f"{goal} from {rho:g}" for goal in GOALS for rho in STARTS)]
    lines = [f"  {'ρ':12}" + "".join(f"{name:>7}" for name in named[: len(GRID)])
             + "".join(f"   {name:24}" for name in named[len(GRID) :])]  # fmt: skip
    for m in radii.METHODS:
        row = "".join(f"{100 * fmean(val[radii.fixed(m, rho)[0]].values()):7.1f}" for rho in GRID)
        for goal in GOALS:
            for rho in STARTS:
                arm = learned(m, goal, rho)[0]
                last = ends("development", arm, noise)
                shown = f"{100 * fmean(val[arm].values()):.1f}, ρ {', '.join(f'{r:.2g}' for r in last)}"
                row += f"   {shown:24}"
        lines.append(f"  {m:12}{row}".rstrip())
    lines.append(f"  adamw {100 * fmean(val['adamw'].values()):.1f}")
    return lines


def tables(found: dict[float, Found]) -> list[str]:
    lines, tests = [], corrected(found)
    for noise in found:
        lines += ["", f"label noise {noise:.0%}: validation, mean of draws {', '.join(map(str, DEVELOPMENT))}; of what "
                  "is learned also where ρ ended", *developed(noise)]  # fmt: skip
    for noise, at in found.items():
        lines += ["", f"label noise {noise:.0%}: test; adamw {harness.points(*harness.interval(at['adamw'].values()))}"]
        lines.append(
            f"  {'':12}{'':12}{'test accuracy':20}{'− adamw':22}{'p':>5}   {'− best fixed':22}{'p':>5}   ends at ρ"
        )
        for m in radii.METHODS:
            for policy in POLICIES:
                mine = at[f"{m} {policy}"]
                row = f"  {m:12}{policy:12}{harness.points(*harness.interval(mine.values())):20}"
                row += (
                    f"{harness.points(*harness.paired(mine, at['adamw']), sign='+'):22}{tests[noise, m, policy]:5.2f}"
                )
                if policy in GOALS:
                    gain = harness.points(*harness.paired(mine, at[f"{m} best fixed"]), sign="+")
                    row += f"   {gain:22}{tests[noise, m, f'{policy} − best fixed']:5.2f}"
                    last = ends("fresh", learned(m, policy)[0], noise)
                    row += f"   {median(last):.2g} ({last[0]:.2g}–{last[-1]:.2g})"
                elif policy == "best fixed":
                    row += f"{'':30}   {radii.scaled(m, best(noise, m)):g}"
                else:
                    row += f"{'':30}   {radii.scaled(m, 0.05):g}"
                lines.append(row)
    return lines


def fallen(stage: str, noise: float, goal: str, rho: float) -> str:
    """How many runs of all methods, from this ρ₀, have less than three quarters of AdamW's mean accuracy."""
    found = values(stage, noise)
    least = 0.75 * fmean(found["adamw"].values())
    each = [value for m in radii.METHODS for value in found[learned(m, goal, rho)[0]].values()]
    return f"{sum(value < least for value in each)} of {len(each)}"


def verdict(found: dict[float, Found]) -> list[str]:
    lines, tests = (
        ["", "What was found (p < .05 after Holm's correction over all differences of the table)"],
        corrected(found),
    )
    for noise in found:
        for what in (*POLICIES, *(f"{goal} − best fixed" for goal in GOALS)):
            shown, rest = [], 0
            for m in radii.METHODS:
                first, _, second = what.partition(" − ")
                at = found[noise]
                mean, half = harness.paired(at[f"{m} {first}"], at[f"{m} {second}"] if second else at["adamw"])
                if tests[noise, m, what] < 0.05:
                    shown.append(f"{m} {harness.points(mean, half, '+')}")
                else:
                    rest += 1
            told = "; ".join([*shown, *([f"no difference shown for {rest}"] if rest else [])])
            lines.append(f"{noise:.0%} noise, {what if ' − ' in what else f'{what} − adamw'}: {told}.")
    for noise in found:
        for goal in GOALS:
            told = [f"{fallen('development', noise, goal, rho)} from {rho:g} (development)" for rho in STARTS]
            told.append(f"{fallen('fresh', noise, goal, START)} from {START:g} (fresh)")
            lines.append(
                f"{noise:.0%} noise, {goal}: runs that lose a quarter of AdamW's accuracy or more: {'; '.join(told)}."
            )
    return lines


def figure(found: dict[float, Found]) -> Any:
    """Per noise: test accuracy of every method by where its radius comes from; validation over ρ, and learned ends."""
    plt = harness.plotting()
    fig, axes = plt.subplots(2, len(found), figsize=(11, 7), layout="constrained")
    colours = dict(zip(POLICIES, ("#999933", "#000000", "#cc6677", "#44aa99"), strict=True))
    for (top, bottom), (noise, at) in zip(axes.T, found.items(), strict=True):
        mean, half = harness.interval(at["adamw"].values())
        top.axhspan(100 * (mean - half), 100 * (mean + half), color=harness.COLOURS["sgd"], alpha=0.15, linewidth=0)
        top.axhline(100 * mean, color=harness.COLOURS["sgd"], linewidth=1, linestyle=":", label="AdamW alone")
        for i, policy in enumerate(POLICIES):
            rows = [harness.interval(at[f"{m} {policy}"].values()) for m in radii.METHODS]
            x = [k + 0.18 * (i - 1.5) for k in range(len(radii.METHODS))]
            label = f"learned by {policy}" if policy in GOALS else f"{policy} ρ"
            top.errorbar(x, [100 * v for v, _ in rows], [100 * h for _, h in rows], linestyle="none", marker="osD^"[i],
                         markersize=5, color=colours[policy], label=label)  # fmt: skip
        top.set_xticks(range(len(radii.METHODS)), radii.METHODS)
        top.set(title=f"{noise:.0%} label noise", ylabel="test accuracy, %, 95 %")
        val = values("development", noise)
        for m in radii.METHODS:
            style = {"color": harness.COLOURS[m], "marker": harness.MARKERS[m]}
            means = [100 * fmean(val[radii.fixed(m, rho)[0]].values()) for rho in GRID]
            bottom.plot(GRID, means, linewidth=1.2, markersize=4, label=m, **style)
            for goal, filled in (("gap", "none"), ("validation", "full")):
                for end in ends("fresh", learned(m, goal)[0], noise):
                    level = bottom.get_xaxis_transform()
                    height = (0.05 if goal == "gap" else 0.12) + 0.012 * list(radii.METHODS).index(m)
                    bottom.plot([end / radii.SCALE.get(m, 1.0)], [height], linestyle="none", fillstyle=filled,
                                markersize=4, transform=level, **style)  # fmt: skip
        bottom.set(xscale="log", xlabel="ρ (asam: ÷ 10); marks: ends of learned radii, open: gap, filled: validation",
                   ylabel="validation accuracy, %, development")  # fmt: skip
        bottom.set_xticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    harness.legend(fig, (axes[0][0], axes[1][0]), 5)
    return fig


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        make(options.processes)
    found = {noise: read(noise) for noise in NOISES}
    text = [
        "Radii on text, mean and 95 % t-interval; differences paired by draw, their intervals uncorrected, p corrected "
        "by Holm.",
        *tables(found),
        *verdict(found),
        "",
        f"unicode (1,200 names), bert-tiny, AdamW, {EPOCHS} epochs, {harness.where(len(FRESH))} fresh draws",
    ]
    harness.save("text_radius", "\n".join(text), figure(found))


if __name__ == "__main__":
    main()
