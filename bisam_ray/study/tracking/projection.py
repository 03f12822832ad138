"""What MLflow shows of a study: an experiment, runs, and what becomes of each event of the ledger (ledger.py).

    study     search, compare: an experiment and in it a parent run, both named after the study (NAME-2, …
              when an experiment of that name was deleted or belongs to another study); the views of views.py
              train: its run goes to the experiment `bisam-ray`, without a parent
    begin     a run under the parent; the configuration as params with dotted keys, written once; the tags
              study arm phase method family radius_policy seed dataset digest replicate restart, and
              outcome=running; family is the ledger's, or the method without the "lets-" of a learned radius
    epoch     metrics, step = epoch
    end       metrics at the last epoch; tags outcome and error (500 characters); the status:
              completed FINISHED · pruned, killed KILLED · failed, diverged FAILED
    measure   its numbers named in MEASURED as metrics WHAT/NAME at the run's last epoch
    artifact  its file, or what its directory holds, as artifacts under its kind; passed over when gone.
              Of the kind summary, of the whole study: its text (Markdown) becomes the description of the parent and
              of the experiment, its `metrics` and `tags` the parent's; the runs in `kept`, those whose results
              count, get the tag kept=yes, and their arm a run of its own, phase=arm, that holds their means
    finish    runs without an end are closed as killed; then, last of all, the parent's status:
              completed FINISHED · interrupted KILLED · failed FAILED
    again     a further `study` sets the parent RUNNING; a further `begin` the run, and so does an `epoch` after
              killed or failed

Runs are found again by the tags `bisam.run` and `bisam.study`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import ledger
from ..report.markdown import safe
from ..statistics import Estimate
from .client import connect, is_server
from .pending import PARENT, Run
from .views import MEANS, links, tags, views

TRAIN_EXPERIMENT = "bisam-ray"
TAGS = ("arm", "phase", "method", "family", "radius_policy", "seed", "dataset", "digest", "replicate", "restart")
MEASURED = ("eigenvalue",)
DESCRIPTION = "mlflow.note.content"
EXPERIMENT_TAG, RUN_TAG = 5000, 8000  # characters that every database has room for
NOTE = "bisam-ray {kind}. Its trials and replicates: tags arm, phase, outcome. Written from {ledger}"


class Projection:
    """The experiment, made if need be, and its runs as MLflow has them; events are noted by `take` and told by `tell`.

    Args:
        directory: the study's, which the ledger's paths are relative to.
        header: the ledger's first event.
        identity: of the study, wherever its directory lies.
        uri: the tracking URI.
    """

    def __init__(self, directory: Path, header: dict[str, Any], identity: str, uri: str) -> None:
        self.directory, self.identity, self.uri = directory, identity, uri
        self.study, self.kind = str(header["study"]), str(header["kind"])
        self.searched = searched(header)
        self.client = connect(uri)
        self.experiment = self.find_experiment()
        self.experiment_tags: dict[str, str] = {}
        self.runs: dict[str, Run] = {}
        self.arms: dict[str, None] = {}  # a set in the order of what came first
        self.kept: set[str] = set()  # runs whose results count
        self.described = False
        self.find_runs()

    def find_experiment(self) -> str:
        train = self.kind == "train"
        name, owner = (TRAIN_EXPERIMENT, None) if train else (self.study, self.identity)
        tried, number = name, 1
        while found := self.client.get_experiment_by_name(tried):
            if found.lifecycle_stage == "active" and found.tags.get("bisam.study") == owner:
                return str(found.experiment_id)
            number += 1
            tried = f"{name}-{number}"
        location = None if is_server(self.uri) else (self.directory.parent / "mlartifacts" / tried).as_uri()
        owned = {"mlflow.experimentKind": "custom_model_development", **({"bisam.study": owner} if owner else {})}
        return str(self.client.create_experiment(tried, location, owned))

    def find_runs(self) -> None:
        mine, token = f"tags.`bisam.study` = '{self.identity}'", None
        while token != "":
            page = self.client.search_runs([self.experiment], mine, max_results=1000, page_token=token)
            for found in page:
                known = found.data.tags
                name, state = known.get("bisam.run", PARENT), known.get("outcome", "closed")
                state = "running" if found.info.status == "RUNNING" else state
                self.runs[name] = Run(found.info.run_id, name, state, bool(found.data.params))
                self.arms |= dict.fromkeys([known["arm"]] if "arm" in known else [])
                self.kept |= {name} if known.get("kept") == "yes" else set()
                self.described |= name == PARENT and DESCRIPTION in known
            token = page.token or ""

    def take(self, event: dict[str, Any]) -> None:
        """Note one event with its run; a new run is created at once."""
        name, at = event.get("run") or PARENT, int(event["time"] * 1000)
        run = self.runs.get(name)
        match event["event"]:
            case "study" if self.kind != "train":
                run = self.open(name, self.study, at, {"kind": self.kind})
                if not self.described:  # what a resumed study came to before stands until it is known anew
                    self.describe(run, NOTE.format(kind=self.kind, ledger=self.directory / ledger.FILE), at)
            case "begin":
                self.arms |= dict.fromkeys([event["arm"]] if event.get("arm") else [])
                given = {key: str(event[key]) for key in TAGS if event.get(key) is not None}
                self.open(name, name, at, {**given, "outcome": "running"}).configured(event.get("config") or {})
            case "epoch" if run:
                if run.state in ("killed", "failed"):
                    run.goes_on(at)
                run.measured(event["metrics"], at, event["epoch"])
            case "end" if run:
                run.measured(event.get("metrics"), at, event.get("epoch"))
                run.becomes(event["outcome"], at)
                if event.get("error"):
                    run.tags["error"] = str(event["error"])[:500]
            case "measure" if run:
                values = {f"{event['what']}/{key}": event["values"].get(key) for key in MEASURED}
                run.measured(values, at, run.last_epoch(self.client))
            case "artifact":
                run = run or (next(reversed(self.runs.values()), None) if self.kind == "train" else None)
                if run:
                    run.artifacts.append((self.directory / event["path"], event["kind"]))
                if run and event["kind"] == "summary" and run.name == PARENT:
                    self.summarize(run, event, at)
            case "finish":
                for child in self.runs.values():
                    if child.name != PARENT and child.state == "running":
                        child.becomes("killed", at)
                if run:
                    run.becomes(event["outcome"], at)
                    self.show(at)

    def summarize(self, parent: Run, event: dict[str, Any], at: int) -> None:
        """The study's result, where a person who opens the experiment sees it."""
        path, kept = self.directory / event["path"], set(event.get("kept") or ())
        for name in (kept | self.kept) & self.runs.keys():
            self.runs[name].tags["kept"] = "yes" if name in kept else "no"
        self.kept = kept
        parent.measured(event.get("metrics"), at, 0)
        parent.tags |= {key: str(value)[:RUN_TAG] for key, value in (event.get("tags") or {}).items()}
        self.tabulate(event.get("kept") or (), at)
        if path.exists():
            self.describe(parent, path.read_text(encoding="utf-8"), at, parent.tags.get("verdict", ""))

    def tabulate(self, kept: Iterable[str], at: int) -> None:
        """A run per arm with its means, and the 95 % interval of the first, over the runs that count."""
        study, of = ledger.read(self.directory), defaultdict(list)
        for name in kept:
            if name in study.runs:
                of[study.runs[name].arm].append(study.runs[name])
        for arm, runs in of.items():
            given = {key: str(runs[0].begin[key]) for key in ("arm", "method", "radius_policy", "dataset")}
            shown = self.open(f"arm: {arm}", arm, at, {**given, "family": runs[0].family, "phase": "arm"})
            means: dict[str, float] = {}
            for key in MEANS:
                found = Estimate.of([run.value(key) for run in runs if math.isfinite(run.value(key))])
                means |= {key: found.value} if math.isfinite(found.value) else {}
                if key == "final/test_accuracy" and math.isfinite(found.low):
                    means |= {"final/test_low": found.low, "final/test_high": found.high}
            shown.measured({key: float(f"{mean:.4g}") for key, mean in means.items()}, at, 0)  # for a table to be read
            shown.becomes("completed", at)

    def describe(self, parent: Run, text: str, at: int, verdict: str = "") -> None:
        """The description of the parent and of the experiment, whose page shows the first line: views and verdict."""
        self.described = True
        first = " — ".join(filter(None, [links(self.experiment, self.show(at)), verdict]))
        told_above = re.compile(rf"\**{re.escape(safe(verdict))}\**\s*")  # bold or not
        text = f"{first}\n\n{told_above.sub('', text, count=1) if verdict else text}"
        parent.tags[DESCRIPTION] = fitting(text, RUN_TAG)
        self.experiment_tags[DESCRIPTION] = fitting(text, EXPERIMENT_TAG)

    def show(self, at: int) -> list[str]:
        """Make the views anew, for the arms that are known; their names."""
        states = views(self.kind, self.searched, list(self.arms), len(self.kept))
        self.experiment_tags |= tags(states, at)
        return list(states)

    def open(self, name: str, title: str, at: int, given: dict[str, str]) -> Run:
        """A new run, or a known one that goes on."""
        if name not in self.runs:
            given = {"study": self.study, "bisam.study": self.identity, **given}
            if "method" in given:
                given.setdefault("family", given["method"].removeprefix("lets-"))
            if name != PARENT:
                given["bisam.run"] = name
                if PARENT in self.runs:
                    given["mlflow.parentRunId"] = self.runs[PARENT].id
            created = self.client.create_run(self.experiment, at, given, title)
            self.runs[name] = Run(created.info.run_id, name, "running", False)
        self.runs[name].goes_on(at)
        return self.runs[name]

    def tell(self) -> None:
        """Send what was noted; the parent comes last: once it is FINISHED nothing is missing."""
        for key, value in self.experiment_tags.items():
            self.client.set_experiment_tag(self.experiment, key, value)
        self.experiment_tags = {}
        for run in sorted(self.runs.values(), key=lambda run: run.name == PARENT):
            self.runs[run.name] = run.tell(self.client)


def searched(header: dict[str, Any]) -> list[list[str]]:
    """The config paths that each of a study's spaces searches."""
    return [list(space["search"]) for space in header.get("space") or [] if space.get("search")]


def fitting(text: str, limit: int) -> str:
    """A text within a tag's limit, cut at the end of a line."""
    rest = "\n… (the whole: summary/ among the artifacts)"
    return text if len(text) <= limit else text[: limit - len(rest)].rpartition("\n")[0] + rest
