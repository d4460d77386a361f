"""Which cases of a parametrised test `make quick` runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

#: Methods of every sort, for tests that would train each of the built-in ones: the whole network, cut layers, a student,
#: fixed weights, two stages, and each way to learn ω.
METHODS = ("finetune", "truncated", "distilled", "pabee", "fastbert", "uniform-d1", "slo", "blo", "hyper-v2", "clo-v2")


def only(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Mark all other cases as slow.

    Args:
        quick: The cases that `make quick` runs.
        cases: All cases; tuples where a test has several parameters.
    """
    every = list(cases)
    assert set(quick) <= set(every), "a case that does not exist"
    marked = [case if case in quick else _slow(case) for case in every]
    assert any(case in quick for case in every)
    return marked


def _slow(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
