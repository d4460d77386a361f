"""`leebert init`: what a table is taken for, the file that it becomes, the next commands word for word, and wrong inputs."""

import csv
import itertools
import json
import random
import re
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoders import graded_rows, save_backbone

from leebert.data.inspect import Column, Table, guess
from leebert.data.sources import read_split
from leebert.data.tasks import named_or_declared, own_task
from leebert.errors import DataError
from leebert.starter import time_here
from leebert.yaml import load_yaml
from tune.space import load_space

WORDS = [
    "a",
    "film",
    "with",
    "good",
    "actors",
    "and",
    "a",
    "plot",
    "that",
    "nobody",
    "would",
    "call",
    "boring",
    "or",
    "long",
]


def reviews(n=60, share=0.5, seed=0):
    """Reviews with ids, dates and labels of two classes."""
    rng = random.Random(seed)
    return [
        {
            "id": i, "review": " ".join(rng.choices(WORDS, k=rng.randint(4, 9))) + f" {i}.", "day": f"2026-01-{i % 9 + 1:02}",
            "sentiment": "good" if i < share * n else "bad",
        }
        for i in range(n)
    ]  # fmt: skip


def write(path, rows):
    """Write rows in the format of the file's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(rows):
    return Table("t.csv", {name: Column(name, [row[name] for row in rows]) for name in rows[0]})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_of_any_kind_becomes_a_valid_space_that_is_also_a_task(suffix, tmp_path, cli):
    write(tmp_path / f"films{suffix}", reviews())
    ran = cli("leebert", "init", f"films{suffix}")
    assert ran.code == 0, ran.err
    assert re.search(r"not used +id \(identifies rows\), day \(9 values\)", ran.out)
    assert ran.out.endswith("  leebert-tune sweep films.yaml --name films\n  leebert-tune best films\n")
    spec = load_space(tmp_path / "films.yaml")
    assert (spec.task["text"], spec.task["label"], spec.task["labels"]) == (["review"], "sentiment", ["bad", "good"])
    assert spec.task["metric"] == "accuracy"
    assert (spec.planned, spec.folds, spec.pooling) == (8, 5, "mean")
    task = own_task(named_or_declared("films.yaml"))
    assert len(read_split(task, "train")) == 60
    assert max(map(len, (tmp_path / "films.yaml").read_text().splitlines())) < 120


def test_options_name_the_columns_and_json_has_the_guesses(tmp_path, cli):
    write(tmp_path / "films.csv", [{**row, "stars": "12345"[i % 5]} for i, row in enumerate(reviews())])
    ran = cli(
        "leebert",
        "init",
        "films.csv",
        "--label",
        "stars",
        "--text",
        "review",
        "--out",
        "new/own.yaml",
        "--backbone",
        "x/y",
        "--json",
    )
    assert ran.json["labels"] == {"1": 12, "2": 12, "3": 12, "4": 12, "5": 12}
    assert ran.json["next"][0] == "leebert-tune sweep new/own.yaml --name films"
    assert load_yaml("new/own.yaml")["task"]["labels"] == ["1", "2", "3", "4", "5"]
    assert load_yaml("new/own.yaml")["pooling"] == "pooler"


def test_existing_files_are_replaced_only_with_force(tmp_path, cli):
    write(tmp_path / "films.csv", reviews())
    (tmp_path / "films.yaml").write_text("mine")
    ran = cli("leebert", "init", "films.csv")
    assert (ran.code, ran.err) == (
        1,
        "error: films.yaml exists already; add --force to replace it, or name another file by --out\n",
    )
    assert (tmp_path / "films.yaml").read_text() == "mine"
    assert cli("leebert", "init", "films.csv", "--force").code == 0
    assert load_space(tmp_path / "films.yaml").task_name == "films"


def test_other_splits_are_files_beside_it_or_named_by_a_column(tmp_path, cli):
    folder = tmp_path / "claims"
    folder.mkdir()
    write(folder / "train.csv", reviews())
    write(folder / "Validation.csv", reviews(9, seed=1))
    assert cli("leebert", "init", "claims/train.csv").code == 0
    assert load_yaml("claims.yaml")["task"]["files"] == {"train": "claims/train.csv", "dev": "claims/Validation.csv"}
    rows = [{**row, "split": "valid" if i % 4 == 0 else "train"} for i, row in enumerate(reviews())]
    write(tmp_path / "all.csv", rows)
    ran = cli("leebert", "init", "all.csv")
    assert ran.code == 0, ran.err
    task = own_task(named_or_declared("all.yaml"))
    assert {split: len(read_split(task, split)) for split in ("train", "dev")} == {"train": 45, "dev": 15}
    assert "wrote all-dev.jsonl" in ran.out
    write(tmp_path / "all-train.jsonl", rows)
    ran = cli("leebert", "init", "all-train.jsonl", "--force")
    assert (ran.code, len((tmp_path / "all-train.jsonl").read_text().splitlines())) == (1, len(rows))
    assert "would replace the data in all-train.jsonl" in ran.err


def test_a_bad_row_of_a_split_column_is_named_in_the_users_file_and_nothing_is_written(tmp_path, cli):
    rows = [{**row, "split": "dev" if i % 4 == 0 else "train"} for i, row in enumerate(reviews())]
    rows[8]["review"] = ""
    write(tmp_path / "films.csv", rows)
    ran = cli("leebert", "init", "films.csv")
    assert "films.csv, line 10" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["films.csv"]


def test_pairs_classes_and_repeated_texts_determine_metric_and_groups():
    pairs = [
        {"claim": f"claim {i} is about {i}", "evidence": f"the text {i // 2} says so", "label": i % 2}
        for i in range(40)
    ]
    seen = guess(table(pairs))
    assert (seen.texts, seen.label, seen.group_by) == (("claim", "evidence"), "label", None)
    assert dict(seen.labels) == {"0": 20, "1": 20}
    assert seen.largest_group == 2
    asked = [{**row, "evidence": "which of the two is meant?"} for row in pairs]
    assert guess(table(asked)).group_by == ("claim",), "one text of all rows would put them into one fold"
    uneven = guess(table(reviews(60, share=0.1)))
    assert uneven.metric == "macro_f1"
    twice = guess(table([*reviews(), {**reviews()[0], "sentiment": "bad"}]))
    assert (twice.repeated, twice.contradictory) == (2, 1)


def test_long_tables_are_searched_on_a_subset_and_short_ones_in_more_epochs(tmp_path, cli):
    texts = (" ".join(words) for words in itertools.permutations("abcdefgh"))
    rows = [{"text": f"{text} word" * 36, "label": i % 3} for i, text in zip(range(3000), texts, strict=False)]
    write(tmp_path / "long.csv", rows)
    space = cli("leebert", "init", "long.csv", "--json").json["space"]
    assert space["subset"] < 3000
    assert 45 < space["minutes"] <= 60
    assert load_space(tmp_path / "long.yaml").data.subset.rows == space["subset"]
    write(tmp_path / "short.csv", reviews())
    space = cli("leebert", "init", "short.csv", "--json").json["space"]
    assert (space["subset"], space["max_epochs"], space["max_length"], space["lr_omega"]) == (None, 10, 16, "2e-2")


def test_the_estimate_accounts_for_this_machine():
    assert time_here(5, 2, 0.2) == time_here(5, 64, 30) == ""
    assert time_here(5, 2, 6.0) == ", about 20 minutes here (2 cores and a load of 6.0)"
    assert time_here(5, 1, 0.0) == ", about 10 minutes here (1 core)"


def changed(**values):
    return [{**row, **{k: v(i) for k, v in values.items()}} for i, row in enumerate(reviews())]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"review": "good and long film", "who": f"x{i}"} for i in range(30)], "no column of labels among review, who"),
        (changed(sentiment=lambda i: "good"), "column 'sentiment': every label is 'good'; a task needs at least two classes"),
        (changed(sentiment=lambda i: f"c{i}"), "column 'sentiment': every row has a label of its own"),
        ([{"text1": f"a {i}", "text2": f"b {i}", "score": i / 7} for i in range(30)], "30 different numbers: this is a regression"),
        (changed(sentiment=lambda i: i / 7), "60 different numbers: this is a regression"),
        (changed(sentiment=lambda i: "rare" if i == 3 else "good"), "the label 'rare' has fewer than 5 rows"),
        ([{"a": i % 2, "b": i % 3, "text": f"some words {i}"} for i in range(30)], "a, b could all be labels"),
        ([{"label": i % 2, "price": i} for i in range(30)], "no column of texts among label, price"),
        (changed(review=lambda i: "" if i == 2 else f"the film {i}"), "line 4, column 'review': the text is empty"),
    ],
)  # fmt: skip
def test_what_is_no_classification_is_refused_in_a_line(tmp_path, cli, rows, said):
    write(tmp_path / "own.csv", rows)
    ran = cli("leebert", "init", "own.csv")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert said in ran.err
    assert ran.err.startswith("error: own.csv")
    assert not (tmp_path / "own.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("own.csv", b"", "own.csv: the file is empty"),
        ("own.csv", b"text,label\n", "own.csv: no rows"),
        ("own.csv", b"text,label\na b c,1\n", "own.csv: too few rows (1)"),
        ("own.csv", "text,label\nGrüße,1\n".encode("latin-1"), "own.csv, line 2: not UTF-8 at byte 13 (0xfc); save the file as UTF-8"),
        ("own.csv", "text,label\nx,1\n".encode("utf-16"), "saved as UTF-16"),
        ("own.csv", b"text;label\ngood;1\n", "the separator seems to be ';'"),
        ("own.csv", b"good film indeed,1\nbad film,0\n", "column name '1' looks like data; add a first line"),
        ("own.xlsx", b"PK", "unknown file type; save the table as one of"),
        ("own.jsonl", b'{"text": "x", "label": 1}\nnothing\n', "own.jsonl, line 2: not valid JSON"),
        ("other.csv", b"text,label\n", "own.csv: no such file"),
    ],
)  # fmt: skip
def test_unreadable_files_are_refused_in_a_line(tmp_path, cli, name, content, said):
    (tmp_path / name).write_bytes(content)
    ran = cli("leebert", "init", "own.csv" if name == "other.csv" else name)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert said in ran.err


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_declared_by_its_id(tmp_path, cli, monkeypatch):
    import datasets

    rows = reviews()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    columns = {"text": [row["review"] for row in rows], "label": [row["id"] % 2 for row in rows]}
    data = datasets.Dataset.from_dict(columns, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: data)
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda *args, **options: ["train", "validation", "unsupervised"]
    )
    ran = cli("leebert", "init", "somebody/films@abc")
    assert ran.code == 0, ran.err
    task = load_yaml("films.yaml")["task"]
    assert (task["hub"], task["hub_splits"]) == ("somebody/films@abc", {"train": "train", "dev": "validation"})
    assert task["labels"] == ["neg", "pos"]
    assert load_space(tmp_path / "films.yaml").task_name == "films"

    def offline(*args, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    ran = cli("leebert", "init", "somebody/others")
    assert (ran.code, ran.err.count("\n")) == (1, 2), "what it reads, and the error"
    assert "hub:somebody/others split 'train': the hub could not be reached (no route to host)" in ran.err
    assert "leebert init FILE" in ran.err


def test_columns_that_options_name_must_exist_and_fit():
    with pytest.raises(DataError, match=r"--label sentimnt: t.csv has no such column \(did you mean 'sentiment'\?\)"):
        guess(table(reviews()), label="sentimnt")
    with pytest.raises(DataError, match="--text id: its values in t.csv are not texts"):
        guess(table(reviews()), texts=["id"])
    with pytest.raises(DataError, match="--text sentiment: this is the column of labels"):
        guess(table(reviews()), texts=["sentiment"], label="sentiment")


@pytest.mark.slow
def test_the_printed_commands_run_word_for_word(tmp_path, cli_without_ray, mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    monkeypatch.delenv("LEEBERT_STORAGE", raising=False)
    write(tmp_path / "moods.csv", graded_rows(160))
    save_backbone(tmp_path / "encoder", layers=2)
    ran = cli_without_ray("leebert", "init", "moods.csv", "--text", "a", "--text", "b", "--backbone", "encoder")
    assert ran.code == 0, ran.err
    # A user's edit: rates for an encoder without pretraining, and two methods.
    space = (tmp_path / "moods.yaml").read_text()
    space = space.replace("[1e-4, 2e-4]", "[6e-3]").replace("clo-v2, blo, hyper-v2]", "clo-v2]")
    (tmp_path / "moods.yaml").write_text(space)
    commands = [line.strip() for line in ran.out.splitlines() if line.startswith("  leebert")]
    assert len(commands) == 2
    for command in commands:
        program, *words = shlex.split(command)
        done = cli_without_ray(program, *words)
        assert done.code == 0, done.err
    assert load_yaml(tmp_path / "best" / "moods.yaml")["found"]["complete_configurations"] == 2
