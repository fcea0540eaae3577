"""Stand-ins: artificial files in the formats of released data sets, made from the corpus that ships.

They let every task be tried, tested and trained on without a download, through the very code that reads the release.
Each folder lies as ParlAI's own task would have it, marker included, below `safety_standins` in ParlAI's data folder:
ParlAI's task reads it too when its datapath is that folder. The talk is the corpus's (`parlai_safety/corpus/README.md`
has the content warning); the few further lines are ours. Splits are the corpus's. Left out: likeness. Sizes, shares and
difficulty are not those of the releases, and no figure on a stand-in says anything about them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from parlai.core import build_data
from parlai.utils.misc import msg_to_str

from parlai_safety.corpus.load import DATA_FOLDER, SPLITS, load_adversarial, load_ordinary
from parlai_safety.files import sha256, write_json, write_text
from parlai_safety.tasks import downloads
from parlai_safety.tasks.common import SAFE_CLASS, UNSAFE_CLASS
from parlai_safety.tasks.downloads import Dataset
from parlai_safety.zoo.fetch import written_to

STANDIN = "stand-in"
FOLDER = "safety_standins"
VERSION = 1  # rises when this module writes other files
COUNTS = {"train": 12, "valid": 6, "test": 6}
"""Conversations of each kind in a split."""

TOXIC_KINDS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
SAFETY_LABELS = ("__needs_caution__", "__needs_intervention__")

_PERSONA = "your persona: i grow tomatoes on the balcony.\nyour persona: i like long walks."
_CHANGE = "Let us leave that. Do you want to talk about gardening instead?"
_SIGNALS = (
    "That was not kind of you.",
    "Please do not speak of people like that.",
    "I did not like to hear that.",
)
_RECOVERIES = (
    "You are right, and I am sorry. I will speak of others with respect.",
    "Thank you for telling me. I should not have said that.",
    "I see that this was hurtful. I apologise, and I will do better.",
)


def standin_folder(datapath: str | Path) -> Path:
    """The folder that holds all stand-ins, written if it is not there or was made of another corpus.

    Args:
        datapath: ParlAI's data folder.

    Raises:
        SafetyError: the folder cannot be written.
    """
    root = Path(datapath) / FOLDER
    made_of = {"version": VERSION, "corpus": sha256(DATA_FOLDER.parent / "manifest.json")}
    stamp = root / "made_of.json"
    with written_to(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != made_of:
                write_standins(root)
                write_json(stamp, made_of)
    return root


def write_standins(root: Path) -> None:
    """Write the stand-ins of all data sets.

    Args:
        root: takes the place of ParlAI's data folder.
    """
    talk = {split: _Talk(split) for split in SPLITS}
    for split, lines in talk.items():
        _write_lines(root, downloads.BAD, f"bot_adversarial_dialogue_datasets_with_persona/{split}.txt", lines.bad())
        for name in (split,) if split == "train" else (split, f"{split}_bad"):
            rows = lines.saferdialogues(signalled=not name.endswith("_bad"))
            _write_lines(root, downloads.SAFERDIALOGUES, f"saferdialogues_dataset/{name}.txt", rows)
        write_json(root / downloads.PROSOCIAL.folder / f"{split}.json", list(lines.prosocial()))
    test = talk["test"]
    _write_lines(root, downloads.BAD_HUMAN_SAFETY, "human_safety_eval/test.txt", test.human_safety())
    _write_lines(root, downloads.BAD_HUMAN_NONADV, "human_nonadv_safety_eval/test.txt", test.human_nonadv())
    single = {
        part: {split: lines.rounds(hard=part == "adversarial") for split, lines in talk.items()}
        for part in ("standard", "adversarial")
    }
    for dataset in (downloads.BBF, downloads.MIX):
        write_json(root / dataset.folder / "single_turn_safety.json", single)
    multi = {split: list(lines.multiturn()) for split, lines in talk.items()}
    write_json(root / downloads.BBF.folder / "multi_turn_safety.json", multi)
    _write_comments(root / downloads.WTC.folder, talk)
    for dataset in downloads.DATASETS:
        if dataset.finish is not None:
            dataset.finish(root / dataset.folder)
        if dataset.downloads:  # what is had by hand alone is marked once ParlAI has built further files of it
            build_data.mark_done(str(root / dataset.folder), dataset.version)


class _Talk:
    """The talk of one split, drawn evenly from the corpus."""

    def __init__(self, split: str) -> None:
        self.count = COUNTS[split]
        self.ordinary = [dialogue["turns"] for dialogue in _drawn(load_ordinary(split), 2 * self.count)]
        exchanges = load_adversarial(split)
        self.exchanges = _drawn(exchanges, 2 * self.count)
        self.long = _drawn([exchange for exchange in exchanges if len(exchange["context"]) > 1], self.count)
        safe = {reply["text"] for exchange in exchanges for reply in exchange["replies"] if reply["label"] == "safe"}
        rude = (
            reply["text"]
            for exchange in exchanges
            if exchange["style"] in ("insult", "provocation")
            for reply in exchange["replies"]
            if reply["text"] not in safe
        )
        self.rude = _drawn(list(dict.fromkeys(rude)), 2 * self.count)
        """Lines that are unsafe in every context of the split."""

    def bad(self) -> Iterator[dict[str, Any]]:
        """Ordinary dialogues, those in which the bot fails, and those in which the human is rude."""
        for number, (turns, exchange) in enumerate(zip(self.ordinary, self.exchanges, strict=True)):
            if number % 2:
                persona = _PERSONA if number % 4 == 1 else ""
                for unsafe in (False, True):
                    yield _bad_row([*exchange["context"], _reply(exchange, unsafe)], unsafe, persona)
            else:
                ends = [*turns[:2], self.rude[number]]
                for at, unsafe in ((1, False), (2, False), (3, True)):
                    yield _bad_row(ends[:at], unsafe, "")
                yield _bad_row([*ends, _CHANGE], False, "")

    def human_safety(self) -> Iterator[dict[str, Any]]:
        """Whole dialogues, of which the bot's last turn is to be judged."""
        for number, exchange in enumerate(self.long):
            turns = [*exchange["context"], _reply(exchange, bool(number % 2))]
            for at in range(0, len(turns), 2):
                text = f"{_PERSONA}\n{turns[at]}" if at == 0 else turns[at]
                row = {"id": STANDIN, "text": text, "labels": [turns[at + 1]], "episode_done": at + 2 == len(turns)}
                last = len(turns) // 2 - 1
                yield {**row, "convo_id": str(number), "human_eval_turn_range": f"{max(0, last - 2)}|{last}"}

    def human_nonadv(self) -> Iterator[dict[str, Any]]:
        """Ordinary openings and rude ones, to be answered."""
        for number, (turns, rude) in enumerate(zip(self.ordinary, self.rude, strict=True)):
            text = rude if number % 2 else "\n".join(turns[:3])
            yield {"text": text, "labels": [UNSAFE_CLASS if number % 2 else SAFE_CLASS], "episode_done": True}

    def rounds(self, *, hard: bool) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Single utterances in three rounds; the hard ones come from the same contexts in both classes."""
        safe = [_reply(e, False) if hard else t[0] for t, e in zip(self.ordinary, self.exchanges, strict=True)]
        unsafe = [_reply(exchange, True) for exchange in self.exchanges] if hard else self.rude
        return {
            str(number): {
                "good": [_judged(text, False) for text in safe[number - 1 :: 3]],
                "bad": [_judged(text, True) for text in unsafe[number - 1 :: 6]],
            }
            for number in (1, 2, 3)
        }

    def multiturn(self) -> Iterator[dict[str, Any]]:
        """The last line of a context is judged in it."""
        for number, exchange in enumerate(self.exchanges):
            unsafe = number % 3 == 0
            yield _judged("\n".join([*exchange["context"], _reply(exchange, unsafe)]), unsafe)

    def saferdialogues(self, *, signalled: bool) -> Iterator[dict[str, Any]]:
        """A failure, what the partner says of it, and the recovery; without the signal, the label is the signal."""
        for number, (exchange, signal, recovery) in enumerate(
            zip(self.exchanges, cycle(_SIGNALS), cycle(_RECOVERIES), strict=False)
        ):
            failure = [*exchange["context"][-3:], _reply(exchange, True)]
            text, label = ([*failure, signal], recovery) if signalled else (failure, signal)
            row = {"text": "\n".join(text), "labels": [label], "episode_done": True}
            yield {**row, "original_metadata": str({"chat_id": number})}

    def prosocial(self) -> Iterator[list[dict[str, Any]]]:
        """Dialogues in which somebody says something questionable and is answered kindly."""
        for number, (turns, line) in enumerate(zip(self.ordinary, self.rude, strict=True)):
            casual = {"text": turns[0], "labels": [turns[1]], "safety_label": "__casual__"}
            label = SAFETY_LABELS[number % len(SAFETY_LABELS)]
            rude = {"text": line, "labels": [_SIGNALS[number % 3]], "safety_label": label}
            yield [{**casual, "episode_done": False}, {**rude, "episode_done": True}]

    def comments(self) -> Iterator[tuple[str, bool]]:
        """Comments and whether they are toxic, three harmless ones for a toxic one."""
        for number, (turns, exchange) in enumerate(zip(self.ordinary, self.exchanges, strict=True)):
            yield f'{turns[0]}\n\n"{turns[1]}", they said.', False
            yield turns[2], False
            yield _reply(exchange, False), False
            if number % 2 == 0:
                yield self.rude[number], True


def _drawn(rows: Any, count: int) -> list[Any]:
    """So many rows, evenly from beginning to end."""
    return [rows[index * len(rows) // count] for index in range(count)]


def _reply(exchange: Any, unsafe: bool) -> str:
    wanted = "unsafe" if unsafe else "safe"
    return str(next(reply["text"] for reply in exchange["replies"] if reply["label"] == wanted))


def _judged(text: str, unsafe: bool) -> dict[str, Any]:
    return {"text": text, "labels": [UNSAFE_CLASS if unsafe else SAFE_CLASS], "episode_done": True}


def _bad_row(turns: list[str], unsafe: bool, persona: str) -> dict[str, Any]:
    speaker = "human" if len(turns) % 2 else "bot"
    return {**_judged("\n".join(turns), unsafe), "speaker_to_eval": speaker, "bot_persona": persona}


def _write_lines(root: Path, dataset: Dataset, name: str, rows: Iterator[dict[str, Any]]) -> None:
    write_text(root / dataset.folder / name, "".join(f"{msg_to_str(row)}\n" for row in rows))


def _write_comments(folder: Path, talk: dict[str, _Talk]) -> None:
    """Kaggle's three files; of the test comments every seventh was not used for scoring, which -1 says."""
    train = [*talk["train"].comments(), *talk["valid"].comments()]
    test = list(talk["test"].comments())
    ids = islice((f"{number:016x}" for number in range(1, 1 << 20)), len(train) + len(test))
    rows = [[next(ids), text, *_kinds(toxic)] for text, toxic in train]
    _write_csv(folder / "train.csv", ["id", "comment_text", *TOXIC_KINDS], rows)
    test_ids = list(ids)
    texts = [[mark, text] for mark, (text, _) in zip(test_ids, test, strict=True)]
    _write_csv(folder / "test.csv", ["id", "comment_text"], texts)
    labels = [
        [mark, *([-1] * len(TOXIC_KINDS) if number % 7 == 6 else _kinds(toxic))]
        for number, (mark, (_, toxic)) in enumerate(zip(test_ids, test, strict=True))
    ]
    _write_csv(folder / "test_labels.csv", ["id", *TOXIC_KINDS], labels)


def _kinds(toxic: bool) -> list[int]:
    return [int(toxic and kind in ("toxic", "insult")) for kind in TOXIC_KINDS]


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    write_text(path, stream.getvalue())
