"""`-t safety:contradiction`: replies that agree with what the bot said before, and replies that contradict it.

A small set of our own, in the manner of DECODE (Nie et al. 2021, arXiv:2012.13391): 708 dialogues with two replies
each, made by `parlai_safety/corpus/contradiction.py`. "Safe" (`pos`, `__ok__`) is a reply that agrees, "unsafe" (`neg`,
`__notok__`) one that contradicts. Every reply and every context carries both labels equally often, so a bag of words
has an AUC of 0.500 on the test split, over the reply alone and over reply and context together
(`python -m parlai_safety.corpus.statistics`): a judge must compare the two. Views: `safety:contradiction`, `:plain`,
`:positive`, `:negative`, `:classifier`.
"""

from __future__ import annotations

from collections.abc import Iterator

from parlai_safety.corpus.load import load_contradiction
from parlai_safety.tasks.common import Row, RowTeacher, in_views


def contradiction_rows(split: str) -> Iterator[Row]:
    """Both replies of every dialogue; the provenance names its kind and the index of the turn that decides."""
    for exchange in load_contradiction(split):
        provenance = {name: value for name, value in exchange.items() if name not in ("context", "replies")}
        fields = {"speaker": "bot", "provenance": provenance}
        for reply in exchange["replies"]:
            yield Row(exchange["context"], reply["text"], reply["label"] == "unsafe", fields)


class DefaultTeacher(RowTeacher):
    """Replies that agree with the bot's earlier turns or contradict them, with verdicts."""

    def rows(self, split: str) -> Iterator[Row]:
        """Both replies of every dialogue."""
        return contradiction_rows(split)


PlainTeacher, PositiveTeacher, NegativeTeacher, ClassifierTeacher = in_views(
    DefaultTeacher,
    positive="Replies that agree.",
    negative="Replies that contradict, as plain talk: what an anti-expert learns from.",
    classifier="Replies to be classified as `__ok__` (agrees) or `__notok__` (contradicts).",
)
