"""What a careful reader of a comparison should know, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .diagnosis import borders
from .early import leaning
from .ledger import Study
from .statistics import outlying
from .wording import counted

SEARCHED = ("searched", "around", "replayed")
BASES = {"adam": "Adam", "adamw": "AdamW"}

if TYPE_CHECKING:
    from .contrasts import Contrast
    from .outcome import ArmResult


def notes(study: Study, results: Sequence[ArmResult], contrasts: Sequence[Contrast], left_out: int) -> list[str]:
    """The protocol's limits, what is missing, what a bound or a border decided, what was perhaps stopped too early."""
    found = scored(study) + based(results)
    if any(result.radius_policy in SEARCHED for result in results):
        found.append(
            "The radius was searched once, on a development draw of the data, and used on every replicate; what an arm "
            "has left of the budget goes into restarts of each replicate, and the best on validation is kept."
        )
    if left_out:
        found.append(f"Left out: {counted(left_out, 'replicate')} without a finished run in some arm.")
    bad = [run for run in study.runs.values() if run.outcome in ("failed", "diverged", "killed")]
    if bad:
        outcomes = ", ".join(sorted({run.outcome for run in bad}))
        found.append(f"{len(bad)} runs did not finish ({outcomes}); none counts.")
    planned = (study.header.get("protocol") or {}).get("arms") or []
    if missing := [arm for arm in planned if all(arm != result.arm for result in results)]:
        found.append(f"{', '.join(missing)}: without a result; what the arm is built on did not finish.")
    return [*found, *bounded(study, results), *bordering(study, results), *hasty(study, results), *failing(results)]


def scored(study: Study) -> list[str]:
    """What decides where it is no accuracy."""
    told = f"The score of these data is {study.score}: in per cent, points are hundredths; files call it accuracy."
    return [told] * (study.score != "accuracy")


def based(results: Sequence[ArmResult]) -> list[str]:
    """What the arm without an ascent is where it is not SGD."""
    bases = [result.config.get("optim", {}).get("base") for result in results if result.arm == "sgd"]
    return [f"sgd is the base optimizer alone: {BASES[base]} here." for base in bases if base in BASES]


def bounded(study: Study, results: Sequence[ArmResult]) -> list[str]:
    """Learned radii that their upper bound decided."""
    told = []
    for result in results:
        if result.radius_policy == "learned":
            ends = study.of(arm=result.arm, phase="final", outcome="completed")
            bound = result.config["lets"]["rho_max"]
            if stopped := sum(run.value("sam/rho") > 0.98 * bound for run in ends):
                told.append(f"{result.arm} ({bound:g}) in {stopped} of {len(ends)} runs")
    if not told:
        return []
    where = f"ρ reached its upper bound: {', '.join(told)}"
    return [f"{where}; there lets.rho_max, not the learning, set the final radius."]


def bordering(study: Study, results: Sequence[ArmResult]) -> list[str]:
    """Optima at the end of what was searched."""
    found = {r.arm: borders(study, r.arm) for r in results if r.radius_policy in SEARCHED}
    told = [f"{arm} ({', '.join(keys)})" for arm, keys in found.items() if keys]
    return [f"The best value lies at the border of its range, the optimum may be outside: {', '.join(told)}."] * bool(
        told
    )


def hasty(study: Study, results: Sequence[ArmResult]) -> list[str]:
    """Searches that perhaps stopped their best trial; their own remarks say why."""
    found = [(r.arm, leaning(study, r.arm)) for r in results if r.radius_policy in SEARCHED]
    told = [(arm, one) for arm, one in found if one.warning]
    if not told:
        return []
    longer = max((one.longer for _, one in told if one.longer), default=None)
    advice = f"; give trials longer, --grace {longer}" if longer else ""
    arms = ", ".join(arm for arm, _ in told)
    return [f"Stopping early may have cost the best trial of {arms}{advice}. The report says why, search by search."]


def failing(results: Sequence[ArmResult]) -> list[str]:
    """Arms of which a replicate is far off: their mean is of two kinds of runs."""
    told = [f"{r.arm} ({len(far)} of {r.n})" for r in results if (far := outlying(r.test))]
    if not told:
        return []
    return [f"Some replicates lie far from the others, and intervals are not to be trusted: {', '.join(told)}."]
