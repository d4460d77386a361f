"""Reading a best file back: what it holds, whether it was edited, and the held-out logits that lie beside it."""

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
from leebert.evaluate import HeldOut
from leebert.outside import refuse_missing
from leebert.provenance import digest_of
from leebert.recipe import RunConfig
from leebert.yaml import load_yaml
from tune.store import logits

#: What a best file must hold for its score to be found again.
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
    """What all exits of one cell said of the rows held out, at its best epoch; `rows` (N,) are their ids."""

    seed: int
    fold: int
    held_out: HeldOut
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class BestFile:
    """A best file as it was written: the run that it describes, and how it was found."""

    path: Path
    config: RunConfig
    found: dict[str, Any]

    @property
    def task_name(self) -> str:
        task = self.config.task
        return task if isinstance(task, str) else str(task["name"])

    def moved(self, data_dir: str | None = None, backbone: str | None = None) -> BestFile:
        """The same with data and backbone at other places; that they are the same ones is checked where they are read."""
        data = self.config.data.model_copy(update={"dir": data_dir} if data_dir else {})
        model = self.config.model.model_copy(update={"backbone": backbone} if backbone else {})
        return dataclasses.replace(self, config=self.config.model_copy(update={"data": data, "model": model}))

    def logits(self) -> list[CellLogits]:
        """The held-out logits of its cells. Raises DataError where their file is missing or another one."""
        named = self.found.get("held_out")
        if not named:
            raise DataError(f"{self.path}: it names no held-out logits; write it anew by: {self._again()}")
        path = self.path.with_name(Path(str(named["file"])).name)
        if not path.is_file():
            raise DataError(f"{path}: no such file; it belongs to {self.path}: put it back, or {self._again()}")
        if digest_of(path) != named["digest"]:
            raise DataError(
                f"{path}: not the file that {self.path} was written with (its digest differs); {self._again()}"
            )
        return load_logits(path)

    def _again(self) -> str:
        return _again(self.found, self.path)


def read_best(path: Path) -> BestFile:
    """A best file, unchanged since it was written. Raises ConfigError for one that is missing, foreign or edited.

    Where data, backbone and a task's files lie, and the exit criterion, may be changed by hand: none decides the score. (The
    exit criterion is `leebert train`'s; a refit chooses its own.)
    """
    values = load_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("found"), dict):
        raise ConfigError(
            f"{path}: no best file (it has no section `found`); one is written by: leebert-tune best NAME"
        )
    for section in ("data", "exits"):
        if values.get(section) is None:  # left empty
            values[section] = {}
    try:
        values = json.loads(json.dumps(values, default=_date))
    except TypeError as error:
        raise ConfigError(f"{path}: {error}; put it in quotes") from None
    found = values["found"]
    again = _again(found, path)
    if missing := [key for key in _NEEDED if key not in found]:
        raise ConfigError(
            f"{path}: found.{missing[0]} is missing, so it can't be reproduced; write it anew by: {again}"
        )
    refuse_missing(found.get("parts"), str(path))
    config = parse(RunConfig, values, str(path))
    if found["digest"] != content_digest(values):
        raise ConfigError(f"{path}: it was edited after it was written (its digest differs); write it anew by: {again}")
    return BestFile(path, config, found)


def _date(value: Any) -> str:
    if isinstance(value, datetime.date):  # which is how YAML reads a name such as 2026-01-31
        return value.isoformat()
    raise TypeError(f"{value!r} is no value that a best file holds")


def _again(found: Mapping[str, Any], path: Path) -> str:
    """The command that wrote a best file, as far as the file tells."""
    sweeps = found.get("sweeps") or {found.get("sweep", "NAME"): None}
    objective = found.get("objective") or {}
    other = (
        f" (chosen by: {objective['name']})" if objective.get("name", "mean over exits") != "mean over exits" else ""
    )
    return f"leebert-tune best {' '.join(map(str, sweeps))} --out {path.parent}{other}"


def content_digest(values: Mapping[str, Any]) -> str:
    """A digest of a best file's contents, but for itself, for where data and backbone lie, and for the exit criterion."""
    plain = json.loads(json.dumps(values))
    plain.get("found", {}).pop("digest", None)
    plain.pop("exits", None)
    plain["data"] = {key: value for key, value in (plain.get("data") or {}).items() if key != "dir"}
    plain.get("model", {}).pop("backbone", None)
    if isinstance(plain.get("task"), dict):
        plain["task"].pop("files", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def save_logits(path: Path, cells: Sequence[CellLogits]) -> dict[str, Any]:
    """Write seed, fold, row id, label and M×K logits of every held-out row, atomically; returns how a best file names it."""
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
    """Every cell's logits from a file of :func:`save_logits`."""
    columns, values, layers = logits.read(path)
    seeds, folds = columns["seed"], columns["fold"]
    cells = []
    for seed, fold in sorted({(int(s), int(f)) for s, f in zip(seeds, folds, strict=True)}):
        at = (seeds == seed) & (folds == fold)
        held_out = HeldOut(np.ascontiguousarray(values[:, at]), columns["label"][at], *layers)
        cells.append(CellLogits(seed, fold, held_out, columns["row"][at]))
    return cells


def pooled(cells: Sequence[CellLogits]) -> HeldOut:
    """All cells' held-out rows as one: (M, ΣN, K). A row counts once per seed."""
    labels = [c.held_out.labels for c in cells]
    return HeldOut(
        np.concatenate([c.held_out.logits for c in cells], axis=1),
        np.concatenate([part for part in labels if part is not None]),
        cells[0].held_out.layers,
        cells[0].held_out.depth,
    )
