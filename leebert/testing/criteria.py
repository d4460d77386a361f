"""Contract tests of exit criteria."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from leebert.evaluate import RecordedLogits
from leebert.exits import CRITERIA
from leebert.exits.checks import check_numpy
from leebert.exits.criterion import Criterion
from leebert.exits.replay import exit_indices, make_criterion, measured, replay
from leebert.inference import infer
from leebert.runtime import Runtime
from leebert.testing.rows import imports_of, registered
from leebert.tradeoff import tradeoff

#: Exits and classes of the recorded logits.
_SHAPES = ((5, 3), (2, 2), (12, 10))

_CPU = Runtime(torch.device("cpu"), torch.float32)


def recorded_logits(seed: int, exits: int = 5, samples: int = 60, classes: int = 3) -> np.ndarray:
    """Make logits of exits whose confidence grows with depth. A quarter are rounded, so that some samples tie.

    Args:
        seed: Random seed.
        exits: M.
        samples: N.
        classes: K.

    Returns:
        (M, N, K) float32.
    """
    rng = np.random.default_rng(seed)
    drift = rng.normal(size=(1, samples, classes)) * np.arange(1, exits + 1)[:, None, None]
    logits = drift + rng.normal(size=(exits, samples, classes))
    logits[:, : samples // 4] = logits[:, : samples // 4].round()
    return logits.astype(np.float32)


class _Recorded:
    """A model for :func:`leebert.inference.infer` that returns recorded logits (M, N, K)."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = torch.from_numpy(logits)
        self.num_exits = len(logits)

    def begin(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Start with the numbers of the samples."""
        return batch["sample"]

    def advance(self, state: torch.Tensor, exit_: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up the next exit's logits."""
        return state, self.logits[exit_, state]


class CriterionContract:
    """Tests that an exit criterion passes; a subclass sets `criterion`, and pytest collects it.

    Attributes:
        criterion: The criterion under test.
    """

    criterion: ClassVar[Criterion]

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        """Register the criterion for each test."""
        with self.available():
            yield

    def available(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the criterion is registered, also if its package is not installed."""
        return registered(CRITERIA, self.criterion)

    def _criterion(self, threshold: float | None, logits: np.ndarray, patience: int | None = None) -> Any:
        row = self.criterion
        return make_criterion(row.name, threshold, patience, num_exits=len(logits), num_classes=logits.shape[2])

    def _thresholds(self, logits: np.ndarray) -> list[float | None]:
        """Thresholds over the whole span, the least strict first; [None] without a threshold."""
        row = self.criterion
        if not row.has_threshold:
            return [None]
        low, high = row.bounds(len(logits), logits.shape[2])
        steps = np.arange(low, high + 1) if row.whole else np.linspace(0, 1, 9)[1:] ** (2 if row.squares else 1)
        values = steps if row.whole else low + (high - low) * steps
        return [float(value) for value in (values[::-1] if row.rising else values)]

    def _patiences(self, logits: np.ndarray) -> list[int | None]:
        return [None] if self.criterion.patience is None else [None, *range(1, len(logits))]

    def test_row_is_complete(self) -> None:
        """The plugin is valid and has the texts of tables."""
        CRITERIA.check(self.criterion)
        assert self.criterion.title
        assert self.criterion.source

    def test_row_needs_no_torch(self) -> None:
        """The module of the criterion imports without torch."""
        assert not imports_of([self.criterion.make.__module__])

    def test_defaults_suit_every_depth(self) -> None:
        """Default thresholds and patiences are in range for 2 to 30 exits."""
        row = self.criterion
        for exits in range(2, 31):
            if row.default is not None:
                assert row.problem(row.default(exits), exits, 2) is None
            if row.patience is not None:
                assert 1 <= row.patience(exits) < exits

    @pytest.mark.parametrize(("exits", "classes"), _SHAPES)
    def test_stricter_thresholds_exit_later(self, exits: int, classes: int) -> None:
        """No sample exits earlier at a stricter threshold, so the mean exit layer is monotone in the threshold."""
        logits = recorded_logits(0, exits, 300 // exits, classes)
        for patience in self._patiences(logits):
            taken = np.stack([replay(self._criterion(t, logits, patience), logits) for t in self._thresholds(logits)])
            assert (np.diff(taken, axis=0) >= 0).all()

    def test_no_sample_exits_before_the_first_exit_that_can(self) -> None:
        """`first` and `early` hold at the least strict threshold."""
        logits = recorded_logits(1)
        for patience in self._patiences(logits):
            exits = replay(self._criterion(self._thresholds(logits)[0], logits, patience), logits)
            first = self.criterion.first(self.criterion.counted(patience, len(logits)) or 1)
            assert exits.min() + 1 >= min(first, len(logits))
            assert self.criterion.early or (exits == len(logits) - 1).all()

    @pytest.mark.parametrize(("exits", "classes"), _SHAPES)
    def test_inference_equals_replay(self, exits: int, classes: int) -> None:
        """Early-exit inference gives the exits and logits of the replay."""
        logits = recorded_logits(2, exits, 300 // exits, classes)
        samples = torch.arange(logits.shape[1])
        for patience in self._patiences(logits):
            for threshold in self._thresholds(logits)[::3]:
                criterion = self._criterion(threshold, logits, patience)
                outcome = infer(_Recorded(logits), {"sample": samples}, criterion, _CPU)
                taken = replay(criterion, logits)
                assert (outcome.layers.numpy() - 1 == taken).all()
                assert (outcome.logits.numpy() == logits[taken, np.arange(len(taken))]).all()

    @pytest.mark.parametrize(("exits", "classes"), _SHAPES)
    def test_numpy_arrays_give_the_same_exits(self, exits: int, classes: int) -> None:
        """Samples exit in an exported model, whose arrays are NumPy's, where they exit in torch, but at ties."""
        logits = recorded_logits(5, exits, 300 // exits, classes)
        for patience in self._patiences(logits):
            for threshold in self._thresholds(logits)[::3]:
                criterion = self._criterion(threshold, logits, patience)
                check_numpy(self.criterion.name, criterion, classes)
                in_torch = exit_indices(criterion, torch.from_numpy(logits)).numpy()
                differ = in_torch != exit_indices(criterion, logits)
                assert not (differ & ~self._ties(criterion, threshold, logits)).any()

    def _ties(self, criterion: Any, threshold: float | None, logits: np.ndarray) -> np.ndarray:
        """(N,) whether a sample's measured number equals the threshold at any exit, to the precision of float32."""
        if threshold is None or self.criterion.whole:
            return np.zeros(logits.shape[1], bool)
        values = measured(criterion, logits).astype(float)
        near = np.isclose(values, threshold, rtol=1e-5, atol=1e-6)
        return np.asarray(near.any(axis=0))

    def test_samples_do_not_see_each_other(self) -> None:
        """A sample exits at the same exit alone and at any position of a batch."""
        logits = recorded_logits(3, samples=24)
        order = np.random.default_rng(3).permutation(24)
        for threshold in self._thresholds(logits)[1::3] or [None]:
            criterion = self._criterion(threshold, logits)
            together = replay(criterion, logits)
            assert (replay(criterion, logits[:, order]) == together[order]).all()
            assert [replay(criterion, logits[:, [n]])[0] for n in range(24)] == together.tolist()

    def test_curve_equals_replay(self) -> None:
        """Each point of the curve of score against mean exit layer equals a replay at its threshold."""
        row, logits = self.criterion, recorded_logits(4)
        if not row.has_threshold:
            return
        for patience in self._patiences(logits):
            curve = tradeoff(RecordedLogits(logits, None), row.name, patience)
            for point in curve:
                assert row.problem(point.threshold or 0.0, len(logits), logits.shape[2]) is None
                criterion = self._criterion(point.threshold, logits, patience)
                assert np.bincount(replay(criterion, logits), minlength=len(logits)).tolist() == list(point.exits)
