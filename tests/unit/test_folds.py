"""Several folds as one run: each is the run alone, their record is the mean, and a checkpoint continues them all."""

import copy
import math
import statistics
import sys
from types import SimpleNamespace

import pytest
import torch

from bisam_ray.config import ConfigError, resolve
from bisam_ray.training import checkpoint, engine, folds, launch

QUICK = {"method": "lets-bisam-tanh", "model.name": "cnn", "train.epochs": 4, "data.label_noise": 0.2}
CLOCK = {"seconds", "cost/seconds"}


def alone(config, i):
    """The configuration on its i-th fold, spelled out."""
    return resolve(config.model_dump(), {"seed": config.seed + i, "data.fold": config.data.fold + i})


def same(a, b):
    """Two nested states, bit for bit; the clock aside."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - CLOCK:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert bool((a == b).all()) if hasattr(a, "shape") else a == b


def test_each_fold_is_the_run_alone_and_the_record_is_their_mean():
    config = resolve(QUICK, {"seed": 5, "data.fold": 1})
    singles = [list(engine.run(alone(config, i))) for i in range(3)]
    for epoch, record in enumerate(folds.run(config, 3), start=1):
        metrics = [single[epoch - 1].metrics for single in singles]
        assert record.epoch == epoch
        assert set(record.metrics) == {*metrics[0], "val/standard_error"}
        for name in metrics[0].keys() - CLOCK - {"val/standard_error"}:
            total = sum(m[name] for m in metrics)
            assert record.metrics[name] == pytest.approx(total if name == "cost/gradients" else total / 3, rel=1e-12)
        spread = statistics.stdev(m["val/accuracy"] for m in metrics)
        assert record.metrics["val/standard_error"] == pytest.approx(spread / math.sqrt(3))
        assert spread > 0
    assert record.metrics["cost/seconds"] > 0
    same(record.state(), {"epoch": 4, "folds": [single[-1].state() for single in singles]})
    for weights in ("final", "best"):
        found = record.evaluate("test", weights)
        expected = [single[-1].evaluate("test", weights) for single in singles]
        assert found.accuracy == pytest.approx(statistics.fmean(e.accuracy for e in expected))
        assert found.loss == pytest.approx(statistics.fmean(e.loss for e in expected))
        assert found.halves[1] == pytest.approx(statistics.fmean(e.halves[1] for e in expected))


def test_dropout_masks_are_those_of_the_run_alone(monkeypatch):
    def dropping(shape, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, classes))

    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(dropping=dropping))
    config = resolve(QUICK, {"model.name": "mine:dropping"})
    *_, record = folds.run(config, 2)
    for i, state in enumerate(record.state()["folds"]):
        *_, single = engine.run(alone(config, i))
        same(state, single.state())


def test_folds_continue_bit_for_bit():
    config = resolve(QUICK)
    records = folds.run(config, 2)
    next(records)
    middle = copy.deepcopy(next(records).state())
    rest = [(r.epoch, r.metrics, copy.deepcopy(r.state())) for r in records]
    again = [(r.epoch, r.metrics, copy.deepcopy(r.state())) for r in folds.run(config, 2, state=middle)]
    assert [epoch for epoch, *_ in again] == [3, 4]
    same(rest, again)


def test_a_job_on_folds_is_saved_resumed_and_evaluated(tmp_path):
    job = launch.Job("folds", resolve(QUICK), tmp_path / "folds.pt", resume=True, folds=2, save_at=(2,))
    stream = launch.steps(job)
    next(stream)
    next(stream)
    stream.close()  # as a scheduler stops it at a rung
    assert checkpoint.load(job.checkpoint)[1]["epoch"] == 2
    resumed = list(launch.steps(job))
    assert [e.epoch for e in resumed] == [1, 2, 3, 4]
    *_, whole = launch.steps(launch.Job("whole", job.config, tmp_path / "whole.pt", folds=2))
    same(whole.metrics, resumed[-1].metrics)
    same(whole.final, resumed[-1].final)
    config, state = checkpoint.load(job.checkpoint)
    assert engine.evaluate(config, state, "test").accuracy == resumed[-1].final["final/test_accuracy"]
    assert engine.evaluate(config, state, "val").accuracy == resumed[-1].metrics["val/accuracy"]
    first, _ = engine.trained(config, state)
    same(dict(first.state_dict()), dict(state["folds"][0]["model"]))


def test_another_number_of_folds_is_another_run(tmp_path):
    path, config = tmp_path / "run.pt", resolve(QUICK, {"train.epochs": 1})
    for made, asked in [(2, 3), (2, 1), (1, 2)]:
        list(launch.steps(launch.Job("run", config, path, folds=made)))
        with pytest.raises(ConfigError, match=f"folds={made}, not {asked}"):
            next(launch.steps(launch.Job("run", config, path, folds=asked, resume=True)))


def test_folds_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"^data\.fold=5"):
        next(folds.run(resolve(QUICK, {"data.fold": 4}), 2))
    with pytest.raises(ConfigError, match=r"^scale\.workers=2: 3 folds"):
        launch.check_feasible(resolve({"scale.workers": 2}), folds=3)
    with pytest.raises(ConfigError, match=r"folds 9: data\.fold=8: .*0 to 4"):
        launch.check_feasible(resolve({}), folds=9)
    launch.check_feasible(resolve({}), folds=5)


def test_one_diverging_fold_ends_them_all():
    with pytest.raises(engine.Diverged):
        list(folds.run(resolve(QUICK, {"method": "sgd", "optim.lr": 1e30}), 2))
