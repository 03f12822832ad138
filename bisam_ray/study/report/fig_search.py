"""The figures of a search: early against final accuracy, and the front of accuracy and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..diagnosis import pareto, spanned, two_objectives, winner
from ..early import accuracy_at, first, full_length, judged, radius, rank_correlation
from ..ledger import Run, Study
from ..series import val_accuracy
from ..wording import capital, percent
from .canvas import GREY, MILLION, STAR, Figure, Look, axis, hue, lit, rows, told

if TYPE_CHECKING:
    from ..outcome import Summary

SIZES = (22, 48, 100)  # of a mark, in square pixels: small, middle and large radii
STARRED = {"type": "point", "shape": STAR, "size": 220, "stroke": "currentColor", "strokeWidth": 0.6}


def searched_arm(study: Study) -> str | None:
    """The arm of a study that is a search and nothing else."""
    tried = study.of(phase="search") if study.header.get("kind") == "search" else []
    return tried[0].arm if tried else None


def rungs(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """Val accuracy at the first rung against the final one, a mark per full-length trial; None when there is none."""
    arm = searched_arm(study)
    if arm is None:
        return None
    epoch, best = first(study, arm), winner(study, arm)
    runs = [run for run in full_length(study, arm) if run.epoch > epoch and math.isfinite(accuracy_at(run, epoch))]
    if not runs:
        return None
    groups = by_radius(runs)
    values = [
        {
            "arm": arm,
            "run": run.name,
            "early": accuracy_at(run, epoch),
            "final": val_accuracy(run),
            "rho": f"{radius(run):.3g}" if radius(run) > 0 else "–",
            "radius": label,
            "kind": kind(run),
            "best": run is best,
        }
        for label, some in groups
        for run in some
    ]
    kinds = [name for name in KINDS if any(value["kind"] == name for value in values)]
    labels = [label for label, _ in groups]
    sizes = SIZES[-len(labels) :] if len(labels) > 1 else SIZES[1:2]
    many = len(kinds) > 1
    tip = told(
        ("run", "trial", None),
        ("rho", "ρ", None),
        ("early", f"at epoch {epoch}", ".1%"),
        ("final", "at the end", ".1%"),
        ("kind", "", None),
    )
    both = {
        "x": axis("early", f"validation {study.score} at epoch {epoch}", "percent"),
        "y": axis("final", f"final validation {study.score}", "percent"),
        "color": hue(seen),
        "tooltip": tip,
    }
    marks = {
        **both,
        "size": {
            "field": "radius",
            "type": "ordinal",
            "scale": {"domain": labels, "range": list(sizes)},
            "legend": {"title": "radius ρ", "symbolType": "circle"} if len(labels) > 1 else None,
        },
        "shape": {
            "field": "kind",
            "type": "nominal",
            "scale": {"domain": kinds, "range": [KINDS[k] for k in kinds]},
            "legend": {"title": None} if many else None,
        },
        "opacity": lit(0.85),
    }
    layers: list[dict[str, Any]] = []
    for full in (True, False):
        some = [value for value in values if (value["kind"] != SPARED) is full and not value["best"]]
        if some:
            layers.append({"data": rows(some), "mark": {"type": "point", "filled": full}, "encoding": marks})
    layers.append({"data": rows([v for v in values if v["best"]]), "mark": STARRED, "encoding": both})
    found = rank_correlation(study, arm)[0].all
    how = "too few to tell" if math.isnan(found.value) else f"rank correlation {spanned(found)}"
    caption = f"The {len(runs)} trials that ran to the end: {how}. The star is the choice."
    caption += " Marks grow with the radius." if len(labels) > 1 else ""
    if any(run.begin.get("control") for run in runs):
        caption += " No scheduler stops a control; a hollow one would have been."
    return Figure(
        "rungs",
        f"Early against final {study.score}",
        caption,
        f"Epoch {epoch} against the end: {how}.",
        [{"height": 300, "layer": layers}],
        ("run", "rho", "control", "stopped_at", "val_accuracy_early", "val_accuracy_final"),
        [
            (r.name, radius(r), bool(r.begin.get("control")), judged(r) or "", accuracy_at(r, epoch), val_accuracy(r))
            for r in runs
        ],
    )


SPARED = "control, to be stopped"
KINDS = {"trial": "circle", "control": "diamond", SPARED: "diamond"}


def kind(run: Run) -> str:
    """Whether it is a control, and whether the scheduler would have stopped it."""
    if judged(run) is not None:
        return SPARED
    return "control" if run.begin.get("control") else "trial"


def by_radius(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """(label, runs) of three groups of radii that are equally wide on a logarithmic scale; one without radii."""
    rhos = [radius(run) for run in runs]
    low, high = (f([r for r in rhos if r > 0], default=math.nan) for f in (min, max))
    if not low < high:
        return [("", list(runs))]
    edges = [low * (high / low) ** (k / 3) for k in range(4)]
    found = [("none", [run for run, rho in zip(runs, rhos, strict=True) if math.isnan(rho)])]
    for k, (start, end) in enumerate(pairwise(edges)):
        some = [r for r, rho in zip(runs, rhos, strict=True) if start <= rho and (rho < end or k == 2)]
        found.append((f"{start:.2g}–{end:.2g}", some))
    return [group for group in found if group[1]][-3:]


def front(study: Study, summary: Summary | None, seen: Mapping[str, Look]) -> Figure | None:
    """Val accuracy against cost, a mark per completed trial, the front connected; None when there is none."""
    arm = searched_arm(study)
    best = pareto(study, arm) if arm is not None and two_objectives(study) else []
    if arm is None or not best:
        return None
    runs, names = full_length(study, arm), {run.name for run in best}
    values = [
        {
            "arm": arm,
            "run": run.name,
            "x": run.cost / MILLION,
            "y": val_accuracy(run),
            "on": run.name in names,
        }
        for run in runs
    ]
    tip = told(("run", "trial", None), ("x", "cost, millions", ".3~g"), ("y", "validation", ".1%"))
    both: dict[str, Any] = {
        "x": axis("x", "gradient evaluations × examples, millions"),
        "y": axis("y", f"final validation {study.score}", "percent"),
    }
    stair = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.2, "tooltip": None}
    layers = [
        {"data": rows([v for v in values if v["on"]]), "mark": stair, "encoding": {**both, "color": hue(seen)}},
        {
            "data": rows(values),
            "mark": {"type": "point"},
            "encoding": {
                **both,
                "color": {**hue(seen), "condition": {"test": "!datum.on", "value": GREY}},
                "size": {"condition": {"test": "datum.on", "value": 75}, "value": 30},
                "tooltip": tip,
            },
        },
    ]
    text = "; ".join(f"{run.name} {percent(val_accuracy(run))} for {run.cost / MILLION:.3g} million" for run in best)
    return Figure(
        "pareto",
        f"{capital(study.score)} against the cost of a run",
        "A mark per completed trial; on the front, in colour, none is both better and cheaper.",
        f"The front: {text}.",
        [{"height": 300, "layer": layers}],
        ("run", "cost_gradients", "val_accuracy", "on_the_front"),
        [(run.name, run.cost, val_accuracy(run), run.name in names) for run in runs],
    )
