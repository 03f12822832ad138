"""The report of a study: one HTML page that needs nothing else, figures with their numbers, the winner.

    report.html       a page without scripts or outside references; everything from the ledger is escaped
    figures/          accuracy, cost, radius, rungs, pareto: each .svg .png .csv; arms.csv and trials.csv: the tables
    winner.yaml       a configuration for `bisam-ray train -c winner.yaml`

All of it is a function of the ledger: it can be deleted and written again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .canvas import Look, estimate, percent, write_csv
from .figures import MILLION, OF_SEARCH, draw, looks
from .ledger import Study
from .search_report import counted, result, searched_arms, section, short_value, trial_columns, trial_tables
from .series import number, val_accuracy

if TYPE_CHECKING:
    from .compare import ArmResult, Summary

TEMPLATE = "report.html.j2"
LOST = ("failed", "diverged")
MARKS = {  # the shapes of canvas.SHAPES, in a box of 12
    "none": "M2 2H10V10H2Z",
    "fixed": "M6 1.6A4.4 4.4 0 1 1 5.99 1.6Z",
    "searched": "M6 .8 11.2 6 6 11.2 .8 6Z",
    "learned": "M6 1.2 11 10.6H1Z",
}
POLICIES = {"none": "no radius", "fixed": "fixed", "searched": "searched", "learned": "learned"}


def render(study: Study, summary: Summary | None) -> Path:
    """Write the report of a study, finished or not, and return the page.

    A study whose ledger ends as `interrupted`, or which has runs without an end, calls itself partial.

    Args:
        study: the ledger, read.
        summary: the comparison's result; None shows what there is without one.
    """
    from jinja2 import Environment, FileSystemLoader

    kind, figures = study.header.get("kind") or "study", study.directory / "figures"
    if kind == "search":  # its re-runs compare candidates, not arms
        summary = None
    drawings = draw(study, summary, figures)
    config, title = winner(study, summary)
    reuse = study.directory / "winner.yaml"
    if config is None:
        reuse.unlink(missing_ok=True)
    else:
        reuse.write_text(heading(study, title) + dump(config), encoding="utf-8")
    seen = looks(study, summary)
    arms = sorted(summary.arms, key=lambda arm: -ranked(arm)) if summary else []
    write_csv(figures / "arms.csv", ARM_COLUMNS, [arm_row(arm) for arm in arms])
    write_csv(figures / "trials.csv", *trial_columns(study))

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        study=study,
        kind=kind,
        summary=summary,
        verdict=title,
        partial=partial(study),
        date=when(study.header.get("time")),
        arms=[shown(arm, seen[arm.arm], summary, Scale(arms)) for arm in arms] if summary else [],
        looks=seen,
        policies=POLICIES,
        marks=MARKS,
        drawings=[drawing for drawing in drawings if drawing.name not in OF_SEARCH],
        search=[section(study, arm) for arm in searched_arms(study)] if kind == "search" else [],
        search_drawings=[drawing for drawing in drawings if drawing.name in OF_SEARCH],
        trials=trial_tables(study),
        facts=facts(study, summary),
        texts=texts(study),
        failures=failures(study),
        winner_yaml=dump(config) if config is not None else None,
        chosen_by="the winner" if summary else "the best trial",
    )
    path = study.directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def table(summary: Summary) -> str:
    """The comparison for a terminal: a line per arm, at most 78 columns wide."""
    lines = [f"  {'arm':<24} {'test accuracy [95 %]':<21} {'radius':>8} {'cost / C':>9} {'seconds':>8}"]
    for arm in sorted(summary.arms, key=lambda arm: -ranked(arm)):
        name = arm.arm if len(arm.arm) <= 24 else f"{arm.arm[:22]}.."
        accuracy = estimate(arm.test_accuracy, arm.ci95).replace("–", "-")
        cells = [f"{name:<24} {accuracy:<21}", f"{rho(arm.rho_final, '-'):>8}"]
        cells += [f"{relative(arm, summary):>9.2f}", f"{arm.cost_seconds:>8.0f}"]
        lines.append(f"{'*' if arm.arm == summary.winner else ' '} {' '.join(cells)}")
    budget = f"C = {summary.budget / MILLION:.2f} M gradients x examples"
    return "\n".join([*lines, f"* wins, by validation; n = {summary.n}; {budget}"])


ARM_COLUMNS = (
    *("arm", "method", "radius_policy", "how", "n", "restarts", "rho_final"),
    *("test_accuracy", "test_low", "test_high", "single_accuracy", "single_low", "single_high"),
    *("best_weights_accuracy", "val_accuracy", "cost_gradients", "cost_seconds"),
    *("winner_ahead_by", "winner_ahead_low", "winner_ahead_high"),
)


def arm_row(arm: ArmResult) -> list[Any]:
    """An arm in the order of ARM_COLUMNS."""
    row = [arm.arm, arm.method, arm.radius_policy, arm.how, arm.n, arm.restarts, arm.rho_final]
    row += [arm.test_accuracy, *arm.ci95, arm.single_accuracy, *arm.single_ci95, arm.best_weights_accuracy]
    return [*row, arm.val_accuracy, arm.cost_gradients, arm.cost_seconds, *(arm.difference or ("", "", ""))]


class Scale:
    """Where accuracies lie on the little bars of the table, from 3 to 97 on a width of 100."""

    def __init__(self, arms: Sequence[ArmResult]) -> None:
        values = [v for arm in arms for v in (arm.test_accuracy, *arm.ci95) if math.isfinite(v)] or [0.0, 1.0]
        self.low, self.span = min(values), max(max(values) - min(values), 1e-3)

    def __call__(self, value: float) -> float:
        return round(3 + 94 * min(1.0, max(0.0, (value - self.low) / self.span)), 1)


def shown(arm: ArmResult, look: Look, summary: Summary, scale: Scale) -> dict[str, Any]:
    """What the page says about an arm."""
    ahead, *span = [points(value) for value in arm.difference or (math.nan, math.nan, math.nan)]
    return {
        "name": arm.arm,
        "how": arm.how,
        "look": look,
        "wins": arm.arm == summary.winner,
        "rho": rho(arm.rho_final),
        "accuracy": percent(arm.test_accuracy),
        "interval": interval(arm.ci95),
        "bar": [scale(v) for v in arm.ci95] if all(map(math.isfinite, arm.ci95)) else None,
        "dot": scale(arm.test_accuracy) if math.isfinite(arm.test_accuracy) else None,
        "single": percent(arm.single_accuracy),
        "single_interval": interval(arm.single_ci95),
        "val": percent(arm.val_accuracy),
        "best_weights": percent(arm.best_weights_accuracy),
        "ahead": ahead,
        "ahead_interval": f"[{', '.join(span)}]" if "–" not in span else "",
        "relative": f"{relative(arm, summary):.2f}",
        "millions": f"{arm.cost_gradients / MILLION:.2f}",
        "seconds": f"{arm.cost_seconds:.0f}" if math.isfinite(arm.cost_seconds) else "–",
        "n": arm.n,
    }


def winner(study: Study, summary: Summary | None) -> tuple[Mapping[str, Any] | None, str]:
    """What to train with next, if that is known, and the study's result in one sentence."""
    if summary:
        return next((arm.config for arm in summary.arms if arm.arm == summary.winner), None), summary.verdict
    trials = study.of(phase="search")
    if study.header.get("kind") == "compare":
        done = len(study.of(outcome="completed"))
        return None, f"No comparison yet: not every arm has a finished replicate; {done} runs are complete."
    if not trials:
        runs = list(study.runs.values())
        told = f"{len(runs)} runs: {counted(runs)}" if runs else "Nothing has run yet"
        if len(runs) == 1:
            val, test = val_accuracy(runs[0]), number(runs[0].value("final/test_accuracy"))
            told = f"{runs[0].arm}, {runs[0].outcome}: {percent(val)} on validation, {percent(test)} on test"
        return None, f"{told}."
    best, title = result(study)
    return best.begin.get("config") if best else None, title


def partial(study: Study) -> str | None:
    """Why the study is not whole, in a few words."""
    outcome = study.finish["outcome"] if study.finish else None
    if outcome in ("interrupted", "failed"):
        return f"{outcome}: partial"
    running = len(study.of(outcome="running"))
    return f"unfinished: partial, {running} runs under way" if running and not study.finish else None


def heading(study: Study, title: str) -> str:
    """The comment above the winner's configuration."""
    parts = [f"study    {study.name}", f"verdict  {title}", f"date     {when(study.header.get('time'))}"]
    lines = [line for part in parts for line in part.splitlines()]
    return "".join(f"# {line}\n" for line in [*lines, "again    bisam-ray train -c winner.yaml"])


def dump(config: Mapping[str, Any]) -> str:
    """A configuration as YAML, without nulls."""
    return yaml.safe_dump(without_nulls(config), sort_keys=False, allow_unicode=True)


def without_nulls(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: without_nulls(value) for key, value in content.items() if value is not None}
    return content


def failures(study: Study) -> list[dict[str, Any]]:
    """What went wrong, each kind of error once, with its last line and the runs it hit."""
    hit: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in study.runs.values():
        if run.outcome in LOST:
            lines = str((run.end or {}).get("error") or "no reason was recorded").strip().splitlines()
            hit[run.outcome, lines[-1][:300] if lines else ""].append(run.name)
    return [{"outcome": outcome, "error": error, "runs": runs} for (outcome, error), runs in hit.items()]


def facts(study: Study, summary: Summary | None) -> list[tuple[str, str]]:
    """How it was done: pairs of a name and a value."""
    header, config = study.header, study.header.get("config") or {}
    found = [("Date", when(header.get("time")))]
    if summary:
        gradients = "gradient evaluations × examples (SGD 1, SAM 2 per example and step; LETS as measured)"
        found.append(("Budget C", f"{summary.budget / MILLION:.2f} million {gradients}"))
    for part in ("data", "model", "train", "scale"):
        if config.get(part):
            found.append((part.capitalize(), told(config[part])))
    for key, value in (header.get("protocol") or {}).items():
        if not (isinstance(value, str) and "\n" in value):
            found.append((key.replace("_", " ").capitalize(), told(value)))
    found += [("Hardware", str(header["hardware"]))] if header.get("hardware") else []
    found += [("Versions", told(header["versions"]))] if header.get("versions") else []
    return [*found, ("Runs", counted(study.runs.values()) or "none")]


def texts(study: Study) -> Iterator[tuple[str, str]]:
    """The longer parts of the protocol, to be unfolded."""
    for key, value in (study.header.get("protocol") or {}).items():
        if isinstance(value, str) and "\n" in value:
            yield ("The protocol" if key == "text" else key.replace("_", " ").capitalize()), value.strip("\n")
    if study.header.get("space"):
        yield "The search space", yaml.safe_dump(study.header["space"], sort_keys=False, allow_unicode=True)
    if study.header.get("config") and study.header.get("kind") != "compare":  # there it is one arm's
        yield "The configuration", dump(study.header["config"])


def told(value: Any) -> str:
    """Nested values on one line."""
    if isinstance(value, Mapping):
        return " · ".join(f"{str(key).replace('_', ' ')} {told(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(told, value))
    return short_value(value)


def relative(arm: ArmResult, summary: Summary) -> float:
    """What an arm cost, in units of the budget C."""
    return arm.cost_gradients / summary.budget if summary.budget else math.nan


def rho(value: float, none: str = "–") -> str:
    """A radius with three digits."""
    return f"{value:.3g}" if math.isfinite(value) else none


def points(share: float) -> str:
    """A difference of accuracies in points, signed."""
    return f"{100 * share:+.1f}".replace("-", "−") if math.isfinite(share) else "–"


def interval(ends: tuple[float, float]) -> str:
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if all(map(math.isfinite, ends)) else ""


def ranked(arm: ArmResult) -> float:
    """Test accuracy for sorting; arms without one come last."""
    return arm.test_accuracy if math.isfinite(arm.test_accuracy) else -math.inf


def when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "unknown"
