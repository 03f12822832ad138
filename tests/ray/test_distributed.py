"""Data parallel training equals one process, and the launcher contains failures."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bisam_ray.config import ConfigError, resolve
from bisam_ray.optim.comm import Distributed
from bisam_ray.training import checkpoint, engine, launch
from bisam_ray.training.cluster import connect


def plain_network(shape, classes):
    """No batch norm: statistics of half a batch are not those of the whole."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, classes))


METHODS = ("sgd", "sam", "bisam-tanh", "lets-sam", "lets-bisam-tanh")


def configuration(method: str):
    return resolve(
        {
            "method": method,
            "model.name": f"{__name__}:plain_network",
            "train.epochs": 3,
            "data.label_noise": 0.2,
            **({} if method == "sgd" else {"optim.perturbation_scope": "global"}),
        }
    )


def train_rank(rank: int, world: int, path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    for method in METHODS:
        *_, record = engine.run(configuration(method), Distributed())
        torch.save({"model": record.state()["model"], "rho": record.metrics["sam/rho"]}, f"{path}/{method}-{rank}.pt")
    dist.barrier()
    os._exit(0)  # past the interpreter's end, where gloo's threads now and then abort (pytorch/pytorch#179291)


def test_two_processes_with_a_global_perturbation_are_one(tmp_path):
    mp.spawn(train_rank, (2, str(tmp_path)), nprocs=2)
    for method in METHODS:
        *_, alone = engine.run(configuration(method))
        ranks = [torch.load(tmp_path / f"{method}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name, weight in alone.state()["model"].items():
            assert torch.equal(ranks[0]["model"][name], ranks[1]["model"][name]), method
            torch.testing.assert_close(ranks[0]["model"][name], weight, rtol=1e-3, atol=1e-4)
        assert ranks[0]["rho"] == ranks[1]["rho"]
        assert ranks[0]["rho"] == pytest.approx(alone.metrics["sam/rho"], rel=1e-3)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A local cluster whose workers stand where the user stands, beside a module of the user's own."""
    before, here = os.getcwd(), tmp_path_factory.mktemp("user")
    (here / "mine.py").write_text("import os\n\n\ndef dying(shape, classes):\n    os._exit(1)\n")
    os.chdir(here)
    connect()
    yield
    import ray

    ray.shutdown()
    os.chdir(before)


QUICK = {"model.name": "mlp", "train.epochs": 3, "data.label_noise": 0.2}


def test_runs_beside_each_other_are_the_runs_alone_and_failures_disturb_nobody(cluster, tmp_path):
    good = [launch.Job(f"good-{seed}", resolve(QUICK, {"seed": seed}), tmp_path / f"{seed}.pt") for seed in range(3)]
    bad = [
        launch.Job(
            "diverging", resolve(QUICK, {"method": "sgd", "optim.lr": 1e30, "model.name": "cnn"}), tmp_path / "d.pt"
        ),
        launch.Job("broken", resolve(QUICK, {"model.name": "json:loads"}), tmp_path / "b.pt"),
        launch.Job("dying", resolve(QUICK, {"model.name": "mine:dying"}), tmp_path / "x.pt"),
    ]
    last = {}
    for job, message in launch.parallel([bad[2], good[0], bad[0], bad[1], *good[1:]], at_once=2):
        last[job.name] = message
    assert {name: m.outcome for name, m in last.items() if isinstance(m, launch.Failure)} == {
        "diverging": "diverged",
        "broken": "failed",
        "dying": "killed",
    }
    for job in good:
        *_, alone = launch.steps(launch.Job("alone", job.config, tmp_path / "alone.pt"))
        assert last[job.name].final == alone.final  # bitwise, wherever it ran


def test_a_trainer_with_two_workers_trains_and_leaves_a_checkpoint(cluster, tmp_path):
    config = resolve(QUICK, {"method": "lets-bisam-tanh", "scale.workers": 2})
    job = launch.Job("pair", config, tmp_path / "pair.pt")
    job.checkpoint.write_text("of another run: a job that is not to be resumed starts anew")
    epochs = list(launch.launch(job))
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert epochs[-1].final["final/test_accuracy"] > 0.3
    stored, state = checkpoint.load(job.checkpoint)
    assert (stored, state["epoch"]) == (config, 3)


def equal_to_one_process(job):
    """What the launcher leaves is what this process alone leaves, weights and statistics, from epoch 1's checkpoint."""
    for record in engine.run(job.config):
        if record.epoch == 1:
            checkpoint.save(job.checkpoint, job.config, record.state())
    epochs = list(launch.launch(job))
    assert [e.epoch for e in epochs] == [2, 3]
    _, state = checkpoint.load(job.checkpoint)
    return state, record.state(), epochs[-1].metrics, record.metrics


@pytest.mark.slow
def test_two_workers_of_sampa_continue_a_run_bit_for_bit(cluster, tmp_path):
    config = resolve(QUICK, {"method": "sampa", "scale.workers": 2, "model.name": "cnn", "optim.radius": "learned"})
    found, alone, metrics, expected = equal_to_one_process(launch.Job("roles", config, tmp_path / "r.pt", resume=True))
    for name, weight in alone["model"].items():
        assert torch.equal(found["model"][name], weight), name
    assert torch.equal(found["radii"], alone["radii"])
    same = metrics.keys() - {"cost/seconds"}
    assert {k: metrics[k] for k in same} == pytest.approx({k: expected[k] for k in same}, rel=1e-12)


@pytest.fixture
def four_processors(monkeypatch, tmp_path_factory):
    """A cluster that was there before and says it has four, whatever this machine has."""
    import ray

    ray.shutdown()
    monkeypatch.chdir(tmp_path_factory.mktemp("four"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "cpu_count", lambda: 4)
        connect()
    yield
    ray.shutdown()


@pytest.mark.slow
def test_four_workers_of_sampa_on_a_cluster_that_has_them(four_processors, tmp_path):
    launch.check_feasible(resolve({"scale.workers": 4}))
    with pytest.raises(ConfigError, match=r"scale\.workers=8: only 4 CPUs"):
        launch.check_feasible(resolve({"scale.workers": 8}))
    network = f"{__name__}:plain_network"
    config = resolve(QUICK, {"method": "sampa-bisam-log", "scale.workers": 4, "model.name": network})
    found, alone, *_ = equal_to_one_process(launch.Job("four", config, tmp_path / "four.pt", resume=True))
    for name, weight in alone["model"].items():
        torch.testing.assert_close(found["model"][name], weight, rtol=1e-3, atol=1e-4)


def test_more_workers_than_processors_are_refused():
    with pytest.raises(ConfigError, match=r"scale\.workers=64"):
        launch.check_feasible(resolve({"scale.workers": 64}))
