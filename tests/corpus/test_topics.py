"""The shipped sentences on topics: counts, splits without leak, frames that tell nothing, and mild words."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from parlai_safety.corpus.load import SPLITS
from parlai_safety.corpus.topics import topic_sentences
from parlai_safety.errors import SafetyError
from parlai_safety.judges.toxicity import _normal

WORDS = re.compile(r"\b(sex\w*|porn\w*|nude\w*|naked|kill\w*|child\w*|teen\w*|dose for)\b", re.IGNORECASE)


def test_every_topic_has_enough_sentences_in_every_split() -> None:
    for split, least in (("train", 150), ("valid", 30), ("test", 60)):
        counts = Counter(sentence.topic for sentence in topic_sentences(split))
        assert set(counts) == {"drugs", "politics", "religion", "medical", "nsfw", "none"}
        assert len(set(counts.values())) == 1 and min(counts.values()) >= least


def test_no_text_and_no_frame_is_in_two_splits() -> None:
    by_split = {split: topic_sentences(split) for split in SPLITS}
    texts = [_normal(s.text) for rows in by_split.values() for s in rows]
    assert len(set(texts)) == len(texts)
    keys = {split: {s.key for s in rows} for split, rows in by_split.items()}
    assert not (keys["train"] & keys["test"] or keys["train"] & keys["valid"] or keys["valid"] & keys["test"])


def test_a_shared_frame_stands_in_every_topic() -> None:
    """A frame that one topic alone has would give the topic away: most sentences are made of shared ones."""
    topics_of: dict[str, set[str]] = {}
    for sentence in topic_sentences("train"):
        topics_of.setdefault(sentence.key, set()).add(sentence.topic)
    shared = {key for key, topics in topics_of.items() if len(topics) == 6}
    rows = topic_sentences("train")
    assert len(shared) == 12 and sum(s.key in shared for s in rows) > 0.6 * len(rows)


def test_the_sentences_are_whole_and_mild() -> None:
    for split in SPLITS:
        for sentence in topic_sentences(split):
            assert "{" not in sentence.text and not sentence.text[0].islower()
            assert sentence.text[-1] in ".?"
            assert not WORDS.search(sentence.text), sentence


def test_an_unknown_split() -> None:
    with pytest.raises(SafetyError, match="Did you mean 'train'"):
        topic_sentences("trai")
