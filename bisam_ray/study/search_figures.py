"""The figures of a search: early against final accuracy, and the front of accuracy and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .canvas import GREY, INK, Canvas, Drawing, Look, in_percent, percent
from .diagnosis import pareto, spanned, winner
from .early import accuracy_at, first, full_length, judged, radius, rank_correlation
from .ledger import Run, Study
from .series import val_accuracy

BOX = (0.15, 0.135, 0.82, 0.85)  # left, bottom, width, height of the axes, as shares of the figure
SIZES = (4.0, 6.0, 8.5)  # of a mark: small, middle and large radii
STAR: dict[str, Any] = {"marker": "*", "markersize": 14, "markeredgecolor": INK, "markeredgewidth": 0.5, "zorder": 4}


def rungs(canvas: Canvas, study: Study, arm: str, look: Look) -> Drawing | None:
    """Val accuracy at the first rung against the final one, a mark per full-length trial; None when there is none."""
    epoch, best = first(study, arm), winner(study, arm)
    runs = [run for run in full_length(study, arm) if run.epoch > epoch and math.isfinite(accuracy_at(run, epoch))]
    if not runs:
        return None
    groups = by_radius(runs)
    bottom, height = BOX[1], BOX[3] - (0.13 if len(groups) > 1 else 0.07)
    axes = canvas.figure.add_axes((BOX[0], bottom, BOX[2], height))
    trial = Look(look.colour, "fixed")
    for label, size, some in groups:
        for control in (False, True):
            for stopped in (False, True):
                of = [r for r in some if flags(r) == (control, stopped) and r is not best]
                x, y = [accuracy_at(r, epoch) for r in of], [val_accuracy(r) for r in of]
                tips, marker, fill = [tip(r, epoch) for r in of], "D" if control else "o", "none" if stopped else "full"
                canvas.dots(axes, trial, x, y, tips, markersize=size, marker=marker, fillstyle=fill, alpha=0.85)
        if label:
            axes.plot([], [], "o", color=look.colour, markersize=size, label=label)
    if best is not None and best in runs:
        x, y = [accuracy_at(best, epoch)], [val_accuracy(best)]
        canvas.dots(axes, trial, x, y, [f"{tip(best, epoch)}, the choice"], **STAR)
    if any(flags(run)[0] for run in runs):
        axes.plot([], [], "D", color=look.colour, markersize=5.5, label="control")
    if any(flags(run)[1] for run in runs):
        axes.plot([], [], "D", color=look.colour, markersize=5.5, fillstyle="none", label="control, to be stopped")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, handletextpad=0.2)
    axes.grid()
    in_percent(axes, "x")
    in_percent(axes, "y")
    axes.set_xlabel(f"validation accuracy at epoch {epoch}")
    axes.set_ylabel("final validation accuracy")

    head = ("run", "rho", "control", "stopped_at", "val_accuracy_early", "val_accuracy_final")
    table = [(r.name, radius(r), *flags(r)[:1], judged(r) or "", accuracy_at(r, epoch), val_accuracy(r)) for r in runs]
    canvas.table(head, table)
    found = rank_correlation(study, arm)[0].all
    how = "too few to tell" if math.isnan(found.value) else f"rank correlation {spanned(found)}"
    caption = f"The {len(runs)} trials that ran to the end: {how}. The star is the choice."
    caption += " Marks grow with the radius." if len(groups) > 1 else ""
    if any(flags(run)[0] for run in runs):
        caption += " No scheduler stops a control; a hollow one would have been."
    return canvas.save("Early against final accuracy", caption, f"Epoch {epoch} against the end: {how}.")


def flags(run: Run) -> tuple[bool, bool]:
    """Whether it is a control, and whether the scheduler would have stopped it."""
    return bool(run.begin.get("control")), judged(run) is not None


def by_radius(runs: Sequence[Run]) -> list[tuple[str, float, list[Run]]]:
    """(label, size, runs) of three groups of radii that are equally wide on a logarithmic scale; one without radii."""
    rhos = [radius(run) for run in runs]
    low, high = (f([r for r in rhos if r > 0], default=math.nan) for f in (min, max))
    if not low < high:
        return [("", SIZES[1], list(runs))]
    edges = [low * (high / low) ** (k / 3) for k in range(4)]
    found = [("", SIZES[0], [run for run, rho in zip(runs, rhos, strict=True) if math.isnan(rho)])]
    for k, (start, end) in enumerate(pairwise(edges)):
        some = [r for r, rho in zip(runs, rhos, strict=True) if start <= rho and (rho < end or k == 2)]
        found.append((f"ρ {start:.2g}–{end:.2g}", SIZES[k], some))
    return [group for group in found if group[2]]


def tip(run: Run, epoch: int) -> str:
    rho = f"ρ {radius(run):.3g}, " if radius(run) > 0 else ""
    told = f"{run.name}: {rho}val {percent(accuracy_at(run, epoch))} at epoch {epoch}, {percent(val_accuracy(run))}"
    return f"{told} at the end{', control' if flags(run)[0] else ''}"


def front(canvas: Canvas, study: Study, arm: str, look: Look) -> Drawing | None:
    """Val accuracy against cost, a mark per completed trial, the front connected; None when there is none."""
    runs, best = full_length(study, arm), pareto(study, arm)
    if not best:
        return None
    axes = canvas.figure.add_axes(BOX)
    names = {run.name for run in best}
    rest = [run for run in runs if run.name not in names]
    for some, colour, size in ((rest, GREY, 4.5), (best, look.colour, 6.5)):
        tips = [f"{run.name}: val {percent(val_accuracy(run))}, {run.cost / 1e6:.3g} million" for run in some]
        x, y = [run.cost / 1e6 for run in some], [val_accuracy(run) for run in some]
        canvas.dots(axes, Look(colour, "fixed"), x, y, tips, markersize=size, zorder=3)
    line = [run.cost / 1e6 for run in best], [val_accuracy(run) for run in best]
    axes.plot(*line, color=look.colour, linewidth=1.2, drawstyle="steps-post")
    axes.grid()
    in_percent(axes, "y")
    axes.set_xlabel("gradient evaluations × examples, millions")
    axes.set_ylabel("final validation accuracy")
    head = ("run", "cost_gradients", "val_accuracy", "on_the_front")
    canvas.table(head, [(run.name, run.cost, val_accuracy(run), run.name in names) for run in runs])
    caption = "A mark per completed trial; on the front, in colour, none is both better and cheaper."
    text = "; ".join(f"{run.name} {percent(val_accuracy(run))} for {run.cost / 1e6:.3g} million" for run in best)
    return canvas.save("Accuracy against the cost of a run", caption, f"The front: {text}.")
