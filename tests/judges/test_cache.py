from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.errors import SafetyError
from parlai_safety.judges.cache import CachedJudge
from parlai_safety.judges.verdict import Speaker, Verdict, fingerprint_of, scored, unscored


class Counting:
    """A judge that remembers what it was asked; its score depends on all that it reads."""

    def __init__(self, name: str = "counting", threshold: float = 0.25) -> None:
        self.spec, self.threshold, self.fingerprint = name, threshold, fingerprint_of(name, 1)
        self.asked: list[list[str]] = []

    def score(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[Verdict]:
        self.asked.append(list(replies))
        if "raise" in replies:
            raise RuntimeError("out of order")
        found = []
        for reply, context, speaker in zip(replies, contexts, speakers, strict=True):
            value = (len(reply) + 7 * len(context) + 13 * len("".join(context)) + 3 * (speaker == "bot")) % 100 / 100
            found.append({"none": unscored("no idea"), "nan": Verdict(math.nan)}.get(reply, scored(value)))
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "scores.sqlite"


def test_what_was_scored_is_not_asked_again(path: Path) -> None:
    judge = Counting()
    cached = CachedJudge(judge, path)
    batch = (["a", "bb", "a"], [[], ["x"], []], ["bot"] * 3)
    first = cached.score(*batch)  # type: ignore[arg-type]
    assert judge.asked == [["a", "bb"]], "what stands twice in a batch is asked once"
    assert (cached.hits, cached.misses) == (0, 3)
    assert cached.score(*batch) == first == Counting().score(*batch)  # type: ignore[arg-type]
    assert (cached.hits, cached.misses) == (3, 3)
    again = CachedJudge(Counting(), path)
    assert again.score(*batch) == first and again.judge.asked == []  # type: ignore[arg-type, attr-defined]


def test_judge_speaker_context_and_reply_are_told_apart(path: Path) -> None:
    cached = CachedJudge(Counting(), path)
    cases: list[tuple[str, list[str], Speaker]] = [
        ("hello", ["a", "b"], "bot"),
        ("hello", ["a", "b"], "human"),
        ("hello", ["a\nb"], "bot"),
        ("hello", ["b", "a"], "bot"),
        ("hello", ["a"], "bot"),
        ("hello", ["a", "b", ""], "bot"),
        ("hello ", ["a", "b"], "bot"),
        ('hello", "', ["a", "b"], "bot"),
    ]
    replies, contexts, speakers = (list(part) for part in zip(*cases, strict=True))
    cached.score(replies, contexts, speakers)  # type: ignore[arg-type]
    assert cached.judge.asked == [replies]  # type: ignore[attr-defined]
    other = CachedJudge(Counting("another"), path)
    other.score(replies, contexts, speakers)  # type: ignore[arg-type]
    assert other.judge.asked == [replies]  # type: ignore[attr-defined]


def test_what_could_not_be_scored_is_tried_again(path: Path) -> None:
    cached = CachedJudge(Counting(), path)
    batch = (["a", "none", "nan", "raise", ""], [[]] * 5, ["bot"] * 5)
    first = cached.score(*batch)  # type: ignore[arg-type]
    assert [verdict.p_unsafe is None for verdict in first] == [False, True, True, True, True]
    assert first[3].reason == "RuntimeError: out of order"
    cached.judge.asked.clear()  # type: ignore[attr-defined]
    assert cached.score(*batch) == first  # type: ignore[arg-type]
    assert sorted({text for asked in cached.judge.asked for text in asked}) == ["nan", "none", "raise"]  # type: ignore[attr-defined]


def test_the_judge_shows_through(path: Path) -> None:
    judge = Counting(threshold=0.75)
    cached = CachedJudge(judge, path)
    assert (cached.spec, cached.threshold, cached.fingerprint) == (judge.spec, 0.75, judge.fingerprint)


def test_more_than_one_statement_holds(path: Path) -> None:
    cached = CachedJudge(Counting(), path, stored_at_once=1000)
    replies = [f"reply {index}" for index in range(2500)]
    batch = (replies, [[]] * 2500, ["bot"] * 2500)
    first = cached.score(*batch)  # type: ignore[arg-type]
    assert [len(asked) for asked in cached.judge.asked] == [1000, 1000, 500]  # type: ignore[attr-defined]
    again = CachedJudge(Counting(), path)
    assert again.score(*batch) == first and again.hits == 2500  # type: ignore[arg-type]


def test_what_came_before_an_error_is_kept(path: Path) -> None:
    class Ends(Counting):
        def score(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[Verdict]:
            if "end" in replies:
                raise SafetyError("it ended", "it is over", "go home")
            return super().score(replies, contexts, speakers)

    cached = CachedJudge(Ends(), path, stored_at_once=2)
    with pytest.raises(SafetyError, match="it ended"):
        cached.score(["a", "bb", "end"], [[]] * 3, ["bot"] * 3)
    again = CachedJudge(Ends(), path)
    again.score(["a", "bb"], [[]] * 2, ["bot"] * 2)
    assert again.hits == 2


@given(st.floats(0, 1))
def test_a_score_comes_back_to_the_last_bit(p_unsafe: float) -> None:
    class Fixed(Counting):
        def score(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[Verdict]:
            return [scored(p_unsafe)]

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        CachedJudge(Fixed(), f"{folder}/scores").score(["a"], [[]], ["bot"])
        cached = CachedJudge(Fixed(), f"{folder}/scores")
        assert cached.score(["a"], [[]], ["bot"]) == [scored(p_unsafe)] and cached.hits == 1


def test_no_text_stands_in_the_file(path: Path) -> None:
    CachedJudge(Counting(), path).score(["a secret reply"], [["a secret context"]], ["bot"])
    assert b"secret" not in path.read_bytes()


@pytest.mark.parametrize(
    "content", [b"hello there, this is no cache at all" * 40, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_cache(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(SafetyError, match="cannot be used.*damaged.*Name another file") as caught:
        CachedJudge(Counting(), path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_file_that_is_damaged_later_or_cannot_be_made(path: Path, tmp_path: Path) -> None:
    cached = CachedJudge(Counting(), path)
    replies = [f"reply {index}" for index in range(3000)]
    cached.score(replies, [[]] * 3000, ["bot"] * 3000)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(SafetyError, match="cannot be used"):
        cached.score(replies, [[]] * 3000, ["bot"] * 3000)
    (tmp_path / "file").write_text("")
    with pytest.raises(SafetyError, match="cannot be used"):
        CachedJudge(Counting(), tmp_path / "file" / "scores")
    with pytest.raises(SafetyError, match="stored_at_once is 0"):
        CachedJudge(Counting(), path, stored_at_once=0)


def test_another_table_in_the_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (value TEXT)")
    CachedJudge(Counting(), path).score(["a"], [[]], ["bot"])
    assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()[0] == (
        "mine",
    )


def test_two_processes_share_a_file(path: Path) -> None:
    """Both write all the time, from the first moment on; at the end every score is there and none failed."""
    code = (
        "import sys\n"
        "from parlai_safety.judges.cache import CachedJudge\n"
        "from parlai_safety.judges.wordlist import WordListJudge\n"
        "judge = CachedJudge(WordListJudge(['odd']), sys.argv[1], stored_at_once=1)\n"
        "texts = [f'reply {i}' for i in range(int(sys.argv[2]), int(sys.argv[2]) + 150)]\n"
        "judge.score(texts, [[]] * 150, ['bot'] * 150)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(start)]) for start in (0, 75)]
    assert [process.wait(60) for process in running] == [0, 0]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM verdicts_1").fetchone() == (225,)
