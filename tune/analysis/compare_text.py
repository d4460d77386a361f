"""What a comparison says in words and tables. Differences are fractions, shown x100 as points."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tune.analysis.stats import Interval
from tune.analysis.wording import p_value, points, side_name, span

if TYPE_CHECKING:
    from rich.table import Table

    from tune.analysis.compare import Comparison, PairedComparison

# Words


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table as texts, the header first; an exit's p is Holm-adjusted, its interval Bonferroni's."""
    level = f"{100 * comparison.confidence:g} % interval"
    table: list[tuple[str, ...]] = [("A - B", "points", level, "p", "p_folds", "flip p*", "cells")]
    for line in comparison.lines:
        table.append((f"{line.a} - {line.b}", *_numbers(line.difference, line.p_folds, line.sign_flip_p)))
        for m, interval in enumerate(line.exits, start=1):
            table.append((f"  exit_{m:02d}†", *_numbers(interval, None, math.nan)))
    if (tuned := comparison.tuned) is not None:
        names = [side_name(comparison.option, value) for value in (comparison.a, comparison.b)]
        numbers = _numbers(tuned.difference, tuned.p_folds, tuned.sign_flip_p)
        table.append((f"tuned {names[0]} - tuned {names[1]}", *numbers))
    return table


def _numbers(interval: Interval, p_folds: float | None, sign_flip_p: float) -> tuple[str, ...]:
    return (
        points(interval.mean),
        span(interval),
        p_value(interval.p),
        p_value(p_folds),
        p_value(sign_flip_p),
        str(interval.cells),
    )


def sentences(comparison: Comparison) -> list[str]:
    """The verdicts, each with what it rests on, then notes and warnings."""
    return [*findings(comparison), *notes(comparison), *(f"warning: {warning}" for warning in comparison.warnings)]


def findings(comparison: Comparison) -> list[str]:
    """The verdicts, each with what it rests on."""
    said = []
    for line in comparison.lines:
        said += [line.verdict, f"  {rests_on(line)}"]
    if (tuned := comparison.tuned) is not None:
        names = [side_name(comparison.option, value) for value in (comparison.a, comparison.b)]
        of = f"{tuned.candidates[0]} configurations of {names[0]} and {tuned.candidates[1]} of {names[1]}"
        said += [tuned.verdict, f"  chosen by the other folds out of {of}"]
    return said


def rests_on(line: PairedComparison) -> str:
    """How many pairs a line counts, and how many it doesn't, in words."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in line.dropped.items())
    counts = f"complete pairs of configurations: {len(line.paired)}, dropped: {sum(line.dropped.values())}"
    return f"{counts}{f' ({dropped})' if dropped else ''}, without a partner: {line.unpaired[0]} + {line.unpaired[1]}"


def notes(comparison: Comparison) -> list[str]:
    """What the columns of the table are."""
    said = ["* sign-flip permutation test, optimistic: cells share training data"]
    if any(line.p_folds is not None for line in comparison.lines):
        said.append("p_folds: seeds averaged within each fold; where folds differ much, p alone is too small")
    if any(line.exits for line in comparison.lines):
        said.append("† p adjusted by Holm; intervals hold simultaneously (Bonferroni), so the two may disagree")
    if len(comparison.lines) > 1:
        said.append(f"note: {len(comparison.lines)} comparisons share runs; nothing is adjusted for their number")
    return said


def render(comparison: Comparison) -> Table:
    """The comparison as a rich table, with the verdicts and warnings below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, caption=Text("\n".join(sentences(comparison))), caption_justify="left")
    header, *body = rows(comparison)
    for name in header:
        table.add_column(Text(name), justify="left" if name == "A - B" else "right")
    for row in body:
        table.add_row(*map(Text, row))
    return table
