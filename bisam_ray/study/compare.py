"""The protocol: fixed against searched against learned radius, at equal cost.

1. Search. Each space is searched once, on a development draw of the data (split and noise seed 0): trials cost C_s.
2. Budget. C = the largest C_s + one full run. It is what one network costs a person who searches first.
3. Replicates. On each of n fresh draws of the data (seed, split_seed and noise_seed all 100 + r, the same for every
   arm: paired), an arm spends C:
       searched          one run of the best trial's values (the search was the rest of C)
       fixed, learned    as many full runs as C pays for, which differ in seed and, when learned, in ρ₀
   and keeps the network whose final weights are best on val. Its test accuracy is the arm's result.
4. Winner. The arm whose kept network does best on val. Taking the best of several runs flatters val, so each half of
   val judges what the other half chose; test has no say.

Intervals are 95 % t-intervals over replicates; differences are paired. Below ten replicates a verdict calls itself
indicative. Costs are gradient evaluations × examples: SGD 1 a step, SAM 2, LETS as it happens.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..config import PRESETS, Config, ConfigError, gradients_per_step, resolve
from ..progress import Progress
from ..training.launch import Job
from .domain import short
from .ledger import Run, Study
from .replicate import draw, run_all
from .selection import Estimate
from .selection import winner as best
from .session import Session
from .settings import Settings
from .spaces import Space, at_border, flat
from .tuning import search

WARMUP = 0.25
STARTS = (1.0, 2.0, 4.0)  # ρ₀ of the restarts of a learned arm, as multiples of the preset's
CONFIDENT = 10  # replicates from which a verdict is more than indicative


@dataclass(frozen=True)
class Arm:
    """One way to get a network: what it runs on every replicate."""

    name: str
    policy: str  # none | fixed | searched | learned
    layer: Mapping[str, Any]
    space: Space | None = None


@dataclass(frozen=True)
class ArmResult:
    """What an arm came to; accuracies in [0, 1], costs in gradient evaluations × examples and seconds."""

    arm: str
    method: str
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

    def of(self, arm: str) -> ArmResult:
        return next(result for result in self.arms if result.arm == arm)


def arms_of(spaces: Sequence[Space], also: Iterable[str] = ()) -> list[Arm]:
    """SGD; for each space its method fixed, fixed with warm-up, searched and learned; and the methods in `also`."""
    arms = [Arm("sgd", "none", {"method": "sgd"})]
    for space in spaces:
        for method in space.methods:
            preset = PRESETS[method]
            fixed = preset.get("objective") != "none" and preset.get("radius") != "learned"
            arms += of_method(method)
            arms += [Arm(f"{method} warm-up", "fixed", {"method": method, "optim.warmup": WARMUP})] if fixed else []
        arms.append(Arm(f"{space.name} searched", "searched", space.fix, space))
        arms += [arm for m in space.methods if f"lets-{m}" in PRESETS for arm in of_method(f"lets-{m}")]
    for method in also:
        arms += of_method(method)
    return list({arm.name: arm for arm in arms}.values())


def of_method(method: str) -> list[Arm]:
    """A preset as it is."""
    preset = PRESETS[method]
    policy = "none" if preset["objective"] == "none" else preset.get("radius", "fixed")
    return [Arm(method, policy, {"method": method})]


def compare(
    session: Session,
    spaces: Sequence[Space],
    files: Mapping[str, Any],
    overrides: Mapping[str, Any],
    settings: Settings,
    seeds: int,
    progress: Progress,
    also: Iterable[str] = (),
) -> Summary | None:
    """Run the protocol above, or what of it the session's ledger does not have yet; the result is read from there."""
    arms = arms_of(spaces, also)
    base = plan(arms, files, overrides)
    run_cost = {name: gradients_per_step(config) * config.train.epochs for name, config in base.items()}
    trials = settings.most
    guess = max((0.55 * trials * run_cost[arm.name] for arm in arms if arm.space), default=3 * max(run_cost.values()))
    searches = [arm for arm in arms if arm.space]
    progress.phase(guess * (len(searches) + seeds * (len(arms) - len(searches))))

    for arm in searches:
        assert arm.space is not None
        development = {**overrides, "data.split_seed": 0, "data.noise_seed": 0}
        search(session, arm.space, (files, development), settings, progress, arm.name)
    study = session.study()
    chosen: dict[str, Run] = {}
    for arm in searches:
        found = best(study, arm.name)
        if found is None:
            raise ConfigError(f"{arm.name}: no trial was completed; see {session.directory / 'ledger.jsonl'}")
        chosen[arm.name] = found
    budget = max((spent(study, arm.name) + run_cost[arm.name] for arm in searches), default=guess)

    jobs: list[tuple[Job, dict[str, Any]]] = []
    for arm in sorted(arms, key=lambda arm: -run_cost[arm.name]):  # long runs first: nobody waits for a late one
        searched = chosen.get(arm.name)
        restarts = 1 if searched else max(1, int(budget / run_cost[arm.name]))
        values = searched.begin["suggested"] if searched else {}
        for replicate, restart in itertools.product(range(seeds), range(restarts)):
            config = replicated(arm, base[arm.name], (files, arm.layer, values, overrides), replicate, restart)
            name = f"{arm.name.replace(' ', '-')}-r{replicate}-s{restart}"
            begin = {"arm": arm.name, "replicate": replicate, "restart": restart, "policy": arm.policy}
            jobs.append((Job(name, config, session.checkpoint(name), resume=True), begin))
    run_all(session, jobs, progress, settings.concurrency, "replicates at equal cost")
    return summarize(session.study())


def plan(arms: Sequence[Arm], files: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Config]:
    """Every arm's configuration, before anything runs: what contradicts itself is refused now."""
    configs = {}
    for arm in arms:
        try:
            configs[arm.name] = resolve(files, arm.layer, overrides)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name}: {error}") from None
    return configs


def replicated(arm: Arm, base: Config, layers: Sequence[Mapping[str, Any]], replicate: int, restart: int) -> Config:
    """One run of an arm: a fresh draw of the data per replicate, a fresh initialisation per restart."""
    drawn = draw(replicate, restart)
    if arm.policy == "learned" and base.optim.rho is not None:
        rho = base.optim.rho * STARTS[restart % len(STARTS)]
        drawn["optim.rho"] = min(max(rho, base.lets.rho_min), base.lets.rho_max)
    return resolve(*layers, drawn)


def spent(study: Study, arm: str) -> float:
    """What an arm's search cost, in gradient evaluations per step × epochs."""
    runs = study.of(arm=arm, phase="search")
    return sum(gradients_per_step(resolve(run.begin["config"])) * len(run.epochs) for run in runs)


def summarize(study: Study) -> Summary | None:
    """The result that a ledger holds; None when no arm has a finished replicate."""
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
        begin, searched = kept[arm][0].begin, study.of(arm=arm, phase="search")
        single = [min(of[r], key=lambda run: run.begin["restart"]).value("final/test_accuracy") for r in whole]
        restarts = max(len(of[r]) for r in whole)
        gaps = [a - b for a, b in zip(test[winner], test[arm], strict=True)]
        results.append(
            ArmResult(
                arm=arm,
                method=begin["method"],
                radius_policy=begin["radius_policy"],
                how=how(begin, searched, restarts, [run for r in whole for run in of[r]]),
                n=len(whole),
                restarts=restarts,
                test=test[arm],
                test_accuracy=fmean(test[arm]),
                ci95=interval(test[arm]),
                single_accuracy=fmean(single),
                single_ci95=interval(single),
                best_weights_accuracy=fmean(run.value("best/test_accuracy") for run in kept[arm]),
                val_accuracy=val[arm],
                cost_gradients=fmean(sum(run.cost for run in of[r]) for r in whole) + sum(run.cost for run in searched),
                cost_seconds=fmean(sum(run.seconds for run in of[r]) for r in whole)
                + sum(run.seconds for run in searched),
                rho_final=math.nan
                if begin["radius_policy"] == "none"
                else fmean(r.value("sam/rho") for r in kept[arm]),
                difference=None if arm == winner else (fmean(gaps), *interval(gaps)),
                config=begin["config"],
            )
        )
    results.sort(key=lambda result: -result.test_accuracy)
    budget = max(result.cost_gradients for result in results)
    return Summary(
        arms=results,
        winner=winner,
        verdict=verdict(results, winner),
        indicative=len(whole) < CONFIDENT,
        budget=budget,
        n=len(whole),
        notes=notes(study, results, len(replicates) - len(whole)),
    )


def crossed(restarts: Sequence[Run]) -> float:
    """Val accuracy of "the best of these runs": each half of val judges the run that the other half chose."""
    even, odd = "final/val_even", "final/val_odd"
    by_even = max(restarts, key=lambda run: run.value(even))
    by_odd = max(restarts, key=lambda run: run.value(odd))
    return (by_even.value(odd) + by_odd.value(even)) / 2


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t-interval of the mean; NaN for fewer than two values."""
    found = Estimate.of(values)
    return found.low, found.high


def how(begin: Mapping[str, Any], searched: Sequence[Run], restarts: int, runs: Sequence[Run]) -> str:
    """How an arm came to its network, in one phrase."""
    times = "one run" if restarts == 1 else f"best of {restarts} runs on val"
    optim = begin["config"]["optim"]
    warm = f", warm-up {optim['warmup']:.0%}" if optim.get("warmup") else ""
    match begin["radius_policy"]:
        case "searched":
            found = ", ".join(f"{k.removeprefix('optim.')} {short(v)}" for k, v in picked(begin, searched).items())
            return f"search of {len(searched)} trials → {found}; {times}"
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


def verdict(results: Sequence[ArmResult], winner: str) -> str:
    """One sentence: who wins, and whether learning or searching does."""
    best = next(result for result in results if result.arm == winner)
    others = [result for result in results if result.arm != winner]
    text = f"At equal cost {winner} wins, chosen on validation: {percent(best.test_accuracy)} test accuracy"
    if not math.isnan(best.ci95[0]):
        text += f" [{100 * best.ci95[0]:.1f}, {100 * best.ci95[1]:.1f}]"
    if others:
        rival = max(
            (r for r in others if {r.radius_policy, best.radius_policy} == {"searched", "learned"}),
            default=max(others, key=lambda r: r.test_accuracy),
            key=lambda r: r.test_accuracy,
        )
        assert rival.difference is not None
        mean, low, high = rival.difference
        shown = not math.isnan(low) and (low > 0 or high < 0)
        span = "" if math.isnan(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
        text += f"; against {rival.arm} {100 * mean:+.1f} points{span}: "
        text += f"{'better' if mean > 0 else 'worse'} on test" if shown else "no difference shown"
    return text + (f" (indicative: {best.n} replicates)." if best.n < CONFIDENT else f" ({best.n} replicates).")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def notes(study: Study, results: Sequence[ArmResult], left_out: int) -> list[str]:
    """What a careful reader should know, one sentence each."""
    found = [
        "The radius was searched once, on a development draw of the data, and used on every replicate; every other arm "
        "spent the same on restarts of each replicate and kept the best on validation.",
    ]
    if left_out:
        found.append(f"{left_out} replicates lack a finished run in some arm and are left out.")
    bad = [run for run in study.runs.values() if run.outcome in ("failed", "diverged", "killed")]
    if bad:
        found.append(
            f"{len(bad)} runs did not finish ({', '.join(sorted({run.outcome for run in bad}))}); none counts."
        )
    for result in results:
        if result.radius_policy == "learned":
            ends = study.of(arm=result.arm, phase="final", outcome="completed")
            bound = result.config["lets"]["rho_max"]
            stopped = sum(run.value("sam/rho") > 0.98 * bound for run in ends)
            if stopped:
                found.append(
                    f"{result.arm}: ρ reached its upper bound {bound:g} in {stopped} of {len(ends)} runs; there the "
                    "bound lets.rho_max, not the learning, set the final radius."
                )
    if study.header.get("space"):
        for content in study.header["space"]:
            space = Space.model_validate(content)
            winner = next((r for r in results if r.arm == f"{space.name} searched"), None)
            trial = best(study, winner.arm) if winner else None
            for key in at_border(space, trial.begin["suggested"]) if trial else ():
                found.append(
                    f"{space.name}: the best {key} lies at the border of its range; the optimum may be outside."
                )
    return found
