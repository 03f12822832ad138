"""Labelled sentences in files, row by row: tab-separated, JSON by line, or Parquet.

A reader gives for each row where it stands (`line 7`), its one or two sentences, and the label as it is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LARGEST = 5.0  # of a label that is a number


class Table(NamedTuple):
    """Where the examples of a task stand.

    Args:
        folder: the official name.
        texts: the hub's columns of the one or two sentences; the label is in `label`.
        classes: names of the labels, in the hub's order; none of a number.
        tsv: the official columns of the sentences and the label, by name, or, without a header, by place.
        dev: what follows the name of the development set.
    """

    folder: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    tsv: tuple[str | int, ...]
    dev: str = ""


class BadRow(Exception):
    """Where, and what is wrong."""


Row = tuple[str, list[Any], Any]


def number(where: str, label: Any, classes: tuple[str, ...]) -> float:
    """The index of a class, by that or by name; or a number."""
    if label in classes:
        return classes.index(label)
    try:
        value = math.nan if isinstance(label, bool) or label is None else float(label)
    except (TypeError, ValueError):
        value = math.nan
    if 0 <= value <= (len(classes) - 1 if classes else LARGEST) and not (classes and value % 1):
        return value
    if value == -1:
        raise BadRow(f"{where}: the label is hidden (-1), as in GLUE's own test sets")
    wanted = f"one of {', '.join(classes)}, or its index" if classes else f"a number from 0 to {LARGEST:g}"
    raise BadRow(f"{where}: label {label!r} is not {wanted}")


def tsv_rows(file: Path, table: Table) -> Iterator[Row]:
    """Quotes have no meaning in GLUE's files, and CoLA's have no header.

    As in the hub's version, rows of QQP's with too few columns or no label are left out: the published file has some.
    """
    # only \n ends a line: sentences hold other characters that Python would take for an end
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        places = columns(table.tsv, None if isinstance(table.tsv[0], int) else cells(next(lines, "")))
        first = 1 if isinstance(table.tsv[0], int) else 2
        for index, line in enumerate(lines, first):
            row = cells(line)
            if row == [""]:
                continue
            short = len(row) <= max(places)
            if table.folder == "QQP" and (short or not row[places[-1]]):
                continue
            if short:
                raise BadRow(f"line {index}: {len(row)} columns, not {max(places) + 1} or more, between tabs")
            *texts, label = (row[place] for place in places)
            yield f"line {index}", texts, label


def cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def columns(wanted: tuple[str | int, ...], header: list[str] | None) -> list[int]:
    lacking = [name for name in wanted if header is not None and name not in header]
    if lacking:
        raise BadRow(f"line 1: no column {lacking[0]}")
    return [name if isinstance(name, int) else (header or []).index(name) for name in wanted]


def jsonl_rows(file: Path, table: Table) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for index, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadRow(f"line {index}: no JSON ({error.msg})") from None
            lacking = [name for name in (*table.texts, "label") if not isinstance(row, dict) or name not in row]
            if lacking:
                raise BadRow(f"line {index}: no {lacking[0]}")
            yield f"line {index}", [row[name] for name in table.texts], row["label"]


def parquet_rows(file: Path, table: Table) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        opened = parquet.ParquetFile(file)
        names = [*table.texts, "label"]
        lacking = [name for name in names if name not in opened.schema_arrow.names]
        if lacking:
            raise BadRow(f"no column {lacking[0]}")
        found = opened.read(columns=names).to_pydict()
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadRow(f"no whole Parquet file ({str(error)[:200].partition(chr(10))[0]})") from None
    for index, (*texts, label) in enumerate(zip(*(found[name] for name in names), strict=True), 1):
        yield f"row {index}", texts, label


READERS = {".tsv": tsv_rows, ".jsonl": jsonl_rows, ".parquet": parquet_rows}
