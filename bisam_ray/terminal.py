"""What a person reads on a terminal when a verb is done; at most 78 columns where there is prose."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .results import Comparison, SearchResult
from .study.storage import remote


def comparison(result: Comparison) -> str:
    """A comparison: the table of arms, the verdict, what to know about it, where to go on."""
    from .study.report import table

    if result.outcome is None:
        return f"no arm has a finished replicate; report {result.report}"
    lines = ["", table(result.outcome), "", *wrapped([result.outcome.verdict]), "", *wrapped(result.outcome.notes)]
    storage = result.study.directory.parent
    where = "" if storage == Path("runs").resolve() else f" --storage {remote(storage) or storage}"
    return "\n".join([*lines, "", *links(result.study.directory), f"MLflow   bisam-ray ui{where}"])


def search(result: SearchResult) -> str:
    """A search: how its trials ended, what that says, where to go on."""
    from .study.diagnosis import sentences
    from .study.report import winner

    study = result.study
    lines = [
        "{study}: {trials} trials, {completed} completed, {pruned} pruned, {failed} failed".format(**result.summary())
    ]
    lines += wrapped([f"replayed {told}" for told in [study.header["protocol"].get("replayed")] if told])
    lines += ["", *wrapped([winner(study, None)[1]]), ""]
    for arm in dict.fromkeys(run.arm for run in study.of(phase="search")):
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
