"""Image files of any size, decoded when they are needed: what a data set too large for the memory holds instead of x.

Every image leaves as uint8 (3, size, size). The transforms work on tensors: four times as fast as on PIL images, and
within one grey level of them. PIL decodes, because it notices files that end too early.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class BrokenImage(RuntimeError):
    """One line: the path, what is wrong with it, and what to do.

    A DataLoader raises anew what happened in one of its processes, with the whole traceback as text: its last line,
    which is this error's own, is kept.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.rstrip().rpartition("\n")[2].removeprefix(f"{__name__}.BrokenImage: "))


class Files:
    """Image files, in the place of a tensor (N, 3, size, size) that is decoded row by row.

    Args:
        paths: one per example.
        size: height and width of what comes out, in pixels.
        readers: threads that decode at once.
    """

    def __init__(self, paths: Sequence[str], size: int = 224, readers: int = 1) -> None:
        self.paths, self.size, self.readers = list(paths), size, max(1, readers)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.size, self.size

    def subset(self, indices: Tensor) -> Files:
        """The files of these examples (B,), in this order; nothing is decoded."""
        return Files([self.paths[index] for index in indices.tolist()], self.size, self.readers)

    def __add__(self, others: Files) -> Files:
        return Files(self.paths + others.paths, self.size, self.readers)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """These examples (B,) for evaluation, uint8 (B, 3, size, size).

        Raises:
            BrokenImage: a file is gone, may not be read, or is no whole image.
        """
        whole = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        with ThreadPoolExecutor(self.readers) as pool:
            try:
                for row, image in enumerate(pool.map(self.decode, indices.tolist())):
                    whole[row] = image
            except BrokenImage:
                pool.shutdown(cancel_futures=True)
                raise
        return whole

    def pieces(self, size: int) -> Iterator[Tensor]:
        """All of them for evaluation, in order, `size` at a time."""
        for indices in torch.arange(len(self)).split(size):
            yield self[indices]

    def decode(self, index: int, seed: int | None = None) -> Tensor:
        """One image, uint8 (3, size, size).

        Args:
            index: of the example.
            seed: of torchvision's RandomResizedCrop. None, for evaluation: the shorter side becomes 256 (of 224),
                and the centre is kept.

        torchvision draws from torch's global generator. Its state is put back, but two threads must not draw at once.

        Raises:
            BrokenImage: as above.
        """
        from torchvision.transforms.v2 import functional

        image = read_image(self.paths[index])
        if seed is None:
            image = functional.resize(image, [round(self.size * 256 / 224)], antialias=True)
            return functional.center_crop(image, [self.size, self.size]).contiguous()
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
            return random_crop(self.size)(image).contiguous()
        finally:
            torch.set_rng_state(state)


@functools.cache
def random_crop(size: int) -> Any:
    from torchvision.transforms.v2 import RandomResizedCrop

    return RandomResizedCrop(size, antialias=True)


def read_image(path: str) -> Tensor:
    """uint8 (3, H, W), of any format that PIL reads; grey, palette and CMYK images become RGB."""
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as image:
            return functional.pil_to_tensor(image.convert("RGB"))
    except FileNotFoundError:
        raise BrokenImage(f"{path}: the file has gone since the run began; put it back, or start anew") from None
    except PermissionError:
        raise BrokenImage(f"{path}: no permission to read it; chmod a+r") from None
    except UnidentifiedImageError:
        raise BrokenImage(f"{path}: no image, whatever its name; replace or delete it") from None
    # what the decoders of the various formats raise for damaged files
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImage(f"{path}: a broken image ({reason}); replace or delete it") from None
