"""The four splits of a data set, its label noise, and the order in which examples are seen.

    train    the lower level: every gradient step
    hyper    the upper level of a learned radius; for every other method, more training data
    val      every choice is made here
    test     looked at once per finished replicate; never noisy

Where a data set has an official test set, that is test, and the others are a partition of its training examples
(OFFICIAL); elsewhere all four are (SHARES). Named data sets are read by datasets.py, those of one's own by own.py.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError, Data
from .augment import Pixels
from .files import Files
from .task import Classification

if TYPE_CHECKING:
    from .text import Ragged, Tokens

SHARES = {
    "train": 0.473,
    "hyper": 0.0835,
    "val": 0.167,
}  # of all examples; test is the rest. Digits: 850, 150, 300, 497
OFFICIAL = {"train": 0.8, "hyper": 0.1, "val": 0.1}  # of the training examples. CIFAR: 40,000, 5,000, 5,000


@dataclass(frozen=True)
class Split:
    """Examples as they are stored, x (N, …), image files or texts, and their targets y (N,) or (N, T).

    `pixels` standardises stored images; None where x is standardised already.
    """

    x: Tensor | Files | Ragged
    y: Tensor
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: Tensor | slice) -> Split:
        if isinstance(self.x, Tensor):
            return Split(self.x[chosen], self.y[chosen], self.pixels)
        return Split(self.x.subset(torch.arange(len(self))[chosen]), self.y[chosen], self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.x.shape[1:])

    @property
    def text(self) -> bool:
        return not isinstance(self.x, Tensor | Files)

    @property
    def inputs(self) -> Tensor:
        """x, where it lies in memory."""
        assert isinstance(self.x, Tensor)
        return self.x

    def to(self, device: torch.device) -> Split:
        x = self.x if isinstance(self.x, Files) else self.x.to(device)
        return Split(x, self.y.to(device), self.pixels and self.pixels.to(device))

    def ready(self) -> Split:
        """The same examples as a network takes them: in memory, decoded, standardised, not augmented."""
        if isinstance(self.x, Tensor) and self.pixels is None:
            return self
        x = self.x if isinstance(self.x, Tensor) else self.x[torch.arange(len(self))].to(self.y.device)
        return Split(x if self.pixels is None else self.pixels.normalise(x), self.y)

    def batches(self, size: int) -> Iterator[Split]:
        """All of it, ready, in pieces."""
        pieces = self.x.pieces(size) if isinstance(self.x, Files) else self.x.split(size)
        for x, y in zip(pieces, self.y.split(size), strict=True):
            yield Split(x.to(y.device), y, self.pixels).ready()


@dataclass(frozen=True)
class Splits:
    """Four disjoint splits of one data set."""

    train: Split
    hyper: Split
    val: Split
    test: Split
    classes: int
    task: Classification
    tokens: Tokens | None = None

    def fitting(self, learned: bool) -> tuple[Split, Split]:
        """(what the gradient steps see, what the upper level sees): train and hyper, or their union and nothing."""
        if learned:
            return self.train, self.hyper
        return joined(self.train, self.hyper), self.hyper[:0]


def joined(first: Split, second: Split) -> Split:
    y = torch.cat([first.y, second.y])
    if isinstance(first.x, Tensor):
        return Split(torch.cat([first.x, second.inputs]), y, first.pixels)
    return Split(first.x + second.x, y, first.pixels)  # type: ignore[operator]  # both of one kind


def load(config: Data) -> Splits:
    """Read, split by `split_seed`, `fold` and `limit`, and flip labels by `noise_seed`.

    Inputs are standardised by mean and deviation of train ∪ hyper: over everything for floating point, per channel for
    stored images, files of images by the constants of ImageNet, or as `standardise` says. Noise p flips exactly
    round(p·n) labels of each of train, hyper and val: to one of the other classes, uniformly (symmetric), or to the one
    that their class is mistaken for (asymmetric; Patrini et al. 2017), which of some classes of CIFAR-10 is itself.
    """
    from . import datasets

    source = datasets.read(config)
    parts = partition(config, len(source.y), source.test_y is not None)
    x, fit = source.x, torch.cat([parts["train"], parts["hyper"]])
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        x = x.contiguous(memory_format=torch.channels_last)
    pixels = standard(config, x, fit)
    if pixels is None and isinstance(x, Tensor):
        x = (x - x[fit].mean()) / x[fit].std().clamp_min(1e-8)
    whole = Split(x, source.y, pixels)
    splits = {name: whole[part] for name, part in parts.items()}
    if source.test_x is not None and source.test_y is not None:
        splits["test"] = Split(source.test_x, source.test_y, pixels)
    noise = seeded(config.noise_seed, 2)
    confused = source.confused if config.noise_kind == "asymmetric" else None
    for name in SHARES:
        noisy = flip(splits[name].y, config.label_noise, source.classes, noise, confused)
        splits[name] = Split(splits[name].x, noisy, pixels)
    return Splits(**splits, classes=source.classes, task=source.task, tokens=source.tokens)


KNOWN = {  # in units of 0–255
    "imagenet": Pixels(torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])),
    "half": Pixels(torch.full((3,), 127.5), torch.full((3,), 127.5)),
}


def standard(config: Data, x: Tensor | Files | Ragged, fit: Tensor) -> Pixels | None:
    """What stored images are standardised by; None: they are no stored images, but numbers of any size.

    Raises:
        ConfigError: not these images in this way.
    """
    in_memory = isinstance(x, Tensor)
    stored = isinstance(x, Files) or (isinstance(x, Tensor) and x.dtype == torch.uint8)
    way = config.standardise or ("data" if in_memory else "imagenet")
    usual = f"data.standardise={way}: data.name={config.name} "
    if config.standardise and not stored:
        raise ConfigError(f"{usual}is no set of stored images; leave it out")
    if way == "data" and stored and not in_memory:
        raise ConfigError(f"{usual}is read file by file (nearest: imagenet)")
    if not stored:
        return None
    if way in KNOWN and x.shape[1] != 3:
        raise ConfigError(f"{usual}has no colours (nearest: data)")
    return KNOWN[way] if way in KNOWN or not isinstance(x, Tensor) else pixels_of(x[fit])


def pixels_of(images: Tensor) -> Pixels:
    """Mean and deviation of each channel of uint8 images (N, C, H, W), exact for any number of them."""
    levels = torch.arange(256, dtype=torch.float64)
    channels = (images[:, c].flatten() for c in range(images.shape[1]))
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = share @ levels
    return Pixels(mean.float(), (share @ levels**2 - mean**2).sqrt().clamp_min(1e-8).float())


def partition(config: Data, size: int, official: bool = False) -> dict[str, Tensor]:
    """Indices of each split's examples; no test where there is an `official` one.

    `split_seed` draws test and the order of the others, which are train, hyper and val from front to back. Fold f
    turns that order by f·|val|: val is then the f-th piece from behind. Folds have pairwise disjoint val as long as
    (f + 1)·|val| ≤ |train ∪ hyper ∪ val|; the fold after those takes what is left and wraps around; more there are not.
    `limit` cuts the order of the others off, and keeps their proportions.

    Raises:
        ConfigError: too few examples, or no such fold.
    """
    shares = OFFICIAL if official else SHARES
    sizes = [round(share * size) for share in shares.values()]
    if official:
        sizes[0] = size - sizes[1] - sizes[2]
    pool, test = torch.randperm(size, generator=seeded(config.split_seed, 1)).tensor_split([sum(sizes)])
    if config.limit is not None and config.limit < len(pool):
        sizes = [round(share / sum(shares.values()) * config.limit) for share in shares.values()]
        sizes[0] = config.limit - sizes[1] - sizes[2]
        pool = pool[: config.limit]
    if min(sizes) <= 0 or not (official or len(test)):
        raise ConfigError(f"data.name={config.name}: {size} examples are too few for four splits")
    largest = math.ceil(sum(sizes) / sizes[-1]) - 1
    if config.fold > largest:
        raise ConfigError(
            f"data.fold={config.fold}: data.name={config.name} has folds 0 to {largest} (nearest: {largest})"
        )
    parts = dict(zip(SHARES, pool.roll(config.fold * sizes[-1]).split(sizes), strict=True))
    return parts if official else {**parts, "test": test}


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 scanned digits, (N, 1, 8, 8), read from the file that ships with the package.

    The file is `load_digits`'s own; importing scikit-learn for it would cost every worker process three seconds.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("data.name=digits: needs 'pip install scikit-learn'")
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
    pixels, target = torch.from_numpy(table).split([64, 1], dim=1)
    return pixels.float().reshape(-1, 1, 8, 8), target.flatten()


def flip(y: Tensor, share: float, classes: int, generator: torch.Generator, confused: Tensor | None = None) -> Tensor:
    """Exactly round(share·N) of the labels, moved to another class, or to confused[class]."""
    if not share:
        return y
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    shift = torch.randint(1, max(classes, 2), (len(chosen),), generator=generator)
    y = y.clone()
    y[chosen] = (y[chosen] + shift) % classes if confused is None else confused[y[chosen]]
    return y


class Stream:
    """An endless sequence of batches: one random permutation after the other.

    A pure function of (seed, step): there is no position to save, and every process can compute its own share.

    Args:
        lengths: of the examples, (size,), when those of like length are to come together: every `bucket` batches of
            the permutation are sorted, cut into batches anew, and these are shuffled.
    """

    def __init__(self, size: int, batch_size: int, seed: int, lengths: Tensor | None = None, bucket: int = 0) -> None:
        self.size, self.batch_size, self.seed = size, min(batch_size, size), seed
        self.lengths, self.bucket = lengths, bucket
        self.cached: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, step: int) -> Tensor:
        """Indices of the examples of one step, (batch_size,)."""
        start = step * self.batch_size
        epoch, offset = divmod(start, self.size)
        taken = self.permutation(epoch)[offset : offset + self.batch_size]
        missing = self.batch_size - len(taken)
        return torch.cat([taken, self.permutation(epoch + 1)[:missing]]) if missing else taken

    def permutation(self, epoch: int) -> Tensor:
        if self.cached[0] != epoch:
            generator = seeded(self.seed, epoch + 16)
            order = torch.randperm(self.size, generator=generator)
            if self.bucket and self.lengths is not None:
                order = torch.cat([self.sorted(part, generator) for part in order.split(self.bucket * self.batch_size)])
            self.cached = epoch, order
        return self.cached[1]

    def sorted(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """The same examples, those of like length beside each other, batch by batch in random order."""
        assert self.lengths is not None
        batches = part[self.lengths[part].argsort(stable=True)].split(self.batch_size)
        return torch.cat([batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()])


def seeded(seed: int, purpose: int) -> torch.Generator:
    """A generator of its own for every purpose of a seed."""
    return torch.Generator().manual_seed(mixed(seed, purpose))


def mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers: different tuples give unrelated seeds (SplitMix64's finaliser)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
