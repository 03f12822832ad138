"""What a careful reader of a comparison should know, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .diagnosis import borders
from .early import leaning
from .ledger import Study
from .statistics import outlying

if TYPE_CHECKING:
    from .contrasts import Contrast
    from .outcome import ArmResult


def notes(study: Study, results: Sequence[ArmResult], contrasts: Sequence[Contrast], left_out: int) -> list[str]:
    """The protocol's limits, what is missing, what a bound or a border decided, what was perhaps stopped too early."""
    found = [
        "The radius was searched once, on a development draw of the data, and used on every replicate; every other arm "
        "spent the same on restarts of each replicate and kept the best on validation.",
    ]
    if left_out:
        found.append(f"{left_out} replicates lack a finished run in some arm and are left out.")
    bad = [run for run in study.runs.values() if run.outcome in ("failed", "diverged", "killed")]
    if bad:
        outcomes = ", ".join(sorted({run.outcome for run in bad}))
        found.append(f"{len(bad)} runs did not finish ({outcomes}); none counts.")
    planned = (study.header.get("protocol") or {}).get("arms") or []
    if missing := [arm for arm in planned if all(arm != result.arm for result in results)]:
        found.append(f"{', '.join(missing)}: without a result; what the arm is built on did not finish.")
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
        elif result.radius_policy in ("searched", "around", "replayed"):
            for key in borders(study, result.arm):
                found.append(
                    f"{result.arm}: the best {key} lies at the border of its range; the optimum may be outside."
                )
            if warning := leaning(study, result.arm).warning:
                found.append(f"{result.arm}: {warning}")
        if far := outlying(result.test):
            found.append(
                f"{result.arm}: {len(far)} of {result.n} replicates lie far from the others; its intervals are not to "
                "be trusted."
            )
    return found
