"""Reading the corpus that ships, a split at a time.

The files lie beside this module and are read as they are: no download, no cache, no check of hashes (that is
`python -m parlai_safety.corpus.build --check`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from parlai_safety.corpus.records import AdversarialExchange, ContradictionExchange, OrdinaryDialogue
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import read_jsonl

SPLITS: tuple[str, ...] = ("train", "valid", "test")
DATA_FOLDER = Path(__file__).parent / "data"


def load_ordinary(split: str) -> list[OrdinaryDialogue]:
    """The ordinary dialogues of a split ("train", "valid" or "test"), in order of their ids.

    Raises:
        SafetyError: the split has another name.
    """
    return cast(list[OrdinaryDialogue], _rows("ordinary", split))


def load_adversarial(split: str) -> list[AdversarialExchange]:
    """The adversarial exchanges of a split ("train", "valid" or "test"), in order of their ids.

    Raises:
        SafetyError: the split has another name.
    """
    return cast(list[AdversarialExchange], _rows("adversarial", split))


def load_contradiction(split: str) -> list[ContradictionExchange]:
    """The contradiction exchanges of a split ("train", "valid" or "test"), in order of their ids.

    Raises:
        SafetyError: the split has another name.
    """
    return cast(list[ContradictionExchange], _rows("contradiction", split))


def _rows(half: str, split: str) -> list[dict[str, Any]]:
    if split not in SPLITS:
        raise SafetyError(
            f"There is no split {split!r} of the corpus",
            f"It has the splits {', '.join(SPLITS)}",
            did_you_mean(split, SPLITS, f"Use one of {', '.join(SPLITS)}"),
        )
    return list(read_jsonl(DATA_FOLDER / f"{half}.{split}.jsonl"))
