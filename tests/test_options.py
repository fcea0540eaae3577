"""Options declared once: flags, checks and the documentation's table come from the dataclass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError
from parlai_safety.options import add_options, option, options_from, options_table


@dataclass(frozen=True)
class Sample:
    share: float = option(0.5, "A share, say 10 %.", symbol="s", low=0, high=1, aliases=("--old-share",))
    count: int | None = option(None, "A count.", low=1)
    loud: bool = option(False, "Whether to be loud.")
    kind: str = option("plain", "A kind.", choices=("plain", "fancy"))


def parse(*arguments: str) -> Sample:
    parser = ParlaiParser(False, False)
    add_options(parser, Sample, "Sample")
    return options_from(parser.parse_args(list(arguments)), Sample)


def test_defaults_and_values():
    assert parse() == Sample(0.5, None, False, "plain")
    assert parse("--share", "1", "--count", "3", "--loud", "yes", "--kind", "fancy") == Sample(1.0, 3, True, "fancy")
    assert parse("--old-share", "0.25").share == 0.25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--share", "1.5"), ("--share got '1.5'", "from 0 to 1", "--share 0.5")),
        (("--share", "nan"), ("--share got 'nan'", "from 0 to 1")),
        (("--share", "some"), ("--share got 'some'", "not a float")),
        (("--count", "0"), ("--count got '0'", "at least 1", "leave the flag out")),
        (("--count", "2.5"), ("--count got '2.5'", "not an int")),
        (("--loud", "maybe"), ("--loud got 'maybe'", "not a bool")),
        (("--kind", "fanci"), ("--kind got 'fanci'", "plain, fancy", "Did you mean 'fancy'?")),
    ],
)
def test_a_bad_value_ends_in_three_sentences(arguments, words):
    with pytest.raises(SafetyError) as caught:
        parse(*arguments)
    for word in words:
        assert word in str(caught.value)


def test_values_from_a_saved_opt_are_checked_too():
    with pytest.raises(SafetyError, match="--share got 2"):
        options_from({"share": 2}, Sample)
    with pytest.raises(SafetyError, match="--count got True"):
        options_from({"count": True}, Sample)


def test_the_table_has_a_row_for_each_option():
    table = options_table(Sample)
    assert table.count("\n") == 1 + 4
    assert "| `--share` | s | float | `0.5` | from 0 to 1 | A share, say 10 %. |" in table


def test_help_prints_percent_signs():
    parser = ParlaiParser(False, False)
    add_options(parser, Sample, "Sample")
    assert "10 %" in parser.format_help()
