"""A study in an object store: its working directory here, repeated there as it grows.

<url>/<study>/ledger/00000000.jsonl …   the ledger's lines, as numbered objects that never change
<url>/<study>/runs/<run>.pt             checkpoints; whoever trains writes and reads them there itself
<url>/<study>/driver.json               who is driving the study: host, pid, mark; renewed while it lives
<url>/<study>/…                         report, figures, models, optuna.journal: when the driver ends, and at its rungs

What has to be durable (the begin and the end of a run) is there before the driver goes on; epochs follow within
`RENEW_S`, and those that a dying driver did not send are in the runs' checkpoints. A study is gone on with from any
machine: its ledger is fetched first. Object stores know no locks: a driver that stopped renewing `driver.json` for
`LEASE_S` is taken for dead.
"""

from __future__ import annotations

import _thread
import json
import os
import secrets
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..config import ConfigError
from ..training import cluster, objects
from .ledger import FILE, whole_lines

RENEW_S, LEASE_S = 10.0, 40.0
HERE = (FILE, "runs", ".tune", ".driver", "mlflow.json")  # not published: sent otherwise, or of this machine only


def parts(url: str) -> dict[str, int]:
    """The objects of a study's ledger, in order, and their bytes."""
    return objects.sizes(f"{url}/ledger")


def fetch(url: str, directory: Path) -> None:
    """Make the ledger here what it is there, if it is there at all, unless it is longer here: lines that a killed
    driver did not send."""
    if not (names := parts(url)):
        return
    with ThreadPoolExecutor(16) as several:
        there = b"".join(several.map(lambda name: objects.read(f"{url}/ledger/{name}"), names))
    path = directory / FILE
    if not (path.exists() and path.read_bytes().startswith(there)):
        objects.replace(path, there)


def publish(directory: Path, url: str) -> None:
    """Send everything else that is in a study's directory."""
    for path in sorted(directory.iterdir()):
        if path.name not in HERE and not path.name.endswith((".tmp", ".lock")):
            objects.put(path, f"{url}/{path.name}")


class Bucket:
    """A driver's hold on a study in an object store, and the sending of its ledger.

    Args:
        directory: the study's working directory.
        url: the study there.

    Raises:
        ConfigError: another driver holds it.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url
        self.mark = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        self.turn, self.stop = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.follow, name=f"bucket {directory.name}", daemon=True)

    def __enter__(self) -> Bucket:
        self.claim()
        found = parts(self.url)
        self.number, self.sent = len(found), sum(found.values())
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.push()
        publish(self.directory, self.url)
        objects.remove(f"{self.url}/driver.json")

    def push(self) -> None:
        """Send the lines that are not there yet."""
        with self.turn:
            lines = b"".join(whole_lines(self.directory / FILE, self.sent))
            if lines:
                objects.write(f"{self.url}/ledger/{self.number:08d}.jsonl", lines)
                self.number, self.sent = self.number + 1, self.sent + len(lines)

    def follow(self) -> None:
        """The thread: send, and renew the hold; if somebody else has taken it, this driver has to end."""
        while not self.stop.wait(RENEW_S):
            try:
                if holder(self.url) not in (None, self.mark):
                    cluster.died = f"{self.url} is driven by {holder(self.url)} now; this process was taken for dead"
                    _thread.interrupt_main()
                    return
                self.renew()
                self.push()
            except OSError as error:
                print(f"{self.url}: {objects.told(error)}; trying again", file=sys.stderr, flush=True)

    def renew(self) -> None:
        objects.write(f"{self.url}/driver.json", json.dumps({"driver": self.mark, "time": time.time()}).encode())

    def claim(self) -> None:
        """Become the driver: at once if there is none or it is known to be dead, else when it stopped renewing."""
        deadline = None
        while (other := driver(self.url)) is not None:
            if deadline is None:
                deadline = time.monotonic() + LEASE_S + RENEW_S
                print(f"{self.url}: {other} was driving it a moment ago; waiting to see if it is", file=sys.stderr)
            elif time.monotonic() > deadline:
                raise ConfigError(f"{self.directory.name}: process {other} is driving this study already")
            time.sleep(2.0)
        self.renew()
        time.sleep(0.2)  # of two that come at the same moment, the last writer holds it
        if (other := holder(self.url)) != self.mark:
            raise ConfigError(f"{self.directory.name}: process {other} is driving this study already")


def holder(url: str) -> str | None:
    """Who wrote last that it drives a study."""
    try:
        return str(json.loads(objects.read(f"{url}/driver.json"))["driver"])
    except FileNotFoundError:
        return None


def driver(url: str) -> str | None:
    """Who is driving a study, unless it is known to be gone: a process of this machine, or one that renews no more."""
    if (found := holder(url)) is None:
        return None
    host, pid, _ = found.rsplit(" ", 2)
    if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
        return None
    age = objects.age_s(f"{url}/driver.json")
    return None if age is None or age > LEASE_S else found
