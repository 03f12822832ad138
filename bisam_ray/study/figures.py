"""The figures of a report: accuracy, accuracy against cost, the radius. Drawn once, saved as SVG, PNG and CSV.

A panel that goes into the page is the same SVG without outside references: unique ids, the reader's font, and ink in
`currentColor`, so that it follows the page's light or dark scheme.
"""

from __future__ import annotations

import bisect
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from .ledger import Run, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .compare import Summary

INK = "#1b1f23"  # drawn with this, shown in currentColor
COLOURS = ("#1f7fc4", "#d55e00", "#009e73", "#b5659b", "#8a6d1f", "#6f6fd0", "#c2453d", "#3a8f9e")
GREY = "#7d8389"  # arms without a radius: what the others are held against
SHAPES = {"none": "s", "fixed": "o", "searched": "D", "learned": "^"}
PANEL = (4.4, 3.2)  # inches; one column of the page
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
SVG = "http://www.w3.org/2000/svg"
POINTS = 200  # per line


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, the same everywhere: its colour, and a shape for where its radius comes from."""

    colour: str
    policy: str

    @property
    def shape(self) -> str:
        return SHAPES.get(self.policy, "o")


@dataclass(frozen=True)
class Drawing:
    """One figure: its panels as SVG for the page, what they show, and the same for who cannot see them."""

    name: str
    title: str
    caption: str
    panels: list[str]


def looks(study: Study, summary: Summary | None) -> dict[str, Look]:
    """A look per arm, in the order in which the arms began."""
    policies = {run.arm: run.begin.get("radius_policy", "fixed") for run in study.runs.values()}
    policies |= {arm.arm: arm.radius_policy for arm in summary.arms} if summary else {}
    colours = (colour for _ in policies for colour in COLOURS)
    return {arm: Look(GREY if policy == "none" else next(colours), policy) for arm, policy in policies.items()}


def draw(study: Study, summary: Summary | None, directory: Path) -> list[Drawing]:
    """Every figure for which the study has data; removes what an earlier report left and is not drawn again."""
    import matplotlib

    directory.mkdir(parents=True, exist_ok=True)
    for old in (path for name in ("accuracy", "cost", "radius") for path in directory.glob(f"{name}.*")):
        old.unlink()
    seen = looks(study, summary)
    with matplotlib.rc_context(STYLE):
        drawn = (accuracy(summary, seen, directory), cost(study, summary, seen, directory), radius(study, seen, directory))
    return [drawing for drawing in drawn if drawing]


def accuracy(summary: Summary | None, seen: Mapping[str, Look], directory: Path) -> Drawing | None:
    """Test accuracy with intervals, one row per arm."""
    if summary is None or not summary.arms:
        return None
    arms = sorted(summary.arms, key=lambda arm: arm.test_accuracy)
    figure = new_figure(1, height=max(PANEL[1], 0.75 + 0.36 * len(arms)))
    axes = figure.add_axes((0.34, 0.145, 0.63, 0.835))
    titles: dict[str, list[str]] = {}
    for row, arm in enumerate(arms):
        look = seen[arm.arm]
        common = {"marker": look.shape, "color": look.colour, "linestyle": "none"}
        axes.plot(arm.ci95, [row, row], color=look.colour, linewidth=2)
        axes.plot(arm.test, [row] * len(arm.test), gid=f"dots{row}", markersize=4, alpha=0.45, **common)
        titles[f"dots{row}"] = [f"{arm.arm}, replicate {i}: {percent(v)}" for i, v in enumerate(arm.test)]
        axes.plot([arm.test_accuracy], [row], gid=f"mean{row}", markersize=7.5, **common)
        titles[f"mean{row}"] = [f"{arm.arm}: {estimate(arm.test_accuracy, arm.ci95)}"]
        if arm.restarts > 1:
            axes.plot(arm.single_ci95, [row - 0.3] * 2, color=look.colour, linewidth=0.8)
            axes.plot([arm.single_accuracy], [row - 0.3], markersize=4.5, markerfacecolor="none", gid=f"one{row}", **common)
            titles[f"one{row}"] = [f"{arm.arm}, one run alone: {estimate(arm.single_accuracy, arm.single_ci95)}"]
    axes.set_yticks(range(len(arms)), [short(arm.arm) for arm in arms])
    axes.set_ylim(-0.6, len(arms) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("test accuracy")
    rows = [(arm.arm, i, value) for arm in reversed(arms) for i, value in enumerate(arm.test)]
    write_csv(directory / "accuracy.csv", ("arm", "replicate", "test_accuracy"), rows)
    text = "; ".join(f"{arm.arm} {estimate(arm.test_accuracy, arm.ci95)}" for arm in reversed(arms))
    caption = "Mean and 95 % interval at equal cost; pale dots are replicates."
    if any(arm.restarts > 1 for arm in arms):
        caption += " Hollow, below: one run alone."
    return save(figure, directory, "accuracy", "Test accuracy", caption, f"Test accuracy: {text}.", titles, ())


def cost(study: Study, summary: Summary | None, seen: Mapping[str, Look], directory: Path) -> Drawing | None:
    """The best validation accuracy so far against what was spent."""
    lines = {arm: line for arm in seen if (line := spending(study, arm))[0]}
    if not lines:
        return None
    results = {arm.arm: arm for arm in summary.arms} if summary else {}
    ends = {arm: (results[arm].cost_gradients, results[arm].val_accuracy) if arm in results else (x[-1], y[-1])
            for arm, (x, y) in lines.items()}  # fmt: skip
    tops = [v for arm, (_, y) in lines.items() for v in (y[-1], ends[arm][1]) if math.isfinite(v)] or [0.0, 1.0]
    span = max(0.06, max(tops) - min(tops))
    low, high = max(0.0, min(tops) - 1.2 * span), min(1.0, max(tops) + 0.25 * span)
    figure = new_figure(1, height=PANEL[1])
    axes = figure.add_axes((0.135, 0.145, 0.575, 0.835))
    titles: dict[str, list[str]] = {}
    million = 1e6
    for number, (arm, (x, y)) in enumerate(lines.items()):
        look, (end_x, end_y) = seen[arm], ends[arm]
        axes.plot([v / million for v in x], y, color=look.colour, linewidth=1.5, drawstyle="steps-post")
        if arm in results:
            axes.plot([x[-1] / million, end_x / million], [y[-1], end_y], color=look.colour, linewidth=0.9, linestyle=":")
        axes.plot([end_x / million], [end_y], look.shape, color=look.colour, markersize=6.5, gid=f"end{number}", clip_on=False)
        titles[f"end{number}"] = [f"{arm}: {percent(end_y)} on val after {end_x / million:.2f} million"]
    most = max(end[0] for end in ends.values()) / million
    axes.set_xlim(0, 1.02 * most)
    axes.set_ylim(low, high)
    if summary:
        axes.axvline(summary.budget / million, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        axes.text(summary.budget / million, low + 0.015 * (high - low), "budget C ", ha="right", va="bottom", alpha=0.8)
    labels_at_right(axes, {arm: end for arm, (_, end) in ends.items()}, seen, (low, high))
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel("gradient evaluations × examples, millions")
    axes.set_ylabel("best validation accuracy so far")
    rows = [(arm, a, b) for arm, (x, y) in lines.items() for a, b in zip(x, y, strict=True)]
    write_csv(directory / "cost.csv", ("arm", "spent_gradients", "best_val_accuracy_so_far"), rows)
    text = "; ".join(f"{arm} {percent(v)} after {x / million:.2f} million" for arm, (x, v) in ends.items())
    caption = "The best any network of an arm had reached: trial after trial, restart after restart"
    caption += ", mean over replicates. Labels stand in the order of the markers" if results else ""
    caption += ": what was kept, judged on data it was not chosen by." if results else "."
    return save(figure, directory, "cost", "Accuracy against cost", caption, f"Validation accuracy: {text}.", titles, ())


def radius(study: Study, seen: Mapping[str, Look], directory: Path) -> Drawing | None:
    """The learned radius over training beside the radii that were searched, on one axis."""
    learned = {arm: lines for arm, look in seen.items() if look.policy == "learned" and (lines := paths(study, arm))}
    trials = {arm: rows for arm in seen if (rows := searched(study, arm))}
    if not learned and not trials:
        return None
    figure = new_figure(bool(learned) + bool(trials), height=PANEL[1])
    boxes = [(0.155, 0.145, 0.815, 0.735), (0.03, 0.145, 0.815, 0.735)]
    count = bool(learned) + bool(trials)
    panels = [figure.add_axes(((i + x) / count, y, w / count, h)) for i, (x, y, w, h) in enumerate(boxes[:count])]
    values = [v for lines in learned.values() for line in lines for points in line for v in points[1:]]
    values += [row[0] for rows in trials.values() for row in rows]
    low, high = min(values) / 1.25, max(values) * 1.25
    left, right, titles = panels[0], panels[-1], {}
    for arm, lines in learned.items():
        for restart, line in enumerate(lines):
            x, mean, least, most = zip(*line, strict=True)
            left.plot(x, mean, color=seen[arm].colour, linewidth=0.8 if restart else 1.8, label=None if restart else short(arm))
            if not restart:
                left.fill_between(x, least, most, color=seen[arm].colour, alpha=0.18, linewidth=0)
    for number, (arm, rows) in enumerate(trials.items()):
        full = [row for row in rows if row[2] == "completed"]
        best = chosen(study, arm, full)
        for kind, some in (("full", full), ("cut", [row for row in rows if row not in full])):
            fill = {} if kind == "full" else {"markerfacecolor": "none"}
            right.plot([row[1] for row in some], [row[0] for row in some], "o", color=seen[arm].colour, markersize=4.5,
                       gid=f"{kind}{number}", label=short(arm) if kind == "full" else None, **fill)  # fmt: skip
            titles[f"{kind}{number}"] = [f"{row[3]}: rho {row[0]:.3g}, val {percent(row[1])}, {row[2]}" for row in some]
        if best:
            right.plot([best[1]], [best[0]], "*", color=seen[arm].colour, markersize=13, markeredgecolor=INK, markeredgewidth=0.5)
            for axes in panels:
                axes.axhline(best[0], color=seen[arm].colour, linewidth=1, linestyle=(0, (5, 3)))
    for axes in panels:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_yticks(ticks(low, high), [f"{v:g}" for v in ticks(low, high)])
        axes.minorticks_off()
        axes.grid(axis="y")
        legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderpad=0, handlelength=1.3, columnspacing=1)
        legend.set_visible(axes is left and bool(learned) or len(trials) > 1)
    left.set_ylabel("radius ρ")
    if learned:
        left.set_xlim(0, 1)
        left.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        left.set_xlabel("share of training done")
    if trials:
        right.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        right.set_xlabel("validation accuracy of the trial")
    if learned and trials:
        right.yaxis.tick_right()
        right.spines["left"].set_visible(False)
        right.spines["right"].set_visible(True)
    head = ("kind", "arm", "restart_or_trial", "fraction", "rho", "rho_low", "rho_high", "val_accuracy", "outcome")
    table: list[tuple[Any, ...]] = [
        ("learned", arm, i, *points, "", "") for arm, lines in learned.items() for i, line in enumerate(lines) for points in line
    ]
    table += [("searched", arm, row[3], "", row[0], "", "", row[1], row[2]) for arm, rows in trials.items() for row in rows]
    write_csv(directory / "radius.csv", head, table)
    ends = "; ".join(f"{arm} ends at {lines[0][-1][1]:.3g}" for arm, lines in learned.items())
    stars = "; ".join(f"{arm} chose {best[0]:.3g}" for arm, rows in trials.items() if (best := chosen(study, arm, rows)))
    told = []
    if learned:
        told.append("Learned, over training: mean and range over replicates; thin lines are restarts from other radii.")
    if trials:
        told.append("Searched: a dot per trial, hollow when it was stopped early; the star and the dashed line are the choice.")
    title = "The radius: learned beside searched" if len(told) > 1 else "The radius"
    return save(figure, directory, "radius", title, " ".join(told), f"Radius. {ends}. {stars}.", titles, range(count))


def spending(study: Study, arm: str) -> tuple[list[float], list[float]]:
    """What an arm had spent, and the best validation accuracy it had then: one search, or a mean over replicates."""
    search = study.of(arm=arm, phase="search")
    if search:
        sequences = [sorted(search, key=lambda run: (run.end or {}).get("time", math.inf))]
    else:
        groups: dict[Any, list[Run]] = {}
        for run in study.of(arm=arm, phase="final"):
            groups.setdefault(run.begin.get("replicate"), []).append(run)
        sequences = [sorted(runs, key=lambda run: run.begin.get("restart") or 0) for runs in groups.values()]
    curves = [curve for runs in sequences if (curve := anytime(runs))[0]]
    if not curves:
        return [], []
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = thinned(sorted({x for curve in curves for x in curve[0] if start <= x <= stop} | {start}))
    return grid, [sum(y[bisect.bisect(x, at) - 1] for x, y in curves) / len(curves) for at in grid]


def anytime(runs: Iterable[Run]) -> tuple[list[float], list[float]]:
    """Cumulated cost and best validation accuracy so far of runs made one after the other."""
    spent, best, x, y = 0.0, -math.inf, [], []
    for run in runs:
        for epoch in run.epochs:
            value, at = epoch.get("val/accuracy"), epoch.get("cost/gradients")
            if value is not None and at is not None and math.isfinite(value) and math.isfinite(at):
                best = max(best, value)
                x.append(spent + at)
                y.append(best)
        spent += run.cost
    return x, y


def paths(study: Study, arm: str) -> list[list[tuple[float, float, float, float]]]:
    """The radius by restart: (share of training, geometric mean, least, most) over replicates, per epoch."""
    restarts: dict[int, dict[float, list[float]]] = {}
    for run in study.of(arm=arm, phase="final"):
        total = (run.begin.get("config") or {}).get("train", {}).get("epochs") or len(run.epochs)
        for epoch in run.epochs:
            rho = epoch.get("sam/rho")
            if rho is not None and math.isfinite(rho) and rho > 0:
                line = restarts.setdefault(run.begin.get("restart") or 0, {})
                line.setdefault(epoch["epoch"] / total, []).append(rho)
    return [
        thinned([(at, math.exp(sum(map(math.log, v)) / len(v)), min(v), max(v)) for at, v in sorted(line.items())])
        for _, line in sorted(restarts.items())
    ]


def searched(study: Study, arm: str) -> list[tuple[float, float, str, str]]:
    """Trials as (rho, validation accuracy, outcome, run): those that have both."""
    found = []
    for run in study.of(arm=arm, phase="search"):
        rho, value = (run.begin.get("suggested") or {}).get("optim.rho"), val_accuracy(run)
        if isinstance(rho, int | float) and rho > 0 and math.isfinite(value):
            found.append((float(rho), value, run.outcome, run.name))
    return found


def chosen(study: Study, arm: str, rows: Sequence[tuple[float, float, str, str]]) -> tuple[float, float, str, str] | None:
    """The trial whose radius the final runs of the arm took, or else the best completed one."""
    full = [row for row in rows if row[2] == "completed"]
    taken = {((run.begin.get("config") or {}).get("optim") or {}).get("rho") for run in study.of(arm=arm, phase="final")}
    return max([row for row in full if row[0] in taken] or full, key=lambda row: row[1], default=None)


def val_accuracy(run: Run) -> float:
    """Validation accuracy of the final weights, or the last one known."""
    value = run.value("final/val_accuracy")
    return value if math.isfinite(value) else run.value("val/accuracy")


def labels_at_right(axes: Axes, ends: Mapping[str, float], seen: Mapping[str, Look], limits: tuple[float, float]) -> None:
    """Name the lines beside the axes, in the order of their ends, without overlap."""
    step, low = 0.068, 0.02
    order = sorted((arm for arm in ends if math.isfinite(ends[arm])), key=lambda arm: ends[arm])
    wanted = [(ends[arm] - limits[0]) / (limits[1] - limits[0]) for arm in order]
    at: list[float] = []
    for value in wanted:
        at.append(max(value, at[-1] + step if at else low))
    for i in reversed(range(len(at))):
        at[i] = min(at[i], at[i + 1] - step if i + 1 < len(at) else 0.98)
    for arm, y in zip(order, at, strict=True):
        look = seen[arm]
        axes.plot([1.045], [y], look.shape, color=look.colour, markersize=5, transform=axes.transAxes, clip_on=False)
        axes.text(1.085, y, short(arm, 20), va="center", fontsize=8, transform=axes.transAxes)


def new_figure(columns: int, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((PANEL[0] * columns, height))


def save(
    figure: Figure,
    directory: Path,
    name: str,
    title: str,
    caption: str,
    text: str,
    titles: Mapping[str, Sequence[str]],
    columns: Sequence[int],
) -> Drawing:
    """Write the figure as PNG and SVG, and cut it into panels for the page."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    figure.savefig(directory / f"{name}.png", dpi=150, facecolor="white")
    whole = panel(buffer.getvalue(), name, text, titles)
    alone = whole.replace("currentColor", INK).replace("<svg ", f'<svg xmlns="{SVG}" ', 1)
    (directory / f"{name}.svg").write_text(alone, encoding="utf-8")
    if len(columns) < 2:
        return Drawing(name, title, caption, [whole])
    cut = [panel(buffer.getvalue(), f"{name}-{i}", text, titles, (i, len(columns))) for i in columns]
    return Drawing(name, title, caption, cut)


def panel(
    svg: bytes, name: str, text: str, titles: Mapping[str, Sequence[str]], part: tuple[int, int] | None = None
) -> str:
    """SVG to put into a page: all of a figure, or only column i of n; points get their titles as tooltips."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = (float(v) for v in root.attrib["viewBox"].split())
    figure = next(g for g in root if g.get("id") == "figure_1")
    for found in root.findall(f"{{{SVG}}}defs"):  # a style sheet, which would reach beyond the figure
        if found.find(f"{{{SVG}}}style") is not None:
            root.remove(found)
    i, n = part or (0, 1)
    for group in list(figure):
        if part and (group.get("id") or "").startswith("axes_") and group.get("id") != f"axes_{i + 1}":
            figure.remove(group)
    for group in root.iter(f"{{{SVG}}}g"):
        points = [use for use in group.iter(f"{{{SVG}}}use")]
        told = titles.get(group.get("id") or "", ())
        for use, line in zip(points, told, strict=False) if len(points) == len(told) else ():
            ElementTree.SubElement(use, "title").text = line
    for element in root.iter():
        if not isinstance(element.tag, str):
            continue
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            key = key.rpartition("}")[2]
            value = f"{name}-{value}" if key == "id" else f"#{name}-{value[1:]}" if key == "href" else value
            value = value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
            element.set(key, re.sub(r"font-family:[^;]*;?\s*", "", value) if key == "style" else value)
    root.attrib.clear()
    root.set("viewBox", f"{width * i / n:g} 0 {width / n:g} {height:g}")
    root.set("role", "img")
    root.set("aria-label", text)
    root.set("style", f"font-family:{FONT};stroke-linejoin:round;stroke-linecap:butt")
    return ElementTree.tostring(root, encoding="unicode")


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 · 10^k between two positive numbers."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{m}e{k}") for k in decades for m in (1, 2, 5)]
    return [value for value in found if low <= value <= high]


def thinned(points: list[Any]) -> list[Any]:
    """At most POINTS of them, evenly, with the last."""
    stride = math.ceil(len(points) / POINTS) or 1
    return points[-1 :: -stride][::-1]


def short(name: str, length: int = 22) -> str:
    name = "".join(c for c in name if c.isprintable())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def percent(value: float) -> str:
    """An accuracy in [0, 1] as "95.5 %"; a dash when there is none."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def estimate(value: float, interval: tuple[float, float]) -> str:
    """An accuracy with its interval: "95.5 % [94.1, 96.9]"."""
    if not all(map(math.isfinite, interval)):
        return percent(value)
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
