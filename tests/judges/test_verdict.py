from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.errors import SafetyError
from parlai_safety.judges.verdict import (
    Verdict,
    check_threshold,
    is_unsafe,
    judged,
    safe_score,
    scored,
    unscored,
)


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


class Foreign:
    """A judge of another package, which promises less than ours."""

    spec, threshold, fingerprint = "foreign", 0.5, "0" * 64

    def __init__(self, answer: Callable[[list[str]], object]) -> None:
        self.answer, self.calls = answer, 0

    def score(self, replies: list[str], contexts: list[list[str]], speakers: list[str]) -> object:
        self.calls += 1
        return self.answer(replies)


def ask(answer: Callable[[list[str]], object], replies: list[str]) -> list[Verdict]:
    return safe_score(Foreign(answer), replies, [[]] * len(replies), ["bot"] * len(replies))  # type: ignore[arg-type]


def test_a_foreign_judges_scores_are_checked_one_by_one() -> None:
    values = [0.25, math.nan, 1.5, -0.1, None, "high", np.float64(0.75), math.inf, 1]
    replies = [str(index) for index in range(len(values))]
    verdicts = ask(lambda texts: [Verdict(values[int(text)]) for text in texts], replies)  # type: ignore[arg-type]
    assert [v.p_unsafe for v in verdicts] == [0.25, None, None, None, None, None, 0.75, None, 1.0]
    assert [v.reason for v in verdicts[1:6]] == [
        "the judge returned p_unsafe = nan",
        "the judge returned p_unsafe = 1.5",
        "the judge returned p_unsafe = -0.1",
        "the judge gave no reason",
        "the judge returned p_unsafe = high",
    ]
    assert all(type(v.p_unsafe) in (float, type(None)) for v in verdicts)


def test_a_foreign_judge_never_sees_an_empty_reply() -> None:
    seen = []
    verdicts = ask(lambda texts: seen.extend(texts) or [scored(0.0)] * len(texts), ["a", "  ", "b", "\u200b"])
    assert seen == ["a", "b"]
    assert [verdict.p_unsafe for verdict in verdicts] == [0.0, None, 0.0, None]


@pytest.mark.parametrize("answer", [lambda texts: [], lambda texts: [scored(0.5)] * 3, lambda texts: None])
def test_a_wrong_number_of_verdicts_is_nobodys_and_stops_everything(answer: Callable[[list[str]], object]) -> None:
    with pytest.raises(SafetyError, match="'foreign' gave .* for 2 replies"):
        ask(answer, ["a", "b"])


def test_a_bare_number_is_no_verdict() -> None:
    with pytest.raises(SafetyError, match="gave a float as a verdict"):
        ask(lambda texts: [0.5] * len(texts), ["a", "b"])


@given(st.integers(1, 65), st.data())
def test_failures_are_halved_down_to_the_replies_to_blame(size: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1), max_size=4))

    def answer(texts: list[str]) -> list[Verdict]:
        if any(int(text) in bad for text in texts):
            raise RuntimeError("boom")
        return [scored(int(text) / 100) for text in texts]

    judge = Foreign(answer)
    verdicts = safe_score(judge, [str(i) for i in range(size)], [[]] * size, ["bot"] * size)  # type: ignore[arg-type]
    expected = [unscored("RuntimeError: boom") if i in bad else scored(i / 100) for i in range(size)]
    assert verdicts == expected
    assert judge.calls <= 1 + 2 * len(bad) * math.ceil(math.log2(size))
    assert judge.calls <= max(1, 2 * size - 1)


def test_one_failure_in_4096_costs_24_further_calls() -> None:
    # log2(4096) = 12 halvings of two calls each, and the one that failed first.
    judge = Foreign(lambda texts: [1 / 0 if text == "7" else scored(0.5) for text in texts])
    replies = [str(index) for index in range(4096)]
    verdicts = safe_score(judge, replies, [[]] * 4096, ["bot"] * 4096)  # type: ignore[arg-type]
    assert judge.calls == 25
    assert [index for index, verdict in enumerate(verdicts) if verdict.p_unsafe is None] == [7]


def test_a_foreign_judges_own_safety_error_passes() -> None:
    def misconfigured(texts: list[str]) -> list[Verdict]:
        raise SafetyError("no model", "nothing can score", "name a model")

    with pytest.raises(SafetyError, match="no model"):
        ask(misconfigured, ["a"])
    with pytest.raises(KeyboardInterrupt):
        ask(lambda texts: (_ for _ in ()).throw(KeyboardInterrupt()), ["a"])
