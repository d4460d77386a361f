"""The demonstration's reviews and encoder: balanced, deterministic, and made so that depth and loss weights matter."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.data.folds import make_folds
from leebert.data.sources import read_split
from leebert.data.synthetic import FORMS, demo_rows, vocabulary, write_demo
from leebert.data.synthetic.encoder import demo_encoder
from leebert.data.tasks import own_task
from leebert.errors import DataError


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(rows=st.integers(12, 300), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_rows_are_balanced_short_and_deterministic(rows: int, seed: int) -> None:
    made = demo_rows(rows, seed)
    assert made == demo_rows(rows, seed)
    assert made != demo_rows(rows, seed + 1)
    kinds = collections.Counter((row["label"], row["difficulty"]) for row in made)
    assert len(kinds) == 4
    assert max(kinds.values()) - min(kinds.values()) <= len(FORMS)
    assert len({row["text"] for row in made}) == rows
    words = [word for row in made for word in row["text"].lower().split()]
    assert set(words) <= set(vocabulary())
    assert all(6 <= len(row["text"].split()) <= 12 for row in made)


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_demo(tmp_path / name, rows=48, dev_rows=24, seed=seed)
    one, two, three = (
        [(tmp_path / n / f).read_bytes() for f in ("train.jsonl", "dev.jsonl")] for n in ("one", "two", "three")
    )
    assert one == two
    assert one != three


def test_train_and_dev_share_no_review(tmp_path: Path) -> None:
    write_demo(tmp_path)
    train, dev = rows_of(tmp_path / "train.jsonl"), rows_of(tmp_path / "dev.jsonl")
    assert (len(train), len(dev)) == (600, 200)
    assert not {row["text"] for row in train} & {row["text"] for row in dev}


def test_one_word_decides_and_only_easy_reviews_begin_with_it() -> None:
    rows = demo_rows(600, 0)
    labels = collections.defaultdict(set)
    for row in rows:
        for word in row["text"].lower().split():
            labels[word].add(row["label"])
    opinions = {word for word, seen in labels.items() if len(seen) == 1}
    assert len(opinions) == 12
    for row in rows:
        words = row["text"].lower().split()
        (place,) = [i for i, word in enumerate(words) if word in opinions]
        assert (place == 0) == (row["difficulty"] == "easy")


def test_it_is_a_task_with_folds(tmp_path: Path) -> None:
    task = own_task(write_demo(tmp_path, rows=204, dev_rows=24))
    train = read_split(task, "train")
    assert train.labels is not None
    assert np.bincount(train.labels).tolist() == [102, 102]
    folds = make_folds(train, task, 5, 0)
    assert all(40 <= len(folds.held_out(fold)) <= 42 for fold in range(5))
    assert len(read_split(task, "dev")) == 24


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dev_rows is 3; at least 12"):
        write_demo(tmp_path, dev_rows=3)


@torch.no_grad()
def test_the_first_layers_of_the_encoder_see_only_the_first_words() -> None:
    encoder = demo_encoder(40).eval()
    ids = torch.randint(5, 40, (8, 12), generator=torch.Generator().manual_seed(0))
    before = encoder(ids, output_hidden_states=True).hidden_states
    for place in range(1, 12):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] - 4) % 35 + 5
        after = encoder(changed, output_hidden_states=True).hidden_states
        moved = [float((a[:, 0] - b[:, 0]).norm(dim=1).max()) for a, b in zip(after, before, strict=True)]
        assert (moved[1] > 0.1) == (place <= 3), (place, moved)
        assert moved[2] > 0.1 or place > 6, (place, moved)
        assert moved[2] < 0.1 or place <= 6, (place, moved)
        assert moved[6] > 0.1, (place, moved)
