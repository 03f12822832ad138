"""Images a second of a training step, next to other code: same process, same model, batch and data, in turns.

    pip install '.[models]' pytorch_optimizer sam-pytorch   what is not installed is left out, with a line
    python benchmarks/throughput.py                         resnet56 on 1 core, six minutes
    python benchmarks/throughput.py --device cuda --models resnet56 wrn28-10 --profile FILE     bf16
    python benchmarks/throughput.py --quick                 seconds; says nothing about speed

Who the contenders are: contenders.py. Whoever computes the same must come to the same weights before anything is timed:
in float64, three steps. The steps see one batch that lies on the device; what an epoch has beside them (selection,
augmentation, metrics, learning rate) is in loop_overhead.py. Needs neither pydantic nor Ray.

In every round each contender makes a few steps, in an order that rotates, and so does what achieved FLOP/s
(convolutions and matrix products, as torch.utils.flop_counter sees them) are held to: see `ceiling`. A ratio compares
two times of the same round; brackets are 95 % intervals of the median. Bars, on a GPU: BiSAM ÷ SGD ≤ 2.05;
official ÷ BiSAM ≥ 2 for resnet56; ≥ 45 % of the ceiling for wrn28-10; the GPU busy for ≥ 95 % of a step.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders import MAKERS, MODELS, PEERS, SAME, Forward, Maker, build, check, installed, noise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TINY = 1e-6  # a learning rate at which many steps on one batch leave the model, and so the work, what it was
CEILING = "ceiling"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def network(model: nn.Module, options: argparse.Namespace) -> Forward:
    """Images → logits in float32."""
    compiled = torch.compile(model) if options.compile else model
    device = torch.device(options.device).type

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
            return compiled(x).float()

    return forward


def stepper(maker: Maker, name: str, options: argparse.Namespace) -> Callable[[], Any]:
    """One step of a contender on its own copy of the network, and on everybody's batch."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build(name).to(device).to(memory_format=torch.channels_last)
    step = maker(model, network(model, options), TINY)
    batch, hyper = (noise(options.batch, device, seed) for seed in (1, 2))
    return lambda: step(batch, hyper)


def flops(maker: Maker, name: str, options: argparse.Namespace) -> float:
    """Of a step: convolutions and matrix products, two for every multiply-add. Counted on four images: it is linear."""
    small = argparse.Namespace(**{**vars(options), "batch": 4, "compile": False})
    step = stepper(maker, name, small)
    step()  # a learned radius begins to cost with its second step
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() * options.batch / 4


def ceiling(options: argparse.Namespace) -> tuple[Callable[[], Any], float]:
    """What the device can do in the precision of the networks, and how many FLOP it is. On a GPU the product of two
    large matrices; on a CPU a convolution of many channels: MKL's products reach less than half of it on one of AMD's.
    """
    dtype = getattr(torch, options.precision)
    if options.device == "cuda":
        size = 8192
        left, right = (torch.randn(size, size, device="cuda").to(dtype) for _ in "ab")
        return lambda: left @ right, 2.0 * size**3
    images, channels, side = 1 if options.quick else 16, 256, 32
    x = torch.randn(images, channels, side, side).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1), 2.0 * images * (side * channels * 3) ** 2


def measure(
    makers: dict[str, Maker], name: str, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, Callable[[], Any]]]:
    """Seconds a step, one per round; bytes at the peak of a step beyond what was there before; the steps."""
    cuda = options.device == "cuda"
    wait, clock = torch.cuda.synchronize if cuda else lambda: None, CLOCKS[options.clock]
    steps: dict[str, Callable[[], Any]] = {}
    peak: dict[str, float] = {}
    for contender, maker in makers.items():
        before = torch.cuda.memory_allocated() if cuda else 0
        steps[contender] = stepper(maker, name, options)
        for _ in range(10 if cuda else 2):
            steps[contender]()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            steps[contender]()
            peak[contender] = torch.cuda.max_memory_allocated() - before
    turns = {**steps, CEILING: ceiling(options)[0]}
    turns[CEILING]()
    times: dict[str, list[float]] = {contender: [] for contender in turns}
    order = list(turns)
    for _ in range(options.rounds):
        for contender in order:
            wait()
            began = clock()
            for _ in range(options.steps):
                turns[contender]()
            wait()
            times[contender].append((clock() - began) / options.steps)
        order.append(order.pop(0))
    return times, peak, steps


def median_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): the order statistics between which the median of any distribution lies with at least this
    probability. Below six values no two do: then the smallest and the largest."""
    values = sorted(values)
    n, cut = len(values), 0
    outside = 2 / 2**n
    while (outside := outside + 2 * math.comb(n, cut + 1) / 2**n) <= 1 - confidence:
        cut += 1
    return statistics.median(values), values[cut], values[n - 1 - cut]


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    return median_interval(a / b for a, b in zip(above, below, strict=True))


def told(found: tuple[float, float, float]) -> str:
    return f"{found[0]:5.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def top(step: Callable[[], Any], seconds: float, options: argparse.Namespace, rows: int = 12) -> tuple[str, float]:
    """The kernels (on the CPU: operators) that a step's time goes to; and the share of `seconds`, a step's time without
    the profiler, that the GPU is busy."""
    cuda = options.device == "cuda"
    kinds = torch.profiler.ProfilerActivity
    count = 10 if cuda else 2
    for _ in range(2):  # the first one starts the profiler
        with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if cuda else [])]) as profile:
            for _ in range(count):
                step()
            if cuda:
                torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [e for e in profile.key_averages() if e.device_type == kind and not (cuda and e.is_user_annotation)]
    events = sorted((e for e in events if getattr(e, spent) > 0), key=lambda e: -getattr(e, spent))
    total = sum(getattr(e, spent) for e in events)
    lines = [
        f"  {took / total:6.1%} {took / count / 1e3:10.3f} ms {e.count / count:8.0f} calls  {e.key[:90]}"
        for e in events[:rows]
        for took in [getattr(e, spent)]
    ]
    return "\n".join(lines), total / count / 1e6 / seconds


def hardware(device: str, threads: int = 1) -> str:
    """Date, machine and versions: the first line of a result."""
    machine = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{os.cpu_count()} CPUs {platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    )
    allocator = "".join(f"  {k}={v}" for k, v in os.environ.items() if k.startswith("MALLOC_"))
    versions = f"torch {torch.__version__}  Python {platform.python_version()}"
    return f"{datetime.date.today()}  {machine}  {versions}{allocator}"


def report(name: str, makers: dict[str, Maker], options: argparse.Namespace) -> str:
    """The table of a network, printed; returned: the profiles of BiSAM's step and of the official one."""
    times, peak, steps = measure(makers, name, options)
    work = {contender: flops(maker, name, options) for contender, maker in makers.items()}
    most = ceiling(options)[1]
    middle = {contender: statistics.median(seconds) for contender, seconds in times.items()}
    print(
        f"{name}, batch {options.batch}, {options.precision}{', compiled' if options.compile else ''}: "
        f"n={options.rounds} rounds of {options.steps} steps, {options.clock} clock; "
        f"ceiling {most / middle[CEILING] / 1e9:,.0f} GFLOP/s"
    )
    print(f"  {'':18} images/s   ms a step   time ÷ SGD          official-tanh ÷ it   GFLOP/s  of ceiling  peak MiB")
    for contender in makers:
        seconds = times[contender]
        against = ratio(times["official-tanh"], seconds) if "official-tanh" in times else None
        share = statistics.median(
            work[contender] / t / (most / c) for t, c in zip(seconds, times[CEILING], strict=True)
        )
        print(
            f"  {contender:18} {options.batch / middle[contender]:8.1f}  {1e3 * middle[contender]:10.2f}   "
            f"{told(ratio(seconds, times['sgd'])):20} {told(against) if against else '':20} "
            f"{work[contender] / middle[contender] / 1e9:8,.0f}  {share:10.1%}  "
            f"{f'{peak[contender] / 2**20:8,.0f}' if peak else '       -'}",
            flush=True,
        )
    parts = []
    for contender in [c for c in ("bisam-tanh", "official-tanh", "sgd") if c in makers]:
        table, busy = top(steps[contender], middle[contender], options)
        told_busy = f", GPU busy {busy:.1%} of it" if options.device == "cuda" else ""
        parts.append(f"{name}, {contender}: {1e3 * middle[contender]:.2f} ms a step{told_busy}\n{table}\n")
        print(f"  {contender}: {parts[-1].splitlines()[0].partition(': ')[2]}")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["resnet56"])
    parser.add_argument("--methods", nargs="*", choices=[*MAKERS, *PEERS], help="default: all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="of a contender in a round; default: 1, on a GPU 20")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: float32, on a GPU bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, for everybody")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the time that this process ran")
    parser.add_argument("--profile", type=Path, help="a file for the kernels that take most time")
    parser.add_argument("--quick", action="store_true", help="a tiny network, eight images, two rounds")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    options.precision = options.precision or ("bfloat16" if cuda else "float32")
    options.steps = options.steps or (20 if cuda else 1)
    if options.quick:
        options.models, options.batch, options.rounds, options.steps = ["cnn"], 8, 2, 1
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True

    print(hardware(options.device, options.threads))
    found = installed()
    makers = {n: m for n, m in found.items() if n == "sgd" or options.methods is None or n in options.methods}
    apart = check(found, torch.device(options.device))
    print(f"same weights as ours, float64, relative: {', '.join(f'{n} {apart[n]:.0e}' for n in SAME if n in apart)}")
    profiles = []
    for name in options.models:
        profiles.append(report(name, makers, options))
    if options.profile:
        options.profile.write_text(hardware(options.device, options.threads) + "\n\n" + "\n".join(profiles))


if __name__ == "__main__":
    main()
