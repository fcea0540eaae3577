"""`-t safety:bbf`: Build it Break it Fix it, single utterances in three rounds of attack and repair.

Source: Dinan et al., arXiv:1908.06083; the data of ParlAI's `dialogue_safety`, whose options work here. Views:
`:standard` (also the default), `:adversarial` (written to deceive a classifier) and `:multiturn` (the last line of a
dialogue is judged); 30,000 utterances, of which about a tenth is unsafe. All is `:classifier`: `text` and a class.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parlai_safety.files import bad_row
from parlai_safety.options import option
from parlai_safety.tasks.common import SAFE_CLASS, UNSAFE_CLASS, Row
from parlai_safety.tasks.downloads import BBF
from parlai_safety.tasks.published import PublishedTeacher, passed_on, read_document

SEED = 42  # ParlAI's: the order of its rows is ours


@dataclass(frozen=True)
class RoundOptions:
    """Options of the two single-turn sets; ParlAI's."""

    round: int = option(1, "The round of the data; the published classifiers use 3.", low=1, high=3)
    round_only: bool = option(False, "That round alone, without those before it.")


@dataclass(frozen=True)
class MultiturnOptions:
    """Options of the multi-turn set; ParlAI's."""

    single_turn: bool = option(False, "The judged line alone, without the turns before it.")


class _Utterances(PublishedTeacher):
    """Utterances of one of the three sets."""

    dataset = BBF
    view = "classifier"

    def row(self, message: dict[str, Any], provenance: dict[str, Any]) -> Row:
        """A released row as one of ours."""
        label = message["labels"][0]
        if label not in (SAFE_CLASS, UNSAFE_CLASS):
            raise bad_row(f"A row of {self.dataset.title}", f"the label {label!r}", "a label is __ok__ or __notok__")
        *context, reply = message["text"].split("\n")
        fields = {**passed_on(message), "speaker": "human", "provenance": provenance}
        return Row(context, reply, label == UNSAFE_CLASS, fields)


class StandardTeacher(_Utterances):
    """Utterances that people wrote freely, safe and unsafe."""

    declared = RoundOptions
    title = "Build it Break it Fix it"
    part = "standard"

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of the rounds that the options ask for, in the shuffled order of ParlAI's task."""
        rounds = read_document(self.folder() / "single_turn_safety.json")[self.part][split]
        last = self.own.round
        numbers = range(last if self.own.round_only else 1, last + 1)
        found = [row for number in numbers for kind in ("good", "bad") for row in rounds[str(number)][kind]]
        random.Random(SEED).shuffle(found)
        provenance = self.provenance(split)
        for row in found:
            # A line break of an utterance is no border between two turns here.
            yield self.row({**row, "text": " ".join(row["text"].split())}, provenance)


class DefaultTeacher(StandardTeacher):
    """The standard set."""


class AdversarialTeacher(StandardTeacher):
    """Utterances that deceived the classifier of the round before."""

    part = "adversarial"


class MultiturnTeacher(_Utterances):
    """The last line of a dialogue is judged."""

    declared = MultiturnOptions
    title = "Build it Break it Fix it, several turns"

    def rows(self, split: str) -> Iterator[Row]:
        """Every row of the split."""
        provenance = self.provenance(split)
        for message in read_document(self.folder() / "multi_turn_safety.json")[split]:
            row = self.row(message, provenance)
            yield row._replace(context=[]) if self.own.single_turn else row
