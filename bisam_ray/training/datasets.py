"""Data sets by name, as they are published: read, checked, and where torchvision can do it, downloaded.

    digits, digits32          scikit-learn's, 8×8, or resized to 32×32; no official test set
    unicode                   names of Unicode's characters, and their categories; see own.py; no official test set
    cifar10, cifar100, svhn   uint8 in memory
    flowers102, pets          Oxford's, as image files; the official train and val are the training examples
    imagenet, imagenet100     image files, one folder per class, in <root>/imagenet/{train,val} or <root>/{train,val};
                              val is the test set
    glue/NAME                 pairs of sentences and their relation; see glue.py
    iwslt14                   German sentences and their English translations; see translation.py
    generated/NAME            seeded noise in the shape and with the classes of NAME, for trying out

Where their files must lie: download.py and folders.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import ConfigError, Data, suggest
from . import glue, own, text, translation
from .data import digits
from .download import PARTS, missing
from .files import Files
from .folders import class_folders, image_folders
from .published import published
from .task import Classification

if TYPE_CHECKING:
    from .text import Ragged, Tokens

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "digits32": ((1, 32, 32), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "svhn": ((3, 32, 32), 10),
    "imagenet": ((3, 224, 224), 1000),
    "imagenet100": ((3, 224, 224), 100),
    "flowers102": ((3, 224, 224), 102),
    "pets": ((3, 224, 224), 37),
}  # of one input, and the number of classes
FOLDERS = ("imagenet", "imagenet100")
# truck → automobile, bird → airplane, deer → horse, cat ↔ dog; the other five are mistaken for nothing
CIFAR10_CONFUSED = (0, 1, 0, 5, 7, 3, 6, 7, 8, 1)
# the super-class of each class of CIFAR-100
CIFAR100_SUPER = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A data set as it is published.

    Args:
        x: (N, …), images as uint8 (N, C, H, W), or files of images.
        y: (N,) int64 in [0, classes).
        test_x, test_y: the official test set, where there is one.
        confused: (classes,), the class that each one is mistaken for; see `confusion`.
        task: what is learned of it.
        tokens: of text.
    """

    x: Tensor | Files | Ragged
    y: Tensor
    test_x: Tensor | Files | Ragged | None
    test_y: Tensor | None
    classes: int
    confused: Tensor
    task: Classification = field(default_factory=Classification)
    tokens: Tokens | None = None


def read(config: Data) -> Source:
    """The data set `config.name`, downloaded or unpacked before if need be.

    Raises:
        ConfigError: it is not there, is damaged, or may not be read; with the path and what to do.
    """
    name = config.name
    if ":" in name:
        return own.own(config)
    if name == "unicode":
        return own.unicode(config)
    if name in ("digits", "digits32"):
        x, y = digits()
        if name == "digits32":
            resized = torch.nn.functional.interpolate(x * (255 / 16), size=32, mode="bilinear", align_corners=False)
            x = resized.round().to(torch.uint8)
        return source_of(name, x, y)
    if name.startswith("generated/"):
        return generated(config)
    if name.startswith("glue/"):
        return glue.read(config)
    if name == "iwslt14":
        return translation.read(config)
    if name in FOLDERS:
        parts, classes = image_folders(config)
    else:
        classes = SHAPES[name][1]
        parts = published(config, classes)
    return Source(*parts, classes, confusion(name, classes))


def source_of(name: str, x: Tensor | Ragged, y: Tensor, tokens: Tokens | None = None) -> Source:
    """A data set without an official test set, (N, …) and (N,); its classes are those that occur."""
    classes = int(y.max()) + 1
    return Source(x, y, None, None, classes, confusion(name, classes), tokens=tokens)


def check(config: Data) -> None:
    """Whether the data are there and may be read, or downloaded; reads no data, and needs no torchvision.

    Raises:
        ConfigError: as `read`, but wrong checksums and broken images are found only there.
    """
    if config.name.startswith("generated/glue/"):
        glue.task_of(config)
    elif config.name.startswith("generated/") and config.name != "generated/iwslt14":
        known_shape(config)
    elif config.name.startswith("glue/"):
        glue.check(config)
    elif config.name == "unicode":
        text.check(config)
    elif config.name == "iwslt14":
        translation.check(config)
    elif config.name in FOLDERS:
        class_folders(config)
    elif config.name in PARTS:
        missing(config)


def confusion(name: str, classes: int) -> Tensor:
    """The class that each one is mistaken for under asymmetric label noise, (classes,).

    CIFAR-10: truck for automobile, bird for airplane, deer for horse, cat and dog for each other, and the other five
    for nothing (themselves), so that a share p of flipped labels leaves about p/2 wrong ones. CIFAR-100: the next class
    of the same super-class. Elsewhere the next class.

    Source: Patrini, Rozza, Menon, Nock and Qu, "Making Deep Neural Networks Robust to Label Noise: a Loss Correction
    Approach", 2017. (Their code takes every five consecutive classes for a super-class of CIFAR-100; these are the
    real ones.)
    """
    name = name.removeprefix("generated/")
    if name == "cifar10":
        return torch.tensor(CIFAR10_CONFUSED)
    confused = (torch.arange(classes) + 1) % classes
    if name == "cifar100":
        groups = torch.tensor(CIFAR100_SUPER)
        for group in range(20):
            members = (groups == group).nonzero().flatten()
            confused[members] = members.roll(-1)
    return confused


def known_shape(config: Data) -> tuple[tuple[int, int, int], int]:
    name = config.name.removeprefix("generated/")
    if name not in SHAPES:
        raise ConfigError(f"data.name={config.name}: no data set {name}{suggest(name, SHAPES)}")
    return SHAPES[name]


def generated(config: Data) -> Source:
    """Noise: training examples for two batches of the smallest split that is trained on, and 16 of test."""
    sizes = max(10, math.ceil(config.batch_size * 2 / 0.8)), 16
    if config.name.startswith("generated/glue/"):
        return glue.generated(config, sizes)
    if config.name == "generated/iwslt14":
        return translation.generated(config, sizes)
    shape, classes = known_shape(config)
    generator = torch.Generator().manual_seed(0)
    pixels = math.prod(shape) * sum(sizes)
    # eight pixels from every number drawn
    words = torch.empty(math.ceil(pixels / 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    x, test_x = words.view(torch.uint8)[:pixels].reshape(-1, *shape).split(sizes)
    y, test_y = torch.randint(classes, (sum(sizes),), generator=generator).split(sizes)
    return Source(x, y, test_x, test_y, classes, confusion(config.name, classes))
