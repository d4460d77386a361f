"""The verdict on A against B: one object that a sentence, a forest plot and two curves are made from.

It is computed once from a paired comparison (`tune.analysis.compare_sweeps`), the ledger and the recorded validation logits,
without torch. Scores and differences are fractions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from leebert.errors import ConfigError
from leebert.tradeoff import Tradeoff, common_layers
from tune.analysis.compare import Comparison, PairedComparison, jsonable, matches
from tune.analysis.power import DIFFERENCE, Plan, Power, power_of
from tune.analysis.stats import Interval, random_effects
from tune.analysis.still_weights import OmegaMoves, omega_moves
from tune.analysis.sweeps import SweepPool
from tune.analysis.tradeoff import RankingObjective
from tune.analysis.wording import side_name, verdict
from tune.space import SweepSpec
from tune.store.folder import SweepFolder, spec_of
from tune.store.history import CellKey, Configuration, SeedFold
from tune.store.ranking import best, completed, score

#: The layer speed-ups of a verdict.
SPEED_UPS = (1.5, 2.0, 3.0)

#: The methods that are compared unless others are named, if a sweep has both.
PREFERRED = ("clo-v2", "blo")

#: The fields of a curve with one number per point.
COLUMNS = ("speed_ups", "layers", "scores", "low", "high")

#: What a band around a curve shows: the confidence interval of the mean over runs, or the range of too few runs for one.
Band = Literal["interval", "range"]


@dataclasses.dataclass(frozen=True)
class Effect:
    """One difference A minus B: a line of a forest plot.

    Attributes:
        key: `score`, `exit_01`, `speed_up_2` or `tuned`.
        name: Its name in words.
        estimate: The mean difference; None if there is none.
        low: The lower end of its interval; None if none is shown.
        high: The upper end.
        p: The two-sided p-value; None without an interval.
        p_folds: The p of the corrected t over folds' means, which ignores single samples; None if no fold has two seeds.
        runs: The number of runs.
        confidence: The confidence level; of exits it is that of all their intervals together.
        significant: Whether the difference is significant; None if nothing can be said.
        missing: Why there is no estimate, or no interval; empty otherwise.
        folds: The number of folds of these runs; 0 or 1 without cross-validation.
    """

    key: str
    name: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_folds: float | None = None
    runs: int = 0
    confidence: float = 0.95
    significant: bool | None = None
    missing: str = ""
    folds: int = 0

    @classmethod
    def of(cls, key: str, name: str, interval: Interval, p_folds: float | None = None) -> Effect:
        """Make an effect from its interval.

        Args:
            key: Its key.
            name: Its name in words.
            interval: The difference with its interval.
            p_folds: The p of the corrected t over folds' means.
        """
        shown = interval.useful
        return cls(
            key=key,
            name=name,
            estimate=interval.mean,
            low=interval.low if shown else None,
            high=interval.high if shown else None,
            p=interval.p if shown else None,
            p_folds=p_folds if shown else None,
            runs=interval.cells,
            confidence=interval.confidence,
            significant=interval.significant,
            missing=interval.missing(),
            folds=interval.folds,
        )

    @property
    def interval(self) -> Interval | None:
        """Its interval, with NaN for unknown numbers; None without an estimate."""
        if self.estimate is None:
            return None
        low, high, p = (np.nan if value is None else value for value in (self.low, self.high, self.p))
        return Interval(self.estimate, low, high, p, self.runs, self.confidence, folds=self.folds)


@dataclasses.dataclass(frozen=True)
class ScoreCurve:
    """Score, or difference in score, against layer speed-up: a mean over runs with a band.

    Attributes:
        speed_ups: (T,) layer speed-ups, falling.
        layers: (T,) mean exit layers, rising.
        scores: (T,) mean scores, or mean differences A minus B.
        low: (T,) lower end of the band.
        high: (T,) upper end.
        band: What the band shows.
        runs: The number of runs.
    """

    speed_ups: tuple[float, ...]
    layers: tuple[float, ...]
    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    band: Band
    runs: int


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        value: Its value of the compared option.
        name: Its name, such as `CLO-v2`.
        options: The options that only this side has, with their values in the sweep.
        configurations: The number of its configurations that are compared.
        score: Their mean score over exits and runs.
        completed: The number of its completed configurations.
        learned: Whether the best completed configuration is significantly above the majority class; None if unknown.
        learned_configurations: How many completed configurations are.
        majority: The score of the majority class.
        margin: The best configuration's mean over exits minus that score.
        margin_low: The lower end of its 95 % CI.
        margin_high: The upper end.
        best: The values of the best completed configuration; None without one.
        learns_omega: Whether it learns its loss weights ω.
        omega_optimizers: How ω is updated, by the values of `omega_optimizer`; `own` for a method's own update.
        moved: The largest change of a loss weight in the compared runs; None if unknown or if ω is fixed.
        moved_configurations: In how many of the compared configurations a weight changed by at least
            :data:`leebert.omega.MOVED`.
    """

    value: Any
    name: str
    options: Mapping[str, list[Any]]
    configurations: int
    score: float
    completed: int
    learned: bool | None = None
    learned_configurations: int = 0
    majority: float | None = None
    margin: float | None = None
    margin_low: float | None = None
    margin_high: float | None = None
    best: Mapping[str, Any] | None = None
    learns_omega: bool = False
    omega_optimizers: tuple[str, ...] = ()
    moved: float | None = None
    moved_configurations: int | None = None

    @property
    def omega(self) -> str:
        """How it updates ω, and whether ω moved, in words."""
        if not self.learns_omega:
            return "fixed ω"
        return OmegaMoves(self.omega_optimizers, self.configurations, self.moved_configurations, self.moved).in_words()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A against B on one sweep.

    Attributes:
        sweep: The sweep's name.
        task: The task's name.
        metric: The task's metric.
        option: The compared option.
        where: Option → value that both sides have.
        a: Side A.
        b: Side B.
        pairs: The number of pairs of configurations.
        folds: The number of folds.
        seeds: The number of seeds.
        test_train_ratio: Validation samples per training sample of a run.
        effects: The differences A minus B, the mean over exits first.
        criterion: The exit criterion of the curves, in words.
        curves: The curves of `a` and of `b`, and of their `difference`; empty if there are none.
        no_curves: Why there are none; empty otherwise.
        power: What the comparison can detect; None without an interval.
        running: Whether the sweep is still running.
        warnings: What limits the conclusion, one sentence each.
    """

    sweep: str
    task: str
    metric: str
    option: str
    where: Mapping[str, Any]
    a: Side
    b: Side
    pairs: int
    folds: int
    seeds: int
    test_train_ratio: float
    effects: tuple[Effect, ...]
    criterion: str
    curves: Mapping[str, ScoreCurve]
    no_curves: str
    power: Power | None
    running: bool
    warnings: tuple[str, ...]

    @property
    def main(self) -> Effect:
        """The difference in the mean over exits."""
        return self.effects[0]

    @property
    def runs(self) -> int:
        """The number of runs of each side that the main difference is over."""
        return self.main.runs

    @property
    def winner(self) -> str:
        """The name of the side that is significantly better in the mean over exits; empty if neither is."""
        if not self.main.significant or self.main.estimate is None:
            return ""
        return self.a.name if self.main.estimate > 0 else self.b.name

    @property
    def sentence(self) -> str:
        """The verdict in a sentence."""
        interval = self.main.interval
        assert interval is not None
        return verdict(self.a.name, self.b.name, interval, power=self.power)

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, with its sentence; see :meth:`from_dict`."""
        plain: dict[str, Any] = jsonable(dataclasses.asdict(self))
        return {"sentence": self.sentence, **plain}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        """Rebuild a verdict from :meth:`as_dict`."""
        values = {field.name: plain[field.name] for field in dataclasses.fields(cls)}
        values["a"], values["b"] = (
            Side(**{**plain[side], "omega_optimizers": tuple(plain[side]["omega_optimizers"])}) for side in ("a", "b")
        )
        values["effects"] = tuple(Effect(**effect) for effect in plain["effects"])
        values["curves"] = {
            name: ScoreCurve(**{**curve, **{key: tuple(curve[key]) for key in COLUMNS}})
            for name, curve in plain["curves"].items()
        }
        values["power"] = plain["power"] and Power(
            **{**plain["power"], "plans": tuple(Plan(*plan) for plan in plain["power"]["plans"])}
        )
        values["warnings"] = tuple(plain["warnings"])
        return cls(**values)


def make_verdict(
    pool: SweepPool,
    scores: Comparison,
    at_speed_ups: Sequence[tuple[RankingObjective, Comparison | str]],
    replayed: Mapping[CellKey, Tradeoff],
    difference: float = DIFFERENCE,
) -> Verdict:
    """Summarise a comparison that has been computed.

    Args:
        pool: The sweep.
        scores: The comparison by the mean over exits.
        at_speed_ups: The comparisons at layer speed-ups, or why there is none.
        replayed: The curves of the compared runs; those of others are ignored.
        difference: The difference to detect, a fraction.
    """
    overall = scores.overall
    sampling = {
        objective.speed_up: at.overall.difference.sampling
        for objective, at in at_speed_ups
        if isinstance(at, Comparison) and objective.speed_up is not None and at.overall.cells == overall.cells
    }
    sampling = sampling if all(sampling.values()) else {}  # runs without logits
    curves, no_curves = _curves(overall, replayed, scores.test_train_ratio, sampling, pool.score_range)
    if not at_speed_ups:
        no_curves = "not requested"
    else:
        reasons = [reason for _, reason in at_speed_ups if isinstance(reason, str)]
        no_curves = "" if curves else (reasons or [no_curves])[0]
    return Verdict(
        sweep=pool.name,
        task=pool.spec.task_name,
        metric=str(pool.manifest["metric"]),
        option=scores.option,
        where=scores.where,
        a=_side(pool, scores, 0),
        b=_side(pool, scores, 1),
        pairs=len(overall.paired),
        folds=scores.folds,
        seeds=len({seed for seed, _ in overall.cells}),
        test_train_ratio=scores.test_train_ratio,
        effects=tuple(_effects(scores, at_speed_ups)),
        criterion=at_speed_ups[0][0].under if at_speed_ups else "",
        curves=curves,
        no_curves=no_curves,
        power=power_of(overall.difference, scores.test_train_ratio, difference),
        running=pool.running,
        warnings=scores.warnings,
    )


def _effects(scores: Comparison, at_speed_ups: Sequence[tuple[RankingObjective, Comparison | str]]) -> list[Effect]:
    """Return the differences in their order: mean over exits, each exit, each speed-up, tuned against tuned."""
    overall = scores.overall
    effects = [Effect.of("score", "mean over exits", overall.difference, overall.p_folds)]
    effects += [Effect.of(f"exit_{m:02d}", f"exit {m}", exit) for m, exit in enumerate(overall.exits, start=1)]
    for objective, at in at_speed_ups:
        key, name = f"speed_up_{objective.speed_up:g}", f"score at layer speed-up {objective.speed_up:g}"
        if isinstance(at, str):
            effects.append(Effect(key, name, missing=at))
        else:
            effects.append(Effect.of(key, name, at.overall.difference, at.overall.p_folds))
    name = "tuned against tuned"
    if scores.tuned is None:
        effects.append(Effect("tuned", name, missing=scores.no_tuned))
    else:
        effects.append(Effect.of("tuned", name, scores.tuned.difference, scores.tuned.p_folds))
    return effects


def _side(pool: SweepPool, scores: Comparison, index: int) -> Side:
    """Describe one side: its compared configurations, what the completed ones learned, and how far ω moved."""
    history = {c.id: c for c in pool.state.history()}
    value = (scores.a, scores.b)[index]
    compared = [history[id] for id in dict.fromkeys(pair[index] for pair in scores.overall.paired)]
    done = completed(tuple(history[id] for id in scores.sides[index]))
    only = [(line.a_only, line.b_only)[index] for line in scores.lines]
    margins = [pool.margins[c.id] for c in done if c.id in pool.margins]
    top = best(done) if done else None
    margin = pool.margins.get(top.id) if top is not None else None
    by_run = [_score(c, scores.overall.cells) for c in compared]
    return Side(
        value=value,
        name=side_name(scores.option, value),
        options={key: list(dict.fromkeys(extra[key] for extra in only)) for key in only[0]},
        configurations=len(compared),
        score=float(np.mean(by_run)),
        completed=len(done),
        learned=None if margin is None else margin.learned,
        learned_configurations=sum(one.learned for one in margins),
        majority=None if margin is None else margin.samples.score,
        margin=None if margin is None else margin.samples.margin,
        margin_low=None if margin is None else margin.samples.interval[0],
        margin_high=None if margin is None else margin.samples.interval[1],
        best=None if top is None else {"configuration": top.id, "values": dict(top.values), "score": score(top).mean},
        **_omega(pool, compared, scores.overall.cells),
    )


def _score(configuration: Configuration, cells: Sequence[SeedFold]) -> float:
    """Return the mean score of a configuration over these runs."""
    scores = {(c.seed, c.fold): c.best.score for c in configuration.cells if c.best is not None}
    return float(np.mean([scores[cell] for cell in cells]))


def _omega(pool: SweepPool, compared: Sequence[Configuration], cells: Sequence[SeedFold]) -> dict[str, Any]:
    """Return how these configurations update ω, and how far it moved in these runs."""
    ends = [(c.values, [pool.state.cells[c.id, *cell] for cell in cells]) for c in compared]
    moves = omega_moves(pool.spec, ends)
    if moves is None:
        return {}
    return {
        "learns_omega": True,
        "omega_optimizers": moves.optimizers,
        "moved": moves.most,
        "moved_configurations": moves.moved,
    }


# Curves


def _curves(
    line: PairedComparison,
    replayed: Mapping[CellKey, Tradeoff],
    test_train_ratio: float,
    sampling: Mapping[float, float],
    score_range: tuple[float, float],
) -> tuple[dict[str, ScoreCurve], str]:
    """Return the curves of both sides and of their difference, over the runs in which every pair has its curves.

    The sampling variance of the difference is known at some speed-ups and interpolated between them; that of a side is
    unknown, so that its band is the wider one of folds alone; it ends at the least and the largest score.
    """
    cells = [cell for cell in line.cells if all((config, *cell) in replayed for pair in line.paired for config in pair)]
    if not cells:
        return {}, "no run has readable validation logits for every compared configuration"
    pairs = [[replayed[pair[side], *cell] for cell in cells for pair in line.paired] for side in (0, 1)]
    layers = common_layers([curve for side in pairs for curve in side])
    depth = pairs[0][0].depth
    # (2, runs, pairs, T): a run's score is its mean over the pairs.
    scores = np.array([[np.interp(layers, *curve.drawn()) for curve in side] for side in pairs])
    by_run = scores.reshape(2, len(cells), len(line.paired), len(layers)).mean(axis=2)

    def interval(column: list[float], v: float) -> Interval:
        return random_effects(dict(zip(cells, column, strict=True)), test_train_ratio, sampling=v)

    speed_ups = depth / layers
    rising = sorted(sampling)
    variances = [sampling[speed_up] for speed_up in rising]
    of_difference = np.interp(speed_ups, rising, variances) if rising else np.zeros(len(layers))

    def of_score(column: list[float], v: float) -> Interval:
        return interval(column, v).clipped(*score_range)

    return {
        "a": _banded(by_run[0], layers, depth, np.zeros(len(layers)), of_score),
        "b": _banded(by_run[1], layers, depth, np.zeros(len(layers)), of_score),
        "difference": _banded(by_run[0] - by_run[1], layers, depth, of_difference, interval),
    }, ""


def _banded(
    rows: np.ndarray,
    layers: np.ndarray,
    depth: int,
    sampling: np.ndarray,
    interval: Callable[[list[float], float], Interval],
) -> ScoreCurve:
    """Return the mean of (runs, T) scores with its band, from each column's interval with its (T,) sampling variance."""
    intervals = [interval(column.tolist(), v) for column, v in zip(rows.round(12).T, sampling.tolist(), strict=True)]
    wide = any(interval.useful for interval in intervals)
    if wide:  # where all runs agree, the band has no width
        low = [i.low if i.useful else i.mean for i in intervals]
        high = [i.high if i.useful else i.mean for i in intervals]
    else:
        low, high = rows.min(axis=0).tolist(), rows.max(axis=0).tolist()
    return ScoreCurve(
        speed_ups=_rounded(depth / layers),
        layers=_rounded(layers),
        scores=_rounded(rows.mean(axis=0)),
        low=_rounded(low),
        high=_rounded(high),
        band="interval" if wide else "range",
        runs=len(rows),
    )


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 6) + 0.0 for value in values)


# The sides that are compared unless others are named


def choose_sides(
    folders: Sequence[SweepFolder], option: str = "algorithm", a: str | None = None, b: str | None = None
) -> tuple[str, str]:
    """Return the two values to compare, as text: those that are named, and for the others a default.

    Of methods these are CLO-v2 and BLO if the sweeps have both, otherwise the first ones that the sweeps list; of another
    option the first two values.

    Args:
        folders: The sweeps.
        option: The compared option.
        a: A's value; None: the default.
        b: B's value; None: the default.

    Raises:
        ConfigError: The sweeps have fewer than two values to choose from.
    """
    if a is not None and b is not None:
        return a, b
    values = list(dict.fromkeys(str(value) for folder in folders for value in _listed(spec_of(folder), option)))
    ordered = preferred_first(values, always=bool(a or b)) if option == "algorithm" else values
    named = a if a is not None else b
    free = iter([v for v in ordered if named is None or not matches(named, v)])
    first, second = a if a is not None else next(free, None), b if b is not None else next(free, None)
    if first is None or second is None:
        listed = ", ".join(values) or "no list of values"
        other = "compare the values of another option by --option, or name" if len(values) == 1 else "name"
        raise ConfigError(f"{option}: the sweep has {listed}; {other} two values by --a and --b")
    return first, second


def preferred_first(methods: Sequence[str], *, always: bool = False) -> list[str]:
    """Return methods in the order in which they are chosen as sides of a verdict.

    Args:
        methods: The methods, as the sweeps list them.
        always: Whether one of :data:`PREFERRED` comes first even if the other is missing.
    """
    preferred = [method for method in PREFERRED if method in methods]
    both = len(preferred) == len(PREFERRED)
    return [*preferred, *(m for m in methods if m not in preferred)] if both or always else list(methods)


def _listed(spec: SweepSpec, option: str) -> Sequence[Any]:
    """Return the values of an option in a search space; none of a range or an option that is not searched."""
    if option == "algorithm":
        return spec.algorithms
    axis = spec.space.get(option)
    return () if axis is None else axis.listed() or ()
