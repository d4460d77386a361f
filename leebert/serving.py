"""Serve a saved model of texts: a table of texts and parameters in, a table of predictions out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leebert.config import ExitConfig, Precision, parse
from leebert.data.readers import Columns
from leebert.errors import ConfigError, DataError
from leebert.exits import FULL_MODEL
from leebert.exits.checks import check_criterion, check_threshold, choosable
from leebert.exits.replay import make_criterion
from leebert.operating_point import check_max_loss, in_words, saved_tradeoffs, within_loss
from leebert.predict import CHUNK, encode, majority_warning, predict_encoded
from leebert.request import parameters, texts_of_table
from leebert.runtime import Runtime
from leebert.thresholds import of_request, read_curves

log = logging.getLogger(__name__)

_SHOWN = 3  # the number of rows that an error names


class Served:
    """A loaded model that predicts requests.

    Requests take turns, by chunks of rows, since a tokenizer's truncation is shared state.

    Args:
        folder: The saved model.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32 or bf16; None: the precision of its training.

    Raises:
        CheckpointError: The folder is damaged, or model and tokenizer do not fit.
    """

    def __init__(self, folder: str | Path, device: str = "auto", precision: Precision | None = None) -> None:
        from leebert.kinds.texts import load_text_model

        self.model, self.tokenizer = load_text_model(folder)
        self.columns = Columns(text_names(self.model.config.task), "rename it in the request")
        self.curves = read_curves(Path(folder))
        self.validated = read_curves(Path(folder), validated=True)
        self.runtime = Runtime.of(precision or self.model.config.precision, device)
        self.model.to(self.runtime.device)
        self._alone = threading.Lock()
        if warning := majority_warning(Path(folder)):
            log.warning("%s", warning)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict every row of a table of texts.

        Args:
            data: A pandas DataFrame with the columns of :func:`text_columns`.
            params: Values of :data:`leebert.request.PARAMETERS`; None or a missing key: the default.

        Returns:
            A DataFrame with the columns of :data:`leebert.request.PREDICTION` and the index of `data`; exit layers count from 1.

        Raises:
            DataError: A column is missing, a text is empty or, without `truncate`, too long.
            ConfigError: A parameter is unknown, the model has no such criterion or threshold, or no threshold attains
                the speed-up.
        """
        import pandas as pd

        request = parameters(params)
        exits = self.exits(request)
        criterion = make_criterion(
            exits.criterion, exits.threshold, exits.patience, num_exits=self.model.num_exits,
            num_classes=self.model.config.num_labels,
        )  # fmt: skip
        # Tokenise all rows before the first prediction, so that a bad row is reported at once.
        chunks = self._encoded(texts_of_table(data, self.columns), truncate=request["truncate"])
        predictions: list[dict[str, Any]] = []
        for number, encoded in enumerate(chunks):
            with self._alone, torch.inference_mode():
                predictions += predict_encoded(
                    self.model, self.tokenizer, encoded, criterion, self.runtime, request["batch_size"], number * CHUNK
                )
        if len(predictions) != len(data):
            raise DataError(f"{len(predictions)} predictions for {len(data)} rows; report this as a bug of leebert")
        table = pd.DataFrame(predictions, columns=["label", "probability", "exit_layer"], index=data.index)
        table.insert(0, "row", range(len(table)))
        table["layers_saved"] = self.model.depth - table["exit_layer"]
        return table

    def exits(self, request: Mapping[str, Any]) -> ExitConfig:
        """Select the exit criterion of a request.

        Args:
            request: The request's `params`.

        Returns:
            The criterion; the model's own if the request names none.

        Raises:
            ConfigError: A parameter is invalid, or more than one of threshold, speed_up and max_loss is given.
        """
        config = self.model.config
        criterion, threshold, patience = (request.get(name) for name in ("criterion", "threshold", "patience"))
        values = config.exits.overridden(criterion=criterion, threshold=threshold, patience=patience)
        set_names = [name for name in ("threshold", "speed_up", "max_loss") if request.get(name) is not None]
        if len(set_names) > 1:
            raise ConfigError(f"{' and '.join(set_names)}: give one of them")
        if request.get("latency") is not None:
            raise ConfigError(
                "latency: this model has no measured times; set max_loss or speed_up, or serve its export"
            )
        if (speed_up := request.get("speed_up")) is not None:
            return self._of_speed_up(values["criterion"], speed_up, values.get("patience"))
        if (max_loss := request.get("max_loss")) is not None:
            return self._of_max_loss(values["criterion"], max_loss, values.get("patience"))
        exits = parse(ExitConfig, values, "params")
        check_threshold(exits, self.model.num_exits, config.num_labels)
        return exits

    def _of_speed_up(self, name: str, speed_up: float, patience: int | None) -> ExitConfig:
        if not self.curves:
            raise ConfigError(
                "speed_up: the model's folder has no exits.json; give a threshold, or run `leebert calibrate`"
            )
        m = self.model.num_exits
        check_criterion(name, patience, m)
        counted = choosable(name).counted(patience, m)
        chosen = of_request(self.curves, name, speed_up, counted, self.model.exit_layers, self.model.depth)
        if chosen is None:
            return ExitConfig(criterion=FULL_MODEL)
        if chosen.near:
            log.info(
                "speed_up %g: exit criterion %s, threshold %.6g, expected layer speed-up %.2f",
                speed_up, name, chosen.threshold, chosen.reached,
            )  # fmt: skip
        else:
            log.warning("speed_up: %s", chosen.shortfall)
        return chosen.exits

    def _of_max_loss(self, name: str, max_loss: float, patience: int | None) -> ExitConfig:
        fraction = check_max_loss(max_loss)
        check_criterion(name, patience, self.model.num_exits)
        counted = choosable(name).counted(patience, self.model.num_exits)
        curves = saved_tradeoffs(self.validated, self.model.exit_layers, self.model.depth)
        chosen = within_loss(curves, name, counted, fraction)
        log.info("max_loss %g: %s", max_loss, in_words(chosen))
        return chosen.exits

    def _encoded(self, texts: list[tuple[str, ...]], *, truncate: bool) -> list[Any]:
        limit = self.model.config.max_length
        chunks, long = [], []
        for start in range(0, len(texts), CHUNK):
            with self._alone:
                encoded = encode(self.tokenizer, texts[start : start + CHUNK], limit if truncate else None)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            long += [(start + row, length) for row, length in enumerate(lengths) if length > limit]
            chunks.append(encoded)
        if long:
            shown = ", ".join(f"row {row} has {count}" for row, count in long[:_SHOWN])
            suffix = f" and {len(long) - _SHOWN} more rows are too long" if len(long) > _SHOWN else ""
            raise DataError(
                f"the model takes at most {limit} tokens: {shown}{suffix}; shorten the texts, or set truncate: true"
            )
        return chunks


def text_names(task: Any) -> tuple[tuple[str, ...], ...]:
    """List the accepted names of each text column of a request: the hub's, then the release's.

    Args:
        task: The model's task, a name or a declaration; None: one column `text`.
    """
    from leebert.data.tasks import get_task

    return tuple(names[::-1] for names in get_task(task).text_names) if task else (("text",),)


def text_columns(task: Any) -> tuple[str, ...]:
    """Name the text columns of a request as on the hub; `text` without a task."""
    return tuple(names[0] for names in text_names(task))
