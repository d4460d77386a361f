"""Read a best file: its contents, whether it was edited, and the validation logits in the file beside it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import parse
from leebert.errors import ConfigError, DataError
from leebert.evaluate import RecordedLogits
from leebert.outside import refuse_missing
from leebert.provenance import digest_of
from leebert.recipe import RunConfig
from leebert.yaml import load_yaml
from tune.store import logits

#: Keys of the section `found` that are needed to reproduce the score.
_NEEDED = (
    "digest",
    "configuration",
    "cells",
    "score_mean",
    "folds",
    "data_fingerprint",
    "backbone",
    "versions",
    "code",
)


@dataclasses.dataclass(frozen=True)
class CellLogits:
    """The logits of all exits on one cell's validation fold, at its best epoch.

    Attributes:
        seed: The cell's seed.
        fold: Its validation fold, from 0.
        held_out: Logits (M, N, K) and labels (N,).
        rows: The samples' ids, (N,).
    """

    seed: int
    fold: int
    held_out: RecordedLogits
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class BestFile:
    """A best file.

    Attributes:
        path: The file.
        config: The run that it describes.
        found: Its section `found`: the sweep, the configuration, its cells and scores, and what these depend on.
    """

    path: Path
    config: RunConfig
    found: dict[str, Any]

    @property
    def task_name(self) -> str:
        task = self.config.task
        return task if isinstance(task, str) else str(task["name"])

    def moved(self, data_dir: str | None = None, backbone: str | None = None) -> BestFile:
        """Return the same with data and backbone at other places; refit and verify check that they are the same ones.

        Args:
            data_dir: The data directory; None keeps the file's.
            backbone: The backbone's id or folder; None keeps the file's.
        """
        data = self.config.data.model_copy(update={"dir": data_dir} if data_dir else {})
        model = self.config.model.model_copy(update={"backbone": backbone} if backbone else {})
        return dataclasses.replace(self, config=self.config.model_copy(update={"data": data, "model": model}))

    def logits(self) -> list[CellLogits]:
        """Read the validation logits of its cells.

        Raises:
            DataError: Their file is missing, or is not the one that the best file was written with.
        """
        named = self.found.get("held_out")
        if not named:
            raise DataError(f"{self.path}: names no file of validation logits; rewrite it by: {self._resume_advice()}")
        path = self.path.with_name(Path(str(named["file"])).name)
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; {self.path} needs it: restore it, or rewrite both by: {self._resume_advice()}"
            )
        if digest_of(path) != named["digest"]:
            raise DataError(
                f"{path}: not the file that {self.path} was written with (its digest differs); rewrite both by: "
                f"{self._resume_advice()}"
            )
        return load_logits(path)

    def _resume_advice(self) -> str:
        return _resume_advice(self.found, self.path)


def read_best(path: Path) -> BestFile:
    """Read a best file that is unchanged since it was written.

    The paths of data, backbone and a task's files and the exit criterion may be edited, since the validation score does
    not depend on them. (`leebert train` uses the exit criterion; a refit chooses its own.)

    Args:
        path: The file.

    Raises:
        ConfigError: It is missing, is no best file, or was edited.
    """
    values = load_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("found"), dict):
        raise ConfigError(f"{path}: not a best file (no section `found`); write one by: leebert-tune best NAME")
    for section in ("data", "exits"):
        if values.get(section) is None:  # left empty
            values[section] = {}
    try:
        values = json.loads(json.dumps(values, default=_date))
    except TypeError as error:
        raise ConfigError(f"{path}: {error}; quote it") from None
    section = values["found"]
    advice = _resume_advice(section, path)
    if missing := [key for key in _NEEDED if key not in section]:
        raise ConfigError(
            f"{path}: found.{missing[0]} is missing, so the score can't be reproduced; rewrite the file by: {advice}"
        )
    refuse_missing(section.get("parts"), str(path))
    config = parse(RunConfig, values, str(path))
    if section["digest"] != content_digest(values):
        raise ConfigError(f"{path}: edited after it was written (its digest differs); rewrite it by: {advice}")
    return BestFile(path, config, section)


def _date(value: Any) -> str:
    """Write a date as text: YAML reads a name such as 2026-01-31 as a date."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"{value!r} is not a value that a best file may hold")


def _resume_advice(section: Mapping[str, Any], path: Path) -> str:
    """Return the command that wrote a best file, as far as its section `found` records it."""
    sweeps = section.get("sweeps") or {section.get("sweep", "NAME"): None}
    objective = section.get("objective") or {}
    objective_note = (
        f" (chosen by: {objective['name']})" if objective.get("name", "mean over exits") != "mean over exits" else ""
    )
    return f"leebert-tune best {' '.join(map(str, sweeps))} --out {path.parent}{objective_note}"


def content_digest(values: Mapping[str, Any]) -> str:
    """Return the digest of a best file's contents, without paths of data and backbone and without the exit criterion."""
    plain = json.loads(json.dumps(values))
    plain.get("found", {}).pop("digest", None)
    plain.pop("exits", None)
    plain["data"] = {key: value for key, value in (plain.get("data") or {}).items() if key != "dir"}
    plain.get("model", {}).pop("backbone", None)
    if isinstance(plain.get("task"), dict):
        plain["task"].pop("files", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def save_logits(path: Path, cells: Sequence[CellLogits]) -> dict[str, Any]:
    """Write the validation logits of a configuration's cells atomically, one row per sample: seed, fold, id, label, M×K logits.

    Args:
        path: The Parquet file.
        cells: The cells, all with the same exits.

    Returns:
        The entry of a best file: `file` (its name), `digest` and `rows`.
    """
    import pyarrow as pa

    sizes = [len(c.rows) for c in cells]
    columns = {
        "seed": pa.array(np.repeat([c.seed for c in cells], sizes), pa.int64()),
        "fold": pa.array(np.repeat([c.fold for c in cells], sizes), pa.int32()),
        "row": pa.array(np.concatenate([c.rows for c in cells]), pa.int64()),
        "label": pa.array(np.concatenate([c.held_out.labels for c in cells]), pa.int64()),
    }
    first = cells[0].held_out  # a configuration's cells have the same exits, after the same layers
    logits.write(path, columns, np.concatenate([c.held_out.logits for c in cells], axis=1), first.layers, first.depth)
    return {"file": path.name, "digest": digest_of(path), "rows": sum(sizes)}


def load_logits(path: Path) -> list[CellLogits]:
    """Read the cells' logits from a file of :func:`save_logits`."""
    columns, values, layers = logits.read(path)
    seeds, folds = columns["seed"], columns["fold"]
    cells = []
    for seed, fold in sorted({(int(s), int(f)) for s, f in zip(seeds, folds, strict=True)}):
        at = (seeds == seed) & (folds == fold)
        held_out = RecordedLogits(np.ascontiguousarray(values[:, at]), columns["label"][at], *layers)
        cells.append(CellLogits(seed, fold, held_out, columns["row"][at]))
    return cells


def pooled(cells: Sequence[CellLogits]) -> RecordedLogits:
    """Join the validation samples of all cells: logits (M, ΣN, K); a sample counts once per seed."""
    labels = [c.held_out.labels for c in cells]
    return RecordedLogits(
        np.concatenate([c.held_out.logits for c in cells], axis=1),
        np.concatenate([part for part in labels if part is not None]),
        cells[0].held_out.layers,
        cells[0].held_out.depth,
    )
