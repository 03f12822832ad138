"""A comparison on real Ray: from end to end, gone on with, and killed at any of its stages."""

import json
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


@pytest.fixture(autouse=True)
def no_cluster_left():
    """The tests of other files want one of their own."""
    yield
    import ray

    ray.shutdown()


QUICK = {"model.name": "mlp", "data.label_noise": 0.4}
EPOCHS = {"train.epochs": 4}


def test_a_comparison_from_end_to_end(tmp_path):
    given = {"trials": 3, "study": "c", "storage": str(tmp_path), "also": ["lets-bisam-log"]}
    result = bisam_ray.compare(["sam"], QUICK, EPOCHS, seeds=2, **given)
    arms, found = set(result.arms["arm"]), result.outcome
    assert arms == {
        "sgd", "sam", "sam warm-up", "sam searched", "lets-sam", "sam around", "sam replayed", "lets-bisam-log",
    }  # fmt: skip
    assert (found.n, len(found.contrasts)) == (2, 6)
    assert json.loads(json.dumps(result.summary()))["winner"] in arms
    assert len(result.contrasts) == 6

    # equal cost: nobody spends more than the dearest search and its run, and nobody could have afforded another run
    for arm in found.arms:
        assert arm.cost_gradients <= found.budget
        each = arm.cost_gradients / arm.restarts
        assert (
            arm.radius_policy in ("searched", "around", "replayed") or arm.cost_gradients + each > found.budget * 0.99
        )

    # what follows a learned radius follows that of the probe, on the draw of the searches
    runs = result.study.runs
    probe = runs["probe-lets-sam"]
    assert (probe.phase, probe.begin["config"]["data"]["split_seed"]) == ("probe", 0)
    assert "final/test_accuracy" not in probe.metrics
    replayed = bisam_ray.resolve(runs["sam-replayed-r0-s0"].begin["config"]).optim
    learned = [epoch["sam/rho"] for epoch in probe.epochs]
    shape = dict(replayed.rho_schedule)
    assert [shape[(2 * i + 1) / 8] for i in range(4)] == pytest.approx(
        [rho / max(learned) for rho in learned], rel=1e-2
    )
    assert {run.begin["radius_policy"] for run in result.study.of(arm="sam around")} == {"around"}
    config = runs["sam-r0-s0"].begin["config"]
    assert (config["data"]["split_seed"], config["data"]["noise_seed"]) == (100, 100)

    # the kept networks were measured, the first one's landscape drawn; the report and its parts are there
    for arm in found.arms:
        first, second = (runs[name].measured["flatness"] for name in arm.kept)
        assert first["eigenvalue"] > 0
        assert (first["landscape"] is None, second["landscape"] is None) == (False, True)
    directory = result.report.parent
    assert found.verdict in (directory / "summary.md").read_text()
    assert (directory / "figures" / "landscape.csv").exists()
    assert bisam_ray.load_study("c", str(tmp_path)).outcome == found

    # gone on with: another seed, nothing twice; with other data it is another comparison
    with pytest.raises(bisam_ray.ConfigError, match=r"data\.label_noise: 0\.4 → 0\.2"):
        bisam_ray.compare(["sam"], {**QUICK, "data.label_noise": 0.2}, EPOCHS, seeds=3, resume=True, **given)
    more = bisam_ray.compare(study="c", storage=str(tmp_path), resume=True, seeds=3)  # the rest is as it was
    assert more.outcome.n == 3
    before, after = result.study.runs, more.study.runs
    assert {name: run.end for name, run in before.items()} == {name: after[name].end for name in before}
    assert {run.begin["replicate"] for name, run in after.items() if name not in before} == {2}
    client = connect(tracking_uri(tmp_path))
    shown = client.search_runs([client.get_experiment_by_name("c").experiment_id], max_results=1000)
    assert Counter(run.info.status for run in shown)["RUNNING"] == 0
    assert len(shown) == len(after) + len(arms) + 1  # and a run per arm, and the parent


SCRIPT = """
import sys
import bisam_ray
bisam_ray.compare(["sam"], {quick!r}, {epochs!r}, trials=3, seeds=2, study="c", storage={storage!r}, concurrency=1,
                  kinds=["searched", "learned", "around"], resume="resume" in sys.argv)
"""


def started(storage, *words):
    storage.mkdir(exist_ok=True)
    text = SCRIPT.format(quick=QUICK, epochs=EPOCHS, storage=str(storage))
    with open(storage / "log", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", text, *words], stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_a_comparison_killed_at_every_stage_comes_to_the_same_result(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = started(whole)
    assert process.wait(timeout=300) == 0, (whole / "log").read_text()[-2000:]
    events = [event["event"] for event in ledger.events(whole / "c")]
    chance, kills = random.Random(2), 0
    for share in (0.05, 0.25, 0.5, 0.8, 0.97):  # probe, search, the search that follows, replicates, measuring
        target = max(2, int(share * len(events)) + chance.randrange(3))
        process = started(cut, *(["resume"] if (cut / "c").exists() else []))
        while process.poll() is None and sum(1 for _ in ledger.whole_lines(cut / "c" / ledger.FILE)) < target:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            kills += 1
        process.wait(timeout=90)
    process = started(cut, "resume")
    assert process.wait(timeout=300) == 0, (cut / "log").read_text()[-2000:]
    assert kills >= 4
    seen = Counter((e["run"], e["epoch"]) for e in ledger.events(cut / "c") if e["event"] == "epoch")
    assert set(seen.values()) == {1}, "an epoch was recorded twice"
    one, other = (bisam_ray.load_study("c", str(storage)).outcome for storage in (whole, cut))
    assert [(arm.arm, arm.test, arm.how, arm.cost_gradients) for arm in one.arms] == [
        (arm.arm, arm.test, arm.how, arm.cost_gradients) for arm in other.arms
    ]
    assert one.contrasts == other.contrasts
    assert one.verdict == other.verdict
