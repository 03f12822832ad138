"""The decisions of a search, tried on recorded curves: truth to Optuna, kills anywhere, budgets, what is kept."""

import math
import random
from collections import Counter

import pytest

from bisam_ray.config import ConfigError
from bisam_ray.progress import Progress
from bisam_ray.study import ledger
from bisam_ray.study.ledger import Ledger, Run, Study
from bisam_ray.study.replay import Curves, replay
from bisam_ray.study.search import Search
from bisam_ray.study.session import Session
from bisam_ray.study.settings import Settings
from bisam_ray.study.spaces import Space
from bisam_ray.study.storage import KEPT
from bisam_ray.training.launch import Epoch, Failure

EPOCHS = 8
SPACE = Space.model_validate(
    {
        "name": "toy",
        "search": {"optim.rho": {"log": [0.02, 2.0]}, "optim.warmup": {"choice": [0.0, 0.25]}},
        "start": [{"optim.rho": 0.05, "optim.warmup": 0.0}],
    }
)
LAYERS = ({"train.epochs": EPOCHS}, {})


def recorded(rho, warmup, number):
    """A trial that ran to its end: the accuracy rises more slowly with larger radii, to a top near .5."""
    top = 0.9 - 0.05 * math.log(rho / 0.5) ** 2
    values = [top * (1 - math.exp(-epoch / (1 + 2 * rho))) for epoch in range(1, EPOCHS + 1)]
    epochs = [
        {"epoch": i, "val/accuracy": v, "cost/gradients": 100.0 * i, "cost/seconds": i * (0.1 + 0.01 * (number % 7))}
        for i, v in enumerate(values, 1)
    ]
    begin = {"suggested": {"optim.rho": rho, "optim.warmup": warmup}, "phase": "search", "arm": "recorded"}
    return Run(f"c{number}", begin, epochs, {"outcome": "completed", "metrics": {"final/val_accuracy": values[-1]}})


DRAWN = random.Random(0)
CURVES = Curves(SPACE, [recorded(math.exp(DRAWN.uniform(-3.9, 0.69)), DRAWN.choice([0.0, 0.25]), i) for i in range(40)])


class Killed(BaseException):
    """kill -9: nothing that would be cleaned up is."""


class Fragile(Ledger):
    """Dies at its nth line: before it is written, in the middle of it, or behind it."""

    def __init__(self, directory, line=None, where="behind"):
        super().__init__(directory)
        self.left, self.where = line, where

    def write(self, event, **fields):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                if self.where == "within":
                    self.file.write(b'{"event": "epo')
                    self.file.flush()
                elif self.where == "behind":
                    super().write(event, **fields)
                raise Killed
        super().write(event, **fields)


def session(directory, line=None, where="behind"):
    directory.mkdir(exist_ok=True)
    made = Session(directory, Fragile(directory, line, where))
    made.ledger.write("study", study=directory.name, kind="search")
    return made


def made(directory, settings, at_once=1, line=None, where="behind", curves=CURVES):
    """One session of a search; returns it, or None if it was killed."""
    search = None
    driver = session(directory, line, where)
    try:
        search = Search(driver, SPACE, LAYERS, settings, Progress(quiet=True), "toy searched", at_once)
        replay(search, curves)
    except Killed:
        return None
    finally:
        driver.ledger.close()
    return search


def told(directory):
    """Everything a ledger says of its trials that should not depend on kills."""
    return {
        run.name: (run.outcome, run.begin["suggested"], run.epochs, run.end["metrics"], run.end["stopped"])
        for run in ledger.read(directory).runs.values()
    }


def in_optuna(search):
    return [
        (t.state.name, dict(t.params), dict(t.intermediate_values), t.values if t.state.name == "COMPLETE" else None)
        for t in search.sampler.study.get_trials()
    ]


def consistent(directory, search):
    """A finished search: no run open, epochs without gaps, and Optuna says what the ledger says."""
    runs, states = ledger.read(directory).runs, {"completed": "COMPLETE", "pruned": "PRUNED"}
    for run in runs.values():
        assert run.outcome in states
        assert [epoch["epoch"] for epoch in run.epochs] == list(range(1, len(run.epochs) + 1))
        assert (run.outcome == "completed") == (len(run.epochs) == EPOCHS)
    for run, (state, params, values, result) in zip(
        sorted(runs.values(), key=lambda run: run.begin["number"]), in_optuna(search), strict=True
    ):
        assert state == states[run.outcome]
        assert params == run.begin["suggested"]
        assert values == {epoch["epoch"]: epoch["val/accuracy"] for epoch in run.epochs}
        assert result == ([run.end["metrics"]["final/val_accuracy"]] if run.outcome == "completed" else None)


SETTINGS = Settings(trials=14, grace=2, controls=2, sampler="tpe", seed=3)


def test_a_search_tells_the_truth_and_repeats(tmp_path):
    first, second = made(tmp_path / "a", SETTINGS), made(tmp_path / "b", SETTINGS)
    assert told(tmp_path / "a") == told(tmp_path / "b")
    consistent(tmp_path / "a", first)
    assert in_optuna(first) == in_optuna(second)
    outcomes = Counter(run.outcome for run in ledger.read(tmp_path / "a").runs.values())
    assert outcomes["pruned"] >= 3
    assert outcomes["completed"] >= 3
    assert told(tmp_path / "a")["toy-searched-000"][1] == SPACE.start[0]  # the published setting is tried first
    other = made(tmp_path / "c", Settings(trials=14, grace=2, controls=2, seed=4))
    assert in_optuna(other) != in_optuna(first)


@pytest.mark.parametrize("where", ["before", "within", "behind"])
@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_a_search_killed_at_every_line_is_the_uninterrupted_one(tmp_path, where, scheduler):
    """One trial at a time: whatever line of the ledger the kill hits, resuming changes no decision."""
    settings = Settings(trials=8, grace=2, controls=1, sampler="tpe", scheduler=scheduler, seed=1)
    whole = made(tmp_path / "whole", settings)
    lines = len((tmp_path / "whole" / ledger.FILE).read_text().splitlines())
    expected, optuna = told(tmp_path / "whole"), in_optuna(whole)
    for line in range(2, lines + 1, 2 if where == "behind" and scheduler == "asha" else 7):
        directory = tmp_path / f"killed-{line}"
        assert made(directory, settings, line=line, where=where) is None
        search = made(directory, settings)
        assert told(directory) == expected, line
        assert in_optuna(search) == optuna, line


def test_a_search_of_many_kills_loses_and_repeats_nothing(tmp_path):
    """Three trials at a time, killed again and again: every invariant holds, though not every decision is the same."""
    rng, search, kills = random.Random(7), None, 0
    while search is None:
        kills += 1
        search = made(tmp_path / "s", SETTINGS, 3, rng.randrange(2, 12), rng.choice(["before", "within", "behind"]))
    assert kills >= 10
    consistent(tmp_path / "s", search)
    assert len(ledger.read(tmp_path / "s").runs) == SETTINGS.trials
    ends = Counter(e["run"] for e in ledger.events(tmp_path / "s") if e["event"] == "end")
    assert set(ends.values()) == {1}
    epochs = Counter((e["run"], e["epoch"]) for e in ledger.events(tmp_path / "s") if e["event"] == "epoch")
    assert set(epochs.values()) == {1}


@pytest.mark.parametrize("harm", ["lost", "cut", "of another", "rubbish"])
def test_optunas_study_is_written_anew_from_the_ledger(tmp_path, harm):
    made(tmp_path / "s", SETTINGS, 2, 60)
    journal = tmp_path / "s" / "optuna.journal"
    if harm == "lost":
        journal.unlink()
    elif harm == "cut":
        journal.write_bytes(journal.read_bytes()[:-20])
    elif harm == "rubbish":
        journal.write_bytes(b"not a journal\n" * 3)
    else:
        made(tmp_path / "t", Settings(trials=4, seed=9))
        journal.write_bytes((tmp_path / "t" / "optuna.journal").read_bytes())
    consistent(tmp_path / "s", made(tmp_path / "s", SETTINGS, 2))


def test_a_sequence_goes_on_where_it_was_though_optunas_study_is_lost(tmp_path):
    settings = Settings(trials=8, grace=2, sampler="qmc", seed=1)
    made(tmp_path / "s", settings)
    (tmp_path / "s" / "optuna.journal").unlink()
    made(tmp_path / "s", Settings(trials=16, grace=2, sampler="qmc", seed=1))
    points = {run.begin["suggested"]["optim.rho"] for run in ledger.read(tmp_path / "s").runs.values()}
    assert len(points) == 16


def test_trials_can_be_added_to_a_finished_search(tmp_path):
    made(tmp_path / "s", SETTINGS)
    before = told(tmp_path / "s")
    again = made(tmp_path / "s", SETTINGS)
    assert told(tmp_path / "s") == before  # nothing left to do
    more = Settings(trials=18, grace=2, controls=2, seed=3)
    again = made(tmp_path / "s", more)
    after = told(tmp_path / "s")
    assert {name: after[name] for name in before} == before
    assert len(after) == 18
    consistent(tmp_path / "s", again)


def test_controls_are_never_stopped_and_say_when_they_would_have_been(tmp_path):
    settings = Settings(trials=20, grace=2, controls=10, sampler="random", seed=5)
    made(tmp_path / "s", settings)
    runs = ledger.read(tmp_path / "s").runs.values()
    controls = [run for run in runs if run.begin["control"]]
    assert len(controls) == 10
    assert {run.outcome for run in controls} == {"completed"}
    assert any(run.end["stopped"] for run in controls)
    assert all(run.end["stopped"] == len(run.epochs) for run in runs if run.outcome == "pruned")


def test_budgets_end_a_search_and_count_over_sessions(tmp_path):
    by_cost = Settings(gradients=3000, grace=2, seed=1)
    made(tmp_path / "s", by_cost)
    study = ledger.read(tmp_path / "s")
    spent = sum(run.cost for run in study.runs.values())
    assert 3000 <= spent < 3000 + 100 * EPOCHS
    made(tmp_path / "s", by_cost)
    assert len(ledger.read(tmp_path / "s").runs) == len(study.runs)

    made(tmp_path / "t", SETTINGS, line=5)
    made(tmp_path / "t", Settings(hours=1e-9, grace=2))
    assert len(ledger.read(tmp_path / "t").runs) == 1  # the one that was under way is finished


def test_failed_and_diverged_trials_are_fail_for_optuna_and_shown_once(tmp_path, capsys):
    driver = session(tmp_path / "s")
    search = Search(driver, SPACE, LAYERS, Settings(trials=4, controls=0), Progress(), "toy searched", 1)
    for number, failure in enumerate(
        (Failure("failed", "T\nKeyError: 'x'"), Failure("diverged", "NaN"), Failure("failed", "T\nKeyError: 'x'"))
    ):
        trial = search.next()
        search.begin(trial)
        assert search.tell(trial.name, Epoch(1, {"val/accuracy": 0.99, "cost/gradients": 1.0}))
        assert not search.tell(trial.name, failure)
        assert not search.tell(trial.name, failure)  # Tune may say it twice
        assert search.ended == number + 1
    assert [state for state, *_ in in_optuna(search)] == ["FAIL"] * 3
    assert [run.outcome for run in ledger.read(tmp_path / "s").runs.values()] == ["failed", "diverged", "failed"]
    assert capsys.readouterr().err.count("KeyError") == 1


def test_only_the_best_checkpoints_stay(tmp_path):
    driver = session(tmp_path / "s")
    settings = Settings(trials=30, grace=2, controls=2, confirm=2)
    search = Search(driver, SPACE, LAYERS, settings, Progress(quiet=True), "toy searched", 1)
    begin = search.begin

    def with_checkpoint(trial):
        begin(trial)
        path = driver.checkpoint(trial.name)
        path.parent.mkdir(exist_ok=True)
        path.touch()

    search.begin = with_checkpoint
    replay(search, CURVES)
    done = ledger.read(tmp_path / "s").of(outcome="completed")
    best = sorted(done, key=lambda run: -run.value("final/val_accuracy"))[:KEPT]
    assert {path.stem for path in (tmp_path / "s" / "runs").iterdir()} == {run.name for run in best}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "qmc", "random", "nsga2"])
def test_every_sampler_finds_a_better_radius_than_the_published_and_survives_a_kill(tmp_path, sampler):
    settings = Settings(trials=14, grace=2, sampler=sampler, seed=2)
    assert made(tmp_path / "s", settings, line=70) is None
    search = made(tmp_path / "s", settings)
    consistent(tmp_path / "s", search)
    made(tmp_path / "w", settings)
    assert told(tmp_path / "s") == told(tmp_path / "w")
    assert search.sampler.study.best_value > 0.85
    points = {tuple(run.begin["suggested"].values()) for run in ledger.read(tmp_path / "s").runs.values()}
    assert len(points) == 14 or (sampler == "gp" and len(points) > 8)  # it may want to measure a point again


def test_a_grid_is_tried_in_full_and_once(tmp_path):
    search = made(tmp_path / "s", Settings(sampler="grid", grace=2), 2, line=30) or made(
        tmp_path / "s", Settings(sampler="grid", grace=2), 2
    )
    points = [tuple(run.begin["suggested"].values()) for run in ledger.read(tmp_path / "s").runs.values()]
    assert len(points) == len(set(points)) == len(SPACE.grid(5)) == 10
    consistent(tmp_path / "s", search)


def test_two_objectives_reach_optuna_as_two_values(tmp_path):
    settings = Settings(trials=10, objectives=("accuracy", "cost"), scheduler="none", sampler="nsga2")
    made(tmp_path / "s", settings, line=40)
    search = made(tmp_path / "s", settings)
    for trial in search.sampler.study.get_trials():
        assert trial.state.name == "COMPLETE"
        assert trial.values[1] == 100.0 * EPOCHS
        assert trial.intermediate_values == {}


def test_a_space_that_contradicts_itself_ends_in_one_line(tmp_path):
    space = Space.model_validate({"name": "bad", "fix": {"method": "sam"}, "search": {"optim.rho": {"log": [0.1, 1]}}})
    driver = session(tmp_path / "s")
    search = Search(driver, space, LAYERS, Settings(trials=3), Progress(quiet=True), "bad searched", 1)
    search.overrides = {"optim.mu": 3}
    with pytest.raises(ConfigError, match="50 suggestions in a row cannot be trained"):
        search.next()


def test_rungs_are_those_of_the_longest_run_where_lengths_are_searched(tmp_path):
    space = Space.model_validate({"name": "long", "search": {"train.epochs": {"int": [4, 16], "step": 4}}})
    search = Search(session(tmp_path / "s"), space, ({}, {}), Settings(trials=9), Progress(quiet=True), "long", 1)
    assert (search.epochs, search.settings.grace, search.settings.rungs(search.epochs)) == (16, 4, [4, 12])


def test_replaying_needs_curves_that_ran_to_their_end():
    study = Study(None, {"study": "few"}, {"c0": CURVES.runs[0]}, [], None)
    with pytest.raises(ConfigError, match="--replay few: 1 of its trials ran to the end"):
        Curves.of(study, SPACE)


def test_the_nearest_curve_answers():
    near = CURVES.nearest({"optim.rho": 0.5, "optim.warmup": 0.25})
    assert near.begin["suggested"]["optim.warmup"] == 0.25
    distances = [
        abs(math.log(run.begin["suggested"]["optim.rho"] / 0.5))
        for run in CURVES.runs
        if run.begin["suggested"]["optim.warmup"] == 0.25
    ]
    assert abs(math.log(near.begin["suggested"]["optim.rho"] / 0.5)) == min(distances)
