"""What stopping early did to a search: who went on, whether early accuracy predicts the final one, whether it leans.

A large radius learns slowly at first. A scheduler that compares trials early may then stop just those that would have
been best; controls, which no scheduler stops, and the trials that ran to the end show whether it did.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .ledger import Run, Study
from .ranking import Correlation, by_chance, correlation, larger_share, ranks
from .series import number, val_accuracy

SOME = 6  # trials from which a leaning can be told
CHANCE = 0.1  # a leaning that chance would bring more often is none
MOST = 8  # rungs that are shown of a scheduler that may stop at every epoch


@dataclass(frozen=True)
class Rung:
    """An epoch at which trials were judged; the last one is the end of the run.

    `went_on` counts trials with a later epoch (at the end: completed ones), `spared` the controls that would have been
    stopped here, and `cutoff` is the best val accuracy that did not suffice (NaN: none was stopped).
    """

    epoch: int
    reached: int
    stopped: int
    went_on: int
    spared: int
    cutoff: float
    last: bool = False


@dataclass(frozen=True)
class Prediction:
    """How well val accuracy at an epoch ranks trials as the final one does: all full-length trials, and controls."""

    epoch: int
    all: Correlation
    controls: Correlation


@dataclass(frozen=True)
class Missed:
    """A control that the scheduler would have stopped, and that was among the best third in the end."""

    run: Run
    epoch: int
    place: int


@dataclass(frozen=True)
class Leaning:
    """Whether stopping early favours small radii.

    rise    Spearman of log ρ and the places gained between the first rung and the end, over full-length trials
    p       how often chance alone would bring as much (one-sided, by permutations)
    larger  share of the pairs (stopped at the first rung, went on) in which the stopped trial has the larger radius
    longer  the grace period to try next; None: none is left but the whole run
    """

    epoch: int
    n: int
    rise: float = math.nan
    p: float = math.nan
    larger: float = math.nan
    missed: list[Missed] = field(default_factory=list)
    longer: int | None = None

    @property
    def leans(self) -> bool:
        return self.n >= SOME and self.rise > 0 and self.p < CHANCE and self.larger > 0.5

    @property
    def warning(self) -> str | None:
        """What was seen and what to do, in a sentence; None: nothing to worry about."""
        told = []
        if self.leans:
            told.append(
                f"it leans to small radii: larger ones gained places after epoch {self.epoch} (rank correlation "
                f"{self.rise:.2f} over {self.n} trials, p {self.p:.2g}), and in {100 * self.larger:.0f} % of pairs the "
                "trial stopped there had a larger radius than the one that went on"
            )
        if self.missed:
            best = min(self.missed, key=lambda m: m.place)
            more = f" (so were {len(self.missed) - 1} more like it)" if len(self.missed) > 1 else ""
            told.append(
                f"the control {best.run.name}, to be stopped at epoch {best.epoch}, came {ordinal(best.place)} of "
                f"{self.n} at the end{more}"
            )
        if not told:
            return None
        todo = f"give trials longer, e.g. --grace {self.longer}" if self.longer else "stop none: --scheduler none"
        return f"Stopping early may have cost the best trial: {'; '.join(told)}. Next time {todo}."


def survival(study: Study, arm: str) -> list[Rung]:
    """Every rung of a search, and its end; empty when nothing was tried."""
    trials = study.of(arm=arm, phase="search")
    if not trials:
        return []
    found = []
    for epoch in rungs(study, arm):
        here = [run for run in trials if judged(run) == epoch]
        stopped = [run for run in here if run.outcome == "pruned"]
        values = [accuracy_at(run, epoch) for run in here]
        found.append(
            Rung(
                epoch,
                sum(run.epoch >= epoch for run in trials),
                len(stopped),
                sum(run.epoch > epoch for run in trials),
                sum(run.outcome == "completed" for run in here),
                max((value for value in values if math.isfinite(value)), default=math.nan),
            )
        )
    done = sum(run.outcome == "completed" for run in trials)
    reached = sum(run.epoch >= length(run) for run in trials)
    return [*found, Rung(usual_length(trials), reached, 0, done, 0, math.nan, last=True)]


def rank_correlation(study: Study, arm: str) -> list[Prediction]:
    """Whether val accuracy at a rung ranks trials as their final val accuracy does, over all that ran to the end.

    Those that ASHA let go on are a selection by the early value, over which a correlation is smaller than over all
    trials; the controls are not selected. A search without rungs is asked about a quarter of the run.
    """
    found = []
    for epoch in rungs(study, arm) or [first(study, arm)]:
        runs = [run for run in full_length(study, arm) if math.isfinite(accuracy_at(run, epoch)) and run.epoch > epoch]
        controls = [run for run in runs if run.begin.get("control")]
        found.append(Prediction(epoch, early_final(runs, epoch), early_final(controls, epoch)))
    return found


def leaning(study: Study, arm: str) -> Leaning:
    """Whether stopping early leans to small radii, and what it missed.

    Both signs of a leaning must agree before it is one. A noisy rung alone makes good trials rise: if large radii are
    simply better, they rise and they survive, which is no reason to wait longer.
    """
    epoch, runs = first(study, arm), full_length(study, arm)
    places = {run.name: place for place, run in enumerate(sorted(runs, key=val_accuracy, reverse=True), 1)}
    missed = []
    for run in runs:
        stopped = judged(run)
        if stopped is not None and places[run.name] <= len(runs) // 3:
            missed.append(Missed(run, stopped, places[run.name]))
    known = [run for run in runs if radius(run) > 0 and math.isfinite(accuracy_at(run, epoch)) and run.epoch > epoch]
    rise, p = math.nan, math.nan
    if len(known) >= SOME:
        gained = ranks([val_accuracy(run) for run in known]) - ranks([accuracy_at(run, epoch) for run in known])
        rise, p = by_chance([radius(run) for run in known], gained)
    trials = [run for run in study.of(arm=arm, phase="search") if radius(run) > 0]
    here = [radius(run) for run in trials if judged(run) == epoch]
    on = [radius(run) for run in trials if judged(run) != epoch and run.epoch > epoch]
    late = max([epoch, *(m.epoch for m in missed)])
    total = usual_length(study.of(arm=arm, phase="search"))
    later = next((at for at in rungs(study, arm) if at > late), min(2 * late, total - 1))
    return Leaning(epoch, len(runs), rise, p, larger_share(here, on), missed, later if late < later < total else None)


def rungs(study: Study, arm: str) -> list[int]:
    """Where trials were judged: as the settings say, or else where some were stopped (at most MOST of these epochs)."""
    if recorded := settings(study).get("rungs"):
        return [int(epoch) for epoch in recorded]
    count = Counter(at for run in study.of(arm=arm, phase="search") if (at := judged(run)))
    return sorted(epoch for epoch, _ in count.most_common(MOST))


def first(study: Study, arm: str) -> int:
    """The first rung; without rungs a quarter of the run."""
    at = rungs(study, arm)
    return at[0] if at else max(1, round(usual_length(study.of(arm=arm, phase="search")) / 4))


def settings(study: Study) -> dict[str, Any]:
    """How the search was made, as far as the ledger knows."""
    return (study.header.get("protocol") or {}).get("settings") or {}


def full_length(study: Study, arm: str) -> list[Run]:
    """The trials that ran to the end, controls included."""
    done = study.of(arm=arm, phase="search", outcome="completed")
    return [run for run in done if math.isfinite(val_accuracy(run))]


def judged(run: Run) -> int | None:
    """The epoch at which the scheduler stopped a trial, or would have stopped the control."""
    stopped = (run.end or {}).get("stopped")
    if stopped is not None:
        return int(stopped)
    return run.epoch if run.outcome == "pruned" else None


def accuracy_at(run: Run, epoch: int) -> float:
    return next((number(e.get("val/accuracy")) for e in run.epochs if e["epoch"] == epoch), math.nan)


def radius(run: Run) -> float:
    """The radius that was suggested, or else configured; NaN: none."""
    suggested, optim = run.begin.get("suggested") or {}, (run.begin.get("config") or {}).get("optim") or {}
    rho = number(suggested.get("optim.rho", optim.get("rho")))
    return rho if 0 < rho < math.inf else math.nan


def length(run: Run) -> int:
    """The epochs of the whole run."""
    return int(((run.begin.get("config") or {}).get("train") or {}).get("epochs") or run.epoch)


def usual_length(trials: Sequence[Run]) -> int:
    """The commonest length of a whole run; 1 when nothing ran."""
    return max(1, Counter(map(length, trials)).most_common(1)[0][0]) if trials else 1


def early_final(runs: Sequence[Run], epoch: int) -> Correlation:
    return correlation([accuracy_at(run, epoch) for run in runs], [val_accuracy(run) for run in runs])


def ordinal(place: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(place % 10 if place % 100 not in (11, 12, 13) else 0, "th")
    return f"{place}{ending}"
