"""What a method's step holds at its peak, in copies of the parameters beyond plain SGD's peak.

    python benchmarks/memory.py                  seconds on 1 core
    python benchmarks/memory.py --device cuda

A multilayer perceptron of ten million parameters makes a few steps on four examples, so that parameters are nearly all
there is to hold. On the CPU the tensors that live are counted after every operation; on a GPU it is
torch.cuda.max_memory_allocated. Printed: the copies, and the bar they are held to.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bisam_ray.config import resolve
from bisam_ray.optim.comm import Solo
from bisam_ray.optim.sampa import Parallel
from bisam_ray.training import engine, models
from bisam_ray.training.task import Classification

METHODS = {"sam": 1, "bisam-tanh": 1, "lets-sam": 2, "lets-bisam-tanh": 3, "asam": None, "esam": None, "sampa": None}
BATCH, INPUTS, CLASSES = 4, 64, 10
SLACK = 0.02  # what is not a copy of the parameters: activations, statistics, numbers


def train(method: str, width: int, steps: int, device: torch.device, **options: Any) -> int:
    """Make a model and a few steps of a method, as the engine would; the bytes of the parameters."""
    config = resolve({"method": method, "data.batch_size": BATCH, **options})
    layers = [layer for inputs in (INPUTS, width, width, width) for layer in models.hidden(inputs, width)]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES)).to(device)
    params = list(model.parameters())
    base = engine.base_optimizer(config.optim, params)
    radius = engine.radius_policy(config, params, base, 100, Solo())

    def evaluate(batch: Any) -> engine.Losses:
        return Classification().losses(config.optim, model(batch[0]), batch[1])

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(BATCH, INPUTS, device=device), torch.randint(CLASSES, (BATCH,), device=device)

    step = engine.schedule(config, params, base, evaluate, radius, model=model)
    ahead = {"following": draw} if isinstance(step, Parallel) else {}
    for _ in range(steps):
        step(draw(), hyper=draw, **ahead)
    return sum(p.nbytes for p in params)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that were made in it and still live: `peak` is the most, after any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        for made in tree_leaves(found):
            if isinstance(made, torch.Tensor):
                storage = made.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return found


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that `run` held at once."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with Live() as live:
        run()
    return live.peak


def copies(method: str, width: int = 256, steps: int = 3, device: str = "cpu", **options: Any) -> float:
    """Copies of the parameters that a method holds at its peak, beyond what SGD holds at its own."""
    where, sizes = torch.device(device), []

    def run(name: str, **given: Any) -> int:
        return peak_bytes(lambda: sizes.append(train(name, width, steps, where, **given)), where)

    return (run(method, **options) - run("sgd")) / sizes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=1820)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hardware = (
        torch.cuda.get_device_name()
        if options.device.startswith("cuda")
        else f"{os.cpu_count()} CPUs {platform.machine()}, 1 thread"
    )
    print(f"{datetime.date.today()}  {hardware}  torch {torch.__version__}  Python {platform.python_version()}")
    print("copies of the parameters, at the peak of a step, beyond SGD's (parameters, momentum, gradient)")
    for method, bar in METHODS.items():
        found = copies(method, options.width, device=options.device)
        verdict = "" if bar is None else f"   bar {bar} {'met' if found <= bar + SLACK else 'MISSED'}"
        print(f"  {method:16} {found:5.2f}{verdict}", flush=True)


if __name__ == "__main__":
    main()
