"""What mutators that ask a judge share: the judge, its threshold, and whose turn is judged in which context.

The judge is that of `--mutator-judge`. Without one, the scores that a message carries are read (`toxicity`,
`context_toxicity`, with the threshold in `provenance["toxicity"]`): those that `parlai safety_annotate` writes. A
message that has neither is refused, for nothing is known of it.

Whose turn: the label is said by the message's `speaker`, or by the bot; the last turn of the context by the other one.
The context is the lines of `text`, oldest first. In an episode of several messages the earlier ones, labels included,
are context too. What stands in the text beside turns, such as a persona, counts as turns.

A judge is loaded once a process, whichever mutators and tasks name it. Every epoch asks it again, so give
`--mutator-judge-cache` to a slow one. Left out: scores of several messages in one call, for ParlAI shows a mutator one
episode at a time; `parlai safety_bake` and `parlai safety_filter` work in large batches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError
from parlai_safety.judges.cache import CachedJudge
from parlai_safety.judges.spec import load_judge, parse
from parlai_safety.judges.verdict import Judge, Speaker, check_threshold, is_unsafe, safe_score
from parlai_safety.message import check_message, join_context
from parlai_safety.mutators.thinning import ThinningMutator
from parlai_safety.options import add_options, option, options_from

START = "__start__"
"""The text of a message without context."""


@dataclass(frozen=True)
class JudgedOptions:
    """Who says what is unsafe."""

    mutator_judge: str | None = option(None, "Judge that the mutators ask; the scores of the messages without one.")
    mutator_threshold: float | None = option(
        None, "What P(unsafe) is unsafe, in place of the threshold of the judge or of the scores.", low=0.0, high=1.0
    )
    mutator_judge_cache: str | None = option(None, "File of the judge's scores, which are then asked for once.")


class JudgedMutator(ThinningMutator):
    """A mutator that knows whether a label, or the turn before it, is unsafe; unscored is None, and never safe.

    Raises:
        SafetyError: an option is out of range, or `--mutator-judge` names no judge.
    """

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self.judged = options_from(opt, JudgedOptions)
        if self.judged.mutator_judge:
            parse(self.judged.mutator_judge)
        if self.judged.mutator_threshold is not None:
            check_threshold(self.judged.mutator_threshold)

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the judge's flags, once for all mutators and tasks of a command."""
        add_once(parser, JudgedOptions, "Judge of the mutators")
        return parser

    @property
    def judge(self) -> Judge | None:
        """The judge of `--mutator-judge`, or None.

        Raises:
            SafetyError: it cannot be loaded.
        """
        if not self.judged.mutator_judge:
            return None
        return _loaded(
            self.judged.mutator_judge,
            self.judged.mutator_threshold,
            self.judged.mutator_judge_cache,
            self.opt.get("datapath"),
        )

    def label_unsafe(self, message: Mapping[str, Any], before: Sequence[str] = ()) -> bool | None:
        """Whether the label is unsafe in its context; with several labels, whether any is.

        Args:
            message: a reply in its context.
            before: turns before the message's own, oldest first (see `with_history`).

        Returns:
            None where it could not be scored, or there is no label.

        Raises:
            SafetyError: there is neither a judge nor a score, or the label is the name of a class.
        """
        labels = labels_of(message)
        check_is_talk(message, labels)
        if self.judge is None:
            return self._stored(message, "toxicity") if labels else None
        context = turns_of(message, before)
        found = [self.turn_unsafe(label, context, speaker_of(message)) for label in labels]
        return True if any(found) else None if None in found or not found else False

    def context_unsafe(self, message: Mapping[str, Any], before: Sequence[str] = ()) -> bool | None:
        """Whether the last turn before the label is unsafe, in the context of those before it; False where none is.

        Args:
            message: a reply in its context.
            before: turns before the message's own, oldest first.

        Returns:
            None where it could not be scored.

        Raises:
            SafetyError: there is neither a judge nor a score.
        """
        context = turns_of(message, before)
        if not context:
            return False
        if self.judge is None:
            return self._stored(message, "context_toxicity")
        return self.turn_unsafe(context[-1], context[:-1], other(speaker_of(message)))

    def turn_unsafe(self, turn: str, context: Sequence[str], speaker: Speaker) -> bool | None:
        """What the judge says of any turn; None where it could not be scored.

        Raises:
            SafetyError: there is no judge.
        """
        judge = self.judge
        if judge is None:
            raise SafetyError(
                "A turn that has no score was to be judged, and there is no --mutator-judge",
                "Messages carry scores of their label and of the turn before it alone",
                "Add --mutator-judge SPEC, such as --mutator-judge linear:judges/labeller.npz",
            )
        [verdict] = safe_score(judge, [turn], [list(context)], [speaker])
        return is_unsafe(verdict, judge.threshold)

    def scored_by(self, message: Mapping[str, Any]) -> str:
        """The specification of the judge that `label_unsafe` and `context_unsafe` rely on."""
        if self.judge is not None:
            return self.judge.spec
        return str(_scoring(message).get("judge", "unknown"))

    def _stored(self, message: Mapping[str, Any], field: str) -> bool | None:
        scoring = _scoring(message)
        if field not in message:
            if scoring:
                return None
            raise SafetyError(
                f"A message has no {field!r}, and the command came without --mutator-judge",
                "Whether it is unsafe is said by a judge, or by the score that a judge has left there",
                "Add --mutator-judge SPEC, or score the task first with parlai safety_annotate",
            )
        check_message({field: message[field]}, "A message")
        threshold = self.judged.mutator_threshold or scoring.get("threshold")
        if threshold is None:
            raise SafetyError(
                f"A message has {field!r} = {message[field]} and no threshold in provenance['toxicity']",
                "What score is unsafe depends on the judge that gave it",
                "Add --mutator-threshold, such as the threshold on that judge's card",
            )
        return bool(message[field] >= threshold)


def add_once(parser: ParlaiParser, declared: type[Any], title: str) -> None:
    """Add the flags of a dataclass unless the parser has them: several mutators and tasks of a command share them."""
    if not {action.dest for action in parser._actions} >= {item.name for item in fields(declared)}:
        add_options(parser, declared, title)


def label_key(message: Mapping[str, Any]) -> str:
    """The field that holds the labels: "labels" in training, maybe "eval_labels" elsewhere."""
    return "labels" if "labels" in message else "eval_labels"


def labels_of(message: Mapping[str, Any]) -> list[str]:
    """The labels of a message; none where it has none or empty ones."""
    return [str(label) for label in message.get(label_key(message)) or () if str(label).strip()]


def speaker_of(message: Mapping[str, Any]) -> Speaker:
    """Who says the label; the bot where nothing is said."""
    return "human" if message.get("speaker") == "human" else "bot"


def other(speaker: Speaker) -> Speaker:
    """The one who is spoken to."""
    return "bot" if speaker == "human" else "human"


def turns_of(message: Mapping[str, Any], before: Sequence[str] = ()) -> list[str]:
    """The context of a message as turns, oldest first.

    Args:
        message: its `text` holds a turn a line.
        before: turns before those.
    """
    text = str(message.get("text") or "")
    return [*before, *(line for line in text.split("\n") if line.strip() and line != START)]


def with_history(episode: Sequence[Message]) -> Iterator[tuple[Message, list[str]]]:
    """The messages of an episode, each with the turns before its own: texts and first labels of the earlier ones."""
    before: list[str] = []
    for message in episode:
        after = [*turns_of(message, before), *labels_of(message)[:1]]  # before the caller changes the message
        yield message, before
        before = after


def alone(message: Message, before: Sequence[str]) -> Message:
    """A message that stands for itself: the turns before it in its text, so that others may be left out or changed."""
    if before:
        message.force_set("text", join_context(turns_of(message, before)) or START)
    return message


def check_is_talk(message: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Refuse the name of a class where something that was said is to be judged.

    Args:
        message: of a task.
        labels: its labels.

    Raises:
        SafetyError: one of them is such a name, or the message says that its label is none that is said.
    """
    named = next((label for label in labels if label.startswith("__") and label.endswith("__")), None)
    if labels and (message.get("is_ltr") is False or named is not None):
        raise SafetyError(
            f"A judge was to score the label {named or labels[0]!r}, the name of a class",
            "It judges what somebody says, and in this view of a task the reply is the last line of the text",
            "Put safety_reply before the mutator, or use a view of the task that shows replies",
        )


def _scoring(message: Mapping[str, Any]) -> Mapping[str, Any]:
    scoring = (message.get("provenance") or {}).get("toxicity")
    return scoring if isinstance(scoring, Mapping) else {}


@functools.lru_cache(maxsize=8)
def _loaded(spec: str, threshold: float | None, cache: str | None, datapath: str | None) -> Judge:
    judge = load_judge(spec, threshold=threshold, datapath=datapath)
    return CachedJudge(judge, cache) if cache else judge
