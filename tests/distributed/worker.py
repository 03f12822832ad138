"""Every case of this folder, in four gloo processes: `python worker.py FOLDER` leaves there what each of them saw.

First two worlds of two processes beside each other, which share the cases of that size, then one world of four.
One process imports everything and forks: the imports are most of the time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bisam_ray.config import resolve
from bisam_ray.optim import LETS, SAM, FixedRadius, Losses, Sequential, cross_entropy, lower_bound
from bisam_ray.optim.comm import Comm, Distributed, Roles
from bisam_ray.training import engine

# ---- the step: whose examples share a perturbation

BATCH, STEPS = 8, 6


@dataclass(frozen=True)
class Case:
    """A method in double precision; `lets` learns the radius, `options` are those of the step."""

    objective: str = "cross_entropy"
    lets: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    scope: str | int = "local"

    def on(self, scope: str | int) -> Case:
        return replace(self, scope=scope)


SECANT = {"warmup": 0.3}
METHODS = {
    "sam": Case(),
    "bisam-tanh": Case("tanh"),
    "lets-sam": Case(lets=SECANT),
    "lets-asam": Case(lets=SECANT, options={"geometry": "adaptive"}),
    "lets-bisam-log": Case("log", SECANT),
    "exact": Case(lets={"curvature": "exact"}),
    "same batch": Case(lets={"curvature": "exact", "train_batch": "same", "gap_ema": 0.5}),
    "validation": Case("tanh", {"goal": "validation"}),
    "finite difference": Case(lets={"curvature": "finite_difference"}),
    "diagonal": Case("tanh", {"curvature": "diagonal"}),
    "groups": Case("log", {"curvature": "exact", "groups": [0, 1, 0, 1]}),
    "groups, finite difference": Case(lets={"curvature": "finite_difference", "groups": [0, 1, 2, 3]}),
    "learned objective": Case("tanh", {"curvature": "exact", "learn": {"mu": 10.0, "alpha": 0.1}}),
    "direction": Case("tanh", SECANT, {"every": 2, "between": "direction"}),
    "descent": Case(lets=SECANT, options={"every": 2, "between": "descent"}),
    "clip": Case("log", SECANT, {"clip": 0.3}),
}
# world → scopes, each with the scope of one process that is the same
SCOPES: dict[int, dict[str | int, str | int]] = {
    2: {"global": "global", "local": 4, 2: 2},
    4: {"global": "global", "local": 2, 1: 1, 4: 4},  # 4: pairs of processes share a perturbation
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(BATCH, 4, generator=draws, dtype=torch.float64), torch.randint(3, (BATCH,), generator=draws)


def part(batch: tuple[Tensor, Tensor], comm: Comm) -> tuple[Tensor, Tensor]:
    x, y = (t.tensor_split(comm.world)[comm.rank] for t in batch)
    return x, y


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def train(case: Case, comm: Comm) -> dict[str, Tensor]:
    """Weights and logarithms of what is learned, after every step."""
    model = network()
    params = list(model.parameters())
    base = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2)
    lets = None if case.lets is None else LETS(params, base, 0.1, total_steps=STEPS, comm=comm, **case.lets)

    def evaluate(batch: tuple[Tensor, Tensor]) -> Losses:
        logits = model(batch[0])
        descent = cross_entropy(logits, batch[1])
        if case.objective == "cross_entropy":
            return Losses(descent, descent)
        return Losses(lambda: lower_bound(logits, batch[1], case.objective, **(lets.learned if lets else {})), descent)

    step = Sequential(
        params, base, evaluate, lets or FixedRadius(0.1), scope=case.scope, model=model, comm=comm, **case.options
    )
    weights, logs = [], []
    for _, batch, hyper in zip(range(STEPS), batches(1), batches(2), strict=False):
        step(part(batch, comm), hyper=lambda hyper=hyper: part(hyper, comm))
        weights.append(flat(model))
        logs.append(lets.log.clone() if lets else torch.zeros(0))
    return {"weights": torch.stack(weights), "logs": torch.stack(logs)}


# ---- SAMPa: two roles


def plain(shape: tuple[int, ...], classes: int) -> nn.Module:
    """With dropout: its masks are those of a batch's first position, and differ between the halves of one."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Dropout(0.1), nn.Linear(24, classes))


class Einsum(nn.Module):
    """A layer whose gradient does not lie in memory as its weight does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", x, self.weight)


def transposed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Einsum(64, 24), nn.Tanh(), Einsum(24, classes))


LEARNED = {"optim.radius": "learned", "optim.warmup": 0.25}
SAMPA: dict[str, dict[str, Any]] = {
    "sampa": {},
    "λ = 0": {"optim.lam": 0.0},
    "without momentum": {"optim.momentum": 0.0, "optim.weight_decay": 0.0},
    "bisam-log": {"method": "sampa-bisam-log"},
    "learned": LEARNED,
    "learned bisam-log": {"method": "sampa-bisam-log", "model.name": f"{__name__}:transposed", **LEARNED},
    "lookahead": {"optim.wrapper": "lookahead", **LEARNED},
    "adamw": {"optim.base": "adamw", "optim.lr": 1e-3},
    "accumulate": {"scale.accumulate": 2, **LEARNED},
    "clip": {"optim.clip": 0.5, **LEARNED},
    "transposed": {"model.name": f"{__name__}:transposed"},
    "cnn": {"model.name": "cnn", **LEARNED},  # batch norm, and weights in channels_last
    "float16": {"model.name": "mlp", "scale.precision": "float16"},
}
SAMPA_OF_FOUR = ("transposed", "learned bisam-log", "cnn")


def configuration(case: str) -> Any:
    return resolve({"method": "sampa", "model.name": f"{__name__}:plain", "train.epochs": 3}, WORK, SAMPA[case])


WORK = {"data.batch_size": 96, "data.label_noise": 0.2}  # 10 steps an epoch, 1,000 examples: borders are crossed


def sampa(config: Any, comm: Comm | None = None, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """The state after training; and the first position of every batch, in the order in which they were seen."""
    seen: list[int] = []
    original = engine.schedule

    def recording(config: Any, params: Any, base: Any, evaluate: Callable[[Any], Losses], *args: Any, **kw: Any) -> Any:
        def watched(batch: Any) -> Losses:
            seen.append(int(batch.position[0]))
            return evaluate(batch)

        return original(config, params, base, watched, *args, **kw)

    engine.schedule = recording
    try:
        *_, record = engine.run(config, comm, state)
    finally:
        engine.schedule = original
    metrics = {k: v for k, v in record.metrics.items() if k != "cost/seconds"}
    kept = {k: v for k, v in record.state().items() if k not in ("seconds", "metrics")}
    return {"state": kept, "metrics": metrics, "seen": seen}


# ---- data-parallel runs of the engine, stopped and continued

CONTINUED = {
    "exact": {"method": "lets-bisam-log", "lets.curvature": "exact"},
    "secant": {"method": "lets-sam", "optim.perturbation_scope": "global"},
}


def continued(case: str, comm: Comm) -> dict[str, Any]:
    """Three epochs, and the same continued after the first from what process 0 has saved."""
    config = resolve({"model.name": "mlp", "train.epochs": 3}, WORK, CONTINUED[case])
    states = [[r.state()] for r in engine.run(config, comm) if r.epoch == 3]
    for record in engine.run(config, comm):
        saved = [record.state()]
        dist.broadcast_object_list(saved)
        break
    *_, last = engine.run(config, comm, saved[0])
    return {"whole": states[0][0], "continued": last.state()}


# ---- a stranger's loop: DistributedDataParallel and optim.SAM


def stranger(scope: str, comm: Comm, **ddp_options: Any) -> dict[str, Any]:
    """Weights after every step of a loop with DistributedDataParallel, and the buffers at the end."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(4)] if ddp_options else []
    model = nn.Sequential(*norm, nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    ddp = DistributedDataParallel(model, **ddp_options)
    opt = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, weight_decay=1e-2, model=model)
    weights = []
    for _, batch in zip(range(STEPS), batches(1), strict=False):
        x, y = part(batch, comm)
        with ddp.no_sync() if scope == "local" else nullcontext():
            cross_entropy(ddp(x), y).backward()
        opt.first_step()
        cross_entropy(ddp(x), y).backward()
        opt.second_step()
        weights.append(flat(model))
    return {"weights": torch.stack(weights), "buffers": {k: b.clone() for k, b in model.named_buffers()}}


# ---- means


def means(comm: Distributed) -> dict[str, Any]:
    """Tensors of several types, layouts and sizes, averaged at once; and what is refused."""
    r = comm.rank
    tensors = [
        torch.tensor(1.0 + r),
        torch.full((2, 3), 2.0**-40 + r, dtype=torch.float64),
        torch.full((2,), 1.0 + r, dtype=torch.bfloat16),
        torch.arange(6.0).view(2, 3).t() * (1 + r),
        torch.empty(0),
    ]
    comm.mean_(tensors)
    comm.mean_([])
    try:
        comm.mean_([torch.ones(1), torch.tensor(r)])
    except TypeError as error:
        refused = str(error)
    alone = comm.subgroup(1)
    return {"tensors": tensors, "refused": refused, "alone": alone.world, "whole": comm.subgroup(comm.world) is comm}


def exchanged(roles: Roles) -> dict[str, Any]:
    """What both roles hand over: negative zeros, another type, another layout."""
    first = [torch.tensor([-0.0, 0.1, -0.0])]
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = [torch.tensor(0.3), weight.contiguous(memory_format=torch.channels_last)]
    return {"mine": (first, second), "found": roles.exchange([first, second][roles.role], first, second)}


# ---- who does what

Result = dict[str, Any]


def of_two() -> dict[str, Callable[[], Result]]:
    comm = Distributed()
    jobs: dict[str, Callable[[], Result]] = {}
    for name, case in METHODS.items():
        for scope in SCOPES[2]:
            jobs[f"{name}, {scope}"] = lambda case=case, scope=scope: train(case.on(scope), comm)
    roles = Roles()
    for name in SAMPA:
        jobs[f"sampa: {name}"] = lambda name=name: sampa(configuration(name), roles)
    for name in CONTINUED:
        jobs[f"continued: {name}"] = lambda name=name: continued(name, comm)
    for scope in ("local", "global"):
        jobs[f"ddp: {scope}"] = lambda scope=scope: stranger(scope, comm)
        for broadcast in (True, False):
            jobs[f"ddp: {scope}, {broadcast}"] = lambda scope=scope, broadcast=broadcast: stranger(
                scope, comm, broadcast_buffers=broadcast
            )
    jobs["means"] = lambda: means(comm)
    jobs["exchanged"] = lambda: exchanged(roles)
    return jobs


def of_four() -> dict[str, Callable[[], Result]]:
    comm = Distributed()
    jobs: dict[str, Callable[[], Result]] = {}
    for name, case in METHODS.items():
        for scope in SCOPES[4]:
            jobs[f"{name}, {scope}"] = lambda case=case, scope=scope: train(case.on(scope), comm)
    roles = Roles()
    for name in SAMPA_OF_FOUR:
        jobs[f"sampa: {name}"] = lambda name=name: sampa(configuration(name), roles)
    return jobs


def world(rank: int, size: int, store: str, listed: Callable[[], dict[str, Callable[[], Result]]], share: slice) -> Any:
    """Some of a list of cases, in a world of processes that meet at a file."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    found = {name: job() for name, job in list(listed().items())[share]}
    dist.barrier()
    dist.destroy_process_group()
    return found


def process(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    pair, rank = divmod(number, 2)
    twos = world(rank, 2, f"{folder}/store-{pair}", of_two, slice(pair, None, 2))
    fours = world(number, 4, f"{folder}/store", of_four, slice(None))
    torch.save({(2, rank): twos, (4, number): fours}, f"{folder}/{number}.pt")
    os._exit(0)  # past the interpreter's end, where gloo's threads now and then abort (pytorch/pytorch#179291)


def main(folder: str) -> int:
    """Four processes, all of them stopped when one fails."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # imports half of torch, here and not in each of them
    torch.multiprocessing.start_processes(process, (folder,), nprocs=4, start_method="fork")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(sys.argv[1]))
