"""The paired comparison of two values of a swept option, by default two algorithms.

Configurations are paired on the options that both sides use. Where one side has more (C of CLO-v2 against BLO), each of
its values is a comparison of its own, against the same partners. The unit is the (seed, fold) cell: the difference,
averaged over the pairs that finished that cell on both sides; the other pairs are dropped from it, and counted. Beside
these stands tuned against tuned. Scores are fractions here; tables show them x100, as points.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from leebert.config import nearest
from leebert.errors import ConfigError
from tune.history import Cell, Configuration, EpochScore, History
from tune.select import complete, mean_and_std
from tune.stats import Interval, Judge, fold_ratio

if TYPE_CHECKING:
    from rich.table import Table

CellKey = tuple[int, int]
Values = tuple[Any, ...]
Sides = tuple[History, History]
Names = tuple[str, str]
PairsByCell = dict[CellKey, list[tuple[EpochScore, EpochScore]]]

#: Why a pair's cell doesn't count; where the two sides differ, the first of these that applies to either.
REASONS = ("diverged", "failed", "pruned", "unfinished")
_ABSENT = "\0absent"


@dataclasses.dataclass(frozen=True)
class Line:
    """One comparison: A minus B over paired configurations. No run counts twice in it.

    `difference` is of the mean over exits at each cell's best epoch; `exits` of each exit there, with Holm-adjusted p
    and Bonferroni intervals. `sign_flip_p` is optimistic: cells share training data. `complete` counts the pairs' cells
    that both sides finished, `dropped` those they didn't, by reason; `unpaired` A's and B's configurations left alone.
    """

    a: str
    b: str
    a_only: Mapping[str, Any]
    b_only: Mapping[str, Any]
    difference: Interval
    sign_flip_p: float
    exits: tuple[Interval, ...]
    pairs: int
    complete: int
    dropped: Mapping[str, int]
    unpaired: tuple[int, int]
    verdict: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """The ids of the configurations that each side's other cells chose for this one, and their difference on it."""

    seed: int
    fold: int
    a: str
    b: str
    difference: float


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Tuned A minus tuned B: on each cell, each side's best complete configuration by the mean over the other cells."""

    difference: Interval
    sign_flip_p: float
    choices: tuple[Choice, ...]
    verdict: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A against B: one line per combination of the options that only one side uses, and the tuned one."""

    option: str
    a: Any
    b: Any
    where: Mapping[str, Any]
    folds: int
    test_train_ratio: float
    confidence: float
    lines: tuple[Line, ...]
    tuned: Tuned | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, scores as fractions, None where a number is unknown."""
        plain: dict[str, Any] = _jsonable(dataclasses.asdict(self))
        return plain


def compare(
    history: History,
    a: Any,
    b: Any,
    *,
    folds: int,
    option: str = "algorithm",
    where: Mapping[str, Any] | None = None,
    test_train_ratio: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    permutations: int = 10_000,
) -> Comparison:
    """A minus B, where A and B are two values of `option`; values may be given as text, as on a command line.

    `where` keeps, on each side that uses these options, the configurations with these values (``{"cycle_length": 4}``).
    `test_train_ratio` is 1/(folds - 1) unless given, and must be given for one fold (held-out to training rows).
    """
    a, b = _value(history, option, a), _value(history, option, b)
    if a == b:
        raise ConfigError(f"{option}: both sides are {a!r}; name two different values")
    picked = {key: _value(history, key, value) for key, value in (where or {}).items()}
    if option in picked:
        raise ConfigError(f"{option}: it's what is compared, so it can't be picked as well")
    sides = _sides(history, option, (a, b), picked)
    judge = Judge(_ratio(folds, test_train_ratio), confidence, seed, permutations)
    names = (_name(option, a), _name(option, b))
    lines, left_out = _lines(sides, option, names, judge)
    tuned = _tuned(sides, names, judge)
    warnings = _warnings(history, sides, left_out, tuned)
    return Comparison(option, a, b, picked, folds, judge.test_train_ratio, confidence, lines, tuned, warnings)


def _ratio(folds: int, given: float | None) -> float:
    if given is not None:
        return given
    if folds < 2:
        raise ConfigError("folds: 1 is a hold-out; give test_train_ratio, its rows divided by the training rows")
    return fold_ratio(folds)


# Sides


def _value(history: History, option: str, given: Any) -> Any:
    """The value of `option` that the sweep holds and `given` means, itself or as text ('16', '1e-4', 'true')."""
    options = sorted({key for c in history for key in c.values})
    if option not in options:
        raise ConfigError(
            f"{option}: no such option in this sweep{nearest(option, options)}; it has {', '.join(options)}"
        )
    held = sorted({c.values[option] for c in history if option in c.values}, key=_order)
    for value in held:
        if value == given or (isinstance(given, str) and _means(given, value)):
            return value
    near = nearest(str(given), map(str, held))
    raise ConfigError(f"{option}: no configuration has {given!r}{near}; the sweep has {', '.join(map(str, held))}")


def _means(text: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text.lower() == str(value).lower()
    try:
        return float(text) == value
    except ValueError:
        return False


def _sides(history: History, option: str, values: tuple[Any, Any], where: Mapping[str, Any]) -> Sides:
    """The configurations of A and of B. A condition on an option that a side doesn't use leaves that side alone."""
    a, b = (tuple(c for c in history if c.values.get(option, _ABSENT) == value) for value in values)
    for key, wanted in where.items():
        used = [any(key in c.values for c in side) for side in (a, b)]
        if not any(used):
            raise ConfigError(f"{key}: neither {option} {values[0]} nor {values[1]} uses it")
        a, b = (
            tuple(c for c in side if not uses or c.values.get(key, _ABSENT) == wanted)
            for side, uses in zip((a, b), used, strict=True)
        )
        if not (a and b):
            lost = values[1] if a else values[0]
            raise ConfigError(f"{key}: no configuration of {option} {lost} is left with {key} {wanted}")
    return a, b


# Pairs


def _lines(sides: Sides, option: str, names: Names, judge: Judge) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """One line per combination of one-sided options, and the names of those that have nothing to compare."""
    keys_a, keys_b = ({key for c in side for key in c.values} - {option} for side in sides)
    shared, only_a, only_b = sorted(keys_a & keys_b), sorted(keys_a - keys_b), sorted(keys_b - keys_a)
    groups_a, groups_b = _groups(sides[0], only_a, shared), _groups(sides[1], only_b, shared)
    cells = sorted({_key(cell) for side in sides for c in side for cell in c.cells})
    lines, left_out = [], []
    for values_a, values_b in product(sorted(groups_a, key=_orders), sorted(groups_b, key=_orders)):
        group_a, group_b = groups_a[values_a], groups_b[values_b]
        pairs = [(group_a[values], group_b[values]) for values in group_a.keys() & group_b.keys()]
        extra_a, extra_b = _present(only_a, values_a), _present(only_b, values_b)
        labels = _label(names[0], extra_a), _label(names[1], extra_b)
        by_cell, dropped = _complete_pairs(pairs, cells)
        if not by_cell:
            left_out.append(" against ".join(labels))
            continue
        diffs = [_mean(left.score - right.score for left, right in both) for both in by_cell.values()]
        interval = judge.interval(diffs)
        line = Line(
            a=labels[0],
            b=labels[1],
            a_only=extra_a,
            b_only=extra_b,
            difference=interval,
            sign_flip_p=judge.sign_flip(diffs),
            exits=judge.intervals(_exit_diffs(by_cell)),
            pairs=len(pairs),
            complete=sum(map(len, by_cell.values())),
            dropped=dropped,
            unpaired=(len(group_a) - len(pairs), len(group_b) - len(pairs)),
            verdict=verdict(*labels, interval),
        )
        lines.append(line)
    if not lines:
        raise ConfigError(_nothing_common(sides, names, shared))
    return tuple(lines), tuple(left_out)


def _groups(side: History, only: Sequence[str], shared: Sequence[str]) -> dict[Values, dict[Values, Configuration]]:
    """Values of the one-sided options → values of the shared ones → the one configuration that has both."""
    groups: dict[Values, dict[Values, Configuration]] = {}
    for c in side:
        twin = groups.setdefault(_values(c, only), {}).setdefault(_values(c, shared), c)
        if twin is not c:
            raise ConfigError(f"configurations {twin.id} and {c.id} have the same values, so neither can be paired")
    return groups


def _complete_pairs(
    pairs: Iterable[tuple[Configuration, Configuration]], cells: Sequence[CellKey]
) -> tuple[PairsByCell, dict[str, int]]:
    """Per cell the best epochs of the pairs that finished it on both sides; and how many didn't, by reason."""
    by_cell: PairsByCell = {}
    dropped: Counter[int] = Counter()
    for a, b in pairs:
        cells_a, cells_b = _by_key(a), _by_key(b)
        for key in cells:
            left, right = _finished(cells_a.get(key)), _finished(cells_b.get(key))
            if left is not None and right is not None:
                by_cell.setdefault(key, []).append((left, right))
            else:
                dropped[min(_lack(a, cells_a.get(key)), _lack(b, cells_b.get(key)))] += 1
    return dict(sorted(by_cell.items())), {r: dropped[i] for i, r in enumerate(REASONS) if dropped[i]}


def _exit_diffs(by_cell: PairsByCell) -> list[list[float]]:
    """(M, J) differences; empty where the exits weren't recorded, or not equally many of them."""
    counts = {len(epoch.exits) for both in by_cell.values() for pair in both for epoch in pair}
    exits = counts.pop() if len(counts) == 1 else 0
    return [[_mean(a.exits[m] - b.exits[m] for a, b in both) for both in by_cell.values()] for m in range(exits)]


def _nothing_common(sides: Sides, names: Names, shared: Sequence[str]) -> str:
    both = f"{names[0]} and {names[1]}"
    if not {_values(c, shared) for c in sides[0]} & {_values(c, shared) for c in sides[1]}:
        return f"{both} have no configuration in common (the same {', '.join(shared)}); compare them on a grid"
    a, b = ([_key(cell) for c in side for cell in c.cells if _finished(cell)] for side in sides)
    if a and b and not set(a) & set(b):
        return f"{both} have no (seed, fold) in common"
    return f"{both} have no pair that finished the same cell yet ({len(a)} and {len(b)} cells are finished)"


# Tuned against tuned


def _tuned(sides: Sides, names: Names, judge: Judge) -> Tuned | None:
    """For each cell, each side's configuration is chosen without it (by the others' mean) and scored on it."""
    tables = [{c.id: _scores(c) for c in complete(side)} for side in sides]
    if not all(tables):
        return None
    cells = sorted(set.intersection(*(set(scores) for table in tables for scores in table.values())))
    if len(cells) < 2:
        return None
    choices = []
    for cell in cells:
        a, b = (_chosen(table, [other for other in cells if other != cell]) for table in tables)
        choices.append(Choice(*cell, a, b, _rounded(tables[0][a][cell] - tables[1][b][cell])))
    diffs = [choice.difference for choice in choices]
    interval = judge.interval(diffs)
    said = verdict(f"tuned {names[0]}", f"tuned {names[1]}", interval)
    return Tuned(interval, judge.sign_flip(diffs), tuple(choices), said)


def _chosen(table: Mapping[str, Mapping[CellKey, float]], cells: Sequence[CellKey]) -> str:
    """The id with the highest mean over these cells, ties by id."""
    return min(table, key=lambda name: (-mean_and_std(table[name][cell] for cell in cells).mean, name))


# Cells and values


def _key(cell: Cell) -> CellKey:
    return cell.seed, cell.fold


def _values(configuration: Configuration, keys: Sequence[str]) -> Values:
    return tuple(configuration.values.get(key, _ABSENT) for key in keys)


def _by_key(configuration: Configuration) -> dict[CellKey, Cell]:
    return {_key(cell): cell for cell in configuration.cells}


def _finished(cell: Cell | None) -> EpochScore | None:
    return cell.best if cell is not None and cell.state == "finished" else None


def _scores(configuration: Configuration) -> dict[CellKey, float]:
    return {_key(cell): epoch.score for cell in configuration.cells if (epoch := _finished(cell)) is not None}


def _lack(configuration: Configuration, cell: Cell | None) -> int:
    """The place in :data:`REASONS` of why a cell has no score, or one past the end where it has one."""
    if _finished(cell) is not None:
        return len(REASONS)
    state = cell.state if cell is not None and cell.state == "diverged" else configuration.state
    return REASONS.index(state) if state in REASONS else REASONS.index("unfinished")


def _mean(values: Iterable[float]) -> float:
    return _rounded(mean_and_std(values).mean)


def _rounded(value: float) -> float:
    """Without the rounding noise of a difference of fractions, so that equal differences are equal and 0 is 0."""
    return round(value, 12) + 0.0


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, str(value)


def _orders(values: Values) -> tuple[tuple[bool, float, str], ...]:
    return tuple(map(_order, values))


def _present(keys: Sequence[str], values: Values) -> dict[str, Any]:
    return {key: value for key, value in zip(keys, values, strict=True) if value != _ABSENT}


# Words


def _name(option: str, value: Any) -> str:
    return str(value) if option == "algorithm" else f"{option}={value}"


def _label(name: str, extra: Mapping[str, Any]) -> str:
    return f"{name} ({', '.join(f'{key}={value}' for key, value in extra.items())})" if extra else name


def _points(fraction: float, sign: str = "+") -> str:
    return f"{round(100 * fraction, 2) + 0.0:{sign}.2f}"


def _span(interval: Interval) -> str:
    return f"{_points(interval.low, '')} to {_points(interval.high, '')}" if interval.known else "unknown"


def _p(p: float) -> str:
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(a: str, b: str, interval: Interval) -> str:
    """A sentence in plain words on the difference A minus B; where B is better, on B minus A."""
    cells = f"{interval.cells} cell{'s' if interval.cells > 1 else ''}"
    if not interval.known:
        why = "one cell has no spread" if interval.cells == 1 else "every cell shows the same difference"
        return f"the data cannot tell {a} from {b}: {_points(interval.mean)} points, no interval ({why}), {cells}"
    clear = interval.p < 1 - interval.confidence
    if clear and interval.mean < 0:
        flipped = dataclasses.replace(interval, mean=-interval.mean, low=-interval.high, high=-interval.low)
        return verdict(b, a, flipped)
    opening = f"{a} is better than {b}" if clear else f"the data cannot tell {a} from {b}"
    level = f"{100 * interval.confidence:g} % interval {_span(interval)}"
    return f"{opening}: {_points(interval.mean)} points, {level}, {cells}"


def _warnings(history: History, sides: Sides, left_out: Sequence[str], tuned: Tuned | None) -> tuple[str, ...]:
    every, here = Counter(c.state for c in history), Counter(c.state for side in sides for c in side)
    warnings = []
    if every["pruned"]:
        count = f"{every['pruned']} configurations, {here['pruned']} of them on these two sides"
        warnings.append(f"this sweep was pruned ({count}): what is left was selected, differences may be biased")
    if every["running"]:
        count = f"{every['running']} configurations, {here['running']} of them on these two sides"
        warnings.append(f"this sweep is unfinished ({count})")
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warnings.append(f"left out, with no pair that finished the same cell: {'; '.join(left_out[:3])}{more}")
    if tuned is None:
        warnings.append("no tuned against tuned: it takes two cells and a complete configuration on each side")
    return tuple(warnings)


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table as texts, the header first; an exit's p is Holm-adjusted, its interval Bonferroni's."""
    level = f"{100 * comparison.confidence:g} % interval"
    table: list[tuple[str, ...]] = [("A - B", "points", level, "p", "flip p*", "cells")]
    for line in comparison.lines:
        table.append((f"{line.a} - {line.b}", *_numbers(line.difference, line.sign_flip_p)))
        for m, interval in enumerate(line.exits, start=1):
            table.append((f"  exit_{m:02d} (Holm)", *_numbers(interval, math.nan)))
    if comparison.tuned is not None:
        tuned = f"tuned {_name(comparison.option, comparison.a)} - tuned {_name(comparison.option, comparison.b)}"
        table.append((tuned, *_numbers(comparison.tuned.difference, comparison.tuned.sign_flip_p)))
    return table


def _numbers(interval: Interval, sign_flip_p: float) -> tuple[str, ...]:
    return _points(interval.mean), _span(interval), _p(interval.p), _p(sign_flip_p), str(interval.cells)


def sentences(comparison: Comparison) -> list[str]:
    """The verdicts, each with what it rests on, then notes and warnings."""
    said = []
    for line in comparison.lines:
        dropped = ", ".join(f"{count} {reason}" for reason, count in line.dropped.items())
        counts = f"{line.complete} complete pairs of runs, {sum(line.dropped.values())} dropped"
        alone = f"{line.unpaired[0]} + {line.unpaired[1]} configurations without a partner"
        said += [line.verdict, f"  {counts}{f' ({dropped})' if dropped else ''}, {alone}"]
    if comparison.tuned is not None:
        said.append(comparison.tuned.verdict)
    said.append("* sign-flip permutation test, optimistic: cells share training data")
    if len(comparison.lines) > 1:
        said.append(f"note: {len(comparison.lines)} comparisons share runs; nothing is adjusted for their number")
    return [*said, *(f"warning: {warning}" for warning in comparison.warnings)]


def plain(comparison: Comparison) -> str:
    """The comparison as plain text: the table in aligned columns, then one sentence per line."""
    table = rows(comparison)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    aligned = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*aligned, "", *sentences(comparison)])


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


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
