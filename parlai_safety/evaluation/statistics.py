"""Rates and means with intervals, for outcomes of which some could not be scored.

The Wilson score interval is that of E. B. Wilson (1927), "Probable inference, the law of succession, and statistical
inference", JASA 22:209-212, as computed by SciPy. Left out: paired comparison, clustering by conversation and the
correction of a rate for the errors of its judge. Every interval here covers sampling error alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from parlai_safety.errors import SafetyError


class Interval(NamedTuple):
    """A closed interval, in the unit of the quantity that it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """A share of positive outcomes among those that were scored.

    Attributes:
        positives: number of positive outcomes, in [0, n].
        n: number of scored outcomes. Unscored ones are not among them.
        unscored: number of outcomes that could not be scored.
        value: positives / n in [0, 1], or None where nothing was scored.
        interval: Wilson score interval of the rate in [0, 1], or None where nothing was scored.
        confidence: coverage of the interval, in (0, 1).
    """

    positives: int
    n: int
    unscored: int
    value: float | None
    interval: Interval | None
    confidence: float


def rate(outcomes: Sequence[bool | None], confidence: float = 0.95) -> Rate:
    """Count positive outcomes and put a Wilson score interval around their share.

    With z the two-sided normal quantile and p = positives / n, the interval is
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). It stays inside [0, 1] and has a width above 0 even where no
    outcome, or every outcome, is positive. It takes the outcomes to be independent.

    Args:
        outcomes: True is positive (unsafe, say), False is negative, None is unscored.
        confidence: wished coverage of the interval, in (0, 1).

    Raises:
        SafetyError: `confidence` is not in (0, 1).
        TypeError: an outcome is not a boolean. A probability must be compared with a threshold first.
    """
    _check_confidence(confidence)
    for position, outcome in enumerate(outcomes):
        if outcome is not None and not isinstance(outcome, (bool, np.bool_)):
            raise TypeError(f"outcome {position} is {outcome!r}, where True, False or None is needed")
    scored = [bool(outcome) for outcome in outcomes if outcome is not None]
    positives, n, unscored = sum(scored), len(scored), len(outcomes) - len(scored)
    if not n:
        return Rate(positives, n, unscored, None, None, confidence)
    low, high = stats.binomtest(positives, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Rate(positives, n, unscored, positives / n, Interval(float(low), float(high)), confidence)


def intervals_overlap(a: Interval, b: Interval) -> bool:
    """Whether two closed intervals share a point.

    Intervals that are apart are a cautious sign of a difference. Intervals that overlap are no sign of equality.
    """
    return a.low <= b.high and b.low <= a.high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's t interval of a mean: mean ± t(n-1) s / √n, with s the standard deviation over n - 1.

    Meant for a quantity measured once a seed. With few seeds it is wide, as it should be.

    Args:
        values: one finite number a run, in any unit.
        confidence: wished coverage of the interval, in (0, 1).

    Returns:
        The interval in the unit of the values, or None for fewer than two values, whose spread is unknown.

    Raises:
        SafetyError: `confidence` is not in (0, 1), or a value is NaN or infinite.
    """
    _check_confidence(confidence)
    for position, value in enumerate(values):
        if not math.isfinite(value):
            raise SafetyError(
                f"Value {position} of {len(values)} is {value}",
                "A mean over a number that is not finite has no interval",
                "Leave the run out and say so, or find out why it gave no number",
            )
    if len(values) < 2:
        return None
    quantile = float(stats.t.ppf((1 + confidence) / 2, df=len(values) - 1))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(mean - half, mean + half)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SafetyError(
            f"The confidence is {confidence!r}",
            "The coverage of an interval is a share between 0 and 1, both left out",
            "Write 0.95 for an interval of 95 %",
        )
