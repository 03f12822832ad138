"""The only writer of MLflow: a thread of the driver that repeats a study's ledger there.

MLflow is a projection of the ledger (ledger.py names the events, projection.py what becomes of each). Nothing waits
for it and nothing depends on it: while it is away the ledger grows, and this or a later `Mirror` catches up.

`<study>/mlflow.json` says how far that went: one JSON object, replaced as a whole after each round.

    offset      how many bytes of the ledger are in MLflow
    experiment  id of the MLflow experiment
    parent      id of the parent run, or null
    runs        {run name: id of the MLflow run}

A round that was cut short is applied again, which changes nothing: MLflow keeps one of equal metric points,
and runs are found by the tags `bisam.run` and `bisam.study` (a hash of the ledger's first line: it survives
moving the files). What a person deleted in MLflow stays deleted; a lost database is filled from the start.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path

from .. import ledger
from .client import told
from .pending import PARENT
from .projection import Projection

FILE = "mlflow.json"
LINES, BEGINS = 2000, 50  # per round: bound its memory and its time (a run costs 30 ms) while catching up
LONGEST_PAUSE_S = 30.0
# One mirror of a study at a time: one that was closed may still be in its last call.
TURNS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


class Mirror:
    """Repeats `<directory>/ledger.jsonl` in MLflow, from where the study's last mirror stopped.

    Args:
        directory: the study's directory; the ledger may come later.
        uri: the tracking URI. Unless it is a server, artifacts go to `mlartifacts` beside the directory.
        interval_s: seconds between looks at the ledger; a look makes at most one batch per run.

    A failure of any kind raises nothing here: `problem` tells it, and it is tried again with growing pauses
    (at most 30 s) until it works.

    Example:
        >>> with Mirror(storage / "digits", tracking_uri(storage)) as mirror:  # doctest: +SKIP
        ...     search()
        ...     mirror.drain(30)
    """

    def __init__(self, directory: Path, uri: str, interval_s: float = 1.0) -> None:
        self.directory, self.uri, self.interval_s = directory.resolve(), uri, interval_s
        self.ledger = self.directory / ledger.FILE
        self.problem: str | None = None
        """Why MLflow is behind, in one line; None while all is well."""
        self.shown: Projection  # once attached
        self.applied = 0  # bytes of the ledger; 0 until MLflow was asked
        self.owed = 0  # bytes somebody waits for
        self.changed = threading.Condition()
        self.wake, self.stop = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.follow, name=f"mlflow {directory.name}", daemon=True)

    def start(self) -> Mirror:
        if self.thread.ident is None:
            self.thread.start()
        return self

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything that is in the ledger now is in MLflow; False after `timeout_s` without progress."""
        deadline, seen = time.monotonic() + timeout_s, self.applied
        self.owed = length = sum(map(len, ledger.whole_lines(self.ledger)))
        with self.changed:
            while self.applied < length and not self.stop.is_set():
                if self.applied > seen:
                    deadline, seen = time.monotonic() + timeout_s, self.applied
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self.wake.set()
                self.changed.wait(min(left, max(self.interval_s, 0.1)))
            if self.applied >= length:
                return True
        self.problem = self.problem or f"MLflow took nothing for {timeout_s:g} s"
        return False

    def close(self, timeout_s: float) -> bool:
        """Drain and stop the thread; False when MLflow is behind, which the study's next mirror mends."""
        deadline = time.monotonic() + timeout_s
        complete = self.drain(timeout_s)
        self.stop.set()
        self.wake.set()
        if self.thread.ident is not None:
            self.thread.join(max(0.0, deadline - time.monotonic()))
        return complete

    def __enter__(self) -> Mirror:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close(20.0)

    def follow(self) -> None:
        """The thread: look, apply, wait."""
        attached, failures = False, 0
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                with TURNS[self.directory]:
                    attached = attached or self.attach()
                    while attached and not self.stop.is_set() and self.round() and self.applied < self.owed:
                        pass
                self.problem, failures = None, 0
            except Exception as error:
                self.problem = told(error)
                attached, failures = False, failures + 1  # what did arrive is looked up anew
            # a tenth of the time at most: what is trained needs the processors, and larger batches cost less
            pause = max(self.interval_s * 2 ** min(failures, 10), 9 * (time.monotonic() - began))
            self.wake.wait(min(pause, max(self.interval_s, LONGEST_PAUSE_S)))
            self.wake.clear()

    def attach(self) -> bool:
        """Find or make the experiment and find the study's runs; False while the ledger is empty."""
        first = next(ledger.whole_lines(self.ledger), None)
        if first is None:
            return False
        identity = hashlib.sha256(first).hexdigest()[:16]
        self.shown = Projection(self.directory, json.loads(first), identity, self.uri)
        try:
            saved = json.loads((self.directory / FILE).read_bytes())
        except (OSError, ValueError):
            saved = {}
        goes_on = bool(self.shown.runs) and saved.get("experiment") == self.shown.experiment
        self.advance(saved["offset"] if goes_on else 0)
        return True

    def advance(self, offset: int) -> None:
        with self.changed:
            self.applied = offset
            self.changed.notify_all()

    def round(self) -> bool:
        """Apply the next lines and move the cursor; False when there are none."""
        length = begins = 0
        for line in islice(ledger.whole_lines(self.ledger, self.applied), LINES):
            event = json.loads(line)
            self.shown.take(event)
            length, begins = length + len(line), begins + (event["event"] == "begin")
            if begins == BEGINS:
                break
        if not length:
            return False
        self.shown.tell()
        ids = {name: run.id for name, run in self.shown.runs.items()}
        offset, parent = self.applied + length, ids.pop(PARENT, None)
        cursor = {"offset": offset, "experiment": self.shown.experiment, "parent": parent, "runs": ids}
        temporary = self.directory / f"{FILE}.tmp"
        temporary.write_text(json.dumps(cursor), encoding="utf-8")
        os.replace(temporary, self.directory / FILE)
        self.advance(offset)
        return True
