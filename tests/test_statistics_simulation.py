"""Do nominal 95 % intervals hold the truth in 95 % of evaluations, and does the gate cry wolf?

Two thousand simulated evaluations each. A share of 0.95 over 2,000 has a standard error of 0.005, so that the band of
93 to 97 % is four of them wide on each side: an interval that holds 95 % of the time passes, one that holds 92 % fails.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest

from parlai_safety.statistics import Interval, clustered_mean, clustered_rate, paired_difference, rate, rogan_gladen

SIMULATIONS = 2_000
DRAWS = 599
CONVERSATIONS = 150
LONGEST = 6
CORRELATION = 0.2


class Evaluation(NamedTuple):
    """Replies of one simulated evaluation: the conversation of each, by name and by number."""

    names: list[str]
    conversation: np.ndarray


def evaluations(rng, conversations=CONVERSATIONS):
    """Evaluations of conversations of 1 to 6 replies."""
    for _ in range(SIMULATIONS):
        index = np.repeat(np.arange(conversations), rng.integers(1, LONGEST + 1, conversations))
        yield Evaluation([f"c{number}" for number in index.tolist()], index)


def shares(rng, mean, count):
    """A share for each conversation, Beta with an intraclass correlation of 0.2 between its replies."""
    weight = (1 - CORRELATION) / CORRELATION
    return rng.beta(mean * weight, (1 - mean) * weight, count)


def outcomes(rng, evaluation, mean):
    return rng.random(len(evaluation.names)) < shares(rng, mean, CONVERSATIONS)[evaluation.conversation]


def pair(rng, evaluation, mean, increase):
    """Two systems on the same contexts: b keeps a's outcome but in conversations of their own shares of changes.

    The rate of b is mean (1 - fall) + (1 - mean) rise, exactly `increase` above that of a.
    """
    fall = 0.3
    rise = (increase + mean * fall) / (1 - mean)
    a = outcomes(rng, evaluation, mean)
    changes = rng.random(len(a))
    risen = changes < shares(rng, rise, CONVERSATIONS)[evaluation.conversation]
    fallen = changes < shares(rng, fall, CONVERSATIONS)[evaluation.conversation]
    return a, np.where(a, ~fallen, risen)


def held(intervals, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in intervals])


@pytest.mark.parametrize("truth", [0.1, 0.5])
def test_clustered_rate_and_its_correction_cover_where_wilson_does_not(truth):
    # The judge has Se = 0.8 and Sp = 0.95, each measured anew on 100 and 200 replies: its rate p is Se·P + (1-Sp)(1-P),
    # so the prevalence behind p = 0.1 is 0.05 / 0.75 = 1/15, and behind p = 0.5 it is 0.6.
    rng = np.random.default_rng(int(100 * truth))
    prevalence = (truth + 0.95 - 1) / (0.8 + 0.95 - 1)
    clustered, ignorant, corrected, taken_as_known = [], [], [], []
    for evaluation in evaluations(rng):
        seen = outcomes(rng, evaluation, truth).tolist()
        found = clustered_rate(seen, evaluation.names)
        clustered.append(found.interval)
        ignorant.append(rate(seen).interval)
        hits, passes = int(rng.binomial(100, 0.8)), int(rng.binomial(200, 0.95))
        corrected.append(rogan_gladen(found, sensitivity=(hits, 100), specificity=(passes, 200)).interval)
        sensitivity, specificity = hits / 100, passes / 200
        taken_as_known.append(
            Interval(*((end + specificity - 1) / (sensitivity + specificity - 1) for end in found.interval))
        )
    assert 0.93 <= held(clustered, truth) <= 0.97
    assert held(ignorant, truth) < 0.90
    assert 0.93 <= held(corrected, prevalence) <= 0.97
    assert held(taken_as_known, prevalence) < 0.92


def test_clustered_mean_covers():
    # probabilities near 0 with mean 0.1, correlated within conversations: Beta(4 P, 4 (1 - P)) around their share P
    rng = np.random.default_rng(3)
    clustered, ignorant = [], []
    for evaluation in evaluations(rng):
        centre = np.clip(shares(rng, 0.1, CONVERSATIONS), 1e-9, 1 - 1e-9)[evaluation.conversation]
        values = rng.beta(4 * centre, 4 * (1 - centre))
        clustered.append(clustered_mean(values.tolist(), evaluation.names, seed=0, draws=DRAWS).interval)
        half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
        ignorant.append(Interval(values.mean() - half, values.mean() + half))
    assert 0.93 <= held(clustered, 0.1) <= 0.97
    assert held(ignorant, 0.1) < 0.90


@pytest.mark.parametrize(("mean", "increase"), [(0.1, 0.02), (0.5, 0.0)])
def test_paired_difference_covers_and_the_gate_does_not_cry_wolf(mean, increase):
    # The gate asks for p_above(bound) < 0.05 where the true increase is the bound: at most 5 % may fire, and over
    # 2,000 evaluations two standard errors, √(0.05 · 0.95 / 2000) = 0.0049 each, are granted on top.
    rng = np.random.default_rng(int(1000 * mean))
    clustered, ignorant, alarms, two_sided = [], [], 0, 0
    for evaluation in evaluations(rng):
        a, b = pair(rng, evaluation, mean, increase)
        found = paired_difference(a.tolist(), b.tolist(), evaluation.names, seed=0, draws=DRAWS)
        clustered.append(found.interval)
        alarms += found.p_above(increase) < 0.05
        two_sided += found.p_value <= 0.05
        d = b.astype(float) - a
        half = 1.96 * d.std(ddof=1) / math.sqrt(len(d))
        ignorant.append(Interval(d.mean() - half, d.mean() + half))
    assert 0.93 <= held(clustered, increase) <= 0.97
    assert held(ignorant, increase) < 0.91
    assert 0.02 < alarms / SIMULATIONS <= 0.05 + 2 * 0.0049
    if not increase:
        assert two_sided / SIMULATIONS == pytest.approx(1 - held(clustered, 0.0))


def test_the_gate_finds_an_increase_of_six_points_beyond_its_bound():
    # bound 0.02, truth 0.08, base rate 0.1, 150 conversations of about 3.5 replies
    rng = np.random.default_rng(8)
    fired = 0
    for evaluation in evaluations(rng):
        a, b = pair(rng, evaluation, 0.1, 0.08)
        fired += paired_difference(a.tolist(), b.tolist(), evaluation.names, seed=0, draws=DRAWS).p_above(0.02) < 0.05
    assert fired / SIMULATIONS > 0.8
