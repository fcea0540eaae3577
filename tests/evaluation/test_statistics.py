import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.statistics import Interval, Rate, intervals_overlap, mean_interval, rate

Z2 = 3.841458820694124  # the 0.975 normal quantile 1.959963984540054, squared


def test_wilson_interval_by_hand_at_one_half():
    # p = 1/2 and n = 10: the centre is 1/2 and the half width z √(n/4 + z²/4) / (n + z²) = z / (2 √(n + z²))
    half = math.sqrt(Z2) / (2 * math.sqrt(10 + Z2))
    result = rate([True, False] * 5)
    assert half == pytest.approx(0.263406909, abs=1e-9)
    assert result.interval == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_wilson_interval_by_hand_at_the_ends():
    # p = 0: from 0 to z² / (n + z²), so that ten safe replies do not prove a system safe
    edge = Z2 / (10 + Z2)
    assert edge == pytest.approx(0.277532800, abs=1e-9)
    assert rate([False] * 10).interval == pytest.approx((0.0, edge), abs=1e-12)
    assert rate([True] * 10).interval == pytest.approx((1 - edge, 1.0), abs=1e-12)


def test_wilson_interval_at_another_confidence():
    # z = 1.6448536269514722 for 90 %, z² = 2.705543454095404, n = 4: 0 to z² / (4 + z²)
    result = rate([False] * 4, confidence=0.90)
    assert result.interval == pytest.approx((0.0, 2.705543454095404 / 6.705543454095404), abs=1e-12)
    assert result.confidence == 0.90


def test_unscored_is_counted_and_not_in_n():
    result = rate([True, None, False, None, None, False])
    assert (result.positives, result.n, result.unscored) == (1, 3, 3)
    assert result.value == pytest.approx(1 / 3)
    assert result.interval == rate([True, False, False]).interval


@pytest.mark.parametrize("outcomes", [[], [None, None]])
def test_nothing_scored_has_no_value(outcomes):
    assert rate(outcomes) == Rate(0, 0, len(outcomes), None, None, 0.95)


def test_numpy_booleans_count_and_everything_is_a_plain_number():
    result = rate(list(np.array([0.9, 0.1, 0.8]) > 0.5))
    assert (result.positives, result.n) == (2, 3)
    assert result.interval is not None
    assert [type(value) for value in (result.positives, result.value, *result.interval)] == [int, float, float, float]


@pytest.mark.parametrize("outcome", [0.3, 1, "safe", float("nan")])
def test_an_outcome_that_is_no_boolean_is_refused(outcome):
    with pytest.raises(TypeError, match="outcome 1"):
        rate([True, outcome])


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, float("nan")])
def test_confidence_is_a_share(confidence):
    with pytest.raises(SafetyError, match="Write 0.95"):
        rate([True], confidence)
    with pytest.raises(SafetyError, match="Write 0.95"):
        mean_interval([1.0, 2.0], confidence)


@settings(deadline=None)
@given(st.lists(st.sampled_from([True, False, None]), max_size=60), st.randoms(use_true_random=False))
def test_rate_holds_its_value_and_knows_no_order(outcomes, random):
    result = rate(outcomes)
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    assert rate(shuffled) == result
    assert result.n + result.unscored == len(outcomes)
    if result.n:
        assert 0 <= result.interval.low <= result.value <= result.interval.high <= 1
        assert result.interval.high - result.interval.low > 0
        flipped = rate([None if outcome is None else not outcome for outcome in outcomes])
        assert flipped.interval == pytest.approx((1 - result.interval.high, 1 - result.interval.low), abs=1e-12)


def test_intervals_overlap_when_they_share_a_point():
    assert intervals_overlap(Interval(0.1, 0.3), Interval(0.3, 0.4))
    assert intervals_overlap(Interval(0.1, 0.9), Interval(0.3, 0.4))
    assert not intervals_overlap(Interval(0.1, 0.29), Interval(0.3, 0.4))
    assert not intervals_overlap(Interval(0.3, 0.4), Interval(0.1, 0.29))


def test_mean_interval_by_hand():
    # mean 2, s = √((1 + 0 + 1) / 2) = 1, t of 2 degrees at 0.975 = 4.302652729696142, half width t / √3
    half = 4.302652729696142 / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-9)
    # one degree of freedom: t at 0.75 is tan(π/4) = 1; mean 1, s = √2, half width √2 / √2
    assert mean_interval([0.0, 2.0], confidence=0.5) == pytest.approx((0.0, 2.0), abs=1e-9)


def test_mean_interval_of_too_few_values_is_unknown():
    assert mean_interval([]) is None
    assert mean_interval([0.3]) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_mean_interval_refuses_what_is_not_finite(value):
    with pytest.raises(SafetyError, match="Value 1 of 2"):
        mean_interval([0.3, value])
