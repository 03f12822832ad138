"""The protocol: fixed against searched against learned radius, at equal cost.

1. Search. Each space is searched once, on a development draw of the data (split and noise seed 0): its trials cost C_s.
   A learned radius is probed once on the same draw; searches that follow it may spend C_s less the probe.
2. Budget. C = the largest cost of a search and its probe + one full run. It is what one network costs a person who
   searches first. It is forecast before anything runs, and known when the searches are done. (Without a search: three
   runs of the dearest method.)
3. Replicates. On each of n fresh draws of the data (seed, split_seed and noise_seed all 100 + r, the same for every
   arm: paired), an arm spends C:
       searched, around, replayed   runs of the best trial's values: one, or as many as what is left of C pays for
       fixed, learned               as many full runs as C pays for, which differ in seed and, when learned, in ρ₀
   and keeps the network whose final weights are best on val. Its test accuracy is the arm's result.
4. Winner. The arm whose kept network does best on val. Taking the best of several runs flatters val, so each half of
   val judges what the other half chose; test has no say.
5. Claims. Paired differences of test accuracy for the questions of contrasts.py, which are fixed beforehand, with 95 %
   t-intervals; a difference is called shown when its sign-flip permutation test passes 5 % after Holm's correction over
   all of them.

Below ten replicates a verdict calls itself indicative. Costs are gradient evaluations × examples: SGD 1 a step, SAM 2,
LETS as it happens. Afterwards the kept networks of the first replicates are measured: top Hessian eigenvalue and loss
landscape, which are in nobody's budget.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Config, gradients_per_step, resolve
from ..progress import Progress
from ..training import cluster, launch
from ..training.launch import Failure, Job
from .arms import RHO, Arm, derived, probe_of, start_of
from .domain import short
from .ledger import Run, Study
from .outcome import Summary, prepared, summarize
from .plan import Plan, run_cost
from .replicate import draw, run_all
from .search import Search
from .selection import winner as best
from .session import Session
from .settings import Settings
from .tuning import train

DEVELOPMENT = {"data.split_seed": 0, "data.noise_seed": 0}
MEASURED = 3  # replicates whose kept networks are measured unless told otherwise; the first one's landscape is drawn
MEASURING = 15.0  # what that takes for each, in gradient evaluations per step × epochs: for the time that is left


def compare(session: Session, plan: Plan, progress: Progress, measure: int = MEASURED) -> Summary | None:
    """Run the protocol above, or what of it the session's ledger does not have yet; the result is read from there.

    Args:
        measure: replicates whose kept networks are measured.
    """
    arms, base, foreseen = plan.arms, plan.base, plan.forecast()
    progress.say(foreseen.told())
    after = foreseen.finals + MEASURING * len(arms) * min(plan.seeds, measure)
    chosen = searches(session, plan, progress, foreseen.trials, after)
    study = session.study()
    cost, before, budget = affordable(plan, study, chosen)
    budget = budget or foreseen.budget

    jobs: list[tuple[Job, dict[str, Any]]] = []
    for arm in sorted(arms, key=lambda arm: -cost[arm.name]):  # long runs first: nobody waits for a late one
        if arm.space is not None and arm.name not in chosen:
            continue  # remarks.py tells
        layers = plan.layers(arm, chosen.get(arm.name, {}))
        restarts = max(1, int((budget - before[arm.name]) / cost[arm.name] + 1e-9))
        for replicate, restart in itertools.product(range(plan.seeds), range(restarts)):
            config = replicated(arm, base[arm.name], layers, replicate, restart)
            name = f"{arm.name.replace(' ', '-')}-r{replicate}-s{restart}"
            begin = {"arm": arm.name, "family": arm.family, "replicate": replicate, "restart": restart}
            begin["policy"] = arm.policy
            jobs.append((Job(name, config, session.checkpoint(name), resume=True), begin))
    progress.later = after - foreseen.finals
    run_all(session, jobs, progress, plan.settings.concurrency, "replicates at equal cost")
    progress.later = 0.0
    summary = summarize(session.study())
    if summary is not None and measure:
        flatness(session, summary, progress, plan.settings.concurrency, measure)
    return summary


def affordable(
    plan: Plan, study: Study, chosen: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float], float]:
    """What a run of each arm costs with the values that its search chose, what came before its runs, and the budget C
    (0 without a search): in gradient evaluations per step × epochs."""
    cost = {arm.name: run_cost(resolve(*plan.layers(arm, chosen.get(arm.name, {})))) for arm in plan.arms}
    before = {arm.name: spent(study, arm.name) for arm in plan.arms}
    return cost, before, max((before[name] + cost[name] for name in chosen), default=0.0)


def searches(
    session: Session, plan: Plan, progress: Progress, trials: float, after: float
) -> dict[str, dict[str, Any]]:
    """Make the probes and the searches; arm → the config values to use. An arm whose search found nothing has none.

    Args:
        trials: what a search will probably cost, in full runs of its method.
        after: the work that follows them.
    """
    before = session.study()
    left = {
        arm.name: max(0.0, trials * run_cost(plan.base[arm.name]) - spent(before, arm.name))
        for arm in plan.arms
        if arm.space
    }
    probes: dict[str, tuple[Job, dict[str, Any]]] = {}
    for arm in plan.arms:
        if arm.probes and (name := probe_of(arm)) not in probes:
            config = resolve(plan.files, {"method": f"lets-{arm.family}"}, {**plan.overrides, **DEVELOPMENT})
            begin = {"arm": f"lets-{arm.family}", "family": arm.family, "phase": "probe", "policy": "learned"}
            probes[name] = Job(name, config, session.checkpoint(name), resume=True, test=False), begin
    progress.later = after + sum(left.values())
    run_all(session, list(probes.values()), progress, plan.settings.concurrency, "learned radii to follow")
    chosen: dict[str, dict[str, Any]] = {}
    for later in (False, True):  # what follows a probe may spend what the plain searches did
        arms = [arm for arm in plan.arms if arm.space and arm.probes == later]
        study, history = session.study(), session.events()
        made = [one for arm in arms if (one := searching(session, plan, arm, progress, study, history))]
        progress.later = after + (0.0 if later else sum(left[arm.name] for arm in plan.arms if arm.probes))
        together(session, made, plan, progress)
        study = session.study()
        for search in made:
            if found := best(study, search.arm):
                chosen[search.arm] = {**search.space.fix, **found.begin["suggested"]}
    return chosen


def searching(
    session: Session, plan: Plan, arm: Arm, progress: Progress, study: Study, history: Sequence[Mapping[str, Any]]
) -> Search | None:
    """An arm's search; None when the radius that it follows was not learned. `study` and `history` are the ledger."""
    space, settings = arm.space, plan.settings
    assert space is not None
    if arm.probes:
        probe = study.runs[probe_of(arm)]
        if probe.outcome != "completed":
            return None
        space, settings = derived(arm, probe), following(study, arm, plan, probe)
    session.space(arm.name, space, study)
    layers, begin = (plan.files, {**plan.overrides, **DEVELOPMENT}), {"policy": arm.policy, "family": arm.family}
    return Search(session, space, layers, settings, progress, arm.name, begin=begin, history=history)


def together(session: Session, searches: Sequence[Search], plan: Plan, progress: Progress) -> None:
    """Make what is left of searches, beside each other, and tell what each found."""
    left = [search for search in searches if not search.over()]
    if not left:
        return
    cluster.connect()
    cluster.check_shared(session.root)
    at_once, _ = cluster.room(plan.example, plan.settings.concurrency)
    progress.phase(sum(search.remaining(search.expected()) for search in left), "searching")
    train(left, at_once)
    study = session.study()
    for search in left:
        trials, found = study.of(arm=search.arm, phase="search"), best(study, search.arm)
        runs = sum(gradients_per_step(resolve(trial.begin["config"])) * len(trial.epochs) for trial in trials)
        told = f"{len(trials)} trials for the cost of {runs / run_cost(search.example):.1f} runs"
        if found is not None:
            values = ", ".join(
                f"{key.removeprefix('optim.')} {short(v)}" for key, v in found.begin["suggested"].items()
            )
            told += f"; best {found.value('final/val_accuracy'):.1%} on val at {values}"
        progress.say(f"{search.arm}: {told}")


def following(study: Study, arm: Arm, plan: Plan, probe: Run) -> Settings:
    """A search behind a probe may spend what the search of the same space did, less the probe."""
    plain = next((other for other in plan.arms if other.space is arm.space and other.policy == "searched"), None)
    if plain is None:
        return plan.settings
    left = sum(run.cost for run in study.of(arm=plain.name, phase="search")) - probe.cost
    return dataclasses.replace(plan.settings, gradients=max(left, 1.0))


def replicated(arm: Arm, base: Config, layers: Sequence[Mapping[str, Any]], replicate: int, restart: int) -> Config:
    """One run of an arm: a fresh draw of the data per replicate, a fresh initialisation per restart."""
    drawn = draw(replicate, restart)
    if arm.policy == "learned" and (rho := start_of(base, restart)) is not None:
        drawn[RHO] = rho
    return resolve(*layers, drawn)


def spent(study: Study, arm: str) -> float:
    """What came before an arm's replicates, in gradient evaluations per step × epochs."""
    return sum(gradients_per_step(resolve(run.begin["config"])) * len(run.epochs) for run in prepared(study, arm))


def flatness(session: Session, summary: Summary, progress: Progress, at_once: int | None, measure: int) -> None:
    """Measure the kept networks of the first replicates, those that the ledger does not have yet."""
    known = session.study().runs
    wanted = [
        (name, session.checkpoint(name), replicate == 0)
        for arm in summary.arms
        for replicate, name in enumerate(arm.kept[:measure])
        if "flatness" not in known[name].measured
    ]
    if not wanted:
        return
    cluster.connect()
    example = resolve(known[wanted[0][0]].begin["config"])
    at_once, _ = cluster.room(example, at_once)
    progress.phase(MEASURING * len(wanted), "curvature and landscape of the kept networks")
    progress.update("curvature and landscape of the kept networks")
    for name, values in launch.measured(wanted, example.scale, at_once):
        if isinstance(values, Failure):
            progress.say(f"{name}: its curvature could not be measured: {values.error.strip().splitlines()[-1]}")
        else:
            session.measure(name, "flatness", values)
        progress.update("curvature and landscape of the kept networks", MEASURING)
