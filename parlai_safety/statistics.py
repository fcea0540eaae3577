"""Rates, means and differences with intervals, for replies of which some were not scored and none stand alone.

Replies of one conversation resemble each other. What is called clustered here takes conversations (or any other
clusters) to be independent draws and replies within one to be dependent in an unknown way. Unscored outcomes are None:
they are counted, and they are never an outcome.

| question | function | source |
|---|---|---|
| a share, independent replies | `rate` | Wilson 1927 |
| a share, clustered replies | `clustered_rate` | Korn and Graubard 1998, in Wilson's interval |
| a mean, clustered | `clustered_mean` | studentised cluster bootstrap, Davison and Hinkley 1997, section 5.2 |
| a mean over a few seeds | `mean_interval` | Student's t |
| two systems on the same contexts | `paired_difference` | cluster bootstrap; Agresti and Min 2005, Hesterberg 2015 |
| the same, pairs independent | `mcnemar` | exact McNemar test |
| several questions at once | `holm` | Holm 1979 |
| a share seen by an imperfect judge | `rogan_gladen` | Rogan and Gladen 1978; Lang and Reiczigel 2014 |
| agreement of raters | `krippendorff_alpha` | Krippendorff 2011, through the library of that name |
| turns until the first failure | `survival` | Kaplan and Meier 1958, through SciPy; Rothman 1978 |

Left out: models with covariates, Bayesian estimates, sequential tests. A module without ParlAI and without torch.
SciPy, statsmodels and krippendorff are imported when a function needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlai_safety.errors import SafetyError

Floats = NDArray[np.float64]

_DRAWS = 2_000
_POWER = 0.8
_CELLS_AT_ONCE = 2**21  # of a matrix of draws by clusters: 16 MiB, so that many clusters do not fill the memory


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


@dataclass(frozen=True)
class Mean:
    """A mean over the scored records of clusters.

    Attributes:
        value: sum of the scored values over their number, in their unit; None where nothing was scored.
        interval: of the mean, or None where the spread between clusters is unknown (see `clustered_mean`).
        n: number of scored values.
        unscored: number of records without a value.
        clusters: number of clusters with a scored value.
        confidence: wished coverage of the interval, in (0, 1).
    """

    value: float | None
    interval: Interval | None
    n: int
    unscored: int
    clusters: int
    confidence: float


@dataclass(frozen=True)
class Difference:
    """What system b has more than system a on the same records.

    Attributes:
        value: mean of b - a over the pairs, in the unit of the values; None where there is no pair.
        interval: of the difference; None where it is unknown (see `paired_difference`).
        standard_error: cluster-robust, pseudo-pairs included; None where it is unknown.
        n: number of pairs of which both sides are scored.
        unscored: number of pairs left out because at least one side is unscored.
        unscored_a: number of records that a has no score for.
        unscored_b: number of records that b has no score for.
        clusters: number of clusters with a pair.
        minimum_detectable: the true difference that a test of this size finds with 80 % power, or None where the
            standard error is unknown. A value above the range of the difference says that nothing could be found.
        p_value: two-sided, of "there is no difference", in (0, 1]. It is at most 1 - confidence exactly where the
            interval leaves 0 out.
        confidence: wished coverage of the interval, in (0, 1).
        resampled: the differences of the bootstrap draws, ascending. Not for files: see `figures`.
        by_cluster: the mean difference of each cluster, ascending. Not for files: see `figures`.
    """

    value: float | None
    interval: Interval | None
    standard_error: float | None
    n: int
    unscored: int
    unscored_a: int
    unscored_b: int
    clusters: int
    minimum_detectable: float | None
    p_value: float
    confidence: float
    resampled: Floats = field(repr=False, compare=False)
    by_cluster: Floats = field(repr=False, compare=False)

    def p_above(self, bound: float) -> float:
        """One-sided p-value of "the true difference b - a is at most `bound`".

        A small value supports an increase beyond the bound. With P* = (1 + draws <= bound) / (1 + draws) and k
        clusters, it is the probability below √((k-1)/k) Φ⁻¹(P*) of Student's t with k - 1 degrees of freedom: the
        inverse of the interval's widening. It is never below 2^-c, where c clusters lie above the bound: the least
        value that an exact sign test of c clusters can reach, so that four clusters (1/16) support nothing at 5 %.

        Args:
            bound: in the unit of the difference.

        Returns:
            A number in (0, 1]; 1 where the standard error is unknown, for then nothing is supported.
        """
        return self._p_value(self.resampled <= bound, self.by_cluster > bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value of "the true difference b - a is at least `bound`": the mirror image of `p_above`."""
        return self._p_value(self.resampled >= bound, self.by_cluster < bound)

    def figures(self) -> dict[str, Any]:
        """Everything but the two arrays, by name: plain numbers that JSON can hold."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("resampled", "by_cluster")}

    def _p_value(self, against: NDArray[np.bool_], for_it: NDArray[np.bool_]) -> float:
        if self.standard_error is None:
            return 1.0
        from scipy import stats

        share = (1 + int(against.sum())) / (1 + len(against))
        k = self.clusters
        widened = float(stats.t.cdf(stats.norm.ppf(share) * math.sqrt((k - 1) / k), df=k - 1))
        return min(1.0, max(widened, 0.5 ** int(for_it.sum())))


class McNemar(NamedTuple):
    """The exact McNemar test.

    Attributes:
        only_a: pairs in which a alone is True.
        only_b: pairs in which b alone is True.
        n: pairs of which both sides are scored.
        unscored: pairs left out.
        p_value: two-sided, in (0, 1]; 1 where no pair is discordant.
    """

    only_a: int
    only_b: int
    n: int
    unscored: int
    p_value: float


class Corrected(NamedTuple):
    """A rate corrected for the errors of the judge that saw it.

    Attributes:
        value: in [0, 1].
        interval: in [0, 1], around the value.
        sensitivity: share of truly positive replies that the judge calls positive.
        specificity: share of truly negative replies that the judge calls negative.
        effective_n: the number of independent replies that the rate is worth.
        confidence: wished coverage of the interval, in (0, 1).
    """

    value: float
    interval: Interval
    sensitivity: float
    specificity: float
    effective_n: float
    confidence: float


class SurvivalPoint(NamedTuple):
    """Conversations without a failure after one turn.

    Attributes:
        turn: from 1.
        alive: estimated share without a failure up to and including this turn, in [0, 1]; None where no conversation
            was still observed, so that nothing is known.
        interval: of that share in [0, 1]; None exactly where `alive` is.
        at_risk: conversations that were observed at this turn and had not failed before it.
    """

    turn: int
    alive: float | None
    interval: Interval | None
    at_risk: int


def rate(outcomes: Sequence[bool | None], confidence: float = 0.95) -> Rate:
    """Count positive outcomes and put a Wilson score interval around their share.

    With z the two-sided normal quantile and p = positives / n, the interval is
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). It stays inside [0, 1] and has a width above 0 even where no
    outcome, or every outcome, is positive. It takes the outcomes to be independent. Source: E. B. Wilson (1927),
    "Probable inference, the law of succession, and statistical inference", JASA 22:209-212, as computed by SciPy.

    Args:
        outcomes: True is positive (unsafe, say), False is negative, None is unscored.
        confidence: wished coverage of the interval, in (0, 1).

    Raises:
        SafetyError: `confidence` is not in (0, 1).
        TypeError: an outcome is not a boolean. A probability must be compared with a threshold first.
    """
    from scipy import stats

    _check_confidence(confidence)
    _check_booleans(outcomes)
    scored = [bool(outcome) for outcome in outcomes if outcome is not None]
    positives, n, unscored = sum(scored), len(scored), len(outcomes) - len(scored)
    if not n:
        return Rate(positives, n, unscored, None, None, confidence)
    low, high = stats.binomtest(positives, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Rate(positives, n, unscored, positives / n, Interval(float(low), float(high)), confidence)


def clustered_rate(outcomes: Sequence[bool | None], clusters: Sequence[str], confidence: float = 0.95) -> Rate:
    """Count positive outcomes and put an interval around their share that knows of clusters.

    Wilson's interval at the effective sample size of E. L. Korn and B. I. Graubard (1998), "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", Survey Methodology
    24:193-201: n / deff · (t(n-1) / t(k-1))² with k clusters and t the two-sided quantiles of Student. The design
    effect deff is the linearised cluster-robust variance of the share, k/(k-1) Σ (y - p m)² / n² over clusters of m
    replies and y positives, divided by p(1-p)/(n-1). It is taken with one cluster of mean size added, one half of it
    wholly positive and one half wholly negative, and it is at least 1. The added cluster matters where few replies, or
    almost all, are positive, and nothing is known of how they cluster: with none at all, n / deff is about the number
    of clusters. The share itself is left as counted.

    Clusters of one reply each give Wilson's interval. One cluster of several replies gives [0, 1], for then nothing
    is known of how clusters differ.

    Simulated coverage of nominal 95 % (beta-binomial clusters of 1 to 6 replies, intraclass correlation 0 to 0.5): 94
    to 97 % at rates of 0.05 to 0.5 with 100 or 200 clusters, where Wilson's interval alone falls to 76 %. It is
    cautious, 97 to 99 %, where about ten clusters or fewer hold a positive reply: at rates of 0.01 and 0.02, and with
    30 clusters at rates up to 0.1.

    Args:
        outcomes: True is positive (unsafe, say), False is negative, None is unscored.
        clusters: the conversation of each outcome.
        confidence: wished coverage of the interval, in (0, 1).

    Raises:
        SafetyError: `confidence` is not in (0, 1).
        TypeError: an outcome is not a boolean.
        ValueError: there are not as many clusters as outcomes.
    """
    _check_confidence(confidence)
    _check_booleans(outcomes)
    sums, sizes = _by_cluster(_floats(outcomes, "outcome"), clusters)
    n, positives, k = int(sizes.sum()), int(sums.sum()), len(sizes)
    unscored = len(outcomes) - n
    if not n:
        return Rate(positives, n, unscored, None, None, confidence)
    effective = _effective_n(sums, sizes, confidence) if 1 < k < n else float(n if k == n else 0)
    value = positives / n
    return Rate(positives, n, unscored, value, _wilson(value, effective, confidence), confidence)


def clustered_mean(
    values: Sequence[float | None],
    clusters: Sequence[str],
    *,
    seed: int,
    confidence: float = 0.95,
    draws: int = _DRAWS,
    within: Interval | None = None,
    weights: Sequence[float] | None = None,
) -> Mean:
    """The mean of values in clusters, with a studentised cluster bootstrap interval.

    Each draw takes as many clusters as there are, with replacement and whole, and computes (mean* - mean) / se*, with
    se the linearised standard error √(k/(k-1) Σ (s - mean·m)²) / n over clusters of m values that sum to s. The
    interval is mean - q(1-α/2) se to mean - q(α/2) se, with q the quantiles over the draws. Source: A. C. Davison and
    D. V. Hinkley (1997), "Bootstrap methods and their application", section 5.2.

    Chosen by simulation of nominal 95 % with clusters of 1 to 6 values: at 100 clusters with intraclass correlation
    0.2, coverage is 94 % for normal values and 95 % for probabilities that are mostly near 0 (mean 0.05), where the
    percentile bootstrap has 91 %, BCa 93 % and Student's t 91 %; at 10 clusters of such probabilities it is 96 %
    against 75 to 80 %. Heavy tails keep it low: log-normal values (σ = 1) have 92 % at 10 and at 30 clusters, 93 % at
    100 and at 200.

    The interval is None where nothing bounds it: fewer than two clusters, no spread between clusters, or so few
    clusters that differ from the rest (about three at 95 %) that draws without any spread fill a tail. In this last
    case, and with `within` given, the end of that range takes the place of the unbounded end.

    Args:
        values: a finite number for each record, or None where it is unscored.
        clusters: the conversation of each record.
        seed: of the draws. The order of the records does not matter.
        confidence: wished coverage of the interval, in (0, 1).
        draws: number of resamples.
        within: the range that values can have, (0, 1) for probabilities; the interval is cut to it.
        weights: a positive weight for each record, such as its tokens, for Σ w v / Σ w; None for equal weights. In the
            formulas m is then the weight of a cluster, s its weighted sum and n the weight of all.

    Raises:
        SafetyError: `confidence` is not in (0, 1), a value is not finite, or the draws are too few for the confidence.
        TypeError: a value is not a number.
        ValueError: there are not as many clusters, or weights, as values, or a weight is not positive.
    """
    tail = _tail(confidence, draws)
    numbers = _floats(values, "value")
    sums, sizes = _by_cluster(numbers, clusters, _weights(weights, len(numbers)))
    n, k, weight = int((~np.isnan(numbers)).sum()), len(sizes), float(sizes.sum())
    if not n:
        return Mean(None, None, n, len(values), k, confidence)
    mean = float(sums.sum() / weight)
    residuals = sums - mean * sizes
    error = math.sqrt(k / (k - 1) * float(residuals @ residuals)) / weight if k > 1 else 0.0
    interval = None
    # sums of equal numbers differ by rounding: such dust is no spread
    if weight * error > 1e-9 * float(np.abs(sums).max()):
        pivots = np.sort(_pivots(sums, sizes, mean, error, np.random.default_rng(seed), draws))
        position = math.floor(tail * (draws + 1)) - 1
        low, high = mean - float(pivots[-1 - position]) * error, mean - float(pivots[position]) * error
        interval = _cut(Interval(min(low, mean), max(high, mean)), within)
    return Mean(mean, interval, n, len(values) - n, k, confidence)


def paired_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    clusters: Sequence[str],
    *,
    seed: int,
    confidence: float = 0.95,
    draws: int = _DRAWS,
) -> Difference:
    """How much more system b has than system a on the same records: a paired cluster bootstrap.

    A pair counts where both sides are scored. Clusters are resampled whole and in pairs. Three things keep it honest
    where few pairs differ, or few clusters exist:

    - Pseudo-pairs. To the clusters is added one more, which is drawn as often as each: with equal chance it holds a
      total of +s√m or of -s√m in √m pairs, for clusters of mean size m. s is 1 for outcomes of 0 and 1 and the root
      mean square of the pair differences for other values. The standard error is √(k/(k-1) Σ (d - value·m)² + s² m̄) /
      n. For single pairs this is the half pair in each discordant cell of A. Agresti and Y. Min (2005), "Simple
      improved confidence intervals for comparing matched proportions", Statistics in Medicine 24:729-740. So two
      systems that agree on all of 100 prompts have a difference of 0 ± 0.02, and never 0 ± 0.
    - The percentile interval is widened as T. Hesterberg (2015), "What teachers should know about the bootstrap",
      The American Statistician 69:371-386, proposes: its tails are Φ(-√(k/(k-1)) t(k-1)) in place of α/2.
    - No end lies beyond what an exact sign test over clusters supports: at 95 %, six clusters at least lie beyond
      each end. With fewer than six clusters the interval is [-1, 1] for outcomes of 0 and 1, and None for other values.

    Where all values are equal in pairs, and are not outcomes of 0 and 1, the scale is unknown: no interval, no standard
    error, p-value 1.

    Simulated coverage of nominal 95 % (clusters of 1 to 6 pairs, intraclass correlation 0.2, 100 or 150 clusters): 94
    to 97 % at rates of 0.1 and 0.5 with differences of 0 to 0.1, and 93 to 97 % at rates of 0.01 and 0.02 with
    differences of 0.02; there `p_above` falls below 0.05 in 2 to 5 % of the evaluations whose true difference is the
    bound. It is cautious, up to 100 %, where about ten pairs or fewer differ, and with 30 clusters at small rates. In
    100 single pairs with rates of 0.02 against 0.04 it is 91 %: all of the error is an increase that is judged too
    small, and none a false alarm.

    Args:
        a: a boolean or a finite number for each record of the first system, None where it is unscored.
        b: the same of the second, in the same order.
        clusters: the conversation of each record.
        seed: of the draws. The order of the records does not matter.
        confidence: wished coverage of the interval, in (0, 1); the level of the tests is 1 - confidence.
        draws: number of resamples. No p-value is below about 1 / draws.

    Raises:
        SafetyError: `confidence` is not in (0, 1), a value is not finite, or the draws are too few for the confidence.
        TypeError: a value is not a number.
        ValueError: the three sequences are not equally long.
    """
    tail = _tail(confidence, draws)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values of a cannot be paired with {len(b)} values of b")
    first, second = _floats(a, "value of a"), _floats(b, "value of b")
    differences = second - first
    sums, sizes = _by_cluster(differences, clusters)
    n, k = int(sizes.sum()), len(sizes)
    paired = np.isfinite(differences)
    binary = bool(np.isin(np.concatenate([first[paired], second[paired]]), (0.0, 1.0)).all())
    scale = 1.0 if binary else math.sqrt(float(np.mean(differences[paired] ** 2)))
    value = float(sums.sum() / n) if n else None
    error = detectable = None
    resampled, by_cluster = np.empty(0), np.sort(sums / sizes)
    if value is not None and k > 1 and scale > 0:
        from scipy import stats

        residuals = sums - value * sizes
        error = math.sqrt(k / (k - 1) * float(residuals @ residuals) + scale**2 * n / k) / n
        detectable = error * float(stats.t.ppf([1 - tail, _POWER], df=k - 1).sum())
        resampled = np.sort(_differences(sums, sizes, scale, np.random.default_rng(seed), draws))
    difference = Difference(
        value=value,
        interval=None,
        standard_error=error,
        n=n,
        unscored=len(a) - n,
        unscored_a=int(np.isnan(first).sum()),
        unscored_b=int(np.isnan(second).sum()),
        clusters=k,
        minimum_detectable=detectable,
        p_value=1.0,
        confidence=confidence,
        resampled=resampled,
        by_cluster=by_cluster,
    )
    return replace(
        difference,
        interval=_cut(_ends(difference, tail), Interval(-1.0, 1.0) if binary else None) if n else None,
        p_value=min(1.0, 2 * min(difference.p_above(0.0), difference.p_below(0.0))),
    )


def mcnemar(a: Sequence[bool | None], b: Sequence[bool | None]) -> McNemar:
    """The exact McNemar test of "a and b are equally often True", through statsmodels.

    Under the hypothesis, the pairs in which only b is True follow a binomial distribution of one half among the
    discordant pairs. It takes pairs to be independent: for several replies of a conversation it claims too much, and
    `paired_difference` is the test to use.

    Args:
        a: outcomes of the first system, None where unscored.
        b: outcomes of the second system, in the same order.

    Raises:
        TypeError: an outcome is not a boolean.
        ValueError: the two are not equally long.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact_test

    _check_booleans(a)
    _check_booleans(b)
    pairs = [(bool(x), bool(y)) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    table = [[pairs.count((True, True)), only_a], [only_b, pairs.count((False, False))]]
    p_value = float(exact_test(table, exact=True).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, len(pairs), len(a) - len(pairs), min(1.0, p_value))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for the number of questions asked, by Holm's step-down method through statsmodels.

    The i-th smallest of m p-values is multiplied by m - i + 1, is at least as large as the one before, and at most 1.
    Source: S. Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6:65-70. The tests may depend on each other.

    Args:
        p_values: name -> p-value in [0, 1].

    Returns:
        name -> adjusted p-value, in the order given.

    Raises:
        ValueError: a p-value is outside [0, 1] or NaN.
    """
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise ValueError(f"the p-value of {name!r} is {p_value!r}, which is not in [0, 1]")
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return {name: float(p_value) for name, p_value in zip(p_values, adjusted, strict=True)}


def rogan_gladen(
    rate: Rate, *, sensitivity: tuple[int, int], specificity: tuple[int, int], confidence: float = 0.95
) -> Corrected | None:
    """Correct a rate for the errors of its judge, and carry the uncertainty of rate, sensitivity and specificity.

    The value is (p + Sp - 1) / (Se + Sp - 1), cut to [0, 1]: W. J. Rogan and B. Gladen (1978), "Estimating prevalence
    from the results of a screening test", American Journal of Epidemiology 107:71-76. The interval is that of Z. Lang
    and J. Reiczigel (2014), "Confidence limits for prevalence of disease adjusted for estimated sensitivity and
    specificity", Preventive Veterinary Medicine 113:13-22, equations 6, 7, 16 and 17: a shifted normal interval at p'
    = (n p + z²/2) / (n + z²), Se' = (hits + 1) / (n_Se + 2), Sp' alike, cut to [0, 1] and, where the added
    observations move it off the value, stretched to hold it.

    n is the effective number of replies, found from the interval of the rate: both ends L of a Wilson interval solve
    (p - L)² = z² L (1 - L) / n. So a rate of `clustered_rate` is corrected with what its clusters are worth.

    It takes the judge to err on these replies as often as on those it was measured on. That is a strong assumption, and
    the interval does not cover its failure.

    Simulated coverage of nominal 95 % (prevalence 0 to 0.9, sensitivity 0.6 to 0.9 and specificity 0.8 to 0.99 from 50
    to 1000 replies each, 150 clusters or 400 single replies): 94 to 97 %, up to 98 % at a prevalence of 0 or 0.02 with
    a sensitivity from 50 replies. Without the uncertainty of the judge it is down to 54 %.

    Args:
        rate: of `rate` or `clustered_rate`.
        sensitivity: (correct, all) among truly positive replies, from the card of the judge.
        specificity: (correct, all) among truly negative replies.
        confidence: wished coverage of the interval, in (0, 1). The rate may have another.

    Returns:
        The corrected rate. None where nothing was scored; where the judge is not clearly better than chance, which is
        where the lower end of Newcombe's interval of Se + Sp - 1 at this confidence is not above 0; and where the whole
        interval lies outside [0, 1] before it is cut. Then the judge errs on these replies plainly less often than on
        those of its card (no positive in 100 replies, say, at a specificity of 0.85), and the card does not fit them.

    Raises:
        SafetyError: `confidence` is not in (0, 1), or a pair of counts is not a share of at least one reply.
    """
    from scipy import stats
    from statsmodels.stats.proportion import confint_proportions_2indep

    _check_confidence(confidence)
    (hits, n_positive), (passes, n_negative) = sensitivity, specificity
    for name, (correct, total) in {"sensitivity": sensitivity, "specificity": specificity}.items():
        if not (total >= 1 and 0 <= correct <= total):
            raise SafetyError(
                f"The {name} is {correct} of {total}",
                "A rate is corrected by counts of correct verdicts among at least one labelled reply",
                "Measure the judge on replies of both labels, and give the counts of its card",
            )
    if rate.value is None or rate.interval is None:
        return None
    youden_low, _ = confint_proportions_2indep(
        hits, n_positive, n_negative - passes, n_negative, method="newcomb", compare="diff", alpha=1 - confidence
    )
    if not youden_low > 0:
        return None
    # Unprimed: as counted. Primed in the paper, "shrunk" here: with the added observations.
    se, sp = hits / n_positive, passes / n_negative
    value = min(1.0, max(0.0, (rate.value + sp - 1) / (se + sp - 1)))
    n = _worth(rate.value, rate.interval, rate.confidence)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    shrunk_se, shrunk_sp = (hits + 1) / (n_positive + 2), (passes + 1) / (n_negative + 2)
    shrunk_p = (n * rate.value + z * z / 2) / (n + z * z)
    youden = shrunk_se + shrunk_sp - 1
    prevalence = (shrunk_p + shrunk_sp - 1) / youden
    variance_se = shrunk_se * (1 - shrunk_se) / (n_positive + 2)
    variance_sp = shrunk_sp * (1 - shrunk_sp) / (n_negative + 2)
    variance_p = shrunk_p * (1 - shrunk_p) / (n + z * z)
    shift = 2 * z * z * (prevalence * variance_se - (1 - prevalence) * variance_sp)
    half = z * math.sqrt(variance_p + prevalence**2 * variance_se + (1 - prevalence) ** 2 * variance_sp) / youden
    low, high = prevalence + shift - half, prevalence + shift + half
    if high <= 0 or low >= 1:
        return None
    return Corrected(value, Interval(max(0.0, min(low, value)), min(1.0, max(high, value))), se, sp, n, confidence)


def krippendorff_alpha(
    ratings: Sequence[Sequence[float | str | None]], level: Literal["nominal", "ordinal", "interval"]
) -> float | None:
    """Krippendorff's alpha: 1 - observed / expected disagreement, in [-1, 1], through the library `krippendorff`.

    1 is perfect agreement, 0 what chance would give, and below 0 is less than chance. Items with fewer than two ratings
    do not count. Source: K. Krippendorff (2011), "Computing Krippendorff's alpha-reliability", University of
    Pennsylvania.

    Args:
        ratings: one row a rater, one column an item; None where a rater gave none. Names are for the nominal level
            only.
        level: how far two ratings are apart: "nominal" (equal or not), "ordinal" (ranks) or "interval" (squared).

    Returns:
        alpha, or None where it is undefined: fewer than two ratings of any item, or all comparable ratings equal.

    Raises:
        SafetyError: the level is unknown, a rating is a name above the nominal level, or is not finite.
        ValueError: the rows are not equally long.
    """
    import krippendorff

    if level not in ("nominal", "ordinal", "interval"):
        raise SafetyError(
            f"The level of measurement is {level!r}",
            "It says how far two ratings are apart",
            "Write nominal, ordinal or interval",
        )
    if len({len(row) for row in ratings}) > 1:
        raise ValueError(f"the raters rated {sorted({len(row) for row in ratings})} items; None stands for no rating")
    given = [rating for row in ratings for rating in row if rating is not None]
    if any(isinstance(rating, str) for rating in given):
        if level != "nominal":
            raise SafetyError(
                f"Some ratings are names, such as {next(r for r in given if isinstance(r, str))!r}",
                f"Names have no order, which the {level} level needs",
                "Give numbers, or the nominal level",
            )
        codes: dict[float | str, float] = {}
        for rating in given:
            codes.setdefault(rating, float(len(codes)))
        table = [[None if rating is None else codes[rating] for rating in row] for row in ratings]
    else:
        table = [[None if rating is None else float(rating) for rating in row] for row in ratings]
    data = np.array([_floats(row, "rating") for row in table])
    comparable = data[:, (~np.isnan(data)).sum(axis=0) >= 2] if data.size else data
    if len(np.unique(comparable[~np.isnan(comparable)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=comparable, level_of_measurement=level))


def survival(
    failed_at: Sequence[int | None], observed: Sequence[int], turns: int, confidence: float = 0.95
) -> list[SurvivalPoint]:
    """Share of conversations without a failure after each turn: Kaplan and Meier's estimate, through SciPy.

    A conversation fails at one turn, or is observed up to some turn without a failure and then leaves the count
    (right censoring; it may not leave because it is about to fail). Source: E. L. Kaplan and P. Meier (1958),
    "Nonparametric estimation from incomplete observations", JASA 53:457-481.

    The interval is Wilson's at the effective number S(1-S) / V of conversations, with Greenwood's variance
    V = S² Σ d / (r (r - d)) for d failures among r at risk: K. J. Rothman (1978), "Estimation of confidence limits for
    the cumulative probability of survival in life table analysis", Journal of Chronic Diseases 31:557-560. At S = 1 the
    number is those at risk, and at S = 0 it is the limit, those at risk at the last failures over the share before
    them. Without censoring it equals the interval of `rate`. It takes conversations to be independent.

    Args:
        failed_at: the turn of the first failure, from 1, or None where there was none.
        observed: the last turn at which the conversation was scored, in [0, ...) and not before its failure. A
            conversation with 0 tells nothing.
        turns: the number of points. What comes after it counts as observed up to it.
        confidence: wished coverage of each interval, in (0, 1).

    Returns:
        One point for each turn from 1.

    Raises:
        SafetyError: `confidence` is not in (0, 1).
        ValueError: the sequences are not equally long, or a turn is impossible.
    """
    _check_confidence(confidence)
    last = []
    for position, (failure, end) in enumerate(zip(failed_at, observed, strict=True)):
        if end < 0 or (failure is not None and not 1 <= failure <= end):
            raise ValueError(f"conversation {position} failed at turn {failure} and was observed up to turn {end}")
        last.append((min(end if failure is None else failure, turns), failure is not None and failure <= turns))
    times = np.array([time for time, _ in last], dtype=float)
    failures = np.array([failed for _, failed in last], dtype=bool)
    alive_after = _kaplan_meier(times, failures, turns)
    points: list[SurvivalPoint] = []
    greenwood, before, worth = 0.0, 1.0, 0.0
    for turn in range(1, turns + 1):
        at_risk = int((times >= turn).sum())
        failed = int((failures & (times == turn)).sum())
        alive = alive_after[turn - 1]
        if not at_risk and before > 0:
            points.append(SurvivalPoint(turn, None, None, at_risk))
            continue
        if failed == at_risk > 0:
            worth = at_risk / before
        elif at_risk:
            greenwood += failed / (at_risk * (at_risk - failed))
            worth = (1 - alive) / (alive * greenwood) if greenwood else float(at_risk)
        points.append(SurvivalPoint(turn, alive, _wilson(alive, worth, confidence), at_risk))
        before = alive
    return points


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
    from scipy import stats

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


def _effective_n(sums: Floats, sizes: Floats, confidence: float) -> float:
    """The number of independent outcomes that outcomes in 1 < k < n clusters are worth: see `clustered_rate`."""
    from scipy import stats

    n, k = float(sizes.sum()), len(sizes)
    size = n / k
    total = n + size
    p = (float(sums.sum()) + size / 2) / total
    residuals = sums - p * sizes
    squares = float(residuals @ residuals) + size**2 * ((1 - p) ** 2 + p**2) / 2
    design_effect = (k + 1) / k * squares / total**2 / (p * (1 - p) / (total - 1))
    upper, many, few = (1 + confidence) / 2, n - 1, k - 1
    return n / max(1.0, design_effect) * float(stats.t.ppf(upper, df=many) / stats.t.ppf(upper, df=few)) ** 2


def _wilson(p: float, n: float, confidence: float) -> Interval:
    """Wilson's interval for a number of observations that need not be whole, and may be 0: then it is [0, 1]."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (n * p + z * z / 2) / (n + z * z)
    half = z * math.sqrt(n * p * (1 - p) + z * z / 4) / (n + z * z)
    # rounding must not leave an end beyond the share itself
    return Interval(max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def _worth(p: float, interval: Interval, confidence: float) -> float:
    """The number of observations of a Wilson interval, from the end that lies farther from the share."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + confidence) / 2))
    end = max(interval, key=lambda e: abs(e - p))
    return z * z * end * (1 - end) / (p - end) ** 2


def _pivots(sums: Floats, sizes: Floats, mean: float, error: float, rng: np.random.Generator, draws: int) -> Floats:
    """(mean* - mean) / se* of each draw of clusters. Draws without spread are infinitely far off on their side."""
    k = len(sums)
    pivots = []
    for picked in _picks(rng, k, k, draws):
        totals, counts = sums[picked], sizes[picked]
        n = counts.sum(axis=1)
        means = totals.sum(axis=1) / n
        residuals = totals - means[:, None] * counts
        errors = np.sqrt(k / (k - 1) * np.einsum("ij,ij->i", residuals, residuals)) / n
        off = means - mean
        spread = errors > 1e-9 * error
        pivots.append(np.where(spread, off / np.where(spread, errors, 1.0), np.copysign(np.inf, off)))
    return np.concatenate(pivots)


def _differences(sums: Floats, sizes: Floats, scale: float, rng: np.random.Generator, draws: int) -> Floats:
    """The mean difference of each draw of clusters, one cluster of pseudo-pairs among them."""
    k = len(sums)
    pairs = math.sqrt(float(sizes.sum()) / k)
    # every cluster stands twice, so that each of the two halves of the added one has half of its chance
    totals = np.concatenate([np.repeat(sums, 2), [scale * pairs, -scale * pairs]])
    counts = np.concatenate([np.repeat(sizes, 2), [pairs, pairs]])
    return np.concatenate(
        [totals[picked].sum(axis=1) / counts[picked].sum(axis=1) for picked in _picks(rng, len(totals), k + 1, draws)]
    )


def _picks(rng: np.random.Generator, of: int, number: int, draws: int) -> Iterator[NDArray[np.int64]]:
    """Indices in [0, of), drawn with replacement, in blocks of rows of `number`; `draws` rows together."""
    rows = max(1, _CELLS_AT_ONCE // number)
    for start in range(0, draws, rows):
        yield rng.integers(0, of, size=(min(rows, draws - start), number))


def _ends(difference: Difference, tail: float) -> Interval:
    """The bounds at which `p_above` and `p_below` are `tail`; infinite where no bound reaches it."""
    from scipy import stats

    k, draws = difference.clusters, len(difference.resampled)
    if difference.standard_error is None:
        return Interval(-math.inf, math.inf)
    widened = float(stats.norm.cdf(math.sqrt(k / (k - 1)) * stats.t.ppf(tail, df=k - 1)))
    position = math.floor(widened * (draws + 1)) - 1
    needed = math.ceil(-math.log2(tail))
    if position < 0 or k < needed:
        return Interval(-math.inf, math.inf)
    low = min(difference.resampled[position], difference.by_cluster[-needed])
    high = max(difference.resampled[-1 - position], difference.by_cluster[needed - 1])
    return Interval(float(low), float(high))


def _cut(interval: Interval, within: Interval | None) -> Interval | None:
    """The part of an interval inside a range; without a range, None for an interval with an infinite end."""
    if within is not None:
        return Interval(max(interval.low, within.low), min(interval.high, within.high))
    return interval if all(math.isfinite(end) for end in interval) else None


def _kaplan_meier(times: Floats, failures: NDArray[np.bool_], turns: int) -> list[float]:
    """The share alive after each turn from 1."""
    from scipy import stats

    if not len(times):
        return [1.0] * turns
    sample = stats.CensoredData(uncensored=times[failures], right=times[~failures])
    return [float(share) for share in stats.ecdf(sample).sf.evaluate(np.arange(1, turns + 1))]


def _weights(weights: Sequence[float] | None, n: int) -> Floats:
    given = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    if len(given) != n or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"{n} records have {len(given)} weights; each record needs one, finite and above 0")
    return given


def _by_cluster(values: Floats, clusters: Sequence[str], weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Sum and number, or weight, of the values that are not NaN, for each cluster that has one, by their names."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} records have {len(clusters)} clusters; each record needs its own")
    scored = ~np.isnan(values)
    _, index = np.unique(np.asarray(clusters, dtype=str)[scored], return_inverse=True)
    each = (np.ones(len(values)) if weights is None else weights)[scored]
    sums, sizes = (np.bincount(index, weights=part).astype(float) for part in (values[scored] * each, each))
    return sums, sizes


def _floats(values: Sequence[float | str | None], what: str) -> Floats:
    """The values as an array, NaN for None."""
    for position, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, (int, float, np.bool_, np.integer, np.floating)):
            raise TypeError(f"{what} {position} is {value!r}, where a number or None is needed")
        if not math.isfinite(value):
            raise SafetyError(
                f"The {what} {position} of {len(values)} is {value}",
                "A number that is not finite is no measurement, and would spoil every figure that it enters",
                "Give None where there is no score",
            )
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _tail(confidence: float, draws: int) -> float:
    """The share of draws beyond each end."""
    _check_confidence(confidence)
    tail = (1 - confidence) / 2
    if tail * (draws + 1) < 1:
        raise SafetyError(
            f"{draws} draws are asked for at a confidence of {confidence}",
            f"A tail of {tail:.4g} holds none of them",
            f"Take at least {math.ceil(1 / tail)} draws; some thousands give steady ends",
        )
    return tail


def _check_booleans(outcomes: Sequence[bool | None]) -> None:
    for position, outcome in enumerate(outcomes):
        if outcome is not None and not isinstance(outcome, (bool, np.bool_)):
            raise TypeError(f"outcome {position} is {outcome!r}, where True, False or None is needed")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SafetyError(
            f"The confidence is {confidence!r}",
            "The coverage of an interval is a share between 0 and 1, both left out",
            "Write 0.95 for an interval of 95 %",
        )
