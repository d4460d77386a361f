"""The verdict on A against B: one object for the sentence, the forest plot and the curves."""

import dataclasses
import json

import numpy as np
import pytest
from scored_sweep import FACTS, scored_sweep

from leebert.errors import ConfigError
from tune.analysis.compare_sweeps import at_speed_ups, compare_sweeps, variances_of, verdict_on
from tune.analysis.labels import short_names
from tune.analysis.power import StatedVariances
from tune.analysis.samples import influences
from tune.analysis.stats import random_effects
from tune.analysis.sweeps import SweepPool
from tune.analysis.verdict import Verdict, choose_sides
from tune.analysis.verdict_html import curves_caption
from tune.running.dry_run import power_in_words
from tune.store.folder import spec_of
from tune.store.held_out import cell_logits


def ahead(by, noise=0.002):
    """CLO is ahead of BLO, a little differently in every run."""

    def score(values, seed, fold):
        rng = np.random.default_rng([seed, fold, int(1e6 * values["lr_theta"]), values.get("cycle_length", 0)])
        return 0.6 + by * (values["algorithm"] == "clo-v2") + noise * float(rng.normal())

    return score


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return scored_sweep(tmp_path_factory.mktemp("verdict") / "s", ahead(0.05), seeds=[0, 1])


@pytest.fixture(scope="module")
def result(sweep):
    (result,) = compare_sweeps([sweep], "clo-v2", "blo", objectives=at_speed_ups())
    return result


def test_a_verdict_has_all_that_is_drawn_and_written(result):
    verdict = result.verdict
    keys = ["score", "exit_01", "exit_02", "exit_03", "speed_up_1.5", "speed_up_2", "speed_up_3", "tuned"]
    assert [effect.key for effect in verdict.effects] == keys
    assert (verdict.a.name, verdict.b.name, verdict.runs, verdict.pairs) == ("CLO-v2", "BLO", 6, 4)
    assert (verdict.a.options, verdict.b.options) == ({"cycle_length": [2, 4]}, {})
    assert (verdict.a.configurations, verdict.b.configurations) == (4, 2)
    assert verdict.winner == "CLO-v2"
    assert verdict.main.estimate == pytest.approx(0.05, abs=0.003)
    assert verdict.sentence.startswith("CLO-v2 is better than BLO in validation score: +")
    assert verdict.a.omega_optimizers
    assert verdict.a.learns_omega
    assert (verdict.a.moved_configurations, verdict.b.moved_configurations) == (4, 2), "weights are 1.6 at the end"
    assert verdict.a.learned is not None
    assert verdict.a.majority is not None
    plain = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert Verdict.from_dict(plain) == verdict


def test_the_curves_are_means_of_the_replayed_ones(result):
    verdict = result.verdict
    a, b, difference = (verdict.curves[name] for name in ("a", "b", "difference"))
    assert a.speed_ups == b.speed_ups
    assert a.speed_ups[-1] == 1.0
    assert a.band == "interval"
    assert np.array(a.scores) - b.scores == pytest.approx(np.array(difference.scores), abs=2e-6)
    assert all(low <= mean <= high for low, mean, high in zip(a.low, a.scores, a.high, strict=True))
    at_2 = next(e for e in verdict.effects if e.key == "speed_up_2")
    at = np.interp(1.5, difference.layers, difference.scores)  # three layers
    assert at == pytest.approx(at_2.estimate, abs=2e-3)
    # By hand: every run's curve, averaged over the pairs, in the last point.
    overall = result.scores.overall
    by_run = [np.mean([result.replayed[p[0], *c].scores[-1] for p in overall.paired]) for c in overall.cells]
    assert a.scores[-1] == pytest.approx(np.mean(by_run), abs=1e-6)
    runs = dict(zip(overall.cells, by_run, strict=True))
    assert a.low[-1] == pytest.approx(random_effects(runs, 1 / 2).low, abs=1e-6)
    # Where the speed-up is one of the table's, the band of the difference has the table's sampling variance.
    compared = {o.speed_up: c.overall.difference for o, c in result.at_speed_ups}
    nearest = int(np.argmin(np.abs(np.array(difference.speed_ups) - 2)))
    assert compared[2.0].sampling > 0
    assert difference.high[nearest] - difference.low[nearest] >= 2 * 1.95 * np.sqrt(0.5 * compared[2.0].sampling / 3)


def test_the_caption_names_the_band_of_each_curve(result):
    verdict = result.verdict
    assert curves_caption(verdict).endswith("Band: 95 % CI over 6 runs.")
    few = dataclasses.replace(verdict.curves["b"], band="range", runs=3)
    mixed = dataclasses.replace(verdict, curves={**verdict.curves, "b": few})
    assert curves_caption(mixed).endswith(
        "Bands: CLO-v2, 95 % CI over 6 runs; BLO, none, 3 runs are too few for an interval."
    )
    assert curves_caption(mixed, ["difference"]).endswith("Band: 95 % CI over 6 runs.")


def test_all_pairs_together_are_the_mean_over_the_lines(sweep, result):
    lines, overall = result.scores.lines, result.scores.overall
    assert len(lines) == 2
    assert len(overall.paired) == 4
    assert overall.difference.mean == pytest.approx(np.mean([line.difference.mean for line in lines]))
    (one,) = compare_sweeps([sweep], "clo-v2", "blo", where={"cycle_length": "4"})
    assert one.scores.overall is one.scores.lines[0]
    assert one.verdict.no_curves == "not requested"


def test_too_few_runs_have_no_interval(tmp_path, result):
    assert all(effect.low is not None for effect in result.verdict.effects if effect.estimate is not None)
    verdict = verdict_on(scored_sweep(tmp_path / "s", ahead(0.05), seeds=[0]))
    assert all(effect.low is None for effect in verdict.effects)
    assert verdict.curves["a"].band == "range"
    assert verdict.main.significant is None
    assert verdict.winner == ""
    assert verdict.power is None
    assert verdict.sentence.endswith("validation score, 3 runs each: too few for an interval (at least 4)")


def test_two_folds_have_no_interval_and_the_sentence_says_why(tmp_path):
    facts = {"folds": {"k": 2, "digest": "made up"}}
    verdict = verdict_on(scored_sweep(tmp_path / "s", ahead(0.05), folds=2, seeds=[0, 1], facts=facts))
    assert verdict.main.low is None
    assert verdict.sentence.endswith("4 runs each; 2 folds are too few for an interval (at least 3)")


def test_the_default_pair(tmp_path):
    rates = {"lr_theta": [1e-5, 1e-4]}

    def sides(*algorithms, **options):
        sweep = scored_sweep(
            tmp_path / "-".join(algorithms), ahead(0), state=lambda v: "", algorithms=[*algorithms], space=rates
        )
        return choose_sides([sweep], **options)

    assert sides("uniform", "blo", "clo-v2") == ("clo-v2", "blo")
    assert sides("uniform", "blo", "slo", b="blo") == ("uniform", "blo")
    assert sides("slo", "blo", "uniform") == ("slo", "blo")
    assert choose_sides([scored_sweep(tmp_path / "o", ahead(0))], "lr_theta") == ("1e-05", "0.0001")
    with pytest.raises(
        ConfigError, match="algorithm: the sweep has clo-v1; compare the values of another option by --option, or"
    ):
        sides("clo-v1")


def test_configurations_are_named_by_what_differs():
    blo, clo = {"algorithm": "blo", "lr_theta": 1e-5}, {"algorithm": "clo-v2", "lr_theta": 1e-5, "cycle_length": 4}
    assert short_names([blo, clo]) == ["BLO", "CLO-v2"], "C has one value"
    assert short_names([blo, clo, {**clo, "cycle_length": 2}]) == ["BLO", "CLO-v2 C=4", "CLO-v2 C=2"]
    assert short_names([clo, {**clo, "lr_theta": 1e-4}]) == ["λ1=1e-05", "λ1=0.0001"]
    assert short_names([clo]) == ["CLO-v2 λ1=1e-05 C=4"]
    without = {key: value for key, value in clo.items() if key != "cycle_length"}
    assert short_names([clo, without]) == ["C=4", "CLO-v2"]


def test_the_sampling_variance_is_that_of_the_same_samples_under_both_sides(sweep, result):
    pool, overall = result.pool, result.scores.overall
    of_exits, *of_speed_ups = influences(pool, set(pool.state.configs), at_speed_ups(), result.replayed)
    variance, exits = of_exits.variances(dict.fromkeys(overall.cells, overall.paired))

    def correct(config, cell):  # (M, n) of a run; the metric is accuracy
        recorded, _ = cell_logits(sweep.path, pool.state.cells[config, *cell])
        return (recorded.logits.argmax(-1) == recorded.labels).astype(float)

    by_fold = []
    for fold in range(3):
        seeds = [cell for cell in overall.cells if cell[1] == fold]
        by_fold.append(
            np.mean(
                [np.mean([correct(a, c) - correct(b, c) for a, b in overall.paired], axis=0) for c in seeds], axis=0
            )
        )
    assert variance == pytest.approx(np.mean([d.mean(axis=0).var(ddof=1) / 40 for d in by_fold]))
    assert exits == pytest.approx(np.mean([d.var(axis=1, ddof=1) / 40 for d in by_fold], axis=0))
    assert of_speed_ups[1].variances(dict.fromkeys(overall.cells, overall.paired))[0] > 0
    assert of_exits.variances({(9, 9): overall.paired}) == (0.0, []), "a run without logits"
    narrow, wide = (i.high - i.low for i in (overall.difference, random_effects(diffs_of(result), 0.5)))
    assert narrow != pytest.approx(wide), "the logits count"


def diffs_of(result):
    scores = {(c.id, k.seed, k.fold): k.best.score for c in result.pool.state.history() for k in c.cells}
    overall = result.scores.overall
    return {c: np.mean([scores[a, *c] - scores[b, *c] for a, b in overall.paired]) for c in overall.cells}


@pytest.mark.slow
def test_the_command_prints_the_verdict_first_and_the_power_that_is_asked_for(sweep, cli):
    where = ("--storage", sweep.path.parent)
    ran = cli("leebert-tune", "compare", "s", *where, "--power")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == f"{verdict_on(sweep).sentence}."
    assert lines[1].startswith("CLO-v2: 4 configurations (C=2, 4), mean score ")
    assert "ω moved by up to" in lines[1]
    assert any(line.startswith("to detect 0.36 points with 80 % power") for line in lines)
    asked = cli("leebert-tune", "compare", "s", *where, "--power", "2.5", "--json").json["verdict"]["power"]
    assert asked["difference"] == pytest.approx(0.025)
    assert "above 0" in cli("leebert-tune", "compare", "s", *where, "--power", "0").err


def test_a_dry_run_states_its_power_from_a_stated_standard_deviation_or_an_earlier_sweep(sweep, result):
    spec = spec_of(sweep)
    (line,) = power_in_words(spec)
    assert "6 runs of each configuration detect differences of 5.2 standard deviations" in line
    earlier = variances_of(sweep)
    lines = power_in_words(spec, 0.0036, StatedVariances(earlier.std))
    assert lines[0].startswith(
        "to detect 0.36 points with 80 % power, if the differences of single runs have a standard "
    )
    assert "  3 folds: not at any number of seeds, if those of a fold agree" in lines
    # The earlier sweep itself: a dry run of the same space promises what its comparison says, seeds and samples apart.
    power = result.verdict.power
    lines = power_in_words(spec, 0.0036, earlier, FACTS["rows"])
    assert f"6 runs detect {100 * power.detectable:.2f} points with 80 % power" in lines
    assert any(line.startswith("with these variances, more seeds on 3 folds detect at best ") for line in lines)
    assert sum(line.startswith("  ") for line in lines) == len(power.plans) == 4, "other numbers of folds are listed"
    assert earlier.on(3, 4 * FACTS["rows"]).sampling == pytest.approx(earlier.seen.sampling / 4)
    assert earlier.on(1) == StatedVariances(earlier.std).on(1), "folds do not show the variances of one split"
    assert "too few for an interval" in power_in_words(spec.model_copy(update={"seeds": (0,)}))[0]


def test_intervals_of_scores_end_at_the_least_and_the_largest_score(tmp_path):
    """Folds of very different scores: the bands of both sides would pass 100 %."""

    def score(values, seed, fold):
        return (0.55, 0.99, 0.99)[fold] - 0.01 * (values["algorithm"] == "blo")

    one = {"lr_theta": [1e-5], "cycle_length": [2]}
    folder = scored_sweep(tmp_path / "s", score, seeds=[0, 1], space=one)
    pool = SweepPool.of(folder)
    curves = verdict_on(folder).curves
    assert max(*curves["a"].high, *curves["b"].high) == 1.0
    assert pool.score_interval([0.6, 0.99, 0.99, 0.99]).high == 1.0
    assert pool.score_interval([0.01, 0.3, 0.01, 0.01]).low == 0.0
    assert pool.score_range == (0.0, 1.0)
