"""A judge for the tests of mutators and data jobs: it reads a word, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence

from parlai_safety.judges.verdict import Verdict, fingerprint_of, scored, unscored


class WordJudge:
    """Unsafe where "rude" stands in the turn, unscored where "odd" does; by word alone, whoever says it."""

    spec, threshold, fingerprint = "words", 0.5, fingerprint_of("words", 1)

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...], str]] = []

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[str]
    ) -> list[Verdict]:
        """A verdict a reply."""
        self.asked += [(r, tuple(c), s) for r, c, s in zip(replies, contexts, speakers, strict=True)]
        return [unscored("no") if "odd" in text else scored(0.9 if "rude" in text else 0.1) for text in replies]
