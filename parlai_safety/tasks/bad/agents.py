"""`-t safety:bad`: Bot-Adversarial Dialogue, people who try to make a bot say unsafe things, judged turn by turn.

Source: Xu et al., arXiv:2010.07079; the data of ParlAI's `bot_adversarial_dialogue`, whose options work here. The
default view, like `:classifier`, judges the last line of `text`, said by `speaker_to_eval`. `:reply` gives the same
turn as a reply with `classifier_label`; `:plain`, `:positive` and `:negative` are made of it. `:human_safety` and
`:human_nonadv` are the two fixed sets of 180 contexts whose answers people judged. Differences from ParlAI: flags that
say False are False, whitespace inside a turn is one space, and the evaluation sets are refused for training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Imported for its mutator `filter_want_to_talk_about_labels`, which is of use with this task.
import parlai.tasks.bot_adversarial_dialogue.agents  # noqa: F401
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.utils.data import DatatypeHelper

from parlai_safety.errors import SafetyError
from parlai_safety.files import bad_row
from parlai_safety.message import join_context
from parlai_safety.options import option
from parlai_safety.tasks.common import SAFE_CLASS, START, UNSAFE_CLASS, Row, in_views
from parlai_safety.tasks.downloads import BAD, BAD_HUMAN_NONADV, BAD_HUMAN_SAFETY
from parlai_safety.tasks.published import PublishedTeacher, passed_on, text_episodes

CANNED = "do you want to talk about"
"""In the bot's turns that change the subject, about 7,000 of the release (ParlAI's own count)."""
PERSONA = "your persona: "
MIXES = ("safe", "unsafe", "all")


@dataclass(frozen=True)
class BadOptions:
    """Options of Bot-Adversarial Dialogue; ParlAI's, and the last one ours."""

    bad_num_turns: int = option(-1, "Keep the last turns alone, the judged one included; -1 or 0 keeps all.", low=-1)
    bad_speaker_to_eval: str = option("all", "Whose turns are judged.", choices=("bot", "human", "all"))
    bad_safety_mix: str = option(
        "all", "Which turns: those judged safe, unsafe, or all.", choices=("safe", "unsafe", "all")
    )
    bad_include_persona: bool = option(
        False, "Begin with the bot's persona where the bot's turn is judged and its first turn is still there."
    )
    bad_drop_canned: bool = option(
        False,
        "Leave out the bot's turns that change the subject with a fixed phrase, which models copy.",
    )


class DefaultTeacher(PublishedTeacher):
    """Turns of people and bots in context, to be classified as `__ok__` or `__notok__`."""

    dataset = BAD
    declared = BadOptions
    title = "Bot-Adversarial Dialogue"
    view = "classifier"

    def rows(self, split: str) -> Iterator[Row]:
        """Every judged turn that the options ask for, with all turns before it."""
        path = self.folder() / f"bot_adversarial_dialogue_datasets_with_persona/{split}.txt"
        speaker, mix, drop = self.own.bad_speaker_to_eval, self.own.bad_safety_mix, self.own.bad_drop_canned
        provenance = self.provenance(split)
        for number, message in enumerate((m for episode in text_episodes(path) for m in episode), 1):
            label, said_by = message["labels"][0], message.get("speaker_to_eval")
            if label not in (SAFE_CLASS, UNSAFE_CLASS) or said_by not in ("bot", "human"):
                rule = "the label is __ok__ or __notok__, and 'speaker_to_eval' is bot or human"
                raise bad_row(f"Message {number} of {str(path)!r}", f"the label {label!r} of {said_by!r}", rule)
            unsafe = label == UNSAFE_CLASS
            *context, reply = message["text"].split("\n")
            canned = said_by == "bot" and CANNED in reply.lower()
            if speaker in ("all", said_by) and mix in ("all", "unsafe" if unsafe else "safe") and not (drop and canned):
                fields = {**passed_on(message), "speaker": said_by, "provenance": provenance}
                yield Row(context, reply, unsafe, fields)

    def shown(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with as many turns as were asked for, and the persona before them."""
        keep = self.own.bad_num_turns
        lines = [] if message["text"] == START else message["text"].split("\n")
        kept = lines
        if keep > 0:
            room = keep if self.view == "classifier" else keep - 1  # a reply to learn from is a turn, outside the text
            kept = lines[max(0, len(lines) - room) :]
        persona = message["bot_persona"].strip() if self.own.bad_include_persona and message["speaker"] == "bot" else ""
        if persona and len(kept) == len(lines):
            kept = [*persona.split("\n"), *kept]
        return {**message, "text": "\n".join(kept) or START}


class ReplyTeacher(DefaultTeacher):
    """Turns as replies to learn from or to avoid."""

    view = "reply"


PlainTeacher, PositiveTeacher, NegativeTeacher, ClassifierTeacher = in_views(
    DefaultTeacher,
    plain="Turns as a raw log, without verdicts.",
    positive="Safe turns only.",
    negative="Unsafe turns only, as plain talk: what an anti-expert learns from.",
    classifier="The default view under the name that our other tasks give it.",
)


class _Evaluation(PublishedTeacher):
    """A fixed set of contexts; it is served whatever the split, and never for training."""

    view = "plain"

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        if DatatypeHelper.should_cycle(opt["datatype"]):
            raise SafetyError(
                f"-t {opt['task']} came with -dt {opt['datatype']}",
                "It is one fixed evaluation set, on which published figures rest, and whoever trains on it has none",
                "Train on -t safety:bad, and use this one with -dt test",
            )
        super().__init__(opt, shared)


@dataclass(frozen=True)
class HumanSafetyOptions:
    """Options of the adversarial evaluation set; ParlAI's."""

    bad_include_persona: bool = option(False, "Begin with the bot's persona where the dialogue has one.")
    flatten_dialogue: bool = option(True, "One message of a dialogue with all its turns, not a message a turn.")


class HumanSafetyTeacher(_Evaluation):
    """The 180 adversarial contexts; the label is the answer of the bot of that time."""

    dataset = BAD_HUMAN_SAFETY
    declared = HumanSafetyOptions
    title = "Evaluation sets of Bot-Adversarial Dialogue"

    def setup_data(self, datafile: str) -> Iterator[tuple[dict[str, Any], bool]]:
        """One message of each dialogue, or with `--flatten-dialogue false` one of each exchange."""
        path = self.folder() / "human_safety_eval/test.txt"
        for episode in text_episodes(path):
            texts = [_lines(message["text"]) for message in episode]
            if not self.own.bad_include_persona:
                texts[0] = [line for line in texts[0] if not line.startswith(PERSONA)]
            if self.own.flatten_dialogue:
                said = [[*text, *message["labels"]] for text, message in zip(texts, episode, strict=True)]
                whole = [line for lines in said for line in lines][:-1]
                yield self._message(episode[0], whole, episode[-1]["labels"]), True
                continue
            for number, (text, message) in enumerate(zip(texts, episode, strict=True)):
                yield self._message(message, text, message["labels"]), number == 0

    def _message(self, row: Message, lines: list[str], labels: list[str]) -> dict[str, Any]:
        ours = {"is_ltr": True, "classifier_label": "none", "speaker": "bot", "provenance": self.provenance("test")}
        return {**passed_on(row), "text": join_context(lines), "labels": labels, **ours}


class HumanNonadvTeacher(_Evaluation):
    """The 180 contexts of ordinary talk; the label is the class of their last line."""

    dataset = BAD_HUMAN_NONADV
    view = "classifier"

    def rows(self, split: str) -> Iterator[Row]:
        """The contexts, each with its last line as what the label judges."""
        provenance = self.provenance("test")
        for episode in text_episodes(self.folder() / "human_nonadv_safety_eval/test.txt"):
            for message in episode:
                *context, last = _lines(message["text"])
                fields = {**passed_on(message), "speaker": "human", "provenance": provenance}
                yield Row(context, last, message["labels"][0] == UNSAFE_CLASS, fields)


def _lines(text: str) -> list[str]:
    return text.split("\n")
