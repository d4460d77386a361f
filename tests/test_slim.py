"""Reduced encoders: what is taken out, what stays the same without it, and that a reduced model is saved and loaded whole."""

import copy

import pytest
import quick
import torch
from encoders import EVERY_FAMILY, FAMILIES, batch, encoder, tokenizer
from torch import nn
from toys import toy_mlp

from leebert.backbone import LayerStack
from leebert.errors import BackboneError, ConfigError
from leebert.exits.replay import make_criterion, replay
from leebert.inference import infer
from leebert.losses import cross_entropy
from leebert.model import LeebertForSequenceClassification, build_model, load_model
from leebert.record import MultiExit
from leebert.runtime import Runtime
from leebert.slim.embeddings import FactorisedEmbedding, factorise_embeddings
from leebert.slim.importance import head_importance, weight_importance
from leebert.slim.layerdrop import LayerDrop
from leebert.slim.layers import keep_layers
from leebert.slim.parts import blocks
from leebert.slim.structure import restructure, structure_of
from leebert.slim.theseus import Replacing
from leebert.slim.width import prune_heads, prune_neurons
from leebert.stages import Examined
from leebert.transforms import _loss_of

CPU = Runtime(torch.device("cpu"))
#: The other two are RoBERTa's code; test_a_structure_gives_a_new_encoder_the_same_shapes cuts them, too.
#: The layers of RoBERTa and ELECTRA are BERT's.
families = pytest.mark.parametrize("family", quick.only(["bert", "albert", "distilbert"], FAMILIES))


def states(model, inputs=None):
    inputs = inputs or batch()
    with torch.no_grad():
        return model.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state


def wide(family, **options):
    """An encoder of four heads of 8, so that heads differ in more than one way."""
    return encoder(family, **({} if family == "distilbert" else {"num_attention_heads": 4}), **options).eval()


def model_of(family, **options):
    torch.manual_seed(1)
    model = build_model(wide(family, **options), ("no", "yes"))
    with torch.no_grad():  # spread the exits' answers, so that rows leave at different layers
        for parameter in model.heads.parameters():
            parameter.mul_(20)
    return model.eval()


def logits_of(model, inputs=None):
    with torch.no_grad():
        return model.record(inputs or batch()).logits


def first_of_each(model, part, spare=1):
    """All but the first `spare` heads or neurons of every block."""
    return [range(spare, getattr(block, part)) for block in blocks(model)]


def zero_columns(model, linear, part, count=1):
    """Zero what each block's first heads or neurons add, in the matrix after them."""
    with torch.no_grad():
        for block in blocks(model):
            matrix = getattr(block, linear)
            matrix.weight[:, : count * matrix.in_features // getattr(block, part)] = 0


# What is removed, and what is not.


@families
def test_keeping_everything_changes_nothing(family):
    model = wide(family)
    before = states(model)
    keep_layers(model, range(4))
    prune_heads(model, first_of_each(model, "heads", 0))
    prune_neurons(model, first_of_each(model, "neurons", 0))
    assert torch.equal(states(model), before)
    assert structure_of(model) == {}


@pytest.mark.parametrize(
    ("prune", "part", "linear", "attention"),
    [
        (prune_heads, "heads", "output", "sdpa"),
        (prune_heads, "heads", "output", "eager"),
        (prune_neurons, "neurons", "outer", "sdpa"),
    ],
)
@families
def test_removing_is_masking(family, prune, part, linear, attention):
    model = wide(family)
    model.set_attn_implementation(attention)
    whole = states(model)
    masked = copy.deepcopy(model)
    zero_columns(masked, linear, part)
    before = [getattr(block, part) for block in blocks(model)]
    prune(model, first_of_each(model, part))
    assert [getattr(block, part) for block in blocks(model)] == [n - 1 for n in before]
    assert torch.allclose(states(model), states(masked), atol=1e-5)
    assert not torch.allclose(states(model), whole, atol=1e-3)
    # What has no part in the function is removed without a trace.
    after = states(masked)
    prune(masked, first_of_each(masked, part))
    assert torch.allclose(states(masked), after, atol=1e-5)


@families
def test_each_block_keeps_its_own_heads_and_the_matrices_are_smaller(family):
    model = wide(family)
    keep = [[i % block.heads] for i, block in enumerate(blocks(model))]
    rows = [block.inputs[0].weight.view(block.heads, block.head_size, 32) for block in blocks(model)]
    prune_heads(model, keep)
    for block, whole, (head,) in zip(blocks(model), rows, keep, strict=True):
        assert torch.equal(block.inputs[0].weight, whole[head])
        assert [tuple(m.weight.shape) for m in (*block.inputs, block.output)] == [(block.head_size, 32)] * 3 + [
            (32, block.head_size)
        ]
        assert block.heads == 1
    states(model)


def test_a_shared_block_loses_its_heads_in_every_layer_at_once():
    model = wide("albert")
    size = sum(p.numel() for p in model.parameters())
    assert len(blocks(model)) == 1
    prune_heads(model, [[0, 2]])
    assert sum(p.numel() for p in model.parameters()) == size - 3 * (16 * 32 + 16) - 16 * 32
    assert {tuple(m.albert_layers[0].attention.query.weight.shape) for m in LayerStack(model).layers()} == {(16, 32)}
    assert len(LayerStack(model).layers()) == 4


@families
def test_layers_that_stay_run_one_after_the_other(family):
    model = wide(family)
    stack, inputs = LayerStack(model), batch()
    chosen = [stack.layers()[i] for i in (0, 2)]
    with torch.no_grad():
        x, mask = stack.begin(inputs)
        for layer in chosen:
            x = layer(x, mask)
    keep_layers(model, [0, 2])
    assert stack.layers() == chosen
    assert torch.allclose(states(model, inputs), x, atol=1e-6)
    assert structure_of(model) == {"layers": 2}


def test_alberts_groups_are_kept_as_it_can_run_them():
    model = encoder("albert", num_hidden_groups=2).eval()
    first, second = model.encoder.albert_layer_groups
    keep_layers(model, [1, 3])
    assert LayerStack(model).layers() == [first, second]
    with pytest.raises(ConfigError, match=r"use groups \[1\], but an ALBERT of 1 layers and 2 groups uses \[0\]"):
        keep_layers(model, [1])
    assert LayerStack(model).layers() == [first, second]


@families
def test_factorised_embeddings_are_the_nearest_of_their_rank(family):
    model = wide(family)
    weight = model.get_input_embeddings().weight.detach().clone()
    width, whole = weight.shape[1], states(model)
    factorise_embeddings(model, width)
    assert torch.allclose(states(model), whole, atol=1e-5)
    factorise_embeddings(model, 5)  # again, from a product
    words = model.get_input_embeddings()
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(words(torch.arange(64)), u[:, :5] * s[:5] @ v[:5], atol=1e-5)
    assert sum(p.numel() for p in words.parameters()) == 5 * (64 + width)
    assert words.padding_idx == 0
    assert words(torch.tensor([0])).abs().max() < 1e-6, "padding stays zero"
    assert structure_of(model) == {"embedding_rank": 5}
    assert not torch.allclose(states(model), whole, atol=1e-3)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_structure_gives_a_new_encoder_the_same_shapes(family):
    model, other = wide(family), wide(family, **({} if family == "distilbert" else {"seed": 7}))
    keep_layers(model, [1, 2, 3])
    prune_heads(model, [[1] for _ in blocks(model)])
    prune_neurons(model, [range(0, 48, 2 + i) for i, _ in enumerate(blocks(model))])
    factorise_embeddings(model, 6)
    structure = structure_of(model)
    n = len(blocks(model))
    assert structure == {
        "layers": 3,
        "heads": [1] * n,
        "intermediate": [24, 16, 12][:n],
        "embedding_rank": 6,
    }
    restructure(other, structure)
    assert structure_of(other) == structure
    other.load_state_dict(model.state_dict())
    assert torch.equal(states(other), states(model))


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (lambda m: keep_layers(m, [0, 4]), "no layer 4: there are 4"),
        (lambda m: keep_layers(m, []), "no layer would remain"),
        (lambda m: keep_layers(m, [1, 0]), "ascending order"),
        (lambda m: prune_heads(m, [[0]] * 3 + [[4]]), "no head 4: there are 4"),
        (lambda m: prune_heads(m, [[0]] * 3 + [[]]), "no head would remain"),
        (lambda m: prune_heads(m, [[0]]), "given for 1 blocks, but this encoder has 4"),
        (lambda m: prune_neurons(m, [[-1]] * 4), "no neuron -1"),
        (lambda m: factorise_embeddings(m, 33), "rank 33: the embeddings have rank 32"),
        (lambda m: restructure(m, {"layers": 5}), "can't keep 5 of 4 layers"),
        (lambda m: restructure(m, {"depht": 5}), "unknown key 'depht'"),
    ],
)
def test_what_cannot_be_removed_is_refused_and_nothing_is_changed(reduce, message):
    model = wide("bert")
    before = states(model)
    with pytest.raises(ConfigError, match=message):
        reduce(model)
    assert structure_of(model) == {}
    assert torch.equal(states(model), before)


@pytest.mark.parametrize("operation", [lambda m: keep_layers(m, [0]), lambda m: prune_heads(m, [[0]]), blocks])
def test_models_without_such_parts_are_refused_by_name(operation):
    from transformers import AutoModel, ViTConfig

    tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    with pytest.raises(BackboneError, match="can't remove layers, heads or neurons from a model of type 'vit'"):
        operation(AutoModel.from_config(tiny))
    with pytest.raises(BackboneError, match="'ThreeExitMLP'"):
        operation(toy_mlp())


# Reduced models with exits.


def reduced(family):
    """Three of four layers with fewer heads, neurons and a lower rank, and exits after the second and third."""
    model = model_of(family)
    model.reduce(layers=[0, 1, 3])
    model.reduce(
        heads=first_of_each(model.backbone, "heads"),
        neurons=first_of_each(model.backbone, "neurons", 8),
        embedding_rank=8,
    )
    model.keep_exits([2, 3])
    return model


@families
def test_a_reduced_model_is_saved_and_loaded_bit_for_bit(tmp_path, family):
    model = reduced(family)
    assert isinstance(model, MultiExit)
    assert (model.num_exits, model.exit_layers, model.depth) == (2, (2, 3), 4)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path).eval()
    assert again.config.structure == model.config.structure
    assert {"depth": 4, "layers": 3, "embedding_rank": 8, "exits": [2, 3]}.items() <= again.config.structure.items()
    assert (again.num_exits, again.exit_layers, again.depth) == (2, (2, 3), 4)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert torch.equal(logits_of(again), logits_of(model))
    other = LeebertForSequenceClassification(again.config)  # as a resumed run makes it
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(other.eval()), logits_of(model))


@families
def test_inference_of_a_reduced_model_reports_how_many_layers_ran(family):
    model = reduced(family)
    inputs = batch(rows=9, padded=False)
    logits = logits_of(model, inputs)
    rule = make_criterion("confidence", float(logits[0].softmax(-1).amax(-1).median()), num_exits=2, num_classes=2)
    where = replay(rule, logits.numpy())
    assert set(where.tolist()) == {0, 1}
    answer = infer(model, inputs, rule, CPU)
    assert answer.layers.tolist() == (where + 2).tolist()
    assert torch.allclose(answer.logits, logits[where, range(9)], atol=1e-5)
    model.config.exit_strategy, model.config.exit_threshold = "confidence", rule.threshold
    assert model(**inputs).exit_layers.tolist() == answer.layers.tolist()


def test_a_pipeline_runs_on_a_reduced_model(tmp_path):
    from transformers import pipeline

    model = reduced("bert")
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    answer = pipeline("text-classification", model=str(tmp_path), device="cpu")("the cat sat")[0]
    with torch.no_grad():
        out = model(**tokenizer()("the cat sat", return_tensors="pt"))
    assert answer["score"] == pytest.approx(float(out.logits.softmax(-1).max()), abs=1e-4)


@families
def test_one_exit_runs_the_layers_below_it_only(family):
    model = model_of(family)
    whole = logits_of(model)
    model.keep_exits([2])
    calls = []
    for layer in model.stack.layers():  # ALBERT's is there four times, and is hooked once
        layer._forward_hooks.clear()
        layer.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(logits_of(model), whole[1:2], atol=1e-6)
    assert len(calls) == 2
    infer(model, batch(), make_criterion("never", None, num_exits=1, num_classes=2), CPU)
    assert len(calls) == 4
    assert (model.num_exits, model.exit_layers, model.depth) == (1, (2,), 4)
    assert model.config.structure == {"depth": 4, "exits": [2]}
    with pytest.raises(ConfigError, match=r"layer 3 has no exit; layers with exits are \(2,\)"):
        model.keep_exits([3])
    with pytest.raises(ConfigError, match="no exit remains"):
        model.reduce(layers=[2, 3])


def test_exits_move_down_with_the_layers_below_them():
    model = model_of("bert")
    weights = [model.heads(torch.eye(32).expand(4, 32, 32))[i].clone() for i in range(4)]
    model.reduce(layers=[0, 2])
    assert model.exit_layers == (1, 2)
    logits = model.heads(torch.eye(32).expand(2, 32, 32))
    assert torch.equal(logits[0], weights[0])
    assert torch.equal(logits[1], weights[2]), "the exit of the layer that stays"
    last = model_of("bert")
    last.keep_exits([4])
    last.reduce(layers=[0, 2])
    assert (last.exit_layers, last.depth) == ((2,), 4)
    assert last.config.structure == {"depth": 4, "layers": 2, "exits": [2]}
    assert torch.equal(last.heads(torch.eye(32).expand(1, 32, 32))[0], weights[3])


def test_a_model_is_built_around_an_encoder_that_was_reduced_before(tmp_path):
    backbone = wide("bert")
    keep_layers(backbone, [0, 1])
    factorise_embeddings(backbone, 4)
    before = states(backbone)
    model = build_model(backbone, ("no", "yes"))
    assert torch.equal(states(model.backbone), before)
    assert (model.num_exits, model.depth) == (2, 4)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(load_model(tmp_path).eval()), logits_of(model.eval()))


def test_a_small_network_may_stand_for_a_deeper_one():
    model = model_of("bert")
    model.config.structure = {"depth": 12}
    assert (model.exit_layers, model.depth) == ((1, 2, 3, 4), 12)
    model.keep_exits([4])
    model.reduce(layers=[0, 1, 2])
    assert (model.exit_layers, model.depth) == ((3,), 12)


def test_a_failed_reduction_leaves_the_configuration_true():
    model = model_of("bert")
    with pytest.raises(ConfigError, match="no head 9"):
        model.reduce(layers=[0, 1], heads=[[9], [9]])
    assert model.config.structure == {"depth": 4, **structure_of(model.backbone)} == {"depth": 4, "layers": 2}


# What is worth keeping.


def loss_of(model):
    return lambda inputs: cross_entropy(model.record(inputs).logits, inputs["labels"])


@families
def test_a_heads_importance_is_the_mean_slope_of_each_rows_loss(family):
    model = model_of(family)
    loss, inputs = loss_of(model), batch()
    scores = head_importance(model, [inputs], loss)
    index, step = 0, 0.1
    block = blocks(model.backbone)[index]
    part = scores[index].shape[0]
    d = block.output.in_features // part
    slopes = []
    for row in range(6):
        one = {name: t[row : row + 1] for name, t in inputs.items()}
        values = []
        for sign in (1, -1):
            hook = block.output.register_forward_pre_hook(
                lambda module, args, sign=sign: (
                    torch.cat([args[0][..., :d] * (1 + sign * step), args[0][..., d:]], -1),
                )
            )
            with torch.no_grad():
                values.append(float(loss(one)))
            hook.remove()
        slopes.append(abs(values[0] - values[1]) / (2 * step))
    assert float(scores[index][0]) == pytest.approx(sum(slopes) / 6, rel=0.03, abs=2e-5)


def test_importance_does_not_depend_on_how_rows_are_batched():
    model = model_of("bert")
    inputs = batch()
    parts = [{name: t[rows] for name, t in inputs.items()} for rows in (slice(0, 2), slice(2, 6))]
    whole, split = (head_importance(model, batches, loss_of(model)) for batches in ([inputs], parts))
    for one, two in zip(whole, split, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@families
def test_what_adds_nothing_scores_nothing(family):
    model = model_of(family)
    zero_columns(model.backbone, "output", "heads")
    zero_columns(model.backbone, "outer", "neurons")
    loss = loss_of(model)
    of_weights = weight_importance(model, [batch()], loss)
    for scores in (head_importance(model, [batch()], loss), of_weights.heads, of_weights.neurons):
        assert all(s[0] == 0 and (s[1:] > 0).all() for s in scores)


@families
def test_weights_are_scored_by_their_gradients_of_all_batches(family):
    model = model_of(family)
    batches = [batch(seed=s) for s in (0, 1)]
    scores = weight_importance(model, batches, loss_of(model))
    sums = {}
    for inputs in batches:
        model.zero_grad()
        loss_of(model)(inputs).backward()
        for i, block in enumerate(blocks(model.backbone)):
            for name in ("output", "inner", "outer"):
                gradient = getattr(block, name).weight.grad.abs()
                sums[i, name] = sums.get((i, name), 0) + gradient
    for i, block in enumerate(blocks(model.backbone)):
        worth = {name: sums[i, name] * getattr(block, name).weight.abs() for name in ("output", "inner", "outer")}
        d = block.head_size
        for h in range(block.heads):
            assert torch.allclose(scores.heads[i][h], worth["output"][:, h * d : (h + 1) * d].sum(), rtol=1e-4)
        assert torch.allclose(scores.neurons[i], worth["inner"].sum(1) + worth["outer"].sum(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("importance", [head_importance, weight_importance])
def test_importance_leaves_no_gradient_and_the_mode_that_was(importance):
    model = model_of("bert")
    model.keep_exits([2])
    frozen = model.backbone.encoder.layer[0].requires_grad_(False)
    model.train()
    modes = []
    hooks = [frozen.register_forward_hook(lambda module, *_: modes.append(module.training))]
    first = importance(model, [batch()], loss_of(model))
    with torch.no_grad():
        second = importance(model, [batch()], loss_of(model))
    assert modes == [False, False]
    assert model.training
    assert frozen.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 0
    for scores in (first, second):
        heads = getattr(scores, "heads", scores)
        assert heads[0].abs().sum() > 0
        assert heads[2].abs().sum() == 0, "a block above the last exit"
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("parts", [2, 4], ids=["even", "uneven"])
def test_importance_does_not_depend_on_the_parts_that_a_batch_is_taken_in(parts):
    model = model_of("bert")
    batches, loss = [batch(seed=s) for s in (0, 1)], loss_of(model)

    def scores(accumulate):
        of_weights = weight_importance(model, batches, loss, accumulate)
        return [*head_importance(model, batches, loss, accumulate), *of_weights.heads, *of_weights.neurons]

    for split, whole in zip(scores(parts), scores(1), strict=True):
        assert torch.allclose(split, whole, rtol=1e-4, atol=1e-7)


def test_importance_of_a_model_without_such_parts():
    with pytest.raises(BackboneError, match="ThreeExitMLP"):
        head_importance(toy_mlp(), [], lambda batch: torch.zeros(()))


# Paths that training takes.


def on_path(model, path):
    """A model in training as far as its path goes, without dropout."""
    model.eval().path = path
    model.training = True
    return model


def logits_after(model, groups, inputs):
    """What the exits say after each group of layers, run one after the other."""
    pooled = []
    with torch.no_grad():
        x, mask = model.stack.begin(inputs)
        for group in groups:
            for layer in group:
                x = layer(x, mask)
            pooled.append(model.pool(x, inputs["attention_mask"]))
        return model.heads(torch.stack(pooled))


@families
def test_layers_are_dropped_in_training_only(family):
    model, inputs = model_of(family), batch()
    whole, layers = logits_of(model, inputs), model.stack.layers()
    on_path(model, LayerDrop(0.5))
    torch.manual_seed(3)
    kept = (torch.rand(20, 4) >= 0.5).tolist()
    torch.manual_seed(3)
    for row in kept:
        expected = logits_after(
            model, [[layer] if stays else [] for layer, stays in zip(layers, row, strict=True)], inputs
        )
        assert torch.allclose(logits_of(model, inputs), expected, atol=1e-6)
    assert len({tuple(row) for row in kept}) > 5
    assert torch.equal(logits_of(model.eval(), inputs), whole)


def test_the_share_of_dropped_layers_is_the_probability():
    torch.manual_seed(0)
    layers = [nn.Identity() for _ in range(12)]
    drop = LayerDrop(0.2)
    ran = sum(sum(a is b for a, b in zip(drop(layers), layers, strict=True)) for _ in range(1000))
    assert ran / 12000 == pytest.approx(0.8, abs=0.012)
    assert LayerDrop(0.0)(layers) == layers
    with pytest.raises(ValueError, match="must be in"):
        LayerDrop(1.0)


@families
def test_successors_stand_in_for_groups_of_predecessors(family):
    predecessor, inputs = model_of(family), batch()
    successor = copy.deepcopy(predecessor)
    successor.reduce(layers=[0, 1])
    with torch.no_grad():
        for parameter in (p for layer in successor.stack.layers() for p in layer.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    new, old = successor.stack.layers(), predecessor.stack.layers()
    path = Replacing(old, p=0.5)
    on_path(successor, path)
    torch.manual_seed(0)
    replaced = (torch.rand(30, 2) < 0.5).tolist()
    torch.manual_seed(0)
    for first, second in replaced:
        groups = [[new[0]] if first else old[:2], [new[1]] if second else old[2:]]
        assert torch.allclose(logits_of(successor, inputs), logits_after(successor, groups, inputs), atol=1e-6)
    assert len({tuple(row) for row in replaced}) == 4
    alone = logits_after(successor, [[layer] for layer in new], inputs)
    path.p = 1.0
    assert torch.allclose(logits_of(successor, inputs), alone, atol=1e-6)
    path.p = 0.0
    assert torch.allclose(logits_of(successor.eval(), inputs), alone, atol=1e-6), "only the successors stay"


def test_only_successors_learn_and_gradients_pass_through_predecessors():
    predecessor, successor = model_of("bert"), model_of("bert")
    successor.reduce(layers=[0, 1])
    names = set(successor.state_dict())
    path = Replacing(predecessor.stack.layers())
    successor.path = lambda layers: [layers[0], path(layers)[1]] if path.p == 0 else path(layers)
    path.p = 0.0
    successor.train()
    loss_of(successor)(batch()).backward()
    assert successor.backbone.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0
    assert successor.backbone.encoder.layer[1].output.dense.weight.grad is None
    assert all(p.grad is None for layer in predecessor.stack.layers() for p in layer.parameters())
    assert set(successor.state_dict()) == names, "the predecessor is not saved with it"


def test_groups_of_predecessors_are_of_one_size():
    layers = [nn.Identity() for _ in range(4)]
    with pytest.raises(ConfigError, match="3 layers can't replace 4"):
        Replacing(layers)([nn.Identity() for _ in range(3)])
    with pytest.raises(ValueError, match="must be in"):
        Replacing(layers, p=1.5)
    torch.manual_seed(0)
    path, successors = Replacing(layers, p=0.3), [nn.Identity(), nn.Identity()]
    replaced = sum(sum(a is b for a, b in zip(path(successors), successors, strict=True)) for _ in range(2000))
    assert replaced / 4000 == pytest.approx(0.3, abs=0.025)


def test_factorised_embeddings_answer_as_embeddings_do():
    words = FactorisedEmbedding(10, 6, 3, padding_idx=0)
    assert words(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 6)
    assert (words.num_embeddings, words.embedding_dim, words.rank) == (10, 6, 3)


def test_the_loss_that_decides_what_is_removed_has_each_exits_own_labels():
    model, labels = toy_mlp().eval(), torch.tensor([0, 1, 1])
    noisy = {"features": torch.randn(3, 6), "labels": labels, "exit_labels": 1 - labels[:, None]}
    examined = Examined(lambda: iter([noisy]), CPU)
    first, last = (
        nn.functional.cross_entropy(model.record(noisy).logits[i], y) for i, y in ((0, 1 - labels), (-1, labels))
    )
    assert _loss_of(model, examined, slice(0, 1))(noisy).item() == pytest.approx(first.item())
    assert _loss_of(model, examined, slice(-1, None))(noisy).item() == pytest.approx(last.item())
