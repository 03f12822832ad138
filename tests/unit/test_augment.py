"""Batched augmentation on the device: the pixels of a slow reference, fair draws, the same whatever the batch."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chi2_contingency
from torch.utils._python_dispatch import TorchDispatchMode

from bisam_ray.training import data
from bisam_ray.training.augment import Augment, Pixels, mixed

ALL = ("crop", "flip", "cutout")
KINDS = [kinds for n in range(4) for kinds in combinations(ALL, n)]
SHAPES = [(3, 32, 32, torch.uint8), (1, 8, 8, torch.float32), (1, 28, 28, torch.uint8), (3, 6, 6, torch.uint8)]


def images_of(channels, height, width, dtype, count=9):
    drawn = torch.randint(1, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype)


def pixels_of(channels):
    return Pixels(torch.tensor([120.5, 110.25, 100.0])[:channels], torch.tensor([60.0, 64.0, 70.0])[:channels])


def reference(image, seed, position, kinds, pixels):
    """One image, (C, H, W) numpy, one step after the other."""
    mirror, top, left, cut, y, x = (data.mixed(seed, position, purpose) for purpose in range(6))
    channels, height, width = image.shape
    border, half = height // 8, height // 4
    if "flip" in kinds and mirror % 2:
        image = image[:, :, ::-1]
    if "crop" in kinds:
        image = np.pad(image, ((0, 0), (border, border), (border, border)))
        top, left = top % (2 * border + 1), left % (2 * border + 1)
        image = image[:, top : top + height, left : left + width]
    column = (channels, 1, 1)
    image = image.astype(np.float32)
    image = (image - pixels.mean.numpy().reshape(column)) / pixels.std.numpy().reshape(column)
    if "cutout" in kinds and cut % 2:
        y, x = y % height, x % width
        image[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
    return torch.from_numpy(np.ascontiguousarray(image))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_pixels_are_those_of_the_reference(shape, kinds):
    images, pixels = images_of(*shape), pixels_of(shape[0])
    before = images.clone()
    position = torch.arange(40) * 7919 + 2**40
    chosen = position % len(images)
    expected = torch.stack(
        [reference(images[c].numpy(), 5, int(p), kinds, pixels) for c, p in zip(chosen, position, strict=True)]
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        x = Augment(kinds, 5).batch(images.contiguous(memory_format=layout), chosen, position, pixels)
        assert torch.equal(x, expected)
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_normalise_leaves_its_input_alone_and_agrees_with_the_formula():
    x = torch.rand(4, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    before, pixels = x.clone(), pixels_of(3)
    found = pixels.normalise(x)
    assert torch.equal(x, before)
    assert torch.equal(found, (x - pixels.mean[:, None, None]) / pixels.std[:, None, None])
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_those_of_data_mixed():
    positions = [0, 1, 2, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**62]
    for seed in (0, 1, 2**32, 2**63 - 1, data.mixed(3, 7)):
        found = mixed(seed, torch.tensor(positions), torch.arange(6)[:, None])
        assert found.tolist() == [[data.mixed(seed, p, purpose) for p in positions] for purpose in range(6)]


def observed(count=40_000, seed=1):
    """Draws at consecutive positions, read off the images that they make: of one that tells every pixel apart.

    Returns (mirrored, top, left, cut, first row, last row, first column, last column), each (count,).
    """
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8)
    pixels, position = Pixels(torch.zeros(1), torch.ones(1)), torch.arange(count)
    moved = Augment(("crop", "flip"), seed).batch(image, torch.zeros_like(position), position, pixels)[:, 0]
    mirrored = (moved[:, 3, 4] < moved[:, 3, 3]).long()
    at = moved[:, 3, 3].long() - 1  # the pixel that came to row 3, column 3
    column = torch.where(mirrored == 1, 7 - at % 8, at % 8)
    holes = Augment(("cutout",), seed).batch(image, torch.zeros_like(position), position, pixels)[:, 0] == 0
    rows, columns = holes.any(2).long(), holes.any(1).long()
    ends = [end for side in (rows, columns) for end in (side.argmax(1), 7 - side.flip(1).argmax(1))]
    return mirrored, at // 8 - 3 + 1, column - 3 + 1, rows.any(1).long(), *ends


def uniform_p(values, kinds):
    counts = np.bincount(values.numpy(), minlength=kinds)
    assert len(counts) == kinds
    mean = len(values) / kinds
    return chi2.sf(((counts - mean) ** 2 / mean).sum(), kinds - 1)


def test_offsets_flips_and_squares_are_uniform():
    mirrored, top, left, cut, *_ = observed()
    for values, kinds in ((mirrored, 2), (top, 3), (left, 3), (cut, 2)):
        assert uniform_p(values, kinds) > 1e-3


def test_squares_are_clipped_at_the_border():
    """8 rows, squares of 4: a centre at row y cuts rows y − 2 … y + 1 of those that there are, each y equally often."""
    *_, cut, top, bottom, left, right = observed()
    for first, last in ((top, bottom), (left, right)):
        found = first[cut == 1] * 8 + last[cut == 1]
        pairs = [max(y - 2, 0) * 8 + min(y + 1, 7) for y in range(8)]
        where = torch.tensor([pairs.index(pair) if pair in pairs else 8 for pair in range(64)])[found]
        assert uniform_p(where, 8) > 1e-3


def test_purposes_and_consecutive_positions_are_independent():
    mirrored, top, left, cut, first_row, _, first_column, _ = observed()
    on = cut == 1
    pairs = [(a, b) for a, b in combinations((mirrored, top, left, cut), 2)]
    pairs += [(a[:-1], a[1:]) for a in (mirrored, top, left, cut)]
    pairs += [(first_row[on], first_column[on]), (first_row[on], top[on]), (first_column[on], left[on])]
    for a, b in pairs:
        table = np.histogram2d(a, b, bins=(int(a.max()) + 1, int(b.max()) + 1))[0]
        assert chi2_contingency(table).pvalue > 1e-3


def test_seeds_differ():
    assert not torch.equal(observed(100, seed=1)[1], observed(100, seed=2)[1])


def test_an_example_is_the_same_in_every_split_of_the_batch():
    images, pixels = images_of(3, 32, 32, torch.uint8, 50), pixels_of(3)
    augment, stream = Augment(ALL, 3), data.Stream(50, 12, 0)
    position = torch.arange(12) + 12 * 9
    whole = augment.batch(images, stream.batch(9), position, pixels)
    assert len({x.numpy().tobytes() for x in whole}) == 12
    for workers in (2, 3, 5, 12):
        shares = zip(stream.batch(9).tensor_split(workers), position.tensor_split(workers), strict=True)
        parts = [Augment(ALL, 3).batch(images, c, p, pixels) for c, p in shares]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment.batch(images, stream.batch(9)[order], position[order], pixels), whole[order])


def test_nothing_depends_on_values_of_the_device():
    """Tensors on `meta` have no values: what would wait for one (.item(), nonzero, a branch) raises."""
    images = torch.empty(50, 3, 32, 32, dtype=torch.uint8, device="meta")
    index = torch.empty(12, dtype=torch.int64, device="meta")
    x = Augment(ALL, 3).batch(images, index, index, pixels_of(3).to(torch.device("meta")))
    assert x.shape == (12, 3, 32, 32)


class Counted(TorchDispatchMode):
    """The names of all operations but views and what allocates."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if not func.is_view and not name.startswith(("empty", "new_empty", "copy_", "_unsafe_view")):
            self.made.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_but_selection_and_normalisation_without_kinds():
    images = images_of(3, 32, 32, torch.uint8).contiguous(memory_format=torch.channels_last)
    chosen, pixels = torch.arange(4), pixels_of(3)
    with Counted() as ops:
        Augment((), 3).batch(images, chosen, chosen, pixels)
    assert [name for name in ops.made if name != "repeat"] == ["index_select", "_to_copy", "sub_", "div_"]


def test_the_number_of_operations_does_not_grow_with_the_batch():
    images, pixels, made = images_of(3, 32, 32, torch.uint8), pixels_of(3), []
    for count in (2, 64):
        position = torch.arange(count)
        with Counted() as ops:
            Augment(ALL, 3).batch(images, position % 9, position, pixels)
        made.append(len(ops.made))
    assert made[0] == made[1] < 90


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(backend):
    images, pixels, position = images_of(3, 32, 32, torch.uint8), pixels_of(3), torch.arange(64) + 2**33
    augment = Augment(ALL, 3)
    compiled = torch.compile(augment.batch, backend=backend, fullgraph=True)
    torch.testing.assert_close(
        compiled(images, position % 9, position, pixels), augment.batch(images, position % 9, position, pixels)
    )


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "input_pipeline.py"


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of a source distribution")
def test_the_benchmark_runs():
    done = subprocess.run([sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "crop, flip" in done.stdout
    assert "Ray Data" in done.stdout
