"""Guidance of a generator at decoding time, as processors of the next token's scores.

- `FudgeProcessor`: FUDGE (Yang and Klein 2021, arXiv:2104.05218), and with a share below 1 the partial half of PACER
  (Shuster et al. 2021, arXiv:2112.05843).
- `ExpertProcessor`: DExperts (Liu et al. 2021, arXiv:2105.03023).
- `WordBlockProcessor`: no listed word or phrase is ever completed, however it is cut into tokens.

All follow `LogitsProcessor` of `parlai_safety.modeling.sampler`. They know no judge, no ParlAI agent and no option:
what judges a partial reply is passed in as a function, a second model as its module with its own encoded context.
Left out: FUDGE's own classifier, a network that reads each token once; ours is asked about whole partial texts.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from parlai_safety.modeling.decoder_fast import DecoderSteps, decoder_steps

REMOVED = -1e20
"""The score of a token that must not be chosen: ParlAI's own value, finite so that a row of nothing else is no NaN."""

FLOOR = 1e-6
"""The least P(safe) that is used: below it, candidates keep the order that the model gives them."""

PSafe = Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[float]]
"""Maps N contexts (by number) and N partial replies (token ids) to N values of P(safe) in [0, 1], NaN = unscored."""


class FudgeProcessor:
    """Multiply the model's probability by a judge's, over the model's likeliest tokens.

    For the `top` tokens of the row, arXiv:2104.05218, equation 2, with a strength added::

        p(x_t | x_<t, c)  is proportional to  p(x_t | x_<t) * P(c | x_1..t) ** strength

    and no other token can be chosen. That the judge sees only the likeliest tokens is in the paper; that the rest is
    removed, and that the strength is a power, are as we recall the released code.

    A candidate that the judge leaves unscored is never taken for safe: it counts as the least safe scored candidate of
    its row. Where none of a row is scored there is nothing to prefer, and the row keeps the model's own order;
    `unscored` counts such candidates. P(safe) is at least `FLOOR`.

    With `share` < 1 it is applied at that share of the positions of a reply (PACER, where the released code draws a
    number for each step). The draw is a hash of `seed`, the context's key and the reply so far, so that a reply does
    not depend on what else is in the batch, and a resumed run makes the same draws.

    Args:
        p_safe: judges partial replies; called once a step for all rows together.
        top: tokens a row that are judged, at least 1; more than the vocabulary has means all of it.
        strength: power of P(safe), at least 0; at 0 the judge is not asked, and nothing changes.
        end: the end token; a row that has it is left alone.
        share: of the positions, in [0, 1].
        seed: of the draws.
        keys: a text for each context, such as the context itself; needed where 0 < share < 1.
    """

    def __init__(
        self,
        p_safe: PSafe,
        *,
        top: int,
        strength: float,
        end: int,
        share: float = 1.0,
        seed: int = 0,
        keys: Sequence[str] = (),
    ) -> None:
        self.p_safe, self.top, self.strength, self.end = p_safe, top, strength, end
        self.share, self.seed, self.keys = share, seed, keys
        self.judged: Counter[int] = Counter()
        """Candidates judged, by context."""
        self.unscored: Counter[int] = Counter()
        """Those of them that have no score, by context."""
        self._contexts: list[int] = []

    def begin(self, context_of_row: Tensor) -> None:
        """Start a batch: which context each row answers, (R,)."""
        self._contexts = context_of_row.tolist()

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order, (R',)."""
        self._contexts = [self._contexts[row] for row in rows.tolist()]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the guided scores, not normalised, of the same shape.

        Args:
            logits: (R, V).
            tokens: (R, t) the tokens produced so far, without the start token.
        """
        said = tokens.tolist()
        rows = [row for row, reply in enumerate(said) if self.end not in reply and self._guided(row, reply)]
        if self.strength == 0 or not rows:
            return logits
        logits = logits.float()
        top = logits[rows].topk(min(self.top, logits.shape[1]), dim=1)
        p_safe = self._judge(rows, [said[row] for row in rows], top.indices.tolist()).to(logits)
        guided = torch.full_like(logits[rows], REMOVED)
        guided.scatter_(1, top.indices, top.values + self.strength * p_safe.clamp_min(FLOOR).log())
        return logits.index_copy(0, torch.tensor(rows, device=logits.device), guided)

    def _guided(self, row: int, reply: Sequence[int]) -> bool:
        if not 0 < self.share < 1:
            return self.share > 0
        text = f"{self.seed}\0{self.keys[self._contexts[row]]}\0{' '.join(map(str, reply))}"
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        return drawn < self.share * 2**64

    def _judge(self, rows: list[int], said: list[list[int]], candidates: list[list[int]]) -> Tensor:
        """P(safe) of each row's candidates, (rows, top)."""
        contexts = [self._contexts[row] for row, some in zip(rows, candidates, strict=True) for _ in some]
        partial = [[*reply, token] for reply, some in zip(said, candidates, strict=True) for token in some]
        scores = torch.tensor(self.p_safe(contexts, partial), dtype=torch.float64).view(len(rows), -1)
        missing = scores.isnan()
        for row, lacking in zip(rows, missing.sum(1).tolist(), strict=True):
            self.judged[self._contexts[row]] += scores.shape[1]
            self.unscored[self._contexts[row]] += lacking
        least = scores.masked_fill(missing, math.inf).amin(1, keepdim=True)
        return torch.where(missing, least.masked_fill(least.isinf(), 1.0), scores)


class Follower:
    """A second model that decodes along: the scores it would give the next token, from its own states.

    Args:
        model: a ParlAI `TorchGeneratorModel` over the same vocabulary, in evaluation mode.
        encoder_input: what its encoder takes for the batch of contexts.
        start: the tokens that its decoder begins with.
    """

    def __init__(self, model: Any, encoder_input: tuple[Any, ...], *, start: Sequence[int]) -> None:
        self.model, self.start = model, list(start)
        self._input = encoder_input
        self._steps: DecoderSteps

    def begin(self, context_of_row: Tensor) -> None:
        """Start a batch: encode its contexts, one copy a row."""
        encoded = self.model.reorder_encoder_states(self.model.encoder(*self._input), context_of_row)
        self._steps = decoder_steps(self.model, encoded, len(context_of_row))

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._steps.select(rows)

    def next_logits(self, tokens: Tensor) -> Tensor:
        """The scores (R, V) of the token that follows `tokens`, (R, t)."""
        begun = torch.cat([tokens.new_tensor(self.start).repeat(len(tokens), 1), tokens], dim=1)
        logits: Tensor = self.model.output(self._steps(begun).unsqueeze(1))
        return logits.squeeze(1)


class ExpertProcessor:
    """DExperts, arXiv:2105.03023, equation 2: steer by the difference of an expert and an anti-expert.

    The released code, which this follows, first filters the base model to its nucleus of mass `topp`; then::

        scores = base + alpha * (expert - anti)

    with the raw scores of the three. Without an expert the base model stands in its place (the "anti-only" form).

    Args:
        anti: the model of what to avoid.
        expert: the model of what to follow, or None.
        alpha: the strength, at least 0; at 0 nothing changes, and the filter is not applied either.
        topp: mass of the base model's nucleus, in (0, 1]; 1 = no filter.
    """

    def __init__(
        self, anti: Follower, expert: Follower | None = None, *, alpha: float = 2.0, topp: float = 0.9
    ) -> None:
        self.anti, self.expert, self.alpha, self.topp = anti, expert, alpha, topp
        self._followers = [follower for follower in (anti, expert) if follower is not None and alpha > 0]

    def begin(self, context_of_row: Tensor) -> None:
        """Start a batch: which context each row answers, (R,)."""
        for follower in self._followers:
            follower.begin(context_of_row)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order, (R',)."""
        for follower in self._followers:
            follower.select(rows)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the steered scores, not normalised, (R, V), from those of the base model; tokens are (R, t)."""
        if self.alpha == 0:
            return logits
        base = logits.float()
        anti = self.anti.next_logits(tokens).float()
        expert = base if self.expert is None else self.expert.next_logits(tokens).float()
        steered = base + self.alpha * (expert - anti)
        return steered if self.topp >= 1 else steered.masked_fill(~in_nucleus(base, self.topp), REMOVED)


def in_nucleus(logits: Tensor, mass: float) -> Tensor:
    """Which tokens belong to the smallest set of likeliest tokens that has this mass.

    Args:
        logits: (R, V).
        mass: in (0, 1]. The likeliest token is always in.

    Returns:
        (R, V) bool.
    """
    probabilities, order = logits.softmax(dim=1).sort(dim=1, descending=True)
    before = probabilities.cumsum(dim=1) - probabilities
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before < mass)


COMPLETE = -1
"""The state of `WordAutomaton` in which a listed word has been completed; there is no way out of it."""


class WordAutomaton:
    r"""Reads a text a character at a time and knows when a listed word or phrase is complete.

    The language is that of the word-list judge: whole words in any casing, a phrase across any white space, a curly
    apostrophe as a straight one; as a regular expression ``(?<!\w)term(?!\w)``. Whether a term is complete shows at the
    character behind it: after "dim" the word is still open, and "ension" makes another word of it. States are numbers,
    0 the beginning, made as they are met.

    Args:
        terms: words and phrases; white space in them is any white space.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        spelled = {" ".join(_straight(term).lower().split()) for term in terms}
        self.terms = sorted(spelled - {""})
        # A state: the terms we are in, as (term, characters read), and whether the last character was of a word.
        self._states: list[tuple[frozenset[tuple[int, int]], bool]] = [(frozenset(), False)]
        self._numbers = {self._states[0]: 0}
        self._steps: list[dict[str, int]] = [{}]

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        if state == COMPLETE:
            return COMPLETE
        known = self._steps[state].get(character)
        if known is None:
            known = self._steps[state][character] = self._step(state, _straight(character))
        return known

    def read(self, state: int, text: str) -> int:
        """The state after some more text."""
        for character in text:
            state = self.step(state, character)
        return state

    def open(self, state: int) -> bool:
        """True where a listed term would be complete if the text ended here."""
        return state != COMPLETE and any(at == len(self.terms[term]) for term, at in self._states[state][0])

    def plain(self, state: int) -> int:
        """The state after the same kind of character that is in no term."""
        return self._number(frozenset(), self._states[state][1])

    def _step(self, state: int, character: str) -> int:
        places, after_word = self._states[state]
        of_word = _of_word(character)
        if not of_word and self.open(state):
            return COMPLETE
        moved = set()
        for term, at in places:
            spelled = self.terms[term]
            if at < len(spelled) and _same(spelled[at], character):
                moved.add((term, at + 1))
            if spelled[at - 1] == " " and character.isspace():  # more white space inside a phrase
                moved.add((term, at))
        if not after_word:
            moved |= {(term, 1) for term, spelled in enumerate(self.terms) if _same(spelled[0], character)}
        return self._number(frozenset(moved), of_word)

    def _number(self, places: frozenset[tuple[int, int]], after_word: bool) -> int:
        state = (places, after_word)
        if state not in self._numbers:
            self._numbers[state] = len(self._states)
            self._states.append(state)
            self._steps.append({})
        return self._numbers[state]


def _of_word(character: str) -> bool:
    r"""What `\w` matches."""
    return character.isalnum() or character == "_"


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")


@lru_cache(maxsize=65536)
def _same(wanted: str, character: str) -> bool:
    """Whether a character of a term (in lower case) matches one of a text, as `re.IGNORECASE` has it."""
    if wanted == " ":
        return character.isspace()
    return re.fullmatch(re.escape(wanted), character, re.IGNORECASE) is not None


Place = tuple[int, bytes]
"""Where a reply stands: the automaton's state, and the bytes of a character that is not whole yet."""


class WordBlocker:
    """Which tokens would complete a listed word or phrase, for any reply so far; found once and remembered.

    A token is blocked where the reply with it holds a complete term. A term at the very end of the reply is not
    complete yet as long as some token could go on within the word: "dim" may become "dimension", so not the token that
    ends in "dim" is blocked but, behind it, the end token and every token that begins with another character than one
    of a word. In a vocabulary of whole words no token can go on within a word, and there, as at the last position of a
    reply, the token that ends in the term is itself blocked.

    Args:
        terms: words and phrases.
        spelling: the UTF-8 bytes that each token adds to a reply, by id; parts of a character are allowed.
        end: the end token, which adds nothing.
        silent: ids that add nothing and never help a reply on, such as the start token.
    """

    def __init__(
        self, terms: Iterable[str], spelling: Sequence[bytes], *, end: int, silent: Iterable[int] = ()
    ) -> None:
        self.automaton = WordAutomaton(terms)
        self.end = end
        self._spelled = [_decoded(piece) for piece in spelling]
        for token in (end, *silent):
            self._spelled[token] = ("", b"")
        self._silent = frozenset(silent)
        self._raw = list(spelling)
        self._textless = [token for token, (text, _) in enumerate(self._spelled) if not text]
        self._by_first: dict[str, list[int]] = {}
        for token, (text, _) in enumerate(self._spelled):
            if text:
                self._by_first.setdefault(text[0], []).append(token)
        self._grows = any(_of_word(first) for first in self._by_first)
        self._known: dict[tuple[Place, bool], Tensor | None] = {}
        self._blocked: dict[tuple[Place, bool], frozenset[int]] = {}

    start: Place = (0, b"")
    """Where every reply begins."""

    def after(self, place: Place, token: int) -> Place:
        """Where the reply stands after one more token."""
        state, part = place
        text, rest = _decoded(part + self._raw[token]) if part and self._adds(token) else self._spelled[token]
        return self.automaton.read(state, text), rest if self._adds(token) else part

    def ends_in_term(self, place: Place) -> bool:
        """True where the reply would hold a listed term if it ended here."""
        state, part = place
        if part:  # an incomplete character is shown as a replacement sign, which is none of a word
            state = self.automaton.step(state, "\ufffd")
        return state == COMPLETE or self.automaton.open(state)

    def blocked(self, place: Place, *, last: bool = False) -> Tensor | None:
        """The ids that must not come next.

        Args:
            place: where the reply stands.
            last: whether the reply can grow by this one token only.

        Returns:
            Int64 ids, or None where no token is left, so that the reply has to end here, although with a listed term.
        """
        if (place, last) not in self._known:
            self._known[place, last] = self._find(place, last)
        return self._known[place, last]

    def _adds(self, token: int) -> bool:
        return token != self.end and token not in self._silent

    def _find(self, place: Place, last: bool) -> Tensor | None:
        if place[0] == COMPLETE:
            return None
        blocked = self._blocked_ids(place, last or not self._grows)
        if len(blocked | self._silent) == len(self._raw):
            return None
        return torch.tensor(sorted(blocked), dtype=torch.long)

    def _blocked_ids(self, place: Place, closing: bool) -> frozenset[int]:
        """The ids to block; `closing`: a token must not leave an open term behind."""
        if (place, closing) not in self._blocked:
            state, part = place
            plain = self.automaton.plain(state)
            if part or state == plain:
                self._blocked[place, closing] = self._scan(place, range(len(self._raw)), closing)
            else:
                # Outside of every term a reply goes on alike: only tokens that go on within a term are looked at.
                step = self.automaton.step
                differing = [first for first in self._by_first if step(state, first) != step(plain, first)]
                tokens = {*self._textless, *(token for first in differing for token in self._by_first[first])}
                blocked_anywhere = self._blocked_ids((plain, b""), closing)
                self._blocked[place, closing] = blocked_anywhere | self._scan(place, tokens, closing)
        return self._blocked[place, closing]

    def _scan(self, place: Place, tokens: Iterable[int], closing: bool) -> frozenset[int]:
        found = set()
        for token in tokens:
            after = self.after(place, token)
            must_hold = token == self.end or closing
            if after[0] == COMPLETE or (must_hold and self.ends_in_term(after)):
                found.add(token)
        return frozenset(found)


class WordBlockProcessor:
    """No listed word or phrase is ever completed; see `WordBlocker`.

    A row for which every token is blocked gets the end token alone: it ends, and holds the term. Whoever shows replies
    has to look at them once more; `parlai_safety.agents.word_block` does.

    Args:
        blocker: the words over the model's vocabulary; one may serve many batches, and remembers.
        max_length: tokens that a reply can have at most, the end token included.
    """

    def __init__(self, blocker: WordBlocker, *, max_length: int) -> None:
        self.blocker, self.max_length = blocker, max_length
        self._places: list[Place] = []
        self._read = 0

    def begin(self, context_of_row: Tensor) -> None:
        """Start a batch of (R,) rows."""
        self._places = [self.blocker.start] * len(context_of_row)
        self._read = 0

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order, (R',)."""
        self._places = [self._places[row] for row in rows.tolist()]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return the scores (R, V) with those of blocked tokens removed; tokens are (R, t)."""
        for row, fresh in enumerate(tokens[:, self._read :].tolist()):
            for token in fresh:
                self._places[row] = self.blocker.after(self._places[row], token)
        self._read = tokens.shape[1]
        ended = (tokens == self.blocker.end).any(dim=1).tolist()
        logits = logits.clone()
        for row, place in enumerate(self._places):
            if ended[row]:
                continue
            blocked = self.blocker.blocked(place, last=self._read >= self.max_length - 1)
            if blocked is None:
                logits[row] = max(REMOVED, torch.finfo(logits.dtype).min)
                logits[row, self.blocker.end] = 0.0
            elif len(blocked):
                logits[row, blocked.to(logits.device)] = max(REMOVED, torch.finfo(logits.dtype).min)
        return logits


def _decoded(data: bytes) -> tuple[str, bytes]:
    """The text of some bytes, and the bytes at their end that are only the beginning of a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]
