"""Comparisons as text and tables. Differences are fractions, shown x100 as points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from leebert import console
from leebert.majority import margin_in_words
from leebert.points import in_points
from tune.analysis.compare import Comparison, PairedComparison, line_verdict
from tune.analysis.compare_sweeps import Across, AtSpeedUp, OnSweep, across
from tune.analysis.labels import option_text
from tune.analysis.stats import USEFUL, Interval
from tune.analysis.verdict import Side, Verdict
from tune.analysis.wording import level, p_value, power_lines, span
from tune.store.curves import FEWEST

# The verdict


def verdict_lines(verdict: Verdict) -> list[str]:
    """Return the verdict in a sentence, and a line on each side: what it learned, and whether ω moved."""
    return [f"{verdict.sentence}.", *(f"{side.name}: {side_facts(side)}." for side in (verdict.a, verdict.b))]


def side_facts(side: Side) -> str:
    """Describe one side of a comparison: its configurations, its margin over the majority class, its loss weights."""
    options = [f"{option_text(key, values[0])}" + _further(values) for key, values in side.options.items()]
    configurations = f"{side.configurations} configuration{'s' if side.configurations > 1 else ''}"
    own = f" ({', '.join(options)})" if options else ""
    counted = f"{configurations}{own}, mean score {100 * side.score:.2f}"
    return "; ".join(filter(None, (counted, _learned(side), side.omega)))


def _further(values: Sequence[object]) -> str:
    return "".join(f", {value:g}" if isinstance(value, float) else f", {value}" for value in values[1:])


def _learned(side: Side) -> str:
    """Return whether the best configuration of a side is above the majority class; empty if unknown."""
    if side.learned is None or side.margin is None or side.margin_low is None or side.margin_high is None:
        return "" if side.completed else "none completed"
    margin = margin_in_words(side.margin, (side.margin_low, side.margin_high))
    if side.learned and side.margin_low <= 0:
        return f"an exit is above the majority class, the mean over exits not significantly: {margin}"
    if side.learned:
        return f"above the majority class by {margin.removeprefix('+')}"
    return f"not significantly above the majority class: {margin}"


# The table


def rows(
    comparison: Comparison, at_speed_ups: Sequence[AtSpeedUp] = (), *, brief: bool = False
) -> list[tuple[str, ...]]:
    """Return the table as texts, the header first; an exit's p is Holm-adjusted, its interval Bonferroni's.

    Args:
        comparison: The comparison by the mean over exits.
        at_speed_ups: The comparisons at layer speed-ups.
        brief: Omit the single exits where they are compared for one value of an option that only one side has.
    """
    title = " − ".join(comparison.names)
    table: list[tuple[str, ...]] = [(title, "points", level(comparison.confidence), "p", "flip p*", "runs")]
    table += _line_rows(comparison.overall, "mean over exits", indent="")
    for objective, at in at_speed_ups:
        name = f"at layer speed-up {objective.speed_up:g}"
        table.append((name, *(["-"] * 5 if isinstance(at, str) else _line_numbers(at.overall))))
    if (tuned := comparison.tuned) is not None:
        table.append(("tuned against tuned", *_numbers(tuned.difference, tuned.sign_flip_p)))
    for i, line in enumerate(comparison.lines if comparison.pooled else ()):
        table += _line_rows(line, f"only {_own(line)}", indent="  ")[: 1 if brief else None]
        for objective, at in at_speed_ups:
            # A line is absent at a speed-up if its runs have no curves.
            if not isinstance(at, str) and len(at.lines) == len(comparison.lines):
                numbers = _line_numbers(at.lines[i])
                table.append((f"  at layer speed-up {objective.speed_up:g}", *numbers))
    return table


def _line_rows(line: PairedComparison, name: str, indent: str) -> list[tuple[str, ...]]:
    exits = [(f"{indent}exit {m}†", *_numbers(interval, math.nan)) for m, interval in enumerate(line.exits, 1)]
    return [(name, *_line_numbers(line)), *exits]


def _line_numbers(line: PairedComparison) -> tuple[str, ...]:
    return _numbers(line.difference, line.sign_flip_p)


def _own(line: PairedComparison) -> str:
    """Name a line by the options that only one side has."""
    return ", ".join(option_text(key, value) for key, value in {**line.a_only, **line.b_only}.items())


def _numbers(interval: Interval, sign_flip_p: float) -> tuple[str, ...]:
    return (
        in_points(interval.mean),
        span(interval),
        p_value(interval.p if interval.useful else None),
        p_value(sign_flip_p),
        str(interval.cells),
    )


#: The columns of :func:`pair_rows`.
PAIR_COLUMNS = ("difference", "of", "points", "95 % CI", "p", "runs", "pairs")


def pair_rows(result: OnSweep) -> list[tuple[str, ...]]:
    """Return the differences of one pair of methods as rows: over all pairs, for options of one side only, and tuned."""
    table: list[tuple[str, ...]] = []
    scopes = [("mean over exits", result.scores)]
    scopes += [(f"layer speed-up {o.speed_up:g}", at) for o, at in result.at_speed_ups if not isinstance(at, str)]
    for scope, comparison in scopes:
        for line in (*([comparison.pooled] if comparison.pooled else ()), *comparison.lines):
            table.append((f"{line.a} − {line.b}", scope, *_without_flips(line.difference), _pairs(line)))
        if (tuned := comparison.tuned) is not None:
            a, b = comparison.names
            table.append((f"tuned {a} − tuned {b}", scope, *_without_flips(tuned.difference), ""))
    return table


def _pairs(line: PairedComparison) -> str:
    """Return the number of pairs, and why others are dropped: `2, 1 dropped (1 pruned)`."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in line.dropped.items())
    dropped = f", {sum(line.dropped.values())} dropped ({reasons})" if reasons else ""
    alone = f"; {sum(line.unpaired)} without a partner" if any(line.unpaired) else ""
    return f"{len(line.paired)}{dropped}{alone}"


def _without_flips(interval: Interval) -> tuple[str, ...]:
    estimate, ends, p, _, runs = _numbers(interval, math.nan)
    return estimate, ends, p, runs


def render(header_and_rows: Sequence[Sequence[str]]) -> Any:
    """Return the rows of :func:`rows` as a rich table, lean enough for 80 columns: only names may wrap."""
    from rich.text import Text

    header, *body = header_and_rows
    return console.table(header, [[*map(Text, row)] for row in body], whole=range(1, len(header)), lean=True)


# Sentences


def sentences(comparison: Comparison) -> list[str]:
    """Return the verdicts with their basis, then notes and warnings."""
    return [*findings(comparison), *notes(comparison), *(f"warning: {warning}" for warning in comparison.warnings)]


def findings(comparison: Comparison) -> list[str]:
    """Return the verdicts with their basis: over all pairs, for each option that only one side has, and tuned."""
    lines = []
    for line in (*([comparison.pooled] if comparison.pooled else ()), *comparison.lines):
        lines += [line_verdict(line, comparison.test_train_ratio), f"  {based_on(line)}"]
    return lines + _tuned_findings(comparison)


def _tuned_findings(comparison: Comparison) -> list[str]:
    if (tuned := comparison.tuned) is None:
        return []
    a, b = comparison.names
    first = f"{tuned.candidates[0]} configuration{'s' if tuned.candidates[0] != 1 else ''}"
    candidates = f"{first} of {a} and {tuned.candidates[1]} of {b}"
    return [comparison.tuned_verdict, f"  tuned: selected on the other folds from {candidates}"]


def based_on(line: PairedComparison) -> str:
    """Return how many pairs a verdict is based on, and how many are dropped, in words."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in line.dropped.items())
    counts = f"complete pairs of configurations: {len(line.paired)}; dropped: {sum(line.dropped.values())}"
    alone = f"without a partner: {line.unpaired[0]} of A, {line.unpaired[1]} of B"
    return f"{counts}{f' ({dropped})' if dropped else ''}; {alone}"


def notes(comparison: Comparison) -> list[str]:
    """Return the notes on the columns of the table."""
    lines = ["* sign-flip permutation test, optimistic: runs share training data"]
    every = (comparison.overall, *comparison.lines)
    if any(line.difference.cells < USEFUL for line in every):
        lines.append(f"fewer than {USEFUL} runs are too few for an interval and its p")
    if any(not line.difference.useful and line.difference.cells >= USEFUL for line in every):
        lines.append("no interval where every run shows the same difference, or on 2 folds")
    if any(interval.useful for line in every for interval in line.exits):
        lines.append("† p adjusted by Holm; intervals hold simultaneously (Bonferroni), so the two may disagree")
    if len(comparison.lines) > 1:
        lines.append(f"note: {len(comparison.lines)} comparisons share runs; p is not adjusted for their number")
    return lines


# Several sweeps


def across_rows(combined: Sequence[Across]) -> list[tuple[str, ...]]:
    """Return the table over tasks as texts, the header first."""
    first = combined[0]
    table: list[tuple[str, ...]] = [
        ("over tasks", *first.tasks, "mean", level(first.difference.confidence), "p", "flip p")
    ]
    for one in combined:
        each = (in_points(d) for d in one.tasks.values())
        p = p_value(one.difference.p if one.difference.useful else None)
        table.append(
            (one.what, *each, in_points(one.difference.mean), span(one.difference), p, p_value(one.sign_flip_p))
        )
    return table


def across_sentences(combined: Sequence[Across]) -> list[str]:
    """Return the verdicts over tasks, and their limits."""
    tasks, sweeps = len(combined[0].tasks), len(combined[0].sweeps)
    lines = [f"{one.what}: {one.in_words()}" for one in combined]
    if sweeps > tasks:
        lines.append(
            f"note: {sweeps} sweeps of {tasks} task{'s' if tasks > 1 else ''}; those of one task are averaged first"
        )
    if tasks < 6:
        lines.append(
            f"note: with {tasks} task{'s' if tasks > 1 else ''} the sign-flip p can't be below {2 / 2**tasks:g}"
        )
    return lines


# Output


def print_comparisons(results: Sequence[OnSweep], *, power: bool = False) -> None:
    """Print the verdict, the table and the notes of each sweep, and the table over tasks, on stdout.

    Args:
        results: The comparison on each sweep.
        power: Print what each comparison can detect, too.
    """
    from rich.console import Console
    from rich.text import Text

    combined = across(results)
    for result in results:
        _print_sweep(result, f"{result.sweep} ({result.task})" if len(results) > 1 else "")
        if power:
            print_lines(_power(result.verdict))
    if not combined:
        return
    header, *body = across_rows(combined)
    cells = [[*map(Text, row)] for row in body]
    Console().print(console.table(header, cells, left=len(header), framed=False))
    print_lines(across_sentences(combined))


def _print_sweep(result: OnSweep, heading: str) -> None:
    """Print one sweep: the verdict first, then the table, then what it is based on."""
    from rich.console import Console

    scores = result.scores
    screen = Console()
    if heading:
        screen.print(heading, style="bold", highlight=False)
    print_lines(verdict_lines(result.verdict))
    screen.print()
    screen.print(render(rows(scores, result.at_speed_ups, brief=True)))
    print_lines(_basis(result))


def _power(verdict: Verdict) -> list[str]:
    """Return what a comparison can detect, after an empty line."""
    if verdict.power is None:
        return ["", f"no power: {verdict.main.missing}"]
    return ["", *power_lines(verdict.power)]


def _basis(result: OnSweep) -> list[str]:
    """Return the lines below the table."""
    scores = result.scores
    lines = [based_on(scores.overall), *_tuned_findings(scores)[1:], *notes(scores)]
    compared = [objective for objective, at in result.at_speed_ups if not isinstance(at, str)]
    if compared:
        lines.append(f"at a layer speed-up: the score there under {compared[0].under}, from the validation logits")
    for objective, at in result.at_speed_ups:
        if isinstance(at, str):
            lines.append(f"no comparison at layer speed-up {objective.speed_up:g}: {at}")
    if result.layers:
        each = ", ".join(f"{result.name_of(key)} {layers:.2f}" for key, layers in result.layers.items())
        lines.append(f"layers needed by the best configuration of each side: {each} ({FEWEST})")
    if result.no_layers:
        lines.append(f"layers needed are not available: {result.no_layers}")
    lines += [f"warning: {warning}" for warning in dict.fromkeys(_warnings(result))]
    if result.pool.running:
        lines.append(f"{result.sweep} is still running: the results are preliminary")
    return lines


def _warnings(result: OnSweep) -> Iterable[str]:
    """Yield the warnings of all of a sweep's comparisons."""
    yield from result.scores.warnings
    for _, at in result.at_speed_ups:
        if not isinstance(at, str):
            yield from at.warnings


def print_lines(lines: Iterable[str]) -> None:
    """Print sentences on stdout, on a terminal wrapped with further lines indented."""
    for line in lines:
        console.sentence(line, hanging=2)
