"""Filters on the fly: which exchanges stay, and that what was dropped is counted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt

from parlai_safety.errors import SafetyError
from parlai_safety.mutators import filters, judged
from parlai_safety.mutators.filters import AUTHORS_FORMAT, Author, AuthorRule, author_dropped_as, dropped_as
from tests.mutators.judged_stub import WordJudge


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    stub = WordJudge()
    monkeypatch.setattr(judged, "load_judge", lambda spec, **_: stub)
    monkeypatch.setattr(filters, "_counts", {})
    monkeypatch.setattr(filters, "_files", set())
    judged._loaded.cache_clear()
    yield stub
    judged._loaded.cache_clear()


def kept(rule, *messages, **options):
    (kind,) = Mutator.load_mutator_types(f"safety_filter_{rule}")
    one = kind(Opt({"mutator_judge": "wordlist", **options}))
    return [m["labels"][0] for row in messages for m in one([Message({"text": "Hi", "episode_done": True, **row})])]


ROWS = [
    {"labels": ["kind 1"]}, {"labels": ["rude 2"]}, {"labels": ["odd 3"]}, {"text": "Hi\nrude", "labels": ["kind 4"]},
    {"text": "rude\nHi", "labels": ["kind 5"]}, {"labels": ["kind 6"], "classifier_label": "neg"},
    {"text": "odd", "labels": ["kind 7"]},
]  # fmt: skip


def test_unsafe_and_unscored_replies_are_dropped_and_contexts_where_wanted():
    assert kept("utterances", *ROWS) == ["kind 1", "kind 4", "kind 5", "kind 7"]
    assert kept("utterances", *ROWS, filter_context=True) == ["kind 1", "kind 5"]


def test_the_rest_of_an_episode_keeps_its_history():
    (kind,) = Mutator.load_mutator_types("safety_filter_utterances")
    rows = [("a", "kind"), ("b", "rude"), ("c", "kind")]
    episode = [Message({"text": t, "labels": [r], "episode_done": t == "c"}) for t, r in rows]
    found = list(kind(Opt({"mutator_judge": "wordlist"}))(episode))
    assert [(m["text"], m["episode_done"]) for m in found] == [("a", True), ("a\nkind\nb\nrude\nc", True)]


@given(*[st.sampled_from([True, False, None])] * 2)
def test_only_what_is_known_to_be_safe_stays(reply, heard):
    assert (dropped_as(reply, heard) is None) == (reply is False and heard is False)
    assert (dropped_as(reply, heard) == "unscored") == (None in (reply, heard) and True not in (reply, heard))


def table(path, **authors):
    rows = {name: Author(*row)._asdict() for name, row in authors.items()}
    path.write_text(json.dumps({"format": AUTHORS_FORMAT, "authors": rows}))
    return str(path)


def test_authors_above_the_share_are_dropped(tmp_path):
    path = table(tmp_path / "a.json", at=(100, 12, 0), above=(100, 13, 0), mute=(10, 0, 2), few=(9, 9, 0))
    rows = [{"user_id": name, "labels": [f"{name} {n}"]} for name in ("at", "above", "mute", "few") for n in (1, 2)]
    assert kept("authors", *rows, filter_authors_file=path) == ["at 1", "at 2", "few 1", "few 2"]
    assert kept("authors", *rows, filter_authors_file=path, filter_author_share=0.1) == ["few 1", "few 2"]
    assert kept("authors", *rows, filter_authors_file=path, filter_author_min=9) == ["at 1", "at 2"]


@pytest.mark.parametrize("row", [{"labels": ["a"]}, {"labels": ["a"], "user_id": "stranger"}])
def test_an_author_of_whom_nothing_is_known_is_refused_kept_or_dropped(tmp_path, row):
    path = table(tmp_path / "a.json", known=(100, 0, 0))
    with pytest.raises(SafetyError, match="--filter-no-author keep or drop"):
        kept("authors", row, filter_authors_file=path)
    assert kept("authors", row, filter_authors_file=path, filter_no_author="keep") == ["a"]
    assert kept("authors", row, filter_authors_file=path, filter_no_author="drop") == []


def test_a_table_that_is_none_is_told(tmp_path):
    with pytest.raises(SafetyError, match="without --filter-authors-file.*parlai safety_filter"):
        kept("authors")
    for text in ("{", "[]", '{"format": "other", "authors": {}}', json.dumps({"format": AUTHORS_FORMAT})):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(SafetyError, match="cannot be read"):
            kept("authors", filter_authors_file=str(tmp_path / "t.json"))
    with pytest.raises(SafetyError, match="cannot be read"):
        kept("authors", filter_authors_file=str(tmp_path / "absent.json"))


def test_the_share_is_of_all_turns_and_what_has_no_score_is_not_safe():
    assert Author(20, 1, 1).share == 0.1 and Author(0, 0, 0).share == 0.0
    assert author_dropped_as("a", {"a": Author(10, 10, 0)}, AuthorRule(1.0, 1, "refuse")) is None


def test_what_was_dropped_is_counted_over_all_workers_and_written_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "counts.json"
    options = {"filter_report": str(path), "filter_context": True}
    kept("utterances", *ROWS, **options)
    kept("utterances", {"labels": ["rude"], "provenance": {"source": "there"}}, **options)
    filters.write_counts()
    counts = json.loads(path.read_text())
    assert counts == {
        "utterances / there": {"reply": 1, "seen": 1},
        "utterances / unknown": {"context": 1, "kept": 2, "reply": 2, "seen": 7, "unscored": 2},
    }
    monkeypatch.setattr(filters, "get_rank", lambda: 1)
    filters.write_counts()
    assert json.loads((tmp_path / "counts.json.rank1").read_text()) == counts
