"""Copy a refit's model for MLflow: only listed files, and in them no path of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leebert.thresholds import FILE

#: A saved model's files, and those of its tokenizer, of which each tokenizer has some.
_DESCRIBED = ("training.json", "evaluation.json", FILE, "README.md")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def shipped(folder: Path, to: Path) -> Path:
    """Copy a saved model's files, without leftovers of training and other files.

    Args:
        folder: The saved model's folder.
        to: The new folder.

    Returns:
        `to`.
    """
    to.mkdir(parents=True)
    weights = [path.name for path in sorted(folder.glob("model*.safetensors*"))]
    for name in ("config.json", *weights, *_TOKENIZER, *_DESCRIBED):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)
    _rewrite(to / "config.json", _model_config)
    _rewrite(to / "training.json", lambda summary: {**summary, "config": without_places(summary["config"])})
    return to


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with the names of files, data and backbone, but without their paths."""
    values = dict(values)
    if values.get("data"):
        values["data"] = {key: value for key, value in values["data"].items() if key != "dir"}
    if values.get("model"):
        values["model"] = {**values["model"], "backbone": backbone_name(values["model"]["backbone"])}
    section = values.get("found")
    if section and isinstance(section.get("backbone"), dict) and "name" in section["backbone"]:
        identity = {**section["backbone"], "name": backbone_name(section["backbone"]["name"])}
        values["found"] = {**section, "backbone": identity}
    return _with_file_names(values)


def backbone_name(spec: str) -> str:
    """Return a backbone's name without its path: ids of hub and packages unchanged, of a folder the last part."""
    local = spec.startswith((".", "/", "~")) or Path(spec).exists()
    return Path(spec).resolve().name if local and not spec.startswith("package:") else spec


def _with_file_names(values: dict[str, Any]) -> dict[str, Any]:
    task = values.get("task")
    if isinstance(task, dict) and task.get("files"):
        values["task"] = {**task, "files": {split: Path(path).name for split, path in task["files"].items()}}
    return values


def _model_config(values: dict[str, Any]) -> dict[str, Any]:
    described = {key: value for key, value in values["backbone_config"].items() if key != "_name_or_path"}
    return _with_file_names({**values, "backbone_config": described})


def _rewrite(path: Path, change: Any) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8"))), indent=1), encoding="utf-8")
