"""What our teachers share: rows in, ParlAI messages out, in one of five views.

A row is a reply in its context with a verdict (or none). The views: *reply* (learn from the label, with
`classifier_label`), *plain* (the same without verdicts: a raw log), *positive* (safe replies only), *negative* (unsafe
replies only, as plain talk) and *classifier* (the reply is the last line of `text`, the label is a class name). Every
exchange is an episode of its own, its context in `text`, so that batches mix conversations and no reply leaks into
another's history.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.teachers import DialogTeacher
from parlai.utils.data import DatatypeHelper

from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import split_of as split_of
from parlai_safety.message import check_message, join_context

SAFE_CLASS, UNSAFE_CLASS = "__ok__", "__notok__"
START = "__start__"
PARTS = ("all", "first", "second")


class Row(NamedTuple):
    """A reply in its context.

    Attributes:
        context: turns, oldest first; may be empty.
        reply: the reply.
        unsafe: the verdict, or None for ordinary talk without one.
        fields: further message fields, such as speaker and provenance.
    """

    context: list[str]
    reply: str
    unsafe: bool | None
    fields: dict[str, Any]


class RowTeacher(DialogTeacher):
    """A teacher over `rows(split)`; subclasses say where rows come from and which view they show."""

    view = "reply"

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        # ParlAI's streaming would cache a count of rows as `train.lengths` in the user's folder, and read it for
        # other tasks; our rows fit in memory.
        datatype = opt["datatype"].replace(":stream", "")
        opt = Opt({**opt, "datatype": datatype, "datafile": DatatypeHelper.fold(datatype)})
        super().__init__(opt, shared)
        # By its id ParlAI tells the tasks of a command apart, views of one task too.
        self.id = str(opt.get("task") or type(self).__module__.split(".")[-2]).removeprefix("safety:")

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-part`."""
        super().add_cmdline_args(parser, partial_opt)
        if not any(action.dest == "safety_part" for action in parser._actions):  # several tasks of ours in one command
            parser.add_argument_group("Parts of the training split").add_argument(
                "--safety-part",
                type=str,
                default="all",
                choices=PARTS,
                help="Of the training conversations whose replies have verdicts, show the first or the second half "
                "alone, told by a hash: who learns from one has not seen the contexts of the other.",
            )
        return parser

    def rows(self, split: str) -> Iterator[Row]:
        """Yield the rows of "train", "valid" or "test"."""
        raise NotImplementedError(type(self).__name__)

    def setup_data(self, datafile: str) -> Iterator[tuple[dict[str, Any], bool]]:
        """ParlAI's loader: every row becomes one message in the teacher's view."""
        part = self.opt.get("safety_part", "all") if datafile == "train" else "all"
        for number, row in enumerate(in_part(self.rows(datafile), part), 1):
            message = VIEWS[self.view](row)
            if message is not None:
                check_message(message, f"row {number} of the task {self.id}")
                yield message, True

    def observe(self, observation: Message) -> Message:
        """Take the agent's metrics; its text is not compared with a reply that is an example to avoid."""
        act = getattr(self, "last_act", None) or {}
        if act.get("classifier_label") == "neg" and "text" in observation:
            shown = Message({k: v for k, v in observation.items() if k != "text"})
            super().observe(shown)
            if "metrics" in shown:
                observation.force_set("metrics", shown["metrics"])
            return observation
        observed: Message = super().observe(observation)
        return observed


VIEW_LINES = {
    "plain": "Replies as a raw log, without verdicts.",
    "positive": "Safe replies only.",
    "negative": "Unsafe replies only, as plain talk: what an anti-expert learns from.",
    "classifier": "Replies to be classified.",
}


def in_views(teacher: type[RowTeacher], **lines: str) -> tuple[type[RowTeacher], ...]:
    """Teachers of the same rows in the views plain, positive, negative and classifier, in that order.

    Args:
        teacher: of the default view; the new ones stand in its module, as `PlainTeacher` and so on.
        lines: a view -> what is said of it, where `VIEW_LINES` does not fit.
    """

    def made(view: str, line: str) -> type[RowTeacher]:
        name = f"{view.capitalize()}Teacher"
        where = {"__module__": teacher.__module__, "__qualname__": name}
        return type(name, (teacher,), {**where, "__doc__": line, "view": view})

    return tuple(made(view, line) for view, line in {**VIEW_LINES, **lines}.items())


def in_part(rows: Iterable[Row], part: str) -> Iterator[Row]:
    """The rows of one half of the conversations, told by a hash of the first turn; without verdicts they are in both.

    Args:
        rows: of a split.
        part: "all", "first" or "second".
    """
    for row in rows:
        if part == "all" or row.unsafe is None or _half(row.context[0] if row.context else row.reply) == part:
            yield row


def _half(first_turn: str) -> str:
    marked = f"half {first_turn.strip().lower()}"  # another hash than that of `split_of`
    return PARTS[1 + hashlib.sha256(marked.encode()).digest()[0] % 2]


def reply_view(row: Row) -> dict[str, Any]:
    """Learn from the reply, or learn to avoid it."""
    label = "none" if row.unsafe is None else "neg" if row.unsafe else "pos"
    return {**_reply(row), "classifier_label": label}


def plain_view(row: Row) -> dict[str, Any]:
    """A raw log: the reply with no verdict."""
    return {**_reply(row), "classifier_label": "none"}


def positive_view(row: Row) -> dict[str, Any] | None:
    """Safe replies and ordinary talk only; what a judge was asked about and left without a verdict is neither."""
    return None if row.unsafe or _without_a_verdict(row) else reply_view(row)


def negative_view(row: Row) -> dict[str, Any] | None:
    """Unsafe replies only, as plain talk: what an anti-expert learns from."""
    return plain_view(row) if row.unsafe else None


def classifier_view(row: Row) -> dict[str, Any] | None:
    """The reply as the last line of the text, a class name as the label; ordinary talk counts as safe.

    A row that a judge was asked about, and that has no verdict, is no ordinary talk and is left out: the judge was
    unsure, or had no score. So is an empty reply, in whose place the turn before it would carry the label.
    """
    if _without_a_verdict(row) or not row.reply.strip():
        return None
    text = join_context([*row.context, row.reply])
    return {"text": text, "labels": [UNSAFE_CLASS if row.unsafe else SAFE_CLASS], "is_ltr": False, **row.fields}


VIEWS = {
    "reply": reply_view,
    "plain": plain_view,
    "positive": positive_view,
    "negative": negative_view,
    "classifier": classifier_view,
}


def _without_a_verdict(row: Row) -> bool:
    """Whether a judge was asked about the row and none came of it: it was unsure, or had no score."""
    return row.unsafe is None and "toxicity" in {*row.fields, *(row.fields.get("provenance") or {})}


def _reply(row: Row) -> dict[str, Any]:
    text = join_context(row.context) or START
    return {"text": text, "labels": [" ".join(row.reply.split())], "is_ltr": True, **row.fields}


def add_datapath_option(parser: ParlaiParser, title: str) -> None:
    """Add `--safety-datapath` for the tasks that read real data."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--safety-datapath",
        type=str,
        default=None,
        help="Folder with the real data files; the environment variable SAFETY_DATA is used where this is absent.",
    )


def data_folder(opt: Opt) -> str | None:
    """The folder of real data that `--safety-datapath` or SAFETY_DATA names, or None."""
    return opt.get("safety_datapath") or os.environ.get("SAFETY_DATA")


def data_file(opt: Opt, name: str) -> Path:
    """The path of a real data file.

    Raises:
        SafetyError: no folder is named, or the file is not in it.
    """
    folder = data_folder(opt)
    if not folder:
        raise SafetyError(
            f"The task needs the data file {name}, and neither --safety-datapath nor SAFETY_DATA is set",
            "Real data are not part of parlai_safety: they lie in a folder of yours",
            "Give --safety-datapath FOLDER, set SAFETY_DATA=FOLDER, or use -t safety:tiny, which ships",
        )
    path = Path(folder) / name
    if not path.is_file():
        raise SafetyError(
            f"There is no file {name} in {folder!r}",
            "The task reads this file from the folder that --safety-datapath or SAFETY_DATA names",
            "Name the folder that holds it, or use -t safety:tiny, which ships",
        )
    return path
