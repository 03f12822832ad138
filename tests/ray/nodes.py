"""Real Ray nodes on this machine, each a process group of its own, and drivers that run our commands on them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKEN = secrets.token_hex(32)
START_S = 120


def wait(until, seconds, what):
    """`until()` as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return found


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def descendants(pid):
    """(pid, command line) of every process below one."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    found, level = [], {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += [(child, names[child]) for child in level]
    return found


class Node:
    """`ray start --block`, with everything that it started."""

    def __init__(self, nodes, *options, before=()):
        self.log = tempfile.NamedTemporaryFile(dir=nodes.directory, suffix=".log", delete=False)  # noqa: SIM115
        command = [*before, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        self.process = subprocess.Popen(command, env=nodes.environment, stdout=self.log, stderr=self.log)

    def joined(self):
        """Whether the node is there; False if it did not start: on a busy machine Ray gives up on its own agents."""
        log = Path(self.log.name)
        started = wait(lambda: self.process.poll() or "runtime started" in log.read_text(), START_S, "ray")
        if started is not True:
            self.kill()
        return started is True

    def processes(self, name=""):
        return [pid for pid, command in descendants(self.process.pid) if name in command]

    def kill(self):
        """The power is cut."""
        for pid in [self.process.pid, *self.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


class Nodes:
    """A cluster: a head without processors, and nodes that come and go."""

    def __init__(self, directory):
        self.directory = directory
        self.short = tempfile.mkdtemp(prefix="ray-")  # paths of sockets must be short
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "6",
            "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{(s3_port := free_port())}",  # where a test may start a server
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "BISAM_RAY_CACHE": f"{directory}/cache",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.nodes, self.port, self.s3_port = [], free_port(), s3_port
        self.address = f"127.0.0.1:{self.port}"
        self.head = self.start(
            "--head",
            f"--port={self.port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            f"--temp-dir={self.short}",
        )

    def start(self, *options, **more):
        for _ in range(3):
            if (node := Node(self, *options, "--object-store-memory=100000000", **more)).joined():
                return node
        raise AssertionError(Path(node.log.name).read_text()[-2000:])

    def add(self, count=1, host="127.0.0.1", **more):
        """Nodes of one processor each, that have joined; `host`: the head's address as they see it."""
        made = [self.start(f"--address={host}:{self.port}", "--num-cpus=1", **more) for _ in range(count)]
        self.nodes += made
        return made

    def kill(self, node):
        self.nodes.remove(node)
        node.kill()

    def processes(self, name):
        """Of all nodes but the head."""
        return [pid for node in self.nodes for pid in node.processes(name)]

    def driver(self, *command, out=subprocess.PIPE, **environment):
        """`bisam-ray …` joined to this cluster."""
        return subprocess.Popen(
            [sys.executable, "-m", "bisam_ray", *map(str, command)],
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.default_int_handler
            ),  # a background shell ignores it
            env={**self.environment, "RAY_ADDRESS": self.address, **environment},
            cwd=self.directory,
            stdout=out,
            stderr=out,
            text=True,
        )

    def close(self):
        for node in [*self.nodes, self.head]:
            node.kill()


def finished(driver, seconds=300, code=0):
    """What a driver printed: (the JSON object of --json, everything)."""
    out, err = driver.communicate(timeout=seconds)
    assert driver.returncode == code, f"{out}\n{err}"
    last = (out.strip().splitlines() or [""])[-1]
    assert last.startswith("{") or code, f"{out}\n{err}"
    return json.loads(last) if last.startswith("{") else {}, out + err
