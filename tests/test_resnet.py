"""The residual network: its size, its exits, inference that stops, saving, and BatchNorm under every kind of step."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from encoders import OF_ENCODERS
from pictures import CLASSES, pixels
from torch.nn.modules.batchnorm import _BatchNorm
from toys import ALGORITHMS

from leebert.config import TrainConfig
from leebert.errors import CheckpointError, ConfigError
from leebert.evaluate import record_all
from leebert.exits.replay import make_criterion, replay
from leebert.images.resnet import build_resnet, load_resnet
from leebert.inference import infer
from leebert.memory import estimate, image_batch
from leebert.methods import METHODS
from leebert.model import load_model
from leebert.objective import ExitObjective
from leebert.record import MultiExit, TensorSamples
from leebert.runtime import Runtime
from leebert.stages import Stage
from leebert.train import fit

CPU = Runtime.of("fp32", "cpu")
NAMES = tuple(f"class {i}" for i in range(CLASSES))
SETTINGS = {"batch_size": 8, "max_epochs": 1, "theta_optimizer": "sgd", "lr_theta": 0.05, "precision": "fp32"}


def network(backbone="resnet8", seed=0, **options):
    torch.manual_seed(seed)
    return build_resnet(backbone, NAMES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), **options)


def rows(n=48, size=8, seed=0):
    images, labels = pixels(n, size, seed)
    return TensorSamples(images=torch.from_numpy(images), labels=torch.from_numpy(labels))


def statistics(model):
    return {name: t.clone() for name, t in model.named_buffers() if "running" in name or "tracked" in name}


def test_resnet56_has_the_size_and_the_exits_of_the_papers():
    model = network("resnet56")
    count = {name: p.numel() for name, p in model.named_parameters()}
    exits = [sum(n for name, n in count.items() if name.startswith(f"heads.{i}.")) for i in range(27)]
    assert exits == [170] * 9 + [330] * 9 + [650] * 9
    assert sum(count.values()) - sum(exits) == 852_368
    # He et al. 2015, table 6: 0.85 M with the one classifier of the plain network.
    assert sum(count.values()) - sum(exits[:-1]) == 853_018
    assert (model.num_exits, model.depth, model.exit_layers) == (27, 27, tuple(range(1, 28)))
    assert isinstance(model, MultiExit)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 55  # and the last exit's linear layer: 56


def test_a_record_holds_every_exits_logits_and_what_the_exits_saw():
    model = network().eval()
    batch = rows(6).collate(range(6))
    record = model.record(batch, keep="hidden")
    assert record.logits.shape == (3, 6, CLASSES)
    assert record.logits.dtype == torch.float32
    assert record.hidden.shape == (3, 6, 64)
    assert all(int((h != 0).any(dim=0).sum()) <= width for h, width in zip(record.hidden, (16, 32, 64), strict=True))
    assert not record.hidden[0, :, 16:].any()
    assert torch.equal(record.labels, batch["labels"])
    for i, head in enumerate(model.heads):
        assert torch.allclose(head(record.hidden[i, :, : head.in_features]), record.logits[i], atol=1e-6)
    with pytest.raises(ConfigError, match="states differ in shape"):
        model.record(batch, keep="states")


def test_each_group_halves_the_side_and_doubles_the_channels():
    model = network("resnet14").eval()
    state, shapes = model.begin(rows(2, 32).collate([0, 1])), []
    for exit_ in range(model.num_exits):
        state, _ = model.advance(state, exit_)
        shapes.append(tuple(state.shape[1:]))
    assert shapes == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet57", "nearest is resnet56"),
        ("resnet2", "nearest is resnet8"),
        ("bert", "takes resnet20"),
        ("resnet", "takes"),
    ],
)
def test_other_networks_are_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        network(name)


@functools.cache
def trained():
    model = network("resnet20", seed=3)
    fit(model, rows(96), TrainConfig(**{**SETTINGS, "max_epochs": 2}, algorithm="uniform"), runtime=CPU)
    return model.eval()


@pytest.mark.parametrize(
    ("rule", "threshold"), [("patience", 1), ("entropy", 2.2), ("confidence", 0.15), ("never", None)]
)
def test_inference_that_drops_rows_equals_the_replay_of_all_exits(rule, threshold):
    model = trained()
    data = rows(40, seed=5)
    recorded = record_all(model, data, CPU)
    strategy = make_criterion(rule, threshold, num_exits=9, num_classes=CLASSES)
    leaving = replay(strategy, recorded.logits)
    answer = infer(model, data.collate(range(40)), strategy, CPU)
    assert answer.layers.tolist() == (leaving + 1).tolist()
    assert np.allclose(answer.logits, recorded.logits[leaving, np.arange(40)], atol=1e-4)
    if rule != "never":
        assert len(set(leaving)) > 1, "all rows leave at one exit: compaction is not tested"
    alone = [int(infer(model, data.collate([i]), strategy, CPU).layers) for i in range(8)]
    assert alone == (leaving + 1)[:8].tolist()


def test_inference_stops_computing_where_the_last_sample_exits():
    model = network("resnet20").eval()
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: ran.append((i, len(out))))
    answer = infer(
        model, rows(5).collate(range(5)), make_criterion("confidence", 0.01, num_exits=9, num_classes=10), CPU
    )
    assert ran == [(0, 5)]
    assert answer.layers.tolist() == [1] * 5


def test_a_saved_network_is_the_same_network(tmp_path):
    model = network()
    fit(model, rows(), TrainConfig(**SETTINGS, algorithm="uniform"), runtime=CPU)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = load_resnet(tmp_path)
    batch = rows(6, seed=9).collate(range(6))
    assert torch.equal(again.eval().record(batch).logits, model.eval().record(batch).logits)
    assert again.config.id2label == dict(enumerate(NAMES))
    assert all(torch.equal(a, statistics(model)[n]) for n, a in statistics(again).items())


def test_what_is_no_saved_network_is_refused(tmp_path):
    network().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a 'leebert-resnet' model"):
        load_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_resnet(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no early-exit model"):
        load_resnet(tmp_path)


@dataclasses.dataclass(frozen=True)
class ThetaAlone:
    """The θ step of the algorithms with a D2, and nothing for ω."""

    splits_data: bool = True

    def step(self, level, b1, position):
        level.theta_step(b1)
        return 0


@pytest.mark.parametrize("omega_forward", ["train", "eval"])
@pytest.mark.parametrize("algorithm", ["blo", "clo-v1", "clo-v2"])
def test_forwards_for_omega_leave_running_statistics_alone(algorithm, omega_forward):
    settings = TrainConfig(**SETTINGS, algorithm=algorithm, cycle_length=1, omega_forward=omega_forward)

    def after_one_step(steps):
        model = network()
        before = statistics(model)
        stage = Stage("joint", ExitObjective.of(settings, 3), steps)
        fit(model, rows(), settings, stages=(stage,), runtime=CPU, updates=1)
        return before, statistics(model)

    before, alone = after_one_step(ThetaAlone())
    _, found = after_one_step(ALGORITHMS[algorithm](settings))
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    assert not any(torch.equal(before[name], alone[name]) for name in alone), "the θ step itself did not move them"


def test_forwards_for_omega_in_training_mode_normalise_by_their_batch():
    """Statistics that are kept are not statistics that are used."""
    settings = TrainConfig(**SETTINGS, algorithm="blo")
    seen = []
    model = network()

    def offset(norm, args, out):
        seen.append((torch.is_grad_enabled(), (out.mean(dim=(0, 2, 3)) - norm.bias).abs().max().item()))

    model.blocks[0].norm1.register_forward_hook(offset)
    fit(model, rows(), settings, runtime=CPU, updates=1)
    for_omega = [offset for grad, offset in seen if not grad]
    assert len(for_omega) == 1
    assert for_omega[0] < 1e-5  # running statistics of one step would leave far more


@pytest.mark.parametrize("algorithm", ["uniform", "blo"])
def test_a_frozen_part_keeps_its_running_statistics(algorithm):
    settings = TrainConfig(**SETTINGS, algorithm=algorithm)
    model = network()
    before, weights = statistics(model), {n: p.clone() for n, p in model.named_parameters()}
    steps = ALGORITHMS[algorithm](settings)

    def trains(name):
        return name.startswith(("heads.", "blocks.2."))

    stage = Stage("late", ExitObjective.of(settings, 3), steps, trains=trains)
    fit(model, rows(), settings, stages=(stage,), validation=rows(seed=2), runtime=CPU)
    for name, found in statistics(model).items():
        assert torch.equal(found, before[name]) is not trains(name), name
    for name, found in model.named_parameters():
        assert torch.equal(found, weights[name]) is not trains(name), name
    frozen = [m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not trains(n)]
    assert frozen


@pytest.mark.slow
def test_memory_is_estimated_for_images_too():
    settings = TrainConfig(**SETTINGS, algorithm="clo-v2")
    small = estimate(network(), 8, 8, settings, runtime=CPU, batch=image_batch)
    large = estimate(network(), 8, 16, settings, runtime=CPU, batch=image_batch)
    assert small.parameters >= 4 * sum(p.numel() for p in network().parameters())
    assert 2 < large.activations / small.activations < 6  # four times the pixels


#: Uniform and learned weights, a step within a step, stages that freeze, and one exit; all methods: their contract.
@pytest.mark.parametrize("name", ["uniform", "clo-v2", "hyper", "deebert", "finetune"])
def test_methods_that_need_no_encoder_train_it(name, tmp_path):
    settings = TrainConfig(**{**SETTINGS, "algorithm": name, "omega_optimizer": "sgd", "lr_omega": 0.01})
    result = fit(network(), rows(), settings, validation=rows(10, seed=1))
    assert result.ended == "max_epochs"
    assert result.model.num_exits == (1 if METHODS[name].one_exit else 3)
    trained = result.model.eval()
    trained.save_pretrained(tmp_path)
    again = load_resnet(tmp_path).eval()
    assert again.exit_layers == trained.exit_layers
    inputs = rows(4).collate(range(4))
    with torch.no_grad():
        assert torch.equal(again.record(inputs).logits, trained.record(inputs).logits)
    rule = make_criterion("never", None, num_exits=again.num_exits, num_classes=CLASSES)
    assert infer(again, inputs, rule, CPU).layers.tolist() == [3] * 4


@pytest.mark.parametrize("name", sorted(OF_ENCODERS))
def test_what_takes_encoders_apart_is_refused_before_training(name):
    with pytest.raises(ConfigError, match="of an encoder; EarlyExitResNet has no"):
        fit(network(), rows(), TrainConfig(**{**SETTINGS, "algorithm": name}))


def test_gradient_equilibrium_leaves_exits_and_answers_alone():
    plain, balanced = network().eval(), network().eval()
    balanced.gradient_equilibrium = True
    inputs = rows(4).collate(range(4))
    for model in (plain, balanced):
        model.record(inputs).logits.square().sum().backward()
    assert torch.equal(plain.record(inputs).logits, balanced.record(inputs).logits)
    assert torch.allclose(plain.heads[0].weight.grad, balanced.heads[0].weight.grad)
    assert not torch.allclose(plain.conv.weight.grad, balanced.conv.weight.grad)
