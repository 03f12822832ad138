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


# German and English of the same thing; in a German "dass" clause the verb comes last, and an article tells a gender
THINGS = {"film": ("der", "film"), "book": ("das", "buch"), "play": ("das", "stück"), "score": ("die", "musik")}
THINGS |= {"cast": ("die", "besetzung"), "ending": ("der", "schluss"), "story": ("die", "geschichte")}
QUALITIES = {"good": "gut", "bad": "schlecht", "long": "lang", "short": "kurz", "loud": "laut", "sad": "traurig"}
BEGINNINGS = {"i think that": "ich denke dass", "we know that": "wir wissen dass", "she says that": "sie sagt dass"}


def pair(order: random.Random) -> tuple[str, str]:
    thing, quality = order.choice(sorted(THINGS)), order.choice(sorted(QUALITIES))
    negated, very = order.random() < 0.4, order.random() < 0.4
    german = ["nicht"] * negated + ["sehr"] * very + [QUALITIES[quality]]
    english = ["not"] * negated + ["very"] * very + [quality]
    if order.random() < 0.5:
        beginning = order.choice(sorted(BEGINNINGS))
        words = [BEGINNINGS[beginning], *THINGS[thing], *german, "war"]
        return " ".join(words), " ".join([beginning, "the", thing, "was", *english])
    return " ".join([*THINGS[thing], "war", *german]), " ".join(["the", thing, "was", *english])


def write_pairs(root: Path, train: int = 1000, test: int = 100) -> Path:
    """The files of `data=iwslt14 data.root=<root>`; no test sentence is among those of training."""
    order, folder = random.Random(0), root / "iwslt14"
    folder.mkdir(parents=True, exist_ok=True)
    found = list(dict.fromkeys(pair(order) for _ in range(20_000)))
    parts = {"test": found[:test], "train": [order.choice(found[test:]) for _ in range(train)]}
    for name, pairs in parts.items():
        for language, sentences in zip(("de", "en"), zip(*pairs, strict=True), strict=True):
            (folder / f"{name}.{language}").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return root
