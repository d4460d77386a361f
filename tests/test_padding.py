"""An answer depends on its own row alone: not on padding, on the side it stands on, on rows beside it, or on their order."""

import functools
import json

import numpy as np
import pytest
import quick
import torch
from encoders import FAMILIES, WORDS, batch, encoder, graded_rows, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.config import ExitConfig
from leebert.data.readers import Row
from leebert.data.sources import Examples
from leebert.data.tokens import tokenise
from leebert.evaluate import record_all
from leebert.exits.replay import make_criterion, replay
from leebert.inference import infer
from leebert.kinds.texts import load_text_model
from leebert.losses import cross_entropy
from leebert.model import build_model
from leebert.padding import padded_behind
from leebert.predict import predictions
from leebert.record import micro_batches
from leebert.runtime import Runtime
from leebert.serving import Served

CPU = Runtime(torch.device("cpu"))
#: Every family with the mean over its tokens, on which padding has most effect, and BERT with every pooling.
MODELS = [*((family, "mean") for family in FAMILIES), ("bert", "pooler"), ("bert", "cls")]
#: A threshold for each criterion at which rows of these models exit at different layers.
CRITERIA = {
    "patience": 2, "entropy": 0.5, "normalised_entropy": 0.7, "confidence": 0.7, "pcee": 0.7, "f-pabee": 0.05, "beem": 0.6,
    "never": None,
}  # fmt: skip


@functools.cache
def model_of(family, pooling):
    """A random model whose exits differ, and whose embeddings are large enough that a shifted position shows."""
    model = build_model(encoder(family), ("no", "yes"), pooling=pooling)
    with torch.no_grad():
        model.backbone.embeddings.position_embeddings.weight.mul_(10)
        for exit_ in model.heads:
            exit_.weight.mul_(10)
    return model.eval()


def padded(texts, side, spare=0):
    """A batch by the tokenizer itself, padded on a side by `spare` more tokens than the longest row asks for."""
    rows = tokenizer()
    rows.padding_side = side
    encoded = rows(*map(list, zip(*texts, strict=True)))
    longest = max(map(len, encoded["input_ids"]))
    return dict(rows.pad(encoded, padding="max_length", max_length=longest + spare, return_tensors="pt"))


TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=5)


@pytest.mark.parametrize(("family", "pooling"), quick.only([("bert", "mean"), ("albert", "mean")], MODELS))
@settings(max_examples=4)
@given(
    texts=PAIRS, side=st.sampled_from(["left", "right"]), spare=st.integers(0, 7), name=st.sampled_from(sorted(CRITERIA)),
    random=st.randoms(),
)  # fmt: skip
def test_an_answer_alone_beside_longer_rows_and_in_another_order_is_the_same(
    family, pooling, texts, side, spare, name, random
):
    model = model_of(family, pooling)
    order = random.sample(range(len(texts)), len(texts))
    together = padded([texts[i] for i in order], side, spare)
    with torch.no_grad():
        alone = torch.cat([model.record(padded([text], side)).logits for text in texts], dim=1)[:, order]
        beside = model.record(together).logits
        called = model(**together)
    assert torch.allclose(beside, alone, atol=1e-5, rtol=0)
    assert torch.allclose(called.logits, alone[called.exit_layers - 1, torch.arange(len(order))], atol=1e-5, rtol=0)
    threshold = CRITERIA[name]
    near = [threshold] if threshold is None or name == "patience" else [threshold - 1e-5, threshold, threshold + 1e-5]
    allowed = np.array([replay(criterion(name, t), alone.numpy()) + 1 for t in near])
    answer = infer(model, together, criterion(name, threshold), CPU)
    assert (allowed == answer.layers.numpy()).any(axis=0).all()
    expected = alone[answer.layers - 1, torch.arange(len(order))]
    assert torch.allclose(answer.logits, expected, atol=1e-5, rtol=0)


def criterion(name, threshold):
    return make_criterion(name, threshold, num_exits=4, num_classes=2)


@pytest.mark.parametrize(("family", "pooling"), MODELS)
def test_padding_on_the_left_is_bit_for_bit_padding_on_the_right(family, pooling):
    """In float32, under bf16 autocast, in parts of a batch, and in the gradients that training has of it."""
    model = model_of(family, pooling)
    texts = [
        ("the cat sat", "a dog"),
        ("a big dog ran under the old tree", "the man saw the red bird"),
        ("happy", "sad"),
    ]
    left, right = (padded(texts, side) for side in ("left", "right"))
    labels = torch.tensor([0, 1, 1])
    assert not torch.equal(left["input_ids"], right["input_ids"])
    with torch.no_grad():
        whole = model.record(right).logits
        assert torch.equal(model.record(left).logits, whole)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.record(left).logits, model.record(right).logits)
        parts = torch.cat([model.record(part).logits for part in micro_batches(left, 2)], dim=1)
    assert torch.allclose(parts, whole, atol=1e-5, rtol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (
        torch.autograd.grad(cross_entropy(model.record(b).logits, labels), parameters, allow_unused=True)
        for b in (left, right)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@settings(max_examples=50)
@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 6))
def test_rows_are_turned_until_their_first_attended_token_is_first(data, rows, length):
    bits = st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=rows, max_size=rows)
    mask = torch.tensor(data.draw(bits))
    ids = torch.arange(1, rows * length + 1).view(rows, length)
    turned = padded_behind({"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(rows)})
    assert turned["labels"].tolist() == [0] * rows
    for i in range(rows):
        start = [*mask[i].tolist(), 1].index(1) % length
        assert turned["input_ids"][i].tolist() == ids[i].roll(-start).tolist()
        assert turned["attention_mask"][i].tolist() == mask[i].roll(-start).tolist()


def test_without_a_mask_nothing_is_known_of_padding():
    given_ids = {"input_ids": torch.tensor([[0, 0, 5]])}
    assert torch.equal(padded_behind(given_ids)["input_ids"], given_ids["input_ids"])
    square = {**given_ids, "attention_mask": torch.zeros(1, 1, 3, 3)}
    assert torch.equal(padded_behind(square)["input_ids"], given_ids["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_position_ids_of_the_caller_are_respected(family):
    plain = encoder(family).eval()
    model = build_model(plain, ("no", "yes"), pooling="cls", exits=ExitConfig(criterion="never")).eval()
    inputs = batch()
    positions = torch.arange(20, 31).unsqueeze(0)
    with torch.no_grad():
        expected = plain(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=positions.expand(6, 11)
        ).last_hidden_state[:, 0]
        given_positions = model(**inputs, position_ids=positions).logits
        assert torch.allclose(given_positions, model.heads[-1](expected), atol=1e-5)
        assert not torch.allclose(given_positions, model(**inputs).logits, atol=1e-5)
        left = {name: tensor.flip(1) if tensor.dim() == 2 else tensor for name, tensor in inputs.items()}
        right = {**left, **padded_behind(left)}
        shifted = padded_behind({**left, "position_ids": positions})["position_ids"]
        assert torch.equal(model(**left, position_ids=positions).logits, model(**right, position_ids=shifted).logits)


@pytest.fixture(scope="module")
def left_folder(tmp_path_factory):
    """A saved model with CLS pooling whose tokenizer pads on the left, and texts of many lengths for it."""
    folder = tmp_path_factory.mktemp("left") / "model"
    texts = [(f"{row['a']} {row['b']} {' '.join(WORDS[: i % 23])}",) for i, row in enumerate(graded_rows(40))]
    exits = ExitConfig(criterion="entropy", threshold=0.6)
    model = build_model(encoder("bert"), ("no", "yes"), pooling="cls", exits=exits).eval()
    with torch.no_grad():
        for weight in model.backbone.parameters():  # so large that a text makes a difference to its first state
            weight.mul_(6 if weight.dim() > 1 else 1)
        inputs = tokenizer()([text for (text,) in texts], padding=True, return_tensors="pt")
        seen = model.record(inputs, keep="hidden").hidden  # (M, B, H)
        for exit_, states in zip(model.heads, seen, strict=True):
            # Around the middle of these texts, so that each label is answered to some, surely to some of them.
            exit_.weight.mul_(2 / exit_(states).diff(dim=-1).std())
            exit_.bias.copy_(-exit_.weight @ states.median(dim=0).values)
    model.config.max_length, model.config.precision = 48, "fp32"
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "padding_side": "left"}))
    return folder, texts


def test_batch_size_changes_no_answer_of_predict_or_service_nor_what_evaluation_records(left_folder, tmp_path):
    import pandas as pd

    folder, texts = left_folder
    model, rows = load_text_model(folder)
    assert rows.padding_side == "left"
    own = model.config.exits
    rule = criterion(own.criterion, own.threshold)
    asked = [Row(i, text, ("text",), "texts") for i, text in enumerate(texts)]
    one, many = (list(predictions(model, rows, asked, rule, CPU, size)) for size in (1, 32))
    split = tokenise(Examples(([t for (t,) in texts],), None, np.arange(40), "texts"), rows, 48, tmp_path / "t.arrow")
    logits = record_all(model, split, CPU, 16).logits
    where = replay(rule, logits)
    served = Served(folder, "cpu")
    for size in (1, 32):
        table = served.predict(pd.DataFrame(texts, columns=["text"]), {"batch_size": size})
        assert table["label"].tolist() == [a["label"] for a in one]
        assert np.allclose(table["probability"], [a["probability"] for a in one], atol=1e-5)
    assert len({a["exit_layer"] for a in one}) > 1
    assert len({a["label"] for a in one}) > 1
    for i, (a, b) in enumerate(zip(one, many, strict=True)):
        assert (a["label"], a["exit_layer"]) == (b["label"], b["exit_layer"]), i
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)
        assert a["exit_layer"] == where[i] + 1
        assert a["label"] == ("no", "yes")[logits[where[i], i].argmax()]


def test_a_model_that_is_called_with_what_its_tokenizer_padded_answers_as_one_row_at_a_time(left_folder):
    folder, texts = left_folder
    model, rows = load_text_model(folder)
    plain = [text for (text,) in texts]
    options = {"return_tensors": "pt", "truncation": True, "max_length": 48}
    with torch.no_grad():
        alone = torch.cat([model(**rows([text], **options)).logits for text in plain]).softmax(-1)
        beside = model(**rows(plain, padding=True, **options)).logits.softmax(-1)
    assert torch.allclose(alone, beside, atol=1e-5, rtol=0)
