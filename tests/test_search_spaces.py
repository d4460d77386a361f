"""Every shipped search space loads, and its header states the grid and the cost that the code computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leebert.data.synthetic import ROWS, demo_task
from leebert.data.tasks import OwnTask
from tune.space import SweepSpec, load_space, resolved_yaml

FOLDER = Path(__file__).parent.parent / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))
PAPER = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
#: Table 1, ALBERT-base, LeeBERT (LAE, CLO-v2) on dev.
DEV = {"cola": 57.8, "mnli": 85.4, "mrpc": 89.7, "qnli": 89.7, "qqp": 90.2, "rte": 76.8, "sst2": 91.8}
COST = re.compile(
    r"(\d+) configurations × (\d+) runs?.*? × (\d+) epochs = ([\d,]+) θ updates on ([\d,]+) training samples"
)


def header(path: Path) -> str:
    """The comment at the top, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:end])


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_the_folder_has_the_papers_tasks_and_three_small_ones() -> None:
    assert {path.stem for path in FILES} >= {*PAPER, "mrpc_small", "sst2_small", "demo"}


def test_header_states_the_command(path: Path) -> None:
    assert f"leebert-tune sweep search_spaces/{path.name}" in header(path)


def test_header_states_the_cost(path: Path) -> None:
    spec = load_space(path)
    stated = COST.search(header(path))
    assert stated, "no cost in the header"
    size, cells, epochs, updates, rows = (int(number.replace(",", "")) for number in stated.groups())
    assert (size, cells, epochs) == (spec.size, len(spec.cells()), spec.max_epochs)
    assert updates == spec.theta_updates(rows)
    assert "That is an estimate: it assumes" in header(path) or "measured once" in header(path)


def test_header_keeps_the_papers_score_apart(path: Path) -> None:
    text = header(path)
    assert "another quantity" in text or "The paper has no score for this task" in text
    if path.stem in PAPER:
        assert f"{DEV[path.stem]} % on the development split, exiting at patience 4" in text


def test_the_demos_data_are_the_ones_that_its_file_declares() -> None:
    stated = COST.search(header(FOLDER / "demo.yaml"))
    assert stated
    assert int(stated[5].replace(",", "")) == ROWS
    assert load_space(FOLDER / "demo.yaml").task == demo_task("demo")


def test_resolved_file_reads_back_equal(path: Path, tmp_path: Path) -> None:
    spec = load_space(path)
    (tmp_path / path.name).write_text(resolved_yaml(spec), encoding="utf-8")
    assert load_space(tmp_path / path.name) == spec


@pytest.mark.parametrize("task", PAPER)
def test_the_papers_grid(task: str) -> None:
    spec = load_space(FOLDER / f"{task}.yaml")
    assert spec.task == task
    assert {option: values.plain() for option, values in spec.space.items()} == {
        "batch_size": [16, 32, 128],
        "lr_theta": [1e-5, 2e-5, 3e-5, 5e-5],
        "lr_omega": [1e-5, 1e-4, 1e-3, 5e-3],
        "cycle_length": [2, 4, 8],
    }
    assert spec.size == 348
    assert spec.folds == (1 if task in ("mnli", "qqp") else 5)
    assert load_space(FOLDER / f"{task}.yaml", ["algorithms=[clo-v2]"]).size == 144


def test_readme_names_every_key() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in OwnTask.model_fields:
        assert re.search(rf"\b{name}\b", readme), f"task.{name}"
    for name, field in SweepSpec.model_fields.items():
        assert f"`{name}`" in readme or f"`{name}." in readme, name
        for below in getattr(field.annotation, "model_fields", ()):
            mentioned = any(form in readme for form in (f"`{below}`", f"`{name}.{below}`", f"{below}, ", f", {below}"))
            assert mentioned, f"{name}.{below}"


def test_readme_examples_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    whole, task = blocks
    file = tmp_path / "space.yaml"
    file.write_text(whole, encoding="utf-8")
    assert load_space(file).planned == 40
    file.write_text(task + "backbone: x\nspace: {batch_size: 8}\n", encoding="utf-8")
    assert load_space(file).task_name == "claims"
