"""The data sets that torchvision reads: CIFAR-10 and -100, SVHN, Oxford's Flowers and Pets.

CIFAR's files are Python pickles, which can run code when they are read. torchvision compares the md5 sum of every one
with the published one before it opens it, and nothing is read here past that check.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError, Data
from .download import PARTS, missing, obtain, root_of, told
from .files import Files

Parts = tuple[Tensor | Files, Tensor, Tensor | Files, Tensor]


def published(config: Data, classes: int) -> Parts:
    """(x, y, test_x, test_y), downloaded or unpacked before if need be.

    Raises:
        ConfigError: files are missing, damaged, or may not be read; with the path and what to do.
    """
    for part in missing(config):
        obtain(config, part)
    readers = {"cifar10": cifar, "cifar100": cifar, "svhn": svhn, "flowers102": flowers, "pets": pets}
    parts = readers[config.name](config)
    for y in (parts[1], parts[3]):
        if len(y) == 0 or int(y.min()) < 0 or int(y.max()) >= classes:
            raise ConfigError(
                f"data.name={config.name}: labels in {root_of(config)} are not from 1 to {classes}; {again(config)}"
            )
    return parts


def cifar(config: Data) -> Parts:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    folder = root_of(config) / kind.base_folder
    sums = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    parts: list[Any] = []
    for train in (True, False):
        found = opened(config, {folder / file: md5 for file, md5 in sums}, kind, train=train)
        # torchvision stacks the files' rows and looks at them as (N, H, W, C): back to how they lie, without a copy
        parts += [torch.from_numpy(found.data.transpose(0, 3, 1, 2)), torch.tensor(found.targets)]
    return tuple(parts)


def svhn(config: Data) -> Parts:
    from torchvision.datasets import SVHN

    parts: list[Any] = []
    for split in ("train", "test"):
        _, file, md5 = SVHN.split_list[split]
        found = opened(config, {root_of(config) / file: md5}, SVHN, split=split)
        # the file has the example as its last axis: the one copy brings it to the front
        parts += [torch.from_numpy(found.data).contiguous(), torch.from_numpy(found.labels).reshape(-1)]
    return tuple(parts)


def flowers(config: Data) -> Parts:
    from torchvision.datasets import Flowers102

    folder = root_of(config) / "flowers-102"
    sums = {folder / file: md5 for file, md5 in (Flowers102._file_dict[key] for key in ("label", "setid"))}
    train, val, test = (opened(config, sums, Flowers102, split=split) for split in ("train", "val", "test"))
    x = complete(config, folder / "jpg", [*train._image_files, *val._image_files])
    test_x = complete(config, folder / "jpg", test._image_files)
    return x, torch.tensor(train._labels + val._labels), test_x, torch.tensor(test._labels)


def pets(config: Data) -> Parts:
    from torchvision.datasets import OxfordIIITPet

    folder = root_of(config) / "oxford-iiit-pet"
    parts: list[Any] = []
    for split in ("trainval", "test"):
        try:
            found = opened(config, {}, OxfordIIITPet, split=split)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            file = folder / "annotations" / f"{split}.txt"
            raise ConfigError(f"data.name=pets: {file} is not as published ({error}); {again(config)}") from None
        parts += [complete(config, folder / "images", found._images), torch.tensor(found._labels)]
    return tuple(parts)


def opened(config: Data, sums: dict[Path, str], kind: Any, **split: Any) -> Any:
    """torchvision's reader of one split; where it refuses the files, which one, and why."""
    from torchvision.datasets.utils import calculate_md5

    with told(config):
        try:
            return kind(root_of(config), **split)
        except FileNotFoundError as error:
            raise ConfigError(f"data.name={config.name}: no {error.filename}; {again(config)}") from None
        except RuntimeError as error:
            reason = " ".join(str(error).split())
        for file, md5 in sums.items():
            if not file.exists():
                raise ConfigError(f"data.name={config.name}: no {file}; {again(config)}")
            if (found := calculate_md5(file)) != md5:
                raise ConfigError(f"data.name={config.name}: {file} has md5 {found}, not {md5}; {again(config)}")
    raise ConfigError(f"data.name={config.name}: {root_of(config)}: {reason}; {again(config)}")


def complete(config: Data, folder: Path, images: Iterable[Path]) -> Files:
    """Files of these images, all of which are in the folder."""
    with told(config):
        there = set(os.listdir(folder))
    paths = [str(image) for image in images]
    gone = [path for path in paths if os.path.basename(path) not in there]
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise ConfigError(f"data.name={config.name}: no {gone[0]}{more}; {again(config)}")
    return Files(paths, readers=config.readers)


def again(config: Data) -> str:
    places = " and ".join(str(root_of(config) / part) for part in PARTS[config.name])
    return f"delete {places} and set data.download=true"
