"""What a step costs, as a multiple of an SGD step on the same model and batch.

    python benchmarks/step_cost.py                       both models, 200 and 12 rounds, about 4 minutes on 2 cores
    python benchmarks/step_cost.py --models cnn --rounds 50 --device cuda

In every round each method makes a few steps, in turn; a ratio compares two times of the same round, so that a
machine whose speed drifts does not decide. Printed: median ratio, its quartiles, and the bar it is held to.
ResNet-20 is pytorchcv's (pip install '.[models]').
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from bisam_ray.config import resolve
from bisam_ray.optim.comm import Solo
from bisam_ray.optim.schedule import Sequential
from bisam_ray.training import engine, models

METHODS = {"sgd": 1.0, "sam": 2.15, "bisam-tanh": 2.15, "bisam-log": 2.15, "lets-sam": 3.4, "lets-bisam-tanh": 4.0}
MODELS = {"cnn": ((1, 8, 8), 200, 20), "pytorchcv/resnet20_cifar10": ((3, 32, 32), 12, 1)}  # shape, rounds, steps
BATCH = 128


def stepper(method: str, name: str, shape: tuple[int, ...], device: torch.device) -> Callable[[], None]:
    """A function that makes one step of a method, as the engine would, on random data."""
    config = resolve({"method": method, "data.batch_size": BATCH})
    torch.manual_seed(0)
    model = models.build(name, shape, 10).to(device, memory_format=torch.channels_last).train()
    params = list(model.parameters())
    base = engine.base_optimizer(config.optim, params)
    radius = engine.radius_policy(config, params, base, 1_000_000, Solo())
    batch = torch.randn(BATCH, *shape, device=device), torch.randint(10, (BATCH,), device=device)
    hyper = torch.randn(BATCH, *shape, device=device), torch.randint(10, (BATCH,), device=device)
    step = Sequential(
        params,
        base,
        lambda b: engine.losses(config.optim, model(b[0]), b[1]),
        radius,
        config.optim.geometry,
        model=model,
    )
    return lambda: step(batch, hyper=lambda: hyper) and None


def measure(name: str, rounds: int, steps: int, shape: tuple[int, ...], device: torch.device) -> dict[str, list[float]]:
    """Ratios to SGD of every method, one per round."""
    makers = {method: stepper(method, name, shape, device) for method in METHODS}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for make in makers.values():
        for _ in range(3):
            make()
    ratios: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        times = {}
        for method, make in makers.items():
            wait()
            began = time.perf_counter()
            for _ in range(steps):
                make()
            wait()
            times[method] = (time.perf_counter() - began) / steps
        for method in METHODS:
            ratios[method].append(times[method] / times["sgd"])
    print(f"{name}: SGD {1e3 * times['sgd']:.2f} ms a step")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    hardware = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPUs {platform.machine()}, 1 thread"
    )
    print(f"{datetime.date.today()}  {hardware}  torch {torch.__version__}  batch {BATCH}")
    for name in options.models:
        shape, rounds, steps = MODELS[name]
        rounds = options.rounds or rounds
        for method, ratios in measure(name, rounds, steps, shape, device).items():
            low, middle, high = statistics.quantiles(ratios, n=4)
            verdict = (
                ""
                if method == "sgd"
                else f"   bar {METHODS[method]:.2f} {'met' if middle <= METHODS[method] else 'MISSED'}"
            )
            print(f"  {method:16} {middle:5.2f}  [{low:.2f}, {high:.2f}]  n={rounds}{verdict}", flush=True)


if __name__ == "__main__":
    main()
