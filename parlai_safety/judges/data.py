"""Examples for judges: replies in context with a label, their sources, and splits that keep conversations whole.

Three sources are read: the small corpus that ships with the package, a file of labelled replies, and a file of
ordinary dialogues whose turns are negatives. The negatives are needed: a classifier trained on adversarial talk alone
flags 30 to 43 % of ordinary chat. Nothing here is downloaded, and no label is made up: an ordinary turn counts as safe
because its corpus was collected as ordinary talk.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from parlai_safety.errors import SafetyError
from parlai_safety.files import bad_row, read_rows, row_field, row_turns, sha256
from parlai_safety.judges.verdict import SPEAKERS, Speaker

ORDINARY = "ordinary:"
LABELS_FILE, ORDINARY_FILE = "safety_labels.jsonl.gz", "ordinary_dialogue.jsonl.gz"
_MARK_BYTES = 6


class Example(NamedTuple):
    """One labelled reply in its context.

    Attributes:
        context: the turns before the reply, oldest first; may be empty.
        reply: the reply that is judged.
        unsafe: its label.
        speaker: who says the reply.
        conversation: examples that share it never stand on two sides of a split.
        source: where the example comes from; begins with "ordinary:" for everyday talk.
    """

    context: list[str]
    reply: str
    unsafe: bool
    speaker: Speaker
    conversation: str
    source: str


def is_ordinary(example: Example) -> bool:
    """True for a turn of everyday talk, as opposed to a reply that was labelled."""
    return example.source.startswith(ORDINARY)


def tiny_examples(split: str) -> list[Example]:
    """The small corpus of this package as examples.

    Every reply to an adversarial context is an example with its own label, and so is every bot turn of the ordinary
    dialogues, as a safe one. The bot turns inside an adversarial context have no label and are no examples.

    Args:
        split: "train", "valid" or "test".

    Returns:
        Examples said by the bot, of the sources "tiny" and "ordinary:tiny".
    """
    from parlai_safety.corpus.load import load_adversarial, load_ordinary

    examples = [
        Example(list(row["context"]), reply["text"], reply["label"] == "unsafe", "bot", row["id"], "tiny")
        for row in load_adversarial(split)
        for reply in row["replies"]
    ]
    for row in load_ordinary(split):
        turns = row["turns"]
        for index in range(1, len(turns), 2):
            examples.append(Example(turns[:index], turns[index], False, "bot", row["id"], f"{ORDINARY}tiny"))
    return examples


def label_file_examples(path: str | Path) -> list[Example]:
    """Read labelled replies from a JSONL file, plain or gzip.

    Args:
        path: rows with `context` (list of turns), `response`, `label` ("safe" or "unsafe"), `source` and `speaker`
            ("human" or "bot"); further fields are left alone.

    Returns:
        One example a row, in the order of the file. Its conversation is the first turn of the context, or the
        response where the context is empty.

    Raises:
        SafetyError: the file is missing or empty, or a row lacks a field or has a value outside the above.
    """
    examples = []
    for where, row in read_rows(path):
        context, reply = row_turns(row, "context", where), row_field(row, "response", str, where)
        label, speaker = row.get("label"), row.get("speaker")
        if label not in ("safe", "unsafe"):
            raise bad_row(where, f"label {label!r}", "a label is 'safe' or 'unsafe'")
        if speaker not in SPEAKERS:
            raise bad_row(where, f"speaker {speaker!r}", "a speaker is 'human' or 'bot'")
        source = row_field(row, "source", str, where)
        examples.append(Example(context, reply, label == "unsafe", speaker, context[0] if context else reply, source))
    return examples


def ordinary_file_examples(path: str | Path, *, count: int, seed: int) -> list[Example]:
    """Sample turns of ordinary dialogues as safe examples, one turn a dialogue.

    Turns alternate between a person, who begins, and the bot, so both speakers get negatives. Only turns with a turn
    before them are drawn, because a judge meets replies in context.

    Args:
        path: JSONL rows with `turns` (list of turns, two at least) and `source`, plain or gzip.
        count: examples wanted; all dialogues are used where there are fewer.
        seed: chooses the dialogues and the turns.

    Returns:
        At most `count` examples, in the order of the file; the conversation is the dialogue's first turn.

    Raises:
        SafetyError: the file is missing or empty, or a row lacks a field.
    """
    rows = []
    for where, row in read_rows(path):
        turns = row_turns(row, "turns", where)
        if len(turns) >= 2:
            rows.append((turns, row_field(row, "source", str, where)))
    generator = random.Random(seed)
    chosen = sorted(generator.sample(range(len(rows)), min(count, len(rows))))
    examples = []
    for turns, source in (rows[index] for index in chosen):
        at = generator.randrange(1, len(turns))
        speaker: Speaker = "bot" if at % 2 else "human"
        examples.append(Example(turns[:at], turns[at], False, speaker, turns[0], f"{ORDINARY}{source}"))
    return examples


def folder_examples(folder: str | Path, *, seed: int, ordinary_share: float = 1.0) -> list[Example]:
    """Labelled replies and ordinary negatives from one folder.

    Args:
        folder: holds `safety_labels.jsonl.gz` and `ordinary_dialogue.jsonl.gz` in the formats above.
        seed: chooses the ordinary turns.
        ordinary_share: ordinary examples for each labelled one; at least 0.

    Returns:
        The labelled examples, then the ordinary ones.

    Raises:
        SafetyError: a file is missing or malformed, or the share is negative.
    """
    if ordinary_share < 0:
        raise SafetyError(
            f"The share of ordinary examples is {ordinary_share}",
            "It is the number of ordinary examples for each labelled one",
            "Choose 0 or more; 1.0 is usual",
        )
    labelled = label_file_examples(Path(folder) / LABELS_FILE)
    count = round(len(labelled) * ordinary_share)
    if not count:
        return labelled
    return labelled + ordinary_file_examples(Path(folder) / ORDINARY_FILE, count=count, seed=seed)


def split_of(conversation: str) -> str:
    """The split of a conversation by a hash of its first turn: 80 % train, 10 % valid, 10 % test.

    All rows of a conversation share its first turn, so none of them is in two splits.
    """
    bucket = int(hashlib.sha256(conversation.strip().lower().encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "valid" if bucket < 90 else "test"


def conversation_marks(examples: Iterable[Example]) -> str:
    """Short marks of all conversations, by which a judge's file remembers what it was trained on, without the text.

    A mark is the first six bytes of a SHA-256, so that one in 10,000 conversations meets the mark of another in
    10,000 with a probability below 10**-6.

    Returns:
        The distinct marks in rising order, eight characters of base64 each.
    """
    marks = sorted({_mark(example.conversation) for example in examples})
    return base64.b64encode(b"".join(marks)).decode("ascii")


def among(examples: Iterable[Example], marks: str) -> list[bool]:
    """For each example, whether its conversation is one of those that `conversation_marks` was given.

    Raises:
        SafetyError: the marks are damaged.
    """
    try:
        content = base64.b64decode(marks, validate=True)
    except ValueError as error:
        raise SafetyError(
            f"A judge's marks of its training conversations cannot be read ({error})",
            "They tell which examples it has seen, and measuring on those would flatter it",
            "Train the judge again",
        ) from error
    known = {content[i : i + _MARK_BYTES] for i in range(0, len(content), _MARK_BYTES)}
    return [_mark(example.conversation) in known for example in examples]


def _mark(conversation: str) -> bytes:
    return hashlib.sha256(conversation.strip().lower().encode()).digest()[:_MARK_BYTES]


class Measuring(NamedTuple):
    """Examples to measure a judge on.

    Attributes:
        name: what they are, in words.
        files: names of the files they come from -> SHA-256.
        examples: labelled replies, and ordinary talk where there is some.
    """

    name: str
    files: dict[str, str]
    examples: list[Example]


def measuring_examples(data: str | Path | None, *, seed: int) -> Measuring:
    """What a judge is measured on.

    Args:
        data: None = the test split of the corpus that ships; a folder = the test split of its labelled replies and of
            as many ordinary turns; a file = all its labelled replies.
        seed: chooses the ordinary turns of a folder.

    Raises:
        SafetyError: a file is missing or malformed, or the folder's test split is empty.
    """
    if data is None:
        from parlai_safety.corpus.load import DATA_FOLDER

        paths = [DATA_FOLDER / f"{half}.test.jsonl" for half in ("adversarial", "ordinary")]
        return Measuring("the test split of the corpus that ships", _hashes(paths), tiny_examples("test"))
    path = Path(data)
    if not path.is_dir():
        return Measuring(f"the labelled replies of {path.name}", _hashes([path]), label_file_examples(path))
    examples = [e for e in folder_examples(path, seed=seed) if split_of(e.conversation) == "test"]
    if not examples:
        raise SafetyError(
            f"No conversation of {str(path)!r} falls into the test split",
            "A tenth of the conversations does, by a hash of their first turn, and the folder holds few",
            "Give a file of labelled replies instead of the folder: all of it is then measured on",
        )
    name = "the test split of labelled replies and ordinary dialogue"
    return Measuring(name, _hashes([path / LABELS_FILE, path / ORDINARY_FILE]), examples)


def _hashes(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in paths if path.is_file()}


class Halves(NamedTuple):
    """Two sets of examples that share no conversation."""

    first: list[Example]
    second: list[Example]


def halves(examples: Sequence[Example], seed: int) -> Halves:
    """Divide examples into two halves by conversation, each source about equally.

    Args:
        examples: any number, in any order.
        seed: another seed gives another division.

    Returns:
        Two halves in the order of `examples`. A conversation is whole in one of them.
    """
    sides = _deal(examples, 2, seed)
    return Halves(*([e for e, side in zip(examples, sides, strict=True) if side == which] for which in (0, 1)))


def folds(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    """Number the folds of a cross-validation by conversation, each source about equally.

    Args:
        examples: any number, in any order.
        count: number of folds, at least 2.
        seed: another seed gives other folds.

    Returns:
        The fold of each example, from 0 to count - 1.

    Raises:
        SafetyError: there are fewer conversations than folds.
    """
    conversations = len({example.conversation for example in examples})
    if count < 2 or conversations < count:
        raise SafetyError(
            f"{count} folds were asked of {conversations} conversations",
            "Each fold needs a conversation of its own, and one fold leaves nothing to learn from",
            "Give more examples, or choose a number of folds between 2 and the number of conversations",
        )
    return _deal(examples, count, seed)


def _deal(examples: Sequence[Example], count: int, seed: int) -> list[int]:
    """Deal conversations, in the order of a seeded hash, each to the side that holds least of its source."""
    members: dict[str, list[Example]] = {}
    for example in examples:
        members.setdefault(example.conversation, []).append(example)
    # Python's own hash() changes from process to process; SHA-256 does not.
    order = sorted(members, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    side_of: dict[str, int] = {}
    held: dict[str, list[int]] = {}
    total = [0] * count
    for name in order:
        source = min(example.source for example in members[name])
        sizes = held.setdefault(source, [0] * count)
        side = min(range(count), key=lambda index: (sizes[index], total[index], index))
        side_of[name] = side
        sizes[side] += len(members[name])
        total[side] += len(members[name])
    return [side_of[example.conversation] for example in examples]


def count_by(examples: Iterable[Example], attribute: str) -> dict[str, dict[str, int]]:
    """Count safe and unsafe examples for each value of an attribute, in alphabetical order of the values."""
    counts: dict[str, dict[str, int]] = {}
    for example in examples:
        entry = counts.setdefault(str(getattr(example, attribute)), {"safe": 0, "unsafe": 0})
        entry["unsafe" if example.unsafe else "safe"] += 1
    return dict(sorted(counts.items()))
