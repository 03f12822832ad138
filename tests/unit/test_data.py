"""Splits are disjoint, noise is exact, streams are functions of the step."""

import hashlib

import pytest
import torch

from bisam_ray.config import ConfigError, Data
from bisam_ray.training import data


def rows(split):
    return {tuple(x.flatten().tolist()) for x in split.x}


def test_digits_are_split_as_stated_and_disjoint():
    splits = data.load(Data())
    assert [len(getattr(splits, n)) for n in ("train", "hyper", "val", "test")] == [850, 150, 300, 497]
    assert splits.classes == 10
    together = set.union(*(rows(getattr(splits, n)) for n in ("train", "hyper", "val", "test")))
    assert len(together) == 1797  # no digit occurs twice, so none is in two splits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    x, y = data.digits()
    bunch = load_digits()
    assert torch.equal(x[:, 0].double(), torch.from_numpy(bunch.images))
    assert torch.equal(y, torch.from_numpy(bunch.target))


def test_symmetric_noise_flips_exactly_its_share_and_never_test():
    clean, noisy = data.load(Data()), data.load(Data(label_noise=0.4))
    for name in ("train", "hyper", "val"):
        a, b = getattr(clean, name), getattr(noisy, name)
        assert torch.equal(a.x, b.x)
        assert int((a.y != b.y).sum()) == round(0.4 * len(a))
    assert torch.equal(clean.test.y, noisy.test.y)
    assert not torch.equal(data.load(Data(label_noise=0.4, noise_seed=1)).train.y, noisy.train.y)


def test_all_labels_wrong_is_possible():
    clean, noisy = data.load(Data()), data.load(Data(label_noise=1))
    assert not (clean.val.y == noisy.val.y).any()


def test_the_split_seed_draws_other_splits():
    assert rows(data.load(Data()).test) != rows(data.load(Data(split_seed=1)).test)


def test_fold_0_is_the_split_of_always():
    """The indices, by their hash, from before there were folds."""
    for seed, size, known in [
        (0, 1797, "71e9d4bafdc06147"),
        (7, 1797, "c54a23c1324c5193"),
        (0, 40, "7d499160a514c346"),
    ]:
        parts = data.partition(Data(split_seed=seed), size)
        assert list(parts) == ["train", "hyper", "val", "test"]
        assert hashlib.sha256(torch.cat(list(parts.values())).numpy().tobytes()).hexdigest()[:16] == known
    assert [len(part) for part in parts.values()] == [19, 3, 7, 11]


def test_folds_have_another_val_each_and_the_same_test():
    folds = [data.partition(Data(split_seed=3, fold=fold), 1797) for fold in range(5)]
    vals = [set(parts["val"].tolist()) for parts in folds]
    assert all(len(val) == 300 for val in vals)
    assert all(vals[a].isdisjoint(vals[b]) for a in range(4) for b in range(a))
    pool = set(range(1797)) - set(folds[0]["test"].tolist())
    assert set.union(*vals) == pool  # the fifth takes what the four leave, and wraps around
    for parts in folds:
        assert torch.equal(parts["test"], folds[0]["test"])
        assert [len(parts[name]) for name in ("train", "hyper")] == [850, 150]
        assert set(torch.cat([parts[name] for name in ("train", "hyper", "val")]).tolist()) == pool


def test_a_fold_that_the_data_do_not_have_is_refused():
    data.load(Data(fold=4))
    with pytest.raises(ConfigError, match=r"^data\.fold=5: .*0 to 4 \(nearest: 4\)$"):
        data.load(Data(fold=5))


def test_noise_flips_its_share_in_every_split_of_every_fold():
    for fold in range(1, 5):
        clean, noisy = data.load(Data(fold=fold)), data.load(Data(fold=fold, label_noise=0.3))
        for name in ("train", "hyper", "val"):
            a, b = getattr(clean, name), getattr(noisy, name)
            assert int((a.y != b.y).sum()) == round(0.3 * len(a))
        assert torch.equal(clean.test.y, noisy.test.y)


def test_a_learned_radius_pays_for_its_hyper_split():
    splits = data.load(Data())
    assert [len(part) for part in splits.fitting(learned=True)] == [850, 150]
    assert [len(part) for part in splits.fitting(learned=False)] == [1000, 0]


def test_a_stream_visits_everything_before_anything_twice():
    stream = data.Stream(10, 4, seed=3)
    seen = torch.cat([stream.batch(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_stream_is_a_function_of_the_step():
    a, b = data.Stream(10, 4, seed=3), data.Stream(10, 4, seed=3)
    forward = [a.batch(step) for step in range(7)]
    assert all(torch.equal(b.batch(step), forward[step]) for step in reversed(range(7)))


def test_a_stream_smaller_than_its_batch():
    assert sorted(data.Stream(3, 64, seed=0).batch(5).tolist()) == [0, 1, 2]
