"""Processors of the next token's scores, called by hand: FUDGE and PACER, DExperts, blocking of words."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlai_safety.judges.wordlist import WordListJudge
from parlai_safety.modeling.guidance import (
    COMPLETE,
    FLOOR,
    REMOVED,
    ExpertProcessor,
    FudgeProcessor,
    WordAutomaton,
    WordBlocker,
    WordBlockProcessor,
    in_nucleus,
)

END = 0
NOTHING = torch.zeros(1, 0, dtype=torch.long)


def softmax(scores):
    return torch.as_tensor(scores, dtype=torch.float64).softmax(-1)


# --- FUDGE ------------------------------------------------------------------------------------------------------------


def fudge(p_safe, *, contexts=1, **more):
    """A processor whose judge is a function of (context, reply)."""
    asked = []

    def judge(rows, replies):
        asked.append(list(zip(rows, map(tuple, replies), strict=True)))
        return [p_safe(context, tuple(reply)) for context, reply in asked[-1]]

    processor = FudgeProcessor(judge, **{"top": 3, "strength": 1.0, "end": END, **more})
    processor.begin(torch.arange(contexts))
    return processor, asked


def test_fudge_multiplies_the_probability_by_that_of_the_judge():
    """p = (.5, .25, .2, .05), P(safe) = (.1, .8, .5) of the top three: products .05, .2, .1, so 1/7, 4/7, 2/7."""
    logits = torch.tensor([[0.5, 0.25, 0.2, 0.05]]).log()
    chances = {0: 0.1, 1: 0.8, 2: 0.5}
    processor, asked = fudge(lambda _, reply: chances[reply[-1]])
    torch.testing.assert_close(
        softmax(processor(logits, NOTHING)), torch.tensor([[1, 4, 2, 0]], dtype=torch.float64) / 7
    )
    assert asked == [[(0, (0,)), (0, (1,)), (0, (2,))]]
    assert processor.judged[0] == 3 and processor.unscored[0] == 0


def test_the_strength_is_a_power():
    """Squared: .5 * .01, .25 * .64, .2 * .25 = .005, .16, .05."""
    logits = torch.tensor([[0.5, 0.25, 0.2, 0.05]]).log()
    chances = {0: 0.1, 1: 0.8, 2: 0.5}
    processor, _ = fudge(lambda _, reply: chances[reply[-1]], strength=2.0)
    expected = torch.tensor([[0.005, 0.16, 0.05, 0]], dtype=torch.float64) / 0.215
    torch.testing.assert_close(softmax(processor(logits, NOTHING)), expected)


def test_the_judge_reads_each_rows_own_reply_and_context_in_one_call():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    processor, asked = fudge(lambda *_: 0.5, contexts=2, top=2)
    processor.select(torch.tensor([1, 0]))
    processor(logits, torch.tensor([[7, 8], [5, 6]]))
    assert asked == [[(1, (7, 8, 0)), (1, (7, 8, 1)), (0, (5, 6, 2)), (0, (5, 6, 1))]]


def test_an_even_judge_changes_no_order_and_strength_0_nothing_at_all():
    logits = torch.randn(4, 30)
    even, _ = fudge(lambda *_: 0.3, contexts=4, top=30)
    torch.testing.assert_close(softmax(even(logits, NOTHING.expand(4, 0))), softmax(logits), atol=1e-6, rtol=1e-5)
    never, asked = fudge(lambda *_: 0.0, contexts=4, strength=0.0)
    assert torch.equal(never(logits, NOTHING.expand(4, 0)), logits) and not asked


def test_what_has_no_score_counts_as_the_least_safe_of_its_row():
    logits = torch.zeros(2, 4)
    scores = {0: {0: 0.9, 1: 0.2, 2: math.nan, 3: 0.5}, 1: dict.fromkeys(range(4), math.nan)}
    processor, _ = fudge(lambda context, reply: scores[context][reply[-1]], contexts=2, top=4)
    guided = softmax(processor(logits, NOTHING.expand(2, 0)))
    torch.testing.assert_close(guided[0], torch.tensor([0.9, 0.2, 0.2, 0.5], dtype=torch.float64) / 1.8)
    torch.testing.assert_close(guided[1], torch.full((4,), 0.25, dtype=torch.float64))
    assert [processor.unscored[context] for context in (0, 1)] == [1, 4]


def test_a_judge_that_is_certain_leaves_the_models_order():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    guided = fudge(lambda *_: 0.0)[0](logits, NOTHING)
    torch.testing.assert_close(guided, logits + math.log(FLOOR))


def test_rows_that_have_ended_are_not_judged():
    logits = torch.zeros(2, 4)
    processor, asked = fudge(lambda *_: 0.5, contexts=2, top=4)
    guided = processor(logits, torch.tensor([[3, END], [3, 2]]))
    assert torch.equal(guided[0], logits[0]) and {row for row, _ in asked[0]} == {1}


@given(st.integers(0, 2**20), st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_a_share_of_the_positions_is_guided_and_the_draw_is_that_of_the_row(seed, share):
    """Of 400 draws the share is within five standard deviations, and rows do not depend on their company."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.randint(1, 9, (400, 4), generator=generator)
    logits = torch.randn(400, 9, generator=generator)
    more = {"top": 9, "share": share, "seed": seed, "keys": [f"context {i}" for i in range(400)]}
    processor, asked = fudge(lambda *_: 0.5, contexts=400, **more)
    guided = processor(logits, said)
    rows = {row for row, _ in asked[0]} if asked else set()
    assert abs(len(rows) / 400 - share) < 5 * math.sqrt(share * (1 - share) / 400)
    again, _ = fudge(lambda *_: 0.5, contexts=400, **more)
    again.select(torch.tensor([17, 3]))
    assert torch.equal(again(logits[[17, 3]], said[[17, 3]]), guided[[17, 3]])


def test_the_draws_differ_by_seed_context_and_reply():
    def guided(**changed):
        how = {"seed": 1, "key": "a", "reply": [1, 2], **changed}
        processor, asked = fudge(lambda *_: 0.5, share=0.5, seed=how["seed"], keys=[how["key"]])
        processor(torch.zeros(1, 4), torch.tensor([how["reply"]]))
        return bool(asked)

    for name, values in {
        "seed": range(40), "key": [str(i) for i in range(40)], "reply": [[1, i] for i in range(1, 41)]
    }.items():  # fmt: skip
        assert {guided(**{name: value}) for value in values} == {True, False}, name


# --- DExperts ---------------------------------------------------------------------------------------------------------


class Fixed:
    """A follower with scores that are given."""

    def __init__(self, logits):
        self.logits = torch.as_tensor(logits)

    def begin(self, rows):
        self.rows = rows

    def select(self, rows):
        self.rows = self.rows[rows]

    def next_logits(self, tokens):
        return self.logits[self.rows]


def steer(base, anti, expert=None, **more):
    followers = [Fixed(anti)] + ([Fixed(expert)] if expert is not None else [])
    processor = ExpertProcessor(*followers, **more)
    processor.begin(torch.arange(len(base)))
    return processor(torch.as_tensor(base), torch.zeros(len(base), 0, dtype=torch.long))


def test_dexperts_adds_the_difference_of_expert_and_anti_expert():
    """base + 2 * (expert - anti) = (1, 2, 3) + 2 * ((0, 1, 5) - (0, 3, 4)) = (1, -2, 5)."""
    out = steer([[1.0, 2.0, 3.0]], [[0.0, 3.0, 4.0]], [[0.0, 1.0, 5.0]], alpha=2.0, topp=1.0)
    assert out.tolist() == [[1.0, -2.0, 5.0]]


def test_without_an_expert_the_base_model_stands_for_it():
    """base + 2 * (base - anti) = (1, 2) + 2 * ((1, 2) - (0, 3)) = (3, 0)."""
    assert steer([[1.0, 2.0]], [[0.0, 3.0]], alpha=2.0, topp=1.0).tolist() == [[3.0, 0.0]]


def test_an_anti_expert_like_the_base_changes_nothing_within_the_nucleus():
    base = torch.randn(5, 40)
    assert torch.equal(steer(base, base, alpha=2.0, topp=1.0), base)
    steered = steer(base, base, alpha=2.0, topp=0.9)
    inside = in_nucleus(base, 0.9)
    assert torch.equal(steered[inside], base[inside]) and (steered[~inside] == REMOVED).all()
    assert 0 < inside.sum() < inside.numel()


def test_the_nucleus_is_that_of_the_base_model():
    """Of (.6, .3, .08, .02) the nucleus of .9 is two tokens; the expert's love of the others is in vain."""
    base = torch.tensor([[0.6, 0.3, 0.08, 0.02]], dtype=torch.float64).log()
    out = steer(base, [[0.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 50.0, 50.0]], alpha=1.0, topp=0.89)
    assert out.argmax().item() == 1 and (out[0, 2:] == REMOVED).all()
    assert in_nucleus(base, 0.91).tolist() == [[True, True, True, False]]
    assert in_nucleus(base, 1e-6).tolist() == [[True, False, False, False]]


@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_the_nucleus_is_the_smallest_set_of_its_mass(seed, mass):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(12, 0.5))
    probabilities = np.maximum(probabilities, 1e-12) / np.maximum(probabilities, 1e-12).sum()
    kept = in_nucleus(torch.as_tensor(np.log(probabilities))[None], mass)[0].numpy()
    assert probabilities[kept].sum() >= mass - 1e-9
    assert probabilities[kept].sum() - probabilities[kept].min() < mass + 1e-9
    assert probabilities[kept].min() >= probabilities[~kept].max(initial=0)


def test_alpha_0_gives_the_base_scores_untouched():
    base = torch.randn(3, 8)
    assert torch.equal(steer(base, torch.randn(3, 8), alpha=0.0), base)


def test_selected_rows_take_their_own_experts_along():
    processor = ExpertProcessor(Fixed([[1.0, 0.0], [0.0, 1.0]]), alpha=1.0, topp=1.0)
    processor.begin(torch.arange(2))
    processor.select(torch.tensor([1, 1, 0]))
    out = processor(torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.long))
    assert out.tolist() == [[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]


# --- words ------------------------------------------------------------------------------------------------------------

TERMS = ["dim", "dim lamp", "don't", "old tin", "b@d"]
TEXTS = st.text(alphabet=list("dimDIlap tn'\u2019!o\n_3b@") + ["\u0130", "\u00e9"], max_size=24)


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_the_automaton_speaks_the_language_of_the_word_list_judge(text):
    automaton, judge = WordAutomaton(TERMS), WordListJudge(TERMS)
    state = automaton.read(0, text)
    assert (state == COMPLETE or automaton.open(state)) == judge.matches(text)


@pytest.mark.parametrize(
    ("text", "complete", "opened"),
    [
        ("you are dim", False, True),
        ("you are dim.", True, False),
        ("you are dimmer", False, False),
        ("a DIM, old thing", True, False),
        ("undim ", False, False),
        ("an old   tin", False, True),
        ("an old\ntin!", True, False),
        ("an old-tin ", False, False),
        ("don\u2019t ", True, False),
    ],
)
def test_a_word_is_complete_at_the_character_behind_it(text, complete, opened):
    automaton = WordAutomaton(TERMS)
    state = automaton.read(0, text)
    assert (state == COMPLETE, automaton.open(state)) == (complete, opened)


def brute_force(terms, pieces, said, *, last, grows):
    """What must not follow, by looking at the whole text with a regular expression; None where nothing is left."""
    judge = WordListJudge(terms)
    words = "|".join(r"\s+".join(map(re.escape, term.split())) for term in judge.terms)
    complete = re.compile(rf"(?<!\w)(?:{words})(?=\W)", re.IGNORECASE)
    found = []
    before = b"".join(pieces[token] for token in said)
    for token in range(len(pieces)):
        data = before if token == END else before + pieces[token]
        if token == END or last or not grows:
            bad = judge.matches(data.decode(errors="replace").replace("\u2019", "'"))
        else:
            # A character that is not whole yet may still become one of a word.
            while data and data.decode(errors="ignore") != data.decode(errors="replace"):
                data = data[:-1]
            bad = complete.search(data.decode().replace("\u2019", "'")) is not None
        if bad:
            found.append(token)
    return None if len(found) == len(pieces) else found


@pytest.mark.parametrize("seed", range(40))
def test_blocking_agrees_with_brute_force_on_random_vocabularies(seed):
    """Pieces of text, cut anywhere, a character of two bytes among them; walks that stay within what is allowed."""
    source = random.Random(seed)
    text = "you are a dim lamp, an old tin caf\u00e9 don't do d\u00e9j\u00e0 dimension b@d "
    data = (text + text.upper()).encode()
    cut = {b""}
    while len(cut) < 25:
        at = source.randrange(len(data))
        cut.add(data[at : at + source.randint(1, 5)])
    pieces = [b"", *sorted(cut - {b""})]
    if seed % 4 == 0:
        pieces = [b"", *(b" " + word.encode() for word in sorted(set(text.split())))]
    pieces = [piece for piece in pieces if _can_begin(piece)]
    terms = source.sample([*TERMS, "caf\u00e9", "lamp an", "a"], 3)
    grows = any(piece.decode(errors="ignore")[:1].isalnum() for piece in pieces)
    blocker = WordBlocker(terms, pieces, end=END)
    for _ in range(6):
        said, place = [], blocker.start
        for _step in range(12):
            for last in (False, True):
                expected = brute_force(terms, pieces, said, last=last, grows=grows)
                found = blocker.blocked(place, last=last)
                assert (None if found is None else found.tolist()) == expected, (terms, said, last)
            blocked = blocker.blocked(place)
            if blocked is None:
                break
            token = source.choice([t for t in range(1, len(pieces)) if t not in blocked.tolist()] or [END])
            if token == END or not _whole(pieces, [*said, token]):
                break
            said.append(token)
            place = blocker.after(place, token)


def _can_begin(piece):
    """Leave out pieces that begin within a character: alone they are no text that brute force could look at."""
    return not piece or piece[0] & 0xC0 != 0x80


def _whole(pieces, said):
    data = b"".join(pieces[token] for token in said)
    return data.decode(errors="replace") == data.decode(errors="ignore")


def blocked_of(blocker, said=(), **more):
    place = blocker.start
    for token in said:
        place = blocker.after(place, token)
    found = blocker.blocked(place, **more)
    return None if found is None else set(found.tolist())


def test_a_word_that_can_go_on_is_blocked_at_the_boundary():
    """1 " dim", 2 "mer", 3 " lamp", 4 ".": after " dim" only "mer" may follow."""
    blocker = WordBlocker(["dim"], [b"", b" dim", b"mer", b" lamp", b"."], end=END)
    assert blocked_of(blocker) == set()
    assert blocked_of(blocker, [1]) == {END, 1, 3, 4}
    assert blocked_of(blocker, [1, 2]) == set()
    assert blocked_of(blocker, [], last=True) == {1}


def test_other_casings_and_cuttings_of_a_word_are_blocked():
    """ " di" + "m", " D" + "IM" and " dim" all lead to the same open word."""
    blocker = WordBlocker(["dim"], [b"", b" di", b"m", b" D", b"IM", b" dim", b"!", b"x"], end=END)
    for said in ([1, 2], [3, 4], [5]):
        assert blocked_of(blocker, said) == {END, 1, 3, 5, 6}


def test_in_a_vocabulary_of_whole_words_the_word_itself_is_blocked():
    blocker = WordBlocker(["dim", "old tin"], [b"", b" dim", b" old", b" tin", b" Dim"], end=END)
    assert blocked_of(blocker) == {1, 4}
    assert blocked_of(blocker, [2]) == {1, 3, 4}


def test_a_character_in_two_tokens_is_read_whole():
    """ "caf" + C3 + A9 is the listed word, C3 + A8 is another letter, and C3 alone is no letter yet."""
    blocker = WordBlocker(["caf\u00e9", "caf"], [b"", b" caf", b"\xc3", b"\xa9", b"\xa8", b"s", b" "], end=END)
    assert blocked_of(blocker, [1]) == {END, 1, 3, 4, 6}
    assert blocked_of(blocker, [1, 2]) >= {END, 1, 5, 6} and not blocked_of(blocker, [1, 2]) & {3, 4}
    assert blocked_of(blocker, [1, 2, 3]) >= {END, 1, 6}
    assert not blocked_of(blocker, [1, 2, 4])
    assert blocked_of(blocker, [1, 2, 3, 5]) == set()


def test_no_words_block_nothing():
    logits = torch.randn(2, 3)
    processor = WordBlockProcessor(WordBlocker([], [b"", b" a", b" b"], end=END), max_length=4)
    processor.begin(torch.arange(2))
    assert torch.equal(processor(logits, NOTHING.expand(2, 0)), logits)


def test_where_everything_is_blocked_the_row_ends():
    """1 " dim", 2 "m", 3 " lamp": behind " dim" only "m" is left, and behind " dim lamp" nothing is."""
    stuck = WordBlocker(["dim"], [b"", b" dim", b"m", b" lamp"], end=END)
    assert blocked_of(stuck, [1]) == {END, 1, 3}
    processor = WordBlockProcessor(stuck, max_length=2)
    processor.begin(torch.arange(2))
    processor(torch.zeros(2, 4), NOTHING.expand(2, 0))
    last = processor(torch.zeros(2, 4), torch.tensor([[1], [3]]))
    assert softmax(last)[0].tolist() == [0, 0, 1, 0]
    assert softmax(last)[1].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    forced = WordBlockProcessor(stuck, max_length=9)
    forced.begin(torch.arange(1))
    assert softmax(forced(torch.zeros(1, 4), torch.tensor([[1, 3]]))).tolist() == [[1, 0, 0, 0]]


def test_rows_keep_their_places_when_they_move():
    blocker = WordBlocker(["dim lamp"], [b"", b" dim", b" lamp", b" x"], end=END)
    processor = WordBlockProcessor(blocker, max_length=9)
    processor.begin(torch.arange(2))
    processor(torch.zeros(2, 4), NOTHING.expand(2, 0))
    processor(torch.zeros(2, 4), torch.tensor([[1], [3]]))
    processor.select(torch.tensor([1, 0, 0]))
    scores = processor(torch.zeros(3, 4), torch.tensor([[3, 3], [1, 1], [1, 3]]))
    assert (scores == REMOVED).nonzero().tolist() == [[1, 2]]


def test_a_silent_token_at_the_last_position_does_not_close_a_reply_on_a_listed_word():
    blocker = WordBlocker(["dim"], [b"", b" dim", b"mer", b" lamp", b"<s>"], end=END, silent=[4])
    assert blocked_of(blocker, [1], last=True) == {END, 1, 3, 4}
