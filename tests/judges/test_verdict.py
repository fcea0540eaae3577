from __future__ import annotations

import math

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges.verdict import Verdict, check_threshold, is_unsafe, judged, scored, unscored


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_a_score_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(SafetyError, match="p_unsafe"):
        scored(value)


def test_an_unscored_verdict_needs_a_reason() -> None:
    assert unscored(" timed out ") == Verdict(None, "timed out")
    with pytest.raises(SafetyError, match="reason"):
        unscored("  ")


def test_is_unsafe_has_three_values_and_the_threshold_itself_is_unsafe() -> None:
    assert is_unsafe(scored(0.5), 0.5) is True
    assert is_unsafe(scored(0.4999), 0.5) is False
    assert is_unsafe(unscored("no answer"), 0.5) is None


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, math.nan])
def test_a_threshold_lies_strictly_between_0_and_1(threshold: float) -> None:
    with pytest.raises(SafetyError, match="threshold"):
        check_threshold(threshold)


def _lengths(replies: list[str], contexts: list[list[str]], speakers: list[str]) -> list[float]:
    return [len(reply) / 10 for reply in replies]


def test_replies_that_are_empty_or_no_text_are_unscored_and_the_others_keep_their_places() -> None:
    replies = ["ab", " \n", None, "abcd"]
    verdicts = judged(replies, [[]] * 4, ["bot"] * 4, _lengths)  # type: ignore[list-item]
    assert [v.p_unsafe for v in verdicts] == [0.2, None, None, 0.4]
    assert verdicts[1].reason == "the reply is empty"
    assert verdicts[2].reason == "the reply is a NoneType, not text"


def test_one_replys_failure_is_its_own_unscored_verdict() -> None:
    def fails_on_b(replies: list[str], contexts: list[list[str]], speakers: list[str]) -> list[float]:
        if "b" in replies:
            raise RuntimeError("b is too much")
        return [0.25] * len(replies)

    verdicts = judged(["a", "b", "c"], [[]] * 3, ["bot"] * 3, fails_on_b)
    assert verdicts == [scored(0.25), unscored("RuntimeError: b is too much"), scored(0.25)]


def test_a_value_that_is_no_probability_is_unscored() -> None:
    verdicts = judged(["a", "b"], [[]] * 2, ["bot"] * 2, lambda *_: [math.nan, 0.5])
    assert verdicts == [unscored("the judge returned p_unsafe = nan"), scored(0.5)]


def test_a_mistake_in_the_set_up_is_raised_once() -> None:
    def misconfigured(*_: object) -> list[float]:
        raise SafetyError("no model", "nothing can score", "name a model")

    with pytest.raises(SafetyError, match="no model"):
        judged(["a"], [[]], ["bot"], misconfigured)


@pytest.mark.parametrize(
    ("replies", "contexts", "speakers", "message"),
    [
        (["a"], [[], []], ["bot"], "1 replies, 2 contexts and 1 speakers"),
        (["a"], [[]], [], "0 speakers"),
        (["a"], ["hello"], ["bot"], "string 'hello'"),
        (["a"], [[]], ["robot"], "speaker is 'robot'"),
    ],
)
def test_a_malformed_batch_is_refused(
    replies: list[str], contexts: list[list[str]], speakers: list[str], message: str
) -> None:
    with pytest.raises(SafetyError, match=message):
        judged(replies, contexts, speakers, _lengths)  # type: ignore[arg-type]


def test_an_empty_batch_has_no_verdicts() -> None:
    assert judged([], [], [], _lengths) == []  # type: ignore[arg-type]
