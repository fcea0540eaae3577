"""`--mutators safety_filter_<rule>`: unsafe exchanges, or those of authors who often write such, are left out.

The two ways of cleaning training data of Xu et al. 2020 (arXiv:2010.07079): *utterances* drops an exchange whose reply
is unsafe in its context; *authors* drops all exchanges of a person whose share of flagged turns is above a threshold
(0.12 in the paper, as recalled with low confidence). That paper names the pitfall, too: a model that never saw unsafe
talk does not know what to answer to it.

What was not scored is never safe: *utterances* drops it, and in an author's share it counts as flagged. A share needs a
pass over the data before the training, and ParlAI shows a mutator one episode at a time: so *authors* reads the table
that `parlai safety_filter` writes. That command also writes the filtered data for `-t safety:file`, with a report of
what was dropped; the mutators are for a task that is not to be copied.

Each message becomes an episode of its own with its context in the text, for a dropped reply would otherwise be missing
from the history of the next. ParlAI's count of examples, and so of epochs, is that of the unfiltered data.
"""

from __future__ import annotations

import atexit
import functools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from parlai.core.message import Message
from parlai.core.mutators import register_mutator
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.utils.distributed import get_rank

from parlai_safety.errors import SafetyError
from parlai_safety.files import write_json
from parlai_safety.mutators.judged import (
    JudgedMutator,
    add_once,
    alone,
    with_history,
)
from parlai_safety.mutators.thinning import ThinningMutator
from parlai_safety.options import option, options_from

AUTHORS_FORMAT = "parlai_safety.authors.1"


@dataclass(frozen=True)
class UtteranceOptions:
    """Which exchanges are dropped by their own turns."""

    filter_context: bool = option(False, "Drop an exchange also where the last turn of its context is unsafe.")


@dataclass(frozen=True)
class AuthorRule:
    """Which authors are dropped."""

    filter_author_share: float = option(
        0.12, "Authors with a greater share of flagged turns are dropped (0.12 is recalled, not read).", low=0, high=1
    )
    filter_author_min: int = option(10, "Turns by which an author is judged; who has fewer is kept.", low=1)
    filter_no_author: str = option(
        "refuse",
        "What becomes of an exchange whose author is not named, or is not in the table.",
        choices=("refuse", "keep", "drop"),
    )


@dataclass(frozen=True)
class AuthorOptions(AuthorRule):
    """What the mutator needs beside the rule."""

    filter_authors_file: str | None = option(None, "Table of authors that parlai safety_filter --rule author wrote.")


@dataclass(frozen=True)
class ReportOptions:
    """Where the counts go."""

    filter_report: str | None = option(
        None, "JSON file of how many exchanges were dropped; written when the process ends, one file a process."
    )


class Author(NamedTuple):
    """What is known of an author.

    Attributes:
        turns: how many there are.
        flagged: how many of them are unsafe.
        unscored: how many could not be scored.
    """

    turns: int
    flagged: int
    unscored: int

    @property
    def share(self) -> float:
        """The share of turns that are not known to be safe, in [0, 1]; 0 without turns."""
        return (self.flagged + self.unscored) / self.turns if self.turns else 0.0


@register_mutator("safety_filter_utterances")
class FilterUtterancesMutator(JudgedMutator):
    """Drop exchanges whose reply is unsafe in its context, or has no score."""

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self.context = options_from(opt, UtteranceOptions).filter_context
        self.report = options_from(opt, ReportOptions).filter_report

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of the judge and of this filter."""
        super().add_cmdline_args(parser, partial_opt)
        add_once(parser, UtteranceOptions, "Filter of utterances")
        add_once(parser, ReportOptions, "Report of filters")
        return parser

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """The exchanges that stay, each as an episode of its own.

        Raises:
            SafetyError: nothing says what is unsafe, or the label is the name of a class.
        """
        for message, before in with_history(episode):
            avoided = message.get("classifier_label") == "neg"
            reply = avoided or self.label_unsafe(message, before)
            heard = self.context_unsafe(message, before) if self.context else False
            outcome = dropped_as(reply, heard)
            count("utterances", outcome, message, self.report)
            if outcome is None:
                yield [alone(message, before)]


@register_mutator("safety_filter_authors")
class FilterAuthorsMutator(ThinningMutator):
    """Drop exchanges of authors whose share of flagged turns is above a threshold."""

    def __init__(self, opt: Opt) -> None:
        super().__init__(opt)
        self.rule = options_from(opt, AuthorOptions)
        self.report = options_from(opt, ReportOptions).filter_report
        if not self.rule.filter_authors_file:
            raise SafetyError(
                "The mutator safety_filter_authors came without --filter-authors-file",
                "An author's share needs a pass over all the data, and a mutator sees one episode at a time",
                "Make the table first: parlai safety_filter --rule author -t TASK --judge SPEC --out FOLDER, which "
                "writes FOLDER/authors.json",
            )
        self.authors = read_authors(self.rule.filter_authors_file)

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of this filter."""
        add_once(parser, AuthorOptions, "Filter of authors")
        add_once(parser, ReportOptions, "Report of filters")
        return parser

    def many_episode_mutation(self, episode: list[Message]) -> Iterator[list[Message]]:
        """The exchanges that stay, each as an episode of its own.

        Raises:
            SafetyError: an author is not named, or not in the table, and `--filter-no-author` is refuse.
        """
        for message, before in with_history(episode):
            outcome = author_dropped_as(message.get("user_id"), self.authors, self.rule)
            count("authors", outcome, message, self.report)
            if outcome is None:
                yield [alone(message, before)]


def dropped_as(reply: bool | None, heard: bool | None) -> str | None:
    """Why an exchange is dropped for its turns: "reply", "context" or "unscored"; None where it stays.

    Args:
        reply: whether the reply is unsafe; None where it is not scored.
        heard: whether the last turn of the context is; False where the rule does not look at it.
    """
    if reply or heard:
        return "reply" if reply else "context"
    return "unscored" if reply is None or heard is None else None


def author_dropped_as(user_id: str | None, authors: Mapping[str, Author], rule: AuthorRule) -> str | None:
    """Why an exchange is dropped for its author: "author" or "no author"; None where it stays.

    Raises:
        SafetyError: the author is not named, or not in the table, and the rule refuses that.
    """
    author = authors.get(user_id) if user_id else None
    if author is None:
        if rule.filter_no_author == "refuse":
            raise SafetyError(
                f"An exchange has the author {user_id!r}" if user_id else "An exchange has no user_id",
                "The filter looks at the share of an author's turns that are flagged, and nothing is known of this one",
                "Make the table from the same data, or say with --filter-no-author keep or drop what becomes of these",
            )
        return "no author" if rule.filter_no_author == "drop" else None
    judged = author.turns >= rule.filter_author_min
    return "author" if judged and author.share > rule.filter_author_share else None


def read_authors(path: str | Path) -> dict[str, Author]:
    """The table of authors in a file that `parlai safety_filter` wrote.

    Raises:
        SafetyError: there is no such file, or it is something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != AUTHORS_FORMAT:
            raise ValueError(content["format"])
        return {name: Author(row["turns"], row["flagged"], row["unscored"]) for name, row in content["authors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetyError(
            f"--filter-authors-file got {str(path)!r}, which cannot be read ({type(error).__name__}: {error})",
            f"It is a table in the format {AUTHORS_FORMAT}",
            "Make it with parlai safety_filter --rule author -t TASK --judge SPEC --out FOLDER",
        ) from error


_counts: dict[str, Counter[str]] = {}
_files: set[str] = set()


def count(rule: str, outcome: str | None, message: Mapping[str, Any], path: str | None) -> None:
    """Count an exchange that a mutator saw, over all mutators, tasks and epochs of this process.

    Args:
        rule: the mutator.
        outcome: why it was dropped, or None.
        message: says its source, in its provenance or as its task's name.
        path: where the counts are to be written when the process ends, or None.
    """
    _at_the_end()
    source = str((message.get("provenance") or {}).get("source") or message.get("id") or "unknown")
    counts = _counts.setdefault(f"{rule} / {source}", Counter())
    counts["seen"] += 1
    counts[outcome or "kept"] += 1
    if path:
        _files.add(path)


def write_counts() -> None:
    """Tell what the filters of this process have dropped, and write it to the files of `--filter-report`.

    A process of a data-parallel training writes a file of its own: with rank r > 0 its name ends in `.rank<r>`.
    """
    for name, counts in _counts.items():
        dropped = {why: n for why, n in counts.items() if why not in ("seen", "kept")}
        told = ", ".join(f"{why} {n}" for why, n in sorted(dropped.items())) or "nothing dropped"
        sys.stderr.write(f"Filter of {name}: {counts['seen']} exchanges seen, {counts['kept']} kept; {told}.\n")
    rank = get_rank()
    for path in sorted(_files):
        content = {name: dict(sorted(counts.items())) for name, counts in sorted(_counts.items())}
        write_json(f"{path}.rank{rank}" if rank else path, content)


@functools.cache
def _at_the_end() -> None:
    atexit.register(write_counts)
