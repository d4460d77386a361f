"""The paired comparison of two values of a swept option, by default two methods.

Configurations are paired on the options that both sides use. Where one side has more options (C of CLO-v2 against BLO),
each of their values is compared separately, against the same partners. The unit is the run (one seed, one fold): its
difference is the mean over pairs, the same pairs in every run; other pairs are dropped and counted. A second comparison
tunes both sides first. Scores are fractions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from leebert.errors import ConfigError, nearest
from tune.analysis.power import power_of
from tune.analysis.stats import Interval, Judge, fold_ratio
from tune.analysis.wording import label, side_name, verdict
from tune.store.history import Cell, Configuration, EpochScore, History, SeedFold
from tune.store.ranking import completed, mean_and_std

Values = tuple[Any, ...]
Sides = tuple[History, History]
Names = tuple[str, str]
Pair = tuple[Configuration, Configuration]
Numbers = tuple[Interval, float | None, float]

#: Why a pair of configurations is dropped: the first of these that applies to a run of either.
REASONS = ("diverged", "failed", "pruned", "unfinished")
_ABSENT = "\0absent"

#: From the compared pairs of each run (seed, fold) to the sampling variance of a fold's difference in the mean over exits, and
#: at each exit; 0 and none if unknown.
Sampling = Callable[[Mapping[SeedFold, Sequence[tuple[str, str]]]], tuple[float, list[float]]]


def no_sampling(pairs: Mapping[SeedFold, Sequence[tuple[str, str]]]) -> tuple[float, list[float]]:
    """The sampling variance is unknown."""
    return 0.0, []


@dataclasses.dataclass(frozen=True)
class Tests:
    """The tests of a comparison.

    Attributes:
        judge: The tests of given differences.
        sampling: The sampling variance of these differences.
    """

    judge: Judge
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """A minus B over paired configurations. No run counts twice.

    Attributes:
        a: A's name, with the options that only A has.
        b: B's name, likewise.
        a_only: The options that only A has, with their values.
        b_only: The options that only B has.
        difference: Of the mean over exits at each run's best epoch, a fraction.
        p_folds: The p of the corrected t over folds' means, without the sampling variance; None if no fold has two seeds.
        sign_flip_p: The p of the sign-flip test; optimistic, since runs share training data.
        exits: The difference at each exit, with Holm-adjusted p and Bonferroni intervals.
        paired: The ids of the pairs that count, each complete in all `cells`.
        cells: The (seed, fold) of the runs that count.
        planned: How many runs each configuration is to have.
        dropped: The number of other pairs, by reason (:data:`REASONS`).
        unpaired: The number of A's and of B's configurations without a partner.
    """

    a: str
    b: str
    a_only: Mapping[str, Any]
    b_only: Mapping[str, Any]
    difference: Interval
    p_folds: float | None
    sign_flip_p: float
    exits: tuple[Interval, ...]
    paired: tuple[tuple[str, str], ...]
    cells: tuple[SeedFold, ...]
    planned: int
    dropped: Mapping[str, int]
    unpaired: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class FoldChoice:
    """The configurations that the other folds select for one run.

    Attributes:
        seed: Seed of the run.
        fold: Validation fold of the run.
        a: Id of A's configuration.
        b: Id of B's configuration.
        difference: A minus B in this run, as a fraction.
    """

    seed: int
    fold: int
    a: str
    b: str
    difference: float


@dataclasses.dataclass(frozen=True)
class TunedComparison:
    """Tuned A minus tuned B: in each run, each side's best completed configuration by its mean over the other folds.

    The other seeds of the same fold share its validation samples and are not used for the selection.

    Attributes:
        difference: The difference, as a fraction, with its corrected interval.
        p_folds: The p of the corrected t over folds' means; None if no fold has two seeds.
        sign_flip_p: p of the sign-flip test over runs.
        candidates: Number of completed configurations of each side.
        choices: The selected configurations of each run.
    """

    difference: Interval
    p_folds: float | None
    sign_flip_p: float
    candidates: tuple[int, int]
    choices: tuple[FoldChoice, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A against B: one paired comparison per combination of the options that only one side uses, and the tuned one.

    Attributes:
        option: The compared option.
        a: Its value on side A.
        b: Its value on side B.
        where: Option → value that both sides have.
        folds: Number of folds.
        test_train_ratio: Validation samples of a fold / its training samples.
        confidence: Confidence of the intervals.
        sides: Ids of A's and B's configurations that match `where`.
        lines: The paired comparisons.
        pooled: The mean over the pairs of all lines, if there are several.
        tuned: Tuned A against tuned B; None if impossible.
        no_tuned: Why it is impossible; empty if it is not.
        warnings: What limits the conclusions, one sentence each.
    """

    option: str
    a: Any
    b: Any
    where: Mapping[str, Any]
    folds: int
    test_train_ratio: float
    confidence: float
    sides: tuple[tuple[str, ...], tuple[str, ...]]
    lines: tuple[PairedComparison, ...]
    pooled: PairedComparison | None
    tuned: TunedComparison | None
    no_tuned: str
    warnings: tuple[str, ...]

    @property
    def overall(self) -> PairedComparison:
        """The comparison over all pairs, whatever the options that only one side has."""
        return self.pooled or self.lines[0]

    @property
    def size(self) -> int:
        """The number of tests, those of single exits not counted."""
        return len(self.lines) + (self.pooled is not None) + (self.tuned is not None)

    @property
    def names(self) -> Names:
        """The names of A and B, without the options that only one side has."""
        return side_name(self.option, self.a), side_name(self.option, self.b)

    @property
    def tuned_verdict(self) -> str:
        """The verdict on tuned against tuned in a sentence; empty if there is none."""
        if (tuned := self.tuned) is None:
            return ""
        a, b = (f"tuned {name}" for name in self.names)
        power = power_of(tuned.difference, self.test_train_ratio)
        return verdict(a, b, tuned.difference, power=power)

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, each comparison with its sentence: scores as fractions, None for an unknown number."""
        plain: dict[str, Any] = jsonable(dataclasses.asdict(self))
        for line, entry in zip(self.lines, plain["lines"], strict=True):
            entry["verdict"] = line_verdict(line, self.test_train_ratio)
        if self.pooled is not None:
            plain["pooled"]["verdict"] = line_verdict(self.pooled, self.test_train_ratio)
        if self.tuned is not None:
            plain["tuned"]["verdict"] = self.tuned_verdict
        return plain


def line_verdict(line: PairedComparison, test_train_ratio: float) -> str:
    """Return the verdict on paired configurations in a sentence; see :func:`tune.analysis.wording.verdict`."""
    power = power_of(line.difference, test_train_ratio)
    return verdict(line.a, line.b, line.difference, power=power)


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
    cells: Iterable[SeedFold] | None = None,
    planned: int | None = None,
    sampling: Sampling = no_sampling,
) -> Comparison:
    """Compare two values of an option, A minus B.

    Args:
        history: The sweep's configurations with their runs.
        a: A's value of `option`, itself or as text, as on a command line.
        b: B's value.
        folds: The number of folds of the cross-validation.
        option: The option that is compared.
        where: Restricts each side that uses these options to the configurations with these values
            (``{"cycle_length": 4}``).
        test_train_ratio: Validation samples per training sample; 1/(folds - 1) by default, required for one fold.
        confidence: The level of the intervals.
        seed: The seed of the sign-flip test, where its patterns are drawn.
        permutations: How many are drawn.
        cells: The (seed, fold) of the runs that each configuration is to have; by default all that either side has begun.
        planned: The number of planned configurations of an unfinished sweep.
        sampling: The sampling variance of differences (:class:`tune.analysis.samples.Influences`), from the single samples;
            by default it is unknown, and intervals are wider.

    Raises:
        ConfigError: The sweep lacks the option or a value, or the sides cannot be paired.
    """
    a, b = _value(history, option, a), _value(history, option, b)
    if a == b:
        raise ConfigError(f"{option}: both sides are {a!r}; name two different values")
    picked = {key: _value(history, key, value) for key, value in (where or {}).items()}
    if option in picked:
        raise ConfigError(f"{option}: this option is compared, so --where can't restrict it")
    sides = _sides(history, option, (a, b), picked)
    judge = Judge(_ratio(folds, test_train_ratio), confidence, seed, permutations)
    tests = Tests(judge, sampling)
    names = (side_name(option, a), side_name(option, b))
    every = sorted(cells if cells is not None else {_key(cell) for side in sides for c in side for cell in c.cells})
    lines, pooled, left_out = _lines(sides, option, names, tests, every)
    tuned, no_tuned = _tuned(sides, names, tests)
    warnings = _warnings(history, sides, lines, left_out, planned)
    return Comparison(
        option=option,
        a=a,
        b=b,
        where=picked,
        folds=folds,
        test_train_ratio=judge.test_train_ratio,
        confidence=confidence,
        sides=(_ids(sides[0]), _ids(sides[1])),
        lines=lines,
        pooled=pooled,
        tuned=tuned,
        no_tuned=no_tuned,
        warnings=(*warnings, *([f"no comparison 'tuned': {no_tuned}"] if no_tuned else ())),
    )


def has_value(history: History, option: str, value: Any) -> bool:
    """Return whether any configuration has this value of an option, itself or as text.

    Args:
        history: The configurations.
        option: Name of the option.
        value: The value.
    """
    return any(matches(value, c.values[option]) for c in history if option in c.values)


def _ratio(folds: int, ratio: float | None) -> float:
    if ratio is not None:
        return ratio
    if folds < 2:
        raise ConfigError(
            "folds: 1 is a hold-out; give test_train_ratio, its validation samples divided by its training samples"
        )
    return fold_ratio(folds)


# Sides


def _value(history: History, option: str, text: Any) -> Any:
    """Return the sweep's value of `option` that equals `text`, a value or its text ('16', '1e-4', 'true')."""
    options = sorted({key for c in history for key in c.values})
    if not history:
        raise ConfigError("no configuration has begun yet, so there is nothing to compare")
    if option not in options:
        raise ConfigError(
            f"{option}: no such option in this sweep{nearest(option, options)}; it has {', '.join(options)}"
        )
    values = sorted({c.values[option] for c in history if option in c.values}, key=_order)
    for value in values:
        if matches(text, value):
            return value
    near = nearest(str(text), map(str, values))
    raise ConfigError(
        f"{option}: no configuration with {text!r} has begun{near}; the sweep has {', '.join(map(str, values))}"
    )


def matches(text: Any, value: Any) -> bool:
    """Return whether `text`, a value or its text, equals this value."""
    if value == text:
        return True
    if not isinstance(text, str):
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text.lower() == str(value).lower()
    try:
        return float(text) == value
    except ValueError:
        return False


def _sides(history: History, option: str, values: tuple[Any, Any], where: Mapping[str, Any]) -> Sides:
    """Return the configurations of A and of B. A condition on an option restricts only the sides that use it."""
    a, b = (tuple(c for c in history if c.values.get(option, _ABSENT) == value) for value in values)
    for key, target in where.items():
        used = [any(key in c.values for c in side) for side in (a, b)]
        if not any(used):
            raise ConfigError(f"{key}: neither {option} {values[0]} nor {values[1]} uses it")
        a, b = (
            tuple(c for c in side if not uses or c.values.get(key, _ABSENT) == target)
            for side, uses in zip((a, b), used, strict=True)
        )
        if not (a and b):
            lost = values[1] if a else values[0]
            raise ConfigError(f"{key}: no configuration of {option} {lost} has {key} {target}")
    return a, b


# Pairs


def _lines(
    sides: Sides, option: str, names: Names, tests: Tests, planned: Sequence[SeedFold]
) -> tuple[tuple[PairedComparison, ...], PairedComparison | None, tuple[str, ...]]:
    """Return one comparison per combination of one-sided options, all together, and the names of those without a common run."""
    keys_a, keys_b = ({key for c in side for key in c.values} - {option} for side in sides)
    shared, only_a, only_b = sorted(keys_a & keys_b), sorted(keys_a - keys_b), sorted(keys_b - keys_a)
    groups_a, groups_b = _groups(sides[0], only_a, shared), _groups(sides[1], only_b, shared)
    lines, left_out, every = [], [], []
    for values_a, values_b in itertools.product(sorted(groups_a, key=_orders), sorted(groups_b, key=_orders)):
        group_a, group_b = groups_a[values_a], groups_b[values_b]
        common = sorted(group_a.keys() & group_b.keys(), key=_orders)
        pairs = [(group_a[values], group_b[values]) for values in common]
        every += pairs
        extra_a, extra_b = _present(only_a, values_a), _present(only_b, values_b)
        labels = label(names[0], extra_a), label(names[1], extra_b)
        line = _line(pairs, tests, planned, labels, (extra_a, extra_b))
        if line is None:
            left_out.append(" against ".join(labels))
        else:
            unpaired = (len(group_a) - len(pairs), len(group_b) - len(pairs))
            lines.append(dataclasses.replace(line, unpaired=unpaired))
    if not lines:
        raise ConfigError(_nothing_common(sides, names, shared))
    pooled = _line(every, tests, planned, names, ({}, {})) if len(lines) + len(left_out) > 1 else None
    if pooled is not None:
        alone_a, alone_b = (len(side) - len({pair[i].id for pair in every}) for i, side in enumerate(sides))
        pooled = dataclasses.replace(pooled, unpaired=(alone_a, alone_b))
    return tuple(lines), pooled, tuple(left_out)


def _line(
    pairs: Sequence[Pair],
    tests: Tests,
    planned: Sequence[SeedFold],
    labels: Names,
    only: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> PairedComparison | None:
    """Compare these pairs of configurations; None if no pair finished the same run."""
    used, lacking, cells = _complete_pairs(pairs, planned)
    if not used:
        return None
    best = [(_best(a), _best(b)) for a, b in used]
    by_cell = {key: [(of_a[key], of_b[key]) for of_a, of_b in best] for key in cells}
    paired = tuple((a.id, b.id) for a, b in used)
    of_mean, of_exits = tests.sampling(dict.fromkeys(cells, paired))
    diffs = {k: _mean(a.score - b.score for a, b in both) for k, both in by_cell.items()}
    numbers = _numbers(diffs, tests.judge, of_mean)
    exits = _exit_diffs(by_cell)
    return PairedComparison(
        a=labels[0],
        b=labels[1],
        a_only=only[0],
        b_only=only[1],
        difference=numbers[0],
        p_folds=numbers[1],
        sign_flip_p=numbers[2],
        exits=tests.judge.intervals(exits, of_exits if len(of_exits) == len(exits) else [0.0] * len(exits)),
        paired=paired,
        cells=tuple(cells),
        planned=len(planned),
        dropped=_reasons(lacking, cells),
        unpaired=(0, 0),
    )


def _groups(side: History, only: Sequence[str], shared: Sequence[str]) -> dict[Values, dict[Values, Configuration]]:
    """Map the values of the one-sided options to values of the shared ones to the one configuration that has both."""
    groups: dict[Values, dict[Values, Configuration]] = {}
    for c in side:
        twin = groups.setdefault(_values(c, only), {}).setdefault(_values(c, shared), c)
        if twin is not c:
            raise ConfigError(f"configurations {twin.id} and {c.id} have the same values, so neither can be paired")
    return groups


def _complete_pairs(
    pairs: Sequence[Pair], planned: Sequence[SeedFold]
) -> tuple[list[Pair], list[Pair], list[SeedFold]]:
    """Return the pairs that both sides finished in every planned run, the other pairs, and these runs.

    Where there is no such pair yet, select the runs that pair the most, and the pairs that are complete in those. Runs
    are trained in a fixed order, so the sets that pairs have finished are nested, or nearly so, and the best set is the
    intersection of one or two of them.
    """
    every = frozenset(planned)
    done = [every.intersection(_best(a), _best(b)) for a, b in pairs]
    finished = set(done)
    candidates = {every} if every in finished else {a & b for a in finished for b in finished}

    def rank(cells: frozenset[SeedFold]) -> tuple[Any, ...]:
        return -len(cells) * sum(cells <= runs for runs in done), -len(cells), sorted(cells)

    chosen = min(candidates, key=rank, default=frozenset())
    used = [pair for pair, runs in zip(pairs, done, strict=True) if chosen and chosen <= runs]
    dropped = [pair for pair, runs in zip(pairs, done, strict=True) if not chosen <= runs]
    return used, dropped, sorted(chosen)


def _reasons(dropped: Iterable[Pair], cells: Sequence[SeedFold]) -> dict[str, int]:
    """Count the pairs that lack one of these runs, by reason."""
    counts = Counter(
        min(_lack(c, runs_of.get(key)) for c in pair for runs_of in [_by_key(c)] for key in cells) for pair in dropped
    )
    return {reason: counts[i] for i, reason in enumerate(REASONS) if counts[i]}


def _exit_diffs(by_cell: Mapping[SeedFold, Sequence[tuple[EpochScore, EpochScore]]]) -> list[dict[SeedFold, float]]:
    """Return the differences of each exit by run; empty if exits were not recorded, or their number differs."""
    counts = {len(epoch.exits) for both in by_cell.values() for pair in both for epoch in pair}
    exits = counts.pop() if len(counts) == 1 else 0
    return [
        {cell: _mean(a.exits[m] - b.exits[m] for a, b in both) for cell, both in by_cell.items()} for m in range(exits)
    ]


def _numbers(diffs: Mapping[SeedFold, float], judge: Judge, sampling: float) -> Numbers:
    """Return the interval, the p over folds alone and the sign-flip p of one difference per run."""
    folds, seeds = (len({cell[i] for cell in diffs}) for i in (1, 0))
    p_folds = judge.interval(diffs).p if folds > 1 and seeds > 1 else None
    return judge.interval(diffs, sampling), p_folds, judge.sign_flip(list(diffs.values()))


def _nothing_common(sides: Sides, names: Names, shared: Sequence[str]) -> str:
    both = f"{names[0]} and {names[1]}"
    if not {_values(c, shared) for c in sides[0]} & {_values(c, shared) for c in sides[1]}:
        return f"{both} have no configuration in common (the same {', '.join(shared)}); compare them on a grid"
    a, b = ([_key(cell) for c in side for cell in c.cells if _finished(cell)] for side in sides)
    if a and b and not set(a) & set(b):
        return f"{both} have no (seed, fold) in common"
    return f"{both} have no pair that finished the same run yet ({len(a)} and {len(b)} runs are finished)"


# Tuned against tuned


def _tuned(sides: Sides, names: Names, tests: Tests) -> tuple[TunedComparison | None, str]:
    """Select each side's configuration for each run by the other folds; or return why that is impossible."""
    tables = [{c.id: _scores(c) for c in completed(side)} for side in sides]
    if not all(tables):
        lacking = " and ".join(name for name, table in zip(names, tables, strict=True) if not table)
        return None, f"no configuration of {lacking} is completed"
    cells = sorted(set.intersection(*(set(scores) for table in tables for scores in table.values())))
    if len({fold for _, fold in cells}) < 2:
        return None, "it needs two folds, one to select a configuration and one to score it"
    choices = []
    for cell in cells:
        a, b = (_chosen(table, [other for other in cells if other[1] != cell[1]]) for table in tables)
        choices.append(FoldChoice(*cell, a, b, _rounded(tables[0][a][cell] - tables[1][b][cell])))
    of_mean, _ = tests.sampling({(c.seed, c.fold): ((c.a, c.b),) for c in choices})
    diffs = {(c.seed, c.fold): c.difference for c in choices}
    interval, p_folds, sign_flip_p = _numbers(diffs, tests.judge, of_mean)
    candidates = (len(tables[0]), len(tables[1]))
    return TunedComparison(interval, p_folds, sign_flip_p, candidates, tuple(choices)), ""


def _chosen(table: Mapping[str, Mapping[SeedFold, float]], cells: Sequence[SeedFold]) -> str:
    """Return the id with the highest mean over these runs, ties by id."""
    return min(table, key=lambda name: (-mean_and_std(table[name][cell] for cell in cells).mean, name))


# Runs and values


def _key(cell: Cell) -> SeedFold:
    return cell.seed, cell.fold


def _values(configuration: Configuration, keys: Sequence[str]) -> Values:
    return tuple(configuration.values.get(key, _ABSENT) for key in keys)


def _ids(side: History) -> tuple[str, ...]:
    return tuple(sorted(c.id for c in side))


def _by_key(configuration: Configuration) -> dict[SeedFold, Cell]:
    return {_key(cell): cell for cell in configuration.cells}


def _finished(cell: Cell | None) -> EpochScore | None:
    return cell.best if cell is not None and cell.state == "finished" else None


def _best(configuration: Configuration) -> dict[SeedFold, EpochScore]:
    """Return the best epochs of its finished runs."""
    return {_key(cell): epoch for cell in configuration.cells if (epoch := _finished(cell)) is not None}


def _scores(configuration: Configuration) -> dict[SeedFold, float]:
    return {key: epoch.score for key, epoch in _best(configuration).items()}


def _lack(configuration: Configuration, cell: Cell | None) -> int:
    """Return the index in :data:`REASONS` of the reason for a missing score; the length of the list if there is a score."""
    if _finished(cell) is not None:
        return len(REASONS)
    state = cell.state if cell is not None and cell.state == "diverged" else configuration.state
    return REASONS.index(state) if state in REASONS else REASONS.index("unfinished")


def _mean(values: Iterable[float]) -> float:
    return _rounded(mean_and_std(values).mean)


def _rounded(value: float) -> float:
    """Remove the rounding noise of a difference of fractions, so that equal differences are equal and 0 is 0."""
    return round(value, 12) + 0.0


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, str(value)


def _orders(values: Values) -> tuple[tuple[bool, float, str], ...]:
    return tuple(map(_order, values))


def _present(keys: Sequence[str], values: Values) -> dict[str, Any]:
    return {key: value for key, value in zip(keys, values, strict=True) if value != _ABSENT}


# Warnings


def _warnings(
    history: History, sides: Sides, lines: Sequence[PairedComparison], left_out: Sequence[str], planned: int | None
) -> tuple[str, ...]:
    every, compared = Counter(c.state for c in history), Counter(c.state for side in sides for c in side)
    warnings = []
    if every["pruned"]:
        count = f"{every['pruned']} configuration(s), {compared['pruned']} of them on these two sides"
        warnings.append(
            f"this sweep was pruned ({count}): the completed configurations are a selection, so differences may be biased"
        )
    if every["running"] or (planned or 0) > len(history):
        of = f" of {planned}" if planned else ""
        count = f"{every['complete']}{of} configurations completed, {compared['running']} on these two sides begun but not complete"
        warnings.append(f"this sweep is unfinished ({count})")
    for line in lines:
        if len(line.cells) < line.planned:
            warnings.append(
                f"{line.a} against {line.b} covers {len(line.cells)} of {line.planned} runs: "
                "no pair is complete in all of them"
            )
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warnings.append(f"not compared, as no pair finished the same run: {'; '.join(left_out[:3])}{more}")
    return tuple(warnings)


def jsonable(value: Any) -> Any:
    """Return plain lists and mappings; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
