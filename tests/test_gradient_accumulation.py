"""A batch taken in parts: the same training as at once, in less memory."""

import dataclasses
import weakref

import pytest
import quick
import torch
from encoders import encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ALGORITHMS, ThreeExitMLP, toy_mlp, toy_rows

from leebert.checkpoint import Checkpoints
from leebert.config import TrainConfig
from leebert.data.batches import plan_epoch
from leebert.level import StageLevel
from leebert.losses import TEACHERS
from leebert.model import build_model
from leebert.objective import ExitObjective
from leebert.optim.fixed import Fixed
from leebert.record import Record, TensorSamples, micro_batches
from leebert.stages import Stage, method
from leebert.train import fit, train_epochs


def config(**options):
    return TrainConfig(
        **{
            "lr_theta": 1e-2, "lr_omega": 1e-2, "batch_size": 8, "max_epochs": 2, "cycle_length": 2,
            "precision": "fp32", "exit_dropout": 0.0, **options,
        }
    )  # fmt: skip


def outcome(model, rows, settings, **options):
    """Parameters, mean losses and ω's weights after training."""
    result = fit(model, rows, settings, **options)
    weights = [w for r in result.reports for kind in sorted(r.weights) for w in r.weights[kind]]
    return [p.detach() for p in model.parameters()], [r.train_loss for r in result.reports], weights


def assert_close(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    assert one[1] == pytest.approx(other[1], rel=1e-5)
    assert one[2] == pytest.approx(other[2], rel=1e-5)


@pytest.mark.parametrize("algorithm", quick.only(ALGORITHMS.keys() & {*quick.METHODS}, ALGORITHMS))
def test_a_batch_in_parts_trains_an_mlp_as_a_whole_one_does(algorithm):
    """In three uneven parts, and in more parts than it has samples."""
    whole, uneven, single = (
        outcome(toy_mlp(dropout=0.0), toy_rows(24), config(algorithm=algorithm, accumulate=n)) for n in (1, 3, 20)
    )
    assert_close(uneven, whole)
    assert_close(single, whole)


def bert():
    model = build_model(
        encoder("bert", layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), ("no", "yes"),
        train=config(),
    )  # fmt: skip
    torch.manual_seed(0)
    model._init_weights(model.heads)
    return model


def token_rows(n=48, length=9):
    g = torch.Generator().manual_seed(3)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (n, 1), generator=g)).long()
    ids = torch.randint(5, 60, (n, length), generator=g) * mask
    return TensorSamples(input_ids=ids, attention_mask=mask, labels=(ids[:, 1] > 30).long())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["uniform", "hyper", "clo-v2"])  # a step, one within another, and one of each
def test_a_batch_in_parts_trains_an_encoder_as_a_whole_one_does(algorithm):
    def run(parts):
        settings = config(algorithm=algorithm, accumulate=parts, lr_theta=1.0, clip_norm=100.0)
        # Plain SGD: Adam would make a full step of a gradient that is 0 but for rounding, such as the keys' biases'.
        stages = [
            dataclasses.replace(stage, optimizer=lambda parameters, lr, _: torch.optim.SGD(parameters, lr))
            for stage in method(settings, 3)
        ]
        return outcome(bert(), token_rows(), settings, stages=tuple(stages))

    whole, split = run(1), run(3)
    assert_close(split, whole)
    moved = [(a - b.detach()).abs().max() for a, b in zip(whole[0], bert().parameters(), strict=True)]
    assert max(moved) > 0.02


def at_once(self, batch):
    """A θ step that knows nothing of parts."""
    for group in self.theta_optimizer.param_groups:
        group["lr"] = self.rate
    record = self.model.record(batch)
    losses = self.stage.objective.terms(record, self.state)
    loss = self.stage.objective.weights(self.state).detach() @ losses
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.theta.values(), self.config.clip_norm)
    self.theta_optimizer.step()
    self.theta_optimizer.zero_grad(set_to_none=True)
    self.steps, self.draws = self.steps + 1, 0  # by which ω's masks are drawn
    self.loss_sum += loss.detach()
    return losses.detach()


@torch.no_grad()
def forwards_at_once(self, *batches):
    with self._for_omega():
        records = [self.model.record(batch) for batch in batches]
    return tuple(self.stage.objective.terms(record, self.state) for record in records)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.keys() - {"hyper"}))  # whose steps are not by `theta_step`
def test_one_part_is_bit_for_bit_a_step_without_parts(algorithm, monkeypatch):
    parameters, *numbers = outcome(toy_mlp(dropout=0.3), toy_rows(32), config(algorithm=algorithm))
    monkeypatch.setattr(StageLevel, "theta_step", at_once)
    monkeypatch.setattr(StageLevel, "losses", forwards_at_once)
    expected, *expected_numbers = outcome(toy_mlp(dropout=0.3), toy_rows(32), config(algorithm=algorithm))
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))
    assert numbers == expected_numbers


def test_a_parts_graph_is_gone_before_the_next_part_begins():
    sizes, last = [], lambda: None

    class Watched(ThreeExitMLP):
        def record(self, batch, keep="logits"):
            nonlocal last
            assert last() is None
            record = super().record(batch, keep)
            sizes.append(len(record.labels))
            last = weakref.ref(record.logits)
            return record

    torch.manual_seed(0)
    fit(Watched(), toy_rows(), config(algorithm="uniform", accumulate=3, max_epochs=1))
    assert sizes == [3, 3, 2] * 6


@pytest.mark.parametrize("algorithm", ["headprune", "cost-eff"])
def test_what_a_cut_looks_at_comes_in_parts_too(algorithm, monkeypatch):
    model, sizes = bert(), []
    record = model.record

    def watched(inputs, *keep):
        if torch.is_grad_enabled() and not model.training:
            sizes.append(len(inputs["labels"]))
        return record(inputs, *keep)

    monkeypatch.setattr(model, "record", watched)
    fit(model, token_rows(16), config(algorithm=algorithm, accumulate=3, max_epochs=1, prune_rounds=1))
    assert sizes == [3, 3, 2] * 2  # all 16 rows


def test_a_run_resumes_from_its_checkpoint_in_other_parts(tmp_path):
    options = {"validation": toy_rows(seed=1)}
    whole = outcome(toy_mlp(dropout=0.0), toy_rows(), config(), **options)
    next(train_epochs(toy_mlp(dropout=0.0), toy_rows(), config(), checkpoints=Checkpoints(tmp_path), **options))
    steps = []
    resumed = outcome(
        toy_mlp(seed=9, dropout=0.0), toy_rows(), config(accumulate=4, eval_batch_size=5),
        checkpoints=Checkpoints(tmp_path), on_step=steps.append, **options,
    )  # fmt: skip
    assert steps[0] == 7  # the second epoch's first update
    assert_close(resumed, whole)


def test_an_objectives_state_follows_the_whole_batch():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watching(ExitObjective):
        def after_step(self, record, state, progress):
            seen.append(record)
            return state

    settings, rows = config(algorithm="uniform", accumulate=3), toy_rows()
    whole = ExitObjective.of(settings, 3)
    stage = Stage("s", Watching(whole.layout, whole.parametrisation), Fixed())
    fit(toy_mlp(dropout=0.0), rows, settings, stages=(stage,), updates=1)
    first = plan_epoch(rows.lengths, 8, False, (0, "s"), 0).d1[0]
    expected = toy_mlp(dropout=0.0).record(rows.collate(first))
    torch.testing.assert_close(seen[0].logits, expected.logits.detach())
    assert torch.equal(seen[0].labels, expected.labels)
    assert not seen[0].logits.requires_grad


@settings(max_examples=40, deadline=None)
@given(
    teachers=st.sampled_from(sorted(TEACHERS)), kl=st.booleans(), detach=st.booleans(),
    temperature=st.floats(0.5, 8), rows=st.integers(1, 9), parts=st.integers(1, 12), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_term_of_eq_5_is_a_mean_over_rows(teachers, kl, detach, temperature, rows, parts, seed):
    settings = config(
        teachers=teachers, temperature=temperature, detach_teacher=detach, distillation="kl" if kl else "cross_entropy"
    )
    objective = ExitObjective.of(settings, 4)
    state = objective.initial(torch.Generator())
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, rows, 3, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (rows,), generator=g)
    whole = objective.terms(Record(logits, labels), state)
    split = micro_batches({"logits": logits.transpose(0, 1), "labels": labels}, parts)
    assert len(split) == min(parts, rows)
    terms = [objective.terms(Record(p["logits"].transpose(0, 1), p["labels"]), state) for p in split]
    joined = sum(t * len(p["labels"]) / rows for t, p in zip(terms, split, strict=True))
    torch.testing.assert_close(joined, whole)
    w = torch.arange(1, len(whole) + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad(w @ l, logits, retain_graph=True)[0] for l in (joined, whole)]
    torch.testing.assert_close(*gradients)
