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

    def subgroup(self, size: int) -> Comm:
        """This process and those next to it, `size` in all; all processes must ask."""


class Solo:
    """A run of one process."""

    rank, world = 0, 1

    def mean_(self, tensors: Tensors) -> None:
        pass

    def subgroup(self, size: int) -> Comm:
        return self


class Distributed:
    """A torch.distributed process group (None: the default one): one all-reduce per call, over one flat buffer."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.subgroups: dict[int, Distributed] = {}

    def mean_(self, tensors: Tensors) -> None:
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        dist.all_reduce(flat, group=self.group)
        flat /= self.world
        start = 0
        for t in tensors:
            t.detach().copy_(flat[start : start + t.numel()].view(t.shape))
            start += t.numel()

    def subgroup(self, size: int) -> Comm:
        if size not in self.subgroups:
            found, _ = dist.new_subgroups(size, group=self.group)
            assert isinstance(found, dist.ProcessGroup)
            self.subgroups[size] = Distributed(found)
        return self.subgroups[size]


class Roles:
    """Two halves of the processes with different work (SAMPa); `rank`, `world` and `mean_` are within one's own half.

    Role 0 is the first half of the ranks, role 1 the second. `everyone` is all of them.
    """

    def __init__(self) -> None:
        self.everyone = Distributed()
        half, odd = divmod(self.everyone.world, 2)
        if odd or not half:
            raise ValueError(f"{self.everyone.world} processes cannot play two roles: an even number is needed")
        self.role = self.everyone.rank // half
        groups = [dist.new_group(list(range(start, start + half))) for start in (0, half)]
        own = groups[self.role]
        assert isinstance(own, dist.ProcessGroup)
        self.group = Distributed(own)
        self.rank, self.world = self.group.rank, half

    def mean_(self, tensors: Tensors) -> None:
        if self.world > 1:
            self.group.mean_(tensors)

    def subgroup(self, size: int) -> Comm:
        return self.group.subgroup(size)

    def exchange(self, mine: Tensors, first: Tensors, second: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        """What role 0 and role 1 found, each a mean over its half, for everybody; shaped like `first` and `second`.

        One sum over all processes, of a buffer in which every role fills its own part: x + 0 is x, bit for bit.
        """
        like = [*first, *second]
        flat = torch.zeros(sum(t.numel() for t in like), dtype=like[0].dtype, device=like[0].device)
        start = 0 if self.role == 0 else sum(t.numel() for t in first)
        for t in mine:
            flat[start : start + t.numel()] = t.detach().reshape(-1)
            start += t.numel()
        dist.all_reduce(flat)
        flat /= self.world
        found = [v.view(t.shape) for v, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]
        return found[: len(first)], found[len(first) :]


def owned(tensors: Tensors) -> list[Tensor]:
    """The same values in memory that may be written to.

    autograd may hand out one tensor for two parameters, or a view that repeats one number: those are copied.
    """
    seen: set[int] = set()
    found = []
    for t in tensors:
        shared = t.data_ptr() in seen or 0 in t.stride()
        seen.add(t.data_ptr())
        found.append(t.clone() if shared else t)
    return found
