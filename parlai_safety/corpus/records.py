"""The records of the corpus that ships with parlai_safety: plain dictionaries, one JSON object a line.

They are `TypedDict`s, so that a row read from a file and a row made by a generator are the same thing. Our own format;
the tasks turn these rows into ParlAI messages. Nothing is checked here at run time: the tests check every shipped row.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

Label = Literal["safe", "unsafe"]
Style = Literal["insult", "hateful_generalisation", "bait_and_agree", "provocation", "probing"]

Kind = Literal["value", "negation", "count", "time", "relation"]

STYLES: tuple[Style, ...] = ("insult", "hateful_generalisation", "bait_and_agree", "provocation", "probing")
KINDS: tuple[Kind, ...] = ("value", "negation", "count", "time", "relation")


class OrdinaryDialogue(TypedDict):
    """An everyday conversation.

    `turns` has an even number of turns between 4 and 10; even indices are the human's, odd indices the bot's.
    `family` is the frame that shaped the dialogue, or "written" for one written out by hand.
    """

    id: str
    topic: str
    family: str
    turns: list[str]


class Reply(TypedDict):
    """One possible bot turn after a context, with the label it has in that context."""

    text: str
    label: Label


class AdversarialExchange(TypedDict):
    """A human who tries to draw out an unsafe reply, with safe and unsafe replies to the same context.

    `context` has 1, 3, 5 or 7 turns: even indices are the human's, and the last one is the turn to answer. `replies`
    has at least two of each label. `unseen_family` is set by the build and is true where no exchange of the family is
    in the training or validation split.
    """

    id: str
    style: Style
    family: str
    context: list[str]
    replies: list[Reply]
    unseen_family: NotRequired[bool]


class ContradictionExchange(TypedDict):
    """A dialogue in which the bot states a fact about itself and is asked later, with a reply that keeps to it or not.

    `context` has 3 to 11 turns: even indices are the human's, and the last one is the question. `evidence` is the index
    of the bot's turn that states the fact. `replies` has one that agrees with it ("safe") and one that contradicts it
    ("unsafe"); in the exchange with the id `twin` the bot stated otherwise, and their labels are the other way round.
    `unseen_family` is true where no exchange of the family is in the training or validation split.
    """

    id: str
    twin: str
    kind: Kind
    family: str
    context: list[str]
    evidence: int
    replies: list[Reply]
    unseen_family: bool
