"""Text as numbers: rows of tokens of any length, and the vocabularies that text is cut into.

`data.tokenizer` is a name or path that transformers knows, or `train`: a vocabulary of subwords (byte-pair encoding)
that is made from the training text. The same text gives the same one, bit for bit, in every process; the WordPiece
trainer of the same library breaks ties by chance.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError, Data
from .weights import answers

PAD, UNKNOWN, START, END = range(4)  # of a trained vocabulary
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MULTIPLE = 8  # batches are as long as a multiple of it: matrix units like that, and there are fewer shapes
SYMBOLS = 1000  # characters at most in a trained vocabulary; alphabets have fewer, pictures and ideograms more
AT_ONCE = 1 << 16  # examples; as Python's lists, tokens take ten times the room

Rows = list[list[int]]
Text = tuple[str, ...]  # one sentence, or two that belong together


class Ragged:
    """Sequences of tokens, each as long as it is, in the place of a tensor (N, R, T) that is padded batch by batch.

    An example has R rows, such as tokens and the number of the sentence that each belongs to, or a sentence and its
    translation.

    Args:
        rows: rows[n][r] are the tokens of row r of example n.
        pads: what fills up each of the R rows.

    The tokens lie one after the other: all of row 0, all of row 1, … `lengths`, (N,), the longest row of each
    example, stays on the CPU, whatever the device: how long a batch gets is known without waiting for a GPU.
    """

    def __init__(self, rows: Sequence[Sequence[Sequence[int]]], pads: tuple[int, ...]) -> None:
        sizes = np.array([[len(row) for row in example] for example in rows], dtype=np.int64).reshape(-1, len(pads))
        tokens = chain.from_iterable(example[r] for r in range(len(pads)) for example in rows)
        flat = np.fromiter(tokens, dtype=np.int32, count=int(sizes.sum()))
        self._fill(torch.from_numpy(flat), torch.from_numpy(sizes.T.copy()), pads)

    def _fill(self, flat: Tensor, sizes: Tensor, pads: tuple[int, ...]) -> None:
        """flat (tokens,) int32 and sizes (R, N) on the CPU."""
        self.flat, self.pads, self.counts = flat, pads, sizes
        self.lengths = sizes.amax(0) if sizes.shape[1] else sizes.new_zeros(0)
        self.begins = sizes.flatten().cumsum(0).view_as(sizes) - sizes
        self.starts, self.sizes = self.begins.to(flat.device), sizes.to(flat.device)
        self.fill = torch.tensor(pads).to(flat.device)[:, None]

    @classmethod
    def _made(cls, flat: Tensor, sizes: Tensor, pads: tuple[int, ...]) -> Ragged:
        new = cls.__new__(cls)
        new._fill(flat, sizes, pads)
        return new

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, R, the longest)"""
        return len(self), len(self.pads), int(self.lengths.max()) if len(self) else 0

    @property
    def device(self) -> torch.device:
        return self.flat.device

    def __getitem__(self, indices: Tensor) -> Tensor:
        """These examples (B,), int64 (B, R, T): T is the longest of them, rounded up to a multiple of 8.

        Indices should lie on the CPU: those on a GPU are waited for.
        """
        indices = indices.cpu()
        longest = int(self.lengths[indices].max()) if len(indices) else 0
        there = indices.to(self.device, non_blocking=True)
        at = torch.arange(-(-longest // MULTIPLE) * MULTIPLE, device=self.device)
        starts, sizes = self.starts.T[there][..., None], self.sizes.T[there][..., None]  # (B, R, 1)
        inside = at < sizes
        places = torch.where(inside, starts + at, 0)  # what is behind the end of a row is not used
        if not len(self.flat):
            return self.fill.expand(places.shape).clone()
        return torch.where(inside, self.flat[places].long(), self.fill)

    def subset(self, indices: Tensor) -> Ragged:
        """These examples (B,), in this order, as a Ragged."""
        indices = indices.cpu()
        sizes = self.counts[:, indices]
        begins, ends = self.begins[:, indices].flatten(), sizes.flatten().cumsum(0)
        # from where each of the new rows begins to where it did
        shift = (begins - ends + sizes.flatten()).repeat_interleave(sizes.flatten())
        return self._made(self.flat[(torch.arange(len(shift)) + shift).to(self.device)], sizes, self.pads)

    def __add__(self, others: Ragged) -> Ragged:
        assert self.pads == others.pads
        kinds = zip(self._kinds(), others._kinds(), strict=True)
        return self._made(
            torch.cat([*chain.from_iterable(kinds)]), torch.cat([self.counts, others.counts], dim=1), self.pads
        )

    def _kinds(self) -> tuple[Tensor, ...]:
        """The tokens of row 0, of row 1, …"""
        return self.flat.split(self.counts.sum(1).tolist())

    def to(self, device: torch.device | str) -> Ragged:
        return self._made(self.flat.to(device), self.counts, self.pads)

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them, in order, `size` at a time."""
        for indices in torch.arange(len(self)).split(size):
            yield self[indices]


@dataclass(frozen=True)
class Tokens:
    """A vocabulary.

    Args:
        size: how many tokens there are.
        pad, start, end: special ones; None: there is none.
        encode: (sentences, their second sentences or None, longest) → tokens, with the special ones, and to which
            sentence each belongs, 0 or 1; what is too long is cut off.
        decode: the text of some tokens, without the special ones.
    """

    size: int
    pad: int
    start: int | None
    end: int | None
    encode: Callable[[list[str], list[str] | None, int], tuple[Rows, Rows]]
    decode: Callable[[list[int]], str]

    def ragged(self, first: list[str], second: list[str] | None, length: int) -> Ragged:
        """Tokens and segments of all the examples, (N, 2, ·)."""
        whole = Ragged([], (self.pad, 0))
        for at in range(0, len(first), AT_ONCE):
            seconds = None if second is None else second[at : at + AT_ONCE]
            rows = self.encode(first[at : at + AT_ONCE], seconds, length)
            whole = whole + Ragged(list(zip(*rows, strict=True)), (self.pad, 0))
        return whole


def read_of(config: Data, files: Iterable[Path]) -> tuple[Data, tuple[tuple[int, int], ...]]:
    """What the numbers of a text depend on: the settings that reading looks at, and the state of its files.

    The key of caches: it takes a minute to cut a large text, and a process reads it for every run.
    """
    states = (path.stat() for path in files)
    only = Data(**config.model_dump(include={"name", "root", "tokenizer", "vocabulary", "length"}))
    return only, tuple((state.st_mtime_ns, state.st_size) for state in states)


def numbered(texts: Sequence[Text], tokens: Tokens, length: int) -> Ragged:
    """Tokens and segments of texts, all of one sentence or all of two, (N, 2, ·)."""
    first = [one[0] for one in texts]
    return tokens.ragged(first, [one[1] for one in texts] if len(texts[0]) == 2 else None, length)


def tokens_for(config: Data, texts: Sequence[str]) -> Tokens:
    """The vocabulary that `data.tokenizer` names; `texts` are those of training.

    Raises:
        ConfigError: a library is missing, there is no such tokenizer, or the hub is out of reach.
    """
    check(config)
    name = config.tokenizer or "train"
    return train(texts, config.vocabulary) if name == "train" else pretrained(name)


def check(config: Data) -> None:
    """Raises: ConfigError when the library that cuts text into tokens is missing."""
    library = "tokenizers" if config.tokenizer in (None, "train") else "transformers"
    if importlib.util.find_spec(library) is None:
        raise ConfigError(f"data.name={config.name}: needs {library}, which is not installed: pip install '.[text]'")


def train(texts: Sequence[str], size: int, lower: bool = True) -> Tokens:
    """A vocabulary of at most `size` subwords, the most frequent ones of these texts; a function of them alone.

    Words are cut at spaces and around punctuation; a space before a word is part of it. Characters beyond the most
    frequent ones are unknown.

    Args:
        lower: whether capitals become small.

    Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    cutter = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lower else [])]
    cutter.normalizer = normalizers.Sequence(steps)
    cutter.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    cutter.decoder = decoders.Metaspace()
    counts: Counter[str] = Counter("▁")  # what the space becomes
    for text in texts:
        counts.update(cutter.normalizer.normalize_str(text))
    del counts[" "]
    # chosen here: the trainer would choose among equally frequent ones by chance
    usual = sorted(counts, key=lambda symbol: (symbol != "▁", -counts[symbol], symbol))
    usual = usual[: min(SYMBOLS, size // 2)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=usual,
        limit_alphabet=len(usual),
        show_progress=False,
    )
    cutter.train_from_iterator(texts, trainer)
    marks = [(SPECIAL[START], START), (SPECIAL[END], END)]
    cutter.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    cutter.encode_special_tokens = True  # "[SEP]" in a text is text

    def encode(first: list[str], second: list[str] | None, length: int) -> tuple[Rows, Rows]:
        cutter.enable_truncation(length)
        found = cutter.encode_batch(first if second is None else list(zip(first, second, strict=True)))
        return [row.ids for row in found], [row.type_ids for row in found]

    return Tokens(cutter.get_vocab_size(), PAD, START, END, encode, cutter.decode)


def pretrained(name: str) -> Tokens:
    """A tokenizer of transformers, by a name of the hub or a folder.

    Raises:
        ConfigError: not there, not to be had, or one that has no padding.
    """
    cutter = load(name)
    if cutter.pad_token_id is None:
        raise ConfigError(f"data.tokenizer={name}: has no token for padding (nearest: train)")

    def encode(first: list[str], second: list[str] | None, length: int) -> tuple[Rows, Rows]:
        special = cutter.num_special_tokens_to_add(pair=second is not None)
        if length <= special:
            raise ConfigError(f"data.length={length}: {name} adds {special} tokens of its own (nearest: {special + 1})")
        found = cutter(
            first, second, truncation=True, max_length=length, return_token_type_ids=True, return_attention_mask=False
        )
        return found["input_ids"], found["token_type_ids"]

    def decode(row: list[int]) -> str:
        return str(cutter.decode(row, skip_special_tokens=True))

    start = cutter.cls_token_id if cutter.bos_token_id is None else cutter.bos_token_id
    end = cutter.sep_token_id if cutter.eos_token_id is None else cutter.eos_token_id
    return Tokens(len(cutter), cutter.pad_token_id, start, end, encode, decode)


def load(name: str) -> Any:
    """transformers' tokenizer: of a folder, else from the hub's cache, else from the hub."""
    from transformers import AutoTokenizer

    path = Path(name).expanduser()
    folder = path.is_dir()
    if not folder and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ConfigError(f"data.tokenizer={name}: no such folder; a name of the hub, a folder, or train")
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(str(path) if folder else name, local_files_only=True)
        except Exception as error:  # of a dozen kinds, for what is missing, cut off, or not its own
            if folder:
                raise ConfigError(f"data.tokenizer={name}: no tokenizer in it ({line(error)})") from None
        reach(f"data.tokenizer={name}", "take data.tokenizer=FOLDER or train")
        try:
            return AutoTokenizer.from_pretrained(name)
        except Exception as error:
            raise ConfigError(f"data.tokenizer={name}: not to be had from the hub ({line(error)})") from None


def reach(field: str, remedy: str) -> None:
    """Raises: ConfigError when the hub is switched off or does not answer, within ten seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT):
        why = "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "cannot be reached"
        raise ConfigError(f"{field}: not in the hub's cache, and the hub {why}; {remedy}")


def line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200].strip() or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the hub's libraries tell beside their errors."""
    logs = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def unreadable(size: int) -> Tokens:
    """A vocabulary of numbers, for text that is generated."""

    def encode(first: list[str], second: list[str] | None, length: int) -> tuple[Rows, Rows]:
        raise NotImplementedError("generated text is no text")

    def decode(row: list[int]) -> str:
        return " ".join(str(token) for token in row if token > END)

    return Tokens(size, PAD, START, END, encode, decode)
