"""A distributed run inside another actor, such as a trial of Ray Tune: however it ends, nothing of it stays."""

import os
import time

import pytest

from bisam_ray.config import resolve
from bisam_ray.training import checkpoint, launch, trainer
from bisam_ray.training.cluster import connect
from bisam_ray.training.engine import Diverged

PAIR = {"model.name": "mlp", "train.epochs": 3, "scale.workers": 2}
LONG = {**PAIR, "train.epochs": 100_000}
CPUS = 4


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """A local cluster without a dashboard that says it has four processors, whatever this machine has."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("user"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "cpu_count", lambda: CPUS)
        connect()
    yield
    import ray

    ray.shutdown()
    os.chdir(before)


def left():
    """What of a run is still there: processors in use, placement groups, and processes of its actors."""
    import ray
    from ray.util import placement_group_table

    busy = CPUS - ray.available_resources().get("CPU", 0)
    groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return {"processors": busy, "groups": len(groups), "actors": actors()}


def actors():
    """Names of the processes in which Ray keeps a run's actors; Ray names a process after its actor."""
    names = ("Manager", "Guard", "TrainController", "RayTrainWorker", "PlacementGroupCleaner", "SynchronizationActor")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                title = file.read().split("\0")[0]
        except OSError:
            continue
        found += [name for name in names if title.startswith(f"ray::{name}")]
    return found


def freed(within, actors_too=True):
    """Wait until the resources are back, and the processes gone too."""
    began = time.monotonic()
    while any(count for what, count in left().items() if what != "actors" or actors_too):
        assert time.monotonic() - began < within, f"after {within} s there are still: {left()}"
        time.sleep(0.1)


def outer():
    """An actor that makes distributed runs, as a trial does."""
    import ray

    class Outer:
        def begin(self, job):
            self.stream = trainer.distributed(job)
            return next(self.stream).epoch

        def close(self):
            self.stream.close()

        def whole(self, job):
            return [e.epoch for e in trainer.distributed(job)]

    return ray.remote(num_cpus=0)(Outer).remote()


@pytest.mark.slow
def test_a_closed_run_leaves_nothing_and_the_next_one_in_the_same_actor_works(tmp_path):
    import ray

    trial = outer()
    assert ray.get(trial.begin.remote(launch.Job("long", resolve(LONG), tmp_path / "long.pt"))) == 1
    assert left()["processors"] == 2
    ray.get(trial.close.remote())
    freed(15, actors_too=False)
    job = launch.Job("next", resolve(PAIR), tmp_path / "next.pt")
    assert ray.get(trial.whole.remote(job)) == [1, 2, 3]
    assert checkpoint.load(job.checkpoint)[1]["epoch"] == 3
    freed(30)
    ray.kill(trial)


@pytest.mark.parametrize("when", [pytest.param("starting", marks=pytest.mark.slow), "training"])
def test_a_run_whose_actor_is_killed_leaves_nothing(tmp_path, when):
    import ray

    trial = outer()
    first = trial.begin.remote(launch.Job("killed", resolve(LONG), tmp_path / "killed.pt"))
    if when == "training":
        ray.get(first)
    while not left()["groups"]:
        time.sleep(0.1)
    ray.kill(trial)
    freed(15, actors_too=False)
    freed(30)


@pytest.mark.slow
def test_errors_that_would_only_repeat_are_told_at_once_and_leave_nothing(tmp_path):
    diverging = resolve(PAIR, {"method": "sgd", "optim.lr": 1e30, "model.name": "cnn"})
    with pytest.raises(Diverged, match="epoch 1"):
        list(trainer.distributed(launch.Job("diverging", diverging, tmp_path / "d.pt")))
    freed(30)


def trial_class():
    from ray import tune

    class Trial(tune.Trainable):
        """A trial that holds no processor itself: its workers do."""

        def setup(self, config, directory):
            self.directory, self.stream = directory, None
            self.reset_config(config)

        def reset_config(self, new_config):
            self.cleanup()
            config = resolve(PAIR, {"seed": new_config["seed"], "train.epochs": new_config["epochs"]})
            job = launch.Job(self.trial_id, config, self.directory / f"{self.trial_id}.pt")
            self.stream = trainer.distributed(job)
            return True

        def step(self):
            epoch = next(self.stream)
            return {**epoch.metrics, "epoch": epoch.epoch, "pid": os.getpid(), "done": epoch.final is not None}

        def cleanup(self):
            if self.stream is not None:
                self.stream.close()

    return Trial


@pytest.mark.slow
def test_trials_of_two_workers_side_by_side_one_of_them_stopped(tmp_path):
    from ray import tune

    epochs = {0: 100_000, 1: 3, 2: 3}
    trainable = tune.with_parameters(trial_class(), directory=tmp_path)
    found = tune.Tuner(
        # a byte of memory: next to nothing, which every node has; {"CPU": 0} alone is refused by Tune
        tune.with_resources(trainable, {"memory": 1}),
        param_space={"seed": tune.grid_search([0, 1, 2]), "epochs": tune.sample_from(lambda c: epochs[c["seed"]])},
        tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            stop=lambda trial, result: result["config"]["seed"] == 0,  # after its first epoch, as ASHA does
        ),
    ).fit()
    last = {result.metrics["config"]["seed"]: result.metrics for result in found}
    assert {seed: metrics["epoch"] for seed, metrics in last.items()} == {0: 1, 1: 3, 2: 3}
    assert last[2]["pid"] in (last[0]["pid"], last[1]["pid"])  # the third trial took an actor over
    freed(30)
