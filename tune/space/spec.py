"""A checked search space, and values derived from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationInfo, model_validator

from leebert.findings import Findings
from leebert.training_data import DataConfig
from leebert.yaml import dump_yaml
from tune.space.checks import CHECKS
from tune.space.fields import SweepFields


class SweepSpec(SweepFields):
    """A sweep whose keys are valid by themselves and together (`tune.space.checks`)."""

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> SweepSpec:
        broken: frozenset[str] = (info.context or {}).get("broken", frozenset())
        findings = [f for reads, check in CHECKS if not broken.intersection(reads) for f in check(self)]
        if findings:
            raise Findings(findings)
        return self


def resolved_yaml(spec: SweepSpec) -> str:
    """Return a sweep as YAML with defaults and overrides; reading it gives an equal :class:`SweepSpec`."""
    return dump_yaml(spec.model_dump(mode="json", exclude_none=True))


def anchored(spec: SweepSpec) -> SweepSpec:
    """Return the space with absolute paths to its data, so that it can be resumed from any folder.

    Relative files of a user's task are in the data's folder if given, else in the working folder.
    """
    changes: dict[str, Any] = {}
    base = Path(spec.data.dir or ".").expanduser().resolve()
    if isinstance(spec.task, dict) and isinstance(spec.task.get("files"), dict):
        changes["task"] = {**spec.task, "files": {k: str((base / v).resolve()) for k, v in spec.task["files"].items()}}
    if spec.data.dir:
        changes["data"] = spec.data.model_copy(update={"dir": str(base)})
    if Path(spec.backbone).is_dir():
        changes["backbone"] = str(Path(spec.backbone).resolve())
    return spec.model_copy(update=changes)


def data_config(spec: SweepSpec) -> DataConfig:
    """Return the data section of a space as `leebert train` has it."""
    group_by: Any = spec.data.group_by
    if group_by in (("containing",), ("none",)):
        group_by = group_by[0]
    return DataConfig(dir=spec.data.dir, subset=spec.data.subset, group_by=group_by)


def experiment_of(spec: SweepSpec) -> str:
    """Return the name of a space's MLflow experiment."""
    return spec.tracking.experiment or f"leebert-{spec.task_name}"
