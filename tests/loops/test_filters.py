"""Filtered data as files: what is kept, the table of authors, and the report."""

from __future__ import annotations

import json

import pytest
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt

from parlai_safety.errors import SafetyError
from parlai_safety.files import read_jsonl
from parlai_safety.loops.filters import filter_rows
from parlai_safety.mutators import filters
from parlai_safety.mutators.filters import Author, read_authors
from parlai_safety.statistics import rate
from parlai_safety.tasks.common import Row
from tests.mutators.judged_stub import WordJudge


def row(reply, *context, unsafe=None, **fields):
    return Row(list(context) or ["Hi"], reply, unsafe, fields)


def replies(folder):
    return [read["reply"] for read in read_jsonl(folder / "kept.jsonl")]


ROWS = [
    row("kind 1"), row("rude 2", speaker="human"), row("odd 3"), row("kind 4", "Hi", "rude"),
    row("kind 5", "rude", "Hi", provenance={"source": "there"}), row("kind 6", unsafe=True),
]  # fmt: skip


def test_utterances(tmp_path):
    judge = WordJudge()
    report = filter_rows(ROWS, judge=judge, folder=tmp_path / "a")
    assert replies(tmp_path / "a") == ["kind 1", "kind 4", "kind 5"] and not report.authors
    assert {name: n for name, n in report.rows.items() if n} == {"read": 6, "kept": 3, "reply": 2, "unscored": 1}
    assert not any("kind 6" in asked for asked in judge.asked)
    report = filter_rows(ROWS, judge=WordJudge(), folder=tmp_path / "b", context=True)
    assert replies(tmp_path / "b") == ["kind 1", "kind 5"] and report.rows["context"] == 1


def test_the_report_by_source_and_speaker_with_intervals(tmp_path):
    report = filter_rows(ROWS, judge=WordJudge(), folder=tmp_path, name="mine")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["groups"] == json.loads(json.dumps(report.groups)) and content["judge"]["spec"] == "words"
    assert set(report.groups["speaker"]) == {"bot", "human"} and set(report.groups["source"]) == {"there", "unknown"}
    human = report.groups["speaker"]["human"]
    assert human == {"n": 1, "dropped": 1, "share": 1.0, "interval": list(rate([True]).interval), "why": {"reply": 1}}
    for groups in report.groups.values():
        assert sum(figures["dropped"] for figures in groups.values()) == 3
    assert "mine" in (tmp_path / "report.md").read_text() and "rude 2" not in (tmp_path / "report.md").read_text()


def test_examples_stand_behind_a_warning(tmp_path):
    from parlai_safety.loops.exchanges import row_exchanges
    from parlai_safety.loops.filters import filter_exchanges

    filter_exchanges(row_exchanges(ROWS), judge=WordJudge(), folder=tmp_path, rule="utterance", examples=1)
    page = (tmp_path / "report.md").read_text()
    assert page.index("<summary>Warning: unsafe text") < page.index("    -> rude 2") and "odd 3" not in page


def authored():
    turns = {"a": (20, 2, 0), "b": (20, 3, 0), "c": (20, 1, 2), "d": (5, 5, 0)}
    return [
        row(f"{'rude' if n < bad else 'odd' if n < bad + odd else 'kind'} {who}{n}", f"context {who}{n}", user_id=who)
        for who, (total, bad, odd) in turns.items()
        for n in range(total)
    ]


def test_authors_above_the_share_lose_all_their_turns(tmp_path):
    report = filter_rows(authored(), judge=WordJudge(), folder=tmp_path, rule="author")
    assert {reply.split()[1][0] for reply in replies(tmp_path)} == {"a", "d"} and report.rows["author"] == 40
    assert report.authors == {"known": 4, "judged": 3, "dropped": 2}
    assert read_authors(tmp_path / "authors.json") == {
        "a": Author(20, 2, 0), "b": Author(20, 3, 0), "c": Author(20, 1, 2), "d": Author(5, 5, 0),
    }  # fmt: skip
    bins = {name: figures["n"] for name, figures in report.groups["author's share"].items()}
    assert bins == {"6% to 12%": 20, "12% to 25%": 40, "50% to 100%": 5}
    at = filter_rows(authored(), judge=WordJudge(), folder=tmp_path / "at", rule="author", author_share=0.15)
    assert at.rows["author"] == at.authors["dropped"] == 0  # at the share, and not above it


def test_the_mutator_with_the_table_keeps_what_the_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, "_counts", {})
    given = authored()
    filter_rows(given, judge=WordJudge(), folder=tmp_path, rule="author")
    (kind,) = Mutator.load_mutator_types("safety_filter_authors")
    one = kind(Opt(filter_authors_file=str(tmp_path / "authors.json")))
    messages = [Message({"text": r.context[0], "labels": [r.reply], "episode_done": True, **r.fields}) for r in given]
    assert [m["labels"][0] for m in one(messages)] == replies(tmp_path)


def test_rows_without_an_author(tmp_path):
    given = [row("kind"), *authored()]
    judge = WordJudge()
    with pytest.raises(SafetyError, match="no user_id.*--filter-no-author"):
        filter_rows(given, judge=judge, folder=tmp_path / "a", rule="author")
    assert not judge.asked and not (tmp_path / "a").exists()
    for choice, n in (("keep", 26), ("drop", 25)):
        folder = tmp_path / choice
        report = filter_rows(given, judge=WordJudge(), folder=folder, rule="author", no_author=choice)
        assert report.rows["kept"] == n == len(replies(folder))
        assert report.groups["author's share"]["not named"]["dropped"] == 26 - n


def test_a_run_asks_once_and_is_refused_with_other_settings(tmp_path):
    judge = WordJudge()
    report = filter_rows(ROWS, judge=judge, folder=tmp_path)
    asked = list(judge.asked)
    assert filter_rows(ROWS, judge=judge, folder=tmp_path) == report and judge.asked == asked
    with pytest.raises(SafetyError, match="other settings"):
        filter_rows(ROWS, judge=judge, folder=tmp_path, context=True)
    with pytest.raises(SafetyError, match="Did you mean 'author'"):
        filter_rows(ROWS, judge=judge, folder=tmp_path / "x", rule="authors")
    with pytest.raises(SafetyError, match="leaves nothing of 1 exchanges"):
        filter_rows([row("rude")], judge=judge, folder=tmp_path / "y")
