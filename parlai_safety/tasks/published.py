"""What the teachers of released data sets share: where the files are, the stand-in, and ParlAI's text format.

With `--safety-standin true` a task reads artificial files of the same format (see `standins`) instead of the released
ones, through the same code, with the same options and views; every message says so in its `provenance`, and the log
does. It is never used without being asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.utils import logging
from parlai.utils.misc import str_to_msg

from parlai_safety.errors import SafetyError
from parlai_safety.files import bad_row
from parlai_safety.message import check_message
from parlai_safety.options import add_options, option, options_from
from parlai_safety.tasks.common import RowTeacher
from parlai_safety.tasks.downloads import Dataset, prepare
from parlai_safety.tasks.standins import STANDIN, standin_folder

OWN = ("text", "labels", "episode_done", "id")
"""Fields of a released row that the teachers set themselves; the others are passed on."""


@dataclass(frozen=True)
class PublishedOptions:
    """The one option that all these tasks have."""

    safety_standin: bool = option(
        False, "Serve a few dozen artificial rows of the same form instead of the released data; needs no download."
    )


class PublishedTeacher(RowTeacher):
    """A teacher over the files of a released data set."""

    dataset: ClassVar[Dataset]
    declared: ClassVar[type[Any] | None] = None
    """The dataclass of the task's own options."""
    title: ClassVar[str] = ""
    """Of the group of these options in `--help`."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-standin` and the task's own options."""
        super().add_cmdline_args(parser, partial_opt)
        _add_once(parser, PublishedOptions, "Released data")
        if cls.declared is not None:
            _add_once(parser, cls.declared, cls.title)
        return parser

    @cached_property
    def own(self) -> Any:
        """The task's own options, checked."""
        assert self.declared is not None
        return options_from(self.opt, self.declared)

    def folder(self) -> Path:
        """Where the files lie, downloaded or made if they are not there yet."""
        if not self.standin:
            return self.released()
        logging.warning(
            f"{self.id} serves its stand-in: artificial rows, of which no figure says anything about "
            f"{self.dataset.title}."
        )
        return standin_folder(self.opt["datapath"]) / self.dataset.folder

    @cached_property
    def standin(self) -> bool:
        """Whether the stand-in was asked for."""
        return options_from(self.opt, PublishedOptions).safety_standin

    def released(self) -> Path:
        """The folder of the released files; downloads them."""
        return prepare(self.dataset, self.opt["datapath"])

    def provenance(self, split: str) -> dict[str, Any]:
        """What every message says of where it comes from."""
        if self.standin:
            return {"source": STANDIN, "stands_for": self.dataset.title, "licence": "MIT", "split": split}
        return {"source": self.dataset.title, "licence": self.dataset.licence, "split": split}

    def setup_data(self, datafile: str) -> Iterator[tuple[dict[str, Any], bool]]:
        """ParlAI's loader: the messages of the view, each as `shown` shows it."""
        for message, new_episode in super().setup_data(datafile):
            yield self.shown(message), new_episode

    def shown(self, message: dict[str, Any]) -> dict[str, Any]:
        """The last touch to a message; the base class leaves it as it is."""
        return message


def _add_once(parser: ParlaiParser, declared: type[Any], title: str) -> None:
    """Add options, unless another task of the same command has done so."""
    names = {action.dest for action in parser._actions}
    if not names.issuperset(declared.__dataclass_fields__):
        add_options(parser, declared, title)


def text_episodes(path: Path) -> Iterator[list[Message]]:
    """Read a file in ParlAI's text format, an episode at a time.

    Args:
        path: one message a line, its fields `name:value` between tabs.

    Raises:
        SafetyError: a line has no text or no label, or there is no line.
    """
    episode: list[Message] = []
    empty = True
    with open(path, encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            message = str_to_msg(line.rstrip("\n"))
            if message is None:
                continue
            empty = False
            where = f"Line {number} of {str(path)!r}"
            if "text" not in message or not message.get("labels"):
                raise bad_row(where, f"the fields {', '.join(sorted(message))}", "a line has 'text' and 'labels'")
            check_message(message, where)
            episode.append(message)
            if message["episode_done"]:
                yield episode
                episode = []
    if episode:
        yield episode
    if empty:
        raise _unread(path, "it holds no message")


def passed_on(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a released row that a message of ours keeps as they are."""
    return {name: value for name, value in row.items() if name not in OWN}


def read_document(path: Path) -> Any:
    """Read one JSON document of a release.

    Raises:
        SafetyError: it is no whole JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unread(path, str(error)) from error


def _unread(path: Path, reason: str) -> SafetyError:
    return SafetyError(
        f"The file {str(path)!r} cannot be read ({reason})",
        "It is not as it was released",
        f"Delete {str(path.parent)!r} and type the command again, which fetches it anew",
    )
