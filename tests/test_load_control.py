"""Load control: the ladder of operating points, and the controller on simulated queues."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_simulation import CURVE, arrivals, fixed, row, simulate

from leebert.errors import ConfigError
from tune.serve.control import Controller, OperatingPoint, Reading, Settings, Target, ladder

TARGET = 40.0


def point(threshold, score, milliseconds):
    return OperatingPoint(threshold, score, 10 / milliseconds, milliseconds)


def test_the_ladder_is_the_part_of_the_front_that_the_floor_allows():
    points = [point(0, 0.80, 10), point(1, 0.81, 9), point(2, 0.79, 9.5), point(3, 0.80, 8), point(4, 0.797, 7.9),
              point(5, 0.79, 5), point(6, 0.78, 4)]  # fmt: skip
    assert [p.threshold for p in ladder(points, 1.0)] == [1, 3, 5]
    assert [p.threshold for p in ladder(points, 2.0)] == [1, 3, 5, 6]
    assert [p.threshold for p in ladder(points, 0.0)] == [1, 3]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 50)), min_size=1, max_size=40),
    st.floats(0, 100),
)
def test_a_ladder_falls_in_time_and_score_and_keeps_the_floor(values, max_loss):
    points = [point(i, score, ms) for i, (score, ms) in enumerate(values)]
    rungs = ladder(points, max_loss)
    assert rungs
    for slower, faster in zip(rungs, rungs[1:], strict=False):
        assert slower.milliseconds > faster.milliseconds
        assert slower.score > faster.score
    assert min(p.score for p in rungs) >= points[0].score - max_loss / 100 - 1e-9
    assert rungs[-1].milliseconds == min(
        p.milliseconds for p in points if 100 * (points[0].score - p.score) <= max_loss + 1e-9
    )
    assert rungs[0].score == max(p.score for p in points if p.score >= points[0].score - max_loss / 100 - 1e-11)


def test_a_fine_curve_keeps_its_fastest_point_and_points_in_between():
    points = [point(i, 0.8 - 0.0001 * i, 10 * 0.99**i) for i in range(70)]
    rungs = ladder(points, 1.0)
    assert (rungs[0].threshold, rungs[-1].threshold) == (0, 69)
    assert 12 <= len(rungs) <= 15


def test_a_curve_without_milliseconds_and_an_impossible_target_are_refused():
    with pytest.raises(ConfigError, match="milliseconds"):
        ladder([point(0, 0.8, 10), OperatingPoint(1, 0.8, 1, math.nan)], 1)
    with pytest.raises(ConfigError, match="no curve"):
        ladder([], 1)
    for p99 in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="p99"):
            Target(p99)
    with pytest.raises(ConfigError, match="max_loss"):
        Target(20, -0.1)


def test_capacities_grow_along_the_ladder_and_with_the_target():
    tight, loose = Controller(CURVE, 25), Controller(CURVE, 100)
    for controller in (tight, loose):
        capacities = [controller.capacity(i) for i in range(len(CURVE))]
        assert capacities == sorted(capacities)
    assert all(tight.capacity(i) < loose.capacity(i) < 1000 / CURVE[i].milliseconds for i in range(len(CURVE)))


@pytest.mark.slow
def test_a_tenfold_surge_stays_within_the_target_where_fixed_thresholds_miss_it():
    p99, within, loss, outside, _ = row(70, lambda: Controller(CURVE, TARGET), seeds=2)
    assert p99 <= TARGET
    assert within >= 0.95
    assert outside < loss <= 1.0
    for index in (0, 2):
        p99, within, *_ = row(70, lambda index=index: fixed(index, TARGET), seeds=1)
        assert p99 > 1.2 * TARGET
        assert within < 0.5


def test_the_fullest_point_serves_before_a_surge_and_again_soon_after_it():
    rng = np.random.default_rng(0)
    times = arrivals(lambda t: 70 if 10 <= t < 30 else 5, 60, rng)
    one = simulate(times, Controller(CURVE, TARGET), rng)
    assert (one.index[one.arrival < 10] == 0).mean() > 0.9
    assert (one.index[(one.arrival > 12) & (one.arrival < 30)] >= 5).mean() > 0.9
    assert (one.index[one.arrival > 50] <= 1).all()


@pytest.mark.parametrize(("every", "place"), [(6, 0), (1, len(CURVE) - 1)])
def test_large_requests_matter_by_their_work_and_leave_ordinary_ones_within_the_target(every, place):
    """Of 300 rows each: 3.2 s of work for the full model, which is more than it can do if they come every second."""
    rng = np.random.default_rng(0)
    times = arrivals(lambda t: 5, 40, rng)
    one = simulate(times, Controller(CURVE, TARGET), rng, large=[(1.5 + at, 300) for at in range(0, 40, every)])
    assert one.p99(0, 40) <= TARGET
    assert (one.index[one.arrival > 25] == place).mean() > 0.95


@given(st.integers(100, 1000), st.floats(0, 20))
def test_one_large_request_changes_nothing(rows, rate):
    controller = Controller(CURVE, TARGET)
    for tick in range(1, 200):
        due = round(rate * 0.1 * tick) - round(rate * 0.1 * (tick - 1))
        controller.update(Reading(0.1 * tick, due, 0, due, 0, 100, 100, large=rows if tick == 50 else 0))
    assert controller.changes == 0


@pytest.mark.parametrize("rate", [2, 30, 55, 90, 150])
def test_a_steady_load_gives_few_changes(rate):
    rng = np.random.default_rng(rate)
    times = arrivals(lambda t: rate, 90, rng)
    one = simulate(times, Controller(CURVE, TARGET), rng)
    late = [t for t, _ in one.changes if t > 45]
    assert len(one.changes) <= 20
    assert len(late) <= 8, one.changes


def test_a_load_at_the_edge_of_a_capacity_does_not_flip_between_two_points():
    """Readings without noise: the arrival rate swings by 10 % around a capacity."""
    controller = Controller(CURVE, TARGET)
    edge = controller.capacity(2)
    for tick in range(1, 3000):
        rate = edge * (1.1 if tick % 20 < 10 else 0.9)
        controller.update(Reading(0.1 * tick, round(rate * 0.1 * tick) - round(rate * 0.1 * (tick - 1)), 0))
    assert controller.changes <= len(CURVE)


def test_a_machine_half_as_fast_as_the_curve_takes_faster_points_at_the_same_load():
    def place(pace):
        rng = np.random.default_rng(3)
        times = arrivals(lambda t: 30, 40, rng)
        controller = Controller(CURVE, 80)
        one = simulate(times, controller, rng, pace=pace, fixed=0)
        assert controller.pace == pytest.approx(pace, rel=0.2)
        return one.index[one.arrival > 10].mean()

    assert place(2.0) > place(1.0) + 1


def test_latencies_above_the_target_make_the_server_faster_and_it_remembers():
    controller = Controller(CURVE, TARGET)
    for tick in range(1, 100):
        controller.update(Reading(0.1 * tick, 1, 0, finished=10, slow=2))
    assert controller.index > 0
    assert controller.correction < 1
    assert controller.last_change.reason in ("latency", "arrivals")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 2.0), st.integers(0, 500), st.integers(0, 500), st.integers(0, 50), st.floats(0, 1)),
        max_size=60,
    )
)
def test_any_readings_give_a_point_of_the_ladder_with_bounded_steps_towards_the_fullest(readings):
    controller, time, settings_ = Controller(CURVE, TARGET), 0.0, Settings()
    lowered = -math.inf
    for elapsed, arrived, waiting, finished, share in readings:
        time += elapsed
        before = controller.index
        after = controller.update(
            Reading(time, arrived, waiting, finished, int(share * finished), 10 * share, 10 * (1 - share))
        )
        assert 0 <= after < len(CURVE)
        if after < before:
            assert time - lowered >= settings_.hold_s - 1e-6
            assert before - after <= (before + 1) // 2
            lowered = time
    assert 0.2 <= controller.correction <= 1
    assert controller.pace > 0 or not readings


def test_the_same_readings_give_the_same_points():
    def places():
        controller = Controller(CURVE, TARGET)
        rng = np.random.default_rng(0)
        return [
            controller.update(Reading(0.1 * i, int(rng.poisson(5)), int(rng.poisson(1)), 5, int(rng.random() < 0.1)))
            for i in range(300)
        ]

    assert places() == places()
    assert len(set(places())) > 1


def test_one_point_is_a_fixed_threshold():
    controller = Controller(CURVE[:1], TARGET)
    for tick in range(50):
        assert controller.update(Reading(tick, 10_000, 10_000, 10, 10)) == 0
    assert controller.press(51, 10_000) == 0
    assert controller.changes == 0
    assert dataclasses.asdict(controller.point) == dataclasses.asdict(CURVE[0])
