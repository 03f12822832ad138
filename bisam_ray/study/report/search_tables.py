"""What a report says of a search: its result in a sentence, how trials went on, what re-runs confirmed, all trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..diagnosis import confirmation, pareto, sentences, survival, two_objectives, winner
from ..ledger import Run, Study
from ..selection import Estimate
from ..series import val_accuracy
from ..wording import estimate, percent

SHOWN = 100  # trials in a table of the page; all are in trials.csv


def result(study: Study) -> tuple[Run | None, str]:
    """The trial to use, and the search in one sentence."""
    trials = study.of(phase="search")
    found = [run for arm in study.searched_arms() if (run := winner(study, arm))]
    if not found:
        return None, f"No trial has completed: {counted(trials)}."
    best = max(found, key=val_accuracy)
    values = ", ".join(f"{key.removeprefix('optim.')} {short_value(v)}" for key, v in suggested(best).items())
    again = confirmation(study, best.arm)
    if again and again.winner is best:
        kept = again.candidates[0]
        draws = "a fresh draw" if again.n == 1 else f"{again.n} fresh draws"
        told = (
            f"Confirmed on {draws}: {values} reaches {spread(kept.val)} on validation and {spread(kept.test)} on test"
        )
        among = f"the best of {len(again.candidates)} candidates from" if len(again.candidates) > 1 else "the best of"
        return best, f"{told}, {among} {len(trials)} trials ({counted(trials)})."
    told = f"The best of {len(trials)} trials ({counted(trials)}) has {percent(val_accuracy(best))} on validation with "
    told += values
    if two_objectives(study) and (others := len(pareto(study, best.arm)) - 1):
        told += f"; {others} cheaper {'one is' if others == 1 else 'ones are'} on the front of {study.score} and cost"
    return best, f"{told}."


def section(study: Study, arm: str) -> dict[str, Any]:
    """What the page says of an arm's search, beside its trials."""
    keys, again = suggested_keys(study, arm), confirmation(study, arm)
    rows = survival(study, arm)
    return {
        "sentences": sentences(study, arm),
        "rungs": [
            {"rung": rung, "cutoff": percent(rung.cutoff), "at": f"{rung.epoch}, the end" if rung.last else rung.epoch}
            for rung in rows
        ]
        if len(rows) > 1
        else [],
        "spared": any(rung.spared for rung in rows),
        "draws": again.n if again else 0,
        "candidates": [
            {
                "name": c.trial.name,
                "values": ", ".join(
                    f"{key.removeprefix('optim.')} {short_value(suggested(c.trial)[key])}"
                    for key in keys
                    if key in suggested(c.trial)
                ),
                "selected": percent(c.selected),
                "val": spread(c.val),
                "change": f"{100 * (c.val.value - c.selected):+.1f}".replace("-", "−") if c.n else "–",
                "test": spread(c.test),
                "n": c.n,
                "lost": c.lost,
                "wins": again.winner is c.trial,
            }
            for c in again.candidates
        ]
        if again
        else [],
    }


def trial_tables(study: Study) -> list[dict[str, Any]]:
    """The trials by arm, best first: at most SHOWN, and how many more there are."""
    tables = []
    for arm in study.searched_arms():
        keys, best, trials = suggested_keys(study, arm), winner(study, arm), study.of(arm=arm, phase="search")
        rows: list[dict[str, Any]] = []
        for run in sorted(trials, key=trial_rank)[:SHOWN]:
            values = [short_value(suggested(run).get(key)) for key in keys]
            note = ", chosen" if run is best else ", control" if run.begin.get("control") else ""
            row = {"run": run, "values": values, "epochs": run.epoch, "val": percent(val_accuracy(run)), "note": note}
            rows.append({**row, "best": run is best})
        names = [key.removeprefix("optim.") for key in keys]
        table = {"arm": arm, "keys": names, "rows": rows, "n": len(trials), "outcomes": counted(trials)}
        tables.append({**table, "more": len(trials) - len(rows), "said": sentences(study, arm)})
    return tables


def trial_columns(study: Study) -> tuple[Sequence[str], list[list[Any]]]:
    """All trials as a table: its head and its rows."""
    keys = suggested_keys(study)
    head = ("arm", "run", *keys, "epochs", "val_accuracy", "cost_gradients", "outcome")
    rows = []
    for run in study.of(phase="search"):
        values = [suggested(run).get(key, "") for key in keys]
        rows.append([run.arm, run.name, *values, len(run.epochs), val_accuracy(run), run.cost, run.outcome])
    return head, rows


def suggested(run: Run) -> dict[str, Any]:
    return run.begin.get("suggested") or {}


def suggested_keys(study: Study, arm: str | None = None) -> list[str]:
    """Every searched key, in the order of its first use."""
    return list(dict.fromkeys(key for run in study.of(arm=arm, phase="search") for key in suggested(run)))


def counted(runs: Iterable[Run]) -> str:
    """How they ended: "9 completed, 6 pruned"."""
    return ", ".join(f"{n} {outcome}" for outcome, n in Counter(run.outcome for run in runs).most_common())


def trial_rank(run: Run) -> tuple[bool, float]:
    value = val_accuracy(run)
    return run.outcome != "completed", -value if math.isfinite(value) else math.inf


def spread(found: Estimate) -> str:
    return estimate(found.value, (found.low, found.high))


def short_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
