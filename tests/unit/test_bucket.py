"""Studies in an object store, against a real server that speaks S3."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("moto")
import bisam_ray
from bisam_ray.config import ConfigError, resolve
from bisam_ray.study import bucket, storage
from bisam_ray.study import housekeeping as house
from bisam_ray.study.ledger import FILE, read
from bisam_ray.study.session import session
from bisam_ray.training import checkpoint, objects

RUN = {"model.name": "mlp", "train.epochs": 4}


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    made._port = made.get_host_and_port()[1]  # so that it comes back where it was
    yield made
    made.stop()


@pytest.fixture
def url(server, monkeypatch, tmp_path):
    """An empty prefix of a bucket."""
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "BISAM_RAY_CACHE": str(tmp_path / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
    objects.filesystem.cache_clear()  # an endpoint is read when a file system is made
    return f"s3://bucket/{tmp_path.name}"


def elsewhere(monkeypatch, tmp_path):
    """Another machine: nothing of the working directories is there."""
    monkeypatch.setenv("BISAM_RAY_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))


def weights(place):
    return checkpoint.load(place)[1]["model"]


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_objects_come_and_go(url, tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_bytes(b"12345")
    objects.put(tmp_path / "d", f"{url}/d")
    assert objects.sizes(url) == {"d/e/f": 5}
    assert objects.get(f"{url}/d/e/f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"12345"
    assert objects.exists(f"{url}/d/e/f")
    assert 0 <= objects.age_s(f"{url}/d/e/f") < 60
    objects.remove(f"{url}/d/e/f")
    objects.remove(f"{url}/d/e/f")
    assert not objects.exists(f"{url}/d/e/f")
    assert not objects.get(f"{url}/d/e/f", tmp_path / "none")
    assert objects.sizes(f"{url}/nothing") == {}
    with pytest.raises(ConfigError, match="no such checkpoint"):
        checkpoint.load(f"{url}/none.pt")


def test_a_run_in_a_bucket_is_the_run_in_a_directory(url, tmp_path, monkeypatch):
    here = bisam_ray.train(overrides=RUN, storage=str(tmp_path / "runs"))
    there = bisam_ray.train(overrides=RUN, storage=url)
    assert there.checkpoint == f"{url}/{there.run_id}/runs/{there.run_id}.pt"
    assert same(weights(here.checkpoint), weights(there.checkpoint))
    elsewhere(monkeypatch, tmp_path)
    found = bisam_ray.load_study(there.run_id, storage=url)
    assert found.run.metrics == there.run.metrics
    assert bisam_ray.evaluate(found.checkpoint)["accuracy"] == there.run.metrics["final/test_accuracy"]
    assert bisam_ray.train(overrides=RUN, storage=url, resume=True).run.metrics == there.run.metrics
    second = bisam_ray.train(overrides=RUN, storage=url)
    assert second.run_id == f"{there.run_id}-2"  # names are taken there, not here only
    assert [path.name for path in storage.studies(storage.root(url))] == [there.run_id, second.run_id]


DRIVER = """
import os, sys
import bisam_ray
from bisam_ray.study.session import Session

epoch = Session.epoch

def dying(self, name, message):
    epoch(self, name, message)
    if message.epoch == 2:
        os.kill(os.getpid(), 9)

Session.epoch = dying
from bisam_ray.training import launch
launch.CHECKPOINT_EVERY_S = 0.0
launch.SAVING = 1e9
bisam_ray.train(overrides={"model.name": "mlp", "train.epochs": 4}, storage=sys.argv[1])
"""


def test_a_driver_that_was_killed_is_gone_on_with_from_another_machine(url, tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "-c", DRIVER, url], check=False, env=dict(os.environ), cwd=tmp_path)
    assert done.returncode == -9
    elsewhere(monkeypatch, tmp_path)
    result = bisam_ray.train(overrides=RUN, storage=url, resume=True)
    alone = bisam_ray.train(overrides=RUN, storage=str(tmp_path / "runs"))
    assert same(weights(result.checkpoint), weights(alone.checkpoint))
    assert [epoch["epoch"] for epoch in result.run.epochs] == [1, 2, 3, 4]
    losses = [[epoch["train/loss"] for epoch in of.run.epochs] for of in (result, alone)]
    assert losses[0] == losses[1]


def test_a_second_driver_is_refused_and_a_silent_one_is_taken_for_dead(url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "RENEW_S", 0.3)
    monkeypatch.setattr(bucket, "LEASE_S", 1.5)
    root = storage.root(url)
    directory = storage.create(root, "study")
    target = f"{url}/study"
    with session(directory, "train", resolve(RUN), tracked=False):
        time.sleep(1.0)
        assert storage.driver(directory).split()[1] == str(os.getpid())
        second = bucket.Bucket(tmp_path / "study", target)
        with pytest.raises(ConfigError, match="is driving this study already"):
            second.claim()
    assert storage.driver(directory) is None
    objects.write(f"{target}/driver.json", json.dumps({"driver": "elsewhere 1 ab"}).encode())
    began = time.monotonic()
    second.claim()
    assert 1.0 < time.monotonic() - began < 10
    assert bucket.holder(target) == second.mark


def test_lines_that_were_not_sent_are_sent_later_and_a_stale_ledger_gives_way(url, tmp_path, monkeypatch):
    directory = storage.create(storage.root(url), "study")
    with session(directory, "train", resolve(RUN), tracked=False) as driver:
        driver.begin("run", resolve(RUN), arm="sam", phase="final")
    whole, there = (directory / FILE).read_bytes(), bucket.parts(f"{url}/study")
    last = max(there)
    objects.remove(f"{url}/study/ledger/{last}")  # a kill came before it was sent
    bucket.fetch(f"{url}/study", directory)
    assert (directory / FILE).read_bytes() == whole
    with session(directory, "train", resolve(RUN), tracked=False):
        pass
    (directory / FILE).write_bytes(whole + b'{"event": "of another life"}\n' * 9)
    bucket.fetch(f"{url}/study", directory)
    events = [json.loads(line)["event"] for line in (directory / FILE).read_bytes().splitlines()]
    assert events == ["study", "begin", "end", "finish", "study", "finish"]
    elsewhere(monkeypatch, tmp_path)
    assert list(read(storage.existing(storage.root(url), "study")).runs) == ["run"]


def test_a_service_that_is_away_for_a_while_is_waited_for(url, server):
    objects.write(f"{url}/before", b"1")
    server.stop()
    threading.Timer(2.0, server.start).start()
    objects.write(f"{url}/after", b"2", patience_s=60)
    assert objects.read(f"{url}/after") == b"2"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("s3://nothere/x", r"there is no such bucket"),
        ("s3://", r"names no bucket \(nearest: s3://BUCKET/runs\)"),
        ("s3://key:secret@bucket/x", r"no passwords in URLs"),
        ("s4://bucket/x", r"cannot be written \(Unrecognized filesystem type"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_in_a_line(url, given, told):
    with pytest.raises(ConfigError, match=told) as caught:
        storage.root(given)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_nobody_needs_is_found_and_removed_there(url):
    result = bisam_ray.train(overrides=RUN, storage=url)
    directory = Path(result.directory)
    there = objects.sizes(storage.remote(directory))
    assert {"driver.json"}.isdisjoint(there)
    assert house.overview(directory).size >= sum(there.values()) > 10_000
    objects.write(f"{storage.remote(directory)}/runs/old.pt", b"12345")
    found = house.rubbish(directory)
    assert [item.path for item in found] == [f"{storage.remote(directory)}/runs/old.pt"]
    house.remove(found)
    assert house.rubbish(directory) == []
