"""What is told while the work goes on: how far, how long yet; and a terminal that is left as it was found."""

import io
import itertools
import re
import sys
import time

import pytest

from bisam_ray import progress as progressing
from bisam_ray.progress import PLAIN_EVERY_S, Progress

from .test_board import STUDY, begin, end, epoch, trial


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    stream.attach = lambda: monkeypatch.setattr(sys, "stderr", stream)  # pytest puts its own there before each test
    monkeypatch.setattr("os.get_terminal_size", lambda *_: __import__("os").terminal_size((90, 24)))
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "90", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return stream


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progressing, "time", found)
    return found


def test_the_time_that_is_left_is_of_the_whole(clock):
    """Two units a second; starting the processes of a stage takes 20 s, which is no speed of the work."""
    progress = Progress(quiet=True)
    progress.later = 300.0
    left, told = 400.0, []
    for stage, work in enumerate((100, 250, 50)):
        progress.later = left - work if stage < 2 else 0.0
        progress.phase(work)
        clock.now += 20
        for _ in range(work // 2):
            clock.now += 1
            left -= 2
            progress.update("", 2)
            told.append((left, progress.eta()))
    assert [eta for left, eta in told if left > 395] == [None, None]  # not before a twentieth of the stage
    known = [(left, eta) for left, eta in told if eta is not None]
    assert len(known) > 190
    assert all(eta == pytest.approx(left / 2, rel=0.05) for left, eta in known)


def test_a_change_of_speed_is_followed_slowly(clock):
    progress = Progress(1000, quiet=True)
    told = []
    for second in range(300):
        clock.now += 1
        progress.update("", 2 if second < 100 else 1)
        told.append(progress.eta())
    known = [eta for eta in told if eta is not None]
    assert all(abs(b - a) < 0.1 * a + 2 for a, b in itertools.pairwise(known))
    assert told[299] == pytest.approx(600, rel=0.02)


def test_more_work_than_was_foreseen_leaves_what_comes_later(clock):
    progress = Progress(quiet=True)
    progress.later = 50.0
    progress.phase(10)
    for _ in range(30):
        clock.now += 1
        progress.update("", 1)
    assert progress.left == 50.0
    assert progress.eta() == pytest.approx(50, rel=0.05)


def study(progress):
    for event in (STUDY, *trial("t0", 4, 0.7), begin("t1"), epoch("t1", 1, 0.6)):
        progress.board.take(event)


def test_plain_lines_tell_what_matters_every_fifteen_seconds(capsys, clock):
    with Progress() as progress:
        study(progress)
        progress.later = 40.0
        progress.phase(40.0, "searching")
        for number in range(31):
            clock.now += 1
            progress.update(f"rho searched: {number} of 30 trials ended", 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 30 // PLAIN_EVERY_S
    assert lines[0].startswith("0:01  rho searched: 0 of 30 trials ended  ·  best val 70.0% (rho searched, ρ 0.1)")
    assert lines[0].endswith("1.2 runs of SAM spent, about 9.9 left")
    assert lines[1].endswith("1.2 runs of SAM spent, about 8.0 left  ·  14%, about 1:04 left")
    assert not any("\x1b" in line or "\r" in line for line in lines)


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(terminal, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    terminal.attach()
    with Progress() as progress:
        progress.show()
        progress.update("searching")
        progress.say("study toy")
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().splitlines() == ["0:00  searching", "study toy"]


def test_quiet_is_quiet(terminal, capsys):
    terminal.attach()
    with Progress(quiet=True) as progress:
        progress.show()
        study(progress)
        progress.phase(1.0, "searching")
        progress.update("more", 1)
        progress.say("study toy")
    assert terminal.getvalue() == ""
    assert capsys.readouterr().out == ""


def wait(condition, seconds=5.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def test_the_board_is_drawn_and_erased_and_what_is_said_stays(terminal):
    pyte = pytest.importorskip("pyte")
    terminal.attach()
    screen = pyte.HistoryScreen(90, 24, history=200)
    stream, fed = pyte.Stream(screen), [0]

    def shown():
        text = terminal.getvalue()
        stream.feed(text[fed[0] :].replace("\n", "\r\n"))
        fed[0] = len(text)
        return [line.rstrip() for line in screen.display]

    before = sys.stderr
    with Progress() as progress:
        progress.say("study toy")
        progress.show()
        study(progress)
        progress.phase(1.0, "searching")
        wait(lambda: any("1/6" in line for line in shown()))
        lines = shown()
        assert lines[0] == "study toy"
        assert lines[1] == "toy · searching"
        assert any(re.match(r"rho searched +searching +1/6 .*70\.0%", line) for line in lines)
        assert screen.cursor.hidden
        print("a warning of some library", file=sys.stderr)
        progress.say("rho searched: 4 trials")
        progress.board.take(end("t1", "failed", error="ValueError: too bad"))
        wait(lambda: any("! t1 failed: ValueError: too bad" in line for line in shown()))
        lines = shown()
        assert lines[:4] == ["study toy", "a warning of some library", "rho searched: 4 trials", "toy · searching"]
        assert sum(line.startswith("rho searched ") for line in lines) == 1
    lines = shown()
    assert lines[:3] == ["study toy", "a warning of some library", "rho searched: 4 trials"]
    assert not any(lines[3:])
    assert not screen.cursor.hidden
    assert sys.stderr is before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_the_terminal_is_given_back_whatever_happens(terminal, error):
    terminal.attach()
    screens = []

    def work():
        with Progress() as progress:
            progress.show()
            screens.append(progress.screen)
            study(progress)
            wait(lambda: "searching" in terminal.getvalue())
            raise error

    with pytest.raises(error):
        work()
    hides, shows = (terminal.getvalue().rfind(f"\x1b[?25{end}") for end in "lh")
    assert -1 < hides < shows
    assert not screens[0].thread.is_alive()
    assert sys.stderr is terminal


def test_no_color_is_respected(terminal, monkeypatch):
    terminal.attach()

    def draw():
        with Progress() as progress:
            progress.show()
            study(progress)
            wait(lambda: "rho searched" in terminal.getvalue())
        return re.findall(r"\x1b\[[\d;]*m", terminal.getvalue())

    colours = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])(?:;\d+)*m")
    assert any(colours.match(code) for code in draw())
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(colours.match(code) for code in draw())


def test_what_cannot_be_drawn_does_not_end_the_work(terminal, monkeypatch):
    terminal.attach()
    with Progress() as progress:
        monkeypatch.setattr(progress, "drawn", lambda *_: 1 / 0)
        progress.show()
        time.sleep(0.6)
        assert progress.screen.thread.is_alive()
        progress.update("still here", 1)


def test_a_narrow_terminal_has_the_cost_on_a_line_of_its_own(clock):
    progress = Progress(quiet=True)
    study(progress)
    progress.phase(40.0, "searching")
    for _ in range(10):
        clock.now += 1
        progress.update("", 1)
    wide, narrow = (["".join(text for text, _ in line) for line in progress.drawn(width, 24)] for width in (80, 50))
    assert wide[1] == "0:10 · 25%, about 0:30 left · 1.2 runs of SAM spent, about 3.8 left"
    assert narrow[1:3] == ["0:10 · 25%, about 0:30 left", "1.2 runs of SAM spent, about 3.8 left"]
    assert wide[2].count("━") == round(0.25 * 79)
    assert wide[2].count("─") == 79 - wide[2].count("━")
