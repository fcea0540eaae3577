"""The fields that parlai_safety adds to ParlAI's Message: names, types and checks.

ParlAI's own fields keep their meaning. Context turns are joined by newlines in `text`, oldest first, and the last line
is the turn to answer. Nothing here imports ParlAI: a Message is a dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError, did_you_mean


class MessageField(NamedTuple):
    """One field: what it holds, what it means, and a check of its value."""

    kind: str
    meaning: str
    valid: Callable[[Any], bool]


def _words(*known: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in known


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)


def _probability(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def control_names(value: Any) -> tuple[str, ...]:
    """The names in a message's `control`, one or a list of them, in their order; none for what is no such value."""
    names = (value,) if isinstance(value, str) else tuple(value) if _texts(value) else ()
    fine = len(set(names)) == len(names) and all(_CONTROL_NAME.fullmatch(name) for name in names)
    return names if fine else ()


def add_control(message: Any, name: str) -> None:
    """Add a name to the `control` of a ParlAI Message, behind those that it has."""
    names = (*control_names(message.get("control")), name)
    message.force_set("control", name if len(names) == 1 else list(dict.fromkeys(names)))


def control_token(name: str) -> str:
    """How the control token of a name is written: "safe" is `[SAFE]`."""
    return f"[{name.upper()}]"


_CONTROL_NAME = re.compile("[a-z][a-z0-9_]*")
CLASSIFIER_LABELS = ("pos", "neg", "none")
TOXIC_TOKEN = "[TOXIC]"
"""The toxic control token: behind a context, it asks a model that was trained so for its inner toxic model."""

FIELDS: dict[str, MessageField] = {
    "classifier_label": MessageField(
        '"pos", "neg" or "none"',
        "whether the label is an example to follow, to avoid, or plain language modelling",
        _words(*CLASSIFIER_LABELS),
    ),
    "is_ltr": MessageField(
        "bool", "the label is a scored reply and not a class name", lambda value: isinstance(value, bool)
    ),
    "rejected": MessageField("list of str", "dispreferred replies to the same context", _texts),
    "toxic": MessageField("list of str", "self-generated toxic replies to the same context", _texts),
    "control": MessageField(
        'a name such as "safe" or "toxic", a list of different ones, or absent',
        "the label is learned and scored behind the control tokens of these names",
        lambda value: bool(control_names(value)),
    ),
    "toxicity": MessageField(
        "float in [0, 1], or absent", "a judge's P(unsafe) of the label in its context; absent = unscored", _probability
    ),
    "context_toxicity": MessageField(
        "float in [0, 1], or absent", "the same of the last turn of the context, before its own context", _probability
    ),
    "topic": MessageField("str", "the sensitive topic of the label or of the last turn, or none", _text),
    "guard": MessageField(
        "dict", "what a guard did: trigger, judge, p_unsafe", lambda value: isinstance(value, Mapping)
    ),
    "speaker": MessageField('"human" or "bot"', "who says the label", _words("human", "bot")),
    "user_id": MessageField("str", "pseudonym: a salted hash, never a person's own id", _text),
    "feedback": MessageField(
        "dict", "liked, disliked, reason, text as people gave them", lambda v: isinstance(v, Mapping)
    ),
    "provenance": MessageField(
        "dict", "source, licence, split, generator, judge, seed, round", lambda v: isinstance(v, Mapping)
    ),
}


def check_message(message: Mapping[str, Any], where: str) -> None:
    """Check the fields of ours that a message carries; absent fields are fine.

    Args:
        message: a ParlAI Message or any mapping.
        where: names the place for the error text, as in "line 3 of 'talk.jsonl'".

    Raises:
        SafetyError: a field of ours has a value outside its type.
    """
    for name, field in FIELDS.items():
        if name in message and not field.valid(message[name]):
            value = message[name]
            instead = f"Write a value of this kind, or leave {name!r} out"
            if name == "classifier_label":
                instead = did_you_mean(str(value), CLASSIFIER_LABELS, 'Write "pos", "neg" or "none"')
            raise SafetyError(
                f"{where} has {name!r} = {value!r}", f"This field holds {field.kind}: {field.meaning}", instead
            )


def join_context(turns: Sequence[str]) -> str:
    """Context turns as one text: newlines between turns, and none left inside a turn."""
    return "\n".join(" ".join(turn.split()) for turn in turns)
