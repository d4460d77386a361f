"""Exported models: what the folder may hold, and answers that depend on a sample's own text alone."""

import contextlib
import dataclasses
import functools
import json
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import encoders
import numpy as np
import onnx
import onnxruntime
import pytest
import transformers
from exported_toys import LAYERS, LONGEST, WORDS, export_toy, toy_graph, toy_logits, toy_manifest, toy_weights
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from leebert.console import EXTRAS, missing_package
from leebert.data.collate import TokenRows
from leebert.errors import CheckpointError, ConfigError, DataError
from leebert.exits import CRITERIA
from leebert.exits.criterion import Criterion
from leebert.exits.replay import exit_indices
from leebert.exported import sessions
from leebert.exported.graphs import check_graph
from leebert.exported.manifest import Exits, MadeWith, read_manifest, verify_files, write_manifest
from leebert.exported.model import ExportedModel
from leebert.exported.tokenizing import TextEncoder, tokenizer_text
from leebert.predict import encode

#: Every built-in criterion at thresholds at which samples exit at different layers.
EXITS = (
    Exits(criterion="patience", threshold=1),
    Exits(criterion="entropy", threshold=0.7),
    Exits(criterion="normalised_entropy", threshold=0.5),
    Exits(criterion="confidence", threshold=0.7),
    Exits(criterion="pcee", threshold=0.7, patience=2),
    Exits(criterion="f-pabee", threshold=0.05, patience=1),
    Exits(criterion="beem", threshold=0.4),
    Exits(criterion="never"),
)
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_toy(folder)
    return folder


@pytest.fixture(scope="session")
def toy(toy_folder):
    return ExportedModel.load(toy_folder)


def test_every_built_in_criterion_is_tested():
    assert [exits.criterion for exits in EXITS] == list(CRITERIA.built_in)


@given(PAIRS, st.sampled_from(EXITS))
def test_a_batch_exits_as_its_recorded_logits_do(toy, pairs, exits):
    rows = toy.encode(pairs)
    batch = rows.padded(np.arange(len(pairs)))
    recorded, criterion = toy.all_logits(batch), toy.criterion(exits)
    assert np.allclose(recorded, toy_logits(toy_weights(), batch), atol=1e-5)
    answer, taken = toy.infer(batch, criterion), exit_indices(criterion, recorded)
    assert (answer.layers == taken + 1).all()
    assert np.allclose(answer.logits, recorded[taken, np.arange(len(pairs))], atol=1e-6)


def tied(criterion, recorded, threshold):
    """Whether a sample's measured number is as near to the threshold as rounding moves it."""
    state = None
    for logits in recorded:
        measured, state = criterion.measure(logits, state)
        if np.isclose(measured, threshold, rtol=1e-4, atol=1e-5).any():
            return True
    return False


@pytest.mark.slow
@given(PAIRS, st.sampled_from(EXITS), st.integers(1, 4), st.randoms(use_true_random=False))
def test_an_answer_does_not_depend_on_the_batch(toy, pairs, exits, size, random):
    alone = [toy.predict([pair], exits)[0] for pair in pairs]
    shuffled = random.sample(range(len(pairs)), len(pairs))
    together = toy.predict([pairs[row] for row in shuffled], exits, batch_size=size)
    for row, prediction in zip(shuffled, together, strict=True):
        batch = toy.encode([pairs[row]]).padded([0])
        criterion = toy.criterion(exits)
        if hasattr(criterion, "measure") and tied(criterion, toy.all_logits(batch), exits.threshold):
            continue
        assert dataclasses.replace(prediction, probability=0) == dataclasses.replace(alone[row], probability=0)
        assert prediction.probability == pytest.approx(alone[row].probability, abs=2e-6)


def test_predictions_name_classes_and_the_layers_saved(toy):
    pairs = [("w1 w2", "w3"), ("w19", "w4")]
    logits = toy_logits(toy_weights(), toy.encode(pairs).padded([0, 1]))[-1].astype(float)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    full = toy.predict(pairs, Exits(criterion="never"))
    assert [one.label for one in full] == [toy.manifest.labels[k] for k in logits.argmax(axis=1)]
    assert [one.probability for one in full] == pytest.approx(probabilities.max(axis=1), abs=1e-5)
    assert {(one.exit_layer, one.layers_saved) for one in full} == {(LAYERS, 0)}
    assert toy.predict(pairs)[0].exit_layer + toy.predict(pairs)[0].layers_saved == LAYERS
    assert toy.predict([]) == []


# The manifest and the folder.


def test_a_manifest_is_read_as_it_was_written(toy_folder):
    manifest = read_manifest(toy_folder)
    verify_files(toy_folder, manifest)
    assert dataclasses.replace(manifest, files={}) == toy_manifest()
    assert manifest.files.keys() == {"README.md", "tokenizer.json", *(f"segment-{i}.onnx" for i in (1, 2, 3))}


def at(values, path, value):
    *parents, last = path
    for key in parents:
        values = values[key]
    if value is None:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "format: 2, and this version of leebert reads 1"),
        (["format"], True, "format: True"),
        (["labels"], None, "labels: missing"),
        (["labels"], [], "labels: there is none"),
        (["labels"], "red", "labels: 'red': should be a list"),
        (["label"], ["a"], r"label: unknown key \(did you mean 'labels'\?\)"),
        (["depth"], 3.5, "depth: 3.5: should be a whole number"),
        (["depth"], 2, r"segments\[2\]: layers 3 to 3, exit at layer 3; should .* not exceed 2"),
        (["kind"], "sound", "kind: 'sound': should be texts or images"),
        (["text_columns"], [], "text_columns: 0 columns"),
        (["segments", 1, "layers"], [1, 2], r"segments\[1\]: layers 1 to 2, exit at layer 2; should start at layer 2"),
        (["segments", 1, "inputs"], ["hidden_2"], r"segments\[1\].inputs: 'hidden_2' is neither"),
        (["segments", 1, "file"], "segment-1.onnx", "segments: two of them have one file"),
        (["segments", 0, "file"], "../segment-1.onnx", "'../segment-1.onnx' is not the name of a file in the folder"),
        (["files", "/etc/passwd"], "0", "'/etc/passwd' is not the name"),
        (["files", "tokenizer.json"], None, "files: tokenizer.json is not listed"),
        (["files", "export.json"], "0", "'export.json' is not the name"),
        (["exits", "threshold"], 1.2, "exits: a threshold for entropy lies between 0 and ln 3"),
        (["exits", "patience"], 2, "exits.patience: 2; entropy has no such patience"),
        (["curves", 0, "points"], [], r"curves\[0\].points: there is none"),
        (["curves", 0, "points", 1, "score"], "high", r"curves\[0\].points\[1\].score: 'high': should be a finite number"),
        (["curves", 0, "points", 1, "score"], float("nan"), "should be a finite number"),
        (["timing"], [], "timing: .*should be a mapping"),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_with_its_key(toy_folder, tmp_path, path, value, message):
    values = json.loads((toy_folder / "export.json").read_text())
    at(values, path, value)
    (tmp_path / "export.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"export.json: .*{message}") as refused:
        read_manifest(tmp_path)
    assert "export it" in str(refused.value) or "export the model again" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "\udcff"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "export.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=re.escape("export.json")):
        ExportedModel.load(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no export.json: give a folder that `leebert export` wrote"):
        ExportedModel.load(tmp_path)


def altered(folder):
    data = bytearray((folder / "segment-2.onnx").read_bytes())
    data[-20] ^= 1
    (folder / "segment-2.onnx").write_bytes(data)


FAULTS = {
    "segment-2.onnx was altered": altered,
    "tokenizer.json was altered": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "segment-3.onnx is missing": lambda folder: (folder / "segment-3.onnx").unlink(),
    "evil.py: export.json does not list this file": lambda folder: (folder / "evil.py").touch(),
    "more is a folder": lambda folder: (folder / "more").mkdir(),
    "segment-3.onnx is a link": lambda folder: link(folder / "segment-3.onnx"),
    "export.json is a link": lambda folder: link(folder / "export.json"),
}


def link(path):
    moved = path.rename(path.parent.parent / path.name)
    path.symlink_to(moved)


@pytest.mark.parametrize("message", FAULTS)
def test_a_folder_that_is_not_as_exported_is_refused(tmp_path, message):
    folder = tmp_path / "model"
    export_toy(folder)
    FAULTS[message](folder)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        ExportedModel.load(folder)


def test_no_manifest_is_written_for_a_folder_with_a_link(tmp_path):
    export_toy(tmp_path / "model")
    (tmp_path / "model" / "weights").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="weights is a link"):
        write_manifest(tmp_path / "model", toy_manifest())


# Graphs.


def external(location="/etc/passwd"):
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph_with(*, node=None, tensor=None):
    graph = toy_graph(toy_weights(), 1)
    if node is not None:
        graph.graph.node.append(node)
        graph.opset_import.append(helper.make_opsetid(node.domain or "com.microsoft", 1))
    if tensor is not None:
        graph.graph.initializer.append(tensor)
    return graph


def branch(*, node=None, tensor=None):
    """An If with an operator or a tensor in a branch."""
    plain = helper.make_node("Constant", [], ["x"], value=numpy_helper.from_array(np.zeros(2, np.float32)))
    nodes = [node] if node is not None else [helper.make_node("Constant", [], ["x"], value=tensor)]
    outputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    inner, other = (helper.make_graph(one, "inner", [], outputs) for one in (nodes, [plain]))
    return helper.make_node("If", ["one"], ["x"], then_branch=other, else_branch=inner)


def with_function():
    graph = toy_graph(toy_weights(), 1)
    own = helper.make_function("com.microsoft", "Mine", [], ["y"], [], [helper.make_opsetid("", 18)])
    graph.functions.append(own)
    return graph


def nested(depth):
    node = helper.make_node("Constant", [], ["x"], value=numpy_helper.from_array(np.zeros(2, np.float32)))
    for _ in range(depth):
        node = branch(node=node)
    return graph_with(node=node)


def with_sparse():
    graph = toy_graph(toy_weights(), 1)
    graph.graph.sparse_initializer.add(
        values=external(), indices=numpy_helper.from_array(np.zeros(2, np.int64)), dims=[4]
    )
    return graph


def declaring(domain):
    graph = toy_graph(toy_weights(), 1)
    graph.opset_import.append(helper.make_opsetid(domain, 1))
    return graph


EVIL = helper.make_node("Run", [], ["x"], domain="evil")
REFUSED_GRAPHS = [
    (lambda: graph_with(node=EVIL), "operator 'Run' is of the domain 'evil'"),
    (lambda: graph_with(node=branch(node=EVIL)), "operator 'Run' is of the domain 'evil'"),
    (lambda: declaring("evil"), "an operator is of the domain 'evil'"),
    (lambda: graph_with(node=helper.make_node("EPContext", [], ["x"], domain="com.microsoft")), "'EPContext' loads code"),
    (lambda: graph_with(tensor=external()), "a tensor's data lies outside the file"),
    (lambda: graph_with(node=branch(tensor=external("../up"))), "a tensor's data lies outside the file"),
    (with_sparse, "a tensor's data lies outside the file"),
    (with_function, "the graph defines functions of its own"),
    (lambda: nested(20), "graphs are nested more than 16 deep"),
    (onnx.ModelProto, "has no graph"),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "message"), REFUSED_GRAPHS)
def test_a_graph_that_could_reach_outside_is_refused(graph, message):
    with pytest.raises(CheckpointError, match=f"^x.onnx:? .*{re.escape(message)}"):
        check_graph(graph().SerializeToString(), "x.onnx")


def test_a_graph_with_branches_and_operators_of_onnxruntime_is_accepted():
    node = helper.make_node("Gelu", ["matrix"], ["x"], domain="com.microsoft")
    check_graph(graph_with(node=branch(node=node)).SerializeToString(), "x.onnx")


def test_a_graph_is_checked_before_it_is_loaded(tmp_path, monkeypatch):
    export_toy(tmp_path, graphs={0: graph_with(tensor=external())})
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    with pytest.raises(CheckpointError, match="data lies outside the file"):
        ExportedModel.load(tmp_path)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_graph_or_refused(data):
    with pytest.raises(CheckpointError):
        check_graph(data, "x.onnx")


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_graph_with_another_byte_is_checked_without_another_error(position, byte):
    data = bytearray(toy_graph(toy_weights(), 0).SerializeToString())
    data[position % len(data)] = byte
    with contextlib.suppress(CheckpointError):
        check_graph(bytes(data), "x.onnx")


def test_a_graph_that_onnxruntime_cannot_load_names_both_versions(tmp_path):
    graph = graph_with(node=helper.make_node("NoSuchOperator", [], ["x"], domain="com.microsoft"))
    export_toy(tmp_path, graphs={1: graph}, made_with=MadeWith(leebert="0.1.0", onnxruntime="9.9"))
    with pytest.raises(
        CheckpointError, match=r"segment-2.onnx can't be loaded \(exported with onnxruntime 9.9, this is"
    ):
        ExportedModel.load(tmp_path)


def test_inputs_other_than_the_manifests_are_refused(tmp_path):
    export_toy(tmp_path, graphs={1: toy_graph(toy_weights(), 2)})
    with pytest.raises(CheckpointError, match=r"segment-2.onnx: its inputs and outputs are not those of the manifest"):
        ExportedModel.load(tmp_path)


# Warnings, and batches that cannot be answered.


def test_another_onnxruntime_and_a_cpu_without_8_bit_instructions_are_warned_about(tmp_path, caplog, monkeypatch):
    export_toy(tmp_path, precision="int8-dynamic", made_with=MadeWith(leebert="0.1.0", onnxruntime="1.0"))
    monkeypatch.setattr(sessions, "lacks_eight_bit", lambda: True)
    with caplog.at_level(logging.WARNING):
        ExportedModel.load(tmp_path)
    version, cpu = (record.getMessage() for record in caplog.records)
    assert "was exported with onnxruntime 1.0, and this is" in version
    assert "no instructions for 8-bit integers (VNNI)" in cpu


def test_nothing_is_warned_about_where_the_model_was_made(toy_folder, caplog):
    with caplog.at_level(logging.WARNING):
        ExportedModel.load(toy_folder)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, "the batch has no attention_mask"),
        ({name: np.zeros((0, 4), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}, "is empty"),
        ({"input_ids": np.ones((3, 4), np.int64)}, "different numbers of samples"),
        ({"input_ids": np.full((2, 4), 99)}, "segment-1.onnx can't run this batch: .*indices"),
        (
            {name: np.ones((2, LONGEST + 1), int) for name in ("input_ids", "attention_mask", "token_type_ids")},
            f"{LONGEST + 1} tokens per sample; the model takes {LONGEST}",
        ),
    ],
)
def test_a_batch_that_cannot_be_answered_is_refused(toy, change, message):
    batch = {name: np.ones((2, 4), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    batch = {name: value for name, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        toy.infer(batch, toy.criterion(EXITS[0]))


def test_int32_token_ids_are_converted(toy):
    batch = {name: np.ones((2, 4), np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert toy.infer(batch, toy.criterion(EXITS[-1])).layers.tolist() == [LAYERS, LAYERS]


def test_logits_that_are_not_finite_are_an_error(tmp_path):
    tokens, segments, layers = toy_weights()
    layers[1] = (layers[1][0], np.full_like(layers[1][1], np.inf))
    export_toy(tmp_path, graphs={1: toy_graph((tokens, segments, layers), 1)})
    model = ExportedModel.load(tmp_path)
    with pytest.raises(CheckpointError, match="logits of the exit at layer 2 are not finite"):
        model.predict([("w1", "w2")], Exits(criterion="never"))


LONG = " ".join(["w1"] * LONGEST)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("w1", "w2"), ("w1", " ")], "row 1, column 'second': the text is empty"),
        ([("w1", None)], "row 0, column 'second': the text is empty"),
        ([("w1", 5)], "row 0, column 'second': 5 is not text but int"),
        ([("a\0", "w2")], "null character"),
        ([("\ud800", "w2")], "surrogate"),
        ([("w1",)], r"row 0: should be a tuple of 2 text\(s\) \(first, second\)"),
        (["w1"], "row 0: should be a tuple"),
        ([("w1", "w2"), (LONG, "w2")], "takes at most 16 tokens: row 1 has 20; shorten the texts, or set truncate"),
        ([(LONG, "w2")] * 5, "row 0 has 20, row 1 has 20, row 2 has 20 and 2 more rows are too long"),
    ],
)
def test_rows_that_are_no_texts_are_refused_by_number(toy, rows, message):
    with pytest.raises(DataError, match=message):
        toy.predict(rows)


def test_long_texts_are_truncated_on_request(toy):
    rows = toy.encode([(LONG, "w2 w3"), ("w1", "w2")], truncate=True)
    assert rows.lengths.tolist() == [LONGEST, 5]
    assert len(toy.predict([(LONG, "w2")], truncate=True)) == 1
    assert toy.encode([("w1", "w2")]).lengths.tolist() == [5]


def hugging_face(model, pre_tokenizer, processor, **options):
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.post_processor = pre_tokenizer, processor
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<mask>"])
    backend.add_tokens(["keepthis"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>", **options
    )


def of_bytes():
    """Byte-level BPE in RoBERTa's layout."""
    alphabet = {c: i for i, c in enumerate(["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a")]
    vocabulary = alphabet | {x + y: len(alphabet) + i for i, (x, y) in enumerate(merges)}
    frame = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return hugging_face(models.BPE(vocabulary, merges), pre_tokenizers.ByteLevel(add_prefix_space=False), frame)


def of_pieces(side):
    """Unigram pieces in XLM-R's layout, or truncated on the left."""
    pieces = [
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        ("▁", -2.0),
        ("▁a", -3.0),
        ("b", -3.0),
        ("ab", -3.5),
        ("c", -4.0),
    ]
    frame = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return hugging_face(models.Unigram(pieces, unk_id=2), pre_tokenizers.Metaspace(), frame, truncation_side=side)


@functools.cache
def tokenizers_of_families():
    """(tokenizer, whether the model takes segment ids): BERT's, RoBERTa's and XLM-R's layout."""
    return [(encoders.tokenizer(), True), (of_bytes(), False), (of_pieces("right"), False), (of_pieces("left"), False)]


VALID = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30).filter(str.strip)
WORDY = st.lists(
    st.sampled_from(["a", "ab", "abc", "cat", "the", "<mask>", "[SEP]", "</s>", "keepthis", " "]), max_size=30
)
ANY_TEXT = st.one_of(VALID, WORDY.map(lambda words: "a " + " ".join(words)))


@pytest.mark.slow
@given(st.integers(0, 3), st.booleans(), st.data())
def test_texts_are_tokenised_as_by_transformers(which, pairs, data):
    tokenizer, segments = tokenizers_of_families()[which]
    texts = data.draw(st.lists(st.tuples(ANY_TEXT, ANY_TEXT) if pairs else st.tuples(ANY_TEXT), min_size=1, max_size=4))
    manifest = toy_manifest(text_columns=(("a",), ("b",))[: 1 + pairs], padding_id=tokenizer.pad_token_id)
    if not segments:
        plain = dataclasses.replace(manifest.segments[0], inputs=("input_ids", "attention_mask"))
        manifest = dataclasses.replace(manifest, segments=(plain, *manifest.segments[1:]))
    text = tokenizer_text(tokenizer.backend_tokenizer, LONGEST, tokenizer.truncation_side)
    encoder = TextEncoder(text.encode(), manifest)
    for truncate in (True, False):
        expected = encode(tokenizer, texts, LONGEST if truncate else None)
        if not truncate and max(map(len, expected["input_ids"])) > LONGEST:
            with pytest.raises(DataError, match="takes at most"):
                encoder.encode(texts)
            continue
        rows, wanted = encoder.encode(texts, truncate=truncate), TokenRows.of(expected, tokenizer.pad_token_id)
        index = np.arange(len(texts))
        batch = wanted.padded(index)
        assert rows.padded(index).keys() == batch.keys() - ({"token_type_ids"} if not segments else set())
        assert all((value == batch[name]).all() for name, value in rows.padded(index).items())


# The criterion of a request.


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, Exits(criterion="entropy", threshold=0.6)),
        ({"threshold": 0.2}, Exits(criterion="entropy", threshold=0.2)),
        ({"criterion": "patience"}, Exits(criterion="patience")),
        ({"criterion": "never"}, Exits(criterion="never")),
        ({"speed_up": 2}, Exits(criterion="entropy", threshold=0.6)),
        ({"speed_up": 1}, Exits(criterion="never")),
        ({"speed_up": 3}, Exits(criterion="entropy", threshold=1.0)),
        ({"max_loss": 0}, Exits(criterion="entropy", threshold=0.05)),
        ({"max_loss": 1}, Exits(criterion="entropy", threshold=0.3)),
        ({"max_loss": 100}, Exits(criterion="entropy", threshold=1.0)),
        ({"latency": 4}, Exits(criterion="entropy", threshold=0.3)),
        ({"latency": 3.9}, Exits(criterion="entropy", threshold=0.6)),
        ({"latency": 1000}, Exits(criterion="entropy", threshold=0.05)),
    ],
)
def test_a_request_chooses_from_the_curves(toy, options, chosen):
    assert toy.choose(**options) == chosen
    toy.criterion(chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1, "speed_up": 2}, "threshold and speed_up: give one of them"),
        ({"max_loss": 1, "latency": 2}, "max_loss and latency: give one of them"),
        ({"criterion": "entropie"}, r"is not known here .*\(did you mean 'entropy'\?\)"),
        ({"criterion": "confidence"}, "criterion 'confidence' needs a threshold"),
        ({"criterion": "never", "threshold": 1}, "criterion 'never' has no threshold"),
        ({"criterion": "never", "speed_up": 2}, "no threshold of the exit criterion 'never' gives a speed-up"),
        ({"threshold": 5}, "lies between 0 and ln 3"),
        ({"patience": 1}, "criterion 'entropy' has no parameter 'patience'"),
        ({"criterion": "pcee", "threshold": 0.5, "patience": 3}, "this model has 3 exits"),
        ({"criterion": "pcee", "threshold": 0.5, "patience": 0}, "patience 0: should be at least 1"),
        ({"criterion": "patience", "threshold": 3}, "patience lies between 1 and 2"),
        ({"criterion": "confidence", "speed_up": 2}, "no curve of the exit criterion 'confidence'"),
        ({"criterion": "confidence", "max_loss": 2}, "no scores of the exit criterion 'confidence'"),
        ({"criterion": "confidence", "latency": 2}, "no times of the exit criterion 'confidence'"),
        ({"speed_up": 0.5}, "should lie between 1"),
        ({"speed_up": 4}, "should lie between 1"),
        ({"speed_up": 1.2}, "does not reach a layer speed-up of 1.2"),
        ({"max_loss": 101}, "max_loss 101: should be points of score between 0 and 100"),
        ({"max_loss": float("nan")}, "max_loss nan: should be points"),
        ({"latency": 1.9}, r"the fastest threshold of entropy takes 2 ms \(a machine\)"),
        ({"latency": float("nan")}, "latency nan: should be milliseconds"),
        ({"latency": 0}, "latency 0: should be milliseconds above 0"),
    ],
)
def test_a_request_that_the_model_cannot_follow_is_refused(toy, options, message):
    with pytest.raises(ConfigError, match=message):
        toy.choose(**options)


class TorchAlone:
    def step(self, logits, state):
        return logits.float().amax(dim=-1) > 1, None


@pytest.mark.slow
def test_a_criterion_that_knows_torch_alone_is_refused_by_name(toy):
    CRITERIA.register(Criterion(name="of-torch", title="", source="", make=lambda *_: TorchAlone()))
    try:
        with pytest.raises(ConfigError, match="exit criterion 'of-torch' of .* works on torch tensors only"):
            toy.criterion(Exits(criterion="of-torch"))
    finally:
        CRITERIA.unregister("of-torch")


@pytest.mark.slow
def test_a_model_answers_where_torch_and_the_other_heavy_packages_are_missing(toy_folder):
    code = f"""
import sys
for name in ("torch", "transformers", "ray", "pandas", "pydantic", "mlflow", "scipy", "sklearn", "onnx"):
    sys.modules[name] = None
from leebert.exported.model import ExportedModel
model = ExportedModel.load({str(toy_folder)!r})
print(model.predict([("w1 w2", "w3")], model.choose(speed_up=2))[0].label)
for exits in ("patience", "beem", "pcee", "f-pabee", "confidence"):
    threshold = None if exits == "patience" else 0.5
    model.predict([("w1 w2", "w3")], model.choose(criterion=exits, threshold=threshold))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip() in ("red", "green", "blue")) == (0, True), ran.stderr


# The commands.


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_predict_takes_an_exported_folder(cli, toy, toy_folder, tmp_path, processes):
    pairs = [("w1 w2", "w3"), (LONG, "w5"), ("w19", "w4 w5")]
    (tmp_path / "in.tsv").write_text("second\tfirst\n" + "".join(f"{b}\t{a}\n" for a, b in pairs))
    options = ("--criterion", "patience", "--threshold", 1, "--processes", processes, "--threads", 1)
    ran = cli("leebert", "predict", toy_folder, tmp_path / "in.tsv", *options)
    assert (ran.code, ran.err) == (0, "")
    expected = toy.predict(pairs, Exits(criterion="patience", threshold=1), truncate=True)
    assert [json.loads(line) for line in ran.out.splitlines()] == [
        {"row": row, "label": one.label, "probability": one.probability, "exit_layer": one.exit_layer}
        for row, one in enumerate(expected)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "--device cuda: an exported model runs on the CPU"),
        (("--precision", "bf16"), "--precision bf16: the export has determined it"),
        (("--criterion", "confidence"), "criterion 'confidence' needs a threshold"),
        (("--threshold", "9"), "a threshold for entropy lies between 0 and ln 3"),
        (("--text", "a"), "this model takes 2 text column(s), such as first, second"),
    ],
)
def test_predict_refuses_options_that_do_not_fit_an_exported_model(cli, toy_folder, tmp_path, options, message):
    (tmp_path / "in.tsv").write_text("first\tsecond\nw1\tw2\n")
    ran = cli("leebert", "predict", toy_folder, tmp_path / "in.tsv", *options)
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err


@pytest.mark.parametrize(
    ("package", "own", "extra"),
    [("torch.nn", "train", "train"), ("scipy", "sweep", "sweep"), ("ray", "train", "sweep"), ("onnxruntime", "sweep", "serve")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(package, own, extra):
    name = package.partition(".")[0]
    sentence = missing_package(ModuleNotFoundError(name=package), own)
    assert sentence == f"this command needs {name}, which is not installed: pip install 'leebert-sweep[{extra}]'"
    assert missing_package(ModuleNotFoundError(name="leebert.nothing"), own) is None


def test_every_package_of_an_extra_is_named_and_declared():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    named = {"scikit-learn": "sklearn", "pillow": "PIL", "mlflow-skinny": "mlflow"}
    declared = {
        extra: {re.match(r"[\w-]+", one)[0] for one in project["optional-dependencies"][extra]} - {"leebert-sweep"}
        for extra in EXTRAS
    }
    for extra, packages in declared.items():
        every = {package for names in EXTRAS.values() for package in names}
        assert {named.get(package, package) for package in packages} <= every, extra
    base = " ".join(project["dependencies"])
    assert not [package for names in declared.values() for package in names if f"{package}>" in base]
    assert not [package for package in ("torch", "transformers") if package in declared["serve"]]
