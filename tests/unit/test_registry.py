"""The winner in MLflow's registry: exported once, registered once, loaded without a pickle."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import bisam_ray
from bisam_ray import api
from bisam_ray.cli import main
from bisam_ray.config import resolve
from bisam_ray.progress import Progress
from bisam_ray.study import ledger
from bisam_ray.study import session as sessions
from bisam_ray.study.ledger import Ledger
from bisam_ray.study.session import Session
from bisam_ray.study.tracking.client import connect, tracking_uri
from bisam_ray.study.tracking.registry import chosen
from bisam_ray.training.launch import Epoch

TINY = {"data.name": "digits", "model.name": "mlp", "train.epochs": 1, "method": "sam"}


def call(storage: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["register", *words, "--storage", str(storage)])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run, tracked."""
    place = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        bisam_ray.train(None, TINY, storage=str(place))
    return place


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_registered_once_and_loaded_with_pickles_forbidden(storage: Path) -> None:
    study = next(path.parent for path in storage.glob("*/ledger.jsonl"))
    done = call(storage, study.name, "--json")
    assert done.exit_code == 0, done.output
    told, found = done.stdout, json.loads(done.stdout.splitlines()[-1])
    assert (found["name"], found["version"], found["new"]) == ("bisam-ray-digits", 1, True)
    version = connect(tracking_uri(storage)).get_model_version_by_alias("bisam-ray-digits", "winner")
    assert version.tags["study"] == version.tags["run"] == study.name
    assert version.tags["digest"] == ledger.read(study).runs[study.name].begin["digest"]

    again = call(storage, study.name)
    assert again.exit_code == 0, again.output
    assert f"{study.name} was registered already as bisam-ray-digits version 1" in again.output
    assert sum(made["kind"] == "model" for made in ledger.read(study).artifacts) == 1
    other = call(storage, study.name, "--as", "mine")
    assert "registered mine version 1" in other.output

    # the line that was told, and both flavours, in a process in which nothing may be unpickled
    script = """
        import os, pickle, sys
        os.environ |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        import cloudpickle, numpy as np, mlflow.pytorch, mlflow.pyfunc, torch, torch.export

        def refuse(*_, **__):
            raise RuntimeError("a pickle")

        def audit(event, _):
            if event == "pickle.find_class":
                refuse()

        for module in (pickle, cloudpickle, mlflow.pytorch.pickle_module):
            module.load = module.loads = refuse
        pickle.Unpickler = pickle._Unpickler = type("Forbidden", (), {"__init__": refuse})  # torch subclasses it
        sys.addaudithook(audit)
        exec(sys.argv[1])
        x = np.random.default_rng(0).normal(size=(3, *model.metadata.get_input_schema().inputs[0].shape[1:]))
        first = model.predict(x.astype(np.float32))
        network = mlflow.pytorch.load_model(sys.argv[2])
        second = network(torch.from_numpy(x.astype(np.float32)))
        assert first.shape == (3, 10) and np.allclose(first, second.detach().numpy(), atol=1e-6)
        torch.save(network.state_dict(), sys.argv[3])
        for forbidden in (lambda: torch.load(sys.argv[3], weights_only=False), lambda: pickle.loads(b"N.")):
            try:
                forbidden()
            except RuntimeError as error:
                assert str(error) == "a pickle", error
            else:
                raise AssertionError("the guard does not hold")
        print("loaded")
    """
    line = next(line for line in told.splitlines() if line.startswith("load it:")).removeprefix("load it:").strip()
    command = [sys.executable, "-c", textwrap.dedent(script), line, found["uri"], str(storage / "pickled.pt")]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.strip() == "loaded", loaded.stderr[-2000:]


def test_told_in_one_line(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = next(path.parent for path in storage.glob("*/ledger.jsonl"))
    with Ledger(storage / "empty") as record:
        record.write("study", study="empty", kind="compare")
    cases = {
        ("nosuch",): (2, "nosuch: no such study"),
        (study.name[:-1],): (2, f"did you mean {study.name}"),
        ("empty",): (2, "empty: nothing is finished there"),
        (study.name, "--as", "a/b"): (2, "--as a/b: a model's name has no '/' and no ':' (nearest: a-b)"),
    }
    for words, (code, text) in cases.items():
        done = call(storage, *words)
        assert done.exit_code == code, done.output
        assert text in done.output
        assert done.output.startswith("error: ")
        assert len(done.output.strip().splitlines()) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setattr("bisam_ray.study.tracking.registry.PATIENCE_S", 1.0)
    away = call(storage, study.name)
    assert away.exit_code == 1
    assert "MLflow at http://127.0.0.1:9: " in away.output
    assert "secret" not in away.output
    assert len([line for line in away.output.splitlines() if line.startswith("error")]) == 1


def write(directory: Path, kind: str, runs: list[dict[str, Any]]) -> ledger.Study:
    with Ledger(directory) as record:
        record.write("study", study=directory.name, kind=kind)
        for run in runs:
            common = {"method": "sam", "radius_policy": "fixed", "seed": 0, "digest": "d", "dataset": "digits"}
            val = run.pop("val")
            begin = {
                "restart": 0,
                "replicate": None,
                "suggested": {},
                "config": {"optim": {"rho": 0.1}},
                **common,
                **run,
            }
            record.write("begin", **begin)
            metrics = {f"final/{key}": val for key in ("val_accuracy", "val_even", "val_odd", "test_accuracy")}
            ended = {"epoch": 1, "metrics": metrics, "error": None, "checkpoint": None}
            record.write("end", run=run["run"], outcome="completed", **ended)
    return ledger.read(directory)


def test_whose_network_it_is(tmp_path: Path) -> None:
    compared = [
        {
            "run": f"{arm}-r{r}-s{s}",
            "arm": arm,
            "phase": "final",
            "replicate": r,
            "restart": s,
            "val": val + s / 100 - r / 50,
        }
        for arm, val in (("sgd", 0.6), ("lets-sam", 0.7))
        for r in (0, 1)
        for s in (0, 1)
    ]
    retrained = {"run": "winner-distributed", "arm": "lets-sam", "phase": "final", "val": 0.99}
    assert chosen(write(tmp_path / "compare", "compare", [*compared, retrained])).name == "lets-sam-r0-s1"
    trials = [{"run": f"rho-00{n}", "arm": "rho searched", "phase": "search", "val": 0.5 + n / 10} for n in range(3)]
    assert chosen(write(tmp_path / "search", "search", [dict(trial) for trial in trials])).name == "rho-002"
    again = [
        {
            "run": f"rho-00{n}-r{r}",
            "arm": "rho searched",
            "phase": "final",
            "trial": f"rho-00{n}",
            "replicate": r,
            "val": val,
        }
        for n, val in ((1, 0.8), (2, 0.6))
        for r in (0, 1)
    ]
    assert chosen(write(tmp_path / "again", "search", [*trials, *again])).name.startswith("rho-001-r")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Of a study whose networks are empty; exporting one writes a file into a directory that must not be there."""

    def save_model(model: Any, example: Any, path: Path) -> None:
        path.mkdir(parents=True)
        (path / "MLmodel").write_text("")
        if example:
            raise example

    monkeypatch.setattr(sessions.checkpoints, "load", lambda place: (None, None))
    monkeypatch.setattr("bisam_ray.training.engine.trained", lambda config, state: (None, None))
    monkeypatch.setattr(sessions, "save_model", save_model)
    with Ledger(tmp_path / "made") as record:
        record.write("study", study="made", kind="compare")
        yield Session(tmp_path / "made", record)


def test_a_kill_while_a_model_is_written_leaves_no_half_of_it(driver: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bisam_ray.training.engine.trained", lambda config, state: (None, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        driver.log_model("a")
    assert not (driver.directory / "models" / "a").exists()
    (driver.directory / "models" / "a").mkdir()  # as such a kill once left it
    (driver.directory / "models" / "a" / "half").write_text("")
    monkeypatch.setattr("bisam_ray.training.engine.trained", lambda config, state: (None, None))
    driver.log_model("a")
    assert [path.name for path in (driver.directory / "models").rglob("*")] == ["a", "MLmodel"]
    assert driver.study().exported("a")
    assert not driver.study().exported("b")


def test_a_network_that_cannot_be_exported_ends_nothing(
    driver: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bisam_ray.training.engine.trained", lambda config, state: (None, AssertionError()))
    api.export(driver, "a", Progress())
    assert "a: its model could not be exported: AssertionError" in capsys.readouterr().err
    assert not driver.study().exported("a")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What training the winner again does: it is asked to tell these epochs, or to fail."""
    steps: list[Any] = []

    def launch(job: Any) -> Iterator[Epoch]:
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            yield step

    monkeypatch.setattr(api.launch, "launch", launch)
    monkeypatch.setattr(api.launch, "check_feasible", lambda config: None)
    monkeypatch.setattr(api.cluster, "connect", lambda: None)
    monkeypatch.setattr(api.cluster, "check_shared", lambda place: None)
    monkeypatch.setattr(api, "prepare", lambda: None)
    return steps


def outcome() -> Any:
    config = resolve({"method": "sam", "train.epochs": 2}).model_dump(exclude_none=True)
    best = SimpleNamespace(arm="sam", family="sam", radius_policy="fixed", config=config)
    return SimpleNamespace(winner="sam", of=lambda arm: best)


def test_the_winner_is_trained_again_once(driver: Session, trained: list[Any]) -> None:
    first, last = Epoch(1, {"train/loss": 1.0}), Epoch(2, {"train/loss": 0.5}, {"final/val_accuracy": 0.9})
    trained[:] = [first, KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        api.retrain(driver, outcome(), 2, Progress(quiet=True))
    sessions.close(driver.ledger, driver.directory, "interrupted")
    trained[:] = [first, last]  # a run that goes on tells its epochs once more
    name = api.retrain(driver, outcome(), 2, Progress(quiet=True))
    assert name is not None
    assert name == api.retrain(driver, outcome(), 2, Progress(quiet=True))
    assert name != api.retrain(driver, outcome(), 3, Progress(quiet=True))
    events = [event for event in ledger.events(driver.directory) if event.get("run") == name]
    assert [event["event"] for event in events] == ["begin", "epoch", "end", "begin", "epoch", "end"]
    assert driver.study().runs[name].outcome == "completed"


def test_a_winner_that_cannot_be_trained_again_costs_no_report(
    driver: Session, trained: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trained[:] = [Epoch(1, {"train/loss": 1.0}), RuntimeError("a worker\nis gone")]
    assert api.retrain(driver, outcome(), 2, Progress()) is None
    assert "training the winner on 2 workers failed: RuntimeError: a worker" in capsys.readouterr().err
    (run,) = driver.study().runs.values()
    assert (run.outcome, run.end and run.end["error"]) == ("failed", "a worker\nis gone")
