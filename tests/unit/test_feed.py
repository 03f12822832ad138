"""Batches are functions of the step: whoever asks, in whatever order, with however many processes."""

import copy
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bisam_ray.config import ConfigError, Data, resolve
from bisam_ray.optim.comm import Solo
from bisam_ray.training import data, engine, feed
from bisam_ray.training.augment import Pixels
from bisam_ray.training.files import Files

from .test_engine import same

ALL = ("crop", "flip", "cutout")
PIXELS = Pixels(torch.full((3,), 127.0), torch.full((3,), 60.0))


def stored(kind, folder, n=40):
    """The same images in memory, or as files."""
    generator = np.random.default_rng(0)
    images, y = generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), torch.arange(n) % 10
    if kind == "memory":
        return data.Split(torch.from_numpy(images).permute(0, 3, 1, 2), y, PIXELS)
    paths = [str(folder / f"{i}.png") for i in range(n)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return data.Split(Files(paths, 24), y, PIXELS)


def of(rank, world):
    return SimpleNamespace(rank=rank, world=world)


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_what_a_step_sees_depends_on_nothing_else(kind, tmp_path):
    split, config = stored(kind, tmp_path), Data(batch_size=8, augment=ALL, readers=0)
    one = feed.Feed(split, config, 7, Solo())
    batches = [one(step) for step in range(8)]  # the order of the second epoch, too
    again = feed.Feed(split, config, 7, Solo())
    for step in (6, 2, 3, 3, 2, 7):  # asked for twice, backwards, and from the middle
        same(tuple(again(step)), tuple(batches[step]))
    halves = [feed.Feed(split, config, 7, of(rank, 2)) for rank in (0, 1)]
    for step in (0, 5):
        parts = [half(step) for half in halves]
        same(tuple(map(torch.cat, zip(*parts, strict=True))), tuple(batches[step]))
    x = batches[0].x
    assert (x.dtype, len(x)) == (torch.float32, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)
    plain = feed.Feed(split, Data(batch_size=8), 7, Solo())(0)
    assert torch.equal(plain.y, batches[0].y)
    assert not torch.equal(plain.x, x)  # augmented
    chosen = feed.Stream(40, 8, 7).batch(0)
    assert torch.equal(plain.x, split[chosen].ready().x)
    other = feed.Feed(split, config, 8, Solo())(0)
    assert not torch.equal(other.x, x)


def test_readers_decode_the_same(tmp_path):
    split = stored("files", tmp_path)
    here, ahead = (feed.Feed(split, Data(batch_size=8, augment=ALL, readers=n), 7, Solo()) for n in (0, 2))
    for step in range(3):
        same(tuple(here(step)), tuple(ahead(step)))
    together = torch.cat([part.x for part in split.batches(16)])
    assert torch.equal(together, split.ready().x)
    joined = data.joined(split[:10], split[10:])
    assert torch.equal(joined[torch.tensor([3, 12])].ready().x, split[torch.tensor([3, 12])].ready().x)


def test_floating_point_images_are_augmented_as_they_are():
    x = torch.randn(20, 1, 8, 8)
    split = data.Split(x, torch.arange(20))
    batch = feed.Feed(split, Data(batch_size=5, augment=("flip",)), 0, Solo())(0)
    whole = x[feed.Stream(20, 5, 0).batch(0)]
    flipped = (batch.x == whole.flip(3)).flatten(1).all(1)
    kept = (batch.x == whole).flatten(1).all(1)
    assert (flipped ^ kept).all()
    with pytest.raises(ConfigError, match=r"data.augment=crop: needs images \(C, H, W\), not inputs of shape \(5,\)"):
        feed.Feed(data.Split(torch.randn(9, 5), torch.arange(9)), Data(augment=("crop",)), 0, Solo())


@pytest.mark.parametrize("method", ["bisam-tanh", "lets-sam", "sampa"])
def test_a_run_on_augmented_images_is_resumed_bitwise(method):
    config = resolve(
        {"method": method, "data.name": "generated/cifar10", "data.augment": ALL, "data.batch_size": 8},
        {"train.epochs": 3, "model.name": "cnn", "data.label_noise": 0.2},
    )
    first, _, last = ((r.metrics, copy.deepcopy(r.state())) for r in engine.run(config))
    *_, again = engine.run(config, state=first[1])
    same(again.state(), last[1])
    same(again.metrics, last[0])


def test_pixels_are_standardised_by_what_is_trained_on():
    splits = data.load(Data(name="generated/cifar10", batch_size=64))
    x = data.joined(splits.train, splits.hyper).ready().x.double()
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_a_limit_keeps_the_proportions_and_the_test():
    whole, part = (
        data.load(Data(name="generated/cifar10", batch_size=64)),
        data.load(Data(name="generated/cifar10", batch_size=64, limit=50)),
    )
    assert [len(getattr(part, name)) for name in ("train", "hyper", "val")] == [40, 5, 5]
    assert torch.equal(part.test.x, whole.test.x)
    assert torch.equal(part.train.x, whole.train.x[:40])
    digits = data.load(Data(limit=130))
    assert [len(getattr(digits, name)) for name in ("train", "hyper", "val", "test")] == [85, 15, 30, 497]


def test_asymmetric_noise_goes_to_the_class_one_is_mistaken_for():
    clean, noisy = (
        data.load(Data(name="generated/cifar10", batch_size=64, noise_kind="asymmetric", label_noise=p)).train.y
        for p in (0.0, 0.4)
    )
    moved = clean != noisy
    assert set(zip(clean[moved].tolist(), noisy[moved].tolist(), strict=True)) <= {
        (9, 1),
        (2, 0),
        (4, 7),
        (3, 5),
        (5, 3),
    }
    assert moved.any()


def test_images_are_standardised_as_asked(tmp_path):
    ours, half = (data.load(Data(name="generated/cifar10", standardise=way)).val for way in (None, "half"))
    assert torch.equal(half.ready().x, (ours.x.float() - 127.5) / 127.5)
    for name, way, line in [
        ("digits", "half", "data.standardise=half: data.name=digits is no set of stored images; leave it out"),
        ("digits32", "imagenet", "data.standardise=imagenet: data.name=digits32 has no colours (nearest: data)"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(line)):
            data.load(Data(name=name, standardise=way))
    with pytest.raises(ConfigError, match="is read file by file"):
        data.standard(Data(name="pets", standardise="data"), stored("files", tmp_path).x, torch.arange(3))


@pytest.mark.parametrize("size", [73_257, 1_281_167, 50_000, 11, 26_032])
def test_an_official_test_set_leaves_everything_else_to_the_others(size):
    parts = data.partition(Data(), size, official=True)
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(size))
