"""The adversarial half of the corpus: its shape, its numbers, its mildness, and that the context decides the label."""

from __future__ import annotations

import ast
import codecs
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from parlai_safety.corpus import adversarial
from parlai_safety.corpus import text_adversarial_replies as shared
from parlai_safety.corpus import text_adversarial_slots as slots
from parlai_safety.corpus.near import near_pairs, tokens
from parlai_safety.corpus.records import STYLES, AdversarialExchange
from parlai_safety.corpus.text_adversarial_frame import Closing, Frame, hostile
from parlai_safety.errors import SafetyError

TEXT_MODULES = sorted(Path(adversarial.__file__).parent.glob("text_adversarial*.py"))

# Short replies that mean nothing without their context.
POLAR_REPLIES = (
    "Yes, exactly.",
    "No, not at all.",
    "I would not say that.",
    "Of course they do.",
    "That is true.",
    "You are right.",
    "Never.",
    "Good idea.",
    "Gladly.",
)

# The strongest words that this corpus may use about anybody.
MILD_WORDS = frozenset(
    """
    blockhead blockheads bore bores boring cheapskate cheapskates cheat cheats clumsy contempt coward cowards cruel
    crook crooks despise despised dim dimmest dimwit dishonest dislike dull duller dullest fool fools foolish fraud
    frauds gossip gossips greedy grumpy hate hated hates hopeless horrible hypocrite hypocrites insult insults laugh
    laughable lazy liar liars loser losers mean miserable mock mocked mockery mocking nasty nuisance pathetic pest
    pests ridiculous rubbish rude scorn selfish show-off show-offs shunned silly sillier slacker slackers sneaky sneer
    snob snobs spineless spite spiteful sponger spongers stupid thief thieves useless vain weakling weaklings wicked
    windbag windbags worst worse worthless
    """.split()
)
# Words that a rude text may be tempted to use. Those that are not mild must not occur.
HOSTILE_LEXICON = MILD_WORDS | frozenset(
    """
    abuse attack beast beasts bleed blood brute burnt corpse criminal criminals cripple dead degenerate demon die dies
    dirt dirty disease diseased disgust disgusting dumb evil exterminate fat fight-to-death filth filthy freak freaks
    garbage gun hang hell hurt-badly idiot idiots imbecile inferior insane kill kills knife lunatic maggot mad monkey
    monster monsters moron morons murder ogre parasite parasites pig pigs poison punch rat rats rotten-race savage
    savages scum shoot sick-in-the-head skull slaughter slave slaves stab stink stinking strangle subhuman suffer
    swine torture trash traitor traitors ugly vermin whip wipe-out worm worms wretch wretches
    """.split()
)
# Profanity, in rot13 so that the file stays readable in company.
PROFANE_STEMS = tuple(
    codecs.decode(stem, "rot13") for stem in "shpx fuvg ovgpu onfgneq penc nffubyr juber fyhg qnza cvff phag".split()
)
FORBIDDEN = {
    "sexual": r"sex\w*|naked|nude|erotic|kiss\w*|breasts?",
    "minors": r"child\w*|kids?|bab(?:y|ies)|boys?|girls?|teen\w*|toddlers?|school\w*|pupils?",
    "violence": r"kill\w*|murder\w*|stab\w*|shoot\w*|guns?|kni(?:fe|ves)|bombs?|poison\w*|strangl\w*|whip\w*|lynch\w*",
    "self-harm": r"suicid\w*|self-harm|end your life|hurt yourself|harm yourself",
    "real groups": r"jew\w*|muslim\w*|islam\w*|christian\w*|hindu\w*|buddhis\w*|cathol\w*|black people|white people|"
    r"asian\w*|african\w*|arab\w*|american\w*|european\w*|german\w*|french|chinese|mexican\w*|polish|russian\w*|"
    r"gays?|lesbian\w*|trans(?:gender)?|queer\w*|women|men|immigrant\w*|refugee\w*|disabled|autis\w*|gyps\w*|roma",
}


@pytest.fixture(scope="module")
def exchanges() -> list[AdversarialExchange]:
    return adversarial.build(7)


def _digest(exchanges: list[AdversarialExchange]) -> str:
    return hashlib.sha256(json.dumps(exchanges).encode()).hexdigest()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())


def test_schema(exchanges):
    names = {frame.name for frames in adversarial.FRAMES.values() for frame in frames}
    for number, exchange in enumerate(exchanges):
        assert set(exchange) == {"id", "style", "family", "context", "replies"}
        assert exchange["id"] == f"a-{number:05d}"
        assert exchange["style"] in STYLES
        assert exchange["family"] in names
        assert len(exchange["context"]) in (1, 3, 5, 7)
        texts = [reply["text"] for reply in exchange["replies"]]
        labels = Counter(reply["label"] for reply in exchange["replies"])
        assert set(labels) == {"safe", "unsafe"}
        assert min(labels.values()) >= 3
        # Distinct texts in one context: so no text has both labels there either.
        assert len(set(texts)) == len(texts)
        for text in (*exchange["context"], *texts):
            assert text == text.strip()
            assert "\n" not in text
            assert not re.search(r"[{}_]|\s\s", text), text
            assert text[0].isupper(), text
        for text in texts:
            assert len(text.split()) <= adversarial.MAX_REPLY_WORDS
            assert text[-1] in ".?!"


def test_numbers(exchanges):
    assert len(exchanges) >= 2600
    assert len({tuple(exchange["context"]) for exchange in exchanges}) == len(exchanges)
    families = Counter(exchange["family"] for exchange in exchanges)
    assert len(families) >= 60
    assert min(families.values()) >= 20
    assert max(families.values()) <= 70
    for label in ("safe", "unsafe"):
        texts = {r["text"] for e in exchanges for r in e["replies"] if r["label"] == label}
        assert len(texts) >= 2000
    assert len(set(slots.GROUPS)) >= 25


def test_hand_written_templates_are_many_and_distinct():
    frames = [frame for frames in adversarial.FRAMES.values() for frame in frames]
    assert len({frame.name for frame in frames}) == len(frames)
    closings = [closing.text for frame in frames for closing in frame.closings]
    replies = [text for frame in frames for text in (*frame.safe, *frame.unsafe)]
    for sides in (shared.PAIRS, shared.REBUKES, shared.PLAIN):
        replies += [text for value in sides.values() for side in value for text in side]
    for answers in (shared.AGREE, shared.DISAGREE):
        replies += [text for value in answers.values() for text in value]
    assert len(closings) == len(set(closings)) >= 200
    assert len(set(replies)) >= 350


def test_shares_of_styles_and_lengths(exchanges):
    styles = Counter(exchange["style"] for exchange in exchanges)
    assert min(styles[style] for style in STYLES) >= 0.15 * len(exchanges)
    lengths = Counter(len(exchange["context"]) for exchange in exchanges)
    for length, share in adversarial.LENGTH_SHARES.items():
        assert lengths[length] / len(exchanges) == pytest.approx(share, abs=0.02)


def test_deterministic(exchanges):
    assert _digest(adversarial.build(7)) == _digest(exchanges)
    assert _digest(adversarial.build(8)) != _digest(exchanges)


def test_deterministic_under_another_hash_seed(exchanges):
    code = (
        "import hashlib, json; from parlai_safety.corpus import adversarial as a;"
        "print(hashlib.sha256(json.dumps(a.build(7)).encode()).hexdigest())"
    )
    ours = os.environ.get("PYTHONHASHSEED", "random")
    env = {**os.environ, "PYTHONHASHSEED": "123" if ours != "123" else "124"}
    root = Path(adversarial.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _digest(exchanges)


@pytest.mark.parametrize("text", POLAR_REPLIES)
def test_short_reply_has_both_labels(exchanges, text):
    counts = Counter(r["label"] for e in exchanges for r in e["replies"] if r["text"] == text)
    assert counts["safe"] >= 15
    assert counts["unsafe"] >= 15
    assert 0.4 <= counts["safe"] / counts["unsafe"] <= 2.5


def test_polarity_is_balanced_and_common(exchanges):
    """At least a quarter of the exchanges hold a short reply, of six words at most, that has both labels elsewhere."""
    labels: dict[str, set[str]] = {}
    for exchange in exchanges:
        for reply in exchange["replies"]:
            labels.setdefault(reply["text"], set()).add(reply["label"])
    flips = {text for text, seen in labels.items() if len(seen) == 2 and len(text.split()) <= 6}
    with_flip = [e for e in exchanges if any(r["text"] in flips for r in e["replies"])]
    assert len(with_flip) >= 0.25 * len(exchanges)
    counts = Counter(r["label"] for e in exchanges for r in e["replies"] if r["text"] in flips)
    assert 0.8 <= counts["safe"] / counts["unsafe"] <= 1.25


def test_agreement_follows_the_stance():
    """The label of an agreeing answer is written once by the stance, and every closing turn has a fitting one."""
    for frames in adversarial.FRAMES.values():
        for frame in frames:
            for closing in frame.closings:
                assert (closing.stance == "open") == (closing.shape == "none"), closing.text
                for label in ("safe", "unsafe"):
                    answers = set(adversarial._short_answers(closing, label, random.Random(0)))
                    agree = answers <= {*shared.AGREE[closing.shape], *shared.AGREE_ANY}
                    if closing.stance in ("hostile", "kind"):
                        assert answers
                        assert agree == ((closing.stance == "hostile") == (label == "unsafe"))


def test_agree_and_disagree_do_not_overlap():
    for shape, answers in shared.AGREE.items():
        against = {*shared.DISAGREE[shape], *shared.DISAGREE_ANY}
        assert not against & {*answers, *shared.AGREE_ANY, *shared.CORE[shape][0]}
        assert not set(shared.CORE[shape][1]) & {*answers, *shared.AGREE_ANY}


def test_near_duplicates_are_rare(exchanges):
    """Of the contexts of eight or more words, hardly one shares four fifths of its words with another one."""
    texts = [" ".join(exchange["context"]) for exchange in exchanges]
    texts = [text for text in texts if len(set(tokens(text))) >= adversarial.MIN_TOKENS_COMPARED]
    assert len(texts) >= 2600
    near = {index for pair in near_pairs(texts, adversarial.MAX_JACCARD) for index in pair}
    assert len(near) <= 0.01 * len(texts)


def test_single_words_of_the_reply_are_not_enough(exchanges):
    """On held-out families a bag of single words does better than chance and stays well below a perfect judge."""
    families = sorted({exchange["family"] for exchange in exchanges})
    held_out = set(families[::4])
    rows = [(e["family"] in held_out, r["text"], r["label"] == "unsafe") for e in exchanges for r in e["replies"]]
    vectorizer = CountVectorizer(token_pattern=r"[a-zA-Z']+")
    train = [(text, label) for held, text, label in rows if not held]
    test = [(text, label) for held, text, label in rows if held]
    model = LogisticRegression(max_iter=300)
    model.fit(vectorizer.fit_transform(text for text, _ in train), [label for _, label in train])
    scores = model.decision_function(vectorizer.transform(text for text, _ in test))
    assert 0.70 <= roc_auc_score([label for _, label in test], scores) <= 0.92


def test_about_half_or_more_of_the_replies_name_nobody(exchanges):
    names = [name.removeprefix("the ") for name in (*slots.GROUPS, *slots.ROLES)]
    named = [any(name in r["text"].lower() for name in map(str.lower, names)) for e in exchanges for r in e["replies"]]
    assert 0.2 <= sum(named) / len(named) <= 0.5


@pytest.mark.parametrize("topic", FORBIDDEN)
def test_forbidden_topics_are_absent(exchanges, topic):
    pattern = re.compile(rf"\b(?:{FORBIDDEN[topic]})\b", re.IGNORECASE)
    for exchange in exchanges:
        for text in (*exchange["context"], *(reply["text"] for reply in exchange["replies"])):
            assert not pattern.search(text), text


def test_only_mild_words_are_used():
    """Every string of the text modules, shown by a seed or not: no profanity, no hostile word beyond the mild ones."""
    assert len(TEXT_MODULES) == 9
    used: set[str] = set()
    for path in TEXT_MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.update(_words(node.value))
    assert len(used & MILD_WORDS) >= 60
    assert sorted((used & HOSTILE_LEXICON) - MILD_WORDS) == []
    assert [word for word in sorted(used) if word.startswith(PROFANE_STEMS)] == []


def test_every_fault_is_a_mild_word():
    """A new fault has to be put on the mild list by hand."""
    nouns = [word for pair in slots.FAULT_NOUNS for text in pair for word in _words(text)]
    assert sorted({*nouns, *slots.FAULT_ADJECTIVES} - {"a"} - MILD_WORDS) == []


def test_a_poor_frame_is_refused(monkeypatch):
    poor = Frame(
        "poor", "group", (hostile("claim", "They are bad people, all of them here, right?"),), ("Hm.",), ("Ha.",)
    )
    monkeypatch.setattr(adversarial, "FRAMES", {"insult": (poor,)})
    monkeypatch.setattr(adversarial, "LENGTH_SHARES", {1: 1.0})
    monkeypatch.setattr(adversarial, "_lead", lambda *_: "")
    with pytest.raises(SafetyError, match="'poor' gave only .* distinct contexts"):
        adversarial.build(1)


def test_a_frame_without_replies_is_refused(monkeypatch):
    frame = Frame("mute", "group", (Closing("open", "none", "What of {X} and {P}?"),), (), ())
    monkeypatch.setattr(adversarial, "FRAMES", {"insult": (frame,)})
    monkeypatch.setattr(adversarial, "EXCHANGES_PER_FAMILY", 1)
    monkeypatch.setattr(adversarial, "MAX_REPLY_WORDS", 1)
    with pytest.raises(SafetyError, match="'mute' gave only 0 safe replies"):
        adversarial.build(1)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("a {K} word", "An honest word"),
        ("is a {A} one. {they} {are} so", "Is a useless one. She is so"),
        ("{They} and {G} too", "She and the ant too"),
    ],
)
def test_fill(template, filled):
    bindings = {"K": "honest", "A": "useless", "they": "she", "They": "She", "are": "is", "G": "the ant"}
    assert adversarial._fill(template, bindings, "person", random.Random(0)) == filled
