"""Fixtures that are set up ahead (see ahead.py): when they begin and end, and where an error is raised."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ahead import FINALLY, FIRST, Ahead, Prepared, in_order
from clusters import wait_until


class Recorded:
    """Fixtures by name that note when they are set up and torn down, and tests that need them."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def fixture(self, name: str, using: tuple[str, ...] = (), fails: bool = False) -> Prepared[str]:
        def make(_: Path, *values: str) -> Any:
            self.events.append(f"{name} begins")
            if fails:
                raise ValueError("no server")
            yield name + "".join(values)
            self.events.append(f"{name} ends")

        make.__name__ = name
        return Prepared(make, using)

    def happened(self, event: str) -> bool:
        return bool(wait_until(lambda: event in self.events, 10))


def a_test(file: str, *needed: Prepared[str]) -> Any:
    definitions = {one.name: [SimpleNamespace(func=SimpleNamespace(prepared=one))] for one in needed}
    return SimpleNamespace(path=Path(f"{file}.py"), _fixtureinfo=SimpleNamespace(name2fixturedefs=definitions))


def test_one_begins_before_the_test_that_needs_it_and_ends_after_the_last_that_does():
    recorded = Recorded()
    first, second = recorded.fixture("first"), recorded.fixture("second", using=("first",))
    tests = [a_test("test_a"), a_test("test_b", first), a_test("test_c", first, second), a_test("test_d")]
    ahead = Ahead(tests, Path)
    ahead.start()
    try:
        assert recorded.happened("second begins")
        assert recorded.events == ["first begins", "second begins"]
        assert ahead.value(second) == "secondfirst"
        ahead.passed(tests[0], tests[1])
        ahead.passed(tests[1], tests[2])
        assert recorded.events == ["first begins", "second begins"], "the tests of test_c need both"
        ahead.passed(tests[2], tests[3])
        assert recorded.happened("first ends")
        assert recorded.happened("second ends")
    finally:
        ahead.close()


def test_nothing_is_begun_while_tests_measure_or_when_they_are_never_left():
    recorded = Recorded()
    one = recorded.fixture("one")
    tests = [*map(a_test, FIRST), a_test("test_b", one)]
    ahead = Ahead(tests, Path)
    ahead.start()
    ahead.passed(tests[0], tests[1])
    ahead.close()
    assert recorded.events == []


def test_files_that_need_what_is_set_up_meanwhile_run_after_all_others():
    one = Recorded().fixture("one")
    a, b, c, *measuring = a_test("test_a", one), a_test("test_b"), a_test("test_a"), *map(a_test, (*FINALLY, *FIRST))
    tests = [a, b, c, *measuring]
    in_order(tests)
    assert tests == [*measuring[len(FINALLY) :], b, a, c, *measuring[: len(FINALLY)]], "each file in one piece"


def test_what_is_up_at_the_end_of_the_session_is_torn_down_users_first():
    recorded = Recorded()
    one = recorded.fixture("one")
    user = recorded.fixture("user", using=("one",))
    ahead = Ahead([a_test("test_a", one), a_test("test_b", one, user)], Path)
    ahead.start()
    assert recorded.happened("user begins")
    ahead.close()
    assert recorded.events == ["one begins", "user begins", "user ends", "one ends"]


def test_an_error_is_raised_in_each_test_that_needs_the_fixture():
    recorded = Recorded()
    broken = recorded.fixture("broken", fails=True)
    ahead = Ahead([a_test("test_a"), a_test("test_b", broken)], Path)
    ahead.start()
    for _ in range(2):
        with pytest.raises(ValueError, match="no server"):
            ahead.value(broken)
    ahead.close()


def test_one_that_is_still_waiting_when_the_session_ends_is_interrupted():
    begun, ended = [], []

    def waiting(_: Path) -> Any:
        begun.append(True)
        ended.append(subprocess.run(["sleep", "60"]).returncode)
        yield

    ahead = Ahead([a_test("test_a", Prepared(waiting, ()))], Path)
    ahead.start()
    wait_until(lambda: begun, 10)
    ahead.close()
    assert ended == [-signal.SIGKILL]
