"""Ledgers as a driver writes them, without a run: for tests of what reads them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from bisam_ray.config import Config, resolve
from bisam_ray.study.ledger import Ledger, Study, read

EPOCHS = 6
STEP = 1000.0
INJECTED = "<script>alert('x')</script>"


def run(
    ledger: Ledger,
    name: str,
    config: Config,
    *,
    phase: str,
    policy: str,
    arm: str,
    accuracies: Iterable[float | None],
    outcome: str = "completed",
    error: str | None = None,
    rhos: Iterable[float] = (),
    final: Mapping[str, float] | None = None,
    **more: Any,
) -> None:
    """One run of the ledger, as a driver writes it."""
    ledger.write(
        "begin",
        run=name,
        arm=arm,
        phase=phase,
        method=config.method,
        radius_policy=policy,
        seed=config.seed,
        digest=config.digest(),
        dataset="digits",
        config=config.model_dump(exclude_none=True),
        **{"replicate": None, "restart": None, "suggested": None, **more},
    )
    radii = list(rhos)
    epoch = 0
    for epoch, value in enumerate(accuracies, 1):
        metrics = {"train/loss": 1.0, "cost/gradients": epoch * STEP, "cost/seconds": 0.5 * epoch}
        if value is not None:
            metrics |= {"val/accuracy": value, "val/loss": 1.4 - value, "train/accuracy": min(1.0, 1.03 * value)}
        metrics |= {"sam/rho": radii[epoch - 1]} if radii else {}
        ledger.write("epoch", run=name, epoch=epoch, metrics=metrics)
    if outcome == "running":
        return
    known = {"final/val_accuracy": value, "final/test_accuracy": 0.9} if outcome == "completed" else {}
    metrics = known | dict(final or {})
    ledger.write("end", run=name, outcome=outcome, epoch=epoch, metrics=metrics, error=error, checkpoint=None)


def rising(best: float, epochs: int = EPOCHS) -> list[float]:
    return [best * epoch / epochs for epoch in range(1, epochs + 1)]


def begin(ledger: Ledger, kind: str) -> None:
    ledger.write(
        "study",
        study="synthetic",
        kind=kind,
        config=resolve({"method": "bisam-tanh"}).model_dump(exclude_none=True),
        space=[{"name": "bisam_tanh", "search": {"optim.rho": {"log": [0.02, 2]}}}],
        protocol={"trials": 6, "replicates": 2, "text": "1. Search.\n2. Compare."},
        versions={"torch": "2.9.1"},
        hardware="2 CPUs, x86_64",
    )


def write_search(ledger: Ledger, arm: str = "bisam_tanh searched") -> None:
    """Six trials: two completed, and one of each other kind."""
    trials: list[tuple[float, list[float | None], str, str | None]] = [
        (0.05, [*rising(0.5)], "completed", None),
        (0.12, [*rising(0.62)], "completed", None),
        (0.9, [*rising(0.2, 2)], "pruned", None),
        (1.5, [None], "diverged", "the training loss became nan in epoch 2"),
        (0.3, [], "failed", f"Traceback (most recent call last):\n  line\nValueError: {INJECTED}"),
        (0.4, [math.nan, 0.1], "killed", None),
    ]
    for number, (rho, accuracies, outcome, error) in enumerate(trials):
        suggested = {"optim.rho": rho, "optim.mu": 10.0 if number else 3.25}
        config = resolve({"method": "bisam-tanh"}, suggested)
        shared = {"phase": "search", "policy": "searched", "arm": arm, "suggested": suggested, "error": error}
        run(ledger, f"trial-{number}", config, accuracies=accuracies, outcome=outcome, **shared)


def write_finals(ledger: Ledger) -> None:
    for replicate in range(2):
        for restart in range(2):
            config = resolve({"method": "lets-bisam-tanh", "seed": 100 + replicate, "train.epochs": EPOCHS})
            config = resolve(config.model_dump(exclude_none=True), {"optim.rho": 0.05 * (restart + 1)})
            name = f"lets-r{replicate}-s{restart}"
            shared = {"phase": "final", "policy": "learned", "arm": "lets-bisam-tanh"}
            where = {"replicate": replicate, "restart": restart}
            rhos = [0.1 * (1 + replicate)] * EPOCHS
            run(ledger, name, config, accuracies=rising(0.6 + 0.02 * restart), rhos=rhos, **shared, **where)
        config = resolve({"method": "sgd", "seed": 100 + replicate})
        where = {"phase": "final", "policy": "none", "arm": "sgd <b>&", "replicate": replicate, "restart": 0}
        run(ledger, f"sgd-r{replicate}", config, accuracies=rising(0.4), **where)


def write_small(directory: Path) -> Study:
    """A comparison of three arms, two of them with finished replicates."""
    with Ledger(directory) as ledger:
        begin(ledger, "compare")
        write_search(ledger)
        write_finals(ledger)
        ledger.write("finish", outcome="completed")
    return read(directory)


SETTINGS = {"scheduler": "asha", "grace": 2, "rungs": [2], "controls": 2, "confirm": 2, "objectives": ["accuracy"]}


def write_big(directory: Path, trials: int, objectives: tuple[str, ...] = ("accuracy",), again: bool = True) -> Study:
    """Half of the trials are stopped at epoch 2, every tenth is a control; the two best are run again."""
    arm, settings = "bisam_tanh searched", {**SETTINGS, "objectives": list(objectives)}
    with Ledger(directory) as ledger:
        begin(ledger, "search")
        space = [{"name": "bisam_tanh", "fix": {"method": "bisam-tanh"}, "search": {"optim.rho": {"log": [0.02, 2]}}}]
        protocol = {"trials": trials, "settings": settings, "val_examples": 300}
        ledger.write("study", study="big", kind="search", space=space, protocol=protocol)
        shared = {"phase": "search", "policy": "searched", "arm": arm}
        for i in range(trials):
            rho, pruned, control = 0.02 + 1.98 * i / trials, i % 2 == 1, i % 10 == 0
            config = resolve({"method": "bisam-tanh", "train.epochs": EPOCHS}, {"optim.rho": rho})
            values = rising(0.5 + 0.4 * ((7 * i) % trials) / trials, 2 if pruned else EPOCHS)
            more = {"suggested": {"optim.rho": rho}, "number": i, "control": control}
            run(
                ledger,
                f"t{i}",
                config,
                accuracies=values,
                outcome="pruned" if pruned else "completed",
                **shared,
                **more,
            )
        best = sorted(range(0, trials, 2), key=lambda i: -((7 * i) % trials))[:2] if again else []
        for replicate in range(3):
            for place, i in enumerate(best):
                value = 0.8 + 0.02 * place + 0.01 * replicate  # the second one is better than it had looked
                where = {**shared, "phase": "final", "trial": f"t{i}", "replicate": replicate}
                config = resolve({"method": "bisam-tanh", "seed": 100 + replicate})
                run(ledger, f"t{i}-r{replicate}", config, accuracies=rising(value), **where)
        ledger.write("finish", outcome="completed")
    return read(directory)


KINDS = ("fixed", "warm-up", "searched", "learned", "around", "replayed")
FAMILIES = {"sam": 0.92, "asam": 0.93, "bisam-tanh": 0.95, "bisam-log": 0.945}
GAIN = {"fixed": 0.0, "warm-up": 0.005, "searched": 0.02, "learned": 0.025, "around": 0.03, "replayed": 0.022}


def named(family: str, kind: str) -> str:
    """An arm, as a comparison names it."""
    names = {"fixed": family, "learned": f"lets-{family}", "searched": f"{SPACES[family]} searched"}
    return names.get(kind, f"{family} {kind}")


SPACES = {"sam": "rho", "asam": "asam", "bisam-tanh": "bisam_tanh", "bisam-log": "bisam_log"}


def curve(top: float, epochs: int, noise: random.Random) -> list[float]:
    """Validation accuracy over training: steep, then flat, with noise."""
    return [min(1.0, top * (1 - 0.6 * math.exp(-4 * (e + 1) / epochs)) + noise.gauss(0, 0.006)) for e in range(epochs)]


def write_whole(directory: Path, families: Iterable[str] = FAMILIES, replicates: int = 5, trials: int = 12) -> Study:
    """A finished comparison: SGD, and six arms for each family."""
    noise, epochs = random.Random(7), 16
    with mock.patch("os.fsync"), Ledger(directory) as ledger:
        begin(ledger, "compare")
        for family in families:
            centre = {"asam": 1.0}.get(family, 0.15)
            for kind in ("searched", "around", "replayed"):
                arm = named(family, kind)
                for i in range(trials):
                    rho = centre * math.exp(noise.uniform(-2.3, 2.3) * (1.0 if kind == "searched" else 0.45))
                    off, length = abs(math.log(rho / centre / 1.3)), noise.choice((4, 4, 12, epochs, epochs))
                    values = curve(FAMILIES[family] - 0.03 * off**2, epochs, noise)[:length]
                    suggested = {"optim.rho": rho}
                    if family.startswith("bisam"):
                        suggested["optim.mu"] = noise.uniform(1, 20)
                    if family == "bisam-tanh":
                        suggested["optim.alpha"] = noise.choice((0.05, 0.1, 0.2))
                    config = resolve({"method": family, "train.epochs": epochs}, suggested)
                    run(
                        ledger,
                        f"{arm}-{i}".replace(" ", "-"),
                        config,
                        phase="search",
                        policy=kind,
                        arm=arm,
                        accuracies=values,
                        outcome="completed" if length == epochs else "pruned",
                        suggested=suggested,
                        number=i,
                    )
        for replicate in range(replicates):
            draw = noise.gauss(0, 0.01)
            write_arm(ledger, "sgd", "sgd", "none", 0.9 + draw, replicate, epochs, noise)
            for family in families:
                for kind in KINDS:
                    method = f"lets-{family}" if kind == "learned" else family
                    top = FAMILIES[family] + GAIN[kind] + draw
                    write_arm(ledger, named(family, kind), method, kind, top, replicate, epochs, noise)
        ledger.write("finish", outcome="completed")
    return read(directory)


def write_arm(
    ledger: Ledger, arm: str, method: str, kind: str, top: float, replicate: int, epochs: int, noise: random.Random
) -> None:
    """One replicate of an arm: two runs, of which the better one will be kept, or one after a search."""
    start = {"lets-asam": 0.3}.get(method, 0.05)
    for restart in range(1 if kind in ("searched", "around", "replayed") else 2):
        keys: dict[str, Any] = {"method": method, "seed": 100 + replicate, "train.epochs": epochs}
        keys |= {"optim.warmup": 0.25} if kind == "warm-up" else {}
        keys |= {"optim.rho": start * (restart + 1)} if kind == "learned" else {}
        values = curve(top, epochs, noise)
        rhos = []
        if kind in ("learned", "replayed"):
            end = 3 * start * math.exp(noise.gauss(0, 0.15))
            rhos = [end * (1 - math.exp(-(e + 1 + 2 * restart) / 4)) for e in range(epochs)]
        elif kind != "none":
            rhos = [start] * epochs
        test = min(1.0, top + noise.gauss(0, 0.006))
        final = {"final/val_even": values[-1], "final/val_odd": values[-2], "final/test_accuracy": test}
        name = f"{arm}-r{replicate}-s{restart}".replace(" ", "-")
        run(
            ledger,
            name,
            resolve(keys),
            phase="final",
            policy="fixed" if kind == "warm-up" else kind,
            arm=arm,
            accuracies=values,
            rhos=rhos,
            final={**final, "best/test_accuracy": test - 0.002},
            replicate=replicate,
            restart=restart,
        )
        if restart == 0:
            ledger.write("measure", run=name, what="flatness", values=flatness(20 * (1 - top) + 2, noise))


def flatness(eigenvalue: float, noise: random.Random) -> dict[str, Any]:
    """A bowl of a loss landscape."""
    axis = [i / 10 - 1 for i in range(21)]
    top = eigenvalue * math.exp(noise.gauss(0, 0.3))
    loss = [[0.05 + top * (x * x + 0.6 * y * y) for x in axis] for y in axis]
    error = [[min(0.9, value / (1 + value)) for value in row] for row in loss]
    landscape = {"axis": axis, "loss": loss, "error": error, "seed": 0}
    return {"eigenvalue": top, "residual": 0.01, "examples": 256, "split": "train", "landscape": landscape}
