"""What is going on, how far it is and how long it will take; on stderr, results are on stdout.

On a terminal a study's board is drawn over itself (live.py), and a single run has one line. Elsewhere there is a plain
line every 15 s, and nothing at all when quiet.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from .board import Board

if TYPE_CHECKING:
    from .live import Line, Screen

PLAIN_EVERY_S = 15.0
WINDOW_S = 60.0
KNOWN = 0.05  # share of a stage after which the speed is believed


class Progress:
    """How far the work is. Work is counted in one unit throughout, so that speeds hold from one stage to the next.

    Args:
        total: amount of work; `update` says how much of it is done.
        quiet: print nothing.

    Attributes:
        later: work to come after the present stage.
        board: the study's state, for `show`; hears the ledger's events.
    """

    def __init__(self, total: float = 0.0, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = not quiet and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self.done, self.later, self.stage, self.text = 0.0, 0.0, "", "starting"
        self.here, self.since = total, 0.0  # the present stage: how much it is, what was done before it
        self.known = False
        self.began, self.shown, self.paused = time.monotonic(), -math.inf, math.nan
        self.marks: deque[tuple[float, float]] = deque()  # (time, done), the last minute or third of all
        self.board = Board()
        self.screen: Screen | None = None

    # --- what the work tells -----------------------------------------------------------------------------------------

    def phase(self, remaining: float, stage: str = "") -> None:
        """A stage begins, and so much work is left in it."""
        self.here, self.since = remaining, self.done
        self.paused = time.monotonic()
        self.stage = stage or self.stage

    def update(self, text: str, more: float = 0.0) -> None:
        """Say what is happening, and that `more` work is done."""
        self.done += more
        self.text = text
        now = time.monotonic()
        if more:
            self.mark(now)
        if self.quiet or self.screen or now - self.shown < (0.2 if self.terminal else PLAIN_EVERY_S):
            return
        self.shown = now
        line = "  ·  ".join([f"{clock(now - self.began)}  {text}", *self.found(), *self.cost(), *self.ahead()])
        if self.terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\x1b[2K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.screen:
            self.screen.say(line)
            return
        self.clear()
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    # --- how long it takes -------------------------------------------------------------------------------------------

    def mark(self, now: float) -> None:
        """Remember when how much was done: speed is that of the last minute, or of the last third if that is longer.

        The time between the beginning of a stage and its first work, in which processes start, is left out.
        """
        if not math.isnan(self.paused):
            pause = now - max(self.paused, self.marks[-1][0] if self.marks else 0.0)
            self.marks = deque((at + pause, done) for at, done in self.marks)
            self.paused = math.nan
        self.known = self.known or self.done - self.since >= KNOWN * self.here > 0
        if not self.marks or now - self.marks[-1][0] >= 0.5:
            self.marks.append((now, self.done))
        while len(self.marks) > 2 and now - self.marks[1][0] > max(WINDOW_S, (now - self.began) / 3):
            self.marks.popleft()

    @property
    def left(self) -> float:
        """Work to come."""
        return max(0.0, self.here - (self.done - self.since)) + self.later

    def eta(self) -> float | None:
        """Seconds that the whole will take yet; None while the speed is not known."""
        if not self.known or len(self.marks) < 2 or self.left <= 0:
            return None
        (began, before), (last, done) = self.marks[0], self.marks[-1]
        return self.left * (last - began) / (done - before) if done > before else None

    @property
    def share(self) -> float | None:
        """Of the whole, earlier sessions included, that is done."""
        whole = self.spent + self.left
        return self.spent / whole if self.left and whole > 0 else None

    @property
    def spent(self) -> float:
        """Work done; of a study with its earlier sessions, by what the ledger says."""
        return self.board.spent * self.run if self.board.spent else self.done

    @property
    def run(self) -> float:
        """The work of one run of SAM, in a study."""
        return 2.0 * self.board.epochs

    # --- in words ----------------------------------------------------------------------------------------------------

    def found(self) -> list[str]:
        best = self.board.best
        if best is None:
            return []
        rho = f", ρ {best.best[1]:.3g}" if best.best[1] > 0 else ""
        return [f"best val {best.best[0]:.1%} ({best.name}{rho})"]

    def cost(self) -> list[str]:
        """What was spent, and what the whole will have cost."""
        if not self.board.spent:
            return []
        told = f"{self.board.spent:.1f} runs of SAM spent"
        return [f"{told}, about {self.left / self.run:.1f} left" if self.left else told]

    def ahead(self) -> list[str]:
        """How far the whole is, and how long it takes yet."""
        seconds = self.eta()
        if seconds is None or self.share is None:
            return []
        return [f"{self.share:.0%}, about {clock(seconds)} left"]

    # --- on a terminal -----------------------------------------------------------------------------------------------

    def show(self) -> None:
        """From now on the board is what a terminal shows."""
        if self.terminal and self.screen is None:
            from .live import Screen

            self.clear()
            screen = Screen(self.drawn, lambda: self.board.version)
            screen.start()
            self.screen = screen

    def drawn(self, width: int, height: int) -> list[Line]:
        """The board with its head, as lines."""
        from .live import lines

        now = time.monotonic()
        with self.board.lock:
            head = [" · ".join(part for part in (self.board.study, self.stage or self.text) if part)]
            told = [clock(now - self.began), *self.ahead()]
            whole = " · ".join([*told, *self.cost()])
            head += [whole] if len(whole) < width else [" · ".join(told), *self.cost()]
            return lines(self.board, head, self.share, width, height)

    def clear(self) -> None:
        if self.terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        screen, self.screen = self.screen, None
        if screen:
            screen.stop()
        else:
            self.clear()


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
