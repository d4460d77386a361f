"""Paired-difference statistics: against scipy, by hand, and as laws."""

import importlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import quick
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from tune.analysis.stats import Judge, corrected_t, fold_ratio, holm, holm_intervals, random_effects, sign_flip

#: Score differences in thousandths: coarse enough to have ties, and to keep spreads away from rounding noise.
diff = st.integers(-1000, 1000).map(lambda n: n / 1000)
spread_diffs = st.lists(diff, min_size=2, max_size=20).filter(lambda d: len(set(d)) > 1)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_corrected_t_by_hand():
    # d̄ = 2, s² = 1, variance of the mean = (1/3 + 1/2)·1, t = 2/√(5/6) = 2.19089; for 2 df, p = 1 - t/√(t² + 2).
    interval = corrected_t([1, 2, 3], fold_ratio(3))
    t = 2 / math.sqrt(5 / 6)
    assert interval.mean == pytest.approx(2)
    assert interval.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert interval.high - interval.mean == pytest.approx(4.302653 * math.sqrt(5 / 6), rel=1e-6)
    assert interval.cells == 3


@given(spread_diffs, st.floats(0.5, 0.999))
def test_ratio_zero_is_the_ordinary_t_test(diffs, confidence):
    ours = corrected_t(diffs, 0.0, confidence)
    theirs = scipy_stats.ttest_1samp(diffs, 0.0)
    low, high = theirs.confidence_interval(confidence)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert (ours.low, ours.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


@given(spread_diffs, st.floats(0.01, 2), st.floats(0.6, 0.99))
def test_interval_agrees_with_p_and_widens_with_the_ratio(diffs, ratio, confidence):
    interval, naive = corrected_t(diffs, ratio, confidence), corrected_t(diffs, 0.0, confidence)
    assume(abs(interval.p - (1 - confidence)) > 1e-9)
    assert (interval.p < 1 - confidence) == (not interval.low <= 0 <= interval.high)
    assert interval.low <= naive.low <= naive.high <= interval.high
    assert interval.p >= naive.p


@given(spread_diffs, st.floats(0, 1))
def test_swapping_sides_mirrors_everything(diffs, ratio):
    one, other = corrected_t(diffs, ratio), corrected_t([-d for d in diffs], ratio)
    assert (one.mean, one.low, one.high, one.p) == (-other.mean, -other.high, -other.low, other.p)
    assert sign_flip(diffs) == sign_flip([-d for d in diffs])


@pytest.mark.parametrize("diffs", [[0.1], [0.0], [0.1, 0.1], [0.0] * 5, [0.3, 0.1 + 0.2]])
def test_without_spread_there_is_no_interval(diffs):
    interval = corrected_t(diffs, 0.25)
    assert not interval.defined
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert math.isnan(interval.p)
    assert interval.mean == pytest.approx(diffs[0])


@pytest.mark.parametrize("diffs", [[], [math.nan], [0.1, math.inf], [[0.1, 0.2]]])
def test_refuses_what_is_no_list_of_numbers(diffs):
    with pytest.raises(ValueError, match="difference"):
        corrected_t(diffs, 0.25)
    with pytest.raises(ValueError, match="difference"):
        sign_flip(diffs)


@pytest.mark.parametrize(
    ("ratio", "confidence"), [(-0.1, 0.95), (math.inf, 0.95), (math.nan, 0.95), (0.2, 1), (0.2, 0)]
)
def test_refuses_impossible_settings(ratio, confidence):
    with pytest.raises(ValueError):
        corrected_t([0.1, 0.2], ratio, confidence)


def test_fold_ratio():
    assert fold_ratio(5) == pytest.approx(1 / 4)  # each fold tests a fifth and trains on four
    with pytest.raises(ValueError, match="k >= 2"):
        fold_ratio(1)


@settings(max_examples=50)
@given(st.lists(diff, min_size=1, max_size=8))
def test_sign_flip_counts_every_pattern(diffs):
    reach = abs(sum(diffs)) - 1e-9
    patterns = list(itertools.product((-1, 1), repeat=len(diffs)))
    hits = sum(abs(sum(s * d for s, d in zip(signs, diffs, strict=True))) >= reach for signs in patterns)
    assert sign_flip(diffs) == pytest.approx(hits / len(patterns))


@pytest.mark.slow
def test_sign_flip_is_exact_up_to_16_cells_and_seeded_beyond():
    assert sign_flip([0.1] * 16, permutations=1) == 2 / 2**16
    many = list(np.linspace(-0.5, 1.0, 17))
    assert sign_flip(many, seed=1) == sign_flip(many, seed=1)
    assert sign_flip(many, seed=1) != sign_flip(many, seed=2)
    assert sign_flip([0.1] * 30, permutations=99) == 1 / 100  # never 0
    exact = scipy_stats.permutation_test((many,), np.sum, permutation_type="samples", n_resamples=2**17, batch=2**15)
    assert sign_flip(many, permutations=20_000) == pytest.approx(exact.pvalue, abs=0.02)


def test_sign_flip_of_no_difference_is_one():
    assert sign_flip([0.0] * 5) == 1.0
    assert sign_flip([0.0] * 30) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])


@given(p_values, st.randoms())
def test_holm_lies_between_raw_and_bonferroni_and_keeps_order(values, random):
    adjusted = holm(values)
    for p, q in zip(values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(values) * p)
    for i, j in itertools.combinations(range(len(values)), 2):
        assert not (values[i] < values[j] and adjusted[i] > adjusted[j])
    places = list(range(len(values)))
    random.shuffle(places)
    assert holm([values[i] for i in places]) == tuple(adjusted[i] for i in places)


@given(p_values, st.integers(1, 4))
def test_holm_unknown_p_counts_as_a_hypothesis_that_is_never_rejected(values, unknown):
    adjusted = holm([*values, *[math.nan] * unknown])
    assert adjusted[: len(values)] == holm([*values, *[1.0] * unknown])[: len(values)]
    assert all(map(math.isnan, adjusted[len(values) :]))


@given(st.lists(st.lists(diff, min_size=4, max_size=4), min_size=1, max_size=5))
def test_exit_intervals_are_bonferronis_and_their_p_holms(samples):
    together = holm_intervals(samples, 0.25, 0.95)
    alone = [corrected_t(sample, 0.25, 1 - 0.05 / len(samples)) for sample in samples]
    assert [i.p for i in together] == pytest.approx(holm([i.p for i in alone]), nan_ok=True)
    assert [i.low for i in together] == pytest.approx([i.low for i in alone], nan_ok=True)
    assert {i.confidence for i in together} == {0.95}
    # Holm is at least as sharp: an interval clear of 0 is always rejected.
    assert all(i.p < 0.05 + 1e-9 for i in together if i.defined and not i.low <= 0 <= i.high)
    assert holm_intervals([], 0.25) == ()


# Random effects of samples and training sets


def by_cell(values, seeds=1):
    folds = len(values) // seeds
    return {(s, k): float(values[s * folds + k]) for s in range(seeds) for k in range(folds)}


@given(st.lists(diff, min_size=6, max_size=6), st.floats(0.01, 1.0))
def test_without_sampling_variance_the_folds_means_decide(values, ratio):
    interval = random_effects(by_cell(values, seeds=2), ratio)
    folds = corrected_t([(a + b) / 2 for a, b in zip(values[:3], values[3:], strict=True)], ratio)
    assert interval.p == pytest.approx(folds.p, nan_ok=True)
    assert interval.high - interval.low == pytest.approx(folds.high - folds.low, nan_ok=True)
    assert (interval.cells, interval.folds) == (6, 3)
    assert interval.mean == pytest.approx(np.mean(values))


@given(st.lists(diff, min_size=5, max_size=5), st.floats(1e-6, 1.0), st.floats(0.0, 1.0))
def test_an_interval_contains_0_exactly_if_its_p_is_not_significant_and_widens_with_shared_data(values, v, ratio):
    one, more = (random_effects(by_cell(values), r, sampling=v) for r in (ratio, ratio + 0.1))
    if one.defined:
        assert (one.low <= 0 <= one.high) == (one.p >= 0.05) or one.p == pytest.approx(0.05, abs=1e-6)
        assert more.high - more.low >= one.high - one.low - 1e-9
        assert one.high - one.low >= 2 * 1.95 * math.sqrt(v / 5), "never below what samples alone give"


def test_equal_folds_leave_the_sampling_variance():
    # Where folds hardly differ, training sets add nothing, and the interval is the normal one of the samples.
    interval = random_effects(by_cell([0.0100001, 0.01, 0.0099999]), 0.5, sampling=3e-4)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.01, rel=1e-3)


@pytest.mark.parametrize("training", quick.only([0.0, 2.0], [0.0, 0.5, 2.0]))
@pytest.mark.parametrize("folds", quick.only([3], [3, 5]))
def test_the_level_holds_whatever_training_sets_add(training, folds):
    """Sampling variance 1 per fold, and effects of training sets correlated by 1/K, as the correction assumes."""
    rng, draws = np.random.default_rng(folds), 200
    common, own = rng.normal(size=(draws, 1)), rng.normal(size=(draws, folds))
    effects = training * (math.sqrt(1 / folds) * common + math.sqrt(1 - 1 / folds) * own)
    rejected = [
        random_effects(by_cell(row), 1 / (folds - 1), sampling=1.0).p < 0.05
        for row in effects + rng.normal(size=(draws, folds))
    ]
    assert np.mean(rejected) < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / draws)


def test_the_simulated_estimator_is_the_one_that_comparisons_use(monkeypatch):
    """The benchmark computes many comparisons at once; for each of them it agrees with `random_effects`."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    generalised = importlib.import_module("estimators").generalised
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=[0.2, 0.5, 0.3], size=(6, 5, 2, 30))
    for p, one in zip(generalised(d), d, strict=True):
        v = float((one.mean(axis=1).var(axis=1, ddof=1) / 30).mean())
        runs = {(s, k): float(one[k, s].mean()) for s in range(2) for k in range(5)}
        assert random_effects(runs, 1 / 4, sampling=v).p == pytest.approx(p)


def test_a_holdout_keeps_the_sampling_variance_of_its_one_split():
    """Known: with many seeds that agree, the normal interval of v remains; with the samples unknown there is none."""
    values = [0.01 + 1e-7 * seed for seed in range(6)]
    interval = random_effects(by_cell(values, seeds=6), 1 / 9, sampling=1e-4)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.01, rel=1e-3)
    noisy = random_effects(by_cell([0.0, 0.1, 0.0, 0.1, 0.0, 0.1], seeds=6), 1 / 9, sampling=1e-12)
    assert noisy.high == pytest.approx(corrected_t([0.0, 0.1] * 3, 1 / 9).high, rel=1e-3), "v + s²·(1/S + ratio)"
    unknown = random_effects(by_cell(values, seeds=6), 1 / 9)
    assert not unknown.defined
    assert "validation logits" in unknown.missing()


def test_judge_applies_its_settings():
    judge = Judge(0.5, confidence=0.9, seed=3, permutations=50)
    diffs = [0.1, 0.2, -0.1]
    by_run = {(0, fold): diff for fold, diff in enumerate(diffs)}
    assert judge.interval(by_run, 1e-4) == random_effects(by_run, 0.5, 0.9, 1e-4)
    of_exits = judge.intervals([by_run, by_run], [0.0, 0.0])
    assert [(i.low, i.p) for i in of_exits] == [(i.low, i.p) for i in holm_intervals([diffs, diffs], 0.5, 0.9)]
    assert judge.sign_flip(diffs * 7) == sign_flip(diffs * 7, 3, 50)


def test_comparisons_are_by_default_at_95_percent_with_seed_0_and_10_000_sign_flips():
    assert Judge(0.5) == Judge(0.5, confidence=0.95, seed=0, permutations=10_000)
    many = list(np.linspace(-0.5, 1.0, 17))
    assert sign_flip(many) == sign_flip(many, seed=0, permutations=10_000)
