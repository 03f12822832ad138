"""Averages over the processes of a data-parallel run; nothing at all in a run of one."""

from __future__ import annotations

from functools import reduce
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
        """Replace every tensor by its mean over the processes, in place, to the same bits on all of them."""

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
    """A torch.distributed process group (None: the default one): one all-reduce per call, over one flat buffer.

    Every process gives tensors of the same shapes and types. Types may be mixed: the sum is in the widest of them.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.subgroups: dict[int, Distributed] = {}

    def mean_(self, tensors: Tensors) -> None:
        if not tensors:
            return
        for t in tensors:
            if not (t.is_floating_point() or t.is_complex()):
                raise TypeError(f"a mean over the processes of {str(t.dtype).removeprefix('torch.')}: counts have none")
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        dist.all_reduce(flat, group=self.group)
        flat /= self.world
        for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.detach().copy_(mean.view(t.shape))

    def subgroup(self, size: int) -> Comm:
        if size == 1:
            return Solo()
        if size == self.world:
            return self
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
        # all processes would have to make the same groups, and the two halves do not ask for them together
        raise ValueError("the processes of a role share every perturbation: no smaller groups")

    def exchange(self, mine: Tensors, first: Tensors, second: Tensors) -> tuple[list[Tensor], list[Tensor]]:
        """What role 0 and role 1 found, each a mean over its half, for everybody; formed like `first` and `second`.

        Like them in shape, type and memory layout. `mine` stands for `first` in role 0, for `second` in role 1.

        One sum over all processes, of a buffer in which every role fills its own part: x − 0 is x, bit for bit.
        """
        like = [*first, *second]
        widest = reduce(torch.promote_types, {t.dtype for t in like})
        sizes = [t.numel() for t in like]
        flat = torch.full((sum(sizes),), -0.0, dtype=widest, device=like[0].device)
        own = slice(0, len(first)) if self.role == 0 else slice(len(first), None)
        for part, t in zip(flat.split(sizes)[own], mine, strict=True):
            part.view(t.shape).copy_(t.detach())
        dist.all_reduce(flat)
        flat /= self.world
        found = [
            torch.empty_like(t, requires_grad=False).copy_(part.view(t.shape))
            for part, t in zip(flat.split(sizes), like, strict=True)
        ]
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


def laid_out(t: Tensor, like: Tensor) -> Tensor:
    """The same values in memory of the same layout as `like`: a fused optimizer on the CPU takes that for granted."""
    return t if t.stride() == like.stride() else torch.empty_like(like, requires_grad=False).copy_(t)
