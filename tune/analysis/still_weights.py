"""Comparisons in which ω had no effect: the loss weights of both sides stayed at their start, or are equal at all exits.

Then θ is trained on the same loss on both sides, and their difference is not due to how ω learns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.methods import METHODS
from leebert.methods.common import CYCLES, OUTER
from leebert.omega import MOVED, learns_omega
from tune.analysis.compare import PairedComparison
from tune.space import SweepSpec
from tune.store.history import CellKey
from tune.store.ledger import LedgerRecord

#: Options that only decide how ω learns.
OF_OMEGA = CYCLES | OUTER


@dataclasses.dataclass(frozen=True)
class Weights:
    """The loss weights of one run at its best epoch.

    Attributes:
        moved: The largest change of a weight since the start.
        spread: The largest difference between weights of one kind.
        ce: (M,) weights of the cross-entropies, as recorded.
        kd: (M,) weights of the distillation terms, summed over an exit's teachers.
    """

    moved: float
    spread: float
    ce: np.ndarray
    kd: np.ndarray

    @property
    def still(self) -> bool:
        return self.moved < MOVED

    @property
    def alike(self) -> bool:
        return self.spread < MOVED

    def same_terms(self, other: Weights) -> bool:
        """Return whether both weight terms equally, up to a factor per kind; sums by exit can't show more."""
        return _proportional(self.ce, other.ce) and _proportional(self.kd, other.kd)


def _proportional(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether the weights (M,) are equal at all exits, up to a common factor."""
    if a.shape != b.shape or bool(np.any((np.abs(a) > MOVED) != (np.abs(b) > MOVED))):
        return False
    ratio = a[np.abs(a) > MOVED] / b[np.abs(a) > MOVED]
    return not len(ratio) or float(np.ptp(ratio)) < 2 * MOVED


def weights_of(record: LedgerRecord, parametrisation: str) -> Weights | None:
    """Return a run's weights from its end record; None if it has none.

    Records of older versions only have sums by exit. There the cross-entropies' weights, which start at 1, represent all
    weights; not so under `group_softmax`, which weights teachers against each other.
    """
    recorded = record.get("weights") or {}
    if "ce" not in recorded:
        return None
    ce = np.array(recorded["ce"], float)
    kd = np.array(recorded.get("kd", np.zeros(len(ce))), float)
    if omega := record.get("omega"):
        return Weights(omega["moved"], omega["spread"], ce, kd)
    if parametrisation == "group_softmax":
        return None
    return Weights(float(np.abs(ce - 1).max()), float(np.ptp(ce)), ce, kd)


@dataclasses.dataclass(frozen=True)
class OmegaMoves:
    """How some configurations learn their loss weights, and how far these moved.

    Attributes:
        optimizers: The values of `omega_optimizer`; `own` for a method's own update of ω.
        configurations: The number of configurations that learn ω.
        moved: In how many of them a weight changed by at least :data:`leebert.omega.MOVED` in a run; None if not recorded.
        most: The largest change of a weight; None if not recorded.
    """

    optimizers: tuple[str, ...]
    configurations: int
    moved: int | None
    most: float | None

    def in_words(self) -> str:
        """Return the optimiser of ω and whether ω moved."""
        chosen = " or ".join(one for one in self.optimizers if one != "own")
        own = ["own update of ω"] if "own" in self.optimizers else []
        by = ", ".join([*own, *([f"omega_optimizer {chosen}"] if chosen else [])])
        if self.moved is None or self.most is None:
            return f"{by}, movement of ω not recorded"
        if not self.moved:
            return (
                f"{by}, ω stayed within {self.most:.2g} of its start (less than {MOVED:g}): practically uniform weights"
            )
        of = "" if self.moved == self.configurations else f" in {self.moved} of {self.configurations} configurations"
        return f"{by}, ω moved{of} by up to {self.most:.2g}"


def omega_moves(
    spec: SweepSpec, configurations: Sequence[tuple[Mapping[str, Any], Sequence[LedgerRecord]]]
) -> OmegaMoves | None:
    """Measure how far the loss weights of configurations moved.

    Args:
        spec: The sweep's space.
        configurations: The values of each configuration, and the end records of its runs.

    Returns:
        The optimisers and the movement over those that learn ω; None if none does.
    """
    every = [(spec.train_config(values), records) for values, records in configurations]
    learning = [(config, records) for config, records in every if learns_omega(config.algorithm)]
    if not learning:
        return None
    named = (str(c.omega_optimizer) if METHODS[c.algorithm].reads("omega_optimizer") else "own" for c, _ in learning)
    optimizers = tuple(dict.fromkeys(named))
    changes = []
    for config, records in learning:
        weights = [weights_of(record, config.parametrisation) for record in records]
        if not weights or None in weights:
            return OmegaMoves(optimizers, len(learning), None, None)
        changes.append(max(one.moved for one in weights if one is not None))
    return OmegaMoves(optimizers, len(changes), sum(change >= MOVED for change in changes), max(changes))


@dataclasses.dataclass(frozen=True)
class StillPairs:
    """The pairs of a comparison whose loss was the same throughout.

    Attributes:
        a: A's name.
        b: B's name.
        pairs: The number of pairs that count.
        still: The number of pairs whose weights stayed at their start.
        alike: The number of pairs whose weights moved, but equally at all exits.
        moved: The largest change of a weight in the `still` pairs.
        lr_omega: The λ2 that would move weights by :data:`leebert.omega.MOVED`, extrapolated from the recorded movement;
            None if unknown.
    """

    a: str
    b: str
    pairs: int
    still: int
    alike: int
    moved: float
    lr_omega: float | None

    def in_words(self) -> str:
        """Return a sentence; empty if every pair's weights moved apart."""
        if not self.still + self.alike:
            return ""
        parts = []
        for count, reason in (
            (self.still, f"weights stayed within {self.moved:.2g} of their start (less than {MOVED:g})"),
            (self.alike, f"weights ended equal at all exits (within {MOVED:g})"),
        ):
            if count:
                parts.append(reason if count == self.pairs else f"in {count} of {self.pairs} pairs {reason}")
        cure = ""
        if self.lr_omega:
            which = "those that stayed" if self.still and self.alike else "them"
            cure = f"; λ2 (lr_omega) of about {self.lr_omega:.2g} or more would move {which}"
        return f"{self.a} against {self.b}: {' and '.join(parts)}, so the optimisers could not differ{cure}"


def still_pairs(
    line: PairedComparison,
    option: str,
    cells: Mapping[CellKey, LedgerRecord],
    values: Mapping[str, Mapping[str, Any]],
    spec: SweepSpec,
) -> StillPairs | None:
    """Find the still pairs of a comparison; None if its sides differ in more than how ω learns, or records lack it.

    Args:
        line: The paired comparison.
        option: The option that is compared.
        cells: The end records of the runs, by configuration, seed and fold.
        values: Each configuration's values.
        spec: The sweep's space, for the options that are fixed.
    """
    if not _only_omega(option, [values[c]["algorithm"] for c in line.paired[0]]):
        return None
    still = alike = 0
    moved: list[tuple[float, float]] = []  # change of a weight, λ2
    for pair in line.paired:
        configs = [spec.train_config(values[c]) for c in pair]
        runs = [
            [weights_of(cells[c, *key], config.parametrisation) for key in line.cells]
            for c, config in zip(pair, configs, strict=True)
        ]
        recorded = [(a, b) for a, b in zip(*runs, strict=True) if a is not None and b is not None]
        if len(recorded) < len(line.cells):
            return None
        if not all(a.same_terms(b) for a, b in recorded):
            continue
        if all(a.still and b.still for a, b in recorded):
            still += 1
            moved += [
                (max(run[side].moved for run in recorded), config.lr_omega)
                for side, config in enumerate(configs)
                if learns_omega(config.algorithm)
            ]
        elif all(a.alike and b.alike for a, b in recorded):
            alike += 1
    # Movements are proportional to λ2 (Adam's steps are of its size), so one run predicts the effect of another rate.
    rates = [rate * MOVED / far for far, rate in moved if far > 0]
    most = max((far for far, _ in moved), default=0.0)
    return StillPairs(line.a, line.b, len(line.paired), still, alike, most, max(rates, default=None))


def _only_omega(option: str, algorithms: Sequence[str]) -> bool:
    """Return whether the sides only differ in how ω learns: methods with the same stages, at least one of which learns ω."""
    if not any(map(learns_omega, algorithms)):
        return False
    return option in OF_OMEGA or (option == "algorithm" and len({METHODS[a].stages for a in algorithms}) == 1)
