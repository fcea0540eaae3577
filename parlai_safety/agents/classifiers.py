"""What our classifiers share: how many turns they read, whatever the task shows.

A classifier of single utterances must never see a context, and one of replies in context should read as many turns as
its judge hands it later: Xu et al. (2020, arXiv:2010.07079) train both kinds, the second on the last four turns. The
number is an option of the agent, is saved with the model, and is read from there by `parlai:MODEL_FILE`. ParlAI's
`--history-size` counts messages and not turns, and is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import History

from parlai_safety.errors import SafetyError
from parlai_safety.judges.parlai_model import CONTEXT_TURNS
from parlai_safety.options import add_options, option, options_from

CLASSES = ("__ok__", "__notok__")


@dataclass(frozen=True)
class ClassifierOptions:
    """What a classifier reads."""

    context_turns: int = option(
        CONTEXT_TURNS, "Turns that are read, the one to be judged included; 1 = that one alone.", low=1
    )


class TurnHistory(History):
    """ParlAI's history, of which the last turns are kept; a turn is a line that is not blank."""

    def __init__(self, opt: Opt, *args: Any, **kwargs: Any) -> None:
        super().__init__(opt, *args, **kwargs)
        self.split_on_newln, self.size = True, options_from(opt, ClassifierOptions).context_turns

    def update_history(self, obs: Message, temp_history: str | None = None) -> None:
        """Remember the turns of a message, and forget those that lie too far back."""
        text = obs.get(self.field)
        if text is not None:
            obs = Message({self.field: "\n".join(line for line in text.split("\n") if line.strip())})
        super().update_history(obs, temp_history)


class TurnsMixin:
    """Put this before a `TorchClassifierAgent`: it reads the last `--context-turns` turns and no other."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the backbone's flags and ours, and set the classes."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        add_options(parser, ClassifierOptions, "Classifier of safety")
        parser.set_defaults(classes=list(CLASSES), print_scores=True, truncate=128)
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        turns = options_from(opt, ClassifierOptions).context_turns
        if shared is None:
            _check(opt)
        super().__init__(Opt({**opt, "context_turns": turns}), shared)  # type: ignore[call-arg]

    @classmethod
    def history_class(cls) -> type[TurnHistory]:
        """Turns, of which the last ones are kept."""
        return TurnHistory


def _check(opt: Opt) -> None:
    """Refuse what ParlAI would do wrong in silence."""
    classes, first, weights = opt.get("classes"), opt.get("ref_class"), opt.get("class_weights")
    if opt.get("person_tokens"):
        raise SafetyError(
            "--person-tokens got True",
            "ParlAI puts them before a whole message, and here a message is taken apart into turns",
            "Leave it out",
        )
    if opt.get("use_reply", "none") != "none":
        raise SafetyError(
            f"--use-reply got {opt['use_reply']!r}",
            "In an episode of several messages the classifier would read the classes of the earlier ones as turns",
            "Leave it out",
        )
    if first and classes and first in classes and classes[0] != first:
        raise SafetyError(
            f"--ref-class got {first!r}, and --classes begins with {classes[0]!r}",
            "ParlAI would move that class in its list but not in the model, and report every prediction upside down",
            f"Give the classes as --classes {' '.join([first, *(name for name in classes if name != first)])}",
        )
    if weights and classes and len(weights) != len(classes):
        raise SafetyError(
            f"--class-weights got {len(weights)} numbers for {len(classes)} classes",
            "Each class has a weight in the loss, in the order of --classes",
            f"Give {len(classes)} numbers, for {', '.join(classes)}",
        )
