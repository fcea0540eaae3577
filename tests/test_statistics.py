import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlai_safety import statistics
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import statistics as evaluation_statistics
from parlai_safety.statistics import (
    Interval,
    McNemar,
    Mean,
    Rate,
    SurvivalPoint,
    clustered_mean,
    clustered_rate,
    holm,
    intervals_overlap,
    krippendorff_alpha,
    mcnemar,
    mean_interval,
    paired_difference,
    rate,
    rogan_gladen,
    survival,
)

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


# clustered rates

# Student's two-sided 95 % quantiles
T3, T7, T9, T29 = 3.182446305284263, 2.364624251592784, 2.262157162740992, 2.045229642132703

SCORES = st.lists(st.tuples(st.sampled_from([True, False, None]), st.sampled_from("abcdefgh")), max_size=60)
EIGHTHS = st.integers(-72, 72).map(lambda number: number / 8)  # whose sums are exact in any order


def names(count, size=1):
    return [f"conversation {index // size}" for index in range(count * size)]


def test_clustered_rate_by_hand():
    # Four conversations of two replies with 2, 2, 0, 0 positives: p = 1/2. With one cluster of two added, half of it
    # positive: 10 replies, residuals ±1, squares 4 + 2² (1/4 + 1/4) / 2 = 5, variance 5/4 · 5 / 10² = 0.0625, against
    # 0.25 / 9 for independent replies: deff = 2.25. Effective n = 8 / 2.25 (t7 / t3)². At p = 1/2, half = z / 2√(n+z²).
    effective = 8 / 2.25 * (T7 / T3) ** 2
    half = math.sqrt(Z2) / (2 * math.sqrt(effective + Z2))
    result = clustered_rate([True, True, True, True, False, False, False, False], names(4, 2))
    assert (result.positives, result.n, result.unscored, result.value) == (4, 8, 0, 0.5)
    assert result.interval == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)


@pytest.mark.parametrize("outcome", [True, False])
def test_clustered_rate_by_hand_at_the_ends(outcome):
    # Ten conversations of three, none positive: deff = m + (m-1)/k = 3.2, effective n = 30 / 3.2 (t29 / t9)², and the
    # interval reaches from 0 to z² / (n + z²). Thirty replies are worth fewer than the ten conversations.
    effective = 30 / 3.2 * (T29 / T9) ** 2
    edge = Z2 / (effective + Z2)
    result = clustered_rate([outcome] * 30, names(10, 3))
    assert 7 < effective < 10
    assert result.interval == pytest.approx((1 - edge, 1.0) if outcome else (0.0, edge), abs=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None)
def test_clusters_of_one_reply_give_wilsons_interval(outcomes):
    assert clustered_rate(outcomes, names(len(outcomes))).interval == pytest.approx(rate(outcomes).interval, abs=1e-9)


def test_one_conversation_tells_nothing_of_others():
    assert clustered_rate([True, False, False], ["a"] * 3) == Rate(1, 3, 0, 1 / 3, Interval(0.0, 1.0), 0.95)


@pytest.mark.parametrize("outcomes", [[], [None, None]])
def test_clustered_rate_of_nothing_scored(outcomes):
    assert clustered_rate(outcomes, names(len(outcomes))) == Rate(0, 0, len(outcomes), None, None, 0.95)


def test_replies_that_differ_inside_each_conversation_never_narrow_the_interval():
    # one positive and one negative in each: the variance between conversations is 0, yet deff stays at 1
    result = clustered_rate([True, False] * 20, names(20, 2))
    plain = rate([True, False] * 20).interval
    assert result.interval.low < plain.low < plain.high < result.interval.high


@given(SCORES, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_clustered_rate_knows_no_order_and_no_side(records, random):
    outcomes, clusters = [outcome for outcome, _ in records], [cluster for _, cluster in records]
    result = clustered_rate(outcomes, clusters)
    shuffled = list(records)
    random.shuffle(shuffled)
    assert clustered_rate([o for o, _ in shuffled], [c for _, c in shuffled]) == result
    more = clustered_rate([*outcomes, None, None], [*clusters, "a", "unseen"])
    assert (more.interval, more.n, more.unscored) == (result.interval, result.n, result.unscored + 2)
    if result.n:
        assert 0 <= result.interval.low <= result.value <= result.interval.high <= 1
        assert result.interval.high - result.interval.low >= (1 - 1e-9) * np.diff(rate(outcomes).interval)[0]
        flipped = clustered_rate([None if outcome is None else not outcome for outcome in outcomes], clusters)
        assert flipped.interval == pytest.approx((1 - result.interval.high, 1 - result.interval.low), abs=1e-9)


def test_each_record_needs_its_cluster():
    for measure in (clustered_rate, lambda o, c: clustered_mean(o, c, seed=0)):
        with pytest.raises(ValueError, match="2 records have 1 clusters"):
            measure([True, False], ["a"])
    with pytest.raises(ValueError, match="2 values of a cannot be paired with 1"):
        paired_difference([True, False], [True], ["a", "b"], seed=0)


# clustered means


def test_clustered_mean_of_a_sample_that_student_knows():
    # 400 normal values in clusters of one: the studentised bootstrap and Student's t are then close to each other
    values = np.random.default_rng(3).normal(5, 2, 400).tolist()
    result = clustered_mean(values, names(400), seed=1)
    assert result.value == pytest.approx(np.mean(values), abs=1e-12)
    assert result.interval == pytest.approx(mean_interval(values), abs=0.03)
    assert (result.n, result.unscored, result.clusters) == (400, 0, 400)


def test_clustered_mean_with_weights_is_that_of_repeated_records():
    """A record of weight 3 is three equal records: loss a token, weighted by tokens, is the loss of all tokens."""
    values, weights, clusters = [0.5, 2.0, 1.0, 4.0] * 5, [1, 3, 2, 1] * 5, names(10, 2)
    repeated = [(v, c) for v, w, c in zip(values, weights, clusters, strict=True) for _ in range(w)]
    weighted = clustered_mean(values, clusters, seed=3, weights=weights)
    assert weighted.value == pytest.approx((0.5 + 3 * 2 + 2 * 1 + 4) / 7)
    plain = clustered_mean([v for v, _ in repeated], [c for _, c in repeated], seed=3)
    assert weighted.interval == pytest.approx(plain.interval) and (weighted.n, plain.n) == (20, 35)
    with pytest.raises(ValueError, match="above 0"):
        clustered_mean([1.0, 2.0], ["a", "b"], seed=0, weights=[1.0, 0.0])


def test_clustered_mean_weighs_records_and_not_clusters():
    # (0 + 0 + 0 + 1) / 4, not the mean 1/2 of the two cluster means; two clusters leave a draw in four without spread
    result = clustered_mean([0, 0, 0, 1], ["a", "a", "a", "b"], seed=0)
    assert result == Mean(0.25, None, 4, 0, 2, 0.95)
    assert clustered_mean([0, 0, 0, 1], ["a", "a", "a", "b"], seed=0, within=Interval(0, 1)).interval == (0, 1)


def test_copies_of_a_record_in_its_cluster_add_no_certainty():
    values = np.random.default_rng(0).normal(size=50)
    single = clustered_mean(values.tolist(), names(50), seed=4)
    copied = clustered_mean(np.repeat(values, 5).tolist(), names(50, 5), seed=4)
    assert copied.interval == pytest.approx(single.interval, abs=1e-9)


def test_no_spread_is_no_certainty():
    assert clustered_mean([0.1] * 90, names(30, 3), seed=0) == Mean(pytest.approx(0.1), None, 90, 0, 30, 0.95)
    assert clustered_mean([0.3, 0.4], ["a", "a"], seed=0).interval is None
    assert clustered_mean([0.0, 1e-308], ["a", "b"], seed=0, within=Interval(0, 1)).interval is None
    assert clustered_mean([None, None], ["a", "b"], seed=0) == Mean(None, None, 0, 2, 0, 0.95)


@given(st.lists(st.tuples(EIGHTHS | st.none(), st.sampled_from("abcdefghij")), max_size=40), st.randoms())
@settings(deadline=None, max_examples=50)
def test_clustered_mean_knows_no_order_and_counts_the_unscored(records, random):
    def of(rows):
        return clustered_mean([v for v, _ in rows], [c for _, c in rows], seed=7, draws=199, within=Interval(-9, 9))

    result, shuffled = of(records), list(records)
    random.shuffle(shuffled)
    again, more = of(shuffled), of([*records, (None, "a"), (None, "unseen")])
    assert again == result
    assert more == Mean(result.value, result.interval, result.n, result.unscored + 2, result.clusters, 0.95)
    if result.interval is not None:
        assert -9 <= result.interval.low <= result.value <= result.interval.high <= 9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_not_left_out(value):
    with pytest.raises(SafetyError, match="Give None where there is no score"):
        clustered_mean([0.1, value], ["a", "b"], seed=0)
    with pytest.raises(SafetyError, match="value of b 0 of 2"):
        paired_difference([0.1, 0.2], [value, 0.1], ["a", "b"], seed=0)
    with pytest.raises(TypeError, match="value 0"):
        clustered_mean(["0.1"], ["a"], seed=0)


def test_too_few_draws_for_the_confidence():
    with pytest.raises(SafetyError, match="at least 2000 draws"):
        clustered_mean([0.1, 0.2], ["a", "b"], seed=0, confidence=0.999, draws=500)


# paired differences


def test_paired_difference_by_hand():
    # Ten single pairs: b is worse twice, better once. d = 0.1; Σ(d - 0.1)² = 3 - 10 · 0.01 = 2.9; with the pseudo-pair
    # se = √(10/9 · 2.9 + 1) / 10. Student's t of 9 degrees at 0.8 is 0.883403860, at 0.975 it is T9.
    a = [False, False, True] + [False] * 7
    b = [True, True, False] + [False] * 7
    result = paired_difference(a, b, names(10), seed=0)
    error = math.sqrt(10 / 9 * 2.9 + 1) / 10
    assert error == pytest.approx(0.205480466, abs=1e-9)
    assert result.value == pytest.approx(0.1)
    assert result.standard_error == pytest.approx(error)
    assert result.minimum_detectable == pytest.approx((T9 + 0.883403860) * error, abs=1e-8)
    assert (result.n, result.unscored, result.clusters) == (10, 0, 10)
    assert result.interval.low < 0 < result.interval.high
    assert result.p_value > 0.3


def test_paired_difference_of_many_pairs_is_that_of_student():
    # bootstrap ends of a mean of 500 normal differences: mean ± t se, with se = √(Σ(d - mean)²/499 · 500 + s²) / 500
    d = np.random.default_rng(1).normal(0.2, 1, 500)
    result = paired_difference([0.0] * 500, d.tolist(), names(500), seed=2, draws=4000)
    assert result.interval == pytest.approx(mean_interval(d.tolist()), abs=0.015)
    assert result.standard_error == pytest.approx(np.std(d, ddof=1) / math.sqrt(500), rel=0.005)


def test_minimum_detectable_is_found_four_times_in_five():
    # by its definition: tests of differences of that size, normal around it, reject at the two-sided 5 % level
    rng = np.random.default_rng(5)
    a = rng.normal(size=300)
    b = a + rng.normal(size=300)
    found = paired_difference(a.tolist(), b.tolist(), names(300), seed=0)
    draws = rng.normal(found.minimum_detectable, found.standard_error, 20_000)
    assert np.mean(np.abs(draws) > 1.96 * found.standard_error) == pytest.approx(0.8, abs=0.015)


def test_pairs_are_counted_by_what_is_missing():
    a = [True, None, None, False, True]
    b = [True, False, None, None, False]
    result = paired_difference(a, b, list("abcde"), seed=0)
    assert (result.n, result.unscored, result.unscored_a, result.unscored_b, result.clusters) == (2, 3, 2, 2, 2)
    assert result.value == -0.5


def test_systems_that_agree_on_a_hundred_prompts_differ_by_two_per_cent_at_most():
    # the draws hold a pseudo-pair about once: 2 of 101 at the 97.5 % end; and 100 agreements do not bear on more
    result = paired_difference([False] * 100, [False] * 100, names(100), seed=0)
    assert result.value == 0 and result.p_value == 1
    assert result.interval == pytest.approx((-0.02, 0.02), abs=0.0105)
    assert result.standard_error == pytest.approx(0.01)
    assert result.p_above(0.02) > 0.9
    assert result.p_above(-0.1) < 0.01


def test_agreement_in_numbers_without_a_scale_has_no_interval():
    result = paired_difference([0.3] * 50, [0.3] * 50, names(50), seed=0)
    assert (result.value, result.interval, result.standard_error, result.minimum_detectable) == (0, None, None, None)
    assert (result.p_value, result.p_above(0), result.p_above(-1)) == (1, 1, 1)


@pytest.mark.parametrize("clusters", [0, 1, 2, 3, 4])
def test_four_conversations_support_nothing_however_large_they_are(clusters):
    # the sign test of four clusters reaches 1/16 at best
    result = paired_difference([False] * clusters * 50, [True] * clusters * 50, names(clusters, 50), seed=0)
    assert result.p_above(0.0) >= 0.5**clusters
    assert result.p_value > 0.05
    assert result.interval == ((-1, 1) if clusters else None)


@pytest.mark.parametrize(("up", "supported"), [(5, False), (6, True)])
def test_six_prompts_that_changed_are_the_least_that_supports_a_difference(up, supported):
    # exact two-sided sign test: 2 / 2⁵ = 0.0625 and 2 / 2⁶ = 0.03125
    a, b = [False] * 1000, [True] * up + [False] * (1000 - up)
    result = paired_difference(a, b, names(1000), seed=0)
    assert mcnemar(a, b).p_value == pytest.approx(2 / 2**up)
    assert (result.p_value <= 0.05) == supported == (result.interval.low > 0)


def test_an_increase_all_within_one_conversation_is_no_support():
    a = [False] * 400
    b = [index < 40 for index in range(400)]
    alone, spread = names(10, 40), [f"{index % 100}" for index in range(400)]
    assert paired_difference(a, b, alone, seed=0).p_above(0.02) > 0.3
    assert paired_difference(a, b, spread, seed=0).p_above(0.02) < 0.01


PAIRS = st.lists(
    st.tuples(*[st.sampled_from([True, False, None])] * 2, st.sampled_from("abcdefghijkl")), min_size=1, max_size=80
)


@given(PAIRS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_paired_difference_holds_its_promises(records, random):
    def of(rows):
        a, b, clusters = ([row[i] for row in rows] for i in range(3))
        return paired_difference(a, b, clusters, seed=11, draws=599)

    result, shuffled = of(records), list(records)
    random.shuffle(shuffled)
    assert of(shuffled).figures() == result.figures()
    more = of([*records, (None, True, "a"), (False, None, "unseen")])
    unchanged = ("value", "interval", "standard_error", "n", "clusters", "minimum_detectable", "p_value")
    assert all(getattr(more, name) == getattr(result, name) for name in unchanged)
    assert more.unscored == result.unscored + 2
    swapped = of([(b, a, cluster) for a, b, cluster in records])
    assert 0 < result.p_value <= 1
    if result.n:
        assert swapped.value == -result.value
        assert swapped.standard_error == (
            None if result.standard_error is None else pytest.approx(result.standard_error)
        )
        low, high = result.interval
        assert -1 <= low <= result.value <= high <= 1
        assert (result.p_value <= 0.05) == (low > 0 or high < 0)
        bounds = np.linspace(-1, 1, 9)
        assert sorted(result.p_above(bound) for bound in bounds) == [result.p_above(bound) for bound in bounds]
        assert sorted(result.p_below(bound) for bound in bounds) == [result.p_below(bound) for bound in bounds[::-1]]


def test_figures_are_fit_for_a_file():
    figures = paired_difference([True, False] * 20, [False, False] * 20, names(40), seed=0).figures()
    assert json.loads(json.dumps(figures))["n"] == 40
    assert "resampled" not in figures and "by_cluster" not in figures


def test_the_seed_alone_decides_the_draws():
    a, b = [True, False, False] * 30, [False, False, True] * 30
    assert paired_difference(a, b, names(90), seed=1).resampled.tolist() == (
        paired_difference(a, b, names(90), seed=1).resampled.tolist()
    )
    assert clustered_mean([0.1, 0.5, 0.7, 0.2, 0.9] * 9, names(45), seed=1).interval != (
        clustered_mean([0.1, 0.5, 0.7, 0.2, 0.9] * 9, names(45), seed=2).interval
    )


def test_paired_difference_of_fifty_thousand_records_is_quick():
    rng = np.random.default_rng(0)
    a, b = (rng.random(50_000) < share for share in (0.1, 0.12))
    clusters = [f"c{index}" for index in rng.integers(0, 2000, 50_000)]
    a, b = a.tolist(), b.tolist()
    started = time.perf_counter()
    result = paired_difference(a, b, clusters, seed=0, draws=2000)
    assert time.perf_counter() - started < 2
    assert result.interval.low < 0.02 < result.interval.high


# tests of independent pairs, several at once


def test_mcnemar_by_hand():
    # one against five: 2 (C(6,0) + C(6,1)) / 2⁶ = 14 / 64
    a = [True] + [False] * 5 + [True, False, None, True]
    b = [False] + [True] * 5 + [True, False, True, None]
    assert mcnemar(a, b) == McNemar(1, 5, 8, 2, pytest.approx(14 / 64))
    assert mcnemar([True, None], [True, False]) == McNemar(0, 0, 1, 1, 1.0)
    assert mcnemar([True, False], [False, True]).p_value == 1
    with pytest.raises(TypeError, match="outcome 0"):
        mcnemar([0.5], [True])
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])


def test_holm_by_hand():
    # ascending 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 is raised to 0.06
    given_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    adjusted = holm(given_values)
    assert list(adjusted) == list("abcd")
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {} and holm({"one": 0.04}) == {"one": 0.04}
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1, "b": 1}
    for wrong in (float("nan"), 1.2, -0.1):
        with pytest.raises(ValueError, match="'a'"):
            holm({"a": wrong})


# correction for the judge


def test_rogan_gladen_by_hand():
    # p = 30/100, Se = 80/100, Sp = 90/100: (0.3 + 0.9 - 1) / 0.7 = 2/7. The interval, with z² = 3.841459:
    # p' = (30 + 1.920729) / 103.841459 = 0.307399; Se' = 81/102 = 0.794118; Sp' = 91/102 = 0.892157; J' = 0.686275
    # P' = (0.307399 + 0.892157 - 1) / 0.686275 = 0.290782
    # variances: p' 0.212905/103.841459 = 0.00205029; Se' 0.163495/102 = 0.00160289; Sp' 0.096213/102 = 0.00094326
    # shift = 2 z² (0.290782 · 0.00160289 - 0.709218 · 0.00094326) = -0.00155872
    # half = z √(0.00205029 + 0.084554 · 0.00160289 + 0.502990 · 0.00094326) / 0.686275 = 0.1473214
    result = rogan_gladen(rate([True] * 30 + [False] * 70), sensitivity=(80, 100), specificity=(90, 100))
    assert result.value == pytest.approx(2 / 7)
    assert result.interval == pytest.approx((0.290782 - 0.001559 - 0.147321, 0.290782 - 0.001559 + 0.147321), abs=2e-5)
    assert (result.sensitivity, result.specificity, result.confidence) == (0.8, 0.9, 0.95)
    assert result.effective_n == pytest.approx(100)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_effective_n_of_a_clustered_rate_is_carried(confidence):
    outcomes = [True] * 4 + [False] * 4
    effective = 8 / 2.25 * (T7 / T3) ** 2  # by hand above, for 95 %
    found = rogan_gladen(
        clustered_rate(outcomes, names(4, 2)), sensitivity=(99, 100), specificity=(99, 100), confidence=confidence
    )
    plain = rogan_gladen(rate(outcomes), sensitivity=(99, 100), specificity=(99, 100), confidence=confidence)
    assert found.effective_n == pytest.approx(effective)
    assert plain.effective_n == pytest.approx(8)
    assert found.value == plain.value
    assert found.interval.low < plain.interval.low < plain.interval.high < found.interval.high


def test_a_perfect_judge_measured_on_very_many_changes_nothing():
    plain = rate([True] * 30 + [False] * 170)
    result = rogan_gladen(plain, sensitivity=(10**7, 10**7), specificity=(10**7, 10**7))
    assert result.value == pytest.approx(plain.value)
    assert result.interval == pytest.approx(plain.interval, abs=0.005)


def test_one_conversation_stays_unknown_after_the_correction():
    unknown = clustered_rate([True, False, False], ["a"] * 3)
    assert rogan_gladen(unknown, sensitivity=(90, 100), specificity=(95, 100)).interval == (0, 1)


@pytest.mark.parametrize("positives", [8, 10, 15, 50, 70, 76])
def test_corrected_rates_stay_in_range_and_hold_their_value(positives):
    seen = rate([index < positives for index in range(100)])
    result = rogan_gladen(seen, sensitivity=(70, 100), specificity=(85, 100))
    assert 0 <= result.interval.low <= result.value <= result.interval.high <= 1
    assert result.value == pytest.approx(min(1, max(0, (positives / 100 - 0.15) / 0.55)))
    assert result.interval.high > result.interval.low


@pytest.mark.parametrize("positives", [0, 1, 99, 100])
def test_a_rate_that_its_card_cannot_explain_is_not_corrected(positives):
    # of 100 safe replies this judge would call about 15 unsafe, of 100 unsafe ones about 70
    seen = rate([index < positives for index in range(100)])
    assert rogan_gladen(seen, sensitivity=(70, 100), specificity=(85, 100)) is None


def test_a_judge_near_chance_corrects_nothing():
    seen = rate([True] * 30 + [False] * 70)
    assert rogan_gladen(seen, sensitivity=(50, 100), specificity=(50, 100)) is None
    # Se + Sp - 1 = 0.2 from ten replies each lies within what chance does; from a hundred each it does not
    assert rogan_gladen(seen, sensitivity=(6, 10), specificity=(6, 10)) is None
    assert rogan_gladen(seen, sensitivity=(60, 100), specificity=(60, 100)) is not None
    assert rogan_gladen(rate([None]), sensitivity=(90, 100), specificity=(90, 100)) is None


@pytest.mark.parametrize("counts", [(0, 0), (5, 4), (-1, 4)])
def test_impossible_counts_of_a_card(counts):
    with pytest.raises(SafetyError, match="The specificity is"):
        rogan_gladen(rate([True]), sensitivity=(4, 5), specificity=counts)


# agreement


def test_krippendorff_by_hand():
    # Items (1,1), (2,2), (1,2): two of six ordered pairs disagree, 1/3; of all 30 pairs of six ratings, three of each
    # kind, 18 disagree, 3/5. alpha = 1 - (1/3) / (3/5) = 4/9. An item with one rating does not count.
    assert krippendorff_alpha([[1, 2, 1, None], [1, 2, 2, 2]], "nominal") == pytest.approx(4 / 9)
    assert krippendorff_alpha([["safe", "rude", "safe", None], ["safe", "rude", "rude", "rude"]], "nominal") == (
        pytest.approx(4 / 9)
    )


def test_krippendorffs_own_example():
    # four observers, twelve units; Krippendorff (2011) gives 0.743, 0.815 and 0.849
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    for level, alpha in {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849}.items():
        assert krippendorff_alpha(ratings, level) == pytest.approx(alpha, abs=0.0005)


@pytest.mark.parametrize(
    "ratings", [[], [[]], [[1, 2, 3]], [[1, 1], [1, 1]], [[1, None], [None, 2]], [[1, 1, 2], [1, 1, None]]]
)
def test_agreement_without_variation_is_undefined(ratings):
    assert krippendorff_alpha(ratings, "nominal") is None


def test_agreement_needs_a_level_that_fits():
    with pytest.raises(SafetyError, match="nominal, ordinal or interval"):
        krippendorff_alpha([[1], [2]], "ratio")
    with pytest.raises(SafetyError, match="'rude'"):
        krippendorff_alpha([[1, "rude"], [1, 2]], "ordinal")
    with pytest.raises(ValueError, match="None stands for no rating"):
        krippendorff_alpha([[1, 2], [1]], "nominal")


# survival


def wilson(p, n):
    centre, half = (p + Z2 / 2 / n) / (1 + Z2 / n), math.sqrt(Z2 * (p * (1 - p) / n + Z2 / 4 / n**2)) / (1 + Z2 / n)
    return pytest.approx((centre - half, centre + half), abs=1e-9)


def test_survival_by_hand():
    # Six conversations: failures at 1, 2 and 3, one left after 1, two observed to 3. S: 5/6; of 4 at risk one fails,
    # 5/6 · 3/4 = 5/8; of 3 one, 5/8 · 2/3 = 5/12. Greenwood: 1/(6·5), + 1/(4·3), + 1/(3·2); n = (1-S) / (S · sum).
    points = survival([1, None, 2, 3, None, None], [1, 1, 2, 3, 3, 3], turns=4)
    assert points == [
        SurvivalPoint(1, pytest.approx(5 / 6), wilson(5 / 6, (1 / 6) / (5 / 6 / 30)), 6),
        SurvivalPoint(2, pytest.approx(5 / 8), wilson(5 / 8, (3 / 8) / (5 / 8 * (1 / 30 + 1 / 12))), 4),
        SurvivalPoint(3, pytest.approx(5 / 12), wilson(5 / 12, (7 / 12) / (5 / 12 * (1 / 30 + 1 / 12 + 1 / 6))), 3),
        SurvivalPoint(4, None, None, 0),
    ]


@given(st.lists(st.none() | st.integers(1, 5), min_size=1, max_size=30))
@settings(deadline=None)
def test_survival_without_censoring_is_the_rate_of_those_alive(failed_at):
    points = survival(failed_at, [5] * len(failed_at), turns=5)
    for point in points:
        alive = rate([failure is None or failure > point.turn for failure in failed_at])
        assert point.alive == pytest.approx(alive.value, abs=1e-12)
        assert point.interval == pytest.approx(alive.interval, abs=1e-9)


def test_survival_before_the_first_failure_knows_how_few_are_left():
    points = survival([None, None, None, 3], [1, 1, 3, 3], turns=3)
    assert [(point.alive, point.at_risk) for point in points] == [(1, 4), (1, 2), (0.5, 2)]
    assert points[1].interval == wilson(1, 2)


def test_failures_after_the_last_turn_count_as_survived():
    assert survival([4, None], [4, 9], turns=2)[1].alive == 1


def test_survival_of_nobody():
    assert survival([], [], turns=1) == [SurvivalPoint(1, None, None, 0)]
    assert survival([None], [0], turns=1) == [SurvivalPoint(1, None, None, 0)]


@pytest.mark.parametrize(("failure", "end"), [(0, 3), (4, 3), (None, -1)])
def test_impossible_turns(failure, end):
    with pytest.raises(ValueError, match="conversation 0"):
        survival([failure], [end], turns=3)


# the module


def test_the_evaluation_room_offers_the_same_objects():
    for name in evaluation_statistics.__all__:
        assert getattr(evaluation_statistics, name) is getattr(statistics, name)
    public = {
        name
        for name, value in vars(statistics).items()
        if getattr(value, "__module__", None) == statistics.__name__ and not name.startswith("_")
    }
    assert public == set(evaluation_statistics.__all__)


def test_importing_the_module_is_light():
    heavy = "import sys, parlai_safety.statistics; print([m for m in sys.modules if m.split('.')[0] in HEAVY])"
    code = heavy.replace("HEAVY", "('scipy', 'statsmodels', 'krippendorff', 'pandas', 'torch', 'parlai')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
