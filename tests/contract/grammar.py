"""A task of text that a small network learns: sentences of a stated grammar, as files of GLUE's SST-2.

sentence  = "the" noun "was" ["not"] ["very"] praise [tail]        praise good fine great, or blame bad poor awful
label     = 1 if praised or (blamed and "not"), but not both       an exclusive or: no single word tells it
"""

from __future__ import annotations

import random
from pathlib import Path

NOUNS = ("film", "plot", "cast", "score", "ending", "scene", "book", "play")
PRAISE, BLAME = ("good", "fine", "great"), ("bad", "poor", "awful")
TAILS = ("", "in the end", "all in all", "to me")


def sentence(order: random.Random) -> tuple[str, int]:
    praised, negated = order.random() < 0.5, order.random() < 0.25
    words = ["the", order.choice(NOUNS), "was"] + ["not"] * negated + ["very"] * (order.random() < 0.3)
    words += [order.choice(PRAISE if praised else BLAME), *order.choice(TAILS).split()]
    return " ".join(words), int(praised != negated)


def write(root: Path, train: int = 1000, dev: int = 200) -> Path:
    """The files of `data=glue/sst2 data.root=<root>`."""
    order, folder = random.Random(0), root / "glue" / "SST-2"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in (("train", train), ("dev", dev)):
        rows = [f"{text}\t{label}" for text, label in (sentence(order) for _ in range(size))]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return root
