"""The shapes of a radius over training: functions from the fraction of training s = t/T ∈ [0, 1] to ρ.

    cosine     ρ(s) = ρ · ½(1 + cos πs)
    theorem    ρ(s) = κ/√T
    table      ρ(s) = linear between recorded rows (s_i, ρ_i), constant outside

A fraction, not a step, so that a shape recorded in one run can be replayed in a run of another length.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path

Shape = Callable[[float], float]
Rows = Iterable[tuple[float, float]]

HEADER = "fraction,rho"


def cosine(rho: float) -> Shape:
    """ρ(s) = ρ · ½(1 + cos πs): from ρ at the start to 0 at the end, like a cosine learning rate.

    Args:
        rho: ρ ≥ 0, the radius at the start.

    Returns:
        Fraction of training → ρ.

    Raises:
        ValueError: rho negative, infinite or NaN.

    Example:
        >>> [round(cosine(0.1)(s), 3) for s in (0, 0.5, 1)]
        [0.1, 0.05, 0.0]
    """
    _check("rho", rho)
    return lambda s: rho * (0.5 * (1 + math.cos(math.pi * s)))


def theorem(kappa: float, total_steps: int) -> Shape:
    """ρ(s) = κ/√T: the largest radius under which the convergence theorem of LETS holds, the same for every s.

    The only shape that depends on the length of the run: four times the steps, half the radius.

    Args:
        kappa: κ ≥ 0.
        total_steps: T ≥ 1, the number of optimizer steps of the run.

    Returns:
        Fraction of training → ρ.

    Raises:
        ValueError: kappa negative, infinite or NaN, or total_steps below 1.

    Example:
        >>> theorem(2.0, total_steps=400)(0.7)
        0.1

    Source: X. Wang, W. Jiang, S. Fu, Y. Zhang, "Enhancing Sharpness-Aware Minimization by Learning Perturbation
    Radius", 2024: the assumption ρ ≤ κ/√T.
    """
    _check("kappa", kappa)
    if not total_steps >= 1:
        raise ValueError(f"total_steps={total_steps}: a run has at least one step")
    rho = kappa / math.sqrt(total_steps)
    return lambda s: rho


def table(source: str | os.PathLike[str] | Rows) -> Shape:
    """ρ(s) from recorded rows: linear between them, constant before the first and after the last.

        ρ(s) = ρ_i + (ρ_{i+1} − ρ_i) · (s − s_i)/(s_{i+1} − s_i)   for s_i ≤ s < s_{i+1}

    At a recorded fraction the recorded value is returned, bit for bit.

    Args:
        source: rows (s_i, ρ_i), at least one, s_i strictly increasing in [0, 1] and ρ_i ≥ 0; or the path of a CSV file
            of them with the header line `fraction,rho` (see `write_table`).

    Returns:
        Fraction of training → ρ.

    Raises:
        ValueError: a file that cannot be read, or rows that are not as above; one line that names the file, the line
            and the value.

    Example:
        >>> rho = table([(0.25, 0.1), (0.75, 0.3)])
        >>> [round(rho(s), 3) for s in (0, 0.25, 0.5, 0.75, 1)]
        [0.1, 0.1, 0.2, 0.3, 0.3]
    """
    rows = _read(source) if isinstance(source, str | os.PathLike) else _checked(source, "row {}".format)
    fractions, rhos = [s for s, _ in rows], [rho for _, rho in rows]
    last = len(rows) - 1

    def rho(s: float) -> float:
        i = bisect_right(fractions, s) - 1
        if i < 0 or i == last:
            return rhos[max(i, 0)]
        return rhos[i] + (rhos[i + 1] - rhos[i]) * ((s - fractions[i]) / (fractions[i + 1] - fractions[i]))

    return rho


def write_table(path: str | os.PathLike[str], rows: Rows) -> None:
    """Write recorded rows as the CSV file that `table` reads, every float with as many digits as give it back exactly.

    Args:
        path: the file, overwritten if it exists.
        rows: (s_i, ρ_i), as for `table`; anything float() takes.

    Raises:
        ValueError: rows that `table` would not take; nothing is written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "rho.csv")
        >>> write_table(path, [(0, 0.1), (1 / 3, 0.2)])
        >>> path.read_text().split()
        ['fraction,rho', '0.0,0.1', '0.3333333333333333,0.2']
        >>> table(path)(1 / 3)
        0.2
    """
    lines = [f"{s!r},{rho!r}\n" for s, rho in _checked(rows, "row {}".format)]
    Path(path).write_text(f"{HEADER}\n{''.join(lines)}", encoding="utf-8", newline="\n")


def _check(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: must be finite and not negative")


def _read(path: str | os.PathLike[str]) -> list[tuple[float, float]]:
    """The rows of a CSV file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark before the header
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: not a text file, {error.reason} at byte {error.start}") from None
    header, *lines = text.rstrip().split("\n")
    if [field.strip() for field in header.split(",")] != HEADER.split(","):
        raise ValueError(f"{os.fspath(path)}, line 1: expected the header {HEADER!r}, found {header.strip()!r}")
    return _checked((line.strip().split(",") for line in lines), lambda i: f"{os.fspath(path)}, line {i + 1}", path)


def _checked(
    rows: Iterable[Iterable[object]], where: Callable[[int], str], path: str | os.PathLike[str] = "rows"
) -> list[tuple[float, float]]:
    """The rows as floats; ValueError at the first one that is not two numbers in their ranges and in order."""
    checked: list[tuple[float, float]] = []
    for i, row in enumerate(rows, start=1):
        fields = list(row)
        shown = ",".join(str(field) for field in fields)
        try:
            s, rho = (float(field) for field in fields)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(f"{where(i)}: expected two numbers, fraction,rho, found {shown!r}") from None
        if not 0 <= s <= 1:
            raise ValueError(f"{where(i)}: fraction={s!r} is not in [0, 1]")
        if not 0 <= rho < math.inf:
            raise ValueError(f"{where(i)}: rho={rho!r} must be finite and not negative")
        if checked and s <= checked[-1][0]:
            raise ValueError(f"{where(i)}: fraction={s!r} is not above {checked[-1][0]!r}, the one before")
        checked.append((s, rho))
    if not checked:
        raise ValueError(f"{os.fspath(path)}: no rows of fraction,rho")
    return checked
