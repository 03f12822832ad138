"""Ragged rows are what padding lists by hand gives; vocabularies are functions of the text they are made from."""

import json
import subprocess
import sys
import time

import pytest
import torch

from bisam_ray.config import ConfigError, Data
from bisam_ray.training import text
from bisam_ray.training.text import Ragged

TEXTS = [
    "The cat sat on the mat.",
    "The dog sat on the log, and the cat on the hat!",
    "A hat is not a mat; a dog is no cat.",
    "Who sat where? The dog, there.",
]


def some(seed, count, kinds, longest=20):
    """Rows of 0 to `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, longest + 1, (count, kinds), generator=generator).tolist()
    return [[torch.randint(5, 99, (size,), generator=generator).tolist() for size in row] for row in sizes]


def padded(rows, pads):
    """By hand: (B, R, T), T the longest row rounded up to a multiple of 8."""
    longest = max((len(row) for example in rows for row in example), default=0)
    longest = longest + (-longest) % 8
    lists = [[row + [pad] * (longest - len(row)) for row, pad in zip(e, pads, strict=True)] for e in rows]
    return torch.tensor(lists, dtype=torch.int64).reshape(len(rows), len(pads), longest)


@pytest.mark.parametrize("seed", range(12))
def test_any_choice_is_what_padding_by_hand_gives(seed):
    kinds = 1 + seed % 3
    rows, pads = some(seed, 30, kinds, 4 + 3 * seed), tuple(range(kinds))
    ragged, generator = Ragged(rows, pads), torch.Generator().manual_seed(seed)
    for size in (1, 7, 30, 60):  # more than there are: some come twice
        indices = torch.randint(30, (size,), generator=generator)
        chosen = [rows[index] for index in indices.tolist()]
        found = ragged[indices]
        assert found.dtype == torch.int64
        assert torch.equal(found, padded(chosen, pads))
        part = ragged.subset(indices)
        assert torch.equal(part[torch.arange(size)], padded(chosen, pads))
        assert part.shape == (size, kinds, max(len(row) for example in chosen for row in example))
        assert part.lengths.tolist() == [max(map(len, example)) for example in chosen]
        back = torch.randperm(size, generator=generator)  # a choice of a choice
        assert torch.equal(part.subset(back)[torch.arange(size)], padded([chosen[i] for i in back], pads))


def test_a_sum_holds_the_one_and_then_the_other():
    rows, others = some(0, 9, 2), some(1, 5, 2, 40)
    both = Ragged(rows, (0, 7)) + Ragged(others, (0, 7))
    assert len(both) == 14
    assert torch.equal(both[torch.arange(14)], padded(rows + others, (0, 7)))
    both = both.subset(torch.tensor([13, 0, 8])) + Ragged(rows[:1], (0, 7))
    assert torch.equal(both[torch.arange(4)], padded([others[4], rows[0], rows[8], rows[0]], (0, 7)))


def test_pieces_come_in_order_each_as_long_as_it_must_be():
    rows = some(2, 10, 2, 30)
    found = list(Ragged(rows, (1, 2)).split(4))
    assert [len(piece) for piece in found] == [4, 4, 2]
    for at, piece in zip((0, 4, 8), found, strict=True):
        assert torch.equal(piece, padded(rows[at : at + 4], (1, 2)))


def test_none_at_all():
    none = Ragged(some(0, 3, 2), (0, 0)).subset(torch.arange(0))
    assert none.shape == (0, 2, 0)
    assert next(iter(none.split(4))).shape == (0, 2, 0)
    assert torch.equal((none + Ragged([[[5], [6]]], (0, 0)))[torch.tensor([0])], padded([[[5], [6]]], (0, 0)))
    assert len(Ragged([], (0, 0))) == 0
    empty = Ragged([[[], []], [[], []]], (3, 4))
    assert empty[torch.tensor([1, 0])].shape == (2, 2, 0)


def test_another_device_knows_the_lengths_without_being_asked():
    rows = some(3, 20, 2)
    there = Ragged(rows, (0, 0)).to("meta")  # nothing can be read from it
    assert there.device.type == "meta"
    assert there.lengths.device.type == "cpu"
    chosen = torch.tensor([4, 19, 2])
    for found in (there[chosen], there.subset(chosen)[torch.arange(3)], (there + there)[chosen + 20]):
        assert found.device.type == "meta"
        assert found.shape == padded([rows[index] for index in chosen], (0, 0)).shape


def test_a_batch_takes_less_than_a_millisecond():
    rows = [[row := list(range(size)), row] for size in (torch.arange(20_000) % 120 + 8).tolist()]
    ragged, order, times = Ragged(rows, (0, 0)), torch.randperm(20_000, generator=torch.Generator().manual_seed(0)), []
    for indices in order.split(256):
        began = time.thread_time()  # not disturbed by what else the machine does
        ragged[indices]
        times.append(time.thread_time() - began)
    assert min(times) < 1e-3


def test_a_vocabulary_is_the_same_in_every_process(tmp_path):
    # a thousand words of the same count, and two thousand characters: ties wherever there can be any
    words = ["".join(chr(97 + (7 * i + j * (i % 5 + 1)) % 26) for j in range(5)) for i in range(1000)]
    rare = "".join(chr(0x4E00 + i) for i in range(2000))
    texts = [*(" ".join(words[i : i + 5]) for i in range(0, 1000, 5)), rare]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = f"""import json; from bisam_ray.training.text import train
texts = json.load(open({str(tmp_path / "texts.json")!r})); print(train(texts, 1500).encode(texts, None, 4000))"""
    found = [text.train(texts, 1500) for _ in range(3)]
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert {str(tokens.encode(texts, None, 4000)) for tokens in found} == {other.strip()}
    assert found[0].size == 1500


def test_what_is_encoded_can_be_read():
    tokens = text.train(TEXTS, 400)
    assert tokens.size < 400  # there is not that much text
    (ids,), (segments,) = tokens.encode([TEXTS[1]], None, 99)
    assert (ids[0], ids[-1]) == (tokens.start, tokens.end) == (text.START, text.END)
    assert set(segments) == {0}
    assert tokens.decode(ids) == TEXTS[1].lower()
    assert max(ids) < tokens.size
    exact = text.train(TEXTS, 400, lower=False)
    assert exact.decode(exact.encode([TEXTS[1]], None, 99)[0][0]) == TEXTS[1]


def test_pairs_have_two_segments_and_are_cut_to_length():
    tokens = text.train(TEXTS, 400)
    (ids,), (segments,) = tokens.encode(["the cat"], ["the dog"], 99)
    assert ids == [text.START, *ids[1:3], text.END, *ids[4:6], text.END]
    assert segments == [0] * 4 + [1] * 3
    for length in (4, 5, 9, 20):
        rows, segments = tokens.encode(TEXTS, TEXTS[::-1], length)
        assert max(map(len, rows)) == length
        assert [len(row) for row in segments] == [len(row) for row in rows]
        assert all(row.count(text.END) == 2 for row in rows)


def test_the_names_of_special_tokens_are_text_and_unknown_characters_are_unknown():
    tokens = text.train(TEXTS, 400)
    (ids,), _ = tokens.encode(["the [SEP] cat [PAD]"], None, 99)
    assert (ids.count(text.END), ids.count(text.PAD)) == (1, 0)
    assert text.UNKNOWN in tokens.encode(["the ж"], None, 99)[0][0]


def test_examples_of_all_pieces_are_there(monkeypatch):
    tokens = text.train(TEXTS, 400)
    monkeypatch.setattr(text, "AT_ONCE", 3)
    found = tokens.ragged(TEXTS, TEXTS[::-1], 16)
    rows = list(zip(*tokens.encode(TEXTS, TEXTS[::-1], 16), strict=True))
    assert torch.equal(found[torch.arange(4)], padded(rows, (text.PAD, 0)))
    assert tokens.ragged(TEXTS, None, 16).shape[:2] == (4, 2)


@pytest.fixture
def far(monkeypatch, tmp_path):
    """A hub that cannot be reached, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return constants


def refused(name, *words):
    began = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        text.tokens_for(Data(name="glue/rte", tokenizer=name), TEXTS)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("data.tokenizer=")
    assert [word for word in words if word not in line] == [], line
    return time.perf_counter() - began


def test_a_tokenizer_of_transformers_in_a_folder(tmp_path, far):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "##s", "."]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    tokens = text.tokens_for(Data(name="glue/rte", tokenizer=str(folder)), [])
    assert (tokens.size, tokens.pad, tokens.start, tokens.end) == (11, 0, 2, 3)
    assert tokens.encode(["The cats."], ["the dog"], 99) == (
        [[2, 5, 6, 9, 10, 3, 5, 7, 3]],
        [[0, 0, 0, 0, 0, 0, 1, 1, 1]],
    )
    assert tokens.encode(["the cat"], None, 3) == ([[2, 5, 3]], [[0, 0, 0]])
    assert tokens.decode([2, 5, 6, 9, 3]) == "the cats"
    with pytest.raises(ConfigError, match=r"^data\.length=3: "):
        tokens.encode(["the cat"], ["the cat"], 3)


def test_tokenizers_that_are_not_to_be_had_are_told_at_once(tmp_path, far, monkeypatch):
    refused(str(tmp_path / "gone"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "no tokenizer in it")
    assert refused("google/bert-like", "cannot be reached", "FOLDER or train") < 10
    monkeypatch.setattr(far, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(text, "answers", lambda url: True)
    assert refused("google/bert-like", "HF_HUB_OFFLINE", "FOLDER or train") < 10


def test_what_to_install(monkeypatch):
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    for name, library in ((None, "tokenizers"), ("train", "tokenizers"), ("bert-base-cased", "transformers")):
        with pytest.raises(ConfigError, match=rf"^data.name=glue/rte: needs {library}, .*pip install '.\[text\]'$"):
            text.tokens_for(Data(name="glue/rte", tokenizer=name), TEXTS)
