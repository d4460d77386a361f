"""Reading splits: each format, each defect with its place, the hub's layout, and subsets."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.data.sources import Examples, read_split, read_test, subset
from leebert.data.tasks import TASKS, Task, own_task
from leebert.errors import DataError, LeebertError

RELEASE = os.environ.get("LEEBERT_DATA")
needs_release = pytest.mark.skipif(not RELEASE, reason="LEEBERT_DATA is not set: no GLUE files to read")

MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
MRPC_ROWS = ['1\t7\t8\tA " quote\tb', "0\t9\t10\tc d\te"]
Write = Callable[..., Path]


@pytest.fixture
def mrpc(tmp_path: Path) -> Write:
    """Writes MRPC/train.tsv (or another split) and returns the release's folder."""

    def write(*lines: str, split: str = "train", end: str = "\n") -> Path:
        (tmp_path / "MRPC").mkdir(exist_ok=True)
        (tmp_path / "MRPC" / f"{split}.tsv").write_bytes((end.join(lines) + end).encode())
        return tmp_path

    return write


def own(folder: Path, name: str, data: str | bytes, **change: Any) -> Task:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    spec = {"name": "own", "files": {"train": name}, "text": ["a", "b"], "label": "y", "labels": ["no", "yes"]}
    return own_task({**spec, **change}, folder)


def error_of(task: Task, split: str = "train", source: Any = None, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_split(task, split, source, **options)
    return str(caught.value)


# --- GLUE's layout


def test_a_glue_file_is_read_by_its_header_and_without_quoting(mrpc: Write) -> None:
    examples = read_split(TASKS["mrpc"], "train", mrpc(MRPC_HEADER, *MRPC_ROWS))
    assert examples.texts == (['A " quote', "c d"], ["b", "e"])
    assert examples.labels is not None
    assert examples.labels.dtype == examples.ids.dtype == np.int64
    assert examples.labels.tolist() == [1, 0]
    assert examples.ids.tolist() == [0, 1]
    assert examples.label_names == ("not_equivalent", "equivalent")
    assert examples.source.endswith("MRPC/train.tsv")


def test_the_task_folder_itself_will_do(mrpc: Write) -> None:
    folder = mrpc(MRPC_HEADER, *MRPC_ROWS)
    assert len(read_split(TASKS["mrpc"], "train", folder / "MRPC")) == 2


def test_byte_order_mark_and_windows_line_ends_change_nothing(mrpc: Write) -> None:
    plain = read_split(TASKS["mrpc"], "train", mrpc(MRPC_HEADER, *MRPC_ROWS)).fingerprint()
    windows = read_split(TASKS["mrpc"], "train", mrpc("\ufeff" + MRPC_HEADER, *MRPC_ROWS, end="\r\n"))
    assert windows.fingerprint() == plain


def test_only_a_line_feed_ends_a_row(mrpc: Write) -> None:
    examples = read_split(TASKS["mrpc"], "train", mrpc(MRPC_HEADER, "1\t1\t2\ta\u2028b\x85c\td\x1ce", MRPC_ROWS[1]))
    assert examples.texts[0][0] == "a\u2028b\x85c"


def test_cola_has_no_header_but_in_its_test_split(tmp_path: Path) -> None:
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA/train.tsv").write_text("gj04\t1\t\tFine it is.\ngj04\t0\t*\tIs fine it.\n")
    (tmp_path / "CoLA/test.tsv").write_text("index\tsentence\n0\tWho knows?\n")
    train = read_split(TASKS["cola"], "train", tmp_path)
    assert train.texts == (["Fine it is.", "Is fine it."],)
    assert train.ids.tolist() == [0, 1]
    test = read_split(TASKS["cola"], "test", tmp_path, labelled=False)
    assert (test.texts, test.labels) == ((["Who knows?"],), None)
    (tmp_path / "CoLA/train.tsv").write_text("gj04\t1\t\tFine.\ngj04\t2\t*\tNot.\n")
    assert "train.tsv, line 2, column 'label': '2' is not a label" in error_of(TASKS["cola"], source=tmp_path)


def test_rows_without_a_majority_label_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "MNLI").mkdir()
    labels = ["entailment", "-", "neutral", "contradiction", "-"]
    lines = [f"{i}\tp{i}\th{i}\t{label}\n" for i, label in enumerate(labels)]
    (tmp_path / "MNLI/train.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n" + "".join(lines))
    examples = read_split(TASKS["mnli"], "train", tmp_path)
    assert examples.ids.tolist() == [0, 2, 3]
    assert examples.skipped == 2


def test_qqp_rows_that_the_release_broke_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "QQP").mkdir()
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    rows = "1\t1\t2\ta\tb\t0\n2\t3\t4\tc\tcut here\n\tand here?\t1\n3\t5\t6\td\t\t0\n4\t7\t8\te\tf\t1\n"
    (tmp_path / "QQP/train.tsv").write_text(header + rows)
    examples = read_split(TASKS["qqp"], "train", tmp_path)
    assert examples.texts == (["a", "e"], ["b", "f"])
    assert examples.ids.tolist() == [0, 4]
    assert examples.skipped == 3


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ([MRPC_HEADER, MRPC_ROWS[0], "1\tx\ty"], ["train.tsv, line 3: expected 5 columns, got 3", r"'1\tx\ty'"]),
        ([MRPC_HEADER, MRPC_ROWS[0], "", MRPC_ROWS[1]], ["train.tsv, line 3: expected 5 columns, got 1"]),
        ([MRPC_HEADER, "1\t1\t2\ta\t "], ["train.tsv, line 2, column '#2 String': the text is empty"]),
        ([MRPC_HEADER, MRPC_ROWS[0], "2\t1\t2\ta\tb"], ["line 3, column 'Quality': '2' is not a label of task mrpc"]),
        ([MRPC_HEADER, "\t1\t2\ta\tb"], ["line 2, column 'Quality': the label is missing"]),
        ([MRPC_HEADER, "-1\t1\t2\ta\tb"], ["line 2, column 'Quality': label -1: the labels of the split", "hidden"]),
        ([MRPC_HEADER, MRPC_ROWS[0]], ["train.tsv, column 'Quality': no row has the label 'not_equivalent'"]),
        ([MRPC_HEADER], ["train.tsv: no rows"]),
        ([MRPC_HEADER.replace("#2 ID", "#1 ID"), *MRPC_ROWS], ["train.tsv, header: duplicate column '#1 ID'"]),
        (
            [MRPC_HEADER.replace("#2 String", "#2 Strings"), *MRPC_ROWS],
            ["no column '#2 String' or 'sentence2' (did you mean '#2 Strings'?)", "the columns are 'Quality'"],
        ),
    ],
)
def test_each_defect_names_its_place(mrpc: Write, lines: list[str], parts: list[str]) -> None:
    message = error_of(TASKS["mrpc"], source=mrpc(*lines))
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["train.tsv: the file is empty"]),
        (b"\n\n", ["train.tsv: the file is empty"]),
        (b"a\tb\ty\nx\0y\tz\tno\n", ["train.tsv, line 2: a null byte at byte 7"]),
        (b"a\tb\ty\nc\td\tno\ne\xe9\tf\n", ["train.tsv, line 3: not UTF-8 at byte 14 (0xe9)"]),
        (b"\xef\xbb\xbfa\tb\ty\nc\xff\td\n", ["train.tsv, line 2: not UTF-8 at byte 10 (0xff)"]),
        ("a\tb\n".encode("utf-16"), ["train.tsv, line 1: a null byte", "saved as UTF-16"]),
    ],
)
def test_bytes_that_are_no_text(tmp_path: Path, raw: bytes, parts: list[str]) -> None:
    message = error_of(own(tmp_path, "train.tsv", raw))
    assert all(part in message for part in parts), message


def test_the_test_split_explains_its_hidden_labels(mrpc: Write) -> None:
    folder = mrpc(MRPC_HEADER.replace("Quality", "index"), *MRPC_ROWS, split="test")
    message = error_of(TASKS["mrpc"], "test", folder)
    assert "the labels of the split 'test' are hidden" in message
    assert "(train, dev)" in message
    assert read_split(TASKS["mrpc"], "test", folder, labelled=False).labels is None


def test_what_is_missing_and_what_exists(mrpc: Write, tmp_path: Path) -> None:
    folder = mrpc(MRPC_HEADER, *MRPC_ROWS)
    assert "no split 'trian' (did you mean 'train'?); it has train, dev, test" in error_of(
        TASKS["mrpc"], "trian", folder
    )
    missing = error_of(TASKS["mrpc"], "dev", folder)
    assert "MRPC/dev.tsv: no such file (split 'dev' of task mrpc); the folder holds train.tsv" in missing
    other = error_of(TASKS["rte"], "dev", folder)
    assert "the folder holds MRPC" in other
    assert "the folder that holds RTE/dev.tsv" in other
    assert f"{tmp_path / 'nowhere'}: no such folder" in error_of(TASKS["mrpc"], "train", tmp_path / "nowhere")
    assert "task own has no data set on the hub" in error_of(own(tmp_path, "t.csv", "a,b,y\n"), "train", "hub")


@given(data=st.binary(max_size=80), prefix=st.sampled_from([b"", (MRPC_HEADER + "\n").encode()]))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("suffix", quick.only([".csv", ".jsonl"], [".tsv", ".csv", ".jsonl", ".parquet"]))
def test_whatever_a_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes, prefix: bytes
) -> None:
    task = own(tmp_path_factory.getbasetemp(), f"any{suffix}", prefix + data)
    try:
        examples = read_split(task, "train")
    except LeebertError as error:
        assert f"any{suffix}" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert len(examples) > 0


TEXT = st.text(st.characters(exclude_characters="\0\t\n\r\ufeff", codec="utf-8"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_every_format_holds_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, bool]]
) -> None:
    rows = [*rows, ("x", "y", True), ("x", "y", False)]
    a, b, y = ([*column] for column in zip(*rows, strict=True))
    names = ["yes" if label else "no" for label in y]
    quoted = [",".join('"' + field.replace('"', '""') + '"' for field in row) for row in zip(a, b, names, strict=True)]
    tabbed = ["\t".join(row) for row in zip(a, b, names, strict=True)]
    objects = [json.dumps({"a": i, "b": j, "y": int(k)}) for i, j, k in rows]
    folder = tmp_path_factory.getbasetemp()
    parquet = folder / "same.parquet"
    pq.write_table(pa.table({"y": [float(label) for label in y], "b": b, "a": a}), parquet)
    tasks = [
        own(folder, "same.csv", "\n".join(["a,b,y", *quoted])),
        own(folder, "same.tsv", "\n".join(["a\tb\ty", *tabbed, ""])),
        own(folder, "same.jsonl", "\n".join([*objects, "", ""])),
        own(folder, "same.parquet", parquet.read_bytes()),
    ]
    read = [read_split(task, "train") for task in tasks]
    assert read[0].texts == (a, b)
    assert {examples.fingerprint() for examples in read} == {read[0].fingerprint()}
    assert all(examples.ids.tolist() == list(range(len(rows))) for examples in read)


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("t.csv", 'a,b,y\n"two\nlines",x,yes\nq,,no\n', ["t.csv, line 4, column 'b': the text is empty"]),
        ("t.csv", "a,b,y\nq,r,yes,more\n", ["t.csv, line 2: expected 3 columns, got 4"]),
        ("t.csv", 'a,b,y\nq,r,yes\n"q,r,no\n', ["t.csv, line 3: not valid CSV", "check the quotes"]),
        ("t.csv", "a,b,label\nq,r,yes\n", ["t.csv: no column 'y'", "'label'"]),
        ("t.csv", "a,b,y\nq,r,maybe\ns,t,perhaps\n", ["line 2, column 'y': 'maybe' is not a label", "'perhaps'"]),
        (
            "t.csv",
            "a,b,y\nq,r,yess\n",
            ["'yess' is not a label of task own (did you mean 'yes'?); its labels are no, yes"],
        ),
        ("t.jsonl", '{"a": "q", "b": "r", "y": "yes"}\n{"a": "q"', ["t.jsonl, line 2: not valid JSON"]),
        ("t.jsonl", '{"a": "q", "y": "yes"}', ["t.jsonl, line 1: no column 'b'", "'a', 'y'"]),
        (
            "t.jsonl",
            '{"a": "q", "a": "r", "b": "s", "y": 1}',
            ["line 1: not valid JSON: duplicate key 'a'"],
        ),
        ("t.jsonl", "[1]", ["t.jsonl, row 0: 1 is not a JSON object"]),
        ("t.jsonl", '{"a": 5, "b": "r", "y": 1}', ["line 1, column 'a': 5 is not text but int"]),
        ("t.jsonl", '{"a": "q", "b": null, "y": 1}', ["line 1, column 'b': the text is empty"]),
        ("t.jsonl", '{"a": "q", "b": "r", "y": null}', ["line 1, column 'y': the label is missing"]),
        ("t.jsonl", '{"a": "q", "b": "r", "y": true}', ["line 1, column 'y': 'true' is not a label"]),
        ("t.jsonl", '{"a": "\\ud800", "b": "r", "y": 1}', ["line 1, column 'a'", "surrogate"]),
        ("t.jsonl", '{"a": "\\u0000", "b": "r", "y": 1}', ["line 1, column 'a'", "null character"]),
        ("t.parquet", "no parquet", ["t.parquet: not a readable Parquet file"]),
    ],
)
def test_each_defect_of_an_own_file_names_its_place(tmp_path: Path, name: str, data: str, parts: list[str]) -> None:
    message = error_of(own(tmp_path, name, data))
    assert all(part in message for part in parts), message


def test_parquet_defects_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": ["x", None], "b": ["y", "z"], "y": [0, 1]}), path)
    assert "t.parquet, row 1, column 'a': the text is empty" in error_of(own(tmp_path, path.name, path.read_bytes()))
    pq.write_table(pa.table({"a": ["x"], "b": [3], "y": [0]}), path)
    assert "row 0, column 'b': 3 is not text but int" in error_of(own(tmp_path, path.name, path.read_bytes()))
    pq.write_table(pa.table({"a": ["x"], "b": ["z"]}), path)
    assert "no column 'y'; the columns are 'a', 'b'" in error_of(own(tmp_path, path.name, path.read_bytes()))


def test_own_files_can_lie_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    own(tmp_path / "data", "t.csv", "a,b,y\nq,r,yes\ns,t,no\n")
    files = {"files": {"train": "t.csv"}, "text": ["a", "b"], "label": "y", "labels": ["no", "yes"]}
    assert len(read_split(own_task({"name": "own", **files}), "train", tmp_path / "data")) == 2


# --- the hub


def hub_copy(folder: Path, labels: list[int], names: tuple[str, ...]) -> Path:
    """A data set in a hub repository's layout: two configurations, ClassLabel features in the card."""
    card = ["---", "configs:"]
    for config in ("mrpc", "other"):
        card += [f"- config_name: {config}", "  data_files:", f'  - {{split: train, path: "{config}/train-*"}}']
    card += ["dataset_info:", "- config_name: mrpc", "  features:"]
    card += [f"  - {{name: {column}, dtype: string}}" for column in ("sentence1", "sentence2")]
    card += ["  - {name: idx, dtype: int32}"]
    card += [
        "  - name: label",
        "    dtype: {class_label: {names: {" + ", ".join(f"'{i}': {n}" for i, n in enumerate(names)),
    ]
    card[-1] += "}}}"
    for config in ("mrpc", "other"):
        (folder / config).mkdir(parents=True)
        n = len(labels)
        table = {
            "sentence1": [f"s{i}" for i in range(n)],
            "sentence2": ["t"] * n,
            "idx": range(7, 7 + n),
            "label": labels,
        }
        pq.write_table(pa.table(table), folder / config / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def at(folder: Path | str) -> Task:
    hub = TASKS["mrpc"].hub
    assert hub is not None
    return dataclasses.replace(TASKS["mrpc"], hub=dataclasses.replace(hub, repo=str(folder)))


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_data_set_is_read_like_the_release(tmp_path: Path, mrpc: Write) -> None:
    task = at(hub_copy(tmp_path / "glue", [1, 0, 1], ("not_equivalent", "equivalent")))
    examples = read_split(task, "train")
    rows = [f"{label}\t1\t2\ts{i}\tt" for i, label in enumerate([1, 0, 1])]
    assert examples.fingerprint() == read_split(task, "train", mrpc(MRPC_HEADER, *rows)).fingerprint()
    assert examples.source.startswith("hub:")
    assert read_split(task, "train", "hub", labelled=False).labels is None


@pytest.mark.usefixtures("hub_cache")
def test_a_test_split_on_the_hub_is_read_with_the_hubs_numbers(tmp_path: Path) -> None:
    task = at(hub_copy(tmp_path / "glue", [-1, -1], ("not_equivalent", "equivalent")))
    rows, source = read_test(task, "train")
    assert [(row.number, row.values) for row in rows] == [(7, ("s0", "t")), (8, ("s1", "t"))]
    assert source.startswith("hub:")


@pytest.mark.usefixtures("hub_cache")
def test_the_hubs_own_order_of_labels_counts(tmp_path: Path) -> None:
    examples = read_split(at(hub_copy(tmp_path / "glue", [1, 0, 1], ("equivalent", "not_equivalent"))), "train")
    assert examples.labels is not None
    assert examples.labels.tolist() == [0, 1, 0]


@pytest.mark.usefixtures("hub_cache")
def test_what_can_be_wrong_on_the_hub(tmp_path: Path) -> None:
    assert "its labels are a, b, c, those of task mrpc are not_equivalent, equivalent" in error_of(
        at(hub_copy(tmp_path / "more", [0, 1, 2], ("a", "b", "c")))
    )
    hidden = error_of(at(hub_copy(tmp_path / "hidden", [-1, -1], ("not_equivalent", "equivalent"))))
    assert "row 0, column 'label': label -1" in hidden
    task = at(hub_copy(tmp_path / "glue", [1, 0], ("not_equivalent", "equivalent")))
    assert "split 'validation': can't be loaded" in error_of(task, "dev")
    assert task.hub is not None
    typo = dataclasses.replace(task, hub=dataclasses.replace(task.hub, config="mprc"))
    assert "mprc" in error_of(typo)


def test_an_unreachable_hub_offers_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = error_of(at("nyu-mll/no-copy-of-this"))
    assert "hub:nyu-mll/no-copy-of-this/mrpc" in message
    assert "the hub could not be reached" in message
    assert "--data-dir" in message


# --- examples


def make(labels: list[int], names: tuple[str, ...] = ("a", "b", "c")) -> Examples:
    n = len(labels)
    return Examples(([f"t{i}" for i in range(n)],), np.array(labels, np.int64), np.arange(n) + 100, "made", names)


@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=60), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_subset_is_stratified_seeded_and_keeps_ids(labels: list[int], seed: int, data: st.DataObject) -> None:
    examples = make(labels)
    rows = data.draw(st.integers(len(set(labels)), len(labels)))
    part = subset(examples, rows, seed)
    assert len(part) == rows
    assert part.labels is not None
    assert np.all(np.diff(part.ids) > 0)
    assert [f"t{i - 100}" for i in part.ids] == part.texts[0]
    assert part.labels.tolist() == [labels[i - 100] for i in part.ids]
    share = np.bincount(labels, minlength=3) * rows / len(labels)
    rare = (share < 1) & (share > 0)
    assert np.all(np.abs(np.bincount(part.labels, minlength=3) - share) < 1 + rare.sum())
    assert set(part.labels) == set(labels)
    assert part.fingerprint() == subset(examples, rows, seed).fingerprint()


def test_a_subset_that_cannot_be_drawn() -> None:
    examples = make([0, 1, 2, 0])
    for rows in (2, 5):
        with pytest.raises(DataError, match=f"can't draw a subset of {rows} samples"):
            subset(examples, rows, 0)
    with pytest.raises(DataError, match="needs labels"):
        subset(dataclasses.replace(examples, labels=None), 2, 0)
    assert not np.array_equal(subset(make([0, 1] * 20), 10, 0).ids, subset(make([0, 1] * 20), 10, 1).ids)


def test_the_fingerprint_is_of_the_content_alone() -> None:
    examples = make([0, 1, 2])
    elsewhere = dataclasses.replace(examples, source="elsewhere", skipped=3, ids=examples.ids + 1)
    assert elsewhere.fingerprint() == examples.fingerprint()
    others = [
        dataclasses.replace(examples, texts=(["t0", "t1t", "2"],)),
        dataclasses.replace(examples, texts=(examples.texts[0], ["", "", ""])),
        dataclasses.replace(examples, label_names=("a", "c", "b")),
        dataclasses.replace(examples, labels=None),
        make([0, 2, 1]),
        examples.take([0, 2, 1]),
        examples.take([0, 1]),
    ]
    assert len({other.fingerprint() for other in [examples, *others]}) == len(others) + 1


# --- the real files


@needs_release
@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("mrpc", "train", [1194, 2474]),
        ("mrpc", "dev", [129, 279]),
        ("sst2", "train", [29780, 37569]),
        ("sst2", "dev", [428, 444]),
        ("mnli", "train", [3213, 3326, 3349]),
        ("mnli", "dev_mismatched", [346, 319, 335]),
    ],
)
def test_the_real_files_have_their_known_counts(name: str, split: str, counts: list[int]) -> None:
    examples = read_split(TASKS[name], split, Path(str(RELEASE)) / "glue")
    assert examples.labels is not None
    assert np.bincount(examples.labels).tolist() == counts
    assert examples.skipped == 0


@needs_release
def test_the_real_test_split_is_unlabelled() -> None:
    folder = Path(str(RELEASE)) / "glue"
    assert len(read_split(TASKS["mrpc"], "test", folder, labelled=False)) == 1725
    assert re.search("MRPC/test.tsv.*hidden", error_of(TASKS["mrpc"], "test", folder))
