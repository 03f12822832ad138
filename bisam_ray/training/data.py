"""Data sets, the four splits, label noise, and the order in which examples are seen.

    train    the lower level: every gradient step
    hyper    the upper level of a learned radius; for every other method, more training data
    val      every choice is made here
    test     looked at once per finished replicate; never noisy

A data set of your own: `data.name=module:function`; the function takes no argument and returns (inputs, targets):
inputs (N, …) floating point, targets (N,) integers from 0. It is split here, in the same proportions as digits.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError, Data
from .plugins import load_function

SHARES = {
    "train": 0.473,
    "hyper": 0.0835,
    "val": 0.167,
}  # of all examples; test is the rest. Digits: 850, 150, 300, 497


@dataclass(frozen=True)
class Split:
    """Inputs (N, …) and targets (N,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Split:
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Splits:
    """Four disjoint splits of one data set."""

    train: Split
    hyper: Split
    val: Split
    test: Split
    classes: int

    def fitting(self, learned: bool) -> tuple[Split, Split]:
        """(what the gradient steps see, what the upper level sees): train and hyper, or their union and nothing."""
        if learned:
            return self.train, self.hyper
        both = Split(torch.cat([self.train.x, self.hyper.x]), torch.cat([self.train.y, self.hyper.y]))
        return both, Split(both.x[:0], both.y[:0])


def load(config: Data) -> Splits:
    """Read, normalise, split by `split_seed` and `fold`, and flip labels by `noise_seed`.

    Inputs are standardised by the mean and deviation of train ∪ hyper. Symmetric noise p flips exactly round(p·n)
    labels of each of train, hyper and val to one of the other classes, uniformly.
    """
    x, y = digits() if config.name == "digits" else own(config.name)
    classes = int(y.max()) + 1
    parts = partition(config, len(y))
    fit = x[torch.cat([parts["train"], parts["hyper"]])]
    x = (x - fit.mean()) / fit.std().clamp_min(1e-8)
    splits = {name: Split(x[part], y[part]) for name, part in parts.items()}
    noise = seeded(config.noise_seed, 2)
    for name in SHARES:
        splits[name] = Split(splits[name].x, flip(splits[name].y, config.label_noise, classes, noise))
    return Splits(**splits, classes=classes)


def partition(config: Data, size: int) -> dict[str, Tensor]:
    """Indices of each split's examples.

    `split_seed` draws test and the order of the others, which are train, hyper and val from front to back. Fold f
    turns that order by f·|val|: val is then the f-th piece from behind. Folds have pairwise disjoint val as long as
    (f + 1)·|val| ≤ |train ∪ hyper ∪ val|; the fold after those takes what is left and wraps around; more there are not.

    Raises:
        ConfigError: too few examples, or no such fold.
    """
    sizes = [round(share * size) for share in SHARES.values()]
    if min(*sizes, size - sum(sizes)) <= 0:
        raise ConfigError(f"data.name={config.name}: {size} examples are too few for four splits")
    largest = math.ceil(sum(sizes) / sizes[-1]) - 1
    if config.fold > largest:
        raise ConfigError(
            f"data.fold={config.fold}: data.name={config.name} has folds 0 to {largest} (nearest: {largest})"
        )
    pool, test = torch.randperm(size, generator=seeded(config.split_seed, 1)).tensor_split([sum(sizes)])
    return dict(zip(SHARES, pool.roll(config.fold * sizes[-1]).split(sizes), strict=True)) | {"test": test}


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


def own(name: str) -> tuple[Tensor, Tensor]:
    """The user's own data set."""
    made = load_function("data.name", name)()
    try:
        x, y = (torch.as_tensor(part) for part in made)
    except (TypeError, ValueError):
        raise ConfigError(f"data.name={name}: must return (inputs, targets), not {type(made).__name__}") from None
    if len(x) != len(y) or y.dim() != 1 or y.is_floating_point() or len(y) == 0 or int(y.min()) < 0:
        raise ConfigError(
            f"data.name={name}: expected inputs (N, …) and integer targets (N,) from 0, "
            f"got {tuple(x.shape)} and {tuple(y.shape)} {str(y.dtype).removeprefix('torch.')}"
        )
    return x.float(), y.long()


def flip(y: Tensor, share: float, classes: int, generator: torch.Generator) -> Tensor:
    """Exactly round(share·N) of the labels, moved to another class."""
    chosen = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    shift = torch.randint(1, max(classes, 2), (len(chosen),), generator=generator)
    y = y.clone()
    y[chosen] = (y[chosen] + shift) % classes
    return y


class Stream:
    """An endless sequence of batches: one random permutation after the other.

    A pure function of (seed, step): there is no position to save, and every process can compute its own share.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, min(batch_size, size), seed
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
            self.cached = epoch, torch.randperm(self.size, generator=seeded(self.seed, epoch + 16))
        return self.cached[1]


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
