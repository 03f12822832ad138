"""The figures of a report: accuracy, accuracy against cost, the radius; those of a search are in search_figures.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .canvas import (
    COLOURS,
    DASHES,
    GREY,
    INK,
    PANEL,
    STYLE,
    Canvas,
    Drawing,
    Look,
    estimate,
    in_percent,
    percent,
    short,
    ticks,
)
from .diagnosis import two_objectives, winner
from .ledger import Study
from .search_figures import front, rungs
from .series import Radius, Trial, learned_paths, searched, spending

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .compare import Summary

OF_SEARCH = ("rungs", "pareto")
NAMES = ("accuracy", "cost", "radius", *OF_SEARCH)
MILLION = 1e6
BOTTOM = 0.44  # inches, for the labels of the x axis

Spending = Mapping[str, tuple[list[float], list[float]]]


def looks(study: Study, summary: Summary | None) -> dict[str, Look]:
    """A look per arm, in the order in which the arms began."""
    policies = {run.arm: run.begin.get("radius_policy") or "fixed" for run in study.runs.values()}
    policies |= {arm.arm: arm.radius_policy for arm in summary.arms} if summary else {}
    found: dict[str, Look] = {}
    for arm, policy in policies.items():
        used = sum(look.policy != "none" for look in found.values())
        found[arm] = Look(GREY if policy == "none" else COLOURS[used % len(COLOURS)], policy)
    return found


def draw(study: Study, summary: Summary | None, directory: Path) -> list[Drawing]:
    """Every figure for which the study has data; those of an earlier report are removed first."""
    import matplotlib
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    for old in (path for name in NAMES for path in directory.glob(f"{name}.*")):
        old.unlink()
    seen = looks(study, summary)
    arms = len(summary.arms) if summary else 0
    tall = max(PANEL[1], 0.75 + 0.36 * arms)

    def canvas(name: str, columns: int, height: float) -> Canvas:
        return Canvas(name, directory, Figure((PANEL[0] * columns, height)), columns)

    found = []
    with matplotlib.rc_context(STYLE):
        if summary and arms:
            found.append(accuracy(canvas("accuracy", 1, tall), summary, seen))
        if lines := {arm: line for arm in seen if (line := spending(study, arm))[0]}:
            found.append(cost(canvas("cost", 1, tall), lines, summary, seen))
        adapt = [arm for arm, look in seen.items() if look.policy == "learned"]
        learned = {arm: paths for arm in adapt if (paths := learned_paths(study, arm))}
        trials = {arm: rows for arm in seen if (rows := searched(study, arm))}
        best = {arm: run.name for arm in trials if (run := winner(study, arm))}
        if columns := bool(learned) + bool(trials):
            found.append(radius(canvas("radius", columns, PANEL[1]), learned, trials, best, seen))
        if study.header.get("kind") == "search" and (tried := study.of(phase="search")):
            arm = tried[0].arm
            made = [rungs(canvas("rungs", 1, PANEL[1]), study, arm, seen[arm])]
            if two_objectives(study):
                made.append(front(canvas("pareto", 1, PANEL[1]), study, arm, seen[arm]))
            found += [drawing for drawing in made if drawing]
    return found


def accuracy(canvas: Canvas, summary: Summary, seen: Mapping[str, Look]) -> Drawing:
    """Test accuracy with intervals, a row per arm."""
    arms = sorted(summary.arms, key=lambda arm: arm.test_accuracy)
    bottom = BOTTOM / canvas.height
    axes = canvas.figure.add_axes((0.33, bottom, 0.64, 0.985 - bottom))
    for row, arm in enumerate(arms):
        name, look = arm.arm, seen[arm.arm]
        tips = [f"{name}, replicate {i}: {percent(value)}" for i, value in enumerate(arm.test)]
        pale = {"markersize": 4, "alpha": 0.55, "markeredgewidth": 0}
        canvas.dots(axes, look, arm.test, [row + 0.24] * len(arm.test), tips, **pale)
        axes.plot(arm.ci95, [row, row], color=look.colour, linewidth=2)
        tip = f"{name}: {estimate(arm.test_accuracy, arm.ci95)}"
        canvas.dots(axes, look, [arm.test_accuracy], [row], [tip], markersize=7)
        if arm.restarts > 1:
            below = row - 0.28
            axes.plot(arm.single_ci95, [below, below], color=look.colour, linewidth=0.8)
            tip = f"{name}, one run alone: {estimate(arm.single_accuracy, arm.single_ci95)}"
            canvas.dots(axes, look, [arm.single_accuracy], [below], [tip], markersize=4.5, fillstyle="none")
    axes.set_yticks(range(len(arms)), [short(arm.arm) for arm in arms])
    axes.set_ylim(-0.6, len(arms) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    in_percent(axes, "x")
    axes.set_xlabel("test accuracy")

    rows = [(arm.arm, i, value) for arm in reversed(arms) for i, value in enumerate(arm.test)]
    canvas.table(("arm", "replicate", "test_accuracy"), rows)
    caption = "Mean and 95 % interval at equal cost; above, pale: the replicates."
    if any(arm.restarts > 1 for arm in arms):
        caption += " Below, hollow: one run alone, without restarts."
    text = "; ".join(f"{arm.arm} {estimate(arm.test_accuracy, arm.ci95)}" for arm in reversed(arms))
    return canvas.save("Test accuracy", caption, f"Test accuracy: {text}.")


def cost(canvas: Canvas, lines: Spending, summary: Summary | None, seen: Mapping[str, Look]) -> Drawing:
    """The best validation accuracy so far against what was spent."""
    results = {arm.arm: arm for arm in summary.arms} if summary else {}
    ends = {arm: (x[-1], y[-1]) for arm, (x, y) in lines.items()}
    for name, arm in results.items():
        if name in lines and math.isfinite(arm.cost_gradients + arm.val_accuracy):
            ends[name] = arm.cost_gradients, arm.val_accuracy
    tops = [value for arm, (_, y) in lines.items() for value in (y[-1], ends[arm][1])]
    span = max(0.1, max(tops) - min(tops))
    low, high = max(0.0, min(tops) - span), min(1.0, max(tops) + 0.15 * span)
    bottom = BOTTOM / canvas.height
    axes = canvas.figure.add_axes((0.15, bottom, 0.485, 0.985 - bottom))
    for name, (x, y) in lines.items():
        look, (end_x, end_y) = seen[name], ends[name]
        axes.plot([v / MILLION for v in x], y, color=look.colour, linewidth=1.5, drawstyle="steps-post")
        to_x, to_y = [x[-1] / MILLION, end_x / MILLION], [y[-1], end_y]
        axes.plot(to_x, to_y, color=look.colour, linewidth=0.9, linestyle=":")
        tip = f"{name}: {percent(end_y)} on val after {end_x / MILLION:.2f} million"
        canvas.dots(axes, look, [end_x / MILLION], [end_y], [tip], markersize=6.5, clip_on=False)
    axes.set_xlim(0, 1.03 * max(x for x, _ in ends.values()) / MILLION)
    axes.set_ylim(low, high)
    if summary:
        at = summary.budget / MILLION
        axes.axvline(at, color=INK, linewidth=0.8, linestyle=DASHES, alpha=0.6)
        axes.annotate("budget C", (at, low), (-4, 3), textcoords="offset points", ha="right")
    heights = {arm: (end - low) / (high - low) for arm, (_, end) in ends.items()}
    labels_at_right(axes, heights, seen, step=0.2 / canvas.height)
    axes.grid(axis="y")
    in_percent(axes, "y")
    axes.set_xlabel("gradient evaluations × examples, millions")
    axes.set_ylabel("best validation accuracy so far")

    rows = [(arm, a, b) for arm, (x, y) in lines.items() for a, b in zip(x, y, strict=True)]
    canvas.table(("arm", "spent_gradients", "best_val_accuracy_so_far"), rows)
    caption = "Lines: the best an arm had reached, trial after trial or restart after restart"
    marks = ", mean over replicates. Marks: what was kept, judged on validation data that did not choose it."
    caption += marks if results else "."
    text = "; ".join(f"{arm} {percent(v)} after {x / MILLION:.2f} million" for arm, (x, v) in ends.items())
    return canvas.save("Accuracy against cost", caption, f"Validation accuracy: {text}.")


def labels_at_right(axes: Axes, heights: Mapping[str, float], seen: Mapping[str, Look], step: float) -> None:
    """Name lines beside the axes: at the heights where they end, as far as the names do not overlap."""
    arms = sorted(heights, key=lambda arm: heights[arm])
    at: list[float] = []
    for arm in arms:
        at.append(max(heights[arm], at[-1] + step if at else 0.02))
    for i in reversed(range(len(at))):
        at[i] = min(at[i], at[i + 1] - step if i + 1 < len(at) else 0.98)
    place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    for arm, y in zip(arms, at, strict=True):
        axes.plot([1.055], [y], seen[arm].shape, color=seen[arm].colour, markersize=5, **place)
        axes.text(1.1, y, short(arm, 20), va="center_baseline", fontsize=8, **place)


def radius(
    canvas: Canvas,
    learned: Mapping[str, list[list[Radius]]],
    trials: Mapping[str, list[Trial]],
    best: Mapping[str, str],
    seen: Mapping[str, Look],
) -> Drawing:
    """The learned radius over training beside the radii that were searched, on one axis."""
    rhos = [trial.rho for rows in trials.values() for trial in rows]
    rhos += [rho for lines in learned.values() for line in lines for at in line for rho in (at.least, at.most)]
    low, high = min(rhos) / 1.3, max(rhos) * 1.3
    keyed = bool(learned) or len(trials) > 1
    bottom, top = BOTTOM / canvas.height, 0.985
    if keyed:
        top -= 0.19 * math.ceil(max(len(learned), len(trials)) / 2) / canvas.height
    n = canvas.columns
    boxes = [((i + x) / n, bottom, 0.8 / n, top - bottom) for i, x in zip(range(n), (0.15, 0.03), strict=False)]
    panels = [canvas.figure.add_axes(box) for box in boxes]
    left, right = panels[0], panels[-1]
    if learned:
        draw_learned(left, learned, seen)
    if trials:
        choices = {arm: t for arm, rows in trials.items() for t in rows if t.run == best.get(arm)}
        draw_trials(canvas, right, trials, choices, seen)
        for axes in panels:
            for arm, trial in choices.items():
                axes.axhline(trial.rho, color=seen[arm].colour, linewidth=1, linestyle=DASHES, zorder=1.5)
    for axes in panels:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_yticks(ticks(low, high), [f"{v:g}" for v in ticks(low, high)])
        axes.minorticks_off()
        axes.grid(axis="y")
        in_percent(axes, "x")
        if keyed:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
    left.set_ylabel("radius ρ (logarithmic)")
    if n > 1:
        right.yaxis.tick_right()
        right.spines["left"].set_visible(False)
        right.spines["right"].set_visible(True)

    rows: list[tuple[Any, ...]] = []
    for arm, lines in learned.items():
        rows += [("learned", arm, i, *at, "", "") for i, line in enumerate(lines) for at in line]
    for arm, found in trials.items():
        rows += [("searched", arm, t.run, "", t.rho, "", "", t.accuracy, t.outcome) for t in found]
    head = (
        "kind",
        "arm",
        "start_or_trial",
        "fraction",
        "rho",
        "rho_least",
        "rho_most",
        "val_accuracy",
        "outcome",
    )
    canvas.table(head, rows)
    told, text = [], []
    if learned:
        told.append("Learned, over training: mean and range over replicates; thin lines began elsewhere.")
        text += [f"{arm} learned {lines[0][-1].mean:.3g}" for arm, lines in learned.items()]
    if trials:
        told.append("Searched: a mark per trial, hollow if not completed; star and dashed line are the choice.")
        text += [f"{arm} chose {trial.rho:.3g}" for arm, trial in choices.items()]
    title = "The radius, learned beside searched" if n > 1 else "The radius"
    return canvas.save(title, " ".join(told), f"Radius: {'; '.join(text) or 'no choice yet'}.")


def draw_learned(axes: Axes, learned: Mapping[str, list[list[Radius]]], seen: Mapping[str, Look]) -> None:
    """Lines over training; those of the first starting point bold, with their range."""
    for arm, lines in learned.items():
        for i, line in enumerate(lines):
            x, mean, least, most = zip(*line, strict=True)
            style = {"linewidth": 0.8, "alpha": 0.8} if i else {"linewidth": 1.8, "label": short(arm)}
            axes.plot(x, mean, color=seen[arm].colour, **style)
            if not i:
                axes.fill_between(x, least, most, color=seen[arm].colour, alpha=0.18, linewidth=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of training done")


def draw_trials(
    canvas: Canvas,
    axes: Axes,
    trials: Mapping[str, Sequence[Trial]],
    choices: Mapping[str, Trial],
    seen: Mapping[str, Look],
) -> None:
    """Radius against accuracy, a mark per trial and a star for the choice."""
    for arm, rows in trials.items():
        look = Look(seen[arm].colour, "fixed")
        for full in (True, False):
            some = [t for t in rows if (t.outcome == "completed") == full and t != choices.get(arm)]
            tips = [f"{t.run}: ρ {t.rho:.3g}, val {percent(t.accuracy)}, {t.outcome}" for t in some]
            x, y = [t.accuracy for t in some], [t.rho for t in some]
            canvas.dots(axes, look, x, y, tips, markersize=5, fillstyle="full" if full else "none")
        if t := choices.get(arm):
            tip = f"{t.run}, the choice: ρ {t.rho:.3g}, val {percent(t.accuracy)}"
            star = {
                "marker": "*",
                "markersize": 14,
                "markeredgecolor": INK,
                "markeredgewidth": 0.5,
                "zorder": 4,
            }
            canvas.dots(axes, look, [t.accuracy], [t.rho], [tip], **star)
        axes.plot([], [], "o", color=look.colour, markersize=5, label=short(arm))
    axes.set_xlabel("validation accuracy of the trial")
