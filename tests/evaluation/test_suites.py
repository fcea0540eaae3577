"""Suites: what is asked stays the same, and every way to name one works or says why it does not."""

from __future__ import annotations

import json

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import suites
from parlai_safety.evaluation.suites import known_suites, load_suite, with_partner

SHIPPED = ("adversarial", "ordinary", "prompts", "overrefusal", "identity", "multiturn")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suites(name):
    suite = load_suite(name)
    assert suite.items and suite.version >= 1 and len(suite.about) > 40
    assert all(item.context and all(turn.strip() for turn in item.context) for item in suite.items)
    assert suite.sha256 == load_suite(name).sha256
    fewer = load_suite(name, limit=5)
    assert len(fewer.items) == 5 and set(fewer.items) <= set(load_suite(name, limit=None).items)
    assert fewer.sha256 != suite.sha256
    assert len(load_suite(name, samples=3).sha256) == 64 and load_suite(name, samples=3).samples == 3


def test_counts_and_kinds():
    found = {name: load_suite(name, limit=None) for name in SHIPPED}
    assert len(found["adversarial"].items) == 565
    assert {item.category for item in found["adversarial"].items} == {
        "insult", "hateful_generalisation", "provocation", "probing", "bait_and_agree"
    }  # fmt: skip
    assert all(item.references for item in found["ordinary"].items)
    assert found["prompts"].kind == "continuations" and found["prompts"].samples == 25
    assert found["multiturn"].kind == "conversations"
    assert all(len(item.script) == 6 for item in found["multiturn"].items), "seven turns: one opens, six follow"
    assert len({item.group for item in found["identity"].items}) >= 30


def test_a_partner_that_is_a_model_opens_and_has_no_script():
    talk = with_partner(load_suite("multiturn"))
    assert len(talk.items) >= 20 and not any(item.script for item in talk.items)
    assert with_partner(load_suite("ordinary")) == load_suite("ordinary")


def test_real_data(real_data):
    for name, n in (("adversarial", 300), ("ordinary", 300), ("prompts", 1000)):
        suite = load_suite(name, data=real_data, limit=None)
        assert len(suite.items) > n, name
        assert suite.sha256 != load_suite(name, limit=None).sha256
    assert {item.category for item in load_suite("prompts", data=real_data).items} == {"challenging", "other"}


def test_a_file_of_contexts(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"context": ["Hello."], "category": "a"}, {"context": ["Hi.", "Hi.", "Well?"], "reference": "Fine."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_suite(f"file:{path}")
    assert [item.context for item in suite.items] == [("Hello.",), ("Hi.", "Hi.", "Well?")]
    assert suite.items[1].references == ("Fine.",) and suite.items[0].category == "a"


def test_a_parlai_task_with_several_turns_an_episode():
    suite = load_suite("task:integration_tests:multiturn", limit=8)
    assert len(suite.items) == 8
    assert any(len(item.context) > 1 for item in suite.items), "the turns before it in its episode are its context"
    assert all(item.references for item in suite.items)
    assert len(load_suite("task:safety:tiny:adversarial", limit=5).items) == 5


def test_bad_names_and_numbers(tmp_path):
    with pytest.raises(SafetyError, match="Did you mean 'adversarial'"):
        load_suite("adversial")
    with pytest.raises(SafetyError, match="limit 0"):
        load_suite("ordinary", limit=0)
    with pytest.raises(SafetyError, match="There is no file safety_labels"):
        load_suite("adversarial", data=tmp_path)
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "a", "context": ["x"]}\n' * 2)
    with pytest.raises(SafetyError, match="2 items with 1 different ids"):
        load_suite(f"file:{twice}")
    assert "task:NAME" in known_suites()
    letters = tmp_path / "letters.jsonl"
    letters.write_text('{"context": ["x"], "references": "good one"}\n')
    with pytest.raises(SafetyError, match="a reference that is not text"):
        load_suite(f"file:{letters}")


def test_real_contexts_are_of_the_test_split_and_of_bots(tmp_path):
    """Training rows, and what people said, are asked of no system."""
    import gzip

    from parlai_safety.tasks.common import split_of

    talks = [f"Talk number {k}, is it not?" for k in range(60)]
    rows = [
        {"context": [first], "response": "Yes.", "label": "safe", "source": "s", "speaker": speaker}
        for first in talks
        for speaker in ("bot", "human")
    ]
    rows += [{**rows[0], "context": [first, "And then?"], "speaker": "human"} for first in talks]
    chats = [{"turns": [first, "Yes.", "Well?", "No."], "source": "c"} for first in talks]
    for name, listed in (("safety_labels", rows), ("ordinary_dialogue", chats)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in listed)
    wanted = {first for first in talks if split_of(first) == "test"}
    assert 0 < len(wanted) < 30
    hostile = load_suite("adversarial", data=tmp_path)
    assert {item.context for item in hostile.items} == {(first,) for first in wanted}
    everyday = load_suite("ordinary", data=tmp_path)
    assert {item.context[0] for item in everyday.items} == wanted
    assert {item.conversation for item in everyday.items} == wanted, "turns of one dialogue are not independent"
    assert hostile.file == "safety_labels.jsonl.gz" and len(hostile.file_sha256) == 64


def test_the_sets_that_people_judge(tmp_path):
    """Read by the teachers of Bot-Adversarial Dialogue, here from its stand-in: all turns, and no reference."""
    from parlai_safety.tasks.standins import standin_folder

    folder = str(standin_folder(tmp_path))
    for name in ("human_adversarial", "human_nonadversarial"):
        suite = load_suite(name, datapath=folder)
        assert suite.items and suite.kind == "replies" and suite.offensive
        assert not any(item.references for item in suite.items), "what a bot once said is no reply to wish for"
        assert name in known_suites()
    assert any(len(item.context) > 2 for item in load_suite("human_adversarial", datapath=folder).items)


def test_without_their_data_they_say_what_to_do(monkeypatch):
    def gone(task, datapath):
        raise SafetyError("It could not be downloaded", "The host is gone", "Use --safety-standin true")

    monkeypatch.setattr(suites, "_task_turns", gone)
    with pytest.raises(SafetyError, match="'human_adversarial' has no data.*The host is gone.*--suite adversarial"):
        load_suite("human_adversarial")
