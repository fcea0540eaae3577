"""Comparison and gate: pairs, what changed, and a check that does not cry wolf."""

from __future__ import annotations

import dataclasses
import random

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.compare import compare, gate, terminal_text, to_json
from parlai_safety.evaluation.results import COMPLETE, Evaluation, JudgeEntry, Record, SuiteResult

JUDGE = JudgeEntry("lamp", "a" * 64, 0.5, None)


def suite(scores, *, sha256="s", per_conversation=1):
    records = [
        Record(
            f"i{k}", 0, 1, f"c{k // per_conversation}", None, None, [p], [None if p is not None else "no"], None, None
        )
        for k, p in enumerate(scores)
    ]
    return SuiteResult(1, "replies", "T", "About.", sha256, len(scores), 1, [], {}, {}, [], records)


def evaluation(name, suites, *, judge=JUDGE, status=COMPLETE):
    return Evaluation(name, {}, status, 1, "parlai", {}, "none", [judge], [], {}, {}, suites)


def drawn(rate, n, seed):
    generator = random.Random(seed)
    return [0.9 if generator.random() < rate else 0.1 for _ in range(n)]


def test_pairs_and_changes():
    a = evaluation("a", {"x": suite([0.9, 0.9, 0.1, 0.1, None, 0.2])})
    b = evaluation("b", {"x": suite([0.9, 0.1, 0.8, 0.1, 0.9, None])})
    found = compare(a, b).suites[0]
    assert [(c.id, c.became, c.p_unsafe) for c in found.changed] == [
        ("i1", "safe", (0.9, 0.1)),
        ("i2", "unsafe", (0.1, 0.8)),
    ]
    assert found.difference.n == 4 and found.difference.value == 0.0
    assert (found.a.n, found.a.unscored, found.a.value) == (5, 1, 0.4)
    assert (found.b.n, found.b.unscored, found.b.value) == (5, 1, 0.6)
    assert (found.mcnemar.only_a, found.mcnemar.only_b, found.mcnemar.p_value) == (1, 1, 1.0)
    text = terminal_text(compare(a, b))
    assert "1 replies became unsafe, 1 became safe" in text and "unscored" in text
    assert to_json(compare(a, b))["suites"][0]["changed"][1]["became"] == "unsafe"


def test_the_direction_is_b_minus_a():
    a, b = evaluation("a", {"x": suite(drawn(0.2, 400, 1))}), evaluation("b", {"x": suite(drawn(0.5, 400, 2))})
    assert compare(a, b).suites[0].difference.value > 0.2
    assert compare(b, a).suites[0].difference.value < -0.2


def test_mcnemar_is_left_out_where_replies_share_a_conversation():
    scores = drawn(0.3, 60, 1)
    alone, together = ({"x": suite(scores, per_conversation=k)} for k in (1, 3))
    assert compare(evaluation("a", alone), evaluation("b", alone)).suites[0].mcnemar is not None
    assert compare(evaluation("a", together), evaluation("b", together)).suites[0].mcnemar is None


def test_p_values_are_corrected_over_suites():
    one = {"x": suite(drawn(0.3, 300, 1))}
    other = {"x": suite(drawn(0.4, 300, 2))}
    alone = compare(evaluation("a", one), evaluation("b", other)).suites[0].p_holm
    three = [
        evaluation(n, {**s, "y": suite(drawn(0.5, 300, 3 + k)), "z": suite(drawn(0.5, 300, 6 + k))})
        for k, (n, s) in enumerate((("a", one), ("b", other)))
    ]
    assert compare(*three).suites[0].p_holm > alone


def test_the_gate_stands_on_evidence():
    base = evaluation("base", {"x": suite(drawn(0.1, 2000, 1))})
    worse = evaluation("worse", {"x": suite(drawn(0.2, 2000, 2))})
    few = [evaluation(n, {"x": suite(drawn(r, 20, s))}) for n, r, s in (("base", 0.1, 1), ("worse", 0.25, 5))]
    failed = gate(base, worse, max_increase=0.02)
    assert not failed.passed and "rose by" in failed.reasons[0] and "2 points" in failed.reasons[0]
    assert gate(base, base, max_increase=0.0).passed
    assert gate(worse, base, max_increase=0.0).passed, "a fall is no rise"
    assert gate(base, worse, max_increase=0.2).passed, "allowed"
    unsure = gate(*few, max_increase=0.02)
    assert unsure.passed and any("likely to be missed" in note for note in unsure.notes)


def test_the_gate_fails_on_what_is_unscored():
    scores = drawn(0.1, 1000, 1)
    holes = [None if k % 20 == 0 else p for k, p in enumerate(scores)]
    base, other = evaluation("base", {"x": suite(scores)}), evaluation("holes", {"x": suite(holes)})
    failed = gate(base, other, max_increase=0.5)
    assert not failed.passed and "5.0 % of the replies of holes are unscored" in failed.reasons[0]
    assert gate(base, other, max_increase=0.5, max_unscored=0.06).passed
    nothing = evaluation("nothing", {"x": suite([None] * 1000)})
    assert not gate(base, nothing, max_increase=0.5, max_unscored=1.0).passed, "nothing scored is not safe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge": JudgeEntry("lamp", "b" * 64, 0.5, None)}, "No judge is shared"),
        ({"judge": JudgeEntry("lamp", "a" * 64, 0.6, None)}, "No judge is shared"),
        ({"status": "failed."}, "did not finish"),
        ({"suites": {"y": suite([0.1])}}, "Only suites that both have"),
        ({"suites": {"x": suite([0.1], sha256="other")}}, "other items"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    a = evaluation("a", {"x": suite([0.1])})
    b = evaluation("b", change.pop("suites", {"x": suite([0.1])}), **change)
    with pytest.raises(SafetyError, match=message):
        compare(a, b)
    with pytest.raises(SafetyError, match=message):
        gate(a, b, max_increase=0.1)


def test_shares_are_not_percentages():
    a = evaluation("a", {"x": suite([0.1])})
    with pytest.raises(SafetyError, match="--max-increase got 2"):
        gate(a, a, max_increase=2)


def test_a_judge_may_be_named_by_its_fingerprint():
    second = JudgeEntry("other", "c" * 64, 0.5, None)
    records = [Record(f"i{k}", 0, 1, f"c{k}", None, None, [0.1, 0.9], [None] * 2, None, None) for k in range(9)]
    one = dataclasses.replace(suite([0.1]), records=records)
    a, b = (dataclasses.replace(evaluation(n, {"x": one}), judges=[JUDGE, second]) for n in "ab")
    assert compare(a, b).judge is JUDGE
    assert compare(a, b, judge="cccc").suites[0].a.value == 1.0
    with pytest.raises(SafetyError, match="No judge 'nobody' is shared"):
        compare(a, b, judge="nobody")


def test_the_gate_fails_where_the_candidate_left_a_suite_out():
    base = evaluation("base", {"x": suite(drawn(0.1, 200, 1)), "y": suite(drawn(0.1, 200, 2))})
    some = evaluation("some", {"x": suite(drawn(0.1, 200, 1))})
    failed = gate(base, some, max_increase=0.5)
    assert not failed.passed and failed.reasons == [
        "y: the candidate was not evaluated on it (--suite names what to check)."
    ]
    assert gate(base, some, max_increase=0.5, suites=["x"]).passed
    assert gate(some, base, max_increase=0.5).passed, "the candidate may have more"


def test_the_baselines_unscored_replies_count_too():
    holes = evaluation("holes", {"x": suite([None if k % 10 == 0 else 0.1 for k in range(500)])})
    whole = evaluation("whole", {"x": suite([0.1] * 500)})
    assert not gate(holes, whole, max_increase=0.5).passed


def test_the_gate_corrects_for_the_number_of_suites():
    """One suite rises with a p between 1 and 5 %; alone it fails the gate, among five it does not."""
    base = [0.9 if k < 90 else 0.1 for k in range(300)]
    risen = [0.9 if 27 <= k < 135 else 0.1 for k in range(300)]  # 45 became unsafe, 27 safe
    p = gate(evaluation("a", {"x": suite(base)}), evaluation("b", {"x": suite(risen)}), max_increase=0.0)
    assert 0.01 < p.p_above["x"] < 0.05 and not p.passed
    still = {name: suite(drawn(0.3, 300, 20 + k)) for k, name in enumerate("uvwy")}
    many = gate(
        evaluation("a", {"x": suite(base), **still}), evaluation("b", {"x": suite(risen), **still}), max_increase=0.0
    )
    assert many.passed and many.p_above["x"] > 0.05


def test_judges_may_stand_in_another_order():
    other = JudgeEntry("other", "c" * 64, 0.5, None)

    def both(order, scores):
        records = [Record(f"i{k}", 0, 1, f"c{k}", None, None, scores, [None] * 2, None, None) for k in range(9)]
        return dataclasses.replace(
            evaluation("e", {"x": dataclasses.replace(suite([0.1]), records=records)}), judges=order
        )

    found = compare(both([JUDGE, other], [0.1, 0.9]), both([other, JUDGE], [0.9, 0.1]))
    assert found.judge is JUDGE and found.suites[0].b.value == 0.0 and not found.suites[0].changed


def test_a_score_at_the_threshold_is_unsafe():
    a, b = evaluation("a", {"x": suite([0.5] * 8)}), evaluation("b", {"x": suite([0.4] * 8)})
    assert compare(a, b).suites[0].a.value == 1.0
