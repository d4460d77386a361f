"""A small exported model, made with `onnx.helper` and `tokenizers`: three segments of one layer each."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from leebert.exported.manifest import Curve, Exits, MadeWith, Manifest, Point, Segment, Timing, write_manifest

WORDS = [f"w{i}" for i in range(20)]
VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
HIDDEN, CLASSES, LAYERS, LONGEST = 4, 3, 3, 16


def toy_tokenizer(path):
    """Save a tokenizer of words, which frames texts and pairs as BERT's does."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))


def toy_weights(seed=0):
    """Draw the embeddings of tokens and segments, and for each layer its matrix and its classifier."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return (
        draw(len(VOCABULARY), HIDDEN),
        draw(2, HIDDEN),
        [(draw(HIDDEN, HIDDEN), 2 * draw(HIDDEN, CLASSES)) for _ in range(LAYERS)],
    )


def toy_logits(weights, batch):
    """Compute the logits (E, B, K) of the toy model with NumPy."""
    tokens, segments, layers = weights
    hidden = tokens[batch["input_ids"]] + segments[batch["token_type_ids"]]
    mask = batch["attention_mask"][:, :, None].astype(np.float32)
    logits = []
    for matrix, classifier in layers:
        hidden = np.tanh(hidden @ matrix)
        logits.append((hidden * mask).sum(1) / mask.sum(1) @ classifier)
    return np.stack(logits)


def toy_graph(weights, index):
    """Make the graph of a layer: the first takes tokens, the others the state `hidden`."""
    tokens, segments, layers = weights
    matrix, classifier = layers[index]
    make = helper.make_node
    nodes, initializers = [], {"matrix": matrix, "classifier": classifier, "one": np.array([1], np.int64)}
    ids = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"])
        for n in ("input_ids", "token_type_ids")
    ]
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"])

    def state(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", HIDDEN])

    if index == 0:
        initializers |= {"tokens": tokens, "segments": segments}
        nodes = [
            make("Gather", ["tokens", "input_ids"], ["word"]),
            make("Gather", ["segments", "token_type_ids"], ["type"]),
        ]
        nodes.append(make("Add", ["word", "type"], ["before"]))
    before = "before" if index == 0 else f"hidden_{index}"
    after = f"hidden_{index + 1}"
    nodes += [
        make("MatMul", [before, "matrix"], ["product"]), make("Tanh", ["product"], [after]),
        make("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
        make("Unsqueeze", ["float_mask", "two"], ["mask"]), make("Mul", [after, "mask"], ["masked"]),
        make("ReduceSum", ["masked", "one"], ["sum"], keepdims=0), make("ReduceSum", ["mask", "one"], ["count"], keepdims=0),
        make("Div", ["sum", "count"], ["mean"]), make("MatMul", ["mean", "classifier"], ["logits"]),
    ]  # fmt: skip
    initializers["two"] = np.array([2], np.int64)
    inputs = [*(ids if index == 0 else [state(before)]), mask]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])]
    if index < LAYERS - 1:
        outputs.append(state(after))
    graph = helper.make_graph(
        nodes, f"segment-{index + 1}", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in initializers.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def toy_manifest(**fields):
    """The manifest of the toy model, with made-up curves."""
    segments = []
    for index in range(LAYERS):
        first = ("input_ids", "token_type_ids") if index == 0 else (f"hidden_{index}",)
        state = (f"hidden_{index + 1}",) if index < LAYERS - 1 else ()
        segments.append(
            Segment(
                file=f"segment-{index + 1}.onnx", layers=(index + 1, index + 1), exit_layer=index + 1,
                inputs=(*first, "attention_mask"), outputs=("logits", *state),
            )
        )  # fmt: skip
    points = [(0.05, 0.9, 3.0), (0.3, 0.89, 2.0), (0.6, 0.87, 1.5), (1.0, 0.7, 1.0)]
    curve = Curve(
        criterion="entropy",
        points=tuple(
            Point(threshold=t, score=s, mean_exit_layer=layer, speed_up=3 / layer, milliseconds=2 * layer)
            for t, s, layer in points
        ),
    )
    return Manifest(**{
        "kind": "texts", "name": "toy", "task": "toys", "text_columns": (("first", "sentence1"), ("second",)),
        "labels": ("red", "green", "blue"), "max_length": LONGEST, "padding_id": 0, "depth": LAYERS, "metric": "accuracy",
        "segments": tuple(segments), "exits": Exits(criterion="entropy", threshold=0.6), "curves": (curve,),
        "timing": Timing(threads=1, texts=8, machine="a machine", segments=(2.0, 2.0, 2.0)),
        "made_with": MadeWith(leebert="0.1.0", onnxruntime=onnxruntime.__version__), **fields,
    })  # fmt: skip


def export_toy(folder, *, graphs=None, **fields):
    """Write the toy model; `graphs` replaces the graphs of some segments, `fields` those of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = toy_weights()
    for index in range(LAYERS):
        graph = (graphs or {}).get(index) or toy_graph(weights, index)
        onnx.save(graph, folder / f"segment-{index + 1}.onnx")
    toy_tokenizer(folder / "tokenizer.json")
    (folder / "README.md").write_text("# toy\n")
    return write_manifest(folder, toy_manifest(**fields))
