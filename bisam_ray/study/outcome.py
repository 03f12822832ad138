"""What a comparison came to: the ledger of its runs → arms, paired contrasts, a verdict in a sentence."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .arms import FOLLOWING, probe_of
from .contrasts import Contrast, contrasts_of, told_power
from .domain import short
from .ledger import Run, Study
from .remarks import notes
from .spaces import flat
from .statistics import Estimate
from .wording import capital, counted, estimate, points

CONFIDENT = 10  # replicates from which a verdict is more than indicative


@dataclass(frozen=True)
class ArmResult:
    """What an arm came to; accuracies in [0, 1], costs in gradient evaluations × examples and seconds.

    `kept` are the runs that count, one per replicate; `test` is their test accuracy. `difference` is the winner's lead
    over the arm with its 95 % interval. What an arm's search and its probe cost is part of its costs.
    """

    arm: str
    method: str
    family: str
    radius_policy: str
    how: str
    n: int
    restarts: int
    test: list[float]
    test_accuracy: float
    ci95: tuple[float, float]
    single_accuracy: float
    single_ci95: tuple[float, float]
    best_weights_accuracy: float
    val_accuracy: float
    cost_gradients: float
    cost_seconds: float
    rho_final: float
    difference: tuple[float, float, float] | None
    kept: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """The comparison's result."""

    arms: list[ArmResult]
    winner: str
    verdict: str
    indicative: bool
    budget: float
    n: int
    notes: list[str]
    contrasts: list[Contrast]
    power: str
    score: str = "accuracy"

    def of(self, arm: str) -> ArmResult:
        return next(result for result in self.arms if result.arm == arm)


def summarize(study: Study) -> Summary | None:
    """The result that a ledger holds; None when there is no replicate that every arm has finished."""
    runs: dict[str, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in study.of(phase="final", outcome="completed"):
        if run.begin["replicate"] is not None:
            runs[run.arm][run.begin["replicate"]].append(run)
    replicates = list(range(1 + max((max(of) for of in runs.values()), default=-1)))
    whole = [r for r in replicates if all(r in of for of in runs.values())]
    if not whole:
        return None
    kept = {
        arm: [max(of[r], key=lambda run: run.value("final/val_accuracy")) for r in whole] for arm, of in runs.items()
    }
    val = {arm: fmean(crossed(of[r]) for r in whole) for arm, of in runs.items()}
    test = {arm: [run.value("final/test_accuracy") for run in of] for arm, of in kept.items()}
    winner = max(val, key=lambda arm: val[arm])

    results = []
    for arm, of in runs.items():
        begin, before = kept[arm][0].begin, prepared(study, arm)
        single = [min(of[r], key=lambda run: run.begin["restart"]).value("final/test_accuracy") for r in whole]
        restarts = max(len(of[r]) for r in whole)
        lead = Estimate.of([a - b for a, b in zip(test[winner], test[arm], strict=True)])
        mean, alone = Estimate.of(test[arm]), Estimate.of(single)
        results.append(
            ArmResult(
                arm=arm,
                method=begin["method"],
                family=kept[arm][0].family,
                radius_policy=begin["radius_policy"],
                how=how(begin, study.of(arm=arm, phase="search"), restarts, [run for r in whole for run in of[r]]),
                n=len(whole),
                restarts=restarts,
                test=test[arm],
                test_accuracy=mean.value,
                ci95=within(mean),
                single_accuracy=alone.value,
                single_ci95=within(alone),
                best_weights_accuracy=fmean(run.value("best/test_accuracy") for run in kept[arm]),
                val_accuracy=val[arm],
                cost_gradients=fmean(sum(run.cost for run in of[r]) for r in whole) + sum(run.cost for run in before),
                cost_seconds=fmean(sum(run.seconds for run in of[r]) for r in whole)
                + sum(run.seconds for run in before),
                rho_final=math.nan
                if begin["radius_policy"] == "none"
                else fmean(run.value("sam/rho") for run in kept[arm]),
                difference=None if arm == winner else (lead.value, lead.low, lead.high),
                kept=[run.name for run in kept[arm]],
                config=begin["config"],
            )
        )
    results.sort(key=lambda result: -result.test_accuracy)
    contrasts = contrasts_of(results)
    return Summary(
        arms=results,
        winner=winner,
        verdict=verdict(results, winner, contrasts, study.score),
        indicative=len(whole) < CONFIDENT,
        budget=max(result.cost_gradients for result in results),
        n=len(whole),
        notes=notes(study, results, contrasts, len(replicates) - len(whole)),
        contrasts=contrasts,
        power=told_power(contrasts, len(whole)),
    )


def within(found: Estimate) -> tuple[float, float]:
    """The interval of an accuracy."""
    return max(found.low, 0.0), min(found.high, 1.0)  # this way round NaN stays


def prepared(study: Study, arm: str) -> list[Run]:
    """What was trained before an arm's replicates and is part of its cost: its search, and the run that it follows."""
    trials = study.of(arm=arm, phase="search")
    follows = bool(trials) and trials[0].begin["radius_policy"] in FOLLOWING
    probe = study.runs.get(probe_of(trials[0])) if follows else None
    return [*trials, probe] if probe else trials


def crossed(restarts: Sequence[Run]) -> float:
    """Val accuracy of "the best of these runs": each half of val judges the run that the other half chose."""
    even, odd = "final/val_even", "final/val_odd"
    by_even = max(restarts, key=lambda run: run.value(even))
    by_odd = max(restarts, key=lambda run: run.value(odd))
    return (by_even.value(odd) + by_odd.value(even)) / 2


def how(begin: Mapping[str, Any], searched: Sequence[Run], restarts: int, runs: Sequence[Run]) -> str:
    """How an arm came to its network, in one phrase."""
    times = "one run" if restarts == 1 else f"best of {restarts} runs on val"
    optim = begin["config"]["optim"]
    warm = f", warm-up {optim['warmup']:.0%}" if optim.get("warmup") else ""
    policy = begin["radius_policy"]
    found = ", ".join(f"{k.removeprefix('optim.')} {short(v)}" for k, v in picked(begin, searched).items())
    match policy:
        case "searched":
            return f"search of {len(searched)} trials → {found}; {times}"
        case "around":
            return f"search of {len(searched)} trials around the learned ρ{warm} → {found}; {times}"
        case "replayed":
            return f"the learned ρ(t) replayed, its peak found by {len(searched)} trials → {found}; {times}"
        case "learned":
            starts = sorted({run.begin["config"]["optim"]["rho"] for run in runs})
            return f"learned from ρ₀ {', '.join(f'{rho:g}' for rho in starts)}{warm}; {times}"
        case "fixed":
            return f"published ρ {optim['rho']:g}{warm}; {times}"
        case "scheduled":
            return f"ρ follows {optim['rho_schedule']}{warm}; {times}"
        case _:
            return f"no radius; {times}"


def picked(begin: Mapping[str, Any], searched: Sequence[Run]) -> dict[str, Any]:
    """The values a searched arm uses, of what was searched."""
    keys = dict.fromkeys(key for run in searched for key in run.begin["suggested"] or {})
    known = flat(begin["config"])
    return {key: known[key] for key in keys if key in known}


def verdict(results: Sequence[ArmResult], winner: str, contrasts: Sequence[Contrast], score: str) -> str:
    """One sentence: who wins on validation, and what the comparison shows about its first question."""
    best = next(result for result in results if result.arm == winner)
    reached = estimate(best.test_accuracy, best.ci95)
    text = f"At equal cost {winner} wins, chosen on validation: {reached.replace('%', f'% test {score}')}"
    first = [contrast for contrast in contrasts if contrasts[0].question == contrast.question]
    if len(first) == 1:
        text += f"; {first[0].told}"
    elif first:
        text += f". {first[0].question} {answered(first)}"
    return f"{text} ({'indicative: ' * (best.n < CONFIDENT)}{counted(best.n, 'replicate')})."


def answered(contrasts: Sequence[Contrast]) -> str:
    """What a question's contrasts say together."""
    shown = [contrast for contrast in contrasts if contrast.shown]
    if not shown:
        least, most = (points(end(c.mean for c in contrasts)) for end in (min, max))
        return f"No difference shown for any of {len(contrasts)} methods, {least} to {most} points"
    told = "; ".join(contrast.told for contrast in shown)
    rest = len(contrasts) - len(shown)
    return capital(told) + (f"; no difference shown for {rest} more" if rest else "")
