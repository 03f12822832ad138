"""Runs on fresh draws of the data: what a winner is chosen and reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Config, gradients_per_step, resolve
from ..progress import Progress
from ..training import cluster, launch
from ..training.launch import Job
from .session import UNFINISHED, Session

FRESH = 100  # replicates use draws from here on; defaults were chosen, and searches are made, on draws below


def draw(replicate: int, restart: int = 0) -> dict[str, Any]:
    """Seed, split and label noise of a replicate, redrawn together; a restart differs in its seed alone."""
    fresh = FRESH + replicate
    return {"seed": fresh + 1000 * restart, "data.split_seed": fresh, "data.noise_seed": fresh}


def redrawn(config: Mapping[str, Any], replicate: int) -> Config:
    """A recorded configuration on a fresh draw."""
    return resolve(config, {"data.fold": 0, **draw(replicate)})


def run_all(
    session: Session,
    jobs: Sequence[tuple[Job, dict[str, Any]]],
    progress: Progress,
    at_once: int | None,
    what: str,
) -> None:
    """Make the runs that the ledger does not have yet, and record what they tell.

    Args:
        jobs: each with what its `begin` event says beside its configuration.
        at_once: runs beside each other; None: as many as there are processors for.
        what: they are, for the progress line.
    """
    known = session.study().runs
    left = [(job, begin) for job, begin in jobs if job.name not in known or known[job.name].outcome in UNFINISHED]
    ended = len(jobs) - len(left)
    progress.board.expect((begin["arm"], begin.get("replicate")) for _, begin in jobs)
    if not left:
        return
    seen = {name: run.epoch for name, run in known.items()}
    work = {job.name: gradients_per_step(job.config) for job, _ in left}
    progress.phase(sum(work[job.name] * (job.config.train.epochs - seen.get(job.name, 0)) for job, _ in left), what)
    cluster.connect()
    cluster.check_shared(session.root)
    begins = {job.name: begin for job, begin in left}
    at_once, _ = cluster.room(left[0][0].config, at_once)
    begun: set[str] = set()
    for job, message in launch.parallel([job for job, _ in left], at_once):
        if job.name not in begun:
            begun.add(job.name)
            session.begin(job.name, job.config, **{"phase": "final", **begins[job.name]})
        ended += session.follow(job, message, after=seen.get(job.name, 0))
        more = work[job.name] if isinstance(message, launch.Epoch) else 0.0
        progress.update(f"{what}: {ended} of {len(jobs)} runs, {begins[job.name]['arm']}", more)
