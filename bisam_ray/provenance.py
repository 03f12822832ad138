"""Which code a study ran: the state of git, also where there is no repository, and what a job on a cluster is told."""

from __future__ import annotations

import os
import re
import subprocess

from .config import ConfigError

GIT = "BISAM_RAY_GIT"
"""Environment variable that names the code of an uploaded working directory, which has no repository."""
WAIT_S = 2.0
"""Longest wait for git, say on a slow network file system."""
STOP_WAIT_S = 30
"""Ray kills a job so long after `ray job stop`, by itself after 3 s: the ledger is closed by then, but whatever else is
to be brought to an end (workers, the last metrics for MLflow) may take longer."""
FORWARDED = ("MLFLOW_TRACKING_URI", "BISAM_RAY_DEBUG")  # never a secret: everybody on the cluster can read them


def git_state() -> str | None:
    """BISAM_RAY_GIT if set, else what `git describe` says of the current directory: tag or commit, and -dirty when
    tracked files differ from it. None without git or without a repository."""
    told = os.environ.get(GIT)
    if told:
        return told
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # it only looks
    try:
        done = subprocess.run(
            command, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def runtime_env() -> dict[str, dict[str, str]]:
    """Ray's runtime environment for a job that is submitted from here: see README, "On a cluster".

    Raises:
        ConfigError: MLFLOW_TRACKING_URI contains a password; Ray shows a job's environment to everybody.
    """
    found = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the workers: modules and data of the working directory are found
    }
    if state := git_state():
        found[GIT] = state
    for name in FORWARDED:
        if value := os.environ.get(name):
            if secretive(value):
                raise ConfigError(
                    f"{name}: contains a user or password, and a job's environment is open to the whole cluster; "
                    f"unset it here and set it where the head node is started"
                )
            found[name] = value
    return {"env_vars": dict(sorted(found.items()))}


def secretive(uri: str) -> bool:
    """Whether a URI carries credentials: user@host, or a parameter that is called like one."""
    return bool(
        re.search(r"://.*@|[?&;][^=&;]*(pass|pwd|token|secret|key|auth|credential|signature)[^=&;]*=", uri, re.I)
    )
