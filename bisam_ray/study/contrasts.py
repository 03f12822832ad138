"""The comparisons that are made, laid down before anything is seen, and what each shows.

In every family of arms, in this order of interest: learned or searched; searched or published; learned or published; a
search around the learned radius or of the whole range; the learned ρ(t) replayed or a constant searched radius. Across
families: searched ASAM and BiSAM against searched SAM; published SAM against SGD. Holm corrects over all of them. An
arm that is in none of these, a warm-up or a method that was added, has its interval in the table and no claim.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from .statistics import LEVEL, Estimate, detectable, effect, holm, needed, sign_flip
from .wording import counted, points

if TYPE_CHECKING:
    from .outcome import ArmResult

QUESTIONS = (
    ("Search or learn the radius?", "learned", "searched"),
    ("Does a search beat the published radius?", "searched", "fixed"),
    ("Does learning beat the published radius?", "learned", "fixed"),
    ("Does a learned radius help the search?", "around", "searched"),
    ("Is the learned ρ(t) better than a constant one?", "replayed", "searched"),
)
OBJECTIVE = "Does the method beat SAM, both searched?"
SHARPNESS = "Does SAM beat SGD?"
POWER = 0.8


@dataclass(frozen=True)
class Contrast:
    """One comparison of two arms over n replicates; mean = first − second in test accuracy, in [−1, 1].

    low, high: 95 %, studentized, not corrected. p: sign flips; p_holm: corrected over all contrasts, and `shown` is
    p_holm ≤ 5 %. effect: Hedges' g.
    """

    question: str
    first: str
    second: str
    family: str
    n: int
    mean: float
    low: float
    high: float
    effect: float
    spread: float
    p: float
    p_holm: float
    shown: bool
    told: str


def pairs(arms: Sequence[ArmResult]) -> Iterator[tuple[str, ArmResult, ArmResult]]:
    """(question, first, second) of what is compared: an order that no result has a say in."""
    plain = [arm for arm in arms if not (arm.radius_policy == "fixed" and arm.arm != arm.method)]  # without warm-ups
    by: dict[tuple[str, str], list[ArmResult]] = defaultdict(list)
    for arm in sorted(plain, key=lambda arm: arm.arm):
        by[arm.family, arm.radius_policy].append(arm)
    families = sorted({arm.family for arm in plain})
    for question, first, second in QUESTIONS:
        for family in families:
            yield from asked(question, by[family, first], by[family, second])
    for family in families:
        if family != "sam":
            yield from asked(OBJECTIVE, by[family, "searched"], by["sam", "searched"])
    yield from asked(SHARPNESS, by["sam", "fixed"], by["sgd", "none"])


def asked(question: str, ones: list[ArmResult], others: list[ArmResult]) -> Iterator[tuple[str, ArmResult, ArmResult]]:
    """Each against each: with two searches of a method none is picked."""
    return ((question, one, other) for one in ones for other in others)


def contrasts_of(arms: Sequence[ArmResult]) -> list[Contrast]:
    """Every comparison that the arms allow, the most interesting question first."""
    made = list(pairs(arms))
    differences = [[a - b for a, b in zip(one.test, two.test, strict=True)] for _, one, two in made]
    ps = [sign_flip(values) for values in differences]
    return [
        contrast(question, one, two, values, p, p_holm)
        for (question, one, two), values, p, p_holm in zip(made, differences, ps, holm(ps), strict=True)
    ]


def contrast(
    question: str, one: ArmResult, two: ArmResult, values: Sequence[float], p: float, p_holm: float
) -> Contrast:
    found, shown = Estimate.of(values), p_holm <= LEVEL
    spread = math.sqrt(sum((v - found.value) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan
    told = f"{one.arm} against {two.arm} {points(found.value, found.low, found.high, ' points')}: "
    told += ("better" if found.value > 0 else "worse") if shown else "no difference shown"
    measured = (len(values), found.value, found.low, found.high, effect(values), spread)
    return Contrast(question, one.arm, two.arm, one.family, *measured, p, p_holm, shown, told)


def told_power(contrasts: Sequence[Contrast], n: int) -> str:
    """What so many replicates could have shown."""
    made = len(contrasts)
    if not made:
        return ""
    least, what = needed(made), counted(made, "comparison")
    if n < least:
        return (
            f"{counted(n, 'replicate')} cannot show any difference: the smallest p value of their sign flips is "
            f"{2 / 2**n:.2g}, and Holm's correction over {what} needs {LEVEL / made:.2g}; {least} replicates are the "
            "fewest."
        )
    spread = median(contrast.spread for contrast in contrasts)
    size = detectable(n, made, POWER) * spread
    return (
        f"With {n} replicates and {what}, a true difference of {100 * size:.1f} points would be shown in {POWER:.0%} "
        f"of such studies (paired differences spread by {100 * spread:.1f} points, their median)."
    )
