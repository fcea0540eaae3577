from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from parlai_safety.corpus.identity import load_identity
from parlai_safety.judges.probes import identity_contexts, identity_examples, largest_gap, measure_groups
from parlai_safety.judges.verdict import Speaker, Verdict, scored, unscored
from parlai_safety.judges.wordlist import WordListJudge


class Prejudiced:
    """Flags whatever names a group, and cannot score one template."""

    spec, threshold, fingerprint = "prejudiced", 0.5, "0" * 64

    def __init__(self, word: str, unscorable: str = "\0") -> None:
        self.word, self.unscorable = word, unscorable

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        return [
            unscored("told so") if self.unscorable in reply else scored(0.9 if self.word in reply else 0.2)
            for reply in replies
        ]


def test_every_template_meets_every_group_once_and_no_place_is_left_open() -> None:
    identity = load_identity()
    assert (len(identity.groups), len(identity.questions)) == (44, 12)
    assert [sum(t.unsafe == unsafe for t in identity.templates) for unsafe in (False, True)] == [25, 8]
    probes, questions = identity_examples(), identity_contexts()
    assert len(probes) == 44 * 33 and len({p.example.reply for p in probes}) == len(probes)
    assert len(questions) == 44 * 12 and len({q.id for q in questions}) == len({q.text for q in questions}) == 528
    texts = [text for p in probes for text in (*p.example.context, p.example.reply)] + [q.text for q in questions]
    for text in texts:
        assert not re.search(r"[{}]", text)
        assert text[0].isupper() and text[-1] in ".?!"
        assert not re.search(r"\ba [aeioAEIO]|\ban [^aeioAEIO]|  ", text), text


def test_rude_sentences_are_rude_to_the_listener() -> None:
    for template in load_identity().templates:
        if template.unsafe:
            assert re.search(r"\byou\b", template.text, re.IGNORECASE), template.text


def test_a_prejudiced_judge_is_found_out_and_a_fair_one_is_not() -> None:
    found = measure_groups(Prejudiced("Sikh"))
    kind = found.gaps["kind"]
    assert kind is not None and (kind["highest"], kind["difference"], kind["groups"]) == ("Sikh", 1.0, 44)
    assert kind["p"] < 0.001 and kind["by_chance_95"] < 0.5
    assert found.by_group["Sikh"]["specificity"] == 0.0 and found.by_group["baker"]["specificity"] == 1.0
    assert found.by_group["Sikh"]["mean_p_unsafe_of_kind"] == pytest.approx(0.9)
    assert found.by_group["Sikh"]["axis"] == "religion"
    fair = measure_groups(WordListJudge(["fool", "idiot", "park"]))
    for gap in fair.gaps.values():
        assert gap is not None and (gap["difference"], gap["p"]) == (0.0, 1.0)
    assert fair.by_group["Sikh"]["specificity"] == 24 / 25


def test_a_template_with_an_unscored_sentence_is_compared_for_no_group() -> None:
    found = measure_groups(Prejudiced("Sikh", "friendly letter by a Sikh"))
    kind = found.gaps["kind"]
    assert kind is not None and kind["templates"] == 24
    assert found.by_group["Sikh"]["unscored"] == 1 and found.by_group["baker"]["unscored"] == 0


def test_the_gap_by_hand() -> None:
    """Four templates; a is flagged in all, b in one, c in two: a over b, 1 - 1/4."""
    flagged = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 1], [1, 0, 0]], dtype=bool)
    gap = largest_gap(flagged, ["a", "b", "c"], 1)
    assert gap is not None
    assert (gap.highest, gap.lowest, gap.difference) == ("a", "b", 0.75)
    assert gap.low <= 0.75 <= gap.high == 1.0
    assert largest_gap(flagged, ["a", "b", "c"], 1) == gap
    assert largest_gap(flagged[:1], ["a", "b", "c"], 1) is None
    assert largest_gap(flagged[:, :1], ["a"], 1) is None


def test_chance_gaps_are_rarely_significant() -> None:
    """Where groups do not differ, p is below 0.05 in about one table of twenty, and the largest gap is still large."""
    generator = np.random.default_rng(3)
    found = [largest_gap(generator.random((25, 44)) < 0.2, [str(i) for i in range(44)], i) for i in range(20)]
    assert sum(gap is not None and gap.p < 0.05 for gap in found) <= 4
    assert min(gap.difference for gap in found if gap is not None) > 0.2
