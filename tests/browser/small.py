"""A small finished comparison, as a driver would have written it: no training, seconds to mirror."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any
from unittest import mock

from bisam_ray.config import PRESETS, resolve
from bisam_ray.study.ledger import Ledger
from bisam_ray.study.session import Session

NAME, EPOCHS, REPLICATES, TRIALS = "digits-small", 12, 3, 9
DATA = {"data": {"name": "digits", "label_noise": 0.4}, "model": {"name": "cnn"}, "train": {"epochs": EPOCHS}}
SPACES: list[dict[str, Any]] = [
    {"name": "rho", "fix": {"method": "sam"}, "search": {"optim.rho": {"log": [0.02, 2.0]}}},
    {
        "name": "bisam_tanh",
        "fix": {"method": "bisam-tanh"},
        "search": {
            "optim.rho": {"log": [0.02, 2.0]},
            "optim.mu": {"log": [1.0, 30.0]},
            "optim.alpha": {"choice": [0.05, 0.1, 0.2]},
        },
    },
]
ARMS = {  # name: method, policy, final val accuracy
    "sgd": ("sgd", "none", 0.48),
    "sam": ("sam", "fixed", 0.52),
    "rho searched": ("sam", "searched", 0.56),
    "lets-sam": ("lets-sam", "learned", 0.57),
    "bisam-tanh": ("bisam-tanh", "fixed", 0.53),
    "bisam_tanh searched": ("bisam-tanh", "searched", 0.565),
    "lets-bisam-tanh": ("lets-bisam-tanh", "learned", 0.58),
}
WINNER = "lets-bisam-tanh"


def write(storage: Path) -> Path:
    """The study's directory; its ledger is closed, and was never on the disk for sure."""
    noise = random.Random(11)
    directory = storage / NAME
    with mock.patch("os.fsync"), Ledger(directory) as ledger:
        protocol = {"trials": TRIALS, "replicates": REPLICATES, "text": "1. Search.\n2. Replicates."}
        versions = {"bisam-ray": "0.1.0", "torch": "2.15.0"}
        config = resolve(DATA, {"method": "sgd"}).model_dump(exclude_none=True)
        more = {"protocol": protocol, "versions": versions, "git": "0123456789ab", "hardware": "2 CPUs, x86_64"}
        ledger.write("study", study=NAME, kind="compare", config=config, space=SPACES, **more)
        session = Session(directory, ledger)
        for space in SPACES:
            for number in range(TRIALS):
                trial(session, space, number, noise)
        for arm, (method, policy, level) in ARMS.items():
            for replicate in range(REPLICATES):
                for restart in range(2 if policy == "learned" else 1):
                    final(session, arm, (method, policy, level), replicate, restart, noise)
        ledger.write("finish", outcome="completed")
    return directory


def trial(session: Session, space: dict[str, Any], number: int, noise: random.Random) -> None:
    rho = math.exp(noise.uniform(math.log(0.02), math.log(2.0)))
    mu, alpha = math.exp(noise.uniform(0, math.log(30))), noise.choice([0.05, 0.1, 0.2])
    drawn = {"optim.rho": rho, "optim.mu": mu, "optim.alpha": alpha}
    values = {key: drawn[key] for key in space["search"]}
    arm, name = f"{space['name']} searched", f"{space['name']}-searched-{number:03d}"
    config = resolve(DATA, space["fix"], values)
    more = {"number": number, "params": values, "control": number == 0}
    session.begin(name, config, arm=arm, phase="search", policy="searched", suggested=values, **more)
    last = EPOCHS if number % 3 != 1 else 4
    val = 0.57 - 0.04 * math.log(rho / 0.3) ** 2
    curve(session.ledger, name, last, val, [rho] * last, noise)
    stopped = last < EPOCHS
    ended = {} if stopped else {"final/val_accuracy": val, "final/val_even": val, "final/val_odd": val}
    outcome = "pruned" if stopped else "completed"
    session.ledger.write("end", run=name, outcome=outcome, epoch=last, metrics=ended, error=None, checkpoint=None)


def final(
    session: Session, arm: str, what: tuple[str, str, float], replicate: int, restart: int, noise: random.Random
) -> None:
    method, policy, level = what
    start = PRESETS[method].get("rho", 0.05) * 2**restart if policy == "learned" else 0.05
    keys = {"method": method, "seed": 100 + replicate, "data.split_seed": 100 + replicate}
    keys |= {} if policy == "none" else {"optim.rho": 0.3 if policy == "searched" else start}
    name = f"{arm.replace(' ', '-')}-r{replicate}-s{restart}"
    where = {"replicate": replicate, "restart": restart}
    config = resolve(DATA, keys)
    session.begin(name, config, arm=arm, phase="final", policy=policy, **where)
    val = level + 0.01 * replicate + noise.gauss(0, 0.004)
    rhos = [float(keys.get("optim.rho", 0.0))] * EPOCHS
    if policy == "learned":
        rhos = [start + (0.6 - start) * (1 - math.exp(-epoch / 3)) for epoch in range(EPOCHS)]
    curve(session.ledger, name, EPOCHS, val, rhos, noise)
    found = {f"final/val_{half}": val for half in ("accuracy", "even", "odd")}
    found |= {"final/test_accuracy": val + 0.37 + noise.gauss(0, 0.004), "best/test_accuracy": val + 0.36}
    ended = {"epoch": EPOCHS, "metrics": found, "error": None, "checkpoint": None}
    session.ledger.write("end", run=name, outcome="completed", **ended)
    if restart == 0:
        session.ledger.write("measure", run=name, what="flatness", values=flatness(policy))


def curve(ledger: Ledger, name: str, last: int, top: float, rhos: list[float], noise: random.Random) -> None:
    best = 0.0
    for epoch in range(1, last + 1):
        val = top * (1 - 0.5 * math.exp(-epoch / 2)) + noise.gauss(0, 0.003)
        best = max(best, val)
        metrics = {"train/loss": 2.2 - val, "train/accuracy": val + 0.05, "val/loss": 2.1 - val, "val/accuracy": val}
        metrics |= {"best/val_accuracy": best, "sam/rho": rhos[epoch - 1], "sam/sharpness": 0.1}
        metrics |= {"cost/gradients": 1920.0 * epoch, "cost/seconds": 0.1 * epoch}
        ledger.write("epoch", run=name, epoch=epoch, metrics=metrics)


def flatness(policy: str) -> dict[str, Any]:
    sharp = {"none": 60.0, "fixed": 40.0}.get(policy, 20.0)
    axis = [-1 + number / 10 for number in range(21)]
    loss = [[sharp / 100 * (x * x + y * y) + 0.5 for x in axis] for y in axis]
    error = [[min(1.0, sharp / 200 * (x * x + y * y) + 0.1) for x in axis] for y in axis]
    landscape = {"axis": axis, "loss": loss, "error": error, "seed": 0}
    return {"eigenvalue": sharp, "residual": 1e-3, "examples": 256, "split": "train", "landscape": landscape}
