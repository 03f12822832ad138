"""The only writer of MLflow: a thread of the driver that repeats a study's ledger there.

MLflow is a projection of the ledger (ledger.py names the events). Nothing waits for it and nothing depends on
it: while it is away the ledger grows, and this or a later `Mirror` catches up.

    study     search, compare: an experiment and in it a parent run, both named after the study (NAME-2, …
              when an experiment of that name was deleted or belongs to another study)
              train: its run goes to the experiment `bisam-ray`, without a parent
    begin     a run under the parent; the configuration as params with dotted keys, written once; the tags
              study arm phase method radius_policy seed dataset digest replicate restart, and outcome=running
    epoch     metrics, step = epoch
    end       metrics at the last epoch; tags outcome and error (500 characters); the status:
              completed FINISHED · pruned, killed KILLED · failed, diverged FAILED
    artifact  its file, or what its directory holds, as artifacts under its kind; passed over when gone
    finish    runs without an end are closed as killed; then, last of all, the parent's status:
              completed FINISHED · interrupted KILLED · failed FAILED
    again     a further `study` sets the parent RUNNING; a further `begin` the run, and so does an `epoch` after
              killed or failed

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
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ledger

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "mlflow.json"
TRAIN_EXPERIMENT = "bisam-ray"
STATUS = {"running": "RUNNING", "completed": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}
STATUS |= dict.fromkeys(("pruned", "killed", "interrupted"), "KILLED")
TAGS = ("arm", "phase", "method", "radius_policy", "seed", "dataset", "digest", "replicate", "restart")
PARENT = ""  # where the parent stands among the runs: no run of a ledger has an empty name
NOTE = "bisam-ray {kind}. Its trials and replicates: tags arm, phase, outcome. Written from {ledger}"
LINES, BEGINS = 2000, 50  # per round: bound its memory and its time (a run costs 30 ms) while catching up
LONGEST_PAUSE_S = 30.0
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the mirror retries; MLflow's own seven take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
# One mirror of a study at a time: one that was closed may still be in its last call.
TURNS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


def tracking_uri(storage: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI when set, else a SQLite file in the storage directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.resolve().as_posix()}/mlflow.db"


def connect(uri: str) -> MlflowClient:
    """A silent client for one tracking URI; the first call imports MLflow, which takes seconds.

    Sets ENVIRONMENT where the variables are not set yet, and the loggers of MLflow and its database to ERROR.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="mlflow")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3.connectionpool"):  # the import set them to INFO
        logging.getLogger(name).setLevel(logging.ERROR)
    make_whole(uri, MlflowClient)
    return MlflowClient(tracking_uri=uri)


def make_whole(uri: str, client: Any) -> None:
    """Make a SQLite store whole or not at all.

    MLflow creates its tables one after the other for a second or more, and a store that a kill left half made it can
    neither use nor mend.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as making:
        first, whole = Path(making) / "first.db", Path(making) / "whole.db"
        client(tracking_uri=f"sqlite:///{first}").search_experiments(max_results=1)
        shutil.copyfile(first, whole)  # this process keeps the first one open
        with suppress(FileExistsError):  # another process was faster
            os.link(whole, path)


@dataclass
class Run:
    """A run that MLflow has, and what this round has to tell about it."""

    id: str
    name: str
    state: str  # running, or how it ended
    has_params: bool
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, milliseconds, step
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    status: tuple[str, int] | None = None

    def measured(self, metrics: Mapping[str, Any] | None, at: int, epoch: int | None) -> None:
        numbers = {key: value for key, value in (metrics or {}).items() if isinstance(value, int | float)}
        self.metrics += [(key, float(value), at, epoch or 0) for key, value in numbers.items()]

    def becomes(self, outcome: str, at: int) -> None:
        self.state, self.status = outcome, (STATUS[outcome], at)
        if self.name != PARENT:  # so that a filter by outcome lists trials and replicates only
            self.tags["outcome"] = outcome

    def goes_on(self, at: int) -> None:
        if self.state != "running":
            self.becomes("running", at)
            if self.name != PARENT:
                self.tags["error"] = ""


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
        self.applied = 0  # bytes of the ledger; 0 until MLflow was asked
        self.owed = 0  # bytes somebody waits for
        self.runs: dict[str, Run] = {}
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
        header = json.loads(first)
        self.study, self.kind = str(header["study"]), str(header["kind"])
        self.identity = hashlib.sha256(first).hexdigest()[:16]
        self.client = connect(self.uri)
        self.experiment, self.runs, token = self.find_experiment(), {}, None
        mine = f"tags.`bisam.study` = '{self.identity}'"
        while token != "":
            page = self.client.search_runs([self.experiment], mine, max_results=1000, page_token=token)
            for found in page:
                tags, running = found.data.tags, found.info.status == "RUNNING"
                name, state = tags.get("bisam.run", PARENT), tags.get("outcome", "closed")
                state = "running" if running else state
                self.runs[name] = Run(found.info.run_id, name, state, bool(found.data.params))
            token = page.token or ""
        try:
            saved = json.loads((self.directory / FILE).read_bytes())
        except (OSError, ValueError):
            saved = {}
        goes_on = bool(self.runs) and saved.get("experiment") == self.experiment
        self.advance(saved["offset"] if goes_on else 0)
        return True

    def find_experiment(self) -> str:
        train = self.kind == "train"
        name, owner = (TRAIN_EXPERIMENT, None) if train else (self.study, self.identity)
        tried, number = name, 1
        while found := self.client.get_experiment_by_name(tried):
            if found.lifecycle_stage == "active" and found.tags.get("bisam.study") == owner:
                return str(found.experiment_id)
            number += 1
            tried = f"{name}-{number}"
        server = self.uri.startswith(("http:", "https:", "databricks"))
        location = None if server else (self.directory.parent / "mlartifacts" / tried).as_uri()
        tags = {"mlflow.experimentKind": "custom_model_development", **({"bisam.study": owner} if owner else {})}
        return str(self.client.create_experiment(tried, location, tags))

    def advance(self, offset: int) -> None:
        with self.changed:
            self.applied = offset
            self.changed.notify_all()

    def round(self) -> bool:
        """Apply the next lines and move the cursor; False when there are none."""
        length = begins = 0
        for line in islice(ledger.whole_lines(self.ledger, self.applied), LINES):
            event = json.loads(line)
            self.take(event, event.get("run") or PARENT, int(event["time"] * 1000))
            length, begins = length + len(line), begins + (event["event"] == "begin")
            if begins == BEGINS:
                break
        if not length:
            return False
        for run in sorted(self.runs.values(), key=lambda run: run.name == PARENT):
            self.tell(run)  # the parent comes last: once it is FINISHED nothing is missing
        ids = {name: run.id for name, run in self.runs.items()}
        offset, parent = self.applied + length, ids.pop(PARENT, None)
        cursor = {"offset": offset, "experiment": self.experiment, "parent": parent, "runs": ids}
        temporary = self.directory / f"{FILE}.tmp"
        temporary.write_text(json.dumps(cursor), encoding="utf-8")
        os.replace(temporary, self.directory / FILE)
        self.advance(offset)
        return True

    def take(self, event: dict[str, Any], name: str, at: int) -> None:
        """Note one event with its run; a new run is created at once."""
        run = self.runs.get(name)
        match event["event"]:
            case "study" if self.kind != "train":
                note = NOTE.format(kind=self.kind, ledger=self.ledger)
                self.open(name, self.study, at, {"kind": self.kind, "mlflow.note.content": note})
            case "begin":
                tags = {key: str(event[key]) for key in TAGS if event.get(key) is not None}
                tags |= {"bisam.run": name, "outcome": "running"}
                if PARENT in self.runs:
                    tags["mlflow.parentRunId"] = self.runs[PARENT].id
                run = self.open(name, name, at, tags)
                if not run.has_params:
                    run.params = {key: value[:500] for key, value in flat(event.get("config") or {})}
                    run.has_params = True
            case "epoch" if run:
                if run.state in ("killed", "failed"):
                    run.goes_on(at)
                run.measured(event["metrics"], at, event["epoch"])
            case "end" if run:
                run.measured(event.get("metrics"), at, event.get("epoch"))
                run.becomes(event["outcome"], at)
                if event.get("error"):
                    run.tags["error"] = str(event["error"])[:500]
            case "artifact":
                run = run or (next(reversed(self.runs.values()), None) if self.kind == "train" else None)
                if run:
                    run.artifacts.append((self.directory / event["path"], event["kind"]))
            case "finish":
                for child in self.runs.values():
                    if child.name != PARENT and child.state == "running":
                        child.becomes("killed", at)
                if run:
                    run.becomes(event["outcome"], at)

    def open(self, name: str, title: str, at: int, tags: dict[str, str]) -> Run:
        """A new run, or a known one that goes on."""
        if name not in self.runs:
            tags = {"study": self.study, "bisam.study": self.identity, **tags}
            created = self.client.create_run(self.experiment, at, tags, title)
            self.runs[name] = Run(created.info.run_id, name, "running", False)
        self.runs[name].goes_on(at)
        return self.runs[name]

    def tell(self, run: Run) -> None:
        """One batch, which the client cuts to MLflow's limits, then the files, then the status."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in run.metrics]
        params = [Param(key, value) for key, value in run.params.items()]
        tags = [RunTag(key, value) for key, value in run.tags.items()]
        if metrics or params or tags:
            self.client.log_batch(run.id, metrics, params, tags, synchronous=True)
        for path, kind in run.artifacts:
            if path.is_dir():
                self.client.log_artifacts(run.id, str(path), kind)
            elif path.exists():
                self.client.log_artifact(run.id, str(path), kind)
        if run.status and run.status[0] == "RUNNING":
            self.client.update_run(run.id, "RUNNING")
        elif run.status:
            self.client.set_terminated(run.id, *run.status)
        self.runs[run.name] = Run(run.id, run.name, run.state, run.has_params)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of what is set."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def told(error: Exception) -> str:
    """One line, without a password that stood in a URL."""
    first = (str(error).strip().splitlines() or [""])[0]
    return without_password(f"{type(error).__name__}: {first}")[:300]


def without_password(text: str) -> str:
    """A text whose URLs name no users and no passwords."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def save_model(model: Any, example: Any, path: Path) -> None:
    """Export a network as an MLflow model with a signature: torch.export's archive, no pickled code.

    Args:
        model: a torch.nn.Module in evaluation mode, on the CPU.
        example: inputs for it, (N ≥ 2, …): a batch of one would fix the batch size.
        path: a directory that does not exist yet; `mlflow.pytorch.load_model(path)` and pyfunc read it.
    """
    connect("")  # quiet
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    with torch.no_grad():
        signature = infer_signature(example.numpy(), model(example).numpy())
    mlflow.pytorch.save_model(
        model,
        str(path),
        signature=signature,
        input_example=example.numpy(),
        serialization_format="pt2",
        pip_requirements=["torch", "mlflow"],  # else a second process is started to find out
    )
