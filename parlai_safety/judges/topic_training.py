"""Training the classifier of sensitive topics, and its card: F1 a class, confusion, false alarms on ordinary talk.

Source: the topic classifier of Xu et al. (2020, arXiv:2010.07079), which was trained on lists of subreddits and
measured on 1,811 crowdsourced sentences; here those sentences, or our own, are what is learned from, with ordinary talk
as "none". The file of the 1,811 has no conversation ids, but its rows stand in the order of the chats that they were
collected in: rows of one topic that follow each other count as one conversation and stay on one side of every split.
Left out: the subreddits, and a neural model (`-m safety:judge -t safety:topics` trains one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlai_safety.corpus.load import DATA_FOLDER, load_ordinary
from parlai_safety.corpus.topics import FILE as SENTENCES_FILE
from parlai_safety.corpus.topics import topic_sentences
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import bad_row, read_rows, row_field, sha256
from parlai_safety.judges.card import MARKS, make_card
from parlai_safety.judges.data import (
    ORDINARY,
    ORDINARY_FILE,
    Example,
    conversation_marks,
    folds,
    is_ordinary,
    ordinary_file_examples,
    split_of,
)
from parlai_safety.judges.features import idf_of, weighted
from parlai_safety.judges.quality import f1_interval, threshold_at_false_positive_rate
from parlai_safety.judges.topics import NO_TOPIC, TOPICS, LinearTopics, TopicJudge, TopicModel, counted

TOPICS_FILE, PARLAI_FILE = "sensitive_topics.jsonl.gz", "data_valid.jsonl"
CLASSES = (*TOPICS, NO_TOPIC)
FOLDS = 5
FALSE_ALARMS = 0.05
# Chosen on two folds of the training part of the 1,811 sentences: the mean F1 moves by less than 0.01 from 2 to 32.
INVERSE_REGULARISATION = 8.0
DRAWS = 1000


class TopicData(NamedTuple):
    """Sentences with their topics, in two parts that share no conversation.

    Attributes:
        name: what they are, in words.
        files: names of the files they come from -> SHA-256.
        train: to learn from.
        held_out: to measure on.
    """

    name: str
    files: dict[str, str]
    train: list[Example]
    held_out: list[Example]


def topic_of(example: Example) -> str:
    """The class of an example: its source names the topic, and ordinary talk has none."""
    return NO_TOPIC if is_ordinary(example) else example.source


def shipped_topic_examples(split: str) -> list[Example]:
    """The sentences that ship, and as many turns of the ordinary dialogues that ship as there are on topics.

    Args:
        split: "train", "valid" or "test".
    """
    sentences = topic_sentences(split)
    examples = [
        Example([], text, topic != NO_TOPIC, "human", key, f"{ORDINARY}topics" if topic == NO_TOPIC else topic)
        for text, topic, key in sentences
    ]
    rows = load_ordinary(split)
    wanted = sum(example.unsafe for example in examples)
    chosen = [rows[at * len(rows) // min(wanted, len(rows))] for at in range(min(wanted, len(rows)))]
    for at, row in enumerate(chosen):
        turn = at % len(row["turns"])
        speaker = "bot" if turn % 2 else "human"
        source = f"{ORDINARY}tiny"
        examples.append(Example(row["turns"][:turn], row["turns"][turn], False, speaker, row["id"], source))  # type: ignore[arg-type]
    return examples


def topic_file_examples(path: str | Path) -> list[Example]:
    """Read sentences with a topic from a JSONL file, plain or gzip.

    Args:
        path: rows with `text` and either `topic` or, as in ParlAI's `sensitive_topics_evaluation`, `labels`.

    Returns:
        One example a row, in the order of the file; rows of one topic that follow each other share a conversation, and
        a text that comes again is of the conversation of the first one.

    Raises:
        SafetyError: the file is missing or empty, or a row has no text or an unknown topic.
    """
    examples: list[Example] = []
    began = ""
    first_of: dict[str, str] = {}
    for where, row in read_rows(path):
        text = row_field(row, "text", str, where)
        found = row.get("topic") or row.get("labels") or row.get("eval_labels")
        topic = found[0] if isinstance(found, list) and found else found
        if topic not in CLASSES:
            raise SafetyError(
                f"{where} has the topic {topic!r}",
                f"In this format a topic is one of {', '.join(CLASSES)}",
                did_you_mean(str(topic), CLASSES, "Mend the row or leave it out, and try again"),
            )
        if not text.strip():
            raise bad_row(where, "an empty text", "a text says something")
        source = f"{ORDINARY}topics" if topic == NO_TOPIC else str(topic)
        began = began if examples and examples[-1].source == source else text
        conversation = first_of.setdefault(" ".join(text.lower().split()), began)
        examples.append(Example([], text, topic != NO_TOPIC, "human", conversation, source))
    return examples


def topics_file(folder: str | Path) -> Path:
    """The file of real sentences in a folder: ours, or ParlAI's download.

    Raises:
        SafetyError: the folder holds neither.
    """
    for name in (TOPICS_FILE, PARLAI_FILE):
        if (path := Path(folder) / name).is_file():
            return path
    raise SafetyError(
        f"There is neither {TOPICS_FILE} nor {PARLAI_FILE} in {str(folder)!r}",
        "Real sentences on sensitive topics do not ship; they are ParlAI's sensitive_topics_evaluation",
        "Name the folder that holds one of them, or leave --data out for the sentences that ship",
    )


def real_topic_examples(path: str | Path, *, seed: int) -> list[Example]:
    """The real sentences, and as many turns of ordinary talk as "none".

    Args:
        path: see `topic_file_examples`; ordinary talk is read from `ordinary_dialogue.jsonl.gz` beside it where there
            is one, and from the dialogues that ship elsewhere.
        seed: chooses the turns of ordinary talk.
    """
    examples = topic_file_examples(path)
    beside = Path(path).parent / ORDINARY_FILE
    if beside.is_file():
        return examples + ordinary_file_examples(beside, count=sum(e.unsafe for e in examples), seed=seed)
    shipped = [e for split in ("train", "valid", "test") for e in shipped_topic_examples(split)]
    return examples + [e for e in shipped if is_ordinary(e)]


def topic_data(data: str | Path | None, *, seed: int) -> TopicData:
    """What a classifier is trained and measured on.

    Args:
        data: None = what ships, its training and its test split; a folder = its real sentences, 80 % of the
            conversations to learn from, told by a hash of their first text.
        seed: chooses the turns of ordinary talk.

    Raises:
        SafetyError: a file is missing or malformed.
    """
    if data is None:
        ordinary = [DATA_FOLDER / f"ordinary.{split}.jsonl" for split in ("train", "test")]
        files = {path.name: sha256(path) for path in (SENTENCES_FILE, *ordinary)}
        name = "the sentences on topics and the ordinary dialogues that ship"
        return TopicData(name, files, shipped_topic_examples("train"), shipped_topic_examples("test"))
    path = topics_file(data)
    examples = real_topic_examples(path, seed=seed)
    beside = path.parent / ORDINARY_FILE
    files = {p.name: sha256(p) for p in (path, beside) if p.is_file()}
    sides = [split_of(example.conversation) == "train" for example in examples]
    return TopicData(
        f"the sentences of {path.name} and ordinary talk",
        files,
        [e for e, trains in zip(examples, sides, strict=True) if trains],
        [e for e, trains in zip(examples, sides, strict=True) if not trains],
    )


class TrainedTopics(NamedTuple):
    """What `train_topics` made.

    Attributes:
        model: the classifier, not yet saved.
        out_of_fold: for each training example, the probabilities by a classifier that has not seen its conversation;
            shape (N, C), columns as in `model.classes`.
    """

    model: LinearTopics
    out_of_fold: NDArray[np.float64]


def train_topics(examples: Sequence[Example], *, seed: int, false_alarms: float = FALSE_ALARMS) -> TrainedTopics:
    """Fit a classifier, with the threshold from a cross-validation by conversation.

    Args:
        examples: sentences on topics, and ordinary talk.
        seed: of the folds.
        false_alarms: the share of the ordinary examples that may fire, in [0, 1): the threshold is the lowest one that
            keeps to it on the out-of-fold scores.

    Raises:
        SafetyError: a class has fewer conversations than there are folds, or the rate is out of range.
    """
    truth = [topic_of(example) for example in examples]
    names = [name for name in CLASSES if name in set(truth)]
    for name in (*names, NO_TOPIC):
        conversations = {e.conversation for e, topic in zip(examples, truth, strict=True) if topic == name}
        if len(conversations) < FOLDS or len(names) < 2:
            raise SafetyError(
                f"The topic {name!r} has {len(conversations)} conversations, beside {len(names) - 1} further classes",
                f"Each of {FOLDS} folds needs to hold some of every class, and ordinary talk must be among them",
                "Give more sentences, or leave the topic out",
            )
    classes = {name: at for at, name in enumerate(names)}
    labels = np.array([classes[name] for name in truth])
    counts = counted([example.reply for example in examples])
    fold_of = np.array(folds(examples, FOLDS, seed))
    out_of_fold = np.zeros((len(examples), len(names)))
    for fold in range(FOLDS):
        inside, outside = fold_of != fold, fold_of == fold
        fit = _fit(counts.rows(inside), labels[inside], classes)
        features = weighted(counts.rows(outside), fit.idf)
        out_of_fold[outside] = fit.of_features(features)
    ordinary = labels == classes[NO_TOPIC]
    sensitive = 1.0 - out_of_fold[ordinary, classes[NO_TOPIC]]
    model = _fit(counts, labels, classes)
    model.threshold = threshold_at_false_positive_rate(sensitive.tolist(), false_alarms)
    model.facts = {
        "seed": seed,
        "examples": len(examples),
        "by_topic": {name: truth.count(name) for name in names},
        "false_alarms": false_alarms,
        MARKS: conversation_marks(examples),
    }
    return TrainedTopics(model, out_of_fold)


def topic_figures(rows: NDArray[np.float64], classes: Mapping[str, int], examples: Sequence[Example]) -> dict[str, Any]:
    """How well the most probable class is the true one.

    Args:
        rows: P(class) of the examples, shape (N, C).
        classes: the classes with their columns.
        examples: N examples.

    Returns:
        {"n", "accuracy", "macro_f1", "by_class", "confusion"}: for each class {"n", "precision", "recall", "f1",
        "f1_interval"} (95 %, bootstrap by conversation), and true class -> predicted class -> count.
    """
    names = list(classes)
    truth = [topic_of(example) for example in examples]
    found = [names[at] for at in np.argmax(rows[:, [classes[name] for name in names]], axis=1)]
    conversations = [example.conversation for example in examples]
    pairs = list(zip(truth, found, strict=True))
    by_class: dict[str, dict[str, Any]] = {}
    for name in names:
        is_true, is_found = [one == name for one in truth], [one == name for one in found]
        hits = pairs.count((name, name))
        interval = f1_interval(is_found, is_true, conversations, draws=DRAWS)
        by_class[name] = {
            "n": sum(is_true),
            "precision": hits / sum(is_found) if any(is_found) else None,
            "recall": hits / sum(is_true) if any(is_true) else None,
            "f1": 2 * hits / (sum(is_true) + sum(is_found)) if any(is_true) else None,
            "f1_interval": None if interval is None else list(interval),
        }
    known = [one["f1"] for one in by_class.values() if one["f1"] is not None]
    return {
        "n": len(examples),
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
        "macro_f1": sum(known) / len(known),
        "by_class": by_class,
        "confusion": {a: {b: pairs.count((a, b)) for b in names} for a in names if a in set(truth)},
    }


class MadeTopics(NamedTuple):
    """What `make_topic_judge` made: the judge, saved, and its card, not yet written."""

    judge: TopicJudge
    card: dict[str, Any]


def make_topic_judge(
    data: str | Path | None, out: str | Path, *, seed: int, false_alarms: float = FALSE_ALARMS
) -> MadeTopics:
    """Train, save to `out`, and make the card.

    Args:
        data: see `topic_data`.
        out: the file, which ends in .npz.
        seed: of the folds and of the turns of ordinary talk.
        false_alarms: see `train_topics`.

    Returns:
        The judge and its card, in which "unsafe" means a sensitive topic, and "source" names the topic.
    """
    if Path(out).suffix != ".npz":
        raise SafetyError(
            f"The classifier was to be saved as {str(out)!r}",
            "By the ending .npz a topics: judge tells it from a ParlAI model",
            f"Give a name that ends in .npz, such as {str(Path(out).with_suffix('.npz'))!r}",
        )
    source = topic_data(data, seed=seed)
    trained = train_topics(source.train, seed=seed, false_alarms=false_alarms)
    model = trained.model
    model.save(out)
    judge = TopicJudge(model, spec=f"topics:{out}", threshold=model.threshold, file=Path(out))
    return MadeTopics(judge, topic_card(judge, source, trained.out_of_fold))


def topic_card(judge: TopicJudge, source: TopicData, out_of_fold: NDArray[np.float64]) -> dict[str, Any]:
    """The card of a judge of topics: that of any judge, with the figures by class beside it."""
    facts = {key: value for key, value in (judge.facts or {}).items() if key != MARKS}
    return make_card(
        judge,
        source.held_out,
        measured_on=f"the held-out part of {source.name}, where unsafe means a sensitive topic",
        files=source.files,
        trained_on={"name": source.name, "files": source.files, **facts},
        probes=False,
        extra={
            "topics": topic_figures(_probabilities(judge.model, source.held_out), judge.model.classes, source.held_out),
            "topics_cross_validated": topic_figures(out_of_fold, judge.model.classes, source.train),
        },
    )


def _probabilities(model: TopicModel, examples: Sequence[Example]) -> NDArray[np.float64]:
    return model.probabilities([example.reply for example in examples])


def _fit(counts: Any, labels: NDArray[np.int64], classes: dict[str, int]) -> LinearTopics:
    from sklearn.linear_model import LogisticRegression

    idf = idf_of(counts)
    features = weighted(counts, idf)
    # A column that no text fills keeps the weight 0, so only the others are fitted.
    filled = np.unique(features.indices)
    model = LogisticRegression(C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=1000)
    model.fit(features[:, filled], labels)
    weights = np.zeros((len(classes), features.shape[1]), dtype=np.float32)
    weights[:, filled] = model.coef_
    return LinearTopics(idf, weights, model.intercept_.astype(np.float32), classes, 0.5, {})
