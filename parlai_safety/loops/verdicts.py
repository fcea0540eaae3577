"""What a judge says of many turns, kept through a kill: what the jobs share that label what was said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from parlai_safety.judges.verdict import Judge, Speaker, Verdict, safe_score
from parlai_safety.runs import Journal, progress

JUDGED_AT_ONCE = 256


class Turn(NamedTuple):
    """Something that was said, by whom, and after what."""

    context: tuple[str, ...]
    text: str
    speaker: Speaker


def journaled_verdicts(judge: Judge, turns: Sequence[Turn], path: Path) -> list[Verdict]:
    """One verdict a turn, in large batches; what was judged before is read from the journal.

    Args:
        judge: the judge.
        turns: the same ones in the same order at every call.
        path: the journal. A line is a whole batch: judged in another company, the last digits of a neural score may be
            others.
    """
    found: list[Verdict] = []
    with Journal(path) as journal:
        for batch in journal.rows:
            found += [Verdict(*verdict) for verdict in batch]
        with progress(f"verdicts of {judge.spec}", len(turns), len(found)) as advance:
            for start in range(len(found), len(turns), JUDGED_AT_ONCE):
                some = turns[start : start + JUDGED_AT_ONCE]
                verdicts = safe_score(
                    judge, [turn.text for turn in some], [turn.context for turn in some], [t.speaker for t in some]
                )
                journal.append([[list(verdict) for verdict in verdicts]])
                found += verdicts
                advance(len(some))
    return found
