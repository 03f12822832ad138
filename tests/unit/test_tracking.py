"""MLflow shows what the ledger says: all of it, once, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bisam_ray.study.ledger import FILE, Ledger
from bisam_ray.study.report.markdown import safe
from bisam_ray.study.tracking import mirror as tracking
from bisam_ray.study.tracking.client import connect, tracking_uri
from bisam_ray.study.tracking.mirror import Mirror
from bisam_ray.study.tracking.views import PREFIX, inflated, tags, views

PATIENCE = 30.0  # seconds for what should take a fraction of one


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one costs seconds, copying it nothing."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def storage(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = tmp_path / "my runs"
    place.mkdir()
    shutil.copy(database, place / "mlflow.db")
    return place


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method of the client was called, and for log_batch each run."""
    from mlflow import MlflowClient

    count: Counter[str] = Counter()
    for method in ("create_experiment", "create_run", "log_batch", "set_terminated", "update_run"):
        real = getattr(MlflowClient, method)

        def counted(self: Any, *args: Any, _real: Any = real, _method: str = method, **kwargs: Any) -> Any:
            count[_method] += 1
            if _method == "log_batch":
                count[args[0]] += 1
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, method, counted)
    return count


class Study:
    """Writes a ledger, mirrors it, and reads MLflow back."""

    def __init__(self, storage: Path, name: str = "digits", kind: str = "search") -> None:
        self.directory, self.uri, self.name, self.kind = storage / name, tracking_uri(storage), name, kind
        self.ledger = Ledger(self.directory)
        self.header()

    def header(self) -> None:
        self.ledger.write("study", study=self.name, kind=self.kind, config={}, space=None, protocol=None)

    def begin(self, run: str, config: dict[str, Any] | None = None, **fields: Any) -> None:
        common = {
            "phase": "search",
            "arm": "bisam",
            "method": "bisam-tanh",
            "radius_policy": "fixed",
            "seed": 3,
        }
        common |= {"replicate": None, "restart": 2, "digest": "0123456789ab", "dataset": "digits"}
        self.ledger.write("begin", run=run, suggested=None, **{**common, **fields}, config=config or {"seed": 3})

    def epoch(self, run: str, epoch: int, **metrics: Any) -> None:
        self.ledger.write("epoch", run=run, epoch=epoch, metrics=metrics or {"train/loss": 1 / epoch})

    def end(self, run: str, outcome: str = "completed", epoch: int = 2, error: str | None = None) -> None:
        metrics = {"final/test_accuracy": 0.9} if outcome == "completed" else {}
        fields = {"epoch": epoch, "metrics": metrics, "error": error, "checkpoint": None}
        self.ledger.write("end", run=run, outcome=outcome, **fields)

    def whole(self, run: str, epochs: int = 2) -> None:
        self.begin(run)
        for epoch in range(1, epochs + 1):
            self.epoch(run, epoch)
        self.end(run, epoch=epochs)

    def mirror(self) -> Mirror:
        mirror = Mirror(self.directory, self.uri, interval_s=0.05).start()
        assert mirror.close(PATIENCE), mirror.problem
        assert mirror.problem is None
        return mirror

    @property
    def client(self) -> Any:
        return connect(self.uri)

    def runs(self, experiment: str | None = None) -> dict[str, Any]:
        """What MLflow shows, by run name; fails on two of one name."""
        found = self.client.get_experiment_by_name(experiment or self.name)
        listed = list(self.client.search_runs([found.experiment_id], max_results=1000))
        runs = {run.info.run_name: run for run in listed}
        assert len(runs) == len(listed)
        return runs

    def history(self, run: str, key: str = "train/loss") -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.runs()[run].info.run_id, key)
        return sorted((point.step, point.value) for point in points)


Make = Callable[..., Study]


@pytest.fixture
def make(storage: Path) -> Iterator[Make]:
    """Studies in the storage; their ledgers are closed in the end."""
    with ExitStack() as stack:

        def make(*args: Any, within: Path = storage) -> Study:
            study = Study(within, *args)
            stack.callback(lambda: study.ledger.close())
            return study

        yield make


@pytest.fixture
def study(make: Make) -> Study:
    return make()


def test_tracking_uri(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(storage) == f"sqlite:///{storage.resolve()}/mlflow.db"
    monkeypatch.chdir(storage.parent)
    assert tracking_uri(Path(storage.name)) == tracking_uri(storage)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(storage) == "http://127.0.0.1:5000"


def test_importing_is_light_and_a_first_use_silent(tmp_path: Path) -> None:
    """A process of its own, because MLflow is imported, and its loggers are set up, only once."""
    script = """
        import pathlib, sys
        from bisam_ray.study.ledger import Ledger
        from bisam_ray.study.tracking.client import tracking_uri
        from bisam_ray.study.tracking.mirror import Mirror
        assert not {"mlflow", "ray", "optuna", "torch"} & set(sys.modules)
        storage = pathlib.Path(sys.argv[1])
        with Ledger(storage / "s") as ledger:
            ledger.write("study", study="s", kind="search")
            ledger.write("finish", outcome="completed")
        with Mirror(storage / "s", tracking_uri(storage)) as mirror:
            sys.exit(not mirror.drain(60))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").exists()


def test_statuses_and_tags(study: Study) -> None:
    outcomes = {
        "completed": "FINISHED",
        "pruned": "KILLED",
        "killed": "KILLED",
        "failed": "FAILED",
        "diverged": "FAILED",
    }
    for outcome in outcomes:
        study.begin(outcome)
        study.end(outcome, outcome, error="E" * 900 if outcome == "failed" else None)
    study.begin("open")
    study.mirror()
    runs = study.runs()
    assert runs["open"].info.status == runs["digits"].info.status == "RUNNING"
    assert runs["open"].data.tags["outcome"] == "running"

    study.ledger.write("finish", outcome="completed")
    study.mirror()
    runs, parent = study.runs(), study.runs()["digits"]
    assert parent.info.status == "FINISHED"
    assert parent.info.end_time
    assert parent.data.tags["study"] == "digits"
    assert parent.data.tags["kind"] == "search"
    assert parent.data.tags["mlflow.runName"] == "digits"
    assert parent.data.tags["mlflow.note.content"]
    assert "outcome" not in parent.data.tags
    assert "mlflow.parentRunId" not in parent.data.tags
    for outcome, status in (outcomes | {"open": "KILLED"}).items():
        run = runs[outcome]
        assert (run.info.status, run.data.tags["outcome"]) == (status, outcome.replace("open", "killed"))
        assert run.info.end_time >= run.info.start_time
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    shown = runs["completed"].data.tags
    expected = {
        "study": "digits",
        "method": "bisam-tanh",
        "radius_policy": "fixed",
        "arm": "bisam",
        "seed": "3",
    }
    expected |= {"phase": "search", "dataset": "digits", "restart": "2", "digest": "0123456789ab"}
    assert expected.items() <= shown.items()
    assert "replicate" not in shown
    assert "error" not in shown
    assert runs["failed"].data.tags["error"] == "E" * 500


def test_the_parent_ends_last(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    real, ended = MlflowClient.set_terminated, []

    def noted(self: Any, run_id: str, *args: Any) -> None:
        ended.append(run_id)
        real(self, run_id, *args)

    monkeypatch.setattr(MlflowClient, "set_terminated", noted)
    study.whole("a")
    study.ledger.write("finish", outcome="completed")
    study.mirror()
    assert ended == [study.runs()[name].info.run_id for name in ("a", "digits")]


@pytest.mark.parametrize(("outcome", "status"), [("interrupted", "KILLED"), ("failed", "FAILED")])
def test_a_study_that_did_not_complete(study: Study, outcome: str, status: str) -> None:
    study.ledger.write("finish", outcome=outcome)
    study.mirror()
    assert study.runs()["digits"].info.status == status


def test_params_are_written_once(study: Study) -> None:
    config = {"seed": 3, "optim": {"rho": 0.05, "mu": None, "nesterov": False}, "data": {"name": "x" * 900}}
    study.begin("a", config)
    study.mirror()
    study.begin("a", {"seed": 4, "optim": {"mu": 2.0}})  # MLflow refuses changed params: this must not stop it
    study.whole("b")
    study.mirror()
    expected = {"seed": "3", "optim.rho": "0.05", "optim.nesterov": "False", "data.name": "x" * 500}
    assert study.runs()["a"].data.params == expected
    assert study.runs()["b"].data.params == {"seed": "3"}


def test_metrics_with_steps_and_times(study: Study) -> None:
    study.begin("a")
    odd = {"lets/gap": float("nan"), "best/epoch": None, "note": "text", "sam/rho": 1}
    study.epoch("a", 1, **{"train/loss": 0.5}, **odd)
    study.epoch("a", 7, **{"train/loss": 0.25})
    study.end("a", epoch=7)
    study.mirror()
    assert study.history("a") == [(1, 0.5), (7, 0.25)]
    assert study.history("a", "final/test_accuracy") == [(7, 0.9)]
    run = study.runs()["a"]
    assert set(run.data.metrics) == {"train/loss", "lets/gap", "sam/rho", "final/test_accuracy"}
    events = [json.loads(line) for line in (study.directory / FILE).read_bytes().splitlines()]
    times = [int(event["time"] * 1000) for event in events if event["event"] == "epoch"]
    points = study.client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.timestamp for point in points) == times
    assert run.info.start_time == int(events[1]["time"] * 1000)
    assert run.info.end_time == int(events[-1]["time"] * 1000)


def test_one_batch_per_run_and_look(study: Study, calls: Counter[str]) -> None:
    for run in "abc":
        study.begin(run)
    for epoch in range(1, 51):
        for run in "abc":
            study.epoch(run, epoch)
    study.mirror()
    ids = {name: run.info.run_id for name, run in study.runs().items()}
    assert [calls[ids[run]] for run in "abc"] == [1, 1, 1]
    assert calls["log_batch"] == 4  # and the parent's description
    assert calls["create_run"] == 4
    study.mirror()
    assert calls["log_batch"] == 4  # and the parent's description


def test_batches_over_the_limits_of_mlflow(study: Study) -> None:
    study.begin("a", {"optim": {f"field_{number}": number for number in range(150)}})
    for epoch in range(1, 251):
        study.epoch("a", epoch, **{f"key/{number}": epoch + number for number in range(10)})
    study.mirror()
    assert len(study.runs()["a"].data.params) == 150
    for number in (0, 9):
        assert study.history("a", f"key/{number}") == [(e, e + number) for e in range(1, 251)]


def test_a_long_ledger_goes_in_rounds(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LINES", 3)
    for run in "abc":
        study.whole(run, epochs=4)
    study.ledger.write("finish", outcome="completed")
    study.mirror()
    assert {run.info.status for run in study.runs().values()} == {"FINISHED"}
    assert [len(study.history(run)) for run in "abc"] == [4, 4, 4]


def test_two_studies_and_their_files_in_one_storage(make: Make, storage: Path) -> None:
    one, two = make("one"), make("two", "compare")
    for study in (one, two):
        study.whole("trial_0")
        report = study.directory / "report"
        report.mkdir()
        (report / "index.html").write_text(study.name)
        (study.directory / "model.pt").write_text("weights")
        study.ledger.write("artifact", kind="report", path="report", run=None)
        study.ledger.write("artifact", kind="model", path="model.pt", run="trial_0")
        study.ledger.write("artifact", kind="plot", path="gone.png", run=None)
    both = [Mirror(study.directory, study.uri, 0.05).start() for study in (one, two)]
    assert all(mirror.close(PATIENCE) for mirror in both)
    for study in (one, two):
        runs = study.runs()
        assert set(runs) == {study.name, "trial_0"}
        report = Path(study.client.download_artifacts(runs[study.name].info.run_id, "report/index.html"))
        assert report.read_text() == study.name
        assert study.client.list_artifacts(runs["trial_0"].info.run_id, "model")[0].path == "model/model.pt"
    files = sorted(path.relative_to(storage).parts[:2] for path in storage.glob("mlartifacts/*/*/*/*/*.*"))
    assert files == [("mlartifacts", "one")] * 2 + [("mlartifacts", "two")] * 2


def test_plain_training_runs_share_an_experiment(make: Make) -> None:
    for name in ("sam-1", "sam-2"):
        training = make(name, "train")
        training.whole(name)
        training.begin(f"{name}-open")
        (training.directory / "curve.csv").write_text("x")
        training.ledger.write("artifact", kind="curve", path="curve.csv", run=None)
        training.ledger.write("finish", outcome="failed")
        training.mirror()
    runs = training.runs("bisam-ray")
    assert set(runs) == {"sam-1", "sam-2", "sam-1-open", "sam-2-open"}
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs.values())
    assert [runs[name].info.status for name in ("sam-1", "sam-2-open")] == ["FINISHED", "KILLED"]
    files = [run for run in runs.values() if training.client.list_artifacts(run.info.run_id)]
    assert len(files) == 2
    assert training.client.get_experiment_by_name("sam-1") is None


@pytest.mark.parametrize("deleted", [False, True])
def test_a_name_that_is_taken(make: Make, storage: Path, deleted: bool) -> None:
    study = make()
    taken = study.client.create_experiment("digits")
    if deleted:
        study.client.delete_experiment(taken)
    study.whole("a")
    study.mirror()
    study.whole("b")
    study.mirror()
    assert set(study.runs("digits-2")) == {"digits", "a", "b"}
    other = make(within=storage / "elsewhere")
    other.uri = study.uri
    other.mirror()
    assert set(other.runs("digits-3")) == {"digits"}


def test_a_later_mirror_goes_on(study: Study, calls: Counter[str]) -> None:
    study.begin("a")
    study.epoch("a", 1)
    study.mirror()
    saved = json.loads((study.directory / "mlflow.json").read_text())
    assert saved["offset"] == (study.directory / FILE).stat().st_size
    assert saved["parent"] == study.runs()["digits"].info.run_id
    assert saved["runs"] == {"a": study.runs()["a"].info.run_id}
    study.epoch("a", 2)
    study.end("a")
    study.whole("b")
    study.mirror()
    assert study.history("a") == study.history("b") == [(1, 1.0), (2, 0.5)]
    assert (calls["create_experiment"], calls["create_run"]) == (1, 3)
    assert study.runs()["a"].data.params == {"seed": "3"}


@pytest.mark.parametrize("cursor", ["never written", "older", "unreadable"])
def test_killed_before_the_cursor_was_saved(study: Study, calls: Counter[str], cursor: str) -> None:
    file = study.directory / "mlflow.json"
    study.begin("a", {"optim": {"rho": 0.1}})
    study.mirror()
    older = file.read_text()
    study.epoch("a", 1)
    study.begin("b")
    study.epoch("b", 1, **{"train/loss": float("nan")})
    study.end("b", "failed", epoch=1, error="boom")
    study.mirror()
    if cursor == "never written":
        file.unlink()
    else:
        file.write_text(older if cursor == "older" else older[:10])
    study.epoch("a", 2)
    study.mirror()
    assert study.history("a") == [(1, 1.0), (2, 0.5)]
    assert len(study.history("b")) == 1
    assert study.runs()["b"].info.status == "FAILED"
    assert study.runs()["b"].data.tags["error"] == "boom"
    assert study.runs()["a"].data.params == {"optim.rho": "0.1"}
    assert (calls["create_experiment"], calls["create_run"]) == (1, 3)


@pytest.mark.parametrize("method", ["create_experiment", "create_run", "log_batch", "set_terminated"])
def test_an_answer_that_was_lost(study: Study, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The server did what it was asked to, but the client never heard of it: every time at first."""
    from mlflow import MlflowClient

    real, lost = getattr(MlflowClient, method), iter(range(1 if method == "create_experiment" else 2))

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = real(self, *args, **kwargs)
        if next(lost, None) is not None:
            raise ConnectionError("reset by peer")
        return answer

    monkeypatch.setattr(MlflowClient, method, broken)
    study.whole("a")
    study.whole("b")
    study.ledger.write("finish", outcome="completed")
    study.mirror()
    runs = study.runs()
    assert set(runs) == {"digits", "a", "b"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert study.history("a") == study.history("b") == [(1, 1.0), (2, 0.5)]
    assert runs["a"].data.params == runs["b"].data.params == {"seed": "3"}
    assert next(lost, None) is None


def test_a_server_that_is_away(study: Study) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    study.whole("a")
    away = Mirror(study.directory, f"http://user:secret@127.0.0.1:{port}", interval_s=0.05).start()
    started = time.monotonic()
    assert not away.drain(1.0)
    assert time.monotonic() - started < 2.0
    assert away.problem
    assert "\n" not in away.problem
    assert "secret" not in away.problem
    study.whole("b")  # writing never waits
    assert not away.close(0.2)
    assert not (study.directory / "mlflow.json").exists()
    study.mirror()
    assert study.history("a") == study.history("b") == [(1, 1.0), (2, 0.5)]


def test_a_server_that_comes_back(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    real, away = MlflowClient.log_batch, threading.Event()

    def sometimes(self: Any, *args: Any, **kwargs: Any) -> Any:
        if away.is_set():
            raise ConnectionError("no route to host")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    with Mirror(study.directory, study.uri, interval_s=0.05) as mirror:
        study.begin("a")
        study.epoch("a", 1)
        assert mirror.drain(PATIENCE)
        assert mirror.problem is None
        away.set()
        study.epoch("a", 2)
        study.whole("b")
        assert not mirror.drain(0.5)
        assert mirror.problem == "ConnectionError: no route to host"
        study.end("a")
        away.clear()
        assert mirror.drain(PATIENCE)
        study.ledger.write("finish", outcome="completed")
    assert mirror.problem is None
    assert study.history("a") == study.history("b") == [(1, 1.0), (2, 0.5)]
    assert {run.info.status for run in study.runs().values()} == {"FINISHED"}


def test_a_server_that_hangs(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    real, answer = MlflowClient.create_run, threading.Event()

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer.wait(PATIENCE)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    study.whole("a")
    stuck = Mirror(study.directory, study.uri, interval_s=0.05).start()
    started = time.monotonic()
    assert not stuck.drain(0.3)
    assert stuck.problem
    assert not stuck.close(0.3)
    assert time.monotonic() - started < 1.5
    later = Mirror(study.directory, study.uri, interval_s=0.05).start()  # while the first is in its last call
    assert not later.drain(0.3)
    answer.set()
    assert later.close(PATIENCE)
    assert set(study.runs()) == {"digits", "a"}
    assert study.history("a") == [(1, 1.0), (2, 0.5)]


def test_a_line_that_was_cut_off(study: Study) -> None:
    study.begin("a")
    study.epoch("a", 1)
    with open(study.directory / FILE, "ab") as file:
        file.write(b'{"event": "epoch", "time": 1.0, "run": "a", "ep')
    with Mirror(study.directory, study.uri, interval_s=0.05) as mirror:
        assert mirror.drain(PATIENCE)
        assert mirror.problem is None
        study.ledger.close()
        study.ledger = Ledger(study.directory)  # the next writer cuts it away
        study.epoch("a", 2)
        assert mirror.drain(PATIENCE)
    assert study.history("a") == [(1, 1.0), (2, 0.5)]


def test_a_study_goes_on_after_its_end(study: Study) -> None:
    study.whole("done")
    study.begin("broken")
    study.end("broken", "failed", error="boom")
    for run, outcome in (("cut", "killed"), ("down", "failed")):
        study.begin(run)
        study.epoch(run, 1)
        study.end(run, outcome, epoch=1)
    study.begin("late")
    study.end("late", "pruned")
    study.epoch("late", 3)
    study.ledger.write("finish", outcome="interrupted")
    study.mirror()
    assert study.runs()["cut"].info.status == study.runs()["digits"].info.status == "KILLED"
    assert study.runs()["late"].data.tags["outcome"] == "pruned"

    study.header()
    study.epoch("cut", 2)
    study.epoch("down", 2)
    study.begin("broken")
    study.mirror()
    runs = study.runs()
    assert [runs[name].info.status for name in ("digits", "cut", "down", "broken")] == ["RUNNING"] * 4
    assert [runs[name].data.tags["outcome"] for name in ("cut", "down", "broken")] == ["running"] * 3
    assert runs["done"].info.status == "FINISHED"

    for run in ("cut", "down", "broken"):
        study.end(run)
    study.ledger.write("finish", outcome="completed")
    study.mirror()
    runs = study.runs()
    assert runs.pop("late").info.status == "KILLED"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["outcome"] for run in runs.values() if run.info.run_name != "digits"} == {"completed"}
    assert runs["broken"].data.tags["error"] == ""
    assert study.history("cut") == [(1, 1.0), (2, 0.5)]


def test_what_a_person_deleted_stays_deleted(study: Study) -> None:
    study.begin("a")
    study.begin("b")
    with Mirror(study.directory, study.uri, interval_s=0.05) as mirror:
        assert mirror.drain(PATIENCE)
        study.client.delete_run(study.runs()["a"].info.run_id)
        for run in "ab":
            study.epoch(run, 1)
            study.end(run, epoch=1)
        study.ledger.write("finish", outcome="completed")
        assert mirror.drain(PATIENCE)
    assert set(study.runs()) == {"digits", "b"}
    assert {run.info.status for run in study.runs().values()} == {"FINISHED"}


def test_an_experiment_that_was_deleted_is_made_anew(study: Study) -> None:
    study.begin("a")
    study.epoch("a", 1)
    with Mirror(study.directory, study.uri, interval_s=0.05) as mirror:
        assert mirror.drain(PATIENCE)
        study.client.delete_experiment(study.client.get_experiment_by_name("digits").experiment_id)
        study.epoch("a", 2)
        assert mirror.drain(PATIENCE)
    assert set(study.runs("digits-2")) == {"digits", "a"}
    points = study.client.get_metric_history(study.runs("digits-2")["a"].info.run_id, "train/loss")
    assert sorted(point.step for point in points) == [1, 2]


def test_a_lost_database_is_filled_again(study: Study, database: Path) -> None:
    study.whole("a")
    study.mirror()
    other = study.directory.parent / "other.db"
    shutil.copy(database, other)
    study.uri = f"sqlite:///{other}"
    study.whole("b")
    study.mirror()
    assert study.history("a") == study.history("b") == [(1, 1.0), (2, 0.5)]
    assert set(study.runs()) == {"digits", "a", "b"}


def test_a_ledger_that_comes_later(make: Make, storage: Path) -> None:
    with Mirror(storage / "later", tracking_uri(storage), interval_s=0.05) as mirror:
        assert mirror.drain(0.1)
        study = make("later")
        study.whole("a")
        assert mirror.drain(PATIENCE)
    assert set(study.runs()) == {"later", "a"}


def test_a_closed_mirror_does_not_wait_again(study: Study) -> None:
    mirror = Mirror(study.directory, study.uri, interval_s=0.05)
    with mirror:
        assert mirror.close(PATIENCE)
        study.whole("a")
        started = time.monotonic()
    assert time.monotonic() - started < 1.0


def described(study: Study, name: str) -> Any:
    return study.client.get_experiment_by_name(name).tags


def test_a_measured_flatness_is_a_metric_at_the_last_epoch(study: Study) -> None:
    values = {"eigenvalue": 41.5, "residual": 1e-3, "examples": 512, "split": "train", "landscape": None}
    for mirrored_before in (False, True):  # what this mirror told, and what an earlier one did
        run = f"run-{mirrored_before}"
        study.begin(run)
        study.epoch(run, 3, **{"cost/gradients": 10.0})
        study.end(run, epoch=3)
        if mirrored_before:
            study.mirror()
        study.ledger.write("measure", run=run, what="flatness", values=values)
        study.mirror()
        assert study.history(run, "flatness/eigenvalue") == [(3, 41.5)]
        assert "flatness/examples" not in study.runs()[run].data.metrics


def test_the_family_of_a_method(study: Study) -> None:
    for run, method in (("a", "lets-bisam-tanh"), ("b", "bisam-tanh")):
        study.begin(run, method=method)
    study.begin("c", method="sam", family="bisam-tanh")  # whatever method a search chose
    study.mirror()
    assert {run.data.tags["family"] for name, run in study.runs().items() if name != "digits"} == {"bisam-tanh"}


def test_the_summary_describes_the_parent_and_the_experiment(make: Make) -> None:
    study = make("digits", "compare")
    for run in ("a-r0-s0", "a-r0-s1"):
        study.whole(run)
    table = "".join(f"| arm {number} | 95.1 % |\n" for number in range(400))
    (study.directory / "summary.md").write_text(f"At equal cost a wins.\n\n| arm | test |\n|---|---|\n{table}")
    fields = {"metrics": {"final/test_accuracy": 0.951}, "tags": {"winner": "a", "verdict": "At equal cost a wins."}}
    study.ledger.write("artifact", kind="summary", path="summary.md", run=None, **fields, kept=["a-r0-s1"])
    study.mirror()
    parent, experiment = study.runs()["digits"], described(study, "digits")
    assert parent.data.metrics == {"final/test_accuracy": 0.951}
    assert (parent.data.tags["winner"], parent.data.tags["verdict"]) == ("a", "At equal cost a wins.")
    assert "final/test_accuracy" not in parent.data.params
    assert study.client.list_artifacts(parent.info.run_id, "summary")[0].path == "summary/summary.md"
    for text, limit in ((parent.data.tags["mlflow.note.content"], 8000), (experiment["mlflow.note.content"], 5000)):
        first, _, rest = text.partition("\n\n")
        assert first.startswith("Views: [comparison](#/experiments/")
        assert first.endswith(") — At equal cost a wins.")
        assert rest.startswith("| arm | test |\n")
        assert limit - 200 < len(text) <= limit
        assert text.endswith("… (the whole: summary/ among the artifacts)")
        assert all(line.endswith("|") for line in rest.splitlines()[:-1])  # no row is cut in two
    kept = {name: run.data.tags.get("kept") for name, run in study.runs().items() if name != "bisam"}
    assert kept == {"digits": None, "a-r0-s0": None, "a-r0-s1": "yes"}

    study.header()  # a resumed study shows what it came to until it is known anew
    study.mirror()
    assert "a wins" in study.runs()["digits"].data.tags["mlflow.note.content"]
    (study.directory / "summary.md").write_text("At equal cost b wins.")
    study.ledger.write("artifact", kind="summary", path="summary.md", run=None, kept=["a-r0-s0"])
    study.mirror()
    assert "b wins" in described(study, "digits")["mlflow.note.content"]
    kept = {name: run.data.tags.get("kept") for name, run in study.runs().items() if name != "bisam"}
    assert kept == {"digits": None, "a-r0-s0": "yes", "a-r0-s1": "no"}


def test_the_verdict_stands_once_above_the_summary(make: Make) -> None:
    study, verdict = make("digits", "compare"), "At equal cost rho_warmup searched wins."
    (study.directory / "summary.md").write_text(f"**{safe(verdict)}**\n\n| arm |\n|---|\n")
    study.ledger.write("artifact", kind="summary", path="summary.md", run=None, tags={"verdict": verdict})
    study.mirror()
    first, _, rest = described(study, "digits")["mlflow.note.content"].partition("\n\n")
    assert first.endswith(verdict)
    assert rest == "| arm |\n|---|\n"


def test_ready_views_are_tags_of_the_experiment(make: Make) -> None:
    study = make("digits", "compare")
    study.begin("a", arm="lets-sam")
    study.mirror()
    found = {key.removeprefix(PREFIX): value for key, value in described(study, "digits").items() if PREFIX in key}
    assert set(found) == {"comparison", "radius"}  # nothing was searched
    assert inflated(found["comparison"])["searchFilter"] == "tags.phase = 'final'"

    (study.directory / "summary.md").write_text("x")
    study.ledger.write("artifact", kind="summary", path="summary.md", run=None, kept=["a"])
    study.ledger.write("finish", outcome="completed")
    study.mirror()
    tags = described(study, "digits")
    assert json.loads(tags[f"{PREFIX}comparison"])["name"] == "comparison"
    state = inflated(tags[f"{PREFIX}comparison"])
    assert state["searchFilter"] == "tags.phase = 'arm'"
    assert "groupBy" not in state
    state = inflated(tags[f"{PREFIX}radius"])
    assert state["searchFilter"] == "tags.kept = 'yes'"
    assert state["groupsExpanded"] == {"tag.arm.lets-sam": False}


def test_every_arm_has_a_run_with_its_means(make: Make) -> None:
    """MLflow's page takes means over the 100 runs that it loads: of more, they would be of the best."""
    study = make("digits", "compare")
    for run, rho in (("a-r0", 0.1), ("a-r1", 0.3), ("a-r1-s1", 9.0)):
        study.begin(run, arm="a", method="lets-sam")
        study.epoch(run, 1, **{"sam/rho": rho})
        final = {"final/test_accuracy": rho, "final/val_accuracy": 0.5}
        study.ledger.write("end", run=run, outcome="completed", epoch=1, metrics=final, error=None, checkpoint=None)
    (study.directory / "summary.md").write_text("x")
    for _ in range(2):  # told twice, as by a study that is gone on with
        study.ledger.write("artifact", kind="summary", path="summary.md", run=None, kept=["a-r0", "a-r1"])
        study.mirror()
    arm = study.runs()["a"]
    found = arm.data.metrics
    assert found["final/test_accuracy"] == found["sam/rho"] == pytest.approx(0.2)
    half = 12.706 * 0.1 * 2**0.5 / 2**0.5  # Student's t of one degree of freedom × standard error
    assert (found["final/test_low"], found["final/test_high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-3)
    assert "best/val_accuracy" not in found  # never measured
    assert (arm.data.tags["phase"], arm.data.tags["family"], arm.data.tags["outcome"]) == ("arm", "sam", "completed")
    assert arm.data.tags["mlflow.parentRunId"] == study.runs()["digits"].info.run_id
    assert arm.info.status == "FINISHED"
    many = views("compare", kept=250)
    assert many["comparison"]["searchFilter"] == "tags.phase = 'arm'"
    assert many["radius"]["searchFilter"] == "tags.kept = 'yes' and tags.replicate = '0'"


def test_the_largest_views_fit_into_a_tag() -> None:
    arms = [f"lets-bisam-tanh around number {number}" for number in range(60)]
    keys = [f"optim.some_searched_key_{number}" for number in range(40)]
    for text in tags(views("compare", [keys, keys[:1]], arms, 250), 1).values():
        assert len(text) < 5000
