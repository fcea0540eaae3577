"""What a judge says about a reply: safe, unsafe, or not scored, and the protocol that every judge follows.

The three values come from the evaluation practice of counting a failed score apart: a reply that could not be scored
is *unscored*, never safe. This module imports nothing but the package's errors, so that everything may depend on it.
It leaves out how a probability is found (the other modules of this folder) and rates over many replies (evaluation).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

from parlai_safety.errors import SafetyError

Speaker = Literal["human", "bot"]
SPEAKERS: tuple[str, ...] = get_args(Speaker)


class Verdict(NamedTuple):
    """One reply's judgement; make it with `scored` or `unscored`, which check the parts.

    Attributes:
        p_unsafe: probability in [0, 1] that the reply is unsafe in its context; None where no score could be found.
        reason: why there is no score; None where there is one.
    """

    p_unsafe: float | None
    reason: str | None = None


class Judge(Protocol):
    """Anything that scores replies in their contexts. Score with `safe_score`, which trusts no judge to be perfect."""

    @property
    def spec(self) -> str:
        """The judge's name in the grammar of `parlai_safety.judges.spec`."""
        ...

    @property
    def threshold(self) -> float:
        """A reply with p_unsafe >= threshold is unsafe; strictly between 0 and 1."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, 64 hexadecimal digits, of all that the scores depend on; the threshold is no part of it.

        Judges of one fingerprint give one p_unsafe for one reply, in any process; see `fingerprint_of`.
        """
        ...

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch.

        Args:
            replies: B replies.
            contexts: B lists of turns before the reply, oldest first; a list may be empty.
            speakers: B times who says the reply, "human" or "bot".

        Returns:
            B verdicts in the order of the replies; one reply's failure is that reply's unscored verdict.

        Raises:
            SafetyError: the three lengths differ, a context is a string, or a speaker is unknown.
        """
        ...


def scored(p_unsafe: float) -> Verdict:
    """A verdict with a score.

    Raises:
        SafetyError: `p_unsafe` is NaN or outside [0, 1].
    """
    if not 0.0 <= p_unsafe <= 1.0:
        raise SafetyError(
            f"A judge returned p_unsafe = {p_unsafe}",
            "A probability lies between 0 and 1, and anything else cannot be compared with a threshold",
            "Return a value in [0, 1], or unscored(reason) where there is none",
        )
    return Verdict(float(p_unsafe))


def unscored(reason: str) -> Verdict:
    """A verdict without a score, and why.

    Raises:
        SafetyError: the reason is empty.
    """
    if not reason.strip():
        raise SafetyError(
            "A verdict is unscored without a reason",
            "Reports count unscored replies by their reasons",
            "Say in a few words why the reply has no score",
        )
    return Verdict(None, reason.strip())


def is_unsafe(verdict: Verdict, threshold: float) -> bool | None:
    """True where p_unsafe >= threshold, False where it is below, None where the reply is unscored."""
    check_threshold(threshold)
    return None if verdict.p_unsafe is None else verdict.p_unsafe >= threshold


def check_threshold(threshold: float) -> float:
    """Return the threshold if it lies strictly between 0 and 1.

    Raises:
        SafetyError: it does not. At 0 every reply would be unsafe, and at 1 a certain verdict could still be missed.
    """
    if not 0.0 < threshold < 1.0:
        raise SafetyError(
            f"The threshold is {threshold}",
            "A reply is unsafe where p_unsafe >= threshold, and p_unsafe is a probability",
            "Choose a threshold strictly between 0 and 1, such as 0.5",
        )
    return float(threshold)


def fingerprint_of(kind: str, version: int, **parts: Any) -> str:
    """The SHA-256 of what a judge's scores depend on.

    Args:
        kind: the judge's name in the grammar.
        version: to be raised whenever the same parts come to give other scores.
        parts: settings, and hashes of files and weights, as JSON values.

    Returns:
        64 hexadecimal digits, the same in every process.
    """
    text = json.dumps([kind, version, parts], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def judged(
    replies: Sequence[str],
    contexts: Sequence[Sequence[str]],
    speakers: Sequence[Speaker],
    score_batch: Callable[[list[str], list[list[str]], list[Speaker]], Sequence[float | Verdict]],
) -> list[Verdict]:
    """Run a judge's arithmetic over a batch and turn every single failure into that reply's unscored verdict.

    A reply that is not text, or holds no visible character, is unscored and never reaches `score_batch`. Where
    `score_batch` raises on a batch, the batch is halved until the replies to blame stand alone: those are unscored.
    With k of them that takes at most 2 k log2(B) further calls for B a power of two, and never more than 2 B - 2.

    Args:
        replies: B replies.
        contexts: B lists of turns, oldest first.
        speakers: B speakers.
        score_batch: maps b <= B replies, contexts and speakers to b values of p_unsafe, or verdicts.

    Returns:
        B verdicts. A value that is no number in [0, 1] is an unscored one.

    Raises:
        SafetyError: the arguments of the batch are wrong (see `Judge.score`), or `score_batch` raised one: that is a
            mistake in the set-up and would repeat itself on every reply.
    """
    check_batch(replies, contexts, speakers)
    verdicts = [unfit(reply) for reply in replies]

    def run(indices: list[int]) -> None:
        try:
            values = score_batch(
                [replies[i] for i in indices], [list(contexts[i]) for i in indices], [speakers[i] for i in indices]
            )
            for index, value in zip(indices, values, strict=True):
                verdicts[index] = _checked(value)
        except SafetyError:
            raise
        except Exception as error:
            if len(indices) == 1:
                verdicts[indices[0]] = unscored(f"{type(error).__name__}: {str(error)[:200]}")
                return
            # Which reply is to blame is not known from a batch.
            middle = len(indices) // 2
            run(indices[:middle])
            run(indices[middle:])

    fit = [index for index, verdict in enumerate(verdicts) if verdict is None]
    if fit:
        run(fit)
    return [verdict for verdict in verdicts if verdict is not None]


def safe_score(
    judge: Judge, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
) -> list[Verdict]:
    """Score with any judge, our own or another's, so that a failure costs the replies that it concerns and no more.

    What `judged` promises of our judges, this holds every judge to: an empty reply, an exception, and a score that is
    NaN or outside [0, 1] are unscored verdicts.

    Args:
        judge: the judge.
        replies: B replies.
        contexts: B lists of turns, oldest first.
        speakers: B speakers.

    Returns:
        B verdicts in the order of the replies.

    Raises:
        SafetyError: the arguments are wrong, the judge raised one, or it gave something else than one verdict a
            reply, so that nobody can tell which verdict belongs to which reply.
    """

    def score_batch(some: list[str], their: list[list[str]], by: list[Speaker]) -> list[Verdict]:
        verdicts = judge.score(some, their, by)
        if not isinstance(verdicts, Sequence) or len(verdicts) != len(some):
            found = f"{len(verdicts)} verdicts" if isinstance(verdicts, Sequence) else f"a {type(verdicts).__name__}"
            raise SafetyError(
                f"The judge {judge.spec!r} gave {found} for {len(some)} replies",
                "Which verdict belongs to which reply cannot be told, so none of them can be used",
                "Mend its score(), which returns a list of one verdict a reply in the order of the replies",
            )
        for verdict in verdicts:
            if not isinstance(verdict, Verdict):
                raise SafetyError(
                    f"The judge {judge.spec!r} gave a {type(verdict).__name__} as a verdict",
                    "A bare value cannot say that a reply has no score, and why",
                    "Mend its score(), which returns scored(p_unsafe) or unscored(reason) for each reply",
                )
        return verdicts

    return judged(replies, contexts, speakers, score_batch)


def check_batch(replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]) -> None:
    """Check that a batch is well formed.

    Raises:
        SafetyError: lengths differ, a context is a string instead of a list of turns, or a speaker is unknown.
    """
    if not len(replies) == len(contexts) == len(speakers):
        raise SafetyError(
            f"A judge was given {len(replies)} replies, {len(contexts)} contexts and {len(speakers)} speakers",
            "Every reply is judged in its own context and as its own speaker's",
            "Pass three sequences of one length; a reply without context has the empty list",
        )
    for context in contexts:
        if isinstance(context, str):
            raise SafetyError(
                f"A context is the string {context[:40]!r}",
                "A context is a list of turns, and a string would be read as one turn a letter",
                "Pass context.split('\\n'), or [context] for a single turn",
            )
    for speaker in speakers:
        if speaker not in SPEAKERS:
            raise SafetyError(
                f"A speaker is {speaker!r}",
                "People's turns and a model's are unsafe at different rates and are never mixed up",
                "Use 'human' or 'bot'",
            )


def unfit(reply: object) -> Verdict | None:
    """The unscored verdict of a reply that no judge can read, because it is no text or shows nothing; else None."""
    if not isinstance(reply, str):
        return unscored(f"the reply is a {type(reply).__name__}, not text")
    # Controls, formats (zero width) and separators alone say nothing that could be safe.
    visible = any(unicodedata.category(character)[0] not in "CZ" for character in reply)
    return None if visible else unscored("the reply is empty")


def _checked(value: object) -> Verdict:
    """The verdict with a score in [0, 1], or the unscored one that says why there is none."""
    if isinstance(value, Verdict):
        if value.p_unsafe is None:
            return unscored((value.reason or "").strip() or "the judge gave no reason")
        value = value.p_unsafe
    try:
        p_unsafe = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        p_unsafe = float("nan")
    return scored(p_unsafe) if 0.0 <= p_unsafe <= 1.0 else unscored(f"the judge returned p_unsafe = {value}"[:200])
