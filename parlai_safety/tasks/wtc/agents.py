"""`-t safety:wtc`: Wikipedia toxic comments, unsafe where any of six kinds of toxicity was marked.

Source: Kaggle's toxic comment classification challenge, as ParlAI's `dialogue_safety:WikiToxicComments` uses it. The
files cannot be downloaded without an account, so they are put into ParlAI's folder by hand.

ParlAI means to divide the training file 80/10/10, and on today's pandas gives 90 % training, 10 % validation and an
empty test split. Here the distinct texts are put in the order of a hash with a fixed seed, and the first 80 % are for
training, the next 10 % for validation and the last 10 % for testing: no text is in two splits, and the order of the
file does not matter. With `--use-test-set true` the split is ParlAI's own, 90/10 and the challenge's test set. The six
marks are in `marks`, since `toxic` is a field of ours already. Left out: line breaks, since a line is a turn.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parlai_safety.errors import SafetyError
from parlai_safety.files import bad_row
from parlai_safety.options import option
from parlai_safety.tasks.common import SAFE_CLASS, UNSAFE_CLASS, Row
from parlai_safety.tasks.downloads import WTC
from parlai_safety.tasks.published import PublishedTeacher

ADDRESS = "https://www.kaggle.com/c/jigsaw-toxic-comment-classification-challenge/data"
KINDS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
SEED = 42
UNSCORED = -1  # of test comments that did not count in the challenge


@dataclass(frozen=True)
class CommentOptions:
    """Options of the Wikipedia toxic comments; ParlAI's."""

    use_test_set: bool = option(
        False, "Divide the training file 90/10 and test on the challenge's test set, instead of 80/10/10 of the former."
    )
    balance_data: bool = option(False, "Repeat unsafe training comments until there are as many as safe ones.")


class DefaultTeacher(PublishedTeacher):
    """Comments to be classified as `__ok__` or `__notok__`."""

    dataset = WTC
    declared = CommentOptions
    title = "Wikipedia toxic comments"
    view = "classifier"

    def rows(self, split: str) -> Iterator[Row]:
        """The comments of the split."""
        folder = self.folder()
        if self.own.use_test_set and split == "test":
            found = _scored_test(folder)
        else:
            comments = list(_comments(folder / "train.csv"))
            divide = released_split if self.own.use_test_set else text_split
            found = [c for c, where in zip(comments, divide(comments), strict=True) if where == split]
        if self.own.balance_data and split == "train":
            found = _balanced(found)
        provenance = self.provenance(split)
        for comment in found:
            unsafe = any(comment[kind] for kind in KINDS)
            fields = {
                "marks": {kind: comment[kind] for kind in KINDS},
                "label_candidates": [UNSAFE_CLASS, SAFE_CLASS],
                "speaker": "human",
                "provenance": provenance,
            }
            yield Row([], comment["text"], unsafe, fields)

    def released(self) -> Path:
        """The folder, if the files that the options need were put there."""
        folder = Path(self.opt["datapath"]) / self.dataset.folder
        needed = ("train.csv", "test.csv", "test_labels.csv") if self.own.use_test_set else ("train.csv",)
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise SafetyError(
                f"There is no {' and no '.join(missing)} in {str(folder)!r}",
                f"Kaggle gives these comments only to those who accept its rules, at {ADDRESS}",
                f"Download and unpack them there, and put {', '.join(needed)} into that folder; "
                "--safety-standin true serves artificial rows of the same form",
            )
        return folder


class ClassifierTeacher(DefaultTeacher):
    """The default view under the name that our other tasks give it."""


def text_split(comments: list[dict[str, Any]]) -> list[str]:
    """The split of each comment: 80/10/10 of the distinct texts in the order of a seeded hash.

    Args:
        comments: each with its "text".

    Returns:
        "train", "valid" or "test" for each, in the order given.
    """
    texts = sorted({_key(comment) for comment in comments}, key=_mark)
    cuts = (8 * len(texts) // 10, 9 * len(texts) // 10)
    split_of = {t: "train" if i < cuts[0] else "valid" if i < cuts[1] else "test" for i, t in enumerate(texts)}
    return [split_of[_key(comment)] for comment in comments]


def released_split(comments: list[dict[str, Any]]) -> list[str]:
    """The split of each comment as ParlAI draws it for `--use-test-set`: a tenth is for validation.

    Its pandas call, `sample(frac=0.1, random_state=42)`, takes these indices of NumPy's legacy generator.
    """
    drawn = np.random.RandomState(SEED).choice(len(comments), size=round(0.1 * len(comments)), replace=False)
    valid = set(drawn.tolist())
    return ["valid" if index in valid else "train" for index in range(len(comments))]


def _key(comment: dict[str, Any]) -> str:
    return " ".join(comment["text"].lower().split())


def _mark(text: str) -> bytes:
    return hashlib.sha256(f"wiki-toxic-comments {SEED} {text}".encode()).digest()


def _comments(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in _csv_rows(path, ("id", "comment_text", *KINDS)):
        yield {"id": row["id"], "text": row["comment_text"], **_kinds(row, path, number)}


def _scored_test(folder: Path) -> list[dict[str, Any]]:
    """The challenge's test comments that counted, with their labels from the second file."""
    labels_path = folder / "test_labels.csv"
    labels = {row["id"]: _kinds(row, labels_path, n) for n, row in _csv_rows(labels_path, ("id", *KINDS))}
    found = []
    for number, row in _csv_rows(folder / "test.csv", ("id", "comment_text")):
        if row["id"] not in labels:
            raise bad_row(f"Row {number} of 'test.csv'", f"the id {row['id']!r}", "'test_labels.csv' has the same ids")
        if UNSCORED not in labels[row["id"]].values():
            found.append({"id": row["id"], "text": row["comment_text"], **labels[row["id"]]})
    return found


def _csv_rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise bad_row(f"The first line of {str(path)!r}", f"no {missing[0]!r}", f"it names {', '.join(needed)}")
        yield from enumerate(reader, 1)


def _kinds(row: dict[str, str], path: Path, number: int) -> dict[str, int]:
    found = {kind: row[kind] for kind in KINDS}
    if not set(found.values()) <= {"0", "1", "-1"}:
        raise bad_row(f"Row {number} of {str(path)!r}", f"the marks {list(found.values())}", "a mark is 0, 1 or -1")
    return {kind: int(mark) for kind, mark in found.items()}


def _balanced(comments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The safe comments, and as many drawn from the unsafe ones, in a seeded order."""
    generator = random.Random(SEED)
    safe = [comment for comment in comments if not any(comment[kind] for kind in KINDS)]
    unsafe = [comment for comment in comments if any(comment[kind] for kind in KINDS)]
    if not unsafe:
        raise SafetyError(
            "--balance-data found no unsafe comment",
            "It repeats unsafe training comments until there are as many as safe ones",
            "Look into train.csv, or leave the flag out",
        )
    found = safe + [generator.choice(unsafe) for _ in safe]
    generator.shuffle(found)
    return found
