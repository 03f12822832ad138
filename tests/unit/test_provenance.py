"""Which code ran, and what a job is told: never a secret, never an error, never a long wait."""

import json
import os
import subprocess
import time

import pytest
from click.testing import CliRunner

from bisam_ray import provenance
from bisam_ray.cli import main

SESAME = "sesame-opens"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in (provenance.GIT, *provenance.FORWARDED):
        monkeypatch.delenv(name, raising=False)


def git(*words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit(tmp_path):
    """A repository with one commit in the current directory."""
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    return git("rev-parse", "--short=12", "HEAD")


def test_a_commit_changes_and_a_tag(tmp_path, commit):
    assert provenance.git_state() == commit
    (tmp_path / "file").write_text("two")
    assert provenance.git_state() == f"{commit}-dirty"
    git("tag", "-am", "v1", "v1")
    assert provenance.git_state() == "v1-dirty"


def test_what_was_recorded_before_the_upload_wins(commit, monkeypatch):
    monkeypatch.setenv(provenance.GIT, "recorded")
    assert provenance.git_state() == "recorded"
    monkeypatch.setenv(provenance.GIT, "")
    assert provenance.git_state() == commit


def test_without_a_repository_or_without_git(tmp_path, monkeypatch):
    assert provenance.git_state() is None
    assert provenance.GIT not in provenance.runtime_env()["env_vars"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state() is None


def test_a_git_that_hangs_or_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "WAIT_S", 0.3)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = tmp_path / "git"
    for body in ("exec sleep 30", "echo told; exit 1", "printf '\\377'"):
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        began = time.monotonic()
        assert provenance.git_state() is None, body
        assert time.monotonic() - began < 3


def test_what_a_job_is_told_is_one_line_of_json_without_secrets(commit, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SESAME)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org:5000/path?workspace=7")
    result = CliRunner().invoke(main, ["runtime-env"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    told = json.loads(result.stdout)
    assert list(told) == ["env_vars"]
    assert told["env_vars"]["BISAM_RAY_GIT"] == commit
    assert told["env_vars"]["MLFLOW_TRACKING_URI"] == os.environ["MLFLOW_TRACKING_URI"]
    assert all(isinstance(value, str) for value in told["env_vars"].values())  # Ray wants strings
    assert SESAME not in result.output


@pytest.mark.parametrize(
    "uri",
    [
        f"https://me:{SESAME}@mlflow.example.org",
        f"postgresql://me:{SESAME}/with-a-slash@host/db",
        f"https://{SESAME}@host",
        f"postgresql://host/db?user=me&password={SESAME}",
        f"https://host/?access_token={SESAME}",
    ],
)
def test_an_address_with_a_password_is_refused_without_repeating_it(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = CliRunner().invoke(main, ["runtime-env"])
    assert result.exit_code == 2
    assert result.output.startswith("error: MLFLOW_TRACKING_URI: contains a user or password")
    assert len(result.output.splitlines()) == 1
    assert SESAME not in result.output
