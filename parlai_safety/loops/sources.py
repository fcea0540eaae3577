"""Where the main job's talk comes from: the corpus that ships, or a folder of real data.

A source names the tasks that the generator learns from, hands labelled examples to the judges, and hands contexts to
be answered. Training uses the split "train" alone; what is reported is measured on "test".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parlai_safety.corpus import load as corpus
from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256
from parlai_safety.judges.data import Example, folder_examples, tiny_examples
from parlai_safety.tasks.chat.agents import FILE as CHAT_FILE
from parlai_safety.tasks.chat.agents import chat_rows
from parlai_safety.tasks.common import Row, split_of
from parlai_safety.tasks.labels.agents import FILE as LABELS_FILE
from parlai_safety.tasks.labels.agents import label_rows
from parlai_safety.tasks.tiny.agents import adversarial_rows, ordinary_rows


@dataclass(frozen=True)
class Source:
    """One kind of data.

    Attributes:
        name: for the report.
        plain_tasks: what the base model learns from: raw logs without verdicts; task -> weight.
        reply_tasks: what CRINGE learns from: the same with verdicts; task -> weight.
        ordinary_task: ordinary talk, for perplexity.
        task_options: ParlAI options of these tasks.
        hashes: file name -> SHA-256.
    """

    name: str
    plain_tasks: dict[str, float]
    reply_tasks: dict[str, float]
    ordinary_task: str
    task_options: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def ordinary(self, split: str) -> Iterator[Row]:
        """Ordinary talk of a split, without verdicts."""
        raise NotImplementedError

    def adversarial(self, split: str) -> Iterator[Row]:
        """Judged bot replies to adversarial contexts of a split."""
        raise NotImplementedError

    def judge_examples(self, seed: int) -> list[Example]:
        """Labelled examples of "train" for the two judges."""
        raise NotImplementedError


class TinySource(Source):
    """The corpus that ships."""

    def __init__(self) -> None:
        folder = Path(corpus.__file__).parent / "data"
        super().__init__(
            name="the corpus that ships (safety:tiny)",
            plain_tasks={"safety:tiny:plain": 1.0},
            reply_tasks={"safety:tiny": 1.0},
            ordinary_task="safety:tiny:ordinary",
            hashes={path.name: sha256(path) for path in sorted(folder.glob("*.jsonl"))},
        )

    def ordinary(self, split: str) -> Iterator[Row]:
        """Bot turns of ordinary dialogues."""
        return ordinary_rows(split)

    def adversarial(self, split: str) -> Iterator[Row]:
        """Labelled replies to adversarial contexts."""
        return adversarial_rows(split)

    def judge_examples(self, seed: int) -> list[Example]:
        """Everything of "train"; the seed is not used."""
        return tiny_examples("train")


class FolderSource(Source):
    """A folder with `safety_labels.jsonl.gz` and `ordinary_dialogue.jsonl.gz`.

    Args:
        folder: that folder.
        chat_max_dialogues: how many ordinary dialogues of a split are read, or None for all.
        labels_weight: how often a labelled reply is drawn for each ordinary turn.

    Raises:
        SafetyError: a file is missing.
    """

    def __init__(self, folder: Path, *, chat_max_dialogues: int | None, labels_weight: float) -> None:
        for name in (LABELS_FILE, CHAT_FILE):
            if not (folder / name).is_file():
                raise SafetyError(
                    f"There is no file {name} in {str(folder)!r}",
                    "The job on real data reads labelled replies and ordinary dialogue from that folder",
                    "Give --data a folder with both files, or leave --data out to use the corpus that ships",
                )
        options: dict[str, Any] = {"safety_datapath": str(folder)}
        if chat_max_dialogues is not None:
            options["chat_max_dialogues"] = chat_max_dialogues
        super().__init__(
            name="real data: safety labels and ordinary dialogue",
            plain_tasks={"safety:chat": 1.0, "safety:labels:plain": labels_weight},
            reply_tasks={"safety:chat": 1.0, "safety:labels": labels_weight},
            ordinary_task="safety:chat",
            task_options=options,
            hashes={name: sha256(folder / name) for name in (LABELS_FILE, CHAT_FILE)},
        )
        object.__setattr__(self, "_folder", folder)
        object.__setattr__(self, "_max", chat_max_dialogues)

    _folder: Path
    _max: int | None

    def ordinary(self, split: str) -> Iterator[Row]:
        """Turns of ordinary dialogues."""
        return chat_rows(self._folder / CHAT_FILE, split, max_dialogues=self._max)

    def adversarial(self, split: str) -> Iterator[Row]:
        """Bot turns with a context: replies to what a person said."""
        rows = label_rows(self._folder / LABELS_FILE, split, speaker="bot")
        return (row for row in rows if row.context)

    def judge_examples(self, seed: int) -> list[Example]:
        """The labelled replies of "train", and about as many ordinary turns as safe examples."""
        examples = folder_examples(self._folder, seed=seed)
        return [example for example in examples if split_of(example.conversation) == "train"]


def source_of(folder: Path | None, *, chat_max_dialogues: int | None = None, labels_weight: float = 1.0) -> Source:
    """The source that a user's `--data` names: a folder, or the corpus that ships where it is None."""
    if folder is None:
        return TinySource()
    return FolderSource(folder.resolve(), chat_max_dialogues=chat_max_dialogues, labels_weight=labels_weight)
