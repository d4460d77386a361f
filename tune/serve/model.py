"""An exported model as the engine runs it: rows of several requests in one batch, and the points of load control."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.data.collate import TokenRows
from leebert.errors import ConfigError
from leebert.exits import FULL_MODEL
from leebert.exported.manifest import Exits, Manifest
from leebert.exported.model import ExportedModel
from tune.serve.control import OperatingPoint, ladder
from tune.serve.queue import Row

#: Words of the texts of a warm-up, from a short text to a long one.
_WARM_UP = (4, 16, 48)

#: Words of the texts of a batch whose time is measured, with about as much padding as batches of requests have.
_BATCH = (10, 11, 12, 13, 14, 15, 16, 16)

#: Rounds in which it is measured.
_ROUNDS = 5


class ServedModel:
    """An exported model of texts.

    Args:
        folder: The folder that `leebert export` wrote.
        threads: Threads of ONNX Runtime for one batch.
        exits: The exit criterion of requests that choose none; None: the model's own.

    Raises:
        ConfigError: The model takes images.
        CheckpointError: The folder is damaged.
    """

    def __init__(self, folder: str | Path, threads: int = 1, exits: Exits | None = None) -> None:
        self.model = ExportedModel.load(folder, threads=threads)
        self.manifest = self.model.manifest
        self.own = exits or self.manifest.exits
        require_texts(self.manifest)
        # A criterion at its threshold is stateless, and requests repeat few of them.
        self._criterion = functools.lru_cache(maxsize=256)(self.model.criterion)
        self._chosen = functools.lru_cache(maxsize=256)(self._choose)

    @property
    def columns(self) -> Sequence[Sequence[str]]:
        """Of each text column the accepted names."""
        return self.manifest.text_columns

    def encode(self, texts: Sequence[tuple[str, ...]], *, truncate: bool) -> list[Row]:
        """Tokenise texts.

        Args:
            texts: The texts of each row.
            truncate: Whether texts that are too long are cut, instead of refused.
        """
        rows = self.model.encode(texts, truncate=truncate)
        types = rows.token_type_ids
        spans = zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True)
        return [
            Row((rows.input_ids[a:b], None if types is None else types[a:b]), b - a)
            for a, b in spans
        ]  # fmt: skip

    def choose(self, choice: Mapping[str, Any]) -> Exits:
        """The exit criterion that a request asks for.

        Args:
            choice: Values of `tune.serve.requests.CHOICES`.

        Raises:
            ConfigError: A value is invalid, or no threshold attains it.
        """
        return self._chosen(tuple(choice.items()))

    def _choose(self, choice: tuple[tuple[str, Any], ...]) -> Exits:
        exits = self.model.choose(**dict(choice))
        self.model.criterion(exits)
        return exits

    def exits_at(self, threshold: float | None) -> Exits:
        """The server's exit criterion at a threshold; None: at its own."""
        own = self.own
        return own if threshold is None else Exits(criterion=own.criterion, threshold=threshold, patience=own.patience)

    @staticmethod
    def describe(exits: Exits) -> dict[str, Any]:
        """Criterion, threshold and patience for the answer, as far as there are any."""
        values = {"criterion": exits.criterion, "threshold": exits.threshold, "patience": exits.patience}
        return {name: value for name, value in values.items() if value is not None}

    def run(self, rows: Sequence[Row], exits: Exits) -> list[dict[str, Any]]:
        """Predict a batch.

        Args:
            rows: Encoded rows.
            exits: The exit criterion of all of them.

        Returns:
            Label, probability, exit layer and saved layers of each row.
        """
        answer = self.model.infer(self._padded(rows), self._criterion(exits))
        return [
            {
                "label": one.label, "probability": one.probability,
                "exit_layer": one.exit_layer, "layers_saved": one.layers_saved,
            }
            for one in self.model.predictions(answer)
        ]  # fmt: skip

    def _padded(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Make a batch of rows of several requests."""
        ids, types = zip(*(row.inputs for row in rows), strict=True)
        together = TokenRows(
            np.concatenate(ids),
            None if types[0] is None else np.concatenate(types),
            np.cumsum([0, *(row.length for row in rows)]),
            self.manifest.padding_id,
        )
        return together.padded(range(len(rows)))

    def warm_up(self) -> float:
        """Predict texts of several lengths through all layers, so that no request pays for what is done once.

        Returns:
            The time that a batch takes beyond that of its rows, in rows: 0 if a batch takes as long as its rows one by one.
        """
        never = Exits(criterion=FULL_MODEL)
        for words in _WARM_UP:
            for batch in (1, 4):
                self.run(self._rows([words] * batch), never)
        rows = self._rows(_BATCH)
        alone, together = math.inf, math.inf
        for _ in range(_ROUNDS):  # the fastest rounds: other programs disturb some
            alone = min(alone, sum(self._seconds([row], never) for row in rows))
            together = min(together, self._seconds(rows, never))
        return fixed_rows(len(rows), together / alone)

    def _seconds(self, rows: Sequence[Row], exits: Exits) -> float:
        started = time.perf_counter()
        self.run(rows, exits)
        return time.perf_counter() - started

    def _rows(self, lengths: Sequence[int]) -> list[Row]:
        """Encode texts of so many words."""
        return self.encode([tuple("word " * words for _ in self.columns) for words in lengths], truncate=True)


def fixed_rows(count: int, ratio: float) -> float:
    """Compute the time that a batch takes beyond that of its rows, in rows.

    Args:
        count: Rows of a batch.
        ratio: Its time relative to that of its rows one by one.

    Returns:
        f with `ratio` = (f + `count`) / (`count` (f + 1)); 0 to `count`.
    """
    return min(max(count * (1 - ratio) / max(count * ratio - 1, 1e-9), 0.0), float(count))


def require_texts(manifest: Manifest) -> None:
    """Refuse a model of images."""
    if manifest.kind != "texts":
        raise ConfigError(f"{manifest.name} takes images; the server takes models of texts")


def operating_points(manifest: Manifest, own: Exits, max_loss: float | None) -> tuple[OperatingPoint, ...]:
    """Select the points of load control of an exported model.

    Args:
        manifest: Its manifest.
        own: The server's exit criterion.
        max_loss: Largest drop in score, in points; None: the criterion's own threshold only.

    Raises:
        ConfigError: Load control needs a curve that the model lacks.
    """
    curve = manifest.curve(own.criterion, own.patience)
    points = curve.points if curve is not None else ()
    if max_loss is not None:
        if not points or any(point.milliseconds is None for point in points):
            raise ConfigError(
                f"{manifest.name}: no curve of score against milliseconds of its exit criterion {own.criterion}; load control "
                "needs one: export the model again with samples to calibrate on"
            )
        return ladder(points, max_loss)
    full = sum(manifest.timing.segments) if manifest.timing else 1.0
    if own.threshold is None or not points:  # no sample exits early, or nothing was measured
        score = manifest.scores[-1].exported if manifest.scores else math.nan
        return (OperatingPoint(own.threshold, score, 1.0, full),)
    near = min(points, key=lambda point: abs(point.threshold - (own.threshold or 0.0)))
    return (OperatingPoint(own.threshold, near.score, near.speed_up, near.milliseconds or full),)
