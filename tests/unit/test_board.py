"""The state of a study, from its events; what is drawn of it."""

import json
import re
import time

import pytest

from bisam_ray import live
from bisam_ray.board import Board
from bisam_ray.config import resolve
from bisam_ray.study.ledger import Ledger, events

from .synthetic import write_whole

STUDY = {
    "event": "study",
    "study": "toy",
    "kind": "compare",
    "config": {"train": {"epochs": 4}},
    "protocol": {"trials": 6, "arms": ["sgd", "sam", "rho searched"], "settings": {"rungs": [1, 2], "folds": 1}},
}


def begin(run, arm="rho searched", phase="search", policy="searched", method="sam", **more):
    config = resolve({"method": method, "train.epochs": 4}).model_dump(exclude_none=True)
    told = {"event": "begin", "run": run, "arm": arm, "phase": phase, "radius_policy": policy}
    return {**told, "config": config, **more}


def epoch(run, number, value, cost=None, rho=0.1):
    metrics = {"val/accuracy": value, "cost/gradients": 200.0 * number if cost is None else cost, "sam/rho": rho}
    return {"event": "epoch", "run": run, "epoch": number, "metrics": metrics}


def end(run, outcome="completed", value=None, error=None):
    metrics = {} if value is None else {"final/val_accuracy": value}
    return {"event": "end", "run": run, "outcome": outcome, "metrics": metrics, "error": error}


def board(*told):
    found = Board()
    for event in (STUDY, *told):
        found.take(event)
    return found


def trial(run, epochs, value, outcome="completed", rho=0.1):
    """A whole one."""
    told = [begin(run), *(epoch(run, e, value, rho=rho) for e in range(1, epochs + 1))]
    return [
        *told,
        end(run, outcome, value if outcome == "completed" else None, "ValueError: no" * (outcome == "failed")),
    ]


def test_trials_are_counted_by_outcome_and_by_rung():
    told = [*trial("t0", 4, 0.7), *trial("t1", 1, 0.9, "pruned"), *trial("t2", 2, 0.8, "pruned"), begin("t3")]
    found = board(*told, epoch("t3", 1, 0.5), epoch("t3", 2, 0.55), epoch("t3", 3, 0.6))
    arm = found.arms["rho searched"]
    assert dict(arm.trials) == {"running": 1, "completed": 1, "pruned": 2}
    assert (arm.begun, arm.over, arm.planned) == (4, 3, 6)
    assert live.survivors(arm) == "4 → 3 → 2"  # t1 was stopped at the first rung, t2 at the second
    assert live.outcomes(arm) == "1/2/1"
    assert arm.state == "searching"


def test_final_weights_decide_what_is_best_once_a_run_has_ended():
    told = [begin("t0"), epoch("t0", 1, 0.9, rho=0.3)]
    found = board(*told)
    assert found.arms["rho searched"].best == (0.9, 0.3)
    for event in trial("t1", 4, 0.7, rho=0.2):
        found.take(event)
    assert found.arms["rho searched"].best == (0.7, 0.2)
    assert found.best is found.arms["rho searched"]


def test_cost_is_in_runs_of_sam_and_what_is_told_again_costs_nothing():
    found = board(begin("t0"), *(epoch("t0", number, 0.5) for number in (1, 2, 2, 1)))
    assert found.cost == 400.0  # 200 an epoch at 2 gradients a step: 100 examples
    assert found.unit == 2 * 4 * 100
    assert found.spent == pytest.approx(0.5)
    found = board(begin("s", "sgd", "final", "none", "sgd", replicate=0), epoch("s", 1, 0.5, cost=100.0))
    assert found.unit == 2 * 4 * 100


def test_an_arm_goes_from_waiting_to_done():
    found = board()
    arm = found.arms["rho searched"]
    states = [arm.state]
    for k in range(6):
        found.take(begin(f"t{k}"))
        found.take(end(f"t{k}", "completed", 0.5))
        states.append(arm.state)
    found.expect([("rho searched", 0), ("rho searched", 0), ("rho searched", 1)])
    states.append(arm.state)
    for name, replicate in (("a", 0), ("b", 0), ("c", 1)):
        found.take(begin(name, "rho searched", "final", replicate=replicate))
        states.append(arm.state)
        found.take(end(name, "completed", 0.6))
        states.append(f"{arm.replicates[0]}/{arm.replicates[1]}")
    assert states == [
        *("waiting", *["searching"] * 5, "searched", "waiting"),
        *("running", "0/2", "running", "1/2", "running", "2/2"),
    ]
    assert arm.state == "done"
    assert arm.best[0] == 0.6  # of the replicates, not of the trials


def test_a_resumed_study_stands_as_it_did():
    """Killed without a word: what ran is not running any more, and goes on without being counted twice."""
    told = [*trial("t0", 4, 0.7), begin("t1"), epoch("t1", 1, 0.6)]
    found = board(*told, STUDY)
    arm = found.arms["rho searched"]
    assert (arm.trials["running"], arm.trials["killed"], arm.over) == (0, 1, 1)
    for event in (begin("t1"), epoch("t1", 1, 0.6), epoch("t1", 2, 0.6), end("t1", "pruned")):
        found.take(event)
    assert (arm.begun, arm.over, arm.trials["killed"]) == (2, 2, 0)
    assert found.cost == 800.0 + 400.0


def test_failures_are_noted_and_interrupted_runs_are_not():
    told = [begin(f"t{k}") for k in range(5)]
    told += [end(f"t{k}", "failed", error=f"Traceback\nValueError: number {k}\n") for k in range(4)]
    found = board(*told, end("t4", "killed"))
    assert list(found.notes) == [f"t{k} failed: ValueError: number {k}" for k in (1, 2, 3)]


def drawn(found, width=100, height=30, head=("toy · searching", "0:10"), share=0.5):
    return ["".join(text for text, _ in line) for line in live.lines(found, head, share, width, height)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twenty-five arms, of which two are under way."""
    directory = tmp_path_factory.mktemp("studies") / "whole"
    study = write_whole(directory, replicates=2, trials=6)
    arms = list(dict.fromkeys(run.arm for run in study.runs.values()))
    found = Board()
    protocol = {"trials": 6, "arms": arms, "settings": {"rungs": [4, 12]}}
    for event in events(directory):
        found.take(
            {**event, "config": {"train": {"epochs": 16}}, "protocol": protocol} if event["event"] == "study" else event
        )
    assert len(found.arms) == 25
    for arm in ("sam replayed", "asam"):
        found.take(begin(f"{arm}-now", arm, "final", replicate=1))
    found.take(begin("x", "asam"))
    found.take(end("x", "failed", error="RuntimeError: something long " * 9))
    return found


@pytest.mark.parametrize(("width", "height"), [(200, 50), (100, 24), (80, 24), (60, 24), (60, 15), (40, 15), (30, 4)])
def test_it_fits_every_terminal(many, width, height):
    lines = drawn(many, width, height)
    assert len(lines) <= min(24, height - 1)
    assert max(map(len, lines)) < width
    if height > 10:
        assert any(line.startswith("asam ") and "running" in line for line in lines) == (width >= 60)
        assert any(line.startswith("sam replayed") for line in lines)
        assert any("more: " in line for line in lines)
        assert any(line.startswith("! x failed: RuntimeError") for line in lines)


def test_what_does_not_fit_is_counted_and_the_best_is_shown(many):
    lines = drawn(many, 100, 16)
    rows = [line for line in lines if re.search(r"waiting|running|done|search(ed|ing) ", line[:32]) and line[0] != "+"]
    told = next(line for line in lines if "more: " in line)
    assert int(told.split()[1]) == 25 - len(rows)
    assert sum(map(int, re.findall(r"(\d+) [a-z]", told.split(": ")[1]))) == 25 - len(rows)
    assert any(line.startswith(many.best.name) for line in rows)


def test_drawing_is_cheap(many):
    """Four times a second must be less than a hundredth of a core."""
    began = time.process_time()
    for _ in range(100):
        drawn(many)
    assert (time.process_time() - began) / 100 * 4 < 0.01


def test_hearing_is_cheap():
    """A thousand trials of fifty epochs, in a session of at least some minutes."""
    told = [begin(f"t{k}") for k in range(1000)]
    told += [epoch(f"t{k}", e, 0.5) for e in range(1, 51) for k in range(1000)]
    began = time.process_time()
    board(*told)
    assert time.process_time() - began < 2


def test_the_ledger_tells_its_listeners_what_it_has_written(tmp_path):
    with Ledger(tmp_path) as ledger:
        heard = []
        ledger.listeners.append(lambda event: heard.append((event, (tmp_path / "ledger.jsonl").read_text())))
        ledger.write("finish", outcome="completed")
    ((event, text),) = heard
    assert event == json.loads(text)
