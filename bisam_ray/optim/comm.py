"""Averages over the processes of a data-parallel run; nothing at all in a run of one."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]  # what foreach kernels take


class Comm(Protocol):
    """What a step needs to know of the other processes."""

    rank: int
    world: int

    def mean_(self, tensors: Tensors) -> None:
        """Replace every tensor by its mean over the processes, in place."""


class Solo:
    """A run of one process."""

    rank, world = 0, 1

    def mean_(self, tensors: Tensors) -> None:
        pass


class Distributed:
    """The default torch.distributed process group: one all-reduce per call, over one flat buffer."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def mean_(self, tensors: Tensors) -> None:
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for t in tensors:
            t.detach().copy_(flat[start : start + t.numel()].view(t.shape))
            start += t.numel()
