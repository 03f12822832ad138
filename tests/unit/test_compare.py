"""The statistics, on ledgers made by hand."""

import math
import random
from collections import Counter
from contextlib import contextmanager
from statistics import fmean
from types import SimpleNamespace

import pytest

from bisam_ray import api
from bisam_ray.config import resolve
from bisam_ray.progress import Progress
from bisam_ray.study import compare
from bisam_ray.study import ledger as ledgers
from bisam_ray.study import session as sessions
from bisam_ray.study.arms import arms_of
from bisam_ray.study.ledger import Ledger, Study, read
from bisam_ray.study.outcome import summarize
from bisam_ray.study.plan import Plan, configurations
from bisam_ray.study.report.figures import looks
from bisam_ray.study.session import Session
from bisam_ray.study.statistics import Estimate


def record(ledger, arm, replicate, restart, val, test, outcome="completed", method="sam", policy="fixed", **more):
    name = f"{arm}-{replicate}-{restart}"
    ledger.write(
        "begin",
        run=name,
        arm=arm,
        phase="final",
        method=method,
        radius_policy=policy,
        seed=0,
        replicate=replicate,
        restart=restart,
        suggested=None,
        config=resolve({"method": method}).model_dump(exclude_none=True),
        **more,
    )
    ledger.write("epoch", run=name, epoch=1, metrics={"cost/gradients": 100.0, "cost/seconds": 1.0, "sam/rho": 0.05})
    even, odd = val if isinstance(val, tuple) else (val, val)
    final = {
        "final/val_accuracy": (even + odd) / 2,
        "final/val_even": even,
        "final/val_odd": odd,
        "final/test_accuracy": test,
        "best/test_accuracy": test,
    }
    ledger.write("end", run=name, outcome=outcome, epoch=1, metrics=final if outcome == "completed" else {})


def test_the_run_that_is_best_on_val_is_kept_and_its_test_is_reported(tmp_path):
    with Ledger(tmp_path) as ledger:
        for replicate, tests in enumerate([(0.7, 0.8), (0.72, 0.9), (0.71, 0.85)]):
            record(ledger, "sam", replicate, 0, val=0.5, test=tests[0])
            record(ledger, "sam", replicate, 1, val=0.6, test=tests[1])
            record(ledger, "sgd", replicate, 0, val=0.4, test=0.95, method="sgd", policy="none")
    summary = summarize(read(tmp_path))
    sam, sgd = summary.of("sam"), summary.of("sgd")
    assert sam.test == [0.8, 0.9, 0.85]
    assert sam.single_accuracy == pytest.approx(fmean([0.7, 0.72, 0.71]))
    assert (sam.restarts, sgd.restarts, sam.cost_gradients) == (2, 1, 200.0)
    assert summary.winner == "sam"  # test had no say
    assert summary.indicative
    assert "indicative: 3 replicates" in summary.verdict
    assert sgd.difference[0] == pytest.approx(-0.1)
    low, high = sam.ci95
    assert low == pytest.approx(0.85 - 4.3027 * 0.05 / math.sqrt(3), abs=1e-4)
    assert high == pytest.approx(0.85 + 4.3027 * 0.05 / math.sqrt(3), abs=1e-4)


def test_the_best_of_many_is_judged_by_the_half_of_val_that_did_not_choose_it(tmp_path):
    """Many restarts without any merit must not look better than one run without any."""
    chance = random.Random(0)
    gains = []
    for study in range(60):
        with Ledger(tmp_path / str(study)) as ledger:
            for restart in range(20):
                record(ledger, "lucky", 0, restart, val=(chance.gauss(0.5, 0.03), chance.gauss(0.5, 0.03)), test=0.5)
        gains.append(summarize(read(tmp_path / str(study))).of("lucky").val_accuracy - 0.5)
    assert abs(fmean(gains)) < 0.01  # the plain maximum would show +0.04


def test_replicates_that_lack_an_arm_are_left_out_and_told(tmp_path):
    with Ledger(tmp_path) as ledger:
        for replicate in range(3):
            record(ledger, "sam", replicate, 0, 0.5, 0.8)
            record(ledger, "sgd", replicate, 0, 0.4, 0.7, outcome="failed" if replicate == 1 else "completed")
    summary = summarize(read(tmp_path))
    assert summary.n == 2
    assert any("Left out: 1 replicate without" in note for note in summary.notes)
    assert any("did not finish (failed)" in note for note in summary.notes)


def test_nothing_finished_is_no_summary(tmp_path):
    with Ledger(tmp_path) as ledger:
        record(ledger, "sam", 0, 0, 0.5, 0.8, outcome="diverged")
    assert summarize(read(tmp_path)) is None


def test_intervals_hold_what_they_promise():
    chance = random.Random(1)
    covered = 0
    for _ in range(2000):
        found = Estimate.of([chance.gauss(0, 1) for _ in range(5)])
        covered += found.low <= 0 <= found.high
    assert 0.935 < covered / 2000 < 0.965


def test_replicates_are_paired_across_arms_and_fresh():
    arms = arms_of([], also=["sam", "lets-sam"])
    base = configurations(arms, {}, {})
    made = [compare.replicated(arm, base[arm.name], ({}, arm.layer, {}, {}), 2, 1) for arm in arms]
    assert {(c.seed, c.data.split_seed, c.data.noise_seed) for c in made} == {(1102, 102, 102)}
    assert made[2].optim.rho == 0.4  # the second of ρ₀ = .2, .4, .8


def learned(ledger, arm, rho_max, rho, replicates=3):
    for replicate in range(replicates):
        record(ledger, arm, replicate, 0, 0.5, 0.8 + 0.01 * replicate, method="lets-sam", policy="learned")
        ledger.write("epoch", run=f"{arm}-{replicate}-0", epoch=2, metrics={"sam/rho": rho, "cost/gradients": 200.0})


def test_bounds_that_decided_are_told_in_one_note(tmp_path):
    with Ledger(tmp_path) as ledger:
        learned(ledger, "lets-sam", 1.0, 1.0)
        learned(ledger, "other", 1.0, 0.3)
    (note,) = [note for note in summarize(read(tmp_path)).notes if "lets.rho_max" in note]
    assert "lets-sam (1) in 3 of 3 runs" in note
    assert "other" not in note


def test_an_arm_without_a_result_and_a_replicate_far_off_are_told(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="s", kind="compare", protocol={"arms": ["sam", "sgd", "sam around"]})
        for replicate in range(8):
            record(ledger, "sam", replicate, 0, 0.5, 0.1 if replicate == 3 else 0.9 + 0.001 * replicate)
            record(ledger, "sgd", replicate, 0, 0.4, 0.8 + 0.001 * replicate, method="sgd", policy="none")
    notes = summarize(read(tmp_path)).notes
    assert any(note.startswith("sam around: without a result") for note in notes)
    assert any("lie far from the others" in note and "sam (1 of 8)" in note for note in notes)


def test_equal_cost_is_that_of_what_the_searches_chose(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "fix: {method: sam}\nsearch: {optim.rho: {log: [0.02, 2.0]}, train.epochs: {int: [4, 16], step: 4}}\n"
    )
    plan = Plan.of([str(tmp_path / "mine.yaml")], {"train.epochs": 8}, {}, None, ("searched",), None, {})
    found = compare.affordable(plan, Study(tmp_path, {}, {}, [], None), {"sam searched": {"train.epochs": 16}})
    assert found == ({"sgd": 8.0, "sam searched": 32.0}, {"sgd": 0.0, "sam searched": 0.0}, 32.0)


def test_what_was_searched_is_remarked_where_something_was(tmp_path):
    for policy in ("fixed", "searched"):
        with Ledger(tmp_path / policy) as ledger:
            record(ledger, "sam", 0, 0, 0.5, 0.8, policy=policy)
        notes = summarize(read(tmp_path / policy)).notes
        assert any("was searched" in note for note in notes) == (policy == "searched")


def test_the_questions_do_not_depend_on_the_method_that_a_search_chose(tmp_path):
    for method in ("asam", "sgd"):
        with Ledger(tmp_path / method) as ledger:
            for replicate in range(2):
                record(ledger, "sam", replicate, 0, 0.5, 0.8)
                record(ledger, "rho searched", replicate, 0, 0.5, 0.8, policy="searched", family="sam")
                record(ledger, "methods searched", replicate, 0, 0.5, 0.9, method=method, policy="searched",
                       family="methods")  # fmt: skip
        study = read(tmp_path / method)
        summary = summarize(study)
        assert summary.of("methods searched").family == "methods"
        assert looks(study, None)["methods searched"].family == "methods"
        pairs = {(made.first, made.second) for made in summary.contrasts}
        assert pairs == {("rho searched", "sam"), ("methods searched", "rho searched")}


def test_the_ledger_is_read_as_often_for_many_searches_as_for_one(tmp_path, monkeypatch):
    reads, counts = Counter(), []
    for module, name in ((sessions, "read"), (sessions, "events")):
        real = getattr(ledgers, name)
        monkeypatch.setattr(module, name, lambda path, real=real: (reads.update([real.__name__]), real(path))[1])
    monkeypatch.setattr(compare, "together", lambda *_: None)
    monkeypatch.setattr(compare, "run_all", lambda *_: None)
    for methods in (["sam"], ["sam", "asam", "bisam-log"]):
        plan = Plan.of(methods, {}, {}, None, ("searched",), None, {})
        with Ledger(tmp_path / str(len(methods))) as ledger:
            ledger.write("study", study="s", kind="compare", **plan.header(""))
            session = Session(tmp_path / str(len(methods)), ledger)
            compare.searches(session, plan, Progress(quiet=True), 4.0, 0.0)
        counts.append(dict(reads))
        reads.clear()
    assert counts[0] == counts[1]


def resumed(directory, monkeypatch, **given):
    """The plan with which api.compare goes on, without running it."""
    seen = []

    @contextmanager
    def session(*_, **__):
        yield SimpleNamespace(listen=lambda _: None)

    monkeypatch.setattr(sessions, "session", session)
    monkeypatch.setattr(compare, "compare", lambda _, plan, *__: seen.append(plan))
    monkeypatch.setattr(api, "render", lambda *_: None)
    api.compare(["sam"], storage=str(directory), resume=True, **given)
    return seen[0]


def test_what_is_not_given_to_a_resumed_comparison_is_as_it_was(tmp_path, monkeypatch):
    plan = Plan.of(["sam"], {}, {}, 7, None, None, {"trials": 24, "grace": 3, "concurrency": 2})
    with Ledger(tmp_path / plan.name) as ledger:
        ledger.write("study", study=plan.name, kind="compare", **plan.header(""))
    for study in (None, plan.name):
        found = resumed(tmp_path, monkeypatch, study=study)
        settings = found.settings
        assert (found.seeds, settings.trials, settings.grace, settings.concurrency) == (7, 24, 3, 2)
    assert resumed(tmp_path, monkeypatch, seeds=9).seeds == 9
