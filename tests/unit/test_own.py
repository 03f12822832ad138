"""Data of the user's own, numbers and texts, and the names of Unicode's characters."""

import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bisam_ray.config import ConfigError, Data, resolve
from bisam_ray.training import data, engine, models
from bisam_ray.training.text import UNKNOWN

WORDS = ("red", "green", "blue", "grey")
MINE = {
    "shapes": lambda: (torch.randn(40, 5), torch.arange(40) % 4),
    "arrays": lambda: (np.random.default_rng(0).normal(size=(40, 5)), [i % 4 for i in range(40)]),
    "texts": lambda: ([f"a {WORDS[i % 4]} thing {i}" for i in range(80)], [i % 4 for i in range(80)]),
    "pairs": lambda: ([(WORDS[i % 4], WORDS[i // 4 % 4]) for i in range(80)], np.arange(80) % 4),
    "alone": lambda: ([f"thing {chr(0x4E00 + i)}" for i in range(80)], [i % 4 for i in range(80)]),
    "broken": lambda: torch.randn(40, 5),
    "nothing": lambda: None,
    "halves": lambda: (torch.randn(40, 5), torch.rand(40)),
    "ragged": lambda: ([[1, 2], [3]], [0, 1]),
    "mixed": lambda: (["a", "b", None] * 20, [0, 1, 0] * 20),
    "triples": lambda: ([("a", "b", "c")] * 40, [0, 1] * 20),
    "fewer": lambda: (["a"] * 40, [0, 1] * 10),
}


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(**MINE, net=Bag, small=lambda shape, classes: Bag()))


class Bag(nn.Module):
    """The mean of a text's embeddings, and a linear layer."""

    def __init__(self, input_shape, classes, tokens):
        super().__init__()
        self.pad = tokens.pad
        self.embed, self.head = nn.Embedding(tokens.size, 8), nn.Linear(8, classes)

    def forward(self, x):
        there = (x[:, 0] != self.pad)[..., None]
        return self.head((self.embed(x[:, 0]) * there).sum(1) / there.sum(1))


@pytest.mark.parametrize("name", ["shapes", "arrays"])
def test_numbers(name):
    splits = data.load(Data(name=f"mine:{name}"))
    assert (len(splits.train), splits.classes, splits.tokens) == (19, 4, None)


@pytest.mark.parametrize("name", ["texts", "pairs"])
def test_texts(name):
    pytest.importorskip("tokenizers")
    config = Data(name=f"mine:{name}", vocabulary=100, length=32)
    splits, (texts, labels) = data.load(config), MINE[name]()
    parts = data.partition(config, 80)
    for part, indices in parts.items():
        split = getattr(splits, part)
        assert split.y.tolist() == [int(labels[i]) for i in indices]
        shown = [splits.tokens.decode(row.tolist()) for row in split.x[torch.arange(len(split))][:, 0]]
        # decoding leaves out the marks between two sentences
        assert [s.replace(" ", "") for s in shown] == ["".join(texts[i]).replace(" ", "") for i in indices]
    segments = splits.train.x[torch.arange(4)][:, 1]
    assert int(segments.max()) == (name == "pairs")


def test_a_vocabulary_has_seen_no_test():
    pytest.importorskip("tokenizers")
    splits = data.load(Data(name="mine:alone", vocabulary=400))
    seen, unseen = (split.x[torch.arange(len(split))] == UNKNOWN for split in (splits.train, splits.test))
    assert not seen.any()
    assert unseen.any(dim=(1, 2)).all()  # the character that no other text has


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("shape", "mine has no function shape; did you mean shapes"),
        ("broken", "must return (inputs, targets), not Tensor"),
        ("nothing", "must return (inputs, targets), not NoneType"),
        ("ragged", "must return (inputs, targets), not tuple"),
        ("halves", "expected inputs (N, …) and integer targets (N,) from 0, got (40, 5) and (40,) float32"),
        ("mixed", "text 2 is None, not a string as the first"),
        ("triples", "text 0 is ('a', 'b', 'c'), not a pair of strings as the first"),
        ("fewer", "expected inputs (N, …) and integer targets (N,) from 0, got 40 texts and (20,) int64"),
    ],
)
def test_what_is_no_data_set_is_refused_in_a_line(name, line):
    with pytest.raises(ConfigError) as caught:
        data.load(Data(name=f"mine:{name}"))
    assert str(caught.value).startswith(f"data.name=mine:{name}: {line}")


def test_a_module_that_is_not_there():
    with pytest.raises(ConfigError, match="no module named nowhere"):
        data.load(Data(name="nowhere:f"))


def test_names_of_unicode():
    pytest.importorskip("tokenizers")
    config = Data(name="unicode", vocabulary=500, length=24)
    splits = data.load(config)
    sizes = [len(getattr(splits, part)) for part in ("train", "hyper", "val", "test")]
    assert sizes == [5891, 1040, 2080, 3444]  # 12,455 in every version of Python
    assert splits.classes == 11
    name = splits.tokens.decode(splits.test.x[torch.tensor([7])][0, 0].tolist()).upper()
    category = unicodedata.category(unicodedata.lookup(name))
    categories = ["Cf", "Ll", "Lo", "Lu", "Mc", "Mn", "Nd", "No", "Po", "Sm", "So"]
    assert categories[int(splits.test.y[7])] == category


def test_texts_of_ones_own_in_a_network_of_ones_own():
    pytest.importorskip("tokenizers")
    given = {"data": "mine:texts", "data.vocabulary": 100, "model": "mine:net", "method": "lets-sam"}
    given |= {"optim.base": "adamw", "optim.lr": 0.05, "train.epochs": 30, "data.batch_size": 16}
    config = resolve(given)
    *_, record = engine.run(config)
    assert record.evaluate("test").accuracy == 1.0
    with pytest.raises(ConfigError) as caught:
        engine.network(resolve(given, {"model": "mine:small"}), data.load(config.data))
    assert "model.name=mine:small: is called with (input_shape, classes, tokens), of text" in str(caught.value)


def test_the_tokenizer_of_ones_own_texts_is_the_networks():
    assert resolve({"data": "mine:texts", "model": "transformers/org/bert"}).data.tokenizer == "org/bert"
    assert resolve({"data": "mine:texts", "model": "bert-tiny"}).data.tokenizer == "train"
    assert resolve({"data": "unicode"}).data.tokenizer == "train"


def test_numbers_are_no_text():
    pytest.importorskip("transformers")
    splits = data.load(Data(name="mine:shapes"))
    with pytest.raises(ConfigError, match="needs text"):
        models.build("bert-tiny", splits.train.shape, splits.classes)
