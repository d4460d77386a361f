"""A best file of a real sweep of a small text task, made once per test session."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from encoders import save_backbone, text_rows, write_task

from leebert.yaml import dump_yaml

LAYERS = 4


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
def best_place(tmp_path_factory: pytest.TempPathFactory, cli: Any, mlflow_server: Any, ray_up: str) -> BestPlace:
    folder = tmp_path_factory.mktemp("best_file")
    save_backbone(folder / "backbone", layers=LAYERS)
    task = write_task(folder / "data", n=240)
    (folder / "data" / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in text_rows(200, 1)))
    space = {
        "task": task, "backbone": str(folder / "backbone"), "max_length": 32, "algorithms": ["clo-v2", "blo"],
        "space": {"lr_theta": [1e-3]}, "folds": 2, "seeds": 2,
        "training": {"batch_size": 8, "max_epochs": 3, "precision": "fp32"},
    }  # fmt: skip
    (folder / "space.yaml").write_text(dump_yaml(space))
    storage = ("--storage", folder / "sweeps")
    ran = cli(
        "leebert-tune", "sweep", folder / "space.yaml", "--name", "toy", *storage, "--tracking-uri", mlflow_server.url
    )
    assert ran.code == 0, ran.err
    ran = cli("leebert-tune", "best", "toy", "--out", folder / "best", *storage)
    assert ran.code == 0, ran.err
    return BestPlace(folder)
