"""A best file of a real sweep of a small text task, made once per test session."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from encoders import graded_rows, save_backbone, write_task

from leebert.yaml import dump_yaml

LAYERS = 4
ROWS = 600


@dataclasses.dataclass(frozen=True)
class BestPlace:
    """Where it lies: a folder with data/, backbone/, sweeps/toy and best/pairs.yaml."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "best" / "pairs.yaml"

    def copy(self, to: Path) -> Path:
        """A best file of one's own, with what lies beside it."""
        shutil.copytree(self.folder / "best", to)
        return to / "pairs.yaml"


@pytest.fixture(scope="session")
def best_place(tmp_path_factory: pytest.TempPathFactory, cli_without_ray: Any, mlflow_server: Any) -> BestPlace:
    folder = tmp_path_factory.mktemp("best_file")
    save_backbone(folder / "backbone", layers=LAYERS)
    task = write_task(folder / "data")
    for split, rows in (("train", graded_rows(ROWS, 0)), ("dev", graded_rows(400, 1))):
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    space = {
        "task": task, "backbone": str(folder / "backbone"), "max_length": 32, "algorithms": ["clo-v2"],
        "space": {"lr_theta": [6e-3]}, "folds": 3, "seeds": 2,
        "training": {"batch_size": 16, "max_epochs": 4, "precision": "fp32"},
    }  # fmt: skip
    (folder / "space.yaml").write_text(dump_yaml(space))
    storage = ("--storage", folder / "sweeps")
    ran = cli_without_ray(
        "leebert-tune", "sweep", folder / "space.yaml", "--name", "toy", *storage, "--tracking-uri", mlflow_server.url
    )
    assert ran.code == 0, ran.err
    ran = cli_without_ray("leebert-tune", "best", "toy", "--out", folder / "best", *storage)
    assert ran.code == 0, ran.err
    return BestPlace(folder)
