"""What a guard's judges say of a turn, so that a judge that fails is never taken for one that found nothing.

Left out: what is done about it, which is the agent's (`parlai_safety.agents.guard.guard`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from parlai.utils import logging

from parlai_safety.judges.timed import TimedJudge
from parlai_safety.judges.verdict import Judge, Speaker, Verdict, check_threshold, is_unsafe, safe_score, unscored
from parlai_safety.judges.wrapped import WrappedJudge

Side = Literal["user", "reply"]
UNSCORED = "unscored"
FAILED = unscored("the judge failed")
TRIGGERS = ("user", "user_topic", "reply", "reply_topic", UNSCORED)
"""Why a canned reply is said, from what the guard tells first where several hold."""


class Turn(NamedTuple):
    """What is to be judged.

    Attributes:
        side: a turn of the user, judged as a person's, or a reply of the agent, judged as a bot's.
        text: what was, or would be, said.
        context: the turns before it, oldest first.
    """

    side: Side
    text: str
    context: list[str]


class Finding(NamedTuple):
    """What all judges together say of one turn.

    Attributes:
        trigger: one of `TRIGGERS`, or None where every judge has found the turn safe.
        judge: the specification of the judge that says so; of the first one where the turn is safe.
        p_unsafe: that judge's score, or None where it has none.
        topic: the sensitive topic, where a judge of topics has found one and names it.
    """

    trigger: str | None
    judge: str
    p_unsafe: float | None
    topic: str | None = None


class TopicNames(WrappedJudge):
    """A judge of topics whose `score` gives their names, so that these can be given a limit as scores are."""

    def score(self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]) -> Any:
        """The judge's topics."""
        judge: Any = self.judge
        return judge.topics(replies, contexts)


class Checks:
    """One or two judges, asked so that whatever goes wrong is a finding.

    Args:
        judge: who says what is unsafe.
        topics: who says what is on a sensitive topic; None = nobody.
        seconds: how long each call of a judge may take; 0 = as long as it likes.
        tell: whether a warning may hold a judge's own words, which may hold the reply in turn.

    Raises:
        SafetyError: a threshold or the limit is out of range.
    """

    def __init__(self, judge: Judge, topics: Judge | None = None, *, seconds: float = 0.0, tell: bool = False) -> None:
        self.judges = {"": judge} | ({} if topics is None else {"_topic": topics})
        self.thresholds = {suffix: check_threshold(judge.threshold) for suffix, judge in self.judges.items()}
        self.timed = {suffix: TimedJudge(judge, seconds) if seconds else judge for suffix, judge in self.judges.items()}
        named = {suffix: TopicNames(judge) for suffix, judge in self.judges.items() if hasattr(judge, "topics")}
        self.names = {suffix: TimedJudge(names, seconds) if seconds else names for suffix, names in named.items()}
        self.tell = tell
        self._warned: set[tuple[str, str]] = set()

    def find(self, turns: Sequence[Turn]) -> list[Finding]:
        """What the judges say of each turn, in their order; no turn without a finding."""
        if not turns:
            return []
        found = [self._found(suffix, turns) for suffix in self.judges]
        return [first(findings) for findings in zip(*found, strict=True)]

    def _found(self, suffix: str, turns: Sequence[Turn]) -> list[Finding]:
        """What one judge says of each turn."""
        judge, threshold, findings = self.judges[suffix], self.thresholds[suffix], []
        for turn, verdict in zip(turns, self._verdicts(suffix, turns), strict=True):
            unsafe = is_unsafe(verdict, threshold)
            if unsafe is None:
                trigger: str | None = UNSCORED
                if verdict is not FAILED:
                    self._warn(judge.spec, "gave a text no score", verdict.reason)
            else:
                trigger = f"{turn.side}{suffix}" if unsafe else None
            topic = self._topic(suffix, turn) if unsafe else None
            findings.append(Finding(trigger, judge.spec, verdict.p_unsafe, topic))
        return findings

    def _verdicts(self, suffix: str, turns: Sequence[Turn]) -> list[Verdict]:
        judge = self.timed[suffix]
        try:
            return safe_score(
                judge,
                [turn.text for turn in turns],
                [turn.context for turn in turns],
                ["human" if turn.side == "user" else "bot" for turn in turns],
            )
        except Exception as error:  # whatever it is, nobody has found these texts safe
            self._warn(judge.spec, f"failed with a {type(error).__name__}", str(error))
            return [FAILED] * len(turns)

    def _topic(self, suffix: str, turn: Turn) -> str | None:
        """The topic's name, where the judge has one to give, in time; that it fired stands without it."""
        if suffix not in self.names:
            return None
        try:
            names: Any = self.names[suffix].score([turn.text], [turn.context], ["human"])
            return str(names[0].name)
        except Exception:
            return None

    def _warn(self, spec: str, what: str, words: str | None) -> None:
        if (spec, what) not in self._warned:
            self._warned.add((spec, what))
            more = f" ({words})" if self.tell and words else ""
            logging.warning(
                f"The guard's judge {spec!r} {what}{more}: a canned reply is said, now and whenever that happens again."
            )


def first(findings: Iterable[Finding]) -> Finding:
    """The finding that decides: what comes first in `TRIGGERS`, the earlier one of two alike; safe where all are."""
    return min(findings, key=lambda one: len(TRIGGERS) if one.trigger is None else TRIGGERS.index(one.trigger))
