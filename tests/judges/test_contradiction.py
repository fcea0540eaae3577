"""The judge of contradictions: better than word lists on values it never saw, and what it cannot see."""

from __future__ import annotations

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges.contradiction import contradiction_examples, train_contradiction
from parlai_safety.judges.linear import train_linear
from parlai_safety.judges.quality import measure, measure_by
from parlai_safety.judges.spec import load_judge

PETS = ["Do you have a pet?", "Yes, a dog called {}.", "I had a cat called {}.", "I see.", "How is your dog?"]


@pytest.fixture(scope="module")
def judge():
    return train_contradiction(contradiction_examples("train"))


def p_unsafe(judge, reply, context):
    (verdict,) = judge.score([reply], [context], ["bot"])
    return verdict.p_unsafe


def test_it_tells_contradictions_in_families_and_values_never_seen(judge):
    found = {split: measure(judge, contradiction_examples(split)) for split in ("valid", "test")}
    assert found["valid"].auc > 0.78 and found["test"].auc > 0.78  # measured 0.820 and 0.822
    by_kind = {
        kind: quality.auc for kind, quality in measure_by(judge, contradiction_examples("test"), "source").items()
    }
    assert min(by_kind[kind] for kind in ("value", "count", "time", "relation")) > 0.8, by_kind
    assert 0.4 < by_kind["negation"] < 0.6, "other words for the same attitude are beyond it: the docstring says so"


def test_the_linear_judge_learns_nothing_here():
    with pytest.raises(SafetyError, match="better than chance"):
        train_linear(contradiction_examples("train"), seed=1)


def test_what_counts_is_who_said_it(judge):
    """The same reply and the same words in the context; only the speakers of the two names change."""
    said, heard = ([turn.format(name) for turn, name in zip(PETS, ("", *names, "", ""), strict=True)]
                   for names in (("Zeppelin", "Quorum"), ("Quorum", "Zeppelin")))  # fmt: skip
    reply = "Zeppelin is asleep on the sofa."
    assert p_unsafe(judge, reply, said) < judge.threshold < p_unsafe(judge, reply, heard)


def test_which_relative_was_meant(judge):
    context = ["Tell me.", "My sister lives in Ruritania and my brother in Laputa.", "Is your sister happy?"]
    ruritania, laputa = (p_unsafe(judge, f"She loves {place}.", context) for place in ("Ruritania", "Laputa"))
    assert ruritania + 0.1 < laputa


def test_it_is_loaded_by_its_spec_and_scores_the_same(judge, tmp_path):
    judge.save(tmp_path / "c.npz")
    loaded = load_judge(f"contradiction:{tmp_path / 'c.npz'}")
    context = ["Do you have a pet?", "A dog called Zeppelin.", "How is it?"]
    assert p_unsafe(loaded, "Quorum is well.", context) == p_unsafe(judge, "Quorum is well.", context)
    assert (loaded.fingerprint, loaded.spec) == (judge.fingerprint, judge.spec)
    assert load_judge(loaded.spec, threshold=0.7).threshold == 0.7


def test_no_context_is_no_failure(judge):
    assert 0 < p_unsafe(judge, "Hello there.", []) < 1
    assert judge.score([" "], [[]], ["bot"])[0].p_unsafe is None


def test_both_labels_are_needed():
    safe = [example for example in contradiction_examples("valid") if not example.unsafe]
    with pytest.raises(SafetyError, match="0 contradicting replies of 76"):
        train_contradiction(safe)
