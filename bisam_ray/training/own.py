"""Data that need no download: a function of the user's own, and the names of Unicode's characters.

`data.name=module:function`: the function takes no argument and returns (inputs, targets), N of each; targets are
integers from 0. Inputs are numbers (N, …), or texts: N strings, or N pairs of strings that belong together. They are
split in the proportions of digits.

`unicode`: from a character's name, such as LATIN SMALL LETTER O WITH HORN, to its general category, such as Ll, a
lower-case letter. Of the Unicode Character Database 3.2.0, which every Python ships unchanged: the 12,455 names that
are not made by a rule, of the eleven categories that have a hundred or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ConfigError, Data
from . import text
from .plugins import load_function

if TYPE_CHECKING:
    from .datasets import Source

FEWEST = 100  # names of a category
BY_RULE = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HANGUL SYLLABLE")  # tens of thousands, each with its number


def own(config: Data) -> Source:
    """What the user's function returns.

    Raises:
        ConfigError: no such function, or not such inputs and targets.
    """
    from .datasets import source_of

    name = config.name
    made = load_function("data.name", name)()
    try:
        x, y = made
        y = torch.as_tensor(y)
        texts = texts_of(name, x)
        if texts is None:
            x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"data.name={name}: must return (inputs, targets), not {type(made).__name__}") from None
    size = len(x) if texts is None else len(texts)
    if size != len(y) or y.dim() != 1 or y.is_floating_point() or size == 0 or int(y.min()) < 0:
        found = tuple(x.shape) if texts is None else f"{size} texts"
        raise ConfigError(
            f"data.name={name}: expected inputs (N, …) and integer targets (N,) from 0, "
            f"got {found} and {tuple(y.shape)} {str(y.dtype).removeprefix('torch.')}"
        )
    return source_of(name, x.float(), y.long()) if texts is None else labelled(config, texts, y.long())


def texts_of(name: str, inputs: Any) -> list[text.Text] | None:
    """Inputs that are texts, each of one sentence or of two; None if they are not.

    Raises:
        ConfigError: some are.
    """
    if isinstance(inputs, Tensor) or not len(inputs) or not contains_text(inputs[0]):
        return None
    texts = [(one,) if isinstance(one, str) else tuple(one) if contains_text(one) else () for one in inputs]
    size = len(texts[0])
    for index, one in enumerate(texts):
        if len(one) != size or size > 2 or not all(isinstance(part, str) for part in one):
            kind = "a string" if size == 1 else "a pair of strings"
            raise ConfigError(f"data.name={name}: text {index} is {inputs[index]!r:.60}, not {kind} as the first")
    return texts


def contains_text(one: Any) -> bool:
    return isinstance(one, str) or (isinstance(one, list | tuple) and len(one) > 0 and isinstance(one[0], str))


def labelled(config: Data, texts: Sequence[text.Text], y: Tensor) -> Source:
    """Texts and their classes, cut into tokens; a trained vocabulary is made of those that are no test."""
    from .data import partition
    from .datasets import source_of

    parts = partition(config, len(texts))
    seen = torch.cat([part for name, part in parts.items() if name != "test"]).sort().values.tolist()
    tokens = text.tokens_for(config, [sentence for index in seen for sentence in texts[index]])
    return source_of(config.name, text.numbered(texts, tokens, config.length), y, tokens)


def unicode(config: Data) -> Source:
    """Names of characters and their categories, in the order of the characters; categories in that of the alphabet."""
    import unicodedata

    database = unicodedata.ucd_3_2_0
    characters = [chr(code) for code in range(0x110000)]
    names = ((database.name(one, ""), database.category(one)) for one in characters)
    found = [(name, category) for name, category in names if name and not name.startswith(BY_RULE)]
    counts = Counter(category for _, category in found)
    categories = sorted(category for category, count in counts.items() if count >= FEWEST)
    kept = [(name, categories.index(category)) for name, category in found if category in categories]
    return labelled(config, [(name,) for name, _ in kept], torch.tensor([label for _, label in kept]))
