import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.textmetrics import (
    CommonReply,
    canned_rate,
    copied_share,
    distinct_n,
    f1,
    has_loop,
    loop_rate,
    mean_length,
    normalise,
)

WORDS = st.text(alphabet="anthe x.'T-\n", max_size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  CAT, a dog\tand\nAN owl!", "cat dog and owl"),
        ("don't", "don t"),
        ("a-an-the", ""),
        ("theatre another", "theatre another"),
        ("...", ""),
        ("don’t", "don’t"),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_f1_by_hand():
    # reply: my cat sat down (4); reference: cat sat (2); 2 in common; precision 1/2, recall 1, F1 = 2/3
    assert f1("My cat sat down.", ["the cat sat"]) == pytest.approx(2 / 3)
    # repeated tokens count as often as both have them: 1 in common, precision 1/3, recall 1/2, F1 = 2/5
    assert f1("no no no", ["no way"]) == pytest.approx(2 / 5)
    assert f1("yes", ["no"]) == 0.0
    assert f1("", ["no"]) == 0.0


def test_f1_takes_the_best_reference():
    assert f1("my cat", ["a dog", "the cat", "my cat"]) == 1.0
    assert f1("my cat", ["a dog", "the cat"]) == pytest.approx(2 / 3)


def test_f1_needs_references():
    with pytest.raises(SafetyError, match="without a reference"):
        f1("hello", [])
    with pytest.raises(TypeError, match="not one string"):
        f1("hello", "hello")


@settings(deadline=None)  # the first call imports ParlAI
@example("A cat's the_pyjamas", "the CAT s pyjamas!")
@given(WORDS, WORDS)
def test_f1_and_normalise_agree_with_parlai(reply, reference):
    metrics = pytest.importorskip("parlai.core.metrics")
    assert normalise(reply) == metrics.normalize_answer(reply)
    assert f1(reply, [reference, "x"]) == pytest.approx(metrics.F1Metric.compute(reply, [reference, "x"]).value())


def test_distinct_n_by_hand():
    # unigrams: the cat the dog | the cat -> 3 distinct of 6; bigrams: the-cat cat-the the-dog | the-cat -> 3 of 4
    replies = ["The cat, the dog.", "the cat"]
    assert distinct_n(replies, 1) == pytest.approx(3 / 6)
    assert distinct_n(replies, 2) == pytest.approx(3 / 4)
    assert distinct_n(replies, 4) == 1.0


def test_distinct_n_without_ngrams_is_unknown():
    assert distinct_n([], 1) is None
    assert distinct_n(["one", "", "two"], 2) is None
    with pytest.raises(SafetyError, match="at least one token"):
        distinct_n(["one"], 0)


@pytest.mark.parametrize(
    "reply",
    [
        "no no no",
        "well, the the THE",
        "i like, i like, i like it",
        "so you see that you see that you see that",
        "x one two three four one two three four one two three four",
    ],
)
def test_loops(reply):
    assert has_loop(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "no no",
        "no, yes, no, yes, no",
        "i like, i like it, i like",
        "one two three four five one two three four five one two three four five",
        "!!! !!! !!!",
    ],
)
def test_no_loops(reply):
    assert not has_loop(reply)


@given(st.lists(st.sampled_from("abc"), max_size=14))
def test_has_loop_agrees_with_the_definition(tokens):
    by_definition = any(
        tokens[start : start + size] * 3 == tokens[start : start + 3 * size]
        for size in range(1, 5)
        for start in range(len(tokens) - 3 * size + 1)
    )
    assert has_loop(" ".join(tokens)) == by_definition


def test_canned_rate_by_hand():
    replies = ["I don't know.", "i don t know", "The I DON'T KNOW!", "ha ha ha", "hello", "hello", "bye"]
    result = canned_rate(replies)
    assert (result.canned, result.looped, result.n) == (3, 1, 7)
    assert result.rate == pytest.approx(4 / 7)
    assert result.most_common == (
        CommonReply("i don t know", 3),
        CommonReply("hello", 2),
        CommonReply("bye", 1),
        CommonReply("ha ha ha", 1),
    )


def test_a_reply_both_canned_and_looping_counts_once():
    result = canned_rate(["no no no"] * 3 + ["yes"])
    assert (result.canned, result.looped) == (3, 3)
    assert result.rate == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("n", "times", "canned"), [(300, 2, 0), (300, 3, 3), (301, 3, 0), (301, 4, 4), (500, 4, 0), (500, 5, 5)]
)
def test_canned_threshold_is_one_percent_rounded_up_and_at_least_three(n, times, canned):
    assert canned_rate(["same"] * times + [f"other {i}" for i in range(n - times)]).canned == canned


def test_canned_rate_of_nothing_is_unknown():
    assert canned_rate([]) == (None, 0, 0, 0, ())
    assert canned_rate(["", "", ""]).rate == 1.0


def test_copied_share_by_hand():
    # 4-grams: my-cat-sat-on, cat-sat-on-the, sat-on-the-mat, on-the-mat-today; the context has the second and the third
    assert copied_share("My cat sat on the mat today.", ["Your CAT sat, on the mat!"]) == pytest.approx(2 / 4)
    assert copied_share("your cat sat on", ["Your cat sat on the mat"]) == 1.0
    assert copied_share("on sat cat your", ["Your cat sat on the mat"]) == 0.0


def test_copied_share_does_not_cross_turns_and_looks_at_all_of_them():
    assert copied_share("one two three four", ["one two", "three four"]) == 0.0
    assert copied_share("one two three four", ["one two three four five", "six"]) == 1.0
    assert copied_share("one two three four", []) == 0.0


def test_a_repeated_sequence_counts_each_time():
    # a-b-c-d, b-c-d-a, c-d-a-b, d-a-b-c, a-b-c-d: the first and the last are copied
    assert copied_share("a b c d a b c d", ["a b c d"]) == pytest.approx(2 / 5)


def test_copied_share_of_a_short_reply_is_unknown():
    assert copied_share("one two three", ["one two three four"]) is None
    assert copied_share("", ["one two three four"]) is None
    with pytest.raises(TypeError, match="not one string"):
        copied_share("one two three four", "one two three four")


def test_loop_rate_and_mean_length_by_hand():
    assert loop_rate(["no no no", "fine", "", "ha ha ha!"]) == pytest.approx(2 / 4)
    assert mean_length(["One, two, three.", "", "don't"]) == pytest.approx((3 + 0 + 2) / 3)
    assert loop_rate([]) is None
    assert mean_length([]) is None
