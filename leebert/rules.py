"""The table of exit rules: what each one's threshold means and which values it takes, and what else is set about it.

The rules themselves are in `leebert.exits`, one file each. This table needs no torch, so that configurations are checked
without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

StrategyName = Literal[
    "patience", "entropy", "normalised_entropy", "confidence", "pcee", "f-pabee", "beem", "never"
]  # fmt: skip

#: How far above its range's end a threshold may lie: in float32 a row that knows nothing exceeds ln K.
THRESHOLD_SLACK = 1e-5

#: By how much an exit's weight grows with its depth under `beem`: w_i = 0.4 (i − 1), i from 1.
BEEM_STEP = 0.4


def default_patience(num_exits: int) -> int:
    """round(M/3), the paper's 4 at M = 12."""
    return max(1, round(num_exits / 3))


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is set about a rule on a model of M exits and K classes, either infinite where it is not known yet.

    span: from M and K, the thresholds between which rows leave neither all at the first chance nor all at the last exit.
    top: its upper end in words. rising: rows leave earlier the higher the threshold is (else the lower). whole: thresholds
    are whole numbers. default: of the threshold, from M; None: it must be given. patience: default of the rule's second
    parameter, from M; None: it has none. first: the first exit (from 1) at which a row can leave, from the patience.
    several: it compares successive exits, of which there must be two. squares: what it measures grows with the square of a
    difference or a depth, so that evenly spaced thresholds would say little. unit_of: the rule whose threshold this one takes in
    another unit.
    """

    name: StrategyName
    span: Callable[[float, float], tuple[float, float]]
    top: str
    rising: bool
    whole: bool = False
    default: Callable[[int], float] | None = None
    patience: Callable[[int], int] | None = None
    first: Callable[[int], int] = lambda p: 1
    several: bool = False
    squares: bool = False
    unit_of: StrategyName | None = None

    def counted(self, patience: int | None, num_exits: int) -> int | None:
        """The second parameter as given, or its default; None for a rule without one."""
        return None if self.patience is None else patience or self.patience(num_exits)

    def problem(self, threshold: float, num_exits: float = math.inf, num_classes: float = math.inf) -> str | None:
        """What is wrong with a threshold, in words; None: nothing."""
        low, high = self.span(num_exits, num_classes)
        if self.whole and (threshold != int(threshold) or threshold < low):
            return f"{self.name} must be a whole number of at least {low:g}, not {threshold:g}"
        if self.whole and threshold > high:
            return (
                f"{self.name} {threshold:g}: this model has {num_exits} exits, so {self.name} lies between {low:g} and {high:g} "
                f"({high:g}: all layers)"
            )
        if not self.rising and threshold <= 0:
            return f"a threshold for {self.name} lies above 0, not {threshold:g}"
        if threshold < 0 and high == math.inf:
            return f"a threshold for {self.name} is at least 0, not {threshold:g}"
        if not 0 <= threshold <= high * (1 + THRESHOLD_SLACK):
            top = self.top.format(exits=num_exits, classes=num_classes, high=high)
            return f"a threshold for {self.name} lies between 0 and {top}, not {threshold:g}{self._hint(threshold)}"
        return None

    def _hint(self, threshold: float) -> str:
        meant = [rule for rule in RULES.values() if rule.unit_of == self.name and rule.problem(threshold) is None]
        return f" (did you mean {meant[0].name}, which lies between 0 and {meant[0].top}?)" if meant else ""


#: Every rule but `never`, about which there is nothing to set.
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "patience", lambda m, k: (1, m - 1), "{high:g}", rising=False, whole=True, several=True,
            default=default_patience,
        ),
        Rule("entropy", lambda m, k: (0.0, math.log(k)), "ln {classes} = {high:.4f}", rising=True),
        Rule("normalised_entropy", lambda m, k: (0.0, 1.0), "1", rising=True, unit_of="entropy"),
        Rule("confidence", lambda m, k: (1 / k, 1.0), "1", rising=False),
        # PCEE-BERT's scripts count to 2.
        Rule(
            "pcee", lambda m, k: (0.0, 1.0), "1", rising=True, several=True,
            patience=lambda m: min(2, max(1, m - 1)), first=lambda p: p,
        ),
        # 2 at M = 12 (ours): the rule leaves at exit patience + 1 at the earliest, which few exits can't afford.
        Rule(
            "f-pabee", lambda m, k: (0.0, math.log(2)), "ln 2 = {high:.4f}", rising=True, several=True,
            patience=lambda m: max(1, round(m / 6)), first=lambda p: p + 1, squares=True,
        ),
        # From what the least sure second exit scores to what M exits score that agree and are certain.
        Rule(
            "beem", lambda m, k: (BEEM_STEP / k, BEEM_STEP * m * (m - 1) / 2), "{high:g} (with {exits} exits)",
            rising=False, several=True, first=lambda p: 2, squares=True,
        ),
    )
}  # fmt: skip


#: The rules with a second parameter, in words.
COUNTING = " and ".join(rule.name for rule in RULES.values() if rule.patience)


def named(strategy: str, patience: int | None) -> str:
    """A rule with its second parameter, where it has one: `confidence`, `pcee, patience 2`."""
    return strategy if patience is None else f"{strategy}, patience {patience}"


def without_patience(strategy: str) -> str | None:
    """Why a strategy takes no second parameter `patience`, in words; None where it does."""
    rule = RULES.get(strategy)
    if rule is not None and rule.patience is not None:
        return None
    hint = "its threshold is the patience" if rule is not None and rule.whole else f"{COUNTING} have one"
    return f"strategy {strategy!r} has no parameter 'patience': {hint}"


def usable(num_exits: int) -> list[Rule]:
    """The rules that a model of M exits has a use for, each in one unit."""
    return [rule for rule in RULES.values() if rule.unit_of is None and (num_exits > 1 or not rule.several)]
