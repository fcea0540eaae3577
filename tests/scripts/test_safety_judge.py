"""`parlai safety_judge`: in this process where only the words count, in its own where the streams do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.scripts.safety_judge import SafetyJudge

COMMAND = [sys.executable, "-m", "parlai_safety", "safety_judge"]


def run(*arguments: str) -> None:
    SafetyJudge.main(*arguments)


@pytest.fixture
def words(tmp_path: Path) -> str:
    (tmp_path / "words.txt").write_text("rude\n")
    return f"wordlist:{tmp_path}/words.txt"


def test_one_reply(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--text", "How rude.", "--judge", words)
    run("--text", "Good day.", "--judge", words, "--threshold", "0.25")
    run("--text", "  ", "--judge", words)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        f"unsafe  p_unsafe 1.0000  threshold 0.5000  {words}",
        f"safe  p_unsafe 0.0000  threshold 0.2500  {words}",
        f"unscored  (the reply is empty)  threshold 0.5000  {words}",
    ]
    assert shown.err.count("A word list is near chance") == 3


def test_the_context_and_the_speaker_reach_the_judge(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from parlai_safety.judges import scored

    seen = []

    class Seeing:
        spec, threshold, fingerprint = "linear:x", 0.5, ""

        def score(self, *batch: Any) -> Any:
            seen.append(batch)
            return [scored(0.25)]

    monkeypatch.setattr("parlai_safety.judges.load_judge", lambda *_, **__: Seeing())
    run("--text", "c", "--judge", "linear:x", "--context", "a", "--context", "b", "--speaker", "human")
    run("--text", "c", "--judge", "linear:x", "--context", "a\\nb")
    run("--text", "c", "--judge", "linear:x", "--context", "a\nb")
    assert seen == [(["c"], [["a", "b"]], ["human"])] + [(["c"], [["a", "b"]], ["bot"])] * 2
    assert "near chance" not in capsys.readouterr().err


def test_a_file_of_rows(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"reply": "How rude.", "context": ["Hello."], "id": 7},
        {"response": "Good day.", "speaker": "human"},
        {"text": " "},
        {"reply": "Caf\u00e9?", "context": None},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("--file", f"{tmp_path}/in.jsonl", "--out", f"{tmp_path}/new/out.jsonl", "--judge", words)
    lines = (tmp_path / "new" / "out.jsonl").read_text(encoding="utf-8").splitlines()
    added = [
        {"p_unsafe": 1.0, "verdict": "unsafe", "reason": None},
        {"p_unsafe": 0.0, "verdict": "safe", "reason": None},
        {"p_unsafe": None, "verdict": "unscored", "reason": "the reply is empty"},
        {"p_unsafe": 0.0, "verdict": "safe", "reason": None},
    ]
    assert [json.loads(line) for line in lines] == [row | more for row, more in zip(rows, added, strict=True)]
    shown = capsys.readouterr()
    assert shown.out == ""
    # Wilson, 1 of 3: centre (1 + 1.96**2 / 2) / (3 + 1.96**2) = 0.427, half width 0.366.
    assert "4 replies: 1 unsafe, 2 safe, 1 unscored. 33.3 % [6.1, 79.2] of those scored are unsafe" in shown.err


def test_standard_output_holds_rows_and_nothing_else(words: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("How rude.\n\nGood day.\n", encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "--file", "in.txt", "--judge", words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["reply"], row["verdict"]) for row in rows] == [
        ("How rude.", "unsafe"),
        ("", "unscored"),
        ("Good day.", "safe"),
    ]
    assert "3 replies: 1 unsafe, 1 safe, 1 unscored" in done.stderr


def test_what_parlai_prints_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from parlai.utils import logging

    from parlai_safety.judges.wordlist import WordListJudge

    def talkative(*_: Any, **__: Any) -> WordListJudge:
        logging.logger.error("loading a model")  # shown at whatever level an earlier test left behind
        sys.stdout.write("weights: 100 %\n")
        return WordListJudge(["rude"])

    monkeypatch.setattr("parlai_safety.judges.load_judge", talkative)
    stream = logging.logger.streamHandler.stream
    run("--text", "How rude.", "--judge", "linear:x")
    shown = capsys.readouterr()
    assert shown.out == "unsafe  p_unsafe 1.0000  threshold 0.5000  wordlist\n"
    assert "loading a model" in shown.err and "weights: 100 %" in shown.err
    assert logging.logger.streamHandler.stream is stream


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "wordlist"], "neither --text nor --file.*Give --text"),
        (["--judge", "wordlist", "--text", "a", "--file", "b"], "both --text and --file"),
        (["--text", "a"], "no --judge.*parlai safety_judges --out judges"),
        (["--judge", "wordlist", "--file", "a.jsonl", "--context", "b"], "--context without --text"),
        (["--judge", "wordlist", "--text", "a", "--out", "b"], "--out without --file"),
        (["--judge", "wordlits", "--text", "a"], "Did you mean 'wordlist'"),
        (["--judge", "wordlist", "--text", "a", "--threshold", "1.5"], "threshold is 1.5"),
        (["--judge", "wordlist", "--file", "missing.jsonl"], "no file 'missing.jsonl'"),
        (["--judge", "wordlist", "--file", "missing.txt"], "'missing.txt' cannot be read"),
    ],
)
def test_what_cannot_be_judged(arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SafetyError, match=message) as caught:
        run(*arguments)
    assert all((caught.value.got, caught.value.why, caught.value.instead))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "x"}, "Row 1 .* has no reply"),
        ({"reply": "a", "text": "b"}, "the fields reply and text"),
        ({"reply": 7}, "a int as 'reply'"),
        ({"reply": "a", "context": "b"}, "a str as 'context'"),
        ({"reply": "a", "speaker": "robot"}, "speaker 'robot'"),
    ],
)
def test_a_row_that_cannot_be_read(row: dict[str, Any], message: str, tmp_path: Path, words: str) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    with pytest.raises(SafetyError, match=message):
        run("--file", f"{tmp_path}/in.jsonl", "--out", f"{tmp_path}/out.jsonl", "--judge", words)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_judge_of_topics_names_the_topic():
    """Its "unsafe" means a sensitive topic, so the topic stands beside it."""
    from parlai_safety.judges.topics import TopicJudge
    from parlai_safety.scripts.safety_judge import _judge_text
    from tests.judges.test_topics import Fixed

    judge = TopicJudge(Fixed(), spec="topics:x.npz")
    assert _judge_text(judge, "b", [], "bot") == "unsafe  p_unsafe 0.9000  topic drugs  threshold 0.5000  topics:x.npz"
    assert "topic none" in _judge_text(judge, "c", [], "bot") and "topic" not in _judge_text(judge, "", [], "bot")[:30]
