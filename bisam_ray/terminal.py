"""What a person reads on a terminal when a verb is done; at most 78 columns where there is prose."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Comparison, SearchResult
from .study.storage import remote

if TYPE_CHECKING:
    from .study.outcome import Summary


def comparison(result: Comparison) -> str:
    """A comparison: the table of arms, the verdict, what each question's contrasts say, notes, where to go on."""
    from .study.report.arm_tables import table

    if result.outcome is None:
        return f"no arm has a finished replicate; report {result.report}"
    found = result.outcome
    lines = ["", table(found), "", *wrapped([found.verdict]), "", *contrasts(found), *wrapped(found.notes)]
    storage = result.study.directory.parent
    where = "" if storage == Path("runs").resolve() else f" --storage {remote(storage) or storage}"
    return "\n".join([*lines, "", *links(result.study.directory), f"MLflow   bisam-ray ui{where}"])


def contrasts(found: Summary) -> list[str]:
    """A line per comparison of two arms, by question: difference in points, 95 %, p after Holm; * if it is shown."""
    from .study.report.arm_tables import probability

    if not found.contrasts:
        return []
    lines = [f"  {'first - second':<41} {'points [95 %]':<21} {'p (Holm)':>8}"]
    for question in dict.fromkeys(made.question for made in found.contrasts):
        lines.append(question)
        for made in found.contrasts:
            if made.question == question:
                pair = f"{clipped(made.first, 19)} - {clipped(made.second, 19)}"
                span = f" [{100 * made.low:+.1f}, {100 * made.high:+.1f}]" if math.isfinite(made.low) else ""
                points, p = f"{100 * made.mean:+.1f}{span}", probability(made.p_holm).replace("–", "-")
                lines.append(f"{'*' if made.shown else ' '} {pair:<41} {points:<21} {p:>8}")
    shown = sum(made.shown for made in found.contrasts)
    lines.append(f"* a difference is shown: {shown} of {len(found.contrasts)}")
    return [*lines, *wrapped([found.power] if found.power else []), ""]


def clipped(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 2]}.."


def search(result: SearchResult) -> str:
    """A search: how its trials ended, what that says, where to go on."""
    from .study.diagnosis import sentences
    from .study.report.page import winner

    study = result.study
    lines = [
        "{study}: {trials} trials, {completed} completed, {pruned} pruned, {failed} failed".format(**result.summary())
    ]
    lines += wrapped([f"replayed {told}" for told in [study.header["protocol"].get("replayed")] if told])
    lines += ["", *wrapped([winner(study, None)[1]]), ""]
    for arm in study.searched_arms():
        lines += wrapped(sentences(study, arm))
    return "\n".join([*lines, "", *links(study.directory)])


def links(directory: Path) -> list[str]:
    """The report, and the configuration to use."""
    winner = directory / "winner.yaml"
    lines = [f"report   {directory / 'report.html'}"]
    return [*lines, f"again    bisam-ray train -c {winner}"] if winner.exists() else lines


def wrapped(sentences: Iterable[str]) -> list[str]:
    return [line for told in sentences for line in textwrap.wrap(told, 78, subsequent_indent="  ")]


def studies(rows: list[dict[str, Any]], storage: str) -> str:
    """A line per study."""
    if not rows:
        return f"no studies in {storage} yet; 'bisam-ray demo' makes one"
    lines = [f"{'study':32} {'kind':8} {'runs':>5} {'size':>8} {'best':>7}  state"]
    for row in rows:
        best = f"{row['best']:.1%}" if row["best"] is not None else "-"
        lines.append(
            f"{row['study']:32} {row['kind']:8} {row['runs']:5} {readable(row['size']):>8} {best:>7}  {row['state']}"
        )
    return "\n".join(lines)


def readable(size: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
