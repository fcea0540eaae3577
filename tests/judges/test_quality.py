from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import Example
from parlai_safety.judges.quality import (
    agreement,
    agreement_of,
    auc_interval,
    f1_interval,
    measure,
    measure_by,
    quality_of,
    threshold_at_false_positive_rate,
    youden_threshold,
)
from parlai_safety.judges.verdict import scored, unscored
from parlai_safety.judges.wordlist import WordListJudge


def example(unsafe: bool, source: str = "s", reply: str = "hello") -> Example:
    return Example([], reply, unsafe, "bot", "c", source)


def test_the_figures_by_hand() -> None:
    """Unsafe 0.9, 0.4, 0.4; safe 0.4, 0.1 and ordinary 0.6.

    Nine pairs: 0.9 beats all three; each 0.4 ties with 0.4, beats 0.1, loses to 0.6: 3 + 2 * 1.5 = 6, so AUC = 6 / 9.
    At 0.5: one of three unsafe and one of three safe are flagged: precision 1 / 2, F1 = 2 * 1 / (2 + 3).
    """
    values = [(0.9, True), (0.4, True), (0.4, True), (0.4, False), (0.1, False)]
    examples = [example(label) for _, label in values] + [example(False, "ordinary:chat"), example(True)]
    verdicts = [scored(p) for p, _ in values] + [scored(0.6), unscored("empty")]
    quality = quality_of(verdicts, examples, 0.5)
    assert (quality.n, quality.unscored, quality.unsafe, quality.safe, quality.ordinary) == (7, 1, 3, 3, 1)
    assert quality.auc == pytest.approx(6 / 9)
    assert quality.sensitivity == pytest.approx(1 / 3)
    assert (quality.precision, quality.f1) == (0.5, pytest.approx(2 / 5))
    assert quality.specificity == pytest.approx(2 / 3)
    assert quality.ordinary_false_positive_rate == 1.0


def test_rates_without_examples_are_none_and_not_zero() -> None:
    quality = quality_of([scored(0.1), unscored("x")], [example(False), example(True)], 0.5)
    assert (quality.auc, quality.sensitivity, quality.specificity) == (None, None, 1.0)
    assert quality.ordinary_false_positive_rate is None


def test_measure_scores_with_the_judge_and_divides_by_source() -> None:
    examples = [
        example(True, "a", "You fool"),
        example(True, "b", "Go on"),
        example(False, "b", "Hello"),
        example(False, "b", " "),
    ]
    judge = WordListJudge(["fool"])
    assert measure(judge, examples).sensitivity == 0.5
    by_source = measure_by(judge, examples, "source")
    assert list(by_source) == ["a", "b"]
    assert (by_source["a"].sensitivity, by_source["b"].sensitivity) == (1.0, 0.0)
    assert (by_source["b"].n, by_source["b"].unscored) == (3, 1)


def test_agreement_by_hand() -> None:
    """Ranks 1234 and 1243: d = 0, 0, 1, 1, so rho = 1 - 6 * 2 / (4 * 15) = 0.8.

    Decisions at 0.5 and 0.25: FFTT and FFTT agree wholly; at 0.5 and 0.35: FFTT and FFTF give po = 3/4,
    pe = (2/4)(3/4) + (2/4)(1/4) = 1/2, kappa = (3/4 - 1/2) / (1/2) = 1/2.
    """
    first = [scored(p) for p in (0.1, 0.2, 0.6, 0.7)] + [unscored("x"), scored(0.9)]
    second = [scored(p) for p in (0.1, 0.2, 0.4, 0.3)] + [scored(0.1), unscored("y")]
    found = agreement_of(first, second, 0.5, 0.25)
    assert (found.n, found.unscored, found.kappa) == (4, 2, pytest.approx(1.0))
    assert found.spearman == pytest.approx(0.8)
    assert agreement_of(first, second, 0.5, 0.35).kappa == pytest.approx(0.5)


def test_agreement_of_constant_judges_is_none() -> None:
    judge = WordListJudge(["fool"])
    found = agreement(judge, judge, [example(False), example(True)])
    assert (found.n, found.spearman, found.kappa) == (2, None, None)
    assert agreement(judge, judge, [example(False), example(True, reply="fool")]).kappa == pytest.approx(1.0)


def test_youden_by_hand() -> None:
    """Scores 0.9u 0.8u 0.6s 0.5u 0.2s 0.1s: J is 1/3, 2/3, 1/3, 2/3, 1/3, 0; the highest best cut is 0.7."""
    scores = [0.1, 0.9, 0.6, 0.5, 0.8, 0.2]
    labels = [False, True, False, True, True, False]
    assert youden_threshold(scores, labels) == pytest.approx(0.7)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8, 1.0]), st.booleans()), min_size=2, max_size=40))
def test_no_cut_between_scores_beats_youdens(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = [p for p, _ in pairs], [label for _, label in pairs]

    def gain(threshold: float) -> float:
        hits = [p >= threshold for p, label in pairs if label]
        alarms = [p >= threshold for p, label in pairs if not label]
        return sum(hits) / len(hits) - sum(alarms) / len(alarms)

    cuts = (0.05, 0.2, 0.3, 0.6, 0.9)
    if len(set(labels)) == 1 or max(map(gain, cuts)) <= 1e-9:
        with pytest.raises(SafetyError):
            youden_threshold(scores, labels)
    else:
        assert gain(youden_threshold(scores, labels)) == pytest.approx(max(map(gain, cuts)))


@given(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.3, 0.7, 0.99]), min_size=1, max_size=60), st.floats(0, 0.99))
def test_the_false_positive_rate_is_kept_and_no_lower_threshold_keeps_it(scores: list[float], rate: float) -> None:
    threshold = threshold_at_false_positive_rate(scores, rate)
    assert sum(p >= threshold for p in scores) <= rate * len(scores)
    below = [p for p in scores if p < threshold]
    assert sum(p >= max(below) for p in scores) > rate * len(scores) - 1e-9


def test_a_false_positive_rate_that_cannot_be_had() -> None:
    with pytest.raises(SafetyError, match="score 1.0"):
        threshold_at_false_positive_rate([1.0, 1.0, 0.1], 0.3)
    with pytest.raises(SafetyError, match="of 0 safe replies"):
        threshold_at_false_positive_rate([], 0.05)
    with pytest.raises(SafetyError, match="rate of 1.0"):
        threshold_at_false_positive_rate([0.5], 1.0)


def test_the_auc_interval_holds_the_auc_and_widens_where_conversations_are_few() -> None:
    generator = np.random.default_rng(1)
    unsafe = generator.random(400) < 0.4
    scores = generator.normal(size=400) + unsafe
    alone = auc_interval(scores.tolist(), unsafe.tolist(), [str(i) for i in range(400)])
    # Copies in one conversation are no new knowledge: the interval of 400 talks of ten equal turns is that of 400.
    copied = auc_interval(
        np.repeat(scores, 10).tolist(), np.repeat(unsafe, 10).tolist(), [str(i // 10) for i in range(4000)]
    )
    assert alone is not None and copied == pytest.approx(alone)
    from sklearn.metrics import roc_auc_score

    assert alone.low < roc_auc_score(unsafe, scores) < alone.high
    # Hanley and McNeil (1982): the standard error of an AUC of 0.76 at 160 and 240 is about 0.025.
    assert 0.07 < alone.high - alone.low < 0.13


def test_an_auc_of_ties_and_of_one_label() -> None:
    assert auc_interval([0.5] * 20, [True, False] * 10, [str(i) for i in range(20)]) == (0.5, 0.5)
    assert auc_interval([0.1, 0.9], [False, True], ["a", "b"]) is None
    assert auc_interval([0.1, 0.2], [False, False], ["a", "b"]) is None


def test_f1_without_flags_or_without_unsafe_examples() -> None:
    verdicts = [scored(0.1), scored(0.2)]
    missed = quality_of(verdicts, [example(True), example(False)], 0.5)
    assert (missed.precision, missed.f1) == (None, 0.0), "an unsafe example that was missed costs everything"
    assert quality_of(verdicts, [example(False)] * 2, 0.5).f1 is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_f1_is_the_harmonic_mean(pairs: list[tuple[bool, bool]]) -> None:
    quality = quality_of([scored(float(flag)) for flag, _ in pairs], [example(unsafe) for _, unsafe in pairs], 0.5)
    if quality.precision and quality.sensitivity:
        mean = 2 * quality.precision * quality.sensitivity / (quality.precision + quality.sensitivity)
        assert quality.f1 == pytest.approx(mean)
    else:
        assert not quality.f1


def test_the_f1_interval_draws_whole_conversations() -> None:
    """Ten unsafe and ten safe examples, four of each wrong: F1 = 2 * 6 / (6 + 4 + 10) = 0.6."""
    unsafe = [True] * 10 + [False] * 10
    flagged = [True] * 6 + [False] * 4 + [True] * 4 + [False] * 6
    alone = f1_interval(flagged, unsafe, [str(i) for i in range(20)])
    assert alone is not None and alone.low < 0.6 < alone.high
    assert alone == f1_interval(flagged, unsafe, [str(i) for i in range(20)]), "seeded"
    # The same examples five times over tell no more, as long as copies share a conversation.
    copied = f1_interval(flagged * 5, unsafe * 5, [str(i) for i in range(20)] * 5)
    assert copied == alone
    apart = f1_interval(flagged * 5, unsafe * 5, [str(i) for i in range(100)])
    assert apart is not None and apart.high - apart.low < 0.7 * (alone.high - alone.low)
    assert f1_interval(flagged, unsafe, ["one"] * 20) is None
    assert f1_interval([False] * 4, [False] * 4, list("abcd")) is None
