"""Learned against uniform loss weights: the answer of a sweep with uniform weights and methods that learn ω."""

import re

import numpy as np
import pytest
from scored_sweep import scored_sweep

from tune.analysis.learned_weights import against_uniform, conclusion, recorded
from tune.analysis.sweeps import LoadedSweep

METHODS = ["uniform-d1", "clo-v2", "hyper-v2", "uniform", "slo", "rand", "lle"]


def sweep(folder, gains, algorithms=METHODS[:3], **change):
    """A sweep of 5 folds × 3 seeds in which a method gains so many points over uniform weights, with noise of a point."""

    def score(values, seed, fold):
        noise = np.random.default_rng([METHODS.index(values["algorithm"]), seed, fold]).normal(0, 0.01)
        return 0.7 + 0.02 * fold + gains.get(values["algorithm"], 0) / 100 + noise

    space = {"lr_theta": [1e-4], "lr_omega": [1e-3]}
    options = {"algorithms": algorithms, "folds": 5, "seeds": 3, "space": space, **change}
    return scored_sweep(folder, score, **options)


def answer(folder):
    results = against_uniform(LoadedSweep.read(folder))
    return results, conclusion(results)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"hyper-v2": 5}, r"are better than uniform ones on this data, by method: tuned Hypergradient-v2 is better than tuned Uniform-D1 in validation score: \+"),
        (
            {"clo-v2": -6, "hyper-v2": -4},
            r"are worse .*: tuned Uniform-D1 is better than tuned CLO-v2 in .*; tuned Uniform-D1 is better than tuned Hypergradient-v2 in ",
        ),
        ({"clo-v2": -6}, r"are worse .*: tuned Uniform-D1 is better than tuned CLO-v2 in validation score: \+[^;]*; 97.5 % per method make 95 % for all 2 together \(Bonferroni\)$"),
        ({"clo-v2": -6, "hyper-v2": 5}, r"are better or worse .*: tuned Hypergradient-v2 is better .*; tuned Uniform-D1 is better"),
        ({}, r"don't differ significantly on this data; the largest difference: tuned .*: no significant difference in "),
    ],
    ids=["better", "worse", "one worse", "both", "no difference"],
)  # fmt: skip
def test_the_answer_follows_the_runs(tmp_path, gains, expected):
    results, sentence = answer(sweep(tmp_path / "s", gains))
    assert [(r.method, r.control) for r in results] == [("clo-v2", "uniform-d1"), ("hyper-v2", "uniform-d1")]
    assert re.search(expected, sentence)
    assert "97.5 % CI" in sentence, "two methods: their intervals hold together"


def test_methods_on_all_samples_have_uniform_weights_on_them_as_control(tmp_path):
    results, _ = answer(sweep(tmp_path / "s", {}, ["uniform", "uniform-d1", "slo", "clo-v2"]))
    assert [(r.method, r.control) for r in results] == [("slo", "uniform"), ("clo-v2", "uniform-d1")]


def test_a_control_on_other_samples_is_named_as_such(tmp_path):
    _, sentence = answer(sweep(tmp_path / "s", {"clo-v2": 5}, ["uniform", "clo-v2"]))
    assert sentence.endswith("; uniform-d1 would have the same batches")


def test_methods_with_teachers_of_their_own_are_not_compared(tmp_path):
    assert answer(sweep(tmp_path / "s", {"lle": 5}, ["uniform-d1", "lle"])) == ((), "")


def test_without_uniform_weights_or_learned_ones_there_is_no_answer(tmp_path):
    for name, algorithms in (("a", ["clo-v2", "hyper-v2"]), ("b", ["slo", "rand"])):
        assert answer(sweep(tmp_path / name, {}, algorithms)) == ((), "")


def test_the_control_may_train_on_d1_and_the_record_holds_numbers_and_words(tmp_path):
    section = recorded(answer(sweep(tmp_path / "s", {"clo-v2": 5}, ["clo-v2", "uniform-d1"]))[0])
    (method,) = section["methods"]
    assert method["control"] == "uniform-d1"
    assert 0.02 < method["low"] < 0.05 < method["high"] < 0.08
    assert section["conclusion"].startswith(
        "learned loss weights are better than uniform ones on this data, by method: tuned CLO-v2 is better"
    )
