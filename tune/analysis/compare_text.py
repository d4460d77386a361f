"""A comparison in words and tables. Differences are fractions, shown x100 as points."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from leebert import console
from tune.analysis.power import power_of
from tune.analysis.stats import Interval
from tune.analysis.wording import level, p_value, points, side_name, span, verdict

if TYPE_CHECKING:
    from rich.table import Table

    from tune.analysis.compare import Comparison, PairedComparison

# Words


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the table as texts, the header first; an exit's p is Holm-adjusted, its interval Bonferroni's."""
    interval_name = level(comparison.confidence)
    table: list[tuple[str, ...]] = [("A - B", "points", interval_name, "p", "p_folds", "flip p*", "runs")]
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


def line_verdict(line: PairedComparison, test_train_ratio: float) -> str:
    """Return the verdict on paired configurations; see :func:`tune.analysis.wording.verdict`."""
    power = power_of(line.difference, test_train_ratio)
    return verdict(line.a, line.b, line.difference, line.p_folds, power=power)


def tuned_verdict(comparison: Comparison) -> str:
    """Return the verdict on tuned against tuned; empty if a comparison has none."""
    if (tuned := comparison.tuned) is None:
        return ""
    a, b = (f"tuned {side_name(comparison.option, value)}" for value in (comparison.a, comparison.b))
    power = power_of(tuned.difference, comparison.test_train_ratio)
    return verdict(a, b, tuned.difference, tuned.p_folds, power=power)


def with_verdicts(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison JSON-ready, with the key `verdict` in each of its lines and in `tuned`."""
    plain = comparison.as_dict()
    for line, entry in zip(comparison.lines, plain["lines"], strict=True):
        entry["verdict"] = line_verdict(line, comparison.test_train_ratio)
    if comparison.tuned is not None:
        plain["tuned"]["verdict"] = tuned_verdict(comparison)
    return plain


def sentences(comparison: Comparison) -> list[str]:
    """Return the verdicts with their basis, then notes and warnings."""
    return [*findings(comparison), *notes(comparison), *(f"warning: {warning}" for warning in comparison.warnings)]


def findings(comparison: Comparison) -> list[str]:
    """Return the verdicts with their basis."""
    lines = []
    for line in comparison.lines:
        lines += [line_verdict(line, comparison.test_train_ratio), f"  {based_on(line)}"]
    if (tuned := comparison.tuned) is not None:
        names = [side_name(comparison.option, value) for value in (comparison.a, comparison.b)]
        candidates = f"{tuned.candidates[0]} configurations of {names[0]} and {tuned.candidates[1]} of {names[1]}"
        lines += [tuned_verdict(comparison), f"  selected on the other folds from {candidates}"]
    return lines


def based_on(line: PairedComparison) -> str:
    """Return how many pairs a verdict is based on, and how many are dropped, in words."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in line.dropped.items())
    counts = f"complete pairs of configurations: {len(line.paired)}; dropped: {sum(line.dropped.values())}"
    alone = f"without a partner: {line.unpaired[0]} of A, {line.unpaired[1]} of B"
    return f"{counts}{f' ({dropped})' if dropped else ''}; {alone}"


def notes(comparison: Comparison) -> list[str]:
    """Return the notes on the columns of the table."""
    lines = ["* sign-flip permutation test, optimistic: runs share training data"]
    if any(line.p_folds is not None for line in comparison.lines):
        lines.append("p_folds: seeds averaged within each fold; where folds differ much, p alone is too small")
    if any(line.exits for line in comparison.lines):
        lines.append("† p adjusted by Holm; intervals hold simultaneously (Bonferroni), so the two may disagree")
    if len(comparison.lines) > 1:
        lines.append(f"note: {len(comparison.lines)} comparisons share runs; p is not adjusted for their number")
    return lines


def render(comparison: Comparison) -> Table:
    """Return the comparison as a rich table, with the verdicts and warnings below it."""
    from rich.text import Text

    header, *body = rows(comparison)
    caption = Text("\n".join(sentences(comparison)))
    cells = [[*map(Text, row)] for row in body]
    # Lean, to fit 80 columns: only the sides' names may wrap.
    return console.table(header, cells, whole=range(1, len(header)), caption=caption, lean=True)
