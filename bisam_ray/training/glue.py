"""The nine tasks of GLUE: from files of one's own, or as the hub keeps them (nyu-mll/glue).

    cola          is a sentence grammatical?                     matthews
    sst2          does it praise?                                accuracy
    mrpc, qqp     do two sentences, or questions, say the same?  accuracy, f1
    stsb          how alike are two, from 0 to 5?                pearson, spearman
    mnli          does the one follow from the other?            accuracy
    qnli          does a sentence hold the answer?               accuracy
    rte, wnli     does the one follow from the other?            accuracy

The scores are those that GLUE reports; the first one decides. The labels of GLUE's own test sets are not public: the
development set is the test set here, for MNLI the matched one, and no choice is made on it. WNLI's is made such that
what is learned of the training sentences misleads.

Files lie in <root>/glue/TASK, with the official name of the task or the hub's: train and dev (the hub's name is
validation; of MNLI dev_matched), ending in .tsv (as GLUE publishes them), .jsonl or .parquet (both with the hub's names
of columns; a label is a number or a name). Where there are none, the hub's cache is looked at, and with data.download
the hub.

Source: Wang, Singh, Michael, Hill, Levy and Bowman, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural
Language Understanding", 2018.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ConfigError, Data, suggest
from . import metrics, text
from .download import root_of, there, told
from .rows import LARGEST, READERS, BadRow, Table, number
from .task import Classification, Regression

if TYPE_CHECKING:
    from .datasets import Source


PAIR, ENTAILS = ("sentence1", "sentence2"), ("entailment", "not_entailment")
TASKS = {
    "cola": Table("CoLA", ("sentence",), ("unacceptable", "acceptable"), (3, 1)),
    "sst2": Table("SST-2", ("sentence",), ("negative", "positive"), ("sentence", "label")),
    "mrpc": Table("MRPC", PAIR, ("not_equivalent", "equivalent"), ("#1 String", "#2 String", "Quality")),
    "qqp": Table(
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("question1", "question2", "is_duplicate"),
    ),
    "stsb": Table("STS-B", PAIR, (), (*PAIR, "score")),
    "mnli": Table(
        "MNLI",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        (*PAIR, "gold_label"),
        "_matched",
    ),
    "qnli": Table("QNLI", ("question", "sentence"), ENTAILS, ("question", "sentence", "label")),
    "rte": Table("RTE", PAIR, ENTAILS, (*PAIR, "label")),
    "wnli": Table("WNLI", PAIR, ("not_entailment", "entailment"), (*PAIR, "label")),
}
SCORES = {
    **dict.fromkeys(TASKS, ("accuracy",)),
    "cola": ("matthews",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}
HUB = "nyu-mll/glue"

Example = tuple[text.Text, float]


def read(config: Data) -> Source:
    """The task, cut into tokens: x and test_x (N, 2, ·), tokens and segments; y int64, or float32 of stsb.

    Raises:
        ConfigError: see `check`; or a file is damaged, with its line.
    """
    task = task_of(config)
    check(config)
    files = located(config, task) or downloaded(config, task)
    *parts, tokens = numbers(task, files, *text.read_of(config, files))
    return source(task, parts, tokens)


@functools.lru_cache(maxsize=1)
def numbers(task: str, files: tuple[Path, Path], config: Data, states: tuple[tuple[int, int], ...]) -> tuple[Any, ...]:
    """x, y, test_x, test_y, and the vocabulary, of files in these states."""
    train, dev = (examples(config, task, file) for file in files)
    # a trained vocabulary is made of all that is no test, whatever the splits
    tokens = text.tokens_for(config, [sentence for sentences, _ in train for sentence in sentences])
    parts: list[Any] = []
    for found in (train, dev):
        texts, labels = zip(*found, strict=True)
        parts += [text.numbered(texts, tokens, config.length), targets(task, torch.tensor(labels))]
    return *parts, tokens


def source(task: str, parts: Sequence[Any], tokens: text.Tokens) -> Source:
    from .datasets import Source, confusion

    x, y, test_x, test_y = parts
    classes = max(1, len(TASKS[task].classes))
    scores = {name: metrics.SCORES[name] for name in SCORES[task]}
    kind = Classification if TASKS[task].classes else Regression
    return Source(x, y, test_x, test_y, classes, confusion(task, classes), kind(**scores), tokens)


def targets(task: str, y: Tensor) -> Tensor:
    return y.long() if TASKS[task].classes else y.float()


def check(config: Data) -> None:
    """Raises: ConfigError when there is no such task, a library is missing, or the files are neither here nor within
    reach."""
    task = task_of(config)
    text.check(config)
    if located(config, task) is None:
        text.reach(f"data.name={config.name}", f"put train and dev into {folders(config, task)[0]}")


def task_of(config: Data) -> str:
    task = config.name.removeprefix("generated/").removeprefix("glue/")
    if task not in TASKS:
        near = suggest(task.lower().replace("-", ""), TASKS)
        raise ConfigError(f"data.name={config.name}: GLUE has no task {task}{near}")
    return task


def folders(config: Data, task: str) -> list[Path]:
    return [root_of(config) / "glue" / name for name in (TASKS[task].folder, task)]


def located(config: Data, task: str) -> tuple[Path, Path] | None:
    """The files of train and dev, of one's own or in the hub's cache; None: they are to be downloaded.

    Raises:
        ConfigError: they are not here, nor may be downloaded; or one of them lies alone, or may not be read.
    """
    names, dev = ["train"], [f"{name}{TASKS[task].dev}" for name in ("dev", "validation")]
    for folder in folders(config, task):
        train_file, dev_file = (first_there(config, folder, stems) for stems in (names, dev))
        if train_file and dev_file:
            return train_file, dev_file
        if train_file or dev_file:
            lacking = folder / (dev[0] if train_file else "train")
            raise ConfigError(
                f"data.name={config.name}: no {lacking} (.tsv, .jsonl or .parquet) beside {train_file or dev_file}"
            )
    kept = [in_cache(file) for file in hub_files(task)]
    if kept[0] and kept[1]:
        return kept[0], kept[1]
    if not config.download:
        raise ConfigError(
            f"data.name={config.name}: no {folders(config, task)[0]}/train (.tsv, .jsonl or .parquet); "
            f"set data.download=true, or put train and {dev[0]} there"
        )
    return None


def first_there(config: Data, folder: Path, stems: Sequence[str]) -> Path | None:
    ends = (".tsv", ".jsonl", ".parquet", "-00000-of-00001.parquet")
    files = (folder / f"{stem}{end}" for end, stem in product(ends, stems))
    return next((file for file in files if there(config, file)), None)


def hub_files(task: str) -> list[str]:
    return [f"{task}/{part}-00000-of-00001.parquet" for part in ("train", f"validation{TASKS[task].dev}")]


def in_cache(file: str) -> Path | None:
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(HUB, file, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def downloaded(config: Data, task: str) -> tuple[Path, Path]:
    """From the hub, into its cache, which locks what it writes."""
    from huggingface_hub import hf_hub_download

    with text.quiet():
        try:
            train, dev = (Path(hf_hub_download(HUB, file, repo_type="dataset")) for file in hub_files(task))
        except Exception as error:  # of the network, the hub, its permissions, or the disk
            where = folders(config, task)[0]
            raise ConfigError(
                f"data.name={config.name}: not to be had from the hub ({text.line(error)}); put train and dev into "
                f"{where}"
            ) from None
    return train, dev


def examples(config: Data, task: str, file: Path) -> list[Example]:
    """The sentences and the label of each.

    Raises:
        ConfigError: not readable, or a bad row, with the file and its line.
    """
    found: list[Example] = []
    with told(config):
        try:
            for where, texts, label in READERS[file.suffix](file, TASKS[task]):
                if not all(isinstance(part, str) for part in texts):
                    raise BadRow(f"{where}: a sentence is missing")
                found.append((tuple(texts), number(where, label, TASKS[task].classes)))
        except BadRow as error:
            raise ConfigError(f"data.name={config.name}: {file}, {error}; mend or replace the file") from None
        except UnicodeDecodeError:
            raise ConfigError(f"data.name={config.name}: {file} is not UTF-8 text; replace it") from None
    if not found:
        raise ConfigError(f"data.name={config.name}: {file} has no examples; replace it")
    return found


def generated(config: Data, sizes: tuple[int, int]) -> Source:
    """Noise in the shape of a task, cut into data.vocabulary tokens: `sizes` are those of training and of test."""
    task, generator = task_of(config), torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> Any:
        return torch.randint(low, high, shape, generator=generator).tolist()

    def example() -> text.Rows:
        rows: text.Rows = [[text.START], [0]]
        room = (config.length - 1) // len(TASKS[task].texts)
        for segment in range(len(TASKS[task].texts)):
            words = draw(text.END + 1, config.vocabulary, draw(1, max(2, min(room, 24)), 1)[0])
            rows[0] += [*words, text.END]
            rows[1] += [segment] * (len(words) + 1)
        return rows

    labels = torch.rand(sum(sizes), generator=generator) * (len(TASKS[task].classes) or LARGEST)
    parts: list[Any] = []
    for size, y in zip(sizes, labels.split(sizes), strict=True):
        parts += [text.Ragged([example() for _ in range(size)], (text.PAD, 0)), targets(task, y)]
    return source(task, parts, text.unreadable(config.vocabulary))
