"""A run that is cut off within an epoch goes on there, and is bitwise the run that nobody disturbed."""

import errno
import os
import threading
import time

import pytest
import torch

from bisam_ray.cli import explained
from bisam_ray.config import ConfigError, resolve
from bisam_ray.training import checkpoint, engine, launch

from .test_engine import same

SETTINGS = [
    {"method": "sgd"},
    {"method": "bisam-tanh"},
    {"method": "lets-bisam-tanh"},
    {"method": "sampa"},
    {"method": "sam", "optim.every": 3, "optim.between": "direction"},
    {"method": "lookahead-sam"},
    {"method": "sam", "scale.precision": "float16", "scale.accumulate": 2},
]


class Cut(Exception):
    pass


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(map(str, s.values())))
@pytest.mark.parametrize("at", [1, 7, 20])
def test_a_run_goes_on_from_any_step(settings, at, tmp_path):
    config = resolve({"model.name": "cnn", "train.epochs": 2, "data.label_noise": 0.2, **settings})
    place = tmp_path / "run.pt"

    def cut(step):
        if step.step == at:
            assert step.of == 15
            checkpoint.save(place, config, step.state())
            raise Cut

    with pytest.raises(Cut):
        list(engine.run(config, after_step=cut))
    stored, state = checkpoint.load(place)
    *_, resumed = engine.run(stored, state=state)
    *_, whole = engine.run(config)
    for name, weight in whole.state()["model"].items():
        assert torch.equal(weight, resumed.state()["model"][name]), name
    assert torch.equal(whole.state()["radii"], resumed.state()["radii"])
    timeless = whole.metrics.keys() - {"cost/seconds"}
    assert {k: whole.metrics[k] for k in timeless} == {k: resumed.metrics[k] for k in timeless}


def test_one_worker_saves_within_an_epoch_as_time_goes_by(tmp_path, monkeypatch):
    """And a run that is resumed from there tells the epochs before it once more, then goes on."""
    config = resolve({"model.name": "mlp", "train.epochs": 3})
    job = launch.Job("run", config, tmp_path / "run.pt", resume=True)
    whole = list(launch.steps(job))
    (tmp_path / "run.pt").unlink()
    monkeypatch.setattr(launch, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(launch, "SAVING", 1e9)
    saved, cut = [], []
    save = checkpoint.save

    def counting(place, config, state, last=False):
        saved.append(state["step"])
        save(place, config, state, last)
        if state["step"] >= 17 and not cut:
            cut.append(True)
            raise Cut

    monkeypatch.setattr(checkpoint, "save", counting)
    with pytest.raises(Cut):
        list(launch.steps(job))
    assert saved == sorted(set(saved))
    assert saved[-1] >= 17  # of 15 steps an epoch
    assert any(step % 15 for step in saved)
    again = list(launch.steps(job))
    assert [epoch.epoch for epoch in again] == [1, 2, 3]
    assert again[-1].final == whole[-1].final
    assert again[1].metrics["train/loss"] == whole[1].metrics["train/loss"]
    assert not checkpoint.previous(tmp_path / "run.pt").exists()  # nobody needs it any more


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is written is the state of that step, whatever the steps after it do; and its failure is heard."""
    config = resolve({"model.name": "mlp", "train.epochs": 3, "method": "lets-sam"})
    monkeypatch.setattr(launch, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(launch, "SAVING", 1e9)
    free, made, written, save = threading.Event(), [], [], checkpoint.save

    def slow(place, config, state, last=False):
        if not last:
            assert free.wait(30)
        written.append((state["step"], made[-1] if made else 0))
        save(place, config, state, last)

    def on_step(step):
        made.append(step.step)
        if step.step == 1:
            save(tmp_path / "now.pt", config, {**step.state(), "history": []})
        elif step.step == 10:
            free.set()
        elif step.step == 11:
            while not (tmp_path / "run.pt").exists():
                time.sleep(0.01)
            same(checkpoint.load(tmp_path / "run.pt")[1], checkpoint.load(tmp_path / "now.pt")[1])

    monkeypatch.setattr(checkpoint, "save", slow)
    list(launch.steps(launch.Job("run", config, tmp_path / "run.pt"), on_step=on_step))
    assert written[0][0] == 1
    assert written[0][1] >= 10

    def full(place, config, state, last=False):
        raise checkpoint.NotSaved("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(checkpoint.NotSaved, match="the disk is full"):
        list(launch.steps(launch.Job("run", config, tmp_path / "other.pt")))


@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, damage, capsys):
    config = resolve({"model.name": "mlp", "train.epochs": 4})
    whole = list(launch.steps(launch.Job("run", config, tmp_path / "whole.pt")))
    job = launch.Job("run", config, tmp_path / "run.pt", resume=True, save_at=(1, 2, 3))
    for epoch in launch.steps(job):
        if epoch.epoch == 3:
            break
    content = job.checkpoint.read_bytes()
    job.checkpoint.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "rubbish": b"{}" * 5000}[damage])
    again = list(launch.steps(job))
    assert [epoch.epoch for epoch in again] == [1, 2, 3, 4]
    assert again[-1].final == whole[-1].final
    assert "going on from the one before it" in capsys.readouterr().err
    job.checkpoint.write_bytes(b"")
    checkpoint.previous(job.checkpoint).write_bytes(b"")
    assert list(launch.steps(job))[-1].final == whole[-1].final  # from the start: nothing else is left


def test_a_range_of_workers_must_divide_the_batch():
    with pytest.raises(ConfigError, match=r"scale.workers=every number from 2 to 4 \(nearest: 60\)"):
        launch.check_feasible(resolve({"scale.workers": 4, "scale.min_workers": 2}))
    with pytest.raises(ConfigError, match=r"scale.min_workers=3: more than scale.workers=2"):
        launch.check_feasible(resolve({"scale.workers": 2, "scale.min_workers": 3}))
    with pytest.raises(ConfigError, match=r"scale.min_workers=2: the two roles"):
        launch.check_feasible(resolve({"method": "sampa", "scale.workers": 4, "scale.min_workers": 2}))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    config = resolve({"model.name": "mlp", "train.epochs": 4})
    job = launch.Job("run", config, tmp_path / "run.pt", resume=True, save_at=(1, 2, 3))
    whole = list(launch.steps(launch.Job("run", config, tmp_path / "whole.pt")))
    run = launch.steps(job)
    next(run)
    with monkeypatch.context() as full:

        def fsync(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(checkpoint.os, "fsync", fsync)
        with pytest.raises(
            checkpoint.NotSaved, match=r"run.pt: not saved \(No space left on device\); mend that"
        ) as told:
            next(run)
    assert explained(told.value) == str(told.value)
    assert explained(OSError(errno.ENOSPC, "No space left on device")).startswith(
        "No space left on device; what was done"
    )
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["run.pt", "whole.pt"]  # no part of one
    assert checkpoint.load(job.checkpoint)[1]["epoch"] == 1
    assert list(launch.steps(job))[-1].final == whole[-1].final
