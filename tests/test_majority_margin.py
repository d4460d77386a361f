"""Margins over the majority class: by hand, against the bootstrap, and what follows from them in training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leebert.checkpoint import Checkpoints
from leebert.config import TrainConfig
from leebert.majority import AgainstMajority, against_majority, in_words, pooled, single_class
from leebert.metrics import METRICS, measures
from leebert.metrics.metric import jackknife
from leebert.record import Record, TensorSamples
from leebert.train import fit, train_epochs
from tune.store.history import Configuration
from tune.store.ledger import SweepState


def logits(*predictions, classes=2):
    """(M, N, K) logits of exits that predict these classes."""
    return np.stack([np.eye(classes)[np.asarray(p)] for p in predictions]).astype(np.float32)


LABELS = np.array([1] * 68 + [0] * 32)


@pytest.mark.parametrize(
    ("metric", "score", "chance"),
    [
        ("accuracy", 0.68, 0.5),
        ("acc_f1", (0.68 + 2 * 0.68 / 1.68) / 2, (0.5 + 2 * 0.34 / (0.68 + 0.5)) / 2),
        ("macro_f1", (2 * 0.68 / 1.68) / 2, (2 * 0.34 / 1.18 + 2 * 0.16 / 0.82) / 2),
        ("matthews", 0.0, 0.0),
    ],
)
def test_the_majority_class_and_chance_score_what_their_confusion_matrices_give(metric, score, chance):
    found = against_majority(logits(np.ones(100, int)), LABELS, metric)
    assert (found.label, found.samples) == (1, 100)
    assert found.score == pytest.approx(score, abs=1e-6)
    assert found.chance == pytest.approx(chance, abs=1e-6)
    assert (found.margins, found.errors, found.margin, found.error) == ((0,), (0,), 0, 0)
    assert (found.collapsed, found.verdict, found.above) == ((0,), "collapsed", False)


def test_the_best_constant_is_taken_where_the_rare_class_is_the_positive_one():
    """With 45 % positives, always 1 scores (45 + 62.07) / 2 by accuracy and F1, always 0 only 55 / 2."""
    labels = np.array([1] * 45 + [0] * 55)
    found = against_majority(logits(np.zeros(100, int)), labels, "acc_f1")
    assert found.label == 1
    assert found.score == pytest.approx((0.45 + 2 * 0.45 / 1.45) / 2, abs=1e-6)
    assert found.margin == pytest.approx(0.275 - found.score, abs=1e-6)


def test_an_accuracy_margin_has_the_paired_standard_error():
    """70 of 100 right where the constant has 60: 25 gained, 15 lost, so d is 1, -1 or 0 with mean 0.1."""
    labels = np.array([1] * 60 + [0] * 40)
    predicted = np.array([1] * 45 + [0] * 15 + [0] * 25 + [1] * 15)
    found = against_majority(logits(predicted), labels, "accuracy")
    d = np.array([1] * 25 + [-1] * 15 + [0] * 60)
    assert found.margin == pytest.approx(0.1)
    assert found.error == pytest.approx(d.std(ddof=1) / 10, abs=1e-6)
    low, high = found.interval
    assert (low, high) == pytest.approx((0.1 - 1.96 * found.error, 0.1 + 1.96 * found.error), abs=1e-5)
    assert found.verdict == "not distinguishable", "-0.02 to 0.22"
    assert found.above


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from(sorted(METRICS)))
def test_influences_are_the_derivatives_of_the_measures(seed, classes, metric):
    """By counting each sample once more: the measure moves by influence / N, up to 1 / N²."""
    classes = 2 if metric == "acc_f1" else classes
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(classes, size=(2, 400))
    for measure in METRICS[metric].measures.values():
        of = measure.influence(labels, predicted)
        assert jackknife(measure.function, labels, predicted) == pytest.approx(of, abs=0.05)
        assert of.mean() == pytest.approx(0, abs=1e-9)
        for n in rng.integers(400, size=4):
            more = measure.function(np.append(labels, labels[n]), np.append(predicted, predicted[n]))
            more -= measure.function(labels, predicted)
            assert 400 * more == pytest.approx(of[n], abs=0.05)


def test_the_error_of_the_mean_over_exits_is_that_of_the_paired_bootstrap():
    metric = "acc_f1"
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.65).astype(int)
    said = np.stack([np.where(rng.random(300) < right, labels, rng.integers(2, size=300)) for right in (0.2, 0.4, 0.5)])
    found = against_majority(logits(*said), labels, metric)
    constant = np.full(300, found.label)
    drawn = []
    for _ in range(150):
        at = rng.integers(300, size=300)
        margin = np.mean([measures(metric, labels[at], p[at])["score"] for p in said])
        drawn.append(margin - measures(metric, labels[at], constant[at])["score"])
    assert found.error == pytest.approx(np.std(drawn), rel=0.2)


def test_one_good_exit_is_enough_and_samples_of_one_label_show_nothing():
    labels = np.array([1] * 60 + [0] * 40)
    good = np.where(np.arange(100) % 10 == 0, 1 - labels, labels)
    found = against_majority(logits(np.ones(100, int), np.zeros(100, int), good), labels, "accuracy")
    assert found.margin < 0.1 < found.margins[2]
    assert (found.verdict, found.collapsed) == ("learned", (0, 1))
    assert against_majority(logits(labels[:60]), labels[:60], "accuracy") is None


def test_it_survives_json():
    import json

    found = against_majority(logits(LABELS, np.ones(100, int)), LABELS, "acc_f1")
    plain = json.loads(json.dumps(found.as_dict()))
    assert AgainstMajority.of(plain) == found
    assert plain["verdict"] == "learned"
    assert plain["low"] < plain["margin"] < plain["high"]


def run(margin, error, collapsed=()):
    return AgainstMajority(1, 0.6, 0.5, 100, (margin, margin), (error, error), margin, error, collapsed)


def test_folds_are_independent_and_seeds_of_one_fold_are_not():
    two_folds = pooled([[run(0.1, 0.03)], [run(0.2, 0.04)]])
    assert two_folds.margin == pytest.approx(0.15)
    assert two_folds.error == pytest.approx(0.05 / 2)
    assert two_folds.samples == 200
    two_seeds = pooled([[run(0.1, 0.03), run(0.2, 0.05)]])
    assert (two_seeds.error, two_seeds.samples) == (pytest.approx(0.04), 100)
    assert pooled([[run(0, 0, (0, 1))], [run(0.1, 0.01, (1,))]]).collapsed == (1,)


def test_words_name_the_class_the_margin_and_what_to_try():
    stuck = against_majority(logits(np.ones(100, int), np.ones(100, int)), LABELS, "acc_f1")
    assert in_words(stuck, ["no", "yes"]).startswith(
        "nothing was learned: every exit predicts a single class; the majority class (yes) scores 74.48, chance 53.81; try more"
    )
    learned = in_words(against_majority(logits(LABELS, np.ones(100, int)), LABELS, "accuracy"))
    assert learned.startswith("learned: mean over exits minus majority class: +16.00 points, 95 % CI ")
    assert learned.endswith("; exit 2 predicts a single class")
    assert "try" not in learned


@pytest.mark.parametrize(
    ("exits", "said"),
    [
        ([0], "exit 1 predicts a single class on the whole validation fold (common early in training)"),
        ([1, 0], "exits 1, 2 predict a single class on the whole validation fold (common early in training)"),
        ([5], "exit 6 predicts a single class on the whole validation fold"),
        ([0, 3], "exits 1, 4 predict a single class on the whole validation fold"),
    ],
)
def test_only_of_shallow_exits_is_it_called_common(exits, said):
    assert single_class(exits, 6) == said


class Scripted(torch.nn.Module):
    """Two exits that answer, at the n-th evaluation, what the script's n-th entry makes of the labels."""

    num_exits, depth, exit_layers = 2, 2, (1, 2)

    def __init__(self, *script):
        super().__init__()
        self.script, self.evaluations = script, 0
        self.heads = torch.nn.ModuleList(torch.nn.Linear(6, 2) for _ in range(2))

    def record(self, batch, keep="logits"):
        if self.training:
            return Record(torch.stack([head(batch["features"]) for head in self.heads]), batch["labels"])
        said = self.script[min(self.evaluations, len(self.script) - 1)](batch["labels"].numpy())
        self.evaluations += 1
        return Record(torch.tensor(np.eye(2, dtype=np.float32)[said[-len(self.heads) :]]), batch["labels"])

    def keep_exits(self, layers):
        self.heads, self.exit_layers, self.num_exits = self.heads[-len(layers) :], tuple(layers), len(layers)


def stuck(labels):
    return np.ones((2, len(labels)), int)


def learning(labels):
    """The first exit is below always answering 1, the second above it, their mean below."""
    at = np.arange(len(labels))
    return np.stack([np.where(at % 5 < 2, 1 - labels, labels), np.where(at % 5 == 0, 1 - labels, labels)])


def imbalanced(seed=0):
    labels = torch.tensor(LABELS[np.random.default_rng(seed).permutation(100)])
    return TensorSamples(features=torch.randn(100, 6, generator=torch.Generator().manual_seed(seed)), labels=labels)


def trained(*script, algorithm="uniform", **options):
    settings = TrainConfig(
        algorithm=algorithm, batch_size=8, max_epochs=6, eval_batch_size=100, precision="fp32", **options
    )
    torch.manual_seed(0)
    return fit(Scripted(*script), imbalanced(), settings, validation=imbalanced(1), metric="acc_f1")


@pytest.mark.parametrize("options", [{}, {"finetune_first": True, "first_epochs": 1}], ids=["one stage", "two stages"])
def test_a_learned_epoch_is_kept_over_a_collapsed_one_that_scores_higher(options):
    first = [stuck] if options else []
    result = trained(*first, stuck, learning, stuck, patience=2, **options)
    reports = [r for r in result.reports if r.stage == "joint"]
    assert reports[0].score == pytest.approx(reports[2].score) == pytest.approx((0.68 + 2 * 0.68 / 1.68) / 2)
    assert reports[1].score < reports[0].score
    assert reports[1].majority["margins"][1] > 0
    assert result.best is reports[1]
    assert result.validation.logits.argmax(-1)[0].tolist() != [1] * 100
    assert (result.ended, len(reports)) == ("patience", 4), "counted from the learned epoch"
    assert [len(r.majority["collapsed"]) for r in reports] == [2, 0, 2, 2]
    assert reports[0].majority["verdict"] == "collapsed"


def test_among_collapsed_epochs_and_among_learned_ones_the_mean_over_exits_decides():
    def better(labels):
        return np.stack([labels, labels])

    assert trained(stuck, stuck, patience=2).best.epoch == 0
    assert trained(learning, better, learning, patience=2).best.epoch == 1


def test_a_resumed_run_keeps_the_learned_epoch(tmp_path):
    settings = TrainConfig(algorithm="uniform", batch_size=8, max_epochs=3, eval_batch_size=100, precision="fp32")
    options = {"validation": imbalanced(1), "metric": "acc_f1"}
    torn = train_epochs(Scripted(stuck, learning), imbalanced(), settings, checkpoints=Checkpoints(tmp_path), **options)
    next(torn)
    assert next(torn).best_epoch == 1
    torn.close()
    result = fit(Scripted(stuck), imbalanced(), settings, checkpoints=Checkpoints(tmp_path), **options)
    assert (len(result.reports), result.best.epoch) == (3, 1)
    assert result.reports[1].majority["verdict"] != "collapsed"


def test_one_exit_methods_are_held_to_the_majority_class_too():
    reports = trained(stuck, lambda labels: np.stack([labels, labels]), stuck, algorithm="finetune", patience=2).reports
    assert [r.majority["verdict"] for r in reports] == ["collapsed", "learned", "collapsed", "collapsed"]
    assert [len(r.majority["margins"]) for r in reports] == [1] * 4
    assert reports[-1].best_epoch == 1


def test_of_running_cells_an_epoch_above_the_majority_class_is_the_best_one():
    """Old ledgers tell only which exits are collapsed."""
    where = {"config": "c", "attempt": 1, "seed": 0, "fold": 0, "seq": 0, "time": 0.0, "seconds": 1.0, "kind": "epoch"}
    found = trained(stuck, learning, stuck, patience=2)
    for without in ((), ("majority",)):
        state = SweepState()
        state.configs["c"] = Configuration("c", {})
        for report in found.reports[:3]:
            plain = {key: value for key, value in report.plain().items() if key not in without}
            state.apply({**where, **plain})
        (cell,) = state.configs["c"].cells
        assert cell.best.epoch == 1
