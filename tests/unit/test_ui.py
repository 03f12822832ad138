"""`bisam-ray ui` says where to look, and what is wrong in one line."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from bisam_ray.cli import main
from bisam_ray.config import ConfigError
from bisam_ray.study import ui
from bisam_ray.study.ledger import Ledger

SPACES = [{"name": "rho", "search": {"optim.rho": {"log": [0.01, 1]}}}]


def study(storage: Path, name: str, kind: str = "compare", experiment: str | None = "7") -> Path:
    with Ledger(storage / name) as ledger:
        ledger.write("study", study=name, kind=kind, space=SPACES if kind != "train" else None)
        ledger.write("finish", outcome="completed")
    if experiment:
        (storage / name / "mlflow.json").write_text(json.dumps({"experiment": experiment, "offset": 1, "runs": {}}))
    return storage / name


def test_the_views_of_the_newest_study_that_mlflow_has(tmp_path: Path) -> None:
    first = study(tmp_path, "first", experiment="3")
    study(tmp_path, "second")
    study(tmp_path, "third", experiment=None)  # not mirrored yet
    told = ui.places("http://127.0.0.1:5000", tmp_path).split()
    addresses = [word for word in told if word.startswith("http")]
    assert [address.partition("viewStateShareKey=")[2].split("&")[0] for address in addresses] == [
        "comparison",
        "radius",
        "search",
    ]
    assert all(address.startswith("http://127.0.0.1:5000/#/experiments/7/runs?") for address in addresses)
    assert ["compareRunsMode=CHART" in address for address in addresses] == [False, True, True]
    assert "/experiments/3/" in ui.places("http://127.0.0.1:5000", tmp_path, first)
    assert ui.places("http://127.0.0.1:5000", tmp_path, tmp_path / "third") == ""


def test_only_views_that_suit(tmp_path: Path) -> None:
    assert ui.places("", tmp_path, study(tmp_path, "searched", "search")).count("viewStateShareKey=search") == 1
    assert "comparison" not in ui.places("", tmp_path, tmp_path / "searched")
    assert ui.places("", tmp_path, study(tmp_path, "trained", "train")) == ""
    assert ui.places("", tmp_path) == ui.places("", tmp_path, tmp_path / "searched")  # a train run has no views


def test_a_server_is_only_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, "first")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@10.0.0.1:5000/")
    done = CliRunner().invoke(main, ["ui", "first", "--storage", str(tmp_path)])
    assert done.exit_code == 0
    assert "open http://10.0.0.1:5000\n" in done.output
    assert "http://10.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=comparison" in done.output
    assert "secret" not in done.output


def test_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="nothing tracked there yet"):
        ui.serve(tmp_path, 5000)
    (tmp_path / "mlflow.db").touch()
    study(tmp_path, "first")
    with pytest.raises(ConfigError, match="did you mean first"):
        ui.serve(tmp_path, 5000, "frist")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: is taken; try --port {port + 1}"):
            ui.serve(tmp_path, port)
