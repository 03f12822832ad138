"""What clusters do to a run, on real nodes: the final weights are those of a run that nobody disturbed.

Bitwise, on the CPU, with as many workers. Every test waits until training is under way, does the damage, and compares.
"""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

import bisam_ray
from bisam_ray.study import ledger
from bisam_ray.training import checkpoint, objects

from .nodes import Nodes, finished, wait

pytestmark = pytest.mark.slow
EPOCHS = 150
RUN = [
    "model=mlp", "method=lets-bisam-tanh", "data.label_noise=0.2", f"train.epochs={EPOCHS}", "train.save_steps=40",
    "optim.perturbation_scope=global", "scale.workers=2", "scale.placement=spread",
]  # fmt: skip


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head and two nodes; what a test kills, it replaces."""
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        made.add(2)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def undisturbed(nodes):
    """The run of these tests, alone: its final metrics and weights."""
    storage = nodes.directory / "alone"
    result, _ = finished(nodes.driver("train", *RUN, "--storage", storage, "--json"))
    return result, checkpoint.load(checkpoint.place(result["checkpoint"]))[1]


def epochs(storage):
    """How many epochs the only study of a storage has recorded."""
    found = list(storage.glob("*/ledger.jsonl"))
    return max((run.epoch for run in ledger.read(found[0].parent).runs.values()), default=0) if found else 0


def under_way(storage, driver, at_least=15, within=200):
    """Wait until there is a checkpoint, and epochs after it."""

    def ready():
        assert driver.poll() is None, driver.communicate()
        return epochs(storage) >= at_least and list(storage.glob("*/runs/*.pt"))

    wait(ready, within, "training")


def equal(result, undisturbed, place=None):
    """Nothing was lost and nothing came twice."""
    expected, state = undisturbed
    found = checkpoint.load(checkpoint.place(place or result["checkpoint"]))[1]
    for name, weight in state["model"].items():
        assert weight.equal(found["model"][name]), name
    assert found["radii"].equal(state["radii"])
    alike = expected.keys() - {"checkpoint", "cost_seconds", "run_id"}
    assert {key: result[key] for key in alike} == {key: expected[key] for key in alike}
    assert len(found["history"]) == EPOCHS


@pytest.fixture
def running(nodes, undisturbed, tmp_path):
    """The run under way: its driver and its storage."""
    started = []

    def start(*more, **environment):
        storage = tmp_path / "runs"
        driver = nodes.driver("train", *RUN, *more, "--storage", storage, "--json", **environment)
        started.append(driver)
        under_way(storage, driver)
        return driver, storage

    yield start
    for driver in started:
        driver.kill()
        driver.communicate()


def recorded_once(storage):
    (found,) = storage.glob("*/ledger.jsonl")
    (run,) = ledger.read(found.parent).runs.values()
    assert [epoch["epoch"] for epoch in run.epochs] == list(range(1, EPOCHS + 1))
    assert run.outcome == "completed"


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_dies(nodes, running, undisturbed, which):
    driver, storage = running()
    os.kill(sorted(nodes.processes("ray::RayTrainWorker"))[which], signal.SIGKILL)
    equal(finished(driver)[0], undisturbed)
    recorded_once(storage)


@pytest.mark.parametrize("actor", ["ray::TrainController", "ray::Manager"])
def test_an_actor_that_runs_the_training_dies(nodes, running, undisturbed, actor):
    driver, storage = running()
    everywhere = nodes.processes(actor) + nodes.head.processes(actor)
    os.kill(everywhere[0], signal.SIGKILL)
    equal(finished(driver)[0], undisturbed)
    recorded_once(storage)


def test_a_node_dies_and_another_comes(nodes, running, undisturbed):
    driver, storage = running()
    nodes.kill(nodes.nodes[0])
    nodes.add()
    equal(finished(driver)[0], undisturbed)
    recorded_once(storage)


def test_a_node_dies_and_an_elastic_run_goes_on_with_the_other(nodes, undisturbed, tmp_path):
    """With fewer workers sums are made in another order: equal to float tolerance, not bitwise."""
    storage = tmp_path / "runs"
    driver = nodes.driver("train", *RUN, "scale.min_workers=1", "--storage", storage, "--json")
    try:
        under_way(storage, driver, within=400)  # a run that was killed before may hold its reservation for 180 s
        nodes.kill(nodes.nodes[0])
        result, _ = finished(driver)
        assert abs(result["test_accuracy"] - undisturbed[0]["test_accuracy"]) < 0.03
        assert result["cost_gradients"] == undisturbed[0]["cost_gradients"]
        recorded_once(storage)
    finally:
        driver.kill()
        nodes.add()


def test_a_node_can_no_longer_be_reached(nodes, running, undisturbed):
    """Its cable is pulled: nobody is told, connections just fall silent. It has a network of its own."""
    name = f"cut{os.getpid() % 100_000}"

    def ip(*words):
        return subprocess.run(["ip", *words], check=False, capture_output=True).returncode == 0

    if not ip("netns", "add", name):
        pytest.skip("a network namespace takes root")
    there = ["netns", "exec", name, "ip"]
    try:
        assert ip("link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}n", "netns", name)
        assert ip("addr", "add", "10.231.77.1/30", "dev", f"{name}h")
        assert ip("link", "set", f"{name}h", "up")
        assert ip(*there, "addr", "add", "10.231.77.2/30", "dev", f"{name}n")
        assert all(ip(*there, "link", "set", link, "up") for link in (f"{name}n", "lo"))
        assert ip(*there, "route", "add", "default", "via", "10.231.77.1")
        nodes.kill(nodes.nodes[0])
        before = ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}n"]
        (node,) = nodes.add(host="10.231.77.1", before=before)
        driver, storage = running()
        assert node.processes("ray::RayTrainWorker")
        assert ip("link", "set", f"{name}h", "down")
        nodes.add()
        equal(finished(driver)[0], undisturbed)
        recorded_once(storage)
        nodes.kill(node)
    finally:
        ip("netns", "del", name)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_driver_dies_and_is_started_again(nodes, running, undisturbed, how):
    driver, storage = running()
    driver.send_signal(how)
    driver.communicate(timeout=60)
    assert driver.returncode != 0
    again = nodes.driver("train", *RUN, "--storage", storage, "--resume", "--json")
    equal(finished(again)[0], undisturbed)
    recorded_once(storage)


def test_a_checkpoint_is_cut_off_when_a_worker_dies(nodes, running, undisturbed):
    driver, storage = running()
    workers = nodes.processes("ray::RayTrainWorker")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # lest the next one is written meanwhile
    (newest,) = storage.glob("*/runs/*.pt")
    newest.write_bytes(newest.read_bytes()[:5000])
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    equal(finished(driver)[0], undisturbed)


def test_the_disk_is_full_for_a_while(nodes, running, undisturbed, tmp_path):
    """The run ends in one line; when there is room again it goes on."""
    small = tmp_path / "runs"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        driver, storage = running()
        filler = small / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"0" * 4096)
        _, err = driver.communicate(timeout=240)
        assert driver.returncode == 1
        assert "No space left" in err
        assert "Traceback" not in err
        assert "--resume" in err
        filler.unlink()
        again = nodes.driver("train", *RUN, "--storage", storage, "--resume", "--json")
        equal(finished(again)[0], undisturbed)
        recorded_once(storage)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("how", ["vanishes", "hangs"])
def test_mlflow_is_gone(nodes, undisturbed, tmp_path, how):
    """Nobody waits for it: a server that refuses, or one that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if how == "hangs":
            listener.listen(50)
        driver = nodes.driver(
            "train", *RUN, "--storage", tmp_path / "runs", "--json",
            MLFLOW_TRACKING_URI=f"http://127.0.0.1:{listener.getsockname()[1]}",
        )  # fmt: skip
        equal(finished(driver)[0], undisturbed)
    recorded_once(tmp_path / "runs")


@pytest.fixture
def bucket(nodes, monkeypatch):
    """A server that speaks S3, where the nodes look for it, with an empty s3://bucket."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", nodes.s3_port, verbose=False)
    server.start()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, nodes.environment[name])
    endpoint = nodes.environment["AWS_ENDPOINT_URL"]
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
    objects.filesystem.cache_clear()
    yield server
    server.stop()


def hidden(path):
    """A command before `ray start`: its node sees another disk at this path."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a mount namespace takes root")
    path.mkdir(parents=True, exist_ok=True)
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs {path} && exec "$@"', "sh"]


def test_a_search_in_a_bucket_uses_a_node_that_shares_no_disk(nodes, bucket, tmp_path, monkeypatch):
    (node,) = nodes.add(before=hidden(Path(nodes.environment["BISAM_RAY_CACHE"])))
    try:
        search = ["search", "rho", "model=mlp", "train.epochs=20", "--trials", 9, "--confirm", 0, "--study", "s"]
        result, told = finished(nodes.driver(*search, "--storage", "s3://bucket/shared", "--json"))
        assert "3 trials at once" in told
        assert result["completed"] + result["pruned"] == 9
        monkeypatch.setenv("BISAM_RAY_CACHE", str(tmp_path / "elsewhere"))
        found = bisam_ray.load_study("s", storage="s3://bucket/shared")
        assert found.summary() == result
        best = max(found.study.of(outcome="completed"), key=lambda run: run.value("final/val_accuracy"))
        place = f"s3://bucket/shared/s/{best.end['checkpoint']}"
        assert bisam_ray.evaluate(place, "val")["accuracy"] == best.value("final/val_accuracy")
    finally:
        nodes.kill(node)


def test_the_object_store_is_away_for_a_while(nodes, undisturbed, bucket):
    """The workers' checkpoints and the driver's ledger wait for it; then another machine reads them."""
    server = bucket
    driver = nodes.driver("train", *RUN, "--storage", "s3://bucket/runs", "--json")
    try:
        wait(lambda: any(name.endswith(".pt") for name in objects.sizes("s3://bucket/runs")), 150, "a checkpoint")
        server.stop()
        time.sleep(8)
        server.start()
        result, _ = finished(driver)
        equal(result, undisturbed)
        assert sum("/ledger/" in name for name in objects.sizes("s3://bucket/runs")) >= 4
    finally:
        driver.kill()


def test_the_head_dies_and_a_new_cluster_goes_on(undisturbed, tmp_path):
    """Ray survives that only with an external Redis; what is ours lies in the ledger and the checkpoints."""
    storage, made = tmp_path / "runs", Nodes(tmp_path)
    try:
        made.add(2)
        driver = made.driver("train", *RUN, "--storage", storage, "--json")
        under_way(storage, driver)
        os.kill(made.head.processes("gcs_server")[0], signal.SIGKILL)
        out, err = driver.communicate(timeout=180)
        assert driver.returncode not in (0, 2), out + err
    finally:
        made.close()
    fresh = Nodes(tmp_path)
    try:
        fresh.add(2)
        again = fresh.driver("train", *RUN, "--storage", storage, "--resume", "--json")
        equal(finished(again)[0], undisturbed)
        recorded_once(storage)
    finally:
        fresh.close()


def test_a_storage_that_a_node_does_not_have_is_told_at_the_start(nodes, tmp_path):
    storage = tmp_path / "runs"
    (node,) = nodes.add(before=hidden(storage))
    try:
        _, told = finished(nodes.driver("train", *RUN, "--storage", storage), code=2)
        assert re.search(r"error: --storage .*: node \S+ does not have it \(No such file or directory\)", told)
        assert "Traceback" not in told
    finally:
        nodes.kill(node)
