"""The report of a study: one HTML page that needs nothing else, figures with their numbers, the winner.

    report.html       a page without outside references; everything from the ledger is escaped
    figures/          each figure as .svg .png .csv; arms.csv and trials.csv: the tables
    winner.yaml       a configuration for `bisam-ray train -c winner.yaml`

All of it is a function of the ledger: it can be deleted and written again.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..diagnosis import bordered
from ..early import judged, leaning
from ..ledger import Study
from ..series import number, val_accuracy
from ..wording import percent
from .arm_tables import ARM_COLUMNS, Scale, arm_row, by_question, matrix, ranked, shown
from .canvas import MARKS, MILLION, Drawing, write_csv
from .figures import OF_SEARCH, draw, looks
from .search_tables import counted, result, section, short_value, trial_columns, trial_tables
from .stills import STYLE

if TYPE_CHECKING:
    from ..outcome import Summary

TEMPLATE = "page.html.j2"
LOST = ("failed", "diverged")
MANY = 8  # arms from which their table is folded
POLICIES = {
    "none": "no radius",
    "fixed": "published",
    "around": "learned, then searched around",
    "replayed": "learned, then replayed",
}


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
    cells = {arm.arm: shown(arm, seen[arm.arm], summary, Scale(arms)) for arm in arms} if summary else {}

    families = list(dict.fromkeys(look.family for look in seen.values()))
    here = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(TEMPLATE).render(
        study=study,
        kind=kind,
        summary=summary,
        verdict=title,
        partial=partial(study),
        date=when(study.header.get("time")),
        cautions=cautions(study, summary),
        arms=list(cells.values()),
        many=len(cells) > MANY,
        matrix=matrix(arms, cells, families),
        contrasts=by_question(summary.contrasts) if summary else {},
        looks=seen,
        families=families,
        policies=POLICIES,
        marks=MARKS,
        drawings=[drawing for drawing in drawings if drawing.figure.name not in OF_SEARCH],
        search=[section(study, arm) for arm in study.searched_arms()] if kind == "search" else [],
        search_drawings=[drawing for drawing in drawings if drawing.figure.name in OF_SEARCH],
        trials=trial_tables(study),
        facts=facts(study, summary),
        texts=texts(study),
        failures=failures(study),
        prunings=prunings(study),
        winner_yaml=dump(config) if config is not None else None,
        chosen_by="the winner" if summary else "the best trial",
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8") if drawings else "",
        library=library() if drawings else "",
        specs=packed(specs(drawings)),
    )
    path = study.directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def prepare() -> None:
    """Import what `render` needs, and unpack the library."""
    from .. import sensitivity

    sensitivity.prepare()
    library()


@cache
def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from what is installed: nothing is loaded when the page is read."""
    import vl_convert

    return packed(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def packed(text: str) -> str:
    """Text to stand in a page for its script to unpack: gzip in base64, a third of the size and nothing to escape."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def specs(drawings: Iterable[Drawing]) -> str:
    """What the page's script draws, as JSON."""
    figures = {drawing.figure.name: drawing.specs for drawing in drawings}
    return json.dumps({"style": STYLE, "figures": figures}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def cautions(study: Study, summary: Summary | None) -> list[str]:
    """What a reader should know before looking at any number, a sentence each."""
    if summary:
        few = f"Too few seeds: with {summary.n} replicate{'s' * (summary.n != 1)} a verdict is only indicative."
        return [*([few] if summary.indicative else []), *summary.notes]
    arms = study.searched_arms()
    told = [(arm, said) for arm in arms for said in (leaning(study, arm).warning, bordered(study, arm)) if said]
    return [f"{arm}: {said}" if len(arms) > 1 else said for arm, said in told]


def prunings(study: Study) -> list[tuple[str, str]]:
    """Of each searched arm, how many trials were stopped at which epoch."""
    found = []
    for arm in study.searched_arms():
        at: dict[int, int] = defaultdict(int)
        for run in study.of(arm=arm, phase="search", outcome="pruned"):
            at[judged(run) or 0] += 1
        if at:
            found.append((arm, ", ".join(f"{n} at epoch {epoch}" for epoch, n in sorted(at.items()))))
    return found


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


def when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "unknown"
