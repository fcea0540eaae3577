from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges.timed import TimedJudge
from parlai_safety.judges.verdict import Speaker, Verdict, fingerprint_of, safe_score, scored, unscored

LIMIT = 0.2
LATE = unscored("no verdict within 0.2 s")


class Hangs:
    """A judge that waits for the end of the test where the reply says so."""

    spec, threshold, fingerprint = "hangs", 0.25, fingerprint_of("hangs", 1)

    def __init__(self) -> None:
        self.end, self.asked = threading.Event(), []  # type: ignore[var-annotated]

    def score(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[Verdict]:
        self.asked.append(list(replies))
        if any(reply.startswith("hang") for reply in replies):
            self.end.wait(30)
        if "slow batch" in replies and len(replies) > 1:
            self.end.wait(30)
        if "raise" in replies:
            raise RuntimeError("out of order")
        if "stop" in replies:
            raise SafetyError("it ended", "it is over", "go home")
        return [scored(len(context) / 10) for context in contexts]


@pytest.fixture
def judge() -> Iterator[Hangs]:
    judge = Hangs()
    yield judge
    judge.end.set()


def score(judge: TimedJudge, replies: list[str]) -> list[Verdict]:
    contexts = [["turn"] * index for index in range(len(replies))]
    return judge.score(replies, contexts, ["bot"] * len(replies))


def test_within_the_limit_nothing_changes(judge: Hangs) -> None:
    timed = TimedJudge(judge, 5.0)
    assert score(timed, ["a", "b", "c"]) == [scored(0.0), scored(0.1), scored(0.2)]
    assert judge.asked == [["a", "b", "c"]]
    assert (timed.spec, timed.threshold, timed.fingerprint) == ("hangs", 0.25, judge.fingerprint)


def test_the_reply_that_hangs_is_unscored_alone_in_good_time(judge: Hangs) -> None:
    timed = TimedJudge(judge, LIMIT)
    start = time.monotonic()
    assert score(timed, ["a", "b", "hang", "d"]) == [scored(0.0), scored(0.1), LATE, scored(0.3)]
    assert time.monotonic() - start < 2.0
    assert judge.asked == [["a", "b", "hang", "d"], ["a"], ["b"], ["hang"], ["d"]]


def test_a_batch_that_is_only_too_large_loses_nothing(judge: Hangs) -> None:
    assert score(TimedJudge(judge, LIMIT), ["a", "slow batch"]) == [scored(0.0), scored(0.1)]


def test_after_some_in_a_row_it_stops(judge: Hangs) -> None:
    timed = TimedJudge(judge, 0.02, give_up_after=4)
    # Given up: the batch, then three replies by themselves.
    with pytest.raises(SafetyError, match="no verdict within 0.02 s, 4 times in a row"):
        score(timed, ["hang 1", "hang 2", "hang 3", "hang 4"])
    assert len(judge.asked) == 4
    # An answer in between begins the count again.
    timed = TimedJudge(judge, 0.02, give_up_after=4)
    for _ in range(3):
        assert [v.p_unsafe for v in score(timed, ["hang", "b"])] == [None, 0.1]


def test_what_the_judge_raises_is_raised_in_the_caller(judge: Hangs) -> None:
    timed = TimedJudge(judge, LIMIT)
    with pytest.raises(RuntimeError, match="out of order"):
        score(timed, ["a", "raise"])
    assert safe_score(timed, ["a", "raise"], [[]] * 2, ["bot"] * 2)[1] == unscored("RuntimeError: out of order")
    with pytest.raises(SafetyError, match="it ended"):
        score(timed, ["stop"])


def test_a_thread_that_hangs_does_not_hold_the_process() -> None:
    code = (
        "import time\n"
        "from parlai_safety.judges.timed import TimedJudge\n"
        "class Judge:\n"
        "    spec, threshold, fingerprint = 'a', 0.5, ''\n"
        "    def score(self, replies, contexts, speakers):\n"
        "        time.sleep(60)\n"
        "print(TimedJudge(Judge(), 0.05).score(['a'], [[]], ['bot'])[0].reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "no verdict within 0.05 s"


@pytest.mark.parametrize(("seconds", "after"), [(0.0, 10), (-1.0, 10), (float("nan"), 10), (1.0, 0)])
def test_numbers_out_of_range(judge: Hangs, seconds: float, after: int) -> None:
    with pytest.raises(SafetyError, match="The limit is"):
        TimedJudge(judge, seconds, give_up_after=after)
