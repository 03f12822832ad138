"""Can a search be trusted? What the ledger knows of it, in a few plain sentences; without Ray, MLflow or torch.

early.py       what stopping early did: survival, rank_correlation, leaning
selection.py   what the choice is worth: winner, confirmation, regret, pareto
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from .early import leaning, length, ordinal, rank_correlation, settings, survival
from .ledger import Run, Study
from .ranking import Correlation
from .selection import Estimate, confirmation, pareto, regret, winner
from .series import val_accuracy
from .spaces import Space, at_border
from .wording import capital, counted, percent


def sentences(study: Study, arm: str) -> list[str]:
    """What one should know of a search, at most eight sentences."""
    if not study.of(arm=arm, phase="search"):
        return []
    found = [survived(study, arm), predicted(study, arm), leaning(study, arm).warning, lucky(study, arm)]
    found += [*confirmed(study, arm), bordered(study, arm), traded(study, arm)]
    return [sentence for sentence in found if sentence]


def survived(study: Study, arm: str) -> str:
    """How many trials came how far, and what that saved."""
    trials = study.of(arm=arm, phase="search")
    *rungs, end = survival(study, arm)
    told = f"{counted(len(trials), 'trial')}: "
    if rungs:
        told += f"{rungs[0].reached} came to epoch {rungs[0].epoch}, where {rungs[0].stopped} were stopped; "
    told += f"{end.went_on} ran to the end"
    controls = sum(bool(run.begin.get("control")) for run in trials if run.outcome == "completed")
    told += f", {controls} of them as controls, which nothing stops" if controls else ""
    whole = sum(map(length, trials))
    saved = sum(length(run) - run.epoch for run in trials if run.outcome == "pruned")
    return told + (f". Stopping early saved {100 * saved / whole:.0f} % of the epochs." if saved else ".")


def predicted(study: Study, arm: str) -> str | None:
    """Whether early accuracy predicts the final one, at the first rung."""
    first, *_ = rank_correlation(study, arm)
    found = first.all
    if math.isnan(found.value):
        few = counted(found.n, "full-length trial")
        return f"{few}: too few to tell whether {study.score} at epoch {first.epoch} predicts the final one."
    how = "is not shown to predict"
    if found.low > 0:
        how = "predicts" if found.value >= 0.7 else "only loosely predicts"
    told = f"{capital(study.score)} at epoch {first.epoch} {how} the final one: rank correlation {spanned(found)} "
    told += f"over {found.n} full-length trials"
    if not math.isnan(first.controls.value):
        told += f", {spanned(first.controls)} over the {first.controls.n} controls"
    return told + "."


def lucky(study: Study, arm: str) -> str | None:
    """How much of the chosen value is luck, and what was probably missed."""
    found = regret(study, arm)
    if found is None:
        return None
    told = f"The chosen trial had {percent(found.selected)} on validation, of which one may expect "
    told += f"{percent(found.shrunken)}: a value's noise is {100 * found.noise:.1f} points. "
    told += f"Choosing by such values costs {100 * found.regret:.1f} points on average, "
    return told + f"against the truly best of the {found.n} full-length trials."


def confirmed(study: Study, arm: str) -> list[str]:
    """What fresh draws left of the candidates' values."""
    found = confirmation(study, arm)
    if found is None or not found.n:
        return []
    draws = counted(found.n, "fresh draw")
    told = f"On {draws} the {counted(sum(not c.lost for c in found.candidates), 'candidate')} came to "
    told += f"{change(found.regression)} on validation than in the search"
    if len(found.candidates) > 1:
        told += f", the one that had looked best to {change(found.regression_of_best)}"
    sentences = [f"{told}."]
    if found.winner:
        by_val = sorted((c.trial for c in found.candidates), key=val_accuracy, reverse=True)
        place = 1 + by_val.index(found.winner)
        if place > 1:
            sentences.append(f"The re-runs chose {found.winner.name}, which had been {ordinal(place)} in the search.")
    if lost := [c.trial.name for c in found.candidates if c.lost]:
        sentences.append(f"A re-run of {', '.join(lost)} failed or diverged: it cannot win.")
    return sentences


def bordered(study: Study, arm: str) -> str | None:
    """Values of the winner at the end of their range."""
    keys = borders(study, arm)
    if not keys:
        return None
    lie = "lies at the border of its range" if len(keys) == 1 else "lie at the borders of their ranges"
    return f"The winner's {' and '.join(keys)} {lie}: the best may be outside; widen the space."


def borders(study: Study, arm: str) -> list[str]:
    """The keys whose winning value lies at the border of its range."""
    best, space = winner(study, arm), space_of(study, arm)
    if best is None or space is None:
        return []
    return at_border(space, best.begin.get("suggested") or {})


def space_of(study: Study, arm: str) -> Space | None:
    """The space that an arm searched, if the ledger holds one that is understood."""
    content = study.spaces.get(arm) or study.header.get("space") or []
    spaces: list[dict[str, Any]] = [content] if isinstance(content, dict) else content
    fitting = spaces if len(spaces) == 1 else [s for s in spaces if arm in (s.get("name"), f"{s.get('name')} searched")]
    try:
        return Space.model_validate(fitting[0]) if fitting else None
    except ValidationError:  # written by another version
        return None


def traded(study: Study, arm: str) -> str | None:
    """The front of accuracy and cost, when both were objectives."""
    if not two_objectives(study):
        return None
    front = pareto(study, arm)
    if not front:
        return None
    cheap, best = front[0], front[-1]
    told = f"{counted(len(front), 'trial')} on the front of {study.score} and cost: "
    told += f"from {percent(val_accuracy(cheap))} for {millions(cheap)}"
    return told + (f" to {percent(val_accuracy(best))} for {millions(best)}." if len(front) > 1 else ".")


def two_objectives(study: Study) -> bool:
    return "cost" in (settings(study).get("objectives") or ())


def millions(run: Run) -> str:
    size, unit = (1e6, "million") if run.cost >= 1e5 else (1e3, "thousand")
    return f"{run.cost / size:.3g} {unit} gradients × examples"


def spanned(found: Correlation) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def change(loss: Estimate) -> str:
    """A loss of accuracy in points, with its interval: "1.2 points less [0.3, 2.1]"."""
    sign = 1 if loss.value >= 0 else -1
    told = f"{100 * abs(loss.value):.1f} points {'less' if sign > 0 else 'more'}"
    if math.isnan(loss.low):
        return told
    low, high = sorted((100 * sign * loss.low, 100 * sign * loss.high))
    return f"{told} [{low:.1f}, {high:.1f}]".replace("-", "−")
