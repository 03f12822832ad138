"""The loop: its records, its checkpoints, and how it fails; what every method keeps to is in tests/contract."""

import copy
import math
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from bisam_ray.config import PRESETS, ConfigError, resolve
from bisam_ray.optim.comm import Solo
from bisam_ray.training import checkpoint, data, engine, launch, models
from bisam_ray.training.task import Classification

QUICK = {"model.name": "mlp", "train.epochs": 4, "data.label_noise": 0.2}


def same(a, b):
    """Two nested states, bit for bit; the clock aside."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "cost/seconds"}:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_dropout_masks_are_resumed_and_replayed(monkeypatch):
    def dropping(shape, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, classes))

    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(dropping=dropping))
    config = resolve(QUICK, {"model.name": "mine:dropping"})
    records = engine.run(config)
    next(records)
    middle = copy.deepcopy(next(records).state())
    *_, last = records
    *_, again = engine.run(config, state=middle)
    same(last.state(), again.state())
    # with the masks replayed in the second pass, radius 0 is plain SGD
    *_, zero = engine.run(resolve(QUICK, {"model.name": "mine:dropping", "optim.rho": 0}))
    *_, plain = engine.run(resolve(QUICK, {"model.name": "mine:dropping", "method": "sgd"}))
    same(plain.state()["model"], zero.state()["model"])


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_learns(method):
    *_, record = engine.run(resolve(QUICK, {"method": method, "model.name": "cnn", "data.label_noise": 0}))
    # RAPP moves once in five steps
    assert record.metrics["val/accuracy"] > (0.5 if "rapp" in method else 0.8)


def test_metrics_are_those_of_the_readme():
    *_, fixed = engine.run(resolve(QUICK))
    *_, learned = engine.run(resolve(QUICK, {"method": "lets-sam"}))
    common = {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy", "sam/rho", "sam/sharpness", "sam/grad_norm",
        "val/standard_error", "best/val_accuracy", "cost/gradients", "cost/seconds",
    }  # fmt: skip
    assert set(fixed.metrics) == common
    assert set(learned.metrics) == common | {"lets/hypergradient", "lets/gap"}
    assert all(math.isfinite(v) for v in learned.metrics.values())


def test_divergence_is_an_error_of_its_own():
    with pytest.raises(engine.Diverged, match="epoch"):
        for _ in engine.run(resolve(QUICK, {"method": "sgd", "optim.lr": 1e30, "model.name": "cnn"})):
            pass


def test_the_last_record_of_a_finished_run_comes_again(tmp_path):
    job = launch.Job("run", resolve(QUICK), tmp_path / "run.pt", resume=True)
    *_, first = launch.steps(job)
    *_, again = launch.steps(job)
    same(first.final, again.final)
    assert again.epoch == 4


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    list(launch.steps(launch.Job("run", resolve(QUICK), path)))
    with pytest.raises(ConfigError, match="another configuration"):
        next(launch.steps(launch.Job("run", resolve(QUICK, {"seed": 1}), path, resume=True)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path):
    path, config = tmp_path / "run.pt", resolve(QUICK)
    checkpoint.save(path, config, {"epoch": 1})
    with pytest.raises((AttributeError, TypeError)):
        checkpoint.save(path, config, {"epoch": lambda: None})
    assert checkpoint.load(path)[1] == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_evaluation_puts_the_model_back(tmp_path):
    records = engine.run(resolve(QUICK, {"model.name": "cnn"}))
    next(records)
    record = next(records)
    before = {k: v.clone() for k, v in record.state()["model"].items()}
    record.evaluate("test", "best")
    same(before, record.state()["model"])


def test_a_share_of_a_gpu_is_a_share_of_its_memory(monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for gpus, kind in [(0, "cpu"), (0.25, "cuda"), (1, "cuda"), (2, "cuda")]:
        assert engine.device_of(resolve({"scale.gpus_per_worker": gpus}).scale) == torch.device(kind)
    assert shares == [0.25, 1.0, 1.0]


def test_gpus_are_a_share_of_one_or_whole_ones():
    for gpus, workers, told in [
        (-1, 1, r"-1: .*greater than or equal to 0 \(nearest: 0"),
        (1.5, 1, r"1\.5: .*whole number \(nearest: 2\)"),
        (0.25, 2, r"0\.25: .*cannot share a GPU.*\(nearest: 1\)"),
    ]:
        with pytest.raises(ConfigError, match=rf"^scale\.gpus_per_worker={told}") as error:
            resolve({"scale": {"workers": workers, "gpus_per_worker": gpus}})
        assert "\n" not in str(error.value)
    assert resolve({"scale.gpus_per_worker": 0}).digest() == resolve({}).digest()


def test_a_step_is_measured_without_a_whole_epoch(monkeypatch):
    def slow(shape, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), Slow(), torch.nn.Linear(64, classes))

    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.01)
            return x

    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(slow=slow))
    config = resolve({"model.name": "mine:slow", "data.batch_size": 1})  # an epoch of 1,000 steps, two passes each
    began = time.perf_counter()
    measured = launch.measure(config, seconds=0.5)
    assert time.perf_counter() - began < 5
    assert measured.steps_per_epoch == 1000
    assert 0.02 < measured.seconds_per_step < 0.04
    every = launch.measure(resolve(config.model_dump(), {"optim.every": 3}), seconds=0.5)
    assert 0.013 < every.seconds_per_step < 0.03  # of three steps one has two passes; the median step has one
    few = launch.measure(resolve(config.model_dump(), {"data.batch_size": 600, "train.epochs": 1}))
    assert few.steps_per_epoch == 1
    assert few.seconds_per_step > 0.02


def test_checkpoints_are_saved_at_the_epochs_that_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CHECKPOINT_EVERY_S", math.inf)
    job = launch.Job("run", resolve(QUICK), tmp_path / "run.pt", save_at=(2,))
    stored = [checkpoint.load(job.checkpoint)[1]["epoch"] if job.checkpoint.exists() else 0 for _ in launch.steps(job)]
    assert stored == [0, 2, 2, 4]


def test_networks_by_name_and_of_ones_own(monkeypatch):
    for name in ("cnn", "mlp", "torchvision/resnet18"):
        model = models.build(name, (1, 8, 8) if name != "torchvision/resnet18" else (1, 32, 32), 7).eval()
        x = torch.randn(2, 1, *((32, 32) if "resnet" in name else (8, 8)))
        assert model(x).shape == (2, 7)
    for name, told in [
        ("torchvision/resnet19", "did you mean resnet1"),
        ("nowhere:net", "no module named nowhere"),
    ]:
        with pytest.raises(ConfigError, match=told):
            models.build(name, (1, 8, 8), 10)


def test_two_processes_share_a_batch_evenly():
    class Half(Solo):
        def __init__(self, rank):
            self.rank, self.world = rank, 2

    stream = data.Stream(1000, 64, 0)
    parts = [stream.batch(3).tensor_split(2)[rank] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), stream.batch(3))


def test_the_same_weights_are_not_evaluated_twice(monkeypatch):
    seen, assess = [], Classification.assess
    monkeypatch.setattr(Classification, "assess", lambda *given: seen.append(len(given[2])) or assess(*given))
    lasts = set()
    for seed in range(6):
        config = resolve(QUICK, {"seed": seed})
        *_, record = engine.run(config)
        final = launch.final_metrics(record, test=True)
        last = record.state()["best"]["epoch"] == 4
        assert seen == [300] * 4 + [497] * (2 - last)
        assert final["final/test_accuracy"] == engine.evaluate(config, record.state(), "test").accuracy
        best = {**record.state(), "model": record.state()["best"]["weights"]}
        assert final["best/test_accuracy"] == engine.evaluate(config, best, "test").accuracy
        assert final["final/val_accuracy"] == record.metrics["val/accuracy"]
        lasts.add(last)
        seen.clear()
    assert lasts == {False, True}
