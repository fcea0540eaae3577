"""The message schema as code."""

from __future__ import annotations

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.message import FIELDS, check_message, join_context

GOOD = {
    "classifier_label": "neg",
    "is_ltr": True,
    "rejected": ["a"],
    "toxic": [],
    "control": "toxic",
    "toxicity": 0.5,
    "context_toxicity": 0.0,
    "topic": "politics",
    "guard": {"trigger": None},
    "speaker": "bot",
    "user_id": "u1",
    "feedback": {"liked": True},
    "provenance": {"seed": 1},
}
BAD = {
    "classifier_label": "bad",
    "is_ltr": 1,
    "rejected": "a",
    "toxic": [1],
    "control": "TOXIC",
    "toxicity": 1.5,
    "context_toxicity": "0.5",
    "topic": ["politics"],
    "guard": "reply",
    "speaker": "robot",
    "user_id": 7,
    "feedback": [],
    "provenance": "web",
}


def test_the_samples_cover_every_field():
    assert set(GOOD) == set(BAD) == set(FIELDS)


def test_good_values_pass():
    check_message({"text": "hi", **GOOD}, "here")
    check_message({"text": "hi"}, "here")


@pytest.mark.parametrize("name", list(BAD))
def test_each_bad_value_is_named(name):
    with pytest.raises(SafetyError, match=f"row 3 has '{name}'"):
        check_message({**GOOD, name: BAD[name]}, "row 3")


def test_toxicity_of_an_unscored_label_is_absent_not_none():
    with pytest.raises(SafetyError):
        check_message({"toxicity": None}, "here")


def test_a_turn_never_becomes_two():
    assert join_context(["one\ntwo", " three "]) == "one two\nthree"
