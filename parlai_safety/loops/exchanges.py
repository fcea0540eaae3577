"""Exchanges, which are replies in their contexts, and what a judge says of their turns: what the data jobs share.

Rows of a file, rows of our tasks and messages of any ParlAI task become the same thing: a message of its own with its
whole context in `text`, as the mutators see it. Turns are judged in large batches, each distinct one once, and a
journal keeps the verdicts through a kill. Left out: all labels of a message but the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai.core.message import Message
from parlai.core.opt import Opt

from parlai_safety.errors import SafetyError
from parlai_safety.judges.verdict import Judge, Verdict
from parlai_safety.loops.reading import worlds
from parlai_safety.loops.verdicts import Turn, journaled_verdicts
from parlai_safety.message import FIELDS
from parlai_safety.mutators.judged import alone, check_is_talk, label_key, labels_of, other, speaker_of, turns_of
from parlai_safety.runs import Run
from parlai_safety.tasks.common import Row, reply_view
from parlai_safety.tasks.file.agents import read_row


class Exchange(NamedTuple):
    """A reply in its context.

    Attributes:
        message: with the whole context in its text, and one label.
        context: the turns in that text, oldest first.
        reply: its label.
    """

    message: Message
    context: list[str]
    reply: str

    @property
    def said(self) -> Turn:
        """The reply as a turn."""
        return Turn(tuple(self.context), self.reply, speaker_of(self.message))

    @property
    def heard(self) -> Turn | None:
        """The last turn of the context, by the one who is answered; None where nothing was said."""
        return Turn(tuple(self.context[:-1]), self.context[-1], other(self.said.speaker)) if self.context else None

    @property
    def own_last(self) -> Turn | None:
        """What the one who replies said before that; None where nothing."""
        return Turn(tuple(self.context[:-2]), self.context[-2], self.said.speaker) if len(self.context) > 1 else None

    @property
    def avoided(self) -> bool:
        """Whether people have called the reply one to avoid."""
        return bool(self.message.get("classifier_label") == "neg")

    @property
    def conversation(self) -> str:
        """What exchanges of one conversation share: its first turn."""
        return self.context[0] if self.context else self.reply

    @property
    def source(self) -> str:
        """Where it comes from."""
        return str((self.message.get("provenance") or {}).get("source") or self.message.get("id") or "unknown")

    @property
    def row(self) -> dict[str, Any]:
        """The exchange as a line for `-t safety:file`."""
        fields = {name: self.message[name] for name in FIELDS if name in self.message}
        return {"context": self.context, "reply": self.reply, **fields}


def exchange_of(message: Message, before: Sequence[str] = ()) -> Exchange | None:
    """A message as an exchange; None where it has no label.

    Args:
        message: of a ParlAI task.
        before: turns before its own.

    Raises:
        SafetyError: the label is the name of a class.
    """
    labels = labels_of(message)
    if not labels:
        return None
    check_is_talk(message, labels)
    message = alone(message.copy(), before)
    message.force_set(label_key(message), labels[:1])
    return Exchange(message, turns_of(message), labels[0])


def row_exchanges(rows: Iterable[Row | Mapping[str, Any]]) -> list[Exchange]:
    """Rows of our tasks, or JSON objects as `-t safety:file` reads them, as exchanges.

    Raises:
        SafetyError: there is none, a JSON object holds no reply, or it holds the name of a class.
    """
    found = []
    for number, row in enumerate(rows, 1):
        read = row if isinstance(row, Row) else read_row(dict(row), f"row {number}")
        exchange = exchange_of(Message(reply_view(read)))
        if exchange is not None:
            found.append(exchange)
    if not found:
        raise SafetyError(
            "There is no reply in these rows", "Nothing can be judged or replaced", "Name a file or task with replies"
        )
    return found


def task_exchanges(opt: Opt) -> Iterator[Exchange]:
    """The exchanges of the tasks in an opt, once through the split, with the mutators that the opt names.

    Args:
        opt: with `task`, several joined by commas, `datatype` and the options of these tasks.

    Raises:
        SafetyError: a label is the name of a class.
    """
    for world in worlds(opt):
        before: list[str] = []
        while not world.epoch_done():
            world.parley()
            act = world.acts[0]
            if act.is_padding():
                continue
            exchange = exchange_of(act, before)
            if exchange is not None:
                provenance = {"source": exchange.source, **(exchange.message.get("provenance") or {})}
                exchange.message.force_set("provenance", provenance)
                yield exchange
            before = [] if act.get("episode_done") else [*turns_of(act, before), *labels_of(act)[:1]]
        world.shutdown()


def judge_turns(judge: Judge, turns: Iterable[Turn | None], path: Path) -> dict[Turn, Verdict]:
    """What a judge says of turns, each distinct one once; see `journaled_verdicts`.

    Args:
        judge: the judge.
        turns: in any order, the same one at every call; None is passed over.
        path: the journal.
    """
    distinct = list(dict.fromkeys(turn for turn in turns if turn is not None))
    return dict(zip(distinct, journaled_verdicts(judge, distinct, path), strict=True))


def sha256_of(exchanges: Sequence[Exchange]) -> str:
    """The SHA-256 of all that the exchanges hold."""
    digest = hashlib.sha256()
    for exchange in exchanges:
        digest.update(json.dumps(exchange.row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def begin(folder: Path, written: str, parts: str, settings: Mapping[str, Any]) -> None:
    """Begin a job in a folder, or go on with it.

    Args:
        folder: where the job writes.
        written: name of the file that it makes in the end.
        parts: name of the folder in it that holds what is found on the way.
        settings: everything that the results depend on; plain JSON values.

    Raises:
        SafetyError: the file is somebody else's, or the job began with other settings.
    """
    if (folder / written).exists() and not (folder / parts).exists():
        raise SafetyError(
            f"The folder {str(folder)!r} holds a {written} that no run of ours has made there",
            "It would be overwritten",
            "Give another folder, or move that file",
        )
    Run(folder / parts, json.loads(json.dumps(settings)))
