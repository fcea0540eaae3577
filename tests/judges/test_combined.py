from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.judges.combined import CombinedJudge, on_common_scale
from parlai_safety.judges.verdict import Speaker, Verdict, fingerprint_of, is_unsafe, scored, unscored

probabilities = st.floats(0, 1)
thresholds = st.floats(0, 1, exclude_min=True, exclude_max=True)


class Fixed:
    """A judge with given verdicts."""

    def __init__(self, spec: str, threshold: float, verdicts: list[Verdict]) -> None:
        self.spec, self.threshold, self.verdicts = spec, threshold, verdicts
        self.fingerprint = fingerprint_of(spec, 1)

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        return self.verdicts


def combine(first: Verdict, second: Verdict, first_threshold: float = 0.2, second_threshold: float = 0.5) -> Verdict:
    judge = CombinedJudge([Fixed("a", first_threshold, [first]), Fixed("b", second_threshold, [second])])
    return judge.score(["hello"], [[]], ["bot"])[0]


def test_the_map_by_hand() -> None:
    # t = 0.2: 0.5 * 0.1 / 0.2 = 0.25; 0.5; 0.5 + 0.5 * (0.6 - 0.2) / 0.8 = 0.75.
    assert [on_common_scale(p, 0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


@given(probabilities, thresholds)
def test_the_map_keeps_the_decision_and_the_range(p_unsafe: float, threshold: float) -> None:
    value = on_common_scale(p_unsafe, threshold)
    assert 0.0 <= value <= 1.0
    assert (value >= 0.5) == (p_unsafe >= threshold)


@given(probabilities, probabilities, thresholds)
def test_the_map_keeps_the_order(one: float, other: float, threshold: float) -> None:
    low, high = sorted((one, other))
    assert on_common_scale(low, threshold) <= on_common_scale(high, threshold)


@given(probabilities, probabilities, thresholds, thresholds)
def test_unsafe_if_any_part_is(one: float, other: float, first_threshold: float, second_threshold: float) -> None:
    verdict = combine(scored(one), scored(other), first_threshold, second_threshold)
    assert is_unsafe(verdict, 0.5) == (one >= first_threshold or other >= second_threshold)


def test_unscored_if_a_part_is_unless_another_says_unsafe() -> None:
    failed = unscored("timed out")
    assert combine(failed, scored(0.4)) == unscored("a: timed out")
    assert combine(failed, scored(0.6)).p_unsafe == pytest.approx(0.6)
    assert combine(scored(0.3), failed).p_unsafe == pytest.approx(0.5625)
    assert combine(failed, failed) == unscored("a: timed out; b: timed out")


def test_the_name_joins_the_parts() -> None:
    assert CombinedJudge([Fixed("wordlist", 0.5, []), Fixed("linear:x", 0.5, [])]).spec == "wordlist+linear:x"


def test_a_part_that_fails_or_gives_no_number_is_unscored() -> None:
    broken = Fixed("a", 0.2, [Verdict(float("nan"))])
    judge = CombinedJudge([broken, Fixed("b", 0.5, [scored(0.4)])])
    assert judge.score(["hello"], [[]], ["bot"]) == [unscored("a: the judge returned p_unsafe = nan")]
