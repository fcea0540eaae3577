"""The mutators that say behind which control tokens a reply is learned; what they make of messages is in files."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt
from parlai.scripts.display_data import DisplayData

from parlai_safety.errors import SafetyError
from parlai_safety.mutators.control import GENDER_BINS, gender_bin, gender_words, style_name


def mutate(names: str, rows: list[dict[str, Any]], **opt: Any) -> list[dict[str, Any]]:
    """The rows, each an episode, through mutators one after the other, as ParlAI chains them."""
    found = [Message(row) for row in rows]
    for kind in Mutator.load_mutator_types(names):
        mutator = kind(Opt(opt))
        found = [message for one in found for message in mutator([one])]
    return [dict(message) for message in found]


def row(reply: str, **fields: Any) -> dict[str, Any]:
    return {"text": "Hello.", "labels": [reply], "episode_done": True, **fields}


def test_labels_say_what_is_safe_where_they_are_the_source():
    rows = [row("a", classifier_label=label) for label in ("pos", "neg", "none")] + [row("b")]
    found = mutate("safety_control_safety", rows, control_source="label")
    assert [(m.get("control"), m.get("classifier_label")) for m in found] == [
        ("safe", "none"), ("unsafe", "none"), (None, "none"), (None, None),
    ]  # fmt: skip


def test_the_judge_is_asked_for_each_reply_in_its_place(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("dim lamp\n")
    rows = [row("You dim\nlamp."), row("Hello, lamp."), row("", classifier_label="neg")]
    found = mutate("safety_control_safety", rows, mutator_judge=f"wordlist:{words}")
    assert [m.get("control") for m in found] == ["unsafe", "safe", None]


def test_without_judge_score_or_label_it_says_what_is_missing():
    with pytest.raises(SafetyError, match="--mutator-judge"):
        mutate("safety_control_safety", [row("a", classifier_label="neg")])
    with pytest.raises(SafetyError, match="--control-source got 'guess'"):
        mutate("safety_control_safety", [row("a")], control_source="guess")


def test_they_chain_and_write_the_text_only_where_that_is_asked_for():
    rows = [row("The queen is dim.", classifier_label="neg", style="Calm")]
    names = "safety_control_safety+safety_control_gender+safety_control_style"
    (plain,) = mutate(names, rows, control_source="label")
    assert plain["control"] == ["unsafe", "f1m0", "calm"] and plain["text"] == "Hello."
    (told,) = mutate(names, rows, control_source="label", control_text=True)
    assert told["control"] == plain["control"] and told["text"] == "Hello. [UNSAFE] [F1M0] [CALM]"
    (toxic,) = mutate("safety_control_gender+safety_toxic_token", rows)
    assert toxic["control"] == ["f1m0", "toxic"]


def test_styles_that_are_not_wanted_or_mean_something_else():
    rows = [row("a", style=style) for style in ("Calm", "Cheerful", "Old-fashioned")]
    found = mutate("safety_control_style", rows, control_styles="calm, old fashioned")
    assert [m.get("control") for m in found] == ["calm", None, "old_fashioned"]
    odd = [row("a", style=style) for style in ("Unsafe", "\u00e9gal", "Calm")]
    found = mutate("safety_control_style", odd, control_styles="calm")
    assert [m.get("control") for m in found] == [None, None, "calm"]
    for style in ("toxic", "Unsafe", "f0m0", "?", "\u00e9gal"):
        with pytest.raises(SafetyError, match="met the style"):
            style_name(style)


def test_the_lists_are_lists_of_words():
    female, male = gender_words()
    assert len(female) >= 120 and len(male) >= 120 and not female & male
    assert all(re.fullmatch("[a-z]+", word) for word in female | male)


@given(st.sampled_from(sorted(gender_words()[0])), st.sampled_from(sorted(gender_words()[1])), st.booleans())
def test_words_count_whole_in_any_case_and_with_a_possessive(female, male, curly):
    mark = "\u2019" if curly else "'"
    assert gender_bin(f"a {female.upper()}.") == "f1m0" and gender_bin(f"({male.title()}{mark}s hat)") == "f0m1"
    assert gender_bin(f"{male}, {female}{mark}") == "f1m1"
    assert gender_bin(f"x{female} {male}x {female}_{male}x".replace("_", "q")) == "f0m0"
    assert gender_bin("") == GENDER_BINS[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("my fianc\u00e9e", "f1m0"),
        ("my fiance\u0301e", "f1m0"),
        ("my fianc\u00e9", "f0m1"),
        ("She'll go.", "f1m0"),
        ("my mother-in-law", "f1m0"),
        ("she/he", "f1m1"),
        ("the ladies' room, Mr. X", "f1m1"),
        ("The theme is here: a shepherd, human sonnets.", "f0m0"),
    ],
)
def test_accents_contractions_and_hyphens(text, found):
    assert gender_bin(text) == found


def test_the_flags_of_a_chain_are_added_once():
    names = "safety_control_safety+safety_control_gender+safety_control_style"
    more = {"control_source": "label", "control_text": True, "control_styles": "calm"}
    opt = DisplayData.setup_args().parse_kwargs(task="safety:tiny", mutators=names, loglevel="error", **more)
    assert {name: opt[name] for name in more} == more and opt["mutator_judge"] is None
