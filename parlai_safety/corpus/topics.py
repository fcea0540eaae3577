"""Sentences on sensitive topics, and harmless ones, for the classifier of topics: our own, mild, and quite artificial.

Where they come from: `text/topics.yaml`, hand-written frames and things that are put together in a fixed order without
chance, and single sentences. The classes are those of ParlAI's `sensitive_topics_evaluation` (Xu et al. 2020,
arXiv:2010.07079) with "none" beside them. Splits: a frame and a written sentence are in one split only, and the shared
frames tell no topic; the things are in all splits, so that what is measured is a known word in an unknown sentence.
Left out: talk of more than one sentence, words that were not learned, and the noise of real talk; a classifier that is
right about these sentences has shown little.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from parlai_safety.corpus.load import SPLITS
from parlai_safety.errors import SafetyError, did_you_mean

FILE = Path(__file__).parent / "text" / "topics.yaml"
NO_TOPIC = "none"
# Of each thing, sentences a split; the last frames of a list are kept for the test split, those before them for
# validation.
SENTENCES_A_THING = {"train": 6, "valid": 1, "test": 2}
SHARED_KEPT = {"valid": 2, "test": 3}
OWN_KEPT = {"valid": 1, "test": 1}


class TopicSentence(NamedTuple):
    """One sentence.

    Attributes:
        text: the sentence.
        topic: "drugs", "politics", "religion", "medical", "nsfw" or "none".
        key: the frame, or the sentence itself; sentences that share it are in one split.
    """

    text: str
    topic: str
    key: str


def topic_sentences(split: str) -> list[TopicSentence]:
    """The sentences of a split, topic by topic; each text once.

    Raises:
        SafetyError: the split has another name.
    """
    if split not in SPLITS:
        raise SafetyError(
            f"There is no split {split!r} of the topic sentences",
            f"They have the splits {', '.join(SPLITS)}",
            did_you_mean(split, SPLITS, f"Use one of {', '.join(SPLITS)}"),
        )
    material = _material()
    return [
        sentence
        for topic, own in material["topics"].items()
        for sentence in _of_topic(topic, own, material["frames"], split)
    ]


def _of_topic(topic: str, own: dict[str, Any], shared: list[str], split: str) -> list[TopicSentence]:
    frames = [*_kept(shared, SHARED_KEPT, split), *_kept(own["frames"], OWN_KEPT, split)]
    count = SENTENCES_A_THING[split]
    sentences = []
    for at, thing in enumerate(own["things"]):
        # Neighbouring things begin at neighbouring frames, and one thing's frames are spread over the list.
        for frame in (frames[(at + n * len(frames) // count) % len(frames)] for n in range(count)):
            text = frame.format(a=thing)
            sentences.append(TopicSentence(text[0].upper() + text[1:], topic, frame))
    sentences += [TopicSentence(text, topic, text) for at, text in enumerate(own["written"]) if _split_of(at) == split]
    return sentences


def _kept(frames: list[str], kept: dict[str, int], split: str) -> list[str]:
    """The part of a list of frames that belongs to a split."""
    first_test = len(frames) - kept["test"]
    first_valid = first_test - kept["valid"]
    return {"train": frames[:first_valid], "valid": frames[first_valid:first_test], "test": frames[first_test:]}[split]


def _split_of(place: int) -> str:
    return {6: "valid", 7: "test"}.get(place % 8, "train")


@functools.cache
def _material() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found
