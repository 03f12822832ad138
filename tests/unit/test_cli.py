"""What a person types: results, JSON, one-line errors and exit codes, without Ray."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from bisam_ray.cli import main

QUICK = ["model=mlp", "train.epochs=2"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "exp.yaml").write_text("method: bisam-log\noptim: {rho: 1e-1}\n")
    (tmp_path / "mine.yaml").write_text("search: {optim.roh: {log: [0.1, 1]}}\n")
    (tmp_path / "file").write_text("in the way")


def call(*words):
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "optim.roh=1"], "did you mean optim.rho?"),
        (["train", "train.epochs=many"], "train.epochs=many"),
        (["train", "optim.rho=-0.1"], "optim.rho=-0.1"),
        (["train", "method=sam", "optim.alpha=0.1"], "method sam has no alpha"),
        (["train", "-c", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["train", "-c", "empty.yaml"], "empty.yaml: empty"),
        (["train", "data.label_noise=1.1"], "data.label_noise=1.1"),
        (["train", "data.name=nodigits"], "did you mean digits?"),
        (["train", f"scale.workers={8 * (os.cpu_count() or 1)}"], "scale.workers"),
        (["train", "scale.gpus_per_worker=64"], "scale.gpus_per_worker=64"),
        (["train", "--storage", "file/below"], "cannot be written"),
        (["train", "--storage", "s3://"], "names no bucket"),
        (["search", "mine.yaml"], "optim.roh: no config path; did you mean optim.rho?"),
        (["search", "rhoo"], "did you mean rho?"),
        (["search", "rho", "optim.rho=0.1"], "optim.rho: is searched in space rho"),
        (["search", "rho", "--trials", "0"], "--trials 0"),
        (["search"], "SPACE: missing"),
        (["search", "rho", "asam"], "one space only"),
        (["search", "rho", "--sampler", "tep"], "did you mean tpe?"),
        (["search", "rho", "--objectives", "accuracy,cost", "--scheduler", "asha"], "--scheduler none"),
        (["search", "rho", "--folds", "9"], "--folds 9: data.fold=8: data.name=digits has folds 0 to 4 (nearest: 4)"),
        (["search", "rho", "--resume"], "no search of this configuration"),
        (["search", "rho", "--resume", "--study", "nothing"], "no such study"),
        (["search", "--replay", "nothing"], "no such study"),
        (["search", "rho", "--dry-run", "--hours", "2"], "give --trials"),
        (["compare", "rho", "--resume"], "no compare of this configuration"),
        (["compare", "--also", "lets-sma"], "did you mean lets-sam?"),
        (["compare", "optim.rho=0.1"], "is searched in space rho"),
        (["compare", "sam", "--arms", "fixed,serched"], "did you mean searched?"),
        (["compare", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["compare", "--flatness", "-1"], "--flatness -1: must be at least 0"),
        (["compare", "sam", "method=asam"], "method=asam: arm sgd sets it itself"),
        (["report", "nothing"], "no such study"),
        (["eval", "nothing.pt"], "no such checkpoint"),
        (["eval", "exp.yaml"], "not a readable checkpoint"),
        (["space", "check", "mine.yaml"], "did you mean optim.rho?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, told):
    result = call(*words)
    assert result.exit_code == 2
    assert told in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not os.path.exists("runs") or not any(os.scandir("runs"))


def test_a_run_its_json_its_evaluation_and_its_resumption():
    result = call("train", "-c", "exp.yaml", *QUICK, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found) == {
        "run_id", "method", "seed", "epochs", "val_accuracy", "test_accuracy", "rho", "cost_gradients",
        "cost_seconds", "checkpoint", "digest",
    }  # fmt: skip
    assert (found["method"], found["epochs"], found["rho"]) == ("bisam-log", 2, pytest.approx(0.1))
    again = json.loads(call("eval", found["checkpoint"], "--json", "-q").stdout.splitlines()[-1])
    assert again["accuracy"] == found["test_accuracy"]
    resumed = json.loads(call("train", "-c", "exp.yaml", *QUICK, "--resume", "--json", "-q").stdout.splitlines()[-1])
    assert resumed == found
    listed = json.loads(call("studies", "--json", "-q").stdout)
    assert [s["study"] for s in listed["studies"]] == [found["run_id"]]


def test_print_config_shows_what_would_run_and_runs_nothing():
    result = call("train", "-c", "exp.yaml", "--print-config", "train.epochs=3")
    assert "method: bisam-log" in result.stdout
    assert "epochs: 3" in result.stdout
    assert "digest" in result.stdout
    assert not os.path.exists("runs")


def test_print_config_of_a_comparison_shows_every_arm():
    result = call("compare", "rho", "--print-config", "--json", "-q", "train.epochs=3")
    arms = json.loads(result.stdout)
    assert list(arms) == ["sgd", "sam", "sam warm-up", "sam searched", "lets-sam", "sam around", "sam replayed"]
    assert {arm["train"]["epochs"] for arm in arms.values()} == {3}
    assert not os.path.exists("runs")


def test_a_failing_run_is_exit_code_1_and_recorded():
    result = call("train", "method=sgd", "optim.lr=1e30", "train.epochs=2", "-q")
    assert result.exit_code == 1
    assert "Diverged" in result.output
    assert "Traceback" not in result.output
    from bisam_ray.study import ledger, storage

    (directory,) = storage.studies(Path("runs"))
    (run,) = ledger.read(directory).runs.values()
    assert run.outcome == "diverged"
