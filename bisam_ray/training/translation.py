"""IWSLT'14 German to English: its files, its sentences as numbers, and translating.

    prepared    train.de and train.en (or train.de-en.de …), test.de and test.en, maybe valid.de and valid.en: one
                sentence per line. Those of fairseq's prepare-iwslt14.sh are such; its subwords ("@@ ") are joined.
    official    train.tags.de-en.de and .en, IWSLT14.TED*.de-en.de.xml and .en.xml, as unpacked from de-en.tgz. Test is
                dev2010, dev2012 and tst2010 to tst2012 together, and pairs of training that are no translations (longer
                than 175 words, or than 1.5 times the other) are left out: as that script does.

Either lies in <root>/iwslt14, <root>/iwslt14/de-en or <root>/iwslt14.tokenized.de-en. Valid belongs to the training
examples, which data.py splits. Both languages share one vocabulary, of all training examples, in lower case: so is what
is translated and compared, as usual for these data. BLEU is that of the text in the files: detokenised of the official
ones, tokenised (as in most papers) of fairseq's.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ConfigError, Data
from . import text
from .download import root_of, told
from .language import longest_source
from .task import PADDED, Translation
from .text import Ragged, Tokens

if TYPE_CHECKING:
    from .datasets import Source

FOLDERS = ("iwslt14", "iwslt14/de-en", "iwslt14.tokenized.de-en")
LANGUAGES = ("de", "en")
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
WORDS, RATIO = 175, 1.5
ABOUT = r"\s*</?(url|speaker|talkid|keywords|reviewer|translator|doc)\b"  # tags of a talk in the training file
AT_ONCE = 128  # sentences that are searched together

Pairs = list[tuple[str, str]]


def read(config: Data) -> Source:
    """Sentences to translate, and their translations, as numbers.

    x: rows of the source and of the translation from its start token on. y: (N, T') the translation up to its end
    token, then PADDED; T' is at least as long as any batch of x: of one with length T, y[:, :T] are the targets.
    Training pairs of more than `data.length` tokens are left out, test pairs are whole.

    Raises:
        ConfigError: files are missing or are not as they should be.
    """
    from .datasets import Source, confusion

    check(config)
    _, parts = files(config)
    of = (path for part in parts.values() for path in chain.from_iterable(part))
    x, y, test_x, test_y, tokens = numbers(*text.read_of(config, of))
    classes = tokens.size
    return Source(
        x, y, test_x, test_y, classes, confusion(config.name, classes), Translation(tokens, config.beam), tokens
    )


@functools.lru_cache(maxsize=1)
def numbers(config: Data, states: tuple[tuple[int, int], ...]) -> tuple[Ragged, Tensor, Ragged, Tensor, Tokens]:
    """x, y, test_x, test_y, and the vocabulary, of files in these states."""
    train, test = pairs(config)
    tokens = text.tokens_for(config, list(chain.from_iterable(train)))
    if tokens.start is None or tokens.end is None:
        raise ConfigError(f"data.tokenizer={config.tokenizer}: marks neither start nor end (nearest: train)")
    x, y = numbered(train, tokens, config.length, leave_out=True)
    if len(x) < len(train) / 2:
        raise ConfigError(f"data.length={config.length}: leaves {len(x)} of {len(train)} pairs of data.name=iwslt14")
    return x, y, *numbered(test, tokens, longest_source(), leave_out=False), tokens


def check(config: Data) -> None:
    """Whether the files are there, and the libraries.

    Raises:
        ConfigError: they are not.
    """
    text.check(config)
    if importlib.util.find_spec("sacrebleu") is None:
        raise ConfigError("data.name=iwslt14: needs sacrebleu, which is not installed: pip install '.[text]'")
    files(config)


def files(config: Data) -> tuple[Path, dict[str, list[tuple[Path, Path]]]]:
    """The folder, and the files of "train" and "test" in it, each German and English.

    Raises:
        ConfigError: neither layout, or half of one.
    """
    places = [root_of(config) / folder for folder in FOLDERS]
    with told(config):
        for folder in places:
            for between in (".", ".de-en."):
                found = {part: both(folder, part + between) for part in ("train", "valid", "test")}
                if found["train"][0].is_file():
                    train = [found["train"], *([found["valid"]] if found["valid"][0].is_file() else [])]
                    return folder, complete(config, {"train": train, "test": [found["test"]]})
            tagged = both(folder, "train.tags.de-en.")
            if tagged[0].is_file():
                test = [both(folder, f"IWSLT14.{name}.de-en.", ".xml") for name in TESTS]
                return folder, complete(config, {"train": [tagged], "test": test})
    raise ConfigError(
        f"data.name=iwslt14: no train.de or train.tags.de-en.de in {places[0]}; unpack de-en.tgz of "
        "https://wit3.fbk.eu/2014-01 there, or put there what fairseq's prepare-iwslt14.sh writes"
    )


def both(folder: Path, start: str, end: str = "") -> tuple[Path, Path]:
    german, english = (folder / f"{start}{language}{end}" for language in LANGUAGES)
    return german, english


def complete(config: Data, parts: dict[str, list[tuple[Path, Path]]]) -> dict[str, list[tuple[Path, Path]]]:
    gone = next((path for part in parts.values() for path in chain.from_iterable(part) if not path.is_file()), None)
    if gone is not None:
        raise ConfigError(f"data.name={config.name}: no {gone}; the other files of its kind are there")
    return parts


def pairs(config: Data) -> tuple[Pairs, Pairs]:
    """Training and test sentences, with their translations."""
    folder, parts = files(config)
    train, test = ([pair for one in parts[part] for pair in aligned(config, one)] for part in ("train", "test"))
    if any(path.name.startswith("train.tags.") for path in chain.from_iterable(parts["train"])):
        train = [pair for pair in train if alike(*pair)]
    train = [pair for pair in train if all(pair)]
    if not train or not test:
        raise ConfigError(f"data.name={config.name}: no sentences in the files of {folder}")
    return train, test


def aligned(config: Data, both: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    """The sentences of a file, and of its translation."""
    with told(config):
        try:
            german, english = (list(sentences(path)) for path in both)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"data.name={config.name}: one of {both[0]} and {both[1]} is no UTF-8 ({error})"
            ) from None
    if len(german) != len(english):
        raise ConfigError(
            f"data.name={config.name}: {len(german)} sentences in {both[0]}, {len(english)} in {both[1]}; "
            "they must be translations line by line"
        )
    return zip(german, english, strict=True)


def sentences(path: Path) -> Iterator[str]:
    """Of a file of any of the kinds, without markup. Lines end at "\\n" alone: some sentences have other separators."""
    with path.open(encoding="utf-8", newline="\n") as file:
        lines: Iterable[str] = file.readlines()
    if path.suffix == ".xml":
        found = (re.match(r"\s*<seg id=[^>]*>(.*)</seg>", line) for line in lines)
        lines = (match[1] for match in found if match)
    elif path.name.startswith("train.tags."):
        # about a talk: its title and description are text, the rest is not
        lines = (re.sub(r"</?(title|description)>", "", line) for line in lines)
        lines = (line for line in lines if not re.match(ABOUT, line))
    for line in lines:
        yield " ".join(html.unescape(re.sub(r"@@(\s+|$)", "", line)).replace("’", "'").split())


def alike(german: str, english: str) -> bool:
    """Whether lengths suggest that these are translations of each other."""
    sizes = [len(re.findall(r"\w+|[^\w\s]", side)) for side in (german, english)]
    return min(sizes) > 0 and max(sizes) <= WORDS and max(sizes) <= RATIO * min(sizes)


def numbered(given: Pairs, tokens: Tokens, length: int, leave_out: bool) -> tuple[Ragged, Tensor]:
    """x and y of `read`; pairs of more than so many tokens are left out, or cut."""
    x, y = Ragged([], (tokens.pad, tokens.pad)), Ragged([], (PADDED,))
    for at in range(0, len(given), 1 << 16):  # Python's lists take ten times the room
        sides = ([pair[side] for pair in given[at : at + (1 << 16)]] for side in (0, 1))
        rows = zip(*(tokens.encode(side, None, length + leave_out)[0] for side in sides), strict=True)
        kept = [pair for pair in rows if max(map(len, pair)) <= length]
        if kept and not all(row[0] == tokens.start and row[-1] == tokens.end for row in kept[0]):
            raise ConfigError("data.tokenizer: puts no start before and no end behind a sentence (nearest: train)")
        x = x + Ragged([(source, target[:-1]) for source, target in kept], x.pads)
        y = y + Ragged([(target[1:],) for _, target in kept], y.pads)
    return x, as_wide(y, x)


def as_wide(y: Ragged, x: Ragged) -> Tensor:
    """Targets (N, ·) for every place that a batch of x may have."""
    targets = y[torch.arange(len(y))][:, 0]
    room = -(-x.shape[2] // 8) * 8 - targets.shape[1]
    return F.pad(targets, (0, max(0, room)), value=PADDED)


def generated(config: Data, sizes: tuple[int, int]) -> Source:
    """Noise cut into data.vocabulary tokens: `sizes` are those of training and of test."""
    from .datasets import Source, confusion

    generator = torch.Generator().manual_seed(0)

    def sentence() -> list[int]:
        length = int(torch.randint(1, max(2, min(config.length - 1, 24)), (), generator=generator))
        words = torch.randint(text.END + 1, config.vocabulary, (length,), generator=generator)
        return [text.START, *words.tolist(), text.END]

    tokens, parts = text.unreadable(config.vocabulary), list[Any]()
    for size in sizes:
        drawn = [(sentence(), sentence()) for _ in range(size)]
        x = Ragged([(source, target[:-1]) for source, target in drawn], (tokens.pad, tokens.pad))
        parts += [x, as_wide(Ragged([(target[1:],) for _, target in drawn], (PADDED,)), x)]
    x, y, test_x, test_y = parts
    task, classes = Translation(tokens, config.beam), tokens.size
    return Source(x, y, test_x, test_y, classes, confusion(config.name, classes), task, tokens)


@torch.no_grad()
def translate(model: nn.Module, x: Tensor | Ragged, beam: int, tokens: Tokens) -> list[list[int]]:
    """The tokens of the best translations that a beam search of this width finds, without the special ones.

    Args:
        model: has `search(source (B, T), beam)`, see language.Translator. Taken in evaluation mode.
        x: (N, 2, ·), of which the first rows, the sources, are read. Those of like length are searched together.

    Raises:
        ConfigError: a network that cannot.
    """
    search: Any = getattr(model, "search", None)
    if search is None:
        raise ConfigError(f"model.name: {type(model).__name__} has no `search` (nearest: transformer-iwslt)")
    lengths = x.lengths if isinstance(x, Ragged) else (x[:, 0] != tokens.pad).sum(1).cpu()
    order = lengths.argsort(descending=True, stable=True)
    found: list[list[int]] = [[]] * len(order)
    was_training = model.training
    model.eval()
    for chosen in order.split(AT_ONCE):
        rows = search(x[chosen][:, 0], beam).tolist()
        for at, row in zip(chosen.tolist(), rows, strict=True):
            end = row.index(tokens.end) if tokens.end in row else len(row)
            found[at] = [token for token in row[:end] if token not in (tokens.start, tokens.pad)]
    model.train(was_training)
    return found
