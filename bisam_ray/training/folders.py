"""Image folders, as ImageNet is kept: train/<class>/<image> and val/<class>/<image>."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError, Data
from .download import root_of, there, told
from .files import Files
from .published import Parts


def image_folders(config: Data) -> tuple[Parts, int]:
    """(x, y, test_x, test_y) and the number of classes, which are numbered in the order of their names.

    Raises:
        ConfigError: see class_folders; or no image in a class folder.
    """
    from torchvision.datasets import ImageFolder

    parts: list[Any] = []
    for folder in class_folders(config):
        with told(config):
            try:
                found = ImageFolder(folder)
            except FileNotFoundError as error:  # other files, but no image
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(f"data.name={config.name}: {folder}: {reason}; add images or delete it") from None
        paths, labels = zip(*found.samples, strict=True)
        parts += [Files(paths, readers=config.readers), torch.tensor(labels)]
    return (parts[0], parts[1], parts[2], parts[3]), len(found.classes)


def class_folders(config: Data) -> tuple[Path, Path]:
    """The folders train and val, in <root>/<name> or <root>; they hold the same classes, none of them empty.

    Raises:
        ConfigError: one of them is missing, differs, has an empty class, or may not be read.
    """
    root = root_of(config)
    tried = [root / config.name, root]
    base = next((folder for folder in tried if there(config, folder / "train")), None)
    if base is None or not there(config, base / "val"):
        lacking = " and no ".join(str(folder / "train") for folder in tried) if base is None else str(base / "val")
        raise ConfigError(
            f"data.name={config.name}: no {lacking}; it cannot be downloaded: unpack it as "
            f"{(base or tried[0]) / 'train'}/CLASS/IMAGE and {(base or tried[0]) / 'val'}/CLASS/IMAGE"
        )
    train, val = ({entry.name for entry in entries(config, base / part) if entry.is_dir()} for part in ("train", "val"))
    for inside, outside, only in (("train", "val", train - val), ("val", "train", val - train)):
        if only:
            more = f" (and {len(only) - 1} more)" if len(only) > 1 else ""
            raise ConfigError(
                f"data.name={config.name}: {base / inside / min(only)} has no counterpart in {base / outside}{more}; "
                "the classes of both must be the same"
            )
    if not train:
        raise ConfigError(f"data.name={config.name}: no class folder in {base / 'train'}; unpack it as CLASS/IMAGE")
    for folder in (base / part / name for part in ("train", "val") for name in sorted(train)):
        if not entries(config, folder, 1):
            raise ConfigError(f"data.name={config.name}: {folder} is empty; fill it, or delete the class")
    return base / "train", base / "val"


def entries(config: Data, folder: Path, most: int | None = None) -> list[os.DirEntry[str]]:
    """Of a folder, the first `most`."""
    with told(config), os.scandir(folder) as found:
        return list(itertools.islice(found, most))
