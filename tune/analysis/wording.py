"""Describe a difference and its two sides in words; differences are fractions, shown x100 as points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from leebert.points import ends_in_points, in_points
from tune.analysis.labels import algorithm_label, option_text
from tune.analysis.power import MANY, Power
from tune.analysis.stats import USEFUL, Interval

#: What a difference is of, unless it is named.
QUANTITY = "validation score"


def side_name(option: str, value: Any) -> str:
    """Name a side of a comparison: `CLO-v2`, `λ1=0.0001`."""
    return algorithm_label(str(value)) if option == "algorithm" else option_text(option, value)


def label(name: str, extra: Mapping[str, Any]) -> str:
    """Return a side's name with the options that it alone has: `CLO-v2 (C=4)`."""
    return f"{name} ({', '.join(option_text(key, value) for key, value in extra.items())})" if extra else name


def span(interval: Interval, least: int = USEFUL) -> str:
    """Return the ends of an interval, x100; `-` without one, or with fewer runs than `least`."""
    shown = interval.useful if least == USEFUL else interval.defined and interval.cells >= least
    return ends_in_points(interval.low, interval.high) if shown else "-"


def level(confidence: float) -> str:
    """Return the heading of confidence intervals: `95 % CI`."""
    return f"{100 * confidence:.4g} % CI"


def runs_in_words(runs: int) -> str:
    """Return `1 run`, `3 runs`."""
    return f"{runs} run{'' if runs == 1 else 's'}"


def others_in_words(others: int) -> str:
    """Return `No other configuration is`, `1 other configuration is`, `2 other configurations are`."""
    verb = "s are" if others > 1 else " is"
    return f"{others or 'No'} other configuration{verb}"


def p_value(p: float | None) -> str:
    """Return a p-value as tables show it: `-` if there is none."""
    return "-" if p is None or math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(
    a: str,
    b: str,
    interval: Interval,
    *,
    quantity: str = QUANTITY,
    unit: str = "run",
    power: Power | None = None,
) -> str:
    """Return a sentence on the difference A minus B; if B is significantly better, on B minus A.

    Args:
        a: A's name.
        b: B's name.
        interval: The difference A minus B, as a fraction, with its confidence interval.
        quantity: What the difference is of.
        unit: What the differences are of, `run` or `task`.
        power: What the comparison can detect. With it, a difference that is not significant is followed by the number of
            runs that would be needed.
    """
    each = " each" if unit == "run" else ""
    counted = f"{interval.cells} {unit}{'s' if interval.cells != 1 else ''}{each}"
    if interval.significant is None:
        few = interval.cells < USEFUL
        reason = f": too few for an interval (at least {USEFUL})" if few else f"; {interval.missing(unit)}"
        return f"{a} and {b}: {in_points(interval.mean)} points in {quantity}, {counted}{reason}"
    if interval.significant and interval.mean < 0:
        flipped = dataclasses.replace(interval, mean=-interval.mean, low=-interval.high, high=-interval.low)
        return verdict(b, a, flipped, quantity=quantity, unit=unit, power=power)
    numbers = f"{in_points(interval.mean)} points, {level(interval.confidence)} {span(interval)}, {counted}"
    if interval.significant:
        return f"{a} is better than {b} in {quantity}: {numbers}"
    sentence = f"{a} and {b}: no significant difference in {quantity}: {numbers}"
    return f"{sentence}; {needed(power)}" if power else sentence


def needed(power: Power) -> str:
    """Say how many runs would detect a difference.

    Args:
        power: What a comparison can detect.

    Returns:
        One clause, without a full stop.
    """
    goal = f"detect {_asked(power)}"
    if power.enough:
        return f"these runs are enough to {goal}"
    if (plan := power.best) is None:
        folds = max(plan.folds for plan in power.plans)
        where = "one split" if folds < 2 else f"{folds} folds" if len(power.plans) == 1 else f"at most {folds} folds"
        if power.floor is None:
            return f"these runs do not show how many would {goal}"
        return f"no number of runs up to {MANY} on {where} would {goal}, if their variances are as estimated"
    by = f" ({plan.folds} folds × {plan.seeds} seed{'s' if plan.seeds != 1 else ''})" if plan.folds > 1 else ""
    return f"about {plan.runs} runs{by} would be needed to {goal}"


def _asked(power: Power) -> str:
    """Return the difference to detect: `0.36 points`."""
    number = f"{100 * power.difference:.3g}"
    return f"{number} point{'' if number == '1' else 's'}"


def power_lines(power: Power) -> list[str]:
    """Return what a comparison can detect, and the folds × seeds that a difference needs.

    Args:
        power: What it can detect.
    """
    share = f"with {100 * power.power:g} % power"
    if math.isnan(power.std):
        lines = [f"to detect {_asked(power)} {share}:"]
    else:
        spread = f"the differences of single runs have a standard deviation of {100 * power.std:.2f} points"
        spread += "" if power.floor is not None else " and seeds of a fold agree"
        lines = [f"to detect {_asked(power)} {share}, if {spread}:"]
    never = (
        "not at any number of seeds, if those of a fold agree" if power.floor is None else f"not with up to {MANY} runs"
    )
    for plan in power.plans:
        folds = f"{plan.folds} folds" if plan.folds > 1 else "one split"
        seeds = f"{plan.seeds} seed{'s' if plan.seeds != 1 else ''} ({plan.runs} runs)"
        lines.append(f"  {folds} × {seeds}" if plan.seeds else f"  {folds}: {never}")
    if power.detectable is not None:
        lines.append(f"{power.runs} runs detect {100 * power.detectable:.2f} points {share}")
    if power.floor is not None:
        here = f"{power.folds} folds" if power.folds > 1 else "one split"
        lines.append(
            f"with these variances, more seeds on {here} detect at best {100 * power.floor:.2f} points: seeds share "
            "training and validation samples"
        )
    return lines
