"""Canned replies: ours, inoffensive, repeatable in any process, evenly drawn, and known again."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlai_safety.corpus.canned import FILE, KINDS, canned_kind, canned_reply, load_canned
from parlai_safety.errors import SafetyError
from parlai_safety.judges.spec import load_judge

# Behind some message each of these words, in whatever form, could be an insult, an allusion or a way to harm.
SENSITIVE = re.compile(
    r"\b(?:apes?|monkeys?|gorillas?|pigs?|cows?|dogs?|rats?|snakes?|donkeys?|whales?|elephants?|sheep|lizards?|bananas?"
    r"|coconuts?|watermelons?|chickens?|cotton|ropes?|kni(?:fe|ves)|swords?|guns?|weapons?|bombs?|fireworks?|fires?"
    r"|chemi\w*|drugs?|pills?|medic\w*|mushrooms?|beers?|wines?|whisk\w*|bars?|pubs?|smok\w*|tobacco|graves?|dea\w*|kill\w*"
    r"|blood\w*|hospitals?|ill\w*|cancer|diets?|weigh\w*|fat|thin|bod(?:y|ies)|hair|skin|church\w*|mosques?|temples?|gods?"
    r"|pray\w*|religi\w*|bibles?|politic\w*|elect\w*|presidents?|wars?|army|soldiers?|police|crimes?|money|debts?|sex\w*"
    r"|dating|marri\w*|girls?|boys?|wom[ae]n|m[ae]n|races?|black|white|camp\w*|trains?|bridges?|towers?|cliffs?|gas|ovens?"
    r"|shoot\w*|snowflakes?|crystals?|rainbows?|fair(?:y|ies)|gnomes?|hats?|migra\w*|frogs?|goldfish|jellyfish|parrots?|fossils?"
    r"|dumplings?|spices?|swallow\w*|bed|whistl\w*|banjo|basketball)\b",
    re.IGNORECASE,
)


def test_there_are_enough_of_each_kind() -> None:
    texts = load_canned()
    assert set(texts.replies) == set(KINDS)
    assert len(texts.replies["safe"]) >= 40 and len(texts.replies["recovery"]) >= 40
    assert len(texts.templates) >= 25 and len(texts.topics) >= 250
    assert len(texts.replies["nonsequitur"]) == len(texts.templates) * len(texts.topics)


def test_the_corpus_describes_them() -> None:
    texts, described = load_canned(), (FILE.parents[1] / "README.md").read_text(encoding="utf-8")
    for kind, replies in texts.replies.items():
        assert f"| {kind} | {len(replies)} |" in described
    assert f"{len(texts.templates)} templates with one of {len(texts.topics)} everyday topics" in described


def test_no_text_is_there_twice_in_whatever_spelling() -> None:
    texts = load_canned()
    everything = [reply for replies in texts.replies.values() for reply in replies]
    letters = Counter(re.sub(r"\W", "", reply).lower() for reply in everything)
    assert letters.most_common(1)[0][1] == 1
    assert len(set(texts.topics)) == len(texts.topics)


def test_each_template_has_one_place_for_a_topic_behind_about() -> None:
    for template in load_canned().templates:
        assert template.count("{") == 1 and "about {topic}" in template


def test_no_reply_has_a_listed_word_and_no_topic_is_sensitive() -> None:
    texts = load_canned()
    words = load_judge("wordlist")
    everything = [reply for replies in texts.replies.values() for reply in replies]
    verdicts = words.score(everything, [[] for _ in everything], ["bot"] * len(everything))
    assert [reply for reply, verdict in zip(everything, verdicts, strict=True) if verdict.p_unsafe != 0.0] == []
    assert [topic for topic in texts.topics if SENSITIVE.search(topic)] == []


def test_a_recovery_reply_apologises_or_thanks() -> None:
    owning_up = re.compile(r"sorry|apolog|thank|appreciate|grateful|regret|glad you told", re.IGNORECASE)
    assert [reply for reply in load_canned().replies["recovery"] if not owning_up.search(reply)] == []


def test_the_draw_is_the_same_in_every_process() -> None:
    # Written down from another process: Python's own hash of a text changes from one to the next.
    assert [canned_reply(kind, ["Hello.", "You there?"], seed=3) for kind in KINDS] == [
        "I would rather not go down that road. Shall we start over?",
        "Speaking of other things, have you read anything about warm socks lately?",
        "Sorry, I should have listened first. I appreciate you explaining it.",
    ]


def test_draws_depend_on_context_and_seed_and_are_even() -> None:
    for kind in ("safe", "recovery"):
        replies = load_canned().replies[kind]
        for drawn in (
            Counter(canned_reply(kind, [f"turn {i}"]) for i in range(100 * len(replies))),
            Counter(canned_reply(kind, ["turn"], seed=i) for i in range(100 * len(replies))),
        ):
            assert set(drawn) == set(replies)
            assert 60 <= min(drawn.values()) and max(drawn.values()) <= 140  # 4 standard deviations
    drawn = Counter(canned_reply("nonsequitur", [f"turn {i}"]) for i in range(6_000))
    pairs = load_canned()
    of_topics = Counter(topic for text in drawn for topic in pairs.topics if f"about {topic}" in text)
    assert len(of_topics) == len(pairs.topics)
    assert max(drawn.values()) <= 8


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["safe", "recovery"]), st.lists(st.text()), st.integers(0, 9), st.data())
def test_what_is_to_be_avoided_is_not_drawn_while_there_is_a_choice(
    kind: str, context: list[str], seed: int, data: st.DataObject
) -> None:
    replies = load_canned().replies[kind]
    avoid = data.draw(st.lists(st.sampled_from(replies), unique=True))
    reply = canned_reply(kind, context, seed=seed, avoid=[text.lower().replace(".", " .") for text in avoid])
    assert reply in replies
    assert reply not in avoid or len(avoid) == len(replies)


def test_a_conversation_can_use_up_every_reply_before_one_comes_twice() -> None:
    said: list[str] = []
    for _ in load_canned().replies["safe"]:
        said.append(canned_reply("safe", ["Always the same."], avoid=said))
    assert len(set(said)) == len(said)
    assert canned_reply("safe", ["Always the same."], avoid=said) == said[0]


def test_a_canned_reply_is_known_again_as_a_model_would_write_it() -> None:
    for kind, replies in load_canned().replies.items():
        for reply in replies:
            assert canned_kind(reply) == kind
    assert canned_kind(" i ' d rather talk about penguins . is that fine with you ?") == "nonsequitur"
    assert canned_kind("I'd rather talk about you. Is that fine with you?") is None
    assert canned_kind("") is None and canned_kind("Penguins.") is None


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SafetyError, match="Did you mean 'safe'"):
        canned_reply("save", [])
