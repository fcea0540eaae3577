"""Replies of any ParlAI generator, a whole batch of contexts at a time: greedy, beam, top-k and nucleus.

The search is ParlAI's own (`TreeSearch`), token for token for greedy and beam and in distribution for sampling, written
over tensors: no object a hypothesis, one encoding a context, caches that are kept, finished rows that leave the batch.

Two deviations. Prefix tokens are forced row by row; ParlAI lets each row choose among the prefix tokens of all rows of
its batch. And a reply that reaches `max_length` keeps its last token; ParlAI puts the end token in its place, which the
agents of ours do too when they answer in ParlAI's stead. Left out: delayed beams, factual nucleus, and details of
single tokens (`--verbose`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from parlai.core.torch_generator_agent import TorchGeneratorModel
from parlai.utils.torch import neginf
from torch import Tensor

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.modeling.decoder_fast import DecoderSteps, decoder_steps
from parlai_safety.modeling.sampling import draw_nucleus, draw_topk

METHODS = ("greedy", "beam", "topk", "nucleus")

BLOCK_SCORES = 2**21
"""Scores that the output layer makes at a time, so that they are read again while they are still in the cache."""
LEAST_BLOCK = 128
"""Rows that the output layer takes at least at a time: with fewer, its weights are read too often."""


@dataclass(frozen=True)
class Decoding:
    """How replies are found; everything is checked when it is made.

    Attributes:
        method: "greedy", "beam", "topk" or "nucleus".
        beam_size: hypotheses a context, beam only.
        topk: candidates of each draw, top-k only.
        topp: mass that candidates of each draw have, nucleus only; above 0, at most 1.
        temperature: divisor of the logits, above 0.
        min_length: the end token is not produced before that many others (ParlAI's `beam_min_length`, which its own
            greedy search ignores).
        max_length: new tokens of a reply, the end token included.
        block_ngram: size of n-grams that do not occur twice in a reply, the start token being its first; below 1, none.
        context_block_ngram: size of n-grams that are not taken over from the context; below 1, none.
        length_penalty: exponent of the penalty ((2 + tokens) / 6) that divides a reply's log-probability, which is
            arXiv:1609.08144, equation 14, with the start token counted.
        blocked: token sequences that are never produced.
        samples: replies a context. Top-k and nucleus draw them independently; beam gives the best; greedy has one.
    """

    method: str = "greedy"
    beam_size: int = 1
    topk: int = 10
    topp: float = 0.9
    temperature: float = 1.0
    min_length: int = 1
    max_length: int = 128
    block_ngram: int = -1
    context_block_ngram: int = -1
    length_penalty: float = 0.65
    blocked: tuple[tuple[int, ...], ...] = ()
    samples: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SafetyError(
                f"The decoding method is {self.method!r}",
                f"The sampler knows {', '.join(METHODS)}",
                did_you_mean(self.method, METHODS, "Choose one of them, or use ParlAI's own search"),
            )
        for name, low in (("beam_size", 1), ("topk", 1), ("min_length", 0), ("max_length", 1), ("samples", 1)):
            if getattr(self, name) < low:
                raise SafetyError(
                    f"{name} is {getattr(self, name)}", "It is a count", f"Choose a whole number of {low} or more"
                )
        if not 0 < self.topp <= 1:
            raise SafetyError(
                f"topp is {self.topp}", "It is the share of the probability to draw from", "Choose 0 < topp <= 1"
            )
        if not 0 < self.temperature < math.inf:
            raise SafetyError(
                f"temperature is {self.temperature}", "The logits are divided by it", "Choose a finite number above 0"
            )
        if not math.isfinite(self.length_penalty):
            raise SafetyError(
                f"length_penalty is {self.length_penalty}", "It is an exponent", "Choose a finite number, such as 0.65"
            )
        if self.method == "greedy" and self.samples > 1:
            raise SafetyError(
                f"samples is {self.samples} with greedy decoding",
                "Greedy decoding has one reply a context, so the others would be copies",
                "Choose topk, nucleus or beam, or one sample",
            )
        if self.method != "beam" and self.beam_size > 1:
            raise SafetyError(
                f"beam_size is {self.beam_size} with {self.method} decoding",
                "Only beam search has a beam",
                "Choose the method beam, or say with samples how many replies are drawn",
            )
        if not all(self.blocked):
            raise SafetyError(
                "blocked holds an empty sequence", "It would forbid every token", "Leave the empty sequence out"
            )


class Generated(NamedTuple):
    """The replies of B contexts."""

    tokens: Tensor
    """(B, n, L) int64: without the start token, with the end token where it was produced, padded with the null id."""
    lengths: Tensor
    """(B, n) int64: tokens of each reply, the end token counted. 0 where a beam has fewer than n replies."""
    scores: Tensor
    """(B, n) fp32: log-probability over length penalty, nats. Of a beam, best first; -inf where there is no reply."""


class LogitsProcessor(Protocol):
    """Changes the scores of the next token. Called once a step for all live rows at once."""

    def begin(self, context_of_row: Tensor) -> None:
        """(R,) int64: which context of the batch each row answers, at first one row a context."""
        ...

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(R, V) raw logits, (R, t) tokens produced so far, without the start -> (R, V) logits, normalised or not."""
        ...

    def select(self, rows: Tensor) -> None:
        """(R',) int64: the rows that live on, in their new order; one may be named several times."""
        ...


def generate(
    model: TorchGeneratorModel,
    encoder_input: tuple[Any, ...],
    decoding: Decoding,
    *,
    start: int | Sequence[int],
    end: int,
    null: int,
    also_end: Sequence[int] = (),
    unsaid: Sequence[int] = (),
    context: Tensor | None = None,
    prefix: Tensor | None = None,
    processors: Sequence[LogitsProcessor] = (),
    generator: torch.Generator | None = None,
) -> Generated:
    """Find replies to a batch of contexts.

    A step runs the decoder on the last token of each row, passes the raw logits through the processors, divides them by
    the temperature, takes the log-softmax in fp32, sets forbidden tokens to ParlAI's finite minus infinity (not
    normalising again), and lets the method choose.

    Args:
        model: any `TorchGeneratorModel`, in evaluation mode.
        encoder_input: what its encoder takes; the first tensor's first axis is the batch.
        decoding: how replies are found.
        start: the start token, or all tokens that the decoder begins with (BART's are the end and the start token). The
            last of them is the first token of a reply's n-grams.
        end: the end token.
        null: the padding token.
        also_end: further tokens that end a reply. The end token is written for them, and their probability is its own;
            greedy decoding compares the likeliest of them with other tokens, as if each were chosen by itself. Top-k
            with k = 1 compares their sum, and may end a reply where greedy decoding goes on.
        unsaid: tokens that are never produced, whatever else is forbidden or forced: their logits are minus infinity
            before anything is done with them, and no other score is as low.
        context: (B, Tc) int64 tokens whose n-grams are blocked; needed where `context_block_ngram` is above 0. Padding
            counts as a token, as in ParlAI.
        prefix: (B, P) int64 tokens that each reply begins with, or None.
        processors: applied in this order.
        generator: source of the draws, on the device of the model; None is torch's own.

    Returns:
        Replies, n of them a context: `decoding.samples`, or less where no beam has found as many.

    Raises:
        SafetyError: the model is in training mode, a needed context is missing, a tensor does not fit the batch, or the
            vocabulary is smaller than the beam.
    """
    contexts = next((len(x) for x in encoder_input if isinstance(x, Tensor)), 0)
    _check(model, decoding, contexts, context, prefix)
    with torch.no_grad():
        encoder_states = model.encoder(*encoder_input)
        device = next(x.device for x in encoder_input if isinstance(x, Tensor))
        begin = [start] if isinstance(start, int) else list(start)
        beam_size = decoding.beam_size if decoding.method == "beam" else 1
        live = _Live(
            model,
            decoder_steps(model, encoder_states, contexts, beam_size),
            processors,
            _Constraints(decoding, end, context, prefix, device),
            decoding.temperature,
            torch.tensor(begin, device=device).repeat(contexts, 1),
            len(begin),
            _Ends(end, also_end, None if decoding.method == "greedy" else decoding.temperature),
            list(unsaid),
        )
        find = _beam if decoding.method == "beam" else _draw
        return find(live, decoding, end, null, generator)


def _check(
    model: TorchGeneratorModel, decoding: Decoding, contexts: int, context: Tensor | None, prefix: Tensor | None
) -> None:
    if model.training:
        raise SafetyError(
            "The model is in training mode", "Dropout would change what it says", "Call model.eval() before generating"
        )
    if decoding.context_block_ngram > 0 and context is None:
        raise SafetyError(
            f"context_block_ngram is {decoding.context_block_ngram} and there is no context",
            "N-grams of the context can only be blocked where its tokens are known",
            "Pass the tokens as context, or leave the option out",
        )
    for name, tensor in (("context", context), ("prefix", prefix)):
        if tensor is not None and (tensor.dim() != 2 or len(tensor) != contexts):
            raise SafetyError(
                f"{name} has shape {tuple(tensor.shape)}",
                f"There are {contexts} contexts, and each needs one row of tokens",
                f"Pass an int64 tensor of shape ({contexts}, tokens)",
            )


class _Constraints:
    """Tokens that are forbidden or forced: prefix, least length, n-grams, block list."""

    def __init__(
        self, decoding: Decoding, end: int, context: Tensor | None, prefix: Tensor | None, device: torch.device
    ) -> None:
        self._end = end
        self._min_length = decoding.min_length
        self._ngram, self._context_ngram = decoding.block_ngram, decoding.context_block_ngram
        self._context = None if context is None else context.to(device)
        self._prefix = None if prefix is None else prefix.to(device)
        self._blocked = [
            torch.tensor([item for item in decoding.blocked if len(item) == size], device=device)
            for size in sorted({len(item) for item in decoding.blocked})
        ]

    def __call__(self, logprobs: Tensor, said: Tensor, context_of_row: Tensor) -> None:
        """Change the scores (R, V) of the rows that said (R, 1 + t), the start token first, in place."""
        step = said.size(1) - 1
        least = neginf(logprobs.dtype)
        if self._prefix is not None and step < self._prefix.size(1):
            forced = self._prefix[context_of_row, step, None]
            score = logprobs.gather(-1, forced)
            logprobs.fill_(least).scatter_(-1, forced, score)
        if step < self._min_length:
            logprobs[:, self._end] = least
        if self._ngram > 0:
            _block_ngrams(logprobs, said, said, self._ngram)
        if self._context_ngram > 0 and self._context is not None:
            _block_ngrams(logprobs, said, self._context[context_of_row], self._context_ngram)
        for items in self._blocked:
            _block_ngrams(logprobs, said, items, items.size(1), listed=True)


def _block_ngrams(logprobs: Tensor, said: Tensor, source: Tensor, size: int, listed: bool = False) -> None:
    """Forbid the last token of each n-gram of the source whose other tokens are the last ones said, in place.

    Args:
        logprobs: (R, V).
        said: (R, t).
        source: (R, s) tokens whose n-grams are looked at; or, where `listed`, (S, n) the n-grams themselves.
        size: n, at least 1.
        listed: each row meets the same n-grams.
    """
    if said.size(1) < size - 1 or source.size(-1) < size:
        return
    ngrams = source[None] if listed else source.unfold(1, size, 1)
    ending = said[:, said.size(1) - (size - 1) :]
    matches = (ngrams[..., :-1] == ending[:, None]).all(-1)
    row, place = matches.nonzero(as_tuple=True)
    tokens = source[place, -1] if listed else ngrams[row, place, -1]
    known = tokens < logprobs.size(-1)  # the ids of padding and of the start may lie beyond the vocabulary
    logprobs[row[known], tokens[known]] = neginf(logprobs.dtype)


class _Ends(NamedTuple):
    """The end token and others that mean the same.

    Attributes:
        temperature: at which their probabilities are added; None where the likeliest of them counts.
    """

    end: int
    others: Sequence[int]
    temperature: float | None

    def joined(self, logits: Tensor) -> Tensor:
        """(R, V) -> (R, V), where the end token's score stands for those of all."""
        if not self.others:
            return logits
        ends = logits[:, [self.end, *self.others]]
        heat = self.temperature
        score = ends.amax(1) if heat is None else heat * (ends / heat).logsumexp(1)
        logits = logits.index_fill(1, torch.tensor(self.others, device=logits.device), neginf(logits.dtype))
        logits[:, self.end] = score
        return logits


class _Live:
    """The rows that are still being written: tokens, decoder steps, processors and constraints, kept in one order."""

    def __init__(
        self,
        model: TorchGeneratorModel,
        steps: DecoderSteps,
        processors: Sequence[LogitsProcessor],
        constraints: _Constraints,
        temperature: float,
        tokens: Tensor,
        begins: int,
        ends: _Ends,
        unsaid: list[int],
    ) -> None:
        self._model, self._steps, self._ends, self._unsaid = model, steps, ends, unsaid
        self._processors, self._constraints, self._temperature = processors, constraints, temperature
        self._tokens, self._begins = tokens, begins
        self._block: int | None = None  # rows that the output layer takes at a time
        self.context_of_row = torch.arange(len(tokens), device=tokens.device)
        for processor in processors:
            processor.begin(self.context_of_row)

    @property
    def said(self) -> Tensor:
        """(R, t) the tokens of each row, without what the decoder began with."""
        return self._tokens[:, self._begins :]

    def next(self, choose: Callable[[Tensor, slice], tuple[Tensor, ...]], together: int) -> tuple[Tensor, ...]:
        """Score the next token and choose, some rows at a time.

        Args:
            choose: takes log-probabilities (r, V), which it may change, and the rows that they are of; what it returns
                is joined along the first axis.
            together: rows that must be chosen from at once; the block is a multiple of them.
        """
        states = self._steps(self._tokens)
        if self._processors:
            raw = self._logits(states).float()
            # What may not be said is no candidate of a processor, which removes all that it does not prefer.
            allowed = raw.clone()
            self._constraints(allowed, self._tokens[:, self._begins - 1 :], self.context_of_row)
            forbidden, logits = allowed <= neginf(allowed.dtype), allowed
            for processor in self._processors:
                logits = processor(logits, self.said)
            logits = torch.where(forbidden, raw, logits.float())  # forbidden once more below, after the softmax
            return self._choose(choose, logits, slice(0, len(logits)))
        if self._block is None:
            self._block = max(LEAST_BLOCK, BLOCK_SCORES // self._logits(states[:1]).size(-1))
        block = max(1, self._block // together) * together
        parts = [
            self._choose(choose, self._logits(states[rows]), rows)
            for rows in (slice(at, min(at + block, len(states))) for at in range(0, len(states), block))
        ]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self._model.output(states.unsqueeze(1)).squeeze(1)
        if self._unsaid:
            logits[:, self._unsaid] = -torch.inf
        return self._ends.joined(logits)

    def _choose(
        self, choose: Callable[[Tensor, slice], tuple[Tensor, ...]], logits: Tensor, rows: slice
    ) -> tuple[Tensor, ...]:
        least = neginf(torch.float32)
        removed = logits.float() <= least if self._processors else None
        if self._temperature != 1:
            logits = logits / self._temperature
        logprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        if removed is not None:
            logprobs.masked_fill_(removed, least)  # a temperature moves that score
        self._constraints(logprobs, self._tokens[rows, self._begins - 1 :], self.context_of_row[rows])
        if self._unsaid:
            logprobs[:, self._unsaid] = -torch.inf  # below what is forbidden, should that be all
        return choose(logprobs, rows)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._tokens, self.context_of_row = self._tokens[rows], self.context_of_row[rows]
        self._steps.select(rows)
        for processor in self._processors:
            processor.select(rows)

    def append(self, tokens: Tensor) -> None:
        """Add one token (R,) to each row."""
        self._tokens = torch.cat((self._tokens, tokens[:, None]), dim=1)


def _draw(live: _Live, decoding: Decoding, end: int, null: int, generator: torch.Generator | None) -> Generated:
    """Greedy decoding and sampling: rows that do not compete."""
    contexts, count, device = len(live.context_of_row), decoding.samples, live.context_of_row.device
    rows = contexts * count
    tokens = torch.full((rows, decoding.max_length), null, device=device)
    lengths = torch.full((rows,), decoding.max_length, device=device)
    scores = torch.zeros(rows, device=device)
    slot = torch.arange(rows, device=device)  # which reply a live row writes
    closed = torch.zeros(rows, dtype=torch.bool, device=device)  # of the live rows: ended, and not yet dropped

    def choose(logprobs: Tensor, _: slice) -> tuple[Tensor, Tensor]:
        if decoding.method == "greedy":
            best, token = logprobs.max(-1, keepdim=True)
            return token, best
        draws = count if step == 0 else 1
        if decoding.method == "topk":
            return draw_topk(logprobs, decoding.topk, draws, generator)
        return draw_nucleus(logprobs, decoding.topp, draws, generator)

    for step in range(decoding.max_length):
        chosen, gained = (part.view(-1) for part in live.next(choose, together=1))
        if step == 0 and count > 1:
            live.select(torch.arange(contexts, device=device).repeat_interleave(count))
        live.append(chosen)
        open_rows = ~closed
        tokens[slot[open_rows], step] = chosen[open_rows]
        scores[slot[open_rows]] += gained[open_rows]
        ended = open_rows & (chosen == end)
        if ended.any():
            lengths[slot[ended]] = step + 1
            closed |= ended
            left = (~closed).nonzero().squeeze(-1)
            if not len(left):
                break
            if _worth_dropping(len(closed) - len(left), len(closed)):
                live.select(left)
                slot, closed = slot[left], closed[left]
    longest = int(lengths.max()) if rows else 0
    scores = scores / _penalty(lengths, decoding)
    shape = (contexts, count)
    return Generated(tokens[:, :longest].reshape(*shape, longest), lengths.view(shape), scores.view(shape))


def _beam(live: _Live, decoding: Decoding, end: int, null: int, _: torch.Generator | None) -> Generated:
    """Beam search as ParlAI runs it, until the best place has ended and as many hypotheses as the beam is wide have."""
    contexts, size, device = len(live.context_of_row), decoding.beam_size, live.context_of_row.device
    scores = torch.zeros((contexts, 1), device=device)
    open_context = torch.arange(contexts, device=device)  # which context each beam of the batch answers
    top_ended = torch.zeros(contexts, dtype=torch.bool, device=device)
    found = torch.zeros(contexts, dtype=torch.int64, device=device)
    ended: list[_Hypotheses] = []

    def choose(logprobs: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        places, vocabulary = scores.size(1), logprobs.size(-1)
        if places * vocabulary < size:
            raise SafetyError(
                f"beam_size is {size} for a vocabulary of {vocabulary}",
                "The first step has only that many tokens to fill the beam with",
                "Choose a smaller beam",
            )
        logprobs += scores.view(-1, 1)[rows]
        best, index = logprobs.view(-1, places * vocabulary).topk(size, dim=-1)
        return best, index.div(vocabulary, rounding_mode="floor"), index % vocabulary

    for _step in range(decoding.max_length):
        best, parent, token = live.next(choose, together=scores.size(1))
        first_row = torch.arange(len(best), device=device)[:, None] * scores.size(1)
        live.select((first_row + parent).view(-1))
        live.append(token.view(-1))
        least = neginf(best.dtype)
        over = token == end
        running = ~_done(top_ended, found, size)
        complete = over & (best > least) & running[:, None]
        if over.any():
            if complete.any():
                said = live.said[complete.view(-1)]
                owner = open_context[:, None].expand_as(complete)[complete]
                ended.append(_Hypotheses(owner, said, best[complete]))
                found += complete.sum(-1)
            top_ended |= over[:, 0]
        # What has ended goes on with a score below all others, so that it is chosen no more.
        last, scores = best, best.masked_fill(over, least)
        still = ~_done(top_ended, found, size)
        dropped = len(still) - int(still.sum())
        if dropped == len(still):
            open_context = open_context[:0]
            break
        if _worth_dropping(dropped, len(still)):
            live.select(torch.arange(len(still) * size, device=device).view(-1, size)[still].view(-1))
            open_context, scores, last = open_context[still], scores[still], last[still]
            top_ended, found = top_ended[still], found[still]
    if len(open_context):
        # Where nothing has ended, the best hypothesis is taken as it stands.
        without = found == 0
        said = live.said.view(len(open_context), size, -1)[without, 0]
        ended.append(_Hypotheses(open_context[without], said, last[without, 0]))
    return _best_first(ended, contexts, decoding, null)


def _done(top_ended: Tensor, found: Tensor, size: int) -> Tensor:
    return top_ended & (found >= size)


class _Hypotheses(NamedTuple):
    """Hypotheses that ended at one step: whose they are (F,), their tokens (F, t), their log-probabilities (F,)."""

    owner: Tensor
    tokens: Tensor
    scores: Tensor


def _best_first(ended: list[_Hypotheses], contexts: int, decoding: Decoding, null: int) -> Generated:
    """Gather the hypotheses of each context, the best by penalised score first; equal ones in order of ending."""
    owner = torch.cat([part.owner for part in ended])
    lengths = torch.cat([part.owner.new_full(part.owner.shape, part.tokens.size(1)) for part in ended])
    scores = torch.cat([part.scores for part in ended]) / _penalty(lengths, decoding)
    longest = max(part.tokens.size(1) for part in ended)
    tokens = torch.cat([F.pad(part.tokens, (0, longest - part.tokens.size(1)), value=null) for part in ended])
    order = scores.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    counts = torch.bincount(owner, minlength=contexts)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owner[order]]
    best = min(decoding.samples, int(counts.max()))
    order, rank = order[rank < best], rank[rank < best]
    place = (owner[order], rank)
    shape = (contexts, best)
    return Generated(
        tokens.new_full((*shape, longest), null).index_put_(place, tokens[order]),
        lengths.new_zeros(shape).index_put_(place, lengths[order]),
        scores.new_full(shape, -torch.inf).index_put_(place, scores[order]),
    )


def _penalty(lengths: Tensor, decoding: Decoding) -> Tensor:
    """What a reply's log-probability is divided by: ParlAI counts the start token as well."""
    return ((lengths.double() + 2) / 6).pow(decoding.length_penalty).float()


def _worth_dropping(dropped: int, of: int) -> bool:
    """Moving the caches costs about as much as a step of the rows that it saves does in a few steps."""
    return dropped * 8 >= of
