"""Contexts to be answered, and pairs that people wrote to them: from a file, or from any task of ParlAI.

A row or message that carries a chosen and a rejected reply is a pair that people wrote, where the caller wants it so;
otherwise its context alone is read. Left out: whether a model has seen the contexts in training, which only the one who
trained it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from parlai.core.opt import Opt

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.suites import spread
from parlai_safety.files import read_rows, row_turns
from parlai_safety.loops.reading import worlds
from parlai_safety.loops.triples import HumanPair
from parlai_safety.tasks.common import START
from parlai_safety.tasks.file.agents import read_row


class Asked(NamedTuple):
    """What a model is to answer: contexts, and pairs of people to whose contexts a toxic reply is wanted."""

    contexts: list[list[str]]
    human: list[HumanPair]


def file_rows(path: Path) -> Iterator[tuple[list[str], HumanPair | None]]:
    """The context of each row of a JSONL file, and its pair if it has `chosen` and `rejected`.

    Raises:
        SafetyError: the file is missing, or a row has no context or a pair that says nothing.
    """
    if not path.is_file():
        raise SafetyError(
            f"--contexts got {str(path)!r}, and there is no such file",
            "It names a JSONL file of rows with context, a list of turns; a task of ParlAI is named by -t",
            "Check the path, or type for example -t safety:labels --datatype valid",
        )
    for where, row in read_rows(path):
        context = row_turns(row, "context", where, at_least=1)
        pair = None
        if "chosen" in row:
            read = read_row(row, where)
            pair = HumanPair(context, read.reply, read.fields["rejected"][0])
        yield context, pair


def task_rows(opt: Opt) -> Iterator[tuple[list[str], HumanPair | None]]:
    """The context of each message of the tasks in an opt, once through the split, and its pair if it has `rejected`.

    Args:
        opt: with `task`, several joined by commas, `datatype` and the options of these tasks.
    """
    for world in worlds(opt):
        history: list[str] = []
        while not world.epoch_done():
            world.parley()
            act = world.acts[0]
            text = str(act.get("text") or "")
            if text and text != START:
                history += text.split("\n")
            label = next(iter(act.get("eval_labels") or act.get("labels") or ()), None)
            if history:
                rejected = next(iter(act.get("rejected") or ()), None)
                yield list(history), HumanPair(list(history), label, rejected) if label and rejected else None
            history = [] if act.get("episode_done") else [*history, *([label] if label else [])]
        world.shutdown()


def asked_of(rows: Iterable[tuple[list[str], HumanPair | None]], *, mix_pairs: bool, limit: int | None = None) -> Asked:
    """What a model is to answer, each context and each pair once.

    Args:
        rows: contexts with or without a pair.
        mix_pairs: take the pairs as such; otherwise their contexts are answered as all others.
        limit: at most so many contexts and so many pairs, evenly spread; None for all.
    """
    contexts: dict[tuple[str, ...], None] = {}
    pairs: dict[tuple[tuple[str, ...], str, str], HumanPair] = {}
    for context, pair in rows:
        if mix_pairs and pair is not None:
            pairs.setdefault((tuple(context), pair.chosen, pair.rejected), pair)
        else:
            contexts.setdefault(tuple(context))
    answered, human = [list(context) for context in contexts], list(pairs.values())
    return Asked(spread(answered, limit or len(answered)), spread(human, limit or len(human)))
