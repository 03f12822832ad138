"""Small data sets in the formats of the published ones; torchvision is told their md5 sums instead of the true ones.

Every function writes below `root` and takes pytest's monkeypatch as `patch`; images are noise from a fixed seed.
"""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar(root: Path, patch, hundred: bool = False, per_file: int = 20) -> dict[str, np.ndarray]:
    """The folder of CIFAR-10 (or -100) with its pickled batches; returns images (N, 3, 32, 32) and labels of each."""
    from torchvision import datasets

    kind = datasets.CIFAR100 if hundred else datasets.CIFAR10
    rng, folder, classes = np.random.default_rng(0), root / kind.base_folder, 100 if hundred else 10
    folder.mkdir(parents=True)
    key, written = "fine_labels" if hundred else "labels", {}
    for name, _ in kind.train_list + kind.test_list:
        images = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = [index % classes for index in range(per_file)]
        entry = {"data": images, key: labels, "filenames": [f"{i}.png" for i in range(per_file)], "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
        written[name] = images.reshape(-1, 3, 32, 32), np.array(labels)
    names = {kind.meta["key"]: [f"class{index}" for index in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names, protocol=2))
    for field in ("train_list", "test_list"):
        patch.setattr(kind, field, [[name, md5(folder / name)] for name, _ in getattr(kind, field)])
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / kind.meta["filename"])})
    return written


def pack_cifar(root: Path, patch) -> Path:
    """CIFAR-10's archive in the place of its folder."""
    from torchvision.datasets import CIFAR10

    archive = pack(root / CIFAR10.base_folder, root / CIFAR10.filename)
    patch.setattr(CIFAR10, "tgz_md5", md5(archive))
    return archive


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    return archive


def svhn(root: Path, patch, size: int = 30) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """train_32x32.mat and test_32x32.mat; X is (32, 32, 3, N), and the label of the digit 0 is 10."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True, exist_ok=True)
    rng, written, known = np.random.default_rng(0), {}, dict(SVHN.split_list)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (32, 32, 3, size), dtype=np.uint8)
        labels = (np.arange(size, dtype=np.uint8) % 10 + 1)[:, None]
        path = root / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": labels}, do_compression=True)
        known[split] = [known[split][0], path.name, md5(path)]
        written[split] = images.transpose(3, 2, 0, 1), labels[:, 0].astype(int) % 10
    patch.setattr(SVHN, "split_list", known)
    return written


def jpeg(path: Path, seed: int, width: int = 90, height: int = 60, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg_bytes(seed, width, height, mode))


def jpeg_bytes(seed: int, width: int, height: int, mode: str) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).convert(mode).save(file, "JPEG")
    return file.getvalue()


def image_folders(base: Path, classes: int = 3, train: int = 4, val: int = 2) -> None:
    """train/ and val/ with a folder of JPEGs per class, of various sizes, some grey, named as ImageNet's."""
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            wnid = f"n{label:08d}"
            for index in range(count):
                name = f"{wnid}_{index}.JPEG" if part == "train" else f"ILSVRC2012_val_{label * val + index:08d}.JPEG"
                seed = 100 * label + 10 * index + (part == "val")
                jpeg(base / part / wnid / name, seed, 40 + 20 * index, 60, "L" if index == 1 else "RGB")


def flowers(root: Path, patch, each: int = 4) -> dict[str, np.ndarray]:
    """flowers-102 with jpg/, imagelabels.mat (from 1) and setid.mat; returns the image numbers of each split."""
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    ids = np.random.default_rng(0).permutation(np.arange(1, 3 * each + 1))
    splits = dict(zip(("trnid", "valid", "tstid"), np.split(ids, 3), strict=True))
    for number in ids:
        jpeg(folder / "jpg" / f"image_{number:05d}.jpg", int(number))
    savemat(folder / "imagelabels.mat", {"labels": (np.arange(3 * each, dtype=np.uint8) % 102 + 1)[None]})
    savemat(folder / "setid.mat", {name: numbers[None].astype(np.uint16) for name, numbers in splits.items()})
    known = dict(Flowers102._file_dict)
    for key in ("label", "setid"):
        known[key] = known[key][0], md5(folder / known[key][0])
    patch.setattr(Flowers102, "_file_dict", known)
    return splits


def pets(root: Path, each: int = 6) -> None:
    """oxford-iiit-pet with images/ and annotations/{trainval,test}.txt: image, class from 1, species, breed."""
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        lines = []
        for index in range(each):
            name = f"{'Abyssinian' if index % 2 else 'american_bulldog'}_{split}{index}"
            jpeg(folder / "images" / f"{name}.jpg", index)
            lines.append(f"{name} {index % 2 + 1} {index % 2 + 1} 1")
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
