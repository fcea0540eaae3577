"""Options declared once: a dataclass field says type, default, range, help and the symbol of the paper.

ParlAI's command-line flags, the checks and the table of the documentation are all made from that one declaration. This
module knows ParlAI only by its parser's `add_argument`, and imports nothing of it.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from parlai_safety.errors import SafetyError, did_you_mean

_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Rule:
    """What an option may be, beside its type.

    Attributes:
        help: one sentence for `--help` and for the documentation.
        symbol: the letter that the paper uses, or an empty string.
        low: the smallest allowed value, itself included, or None.
        high: the largest allowed value, itself included, or None.
        choices: the allowed words, or an empty tuple for any.
        aliases: further flags that mean the same, such as those of ParlAI's own agents.
    """

    help: str
    symbol: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def option(
    default: Any,
    help: str,  # noqa: A002  the word that argparse uses
    *,
    symbol: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Any:
    """Declare one option as a dataclass field; see `Rule` for the arguments."""
    return field(default=default, metadata={"rule": Rule(help, symbol, low, high, choices, aliases)})


def flag(name: str) -> str:
    """The flag of a field: `cringe_k` becomes `--cringe-k`."""
    return "--" + name.replace("_", "-")


def add_options(parser: Any, declared: type[Any], title: str) -> None:
    """Add the flags of a dataclass to a ParlAI parser under a titled group.

    Each flag reads its value with the field's own check, so that a bad value ends in three sentences and not in pages
    of help.
    """
    group = parser.add_argument_group(title)
    for item in fields(declared):
        rule = _rule(item)
        symbol = f" (the paper's {rule.symbol})" if rule.symbol else ""
        # argparse reads a percent sign in a help text as the start of a format.
        text = (rule.help + symbol).replace("%", "%%")
        # The name in the opt must not be that of an alias; ParlAI reads the last flag as the canonical one.
        group.add_argument(
            *rule.aliases,
            flag(item.name),
            dest=item.name,
            type=_reader(declared, item),
            default=item.default,
            help=text,
        )


def options_from(opt: Mapping[str, Any], declared: type[OptionsT]) -> OptionsT:
    """Read the fields of a dataclass from an opt and check them all; an absent key takes the default.

    Raises:
        SafetyError: a value has the wrong type or lies outside its range.
    """
    values = {}
    for item in fields(declared):  # type: ignore[arg-type]
        value = opt.get(item.name, item.default)
        values[item.name] = _check(declared, item, value)
    return declared(**values)


def options_table(declared: type[Any]) -> str:
    """The options as a Markdown table: flag, symbol, type, default, range, meaning."""
    lines = ["| flag | symbol | type | default | range | meaning |", "|---|---|---|---|---|---|"]
    for item in fields(declared):
        rule = _rule(item)
        kind = _kind(declared, item)
        lines.append(
            f"| `{flag(item.name)}` | {rule.symbol or '-'} | {kind.__name__} | `{item.default}` | {_range(rule)} "
            f"| {rule.help} |"
        )
    return "\n".join(lines)


def _rule(item: Field[Any]) -> Rule:
    rule = item.metadata["rule"]
    assert isinstance(rule, Rule) and item.default is not MISSING
    return rule


@functools.cache
def _hints(declared: type[Any]) -> dict[str, Any]:
    """The types of a class's fields, which Python reads anew from their text at each call; agents are many."""
    return get_type_hints(declared)


def _kind(declared: type[Any], item: Field[Any]) -> type[Any]:
    """The plain type of a field; `int | None` counts as int."""
    hint = _hints(declared)[item.name]  # type: ignore[arg-type]
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    assert hint in (bool, int, float, str), f"{declared.__name__}.{item.name}: unsupported type {hint}"
    return hint  # type: ignore[no-any-return]


def _reader(declared: type[Any], item: Field[Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return _check(declared, item, text)

    read.__name__ = _kind(declared, item).__name__
    return read


def _check(declared: type[Any], item: Field[Any], value: Any) -> Any:
    rule, kind, name = _rule(item), _kind(declared, item), flag(item.name)
    if value is None and item.default is None:
        return None
    allowed = _range(rule)
    instead = f"Give {name} {_article(kind)} {kind.__name__} {allowed}, for example {name} {item.default}"
    if item.default is None:
        instead = f"Give {name} {_article(kind)} {kind.__name__} {allowed}, or leave the flag out"
    try:
        read = _read(kind, value)
    except (TypeError, ValueError):
        raise SafetyError(
            f"{name} got {value!r}", f"That is not {_article(kind)} {kind.__name__}, the type of this option", instead
        ) from None
    if rule.choices and read not in rule.choices:
        raise SafetyError(
            f"{name} got {value!r}",
            f"It can only be one of {', '.join(rule.choices)}",
            did_you_mean(str(read), rule.choices, f"Type for example {name} {item.default}"),
        )
    if isinstance(read, (int, float)) and not isinstance(read, bool):
        below = rule.low is not None and read < rule.low
        above = rule.high is not None and read > rule.high
        if below or above or not math.isfinite(read):
            raise SafetyError(f"{name} got {value!r}", f"The value must be {allowed}: {rule.help}", instead)
    return read


def _read(kind: type[Any], value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise ValueError(value)
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise TypeError(value)
    return kind(value)


def _range(rule: Rule) -> str:
    if rule.choices:
        return "of " + ", ".join(rule.choices)
    if rule.low is not None and rule.high is not None:
        return f"from {rule.low:g} to {rule.high:g}"
    if rule.low is not None:
        return f"of at least {rule.low:g}"
    if rule.high is not None:
        return f"of at most {rule.high:g}"
    return "of any value"


def _article(kind: type[Any]) -> str:
    return "an" if kind is int else "a"
