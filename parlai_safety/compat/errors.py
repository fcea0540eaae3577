"""Repairs of error messages: where ParlAI meets bad input with a bare KeyError, or trains on nothing.

They stand with the other repairs because they too change ParlAI at run time. An input that ParlAI accepts is
treated as before.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from parlai_safety.compat.base import Repair
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.message import FIELDS, check_message


def _always() -> bool:
    return True


# --- mutator-names: an unknown mutator is a bare KeyError ------------------------------------------------------------


def _name_mutators() -> None:
    from parlai.core.mutators import MUTATOR_REGISTRY, Mutator

    original = Mutator.load_mutator_types.__func__

    @functools.wraps(original)
    def load_mutator_types(cls: Any, mutator_names: str | None) -> list[type[Any]]:
        try:
            found: list[type[Any]] = original(cls, mutator_names)
        except KeyError as error:
            name = str(error.args[0])
            raise SafetyError(
                f"--mutators got {name!r}",
                "No mutator of that name is registered",
                did_you_mean(name, MUTATOR_REGISTRY, f"The mutators are: {', '.join(sorted(MUTATOR_REGISTRY))}"),
            ) from error
        return found

    Mutator.load_mutator_types = classmethod(load_mutator_types)


# --- conversation-files: an empty file trains on nothing, a broken line is a KeyError, our fields are dropped --------


def _check_conversations() -> None:
    from parlai.core.teachers import ConversationTeacher

    original = ConversationTeacher.setup_data

    @functools.wraps(original)
    def setup_data(self: Any, path: str) -> Iterator[Any]:
        empty = True
        try:
            for message, begins in original(self, path):
                empty = False
                ours = {name: message["y_turn"][name] for name in FIELDS if name in message["y_turn"]}
                check_message(ours, f"a turn of {path!r}")
                yield {**message, **ours}, begins
        except (KeyError, TypeError, ValueError) as error:
            raise _broken_conversation(path) or error from error
        if empty:
            raise SafetyError(
                f"The file {path!r} holds no exchange to learn from",
                "Each line is a conversation, and at least one of them needs a turn and its answer",
                'Write one JSON object a line, as in {"dialog": [[{"id": "a", "text": "hi"}, '
                '{"id": "b", "text": "hello"}]]}',
            )

    ConversationTeacher.setup_data = setup_data


def _broken_conversation(path: str) -> SafetyError | None:
    """The first line that is no conversation, as an error, or None where every line is one."""
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line) if line.strip() else {"dialog": []}
                found = "no list 'dialog'" if not isinstance(row, dict) or "dialog" not in row else ""
            except json.JSONDecodeError as error:
                found = f"no JSON ({error.msg} at column {error.colno})"
            if found:
                return SafetyError(
                    f"Line {number} of {path!r} holds {found}",
                    "Every line of this format is one conversation as a JSON object",
                    f"Mend or remove line {number}; for plain replies use -t safety:file --safety-file instead",
                )
    return None


REPAIRS: tuple[Repair, ...] = (
    Repair(
        name="mutator-names",
        symptom="An unknown --mutators name ends in a bare KeyError.",
        where="parlai/core/mutators.py:Mutator.load_mutator_types",
        lazy="parlai.core.mutators",
        needed=_always,
        apply=_name_mutators,
    ),
    Repair(
        name="conversation-files",
        symptom="An empty or broken jsonfile ends in a KeyError; a turn's classifier_label is dropped.",
        where="parlai/core/teachers.py:ConversationTeacher.setup_data",
        lazy="parlai.core.teachers",
        needed=_always,
        apply=_check_conversations,
    ),
)
