"""One line that says what is going on, how far it is and how long it will take; on stderr, results are on stdout."""

from __future__ import annotations

import sys
import time
from types import TracebackType

PLAIN_EVERY_S = 15.0


class Progress:
    """A status line: rewritten in place on a terminal, a new line every 15 s elsewhere, nothing when quiet.

    Args:
        total: amount of work in any unit; `update` says how much of it is done.
        quiet: print nothing.
    """

    def __init__(self, total: float = 0.0, quiet: bool = False) -> None:
        self.total, self.done, self.text = total, 0.0, ""
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.began = self.resumed = time.monotonic()
        self.shown, self.resumed_at = 0.0, 0.0

    def phase(self, remaining: float) -> None:
        """The work that is left is known anew: the ETA starts over from the present speed."""
        self.total = self.done + remaining
        self.resumed, self.resumed_at = time.monotonic(), self.done

    def update(self, text: str, more: float = 0.0) -> None:
        """Say what is happening, and that `more` work is done."""
        self.done += more
        self.text = text
        now = time.monotonic()
        if self.quiet or now - self.shown < (0.2 if self.terminal else PLAIN_EVERY_S):
            return
        self.shown = now
        line = f"{clock(now - self.began)}  {text}{self.eta(now)}"
        if self.terminal:
            print(f"\r\x1b[2K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def eta(self, now: float) -> str:
        """From the speed of the present phase, once a twentieth of it is done."""
        done, phase = self.done - self.resumed_at, self.total - self.resumed_at
        if phase <= 0 or not 0.05 <= done / phase < 1:
            return ""
        left = (now - self.resumed) * (phase - done) / done
        return f"  ·  {self.done / self.total:.0%}, about {clock(left)} left"

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.terminal and not self.quiet:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
