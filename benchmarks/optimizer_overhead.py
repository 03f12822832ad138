"""What SAM costs beside its two gradients, next to other packages: ten million parameters in 200 tensors.

    pip install pytorch_optimizer sam-pytorch          a package that is not installed is left out, with a line
    python benchmarks/optimizer_overhead.py            about a minute on 1 core
    python benchmarks/optimizer_overhead.py --device cuda

Timed: to the perturbed weights, back from them, and the base optimizer's step (SGD with momentum, fused, the same for
everybody), with zero_grad where it belongs to the step. Not timed: handing over the gradients, which are given. Floor:
the fused SGD step alone. In every round each package makes a step, in an order that rotates; a ratio compares two times
of the same round. Before, all must come to the same weights in a few steps of a problem whose gradient depends on them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bisam_ray.optim import SAM

TENSORS, SIZE, RHO = 200, (200, 250), 0.05
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "fused": True}
BAR = 2.5  # times ours
Step = Callable[[], float]
Gradients = Callable[[int], list[Tensor]]  # of the first pass (0) and of the second (1)


def give(params: list[Tensor], gradient: list[Tensor]) -> None:
    for p, g in zip(params, gradient, strict=True):
        p.grad = g


def floor(params: list[Tensor], gradients: Gradients, now: Callable[[], float]) -> Step:
    """The base optimizer alone."""
    optimizer = torch.optim.SGD(params, **SGD)

    def step() -> float:
        give(params, gradients(1))
        began = now()
        optimizer.step()
        optimizer.zero_grad()
        return now() - began

    return step


def two_calls(maker: Any, params: list[Tensor], gradients: Gradients, now: Callable[[], float]) -> Step:
    """first_step, second_step: this package and pytorch_optimizer."""
    optimizer = maker(params, torch.optim.SGD, rho=RHO, **SGD)

    def step() -> float:
        give(params, gradients(0))
        began = now()
        optimizer.first_step(zero_grad=True)
        middle = now()
        give(params, gradients(1))
        resumed = now()
        optimizer.second_step(zero_grad=True)
        return middle - began + now() - resumed

    return step


def closures(maker: Any, params: list[Tensor], gradients: Gradients, now: Callable[[], float]) -> Step:
    """step(closure) around a given optimizer: sam-pytorch. What the closure does is not timed, zero_grad included."""
    base = torch.optim.SGD(params, **SGD)
    optimizer = maker(params, base, rho=RHO)

    def step() -> float:
        passes = iter((0, 1))
        outside = 0.0

        def closure() -> Tensor:
            nonlocal outside
            began = now()
            give(params, gradients(next(passes)))
            loss = torch.zeros(())
            outside += now() - began
            return loss

        began = now()
        optimizer.step(closure)
        return now() - began - outside

    return step


PEERS = {"pytorch_optimizer": ("pytorch_optimizer", two_calls), "sam-pytorch": ("sam", closures)}  # module, form


def contenders() -> dict[str, Any]:
    """Name → function of (params, gradients, now) that makes a step."""
    found: dict[str, Any] = {"SGD alone": floor, "bisam_ray": partial(two_calls, SAM)}
    for name, (module, form) in PEERS.items():
        try:
            maker = importlib.import_module(module).SAM
            found[f"{name} {importlib.metadata.version(name)}"] = partial(form, maker)
        except ImportError:
            print(f"  {name}: not installed, left out (pip install {name})")
    return found


def some(seed: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SIZE, generator=generator).to(device) for _ in range(TENSORS)]


def same_weights(makers: dict[str, Any], device: torch.device) -> None:
    """Refuse a package that is not at our weights after three steps down ½‖w + c‖²."""
    target, ours = some(1, device), []
    for name in sorted((n for n in makers if n != "SGD alone"), key=lambda n: n != "bisam_ray"):
        params = [torch.nn.Parameter(w) for w in some(0, device)]
        step = makers[name](params, partial(descending, params, target), time.perf_counter)
        for _ in range(3):
            step()
        ours = ours or params
        for w, expected in zip(params, ours, strict=True):
            torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-6, msg=f"{name}: other weights than ours")


def descending(params: list[Tensor], target: list[Tensor], _: int) -> list[Tensor]:
    return [p.detach() + c for p, c in zip(params, target, strict=True)]


def measure(rounds: int, device: torch.device, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of a step, one per round."""
    makers = contenders()
    same_weights(makers, device)
    gradients = [some(1, device), some(2, device)]
    steps = {}
    for name, maker in makers.items():
        steps[name] = maker([torch.nn.Parameter(w) for w in some(0, device)], gradients.__getitem__, now)
        for _ in range(3):
            steps[name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        for name in order:
            times[name].append(steps[name]())
        order.append(order.pop(0))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: the time that this process ran")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    clock = time.perf_counter if options.clock == "wall" else time.process_time

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    hardware = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPUs {platform.machine()}, 1 thread"
    )
    print(f"{datetime.date.today()}  {hardware}  torch {torch.__version__}  Python {platform.python_version()}")
    times = measure(options.rounds, device, now)
    size = TENSORS * SIZE[0] * SIZE[1]
    print(f"{size:,} parameters in {TENSORS} tensors, n={options.rounds} rounds, {options.clock} clock: ms, times ours")
    for name, seconds in times.items():
        ratios = [t / ours for t, ours in zip(seconds, times["bisam_ray"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        peer = name not in ("SGD alone", "bisam_ray")
        verdict = f"   bar {BAR} {'met' if middle >= BAR else 'MISSED'}" if peer else ""
        print(f"  {name:24} {1e3 * statistics.median(seconds):6.2f}  {middle:5.2f}  [{low:.2f}, {high:.2f}]{verdict}")


if __name__ == "__main__":
    main()
