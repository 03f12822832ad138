"""A storage at a glance and tidied up; a search replayed, gone on with and refused, as typed; without Ray."""

import fcntl
import json

import pytest
from click.testing import CliRunner

import bisam_ray
from bisam_ray.cli import main
from bisam_ray.study import housekeeping, ledger
from bisam_ray.study.request import Request, differences
from bisam_ray.study.session import session
from bisam_ray.study.spaces import read
from bisam_ray.study.tracking.client import connect, tracking_uri
from bisam_ray.training.launch import Epoch


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*words):
    return CliRunner().invoke(main, list(words))


def recorded(directory, trials=12, epochs=8):
    """A finished search of `rho` whose accuracy is best near .3, and rises the more slowly the larger the radius."""
    directory.mkdir(parents=True)
    asked = Request.of(read("rho"), {"train.epochs": epochs}, {}, {"trials": trials, "scheduler": "none"})
    with session(directory, "search", asked.example, False, **asked.header()) as driver:
        for number in range(trials):
            rho = round(0.02 * 100 ** (number / (trials - 1)), 4)
            config = asked.example.model_copy(update={"seed": number})
            name = f"rho-searched-{number:03d}"
            driver.begin(
                name, config, arm=asked.arm, phase="search", suggested={"optim.rho": rho}, policy="searched",
                number=number, params={"optim.rho": rho}, control=False,
            )  # fmt: skip
            for epoch in range(1, epochs + 1):
                value = 0.9 / (1 + abs(rho - 0.3)) * (1 - (0.2 + 0.3 * rho / 2) ** epoch)
                metrics = {"val/accuracy": value, "cost/gradients": 10.0 * epoch, "cost/seconds": 0.5 * epoch}
                driver.epoch(name, Epoch(epoch, metrics))
            checkpoint = driver.checkpoint(name)
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_bytes(b"0" * 1000)
            driver.end(name, "completed", epochs, {"final/val_accuracy": value}, checkpoint=checkpoint, stopped=None)
    return directory


def test_a_recorded_search_is_replayed_in_seconds_and_the_same_each_time(tmp_path):
    recorded(tmp_path / "runs" / "first")
    found = []
    for name in ("a", "b"):
        result = call("search", "--replay", "first", "--study", name, "--trials", "20", "--scheduler", "asha", "--json")
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout.splitlines()[-1]))
    assert {**found[0], "study": ""} == {**found[1], "study": ""}
    assert found[0]["trials"] == 20
    assert found[0]["pruned"] > 5
    assert 0.1 < found[0]["best"]["config"]["optim"]["rho"] < 0.7
    study = ledger.read(tmp_path / "runs" / "a")
    assert study.finish["outcome"] == "completed"
    assert study.header["protocol"]["settings"]["rungs"] == [2, 6]
    assert not (tmp_path / "runs" / "a" / "optuna.journal").exists()
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    assert (tmp_path / "runs" / "a" / "report.html").exists()


def test_a_replay_stands_for_the_search_that_it_replays(tmp_path):
    """The recorded points in their order, nothing stopped: every value comes out as it was."""
    source = ledger.read(recorded(tmp_path / "runs" / "first"))
    points = [run.begin["suggested"] for run in source.runs.values()]
    (tmp_path / "same.yaml").write_text(
        json.dumps({"name": "same", "search": {"optim.rho": {"log": [0.02, 2.0]}}, "start": points})
    )
    call("search", "same.yaml", "--replay", "first", "--study", "again", "--trials", "12", "--scheduler", "none")
    again = ledger.read(tmp_path / "runs" / "again")
    assert [run.epochs for run in again.runs.values()] == [run.epochs for run in source.runs.values()]


def test_a_changed_study_is_refused_with_the_difference(tmp_path):
    recorded(tmp_path / "runs" / "first")
    for words, told in (
        (["optim.lr=0.1"], "config.optim.lr: 0.05 → 0.1"),
        (["--sampler", "gp"], "sampler: tpe → gp"),
        (["--scheduler", "asha"], "scheduler: none → asha"),
        (["rho_warmup"], "space.name: rho → rho_warmup"),
    ):
        result = call("search", *words, "--resume", "--study", "first")
        assert result.exit_code == 2
        assert told in result.output
        assert "--allow-change" in result.output
        assert len(result.output.strip().splitlines()) == 1
    before = (tmp_path / "runs" / "first" / ledger.FILE).read_bytes()
    assert call("search", "rho", "train.epochs=9", "--resume", "--study", "first").exit_code == 2
    assert (tmp_path / "runs" / "first" / ledger.FILE).read_bytes() == before


def test_what_may_change_and_what_is_taken_from_before(tmp_path):
    study = ledger.read(recorded(tmp_path / "runs" / "first"))
    more = Request.again(study, None, {}, {}, {"trials": 20, "hours": 3.0, "confirm": 5}, False)
    assert (more.settings.trials, more.settings.scheduler, more.example.train.epochs) == (20, "none", 8)
    changed = Request.again(study, None, {}, {"optim.lr": 0.1}, {}, True)
    assert changed.example.optim.lr == 0.1
    found = differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2, "c": (1, 2)}, "d": 0})
    assert found == ["a.b: 1 → 2", "d: none → 0"]


def test_a_second_driver_is_refused_in_one_line(tmp_path):
    recorded(tmp_path / "runs" / "first")
    with open(tmp_path / "runs" / "first" / ".driver", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = call("search", "--resume", "--study", "first")
        listed = call("studies")
    assert result.exit_code == 2
    assert "is driving this study already" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert "running, process" in listed.output


def test_a_finished_search_that_is_gone_on_with_does_nothing(tmp_path):
    recorded(tmp_path / "runs" / "first")
    result = call("search", "--resume", "--study", "first", "--confirm", "0", "--json", "-q")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["trials"] == 12


def test_the_study_of_a_configuration_is_found_by_its_name(tmp_path):
    files = {"train": {"epochs": 8}}
    name = Request.of(read("rho"), files, {}, {}).name
    for suffix in ("", "-2"):
        recorded(tmp_path / "runs" / f"{name}{suffix}")
    assert bisam_ray.search("rho", files, resume=True, confirm=0).study.name == f"{name}-2"  # the latest


def test_what_a_killed_driver_left_open_is_closed_by_a_report(tmp_path):
    killed = recorded(tmp_path / "runs" / "killed")
    lines = (killed / ledger.FILE).read_text().splitlines(keepends=True)
    (killed / ledger.FILE).write_text("".join(lines[:-2]))
    assert call("report", "killed").exit_code == 0
    study = ledger.read(killed)
    assert study.finish["outcome"] == "interrupted"
    assert study.runs["rho-searched-011"].outcome == "killed"
    client = connect(tracking_uri(tmp_path / "runs"))
    runs = client.search_runs([client.get_experiment_by_name("killed").experiment_id])
    assert len(runs) == 13
    assert "RUNNING" not in {run.info.status for run in runs}
    before = (killed / ledger.FILE).read_bytes()
    assert call("report", "killed").exit_code == 0
    assert (killed / ledger.FILE).read_bytes() == before


def test_studies_tell_size_state_and_best_and_clean_shows_before_it_removes(tmp_path):
    first = recorded(tmp_path / "runs" / "first")
    (first / "runs" / ".checkpoint-abc").write_bytes(b"0" * 10)
    killed = recorded(tmp_path / "runs" / "killed")
    lines = (killed / ledger.FILE).read_text().splitlines(keepends=True)
    (killed / ledger.FILE).write_text("".join(lines[:-2]))  # neither the last trial's end nor the study's
    rows = {row["study"]: row for row in json.loads(call("studies", "--json", "-q").stdout)["studies"]}
    assert (rows["first"]["state"], rows["killed"]["state"]) == ("completed", "killed")
    assert rows["first"]["runs"] == 12
    assert rows["first"]["best"] == pytest.approx(0.9, abs=0.1)
    assert rows["first"]["size"] > 12_000

    shown = call("studies", "--clean")
    assert shown.exit_code == 0
    assert len(list((first / "runs").glob("*.pt"))) == 12  # nothing was removed yet
    assert "--clean --yes removes them" in shown.output
    removed = json.loads(call("studies", "--clean", "--yes", "--json").stdout.splitlines()[-1])["removed"]
    assert len(removed) == 9 + 1 + 8
    best = sorted(ledger.read(first).runs.values(), key=lambda run: -run.value("final/val_accuracy"))[:3]
    assert {p.stem for p in (first / "runs").glob("*.pt")} == {run.name for run in best}
    assert "rho-searched-011" in {p.stem for p in (killed / "runs").glob("*.pt")}  # unfinished: it can be gone on with
    assert not (first / "runs" / ".checkpoint-abc").exists()
    assert call("studies", "--clean").output.strip() == "nothing to remove"


def test_nothing_of_a_study_that_is_driven_is_removed(tmp_path):
    first = recorded(tmp_path / "runs" / "first")
    with open(first / ".driver", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert housekeeping.rubbish(first) == []


def test_a_dry_run_tells_trials_gradients_and_hours_and_runs_nothing(tmp_path):
    result = call("search", "rho", "model=mlp", "train.epochs=8", "--trials", "32", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert [epoch for epoch, _ in found["reach"]] == [2, 6, 8]
    steps = 8 * (1000 // 64) * 64 * 2
    assert found["most_gradients"] == pytest.approx((32 + 9) * steps)
    assert (11 + 9) * steps < found["gradients"] < found["most_gradients"]
    assert 0 < found["hours"] < 0.1
    assert not (tmp_path / "runs").exists()
