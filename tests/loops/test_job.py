"""What the jobs share: pairs and prefixes, and a System that decodes."""

from __future__ import annotations

import random

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import Example
from parlai_safety.judges.verdict import scored, unscored
from parlai_safety.loops.job import System, pairs, prefixes
from parlai_safety.runs import Run


def test_a_pair_is_a_safe_and_an_unsafe_reply_to_one_context():
    contexts = [["a"], ["b"], ["c"]]
    said = [["kind", "rude"], ["kind too", "nice"], [None, "rude too"]]
    verdicts = [scored(0.1), scored(0.9), scored(0.2), scored(0.3), unscored("no reply"), scored(0.8)]
    assert pairs(contexts, said, verdicts, 0.5, random.Random(0)) == [(0, "kind", "rude")]


def test_a_safe_text_is_in_two_pairs_at_most():
    said = [["Fine.", "rude"]] * 5
    verdicts = [scored(0.1), scored(0.9)] * 5
    found = pairs([["x"]] * 5, said, verdicts, 0.5, random.Random(0))
    assert [i for i, _, _ in found] == [0, 1]


def test_the_pairs_depend_on_the_generator_alone():
    said = [["one", "two", "three", "bad", "worse", "worst"]] * 6
    verdicts = [scored(p) for p in (0.1, 0.2, 0.3, 0.7, 0.8, 0.9)] * 6
    draws = [tuple(pairs([["x"]] * 6, said, verdicts, 0.5, random.Random(seed))) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert {good for _, good, _ in draws[0]} <= {"one", "two", "three"}


def test_prefixes_are_whole_words_with_the_label_of_the_reply():
    example = Example(["Hello."], "You are a dim lamp", True, "bot", "c", "tiny")
    short = example._replace(reply="No", unsafe=False)
    found = prefixes([example, short], random.Random(3), each=4)
    assert found[0] == example and found[5:] == [short], "a reply of one word has no prefix"
    for prefix in found[1:5]:
        assert example.reply.startswith(prefix.reply + " ") and prefix.unsafe and prefix.context == example.context
    assert len({prefix.reply for prefix in found[1:5]}) > 1


def test_a_system_without_updates_is_a_way_of_decoding():
    assert System("reranker", "reranker", "safety:rerank", "base").decodes
    assert not System("CRINGE", "cringe", "safety:cringe", "base", steps=1).decodes


def test_a_stage_that_began_with_other_settings_is_refused(tmp_path):
    """A further method may join a run; one that changed may not pass for the one that was trained."""
    run = Run(tmp_path / "run", {"seed": 1})
    assert run.stage("a", lambda folder: {"x": 1}, {"steps": 3})["x"] == 1
    assert run.stage("a", lambda folder: {"x": 2}, {"steps": 3})["x"] == 1
    with pytest.raises(SafetyError, match="'.*run/a' began with other settings \\(steps differ\\)"):
        run.stage("a", lambda folder: {"x": 2}, {"steps": 4})
    with pytest.raises(KeyboardInterrupt):
        run.stage("b", interrupted, {"steps": 3})
    with pytest.raises(SafetyError, match="steps differ"):
        run.stage("b", lambda folder: {}, {"steps": 5})


def interrupted(folder):
    raise KeyboardInterrupt
