"""Fixtures that mostly wait, for servers or for processes to end, are set up in a thread while earlier tests run.

`@prepared()` above a generator function makes such a fixture, for the whole session. One is set up at a time, from the
start of the session on, in the order in which tests need them; none that no collected test asks for. Files whose tests
need one run after all others (:func:`in_order`). What the function does must not touch what the tests of this process
share (the random numbers, the environment, the working folder): it should start processes, and wait for them. It is
torn down, in the background too, after the last file that uses it, and at the end of a session that is interrupted or
stops at a failure. Where tests only read what processes have left, it ends these before it yields.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil
import pytest

T = TypeVar("T")

#: The session's environment, which tests change for themselves.
ENVIRONMENT = dict(os.environ)
#: They measure time or memory, and run before the first fixture is set up.
FIRST = ("test_latency", "test_memory")
#: They measure time on a cluster, and run when all fixtures have been set up.
FINALLY = ("test_troubled_trials",)


class Prepared(Generic[T]):
    """A context that a thread of its own enters, keeps and leaves: the kernel ends some processes with their thread."""

    def __init__(self, make: Callable[..., Iterator[T]], using: tuple[str, ...]) -> None:
        self._make, self.using = contextlib.contextmanager(make), using
        self.name = make.__name__
        self._begun, self._ready, self._over = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._value: T
        self._error: BaseException | None = None

    def begin(self, values: Callable[[], tuple[Any, ...]]) -> None:
        """Start to set it up, with what it is given, unless that was done before."""
        if self._begun.acquire(blocking=False):
            self._thread = threading.Thread(target=self._hold, args=(values,), name=self.name, daemon=True)
            self._thread.start()

    def wait(self) -> T:
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def settle(self) -> None:
        """Wait until it is set up, or failed."""
        self._ready.wait()

    def forbid(self) -> None:
        """It is not begun any more."""
        if self._begun.acquire(blocking=False):
            self._ready.set()

    def end(self) -> None:
        """Let it be torn down."""
        self.forbid()
        self._over.set()

    def join(self) -> None:
        """Wait until it is torn down. One that isn't set up yet is interrupted: what it waits for is ended."""
        while self._thread is not None and self._thread.is_alive():
            if not self._ready.is_set():
                self._end_children()
            self._thread.join(0.2)

    def _end_children(self) -> None:
        """End the processes that this thread has started, and theirs."""
        assert self._thread is not None
        with contextlib.suppress(OSError):  # no such file: not on Linux, or the thread has ended
            for pid in Path(f"/proc/self/task/{self._thread.native_id}/children").read_text().split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    own = psutil.Process(int(pid))
                    for process in (*own.children(recursive=True), own):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            process.kill()

    @property
    def begun(self) -> bool:
        return self._begun.locked()

    def _hold(self, values: Callable[[], tuple[Any, ...]]) -> None:
        try:
            with self._make(*values()) as self._value:
                self._ready.set()
                self._over.wait()
        except BaseException as error:  # pytest's skips, too: the test that needs it raises it
            self._error = error
        finally:
            self._ready.set()


class Ahead:
    """What the collected tests need, by the first and the last of their files."""

    def __init__(self, items: list[pytest.Item], folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._files: list[str] = []
        self._first: dict[Prepared[Any], int] = {}
        self._last: dict[Prepared[Any], int] = {}
        self._named: dict[str, Prepared[Any]] = {}
        for item in items:
            if not self._files or self._files[-1] != item.path.stem:
                self._files.append(item.path.stem)
            for one in _needed(item):
                self._first.setdefault(one, len(self._files) - 1)
                self._last[one] = len(self._files) - 1
                self._named[one.name] = one
        self._now, self._moved, self._over = 0, threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def value(self, one: Prepared[T]) -> T:
        """The fixture's value, as soon as it is set up."""
        self._begin(one)
        return one.wait()

    def _begin(self, one: Prepared[Any]) -> None:
        one.begin(lambda: (self._folder(one.name), *(self.value(self._named[name]) for name in one.using)))

    def passed(self, item: pytest.Item, after: pytest.Item | None) -> None:
        """A test is over, and what it used torn down; the one after it may stand in another file."""
        if after is None or after.path == item.path:
            return
        for one, last in self._last.items():
            if last == self._now:
                one.end()
        with self._moved:
            self._now = self._files.index(after.path.stem, self._now + 1)
            self._moved.notify()

    def close(self) -> None:
        with self._moved:
            self._over = True
            self._moved.notify()
        for one in self._first:
            one.forbid()
        for one in reversed(self._first):  # what others use outlives them
            one.end()
            one.join()
        self._thread.join()

    def _run(self) -> None:
        """Set up one after the other, as soon as it may."""
        while (one := self._next()) is not None:
            self._begin(one)
            one.settle()

    def _next(self) -> Prepared[Any] | None:
        with self._moved:
            while not self._over and self._files[self._now] in FIRST and self._now + 1 < len(self._files):
                self._moved.wait()
            waiting = () if self._over else self._first
            return next((one for one in waiting if not one.begun), None)


def in_order(items: list[pytest.Item]) -> None:
    """Sort the collected tests: files that nothing may disturb, all others, those that need what is set up meanwhile."""
    users = {item.path for item in items if any(_needed(item))}

    def place(item: pytest.Item) -> tuple[bool, ...]:
        file = item.path.stem
        return file not in FIRST, file in FINALLY, item.path in users

    items.sort(key=place)


def _needed(item: pytest.Item) -> Iterator[Prepared[Any]]:
    """The prepared fixtures that a test asks for, itself or through others."""
    fixtures = getattr(item, "_fixtureinfo", None)
    for definitions in fixtures.name2fixturedefs.values() if fixtures else ():
        for definition in definitions:
            if (one := getattr(definition.func, "prepared", None)) is not None:
                yield one


def prepared(using: tuple[str, ...] = ()) -> Callable[[Callable[..., Iterator[Any]]], Any]:
    """A fixture that is set up ahead; its function is given a new folder, and the prepared fixtures `using`."""

    def decorate(make: Callable[..., Iterator[Any]]) -> Any:
        one = Prepared(make, using)

        def value(ahead: Ahead, **others: Any) -> Any:
            return ahead.value(one)

        names = ("ahead", *using)
        value.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        )
        value.prepared = one  # type: ignore[attr-defined]
        value.__doc__ = make.__doc__
        return pytest.fixture(scope="session", name=make.__name__)(value)

    return decorate


AHEAD = pytest.StashKey[Ahead]()


@pytest.fixture(scope="session", autouse=True)
def ahead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ahead]:
    """The session's fixtures of this kind."""
    tmp_path_factory.getbasetemp()  # which two threads at once would make two of
    one = Ahead(request.session.items, tmp_path_factory.mktemp)
    request.config.stash[AHEAD] = one
    one.start()
    try:
        yield one
    finally:
        one.close()
