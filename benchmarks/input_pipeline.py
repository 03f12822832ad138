"""Images a second of input pipelines: ours on one core against what a user would write, with two worker processes.

    python benchmarks/input_pipeline.py             five minutes on two cores
    python benchmarks/input_pipeline.py --quick     a few batches, to see that it runs
    python benchmarks/input_pipeline.py --parts large --rounds 5

Small images, 3×32×32, batches of 128, generated; all pipelines pad by 4, crop, mirror, normalise and, where it says
so, blank a square of 16×16 in every other image:

    ours              training/augment.py, uint8 images in memory, one thread, no worker
    transforms v1     torchvision.transforms on PIL images, DataLoader
    transforms v2     torchvision.transforms.v2 on tensors, DataLoader

Large images: generated JPEG files of 500×375, decoded, RandomResizedCrop(224), mirrored, uint8 batches of 64:

    DataLoader, decode_jpeg    torchvision.io and transforms.v2 on tensors
    DataLoader, PIL            transforms.v2 on PIL images
    Ray Data, read_images      read_images, map_batches, iter_torch_batches
    Ray Data, decode_jpeg      from_items of paths, map_batches that read and decode too, iter_torch_batches

In every round each pipeline delivers its images once, in an order that rotates, from starting its iteration to its
last batch; processes were started before. A ratio compares two rates of the same round. Printed: the median rate, then
the median ratio to the first pipeline and its quartiles. Small: how many times faster ours is.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from bisam_ray.training.augment import Augment, Pixels

WORKERS, SMALL, LARGE, BAR = 2, 128, 64, 5.0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Pipeline = Callable[[], Iterable[Any]]  # a call starts one pass


class Mapped(Dataset[Any]):
    """Items, each through a function."""

    def __init__(self, items: Any, function: Callable[[Any], Any]) -> None:
        self.items, self.function = items, function

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.function(self.items[index])


def loader(items: Any, function: Callable[[Any], Any], batch_size: int) -> Pipeline:
    made = DataLoader(
        Mapped(items, function), batch_size, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
    )
    return lambda: made


def small(cutout: bool, count: int, factor: int) -> dict[str, Pipeline]:
    """Pipelines of `count` images; ours makes `factor` times as many, or its time would be too short to tell."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    pixels = Pixels(255 * torch.tensor(MEAN), 255 * torch.tensor(STD))
    augment = Augment(("crop", "flip", "cutout") if cutout else ("crop", "flip"), 0)

    def ours() -> Iterator[Tensor]:
        order = torch.cat([torch.randperm(count) for _ in range(factor)])
        for start in range(0, len(order) - SMALL + 1, SMALL):
            position = torch.arange(start, start + SMALL)
            yield augment.batch(images, order[start : start + SMALL], position, pixels)

    square: dict[str, Any] = {"p": 0.5, "scale": (0.25, 0.25), "ratio": (1.0, 1.0), "value": 0}
    old = v1.Compose(
        [
            v1.RandomCrop(32, padding=4),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
            *([v1.RandomErasing(**square)] if cutout else []),
        ]
    )
    new = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            *([v2.RandomErasing(**square)] if cutout else []),
        ]
    )
    arrays = images.permute(0, 2, 3, 1).numpy()
    return {
        "ours": ours,
        "transforms v1": loader(arrays, lambda array: old(Image.fromarray(array)), SMALL),
        "transforms v2": loader(images.contiguous(), new, SMALL),
    }


def draw_jpeg(path: Path, seed: int) -> None:
    """500×375: a gradient with shapes on it, so many that the file is as large as a photograph's."""
    chance = random.Random(seed)
    across, down = np.meshgrid(np.linspace(0, 1, 500), np.linspace(0, 1, 375))
    ends = np.array([[chance.randrange(256) for _ in range(3)] for _ in range(3)])
    plane = across[..., None] * ends[0] + down[..., None] * ends[1] + (1 - down)[..., None] * ends[2]
    image = Image.fromarray((plane / 2).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(900):
        x, y, size = chance.randrange(500), chance.randrange(375), chance.randrange(3, 30)
        shape = chance.choice((draw.ellipse, draw.rectangle, draw.line))
        shape((x, y, x + size, y + chance.randrange(3, 30)), fill=tuple(chance.randrange(256) for _ in range(3)))
    image.save(path, quality=90)


RESIZED = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])


def decoded(path: str) -> Tensor:
    return RESIZED(decode_jpeg(read_file(path), mode=ImageReadMode.RGB))


def opened(path: str) -> Tensor:
    with Image.open(path) as image:
        return v2.functional.pil_to_tensor(RESIZED(image.convert("RGB")))


def ray_pipelines(paths: list[str]) -> dict[str, Pipeline]:
    """The two of Ray Data, or none and a line that says why."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        print(f"  Ray Data is left out: {error}")
        return {}
    # not 15, Ray's default: the processes of DataLoader are not nice either
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False

    # they travel to the workers by value: those cannot import this file
    resized = RESIZED

    def of_arrays(batch: dict[str, Any]) -> dict[str, Any]:
        tensors = [resized(torch.from_numpy(np.array(image)).permute(2, 0, 1)) for image in batch["image"]]
        return {"x": torch.stack(tensors).numpy()}

    def of_paths(batch: dict[str, Any]) -> dict[str, Any]:
        tensors = [resized(decode_jpeg(read_file(path), mode=ImageReadMode.RGB)) for path in batch["item"]]
        return {"x": torch.stack(tensors).numpy()}

    def made(source: Callable[[], Any], function: Any) -> Pipeline:
        batches: dict[str, Any] = {"batch_size": LARGE, "drop_last": True}
        return lambda: source().map_batches(function, batch_size=LARGE).iter_torch_batches(**batches)

    return {
        "Ray Data, read_images": made(lambda: ray.data.read_images(paths, mode="RGB"), of_arrays),
        "Ray Data, decode_jpeg": made(lambda: ray.data.from_items(paths), of_paths),
    }


def measure(pipelines: dict[str, Pipeline], rounds: int) -> dict[str, list[float]]:
    """Images a second of every pipeline, one per round."""
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    order = list(pipelines)
    for _ in range(rounds):
        for name in order:
            began, count = time.perf_counter(), 0
            for batch in pipelines[name]():
                count += len(batch["x"] if isinstance(batch, dict) else batch)
            rates[name].append(count / (time.perf_counter() - began))
        order.append(order.pop(0))
    return rates


def report(title: str, rates: dict[str, list[float]], first_over: bool, bar: float | None = None) -> None:
    """Ratios of the first pipeline's rate to each other one's, or the other way round."""
    first, *others = rates
    print(f"{title}\n  {first:26} {statistics.median(rates[first]):9.0f} images/s")
    for name in others:
        pairs = zip(rates[first], rates[name], strict=True)
        low, middle, high = statistics.quantiles([a / b if first_over else b / a for a, b in pairs], n=4)
        verdict = "" if bar is None else f"   bar {bar:.0f} {'met' if middle >= bar else 'MISSED'}"
        rate = statistics.median(rates[name])
        print(f"  {name:26} {rate:9.0f} images/s   {middle:5.2f}  [{low:.2f}, {high:.2f}]{verdict}", flush=True)


def warm(pipelines: dict[str, Pipeline]) -> None:
    """One pass of each, which starts the worker processes."""
    for pipeline in pipelines.values():
        for _ in pipeline():
            pass


def small_part(rounds: int, quick: bool) -> None:
    for cutout in (False, True):
        pipelines = small(cutout, *((2 * SMALL, 1) if quick else (100 * SMALL, 4)))
        warm(pipelines)
        title = f"crop, flip{', cutout' * cutout}: 3×32×32, batch {SMALL}, {WORKERS} workers, n={rounds} rounds"
        report(title, measure(pipelines, rounds), True, BAR)


def large_part(rounds: int, quick: bool) -> None:
    files, passes = (LARGE, 2) if quick else (4 * LARGE, 8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i:04}.jpg") for i in range(files)]
        for seed, path in enumerate(paths):
            draw_jpeg(Path(path), seed)
        size = statistics.fmean(Path(path).stat().st_size for path in paths) / 1000
        paths *= passes
        pipelines = {
            "DataLoader, decode_jpeg": loader(paths, decoded, LARGE),
            "DataLoader, PIL": loader(paths, opened, LARGE),
        }
        warm(pipelines)  # before Ray starts its threads: a process that has any should not fork
        from_ray = ray_pipelines(paths)
        warm(from_ray)
        title = f"{len(paths)} JPEG files of {size:.0f} kB, batch {LARGE}, {WORKERS} workers, n={rounds} rounds"
        report(f"{title}; rate over the first's", measure(pipelines | from_ray, rounds), False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["small", "large"], choices=["small", "large"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # as in a process that trains: once a large block was freed, glibc keeps memory instead of giving back every batch's
    torch.empty(16 << 20).zero_()
    hardware = f"{os.cpu_count()} CPUs {platform.machine()}"
    print(f"{datetime.date.today()}  {hardware}  torch {torch.__version__}  Python {platform.python_version()}")
    few = 3 if options.quick else None
    if "small" in options.parts:
        small_part(options.rounds or few or 11, options.quick)
    if "large" in options.parts:
        large_part(options.rounds or few or 7, options.quick)


if __name__ == "__main__":
    main()
