"""A search tells Optuna the truth, and a comparison runs from end to end."""

import json

import pytest

import bisam_ray
from bisam_ray.study import search as searching
from bisam_ray.training import launch

QUICK = {"model.name": "mlp", "train.epochs": 8, "data.label_noise": 0.4}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    launch.connect()
    yield
    import ray

    ray.shutdown()


def test_what_asha_stopped_reaches_optuna_as_pruned_and_what_failed_as_fail():
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searcher = searching.searcher_class()(
        3, space={"x": optuna.distributions.FloatDistribution(0, 1)}, metric="val/accuracy", mode="max"
    )
    for name in ("done", "stopped", "diverged", "failed"):
        searcher.suggest(name)
    for epoch in (1, 2, 3):
        searcher.on_trial_result("done", {"epoch": epoch, "training_iteration": epoch, "val/accuracy": 0.5})
    searcher.on_trial_result("stopped", {"epoch": 1, "training_iteration": 1, "val/accuracy": 0.3})
    searcher.on_trial_complete("done", {"epoch": 3, "val/accuracy": 0.5})
    searcher.on_trial_complete("stopped", {"epoch": 1, "val/accuracy": 0.3})
    searcher.on_trial_complete("diverged", {"epoch": 3, "val/accuracy": 0.0, "diverged": "nan"})
    searcher.on_trial_complete("failed", None, error=True)
    trials = searcher._ot_study.trials
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert trials[1].intermediate_values == {1: 0.3}


def test_a_search_repeats_decision_by_decision_at_concurrency_one(tmp_path):
    def made(name):
        result = bisam_ray.search("rho", QUICK, {}, trials=5, study=name, storage=str(tmp_path), concurrency=1, seed=3)
        columns = ["optim.rho", "optim.warmup", "outcome", "epochs", "val_accuracy"]
        return result, result.trials[columns].to_dict("records")

    first, a = made("a")
    _, b = made("b")
    assert a == b
    assert a[0]["optim.rho"] == 0.05  # the published setting is tried first
    assert {row["outcome"] for row in a} <= {"completed", "pruned"}
    assert first.best.value("final/val_accuracy") == max(r["val_accuracy"] for r in a if r["outcome"] == "completed")
    assert first.summary()["trials"] == 5


def test_reused_actors_leak_nothing(tmp_path):
    """Every trial's curve is that of the same configuration alone, in a fresh process state."""
    from bisam_ray.training import engine

    result = bisam_ray.search("rho", QUICK, {}, trials=4, study="s", storage=str(tmp_path))
    for run in result.study.runs.values():
        alone = engine.run(bisam_ray.resolve(run.begin["config"]))
        for recorded, record in zip(run.epochs, alone, strict=False):
            assert recorded["val/accuracy"] == record.metrics["val/accuracy"]
            assert recorded["train/loss"] == record.metrics["train/loss"]


def test_a_comparison_from_end_to_end(tmp_path):
    result = bisam_ray.compare(
        ["rho"],
        QUICK,
        {"train.epochs": 4},
        trials=3,
        seeds=2,
        study="c",
        storage=str(tmp_path),
        also=["lets-bisam-log"],
    )
    arms = set(result.arms["arm"])
    assert arms == {"sgd", "sam", "sam warm-up", "rho searched", "lets-sam", "lets-bisam-log"}
    assert result.outcome.n == 2
    found = json.loads(json.dumps(result.summary()))
    assert found["winner"] in arms
    assert result.report.exists()
    # equal cost: nobody spends more than the search and its run, and nobody could have afforded another run
    searched = result.outcome.of("rho searched").cost_gradients
    for arm in result.outcome.arms:
        assert arm.cost_gradients <= searched * 1.02
        assert arm.restarts == 1 or arm.cost_gradients * (1 + 1 / arm.restarts) > searched * 0.9
    again = bisam_ray.load_study("c", str(tmp_path))
    assert again.outcome == result.outcome
    assert len(again.trials) == 3
    config = result.study.runs["sam-r0-s0"].begin["config"]
    assert (config["data"]["split_seed"], config["data"]["noise_seed"]) == (100, 100)
