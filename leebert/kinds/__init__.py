"""The kinds of tasks, texts and images: one class each for reading, training, saving and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leebert.data.tasks import AnyTask, any_task
from leebert.kinds.images import Images
from leebert.kinds.kind import Kind
from leebert.kinds.texts import Texts

#: The kinds by name, the `kind` of a task.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (Texts(), Images())}


def kind_of(task: AnyTask | str | Mapping[str, Any]) -> Kind:
    """Look up the kind of a task, of a built-in task's name, or of a declaration. Raises ConfigError for an unknown task."""
    return KINDS[(any_task(task) if isinstance(task, str | Mapping) else task).kind]


def kind_of_model(model: Any) -> Kind:
    """Look up the kind of a loaded early-exit model."""
    return _of_type(model.config.model_type)


def kind_of_saved(folder: str | Path) -> Kind:
    """Look up the kind of the model in a folder. Raises CheckpointError if its config.json can't be read."""
    from leebert.saved import model_type

    return _of_type(model_type(folder))


def _of_type(model_type: str | None) -> Kind:
    # For a folder without an early-exit model, loading it as a model of texts raises the error.
    return next((kind for kind in KINDS.values() if kind.model_type == model_type), KINDS["texts"])
