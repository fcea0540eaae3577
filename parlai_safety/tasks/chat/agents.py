"""`-t safety:chat`: ordinary dialogue between people, from `ordinary_dialogue.jsonl.gz` of the data folder.

Every turn but the first is a reply to the turns before it. Sources: self-dialogue, multi-session chat, topical chat,
persona chat, wizard of wikipedia.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.files import read_rows, row_field, row_turns
from parlai_safety.options import add_options, option, options_from
from parlai_safety.tasks.common import Row, RowTeacher, add_datapath_option, data_file, split_of


@dataclass(frozen=True)
class ChatOptions:
    """The options of `safety:chat`."""

    chat_history: int = option(3, "How many turns before the reply are its context.", low=1)
    chat_max_dialogues: int | None = option(None, "Read only the first so many dialogues of the split.", low=1)


FILE = "ordinary_dialogue.jsonl.gz"


def chat_rows(path: Path, split: str, history: int = 3, max_dialogues: int | None = None) -> Iterator[Row]:
    """Every turn but the first of the dialogues that fall into the split, as a reply to the turns before it.

    Args:
        path: the data file.
        split: "train", "valid" or "test".
        history: how many turns before the reply are its context, at least 1.
        max_dialogues: stop after so many dialogues of the split.
    """
    count = 0
    for where, dialogue in read_rows(path):
        turns = row_turns(dialogue, "turns", where, at_least=2)
        source = row_field(dialogue, "source", str, where)
        if split_of(turns[0]) != split:
            continue
        count += 1
        if max_dialogues is not None and count > max_dialogues:
            return
        for i in range(1, len(turns)):
            fields = {"provenance": {"source": source, "dialogue": turns[0]}}
            yield Row(turns[max(0, i - history) : i], turns[i], None, fields)


class DefaultTeacher(RowTeacher):
    """Ordinary dialogue, one turn an example."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--safety-datapath` and the flags of `ChatOptions`."""
        super().add_cmdline_args(parser, partial_opt)
        add_datapath_option(parser, "Ordinary chat")
        add_options(parser, ChatOptions, "Ordinary chat")
        return parser

    def rows(self, split: str) -> Iterator[Row]:
        """Every turn but the first of the dialogues that fall into the split."""
        options = options_from(self.opt, ChatOptions)
        return chat_rows(data_file(self.opt, FILE), split, options.chat_history, options.chat_max_dialogues)
