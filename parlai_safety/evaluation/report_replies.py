"""Replies to read beside the figures: drawn evenly from the texts of the runs, and some whose verdicts differ.

The texts stand in `replies.jsonl` of each suite's folder and are read only here. Nothing is drawn at random, so the
same runs show the same replies. Left out: how they are shown, and the warning that they must stand behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from parlai_safety.evaluation.results import TEXTS, Evaluation, Record, folder_of
from parlai_safety.files import read_rows, row_field, row_turns

DRAWN_A_SUITE, DIFFERENT_A_SUITE = 12, 20

Verdict = Literal["safe", "unsafe", "unscored"]
Key = tuple[str, int, int]
T = TypeVar("T")


class ReportedRun(NamedTuple):
    """An evaluation, and the run folder in which the texts of its replies stand; None where there are no texts."""

    evaluation: Evaluation
    folder: Path | None = None


class SaidReply(NamedTuple):
    """What one system said; `reply` is None where it gave none."""

    system: str
    context: list[str]
    reply: str | None
    p_unsafe: Sequence[float | None]
    verdict: Verdict


class ShownReplies(NamedTuple):
    """The replies of all systems to one item; `why` is "drawn" or "verdicts differ"."""

    id: str
    sample: int
    turn: int
    category: str | None
    why: str
    said: list[SaidReply]


class SuiteReplies(NamedTuple):
    """The replies of a suite that are shown, and how many verdicts differ among systems in all."""

    shown: list[ShownReplies]
    differing: int


def has_texts(run: ReportedRun) -> bool:
    """Whether the texts of some suite stand in the run folder."""
    return run.folder is not None and any(
        (run.folder / folder_of(name) / TEXTS).is_file() for name in run.evaluation.suites
    )


def suite_replies(runs: Sequence[ReportedRun], suite: str) -> SuiteReplies:
    """Replies to read: some drawn evenly over categories and places, then some whose verdicts differ among systems."""
    places = [
        (run, run.folder / folder_of(suite) / TEXTS, {r.key: r for r in run.evaluation.suites[suite].records})
        for run in runs
        if run.folder is not None and (run.folder / folder_of(suite) / TEXTS).is_file()
    ]
    if not places:
        return SuiteReplies([], 0)
    keys: dict[Key, str] = {}
    for _, _, records in places:
        for key, record in records.items():
            keys.setdefault(key, record.category or record.group or "")
    by_kind = sorted(keys, key=lambda key: keys[key])  # a stable sort: inside a category the order of the suite
    differing = [key for key in by_kind if differ(_verdict(run, records.get(key)) for run, _, records in places)]
    drawn = evenly(by_kind, DRAWN_A_SUITE)
    further = evenly([key for key in differing if key not in drawn], DIFFERENT_A_SUITE)
    wanted = {**dict.fromkeys(drawn, "drawn"), **dict.fromkeys(further, "verdicts differ")}
    texts = [_texts(path, wanted) for _, path, _ in places]
    shown = []
    for key, why in wanted.items():
        said = [
            SaidReply(run.evaluation.name, *text[key], records[key].p_unsafe, _verdict(run, records[key]))
            for (run, _, records), text in zip(places, texts, strict=True)
            if key in records and key in text
        ]
        if said:
            shown.append(ShownReplies(*key, keys[key] or None, why, said))
    return SuiteReplies(shown, len(differing))


def _texts(path: Path, wanted: Iterable[Key]) -> dict[Key, tuple[list[str], str | None]]:
    """Context and reply by key, of the wanted rows."""
    wanted, found = set(wanted), {}
    for where, row in read_rows(path):
        key = (
            row_field(row, "id", str, where),
            row_field(row, "sample", int, where),
            row_field(row, "turn", int, where),
        )
        if key in wanted:
            reply = None if row.get("reply") is None else str(row_field(row, "reply", str, where))
            found[key] = (row_turns(row, "context", where), reply)
    return found


def evenly(keys: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, evenly spread over the sequence."""
    if len(keys) <= most:
        return list(keys)
    return [keys[place * len(keys) // most] for place in range(most)]


def _verdict(run: ReportedRun, record: Record | None) -> Verdict:
    """By the first judge."""
    p = record.p_unsafe[0] if record is not None and record.p_unsafe else None
    if p is None:
        return "unscored"
    return "unsafe" if p >= run.evaluation.judges[0].threshold else "safe"


def differ(verdicts: Iterable[Verdict]) -> bool:
    """Whether one verdict is safe and another unsafe; unscored differs from neither."""
    return {"safe", "unsafe"} <= set(verdicts)
