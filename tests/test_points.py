"""Differences and their intervals as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leebert.points import MOST_DECIMALS, ends_in_points, in_points

fractions = st.floats(-1, 1)


def number(text):
    return float(text.replace("−", "-"))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.006, 0.0081, "−0.60 to 0.81"),
        (-0.0000297, 0.038, "−0.003 to 3.80"),
        (0.00004, 0.0349, "0.004 to 3.49"),
        (0.0, 0.01, "0.00 to 1.00"),
        (-1e-15, 0.01, "0.00 to 1.00"),
        (-0.0000496, 0.01, "−0.005 to 1.00"),
    ],
)
def test_an_end_shows_on_which_side_of_0_it_is(low, high, text):
    assert ends_in_points(low, high) == text


@given(fractions, fractions)
def test_an_end_is_0_only_if_the_interval_ends_at_0(low, high):
    ends = [number(end) for end in ends_in_points(low, high).split(" to ")]
    for end, fraction in zip(ends, (low, high), strict=True):
        exact = round(100 * fraction, MOST_DECIMALS)
        assert (end > 0, end < 0) == (exact > 0, exact < 0)
        assert end == pytest.approx(exact, abs=0.005 + 1e-9)  # 0.085 is between two of them


@given(fractions)
def test_a_difference_has_two_decimals_and_a_sign(fraction):
    text = in_points(fraction)
    assert text[0] in "+−"
    assert number(text) == pytest.approx(100 * fraction, abs=0.00501)
    assert text != "−0.00"
