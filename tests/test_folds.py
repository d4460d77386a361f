"""Groups and folds: no text on both sides, every row held out once, the same for the same seed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.data.folds import Folds, containing_groups, group_ids, grouping_name, make_folds, normalise
from leebert.data.sources import Examples, read_split
from leebert.data.tasks import TASKS, Task, own_task
from leebert.errors import DataError

RELEASE = os.environ.get("LEEBERT_DATA")
needs_release = pytest.mark.skipif(not RELEASE, reason="LEEBERT_DATA is not set: no GLUE files to read")

LABELS = ("no", "yes")


def task_of(text: tuple[str, ...] = ("a", "b"), group_by: object = None) -> Task:
    spec = {"name": "own", "files": {"train": "x.csv"}, "text": text, "label": "y", "labels": LABELS}
    return own_task({**spec, "group_by": group_by})


PAIRS, FIRST, ALONE = task_of(), task_of(group_by=("a",)), task_of(group_by="none")
SINGLE, PHRASES = task_of(("a",)), task_of(("a",), "containing")


def examples_of(labels: list[int], *texts: list[str]) -> Examples:
    return Examples(texts, np.array(labels, np.int64), np.arange(len(labels)) * 2, "made.tsv", LABELS)


# --- normalised texts and groups


@pytest.mark.parametrize(
    ("one", "other"),
    [("A  b\t c ", "a b c"), ("ＡＢＣ", "abc"), ("STRASSE", "straße"), ("e\u0301te\u0301", "été"), ("a\u00a0b", "a b")],
)
def test_texts_that_are_the_same_for_grouping(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_rows_that_share_either_sentence_are_one_group_however_far_the_chain_goes() -> None:
    examples = examples_of([0] * 6, ["p", "q", "s", "Q ", "u", "v"], ["q", "r", "t", "w", "P", "x"])
    assert group_ids(examples, PAIRS).tolist() == [0, 0, 1, 0, 0, 2]
    assert group_ids(examples, FIRST).tolist() == [0, 1, 2, 1, 3, 4]
    assert group_ids(examples, ALONE).tolist() == [0, 1, 2, 3, 4, 5]


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(" ".join)


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=25))
@settings(max_examples=75, deadline=None)
def test_groups_are_the_components_of_sharing(pairs: list[tuple[str, str]]) -> None:
    a, b = ([*column] for column in zip(*pairs, strict=True))
    groups = group_ids(examples_of([0] * len(a), a, b), PAIRS)
    merged = list(range(len(a)))  # the plainest algorithm there is
    for _ in a:
        for i in range(len(a)):
            for j in range(len(a)):
                if {a[i], b[i]} & {a[j], b[j]}:
                    merged[i] = merged[j] = min(merged[i], merged[j])
    assert [groups[i] == groups[0] for i in range(len(a))] == [m == merged[0] for m in merged]
    assert len(set(groups)) == len(set(merged)) == groups.max() + 1


@given(texts=st.lists(WORDS, min_size=1, max_size=30))
@settings(max_examples=75, deadline=None)
def test_a_phrase_goes_with_the_longest_text_that_contains_it(texts: list[str]) -> None:
    groups = containing_groups(texts)
    for i, text in enumerate(texts):
        holders = [t for t in texts if f" {text} " in f" {t} "]
        longest = max(len(t.split()) for t in holders)
        first = next(t for t in texts if t in holders and len(t.split()) == longest)
        assert texts[groups[i]] == first
        assert groups[i] == texts.index(first)


def test_words_are_contained_whole() -> None:
    assert containing_groups(["the cat sat", "cat", "at", "he cat", "sat the"]).tolist() == [0, 0, 2, 3, 4]
    assert group_ids(examples_of([0] * 3, ["Cat ", "dog", "a CAT"]), PHRASES).tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="one text, not of a pair"):
        group_ids(examples_of([0], ["a"], ["b"]), dataclasses.replace(PAIRS, group_by="containing"))


# --- folds


@st.composite
def grouped(draw: st.DrawFn) -> Examples:
    """80 to 200 rows of both labels whose sentences are shared by a few."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(80, 200))
    pool = draw(st.sampled_from([n * 3, n * 8, n * 1000]))
    a, b = ([f"{'T' if rng.random() < 0.5 else 't'} {i}" for i in rng.integers(pool, size=n)] for _ in range(2))
    return examples_of((rng.permutation(n) < n * 0.4).astype(int).tolist(), a, b)


@pytest.mark.slow
@given(examples=grouped(), k=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_contract_of_folds(examples: Examples, k: int, seed: int) -> None:
    folds = make_folds(examples, PAIRS, k, seed)
    assert examples.labels is not None
    held = [folds.held_out(fold) for fold in range(k)]
    slack = 2 + 2 * np.bincount(group_ids(examples, PAIRS)).max()  # what keeps together can't balance row by row
    for fold, rows in enumerate(held):
        train = folds.train(fold)
        assert sorted([*train, *rows]) == list(range(len(examples)))
        sides = [{normalise(column[i]) for column in examples.texts for i in side} for side in (train, rows)]
        assert not sides[0] & sides[1]
        share = np.bincount(examples.labels) / (k if k > 1 else 10)
        assert np.all(np.abs(np.bincount(examples.labels[rows]) - share) <= slack)
    if k > 1:
        assert sorted(np.concatenate(held)) == list(range(len(examples)))
    again = make_folds(examples, PAIRS, k, seed)
    assert again.digest == folds.digest
    assert np.array_equal(again.assignment, folds.assignment)


def test_the_seed_and_only_the_seed_changes_the_folds() -> None:
    examples = examples_of([0, 1] * 50, [f"a{i}" for i in range(100)], [f"b{i}" for i in range(100)])
    digests = {make_folds(examples, task, 5, seed).digest for seed in (0, 1) for task in (PAIRS, FIRST, ALONE)}
    assert len(digests) == 6  # the grouping is part of the digest, even where it changes no fold
    moved = dataclasses.replace(examples, ids=examples.ids + 1)
    assert make_folds(moved, PAIRS, 5, 0).digest not in digests


def test_without_shared_texts_labels_balance_exactly() -> None:
    examples = examples_of([0, 1, 1] * 20, [f"a{i}" for i in range(60)])
    folds = make_folds(examples, SINGLE, 5, 0)
    assert examples.labels is not None
    assert [np.bincount(examples.labels[folds.held_out(i)]).tolist() for i in range(5)] == [[4, 8]] * 5


def test_one_fold_is_a_hold_out_of_a_tenth() -> None:
    examples = examples_of([0, 1] * 100, [f"a{i}" for i in range(200)])
    folds = make_folds(examples, SINGLE, 1, 0)
    assert len(folds.held_out(0)) == 20
    assert set(folds.assignment) == {0, -1}
    # A group of nearly a third of the rows can't be held out as a tenth, so another part is.
    shared = examples_of([0, 1] * 100, [f"a{max(i, 60)}" for i in range(200)])
    assert 10 < len(make_folds(shared, SINGLE, 1, 0).held_out(0)) < 30


@pytest.mark.parametrize(
    ("k", "labels", "texts", "message"),
    [
        (0, [0, 1] * 10, None, "folds: 0: the number of folds must be at least 1"),
        (5, [0, 1], None, "folds: 5: needs at least 5 samples, but there are 2"),
        (5, [0, 1] * 10, "same", "folds: 5: needs at least 5 groups by a, but there are 1"),
        (5, [0] * 20 + [1] * 3, None, "folds: 5: needs at least 5 samples of the label 'yes', but there are 3"),
        (
            1,
            [0] * 20 + [1] * 3,
            None,
            "at least 10 samples of the label 'yes', but there are 3 (one validation split is a 10th",
        ),
        (2, [0] * 20, None, "fold 0 of 2: the training samples have only the label 'no'"),
    ],
)
def test_folds_that_cannot_be_made(k: int, labels: list[int], texts: str | None, message: str) -> None:
    column = [texts or f"t{i}" for i in range(len(labels))]
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        make_folds(examples_of(labels, column), SINGLE, k, 0)
    assert "made.tsv" in str(caught.value)


def test_a_side_with_one_label_is_named() -> None:
    labels = [0] * 30 + [1] * 10
    texts = [f"t{i}" for i in range(30)] + ["one text"] * 10  # the label 'yes' is a single group
    message = "fold . of 2: the (training|validation) samples have only the label 'no'"
    with pytest.raises(DataError, match=message):
        make_folds(examples_of(labels, texts), SINGLE, 2, 0)


def test_no_hold_out_of_a_tenth() -> None:
    texts = [f"t{min(i, 10)}" for i in range(200)]
    with pytest.raises(DataError, match="the largest has 190 of 200 samples"):
        make_folds(examples_of([0, 1] * 100, texts), SINGLE, 1, 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(DataError, match=f"the seed {seed} is out of range"):
        make_folds(examples_of([0, 1] * 10, [f"t{i}" for i in range(20)]), SINGLE, 2, seed)


def test_unlabelled_rows_have_no_folds() -> None:
    with pytest.raises(DataError, match="folds need labels"):
        make_folds(dataclasses.replace(examples_of([0], ["a"]), labels=None), SINGLE, 2, 0)


# --- the manifest


@pytest.fixture
def folds() -> Folds:
    return Folds(3, 7, "a | b", np.array([0, 1, 2, 0, 1, 2]), np.arange(6) * 2)


def test_a_manifest_brings_the_folds_back(folds: Folds, tmp_path: Path) -> None:
    folds.save(tmp_path / "deep" / "folds.json")
    loaded = Folds.load(tmp_path / "deep" / "folds.json")
    assert (loaded.k, loaded.seed, loaded.grouping, loaded.digest) == (3, 7, "a | b", folds.digest)
    assert np.array_equal(loaded.ids, folds.ids)
    assert np.array_equal(loaded.held_out(1), [1, 4])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["folds.json"]


@pytest.mark.parametrize("key", ["k", "seed", "grouping", "ids", "assignment", "digest"])
def test_an_altered_manifest_is_refused(folds: Folds, tmp_path: Path, key: str) -> None:
    path = tmp_path / "folds.json"
    folds.save(path)
    values = json.loads(path.read_text())
    changed = {"k": 4, "seed": 8, "grouping": "a", "ids": [9, 2, 4, 6, 8, 10], "assignment": [1, 1, 2, 0, 1, 2]}
    path.write_text(json.dumps({**values, key: changed.get(key, "0" * 64)}))
    with pytest.raises(DataError, match=r"folds\.json: the folds were altered"):
        Folds.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"digest": 1}', '{"k": 1, "digest": 2, "x": 3}', "\ufffd\x00"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "folds.json").write_text(content)
    with pytest.raises(DataError, match=r"folds\.json: not a readable fold manifest"):
        Folds.load(tmp_path / "folds.json")
    with pytest.raises(DataError, match="no such fold manifest"):
        Folds.load(tmp_path / "none.json")


def test_folds_check_themselves(folds: Folds) -> None:
    for fold in (-1, 3):
        with pytest.raises(DataError, match=f"fold {fold}: there are 3 folds, 0 to 2"):
            folds.train(fold)
    with pytest.raises(DataError, match=r"outside 0\.\.2"):
        Folds(3, 0, "none", np.array([0, 3]))
    with pytest.raises(DataError, match="2 assigned rows, but 1 row ids"):
        Folds(3, 0, "none", np.array([0, 1]), np.array([5]))
    assert Folds(2, 0, "none", np.array([0, 1])).ids.tolist() == [0, 1]


def test_what_the_grouping_is_called() -> None:
    names = [grouping_name(task) for task in (TASKS["mrpc"], ALONE, PHRASES)]
    assert names == ["#1 String | #2 String", "none", "containing"]


# --- the real files


def release(name: str) -> Examples:
    return read_split(TASKS[name], "train", Path(str(RELEASE)) / "glue")


@pytest.mark.slow
@needs_release
def test_527_rows_of_mrpc_share_a_sentence_with_another_row() -> None:
    examples = release("mrpc")
    groups = group_ids(examples, TASKS["mrpc"])
    assert (np.bincount(groups)[groups] > 1).sum() == 527
    folds = make_folds(examples, TASKS["mrpc"], 5, 0)
    for fold in range(5):
        train, held = (
            {normalise(column[i]) for column in examples.texts for i in side}
            for side in (folds.train(fold), folds.held_out(fold))
        )
        assert not train & held
        assert 730 < len(folds.held_out(fold)) < 738


@needs_release
@pytest.mark.slow
def test_sst2_groups_by_the_longest_text_in_under_a_minute() -> None:
    examples = release("sst2")
    started = time.perf_counter()
    groups = group_ids(examples, dataclasses.replace(TASKS["sst2"], group_by="containing"))
    assert time.perf_counter() - started < 60
    assert len(groups) == 67_349
    assert 6_000 < groups.max() + 1 < 8_000  # about as many as the corpus has training sentences
