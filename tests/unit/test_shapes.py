"""Shapes of the radius: what they are worth, and that a recorded one comes back bit for bit."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

import pytest
import torch

from bisam_ray.optim.shapes import Shape, cosine, table, theorem, write_table


def bits(x: float) -> bytes:
    return struct.pack("<d", x)


def test_cosine() -> None:
    shape = cosine(0.2)
    assert shape(0.0) == 0.2
    assert shape(1.0) == 0.0
    assert shape(0.25) == pytest.approx(0.1 * (1 + math.sqrt(0.5)), rel=1e-14)
    assert shape(0.5) == pytest.approx(0.1, rel=1e-14)
    values = [shape(i / 100) for i in range(101)]
    assert values == sorted(values, reverse=True)


def test_theorem_depends_on_the_length_of_the_run_alone() -> None:
    assert {theorem(3.0, 900)(s) for s in (0.0, 0.4, 1.0)} == {0.1}
    assert theorem(3.0, 3600)(0.0) == 0.05
    assert theorem(3.0, 1)(0.0) == 3.0


@pytest.mark.parametrize(
    ("shape", "arguments", "match"),
    [
        (cosine, (math.inf,), "rho=inf"),
        (cosine, (-1,), "rho=-1"),
        (theorem, (-1.0, 10), "kappa=-1.0"),
        (theorem, (1.0, 0), "total_steps=0"),
    ],
)
def test_bad_arguments_are_named(shape: type[Shape], arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        shape(*arguments)


def test_table_between_and_outside_its_rows() -> None:
    shape = table([(0.2, 0.1), (0.4, 0.5), (0.8, 0.0)])
    assert [shape(s) for s in (-1.0, 0.0, 0.1, 0.2)] == [0.1] * 4
    assert shape(0.25) == pytest.approx(0.2, rel=1e-14)
    assert shape(0.3) == pytest.approx(0.3, rel=1e-14)
    assert shape(0.4) == 0.5
    assert shape(0.7) == pytest.approx(0.125, rel=1e-14)
    assert [shape(s) for s in (0.8, 0.9, 1.0, 2.0)] == [0.0] * 4


def test_table_of_one_row_is_constant() -> None:
    assert [table([(0.5, 0.1)])(s) for s in (0.0, 0.5, 1.0)] == [0.1] * 3


def test_table_is_never_negative() -> None:
    shape = table([(0.0, 0.3), (0.1, 1e-300), (1 / 3, 0.7), (1.0, 0.0)])
    draw = random.Random(0)
    assert all(shape(draw.random()) >= 0 for _ in range(10_000))
    assert shape(math.nextafter(1.0, 0)) >= 0


@pytest.mark.parametrize("total", [7, 1000, 9973])
def test_what_was_recorded_is_replayed_bit_for_bit(tmp_path: Path, total: int) -> None:
    draw = random.Random(total)
    rows = [(t / total, math.exp(draw.gauss(-3, 5))) for t in range(total)]
    write_table(tmp_path / "rho.csv", rows)
    for shape in (table(tmp_path / "rho.csv"), table(str(tmp_path / "rho.csv")), table(iter(rows))):
        assert all(bits(shape(t / total)) == bits(rho) for t, (_, rho) in enumerate(rows))
    write_table(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "rho.csv").read_bytes()


def test_extreme_values_come_back(tmp_path: Path) -> None:
    rows = [(0.0, 5e-324), (5e-324, 1.7976931348623157e308), (math.nextafter(1, 0), 0.1 + 0.2), (1.0, 0.0)]
    write_table(tmp_path / "rho.csv", rows)
    assert [bits(table(tmp_path / "rho.csv")(s)) for s, _ in rows] == [bits(rho) for _, rho in rows]


def test_tensors_are_recorded_with_their_exact_value(tmp_path: Path) -> None:
    rho = torch.tensor(0.1)
    write_table(tmp_path / "rho.csv", [(0, rho)])
    assert (tmp_path / "rho.csv").read_text(encoding="utf-8") == "fraction,rho\n0.0,0.10000000149011612\n"
    assert table(tmp_path / "rho.csv")(0.0) == rho.item()


@pytest.mark.parametrize(
    "text", ["\ufefffraction,rho\r\n0,0.1\r\n1,0.2\r\n", "fraction, rho\n 0 , 1e-1 \n1.0,.2\n\n \n"]
)
def test_spreadsheets_and_hands_are_understood(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rho.csv"
    path.write_bytes(text.encode())
    assert [table(path)(s) for s in (0.0, 1.0)] == [0.1, 0.2]


BAD = [
    ("", 1, "''"),
    ("0,0.1\n1,0.2\n", 1, "0,0.1"),
    ("step,rho\n0,0.1\n", 1, "step,rho"),
    ("fraction,rho\n0,0.1\n0.5,abc\n", 3, "0.5,abc"),
    ("fraction,rho\n0,0.1\n\n0.5,0.2\n", 3, "''"),
    ("fraction,rho\n0,0.1,7\n", 2, "0,0.1,7"),
    ("fraction,rho\n0\n", 2, "'0'"),
    ("fraction,rho\n0,0.1\n0.5,-0.2\n", 3, "rho=-0.2"),
    ("fraction,rho\n0,nan\n", 2, "rho=nan"),
    ("fraction,rho\n0,inf\n", 2, "rho=inf"),
    ("fraction,rho\nnan,0.1\n", 2, "fraction=nan"),
    ("fraction,rho\n-0.1,0.1\n", 2, "fraction=-0.1"),
    ("fraction,rho\n0,0.1\n1.5,0.1\n", 3, "fraction=1.5"),
    ("fraction,rho\n0,0.1\n0.5,0.1\n0.5,0.2\n", 4, "fraction=0.5"),
    ("fraction,rho\n0,0.1\n0.5,0.1\n0.4,0.2\n", 4, "fraction=0.4"),
]


@pytest.mark.parametrize(("text", "line", "value"), BAD)
def test_bad_files_are_named_with_line_and_value(tmp_path: Path, text: str, line: int, value: str) -> None:
    path = tmp_path / "rho.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"rho\.csv") as error:
        table(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert value in message
    assert "\n" not in message


def test_files_without_rows_or_text(tmp_path: Path) -> None:
    path = tmp_path / "rho.csv"
    with pytest.raises(ValueError, match=r"rho\.csv: No such file"):
        table(path)
    with pytest.raises(ValueError, match="Is a directory"):
        table(tmp_path)
    path.write_text("fraction,rho\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rho\.csv: no rows"):
        table(path)
    path.write_bytes(b"fraction,rho\n\xff,0.1\n")
    with pytest.raises(ValueError, match=r"rho\.csv: not a text file"):
        table(path)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "rows: no rows"),
        ([(0, 0.1), (0.5, -1)], "row 2: rho=-1"),
        ([(0, 0.1), (0, 0.2)], "row 2: fraction=0.0"),
        ([(0, "x")], "row 1: .*'0,x'"),
    ],
)
def test_bad_rows_are_named_and_not_written(tmp_path: Path, rows: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        table(rows)
    with pytest.raises(ValueError, match=match):
        write_table(tmp_path / "rho.csv", rows)
    assert not (tmp_path / "rho.csv").exists()
