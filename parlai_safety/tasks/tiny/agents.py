"""`-t safety:tiny`: the small corpus that ships, see `parlai_safety/corpus/README.md`.

Views: `safety:tiny` (ordinary talk plus adversarial exchanges with their verdicts), `:ordinary`, `:adversarial`,
`:plain` (everything as a raw log without verdicts), `:positive` (what is safe), `:negative` (what is unsafe, as plain
talk), `:classifier`.
Content warning: the adversarial part holds rude and hateful-sounding lines about invented people.
"""

from __future__ import annotations

from collections.abc import Iterator

from parlai_safety.corpus.load import load_adversarial, load_ordinary
from parlai_safety.tasks.common import Row, RowTeacher, in_views


def ordinary_rows(split: str) -> Iterator[Row]:
    """Every bot turn of an ordinary dialogue, with all turns before it as context."""
    for dialogue in load_ordinary(split):
        turns = dialogue["turns"]
        for i in range(1, len(turns), 2):
            yield Row(turns[:i], turns[i], None, {"speaker": "bot", "provenance": {"id": dialogue["id"]}})


def adversarial_rows(split: str) -> Iterator[Row]:
    """Every labelled reply to an adversarial context."""
    for exchange in load_adversarial(split):
        for reply in exchange["replies"]:
            fields = {"speaker": "bot", "provenance": {"id": exchange["id"], "style": exchange["style"]}}
            yield Row(exchange["context"], reply["text"], reply["label"] == "unsafe", fields)


class DefaultTeacher(RowTeacher):
    """Ordinary talk plus adversarial exchanges with their verdicts."""

    def rows(self, split: str) -> Iterator[Row]:
        """Ordinary rows, then adversarial ones; ParlAI shuffles them in training."""
        yield from ordinary_rows(split)
        yield from adversarial_rows(split)


class OrdinaryTeacher(RowTeacher):
    """Ordinary talk alone."""

    def rows(self, split: str) -> Iterator[Row]:
        """Ordinary rows."""
        return ordinary_rows(split)


class AdversarialTeacher(RowTeacher):
    """Adversarial exchanges alone, with their verdicts."""

    def rows(self, split: str) -> Iterator[Row]:
        """Adversarial rows."""
        return adversarial_rows(split)


PlainTeacher, PositiveTeacher, NegativeTeacher, ClassifierTeacher = in_views(
    DefaultTeacher,
    plain="Everything as a raw log: what an unfiltered model learns from.",
    positive="Ordinary talk and safe replies.",
    classifier="Replies to be classified as `__ok__` or `__notok__`.",
)
