"""The demonstration data: balanced, deterministic, of both difficulties, and a task like any other."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.data.folds import group_ids, make_folds
from leebert.data.sources import read_split
from leebert.data.synthetic import demo_rows, write_demo
from leebert.data.tasks import own_task
from leebert.errors import DataError


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(rows=st.integers(4, 300), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_rows_are_balanced_short_and_deterministic(rows: int, seed: int) -> None:
    made = demo_rows(rows, seed)
    assert made == demo_rows(rows, seed)
    assert made != demo_rows(rows, seed + 1)
    kinds = collections.Counter((row["label"], row["difficulty"]) for row in made)
    assert len(kinds) == 4
    assert max(kinds.values()) - min(kinds.values()) <= 1
    for row in made:
        for sentence in (row["sentence1"], row["sentence2"]):
            assert 8 <= len([word for word in sentence.split() if word.isalpha()]) <= 14
        assert row["sentence1"] != row["sentence2"]
    assert len({(row["sentence1"], row["sentence2"]) for row in made}) == rows


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_demo(tmp_path / name, rows=40, dev_rows=20, seed=seed)
    one, two, three = (
        [(tmp_path / n / f).read_bytes() for f in ("train.jsonl", "dev.jsonl")] for n in ("one", "two", "three")
    )
    assert one == two
    assert one != three


def test_train_and_dev_share_no_sentence(tmp_path: Path) -> None:
    write_demo(tmp_path)
    train, dev = rows_of(tmp_path / "train.jsonl"), rows_of(tmp_path / "dev.jsonl")
    assert (len(train), len(dev)) == (600, 200)
    sentences = [{row[c] for row in rows for c in ("sentence1", "sentence2")} for rows in (train, dev)]
    assert not sentences[0] & sentences[1]


def test_hard_negatives_share_more_words_than_hard_paraphrases(tmp_path: Path) -> None:
    overlap = collections.defaultdict(list)
    for row in demo_rows(600, 0):
        a, b = ({*row[c].lower().split()} for c in ("sentence1", "sentence2"))
        overlap[row["label"], row["difficulty"]].append(len(a & b) / len(a | b))
    mean = {kind: np.mean(values) for kind, values in overlap.items()}
    assert mean["paraphrase", "easy"] > 0.8
    assert mean["different", "easy"] < 0.4
    assert mean["different", "hard"] > mean["paraphrase", "hard"]  # counting words misleads here


def test_it_is_a_task_with_groups_and_folds(tmp_path: Path) -> None:
    task = own_task(write_demo(tmp_path, rows=200, dev_rows=20))
    train = read_split(task, "train")
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [100, 100]
    sizes = np.bincount(group_ids(train, task))
    assert 0 < sizes[sizes > 1].sum() < 60
    assert sizes.max() <= 8
    folds = make_folds(train, task, 5, 0)
    assert all(36 <= len(folds.held_out(fold)) <= 44 for fold in range(5))
    assert len(read_split(task, "dev")) == 20


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dev_rows is 3; at least 4"):
        write_demo(tmp_path, dev_rows=3)
