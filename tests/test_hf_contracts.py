"""What Hugging Face's users do to a loaded model, for every family: each gives what the plain float32 model gives."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import quick
import torch
from encoders import FAMILIES, batch, encoder, tokenizer
from saved_models import save_model
from torch import nn

from leebert import exits
from leebert.config import ExitConfig
from leebert.dropout import dropout
from leebert.errors import ConfigError
from leebert.exits.replay import exit_indices, make_criterion, replay
from leebert.inference import infer
from leebert.model import LeebertForSequenceClassification, build_model, load_model
from leebert.model_config import LeebertConfig
from leebert.runtime import Runtime
from leebert.slim.importance import head_importance

# What torch, transformers and PEFT say about their own future.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning:transformers"),
    *(
        pytest.mark.filterwarnings(f"ignore:{start}:{kind}")
        for start, kind in (
            (r"`?torch\.(ao|jit|quantize)", "DeprecationWarning"),
            ("torch.quantize_per_tensor", "UserWarning"),
            ("`(is_|)gradient_checkpointing(_enable|)` is deprecated", "FutureWarning"),
            (r"`isinstance\(treespec, LeafSpec\)` is deprecated", "FutureWarning"),
        )
    ),
]

M = 3
CPU = Runtime(torch.device("cpu"))
#: Batches that differ in size, length and padding from what a model is traced, exported or compiled with.
OTHERS = (
    {"rows": 3, "length": 7, "seed": 5},
    {"rows": 9, "length": 12, "seed": 6, "padded": False},
    {"rows": 1, "length": 5},
    {"rows": 4, "length": 9, "left": True},
)
CRITERIA = (
    ("patience", 1, None), ("entropy", 0.5, None), ("normalised_entropy", 0.7, None), ("confidence", 0.7, None),
    ("pcee", 0.8, 1), ("f-pabee", 0.05, 1), ("beem", 0.3, None), ("never", None, None),
)  # fmt: skip

#: XLM-RoBERTa and CamemBERT are RoBERTa's code; test_model.py loads, saves and runs them.
every_family = pytest.mark.parametrize("family", quick.only(["bert", "distilbert"], FAMILIES))
#: Layers of its own, shared layers, and other names for its parts.
one_of_each_kind = pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
#: Where a family costs seconds.
bert_quickly = pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family == "bert" else pytest.mark.slow) for family in FAMILIES]
)


def model_of(family, pooling="pooler", layers=M, **options):
    """Some layers whose exits answer differently, in eval mode; ELECTRA and DistilBERT pool by CLS, having no pooler."""
    torch.manual_seed(1)
    model = build_model(encoder(family, layers), ("no", "yes"), pooling=pooling, **options)
    with torch.no_grad():
        [exit_.weight.mul_(20) for exit_ in model.heads]
    return model.eval()


def inputs(left=False, **options):
    """A batch without labels, padded on the right, or on the left."""
    tokens = {name: t for name, t in batch(**options).items() if name != "labels"}
    return {name: t.flip(1) for name, t in tokens.items()} if left else tokens


@torch.no_grad()
def exits_of(model, given=None):
    return model(**(given or inputs())).exit_logits


def assert_close(found, expected, share):
    """Logits differ by at most that share of the largest."""
    assert (found - expected).abs().max() <= share * expected.abs().max()


def assert_same_answers(found, expected):
    assert set(found) == set(expected) == {"logits", "exit_logits", "exit_layers"}
    assert torch.equal(found["exit_layers"], expected.exit_layers)
    for name in ("logits", "exit_logits"):
        assert torch.allclose(found[name], expected[name], atol=1e-5), name


def reloaded(model, folder, **options):
    model.save_pretrained(folder)
    return LeebertForSequenceClassification.from_pretrained(folder, **options).eval()


# Half and double precision.

TYPES = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float64: 1e-5}


@pytest.mark.parametrize(
    ("family", "how"),
    quick.only(
        [("bert", "cast"), ("albert", "from_pretrained")],
        [*((f, "from_pretrained") for f in FAMILIES), ("bert", "cast")],
    ),
)
def test_any_floating_point_type_gives_float32s_logits(tmp_path, family, how):
    model = model_of(family)
    expected = exits_of(model)
    model.save_pretrained(tmp_path)
    for dtype, share in TYPES.items():
        if how == "cast":
            cast = copy.deepcopy(model).to(dtype)
        else:
            cast = LeebertForSequenceClassification.from_pretrained(tmp_path, dtype=dtype).eval()
        assert {p.dtype for p in cast.parameters()} == {dtype}
        found = exits_of(cast)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(found, expected, share)
        rule = make_criterion("entropy", 0.5, num_exits=M, num_classes=2)
        answer = infer(cast, inputs(), rule, CPU)
        assert (answer.layers - 1).tolist() == replay(rule, found.transpose(0, 1).numpy()).tolist(), dtype


def test_half_and_double_are_methods_too_and_a_folder_keeps_the_type(tmp_path):
    model = model_of("bert")
    expected = exits_of(model)
    assert_close(exits_of(copy.deepcopy(model).double()), expected, 1e-5)
    half = model.half()
    assert_close(exits_of(half), expected, 0.004)
    again = reloaded(half, tmp_path)
    assert again.dtype == torch.float16
    assert torch.equal(exits_of(again), exits_of(half))


@every_family
def test_a_training_step_in_bfloat16_moves_every_exit(family):
    model = model_of(family).to(torch.bfloat16).train()
    model(**batch()).loss.backward()
    assert all(exit_.weight.grad.dtype == torch.bfloat16 and exit_.weight.grad.any() for exit_ in model.heads)


@one_of_each_kind
def test_a_pipeline_in_half_precision(tmp_path, family):
    from transformers import pipeline

    model = model_of(family)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    texts = ["the cat sat", "the big dog ran under a tree"]
    full = pipeline("text-classification", model=str(tmp_path), device="cpu")(texts, top_k=None)
    for dtype in (torch.bfloat16, torch.float16):
        classify = pipeline("text-classification", model=str(tmp_path), device="cpu", dtype=dtype)
        assert classify.model.dtype == dtype
        for found, expected in zip(classify(texts, top_k=None), full, strict=True):
            scores = [{a["label"]: a["score"] for a in answers} for answers in (found, expected)]
            assert scores[0] == pytest.approx(scores[1], abs=0.02), dtype


# Dynamic quantisation.


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@every_family
def test_linear_layers_in_int8(family):
    model = model_of(family)
    small = quantised(model)
    assert not any(isinstance(module, nn.Linear) for module in small.modules())
    assert_close(exits_of(small), exits_of(model), 0.1)
    # Activations are rounded by the range of the whole batch, so only a whole batch gives the same numbers.
    answer = infer(small, inputs(), make_criterion("never", None, num_exits=M, num_classes=2), CPU)
    assert torch.allclose(answer.logits, exits_of(small)[:, -1])


@every_family
def test_of_a_quantised_model_exits_and_layers_can_go_but_no_heads_and_neurons(family):
    small = quantised(model_of(family))
    before = exits_of(small)
    small.keep_exits([1, 3])
    assert torch.equal(exits_of(small), before[:, [0, 2]])
    blocks = 1 if family == "albert" else M
    for parts in ({"heads": [[0]] * blocks}, {"neurons": [[0, 1]] * blocks}):
        with pytest.raises(
            ConfigError, match=r"can't remove heads or neurons from torch\.ao.*: prune before quantising"
        ):
            small.reduce(**parts)
    with pytest.raises(ConfigError, match="prune before quantising"):
        head_importance(small, [batch()], lambda part: small(**part).loss)
    small.reduce(layers=[0, 1])
    assert torch.equal(exits_of(small)[:, 0], before[:, 0])
    assert small.exit_layers == (1, 2)


def test_a_slim_model_can_be_quantised_too():
    model = model_of("bert")
    model.reduce(layers=[0, 2], heads=[[0], [1]], embedding_rank=8)
    assert_close(exits_of(quantised(model)), exits_of(model), 0.1)


# Other word embeddings.


#: Longer, shorter, padded to a multiple; whole and factorised embeddings: all pairs on BERT, a pair on every family.
RESIZED = [(rank, *size) for rank in (None, 8) for size in ((70, None), (60, None), (65, 8))]


@pytest.mark.parametrize(
    ("family", "rank", "size", "multiple"),
    [("bert", *resized) for resized in RESIZED]
    + [(family, *resized) for family, resized in zip(FAMILIES[1:], RESIZED[1:], strict=False)],
)
def test_resized_embeddings_are_saved_and_loaded(tmp_path, family, rank, size, multiple):
    model = model_of(family)
    if rank:
        model.reduce(embedding_rank=rank)
    known, before = inputs(), exits_of(model)
    torch.manual_seed(0)
    model.resize_token_embeddings(size, pad_to_multiple_of=multiple, mean_resizing=False)
    rows = 72 if multiple else size
    assert model.get_input_embeddings().num_embeddings == model.get_input_embeddings().weight.shape[0] == rows
    assert (
        model.config.vocab_size
        == model.config.backbone_config["vocab_size"]
        == model.backbone.config.vocab_size
        == rows
    )
    assert torch.equal(exits_of(model, known), before)  # ids below 60
    last = {"input_ids": torch.full((2, 5), rows - 1)}
    again = load_model(saved(model, tmp_path))
    assert again.config.vocab_size == rows
    assert torch.equal(exits_of(again.eval(), last), exits_of(model, last))


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@every_family
def test_embeddings_that_are_set_are_saved_and_loaded(tmp_path, family):
    model = model_of(family)
    old = model.get_input_embeddings()
    assert old is model.backbone.get_input_embeddings()
    model.set_input_embeddings(nn.Embedding(80, old.embedding_dim))
    last = {"input_ids": torch.full((2, 5), 79)}
    assert torch.equal(exits_of(reloaded(model, tmp_path), last), exits_of(model, last))


def test_an_encoder_that_was_resized_first_keeps_its_embeddings():
    plain = encoder("bert", M)
    plain.resize_token_embeddings(70, mean_resizing=False)
    weight = plain.get_input_embeddings().weight.detach().clone()
    model = build_model(plain, ("no", "yes"))
    assert torch.equal(model.get_input_embeddings().weight, weight)
    assert model.config.vocab_size == 70


def test_a_configuration_without_a_backbone_has_no_vocabulary():
    assert not hasattr(LeebertConfig(), "vocab_size")


# Tracing, exporting, compiling.


def sizes(given):
    from torch.export import Dim

    return {name: {0: Dim("rows", max=64), 1: Dim("length", min=2, max=60)} for name in given}


@one_of_each_kind
def test_a_traced_model_answers_other_batches(family):
    model, given = model_of(family), inputs(padded=False)  # of which no mask is needed
    traced = torch.jit.trace(model, example_kwarg_inputs=given, strict=False, check_trace=False)
    for options in OTHERS:
        with torch.no_grad():
            assert_same_answers(traced(**inputs(**options)), model(**inputs(**options)))


def test_a_model_traced_to_a_tuple_answers_as_the_model():
    model, given = model_of("bert"), inputs(padded=False)
    model.config.return_dict = False
    traced = torch.jit.trace(model, tuple(given.values()), check_trace=False)
    model.config.return_dict = True
    for options in OTHERS:
        other = inputs(**options)
        with torch.no_grad():
            answer = traced(*other.values())
            assert_same_answers(
                dict(zip(("logits", "exit_logits", "exit_layers"), answer, strict=True)), model(**other)
            )


@pytest.mark.slow
@every_family
def test_an_exported_model_answers_other_batches(family):
    model, given = model_of(family), inputs(padded=False)
    exported = torch.export.export(model, (), given, dynamic_shapes=sizes(given)).module()
    for options in OTHERS:
        with torch.no_grad():
            assert_same_answers(exported(**inputs(**options)), model(**inputs(**options)))


@pytest.mark.slow
def test_the_mean_is_traced_and_exported_as_the_other_poolings_are():
    """The pooler is BERT's above, the CLS token ELECTRA's and DistilBERT's."""
    model, given = model_of("bert", "mean"), inputs()
    traced = torch.jit.trace(model, example_kwarg_inputs=given, strict=False)
    exported = torch.export.export(model, (), given, dynamic_shapes=sizes(given)).module()
    for recorded in (traced, exported):
        with torch.no_grad():
            assert_same_answers(recorded(**inputs(**OTHERS[0])), model(**inputs(**OTHERS[0])))


class ExitIndices(nn.Module):
    """Every exit criterion on all exits' logits (M, N, K): the exit index of each sample, (N,) each."""

    def __init__(self):
        super().__init__()
        self.rules = [make_criterion(*criterion, num_exits=5, num_classes=3) for criterion in CRITERIA]
        self.eval()

    def forward(self, logits):
        return tuple(exit_indices(rule, logits) for rule in self.rules)


def logits_of(rows, seed=0):
    return torch.randn(5, rows, 3, generator=torch.Generator().manual_seed(seed)) * 2


SHAPES = ({1: torch.export.Dim("rows")},)


def indices_by_criterion(found):
    return {criterion[0]: exits.tolist() for criterion, exits in zip(CRITERIA, found, strict=True)}


def replayed(logits):
    return indices_by_criterion([replay(rule, logits.numpy()) for rule in ExitIndices().rules])


@pytest.mark.slow
def test_every_criterion_is_traced_and_exported():
    module = ExitIndices()
    traced = torch.jit.trace(module, logits_of(4), check_trace=False)
    exported = torch.export.export(module, (logits_of(4),), dynamic_shapes=SHAPES).module()
    for rows in (2, 31):
        logits = logits_of(rows, seed=rows)
        assert indices_by_criterion(traced(logits)) == replayed(logits)
        assert indices_by_criterion(exported(logits)) == replayed(logits)
    assert [name for name, exits in replayed(logits).items() if len(set(exits)) == 1] == ["never"]


def test_what_a_model_drops_is_no_constant_of_its_trace():
    traced = torch.jit.trace(lambda x: dropout(x, 0.5), torch.ones(1000), check_trace=False)
    torch.manual_seed(0)
    a, b = traced(torch.ones(1000)), traced(torch.ones(1000))
    assert not torch.equal(a, b)
    assert 400 < (a == 0).sum() < 600


def onnx_session(model, args, kwargs, shapes, names, folder):
    import onnxruntime

    torch.onnx.export(
        model, args, folder / "model.onnx", kwargs=kwargs, dynamic_shapes=shapes, output_names=names, dynamo=True,
        verbose=False,
    )  # fmt: skip
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["albert", "distilbert"])  # BERT, whose layers the others have, by the page
@pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning")
def test_an_onnx_file_answers_other_batches(tmp_path, family):
    model, given = model_of(family, layers=2, exits=ExitConfig(criterion="entropy", threshold=0.5)), inputs()
    names = ["logits", "exit_logits", "exit_layers"]
    session = onnx_session(model, (), given, sizes(given), names, tmp_path)
    for options in OTHERS:
        other = inputs(**options)
        answers = session.run(names, {name: t.numpy() for name, t in other.items()})
        with torch.no_grad():
            assert_same_answers(dict(zip(names, map(torch.from_numpy, answers), strict=True)), model(**other))


@pytest.mark.slow
def test_every_criterion_runs_in_onnx(tmp_path):
    session = onnx_session(ExitIndices(), (logits_of(4),), {}, SHAPES, [c[0] for c in CRITERIA], tmp_path)
    logits = logits_of(31)
    assert indices_by_criterion(session.run(None, {"logits": logits.numpy()})) == replayed(logits)


#: What `torch.compile` takes by itself needs a C++ compiler; without one all but the generated code is tested.
BACKEND = "inductor" if shutil.which("g++") else "aot_eager"


def compiled_model(family, backend, dynamic):
    torch._dynamo.reset()
    model = model_of(family, layers=2)
    return model, torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)


@pytest.mark.slow
@every_family
def test_a_model_compiles_as_one_graph_which_follows_its_criterion(family, monkeypatch):
    monkeypatch.setattr(exits.CRITERIA, "_plugins", {})  # as in a process that has not used a criterion yet
    model, compiled = compiled_model(family, "eager", dynamic=True)
    with torch.no_grad():
        for options in OTHERS[:2]:
            assert_same_answers(compiled(**inputs(**options)), model(**inputs(**options)))
        if family == "bert":
            model.config.exit_strategy, model.config.exit_threshold = "confidence", 0.7
            assert_same_answers(compiled(**inputs()), model(**inputs()))


def gradients(model, run):
    model.zero_grad()
    run(**batch()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.slow
def test_a_compiled_model_trains():
    """By the graph that code is generated from: the page's example runs such code, and sizes vary in the test above."""
    model, compiled = compiled_model("bert", "aot_eager", dynamic=None)
    expected, found = gradients(model, model), gradients(model, compiled)  # in eval mode, where nothing is dropped
    assert all(torch.allclose(found[name], gradient, atol=1e-4) for name, gradient in expected.items())
    model.train()
    losses = [float(compiled(**batch()).loss.detach()) for _ in range(3)]
    assert len(set(losses)) == 3  # another mask each time


# Training.


def trainer(model, folder, rows=None, batch_size=4, **options):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, per_device_eval_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=3, **options,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows)


def rows_of(n):
    together = batch(rows=n)
    return [{name: t[i] for name, t in together.items()} for i in range(n)]


@every_family
def test_the_trainer_predicts_each_sample_at_each_exit(tmp_path, family):
    model = model_of(family)
    found = trainer(model, tmp_path).predict(rows_of(10))
    logits, exit_logits, exit_layers = found.predictions
    assert [a.shape for a in found.predictions] == [(10, 2), (10, M, 2), (10,)]
    assert found.label_ids.tolist() == batch(rows=10)["labels"].tolist()
    with torch.no_grad():
        expected = model(**batch(rows=10))
    assert np.allclose(exit_logits, expected.exit_logits, atol=1e-5)
    assert np.allclose(logits, expected.logits, atol=1e-5)
    assert exit_layers.tolist() == expected.exit_layers.tolist()


@pytest.mark.slow
@bert_quickly
def test_the_trainer_steps_alike_on_a_batch_and_on_its_halves(tmp_path, family):
    found = []
    for parts in (1, 2):
        model = model_of(family)
        model.heads.dropout = 0.0
        for module in model.backbone.modules():
            for name in ("p", "dropout_prob"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        trainer(
            model, tmp_path, rows_of(8), 8 // parts, gradient_accumulation_steps=parts, max_steps=2, **options
        ).train()
        found.append(dict(model.named_parameters()))
    start = dict(model_of(family).named_parameters())
    assert not torch.allclose(found[0]["heads.0.weight"], start["heads.0.weight"], atol=1e-3)
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in start)


@pytest.mark.slow
def test_the_trainer_trains_with_checkpointing(tmp_path):
    model = model_of("bert")
    with torch.no_grad():
        before = float(model(**batch(rows=8)).loss)
    trainer(model, tmp_path, rows_of(8), 8, max_steps=20, learning_rate=1e-2, gradient_checkpointing=True).train()
    with torch.no_grad():
        assert float(model.eval()(**batch(rows=8)).loss) < 0.7 * before


def kept_and_gradients(model):
    """How many numbers a forward keeps for the backward pass, and the gradients, with the same random numbers."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    model.zero_grad()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(**batch())
    out.loss.backward()
    return kept, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "reentrant"),
    quick.only([("bert", True), ("distilbert", False)], [*((f, False) for f in FAMILIES), ("bert", True)]),
)
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(family, reentrant):
    model = model_of(family).train()
    assert model.heads.dropout > 0
    all_kept, expected = kept_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    kept, found = kept_and_gradients(model)
    assert kept < all_kept / 4
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    model.activation_checkpointing_disable()
    assert kept_and_gradients(model)[0] == all_kept


# Adapters.


def lora(family, **options):
    from peft import LoraConfig

    projections = ["q_lin", "v_lin"] if family == "distilbert" else ["query", "value"]
    return LoraConfig(target_modules=projections, r=2, task_type="SEQ_CLS", **options)


@bert_quickly
def test_lora_adapts_the_encoder_and_the_exits_learn(tmp_path, family):
    from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model

    plain = model_of(family)
    plain.save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base")
    adapted = get_peft_model(base, lora(family, modules_to_save=["heads"])).eval()
    before = exits_of(adapted)
    assert torch.equal(before, exits_of(plain))
    learns = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert {"lora_" in name or ".heads." in name for name in learns} == {True}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.5)
    for _ in range(2):  # the second step reaches the matrices A, behind B, which starts at 0
        adapted.zero_grad()
        adapted.train()(**batch()).loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
        optimizer.step()
    after = exits_of(adapted.eval())
    assert not torch.allclose(after, before, atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_model(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(exits_of(again), after)
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(exits_of(auto), after)
    merged = again.merge_and_unload()
    assert torch.allclose(exits_of(reloaded(merged, tmp_path / "merged")), after, atol=1e-4)


def test_lora_on_exits_counts_and_goes_into_their_weights():
    from peft import LoraConfig, get_peft_model

    model = model_of("bert")
    before = exits_of(model)
    options = {"target_modules": r".*heads\.\d+", "init_lora_weights": False}  # an adapter that is not 0
    adapted = get_peft_model(model, LoraConfig(r=2, **options)).eval()
    after = exits_of(adapted)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(exits_of(adapted.merge_and_unload()), after, atol=1e-5)


def test_an_adapter_on_the_encoder_alone_and_no_cut_through_it():
    from peft import get_peft_model

    model = model_of("bert")
    before = exits_of(model)
    options = lora("bert", init_lora_weights=False)
    options.task_type = "FEATURE_EXTRACTION"
    model.backbone = get_peft_model(model.backbone, options)
    assert not torch.allclose(exits_of(model.eval()), before, atol=1e-3)
    with pytest.raises(ConfigError, match="merge adapters"):
        model.reduce(heads=[[0]] * M)


def test_hooks_of_an_exit_run():
    model, seen = model_of("bert"), []
    model.heads[1].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    model(**inputs())
    assert seen == [(6, 2)]


# Loading.


@every_family
def test_the_attention_that_is_asked_for_is_the_encoders(tmp_path, family):
    model = model_of(family)
    eager = reloaded(model, tmp_path, attn_implementation="eager")
    assert eager.backbone.config._attn_implementation == "eager"
    assert torch.allclose(exits_of(eager), exits_of(model), atol=1e-4)


PAGE = Path(__file__).resolve().parent.parent / "docs" / "hugging-face.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning")
def test_the_pages_examples_run_one_after_the_other(tmp_path, monkeypatch):
    save_model(tmp_path / "runs" / "mrpc", None, ("no", "yes"), layers=2)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        if "torch.compile" in block and BACKEND != "inductor":
            continue
        exec(compile(block, PAGE.name, "exec"), names)
        if "onnxruntime" in block:  # of a batch that the file was not exported with
            other = {name: torch.from_numpy(names["other"][name]) for name in names["batch"]}
            assert_close(torch.from_numpy(names["exit_logits"]), exits_of(names["model"], other), 1e-4)
        if "torch.compile" in block:
            with torch.no_grad():
                assert_same_answers(names["compiled"](**other), names["model"](**other))
