"""Comparisons in which ω had no say: the loss weights of both sides stayed at their start, or are alike at all exits.

Then θ is trained on one and the same loss, and what differs between the sides is not how ω learns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leebert.methods import METHODS
from leebert.methods.common import CYCLES
from leebert.omega import MOVED, learns_omega
from tune.analysis.compare import Line
from tune.space import SweepSpec
from tune.store.history import CellKey
from tune.store.ledger import Record

#: Options that decide how ω learns and nothing else.
OF_OMEGA = CYCLES


@dataclasses.dataclass(frozen=True)
class Weights:
    """The loss weights of one run at its best epoch.

    moved: the largest change of a weight since the start. spread: the largest difference between weights of one kind.
    ce, kd: (M,) as the ledger has them, `kd` summed over an exit's teachers.
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
        """Whether both join the same terms, weighted alike up to a factor for each kind: all that sums by exit can tell."""
        return _proportional(self.ce, other.ce) and _proportional(self.kd, other.kd)


def _proportional(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the weights (M,) are alike at all exits, up to a factor that they share."""
    if a.shape != b.shape or bool(np.any((np.abs(a) > MOVED) != (np.abs(b) > MOVED))):
        return False
    ratio = a[np.abs(a) > MOVED] / b[np.abs(a) > MOVED]
    return not len(ratio) or float(np.ptp(ratio)) < 2 * MOVED


def weights_of(record: Record, parametrisation: str) -> Weights | None:
    """A run's weights by the record of its end; None where it doesn't tell enough.

    Records of older versions have sums by exit only: there the cross-entropies' weights, which start at 1, stand for all.
    They can't under `group_softmax`, in which teachers are weighed against each other.
    """
    known = record.get("weights") or {}
    if "ce" not in known:
        return None
    ce = np.array(known["ce"], float)
    kd = np.array(known.get("kd", np.zeros(len(ce))), float)
    if omega := record.get("omega"):
        return Weights(omega["moved"], omega["spread"], ce, kd)
    if parametrisation == "group_softmax":
        return None
    return Weights(float(np.abs(ce - 1).max()), float(np.ptp(ce)), ce, kd)


@dataclasses.dataclass(frozen=True)
class StillPairs:
    """Of a line of a comparison, how many of its pairs had the same loss throughout, and by how much weights moved.

    alike: of these, in how many pairs weights moved, but alike at all exits. moved: the largest change of a weight in the
    `still` pairs. lr_omega: the λ2 that would have moved weights by :data:`leebert.omega.MOVED`, by what they moved at theirs; None where
    it can't be told.
    """

    a: str
    b: str
    pairs: int
    still: int
    alike: int
    moved: float
    lr_omega: float | None

    def in_words(self) -> str:
        """A sentence; empty where no pair was still."""
        if not self.still + self.alike:
            return ""
        said = []
        for count, what in (
            (self.still, f"weights stayed within {self.moved:.2g} of their start (less than {MOVED:g})"),
            (self.alike, f"weights ended alike at all exits (within {MOVED:g})"),
        ):
            if count:
                said.append(what if count == self.pairs else f"in {count} of {self.pairs} pairs {what}")
        cure = ""
        if self.lr_omega:
            which = "those that stayed" if self.still and self.alike else "them"
            cure = f"; λ2 (lr_omega) of about {self.lr_omega:.2g} or more would move {which}"
        return f"{self.a} against {self.b}: {' and '.join(said)}, so the optimisers could not differ{cure}"


def still_pairs(
    line: Line,
    option: str,
    cells: Mapping[CellKey, Record],
    values: Mapping[str, Mapping[str, Any]],
    spec: SweepSpec,
) -> StillPairs | None:
    """The still pairs of a line; None where its sides differ in more than how ω learns, or the records don't tell.

    Args:
        line: the comparison's line.
        option: what is compared.
        cells: the ends of the runs, by configuration, seed and fold.
        values: each configuration's values.
        spec: the sweep's space, for the options that are fixed.
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
        known = [(a, b) for a, b in zip(*runs, strict=True) if a is not None and b is not None]
        if len(known) < len(line.cells):
            return None
        if not all(a.same_terms(b) for a, b in known):
            continue
        if all(a.still and b.still for a, b in known):
            still += 1
            moved += [
                (max(run[side].moved for run in known), config.lr_omega)
                for side, config in enumerate(configs)
                if learns_omega(config.algorithm)
            ]
        elif all(a.alike and b.alike for a, b in known):
            alike += 1
    # Movements are proportional to λ2 (Adam's steps are of its size), so one run says what another rate would do.
    rates = [rate * MOVED / far for far, rate in moved if far > 0]
    most = max((far for far, _ in moved), default=0.0)
    return StillPairs(line.a, line.b, len(line.paired), still, alike, most, max(rates, default=None))


def _only_omega(option: str, algorithms: Sequence[str]) -> bool:
    """Whether the sides differ in how ω learns alone: by the table, methods of one family of which one at least learns ω."""
    if not any(map(learns_omega, algorithms)):
        return False
    return option in OF_OMEGA or (option == "algorithm" and len({METHODS[a].stages for a in algorithms}) == 1)
