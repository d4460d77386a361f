"""Load saved early-exit models: safetensors and a config.json, whose `model_type` selects the class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from transformers import PreTrainedModel

from leebert.errors import CheckpointError
from leebert.files import parse_json

SavedModel = TypeVar("SavedModel", bound=PreTrainedModel)


def model_type(folder: str | Path) -> str | None:
    """Read `model_type` from a folder's config.json. Raises CheckpointError if the file can't be read."""
    config_file = Path(folder) / "config.json"
    try:
        values = parse_json(config_file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file} can't be read: {error}") from None
    return values.get("model_type") if isinstance(values, dict) else None


def load_saved(folder: str | Path, classes: Mapping[str, type[SavedModel]]) -> SavedModel:
    """Load the model in a folder with the class of its type, without hub and pickles.

    Raises:
        CheckpointError: The folder is damaged, or holds no model of these classes.
    """
    kind = model_type(folder)
    if kind is None or kind not in classes:
        if kind and kind.startswith("leebert"):
            raise CheckpointError(
                f"{folder} holds a {kind!r} model, where one of type {', '.join(classes)} is expected"
            )
        content = f"a {kind!r} model, not an early-exit one" if kind else "no early-exit model"
        raise CheckpointError(f"{folder} holds {content}; train one with it as --backbone")
    model: SavedModel
    try:
        model, loading = classes[kind].from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the model in {folder} is damaged: {str(error).strip().splitlines()[0]}") from None
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(
            f"the model in {folder} is damaged: {len(missing)} weights are missing, such as {missing[0]}"
        )
    return model
