"""The table of tasks, and tasks that users declare."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leebert.data.sources import read_split
from leebert.data.tasks import TASKS, OwnTask, get_task, named_or_declared, own_task
from leebert.errors import ConfigError, DataError
from leebert.recipe import RunConfig

OWN: dict[str, Any] = {
    "name": "reviews",
    "files": {"train": "train.csv", "dev": "dev.jsonl", "test": "test.tsv"},
    "text": ["title", "body"],
    "label": "stars",
    "labels": ["bad", "good"],
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_every_task_is_consistent(task: Any) -> None:
    assert 1 <= len(task.text_columns) <= 2
    assert len(set(task.label_names)) == task.num_labels >= 2
    assert task.metric != "acc_f1" or task.num_labels == 2
    assert set(task.group_by) <= set(task.text_columns)
    assert {"train", *task.eval_splits} <= set(task.splits)
    assert task.hub.repo == "nyu-mll/glue"
    assert set(task.hub.splits) == set(task.splits)
    assert len(task.hub.text_columns) == len(task.text_columns)
    assert pickle.loads(pickle.dumps(task)) == task


def test_the_seven_tasks_of_the_paper_and_their_metrics() -> None:
    assert {name: task.metric for name, task in TASKS.items()} == {
        "cola": "matthews",
        "mnli": "accuracy",
        "mrpc": "acc_f1",
        "qnli": "accuracy",
        "qqp": "acc_f1",
        "rte": "accuracy",
        "sst2": "accuracy",
    }


def test_label_ids_follow_the_hub() -> None:
    assert TASKS["mnli"].label_ids()["contradiction"] == 2
    assert TASKS["rte"].label_ids()["not_entailment"] == TASKS["qnli"].label_ids()["not_entailment"] == 1
    assert TASKS["mrpc"].label_ids()["1"] == TASKS["mrpc"].label_ids()["equivalent"] == 1
    assert TASKS["mnli"].hub is not None
    assert TASKS["mnli"].hub.splits["dev_mismatched"] == "validation_mismatched"


def test_labels_that_are_numbers_keep_their_names_only() -> None:
    task = own_task({**OWN, "labels": [1, 2, 3], "files": {"train": "a.csv"}})
    assert task.label_ids() == {"1": 0, "2": 1, "3": 2}


def test_an_own_task_with_files(tmp_path: Path) -> None:
    task = own_task(OWN, tmp_path)
    assert task.splits["dev"] == str(tmp_path / "dev.jsonl")
    assert (task.text_columns, task.label_names, task.metric) == (("title", "body"), ("bad", "good"), "accuracy")
    assert task.group_by == ("title", "body")
    assert task.eval_splits == ("dev",)
    assert task.hub is None
    assert get_task(OwnTask(**OWN), tmp_path) == get_task(OWN, tmp_path) == task


def test_an_own_task_on_the_hub() -> None:
    spec = {**OWN, "hub": "me/reviews@v1.2", "hub_config": "plain", "text": "body", "group_by": "containing"}
    del spec["files"]
    task = own_task(spec)
    assert task.hub is not None
    assert (task.hub.repo, task.hub.revision, task.hub.config) == ("me/reviews", "v1.2", "plain")
    assert task.hub.splits == {"train": "train", "dev": "validation"}
    assert task.group_by == "containing"
    assert own_task({**spec, "group_by": "none"}).group_by == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lable": "x"}, "lable: 'x': unknown key (did you mean 'label'?)"),
        ({"name": "mrpc"}, "'mrpc' is a built-in task"),
        ({"name": "a/b"}, "name: "),
        ({"files": None}, "give either files or hub"),
        ({"hub": "me/data"}, "give either files or hub"),
        ({"files": {"dev": "dev.csv"}}, "no split 'train'; the splits are dev"),
        (
            {"files": {"train": "train.xlsx"}},
            "files.train: 'train.xlsx': unknown file type; the suffix must be one of .tsv, .csv, .jsonl, .json, .parquet",
        ),
        ({"text": []}, "text: "),
        ({"text": ["a", "b", "c"]}, "text: "),
        ({"text": ["a", "a"]}, "duplicate column 'a'"),
        ({"label": "title"}, "duplicate column 'title'"),
        ({"labels": ["x", "x"]}, "duplicate label 'x'"),
        ({"labels": ["x"]}, "labels: "),
        ({"labels": ["x", "y", "z"], "metric": "acc_f1"}, "acc_f1 needs 2 labels, not 3"),
        ({"metric": "acuracy"}, "metric: "),
        ({"group_by": "containing"}, "containing is for tasks of one text column"),
        ({"group_by": ["titel"]}, "'titel' is not a text column; these are title, body (did you mean 'title'?)"),
    ],
)
def test_a_wrong_declaration_is_reported_with_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        own_task({**OWN, **change})


def test_all_errors_of_a_declaration_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        own_task({**OWN, "files": {"train": "a.xls"}, "labels": ["x", "x"], "group_by": ["z"]})
    assert all(part in str(caught.value) for part in ("a.xls", "duplicate label 'x'", "'z' is not a text column"))


@pytest.mark.parametrize(("name", "near"), [("qnl", "qnli"), ("MRCP", "mrpc"), ("mnli-m", "mnli")])
def test_an_unknown_task_gets_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"unknown task '{name}' (did you mean '{near}'?)")):
        get_task(name)


@pytest.mark.parametrize("name", ["SST-2", "sst-2", "SST2", "Sst_2"])
def test_a_tasks_name_is_taken_in_any_case_and_as_glue_writes_it(name: str) -> None:
    assert get_task(name) == TASKS["sst2"]
    assert named_or_declared(name) == "sst2", "what is kept is one name"
    assert RunConfig.model_validate({"task": name, "model": {"backbone": "b"}}).task == "sst2"


def test_labels_may_be_numbers_of_any_kind() -> None:
    assert own_task({**OWN, "labels": [0.0, 0.5, 1]}).label_names == ("0.0", "0.5", "1")
    assert own_task({**OWN, "labels": [True, False]}).label_names == ("true", "false")


def test_the_data_layer_imports_without_the_slow_libraries() -> None:
    slow = "{'torch', 'transformers', 'datasets', 'sklearn', 'tokenizers'}"
    modules = "tasks, sources, readers, labels, texts, folds, tokens, synthetic"
    code = f"import sys; from leebert.data import {modules}; print(*({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_requests_use_the_names_of_the_hub():
    assert get_task("mrpc").text_columns == ("#1 String", "#2 String")
    assert get_task("mrpc").request_columns == ("sentence1", "sentence2")
    assert get_task("mnli").request_columns == ("premise", "hypothesis")
    own = own_task(
        {
            "name": "x",
            "text": "body",
            "label": "y",
            "labels": ["a", "b"],
            "metric": "accuracy",
            "files": {"train": "t.csv"},
        }
    )
    assert own.request_columns == ("body",)


# Regression: exits of numbers can't agree.


@pytest.mark.parametrize("name", ["stsb", "STS-B"])
def test_a_known_regression_is_refused_for_what_it_is(name):
    with pytest.raises(ConfigError, match=r"a regression: .*compare the predicted classes"):
        get_task(name)


def test_a_metric_of_numbers_is_refused_for_what_it_is():
    own = {"name": "own", "files": {"train": "x.csv"}, "text": "a", "label": "y", "labels": ["0", "1"]}
    with pytest.raises(ConfigError, match=r"metric: .*'pearson' is a metric of regression"):
        own_task({**own, "metric": "pearson"})


def test_labels_with_fractions_are_refused_for_what_they_are(tmp_path):
    (tmp_path / "train.csv").write_text("a,y\nx,1.5\nz,2.25\n")
    own = {"name": "own", "files": {"train": "train.csv"}, "text": "a", "label": "y", "labels": ["low", "high"]}
    with pytest.raises(
        DataError, match=r"'1.5' is not a label .* this is a regression: exit criteria compare the predicted classes"
    ):
        read_split(own_task(own, tmp_path), "train", None)
