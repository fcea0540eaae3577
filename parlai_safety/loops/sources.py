"""Where the main job's talk comes from: the corpus that ships, or a folder of real data.

A source names the tasks that a generator learns from, trains the two judges, and hands contexts to be answered.
Training uses the split "train" alone; what is reported is measured on "test".
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.corpus import load as corpus
from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256
from parlai_safety.judges.contradiction import contradiction_examples, train_contradiction
from parlai_safety.judges.data import Example, folder_examples, halves, tiny_examples
from parlai_safety.judges.quality import agreement_of, quality_of, verdicts_of
from parlai_safety.judges.recipe import GRADER_FILE, LABELLER_FILE, card_path, train_two_judges
from parlai_safety.tasks.chat.agents import FILE as CHAT_FILE
from parlai_safety.tasks.chat.agents import chat_rows
from parlai_safety.tasks.common import Row, split_of
from parlai_safety.tasks.contradiction.agents import contradiction_rows
from parlai_safety.tasks.labels.agents import FILE as LABELS_FILE
from parlai_safety.tasks.labels.agents import label_rows
from parlai_safety.tasks.tiny.agents import adversarial_rows, ordinary_rows

GRADER_DOES, LABELLER_DOES = "graded every system and labelled nothing", "labelled the models' own replies"
TINY_FILES = ("adversarial.*.jsonl", "ordinary.*.jsonl")


class Judges(NamedTuple):
    """What a report shows of the two judges.

    Attributes:
        grader: the card of the judge that grades.
        labeller: the card of the judge that labels.
        spearman: their rank correlation on the labelled talk, or None.
        kappa: Cohen's kappa of their verdicts there, or None.
    """

    grader: dict[str, Any]
    labeller: dict[str, Any]
    spearman: float | None
    kappa: float | None


@dataclass(frozen=True)
class Source:
    """One kind of data.

    Attributes:
        name: for the report.
        ordinary_task: ordinary talk, for perplexity.
        task_options: ParlAI options of these tasks.
        hashes: file name -> SHA-256.
    """

    name: str
    ordinary_task: str
    task_options: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def tasks(self, view: str) -> dict[str, float]:
        """What a generator learns from; task -> weight.

        Args:
            view: "plain" (raw logs without verdicts), "reply" (the same with verdicts), "positive" (what is safe) or
                "negative" (unsafe replies alone, as if they were to be followed: what an anti-expert learns from).
        """
        raise NotImplementedError

    def options_of(self, tasks: Collection[str]) -> dict[str, Any]:
        """The ParlAI options of these tasks alone: ParlAI refuses one that no task of a command knows."""
        return dict(self.task_options)

    def ordinary(self, split: str) -> Iterator[Row]:
        """Ordinary talk of a split, without verdicts."""
        raise NotImplementedError

    def adversarial(self, split: str) -> Iterator[Row]:
        """Judged bot replies to adversarial contexts of a split."""
        raise NotImplementedError

    def labelled(self, split: str) -> Iterator[Row]:
        """All judged replies of a split that the task of a view shows, whoever says them."""
        return self.adversarial(split)

    def judge_examples(self, seed: int) -> list[Example]:
        """Labelled examples of "train" for the two judges."""
        raise NotImplementedError

    def train_judges(self, folder: Path, seed: int) -> Judges:
        """Train the labeller and the grader on disjoint halves of the labelled talk; their files go into the folder."""
        two = train_two_judges(self.judge_examples(seed), seed=seed, folder=folder, data=self.name, files=self.hashes)
        graders = (_card(two.grader_path, GRADER_DOES), _card(two.labeller_path, LABELLER_DOES))
        return Judges(*graders, two.agreement.spearman, two.agreement.kappa)

    def judge_spec(self, file: Path) -> str:
        """The specification of a judge that `train_judges` wrote."""
        return f"linear:{file}"


class TinySource(Source):
    """The corpus that ships."""

    def __init__(self) -> None:
        folder = Path(corpus.__file__).parent / "data"
        super().__init__(
            name="the corpus that ships (safety:tiny)",
            ordinary_task="safety:tiny:ordinary",
            hashes={path.name: sha256(path) for name in TINY_FILES for path in sorted(folder.glob(name))},
        )

    def tasks(self, view: str) -> dict[str, float]:
        """One task in that view."""
        return {_viewed("safety:tiny", view): 1.0}

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
            ordinary_task="safety:chat",
            task_options=options,
            hashes={name: sha256(folder / name) for name in (LABELS_FILE, CHAT_FILE)},
        )
        object.__setattr__(self, "_folder", folder)
        object.__setattr__(self, "_max", chat_max_dialogues)
        object.__setattr__(self, "_weight", labels_weight)

    _folder: Path
    _max: int | None
    _weight: float

    def tasks(self, view: str) -> dict[str, float]:
        """Ordinary talk, which has no verdicts, and labelled replies in that view."""
        labelled = {_viewed("safety:labels", view): self._weight}
        return labelled if view == "negative" else {"safety:chat": 1.0, **labelled}

    def options_of(self, tasks: Collection[str]) -> dict[str, Any]:
        """As the base class says."""
        return {
            name: value
            for name, value in self.task_options.items()
            if name != "chat_max_dialogues" or "safety:chat" in tasks
        }

    def ordinary(self, split: str) -> Iterator[Row]:
        """Turns of ordinary dialogues."""
        return chat_rows(self._folder / CHAT_FILE, split, max_dialogues=self._max)

    def adversarial(self, split: str) -> Iterator[Row]:
        """Bot turns with a context: replies to what a person said."""
        rows = label_rows(self._folder / LABELS_FILE, split, speaker="bot")
        return (row for row in rows if row.context)

    def labelled(self, split: str) -> Iterator[Row]:
        """Bot turns and people's, with and without a context."""
        return label_rows(self._folder / LABELS_FILE, split)

    def judge_examples(self, seed: int) -> list[Example]:
        """The labelled replies of "train", and about as many ordinary turns as safe examples."""
        examples = folder_examples(self._folder, seed=seed)
        return [example for example in examples if split_of(example.conversation) == "train"]


def _viewed(task: str, view: str) -> str:
    return task if view == "reply" else f"{task}:{view}"


class ContradictionSource(TinySource):
    """The contradiction set that ships, beside the ordinary talk of the corpus: "unsafe" means contradicting."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(corpus.__file__).parent / "data"
        files = [path for name in ("contradiction.*.jsonl", TINY_FILES[1]) for path in sorted(folder.glob(name))]
        object.__setattr__(self, "name", "the contradiction set that ships (safety:contradiction)")
        object.__setattr__(self, "hashes", {path.name: sha256(path) for path in files})

    def tasks(self, view: str) -> dict[str, float]:
        """Replies that agree or contradict, in that view, and ordinary talk."""
        labelled = {_viewed("safety:contradiction", view): 1.0}
        return labelled if view == "negative" else {"safety:tiny:ordinary": 1.0, **labelled}

    def adversarial(self, split: str) -> Iterator[Row]:
        """Replies that agree with what the bot said before, or contradict it."""
        return contradiction_rows(split)

    def judge_examples(self, seed: int) -> list[Example]:
        """Everything of "train"; the seed is not used."""
        return contradiction_examples("train")

    def train_judges(self, folder: Path, seed: int) -> Judges:
        """Two judges that compare a reply with the bot's earlier turns; a bag of words could not."""
        halved = halves(self.judge_examples(seed), seed)
        cards, verdicts = [], []
        for role, own, other in ((LABELLER_FILE, 0, 1), (GRADER_FILE, 1, 0)):
            judge = train_contradiction(halved[own])
            judge.save(folder / role)
            quality = quality_of(verdicts_of(judge, halved[other]), halved[other], judge.threshold)
            everything = [*halved.first, *halved.second]
            verdicts.append((verdicts_of(judge, everything), judge.threshold))
            cards.append(
                {
                    "spec": f"contradiction:{role}",
                    "description": "a logistic regression over what a reply shares with the bot's earlier turns, which "
                    + (GRADER_DOES if role == GRADER_FILE else LABELLER_DOES),
                    **{key: getattr(quality, key) for key in ("auc", "sensitivity", "specificity", "threshold")},
                    "trained_on": f"one half of {self.name}",
                    "measured_on": f"the other half, n {quality.n}",
                    "sha256": sha256(folder / role),
                }
            )
        (labels, first), (grades, second) = verdicts
        agreement = agreement_of(labels, grades, first, second)
        return Judges(cards[1], cards[0], agreement.spearman, agreement.kappa)

    def judge_spec(self, file: Path) -> str:
        """As the base class says."""
        return f"contradiction:{file}"


CONTRADICTION = "contradiction"


def source_of(folder: Path | None, *, chat_max_dialogues: int | None = None, labels_weight: float = 1.0) -> Source:
    """The source that a user's `--data` names.

    Args:
        folder: a folder of real data; the word "contradiction" for the contradiction set that ships; None for the
            safety corpus that ships.
        chat_max_dialogues: of real data, how many ordinary dialogues of a split are read, or None for all.
        labels_weight: of real data, how often a labelled reply is drawn for each ordinary turn.

    Raises:
        SafetyError: the folder lacks a file.
    """
    if folder is None:
        return TinySource()
    if str(folder) == CONTRADICTION and not folder.exists():
        return ContradictionSource()
    return FolderSource(folder.resolve(), chat_max_dialogues=chat_max_dialogues, labels_weight=labels_weight)


def _card(path: Path, role: str) -> dict[str, Any]:
    """What the report shows of a judge, from the card beside its file."""
    card = json.loads(card_path(path).read_text(encoding="utf-8"))
    # The systems are bots in adversarial contexts, so the judge is shown as it is on labelled bot turns.
    quality, training = card["quality_labelled_bot_turns"], card["trained_on"]["by_source"]
    return {
        "spec": f"linear:{path.name}",
        "description": f"a logistic regression over words and characters in context, which {role}",
        **{key: quality[key] for key in ("auc", "sensitivity", "specificity")},
        "threshold": card["threshold"],
        "trained_on": ", ".join(f"{name} ({c['safe']} safe, {c['unsafe']} unsafe)" for name, c in training.items()),
        "measured_on": f"labelled bot turns of {card['measured_on']['name']}, n {quality['n']}",
        "on everything there": {key: card["quality"][key] for key in ("n", "auc", "sensitivity", "specificity")},
        "ordinary talk flagged": card["quality"]["ordinary_false_positive_rate"],
        "sha256": card["sha256"],
    }
