"""The judge of sensitive topics: what it says, what it names, which topics it watches, its file, its training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.card import card_of, write_card
from parlai_safety.judges.card_table import card_text
from parlai_safety.judges.data import Example, among, folds, is_ordinary
from parlai_safety.judges.topic_training import (
    CLASSES,
    FOLDS,
    TopicData,
    _fit,
    real_topic_examples,
    shipped_topic_examples,
    topic_card,
    topic_data,
    topic_figures,
    topic_file_examples,
    topic_of,
    train_topics,
)
from parlai_safety.judges.topics import LinearTopics, Topic, TopicJudge, counted, load_spec

SOME = ("drugs", "politics", "none")


class Fixed:
    """Says of "a", "b", ... what the rows hold, and falls over "bad"."""

    classes = {"none": 0, "drugs": 1, "politics": 2}
    fingerprint, facts = "0" * 64, None
    rows = {"a": (0.5, 0.2, 0.3), "b": (0.1, 0.6, 0.3), "c": (0.9, 0.05, 0.05)}

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self.rows[text] for text in texts])


def of(examples: Sequence[Example]) -> list[Example]:
    return [e for e in examples if topic_of(e) in SOME]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TopicData, NDArray[np.float64]]:
    """A classifier of two topics, its file and what it was trained and measured on."""
    data = TopicData("some", {}, of(shipped_topic_examples("train"))[::2], of(shipped_topic_examples("test")))
    trained = train_topics(data.train, seed=1, false_alarms=0.1)
    path = tmp_path_factory.mktemp("topics") / "topics.npz"
    trained.model.save(path)
    return str(path), data, trained.out_of_fold


def test_scores_and_names_by_hand() -> None:
    """a: 0.2 + 0.3 = 0.5 reaches 0.5, and politics is the likelier; c: 0.1 does not, P(none) = 0.9."""
    judge = TopicJudge(Fixed())
    assert [v.p_unsafe for v in judge.score(["a", "b", "c"], [[]] * 3, ["bot"] * 3)] == pytest.approx([0.5, 0.9, 0.1])
    assert judge.topics(["a", "b"], [[], ["x"]]) == [Topic("politics", 0.3), Topic("drugs", 0.6)]
    assert judge.topics(["c"], [[]])[0] == ("none", pytest.approx(0.9))


def test_some_topics_can_be_watched() -> None:
    judge = TopicJudge(Fixed(), watched=["politics"], threshold=0.3)
    assert [v.p_unsafe for v in judge.score(["a", "b", "c"], [[]] * 3, ["bot"] * 3)] == pytest.approx([0.3, 0.3, 0.05])
    assert [t and t.name for t in judge.topics(["a", "b", "c"], [[]] * 3)] == ["politics", "politics", "none"]
    assert judge.fingerprint != TopicJudge(Fixed()).fingerprint
    same = TopicJudge(Fixed(), watched=["politics", "drugs"])
    assert same.fingerprint == TopicJudge(Fixed(), threshold=0.9).fingerprint, "in any order, at any threshold"


def test_what_cannot_be_scored_has_no_topic() -> None:
    judge = TopicJudge(Fixed())
    assert judge.topics(["b", "bad", " "], [[]] * 3) == [Topic("drugs", 0.6), None, None]
    verdicts = judge.score(["b", "bad", " "], [[]] * 3, ["bot"] * 3)
    assert [v.p_unsafe is None for v in verdicts] == [False, True, True]


@pytest.mark.parametrize("watched", [["weather"], ["none"], []])
def test_only_topics_can_be_watched(watched: list[str]) -> None:
    with pytest.raises(SafetyError, match="drugs, politics"):
        TopicJudge(Fixed(), watched=watched)


def test_a_saved_classifier_is_the_same_judge(saved: tuple[str, TopicData, NDArray[np.float64]]) -> None:
    path, data, _ = saved
    judge, some = load_judge(f"topics:{path}"), load_judge(f"topics:{path}#drugs")
    assert isinstance(judge, TopicJudge) and isinstance(some, TopicJudge)
    assert judge.watched == ["drugs", "politics"] and some.watched == ["drugs"]
    assert judge.threshold == some.threshold == LinearTopics.load(path).threshold
    assert load_judge(f"topics:{path}#drugs:politics").fingerprint == judge.fingerprint != some.fingerprint
    texts = ["Who won the election?", "Is cannabis legal?"]
    named = judge.topics(texts, [[], []])
    assert [topic and topic.name for topic in named] == ["politics", "drugs"]
    assert [t and t.name for t in some.topics(texts, [[], []])] == ["none", "drugs"]
    rows = judge.model.probabilities([e.reply for e in data.held_out])
    assert rows.shape == (len(data.held_out), 3) and np.allclose(rows.sum(axis=1), 1)
    assert judge.model.probabilities([]).shape == (0, 3)
    with pytest.raises(SafetyError, match="Did you mean 'politics'"):
        load_judge(f"topics:{path}#politic")
    with pytest.raises(SafetyError, match="safety_topics"):
        load_judge("topics:nowhere.npz")


def test_it_finds_topics_in_new_sentences_and_few_in_ordinary_talk(
    saved: tuple[str, TopicData, NDArray[np.float64]],
) -> None:
    path, data, out_of_fold = saved
    judge = load_spec(path, None, None)
    figures = topic_figures(
        judge.model.probabilities([e.reply for e in data.held_out]), judge.model.classes, data.held_out
    )
    assert figures["macro_f1"] > 0.6 and sum(sum(row.values()) for row in figures["confusion"].values()) == figures["n"]
    on_topic = [e.reply for e in data.held_out if not is_ordinary(e)]
    fired = [
        v.p_unsafe is not None and v.p_unsafe >= judge.threshold
        for v in judge.score(on_topic, [[]] * len(on_topic), ["bot"] * len(on_topic))
    ]
    assert sum(fired) > 0.8 * len(fired)
    ordinary = [row for row, e in zip(out_of_fold, data.train, strict=True) if is_ordinary(e)]
    alarms = sum(1 - row[judge.model.classes["none"]] >= judge.threshold for row in ordinary)
    assert alarms <= 0.1 * len(ordinary) < alarms + 2, "the lowest threshold that keeps to the rate"
    fold_of = np.array(folds(data.train, FOLDS, 1))
    texts, labels = [e.reply for e in data.train], np.array([judge.model.classes[topic_of(e)] for e in data.train])
    counts, inside = counted(texts), fold_of != 0
    fit = _fit(counts.rows(inside), labels[inside], judge.model.classes)
    expected = fit.probabilities([text for text, there in zip(texts, inside, strict=True) if not there])
    assert np.allclose(out_of_fold[~inside], expected, atol=1e-6), "by a classifier that has not seen the conversation"


def test_its_card_leaves_out_what_it_was_trained_on(
    saved: tuple[str, TopicData, NDArray[np.float64]], tmp_path: Path
) -> None:
    path, data, out_of_fold = saved
    judge = load_spec(path, None, None)
    assert all(among(data.train, judge.facts["training_conversations"]))  # type: ignore[index]
    mixed = data._replace(held_out=[*data.held_out, *data.train[:7]])
    card = topic_card(judge, mixed, out_of_fold)
    assert card["measured_on"]["left_out_as_seen_in_training"] == 7
    assert set(card["topics"]["by_class"]) == set(SOME) and card["topics_cross_validated"]["n"] == len(data.train)
    assert "training_conversations" not in card["trained_on"]
    text = card_text(card)
    assert "held out: is, is called" in text and "mean F1" in text
    write_card(card, f"{path}.card.json")
    assert card_of(load_spec(path, None, None)).card == json.loads(json.dumps(card))
    assert "another judge" in str(card_of(load_spec(f"{path}#drugs", None, None)).why_not), "it fires on less"


def test_the_figures_of_a_confusion_by_hand() -> None:
    """Two drugs texts, one found; one "none" called drugs: precision 1/2, recall 1/2, F1 1/2. None: 1 of 2, F1 1/2."""
    examples = [
        Example([], t, s != "ordinary:x", "human", t, s)
        for t, s in (("p", "drugs"), ("q", "drugs"), ("r", "ordinary:x"), ("s", "ordinary:x"))
    ]
    rows = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = topic_figures(rows, {"drugs": 0, "none": 1}, examples)
    assert found["by_class"]["drugs"] | {"f1_interval": None} == {
        "n": 2,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "f1_interval": None,
    }
    assert found["accuracy"] == found["macro_f1"] == 0.5
    assert found["confusion"] == {"drugs": {"drugs": 1, "none": 1}, "none": {"drugs": 1, "none": 1}}


def test_real_sentences_keep_their_conversations(tmp_path: Path) -> None:
    """Rows of one topic that follow each other are one conversation; ParlAI's form is read too."""
    rows = [("a", "drugs"), ("b", "drugs"), ("c", "politics"), ("d", "drugs")]
    ours, parlai = tmp_path / "ours.jsonl", tmp_path / "data_valid.jsonl"
    ours.write_text("".join(json.dumps({"text": t, "topic": s}) + "\n" for t, s in rows))
    parlai.write_text("".join(json.dumps({"text": t, "labels": [s], "episode_done": True}) + "\n" for t, s in rows))
    assert [e.conversation for e in topic_file_examples(ours)] == ["a", "a", "c", "d"]
    assert topic_file_examples(parlai) == topic_file_examples(ours)
    again = tmp_path / "again.jsonl"
    rows += [("e", "politics"), ("A ", "drugs"), ("f", "drugs"), ("g", "drugs")]
    again.write_text("".join(json.dumps({"text": t, "topic": s}) + "\n" for t, s in rows))
    found = [e.conversation for e in topic_file_examples(again)]
    assert found[4:] == ["e", "a", "A ", "A "], "a text that comes again stays on the side of the first one"
    both = real_topic_examples(ours, seed=1)
    assert {topic_of(e) for e in both} == {"drugs", "politics", "none"}, (
        "ordinary talk that ships, where there is no other"
    )
    data = topic_data(tmp_path, seed=1)
    assert not {e.conversation for e in data.train} & {e.conversation for e in data.held_out}
    assert list(data.files) == ["data_valid.jsonl"]
    ours.write_text('{"text": "a", "topic": "drug"}\n')
    with pytest.raises(SafetyError, match="Did you mean 'drugs'"):
        topic_file_examples(ours)
    with pytest.raises(SafetyError, match="neither sensitive_topics"):
        topic_data(tmp_path / "empty", seed=1)


def test_a_topic_with_too_few_conversations() -> None:
    few = [Example([], f"t{i}", True, "human", "one", "drugs") for i in range(9)]
    talk = [Example([], f"o{i}", False, "human", f"o{i}", "ordinary:x") for i in range(9)]
    with pytest.raises(SafetyError, match="'drugs' has 1 conversations"):
        train_topics(few + talk, seed=1)
    with pytest.raises(SafetyError, match="beside 0 further classes"):
        train_topics([e._replace(conversation=e.reply) for e in few], seed=1)


def test_a_file_of_other_classes_is_damaged(saved: tuple[str, TopicData, NDArray[np.float64]], tmp_path: Path) -> None:
    model = LinearTopics.load(saved[0])
    model.classes = {"drugs": 0, "none": 1}
    model.save(tmp_path / "odd.npz")
    with pytest.raises(SafetyError, match="2 classes and 3 intercepts"):
        LinearTopics.load(tmp_path / "odd.npz")


def test_the_classes_are_those_of_the_task() -> None:
    assert {topic_of(e) for e in shipped_topic_examples("valid")} == set(CLASSES)
