"""A saved model as a service answers with it: a table of texts and a few parameters in, a table of answers out."""

from __future__ import annotations

import logging
import numbers
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leebert.config import ExitConfig, Precision, problems
from leebert.data.readers import Columns
from leebert.data.texts import bad_text, is_text
from leebert.errors import ConfigError, DataError, nearest
from leebert.exits import CRITERIA, FULL_MODEL
from leebert.exits.checks import check_criterion, check_threshold, choosable
from leebert.exits.replay import make_criterion
from leebert.operating_point import in_words, saved_tradeoffs, within_loss
from leebert.predict import CHUNK, answer_encoded, encode
from leebert.runtime import Runtime
from leebert.thresholds import attainable, check_speed_up, look_up, read_curves

log = logging.getLogger(__name__)

#: Parameters of a request: name → (type as MLflow calls it, default, what it does). None: not asked for.
PARAMETERS: dict[str, tuple[str, Any, str]] = {
    "criterion": ("string", None, "the exit criterion; the model's own by default"),
    "strategy": ("string", None, "deprecated, the former name of criterion"),
    "threshold": ("double", None, "its threshold; the model's own by default, where the criterion is"),
    "patience": ("long", None, "how many exits in a row, for criteria that count them; as the threshold"),
    "speed_up": ("double", None, "instead of a threshold: M / mean layers, by the model's curves"),
    "max_loss": ("double", None, "instead of a threshold: as early as costs at most so many points, by those curves"),
    "truncate": ("boolean", False, "cut texts that are too long, instead of refusing them"),
    "batch_size": ("long", 32, "rows that run through the layers together"),
}

#: Columns of an answer, with their types as MLflow calls them; `row` is the row's number in the request, from 0.
ANSWER = {"row": "long", "label": "string", "probability": "double", "exit_layer": "long", "layers_saved": "long"}

_SHOWN = 3  # rows that an error names


class Served:
    """A model of a folder, ready to answer, in the precision that it was trained in unless another is given.

    Requests take turns, by chunks of rows: a tokenizer's truncation is shared state.
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

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Number, label, probability, exit layer (from 1) and layers saved for each row of a pandas DataFrame of texts.

        `params` are those of :data:`PARAMETERS`; None stands for a parameter's default. Raises DataError for wrong
        columns, empty texts and, unless `truncate` is set, for texts longer than the model takes; ConfigError for an
        unknown parameter, a criterion or threshold that the model does not have, and a speed-up that no threshold gives.
        """
        import pandas as pd

        asked = self._asked(params or {})
        exits = self.exits(asked)
        criterion = make_criterion(
            exits.criterion, exits.threshold, exits.patience, num_exits=self.model.num_exits,
            num_classes=self.model.config.num_labels,
        )  # fmt: skip
        # All rows are tokenised before the first is answered: whatever is wrong with one shows at once.
        chunks = self._encoded(self._texts(data), truncate=asked["truncate"])
        found: list[dict[str, Any]] = []
        for number, encoded in enumerate(chunks):
            with self._alone, torch.inference_mode():
                found += answer_encoded(
                    self.model, self.tokenizer, encoded, criterion, self.runtime, asked["batch_size"], number * CHUNK
                )
        if len(found) != len(data):
            raise DataError(f"{len(found)} answers to {len(data)} rows; report this as a fault of leebert")
        table = pd.DataFrame(found, columns=["label", "probability", "exit_layer"], index=data.index)
        table.insert(0, "row", range(len(table)))
        table["layers_saved"] = self.model.depth - table["exit_layer"]
        return table

    def exits(self, asked: Mapping[str, Any]) -> ExitConfig:
        """The exit criterion that a request asks for; the model's own where it asks for none."""
        config = self.model.config
        criterion, threshold, patience = (asked.get(name) for name in ("criterion", "threshold", "patience"))
        values = config.exits.overridden(criterion=criterion, threshold=threshold, patience=patience)
        given = [name for name in ("threshold", "speed_up", "max_loss") if asked.get(name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)}: give one of them")
        if (speed_up := asked.get("speed_up")) is not None:
            return self._of_speed_up(values["criterion"], speed_up, values.get("patience"))
        if (max_loss := asked.get("max_loss")) is not None:
            return self._of_max_loss(values["criterion"], max_loss, values.get("patience"))
        try:
            exits = ExitConfig(**values)
        except ValueError as error:
            raise ConfigError("; ".join(problems(error, ExitConfig))) from None  # type: ignore[arg-type]
        check_threshold(exits, self.model.num_exits, config.num_labels)
        return exits

    def _of_speed_up(self, name: str, speed_up: float, patience: int | None) -> ExitConfig:
        if not self.curves:
            raise ConfigError(
                "speed_up: this model has no curves: give a threshold, or make some by `leebert calibrate`"
            )
        m = self.model.num_exits
        check_criterion(name, patience, m)
        counted = choosable(name).counted(patience, m)
        layers, depth = self.model.exit_layers, self.model.depth
        chosen = look_up(self.curves, name, check_speed_up(speed_up, layers, depth), counted)
        if speed_up == attainable(layers, depth)[0]:
            return ExitConfig(criterion=FULL_MODEL)  # confidence at 1 includes probabilities that float32 rounds to 1
        if not chosen.near and not CRITERIA[name].whole:
            raise ConfigError(f"speed_up: {chosen.shortfall}; ask for that, or give a threshold")
        if chosen.near:
            log.info("speed_up %g: %s at %.6g, %.2f expected", speed_up, name, chosen.threshold, chosen.reached)
        else:
            log.warning("speed_up: %s", chosen.shortfall)
        return chosen.exits

    def _of_max_loss(self, name: str, max_loss: float, patience: int | None) -> ExitConfig:
        if not 0 <= max_loss <= 100:
            raise ConfigError(f"max_loss {max_loss:g}: points of score, between 0 and 100")
        check_criterion(name, patience, self.model.num_exits)
        counted = choosable(name).counted(patience, self.model.num_exits)
        curves = saved_tradeoffs(self.validated, self.model.exit_layers, self.model.depth)
        chosen = within_loss(curves, name, counted, max_loss / 100)
        log.info("max_loss %g: %s", max_loss, in_words(chosen))
        return chosen.exits

    @staticmethod
    def _asked(params: Mapping[str, Any]) -> dict[str, Any]:
        for name in params:
            if name not in PARAMETERS:
                known = ", ".join(PARAMETERS)
                raise ConfigError(f"unknown parameter {name!r}{nearest(name, PARAMETERS)}; there are: {known}")
        given = {name: value for name, value in params.items() if value is not None}
        if "strategy" in given:
            log.warning("parameter strategy is deprecated and will be removed in the next release: use criterion")
            if "criterion" in given:
                raise ConfigError("criterion and strategy name the same: give criterion alone")
            given["criterion"] = given.pop("strategy")
        asked = {name: default for name, (_, default, _) in PARAMETERS.items()} | given
        if not isinstance(size := asked["batch_size"], int) or size < 1:
            raise ConfigError(f"batch_size {size}: a whole number of at least 1")
        for name in ("speed_up", "max_loss"):
            if asked[name] is not None and not isinstance(asked[name], numbers.Real):
                raise ConfigError(f"{name} {asked[name]!r}: a number")
        return asked

    def _texts(self, data: Any) -> list[tuple[str, ...]]:
        import pandas as pd

        header = [str(name) for name in data.columns]
        at = self.columns.find(header, "the request")
        names = tuple(header[i] for i in at)
        texts = []
        for number, values in enumerate(zip(*(data.iloc[:, i] for i in at), strict=True)):
            for name, value in zip(names, values, strict=True):
                if not is_text(value):
                    # A table holds NaN, or its own NA, where a request has null.
                    null = pd.api.types.is_scalar(value) and pd.isna(value)
                    raise bad_text(f"row {number}", name, None if null else value)
            texts.append(values)
        return texts

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
            more = f" and {len(long) - _SHOWN} more rows are too long" if len(long) > _SHOWN else ""
            raise DataError(
                f"the model takes at most {limit} tokens, {shown}{more}; shorten, or send truncate: true to have them cut"
            )
        return chunks


def text_names(task: Any) -> tuple[tuple[str, ...], ...]:
    """For each text column of a model's requests the names that it may have: the hub's, then the release's."""
    from leebert.data.tasks import get_task

    return tuple(names[::-1] for names in get_task(task).text_names) if task else (("text",),)


def text_columns(task: Any) -> tuple[str, ...]:
    """The columns that a model's requests have: its task's texts by their names on the hub; `text` without a task."""
    return tuple(names[0] for names in text_names(task))
