"""Files and streams of rows: every kind by the same rules, for training, prediction and the service alike."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_models import save_model

from leebert.data.readers import Columns, in_any_case, read_rows
from leebert.data.sources import read_split
from leebert.data.tasks import TASKS, own_task
from leebert.data.texts import read_texts
from leebert.errors import DataError
from leebert.prediction_files import write_predictions

A_AND_B = Columns((("a",), ("b",)))


def trained_on(path: Path) -> list[tuple[str, ...]]:
    """The texts that training reads of a file, whose labels are all no."""
    spec = {"name": "own", "files": {"dev": str(path), "train": "-.csv"}, "text": ["a", "b"], "label": "y"}
    examples = read_split(own_task({**spec, "labels": ["no", "yes"]}), "dev")
    return list(zip(*examples.texts, strict=True))


def predicted_on(path: Path) -> list[tuple[str, ...]]:
    return [row.values for row in read_texts(path, A_AND_B)]


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except DataError as error:
        return str(error)


HEADER = {"csv": "a,b,y\n", "tsv": "a\tb\ty\n", "jsonl": "", "json": ""}
ROW = {"csv": "p,q,no\n", "tsv": "p\tq\tno\n", "jsonl": '{"a": "p", "b": "q", "y": "no"}\n'}
LONG = "the cat " * 25_000

SAME = {
    "a JSON array": ("json", '[{"a": "p", "b": "q", "y": "no"}, {"y": 0, "b": "s", "a": "r"}]', 2),
    "a JSON array over many lines": ("json", '\n[\n {"a": "p",\n "b": "q", "y": "no"}\n]\n', 1),
    "an array in a file of JSON lines": ("jsonl", '[{"a": "p", "b": "q", "y": "no"},\n{"a": "r", "b": "s", "y": 0}]', 2),
    "JSON lines in a file of an array": ("json", ROW["jsonl"] * 2, 2),
    "an array that isn't closed": ("json", '[{"a": "p", "b": "q", "y": "no"}', "line 1: not valid JSON"),
    "an array without a comma": ("json", '[{"a": "p", "b": "q", "y": "no"}\n{"a": 1}]', "line 2: not valid JSON"),
    "something after the array": ("json", '[{"a": "p", "b": "q", "y": "no"}]\n{}', "line 2: '{}' follows the array's end"),
    "an array of texts": ("json", '["p"]', "row 0: 'p' is not a JSON object"),
    "a text that is a number": ("jsonl", '{"a": 7, "b": "q", "y": 0}\n', "line 1, column 'a': 7 is not text but int"),
    "a text that is NaN": ("jsonl", '{"a": NaN, "b": "q", "y": 0}\n', "line 1, column 'a': nan is not text but float"),
    "a text that is true": ("json", '[{"a": "p", "b": true, "y": 0}]', "row 0, column 'b': True is not text but bool"),
    "a text that is null": ("jsonl", ROW["jsonl"] + '{"a": "p", "b": null, "y": 0}\n', "line 2, column 'b': the text is empty"),
    "a text that is null in an array": ("json", '[{"a": null, "b": "q", "y": 0}]', "row 0, column 'a': the text is empty"),
    "a null character": ("jsonl", '{"a": "p\\u0000", "b": "q", "y": 0}\n', "line 1, column 'a': 'p\\x00' contains a null"),
    "a null byte": ("csv", "p,q,no\np,q\0,no\n", "line 3: a null byte at byte 16"),
    "a key twice": ("jsonl", '{"a": "p", "b": "q", "b": "r", "y": 0}\n', "line 1: not valid JSON: duplicate key 'b'"),
    "a key twice that nobody wants": ("json", '[{"a": "p", "b": "q", "y": 0, "z": 1, "z": 2}]', "row 0: not valid JSON: duplicate key 'z'"),
    "a long field of CSV": ("csv", f'p,"{LONG}",no\n', 1),
    "a long field of TSV": ("tsv", f"p\t{LONG}\tno\n", 1),
    "an open quote in CSV": ("csv", 'p,q,no\n"p,q,no\n' + "p,q,no\n" * 30_000, "line 3: not valid CSV"),
    "quotes in TSV": ("tsv", 'p\t"q\tno\n', 1),
    "a blank line between rows of CSV": ("csv", "p,q,no\n\np,q,no\n", 2),
    "a blank line between rows of TSV": ("tsv", "p\tq\tno\n\np\tq\tno\n", "line 3: expected 3 columns, got 1"),
    "blank lines at the end of TSV": ("tsv", "p\tq\tno\n\n\n", 1),
    "carriage returns alone": ("csv", "p,q,no\rr,s,no\r", 2),
    "no UTF-8": ("tsv", b"p\tq\xff\tno\n", "line 2: not UTF-8 at byte 9 (0xff)"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_training_and_prediction_read_a_file_alike(tmp_path: Path, case: str) -> None:
    kind, data, expected = SAME[case]
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(HEADER[kind].encode() + (data if isinstance(data, bytes) else data.encode()))
    trained, predicted = outcome(trained_on, path), outcome(predicted_on, path)
    assert trained == predicted
    if isinstance(expected, int):
        assert len(trained) == expected, trained
        assert trained[0] in (("p", "q"), ("p", LONG), ("p", '"q'))
    else:
        assert f"{path}, {expected}" in trained


def test_columns_without_a_name_that_nobody_wants_are_left_alone(tmp_path: Path) -> None:
    """As pandas and spreadsheets write them."""
    (tmp_path / "rows.csv").write_text(",a,b,y,\n0,p,q,no,\n")
    (tmp_path / "rows.tsv").write_text("\ta\tb\ty\t\n0\tp\tq\tno\t\n")
    for path in sorted(tmp_path.iterdir()):
        assert trained_on(path) == predicted_on(path) == [("p", "q")]
    (tmp_path / "rows.csv").write_text("a,b,y,z,z\np,q,no,1,2\n")
    assert "header: duplicate column 'z'" in outcome(predicted_on, tmp_path / "rows.csv")


def test_parquet_is_read_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for values, said in (
        (["p", None], "row 1, column 'b': the text is empty"),
        (["p", "\0"], "row 1, column 'b': '\\x00' contains a null character"),
        ([1, 2], "row 0, column 'b': 1 is not text but int"),
        ([True, False], "row 0, column 'b': True is not text but bool"),
    ):
        pq.write_table(pa.table({"a": ["p", "q"], "b": values, "y": [0, 0]}), path)
        assert outcome(trained_on, path) == outcome(predicted_on, path)
        assert f"{path}, {said}" in outcome(predicted_on, path)
    for labels in (pa.array([2**30], pa.date32()), pa.array([2**62], pa.duration("s"))):  # beyond Python's
        pq.write_table(pa.table({"a": ["p"], "b": ["q"], "y": labels}), path)
        assert f"{path}: not a readable Parquet file" in outcome(trained_on, path)
        assert predicted_on(path) == [("p", "q")]  # which needs no labels
    pq.write_table(pa.Table.from_arrays([pa.array(["p"])] * 4, names=["a", "b", "c", "c"]), path)
    assert "header: duplicate column 'c'" in outcome(predicted_on, path)


TEXT = st.text(st.characters(exclude_characters="\0\t\n\r\ufeff", codec="utf-8"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), indent=st.sampled_from([None, 1]))
@settings(max_examples=40, deadline=None)
def test_a_stream_gives_what_a_file_gives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], indent: int | None
) -> None:
    objects = [{"a": a, "b": b} for a, b in rows]
    array, lines = json.dumps(objects, indent=indent), "".join(json.dumps(row) + "\n" for row in objects)
    path = tmp_path_factory.getbasetemp() / "rows.json"
    path.write_text(array)
    expected = list(enumerate(rows))
    for source in (path, io.BytesIO(array.encode()), io.BytesIO(lines.encode()), io.StringIO(lines)):
        assert [(row.number, row.values) for row in read_texts(source, A_AND_B, "stdin")] == expected
    if not any(a.lstrip().startswith(("{", "[")) for a, _ in rows):
        plain = "".join(f"{a}\t{b}\r\n" for a, b in rows)
        assert [(row.number, row.values) for row in read_texts(io.StringIO(plain), A_AND_B, "x")] == expected


def test_files_are_read_as_they_are_consumed(tmp_path: Path) -> None:
    """Rows before a damaged one come out, so that nothing holds a whole file."""
    for kind, row in ROW.items():
        path = tmp_path / f"rows.{kind}"
        path.write_text(HEADER[kind] + row * 3 + "\0")
        rows = read_rows(path, A_AND_B)
        assert [next(rows).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match="null byte"):
            next(rows)


def test_an_error_names_which_rows_are_not_answered() -> None:
    def answers(count: int) -> Any:
        yield from ({"row": i, "label": "yes"} for i in range(count))
        raise DataError("rows.csv, line 9: broken")

    for form in ("jsonl", "csv"):
        out = io.StringIO()
        with pytest.raises(DataError, match=r"line 9: broken \(no predictions from row 3 on\)"):
            write_predictions(answers(3), out, form, ("row", "label"))
        assert len(out.getvalue().splitlines()) == 3 + (form == "csv")
        with pytest.raises(DataError, match=r"line 9: broken \(no predictions were written\)"):
            write_predictions(answers(0), io.StringIO(), form, ("row", "label"))
        with pytest.raises(DataError, match=r"line 9: broken \(no predictions were written\)"):
            write_predictions(answers(3), io.StringIO(), form, ("row", "label"), partial=False)


# Names in any case, and columns of two names.


@pytest.mark.parametrize("file", ["MRPC/train.tsv", "mrpc/train.TSV", "Mrpc/Train.tsv"])
def test_folders_and_files_are_found_in_any_case(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tp\tq\n0\t7\t8\tr\ts\n")
    assert read_split(TASKS["mrpc"], "train", tmp_path).texts == (["p", "r"], ["q", "s"])
    own = own_task({"name": "own", "files": {"train": str(tmp_path / file.lower())}, "text": "#1 String", "label": "Quality", "labels": ["no", "yes"]})  # fmt: skip
    if path.parent.name == "mrpc":
        assert len(read_split(own, "train")) == 2


def test_two_files_that_differ_in_case_alone_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("Train.tsv", "TRAIN.TSV"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"train.tsv: no such file, but its folder holds TRAIN.TSV and Train.tsv"):
        in_any_case(tmp_path / "train.tsv")
    assert in_any_case(tmp_path / "Train.tsv").name == "Train.tsv"
    assert in_any_case(tmp_path / "dev.tsv").name == "dev.tsv"


def test_the_releases_files_may_have_the_hubs_columns(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence1\tsentence2\tlabel\tidx\np\tq\t1\t0\nr\ts\t0\t1\n")
    examples = read_split(TASKS["mrpc"], "train", tmp_path)
    assert examples.texts == (["p", "r"], ["q", "s"])
    assert examples.labels is not None
    assert examples.labels.tolist() == [1, 0]


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_model(tmp_path_factory.mktemp("m") / "mrpc", "mrpc", TASKS["mrpc"].label_names))


@pytest.mark.parametrize("names", [("#1 String", "#2 String"), ("sentence1", "sentence2")])
def test_prediction_and_service_take_the_releases_columns_and_the_hubs(
    mrpc: Path, cli: Callable[..., Any], names: tuple[str, str]
) -> None:
    from leebert.serving import Served
    from tune.models.register import _signature
    from tune.models.serving import Answering

    rows = [dict(zip(names, pair, strict=True)) for pair in (("the cat sat", "a dog ran"), ("a bird", "the bird"))]
    ran = cli("leebert", "predict", mrpc, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert ran.code == 0, ran.err
    served = Served(mrpc)
    answered = served.predict(pd.DataFrame(rows))
    assert answered["row"].tolist() == [0, 1]
    assert answered.drop(columns="layers_saved").to_dict("records") == [json.loads(x) for x in ran.out.splitlines()]
    # MLflow refuses what a signature doesn't know, before the model sees it.
    from mlflow.models.utils import _enforce_schema

    passed = _enforce_schema(pd.DataFrame(rows), _signature(served.columns.names).inputs)
    assert Answering(served).predict(passed)["label"].tolist() == answered["label"].tolist()
    with pytest.raises(DataError, match=r"no column 'sentence1' or '#1 String'.*the columns are 'x'"):
        served.predict(pd.DataFrame({"x": ["the cat"]}))


def test_the_service_reads_rows_by_the_same_rules(mrpc: Path) -> None:
    from leebert.serving import Served

    served = Served(mrpc)
    for value, said in (
        (None, "row 1, column 'sentence2': the text is empty"),
        (float("nan"), "row 1, column 'sentence2': the text is empty"),
        (pd.NA, "row 1, column 'sentence2': the text is empty"),
        (" ", "row 1, column 'sentence2': the text is empty"),
        (7, "row 1, column 'sentence2': 7 is not text but int"),
        (True, "row 1, column 'sentence2': True is not text but bool"),
        ("\0", "row 1, column 'sentence2': .* null character"),
        ("\ud800", "row 1, column 'sentence2': .* surrogate"),
        (["the", "cat"], "row 1, column 'sentence2': .* is not text but list"),
    ):
        rows = pd.DataFrame({"sentence1": ["the cat", "a dog"], "sentence2": ["a bird", value]}, dtype=object)
        with pytest.raises(DataError, match=said):
            served.predict(rows)


# Where files lie.


def own_files(*files: Path | str) -> Any:
    names = dict(zip(("train", "dev"), map(str, files), strict=False))
    return own_task({"name": "own", "files": names, "text": "a", "label": "y", "labels": ["no", "yes"]})


def test_a_file_that_does_not_exist_names_the_folder_that_was_looked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.csv").write_text("a,y\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_split(own_files("data/train.csv"), "train")
    for part in ("data/train.csv: no such file", "no such folder", f"looked in {tmp_path / 'data'}", "as --data-dir"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=rf"the folder holds other.csv \(looked in {tmp_path}\).*as --data-dir"):
        read_split(own_files("train.csv"), "train")


def test_data_that_has_moved_is_found_below_the_folder_that_is_named(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A sweep and its best file keep absolute paths."""
    for folder, text in (("old", "p"), ("new", "q")):
        (tmp_path / folder / "claims").mkdir(parents=True)
        (tmp_path / folder / "claims" / "train.csv").write_text(f"a,y\n{text},no\n{text},yes\n")
    task = own_files(tmp_path / "old" / "claims" / "train.csv")
    assert read_split(task, "train").texts == (["p", "p"],)
    for folder in ("new", "new/claims"):
        assert read_split(task, "train", tmp_path / folder).texts == (["q", "q"],)
    assert read_split(task, "train", tmp_path / "old").texts == (["p", "p"],)
    assert not recwarn.list
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="--data-dir .*empty holds no train.csv: reading .*old/claims/train.csv"):
        read_split(task, "train", tmp_path / "empty")
    (tmp_path / "old" / "claims" / "train.csv").unlink()
    with pytest.raises(DataError, match="looked in .*empty"):
        read_split(task, "train", tmp_path / "empty")


def test_evaluate_from_another_folder_names_where_it_looked(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "dev.csv").write_text("a,y\nthe cat,no\na dog,yes\n")
    task = {"name": "own", "files": {"train": "train.csv", "dev": "dev.csv"}, "text": "a", "label": "y", "labels": ["no", "yes"]}  # fmt: skip
    model = save_model(tmp_path / "model", task, ("no", "yes"), metric="accuracy")
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = cli("leebert", "evaluate", model)
    assert ran.code == 1
    assert f"dev.csv: no such file (split 'dev' of task own); the folder holds nothing (looked in {tmp_path / 'elsewhere'})" in ran.err  # fmt: skip
    assert "as --data-dir" in ran.err
    found = cli("leebert", "evaluate", model, "--data-dir", tmp_path / "here", "--timed-rows", 0, "--json")
    assert found.code == 0, found.err
    assert found.json["dev"]["rows"] == 2
