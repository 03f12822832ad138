"""The checks' frame, and what single checks say of things that are wrong; without Ray."""

import importlib.metadata
import json
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bisam_ray import cluster_checks, doctor
from bisam_ray.cli import main
from bisam_ray.cluster_checks import Result
from bisam_ray.training import objects

NODES = {"a": "10.0.0.1 (a)", "b": "10.0.0.2 (b)", "c": "10.0.0.3 (c)"}


def good(storage):
    return Result(True, f"all well in {storage}")


def raising(storage):
    raise RuntimeError("the first line\nand a second")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def call(monkeypatch, checks, *words):
    monkeypatch.setattr(doctor, "CHECKS", checks)
    return CliRunner().invoke(main, ["doctor", *words])


def test_a_line_per_check_and_exit_code_0(monkeypatch):
    skipped = {"two": lambda storage: Result(None, "one node only")}
    result = call(monkeypatch, {"one": good, **skipped}, "--storage", "here")
    assert result.stdout == "✓ one: all well in here\n– two: one node only\n"
    assert result.exit_code == 0


def test_a_check_that_raises_is_a_fault_of_one_line_and_the_others_go_on(monkeypatch):
    result = call(monkeypatch, {"one": raising, "two": good})
    assert result.stdout == "✗ one: RuntimeError: the first line\n✓ two: all well in ./runs\n"
    assert result.exit_code == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize("checks", [{"one": good}, {"one": good, "two": raising}])
def test_json_is_the_last_line(monkeypatch, checks):
    result = call(monkeypatch, checks, "--json")
    *lines, last = result.stdout.splitlines()
    found = json.loads(last)
    assert len(lines) == len(found["checks"]) == len(checks)
    assert found["checks"][0] == {"name": "one", "ok": True, "found": "all well in ./runs", "advice": ""}
    assert found["ok"] is ("two" not in checks)
    assert result.exit_code == len(checks) - 1
    assert json.loads(call(monkeypatch, checks, "--json", "--quiet").stdout) == found


def test_advice_follows_what_is_wrong(monkeypatch):
    result = call(monkeypatch, {"one": lambda storage: Result(False, "it is broken", "mend it")})
    assert result.stdout == "✗ one: it is broken; mend it\n"


def test_without_a_cluster_what_would_ask_it_is_skipped(monkeypatch):
    monkeypatch.setattr(doctor, "joined", lambda: False)
    monkeypatch.setattr(doctor, "CHECKS", dict.fromkeys(doctor.CHECKS, raising))
    checks = {check["name"]: check["ok"] for check in doctor.examine("runs", lambda line: None)["checks"]}
    assert {name for name, ok in checks.items() if ok is None} == set(doctor.ON_CLUSTER)


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{probe.getsockname()[1]}")  # bound, but nobody listens
        result = doctor.attempt("cluster", cluster_checks.cluster, "runs")
    assert result.ok is False
    assert "does not answer (Connection refused); start it" in result.found


def test_an_error_on_another_node_is_told_as_it_was_there():
    outer = RuntimeError("ray::versions() (pid=1)\nTraceback …")
    outer.cause = PermissionError(13, "Permission denied")
    assert cluster_checks.one_line(outer) == "PermissionError: [Errno 13] Permission denied"


def test_a_storage_that_was_not_there_is_not_there_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"MLflow": doctor.mlflow})
    told = []
    assert doctor.examine("runs", told.append)["ok"], told
    assert list(tmp_path.iterdir()) == []


def test_mlflow_twice_and_only_a_deleted_experiment_stays(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    MlflowClient(uri).create_experiment("mine")
    for storage in ("runs", "elsewhere"):
        assert doctor.mlflow(storage).ok
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "mine.db"]
    assert {e.name for e in MlflowClient(uri).search_experiments()} <= {"mine", "Default"}


@pytest.mark.parametrize(("there", "ok"), [("2.10.0", True), ("2.9.1", False), (None, False), ("2.10.0+cpu", True)])
def test_versions_are_compared_as_versions(monkeypatch, there, ok):
    needs = ["torch[all]>=2.10 ; python_version >= '3'", "pytest>=99; extra == 'test'", "click>=8"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(doctor, "version", lambda name: there if name == "torch" else "8.1")
    result = doctor.packages("runs")
    assert result.ok is ok
    if not ok:
        assert result.found == f"torch {there or 'is missing'}, needed >=2.10"
        assert result.advice == "pip install -U 'torch[all]>=2.10'"


def test_nodes_that_differ_are_named(monkeypatch):
    here = cluster_checks.versions()
    assert len(here["code"]) == 8
    monkeypatch.setattr(cluster_checks, "nodes", lambda: NODES)
    answers = {"a": here, "b": {**here, "ray": "2.0", "code": None}, "c": RuntimeError("gone")}
    monkeypatch.setattr(cluster_checks, "on_every_node", lambda function: answers)
    result = cluster_checks.same_versions("runs")
    assert not result.ok
    b, c = result.found.split(" · ")
    assert b == f"10.0.0.2 (b) has ray 2.0, here {here['ray']}, code None, here {here['code']}"
    assert c == "10.0.0.3 (c) RuntimeError: gone"
    answers = dict.fromkeys("abc", here)
    assert cluster_checks.same_versions("runs").ok


def test_a_storage_that_a_node_does_not_share_is_named_and_nothing_stays(tmp_path, monkeypatch):
    """Node b has a directory of its own at the same path, node c cannot write."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(cluster_checks, "nodes", lambda: NODES)

    def on_every_node(function, directory, word):
        return {
            "a": cluster_checks.exchange_files(directory, word, "a"),
            "b": cluster_checks.exchange_files(str(own), word, "b"),
            "c": OSError(30, "Read-only file system"),
        }

    monkeypatch.setattr(cluster_checks, "on_every_node", on_every_node)
    result = cluster_checks.shared_storage("runs")
    assert not result.ok
    assert result.found.startswith(f"{tmp_path / 'runs'}: 10.0.0.2 (b) has another directory there · 10.0.0.3 (c) ")
    assert result.advice.startswith("give a shared directory")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.fixture
def bucket(monkeypatch):
    """Objects by their URLs."""
    there = {"s3://bucket/prefix/study/ledger/1": b"not the doctor's"}

    def read(url, patience_s=0):
        if url not in there:
            raise FileNotFoundError(2, "No such object", url)
        return there[url]

    def sizes(url):
        return {name.removeprefix(f"{url}/"): len(there[name]) for name in there if name.startswith(f"{url}/")}

    def delete_dir(url):
        for name in sizes(url):
            del there[f"{url}/{name}"]

    monkeypatch.setattr(objects, "read", read)
    monkeypatch.setattr(objects, "write", lambda url, content, patience_s=0: there.update({url: content}))
    monkeypatch.setattr(objects, "sizes", sizes)
    monkeypatch.setattr(objects, "located", lambda url: (SimpleNamespace(delete_dir=delete_dir), url))
    monkeypatch.setattr(cluster_checks, "nodes", lambda: NODES)
    yield there
    assert list(there) == ["s3://bucket/prefix/study/ledger/1"]


def test_a_bucket_is_written_and_read_by_every_node_and_nothing_stays(bucket, monkeypatch):
    wrote = []

    def on_every_node(function, place, word):
        answers = {node: function(place, word, node) for node in NODES}
        wrote.extend(bucket)
        return answers

    monkeypatch.setattr(cluster_checks, "on_every_node", on_every_node)
    result = cluster_checks.shared_storage("s3://bucket/prefix/")
    assert result.ok, result
    assert "by nodes 3" in result.found
    assert [name.rpartition("/")[2] for name in wrote[1:]] == ["driver", "a", "b", "c"]
    assert all(name.startswith("s3://bucket/prefix/.doctor-") for name in wrote[1:])


def test_a_bucket_that_a_node_does_not_see_is_named_and_nothing_stays(bucket, monkeypatch):
    """Node a has another account's bucket of that name, b may not write, c wrote what the driver does not see."""

    def on_every_node(function, place, word):
        bucket[f"{place}-other/driver"] = b"another word"
        answer = function(f"{place}-other", word, "a")
        del bucket[f"{place}-other/driver"]
        return {"a": answer, "b": PermissionError("ACCESS_DENIED during PutObject"), "c": None}

    monkeypatch.setattr(cluster_checks, "on_every_node", on_every_node)
    result = cluster_checks.shared_storage("s3://bucket/prefix")
    assert not result.ok
    a, b, c = result.found.removeprefix("s3://bucket/prefix: ").split(" · ")
    assert a == "10.0.0.1 (a) has another bucket there"
    assert b == "10.0.0.2 (b) PermissionError: ACCESS_DENIED during PutObject"
    assert c == "10.0.0.3 (c) wrote what is not seen here"
    assert "AWS_ENDPOINT_URL" in result.advice


def test_a_bucket_that_refuses_is_a_fault_with_advice(monkeypatch):
    def refused(*_):
        raise OSError("AWS Error ACCESS_DENIED during PutObject")

    monkeypatch.setattr(objects, "write", refused)
    result = cluster_checks.shared_storage("s3://bucket/prefix")
    assert not result.ok
    assert result.found == "s3://bucket/prefix: OSError: AWS Error ACCESS_DENIED during PutObject"
    assert "rights to list, read, write and delete" in result.advice


def test_a_bucket_that_does_not_answer_is_told_before_long(monkeypatch):
    monkeypatch.setattr(cluster_checks, "ANSWER_S", 0.2)
    monkeypatch.setattr(objects, "write", lambda *_: time.sleep(5))
    began = time.monotonic()
    result = cluster_checks.shared_storage("s3://bucket/prefix")
    assert time.monotonic() - began < 2
    assert (result.ok, result.found) == (False, "s3://bucket/prefix did not answer in 0 s")


def test_mlflow_beside_a_bucket_is_that_of_its_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("BISAM_RAY_CACHE", str(tmp_path))
    result = doctor.mlflow("s3://bucket/prefix")
    assert result.ok, result
    assert f"sqlite:///{tmp_path}/s3-bucket-prefix-" in result.found
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".url"]


RUN = {"train/loss": 0.5, "val/loss": 0.25}


@pytest.mark.parametrize(
    ("last", "ok", "told"),
    [
        ((4, RUN), True, "2 metrics of two equal runs of two steps are bitwise equal on each of nodes 2 (processes 4)"),
        ((4, {**RUN, "val/loss": 0.25000000000000006}), False, "10.0.0.2 (b): val/loss 0.25, then 0.25000000000000006"),
        (RuntimeError("no torch"), False, "10.0.0.2 (b) RuntimeError: no torch"),
    ],
)
def test_equal_runs_of_a_node_are_compared_to_the_last_bit(monkeypatch, last, ok, told):
    monkeypatch.setattr(cluster_checks, "nodes", lambda: {"a": NODES["a"], "b": NODES["b"]})
    monkeypatch.setattr(cluster_checks, "ask", lambda *_: [(1, RUN), (2, RUN), (3, RUN), last])
    result = cluster_checks.determinism("runs")
    assert (result.ok, result.found) == (ok, told)


def test_nodes_whose_bits_differ_from_each_other_are_told_and_no_fault(monkeypatch):
    monkeypatch.setattr(cluster_checks, "nodes", lambda: {"a": NODES["a"], "b": NODES["b"]})
    other = {**RUN, "val/loss": 0.3}
    monkeypatch.setattr(cluster_checks, "ask", lambda *_: [(1, RUN), (2, RUN), (3, other), (4, other)])
    result = cluster_checks.determinism("runs")
    assert result.ok
    assert "between nodes there are 2 variants" in result.found


def test_the_run_of_two_steps_repeats():
    (one, first), (two, second) = cluster_checks.two_steps(), cluster_checks.two_steps()
    assert one == two
    assert first == second
    assert first["cost/gradients"] == 2 * 2 * 500  # two steps of two gradients of 500 examples


def sized(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)


def test_the_upload_is_what_the_ignore_files_leave(tmp_path):
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".gitignore").write_text("*.pt\n")
    (tmp_path / ".rayignore").write_text("logs/\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".gitignore").write_text("only_here\n")
    for name, size in [("a.pt", 10**9), ("logs/x", 10**9), ("sub/only_here", 10**9), ("train.py", 3000), ("sub/b", 50)]:
        sized(tmp_path / name, size)
    result = doctor.upload("runs")
    assert result.ok
    assert "would send 5 files, 3 kB (train.py 3 kB, sub/b 50 B, " in result.found
    sized(tmp_path / "sub" / "data.bin", doctor.LARGEST_UPLOAD)
    result = doctor.upload("runs")
    assert not result.ok
    assert "(sub/data.bin 100 MB, train.py 3 kB," in result.found
    assert ".rayignore" in result.advice


def test_a_walk_that_takes_too_long_is_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "WALK_S", -1)
    assert "more than" in doctor.upload("runs").found
    assert doctor.upload("runs").ok is False


@pytest.mark.parametrize(("mode", "ok"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_the_token_file_is_for_its_owner_only(tmp_path, monkeypatch, mode, ok):
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    result = doctor.security("runs")
    assert result.ok is ok
    assert result.advice == ("" if ok else f"chmod 600 {path}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")  # comes first: the file is not used
    assert doctor.security("runs").ok


@pytest.mark.parametrize(
    ("uri", "ok"),
    [
        ("sqlite:////tmp/mlflow.db", True),
        ("http://127.0.0.1:5000", True),
        ("http://localhost:5000", True),
        ("http://[::1]:5000", True),
        ("https://mlflow.example.org", True),
        ("http://mlflow.example.org", False),
        ("http://name:password@10.0.0.1:5000", False),
        ("http://localhost.example.org", False),
    ],
)
def test_mlflow_is_on_this_machine_or_encrypted(monkeypatch, uri, ok):
    monkeypatch.setattr(doctor, "token_file", lambda: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = doctor.security("runs")
    assert result.ok is ok
    assert "password" not in result.line("security")


def test_a_cluster_without_a_token_is_a_fault(monkeypatch):
    monkeypatch.setattr(doctor, "joined", lambda: True)
    monkeypatch.setattr(doctor, "token_file", lambda: None)
    monkeypatch.setattr(doctor, "token_in_force", lambda: False)
    result = doctor.security("runs")
    assert not result.ok
    assert "RAY_AUTH_MODE=token" in result.advice
    monkeypatch.setattr(doctor, "token_in_force", lambda: True)
    assert doctor.security("runs").ok
