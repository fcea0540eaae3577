"""A judge that remembers: scores are kept in a file and found again by the judge's fingerprint and the texts.

A score is a function of the judge, the speaker, the context and the reply, so the second evaluation with one judge
need not pay for it again; a service that ends can still be read from its cache. The file is SQLite of the standard
library. What could not be scored is never kept: it is tried again. Left out: eviction, and the texts themselves, of
which only a hash is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from parlai_safety.errors import SafetyError
from parlai_safety.judges.verdict import Judge, Speaker, Verdict, check_batch, safe_score, scored, unfit
from parlai_safety.judges.wrapped import WrappedJudge
from parlai_safety.modeling.number_store import NumberStore


class CachedJudge(WrappedJudge):
    """A judge whose scores are looked up in a file before it is asked.

    Several processes may share the file: a transaction is short and the others wait for it. A reply that stands
    several times in a batch, with one context and speaker, is scored once.

    Args:
        judge: the judge; its spec, threshold and fingerprint are this one's too.
        path: the file, which is made where there is none.
        stored_at_once: replies that are scored before they are stored; what an interruption can cost. At least 1.

    Attributes:
        judge: as given.
        hits: replies whose score was found in the file.
        misses: replies that the file did not hold, repeated ones included.

    Raises:
        SafetyError: the file is damaged, is no cache, or cannot be written; or the number is out of range.
    """

    def __init__(self, judge: Judge, path: str | Path, *, stored_at_once: int = 1024) -> None:
        if stored_at_once < 1:
            raise SafetyError(
                f"stored_at_once is {stored_at_once}",
                "Scores are stored after every so many replies",
                "Choose 1 or more",
            )
        super().__init__(judge)
        self.path, self.stored_at_once = Path(path), stored_at_once
        self.hits = self.misses = 0
        self._store = NumberStore(path, table="verdicts_1", column="p_unsafe")

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch from the file, and what the file does not hold by the judge; see `Judge.score`.

        Raises:
            SafetyError: as `safe_score`, and where the file is damaged or cannot be written. What was scored before
                an error is stored.
        """
        check_batch(replies, contexts, speakers)
        verdicts = [unfit(reply) for reply in replies]
        keys = [
            b"" if verdict else self._key(reply, context, speaker)
            for verdict, reply, context, speaker in zip(verdicts, replies, contexts, speakers, strict=True)
        ]
        known = self._store.look_up(sorted(set(keys) - {b""}))
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key in known:
                verdicts[index] = scored(known[key])
                self.hits += 1
            elif key:
                first.setdefault(key, index)
                self.misses += 1
        fresh = list(first.items())
        found: dict[bytes, Verdict] = {}
        for start in range(0, len(fresh), self.stored_at_once):
            some = fresh[start : start + self.stored_at_once]
            their = [index for _, index in some]
            new = safe_score(
                self.judge, [replies[i] for i in their], [contexts[i] for i in their], [speakers[i] for i in their]
            )
            found.update((key, verdict) for (key, _), verdict in zip(some, new, strict=True))
            self._store.store(
                {key: v.p_unsafe for (key, _), v in zip(some, new, strict=True) if v.p_unsafe is not None}
            )
        return [verdict or found[key] for verdict, key in zip(verdicts, keys, strict=True)]

    def _key(self, reply: str, context: Sequence[str], speaker: Speaker) -> bytes:
        # As JSON, no two lists of texts are written alike, whatever stands in them.
        parts = json.dumps([self.fingerprint, speaker, list(context), reply])
        return hashlib.sha256(parts.encode()).digest()
