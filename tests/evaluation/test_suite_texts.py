"""The texts of the suites that ship: their schema, their counts, and that training never sees them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

import parlai_safety
from parlai_safety.corpus.load import load_adversarial, load_ordinary
from parlai_safety.corpus.near import near_pairs, tokens
from parlai_safety.corpus.records import STYLES

FOLDER = Path(parlai_safety.__file__).parent / "evaluation" / "suites"
HEAD = ["name", "version", "kind", "title", "about", "offensive"]
LONGEST = 300
NAMES = ("overrefusal", "prompts", "multiturn")
UNUSUAL = re.compile(r"https?:|www\.|\w@\w|\d{5,}|[<>{}\[\]_\\]|  |[^\x20-\x7e]|^\s|\s$|^$")
TOPICS = "idiom cooking medicine history fiction home games feelings identity news safety".split()


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def suites():
    return {name: read(name) for name in NAMES}


def texts(suite):
    """Every text of a suite: the last turns, the prompts, the scripted turns and the openers."""
    for item in suite["items"]:
        yield from item.get("context") or item.get("turns") or [item["prompt"]]
    yield from suite.get("openers", [])


def own_words(suite):
    """The texts by which items differ: a short bot turn inside a context may recur, a turn to be answered may not."""
    for item in suite["items"]:
        yield from item["context"][-1:] if "context" in item else item.get("turns") or [item["prompt"]]
    yield from suite.get("openers", [])


def counts(rows):
    return Counter(row["category"] for row in rows)


@pytest.mark.parametrize(
    "name, kind, offensive, rest",
    [
        ("overrefusal", "replies", False, ["items"]),
        ("prompts", "continuations", True, ["samples", "items"]),
        ("multiturn", "conversations", True, ["items", "openers"]),
    ],
)
def test_the_head_of_a_suite(suites, name, kind, offensive, rest):
    suite = suites[name]
    assert list(suite) == HEAD + rest
    assert (suite["name"], suite["version"], suite["kind"], suite["offensive"]) == (name, 1, kind, offensive)
    assert 10 <= len(suite["title"]) <= 60
    assert 2 <= len(re.findall(r"\.(?:\s|$)", suite["about"])) <= 4
    assert "developers of this project wrote them" in suite["about"]


def test_over_refusal_probes(suites):
    items = suites["overrefusal"]["items"]
    assert counts(items) == dict.fromkeys(TOPICS, 14) and len(items) == 154
    for item in items:
        assert list(item) == ["id", "category", "context"], item["id"]
        assert re.fullmatch(rf"{item['category']}-\d\d", item["id"])
        # The human speaks first and last, as everywhere in this package.
        assert len(item["context"]) in (1, 3), item["id"]
        assert all(turn[-1] in ".?!" for turn in item["context"]), item["id"]
    assert Counter(len(item["context"]) for item in items) == {1: 110, 3: 44}


def test_prompts_stop_in_the_middle(suites):
    assert suites["prompts"]["samples"] == 25
    items = suites["prompts"]["items"]
    provoking = dict.fromkeys(["quarrel", "contempt", "complaint", "gossip", "rant"], 12)
    assert counts(items) == {"neutral": 60, **provoking} and len(items) == 120
    for item in items:
        assert list(item) == ["id", "category", "prompt"], item["id"]
        assert re.fullmatch(rf"{item['category']}-\d\d", item["id"])
        assert item["prompt"][-1] not in ".?!\"'", item["id"]
        assert 3 <= len(item["prompt"].split()) <= 20, item["id"]


def test_conversations_have_seven_turns(suites):
    items = suites["multiturn"]["items"]
    assert counts(items) == {
        "insult": 6,
        "hateful_generalisation": 6,
        "bait_and_agree": 6,
        "provocation": 5,
        "probing": 5,
        "ordinary": 4,
    }
    assert set(counts(items)) == {*STYLES, "ordinary"}
    for item in items:
        assert list(item) == ["id", "category", "turns"], item["id"]
        assert re.fullmatch(rf"{item['category']}-[a-z-]+", item["id"])
        assert len(item["turns"]) == 7, item["id"]
        assert all(turn[-1] in ".?!" for turn in item["turns"]), item["id"]


def test_openers_for_a_partner_that_is_a_model(suites):
    openers = suites["multiturn"]["openers"]
    assert len(openers) == 24 and len(set(openers)) == 24
    assert all(opener[-1] in ".?!" for opener in openers)
    assert not set(openers) & {item["turns"][0] for item in suites["multiturn"]["items"]}


def test_ids_are_unique_over_all_suites(suites):
    ids = [item["id"] for suite in suites.values() for item in suite["items"]]
    assert len(ids) == 154 + 120 + 32
    assert len(set(ids)) == len(ids)


def test_texts_are_unique_over_all_suites(suites):
    found = [" ".join(tokens(text)) for suite in suites.values() for text in own_words(suite)]
    assert len(found) == 154 + 120 + 32 * 7 + 24
    assert [text for text, count in Counter(found).items() if count > 1] == []
    assert list(near_pairs(found, 0.8)) == []


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_plain_and_short(suites, name):
    for text in texts(suites[name]):
        assert isinstance(text, str) and text.isprintable(), text
        assert not UNUSUAL.search(text), text
        assert 8 <= len(text) <= LONGEST, text


def test_training_never_sees_a_text_of_the_suites(suites):
    seen = [turn for row in load_ordinary("train") for turn in row["turns"]]
    for row in load_adversarial("train"):
        seen += [*row["context"], *(reply["text"] for reply in row["replies"])]
    assert len(seen) > 20_000
    seen = {" ".join(tokens(text)) for text in seen}
    suite_texts = {" ".join(tokens(text)) for suite in suites.values() for text in texts(suite)}
    assert suite_texts & seen == set()
