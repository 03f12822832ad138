"""Batches out of images that lie on the device as they were stored: select, flip, crop, normalise, cut out.

Where each example is mirrored, cropped and cut is a counter-based function of (seed, position, purpose), computed on
the device: there is no generator whose state could differ between processes, batch sizes, or after a resume. Nothing
here waits for the device or loops over examples, so a batch costs the same few kernels whatever its size.

Store images with channels_last strides, `images.contiguous(memory_format=torch.channels_last)`: the bytes of an
example are then copied as one piece, and a row of a crop as one piece. Any other layout works, at twice the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of each channel, (C,), in units of the stored values: 0–255 for uint8."""

    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Pixels:
        return Pixels(self.mean.to(device), self.std.to(device))

    def normalise(self, images: Tensor) -> Tensor:
        """(x − mean) / std as float32 with channels_last strides, of `images` (B, C, H, W), which stay as they are."""
        x = images.permute(0, 2, 3, 1).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        # whole rows: an innermost loop over three channels would take thirty times as long
        rows, width = x.flatten(2), x.shape[2]
        rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return x.permute(0, 3, 1, 2)


class Augment:
    """Random changes of images (N, C, H, W), as the CIFAR papers make them.

    flip    mirrored left to right with probability ½
    crop    H//8 black pixels (4 of 32) around the image, and a window of its old size, uniformly placed, out of it
    cutout  with probability ½ a square of 2·(H//4) pixels (16 of 32), its centre uniform and its edges clipped at the
            border, becomes the mean colour: zero after normalisation (DeVries and Taylor, 2017)

    Args:
        kinds: which of them; they happen in the order above.
        seed: of all draws, below 2⁶³.

    Example:
        >>> images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
        >>> pixels = Pixels(torch.full((3,), 127.5), torch.full((3,), 64.0))
        >>> chosen = torch.tensor([3, 1, 3])
        >>> Augment(("crop", "flip"), seed=0).batch(images, chosen, torch.arange(3), pixels).shape
        torch.Size([3, 3, 32, 32])
    """

    def __init__(self, kinds: tuple[str, ...], seed: int) -> None:
        self.kinds, self.seed = kinds, seed

    def batch(self, images: Tensor, chosen: Tensor, position: Tensor, pixels: Pixels) -> Tensor:
        """Examples as the model sees them.

        Args:
            images: (N, C, H, W), uint8 or floating point.
            chosen: (B,) int64, which of them.
            position: (B,) int64, where each stands in the stream of all batches: what its draws depend on.
            pixels: of the data set.

        Returns:
            (B, C, H, W) float32 with channels_last strides. All arguments are on one device; so is the result.
        """
        x = images.permute(0, 2, 3, 1).index_select(0, chosen)
        if not self.kinds:
            return pixels.normalise(x.permute(0, 3, 1, 2))
        purposes = torch.arange(6, device=position.device)[:, None]
        mirror, top, left, cut, y, across = mixed(self.seed, position, purposes).unbind()
        height, width, border = x.shape[1], x.shape[2], x.shape[1] // 8
        if "flip" in self.kinds:
            x = mirrored(x, mirror % 2)
        if "crop" in self.kinds and border:
            x = cropped(x, border, top % (2 * border + 1), left % (2 * border + 1))
        x = pixels.normalise(x.permute(0, 3, 1, 2))
        if "cutout" in self.kinds:
            cut_out(x, cut % 2, y % height, across % width)
        return x


def mirrored(x: Tensor, chosen: Tensor) -> Tensor:
    """(B, H, W, C) with the images where `chosen` (B,) is 1, not 0, mirrored."""
    both = torch.cat([x, x.flip(2)])
    return both.index_select(0, torch.arange(len(x), device=x.device) + len(x) * chosen)


def cropped(x: Tensor, border: int, top: Tensor, left: Tensor) -> Tensor:
    """Windows (B, H, W, C) at (top, left), each (B,), of the images with that many zeros on every side."""
    count, height, width, channels = x.shape
    pitch, lines = width + 2 * border, height + 2 * border
    framed = x.new_zeros(count, lines, pitch, channels)
    framed[:, border:-border, border:-border] = x
    # a row of a window is one piece of memory, wherever it begins: view i of these begins at pixel i
    pieces = framed.flatten().unfold(0, width * channels, channels)
    first = (torch.arange(count, device=x.device) * lines + top) * pitch + left
    rows = first[:, None] + torch.arange(0, height * pitch, pitch, device=x.device)
    return pieces.index_select(0, rows.flatten()).view_as(x)


def cut_out(images: Tensor, chosen: Tensor, y: Tensor, x: Tensor) -> None:
    """Zero, in place, a clipped square around (y, x) of the images where `chosen` is 1, not 0.

    `images` (B, C, H, W) with channels_last strides; the others (B,). With k = H//4 the square has the rows y − k to
    y + k − 1, and columns alike.
    """
    _, channels, height, width = images.shape
    size = height // 4
    down = torch.arange(height, device=images.device) - y[:, None]
    across = torch.arange(width, device=images.device).repeat_interleave(channels) - x[:, None]
    down = ((down >= -size) & (down < size)) * chosen[:, None]
    across = (across >= -size) & (across < size)
    inside = down.float()[:, :, None] * across.float()[:, None]
    rows = images.permute(0, 2, 3, 1).flatten(2)
    rows.addcmul_(rows, inside, value=-1)  # x − x·1 is zero, x − x·0 is x; a third of the time of masked_fill_


def mixed(seed: int, *numbers: Tensor) -> Tensor:
    """`data.mixed(seed, *numbers)` for every element of broadcast int64 tensors: 63-bit numbers, uniform."""
    state = stirred(seed)
    # as a signed 64-bit number, which is what tensors hold; they wrap around by themselves
    mixture: Tensor = stirred(numbers[0] + ((state + (1 << 63)) % (1 << 64) - (1 << 63)))
    for number in numbers[1:]:
        mixture = stirred(mixture + number)
    return (mixture >> 1) & ((1 << 63) - 1)


def stirred(state: Number) -> Number:
    """SplitMix64's finaliser, exact in the lowest 64 bits; shifts of negative numbers are made logical by a mask."""
    state = state + (0x9E3779B97F4A7C15 - (1 << 64))
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return state ^ ((state >> 31) & ((1 << 33) - 1))
