"""An exported model: segments in ONNX Runtime, between which samples that exit are removed from the batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.data.collate import TokenRows
from leebert.errors import CheckpointError, ConfigError, DataError
from leebert.exits import CRITERIA
from leebert.exits.arrays import select, softmax
from leebert.exits.checks import check_numpy, threshold_and_patience
from leebert.exits.criterion import CriterionState, ExitCriterion
from leebert.exported import choosing
from leebert.exported.manifest import (
    LOGITS,
    MODEL_INPUTS,
    TOKENIZER,
    Exits,
    Manifest,
    check_files,
    read_manifest,
    verified,
)  # fmt: skip
from leebert.exported.sessions import SegmentSession, load_sessions
from leebert.exported.tokenizing import TextEncoder


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of early-exit inference on a batch.

    Attributes:
        logits: (B, K) float32 of each sample's exit.
        layers: (B,) exit layer of each sample, from 1.
    """

    logits: np.ndarray
    layers: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one sample.

    Attributes:
        label: Name of the class.
        probability: Its probability.
        exit_layer: The layer of the exit, from 1.
        layers_saved: Layers of the unreduced network that were not executed.
    """

    label: str
    probability: float
    exit_layer: int
    layers_saved: int


class ExportedModel:
    """A model that `leebert export` wrote, loaded by :meth:`load`.

    It may be called from several threads at once.

    Attributes:
        manifest: The contents of `export.json`.
        folder: The folder.
        choose: Chooses the exit criterion of a request, :func:`leebert.exported.choosing.choose` of this manifest.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, sessions: Sequence[SegmentSession], encoder: TextEncoder | None
    ) -> None:
        """Use :meth:`load`."""
        self.folder, self.manifest = folder, manifest
        self.choose = functools.partial(choosing.choose, manifest)
        self._sessions, self._encoder = list(sessions), encoder
        inputs = [set(segment.inputs) for segment in manifest.segments]
        #: For each segment, the inputs of the model that later segments take.
        self._later = [set().union(*inputs[i + 1 :]) & set(MODEL_INPUTS) for i in range(len(inputs))]
        self._inputs = set().union(*inputs) & set(MODEL_INPUTS)

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1) -> ExportedModel:
        """Load an exported model. Every file is checked before it is loaded.

        Args:
            folder: The folder.
            threads: Threads of ONNX Runtime for one batch.

        Returns:
            The model.

        Raises:
            CheckpointError: A file is missing, altered or damaged, or a graph has operators of other domains or external data.
            ConfigError: A package is not installed, or the number of threads is below 1.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        check_files(path, manifest)
        encoder = TextEncoder(verified(path, TOKENIZER, manifest), manifest) if manifest.kind == "texts" else None
        return cls(path, manifest, load_sessions(path, manifest, threads), encoder)

    def encode(self, texts: Sequence[tuple[str, ...]], *, truncate: bool = False) -> TokenRows:
        """Tokenise rows of texts.

        Args:
            texts: One tuple of one or two texts per row.
            truncate: Whether rows that are too long are truncated, instead of refused.

        Returns:
            The token ids of each row; :meth:`TokenRows.padded` makes batches of them.

        Raises:
            ConfigError: The model takes images.
            DataError: A row has another number of texts, or a value that is no text, or is too long.
        """
        if self._encoder is None:
            raise ConfigError(f"{self.folder}: the model takes images, not texts")
        return self._encoder.encode(texts, truncate=truncate)

    def infer(self, batch: Mapping[str, np.ndarray], criterion: ExitCriterion) -> Answer:
        """Run segment after segment until every sample has exited.

        Args:
            batch: The model's inputs by name, of B samples.
            criterion: The exit criterion at its threshold, from :meth:`criterion`.

        Returns:
            Logits and exit layer of each sample.

        Raises:
            DataError: The batch is empty, an input is missing, or ONNX Runtime cannot run it.
            CheckpointError: Logits are not finite.
        """
        values = self._checked(batch)
        positions = np.arange(len(next(iter(values.values()))))
        outputs = np.empty((len(positions), len(self.manifest.labels)), np.float32)
        layers = np.full(len(positions), self.manifest.exit_layers[-1], np.int64)
        state: CriterionState = None
        for index in range(len(self._sessions) - 1):
            logits, values = self._advance(index, values)
            exited, state = criterion.step(logits, state)
            if exited.any():
                outputs[positions[exited]] = logits[exited]
                layers[positions[exited]] = self.manifest.exit_layers[index]
                if exited.all():
                    return Answer(outputs, layers)
                remaining = ~exited
                positions, state = positions[remaining], select(state, remaining)
                values = {name: value[remaining] for name, value in values.items()}
        outputs[positions], _ = self._advance(len(self._sessions) - 1, values)
        return Answer(outputs, layers)

    def all_logits(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run all segments on all samples.

        Args:
            batch: The model's inputs by name, of B samples.

        Returns:
            (E, B, K) float32 logits of every exit.

        Raises:
            DataError: As :meth:`infer`.
            CheckpointError: As :meth:`infer`.
        """
        values = self._checked(batch)
        recorded = []
        for index in range(len(self._sessions)):
            logits, values = self._advance(index, values)
            recorded.append(logits)
        return np.stack(recorded)

    def criterion(self, exits: Exits) -> ExitCriterion:
        """Make an exit criterion.

        Args:
            exits: The criterion with its parameters.

        Raises:
            ConfigError: The criterion is unknown or knows torch alone, or a parameter is missing, superfluous or out of range.
        """
        choosing.checked(self.manifest, exits)
        parameters = threshold_and_patience(exits.criterion, exits.threshold, exits.patience, self.manifest.num_exits)
        criterion = CRITERIA[exits.criterion].make(*parameters, len(self.manifest.labels))
        if exits.criterion not in CRITERIA.built_in:
            check_numpy(exits.criterion, criterion, len(self.manifest.labels))
        return criterion

    def predict(
        self,
        texts: Sequence[tuple[str, ...]],
        exits: Exits | None = None,
        *,
        truncate: bool = False,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """Predict rows of texts, in batches of similar lengths.

        Args:
            texts: One tuple of one or two texts per row.
            exits: The exit criterion; None: the model's own.
            truncate: Whether rows that are too long are truncated, instead of refused.
            batch_size: Samples per batch.

        Returns:
            One prediction per row, in their order.

        Raises:
            ConfigError: The batch size is below 1, or the model cannot use the criterion.
            DataError: A row is no valid text or too long.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: should be a whole number of at least 1")
        criterion = self.criterion(exits or self.manifest.exits)
        rows = self.encode(texts, truncate=truncate)
        order = rows.lengths.argsort(kind="stable")
        predictions: dict[int, Prediction] = {}
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            answer = self.infer(rows.padded(index), criterion)
            predictions.update(zip(index.tolist(), self.predictions(answer), strict=True))
        return [predictions[row] for row in range(len(rows))]

    def predictions(self, answer: Answer) -> list[Prediction]:
        """Name the classes of an answer, sample by sample.

        Args:
            answer: The result of :meth:`infer`.
        """
        probabilities = softmax(answer.logits)
        classes = probabilities.argmax(axis=-1)
        best = probabilities[np.arange(len(classes)), classes]
        labels, depth = self.manifest.labels, self.manifest.depth
        return [
            Prediction(labels[k], round(p, 6), layer, depth - layer)
            for k, p, layer in zip(classes.tolist(), best.tolist(), answer.layers.tolist(), strict=True)
        ]

    def _advance(self, index: int, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run a segment; return its logits and the inputs of the later ones."""
        outputs = self._sessions[index].run(values)
        logits = outputs.pop(LOGITS)
        if not np.isfinite(logits).all():
            layer = self.manifest.exit_layers[index]
            raise CheckpointError(
                f"{self.folder}: logits of the exit at layer {layer} are not finite; export the model again, and check its "
                "scores"
            )
        return logits, {**{name: values[name] for name in self._later[index]}, **outputs}

    def _checked(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The model's inputs of a batch."""
        for name in sorted(self._inputs - batch.keys()):
            raise DataError(f"the batch has no {name}; the model takes {', '.join(sorted(self._inputs))}")
        values = {name: np.asarray(batch[name]) for name in sorted(self._inputs)}
        sizes = {len(value) if value.ndim else 0 for value in values.values()}
        if sizes == {0}:
            raise DataError("the batch is empty; give at least one sample")
        if len(sizes) > 1:
            raise DataError(f"the inputs of the batch have different numbers of samples: {sorted(sizes)}")
        limit = self.manifest.max_length
        if self.manifest.kind == "texts" and values["input_ids"].shape[1:] > (limit,):
            raise DataError(f"the batch has {values['input_ids'].shape[1]} tokens per sample; the model takes {limit}")
        return values
