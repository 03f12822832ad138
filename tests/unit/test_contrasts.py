"""What a comparison claims: which questions are asked, and how often it is wrong."""

from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest

from bisam_ray.study.contrasts import OBJECTIVE, QUESTIONS, contrasts_of, told_power

METHODS = ("sam", "asam", "bisam-tanh", "bisam-log")


def arms(rng, n, shift=None, spread=0.01, heavy=False):
    """A comparison of 4 methods × 6 arms and SGD: draws that all share, noise of their own; `shift` by policy."""
    made = []

    def add(name, method, policy):
        noise = rng.standard_t(3, n) if heavy else rng.normal(size=n)
        test = (0.9 + common + spread * noise + (shift or {}).get(policy, 0.0)).tolist()
        family = method.removeprefix("lets-")
        made.append(SimpleNamespace(arm=name, method=method, family=family, radius_policy=policy, test=test))

    common = 0.02 * rng.normal(size=n)
    add("sgd", "sgd", "none")
    for method in METHODS:
        add(method, method, "fixed")
        add(f"{method} warm-up", method, "fixed")
        add(f"{method} searched", method, "searched")
        add(f"lets-{method}", f"lets-{method}", "learned")
        add(f"{method} around", method, "around")
        add(f"{method} replayed", method, "replayed")
    return made


def test_every_question_is_asked_once_of_every_method():
    found = contrasts_of(arms(np.random.default_rng(0), 5))
    assert len(found) == 4 * len(QUESTIONS) + 3 + 1
    assert len({(c.first, c.second) for c in found}) == len(found)
    first = found[0]
    assert (first.question, first.first, first.second) == (QUESTIONS[0][0], "lets-asam", "asam searched")
    assert {c.second for c in found if c.question == OBJECTIVE} == {"sam searched"}
    assert not any("warm-up" in c.first + c.second for c in found)


def test_two_searches_of_a_method_are_both_compared_and_no_result_picks_one():
    made = arms(np.random.default_rng(0), 5)
    other = SimpleNamespace(**{**vars(made[3]), "arm": "rho_warmup searched", "test": [1.0] * 5})
    assert made[3].arm == "sam searched"
    found, again = contrasts_of([*made, other]), contrasts_of([other, *reversed(made)])
    assert {c.second for c in found if c.first == "lets-sam"} == {"rho_warmup searched", "sam searched", "sam"}
    assert found == again


def test_numbers_are_of_the_paired_differences():
    made = arms(np.random.default_rng(1), 8, {"searched": 0.05})
    found = {(c.first, c.second): c for c in contrasts_of(made)}["sam searched", "sam"]
    by = {arm.arm: arm.test for arm in made}
    gaps = [a - b for a, b in zip(by["sam searched"], by["sam"], strict=True)]
    assert found.mean == pytest.approx(fmean(gaps))
    assert found.low < found.mean < found.high
    assert found.p == 2 / 2**8
    assert found.p_holm == pytest.approx(min(1.0, found.p * 24), abs=0.02)
    assert not found.shown  # 8 replicates do not suffice for 24 comparisons


def test_a_plain_effect_is_shown_and_told():
    found = contrasts_of(arms(np.random.default_rng(2), 12, {"searched": 0.05}, spread=0.004))
    shown = {(c.first, c.second): c for c in found if c.shown}
    assert ("sam searched", "sam") in shown
    assert "better" in shown["sam searched", "sam"].told
    assert "worse" in shown["lets-sam", "rho searched"].told if ("lets-sam", "rho searched") in shown else True
    assert all("no difference shown" in c.told for c in found if not c.shown)


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
@pytest.mark.parametrize("n", [10, 12])
def test_in_a_thousand_studies_without_any_difference_few_claim_one(n, heavy):
    """The nominal rate of studies with any false claim is 5 %; 6.7 % is its bound for a thousand studies."""
    rng = np.random.default_rng(3)
    false = fmean(any(c.shown for c in contrasts_of(arms(rng, n, heavy=heavy))) for _ in range(1000))
    assert false <= 0.067


def test_a_partial_null_is_protected_too():
    """Where some arms truly differ, the others are still not claimed falsely."""
    rng = np.random.default_rng(4)
    null = {("around", "searched"), ("replayed", "searched"), ("learned", "searched")}
    wrong = []
    for _ in range(300):
        shifted = dict.fromkeys(("searched", "around", "replayed", "learned"), 0.05)
        made = arms(rng, 12, shifted)
        policy = {arm.arm: arm.radius_policy for arm in made}
        wrong.append(any(c.shown and (policy[c.first], policy[c.second]) in null for c in contrasts_of(made)))
    assert fmean(wrong) <= 0.08


def test_what_could_have_been_shown_is_told():
    few = told_power(contrasts_of(arms(np.random.default_rng(5), 5)), 5)
    assert "5 replicates cannot show any difference" in few
    assert "10 replicates are the fewest" in few
    enough = told_power(contrasts_of(arms(np.random.default_rng(5), 12)), 12)
    assert "12 replicates and 24 comparisons" in enough
    assert told_power([], 5) == ""
