"""One label, one class: whatever the kind of file, and whatever type the file gives the label."""

from __future__ import annotations

import csv
import decimal
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.data.folds import make_folds
from leebert.data.labels import LabelIds
from leebert.data.sources import read_split
from leebert.data.synthetic import write_demo
from leebert.data.tasks import TASKS, own_task
from leebert.errors import DataError

RELEASE = os.environ.get("LEEBERT_DATA")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # As written, before any id.
        (["1.0", "0.0"], [[1.0, 1, "1.0", "1", np.float32(1)], [0.0, 0, "0.0", "0", np.float64(0)]]),
        (["0.0", "0.5", "1.0"], [[0.0], [0.5, "0.50", ".5", np.float32(0.5)], [1.0, 1, "1"], [0.25, 2]]),
        (["-1.0", "1.0"], [[-1.0, -1, "-1", np.int64(-1)], [1.0, "+1"], ["0"]]),
        (["1", "2", "3"], [[1.0, "1.0", 1], [" 2 ", 2, decimal.Decimal("2.00")], [3.0, np.int8(3)], [0, "0"]]),
        (["0.1", "0.2"], [[0.1, float(np.float32(0.1))], [float(np.float16(0.2)), np.float16(0.2)], [0.15]]),
        (["true", "false"], [[True, "True", 1, 1.0, "1"], [False, "FALSE", np.bool_(False), 0, "0"], [2]]),
        (["0", "1"], [["False", False, 0.0], [True, "true", 1.0]]),
        (["01", "1"], [["01"], ["1"], [1, 1.0, "1.0"]]),
        (["9007199254740993", "9007199254740992"], [[9007199254740993], ["9007199254740992"]]),
        # Words, or their ids.
        (["no", "yes"], [["no", 0, "0", 0.0], ["yes", " yes ", 1, 1.0, "1.0"], [2, -1, True, "true", "Yes", 0.5]]),
        (["very good", " bad"], [["very good"], [" bad"], ["bad", "very", "1e999999999", [1]]]),
        (["1 star", "2 stars"], [["1 star", 0], ["2 stars", 1], [2]]),
        (["nan", "inf"], [["nan"], ["inf", float("inf")], [float("nan"), None, "", " ", "1_0"]]),
    ],
)  # fmt: skip
def test_a_label_is_compared_as_it_is_written_then_by_value_and_only_then_as_an_id(
    names: list[str], expected: list[list[Any]]
) -> None:
    ids = LabelIds(names)
    for label, values in enumerate(expected):  # the last ones are of no class
        for value in values:
            assert ids.of(value) == (label if label < len(names) else None), (names, value)
    assert [ids.of(name) for name in names] == list(range(len(names)))


def written(folder: Path, kind: str, labels: list[Any]) -> Path:
    """Rows with these labels in a file of this kind; `parquet:T` has a column of the type T."""
    path = folder / f"rows.{kind.partition(':')[0]}"
    texts = [f"row {i}" for i in range(len(labels))]
    if kind.startswith("parquet"):
        type_ = getattr(pa, kind.partition(":")[2])()
        pq.write_table(pa.table({"a": texts, "y": pa.array(labels).cast(type_)}), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"a": a, "y": y}) + "\n" for a, y in zip(texts, labels, strict=True)))
    elif kind == "json":
        path.write_text(json.dumps([{"a": a, "y": y} for a, y in zip(texts, labels, strict=True)], indent=2))
    else:
        with open(path, "w", newline="") as f:
            rows = csv.writer(f, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
            rows.writerows([("a", "y"), *zip(texts, labels, strict=True)])
    return path


def labels_of(path: Path, names: list[Any]) -> list[int]:
    task = own_task({"name": "own", "files": {"train": str(path)}, "text": "a", "label": "y", "labels": names})
    found = read_split(task, "train").labels
    assert found is not None
    return list(found.tolist())


TYPED = {
    "reals, the second first": ([1.0, 0.0], ["1.0", "0.0"], ["float64", "float32", "float16", "string", "int64"]),
    "a half between": ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], ["float64", "float32", "string"]),
    "signs": ([-1.0, 1.0], ["-1.0", "1.0"], ["float64", "int8", "string"]),
    "whole numbers from 1": ([1.0, 2.0, 3.0], [1, 2, 3], ["float64", "float32", "int32", "uint8", "string"]),
    "tenths": ([0.1, 0.7], [0.1, 0.7], ["float64", "float32", "float16", "string"]),
    "truths": ([True, False], [True, False], ["bool_", "string", "int8"]),
    "words": (["a b", "c"], ["a b", "c"], ["string", "large_string"]),
}


@pytest.mark.parametrize("case", TYPED)
def test_every_kind_of_file_and_every_type_of_column_gives_the_same_classes(tmp_path: Path, case: str) -> None:
    values, names, types = TYPED[case]
    expected = [*range(len(values)), 0]
    for kind in ("csv", "tsv", "jsonl", "json", *(f"parquet:{t}" for t in types)):
        assert labels_of(written(tmp_path, kind, [*values, values[0]]), names) == expected, kind


NUMBER = st.one_of(st.integers(-5, 5), st.decimals(-2, 2, places=1).map(float), st.floats(width=32, allow_nan=False))


@given(names=st.lists(NUMBER.filter(np.isfinite), min_size=2, max_size=4, unique=True))
@settings(max_examples=25, deadline=None)
def test_labels_that_are_numbers_are_the_same_in_every_file(
    tmp_path_factory: pytest.TempPathFactory, names: list[float]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for kind in ("csv", "jsonl", "parquet:float64"):
        assert labels_of(written(folder, kind, [float(n) for n in names]), names) == list(range(len(names))), kind


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "row 1, column 'y': the label is missing"),
        (float("nan"), "row 1, column 'y': the label is missing"),
        (-1.0, "row 1, column 'y': label -1.0: the labels of the split 'train' are hidden"),
        (1.5, "row 1, column 'y': '1.5' is not a label .*this is a regression"),
        (7.0, "row 1, column 'y': '7.0' is not a label of task own; its labels are 0, 1"),
    ],
)
def test_a_label_of_no_class_is_named(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        labels_of(written(tmp_path, "parquet:float64", [0.0, value, 1.0]), [0, 1])


# What results were found on stays what it is.


def test_the_demos_data_and_folds_have_fixed_digests(tmp_path: Path) -> None:
    task = own_task(write_demo(tmp_path))
    train = read_split(task, "train")
    assert train.fingerprint() == "b3cf659cb66ebe216e83688ea2eb16f9c204a4c08f5a962ce2c515dceb1c1f3e"
    assert make_folds(train, task, 3, 0).digest == "9c522e02dba96df28feffc1a514c9b0692b1a873001a25decf6afa3e1a53da41"


@pytest.mark.skipif(not RELEASE, reason="LEEBERT_DATA is not set: no GLUE files to read")
@pytest.mark.parametrize(
    ("name", "split", "fingerprint"),
    [
        ("mrpc", "train", "3074c8b3ee371c2059a66291bda47f9d24014027b69776e8248c78eac9c9794c"),
        ("sst2", "train", "31b6f22df1f5e08584265fb9167724cf41be780980ccc86eb31982173ddc7711"),
        ("mnli", "train", "9268413f89addb3757e6e08614add54a55551f671d2b4558c676857ac43cda2e"),
        ("mnli", "dev_mismatched", "abba9dbe277b0a9cf6aafdcff7ef06f1fc6d79e0e65746e619225d5d57037b99"),
    ],
)
def test_real_data_has_the_fingerprint_that_it_always_had(name: str, split: str, fingerprint: str) -> None:
    assert read_split(TASKS[name], split, Path(str(RELEASE)) / "glue").fingerprint() == fingerprint
