"""How good a judge is: discrimination, error rates at its threshold, and agreement with another judge.

The figures are the usual ones: area under the ROC curve, sensitivity (recall of unsafe), specificity (recall of safe),
precision and F1 of the unsafe class (the figure by which Xu et al., arXiv:2010.07079, choose and compare classifiers),
Youden's J (Youden 1950), Spearman's rank correlation and Cohen's kappa (Cohen 1960). Counts stand beside every rate,
so that a report can put intervals on them; AUC and F1 have bootstrap intervals of their own. Left out: what a card
adds to these figures (`parlai_safety.judges.card`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import Example, is_ordinary
from parlai_safety.judges.verdict import Judge, Verdict, check_threshold, safe_score


class JudgeQuality(NamedTuple):
    """A judge measured on labelled examples. Unscored examples are counted and are in no other figure.

    Attributes:
        n: examples given.
        unscored: of these, without a score.
        unsafe: scored examples labelled unsafe.
        safe: scored examples labelled safe.
        ordinary: scored safe examples that are everyday talk.
        auc: probability that an unsafe example scores above a safe one, ties counting half; None unless both exist.
        sensitivity: share of unsafe examples with p_unsafe >= threshold; None without unsafe examples.
        specificity: share of safe examples with p_unsafe < threshold; None without safe examples.
        ordinary_false_positive_rate: share of everyday talk with p_unsafe >= threshold; None without any.
        threshold: the threshold of these rates.
        precision: share of the flagged examples that are unsafe; None where nothing is flagged. It depends on how
            many of the examples are unsafe.
        f1: harmonic mean of precision and sensitivity at the threshold; None without unsafe examples. It depends on
            the same.
    """

    n: int
    unscored: int
    unsafe: int
    safe: int
    ordinary: int
    auc: float | None
    sensitivity: float | None
    specificity: float | None
    ordinary_false_positive_rate: float | None
    threshold: float
    precision: float | None
    f1: float | None


class JudgeAgreement(NamedTuple):
    """Two judges compared on the same replies.

    Attributes:
        n: replies that both scored.
        unscored: replies that at least one did not score.
        spearman: rank correlation of the two p_unsafe, in [-1, 1]; None where one of them is constant.
        kappa: Cohen's kappa of the two decisions, in [-1, 1]; None where both give one and the same answer throughout.
    """

    n: int
    unscored: int
    spearman: float | None
    kappa: float | None


def verdicts_of(judge: Judge, examples: Sequence[Example]) -> list[Verdict]:
    """Score examples with a judge; one verdict each, in order."""
    replies, contexts = [e.reply for e in examples], [e.context for e in examples]
    return safe_score(judge, replies, contexts, [e.speaker for e in examples])


def measure(judge: Judge, examples: Sequence[Example]) -> JudgeQuality:
    """Measure a judge at its own threshold.

    Args:
        judge: the judge.
        examples: labelled examples that it was not trained on.

    Returns:
        The figures.
    """
    return quality_of(verdicts_of(judge, examples), examples, judge.threshold)


def measure_by(judge: Judge, examples: Sequence[Example], attribute: str) -> dict[str, JudgeQuality]:
    """Measure a judge apart for each value of an example's attribute, such as "source" or "speaker".

    Args:
        judge: the judge.
        examples: labelled examples that it was not trained on.
        attribute: a field of `Example`.

    Returns:
        The figures by value, in alphabetical order.
    """
    return quality_by(verdicts_of(judge, examples), examples, judge.threshold, attribute)


def quality_of(verdicts: Sequence[Verdict], examples: Sequence[Example], threshold: float) -> JudgeQuality:
    """The figures of verdicts that are already at hand; see `measure`."""
    check_threshold(threshold)
    pairs = [(v.p_unsafe, e) for v, e in zip(verdicts, examples, strict=True) if v.p_unsafe is not None]
    unsafe = [p for p, e in pairs if e.unsafe]
    safe = [p for p, e in pairs if not e.unsafe]
    ordinary = [p for p, e in pairs if not e.unsafe and is_ordinary(e)]
    specificity = _share_flagged(safe, threshold)
    hits, alarms = (sum(p >= threshold for p in values) for values in (unsafe, safe))
    return JudgeQuality(
        n=len(examples),
        unscored=len(examples) - len(pairs),
        unsafe=len(unsafe),
        safe=len(safe),
        ordinary=len(ordinary),
        auc=_auc(unsafe, safe),
        sensitivity=_share_flagged(unsafe, threshold),
        specificity=None if specificity is None else 1.0 - specificity,
        ordinary_false_positive_rate=_share_flagged(ordinary, threshold),
        threshold=threshold,
        precision=hits / (hits + alarms) if hits + alarms else None,
        f1=2 * hits / (hits + alarms + len(unsafe)) if unsafe else None,
    )


def quality_by(
    verdicts: Sequence[Verdict], examples: Sequence[Example], threshold: float, attribute: str
) -> dict[str, JudgeQuality]:
    """The figures of verdicts that are already at hand, by an attribute of the examples; see `measure_by`."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(str(getattr(example, attribute)), []).append(index)
    return {
        name: quality_of([verdicts[i] for i in rows], [examples[i] for i in rows], threshold)
        for name, rows in sorted(groups.items())
    }


def agreement(first: Judge, second: Judge, examples: Sequence[Example]) -> JudgeAgreement:
    """Compare two judges on the same examples; the labels are not used.

    Args:
        first: one judge.
        second: the other.
        examples: examples that neither was trained on.

    Returns:
        The figures.
    """
    return agreement_of(verdicts_of(first, examples), verdicts_of(second, examples), first.threshold, second.threshold)


def agreement_of(
    first: Sequence[Verdict], second: Sequence[Verdict], first_threshold: float, second_threshold: float
) -> JudgeAgreement:
    """The agreement of verdicts that are already at hand; see `agreement`."""
    both = [
        (a.p_unsafe, b.p_unsafe)
        for a, b in zip(first, second, strict=True)
        if a.p_unsafe is not None and b.p_unsafe is not None
    ]
    ones, twos = [a for a, _ in both], [b for _, b in both]
    rank, kappa = None, None
    if len(set(ones)) > 1 and len(set(twos)) > 1:
        from scipy.stats import spearmanr

        rank = float(spearmanr(ones, twos).statistic)
    decisions = [(a >= first_threshold, b >= second_threshold) for a, b in both]
    if len({answer for pair in decisions for answer in pair}) > 1:
        from sklearn.metrics import cohen_kappa_score

        kappa = float(cohen_kappa_score([a for a, _ in decisions], [b for _, b in decisions]))
    return JudgeAgreement(len(both), len(first) - len(both), rank, kappa)


class QualityInterval(NamedTuple):
    """An interval of an AUC or of an F1, both ends in [0, 1]."""

    low: float
    high: float


def auc_interval(
    p_unsafe: Sequence[float],
    unsafe: Sequence[bool],
    conversations: Sequence[str],
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> QualityInterval | None:
    """A percentile bootstrap interval of the AUC that draws whole conversations.

    A draw that lacks one of the labels has no AUC and is left out.

    Args:
        p_unsafe: N scores.
        unsafe: N labels.
        conversations: N names; examples that share one are drawn together.
        confidence: wished coverage, in (0, 1).
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The interval, or None where fewer than two conversations hold a label each way, or half of the draws lack one.
    """
    labels, scores = np.asarray(unsafe, dtype=bool), np.asarray(p_unsafe, dtype=float)
    names, cluster = np.unique(np.asarray(conversations, dtype=object), return_inverse=True)
    if min(len(set(cluster[labels])), len(set(cluster[~labels]))) < 2:
        return None
    order = np.argsort(scores, kind="stable")
    cluster, labels, scores = cluster[order], labels[order], scores[order]
    ties = np.flatnonzero(np.concatenate([[True], scores[1:] > scores[:-1]]))
    generator = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(draws):
        weights = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))[cluster]
        positive = np.add.reduceat(weights * labels, ties)
        negative = np.add.reduceat(weights * ~labels, ties)
        pairs = float(positive.sum()) * float(negative.sum())
        if pairs:
            # An unsafe example beats every safe one below it, and half of those that tie with it.
            below = np.cumsum(negative) - negative / 2
            found.append(float(positive @ below) / pairs)
    return _percentiles(found, draws, confidence)


def _percentiles(found: Sequence[float] | NDArray[np.float64], draws: int, confidence: float) -> QualityInterval | None:
    """The percentile interval of bootstrap draws; None where no more than half of them have a value."""
    if len(found) <= draws / 2:
        return None
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return QualityInterval(float(low), float(high))


def f1_interval(
    flagged: Sequence[bool],
    unsafe: Sequence[bool],
    conversations: Sequence[str],
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> QualityInterval | None:
    """A percentile bootstrap interval of the F1 of the unsafe class that draws whole conversations.

    Args:
        flagged: N decisions.
        unsafe: N labels.
        conversations: N names; examples that share one are drawn together.
        confidence: wished coverage, in (0, 1).
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The interval, or None where fewer than two conversations hold an unsafe example, or half of the draws hold
        neither an unsafe example nor a flagged one.
    """
    decisions, labels = np.asarray(flagged, dtype=bool), np.asarray(unsafe, dtype=bool)
    names, cluster = np.unique(np.asarray(conversations, dtype=object), return_inverse=True)
    if len(set(cluster[labels])) < 2:
        return None
    counts = np.stack(
        [np.bincount(cluster[rows], minlength=len(names)) for rows in (decisions & labels, decisions, labels)]
    )
    # Conversations of equal counts are interchangeable, so that one draw of how often each kind comes does for all.
    kinds, many = np.unique(counts, axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), many / len(names), size=draws) @ kinds.T
    total = drawn[:, 1] + drawn[:, 2]
    found = 2 * drawn[total > 0, 0] / total[total > 0]
    return _percentiles(found, draws, confidence)


def youden_threshold(p_unsafe: Sequence[float], unsafe: Sequence[bool]) -> float:
    """The threshold with the largest sensitivity + specificity - 1 (Youden's J).

    It stands midway between two neighbouring scores, so that it does not depend on rounding; among equal J the
    highest threshold wins, which flags fewest.

    Args:
        p_unsafe: N scores in [0, 1].
        unsafe: N labels.

    Returns:
        A threshold strictly between 0 and 1.

    Raises:
        SafetyError: one of the two labels is missing, or no threshold tells any scores apart.
    """
    positives = sum(unsafe)
    negatives = len(unsafe) - positives
    if not positives or not negatives:
        raise SafetyError(
            f"A threshold was asked of {positives} unsafe and {negatives} safe examples",
            "It is chosen where the two are told apart best",
            "Give examples of both labels",
        )
    ranked = sorted(zip(p_unsafe, unsafe, strict=True), reverse=True)
    best, threshold, hits, alarms = 0, None, 0, 0
    for index, (value, label) in enumerate(ranked[:-1]):
        hits, alarms = hits + label, alarms + (not label)
        below = ranked[index + 1][0]
        # J times both counts, in whole numbers: equal J must compare equal.
        gain = hits * negatives - alarms * positives
        if below < value and gain > best:
            best, threshold = gain, (value + below) / 2
    if threshold is None:
        raise SafetyError(
            "No threshold tells unsafe from safe better than chance",
            "The scores carry no information about the labels",
            "Check the labels, or give more examples",
        )
    return check_threshold(threshold)


def threshold_at_false_positive_rate(p_unsafe_safe: Sequence[float], rate: float) -> float:
    """The lowest threshold that flags at most a given share of safe replies.

    Args:
        p_unsafe_safe: scores in [0, 1] of N safe replies, usually everyday talk.
        rate: the share allowed, in [0, 1).

    Returns:
        A threshold strictly between 0 and 1; at most floor(rate * N) of the scores reach it.

    Raises:
        SafetyError: there are no scores, the rate is out of range, or more than the share allowed score exactly 1.
    """
    if not p_unsafe_safe or not 0.0 <= rate < 1.0:
        raise SafetyError(
            f"A false-positive rate of {rate} was asked of {len(p_unsafe_safe)} safe replies",
            "The threshold is read off the scores of safe replies, and allows a share of them below 1",
            "Give ordinary talk to measure on, and a rate such as 0.05",
        )
    ranked = sorted(p_unsafe_safe, reverse=True)
    first_kept = ranked[int(rate * len(ranked))]
    above = min((value for value in ranked if value > first_kept), default=1.0)
    if first_kept >= 1.0:
        raise SafetyError(
            f"More than a share of {rate} of the safe replies score 1.0",
            "No threshold below 1 leaves them out",
            "Allow a higher rate, or use another judge",
        )
    return check_threshold((first_kept + above) / 2)


def _share_flagged(values: Sequence[float], threshold: float) -> float | None:
    return sum(value >= threshold for value in values) / len(values) if values else None


def _auc(unsafe: Sequence[float], safe: Sequence[float]) -> float | None:
    if not unsafe or not safe:
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([1] * len(unsafe) + [0] * len(safe), [*unsafe, *safe]))
