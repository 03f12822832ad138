"""Searches on real Ray, killed at random points in several ways, and gone on with: nothing lost, nothing repeated."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

import bisam_ray
from bisam_ray.study import ledger
from bisam_ray.study.tracking.client import connect, tracking_uri
from bisam_ray.training import engine

EPOCHS, TRIALS = 10, 8
SCRIPT = """
import sys
import bisam_ray
from bisam_ray.training import launch
launch.CHECKPOINT_EVERY_S = 0.05
bisam_ray.search("rho", {{"model.name": "mlp", "data.label_noise": 0.4, "train.epochs": {epochs}}}, study="s",
                 storage={storage!r}, trials={trials}, confirm=2, replicates=2, seed=3, resume="resume" in sys.argv)
"""


def started(storage, *words):
    text = SCRIPT.format(epochs=EPOCHS, trials=TRIALS, storage=str(storage))
    with open(storage / "log", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", text, *words], stdout=log, stderr=log, start_new_session=True)


def written(directory):
    path = directory / ledger.FILE
    return path.stat().st_size if path.exists() else 0


def descendants(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = [(int(row[0]), row[2] if len(row) > 2 else "") for row in rows if int(row[1]) == parent]
        found += children
        waiting += [child for child, _ in children]
    return found


def killed(process, how):
    """Kill in one of several ways, and wait until nothing of it runs."""
    family = descendants(process.pid)
    raylets = [pid for pid, args in family if args.split(" ")[0].endswith("/raylet")]
    if how == "driver" or (how == "raylet" and not raylets):  # it is not up yet
        process.kill()
    elif how == "raylet":
        os.kill(raylets[0], signal.SIGKILL)
    elif how == "actor":
        actors = [pid for pid, args in family if args.startswith("ray::") and "Trainable" in args]
        for pid in actors[:1]:
            os.kill(pid, signal.SIGKILL)
        return
    else:
        process.send_signal({"terminate": signal.SIGTERM, "interrupt": signal.SIGINT}[how])
    process.wait(timeout=90)
    deadline = time.monotonic() + 30
    # Ray's agents do not notice that a raylet died that was killed while it started; they hold nothing
    family = [(pid, args) for pid, args in family if "Agent" not in args]
    while any(os.path.exists(f"/proc/{pid}") for pid, _ in family) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [args for pid, args in family if os.path.exists(f"/proc/{pid}")]
    assert not left, f"{how}: still there after 30 s: {left}"


def study_of_many_kills(storage, ways, rng):
    """Kill one search after the other session in the given ways; return how many kills struck."""
    storage.mkdir(exist_ok=True)
    directory, struck = storage / "s", 0
    for how in ways:
        process = started(storage, *(["resume"] if directory.exists() else []))
        begun, target = written(directory), rng.randrange(200, 4000)
        while written(directory) < begun + target and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        killed(process, how)
        struck += 1
        if how == "actor":  # the search goes on by itself; what is left of it is interrupted
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=90)
    process = started(storage, *(["resume"] if directory.exists() else []))
    assert process.wait(timeout=300) == 0, (storage / "log").read_text()[-2000:]
    return struck


def check(storage, trials_made=TRIALS):
    directory = storage / "s"
    study, events = ledger.read(directory), list(ledger.events(directory))
    trials = study.of(phase="search")
    assert study.finish["outcome"] == "completed"
    assert len(trials) == trials_made
    assert {run.outcome for run in trials} <= {"completed", "pruned"}
    done = Counter(e["run"] for e in events if e["event"] == "end" and e["outcome"] != "killed")
    assert set(done.values()) == {1}, "a finished trial was repeated"
    seen = Counter((e["run"], e["epoch"]) for e in events if e["event"] == "epoch")
    assert set(seen.values()) == {1}, "an epoch was recorded twice"
    for run in study.runs.values():
        assert [e["epoch"] for e in run.epochs] == list(range(1, len(run.epochs) + 1))
        alone = engine.run(bisam_ray.resolve(run.begin["config"]))
        for epoch, record in zip(run.epochs, alone, strict=False):  # bitwise the uninterrupted run
            assert epoch["val/accuracy"] == record.metrics["val/accuracy"]
            assert epoch["train/loss"] == record.metrics["train/loss"]

    import optuna

    journal = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(directory / "optuna.journal"))
    )
    (stored,) = optuna.get_all_study_summaries(journal)
    states = Counter(t.state.name for t in optuna.load_study(study_name=stored.study_name, storage=journal).trials)
    assert states == Counter({"completed": "COMPLETE", "pruned": "PRUNED"}[run.outcome] for run in trials)

    client = connect(tracking_uri(storage))
    experiment = client.get_experiment_by_name("s")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert Counter(r.data.tags.get("bisam.run", "parent") for r in runs) == Counter([*study.runs, "parent"])
    assert not [r.info.run_name for r in runs if r.info.status == "RUNNING"]
    for run in runs:
        name = run.data.tags.get("bisam.run")
        if name:
            assert run.data.tags["outcome"] == study.runs[name].outcome
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/accuracy")]
            assert sorted(set(steps)) == list(range(1, len(study.runs[name].epochs) + 1))


@pytest.mark.slow
def test_a_search_killed_by_force_and_interrupted(tmp_path):
    assert study_of_many_kills(tmp_path / "storage", ["driver", "terminate"], random.Random(1)) == 2
    check(tmp_path / "storage")


@pytest.mark.slow
def test_a_search_killed_at_twenty_random_points_in_five_ways(tmp_path):
    rng, struck, study = random.Random(5), 0, 0
    while struck < 20:
        storage = tmp_path / f"storage{study}"
        ways = [rng.choice(["driver", "driver", "terminate", "interrupt", "actor", "raylet"]) for _ in range(6)]
        struck += study_of_many_kills(storage, ways, rng)
        check(storage)
        study += 1
