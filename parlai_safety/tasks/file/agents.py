"""`-t safety:file --safety-file F`: replies of your own, one JSON object a line.

A row holds the context (`context`, a list of turns, or `text`), the reply (`reply`, `response` or `labels`), and, where
you have them, a verdict (`label`: "safe" or "unsafe", or `classifier_label`: "pos", "neg", "none"). A row with `chosen`
and `rejected`, two replies, is a pair: what preference losses read; `toxic` beside it, a reply or a list of replies,
makes it a triple. Views: default, `:plain`, `:positive`, `:negative`, `:classifier`. A path with `{split}` in it names
one file a split; a plain path is read for every split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import bad_row, read_jsonl, row_field, row_turns
from parlai_safety.message import CLASSIFIER_LABELS, FIELDS
from parlai_safety.tasks.common import Row, RowTeacher, in_views

_VERDICTS: dict[str, bool | None] = {"safe": False, "unsafe": True, "pos": False, "neg": True, "none": None}
_PASSED_ON = tuple(name for name in FIELDS if name != "classifier_label")


class DefaultTeacher(RowTeacher):
    """Replies of a JSONL file."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-file`."""
        super().add_cmdline_args(parser, partial_opt)
        group = parser.add_argument_group("Replies in a file")
        group.add_argument(
            "--safety-file", type=str, default=None, help="JSONL (or .jsonl.gz); {split} stands for train, valid, test."
        )
        return parser

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of the file of this split."""
        name = self.opt.get("safety_file")
        if not name:
            raise SafetyError(
                "-t safety:file came without --safety-file",
                "The task reads its rows from a file that you name",
                "Add --safety-file talk.jsonl, or talk.{split}.jsonl for one file a split",
            )
        path = name.replace("{split}", split)
        for number, row in enumerate(read_jsonl(path), 1):
            yield read_row(row, f"row {number} of {path!r}")


def read_row(row: dict[str, Any], where: str) -> Row:
    """Read one JSON object in any of the accepted spellings.

    Raises:
        SafetyError: no reply is there, or the verdict is of unknown kind.
    """
    context = row_turns(row, "context", where) if "context" in row else _lines(row, where)
    if "chosen" in row:
        chosen, rejected = (str(row_field(row, name, str, where)) for name in ("chosen", "rejected"))
        if not chosen.strip() or not rejected.strip() or chosen == rejected or _verdict(row, where):
            rule = "'chosen' and 'rejected' are two texts, the first one safe"
            raise bad_row(where, "a pair that says nothing", rule)
        return Row(context, chosen, False, {**_passed_on(row, where), "rejected": [rejected]})
    return Row(context, _reply(row, where), _verdict(row, where), _passed_on(row, where))


def _passed_on(row: dict[str, Any], where: str) -> dict[str, Any]:
    fields = {name: row[name] for name in _PASSED_ON if name in row}
    return {**fields, "toxic": _toxic(fields["toxic"], where)} if "toxic" in fields else fields


def _toxic(found: Any, where: str) -> list[str]:
    """The toxic replies of a row: none, one or several."""
    texts = [] if found is None else [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise bad_row(where, f"'toxic' = {found!r:.60}", "'toxic' is a text, a list of texts, or null for none")
    return list(texts)


def _lines(row: dict[str, Any], where: str) -> list[str]:
    return str(row_field(row, "text", str, where)).split("\n") if row.get("text") is not None else []


def _reply(row: dict[str, Any], where: str) -> str:
    if "reply" in row or "response" in row:
        reply = row_field(row, "reply" if "reply" in row else "response", str, where)
    else:
        reply = (row_turns(row, "labels", where) if "labels" in row else []) or [""]
        reply = reply[0]
    if not reply.strip():
        raise SafetyError(
            f"{where} has the fields {', '.join(sorted(row)) or 'none'} and no reply to learn from",
            "A row needs a reply, a non-empty text, and its context as a list of turns",
            'Write for example {"context": ["How are you?"], "reply": "Fine, thanks.", "label": "safe"}',
        )
    return str(reply)


def _verdict(row: dict[str, Any], where: str) -> bool | None:
    found: set[bool | None] = set()
    for name, known in (("label", ("safe", "unsafe")), ("classifier_label", CLASSIFIER_LABELS)):
        if name in row:
            if row[name] not in known:
                raise SafetyError(
                    f"{where} has {name!r} = {row[name]!r}",
                    f"A verdict of this field is one of {', '.join(known)}",
                    did_you_mean(str(row[name]), known, f"Write one of {', '.join(known)}, or leave the field out"),
                )
            found.add(_VERDICTS[row[name]])
    if len(found) > 1:
        raise bad_row(where, "two verdicts that contradict each other", "'label' and 'classifier_label' say the same")
    return next(iter(found), None)


PlainTeacher, PositiveTeacher, NegativeTeacher, ClassifierTeacher = in_views(
    DefaultTeacher,
    plain="Replies as a raw log.",
)
