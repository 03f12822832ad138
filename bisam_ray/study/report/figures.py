"""Which figures a report has, and how its arms look in them; canvas.py says how to add one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ledger import Study
from . import (
    fig_accuracy,
    fig_cost,
    fig_gap,
    fig_importance,
    fig_landscape,
    fig_radius,
    fig_search,
    fig_sensitivity,
)
from .canvas import COLOURS, OTHERS, Drawing, Figure, Look, save

if TYPE_CHECKING:
    from ..outcome import Summary

    Draw = Callable[[Study, Summary | None, Mapping[str, Look]], Figure | None]

# In the order of the page. To add a figure, add its function here.
ALL: Sequence[Draw] = (
    fig_accuracy.accuracy,
    fig_accuracy.differences,
    fig_cost.cost,
    fig_radius.radius,
    fig_sensitivity.sensitivity,
    fig_importance.importance,
    fig_importance.parallel,
    fig_gap.gap,
    fig_landscape.eigenvalue,
    fig_landscape.landscape,
    fig_search.rungs,
    fig_search.front,
)
OF_SEARCH = ("rungs", "pareto")  # shown beside what is said of the search


def draw(study: Study, summary: Summary | None, directory: Path) -> list[Drawing]:
    """Every figure for which the study has data; those of an earlier report are removed first."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in (path for kind in ("svg", "png", "csv") for path in directory.glob(f"*.{kind}")):
        old.unlink()
    seen = looks(study, summary)
    found = [figure for one in ALL if (figure := one(study, summary, seen))]
    return [save(figure, directory) for figure in found]


def looks(study: Study, summary: Summary | None) -> dict[str, Look]:
    """A look per arm, in the order in which the arms began."""
    known = {run.arm: (run.family, run.begin.get("radius_policy") or "fixed") for run in study.runs.values()}
    known |= {arm.arm: (arm.family, arm.radius_policy) for arm in summary.arms} if summary else {}
    others = [name for name in dict.fromkeys(name for name, _ in known.values()) if name not in COLOURS]
    colours = {**COLOURS, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}}
    return {arm: Look(name, colours[name], policy) for arm, (name, policy) in known.items()}
