"""A live display below the log of a command, on a terminal: what it does now, and for how long.

Elsewhere (a pipe, a log file, a terminal that can't move its cursor) nothing is drawn, and each long phase is one line of
the log. Modules anywhere report what they do by :func:`phase`; that costs nothing where no display is open.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Lines that a command draws above the phase: called with the width and height of the terminal.
Body = Callable[[int, int], Sequence[str]]

#: Where nothing is drawn: the seconds after which a phase is logged, and those between two lines on the same bar.
LINE_AFTER, LINE_EVERY = 3.0, 60.0

#: How often the display is drawn, per second.
RATE = 4

_FRAMES, _PLAIN_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"

#: Columns of a bar.
_BAR = 24


class Display:
    """The lines of a live display.

    Args:
        clock: Seconds, such as `time.monotonic`.
        unicode: Whether the terminal shows more than ASCII.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, unicode: bool = True) -> None:
        self._clock, self._unicode = clock, unicode
        self._phase, self._since = "", clock()
        self._bar: tuple[str, int, int, float] | None = None
        self._body: Body | None = None
        self.drawn = False

    def phase(self, text: str) -> None:
        """Show what the command does now, with the seconds since; the same text again changes nothing, "" hides it."""
        self._bar = None
        if text != self._phase:
            self._phase, self._since = text, self._clock()

    def bar(self, what: str, done: int, total: int) -> None:
        """Show how much of something countable is done, and the remaining time.

        Args:
            what: What is counted.
            done: The number that is done.
            total: The number in all.
        """
        began = self._clock()
        if self._bar and (self._bar[0], self._bar[2]) == (what, total):
            began = self._bar[3]
        self._bar = (what, done, total, began)

    @property
    def counts(self) -> bool:
        """Whether a bar is shown."""
        return self._bar is not None

    def body(self, body: Body | None) -> None:
        """Show further lines above the phase; None: no more."""
        self._body = body

    def lines(self, width: int, height: int = 24) -> list[str]:
        """Return the present lines.

        Args:
            width: Columns of the terminal.
            height: Its lines.
        """
        # Another thread may call `phase` and `body` meanwhile: each is read once.
        bar, body = self._bar, self._body
        try:
            lines = list(body(width, height)) if body else []
        except Exception as error:  # whatever a body raises would end the thread that draws
            lines = [f"can't show the progress: {type(error).__name__}: {error}"]
        now = self._clock()
        frames = _FRAMES if self._unicode else _PLAIN_FRAMES
        frame = frames[int(8 * now) % len(frames)]
        if bar:
            lines.append(f"{frame} {self._bar_line(bar, now)}")
        elif self._phase:
            elapsed = now - self._since
            seconds = f"  {duration(elapsed)}" if elapsed >= 1 else ""
            lines.append(f"{frame} {self._phase}{seconds}")
        return lines

    def current(self) -> tuple[str, str, float]:
        """Return the present phase or what a bar counts, the line that a log shows of it, and the seconds since it began."""
        bar, now = self._bar, self._clock()
        if bar is None:
            return self._phase, f"{self._phase} …", now - self._since
        what, done, total, began = bar
        return what, f"{what}: {done} of {total}{self._remaining(bar, now)}", now - began

    def _bar_line(self, shown: tuple[str, int, int, float], now: float) -> str:
        what, done, total, _ = shown
        return f"{what}  {bar(done, total, self._unicode)}  {done} of {total}{self._remaining(shown, now)}"

    @staticmethod
    def _remaining(shown: tuple[str, int, int, float], now: float) -> str:
        _, done, total, began = shown
        return f", about {duration((now - began) / done * (total - done))} left" if done and now > began else ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Draw the lines, each wrapped between words."""
        from rich.text import Text

        for line in self.lines(options.max_width, console.height):
            yield Text(line)


def bar(done: float, total: float, unicode: bool = True) -> str:
    """Return a bar of :data:`_BAR` columns that is filled by done / total.

    Args:
        done: The part that is done.
        total: The whole.
        unicode: Whether the terminal shows more than ASCII.
    """
    filled = round(_BAR * min(1.0, done / total)) if total else 0
    full, empty = ("━", "╌") if unicode else ("#", ".")
    return full * filled + empty * (_BAR - filled)


def duration(seconds: float) -> str:
    """Return a duration in words: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, rest = divmod(whole // 60, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(hours, 24)
    return f"{days} d {rest} h" if rest else f"{days} d"


_open: Display | None = None


@contextlib.contextmanager
def display(phase: str = "") -> Iterator[Display]:
    """Show a display on stderr until the context ends, however it ends; within another one, that one is used.

    What is printed or logged meanwhile appears above it.

    Args:
        phase: What the command does first.
    """
    global _open
    if _open is not None:
        _open.phase(phase)
        yield _open
        return
    from rich.console import Console

    console = Console(stderr=True)
    shown = Display(unicode=(console.encoding or "").lower().startswith("utf"))
    shown.phase(phase)
    _open = shown
    try:
        with _drawn(console, shown):
            yield shown
    finally:
        _open = None


@contextlib.contextmanager
def _drawn(console: Any, shown: Display) -> Iterator[None]:
    """Draw a display while the context lasts, if the terminal can."""
    if not console.is_terminal or console.is_dumb_terminal:
        with _logged(shown):
            yield
        return
    from rich.live import Live

    # What goes to stdout is a result: it passes through the display only where both are the same terminal.
    same = sys.stdout.isatty()
    shown.drawn = True
    with Live(shown, console=console, refresh_per_second=RATE, transient=True, redirect_stdout=same):
        yield


@contextlib.contextmanager
def _logged(shown: Display, every: float = 0.25) -> Iterator[None]:
    """Log each phase of a display that lasts for :data:`LINE_AFTER` seconds, from a thread, while the context lasts."""
    ended = threading.Event()

    def watch() -> None:
        last, after = "", LINE_AFTER
        while not ended.wait(every):
            what, line, seconds = shown.current()
            if what != last:
                last, after = what, LINE_AFTER
            if what and seconds >= after:
                log.info(line)
                after = seconds + LINE_EVERY if shown.counts else math.inf

    thread = threading.Thread(target=watch, name="phases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_drawn() -> bool:
    """Return whether a display is open that a terminal shows."""
    return _open is not None and _open.drawn


def phase(text: str) -> None:
    """Report what the command does now to the open display; without one, nothing happens."""
    if _open is not None:
        _open.phase(text)


def steps(what: str, done: int, total: int) -> None:
    """Report how much of something countable is done to the open display; without one, nothing happens.

    Args:
        what: What is counted.
        done: The number that is done.
        total: The number in all.
    """
    if _open is not None:
        _open.bar(what, done, total)


def body(draw: Body | None) -> None:
    """Show further lines in the open display; without one, nothing happens."""
    if _open is not None:
        _open.body(draw)


def updates(what: str) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Return `on_plan` and `on_step` of :func:`leebert.recipe.train_model`, which show its updates in the open display."""
    total = 0

    def on_plan(planned: int) -> None:
        nonlocal total
        total = planned

    return on_plan, lambda step: steps(what, step, max(total, step))


def track(items: Iterable[T], what: str, then: str = "") -> Iterator[T]:
    """Iterate over items, and report how many of them are done.

    Args:
        items: The items; without a length, they are iterated over unreported.
        what: What they are, for the display.
        then: The phase that follows.
    """
    total = len(items) if isinstance(items, Sized) else 0
    for number, item in enumerate(items):
        if total:
            steps(what, number, total)
        yield item
    phase(then)
