"""The board on a terminal: a few lines that are drawn over themselves, and erased when the work is done."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .board import Arm, Board

if TYPE_CHECKING:
    from rich.text import Text

HEIGHT, LEAST = 24, 5  # lines at most, and those below which there is no table
EVERY_S = 0.25
RUNGS = 11  # characters
IDLE_S = 1.0  # between drawings when nothing happens: the clock goes on
UNDER_WAY = ("searching", "running")
STYLES = {"searching": "cyan", "running": "cyan", "searched": "", "done": "green", "waiting": "dim"}
Line = list[tuple[str, str]]  # (text, style of rich)


@dataclass(frozen=True)
class Column:
    """A column of the table; the least `rank` goes first where the terminal is narrow."""

    title: str
    width: int
    rank: int
    left: bool
    cell: Callable[[Arm, Board], str]


def accuracy(arm: Arm) -> str:
    return f"{arm.best[0]:.1%}" if math.isfinite(arm.best[0]) else ""


def trials(arm: Arm) -> str:
    return f"{arm.over}/{arm.planned}" if arm.planned else f"{arm.over}" if arm.begun else ""


def outcomes(arm: Arm) -> str:
    """Completed, pruned, under way; and how many were lost."""
    if not arm.begun:
        return ""
    lost = arm.trials["failed"] + arm.trials["diverged"]
    counts = f"{arm.trials['completed']}/{arm.trials['pruned']}/{arm.trials['running']}"
    return f"{counts} !{lost}" if lost else counts


def survivors(arm: Arm) -> str:
    if not arm.begun or not arm.passed:
        return ""
    numbers = list(map(str, [arm.begun, *arm.passed]))
    told = " → ".join(numbers)
    return told if len(told) <= RUNGS else "→".join(numbers)


def cost(arm: Arm, board: Board) -> str:
    return f"{arm.cost / board.unit:.1f}" if arm.cost else ""


COLUMNS = (
    Column("arm", 20, 9, True, lambda arm, board: arm.name),
    Column("state", 9, 5, True, lambda arm, board: arm.state),
    Column("trials", 7, 7, False, lambda arm, board: trials(arm)),
    Column("done/cut/run", 12, 1, True, lambda arm, board: outcomes(arm)),
    Column("rungs", RUNGS, 2, True, lambda arm, board: survivors(arm)),
    Column("best val", 8, 8, False, lambda arm, board: accuracy(arm)),
    Column("ρ", 6, 4, False, lambda arm, board: f"{arm.best[1]:.3g}" if arm.best[1] > 0 else ""),
    Column("cost", 5, 3, False, lambda arm, board: cost(arm, board)),
    Column("draws", 5, 6, False, lambda arm, board: "{}/{}".format(*arm.replicates) if arm.expected else ""),
)


def table(board: Board, width: int, height: int) -> list[Line]:
    """The arms, at most `height` lines with the head: those under way and the best few where not all fit."""
    name = replace(COLUMNS[0], width=min(COLUMNS[0].width, max(map(len, board.arms))))
    columns = [name, *(column for column in COLUMNS[1:] if board.rungs or column.title != "rungs")]
    while sum(column.width + 2 for column in columns) - 2 >= width and len(columns) > 2:
        columns.remove(min(columns, key=lambda column: column.rank))
    shown, told = selected(list(board.arms.values()), height - 1)
    lines: list[Line] = [[("  ".join(fitted(c.title, c) for c in columns), "bold")]]
    first = board.best
    for arm in shown:
        best = "bold" if arm is first else ""
        style = {"state": STYLES[arm.state], "arm": best, "best val": best}
        row = [[(fitted(c.cell(arm, board), c), style.get(c.title, "")), ("  ", "")] for c in columns]
        lines.append([part for cell in row for part in cell][:-1])
    return [*lines, [(told, "dim")]] if told else lines


def fitted(text: str, column: Column) -> str:
    text = text if len(text) <= column.width else text[: column.width - 1] + "…"
    return f"{text:<{column.width}}" if column.left else f"{text:>{column.width}}"


def selected(arms: list[Arm], room: int) -> tuple[list[Arm], str]:
    """The arms that are shown, in their order: the best, those under way, other good ones; and a line for the rest."""
    if len(arms) <= room:
        return arms, ""
    value = {id(arm): arm.best[0] if math.isfinite(arm.best[0]) else -1.0 for arm in arms}
    runs = {id(arm): arm.trials["running"] + arm.finals["running"] > 0 for arm in arms}
    best = max(value.values())
    order = sorted(
        arms,
        key=lambda a: (value[id(a)] < best, not runs[id(a)], a.state not in UNDER_WAY, -value[id(a)]),
    )
    kept = {id(arm) for arm in order[: max(0, room - 1)]}
    rest = Counter(arm.state for arm in arms if id(arm) not in kept)
    told = ", ".join(f"{n} {state}" for state, n in rest.items())
    return [arm for arm in arms if id(arm) in kept], f"+ {rest.total()} more: {told}"


def lines(board: Board, head: Sequence[str], share: float | None, width: int, height: int) -> list[Line]:
    """All that is drawn.

    Args:
        board: the study.
        head: what is said above the table: the study and its stage; cost and time.
        share: of the whole that is done, for the bar; None: not known.
        width, height: of the terminal.
    """
    height = min(HEIGHT, height - 1)
    drawn: list[Line] = [[(text, "bold" if k == 0 else "")] for k, text in enumerate(head)]
    if share is not None and height > 10:
        full = round(min(1.0, share) * (width - 1))
        drawn.append([("━" * full, "cyan"), ("─" * (width - 1 - full), "dim")])
    notes: list[Line] = [[(f"! {note}", "yellow")] for note in list(board.notes)[-3 if height > 14 else -1 :]]
    room = height - len(drawn) - len(notes)
    if board.arms and room >= LEAST:
        drawn += table(board, width, room)
    return [cut(line, width) for line in [*drawn, *notes][: max(1, height)]]


def cut(line: Line, width: int) -> Line:
    """No line is wider than the terminal: it would be two."""
    kept, left = Line(), width - 1
    for text, style in line:
        kept.append((text[:left] if len(text) <= left else text[: max(0, left - 1)] + "…"[:left], style))
        left = max(0, left - len(text))
    return kept


class Screen:
    """Draws on stderr, at most four times a second, what `content` says for a width and a height.

    Whatever is printed meanwhile stands above it. `content` is asked for only when `version` has changed, or once a
    second.
    """

    def __init__(self, content: Callable[[int, int], list[Line]], version: Callable[[], int]) -> None:
        from rich.console import Console
        from rich.live import Live

        self.content, self.version = content, version
        self.console = Console(file=sys.stderr, highlight=False, markup=False)
        self.live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def start(self) -> None:
        self.live.start()
        self.thread.start()

    def stop(self) -> None:
        """Erase it and give the terminal back."""
        self.ended.set()
        self.thread.join(timeout=2)
        self.live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def follow(self) -> None:
        """Draw when something has happened; what goes wrong here must not end the work."""
        drawn, waited = -1, 0.0
        while not self.ended.wait(EVERY_S):
            waited += EVERY_S
            if (version := self.version()) == drawn and waited < IDLE_S:
                continue
            drawn, waited = version, 0.0
            with suppress(Exception):
                self.draw()

    def draw(self) -> None:
        from rich.text import Text

        width, height = self.console.size
        whole = Text("\n", no_wrap=True, overflow="crop").join(map(self.text, self.content(width, height)))
        self.live.update(whole, refresh=True)

    def text(self, line: Line) -> Text:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop")
        for part, style in line:
            text.append(part, style)
        return text
