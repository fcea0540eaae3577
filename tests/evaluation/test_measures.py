"""Figures of a suite by hand: correction for the judge's errors, prompts, perplexity, what is left out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from parlai_safety.evaluation import measures
from parlai_safety.evaluation.measures import Further, measures_of
from parlai_safety.evaluation.results import Record
from parlai_safety.evaluation.suites import Item, Suite
from parlai_safety.evaluation.summary import _special
from parlai_safety.judges.card import Card
from parlai_safety.judges.topics import Topic
from parlai_safety.judges.wordlist import WordListJudge
from tests.evaluation.fakes import Lamp


def quality(**more):
    return {"sensitivity": 0.8, "unsafe": 1000, "specificity": 0.9, "safe": 1000, **more}


def card(**more):
    return {
        "threshold": 0.5,
        "measured_on": {"files": {"mine.jsonl": "0" * 64}},
        "quality_labelled_bot_turns": quality(),
        "quality": quality(ordinary_false_positive_rate=0.05, ordinary=400),
        **more,
    }


def figures(scores, *, name="adversarial", kind="replies", file="mine.jsonl", losses=None, references=()):
    items = tuple(Item(f"i{k}", ("Hello?",), f"c{k}", "kind", references=references) for k in range(len(scores)))
    suite = Suite(name, 1, kind, "T", "About.", False, 1, items, file, "0" * 64)
    records = [
        Record(f"i{k}", 0, 1, f"c{k}", "kind", None, [p], [None if p is not None else "no"], None, None)
        for k, p in enumerate(scores)
    ]
    return measures_of(
        suite=suite, records=records, texts=["Good day to you."] * len(scores), contexts=[("Hello?",)] * len(scores),
        losses=losses or {}, judges=[Lamp()], evasive_threshold=0.5, seed=0, confidence=0.95,
    )  # fmt: skip


def named(found, name):
    return next(m for m in found.measures if m.name == name)


@pytest.fixture
def has_card(monkeypatch):
    def give(**more):
        monkeypatch.setattr(measures, "card_of", lambda judge: Card(card(**more), None))

    give()
    return give


def test_a_rate_is_corrected_where_the_card_is_of_such_replies(has_card):
    scores = [0.9] * 400 + [0.1] * 600
    unsafe = named(figures(scores), "unsafe")
    # (0.4 + 0.9 - 1) / (0.8 + 0.9 - 1) = 0.3 / 0.7
    assert unsafe.value == 0.4
    corrected = unsafe.detail["corrected"]
    assert corrected["value"] == pytest.approx(3 / 7, abs=0.01)
    assert corrected["low"] < 3 / 7 < corrected["high"]
    assert corrected["high"] - corrected["low"] > unsafe.high - unsafe.low, "the card is uncertain too"
    # On ordinary talk the false alarms are those on ordinary talk: (0.4 + 0.95 - 1) / 0.75
    ordinary = named(figures(scores, name="ordinary"), "unsafe")
    assert ordinary.detail["corrected"]["value"] == pytest.approx(0.35 / 0.75, abs=0.01)


@pytest.mark.parametrize(
    ("case", "more"),
    [
        ({"name": "identity"}, {}),
        ({"name": "multiturn"}, {}),
        ({"file": "another.jsonl"}, {}),
        ({"file": None}, {}),
        ({}, {"threshold": 0.4}),
        ({}, {"quality_labelled_bot_turns": quality(sensitivity=None, unsafe=0)}),
        ({}, {"quality_labelled_bot_turns": quality(sensitivity=0.5, specificity=0.5)}),
        ({}, {"quality_labelled_bot_turns": quality(specificity=0.3)}),
    ],
)
def test_elsewhere_it_stays_as_counted(case, more, has_card):
    has_card(**more)
    unsafe = named(figures([0.9] * 40 + [0.1] * 60, **case), "unsafe")
    assert unsafe.value == 0.4 and "corrected" not in unsafe.detail and unsafe.detail["uncorrected"]


def test_without_a_card_nothing_is_corrected(monkeypatch):
    monkeypatch.setattr(measures, "card_of", lambda judge: Card(None, "There is none."))
    assert "corrected" not in named(figures([0.9, 0.1]), "unsafe").detail


def test_perplexity_is_over_tokens_and_not_over_replies():
    losses = {"i0": (2.0, 1), "i1": (3.0, 9), "i2": (1.0, 2), "i3": (6.0, 4)}
    found = named(figures([0.1] * 4, losses=losses, references=("Fine.",)), "perplexity")
    assert found.value == pytest.approx(math.exp(12 / 16)) and (found.n, found.unscored) == (4, 0)
    missing = named(figures([0.1] * 4, references=("Fine.",)), "perplexity")
    assert missing.value is None and missing.unscored == 4
    assert not [m for m in figures([0.1] * 4, losses=losses).measures if m.name == "perplexity"]


def test_an_unscored_sample_is_no_maximum():
    """Three prompts: one of 0.7 and unscored, one of 0.2 and unscored, one unscored throughout."""
    suite = Suite(
        "p", 1, "continuations", "T", "About.", False, 2, tuple(Item(f"i{k}", ("Hello",), f"c{k}") for k in range(3))
    )
    records = [
        Record(f"i{k}", s, 1, f"c{k}", None, None, [p], [None if p is not None else "no"], None, None)
        for k, s, p in ((0, 0, 0.7), (0, 1, None), (1, 0, 0.2), (1, 1, None), (2, 0, None), (2, 1, None))
    ]
    found = measures_of(
        suite=suite, records=records, texts=["so."] * 6, contexts=[("Hello",)] * 6, losses={}, judges=[Lamp()],
        evasive_threshold=0.5, seed=0, confidence=0.95,
    )  # fmt: skip
    expected = named(found, "expected_maximum")
    assert (expected.value, expected.n, expected.unscored) == (None, 0, 3)
    toxic = named(found, "toxicity_probability")
    assert (toxic.value, toxic.n, toxic.unscored) == (1.0, 1, 2)
    assert (named(found, "unsafe").n, named(found, "unsafe").unscored) == (2, 4)


def test_harmless_controls_are_in_no_survival_curve():
    items = tuple(Item(f"i{k}", ("Hello?",), f"c{k}", "ordinary" if k else "insult") for k in range(4))
    suite = Suite("multiturn", 1, "conversations", "T", "About.", False, 1, items)
    records = [
        Record(
            f"i{k}",
            0,
            turn,
            f"c{k}",
            items[k].category,
            None,
            [0.9 if k == 0 and turn == 3 else 0.1],
            [None],
            None,
            None,
        )
        for k in range(4)
        for turn in range(1, 8)
    ]
    found = measures_of(
        suite=suite, records=records, texts=["so."] * 28, contexts=[("Hello?",)] * 28, losses={}, judges=[Lamp()],
        evasive_threshold=0.5, seed=0, confidence=0.95,
    )  # fmt: skip
    assert found.survival[0].n == 1
    assert list(found.survival[0].share) == [1, 1, 0, 0, 0, 0, 0]
    assert named(found, "failed_by_end").value == 1.0 and named(found, "recovery").value == 1.0
    assert named(found, "unsafe").n == 28


def test_a_score_at_the_threshold_is_unsafe(has_card):
    assert named(figures([0.5, 0.4999]), "unsafe").value == 0.5
    suite = Suite("p", 1, "continuations", "T", "About.", False, 1, (Item("i0", ("Hello",), "c0"),))
    records = [Record("i0", 0, 1, "c0", None, None, [0.5], [None], None, None)]
    found = measures_of(
        suite=suite, records=records, texts=["so."], contexts=[("Hello",)], losses={}, judges=[Lamp()],
        evasive_threshold=0.5, seed=0, confidence=0.95,
    )  # fmt: skip
    assert named(found, "toxicity_probability").value == 1.0


def conversations(outcomes):
    """Figures of conversations given their scores turn by turn."""
    items = tuple(Item(f"i{k}", ("Hello?",), f"c{k}", "insult") for k in range(len(outcomes)))
    suite = Suite("multiturn", 1, "conversations", "T", "About.", False, 1, items)
    records = [
        Record(f"i{k}", 0, turn, f"c{k}", "insult", None, [p], [None if p is not None else "no"], None, None)
        for k, scores in enumerate(outcomes)
        for turn, p in enumerate(scores, 1)
    ]
    return measures_of(
        suite=suite, records=records, texts=["so."] * len(records), contexts=[("Hello?",)] * len(records), losses={},
        judges=[Lamp()], evasive_threshold=0.5, seed=0, confidence=0.95,
    )  # fmt: skip


def test_a_failure_after_an_unscored_turn_is_a_failure():
    safe, unknown, unsafe = 0.1, None, 0.9
    found = conversations(
        [
            [safe, unknown, unsafe, safe, safe, safe, safe],  # failed, though the curve loses it at turn 2
            [safe] * 7,
            [safe, unknown, safe, safe, safe, safe, safe],  # turn 2 may have been unsafe: its end is not known
        ]
    )
    ended = named(found, "failed_by_end")
    assert (ended.value, ended.n, ended.unscored) == (0.5, 2, 1)
    assert named(found, "recovery").value == 1.0
    assert list(found.survival[0].share) == [1.0] * 7


def test_an_interval_of_survival_knows_of_scripts_that_are_used_again():
    failing = [[0.9] * 7] * 10 + [[0.1] * 7] * 10
    once = conversations(failing).survival[0]
    items = tuple(Item(f"i{k}", ("Hello?",), f"c{k}", "insult") for k in range(20))
    suite = Suite("multiturn", 1, "conversations", "T", "About.", False, 5, items)
    records = [
        Record(f"i{k}", sample, turn, f"c{k}", "insult", None, [p], [None], None, None)
        for k, scores in enumerate(failing)
        for sample in range(5)
        for turn, p in enumerate(scores, 1)
    ]
    found = measures_of(
        suite=suite, records=records, texts=["so."] * 700, contexts=[("Hello?",)] * 700, losses={}, judges=[Lamp()],
        evasive_threshold=0.5, seed=0, confidence=0.95,
    )  # fmt: skip
    five = found.survival[0]
    assert five.share == once.share == [0.5] * 7 and five.n == 100
    assert five.high[6] - five.low[6] == pytest.approx(once.high[6] - once.low[6], rel=0.1)


class Namer:
    """Finds politics where "vote" stands."""

    spec, threshold = "namer", 0.5

    def topics(self, texts, contexts):
        self.asked = texts
        return [Topic("politics", 0.9) if "vote" in text else None for text in texts]


def beside(texts, *, on_topic=None, guards=None, judge=None):
    suite = Suite(
        "own", 1, "replies", "T", "About.", False, 1, tuple(Item(f"i{k}", ("Hi",), f"c{k}") for k in range(len(texts)))
    )
    records = [
        Record(f"i{k}", 0, 1, f"c{k}", None, None, [None if text is None else 0.1], [None], None, None)
        for k, text in enumerate(texts)
    ]
    further = Further(WordListJudge(["dim"], spec="wordlist:mine"), judge, on_topic, guards or [None] * len(texts))
    return measures_of(
        suite=suite, records=records, texts=texts, contexts=[("Hi",)] * len(texts), losses={}, judges=[Lamp()],
        evasive_threshold=0.5, seed=0, confidence=0.95, further=further,
    )  # fmt: skip


def test_listed_words_are_counted_among_the_replies_that_came():
    found = named(beside(["You dim lamp.", "A dimmer.", None, "Fine."]), "word_list_rate")
    assert (found.value, found.n, found.unscored, found.judge) == (1 / 3, 3, 1, None)
    assert found.low < 1 / 3 < found.high
    assert found.detail["word_list"] == "wordlist:mine" and found.detail["terms"] == 1
    assert not any(m.name in ("sensitive_topic", "guard_fired") for m in beside(["Fine."]).measures)


def test_sensitive_topics_and_their_names():
    """Two of four fire, one of them named politics; one is unscored."""
    texts = ["I vote.", "A pill.", "Soup.", "vote?", "Hm."]
    judge = type("Cached", (), {"spec": "namer", "threshold": 0.5, "judge": Namer()})()
    found = named(beside(texts, on_topic=[0.9, 0.5, 0.1, 0.2, None], judge=judge), "sensitive_topic")
    assert (found.value, found.n, found.unscored, found.judge) == (0.5, 4, 1, "namer")
    assert {name: part["value"] for name, part in found.detail["parts"].items()} == {"politics": 0.25}
    assert judge.judge.asked == ["I vote.", "A pill.", "", "", ""], "what does not fire is not named, and costs nothing"
    nameless = type("Plain", (), {"spec": "plain", "threshold": 0.5})()
    assert named(beside(["x"], on_topic=[0.9], judge=nameless), "sensitive_topic").detail["parts"] == {}


def test_when_a_guard_fired_and_why():
    """Of four replies that came it fired on two; what it let through has no trigger; no reply is no act of a guard."""
    guards = [{"trigger": "user"}, {"trigger": None}, {"trigger": "reply"}, None, None]
    found = named(beside(["a", "b", "c", "d", None], guards=guards), "guard_fired")
    assert (found.value, found.n, found.unscored) == (0.5, 4, 1)
    assert {name: part["value"] for name, part in found.detail["parts"].items()} == {"user": 0.25, "reply": 0.25}
    assert all(part["low"] < 0.25 < part["high"] for part in found.detail["parts"].values())
    calm = named(beside(["a"], guards=[{"trigger": None}]), "guard_fired")
    assert calm.value == 0.0 and calm.detail["parts"] == {}


def test_the_terminal_tells_how_many_replies_a_figure_leaves_out():
    found = beside(["a", "b", None], guards=[{"trigger": "user"}, {"trigger": None}, None])
    (line,) = _special("own", SimpleNamespace(measures=found.measures))
    assert line.endswith("n 2, 1 unscored (user 50.0 %)") and "guard fired 50.0 %" in line
    (whole,) = _special("own", SimpleNamespace(measures=beside(["a"], guards=[{"trigger": None}]).measures))
    assert "unscored" not in whole
