"""What a judge says about a reply: safe, unsafe, or not scored, and the protocol that every judge follows.

The three values come from the evaluation practice of counting a failed score apart: a reply that could not be scored
is *unscored*, never safe. This module imports nothing but the package's errors, so that everything may depend on it.
It leaves out how a probability is found (the other modules of this folder) and rates over many replies (evaluation).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

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
    """Anything that scores replies in their contexts.

    Attributes:
        spec: the judge's name in the grammar of `parlai_safety.judges.spec`.
        threshold: a reply with p_unsafe >= threshold is unsafe; strictly between 0 and 1.
    """

    spec: str
    threshold: float

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


def judged(
    replies: Sequence[str],
    contexts: Sequence[Sequence[str]],
    speakers: Sequence[Speaker],
    score_batch: Callable[[list[str], list[list[str]], list[Speaker]], Sequence[float]],
) -> list[Verdict]:
    """Run a judge's arithmetic over a batch and turn every single failure into that reply's unscored verdict.

    A reply that is not text, or holds no visible character, is unscored and never reaches `score_batch`. Where
    `score_batch` raises on a batch, its replies are scored one by one; those that still fail are unscored.

    Args:
        replies: B replies.
        contexts: B lists of turns, oldest first.
        speakers: B speakers.
        score_batch: maps b <= B replies, contexts and speakers to b values of p_unsafe.

    Returns:
        B verdicts.

    Raises:
        SafetyError: the arguments of the batch are wrong (see `Judge.score`), or `score_batch` raised one: that is a
            mistake in the set-up and would repeat itself on every reply.
    """
    check_batch(replies, contexts, speakers)
    verdicts: list[Verdict | None] = [_unfit(reply) for reply in replies]
    fit = [index for index, verdict in enumerate(verdicts) if verdict is None]

    def run(indices: list[int]) -> None:
        values = score_batch(
            [replies[i] for i in indices], [list(contexts[i]) for i in indices], [speakers[i] for i in indices]
        )
        for index, value in zip(indices, values, strict=True):
            in_range = 0.0 <= value <= 1.0
            verdicts[index] = scored(value) if in_range else unscored(f"the judge returned p_unsafe = {value}")

    try:
        if fit:
            run(fit)
    except SafetyError:
        raise
    except Exception:
        # Which reply is to blame is not known from a batch, so each is tried alone.
        for index in fit:
            try:
                run([index])
            except Exception as error:
                verdicts[index] = unscored(f"{type(error).__name__}: {str(error)[:200]}")
    return [verdict for verdict in verdicts if verdict is not None]


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


def _unfit(reply: object) -> Verdict | None:
    if not isinstance(reply, str):
        return unscored(f"the reply is a {type(reply).__name__}, not text")
    # Controls, formats (zero width) and separators alone say nothing that could be safe.
    visible = any(unicodedata.category(character)[0] not in "CZ" for character in reply)
    return None if visible else unscored("the reply is empty")
