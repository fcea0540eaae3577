"""`--mutators safety_control_safety`, `..._gender`, `..._style`: behind which control tokens a reply is learned.

"Recipes for Safety" (Xu et al. 2020, arXiv:2010.07079) tags each training example and asks for one kind when the model
answers: SAFE or not as a judge says of the reply, one of four bins by gendered words in the reply (learned from all,
asked for F0M0, which holds none), and a word of style. Each of these adds its name to the field `control`, which a
model with `--control-tokens` reads; chain them with `+`. The gendered words are ours, `gender_words.yaml`: pronouns,
kin, titles and occupations with two forms; first names are left out. The paper takes words of style from a classifier
that learned Image-Chat's; here they come from the field `style` or `personality` of tasks that have one (ParlAI's
`style_gen`, `image_chat`, `personality_captions`), and where there is none, the reply has no style.

The paper appends words to the text. With `--control-text true` the tokens' names are appended, too, for agents that
read text alone; such words can be typed by everybody. Our agents take them out again.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from parlai.core.message import Message
from parlai.core.mutators import MessageMutator, register_mutator
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError
from parlai_safety.message import add_control, control_names, control_token
from parlai_safety.mutators.judged import JudgedMutator, add_once, labels_of, with_history
from parlai_safety.options import option, options_from

GENDER_BINS = ("f0m0", "f0m1", "f1m0", "f1m1")
RESERVED = ("toxic", "none", "safe", "unsafe", *GENDER_BINS)
"""Names that mean something else than a style."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class ControlTextOptions:
    """What the mutators of control tokens share."""

    control_text: bool = option(
        False, "Append the tokens' names to the text, too, for agents that read text alone; anybody can type them."
    )


@dataclass(frozen=True)
class SafetyOptions:
    """Who says what is safe."""

    control_source: str = option(
        "judge",
        "What says whether a reply is safe: the judge of the mutators (or its scores), or classifier_label.",
        choices=("judge", "label"),
    )


@dataclass(frozen=True)
class StyleOptions:
    """Which styles count."""

    control_styles: str = option(
        "", "Styles that become control tokens, with commas between them, as in calm,cheerful; empty for all."
    )


@register_mutator("safety_control_safety")
class SafetyControlMutator(JudgedMutator):
    """Learn each reply behind SAFE or UNSAFE, as a judge or `classifier_label` says; unscored ones behind neither."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the judge's flags and those of `SafetyOptions`."""
        super().add_cmdline_args(parser, partial_opt)
        add_once(parser, SafetyOptions, "Control by safety")
        add_once(parser, ControlTextOptions, "Control in the text")
        return parser

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self.source = options_from(opt, SafetyOptions).control_source
        self.in_text = options_from(opt, ControlTextOptions).control_text

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """The episode; what is told apart by tokens is plain talk, of which nothing is to be avoided any more.

        Raises:
            SafetyError: a message has neither a judge nor a score.
        """
        for message, before in with_history(episode):
            unsafe = self._unsafe(message, before)
            if unsafe is not None:
                _set(message, "unsafe" if unsafe else "safe", self.in_text)
                message.force_set("classifier_label", "none")
        yield episode

    def _unsafe(self, message: Message, before: list[str]) -> bool | None:
        if self.source == "label":
            return {"pos": False, "neg": True}.get(message.get("classifier_label", "none"))
        return self.label_unsafe(message, before)


class _ControlMutator(MessageMutator):
    """A mutator that looks at one message."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `ControlTextOptions`."""
        add_once(parser, ControlTextOptions, "Control in the text")
        return parser

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self.in_text = options_from(opt, ControlTextOptions).control_text


@register_mutator("safety_control_gender")
class GenderControlMutator(_ControlMutator):
    """Learn each reply behind F0M0, F0M1, F1M0 or F1M1: whether it holds female and male words."""

    def message_mutation(self, message: Message) -> Message:
        """Transform one message; one without a label stays as it is."""
        labels = labels_of(message)
        if labels:
            _set(message, gender_bin(" ".join(labels)), self.in_text)
        return message


@register_mutator("safety_control_style")
class StyleControlMutator(_ControlMutator):
    """Learn each reply behind the style that its message names in `style` or `personality`, where it names one."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `StyleOptions`."""
        super().add_cmdline_args(parser, partial_opt)
        add_once(parser, StyleOptions, "Control by style")
        return parser

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        listed = options_from(opt, StyleOptions).control_styles
        self.wanted = {style_name(style) for style in listed.split(",") if style.strip()}

    def message_mutation(self, message: Message) -> Message:
        """Transform one message.

        Raises:
            SafetyError: its style is wanted, and no name for a token, or means something else.
        """
        named = next((message[key] for key in ("style", "personality") if str(message.get(key) or "").strip()), None)
        if named is not None and labels_of(message):
            if not self.wanted or _joined(str(named)) in self.wanted:
                _set(message, style_name(str(named)), self.in_text)
        return message


def gender_bin(text: str) -> str:
    """Which of the bins f0m0, f0m1, f1m0, f1m1 a text falls in: f1 where it holds a female word, m1 a male one.

    Whole words, in any case and with or without accents; "king's" holds "king".

    >>> gender_bin("The queen's hat"), gender_bin("He met her"), gender_bin("Hello there")
    ('f1m0', 'f1m1', 'f0m0')
    """
    female, male = gender_words()
    letters = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    words = set(_WORD.findall(letters.lower()))
    return f"f{int(not words.isdisjoint(female))}m{int(not words.isdisjoint(male))}"


@functools.lru_cache(maxsize=1)
def gender_words() -> tuple[frozenset[str], frozenset[str]]:
    """Our female and our male words, in lower case; those that mean other things as often are left out."""
    listed: dict[str, Any] = yaml.safe_load(
        resources.files("parlai_safety.mutators").joinpath("gender_words.yaml").read_text(encoding="utf-8")
    )
    female, male = (frozenset(" ".join(listed[side].values()).split()) for side in ("female", "male"))
    return female, male


def style_name(style: str) -> str:
    """The name of a style's control token, as in "old_fashioned" for "Old-fashioned".

    Raises:
        SafetyError: nothing of it can be a name, or the name means something else.
    """
    name = _joined(style)
    if not control_names(name) or name in RESERVED:
        raise SafetyError(
            f"The mutator safety_control_style met the style {style!r}",
            f"A style is a word or words in letters from a to z and digits, and none of {', '.join(RESERVED)}",
            "Name the styles that are wanted with --control-styles, or correct the task",
        )
    return name


def _joined(style: str) -> str:
    return "_".join(_WORD.findall(style.lower()))


def _set(message: Message, name: str, in_text: bool) -> None:
    add_control(message, name)
    if in_text:
        message.force_set("text", f"{message.get('text', '')} {control_token(name)}")
