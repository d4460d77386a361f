"""Methods on every tested family of encoders, and the properties of those that take encoders apart."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import quick
import torch
from encoders import EVERY_FAMILY, OF_ENCODERS, batch, encoder, text
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from leebert.checkpoint import Checkpoints
from leebert.config import ExitConfig, TrainConfig
from leebert.errors import ConfigError
from leebert.exits.replay import make_criterion
from leebert.inference import infer
from leebert.losses import cross_entropy_per_exit
from leebert.memory import estimate
from leebert.methods import METHODS
from leebert.model import build_model, load_model
from leebert.operations import multiply_adds, of_stages, parameters
from leebert.record import Record, TensorSamples
from leebert.runtime import Runtime
from leebert.slim.parts import blocks
from leebert.stages import Examined, method
from leebert.students import StudentObjective, distance
from leebert.train import fit, train_epochs
from leebert.transforms import (
    KeepLayers,
    LastExit,
    PruneHeads,
    Slenderise,
    Successors,
    best_of_all,
    first_layers,
    spaced_layers,
)

LAYERS = 4
STATIC = [name for name, told in METHODS.items() if told.group == "static"]
#: Families of encoders differ to methods that take them apart; to all others an encoder is a row of exits.
ON_EVERY_FAMILY = sorted({*OF_ENCODERS, "finetune", "clo-v2"})
#: Methods that exit by another criterion than PABEE's, and train as it does.
AS_PABEE = ("pcee-bert", "f-pabee", "beem")


def config(name: str, **options: Any) -> TrainConfig:
    given = {
        "lr_theta": 5e-3,
        "batch_size": 4,
        "max_epochs": 2,
        "first_epochs": 1,
        "prune_rounds": 2,
        "precision": "fp32",
    }
    return TrainConfig(algorithm=name, **{**given, **options})


def rows(n: int = 24, seed: int = 0) -> TensorSamples:
    made = batch(n, length=n + 2, seed=seed)
    return TensorSamples(**{**made, "labels": made["input_ids"].sum(1) % 2})


def model(family: str = "bert", seed: int = 0, layers: int = LAYERS, **options: Any) -> Any:
    torch.manual_seed(seed)
    return build_model(encoder(family, layers=layers, **options), ("no", "yes"), exits=ExitConfig(criterion="never"))


def examined() -> Examined:
    """The rows in one batch."""
    data = rows()
    return Examined(lambda: iter([data.collate(range(24))]), Runtime.of("fp32", "cpu"))


def test_those_that_train_as_pabee_have_its_stages():
    for name in AS_PABEE:
        assert _stages(name) == _stages("pabee")


def _stages(name: str) -> str:
    """What a method's stages are made of, in text: tensors don't compare."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(method(config(name), LAYERS)))


@pytest.mark.parametrize(
    ("name", "family"),
    quick.only(
        [(name, "bert") for name in ("truncated", "theseus", "clo-v2")],
        [(name, family) for family in EVERY_FAMILY for name in ON_EVERY_FAMILY],
    ),
)
def test_every_method_ends_as_a_model_that_is_saved_and_answers(name, family, tmp_path):
    result = fit(model(family), rows(), config(name, batch_size=8, max_epochs=1), validation=rows(10, seed=1))
    assert result.ended == "max_epochs"
    trained = result.model.eval()
    assert (trained.num_exits == 1) == METHODS[name].one_exit
    assert result.validation.depth == LAYERS
    assert result.validation.layers == trained.exit_layers
    trained.save_pretrained(tmp_path)
    again = load_model(tmp_path).eval()
    inputs = batch(3)
    with torch.no_grad():
        assert torch.equal(again.record(inputs).logits, trained.record(inputs).logits)
    rule = make_criterion("never", None, num_exits=again.num_exits, num_classes=2)
    answer = infer(again, inputs, rule, Runtime.of("fp32", "cpu"))
    assert answer.layers.tolist() == [trained.exit_layers[-1]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STATIC, "cost-eff"])
def test_methods_that_take_encoders_apart_resume_bit_for_bit(name, tmp_path):
    """From within each stage: plans and teachers are in the checkpoint, the data is not asked again."""
    settings = config(name)
    expected = fit(model(), rows(), settings, validation=rows(10, seed=1))
    stages = [report.stage for report in expected.reports]
    for cut in {stages.index(stage) + 1 for stage in stages} - {len(stages)}:  # after the first epoch of each
        place = tmp_path / str(cut)
        torn = train_epochs(model(), rows(), settings, validation=rows(10, seed=1), checkpoints=Checkpoints(place))
        for _ in range(cut):
            next(torn)
        torn.close()
        resumed = fit(model(seed=5), rows(), settings, validation=rows(10, seed=1), checkpoints=Checkpoints(place))
        assert [r.exits for r in resumed.reports] == [r.exits for r in expected.reports], cut
        pairs = zip(expected.model.state_dict().items(), resumed.model.state_dict().items(), strict=True)
        assert all(torch.equal(a, b) for (_, a), (_, b) in pairs), cut


# What each leaves.


@pytest.mark.parametrize(("name", "keep", "layers"), [("truncated", 0.5, 2), ("truncated", 0.75, 3), ("layerdrop", 0.5, 2),
    ("distilled", 0.5, 2), ("pkd", 0.75, 3), ("theseus", 0.5, 2)])  # fmt: skip
def test_layers_that_are_kept_and_what_a_speed_up_is_relative_to(name, keep, layers):
    result = fit(model(), rows(), config(name, keep=keep), validation=rows(10, seed=1))
    assert len(result.model.stack.layers()) == layers
    assert result.model.exit_layers == (layers,)
    assert result.model.depth == LAYERS
    assert result.model.path is None


def test_which_layers_are_kept():
    assert first_layers(12, 0.5) == (0, 1, 2, 3, 4, 5)
    assert first_layers(12, 0.75) == tuple(range(9))
    assert first_layers(6, 0.01) == (0,)
    assert spaced_layers(12, 0.5) == (0, 2, 4, 6, 8, 10)
    assert spaced_layers(6, 1.0) == (0, 1, 2, 3, 4, 5)
    assert spaced_layers(12, 0.75) == (0, 1, 2, 4, 5, 6, 8, 9, 10)


def test_a_truncated_model_starts_as_the_networks_own_first_layers():
    whole = model()
    kept = {n: p.clone() for n, p in whole.named_parameters() if ".layer.0." in n or ".layer.1." in n}
    (stage,) = method(config("truncated"), LAYERS)
    small = stage.shape(whole)
    assert kept
    assert all(torch.equal(dict(small.named_parameters())[n], p) for n, p in kept.items())


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_layerdrop_skips_in_training_only_and_its_last_stage_trains_nothing(family):
    ran = {True: 0, False: 0}  # layers, in training and in evaluation

    def count(layer: torch.nn.Module, *_: object) -> None:
        ran[layer.training] += 1

    whole = model(family)
    for layer in dict.fromkeys(whole.stack.layers()):  # ALBERT's is applied four times
        layer.register_forward_hook(count)
    reports, counts = [], []
    for report in train_epochs(
        whole, rows(), config("layerdrop", layerdrop=0.75, max_epochs=8), validation=rows(10, seed=1)
    ):
        reports.append(report)
        counts.append(dict(ran))
    assert [r.stage for r in reports] == ["layerdrop"] * 8 + ["kept"]
    updates = reports[-1].theta_updates
    assert updates == reports[-2].theta_updates == 24
    assert reports[-1].train_loss is None
    assert reports[-1].best_epoch == 8
    assert counts[-2][False] == 8 * LAYERS
    assert counts[-1] == {True: counts[-2][True], False: 8 * LAYERS + 2}
    assert counts[-1][True] == pytest.approx(0.25 * updates * LAYERS, abs=12)  # three standard deviations


def test_head_pruning_keeps_the_share_and_the_most_important():
    whole = model()
    stages = method(config("headprune", keep=0.5, prune_rounds=2), LAYERS)
    assert [s.name for s in stages] == ["finetune", "prune-1", "prune-2"]
    result = fit(whole, rows(), config("headprune", keep=0.5, prune_rounds=2), validation=rows(10, seed=1))
    assert sum(result.model.config.structure["heads"]) == LAYERS * 2 / 2
    assert best_of_all([torch.tensor([0.1, 0.9]), torch.tensor([0.5, 0.6])], 3) == [[1], [0, 1]]
    assert best_of_all([torch.tensor([9.0, 8.0]), torch.tensor([0.2, 0.1])], 2) == [[0], [0]]


def test_a_head_that_nothing_depends_on_is_cut_first():
    whole = model().eval()
    idle = whole.backbone.encoder.layer[2].attention.output.dense
    with torch.no_grad():
        idle.weight[:, 16:] = 0  # the second of its two heads
    plan = PruneHeads(7 / 8).plan(whole, examined())
    assert plan == [[0, 1], [0, 1], [0], [0, 1]]


@pytest.mark.parametrize("influence", [1.0, 1e-3])
def test_heads_are_compared_by_their_share_of_their_layers_l2_norm(influence):
    """All heads of a layer do what its first does, only less: by so much they are less important."""
    whole = model(num_attention_heads=4).eval()
    # Of each layer's norm the least that is not nothing: 0.49, 0.45, 0.20, 0.67.
    worth = [(1, 0.99, 0.98, 0.97), (1, 0.5, 0, 0), (1, 0.2, 0, 0), (1, 0.9, 0, 0)]
    with torch.no_grad():
        for block, parts in zip(blocks(whole.backbone), worth, strict=True):
            for linear in block.inputs:
                linear.weight.copy_(linear.weight[:8].repeat(4, 1))
                linear.bias.copy_(linear.bias[:8].repeat(4))
            first = block.output.weight[:, :8].clone()
            block.output.weight.copy_(torch.cat([part * first for part in parts], dim=1))
        blocks(whole.backbone)[3].output.weight.mul_(influence)
    plans = {kept: PruneHeads(kept / 16).plan(whole, examined()) for kept in (9, 8, 7)}
    assert plans == {
        9: [[0, 1, 2, 3], [0, 1], [0], [0, 1]],
        8: [[0, 1, 2, 3], [0], [0], [0, 1]],
        7: [[0, 1, 2], [0], [0], [0, 1]],
    }


def test_slenderising_cuts_what_nothing_depends_on_first():
    whole = model(num_attention_heads=4).eval()
    head, neurons = [2, 0, 3, 1], [range(start, 48, 4) for start in (1, 3, 0, 2)]  # of each layer, idle
    with torch.no_grad():
        for block, i, j in zip(blocks(whole.backbone), head, neurons, strict=True):
            block.output.weight[:, 8 * i : 8 * (i + 1)] = 0
            block.outer.weight[:, list(j)] = 0
    plan = Slenderise(3 / 4).plan(whole, examined())
    assert plan["heads"] == [[i for i in range(4) if i != idle] for idle in head]
    assert plan["neurons"] == [[i for i in range(48) if i not in idle] for idle in neurons]


def test_slenderising_keeps_what_an_early_exit_alone_depends_on():
    whole = model().eval()
    first = blocks(whole.backbone)[0]
    with torch.no_grad():
        first.output.weight[:, :16] = 0  # nothing depends on the first of its heads, nor on half of its neurons
        first.outer.weight[:, :24] = 0
        whole.backbone.encoder.layer[1].attention.output.LayerNorm.weight.zero_()  # all of layer 1 is lost behind it
    record = whole.record(rows().collate(range(24)))
    losses = cross_entropy_per_exit(record.logits, record.labels)
    reach = [torch.autograd.grad(loss, first.output.weight, retain_graph=True)[0].any() for loss in losses]
    assert reach == [True, False, False, False]
    plan = Slenderise(0.5).plan(whole, examined())
    assert (plan["heads"][0], plan["neurons"][0]) == ([1], list(range(24, 48)))


def test_slenderising_keeps_depth_and_exits():
    settings = config("cost-eff", keep=0.5)
    result = fit(model(), rows(), settings, validation=rows(10, seed=1))
    assert result.model.exit_layers == (1, 2, 3, 4)
    assert result.model.config.structure == {
        "depth": 4, "heads": [1] * 4, "intermediate": [24] * 4, "embedding_rank": 16,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no heads"):
        Slenderise(0.5).check(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("transform", [KeepLayers, Successors])
@pytest.mark.parametrize(("layers", "needed"), [((0, 1, 2), 3), ((0, 2, 4), 5)])
def test_layers_that_an_encoder_has_not_are_counted(transform, layers, needed):
    small = model(layers=2)
    with pytest.raises(ConfigError, match=f"{needed} layers; this encoder has 2$"):
        transform(layers).check(small)
    assert len(small.stack.layers()) == 2


@pytest.mark.parametrize("name", ["finetune", "headprune"])
def test_methods_with_one_exit_keep_the_last_wherever_exits_are(name):
    few = model()
    few.keep_exits([1, 2, 4])
    assert fit(few, rows(), config(name)).model.exit_layers == (4,)


@pytest.mark.parametrize("name", ["truncated", "layerdrop", "distilled", "pkd", "theseus"])
def test_methods_that_take_a_share_of_the_layers_refuse_a_model_whose_exits_do_not_show_them(name):
    few = model()
    few.keep_exits([2, 4])
    refusal = r"an exit after each of its 4; here exits follow layers \(2, 4\)"
    with pytest.raises(ConfigError, match=refusal):
        next(train_epochs(few, rows(), config(name)))
    with pytest.raises(ConfigError, match=refusal):
        estimate(few, 4, 16, config(name), runtime=Runtime.of("fp32", "cpu"))
    assert few.exit_layers == (2, 4)


def test_theseus_needs_groups_of_one_size_and_is_refused_before_training():
    with pytest.raises(ConfigError, match="3 layers can't replace 4"):
        next(train_epochs(model(), rows(), config("theseus", keep=0.75)))


def test_theseus_freezes_embeddings_and_exit_while_it_replaces():
    seen = []
    for report in train_epochs(model(), rows(), config("theseus", max_epochs=2), validation=rows(10, seed=1)):
        seen.append({n: p.detach().clone() for n, p in report.model.named_parameters()})
    finetuned, replaced, alone = seen
    still = [n for n in replaced if n.startswith("heads.") or "embeddings" in n]
    assert still
    assert all(torch.equal(finetuned[n], replaced[n]) for n in still)
    moved = "backbone.encoder.layer.0.output.dense.weight"
    assert not torch.equal(finetuned[moved], replaced[moved])
    assert not torch.equal(replaced["heads.0.weight"], alone["heads.0.weight"])


def test_theseus_replaces_more_and_more_until_its_successors_are_alone():
    finetuned, replacing, alone = method(config("theseus", replacing_rate=0.4), LAYERS)
    assert replacing.teacher == finetuned.name
    assert replacing.transform.layers == alone.transform.layers == (0, 1)
    seen = []
    whole = model()

    def watch(*_: object) -> None:
        if whole.training:
            seen.append(whole.path.p if whole.path else None)

    whole.backbone.embeddings.register_forward_hook(watch)
    fit(whole, rows(), config("theseus", replacing_rate=0.4))
    assert seen == [None] * 3 + [pytest.approx(p) for p in (0.4, 0.6, 0.8)] + [None] * 3


# Of shared layers (ALBERT).


@pytest.mark.parametrize(("name", "keep"), [("truncated", 0.75), ("layerdrop", 0.5), ("distilled", 0.5), ("pkd", 0.75)])
def test_shared_layers_are_applied_less_often_and_no_parameter_goes(name, keep):
    whole = model("albert")
    shapes = {n: p.shape for n, p in whole.backbone.named_parameters()}
    small = fit(whole, rows(), config(name, keep=keep), validation=rows(10, seed=1)).model.eval()
    assert {n: p.shape for n, p in small.backbone.named_parameters()} == shapes
    assert small.config.structure == {"depth": LAYERS, "layers": keep * LAYERS, "exits": [keep * LAYERS]}
    applied = []
    (group,) = small.backbone.encoder.albert_layer_groups
    group.register_forward_hook(lambda *_: applied.append(1))
    small.record(batch(3))
    assert len(applied) == keep * LAYERS


def test_theseus_predecessor_and_successor_have_a_copy_of_shared_layers_each():
    whole = model("albert")
    shapes = {n: p.shape for n, p in whole.backbone.named_parameters()}
    (successor,) = dict.fromkeys(whole.stack.layers())
    reports = train_epochs(whole, rows(), config("theseus", max_epochs=4), validation=rows(10, seed=1))
    assert next(reports).stage == "finetune"
    start = {n: p.detach().clone() for n, p in successor.named_parameters()}
    assert next(reports).stage == "replacing"
    applied = whole.path.predecessor
    (predecessor,) = dict.fromkeys(applied)
    assert len(applied) == LAYERS
    for report in reports:  # one more of replacing, two alone
        assert dict.fromkeys(report.model.stack.layers()) == {successor: None}
        assert all(torch.equal(p, start[n]) for n, p in predecessor.named_parameters())
        assert not any(torch.equal(p, start[n]) for n, p in successor.named_parameters())
    assert report.stage == "successor"
    assert {n: p.shape for n, p in report.model.backbone.named_parameters()} == shapes
    assert len(report.model.stack.layers()) == LAYERS / 2


@pytest.mark.parametrize(
    ("name", "structure", "neurons"), [("headprune", {"exits": [4]}, 48), ("cost-eff", {"intermediate": [24]}, 24)]
)
def test_a_cut_of_shared_layers_is_one_of_all_applications_and_factorised_embeddings_stay(name, structure, neurons):
    trained = fit(model("albert"), rows(), config(name, keep=0.5), validation=rows(10, seed=1)).model.eval()
    assert trained.config.structure == {"depth": LAYERS, "heads": [1], **structure}
    words = trained.backbone.get_input_embeddings()
    assert isinstance(words, torch.nn.Embedding)
    assert words.weight.shape == (64, 16)
    (block,) = blocks(trained.backbone)
    widths = []  # of attention and of the feed-forward part, layer by layer
    for linear in (block.output, block.outer):
        linear.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[-1]))
    trained.record(batch(3))
    assert widths == [16, neurons] * LAYERS


# Students.


def _records(seed: int = 0) -> tuple[Record, Record]:
    g = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    labels, mask = torch.randint(0, 3, (5,), generator=g), (torch.rand(5, 7, generator=g) < 0.7).long()
    mask[:, 0] = 1
    student = Record(made(2, 5, 3), labels, made(2, 5, 4), made(3, 5, 7, 4), mask)
    return student, Record(made(2, 5, 3), labels, made(4, 5, 4), made(3, 5, 7, 4), mask)


def test_a_students_loss_term_by_term():
    student, teacher = _records()
    objective = StudentObjective(2, hard=0.25, soft=0.75, states=0.0, imitated="last", temperature=2.0)
    state = objective.initial(torch.Generator())
    loss = objective.weights(state).double() @ objective.terms(student, state, teacher)
    p = F.softmax(teacher.logits[-1] / 2, -1)
    kl = [4 * (p * (p.log() - F.log_softmax(z / 2, -1))).sum(-1).mean() for z in student.logits]
    ce = [F.cross_entropy(z, student.labels) for z in student.logits]
    assert torch.allclose(loss, 0.25 * sum(ce) + 0.75 * sum(kl))


def test_an_exits_teacher_may_be_the_same_exit():
    student, teacher = _records()
    objective = StudentObjective(2, hard=0.0, soft=1.0, states=0.0, imitated="last", same_exit=True)
    terms = objective.terms(student, objective.initial(torch.Generator()), teacher)
    p = F.softmax(teacher.logits, -1)
    kl = (p * (p.log() - F.log_softmax(student.logits, -1))).sum(-1).mean(-1)
    assert torch.allclose(terms[2:4], kl)
    itself = objective.terms(teacher, objective.initial(torch.Generator()), teacher)
    assert torch.allclose(itself[2:4], torch.zeros(2, dtype=torch.float64), atol=1e-12)


def test_answers_may_count_only_later():
    objective = StudentObjective(2, hard=0.5, soft=0.5, states=1.0, imitated="all", predictions_from=0.5)
    state = objective.initial(torch.Generator())
    assert objective.weights(state).tolist() == [0, 0, 0, 0, 1]
    assert objective.weights(objective.after_step(_records()[0], state, 0.4)).tolist() == [0, 0, 0, 0, 1]
    assert objective.weights(objective.after_step(_records()[0], state, 0.5)).tolist() == [0.5] * 4 + [1]


def test_distances_of_states_ignore_padding_scale_where_they_should_and_vanish_on_equal_states():
    student, teacher = _records()
    for imitated in ("patient", "last", "all"):
        assert distance(student, student, imitated).abs() < 1e-6
        assert distance(student, teacher, imitated) > 0.001
    longer = Record(student.logits, student.labels, 3 * student.hidden, 3 * student.states, student.mask)
    assert torch.allclose(distance(longer, teacher, "patient"), distance(student, teacher, "patient"))
    assert torch.allclose(distance(longer, teacher, "last"), distance(student, teacher, "last"))
    noisy = student.states.clone()
    noisy[:, student.mask == 0] = 99.0
    padded = Record(student.logits, student.labels, student.hidden, noisy, student.mask)
    for imitated in ("last", "all"):
        assert torch.allclose(distance(padded, teacher, imitated), distance(student, teacher, imitated))


def test_a_patient_student_imitates_layers_at_the_same_share_of_the_depth():
    """Two layers of four: the first imitates the teacher's second (PKD-skip), the last is left to the answers."""
    student, teacher = _records()
    a, b = F.normalize(student.hidden[0], dim=-1), F.normalize(teacher.hidden[1], dim=-1)
    expected = (a - b).square().mean()
    assert torch.allclose(distance(student, teacher, "patient").double(), expected, atol=1e-6)


def test_cost_effs_distance_of_states_sums_over_embeddings_and_layers():
    """Shen et al. (2022), section 3.2: a mean over layers would weigh it 1 / (M + 1) beside the answers."""
    student, teacher = _records()
    squares = (student.states - teacher.states).square().mean(dim=-1)  # (M + 1, B, L)
    weight = student.mask.double()
    expected = sum(((of * weight).sum(dim=1) / weight.sum(dim=1)).mean() for of in squares)
    assert torch.allclose(distance(student, teacher, "all").double(), expected, atol=1e-5)


def test_pkds_distillation_sums_over_classes():
    """Sun et al. (2019) sum over classes; the published code's mean over classes is K times smaller."""
    student, teacher = map(_last_exit, _records())
    objective = StudentObjective(1, hard=0.0, soft=1.0, states=0.0, imitated="patient", temperature=5.0)
    soft = objective.terms(student, objective.initial(torch.Generator()), teacher)[1]
    p, q = (F.log_softmax(record.logits[0] / 5.0, dim=-1) for record in (teacher, student))
    published = 25.0 * (p.exp() * (p - q)).mean()
    assert torch.allclose(soft.double(), student.logits.shape[-1] * published)


def _loss(stage: Any, student: Record, teacher: Record, progress: float) -> torch.Tensor:
    """What a stage minimises at a share of its updates."""
    state = stage.objective.after_step(student, stage.objective.initial(torch.Generator()), progress)
    return stage.objective.weights(state).double() @ stage.objective.terms(student, state, teacher)


def _ce(record: Record) -> torch.Tensor:
    return sum(F.cross_entropy(z, record.labels) for z in record.logits)


def _kl(student: Record, teacher: Record, tau: float = 1.0) -> torch.Tensor:
    """τ² KL(teacher ‖ student), summed over the student's exits, each taught by the teacher's same or only exit."""
    p = F.softmax(teacher.logits / tau, -1)
    return tau**2 * (p * (p.log() - F.log_softmax(student.logits / tau, -1))).sum(-1).mean(-1).sum()


def _last_exit(record: Record) -> Record:
    return dataclasses.replace(record, logits=record.logits[-1:])


@pytest.mark.parametrize(
    ("name", "layers", "imitated", "weight"),
    [("pkd", (0, 1, 2), "patient", 7.0), ("distilled", (0, 2, 4), "last", 1.0)],
)
def test_a_students_layers_loss_and_teacher_are_its_papers(name, layers, imitated, weight):
    options = {"alpha": 0.2, "temperature": 5.0, **({"beta": weight} if name == "pkd" else {})}
    finetuned, taught = method(config(name, **options), 6)
    assert finetuned.transform == LastExit()
    assert taught.transform == KeepLayers(layers)
    assert taught.teacher == finetuned.name
    student, teacher = map(_last_exit, _records())
    expected = 0.8 * _ce(student) + 0.2 * _kl(student, teacher, 5.0) + weight * distance(student, teacher, imitated)
    assert torch.allclose(_loss(taught, student, teacher, 0.0), expected)


def test_cost_effs_assistant_learns_from_the_finetuned_network_and_its_cuts_from_the_assistants_same_exits():
    settings = config("cost-eff", keep=0.4, prune_rounds=3, temperature=2.0)
    finetuned, assistant, *slender = method(settings, 2)
    assert [assistant.teacher, *(stage.teacher for stage in slender)] == [finetuned.name] + [assistant.name] * 4
    assert [stage.transform.share for stage in slender[:3]] == pytest.approx([0.8, 0.6, 0.4])
    assert assistant.transform is slender[-1].transform is None
    assert finetuned.objective.weights(finetuned.objective.initial(torch.Generator())).tolist() == [0, 1]
    student, teacher = _records()
    states = distance(student, teacher, "all").double()
    answers = (_ce(student) + _kl(student, _last_exit(teacher), 2.0)) / 2
    assert torch.allclose(_loss(assistant, student, teacher, 0.3), states)
    assert torch.allclose(_loss(assistant, student, teacher, 0.34), states + answers)
    for stage in slender:
        assert torch.allclose(_loss(stage, student, teacher, 0.49), states)
        assert torch.allclose(_loss(stage, student, teacher, 0.5), states + _kl(student, teacher, 2.0))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.5, 0.6])
@pytest.mark.parametrize("name", [*(name for name in STATIC if name not in ("finetune", "theseus")), "cost-eff"])
def test_costs_stated_without_training_are_those_of_the_trained_network(name, keep):
    settings = config(name, keep=keep, max_epochs=1)
    told = of_stages(model(), settings, text(7))
    trained = fit(model(), rows(), settings, validation=rows(10, seed=1))
    assert [costs.stage for costs in told] == list(dict.fromkeys(report.stage for report in trained.reports))
    assert told[-1].parameters == parameters(trained.model)
    if name != "headprune":  # there the layers that keep more are the data's choice
        assert told[-1].multiply_adds == multiply_adds(trained.model, text(7))
    assert told[-1].multiply_adds[-1] == multiply_adds(trained.model, text(7))[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in AS_PABEE])
def test_the_memory_of_every_method_is_estimated_without_data_or_copies_of_references(name, monkeypatch):
    """Torch frees what a reference by address names when the reference goes: a copy frees it twice, and the heap breaks."""

    def copied(self: object, memo: object) -> None:
        pytest.fail("a copy of a storage's weak reference")

    monkeypatch.setattr(StorageWeakRef, "__deepcopy__", copied, raising=False)
    found = estimate(model(layers=2), 4, 16, config(name, keep=0.5), runtime=Runtime.of("fp32", "cpu"))
    assert found.total > found.parameters > 0
