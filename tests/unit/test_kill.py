"""kill -9 in the middle of a run: nothing is lost, nothing is repeated, the result is the same."""

import subprocess
import sys
import time

import bisam_ray
from bisam_ray.study import ledger, storage

CONFIG = {"method": "lets-bisam-tanh", "model.name": "mlp", "train.epochs": 60, "data.label_noise": 0.2}
SCRIPT = """
import bisam_ray
from bisam_ray.training import launch
launch.CHECKPOINT_EVERY_S = 0.05
bisam_ray.train({config!r}, storage={storage!r})
"""


def test_a_killed_run_is_resumed_bitwise_and_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(config=CONFIG, storage=str(killed))])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        directories = storage.studies(killed)
        done = [run for d in directories for run in ledger.read(d).runs.values() if len(run.epochs) >= 15]
        if done and list(killed.rglob("*.pt")):
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9, "the run ended before it could be killed"

    resumed = bisam_ray.train(CONFIG, storage=str(killed), resume=True)
    uninterrupted = bisam_ray.train(CONFIG, storage=str(whole))
    timeless = [column for column in resumed.history.columns if column != "cost/seconds"]
    assert resumed.history[timeless].equals(uninterrupted.history[timeless])
    assert list(resumed.history.index) == list(range(1, 61))
    a, b = resumed.summary(), uninterrupted.summary()
    assert {k: a[k] for k in a if k not in ("cost_seconds", "checkpoint")} == {
        k: b[k] for k in b if k not in ("cost_seconds", "checkpoint")
    }
    (directory,) = storage.studies(killed)
    assert directory == resumed.directory

    from bisam_ray.study.tracking.client import connect, tracking_uri

    client = connect(tracking_uri(killed))
    experiment = client.get_experiment_by_name("bisam-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "completed")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/accuracy")]
    assert sorted(set(steps)) == list(range(1, 61))


def test_a_resumed_run_tells_the_epochs_of_its_checkpoint_once_more(tmp_path):
    """The listener may have died after the checkpoint was saved and before it heard of the epoch."""
    from bisam_ray.training import launch

    config = bisam_ray.resolve({**CONFIG, "train.epochs": 4})
    job = launch.Job("run", config, tmp_path / "run.pt", save_at=(2,))
    whole = list(launch.steps(job))
    stream = launch.steps(launch.Job("other", config, tmp_path / "other.pt", save_at=(2,)))
    for _ in range(2):
        next(stream)
    stream.close()
    again = list(launch.steps(launch.Job("other", config, tmp_path / "other.pt", resume=True)))

    def timeless(epochs):
        return [({k: v for k, v in e.metrics.items() if k != "cost/seconds"}, e.epoch, e.final) for e in epochs]

    assert timeless(again) == timeless(whole)
    finished = list(launch.steps(launch.Job("run", config, tmp_path / "run.pt", resume=True)))
    assert timeless(finished) == timeless(whole)


MAKING = """
import os, sys, threading, time
from bisam_ray.study.tracking.client import connect

def kill():
    while not any(f.endswith(".db") or "/.mlflow-" in f"{d}/{f}" for d, _, fs in os.walk(sys.argv[1]) for f in fs):
        time.sleep(0.001)
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), 9)

threading.Thread(target=kill).start()
connect(f"sqlite:///{sys.argv[1]}/mlflow.db").search_experiments()
time.sleep(60)
"""


def test_a_kill_while_mlflow_makes_its_tables_leaves_a_store_that_works(tmp_path):
    from bisam_ray.study.tracking.client import connect

    store = tmp_path / "store"
    store.mkdir()
    for wait in ("0.02", "0.15"):
        killed = subprocess.run([sys.executable, "-c", MAKING, str(store), wait], check=False)
        assert killed.returncode == -9
        assert not (store / "mlflow.db").exists(), "killed too late to prove anything"
    assert connect(f"sqlite:///{store}/mlflow.db").search_experiments()
