"""What the training loop costs: an epoch of the engine ÷ a bare loop of the same forward and backward passes.

    pip install '.[models]'
    python benchmarks/loop_overhead.py                          resnet20 and resnet56, sam and bisam-tanh, ten minutes
    python benchmarks/loop_overhead.py --device cuda --precision bfloat16 --steps 50
    python benchmarks/loop_overhead.py --quick                  seconds; says nothing about speed

The bare loop is what one would write with `optim.SAM`: prepared batches on the device, two forward and two backward
passes, the same perturbation and the same fused base optimizer; no metrics, no learning rate, no selection of data. A
test holds it to the engine's weights. The engine's epoch does everything that it does between two evaluations, from
uint8 images to the means of its metrics, in "cost/seconds" of its own record; once with crop, flip and cutout, once
without. Evaluation is no training step, and counts in neither. An epoch here is a few steps, not CIFAR's 350: what the
engine does once per epoch weighs a hundred times more than it does there.

The three take turns, forwards and backwards (A B C C B A); a ratio compares two times of the same turn. On a CPU, tell
glibc to keep what it was given back (MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_MMAP_THRESHOLD_=1073741824): otherwise a
step spends a tenth of its time on page faults, and how many depends on what lies at the end of the heap by chance. Such
settings are shown with the result.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import torch
from throughput import CLOCKS, TINY, hardware, median_interval
from torch import Tensor

from bisam_ray.config import Config, resolve
from bisam_ray.optim import SAM, cross_entropy, lower_bound
from bisam_ray.optim.comm import Solo
from bisam_ray.training import data, datasets, engine, models
from bisam_ray.training.feed import Feed

BAR = 1.05  # of the upper end of the interval
AUGMENT = ("crop", "flip", "cutout")


def configuration(method: str, model: str, augment: tuple[str, ...], options: argparse.Namespace) -> Config:
    cuda = options.device == "cuda"
    return resolve(
        {
            "method": method,
            "model.name": model,
            "data.name": "cifar10",
            "data.augment": augment,
            "data.batch_size": options.batch,
            "optim.lr": options.lr,
            "train.epochs": 1000,  # more than there are turns
            "scale.gpus_per_worker": 1.0 if cuda else 0.0,
            "scale.precision": options.precision,
        }
    )


def noise(steps: int, batch: int) -> datasets.Source:
    """In the shape of CIFAR-10, and of such a number that an epoch of train ∪ hyper has so many steps."""
    generator = torch.Generator().manual_seed(0)
    count = 10 * -(-steps * batch // 9)  # train ∪ hyper are nine tenths
    x = torch.randint(256, (count + 10, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.randint(10, (count + 10,), generator=generator)
    return datasets.Source(x[10:], y[10:], x[:10], y[:10], 10, torch.arange(10))


def engine_epochs(config: Config, source: datasets.Source) -> Iterator[engine.EpochRecord]:
    """The engine's records on these images; files in CIFAR's format would have to pass for the published ones."""
    with mock.patch.object(datasets, "read", return_value=source):
        records = engine.run(config)
        first = next(records)  # which reads them
    yield first
    yield from records


def bare_epoch(config: Config, source: datasets.Source, steps: int) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A network that starts as the engine's, and a function that trains it on the engine's first `steps` batches."""
    with mock.patch.object(datasets, "read", return_value=source):
        splits = data.load(config.data)
    optim, device = config.optim, engine.device_of(config.scale)
    feed = Feed(splits.fitting(learned=False)[0].to(device), config.data, data.mixed(config.seed, 3), Solo())
    batches = [feed(step)[:2] for step in range(steps)]
    torch.manual_seed(data.mixed(config.seed, 5))
    model = models.build(config.model.name, (3, 32, 32), 10).to(device).to(memory_format=torch.channels_last).train()
    optimizer = SAM(
        model.parameters(),
        torch.optim.SGD,
        rho=optim.rho or 0.0,
        model=model,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    half = config.scale.precision != "float32"
    reduced = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()

    def backward(batch: tuple[Tensor, Tensor], ascent: bool) -> Tensor:
        with reduced:
            logits = model(batch[0]).float()
        if ascent and optim.objective == "tanh":
            loss = lower_bound(logits, batch[1], "tanh", optim.mu, optim.alpha or 0.1)
        else:
            loss = cross_entropy(logits, batch[1], optim.label_smoothing)
        loss.backward()
        return loss

    def epoch() -> None:
        for batch in batches:
            optimizer.step(lambda: backward(batch, False), lambda: backward(batch, True))  # noqa: B023

    return model, epoch


def measure(method: str, model: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of an epoch: of the engine with and without augmentation, and of the bare loop."""
    source = noise(options.steps, options.batch)
    plain, augmented = (
        engine_epochs(configuration(method, model, augment, options), source) for augment in ((), AUGMENT)
    )
    _, bare = bare_epoch(configuration(method, model, (), options), source, options.steps)
    wait, clock = torch.cuda.synchronize if options.device == "cuda" else lambda: None, CLOCKS[options.clock]
    so_far = {"augmented": 0.0, "plain": 0.0}

    def engines(name: str, records: Iterator[engine.EpochRecord]) -> float:
        before, so_far[name] = so_far[name], next(records).metrics["cost/seconds"]
        return so_far[name] - before

    def alone() -> float:
        wait()
        began = clock()
        bare()
        wait()
        return clock() - began

    turns = {
        "augmented": lambda: engines("augmented", augmented),
        "plain": lambda: engines("plain", plain),
        "bare": alone,
    }
    order = list(turns)
    for name in order:  # warm
        turns[name]()
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(options.rounds):
        for name in order:
            times[name].append(turns[name]())
        order.reverse()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet20", "resnet56"])
    parser.add_argument("--methods", nargs="*", choices=("sam", "bisam-tanh"), default=["sam", "bisam-tanh"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the time that this process ran")
    parser.add_argument("--lr", type=float, default=TINY, help="so that the work stays what it was")
    parser.add_argument("--quick", action="store_true", help="a tiny network, eight images, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.models, options.batch, options.steps, options.rounds = ["cnn"], 8, 2, 2
    torch.set_num_threads(1)
    print(hardware(options.device))
    print(
        f"batch {options.batch}, {options.precision}, n={options.rounds} rounds of epochs of {options.steps} steps, "
        f"{options.clock} clock"
    )
    print(f"{'':22} bare loop: ms a step   engine ÷ it [95 %]        crop, flip, cutout ÷ it")
    for model in options.models:
        for method in options.methods:
            with mock.patch.object(engine, "time", SimpleNamespace(perf_counter=CLOCKS[options.clock])):
                times = measure(method, model, options)
            milliseconds = 1e3 * statistics.median(times["bare"]) / options.steps
            shown = []
            for name in ("plain", "augmented"):
                ratios = (mine / bare for mine, bare in zip(times[name], times["bare"], strict=True))
                middle, low, high = median_interval(ratios)
                verdict = "" if options.quick else "met   " if high <= BAR else "MISSED"
                shown.append(f"{middle:.3f} [{low:.3f}, {high:.3f}] {verdict}")
            print(f"  {model:9} {method:10} {milliseconds:21.1f}   {'   '.join(shown)}", flush=True)
    print(f"bar: upper end ≤ {BAR}")


if __name__ == "__main__":
    main()
