"""A study in a page of Markdown, for MLflow's descriptions and for a pull request: `summary.md`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ledger import Study
from ..wording import points
from .search_tables import result

if TYPE_CHECKING:
    from ..outcome import ArmResult, Summary

FILE = "summary.md"


def write(study: Study, summary: Summary | None) -> Path | None:
    """Write `summary.md` of a comparison or a search; None, and no file, where nothing is finished."""
    path = study.directory / FILE
    told = text(study, summary)
    if told is None:
        path.unlink(missing_ok=True)
        return None
    path.write_text(told, encoding="utf-8")
    return path


def text(study: Study, summary: Summary | None) -> str | None:
    """Verdict, table of arms, table of contrasts, remarks."""
    if study.header.get("kind") == "search":
        best, told = result(study)
        return f"**{safe(told)}**\n" if best else None
    if summary is None:
        return None
    parts = [f"**{safe(summary.verdict)}**"]
    rows = [row(arm, summary) for arm in sorted(summary.arms, key=lambda arm: -arm.test_accuracy)]
    parts.append(
        table(("arm", f"test {study.score} [95 %]", "winner ahead by, points", "ρ at the end", "cost / C"), rows)
    )
    if summary.contrasts:
        made: list[tuple[str, ...]] = [
            (
                contrast.question,
                f"{contrast.first} − {contrast.second}",
                points(contrast.mean, contrast.low, contrast.high),
                f"{contrast.p_holm:.3f}",
                "yes" if contrast.shown else "no",
            )
            for contrast in summary.contrasts
        ]
        parts.append(table(("question", "difference of", "points [95 %]", "p after Holm", "shown"), made))
        parts.append(safe(summary.power))
    parts.append("\n".join(f"- {safe(note)}" for note in summary.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def row(arm: ArmResult, summary: Summary) -> tuple[str, ...]:
    """An arm."""
    name = f"**{safe(arm.arm)}** (wins)" if arm.arm == summary.winner else safe(arm.arm)
    low, high = arm.ci95
    span = "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    rho = "–" if math.isnan(arm.rho_final) else f"{arm.rho_final:.3g}"
    ahead = points(*arm.difference) if arm.difference else "–"
    return name, f"{100 * arm.test_accuracy:.1f} %{span}", ahead, rho, f"{arm.cost_gradients / summary.budget:.2f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def safe(value: Any) -> str:
    """Text of a user as Markdown shows it: no tables, links or tags of its own."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\|*_`])", r"\\\1", text).replace("<", "&lt;").replace("](", "]\\(")
