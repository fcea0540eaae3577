"""Baking on the fly: what is replaced, by what, and that nothing of the old reply stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt

from parlai_safety.corpus.canned import canned_kind, canned_reply
from parlai_safety.errors import SafetyError
from parlai_safety.message import check_message
from parlai_safety.mutators import judged
from parlai_safety.mutators.bake import Flags, because_of, is_kept, kind_of, shares_kept, targets_of
from tests.mutators.judged_stub import WordJudge


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    stub = WordJudge()
    monkeypatch.setattr(judged, "load_judge", lambda spec, **_: stub)
    judged._loaded.cache_clear()
    yield stub
    judged._loaded.cache_clear()


def bake(*episodes, **options):
    """What becomes of episodes of (text, label) or of messages."""
    (kind,) = Mutator.load_mutator_types("safety_bake")
    one = kind(Opt({"mutator_judge": "wordlist", **options}))
    found = []
    for episode in episodes:
        turns = [
            dict(zip(("text", "labels"), (t[0], [t[1]]), strict=True)) if isinstance(t, tuple) else t for t in episode
        ]
        messages = [Message({**turn, "episode_done": turn is turns[-1]}) for turn in turns]
        found += list(one(messages))
    return found


def because(message):
    return message.get("provenance", {}).get("baked", {}).get("because")


CASES = {
    "reply": ("Hi\nkind", "rude"),
    "context": ("Hi\nrude", "kind"),
    "both": ("rude", "rude"),
    "unscored": ("Hi", "odd"),
    None: ("rude\nkind", "kind"),
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("either", ["reply", "context", "both", "unscored", None]),
        ("reply", ["reply", None, "reply", "unscored", None]),
        ("context", [None, "context", "context", None, None]),
    ],
)
def test_the_rule_says_which_turn_counts(rule, expected):
    found = bake(*[[case] for case in CASES.values()], bake_rule=rule)
    assert [because(m) for m in found] == expected
    for message, (text, label) in zip(found, CASES.values(), strict=True):
        assert message["text"] == text and message["episode_done"]
        if because(message) is None:
            assert message["labels"] == [label] and "provenance" not in message
        else:
            assert canned_kind(message["labels"][0]) == "nonsequitur"


def test_the_target_depends_on_context_and_seed_and_on_nothing_else():
    one, same = bake([("a\nrude", "kind")], [("a\nrude", "rude")])
    assert one["labels"] == same["labels"] == [canned_reply("nonsequitur", ["a", "rude"], seed=1, avoid=["kind"])]
    (other,) = bake([("a\nrude", "kind")], bake_seed=2)
    assert other["labels"] != one["labels"] and other["provenance"]["baked"]["seed"] == 2
    (evaluated,) = bake([{"text": "a\nrude", "eval_labels": ["kind"]}])
    assert evaluated["eval_labels"] == one["labels"] and "labels" not in evaluated


def test_nothing_of_the_old_reply_stays():
    old = "The old rude reply."
    message = {
        "text": "Hi", "labels": [old, "kind"], "label_candidates": [old], "classifier_label": "neg", "is_ltr": True,
        "rejected": [old, "rude other"], "toxic": ["rude toxic"], "toxicity": 0.9, "context_toxicity": 0.1,
        "user_id": "u", "feedback": {"text": old}, "topic": "none", "guard": {"trigger": old}, "speaker": "bot",
        "full_text": old, "control": ["unsafe", "f0m1"],
        "provenance": {
            "source": "here", "classifier_label": {"pseudo": True},
            "toxicity": {"judge": "words", "threshold": 0.5, "unscored": old},
        },
    }  # fmt: skip
    (baked,) = bake([message], bake_target="safe")
    assert old not in json.dumps(baked)
    assert set(baked) == {
        "text", "labels", "classifier_label", "is_ltr", "rejected", "toxic", "context_toxicity", "speaker",
        "provenance", "episode_done",
    }  # fmt: skip
    assert (baked["rejected"], baked["toxic"], baked["classifier_label"]) == (["rude other"], ["rude toxic"], "pos")
    assert baked["provenance"] == {
        "source": "here",
        "toxicity": {"judge": "words", "threshold": 0.5},
        "baked": {"kind": "safe", "because": "reply", "judge": "words", "seed": 1},
    }
    check_message(baked, "the baked message")


@pytest.mark.parametrize(("before", "after"), [("neg", "pos"), ("pos", "pos"), ("none", "none"), (None, None)])
def test_the_class_of_a_replaced_reply(before, after):
    fields = {} if before is None else {"classifier_label": before}
    (baked,) = bake([{"text": "a", "labels": ["rude"], **fields}])
    assert baked.get("classifier_label") == after


def test_what_people_call_a_reply_to_avoid_is_replaced_whatever_the_judge_says():
    message = {"text": "Hi", "labels": ["kind"], "classifier_label": "neg"}
    assert because(bake([message])[0]) == "reply"
    assert because(bake([message], bake_rule="context")[0]) is None


def test_an_unscored_reply_is_baked_or_dropped_and_never_safe():
    assert [because(m) for m in bake([("Hi", "odd")], [("odd", "kind")])] == ["unscored"] * 2
    assert bake([("Hi", "odd")], [("odd", "kind")], bake_unscored="drop") == []
    assert because(bake([("odd", "rude")], bake_unscored="drop")[0]) == "reply"


def test_recovery_answers_somebody_who_was_spoken_to_badly_and_other_replies_are_safe(judge):
    for target, otherwise in (("recovery", "safe"), ("recovery,nonsequitur", "nonsequitur")):
        found = bake(
            [("Hi\nrude\nThat hurt.", "kind")], [("rude", "kind")], [("a\nkind\nrude", "kind")], bake_target=target
        )
        assert [m["provenance"]["baked"]["kind"] for m in found] == ["recovery", otherwise, otherwise]
        assert because(found[0]) == "bot turn" and canned_kind(found[0]["labels"][0]) == "recovery"
        assert ("rude", ("Hi",), "bot") in judge.asked
    assert because(bake([("Hi\nrude\nThat hurt.", "kind")])[0]) is None


def test_messages_of_an_episode_stand_alone_with_their_history(judge):
    found = bake([("Hi", "rude one"), ("Why?", "kind"), ("Bye", "kind")])
    assert [m["text"] for m in found] == ["Hi", "Hi\nrude one\nWhy?", "Hi\nrude one\nWhy?\nkind\nBye"]
    assert [because(m) for m in found] == ["reply", None, None] and all(m["episode_done"] for m in found)
    assert ("Why?", ("Hi", "rude one"), "human") in judge.asked


def test_weights_are_met_over_many_contexts():
    targets = targets_of("safe:1, nonsequitur:3")
    kinds = [kind_of("reply", [f"context {n}"], targets, 1) for n in range(4000)]
    assert abs(kinds.count("safe") / 4000 - 0.25) < 0.03
    assert kinds != [kind_of("reply", [f"context {n}"], targets, 2) for n in range(4000)]


@pytest.mark.parametrize("target", ["mild", "safe,safe", "safe:0", "safe:-1", "safe:x", "safe:nan", "safe:inf", ""])
def test_a_bad_target_is_told(target):
    with pytest.raises(SafetyError, match="--bake-target got"):
        targets_of(target)


def test_contextual_replies_are_not_made_on_the_fly():
    with pytest.raises(SafetyError, match="parlai safety_bake --bake-target contextual"):
        bake(bake_target="safe:1,contextual:1")


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_the_shares_that_are_kept_give_the_ratio(share, ratio):
    untouched, replaced = shares_kept(share, ratio)
    shown = share * replaced, (1 - share) * untouched
    assert shown[0] / sum(shown) == pytest.approx(ratio) and max(untouched, replaced) == 1.0


def test_the_ratio_is_met_over_many_messages():
    for share, ratio in ((0.1, 0.5), (0.6, 0.2)):
        kept = shares_kept(share, ratio)
        baked = [n % 10 < share * 10 for n in range(8_000)]
        shown = [b for n, b in enumerate(baked) if is_kept(kept, b, [f"c{n}"], "r", 1)]
        assert abs(sum(shown) / len(shown) - ratio) < 0.03
    assert shares_kept(None, 0.0) == (1.0, 1.0) and shares_kept(1.0, 1.0) == (1.0, 1.0)
    rows = [[("a", f"kind {n}")] for n in range(400)] + [[("rude", f"kind {n}")] for n in range(100)]
    found = bake(*rows, bake_ratio=0.5, bake_share=0.2)
    assert sum(because(m) is not None for m in found) == 100 and 70 < len(found) - 100 < 130


@pytest.mark.parametrize(("share", "ratio"), [(None, 0.5), (0.0, 0.5), (1.0, 0.5)])
def test_a_ratio_without_a_share_is_told(share, ratio):
    with pytest.raises(SafetyError, match="--bake-ratio got 0.5.*--bake-share"):
        bake(bake_ratio=ratio, bake_share=share)


def test_a_message_without_a_label_stays():
    assert bake([{"text": "rude"}]) == [{"text": "rude", "episode_done": True}]


FLAG = st.sampled_from([True, False, None])


@given(FLAG, FLAG, FLAG)
def test_only_what_is_known_to_be_safe_stays(reply, context, bot_turn):
    why = because_of(Flags(reply, context, bot_turn))
    assert (why is None) == (reply is False and context is False and bot_turn is False)
    assert (why == "unscored") == (True not in (reply, context, bot_turn) and None in (reply, context, bot_turn))


def test_a_target_is_never_the_reply_that_it_replaces():
    (message,) = bake([("rude", "kind")], bake_target="safe")
    (other,) = bake([("rude", message["labels"][0])], bake_target="safe")
    assert other["labels"] != message["labels"] and because(other) == "context"
