"""`ray job submit` to a head node of its own: the README's command, stopping, going on, and who may do so."""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from bisam_ray.study import ledger, storage

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PLUGIN = """
import json, os
import bisam_ray
from bisam_ray.training.models import build as built_in

def tell(who):
    '''Who is where, with which package.'''
    told = {"who": who, "package": bisam_ray.__file__, "git": os.environ.get("BISAM_RAY_GIT"), "pid": os.getpid()}
    with open(os.environ["HOME"] + "/told", "a") as file:
        file.write(json.dumps(told) + "\\n")

def space(trial):
    tell("driver")
    return {"optim.rho": trial.suggest_float("rho", 0.05, 0.5)}

def build(shape, classes):
    tell("trial")
    return built_in("mlp", shape, classes)
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def until(true, seconds=60, every=0.1):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(every)
    return found


def descendants(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head node with a token, as the README starts one, and a copy of the working tree to submit from."""
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets want short paths
    tree = home / "tree"
    ignored = shutil.ignore_patterns(".git", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=ignored)
    (tree / "telltale.py").write_text(PLUGIN)
    for name in (".env", "secret.pem"):
        (tree / name).write_text("a password")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "BISAM_"))}
    env |= {"HOME": str(home), "PATH": f"{BIN}:{env['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    gcs, dashboard, client, agent, grpc, metrics = free_ports(6)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--port", gcs]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--ray-client-server-port", client]
    command += ["--dashboard-agent-listen-port", agent, "--dashboard-agent-grpc-port", grpc]
    command += ["--metrics-export-port", metrics, "--temp-dir", str(temporary), "--disable-usage-stats"]
    with open(home / "head.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=home)
    try:
        until(
            lambda: (
                process.poll() is not None
                or "runtime has terminated" in (home / "head.log").read_text()
                or "Ray runtime started" in (home / "head.log").read_text()
            ),
            90,
        )
        assert process.poll() is None, (home / "head.log").read_text()
        yield SimpleNamespace(
            env=env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
            home=home, tree=tree, token=token, dashboard=dashboard, gcs=gcs, temporary=temporary, runs=home / "runs",
        )  # fmt: skip
    finally:
        family = descendants(process.pid)
        process.terminate()
        process.wait(60)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def told(head):
    """What the plug-ins said since the last time."""
    file = head.home / "told"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    return rows


def submit(head, job, *words, wait=True):
    """The README's command, with other words for what is run."""
    line = f"ray job submit --submission-id {job} {'' if wait else '--no-wait'} --working-dir . "
    line += f'--runtime-env-json "$(bisam-ray runtime-env)" -- python -m bisam_ray {shlex.join(words)}'
    done = subprocess.run(line, shell=True, cwd=head.tree, env=head.env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def api(head, path, body=None, token=None):
    """(HTTP status, answer) of the dashboard, which also takes the jobs."""
    header = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{head.dashboard}/api/{path}", data, header)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


def ask(head, path, body=None):
    status, answer = api(head, path, body, head.token.read_text())
    assert status == 200
    return answer


def state(head, job):
    return ask(head, f"jobs/{job}")["status"]


def events(head, study):
    directory = head.runs / study
    return list(ledger.events(directory)) if directory.is_dir() else []


def stranger(head, *command, token):
    """Start a client with another token, or with none."""
    env = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    env["RAY_NUM_REDIS_GET_RETRIES"] = "2"  # else a refusal takes 21 s
    return subprocess.Popen(
        command, env=env, cwd=head.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_the_readmes_command_runs_a_search_from_the_uploaded_tree(head):
    words = ["--storage", str(head.runs), "--confirm", "0", "model=telltale:build", "train.epochs=2"]
    printed = submit(head, "first", "search", "telltale:space", "--trials", "2", "--study", "first", *words)
    assert "first: 2 trials, 2 completed" in printed
    rows = told(head)
    assert {row["who"] for row in rows} == {"driver", "trial"}
    assert len({row["pid"] for row in rows}) > 1
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=head.tree, capture_output=True, text=True).stdout
    assert {row["git"] for row in rows} == {commit[:12]}
    assert {Path(row["package"]).is_relative_to(head.temporary) for row in rows} == {True}, "not the uploaded package"
    recorded = events(head, "first")
    assert recorded[0]["git"] == commit[:12]
    assert recorded[-1]["outcome"] == "completed"

    log = ask(head, "jobs/first/logs")["logs"]
    assert re.search(r"^0:\d\d  space searched: \d of 2 trials ended", log, re.M), log
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", log), "control codes in the log"
    assert max(map(len, log.splitlines())) < 400
    package = ask(head, "jobs/first")["runtime_env"]["working_dir"]
    (uploaded,) = head.temporary.rglob(package.removeprefix("gcs://").removesuffix(".zip"))
    files = [path for path in uploaded.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_000_000  # Ray's packages are not compressed
    assert not [path for path in files if path.name in (".env", "secret.pem") or "tests" in path.parts]


def test_nobody_without_the_token_submits_or_looks(head):
    job = {"entrypoint": "touch " + str(head.home / "owned"), "submission_id": "stranger"}
    for token, status in ((None, 401), ("0" * 64, 403)):
        assert api(head, "jobs/", job, token)[0] == status
        for path in ("jobs/", "v0/nodes", "v0/actors", "jobs/first/logs", "packages/gcs/x.zip"):
            assert api(head, path, None, token)[0] == status, path
    assert "stranger" not in [job["submission_id"] for job in ask(head, "jobs/")]
    assert not (head.home / "owned").exists()
    assert not (head.home / ".ray").exists()


@pytest.mark.slow
def test_nobody_without_the_token_connects_or_joins(head):
    python = f"import ray; ray.init('127.0.0.1:{head.gcs}', log_to_driver=False); print('IN')"
    commands = {
        "connect": [sys.executable, "-c", python],
        "join": [str(BIN / "ray"), "start", "--address", f"127.0.0.1:{head.gcs}", "--num-cpus", "1"],
        "submit": [str(BIN / "ray"), "job", "submit", "--no-wait", "--", "true"],
        "list": [str(BIN / "ray"), "list", "nodes"],
    }
    for token in (None, "0" * 64, head.token.read_text()):
        asked = [name for name in commands if token != head.token.read_text() or name != "join"]
        clients = {name: stranger(head, *commands[name], token=token) for name in asked}
        for name, client in clients.items():
            output = client.communicate(timeout=120)[0]
            if token == head.token.read_text():
                assert client.returncode == 0, f"{name}: {output[-1000:]}"
            else:
                assert client.returncode != 0, f"{name}: {output[-1000:]}"
                assert re.search("authentication token|auth_token", output), f"{name}: {output[-1000:]}"
    nodes = ask(head, "v0/nodes")["data"]["result"]["result"]
    assert [node["state"] for node in nodes] == ["ALIVE"]


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_a_study_that_another_job_goes_on_with(head):
    words = ["--storage", str(head.runs), "--study", "long", "--confirm", "0", "--scheduler", "none"]
    words += ["model=telltale:build", "train.epochs=150"]
    submit(head, "long", "search", "rho", "--trials", "3", *words, wait=False)
    until(lambda: sum(e["event"] == "epoch" for e in events(head, "long")) > 20, 120)
    assert storage.driver(head.runs / "long")
    ask(head, "jobs/long/stop", {})
    until(lambda: state(head, "long") in ("STOPPED", "FAILED", "SUCCEEDED"), 60)
    assert state(head, "long") == "STOPPED"
    last = events(head, "long")[-1]
    assert (last["event"], last["outcome"]) == ("finish", "interrupted")
    assert storage.driver(head.runs / "long") is None
    assert "error: interrupted; what was done so far is kept" in ask(head, "jobs/long/logs")["logs"]

    submit(head, "again", "search", "--resume", *words[:4])
    study = ledger.read(head.runs / "long")
    assert study.finish["outcome"] == "completed"
    assert [run.outcome for run in study.of(phase="search")] == ["completed"] * 3
    for run in study.runs.values():
        assert [epoch["epoch"] for epoch in run.epochs] == list(range(1, 151))


@pytest.mark.slow
def test_the_workers_of_a_trainer_import_the_uploaded_package(head):
    (head.home / "told").unlink(missing_ok=True)
    words = ["model=telltale:build", "train.epochs=2", "scale.workers=2"]
    submit(head, "two", "train", "--storage", str(head.runs), *words)
    rows = [row for row in told(head) if row["who"] == "trial"]
    assert len({row["pid"] for row in rows}) >= 2
    assert {Path(row["package"]).is_relative_to(head.temporary) for row in rows} == {True}
