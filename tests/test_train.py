"""The training loop: resuming, early stopping, divergence, stages, exact lengths; on plain tensors, no text anywhere."""

import dataclasses
import errno
import json
import time

import numpy as np
import pytest
import quick
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ThreeExitMLP, toy_mlp, toy_rows

from leebert.checkpoint import BestWeights, Checkpoints
from leebert.config import TrainConfig
from leebert.data.batches import bucketed, plan_epoch, updates_per_epoch
from leebert.data.noise import NoisyLabels
from leebert.errors import CheckpointError, ConfigError, DataError, StorageError
from leebert.losses import cross_entropy_per_exit
from leebert.objective import ExitObjective
from leebert.optim.fixed import Fixed
from leebert.record import MultiExit, Record, TensorSamples
from leebert.stages import Stage
from leebert.stages import linear as schedule
from leebert.train import fit, train_epochs
from leebert.transforms import LastExit


def config(**options):
    return TrainConfig(
        **{"lr_theta": 1e-2, "lr_omega": 1e-2, "batch_size": 8, "max_epochs": 4, "precision": "fp32", **options}
    )


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def plain(reports):
    return [{k: v for k, v in r.plain().items() if k != "seconds"} for r in reports]


def test_a_three_exit_mlp_is_a_multi_exit_model_and_learns():
    model = toy_mlp()
    assert isinstance(model, MultiExit)
    result = fit(model, toy_rows(200), config(max_epochs=8, lr_theta=4e-2), validation=toy_rows(200, seed=1))
    assert result.best.score > 0.7
    assert result.validation.logits.shape == (3, 200, 2)
    predicted = result.validation.logits.argmax(-1)
    assert result.best.score == pytest.approx((predicted == result.validation.labels).mean())


@pytest.mark.parametrize(
    "algorithm", quick.only(["clo-v2"], ["clo-v1", "clo-v2"])
)  # of all methods: the contract, cut once
def test_killed_and_resumed_ends_bit_for_bit_like_uninterrupted(tmp_path, algorithm):
    settings = config(algorithm=algorithm, cycle_length=5)  # 6 updates an epoch: cycles cross epochs
    whole, rows, held_out = toy_mlp(), toy_rows(), toy_rows(seed=1)
    expected = fit(whole, rows, settings, validation=held_out)
    for cut in (1, 3):
        place = tmp_path / str(cut)
        torn = train_epochs(toy_mlp(), rows, settings, validation=held_out, checkpoints=Checkpoints(place))
        for _ in range(cut):
            next(torn)
        torn.close()
        torch.manual_seed(12345)  # another process has another generator state
        resumed = toy_mlp(seed=99)
        result = fit(resumed, rows, settings, validation=held_out, checkpoints=Checkpoints(place))
        assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(resumed), strict=True)), cut
        assert plain(result.reports) == plain(expected.reports), cut
        assert np.array_equal(result.validation.logits, expected.validation.logits), cut
        assert sorted(p.name for p in place.iterdir()) == ["epoch-0002", "epoch-0003"]


def test_a_finished_run_is_only_read_again(tmp_path):
    first = fit(toy_mlp(), toy_rows(), config(), validation=toy_rows(seed=1), checkpoints=Checkpoints(tmp_path))
    steps = []
    again = fit(
        toy_mlp(),
        toy_rows(),
        config(),
        validation=toy_rows(seed=1),
        checkpoints=Checkpoints(tmp_path),
        on_step=steps.append,
    )
    assert steps == []
    assert plain(again.reports) == plain(first.reports)


def test_a_foreign_checkpoint_is_refused_by_name_of_what_differs(tmp_path):
    next(train_epochs(toy_mlp(), toy_rows(), config(), validation=toy_rows(seed=1), checkpoints=Checkpoints(tmp_path)))
    with pytest.raises(CheckpointError, match="lr_theta"):
        next(
            train_epochs(
                toy_mlp(),
                toy_rows(),
                config(lr_theta=5e-3),
                validation=toy_rows(seed=1),
                checkpoints=Checkpoints(tmp_path),
            )
        )


@pytest.mark.parametrize("damage", ["cut", "flip", "json", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    next(train_epochs(toy_mlp(), toy_rows(), config(), validation=toy_rows(seed=1), checkpoints=Checkpoints(tmp_path)))
    tensors, state = tmp_path / "epoch-0000" / "state.safetensors", tmp_path / "epoch-0000" / "state.json"
    data = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(data[:-7])
    elif damage == "flip":
        tensors.write_bytes(data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    elif damage == "json":
        state.write_text("{")
    else:
        tensors.unlink()
    with pytest.raises(CheckpointError, match="epoch-0000 can't be used.*delete"):
        Checkpoints(tmp_path).load()


def flip(path):
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_costs_one_epoch_as_the_one_before_is_kept(tmp_path, caplog, file):
    options = {"validation": toy_rows(seed=1)}
    expected = fit(toy_mlp(), toy_rows(), config(), **options)
    digests = {}
    torn = train_epochs(toy_mlp(), toy_rows(), config(), checkpoints=Checkpoints(tmp_path), **options)
    for _ in range(3):
        report = next(torn)
        digests[report.epoch] = report.checkpoint
    torn.close()
    flip(tmp_path / "epoch-0002" / file)
    steps = []
    # state.json vouches for the tensors, and the digest that somebody kept for state.json
    again = Checkpoints(tmp_path, recorded=set(digests.values()))
    result = fit(toy_mlp(seed=9), toy_rows(), config(), checkpoints=again, on_step=steps.append, **options)
    assert plain(result.reports) == plain(expected.reports)
    assert len(steps) == 2 * 6, "the damaged epoch and the one that was left"
    assert "epoch-0002 can't be used" in caplog.text
    assert "resuming from epoch-0001" in caplog.text


def test_only_checkpoints_that_are_known_count_and_anew_starts_from_the_beginning(tmp_path):
    options = {"validation": toy_rows(seed=1)}
    first = next(train_epochs(toy_mlp(), toy_rows(), config(), checkpoints=Checkpoints(tmp_path / "a"), **options))
    assert Checkpoints(tmp_path / "b", earlier=[tmp_path / "a"], recorded={first.checkpoint}).load() is not None
    assert Checkpoints(tmp_path / "b", earlier=[tmp_path / "a"], recorded={"0" * 64}, restart=True).load() is None
    with pytest.raises(CheckpointError, match="not the recorded one"):
        Checkpoints(tmp_path / "b", earlier=[tmp_path / "a"], recorded=set()).load()


def test_a_second_process_resumes_in_a_folder_of_its_own_and_there_are_never_more_than_two(tmp_path, monkeypatch):
    import leebert.checkpoint

    options = {"validation": toy_rows(seed=1)}
    torn = train_epochs(toy_mlp(), toy_rows(), config(), checkpoints=Checkpoints(tmp_path / "one"), **options)
    for _ in range(2):
        next(torn)
    most, save = [], leebert.checkpoint.save_file

    def counting(*args):
        save(*args)
        most.append(len(list(tmp_path.glob("*/*epoch-*"))))

    monkeypatch.setattr(leebert.checkpoint, "save_file", counting)
    second = Checkpoints(tmp_path / "two", earlier=[tmp_path / "one"])
    result = fit(toy_mlp(seed=9), toy_rows(), config(), checkpoints=second, **options)
    expected = fit(toy_mlp(), toy_rows(), config(), **options)
    assert plain(result.reports) == plain(expected.reports)
    assert most == [2, 2], "the one that is written included"
    # The first process was only cut off: what it goes on writing disturbs nobody.
    next(torn)
    assert (tmp_path / "two" / "epoch-0003").is_dir()


def test_a_full_disk_is_reported_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import leebert.checkpoint

    torn = train_epochs(toy_mlp(), toy_rows(), config(), checkpoints=Checkpoints(tmp_path))
    next(torn)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leebert.checkpoint, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        next(torn)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0000"]
    assert Checkpoints(tmp_path).load() is not None


def test_best_weights_are_whole_and_stay_as_long_as_a_checkpoint_may_ask_for_them(tmp_path, monkeypatch):
    import leebert.checkpoint

    best = BestWeights(tmp_path)
    for epoch in (0, 1, 4):
        best.keep(epoch, toy_mlp(seed=epoch))
        best.checkpointed(epoch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-0001.safetensors", "best-0004.safetensors"]

    def torn(weights, path):
        path.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leebert.checkpoint, "save_file", torn)
    with pytest.raises(StorageError, match="No space left on device"):
        best.keep(4, toy_mlp(seed=9))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-0001.safetensors", "best-0004.safetensors"]
    expected = toy_mlp(seed=4).state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in best.load(4).items())
    with pytest.raises(CheckpointError, match=r"best-0003.safetensors can't be used"):
        best.load(3)


def test_checkpoints_hold_no_pickle(tmp_path):
    fit(toy_mlp(), toy_rows(), config(max_epochs=1), checkpoints=Checkpoints(tmp_path))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(p.suffix for p in files) == [".json", ".safetensors"]
    json.loads(next(p for p in files if p.suffix == ".json").read_text())


def test_early_stopping_counts_epochs_without_a_better_mean():
    result = fit(toy_mlp(), toy_rows(), config(max_epochs=30, patience=2), validation=toy_rows(40, seed=1))
    scores = [r.score for r in result.reports]
    assert result.ended == "patience"
    best = int(np.argmax(scores))
    assert result.best.epoch == best
    assert len(scores) == best + 3


def test_updates_are_exact_and_leave_the_horizon_alone():
    rates = []
    result = fit(toy_mlp(), toy_rows(), config(), updates=9, on_step=rates.append)
    assert result.ended == "updates"
    assert result.reports[-1].theta_updates == 9 == len(rates)
    long = fit(toy_mlp(), toy_rows(), config())
    assert result.reports[0].train_loss == long.reports[0].train_loss  # the first epoch is the same


def test_more_updates_than_the_schedule_has_are_refused():
    with pytest.raises(ConfigError, match="theta_updates 1000.*schedule of 24 updates"):
        next(train_epochs(toy_mlp(), toy_rows(), config(), updates=1000))


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    options = {"validation": toy_rows(seed=1), "checkpoints": Checkpoints(tmp_path)}
    next(train_epochs(toy_mlp(), toy_rows(), config(), identity={"data": "a"}, **options))
    with pytest.raises(CheckpointError, match="data differ"):
        next(train_epochs(toy_mlp(), toy_rows(), config(), identity={"data": "b"}, **options))


def test_a_stage_may_replace_the_model_and_the_result_hands_it_back(tmp_path):
    settings = config(algorithm="uniform", max_epochs=1)
    stages = (
        Stage("all", ExitObjective.of(settings, 3), Fixed()),
        Stage("one", ExitObjective.of(settings, 1), Fixed(), transform=LastExit()),
    )
    result = fit(toy_mlp(), toy_rows(), settings, stages=stages, validation=toy_rows(seed=1))
    assert result.model.num_exits == 1
    assert len(result.best.exits["score"]) == 1


@pytest.mark.slow
def test_what_a_transformation_takes_to_decide_is_in_its_stages_first_epoch():
    class Slow(LastExit):
        def plan(self, model, examined):
            time.sleep(0.5)
            return super().plan(model, examined)

    settings = config(algorithm="uniform", max_epochs=1)
    stages = (Stage("one", ExitObjective.of(settings, 1), Fixed(), transform=Slow()),)
    result = fit(toy_mlp(), toy_rows(), settings, stages=stages)
    assert result.reports[0].seconds >= 0.5


def test_a_non_finite_loss_ends_the_run_as_diverged_and_keeps_the_last_finite_checkpoint(tmp_path):
    class Poisoned(ThreeExitMLP):
        calls = 0

        def record(self, batch, keep="logits"):
            record = super().record(batch, keep)
            if self.training:
                self.calls += 1
            return dataclasses.replace(record, logits=record.logits * (float("nan") if self.calls > 8 else 1.0))

    torch.manual_seed(0)
    result = fit(
        Poisoned(),
        toy_rows(),
        config(algorithm="uniform"),
        validation=toy_rows(seed=1),
        checkpoints=Checkpoints(tmp_path),
    )
    assert [r.ended for r in result.reports] == [None, "diverged"]
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0000"]
    assert all(torch.isfinite(t).all() for t in Checkpoints(tmp_path).load().tensors.values() if t.is_floating_point())


def test_a_collapsed_exit_is_recorded_and_ends_nothing():
    model = toy_mlp()
    with torch.no_grad():
        model.heads[0].bias.copy_(torch.tensor([50.0, -50.0]))
    result = fit(model, toy_rows(), config(lr_theta=1e-4), validation=toy_rows(seed=1))
    assert all(0 in r.collapsed for r in result.reports)
    assert result.ended == "max_epochs"


def test_raw_weights_that_turn_negative_warn():
    with pytest.warns(UserWarning, match=r"loss weight\(s\) are negative"):
        fit(toy_mlp(), toy_rows(), config(parametrisation="raw", lr_omega=0.5, algorithm="blo"))


@dataclasses.dataclass(frozen=True)
class UpToLast:
    """DeeBERT's second objective: Σ CE over all exits but the last."""

    num_terms: int
    keep: str = "logits"

    def initial(self, generator):
        return {}

    def terms(self, record, state, teacher=None):
        return cross_entropy_per_exit(record.logits, record.labels)[:-1]

    def weights(self, state):
        return torch.ones(self.num_terms)

    def after_step(self, record, state, progress):
        return state


def two_stages(settings):
    """First the layers with the last exit's loss, then the other exits on the frozen backbone."""
    return (
        Stage("backbone", ExitObjective.of(settings, 3), Fixed(), epochs=2),
        Stage("exits", UpToLast(2), Fixed(), trains=lambda name: name.startswith("heads"), epochs=3, lr_theta=5e-2),
    )


def test_a_two_stage_method_freezes_what_it_declares(tmp_path):
    settings = config(algorithm="uniform")
    model = toy_mlp()
    seen = []
    reports = train_epochs(
        model,
        toy_rows(),
        settings,
        stages=two_stages(settings),
        validation=toy_rows(seed=1),
        checkpoints=Checkpoints(tmp_path),
    )
    for report in reports:
        seen.append(
            (
                report.stage,
                [p.detach().clone() for p in model.layers.parameters()],
                model.heads[0].weight.detach().clone(),
            )
        )
        assert (report.ended is None) == (report.epoch < 4)
    assert [name for name, _, _ in seen] == ["backbone"] * 2 + ["exits"] * 3
    assert all(torch.equal(a, b) for a, b in zip(seen[1][1], seen[4][1], strict=True))
    assert not torch.equal(seen[1][2], seen[4][2])
    assert report.best_epoch >= 2  # the method's result is its last stage's


def test_a_two_stage_method_resumes_bit_for_bit(tmp_path):
    settings = config(algorithm="uniform")
    whole = toy_mlp()
    options = {"stages": two_stages(settings), "validation": toy_rows(seed=1)}
    expected = fit(whole, toy_rows(), settings, **options)
    for cut in (1, 2, 3, 4):
        place, resumed = Checkpoints(tmp_path / str(cut)), toy_mlp(seed=5)
        torn = train_epochs(toy_mlp(), toy_rows(), settings, checkpoints=place, **options)
        for _ in range(cut):
            next(torn)
        torn.close()
        result = fit(resumed, toy_rows(), settings, checkpoints=Checkpoints(tmp_path / str(cut)), **options)
        assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(resumed), strict=True)), cut
        assert plain(result.reports) == plain(expected.reports), cut


def test_omega_stays_out_of_thetas_clipping():
    loose, tight = (
        fit(toy_mlp(), toy_rows(), config(max_epochs=1, clip_norm=c, algorithm="slo")) for c in (1e6, 1e-12)
    )
    # With θ all but frozen by the clipping, ω still moves as far: Adam's step has its own scale.
    moved = [abs(r.reports[-1].weights["ce"][0] - 1) for r in (loose, tight)]
    assert moved[1] == pytest.approx(moved[0], rel=0.2)
    assert moved[1] > 1e-3


@given(total=st.integers(1, 500), warmup=st.floats(0, 0.9))
def test_the_schedule_rises_then_falls_to_zero(total, warmup):
    factors = [schedule(s, total, warmup) for s in range(total + 1)]
    peak = int(np.argmax(factors))
    assert all(0 < f <= 1 for f in factors[:-1])
    assert factors[-1] == 0
    assert all(a <= b for a, b in zip(factors[:peak], factors[1 : peak + 1], strict=True))
    assert all(a >= b for a, b in zip(factors[peak:-1], factors[peak + 1 :], strict=True))


@given(n=st.integers(4, 400), b=st.integers(1, 20), epoch=st.integers(0, 5), seed=st.integers(0, 50))
def test_epochs_have_equal_updates_and_d1_never_meets_d2(n, b, epoch, seed):
    if n < 2 * b:
        with pytest.raises(DataError, match=f"batch size {b} is too large for {n}"):
            updates_per_epoch(n, b)
        return
    lengths = np.random.default_rng(seed).integers(3, 60, n)
    split = plan_epoch(lengths, b, True, (seed,), epoch)
    assert split.d1.shape == (n // (2 * b), b)
    d2 = split.d2()
    seen = {int(i) for _ in range(5) for i in next(d2)}
    assert not seen & set(split.d1.ravel().tolist())
    # Without a split, two epochs are one pass without replacement.
    halves = [plan_epoch(lengths, b, False, (seed,), 2 * epoch + h).d1 for h in (0, 1)]
    assert [h.shape for h in halves] == [split.d1.shape] * 2
    rows = np.concatenate([h.ravel() for h in halves])
    assert len(set(rows.tolist())) == len(rows)


def test_d1_and_d2_are_split_anew_in_each_epoch_and_alike_for_every_run():
    lengths = np.ones(100, int)
    first, again, second = (plan_epoch(lengths, 10, True, (3, 1), e) for e in (0, 0, 1))
    assert np.array_equal(first.d1, again.d1)
    assert set(first.d1.ravel()) != set(second.d1.ravel())


@given(
    n=st.integers(40, 400),
    b=st.integers(1, 8),
    share=st.floats(0.2, 0.5),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 50),
)
def test_a_fixed_d2_is_the_same_in_every_epoch_and_theta_never_sees_it(n, b, share, epoch, seed):
    lengths = np.random.default_rng(seed).integers(3, 60, n)
    first, later = (plan_epoch(lengths, b, True, (seed,), e, share) for e in (0, epoch + 1))
    assert set(first.d2_samples) == set(later.d2_samples)
    assert len(first.d2_samples) == round(share * n)
    for plan in (first, later):
        assert plan.d1.shape == (n // (2 * b), b), "as many updates as with halves"
        assert not set(plan.d1.ravel()) & set(first.d2_samples)
    assert not np.array_equal(first.d1, later.d1)


def test_a_fixed_d2_smaller_than_a_batch_is_refused_with_the_share_that_suffices():
    with pytest.raises(
        DataError, match=r"fixed_d2 0.05 of 100 training samples is 5, less than a batch of 8: use .* least 0.08"
    ):
        plan_epoch(np.ones(100, int), 8, True, (0,), 0, 0.05)


def test_d2s_batches_run_on_and_are_reshuffled_when_used_up():
    d2 = plan_epoch(np.ones(40, int), 5, True, (0,), 0).d2()
    laps = [np.concatenate([next(d2) for _ in range(4)]) for _ in range(2)]
    assert sorted(laps[0]) == sorted(laps[1])
    assert laps[0].tolist() != laps[1].tolist()


def test_buckets_save_padding():
    lengths = np.random.default_rng(0).integers(5, 128, 3000)
    batches = bucketed(np.arange(3000), lengths, 16, np.random.default_rng(1))
    padded = sum(lengths[b].max() * 16 for b in batches)
    assert padded < 1.1 * lengths[batches.ravel()].sum()
    at_random = lengths.reshape(-1, 15).max(1).sum() * 15
    assert at_random > 1.5 * lengths.sum()


def test_a_batch_larger_than_half_the_data_is_refused_before_training():
    with pytest.raises(DataError, match="batch size 64 is too large for 96"):
        next(train_epochs(toy_mlp(), toy_rows(), config(batch_size=64)))


@settings(max_examples=20)
@given(share=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_label_noise_replaces_its_share_of_labels_once_and_for_all(share, seed):
    samples = TensorSamples(features=torch.randn(40, 2), labels=torch.arange(40) % 3)
    noisy = NoisyLabels(samples, share, seed)
    every = np.arange(40)
    clean, changed = (s.collate(every)["labels"] for s in (samples, noisy))
    assert int((clean != changed).sum()) == round(share * 40)
    assert set(changed.tolist()) <= {0, 1, 2}
    some = np.array([5, 3, 30])
    assert torch.equal(noisy.collate(some)["labels"], changed[some])
    assert torch.equal(NoisyLabels(samples, share, seed).collate(every)["labels"], changed)
    assert torch.equal(noisy.collate(some)["features"], samples.collate(some)["features"])


def test_label_noise_of_some_exits_keeps_the_labels_and_differs_between_exits():
    samples = TensorSamples(features=torch.randn(40, 2), labels=torch.arange(40) % 3)
    batch = NoisyLabels(samples, 0.5, 0, exits=2).collate(np.arange(40))
    assert torch.equal(batch["labels"], torch.arange(40) % 3)
    assert batch["exit_labels"].shape == (40, 2)
    assert (batch["exit_labels"] != batch["labels"][:, None]).sum(dim=0).tolist() == [20, 20]
    assert not torch.equal(*batch["exit_labels"].T)


def test_wrong_labels_of_an_exit_change_only_its_cross_entropy():
    model, objective = toy_mlp().eval(), ExitObjective.of(config(algorithm="uniform"), 3)
    rows, wrong = toy_rows(), NoisyLabels(toy_rows(), 0.9, 0, exits=1)
    state = objective.initial(torch.Generator())
    clean, noisy = (Record.of(model, samples.collate(np.arange(16))) for samples in (rows, wrong))
    same = objective.terms(clean, state) == objective.terms(noisy, state)
    assert (~same).nonzero().flatten().tolist() == [0]
    halves = Record.joined([Record.of(model, wrong.collate(half)) for half in (np.arange(8), np.arange(8, 16))])
    torch.testing.assert_close(objective.terms(halves, state), objective.terms(noisy, state))


def test_the_last_exit_needs_right_labels():
    with pytest.raises(ConfigError, match="label_noise_exits: 3, but the model has 3 exits"):
        next(train_epochs(toy_mlp(), toy_rows(), config(label_noise=0.5, label_noise_exits=3)))


def test_label_noise_needs_two_classes():
    samples = TensorSamples(features=torch.zeros(4, 2), labels=torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match="label_noise: all training samples have label 0"):
        NoisyLabels(samples, 0.5, 0)


def test_label_noise_changes_training_but_not_the_validation_fold():
    clean, noisy = (
        fit(
            toy_mlp(),
            toy_rows(),
            TrainConfig(batch_size=8, max_epochs=2, label_noise=share),
            validation=toy_rows(24, seed=1),
        )
        for share in (0.0, 0.4)
    )
    assert clean.reports[-1].exits["loss"] != noisy.reports[-1].exits["loss"]
    assert np.array_equal(clean.validation.labels, noisy.validation.labels)
