"""One run on several workers: is it the same training, and is it faster? (What its start costs: startup.py.)

    python benchmarks/workers.py                both parts, about 4 minutes on two idle cores
    python benchmarks/workers.py throughput     one of them; the other's results stay as they are
    python benchmarks/workers.py --quick        a smoke run of both, a minute or so; writes nothing

curves      digits with 40 % wrong labels on 1, 2 and 4 processes, group or batch norm, one perturbation for all or one
            for each process; n = 3 seeds. Writes results/workers_curves.csv and .svg
throughput  ResNet-20 (32 × 32 × 3 inputs, group norm), bisam-tanh, 128 images a step, one thread a process: one process
            on one core against two on two. Blocks of few steps alternate; each process is pinned to a core of its own.
              alone      one process, 128 images
              two        two processes, 64 images each, as users run it
              measured   the same, with a barrier before every all-reduce, which tells waiting from transfer
              apart      two processes of 64 images that know nothing of each other: what two cores could give at best
              halves     one process that makes its gradients in two halves: only for its losses. Its sums are those of
                         `two`, so what separates both from `alone` is rounding, and nothing else

Tables go to results/workers.txt, a section for each part; its lines that begin with "> " are remarks, and stay.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bisam_ray.config import resolve
from bisam_ray.optim.comm import Comm, Distributed, Solo, Tensors
from bisam_ray.study.report.canvas import COLOURS
from bisam_ray.training import data, engine

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
PARTS = ("curves", "throughput")
Say = Callable[[str], None]

# ---- networks and data, found by the engine as module:function


def small(norm: Callable[[int], nn.Module], kinks: bool, shape: tuple[int, ...], classes: int) -> nn.Module:
    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, norm(outputs), *([nn.ReLU(), nn.MaxPool2d(2)] if kinks else [nn.SiLU(), nn.AvgPool2d(2)])]

    return nn.Sequential(*stage(shape[0], 16), *stage(16, 32), nn.Flatten(), nn.Linear(128, classes))


group_norm = partial(small, partial(nn.GroupNorm, 4), False)
batch_norm = partial(small, nn.BatchNorm2d, False)
group_norm_relu = partial(small, partial(nn.GroupNorm, 4), True)


class Residual(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (He and others, 2016, option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.more = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, outputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, self.more)))


def resnet20(shape: tuple[int, ...], classes: int) -> nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    stem = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    blocks = [Residual(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def images() -> tuple[Tensor, Tensor]:
    """Digits as CIFAR-sized colour images."""
    x, y = data.digits()
    return F.interpolate(x, size=32, mode="bilinear").repeat(1, 3, 1, 1), y


# ---- worlds of processes


def worlds(size: int, work: Callable[[int, int], Any], meet: bool = True) -> list[Any]:
    """What `work(rank, size)` gives in each of `size` forked processes, each on a core of its own while they last."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(process, (size, folder, work, meet), nprocs=size, start_method="fork")
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]


def process(rank: int, size: int, folder: str, work: Callable[[int, int], Any], meet: bool) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    if meet:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    Path(folder, f"{rank}.json").write_text(json.dumps(work(rank, size)), encoding="utf-8")
    if meet:
        dist.destroy_process_group()


# ---- curves

CURVES = ("train/loss", "val/loss", "val/accuracy")
LOSSES = CURVES[:2]


class Arm(NamedTuple):
    norm: str
    scope: str
    workers: int


ARMS = [
    Arm("group norm", "global", 1), Arm("group norm", "global", 2), Arm("group norm", "global", 4),
    Arm("group norm", "local", 2), Arm("group norm", "local", 4),
    Arm("batch norm", "global", 1), Arm("batch norm", "global", 2), Arm("batch norm", "global", 4),
    Arm("batch norm", "local", 2), Arm("batch norm", "local", 4),
    Arm("group norm, ReLU", "global", 1), Arm("group norm, ReLU", "global", 2), Arm("group norm, ReLU", "global", 4),
]  # fmt: skip


def trained(arms: list[Arm], seeds: int, epochs: int, rank: int, size: int) -> list[list[list[float]]]:
    """For each arm and seed, the rows of `CURVES`, one per epoch."""
    found = []
    for arm in arms:
        for seed in range(seeds):
            config = resolve(
                {"method": "bisam-tanh", "optim.rho": 0.3, "optim.warmup": 0.25, "train.epochs": epochs},
                {"optim.perturbation_scope": arm.scope, "data.label_noise": 0.4},
                {"seed": seed, "data.split_seed": seed, "data.noise_seed": seed},
                {"model.name": f"{__name__}:{re.sub(r'[ ,]+', '_', arm.norm).lower()}"},
            )
            found.append([[r.metrics[m] for m in CURVES] for r in engine.run(config, Distributed())])
    return found


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def curves(say: Say, quick: bool) -> None:
    seeds, epochs = (1, 2) if quick else (3, 12)
    found: dict[Arm, list[Any]] = {}
    for size in (1, 2, 4):
        arms = [arm for arm in ARMS if arm.workers == size]
        first, *_ = worlds(size, partial(trained, arms, seeds, epochs))
        found |= {arm: first[i * seeds : (i + 1) * seeds] for i, arm in enumerate(arms)}
    say(
        f"bisam-tanh, ρ 0.3 with a warm-up, batches of 64 in all, {epochs} epochs ({epochs * 15} steps), n = {seeds} "
        "seeds. `deviation`: of the losses of train and\nval from those of one worker of the same seed, relative, the "
        "largest of all seeds, after the first epoch and of all epochs;\n`val`: at the end, mean (sd), 40 % of its "
        "labels are wrong; `difference`: of val accuracy from one worker's, mean [each seed]\n"
    )
    head = "norm              scope    workers   deviation: epoch 1      all      val loss  val accuracy    difference"
    say(head)
    for arm in ARMS:
        runs, alone = found[arm], found[Arm(arm.norm, "global", 1)]
        gaps = [
            max(
                abs(row[i] / other[i] - 1)
                for run, one in zip(runs, alone, strict=True)
                for row, other in zip(run[:last], one[:last], strict=True)
                for i in range(len(LOSSES))
            )
            for last in (1, epochs)
        ]
        accuracies = [run[-1][2] for run in runs]
        differences = [run[-1][2] - one[-1][2] for run, one in zip(runs, alone, strict=True)]
        row = f"{arm.norm:17} {arm.scope:8} {arm.workers:7} {gaps[0]:20.1e} {gaps[1]:8.1e}"
        row += f" {statistics.fmean(run[-1][1] for run in runs):13.3f}"
        row += f" {statistics.fmean(accuracies):7.3f} ({spread(accuracies):.3f})"
        if arm.workers > 1:
            row += f"  {statistics.fmean(differences):+.3f} [{', '.join(f'{d:+.3f}' for d in differences)}]"
        say(row)
    if not quick:
        with (RESULTS / "workers_curves.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["norm", "scope", "workers", "seed", "epoch", *CURVES])
            for arm, runs in found.items():
                for seed, run in enumerate(runs):
                    rows.writerows([*arm, seed, e, *(f"{v:.7g}" for v in row)] for e, row in enumerate(run, 1))
        draw(found)


STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": HERE.stem,
    "font.size": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@plt.rc_context(STYLE)
def draw(found: dict[Arm, list[Any]]) -> None:
    """Rows: val accuracy and loss, means over the seeds; columns: the norm. Colours: workers; dashes: local."""
    norms = ("group norm", "batch norm")
    figure, axes = plt.subplots(2, 2, figsize=(8.8, 6), sharex=True, sharey="row", layout="constrained")
    for arm, runs in found.items():
        if arm.norm not in norms:
            continue
        mean = torch.tensor(runs).mean(0)
        for row, metric in enumerate((2, 1)):
            axes[row][norms.index(arm.norm)].plot(
                range(1, len(mean) + 1),
                mean[:, metric],
                "--" if arm.scope == "local" else "-",
                color=COLOURS[{1: "sam", 2: "asam", 4: "bisam-tanh"}[arm.workers]],
                lw=3.5 - arm.workers * 0.6,
                label=f"{arm.workers} worker{'s' * (arm.workers > 1)}, {arm.scope}" if arm.workers > 1 else "1 worker",
            )
    for axis, norm in zip(axes[0], norms, strict=True):
        axis.set_title(norm)
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes[0][0].set_ylabel("val accuracy")
    axes[1][0].set_ylabel("val loss")
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    axes[0][0].legend()
    figure.savefig(RESULTS / "workers_curves.svg", metadata={"Date": None})


# ---- throughput


class Measured(Distributed):
    """Tells how long it waits for the others, and how long the all-reduce takes with its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, float, float]] = []  # began, all there, done

    def mean_(self, tensors: Tensors) -> None:
        began = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        super().mean_(tensors)
        self.calls.append((began, met, time.perf_counter()))


class Block(NamedTuple):
    """Of one process: seconds of a step (without the first) by the wall clock and of its CPU, shares of waiting and
    transfer, losses of all steps."""

    seconds: float
    cpu: float
    waiting: float
    transfer: float
    losses: list[float]


def block(kind: str, steps: int, rank: int, size: int) -> Block:
    comm: Comm = Solo() if kind in ("alone", "apart", "halves") else Measured() if kind == "measured" else Distributed()
    batch = 64 if kind == "apart" else 128
    config = resolve(
        {"method": "bisam-tanh", "optim.perturbation_scope": "global", "data.batch_size": batch, "train.epochs": 9},
        {"data.name": f"{__name__}:images", "model.name": f"{__name__}:resnet20", "data.label_noise": 0.4},
        {"seed": rank if kind == "apart" else 0, "scale.accumulate": 2 if kind == "halves" else 1},
    )
    marks, cpu, losses, made = list[float](), list[float](), list[float](), engine.schedule

    class Enough(Exception):
        pass

    def recorded(*arguments: Any, **parts: Any) -> Any:
        take = made(*arguments, **parts)

        def step(*batches: Any, **more: Any) -> Any:
            stats = take(*batches, **more)
            losses.append(float(stats.perturbed_loss))  # a mean over the processes
            return stats

        return step

    def after_step(_: Any) -> None:
        marks.append(time.perf_counter())
        cpu.append(time.process_time())
        if len(marks) == steps + 1:
            raise Enough

    engine.schedule = recorded
    try:
        for _ in engine.run(config, comm, after_step=after_step):
            pass
    except Enough:
        pass
    finally:
        engine.schedule = made
    if len(marks) != steps + 1:
        raise RuntimeError(f"{steps + 1} steps asked for, {len(marks)} made")
    calls = [c for c in getattr(comm, "calls", []) if c[0] > marks[0]]
    whole = marks[-1] - marks[0]
    waiting, transfer = (sum(c[i + 1] - c[i] for c in calls) / whole for i in (0, 1))
    return Block(whole / steps, (cpu[-1] - cpu[0]) / steps, waiting, transfer, losses)


def throughput(say: Say, quick: bool) -> None:
    blocks, steps = (1, 1) if quick else (5, 5)
    sizes = {"alone": 1, "two": 2, "measured": 2, "apart": 2}
    found: dict[str, list[list[Block]]] = {kind: [] for kind in sizes}
    for _ in range(blocks):
        for kind, size in sizes.items():
            ranks = worlds(size, partial(block, kind, steps), meet=kind in ("two", "measured"))
            found[kind].append([Block(*r) for r in ranks])
    halves = Block(*worlds(1, partial(block, "halves", steps), meet=False)[0]).losses
    parameters = sum(p.numel() for p in resnet20((3, 32, 32), 10).parameters())
    say(
        f"ResNet-20 with group norm, {parameters:,} parameters, bisam-tanh (two gradients a step), 128 images a step, "
        f"medians of {blocks} blocks of {steps} steps [all]"
    )
    slowest = {kind: [max(b.seconds for b in ranks) for ranks in all_] for kind, all_ in found.items()}
    for kind, seconds in slowest.items():
        rates = ", ".join(f"{128 / s:.1f}" for s in seconds)
        middle, cpu = statistics.median(seconds), statistics.median(max(b.cpu for b in ranks) for ranks in found[kind])
        line = f"  {kind:9} {sizes[kind]} cores  {middle:6.3f} s a step, {cpu:.3f} s of a process's CPU"
        say(f"{line}  {128 / middle:6.1f} images/s  [{rates}]")
    for kind in ("two", "apart"):
        ratios = [a / b for a, b in zip(slowest["alone"], slowest[kind], strict=True)]
        each = ", ".join(f"{r:.2f}" for r in ratios)
        say(f"  speed-up of {kind} over alone, blocks next to each other: {statistics.median(ratios):.2f} [{each}]")
    seen = [b for ranks in found["measured"] for b in ranks]
    waiting, transfer = (100 * statistics.median(getattr(b, part) for b in seen) for part in ("waiting", "transfer"))
    say(f"  of a step of `measured`: {waiting:.1f} % waiting for the other, {transfer:.1f} % all-reduce and its copies")
    two = found["two"][0][0].losses
    for name, other in (("alone", found["alone"][0][0].losses), ("halves", halves)):
        gaps = ", ".join(f"{abs(a - b) / abs(b):.0e}" for a, b in zip(two, other, strict=True))
        say(f"  losses of two against {name}, relative difference of each step: {gaps}")
    same = all(ranks[0].losses == two for ranks in found["two"])
    say(f"  the blocks of two repeat each other bit for bit: {'yes' if same else 'NO'}")


# ---- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)} (both)")
    parser.add_argument("--quick", action="store_true", help="tiny settings; nothing is written")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # imports half of torch, here and not in each process
    path = RESULTS / "workers.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = {s.partition(":")[0]: s for s in re.split(r"^(?:== )", text, flags=re.MULTILINE) if s.strip()}
    for part in options.parts or PARTS:
        lines: list[str] = []

        def say(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            print(line, flush=True)

        load = os.getloadavg()[0]
        say(
            f"{part}: {datetime.date.today()}  {os.cpu_count()} CPUs {platform.machine()}, load before {load:.1f}  "
            f"torch {torch.__version__}  Python {platform.python_version()}"
        )
        {"curves": curves, "throughput": throughput}[part](say, options.quick)
        if not options.quick:
            remarks = [line for line in sections.get(part, "").splitlines() if line.startswith("> ")]
            sections[part] = "\n".join([*lines, *remarks])
            whole = "".join(f"== {sections[p].rstrip()}\n\n" for p in PARTS if p in sections)
            path.write_text(whole.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
