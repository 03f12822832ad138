"""What a step costs, as a multiple of an SGD step on the same model and batch.

    python benchmarks/step_cost.py                                    all models and methods, half an hour on 1 core
    python benchmarks/step_cost.py --models cnn --methods sam bisam-tanh --rounds 50
    python benchmarks/step_cost.py --device cuda
    python benchmarks/step_cost.py --clock cpu                        on a machine that others use too

The steps are those of the engine. In every round each method makes a few of them, the methods in an order that
rotates; a ratio compares two times of the same round, so that a machine whose speed drifts does not decide. Printed:
the median time of an SGD step, then for each method the median ratio, its quartiles, and the bar it is held to.

    cnn         the engine's own, on 1×8×8 images
    resnet20    pytorchcv's (pip install '.[models]'), on 3×32×32 images
    mlp         four hidden layers of 1,700 with batch norm, 10.0 million parameters, on 1×28×28 images
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bisam_ray.config import resolve
from bisam_ray.optim.comm import Solo
from bisam_ray.optim.sampa import Parallel
from bisam_ray.training import engine, models
from bisam_ray.training.task import Classification


@dataclass(frozen=True)
class Method:
    """A preset with options, and the most it may cost: on convolutional networks, on the MLP (None: no bar)."""

    preset: str
    options: dict[str, Any] = field(default_factory=dict)
    conv: float | None = None
    mlp: float | None = None


@dataclass(frozen=True)
class Model:
    """Steps of a method in a round: a multiple of 4, for the methods that learn at every fourth step."""

    shape: tuple[int, ...]
    rounds: int
    steps: int


METHODS = {
    "sgd": Method("sgd"),
    "sam": Method("sam", {}, 2.05, 2.05),
    "asam": Method("asam", {}, 2.15, 2.15),
    "bisam-tanh": Method("bisam-tanh", {}, 2.08, 2.08),
    "bisam-log": Method("bisam-log", {}, 2.08, 2.08),
    "lets-sam": Method("lets-sam", {}, 3.15, 3.4),
    "lets-sam every=4": Method("lets-sam", {"lets.every": 4}, 2.4, 2.4),
    "lets-bisam-tanh": Method("lets-bisam-tanh", {}, 3.9, 3.9),
    "lets-bisam-tanh every=4": Method("lets-bisam-tanh", {"lets.every": 4}, 2.75, 2.75),
    "esam": Method("esam"),
    "sampa": Method("sampa"),  # one process plays both roles
}
MODELS = {"cnn": Model((1, 8, 8), 200, 20), "resnet20": Model((3, 32, 32), 16, 4), "mlp": Model((1, 28, 28), 30, 4)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BATCH, CLASSES = 128, 10
TINY = 1e-6  # a learning rate at which thousands of steps on one batch leave the model, and so the work, what it was


def build(name: str) -> nn.Module:
    shape = MODELS[name].shape
    if name == "mlp":
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (shape[1] * shape[2], 1700, 1700, 1700):
            layers += models.hidden(inputs, 1700)
        return nn.Sequential(*layers, nn.Linear(1700, CLASSES))
    return models.build({"cnn": "cnn", "resnet20": "pytorchcv/resnet20_cifar10"}[name], shape, CLASSES)


def stepper(method: Method, model: nn.Module, shape: tuple[int, ...], batch_size: int = BATCH) -> Callable[[], None]:
    """A function that makes one step of a method, as the engine would, on random data."""
    learned = {"optim.warmup": 0.0} if method.preset.startswith("lets") else {}
    config = resolve(
        {"method": method.preset, "data.batch_size": batch_size, "optim.lr": TINY, **learned, **method.options}
    )
    params = list(model.parameters())
    base = engine.base_optimizer(config.optim, params)
    radius = engine.radius_policy(config, params, base, 1_000_000, Solo())

    def evaluate(batch: Any) -> engine.Losses:
        return Classification().losses(config.optim, model(batch[0]), batch[1])

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        device = params[0].device
        return torch.randn(batch_size, *shape, device=device), torch.randint(CLASSES, (batch_size,), device=device)

    step, batch, hyper = engine.schedule(config, params, base, evaluate, radius, model=model), draw(), draw()
    ahead = {"following": lambda: batch} if isinstance(step, Parallel) else {}
    return lambda: step(batch, hyper=lambda: hyper, **ahead) and None


def measure(
    names: Iterable[str], model: str, rounds: int, steps: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds a step of every method, one per round."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    step, times = {}, {}
    for name in names:
        torch.manual_seed(0)
        network = build(model).to(device, memory_format=torch.channels_last).train()
        step[name], times[name] = stepper(METHODS[name], network, MODELS[model].shape), []
        for _ in range(5):
            step[name]()
    order = list(step)
    for _ in range(rounds):
        for name in order:
            wait()
            began = clock()
            for _ in range(steps):
                step[name]()
            wait()
            times[name].append((clock() - began) / steps)
        order.append(order.pop(0))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the time that this process ran")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    hardware = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPUs {platform.machine()}, 1 thread"
    )
    print(f"{datetime.date.today()}  {hardware}  torch {torch.__version__}  Python {platform.python_version()}")
    names = ["sgd", *(name for name in options.methods if name != "sgd")]
    for model in options.models:
        rounds, steps = options.rounds or MODELS[model].rounds, MODELS[model].steps
        times = measure(names, model, rounds, steps, device, CLOCKS[options.clock])
        middle = statistics.median(times["sgd"])
        print(
            f"{model}: an SGD step takes {1e3 * middle:.2f} ms ({options.clock} clock); "
            f"n={rounds} rounds of {steps} steps, batch {BATCH}"
        )
        for name in names[1:]:
            ratios = [t / sgd for t, sgd in zip(times[name], times["sgd"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            bar = METHODS[name].mlp if model == "mlp" else METHODS[name].conv
            verdict = "" if bar is None else f"   bar {bar:.2f} {'met' if middle <= bar else 'MISSED'}"
            print(f"  {name:24} {middle:5.2f}  [{low:.2f}, {high:.2f}]{verdict}", flush=True)


if __name__ == "__main__":
    main()
