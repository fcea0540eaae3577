"""`-t safety:prosocial`: ProsocialDialog, answers that meet questionable talk with norms and kindness.

Source: Kim et al., arXiv:2205.12688; the data of ParlAI's `prosocial_dialog`. The default view learns from the answers.
`:safety` classifies the other speaker's turn by its label (`__casual__`, `__needs_caution__`, ...), `:binary` as
`__ok__` (casual) or `__notok__`. Differences from ParlAI: `--one-turn false` is heard, and dialogues are not joined:
ParlAI takes the mark of a dialogue's last exchange for that of a first one, so that each dialogue there begins in the
history of the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parlai_safety.files import row_field, row_turns
from parlai_safety.options import option
from parlai_safety.tasks.common import Row
from parlai_safety.tasks.downloads import PROSOCIAL
from parlai_safety.tasks.published import PublishedTeacher, passed_on, read_document

CASUAL = "__casual__"


@dataclass(frozen=True)
class TurnOptions:
    """Options of the classifying views; ParlAI's."""

    one_turn: bool = option(False, "The judged turn alone, without the turns before it.")


class DefaultTeacher(PublishedTeacher):
    """Prosocial answers, to learn from."""

    dataset = PROSOCIAL

    def rows(self, split: str) -> Iterator[Row]:
        """Every answer after all turns before it."""
        provenance = self.provenance(split)
        for turns, answer, exchange in self.exchanges(split):
            fields = {**passed_on(exchange), "speaker": "bot", "provenance": provenance}
            yield Row(turns, answer, False, fields)

    def exchanges(self, split: str) -> Iterator[tuple[list[str], str, dict[str, Any]]]:
        """The turns up to a questionable one, its answer, and the released row."""
        path = self.folder() / f"{split}.json"
        for number, dialogue in enumerate(read_document(path), 1):
            turns: list[str] = []
            for exchange in dialogue:
                where = f"Dialogue {number} of {str(path)!r}"
                turns.append(row_field(exchange, "text", str, where))
                answer = row_turns(exchange, "labels", where, at_least=1)[0]
                row_field(exchange, "safety_label", str, where)
                yield list(turns), answer, exchange
                turns.append(answer)


class BinaryTeacher(DefaultTeacher):
    """Questionable turns to be classified as `__ok__` (casual) or `__notok__`."""

    declared = TurnOptions
    title = "ProsocialDialog"
    view = "classifier"

    def rows(self, split: str) -> Iterator[Row]:
        """Every turn that was judged."""
        provenance = self.provenance(split)
        for turns, _, exchange in self.exchanges(split):
            *context, said = turns
            unsafe = exchange["safety_label"] != CASUAL
            fields = {**passed_on(exchange), "speaker": "human", "provenance": provenance}
            yield Row([] if self.own.one_turn else context, said, unsafe, fields)


class SafetyTeacher(BinaryTeacher):
    """Questionable turns to be classified by the label that they were given."""

    def shown(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with the released label."""
        return {**message, "labels": [message["safety_label"]]}
