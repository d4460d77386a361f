"""A saved model as a service answers with it: a table of texts and a few parameters in, a table of answers out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leebert.config import ExitConfig, problems
from leebert.errors import ConfigError, DataError
from leebert.exits import make_strategy
from leebert.predict import answers, checked
from leebert.runtime import Runtime
from leebert.thresholds import check_speed_up, look_up, read_curves

#: Parameters of a request: name → (type as MLflow calls it, default, what it does). None: not asked for.
PARAMETERS: dict[str, tuple[str, Any, str]] = {
    "strategy": ("string", None, "the exit rule; the model's own by default"),
    "threshold": ("double", None, "its threshold; the model's own by default, where the rule is"),
    "speed_up": ("double", None, "instead of a threshold: M / mean layers, by the curve of cross-validation"),
    "truncate": ("boolean", False, "cut texts that are too long, instead of refusing them"),
    "batch_size": ("long", 32, "rows that run through the layers together"),
}

#: Columns of an answer, with their types as MLflow calls them.
ANSWER = {"label": "string", "probability": "double", "exit_layer": "long", "layers_saved": "long"}

_SHOWN = 3  # rows that an error names


class Served:
    """A model of a folder, ready to answer. One request at a time: a tokenizer's truncation is shared state."""

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        from leebert.backbone import load_tokenizer
        from leebert.model import load_model

        self.model = load_model(folder).eval()
        self.tokenizer = load_tokenizer(str(folder))
        self.columns = text_columns(self.model.config.task)
        self.curves = read_curves(Path(folder))
        self.runtime = Runtime.of("auto", device)
        self.model.to(self.runtime.device)
        self._alone = threading.Lock()

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Label, probability, exit layer (from 1) and layers saved for each row of a pandas DataFrame of texts.

        `params` are those of :data:`PARAMETERS`. Raises DataError for wrong columns, empty texts and, unless `truncate`
        is set, for texts longer than the model takes; ConfigError for a rule or threshold that does not exist.
        """
        import pandas as pd

        asked = {name: default for name, (_, default, _) in PARAMETERS.items()} | dict(params or {})
        rule = self.rule(asked)
        if asked["batch_size"] < 1:
            raise ConfigError(f"batch_size {asked['batch_size']}: at least 1")
        texts = self._texts(data)
        with self._alone, torch.inference_mode():
            if not asked["truncate"]:
                self._refuse_long(texts)
            strategy = make_strategy(
                rule.strategy, rule.threshold, num_exits=self.model.num_exits, num_classes=self.model.config.num_labels
            )
            found = list(answers(self.model, self.tokenizer, texts, strategy, self.runtime, asked["batch_size"]))
        table = pd.DataFrame(found, columns=["label", "probability", "exit_layer"], index=data.index)
        table["layers_saved"] = self.model.num_exits - table["exit_layer"]
        return table

    def rule(self, asked: Mapping[str, Any]) -> ExitConfig:
        """The exit rule that a request asks for; the model's own where it asks for none."""
        own = self.model.config
        strategy, threshold, speed_up = (asked.get(name) for name in ("strategy", "threshold", "speed_up"))
        name = strategy or own.exit_strategy
        if speed_up is not None:
            if threshold is not None:
                raise ConfigError("threshold and speed_up: give one of the two")
            if not self.curves:
                raise ConfigError("speed_up: this model has no curves of cross-validation: give a threshold")
            threshold = look_up(self.curves, name, check_speed_up(speed_up, self.model.num_exits)).threshold
        elif threshold is None and name == own.exit_strategy:
            threshold = own.exit_threshold
        try:
            return ExitConfig(strategy=name, threshold=threshold)
        except ValueError as error:
            raise ConfigError("; ".join(problems(error, ExitConfig))) from None  # type: ignore[arg-type]

    def _texts(self, data: Any) -> list[tuple[str, ...]]:
        missing = [name for name in self.columns if name not in data.columns]
        if missing:
            there = ", ".join(repr(name) for name in data.columns) or "none"
            raise DataError(f"no column {missing[0]!r}; there are: {there}")
        rows = []
        for number, row in enumerate(zip(*(data[name] for name in self.columns), strict=True)):
            for name, text in zip(self.columns, row, strict=True):
                if not isinstance(text, str):
                    raise DataError(f"row {number}: {name!r} holds {text!r}, not a text")
            rows.append(checked(row, self.columns, f"row {number}"))
        return rows

    def _refuse_long(self, texts: list[tuple[str, ...]]) -> None:
        if not texts:
            return
        limit = self.model.config.max_length
        ids = self.tokenizer(*(list(c) for c in zip(*texts, strict=True)), truncation=False, verbose=False)["input_ids"]
        long = [(row, len(tokens)) for row, tokens in enumerate(ids) if len(tokens) > limit]
        if long:
            shown = ", ".join(f"row {row} has {count}" for row, count in long[:_SHOWN])
            more = f" and {len(long) - _SHOWN} more rows are too long" if len(long) > _SHOWN else ""
            raise DataError(
                f"the model takes at most {limit} tokens, {shown}{more}; shorten, or send truncate: true to have them cut"
            )


def text_columns(task: Any) -> tuple[str, ...]:
    """The columns that a model's requests have: its task's texts, or `text` where it knows no task."""
    from leebert.data.tasks import get_task

    return tuple(get_task(task).text_columns) if task else ("text",)
