"""A tokenizer and an encoder that don't fit each other: one line before anything trains or serves, with both numbers."""

import json
import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from encoders import EVERY_FAMILY, SPECIAL, WORDS, encoder, save_backbone, text_rows, tokenizer, write_task
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_models import save_model

from leebert.compatibility import Limits, check_tokenizer, limits_of_encoder
from leebert.config import ModelConfig
from leebert.data.collate import TokenRows
from leebert.data.readers import Row
from leebert.errors import BackboneError, CheckpointError, ConfigError, DataError, SweepError
from leebert.exits.replay import make_criterion
from leebert.kinds import KINDS
from leebert.kinds.texts import load_text_model
from leebert.model import build_model
from leebert.predict import encode, predictions
from leebert.runtime import Runtime
from leebert.serving import Served
from leebert.yaml import dump_yaml

TOKENS = len(SPECIAL) + len(set(WORDS))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("LEEBERT_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def without_padding():
    rows = tokenizer()
    rows.pad_token = None
    return rows


def framed(single, pair):
    """The tokenizer with another frame around texts."""
    from tokenizers import processors

    rows = tokenizer()
    rows.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return rows


def three_segments():
    return framed("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:2 [SEP]:2")


def without_frame():
    return framed("$A", "$A $B:1")


def with_words(*words):
    rows = tokenizer()
    rows.add_tokens(list(words))
    return rows


#: What is wrong with a backbone: how it is made, its tokenizer, changes of the configuration, and parts of the one line.
BACKBONES = {
    "a vocabulary larger than the embedding": (
        {"vocab_size": TOKENS - 2}, tokenizer, {},
        [f"{TOKENS} tokens (ids up to {TOKENS - 1})", f"embeds {TOKENS - 2} (ids up to {TOKENS - 3})", "resize_token_embeddings"],
    ),
    "a token that was added later": (
        {"vocab_size": TOKENS}, lambda: with_words("cats"), {},
        [f"{TOKENS + 1} tokens", f"embeds {TOKENS} ", f"resize_token_embeddings({TOKENS + 1})"],
    ),
    "positions that a RoBERTa uses for padding": (
        {"family": "roberta", "pad_token_id": 1}, tokenizer, {"max_length": 64},
        ["max_length 64", "64 positions", "the first 2 are for padding", "at most 62 tokens", "set max_length to 62 or less"],
    ),
    "more segments than the encoder has": ({}, three_segments, {}, ["segment ids up to 2", "embeds 2 segments"]),
    "no padding token": ({}, without_padding, {}, ["no padding token", "pad_token in tokenizer_config.json"]),
    "no first token for the exits": (
        {}, without_frame, {"pooling": "cls"}, ["no special token such as [CLS]", "pooling 'cls'", "set pooling to mean"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Every such backbone in a folder of its name, and a task of pairs."""
    folder = tmp_path_factory.mktemp("misfits")
    task = write_task(folder / "data", n=60)
    for name, (options, make, _, _) in BACKBONES.items():
        save_backbone(folder / name, **{"layers": 2, **options})
        make().save_pretrained(folder / name)
    return folder, task


def space_of(place, name, path, **more):
    folder, task = place
    values = {
        "task": task, "backbone": str(folder / name), "max_length": 32, "algorithms": ["blo"], "folds": 2,
        "space": {"lr_theta": [1e-3]}, "training": {"batch_size": 4, "max_epochs": 1, "precision": "fp32"},
    }  # fmt: skip
    path.write_text(dump_yaml(values | more))
    return path


def refuses(ran, parts):
    """One line on stderr with all these parts in it, nothing on stdout."""
    assert ran.code == 1, (ran.code, ran.out, ran.err)
    assert ran.err.startswith("error: "), ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert ran.out == ""
    for part in parts:
        assert part in ran.err


@pytest.mark.parametrize("name", BACKBONES)
def test_train_refuses_in_one_line(place, cli, tmp_path, name):
    folder, task = place
    _, _, model, parts = BACKBONES[name]
    values = {"task": task, "model": {"backbone": str(folder / name), "max_length": 32, **model}}
    (tmp_path / "run.yaml").write_text(dump_yaml(values))
    refuses(
        cli("leebert", "train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "m"),
        [*parts, str(folder / name)],
    )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "sweep"])
def test_a_sweep_refuses_in_one_line_and_begins_nothing(place, cli, tmp_path, monkeypatch, name, options):
    monkeypatch.setattr("tune.running.sweep.tracker_for", lambda *args: None)
    _, _, changes, parts = BACKBONES[name]
    path = space_of(place, name, tmp_path / "space.yaml", **changes)
    refuses(cli("leebert-tune", "sweep", path, "--name", "s", *options), parts)
    assert not (tmp_path / "sweeps" / "s").exists()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_doctor_detects_it(place, tmp_path, monkeypatch, name):
    from tune.running import doctor
    from tune.space import load_space

    def no_ray(address):
        raise SweepError("no cluster in this test")

    monkeypatch.setattr(doctor, "start_ray", no_ray)
    _, _, changes, parts = BACKBONES[name]
    spec = load_space(space_of(place, name, tmp_path / "space.yaml", storage=str(tmp_path / "sweeps"), **changes))
    found = {check.name: check for check in doctor.examine(spec) if check.where == "driver"}
    at_fault = found["data" if "max_length" in changes else "backbone"]
    assert at_fault.status == "failed"
    assert [part for part in parts if part not in at_fault.detail] == []
    assert {name for name, check in found.items() if check.status == "failed"} == {"ray", at_fault.name}


def test_memory_is_estimated_only_for_rows_that_have_positions(place, tmp_path):
    from tune.machines.footprint import estimate_for_space
    from tune.space import load_space

    name = "positions that a RoBERTa uses for padding"
    with pytest.raises(ConfigError, match="at most 62 tokens"):
        estimate_for_space(load_space(space_of(place, name, tmp_path / "space.yaml", max_length=63)))


# Saved models, whose tokenizer was replaced.

#: What lies beside a saved model with 64 embeddings, 64 positions and 2 segments, and parts of the one line.
REPLACED = {
    "a larger vocabulary": (
        lambda: with_words(*map(str, range(64 - TOKENS + 1))),
        ["65 tokens (ids up to 64)", "embeds 64 (ids up to 63)", "restore the tokenizer that was saved with it"],
    ),
    "more segments": (three_segments, ["segment ids up to 2", "embeds 2 segments"]),
    "no padding": (without_padding, ["no padding token"]),
}
OWN = {"name": "pairs", "files": {"train": "x.csv"}, "text": ["a", "b"], "label": "label", "labels": ["no", "yes"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model with a sound tokenizer, and texts and labelled rows for it."""
    folder = tmp_path_factory.mktemp("saved")
    task = {**OWN, "files": write_task(folder / "data", n=20)["files"]}
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text_rows(20)))
    return save_model(folder / "model", task, ("no", "yes")), folder / "texts.jsonl"


@pytest.fixture
def replaced(saved, tmp_path):
    def beside(make):
        folder = shutil.copytree(saved[0], tmp_path / "model")
        make().save_pretrained(folder)
        return folder

    return beside


@pytest.mark.parametrize("name", REPLACED)
def test_a_saved_model_with_another_tokenizer_is_refused_by_every_command(saved, replaced, cli, name):
    make, parts = REPLACED[name]
    folder = replaced(make)
    for command in (
        ["predict", folder, saved[1]], ["evaluate", folder], ["calibrate", folder, saved[1], "--speed-up", 2],
    ):  # fmt: skip
        refuses(cli("leebert", *command), [*parts, str(folder)])
    with pytest.raises(CheckpointError, match=re.escape(parts[0])):
        Served(folder, "cpu")


def test_refit_evaluates_no_model_whose_tokenizer_does_not_fit(replaced):
    from types import SimpleNamespace

    from tune.models.refit import _evaluated

    folder = replaced(REPLACED["a larger vocabulary"][0])
    best = SimpleNamespace(config=SimpleNamespace(task=json.loads((folder / "config.json").read_text())["task"]))
    with pytest.raises(CheckpointError, match="65 tokens"):
        _evaluated(folder, best, SimpleNamespace(device="cpu"), [])


def test_a_saved_model_takes_no_longer_rows_than_it_has_positions(saved, replaced, cli):
    folder = replaced(tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_length": 65}))
    refuses(
        cli("leebert", "predict", folder, saved[1]), ["max_length 65 in its config.json", "64 positions", "at most 64"]
    )


def test_a_saved_model_whose_exits_read_a_first_token_that_is_none_warns(replaced):
    folder = replaced(without_frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_text_model(folder)  # it pools the mean
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pooling": "cls"}))
    with pytest.warns(UserWarning, match="no special token such as"):
        load_text_model(folder)


def test_another_vocabulary_of_equal_size_is_refused(saved, tmp_path):
    model, _ = load_text_model(saved[0])  # saved without a digest, as by older versions
    KINDS["texts"].save(model, ModelConfig(backbone="x", max_length=32), with_words("cats"), tmp_path)
    load_text_model(tmp_path)
    with_words("dogs").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"another vocabulary than the one .* restore that tokenizer, or remove"):
        load_text_model(tmp_path)
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path)
    load_text_model(tmp_path)  # new embeddings go with a new tokenizer


# Limits.


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("pad", [0, 1, 5])
def test_the_longest_row_is_the_longest_that_an_encoder_takes(family, pad):
    options = {} if family == "distilbert" else {"pad_token_id": pad}
    plain = encoder(family, layers=2, **options).eval()
    limits = limits_of_encoder(plain)
    model = build_model(plain, ("no", "yes"), pooling="cls").eval()
    assert model.config.max_length == limits.longest
    assert limits.longest == (64 if family in ("bert", "albert", "electra", "distilbert") else 63 - pad)
    ids = torch.full((1, limits.longest + 1), 7)
    model(input_ids=ids[:, 1:], attention_mask=torch.ones_like(ids[:, 1:]))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    limits.check_length(limits.longest)
    with pytest.raises(ConfigError, match=f"at most {limits.longest} tokens"):
        limits.check_length(limits.longest + 1)


def test_as_published_roberta_takes_512_tokens_and_bert_512():
    from transformers import BertConfig, RobertaConfig

    roberta = RobertaConfig(max_position_embeddings=514)
    with pytest.raises(
        ConfigError, match="514 positions, of which the first 2 are for padding, for at most 512 tokens"
    ):
        Limits.of_config("roberta-base", roberta).check_length(514)
    Limits.of_config("roberta-base", roberta).check_length(512)
    Limits.of_config("bert-base", BertConfig()).check_length(512)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_padding_token_that_the_encoder_cannot_have(family):
    config = encoder(family, layers=2).config
    config.pad_token_id = 64
    with pytest.raises(BackboneError, match=r"pad_token_id 64 .* the encoder has 64 \(ids 0 to 63\)"):
        Limits.of_config("b", config)
    if family == "roberta":
        config.pad_token_id = None
        with pytest.raises(BackboneError, match="no pad_token_id, from which roberta counts positions"):
            Limits.of_config("b", config)


def test_all_that_does_not_fit_is_reported_at_once():
    rows = three_segments()
    rows.pad_token = None
    limits = Limits("backbone b", rows=TOKENS - 1, positions=64, segments=2)
    with pytest.raises(BackboneError) as error:
        check_tokenizer(rows, limits, pairs=True, pooling="cls")
    assert all(part in str(error.value) for part in (f"{TOKENS} tokens", "no padding token", "segment ids up to 2"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_an_encoder_with_one_segment_takes_every_token_to_be_in_it(family):
    """The tokenizer gives the second text of a pair segment 1, which a type_vocab_size of 1 has no embedding for."""
    plain = encoder(family, layers=2, type_vocab_size=1)
    check_tokenizer(tokenizer(), limits_of_encoder(plain), pairs=True, pooling="cls")
    model = build_model(plain, ("no", "yes"), pooling="cls").eval()
    inputs = tokenizer()(["the cat"], ["a dog"], return_tensors="pt")
    assert inputs["token_type_ids"].max() == 1
    without = {name: t for name, t in inputs.items() if name != "token_type_ids"}
    with torch.no_grad():
        assert torch.equal(model(**inputs).exit_logits, model(**without).exit_logits)


@pytest.mark.slow
def test_a_pair_task_is_trained_on_and_answered_by_an_encoder_with_one_segment(cli, tmp_path):
    task = write_task(tmp_path / "data", n=40)
    save_backbone(tmp_path / "one", "roberta", layers=2, type_vocab_size=1)
    training = {"batch_size": 4, "max_epochs": 1, "precision": "fp32"}
    model = {"backbone": str(tmp_path / "one"), "max_length": 32}
    (tmp_path / "run.yaml").write_text(dump_yaml({"task": task, "model": model, "training": training}))
    ran = cli("leebert", "train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "m", "--device", "cpu")
    assert ran.code == 0, ran.err
    ran = cli("leebert", "predict", tmp_path / "m", task["files"]["dev"], "--device", "cpu")
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 40


# Rows.


@settings(max_examples=20)
@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=8),
    beyond=st.sampled_from([-1, 10, 10**6]),
    data=st.data(),
)
def test_a_token_outside_the_embedding_is_detected_in_whatever_row_it_is(rows, beyond, data):
    limits = Limits("backbone b", rows=10, positions=None, segments=2)
    limits.check_rows(TokenRows.of({"input_ids": rows}, 0), "texts")
    row = data.draw(st.integers(0, len(rows) - 1))
    rows[row][data.draw(st.integers(0, len(rows[row]) - 1))] = beyond
    with pytest.raises(DataError, match=rf"texts, row {row}: token id {beyond}, and backbone b embeds the ids 0 to 9;"):
        limits.check_rows(TokenRows.of({"input_ids": rows}, 0), "texts")


def test_a_segment_without_an_embedding_is_detected_too():
    rows = TokenRows.of({"input_ids": [[1], [2, 3]], "token_type_ids": [[0], [0, 2]]}, 0)
    with pytest.raises(DataError, match="texts, row 41: segment id 2, and backbone b embeds the ids 0 to 1;"):
        Limits("backbone b", 10, None, segments=2).check_rows(rows, "texts", np.array([40, 41]))
    Limits("backbone b", 10, None, segments=None).check_rows(rows, "texts")
    for padding in (10, None):
        with pytest.raises(
            DataError, match=f"padding token has the id {padding}, and backbone b embeds the ids 0 to 9"
        ):
            Limits("backbone b", 10, None).check_rows(TokenRows.of({"input_ids": [[1]]}, padding), "texts")


def test_a_word_that_was_added_to_a_loaded_tokenizer_is_never_sent_to_the_model(saved):
    model, rows = load_text_model(saved[0])
    rows.add_tokens([f"new{i}" for i in range(64 - TOKENS + 1)])
    texts = [("the cat", "a dog")] * 300 + [("the cat", f"new{64 - TOKENS}")]
    assert max(encode(rows, texts, 32)["input_ids"][-1]) == 64
    rule = make_criterion("never", None, num_exits=4, num_classes=2)
    asked = [Row(i, pair, ("a", "b"), "texts") for i, pair in enumerate(texts)]
    with pytest.raises(DataError, match="row 300: token id 64, and the model embeds the ids 0 to 63"):
        list(predictions(model, rows, asked, rule, Runtime(torch.device("cpu")), 32))
    served = Served(saved[0], "cpu")
    served.tokenizer = rows
    with pytest.raises(DataError, match="row 300: token id 64"):
        served.predict(pd.DataFrame(texts, columns=["a", "b"]))
