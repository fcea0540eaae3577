"""What a recipe may say of an agent: its options are checked before the first model is trained, not after the last.

ParlAI drops an option that it does not know without a word where a model is loaded, and ends in a traceback where one
is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from parlai.core.loader import load_agent_module
from parlai.core.opt import Opt
from parlai.core.torch_generator_agent import TorchGeneratorAgent
from parlai.scripts.train_model import TrainModel

from parlai_safety.agents.wrapped import WrappedAgent
from parlai_safety.errors import SafetyError, did_you_mean

VIEWS = ("plain", "reply", "positive", "negative")
TOXIC, ALONE = "toxic", "none"
"""Views of a recipe that no teacher has: unsafe replies behind the toxic control token, and own replies alone."""
OWN = ("labelled", "pairs")


@functools.cache
def options_of(agent: str) -> frozenset[str]:
    """The names of all options that training or decoding with an agent knows, ParlAI's own among them.

    Raises:
        SafetyError: there is no such agent.
    """
    parser = TrainModel.setup_args()
    agent_class(agent).add_cmdline_args(parser, Opt({"model": agent}))
    return frozenset(action.dest for action in parser._actions)


@functools.cache
def agent_class(name: str) -> type[TorchGeneratorAgent]:
    """The class of an agent by the name that stands after `-m`.

    Raises:
        SafetyError: there is none, or it is no generator.
    """
    try:
        found = load_agent_module(name)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        raise SafetyError(
            f"The recipe names the agent {name!r}",
            f"ParlAI finds none of that name ({error})",
            "Name one that `parlai safety_plugins` lists, or an agent of ParlAI's such as transformer/generator",
        ) from error
    if not issubclass(found, (TorchGeneratorAgent, WrappedAgent)):
        raise SafetyError(
            f"The recipe names the agent {name!r}",
            "It writes no replies of its own, and a system of a recipe is asked for replies",
            "Name a generator, such as safety:cringe",
        )
    return found  # type: ignore[no-any-return]


def decodes(agent: str) -> bool:
    """Whether an agent is a way of decoding another model, which is not trained."""
    return issubclass(agent_class(agent), WrappedAgent)


def option_of_model(agent: str) -> str:
    """The option by which an agent that decodes another model is told that model's file."""
    found: Any = agent_class(agent)
    return str(found.model_option)


def check_options(agent: str, names: Iterable[str], where: str) -> None:
    """Refuse an option that an agent does not know.

    Raises:
        SafetyError: as said, with the nearest known name.
    """
    known = options_of(agent)
    for name in names:
        if name not in known:
            raise SafetyError(
                f"{where} has the option {name!r}",
                f"Neither ParlAI nor the agent {agent} knows it, and it would be passed over without a word",
                did_you_mean(name, known, f"Type parlai train_model -m {agent} --help for the options there are"),
            )


def check_one_of(value: object, known: tuple[str, ...], where: str, meaning: str) -> None:
    """Refuse a word that is none of the known ones.

    Raises:
        SafetyError: as said.
    """
    if value not in known:
        raise SafetyError(
            f"{where} is {value!r}",
            f"It says {meaning}, and can be one of {', '.join(known)}",
            did_you_mean(str(value), known, f"Write {known[0]}"),
        )


def check_number(value: object, where: str, *, low: float, whole: bool = False) -> None:
    """Refuse what is no number, or too small.

    Raises:
        SafetyError: as said.
    """
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= low:
        raise SafetyError(
            f"{where} is {value!r}",
            f"It is a {'whole ' if whole else ''}number of at least {low:g}",
            f"Write for example {where.rpartition(' ')[2]}: {max(1, int(low))}",
        )
