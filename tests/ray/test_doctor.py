"""The doctor on a local cluster of one node, where all is well, and on three nodes with MLflow away."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("at", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def environment(**more):
    hidden = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, **more}


def doctor(directory, **more):
    process = subprocess.run(
        [sys.executable, "-m", "bisam_ray", "doctor", "--json"],
        cwd=directory,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    *lines, last = process.stdout.splitlines()
    found = json.loads(last)
    assert len(lines) == len(found["checks"]) == 9
    assert "Traceback" not in process.stdout + process.stderr
    return process.returncode, found, lines


def test_a_local_cluster_is_well_and_nothing_stays_behind(tmp_path):
    began = time.monotonic()
    code, found, lines = doctor(tmp_path)
    assert [line[0] for line in lines] == ["✓"] * 9, lines
    assert "(processes 2)" in lines[6]
    assert (code, found["ok"]) == (0, True)
    assert time.monotonic() - began < 120  # the bar is 30 s; a loaded machine is given four times that
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def three_nodes(tmp_path):
    """A head that runs nothing and two nodes of a processor each, which ask for no token; the address."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        cwd=tmp_path,
        env=environment(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield next(line.split()[1] for line in process.stdout if line.startswith("at "))
    finally:
        process.communicate(timeout=60)


@pytest.mark.slow
def test_every_node_is_asked_and_with_mlflow_away_that_line_says_so(tmp_path, three_nodes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracking = f"http://127.0.0.1:{port}"
    code, found, lines = doctor(
        tmp_path, RAY_ADDRESS=three_nodes, RAY_AUTH_MODE="disabled", MLFLOW_TRACKING_URI=tracking
    )
    told = {check["name"]: check["found"] for check in found["checks"]}
    assert [check["name"] for check in found["checks"] if check["ok"] is False] == ["MLflow", "security"], lines
    assert f"127.0.0.1:{port} does not answer" in told["MLflow"]
    assert "whoever reaches this Ray can run code on it" in told["security"]
    assert told["same versions"].startswith("nodes 3, ")
    assert "read and written by nodes 3" in told["storage"]
    assert "2 processes on nodes 2 agree" in told["distributed"]
    assert "on each of nodes 3 (processes 6)" in told["determinism"]
    assert (code, found["ok"]) == (1, False)
    assert list(tmp_path.iterdir()) == []
