"""Time and memory of SAM, BiSAM and LETS next to AdamW, as the network grows.

    pip install '.[text]' matplotlib
    python benchmarks/scaling.py --save             six networks, 25 minutes on 1 core, 14 GiB
    python benchmarks/scaling.py --device cuda --batch 32 --length 128 --rounds 20
    python benchmarks/scaling.py --clock cpu        on a machine that others use too
    python benchmarks/scaling.py --quick            seconds; says nothing about speed

BERT in its published sizes, for classification, with its vocabulary of 30,522 and its dropout; random tokens without
padding. Steps are those of the engine: AdamW as the base optimizer of all methods, float32 (on a GPU bfloat16 by
autocast), all passes over a batch draw the same dropout masks, a learned radius learns at every step, by the validation
loss, as it does on text.

Time: in every round each method makes a few steps, in an order that rotates; a ratio compares two times of the same
round. Memory: the peak of a step, on a CPU by counting the tensors that live after every operation (memory.py), on a
GPU torch.cuda.max_memory_allocated; beyond AdamW's own peak, in copies of the parameters. All methods share one
network, whose weights hardly move, and one AdamW: a peak is of these and of one method's state, gradients and
activations.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import harness
import torch
from memory import peak_bytes
from throughput import CLOCKS, TINY, hardware

from bisam_ray.config import Config, resolve
from bisam_ray.optim.comm import Solo
from bisam_ray.optim.step import Losses, StepStats
from bisam_ray.training import engine, language, memory
from bisam_ray.training.task import Classification
from bisam_ray.training.text import Tokens

METHODS = {"adamw": "sgd", "sam": "sam", "bisam-tanh": "bisam-tanh", "lets-sam": "lets-sam",
           "lets-bisam-tanh": "lets-bisam-tanh"}  # name → preset, with AdamW for its base optimizer  # fmt: skip
COLOURS = {**harness.COLOURS, "adamw": harness.COLOURS["sgd"], "lets-sam": "#56b4e9", "lets-bisam-tanh": "#cc79a7"}
MARKERS = {**harness.MARKERS, "adamw": "x", "lets-sam": "D", "lets-bisam-tanh": "v"}
VOCABULARY, CLASSES = 30_522, 2


@dataclass(frozen=True)
class Size:
    """A network, the rounds that it takes part in, and the steps of a method in a round."""

    layers: int
    width: int
    heads: int
    rounds: int
    steps: int = 1
    vocabulary: int = VOCABULARY


NETWORKS = {
    "tiny": Size(2, 128, 2, 11, 2),
    "mini": Size(4, 256, 4, 7),
    "small": Size(4, 512, 8, 5),
    "medium": Size(8, 512, 8, 5),
    "base": Size(12, 768, 12, 3),
    "large": Size(24, 1024, 16, 3),
}
QUICK = {"2 wide": Size(1, 2, 1, 2, vocabulary=100), "8 wide": Size(1, 8, 2, 2, vocabulary=100)}


@dataclass(frozen=True)
class Found:
    """What a method's step costs: gradients, seconds in every round, bytes at its peak."""

    gradients: float
    seconds: list[float]
    peak: float


def build(name: str, size: Size, length: int) -> torch.nn.Module:
    torch.manual_seed(0)
    tokens = Tokens(size.vocabulary, 0, None, None, encode=lambda *_: ([], []), decode=lambda _: "")  # none is read
    return language.bert(f"bert-{name}", size.layers, size.width, size.heads, (2, length), CLASSES, tokens).train()


def noise(seed: int, size: Size, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Token ids and segments (B, 2, T), classes, and the seed of the dropout masks."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, size.vocabulary, (options.batch, options.length), generator=draw)
    y = torch.randint(CLASSES, (options.batch,), generator=draw)
    return torch.stack([ids, torch.zeros_like(ids)], 1).to(options.device), y.to(options.device), seed


def settings(method: str, options: argparse.Namespace) -> Config:
    preset = METHODS[method]
    learned = {"optim.warmup": 0.0, "lets.goal": "validation"} if preset.startswith("lets") else {}
    optim = {"optim.base": "adamw", "optim.lr": TINY, "optim.weight_decay": 0.01}
    return resolve({"method": preset, "data.batch_size": options.batch, **optim, **learned})


def moving(model: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW with its moving averages, after a step along no gradient."""
    base = engine.base_optimizer(config.optim, list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    base.step()
    base.zero_grad()
    return base


def stepper(
    config: Config, model: torch.nn.Module, base: torch.optim.Optimizer, size: Size, options: argparse.Namespace
) -> Callable[[], StepStats]:
    """A function that makes one step of a method, as the engine would."""
    params = list(model.parameters())
    radius = engine.radius_policy(config, params, base, 1_000_000, Solo())
    cuda = options.device == "cuda"

    def evaluate(batch: Any) -> Losses:
        x, y, seed = batch
        torch.manual_seed(seed)
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            logits = model(x)
        return Classification().losses(config.optim, logits.float(), y)

    step = engine.schedule(config, params, base, evaluate, radius, model=model)
    batch, hyper = (noise(seed, size, options) for seed in (1, 2))
    return lambda: step(batch, hyper=lambda: hyper)


def measure(name: str, size: Size, options: argparse.Namespace) -> tuple[int, dict[str, Found]]:
    """The bytes of a network's parameters, and what every method costs on it."""
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    wait, clock = torch.cuda.synchronize if cuda else lambda: None, CLOCKS[options.clock]
    model = build(name, size, options.length).to(device)
    base = moving(model, settings("adamw", options))
    held = [*model.parameters(), *(t for state in base.state.values() for t in state.values())]
    steps: dict[str, Callable[[], StepStats]] = {}
    peak: dict[str, float] = {}
    gradients: dict[str, float] = {}

    def warm(method: str) -> None:
        known = [t.detach() for t in held]  # tensors that are there already are counted when seen
        steps[method] = stepper(settings(method, options), model, base, size, options)
        steps[method]()
        gradients[method] = steps[method]().cost  # a learned radius begins to cost with its second step
        del known

    for method in METHODS:
        peak[method] = peak_bytes(lambda method=method: warm(method), device) + cuda * sum(t.nbytes for t in held)
    for method in METHODS if cuda else ():  # the first steps after these are slow on a GPU
        for _ in range(10):
            steps[method]()
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    order = list(METHODS)
    for _ in range(size.rounds):
        for method in order:
            wait()
            began = clock()
            for _ in range(size.steps):
                steps[method]()
            wait()
            times[method].append((clock() - began) / size.steps)
        order.append(order.pop(0))
    weights = sum(p.nbytes for p in model.parameters())
    return weights, {method: Found(gradients[method], times[method], peak[method]) for method in METHODS}


def ratio(found: dict[str, Found], method: str) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile) of the time over AdamW's."""
    ratios = [t / least for t, least in zip(found[method].seconds, found["adamw"].seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def copies(weights: int, found: dict[str, Found], method: str) -> float:
    return (found[method].peak - found["adamw"].peak) / weights


def rows(name: str, size: Size, weights: int, found: dict[str, Found]) -> list[str]:
    """The rows of a network."""
    shape, made = f"{size.layers}×{size.width}", []
    for method, cost in found.items():
        low, middle, high = ratio(found, method)
        made.append(
            f"{name:7} {shape:8} {weights / 4e6:9.1f} M {size.rounds:3}  {method:16} {cost.gradients:9.2f} "
            f"{1e3 * statistics.median(cost.seconds):10.1f}   {middle:5.2f} [{low:.2f}, {high:.2f}] "
            f"{cost.peak / 2**20:9,.0f} {copies(weights, found, method):9.2f}"
        )
    return made


HEADING = (
    f"{'BERT':7} {'layers':8} {'parameters':>11} {'n':>3}  {'method':16} {'gradients':>9} {'ms a step':>10}   "
    f"{'time ÷ AdamW':18} {'peak MiB':>9} {'copies':>9}"
)


def figure(table: dict[str, tuple[int, dict[str, Found]]]) -> Any:
    """Over the number of parameters: time, time over AdamW's, memory beyond AdamW's."""
    plt = harness.plotting()
    fig, (time, factor, memory) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharex=True)
    at = [weights / 4e6 for weights, _ in table.values()]
    for method in METHODS:
        look = {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 4, "linewidth": 1, "label": method}
        middle = [1e3 * statistics.median(found[method].seconds) for _, found in table.values()]
        time.plot(at, middle, **look)
        if method == "adamw":
            continue
        low, mid, high = zip(*(ratio(found, method) for _, found in table.values()), strict=True)
        below, above = ([abs(a - b) for a, b in zip(end, mid, strict=True)] for end in (low, high))
        factor.errorbar(at, mid, yerr=[below, above], **look)
        memory.plot(at, [copies(weights, found, method) for weights, found in table.values()], **look)
    time.set(xscale="log", yscale="log", ylabel="ms a step")
    factor.set(ylabel="time ÷ AdamW, median and quartiles", ylim=(1, None))
    memory.set(ylabel="copies of the parameters, beyond AdamW", ylim=(0, None))
    for ax in (time, factor, memory):
        ax.set(xlabel="parameters, millions", xticks=at, xticklabels=[f"{m:.0f}" for m in at])
        ax.grid(axis="y", linewidth=0.3)
    harness.legend(fig, [time], len(METHODS))
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of an example")
    parser.add_argument("--rounds", type=int, help="in place of those of each network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the time that this process ran")
    parser.add_argument("--save", action="store_true", help="keep table and figure in results/")
    parser.add_argument("--quick", action="store_true", help="two networks of a few numbers")
    options = parser.parse_args()
    sizes = {name: replace(NETWORKS[name], rounds=options.rounds or NETWORKS[name].rounds) for name in options.networks}
    if options.quick:
        sizes, options.batch, options.length = QUICK, 2, 8
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        memory.keep()  # as the engine does

    precision = "bfloat16" if options.device == "cuda" else "float32"
    lines = [
        hardware(options.device, options.threads),
        f"batch {options.batch}, {options.length} tokens, {precision}; n rounds in turns, {options.clock} clock; "
        "ratios: median [quartiles]; copies: of the parameters, at the peak of a step beyond AdamW's",
        HEADING,
    ]
    print("\n".join(lines), flush=True)
    table = {}
    for name, size in sizes.items():
        table[name] = measure(name, size, options)
        made = rows(name, size, *table[name])
        lines += made
        print("\n".join(made), flush=True)
    plot = figure(table)
    if options.save:
        harness.save("scaling", "\n".join(lines), plot)


if __name__ == "__main__":
    main()
