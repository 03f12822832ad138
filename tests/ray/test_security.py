"""What protects a person: only the owner joins Ray, nothing listens to the network, secrets stay secret, nothing that
is loaded runs."""

import ast
import os
import pickle
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import bisam_ray
from bisam_ray.cli import main
from bisam_ray.training import checkpoint, cluster

PACKAGE = Path(bisam_ray.__file__).parent
LOCAL = """
import os, sys
from bisam_ray.training import checkpoint, cluster
cluster.connect()
import ray
print("at", ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
sys.stdin.read()
"""
STRANGER = (
    "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(ray.get(ray.remote(lambda: 'IN').remote()))"
)
SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN",
    "WANDB_API_KEY", "HF_TOKEN", "GITHUB_TOKEN", "DATABASE_PASSWORD",
)  # fmt: skip


def clean(home, **more):
    """The environment of a person who has set nothing."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "BISAM_"))}
    return env | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def test_nobody_else_joins_the_local_cluster_and_no_token_is_left(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", LOCAL], env=clean(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        _, address, token = next(line for line in owner.stdout if line.startswith("at ")).split()
        strangers = {}
        for name, auth in {
            "none": {"RAY_AUTH_MODE": "disabled"},
            "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
            "owner": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        }.items():
            env = clean(tmp_path, **auth, RAY_NUM_REDIS_GET_RETRIES="2")  # else a refusal takes 21 s
            command = [sys.executable, "-c", STRANGER, address]
            strangers[name] = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        told = {name: process.communicate(timeout=60)[0] for name, process in strangers.items()}
        assert "IN" in told["owner"].splitlines(), told["owner"][-1000:]
        for name in ("none", "wrong"):
            assert strangers[name].returncode != 0
            assert "authentication token is missing or incorrect" in told[name].lower(), told[name][-1000:]
    finally:
        owner.communicate("", timeout=60)
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o666, 0o600), (0o640, 0o600), (0o600, 0o600)])
def test_a_token_file_that_everybody_can_read_is_closed(tmp_path, monkeypatch, before, after):
    file = tmp_path / "token"
    file.write_text("x")
    file.chmod(before)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    cluster.tighten()
    assert file.stat().st_mode & 0o777 == after


def test_only_the_token_file_that_is_used_is_touched(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster.tighten()  # there is none
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("x")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "y")
    cluster.tighten()
    assert file.stat().st_mode & 0o777 == 0o644
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    cluster.tighten()
    assert file.stat().st_mode & 0o777 == 0o600


def family(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def listening(pids):
    """Addresses (hexadecimal, as the kernel shows them) on which any of these processes takes TCP connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in map(str.split, Path(table).read_text().splitlines()[1:]):
            if row[3] == "0A" and f"socket:[{row[9]}]" in inodes:
                found.append(row[1])
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run with secrets all around: (storage, secret values, everything that was printed)."""
    home = tmp_path_factory.mktemp("home")
    values = {name: f"sesame{secrets.token_hex(16)}" for name in SECRETS}
    words = ["train", "method=lets-sam", "model=mlp", "train.epochs=2", "--storage", "runs"]
    done = subprocess.run(
        [sys.executable, "-m", "bisam_ray", *words], env=clean(home, **values), cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return home / "runs", values, done.stdout + done.stderr


def places(storage, values):
    """Files that contain one of the values."""
    wanted = [value.encode() for value in values]
    files = [path for path in storage.rglob("*") if path.is_file()]
    return files, [path for path in files if any(value in path.read_bytes() for value in wanted)]


def test_no_secret_is_written_anywhere(trained):
    storage, values, printed = trained
    files, found = places(storage, values.values())
    assert {"ledger.jsonl", "mlflow.db"} <= {path.name for path in files}
    assert any(path.suffix == ".pt" for path in files)
    assert places(storage, ["lets-sam"])[1], "the search for values finds nothing at all"
    assert not found
    assert not [name for name, value in values.items() if value in printed]


@pytest.mark.slow
def test_the_ui_listens_on_loopback_only(trained):
    storage, _, _ = trained
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bisam_ray", "ui", "--storage", str(storage), "--port", str(port)]
    process = subprocess.Popen(command, env=clean(storage.parent), stdout=subprocess.DEVNULL)
    pids = []
    try:
        deadline = time.monotonic() + 90
        while not (found := listening(pids := family(process.pid))):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        seen = set()
        for _ in range(10):  # whatever else it opens
            seen |= set(listening(pids := family(process.pid)))
            time.sleep(0.2)
        assert f"0100007F:{port:04X}" in found  # 127.0.0.1
        assert {address.partition(":")[0] for address in seen} == {"0100007F"}
    finally:
        process.terminate()
        process.wait(30)
        deadline = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        for pid in left:
            os.kill(pid, 9)
    assert not left, "processes that outlive the UI"


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("how", ["pickle", "torch", "within"])
def test_a_malicious_checkpoint_is_refused_in_a_line_and_runs_nothing(tmp_path, how):
    path, touched = tmp_path / "evil.pt", tmp_path / "touched"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(touched)))
    elif how == "torch":
        torch.save(Malicious(touched), path)
    else:
        torch.save(
            {"format": checkpoint.FORMAT, "config": {"method": "sam"}, "state": {"model": Malicious(touched)}}, path
        )
    result = CliRunner().invoke(main, ["eval", str(path)])
    assert result.exit_code == 2
    assert "not a readable checkpoint" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not touched.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert touched.exists(), "it was harmless, and this test says nothing"


def test_nothing_in_the_package_unpickles_or_evaluates_what_it_reads():
    forbidden = {
        "eval",
        "exec",
        "pickle.load",
        "pickle.loads",
        "joblib.load",
        "yaml.load",
        "yaml.unsafe_load",
        "os.system",
    }
    for path in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert name not in forbidden, f"{path.name}:{call.lineno}: {name}"
            given = {f"{word.arg}={ast.unparse(word.value)}" for word in call.keywords}
            if name.endswith(("torch.load", "np.load")):
                assert given & {"weights_only=True", "allow_pickle=False"}, f"{path.name}:{call.lineno}: {name}"
            assert "shell=True" not in given, f"{path.name}:{call.lineno}"
