"""Batches of a split for training, in the order of a stream: taken from memory, or decoded ahead by other processes.

What a batch holds is a function of (seed, step) alone, augmentation included: it is the same after a resume and for
every number of workers and readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import ConfigError, Data
from ..optim.comm import Comm
from .augment import Augment, Pixels
from .data import Split, Stream, mixed
from .files import Files

Share = Callable[[int], tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """Inputs, targets, and each example's position in the stream of all batches: what its dropout mask depends on."""

    x: Tensor
    y: Tensor
    position: Tensor


class Feed:
    """This process's share of the batch of any step, on the device of the split.

    Args:
        split: of which the batches are.
        seed: of their order, and of the augmentation.

    Raises:
        ConfigError: augmentation of what are no images.
    """

    def __init__(self, split: Split, config: Data, seed: int, comm: Comm) -> None:
        if config.augment and len(split.shape) != 3:
            asked = ", ".join(config.augment)
            raise ConfigError(f"data.augment={asked}: needs images (C, H, W), not inputs of shape {split.shape}")
        self.split, self.comm = split, comm
        lengths = None if isinstance(split.x, Tensor | Files) else split.x.lengths
        self.stream = Stream(max(1, len(split)), config.batch_size, seed, lengths, config.bucket)
        kinds, self.ahead = config.augment, None
        if isinstance(split.x, Files):  # readers crop: only they see the whole image
            self.ahead = Ahead(split.x, self.share, mixed(seed, 2) if "crop" in kinds else None, config.readers)
            kinds = tuple(kind for kind in kinds if kind != "crop")
        self.augment = Augment(kinds, mixed(seed, 1))
        self.pixels = split.pixels  # None: the stored numbers are what a network takes
        if self.pixels is None and kinds:
            unit = torch.ones(split.shape[0], device=split.y.device)
            self.pixels = Pixels(0 * unit, unit)

    def share(self, step: int) -> tuple[Tensor, Tensor]:
        """Indices of this process's examples in the split, and their positions in the stream."""
        size = self.stream.batch_size
        positions = torch.arange(step * size, (step + 1) * size)
        chosen, position = (
            part.tensor_split(self.comm.world)[self.comm.rank] for part in (self.stream.batch(step), positions)
        )
        return chosen, position

    def __call__(self, step: int) -> Batch:
        split, device = self.split, self.split.y.device
        chosen, position = self.share(step)
        there, at = (part.to(device, non_blocking=True) for part in (chosen, position))
        targets = split.y[there]
        if split.text:
            return Batch(split.x[chosen], targets, position)
        if self.ahead is not None:
            images, there = self.ahead(step).to(device, non_blocking=True), torch.arange(len(chosen), device=device)
        else:
            images = split.inputs
        if self.pixels is None:
            return Batch(images[there], targets, position)
        return Batch(self.augment.batch(images, there, at, self.pixels), targets, position)


class Ahead:
    """Images (B, C, H, W) of a share of any step's batch, decoded while earlier ones are trained on.

    Readers go on from step to step; asked for another one, as after a resume, they start there anew.

    Args:
        seed: of random crops; None: the crop that networks are evaluated on.
        readers: processes; 0: decode here, when asked.
    """

    def __init__(self, files: Files, share: Share, seed: int | None, readers: int) -> None:
        self.files, self.share, self.seed, self.readers = files, share, seed, readers
        self.coming: Iterator[Tensor] = iter(())
        self.next = -1  # the step that is coming
        self.last: dict[int, Tensor] = {}  # two of them: SAMPa asks for a batch twice

    def __call__(self, step: int) -> Tensor:
        if step not in self.last:
            if step != self.next:
                self.coming, self.next = self.start(step), step
            self.last = dict([*self.last.items(), (self.next, next(self.coming))][-2:])
            self.next += 1
        return self.last[step]

    def start(self, step: int) -> Iterator[Tensor]:
        def lists() -> Iterator[list[tuple[int, int]]]:
            for later in count(step):
                chosen, position = self.share(later)
                yield list(zip(chosen.tolist(), position.tolist(), strict=True))

        loader = DataLoader(
            Decoded(self.files, self.seed),
            batch_sampler=lists(),  # endless
            num_workers=self.readers,
            prefetch_factor=4 if self.readers else None,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class Decoded(Dataset[Tensor]):
    """One image (C, H, W) by its index in the split and its position in the stream."""

    def __init__(self, files: Files, seed: int | None) -> None:
        self.files, self.seed = files, seed

    def __getitem__(self, at: tuple[int, int]) -> Tensor:
        index, position = at
        return self.files.decode(index, None if self.seed is None else mixed(self.seed, position))
