"""Replies of a `TorchGeneratorAgent` by the batched sampler of `parlai_safety.modeling.sampler`, in place of ParlAI's.

An agent of ours takes it with `FastGenerationMixin`; a loaded agent of ParlAI takes it with `fast_generation`. The
options of ParlAI decide as before. What the sampler does not cover goes through ParlAI's own search, with a line in the
log that names it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch
from parlai.core.torch_generator_agent import TorchGeneratorAgent, TorchGeneratorModel
from parlai.utils.misc import warn_once
from torch import Tensor

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.message import join_context
from parlai_safety.modeling.sampler import METHODS, Decoding, Generated, generate
from parlai_safety.options import add_options, option, options_from

PARLAI_SEARCH = ("_generate", "_treesearch_factory", "_generation_activation", "_get_next_decoder_input")
"""The methods of ParlAI's search that the sampler stands in for; an agent with one of its own keeps ParlAI's search."""


@dataclass(frozen=True)
class GenerationOptions:
    """How replies are searched for; the options of ParlAI say what is searched for."""

    generation: str = option("fast", "The batched sampler, or ParlAI's own search.", choices=("fast", "parlai"))


class Replies(NamedTuple):
    """Replies to one context.

    Attributes:
        position: of the context.
        texts: n replies; an empty text where the model ended at once. Of a beam, which is at least n wide, best first,
            and maybe fewer than n. None at all for a context without text.
        scores: one a reply: log-probability over length penalty, nats.
    """

    position: int
    texts: list[str]
    scores: list[float]


class _Found:
    """The replies to one context, where ParlAI expects a finished beam."""

    def __init__(self, replies: list[tuple[Tensor, Tensor, None]]) -> None:
        self._replies = replies

    def get_rescored_finished(self, n_best: int | None = None) -> list[tuple[Tensor, Tensor, None]]:
        """The replies as (tokens with the start token, score, no details), the best first."""
        return self._replies[:n_best]


class FastGenerationMixin:
    """Put this before a `TorchGeneratorAgent` class: it answers with the batched sampler.

    An agent that has a method `logits_processors(batch)` has what it returns applied at each step; the search of ParlAI
    knows no such thing, so there such an agent cannot fall back on it. An agent's `also_end` names further tokens that
    end a reply, which ParlAI's search takes for others. Its `unsaid` names tokens that neither search ever says.
    """

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add `--generation` to the backbone's flags."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        add_options(parser, GenerationOptions, "Generation")
        return parser

    def _load_beam_block_list(self) -> Any:
        """ParlAI's list of phrases.

        Raises:
            SafetyError: it is named and there is none.
        """
        listed = super()._load_beam_block_list()  # type: ignore[misc]
        _check_block_list(self.opt, listed)
        return listed

    def _generate(self, batch: Batch, beam_size: int, max_ts: int, prefix_tokens: Tensor | None = None) -> Any:
        _check_prefix(self, prefix_tokens)
        wanted = options_from(self.opt, GenerationOptions).generation
        reason = why_not(self) if wanted == "fast" else "--generation parlai"
        if reason is None:
            return _search(self, batch, beam_size, max_ts, prefix_tokens)
        if hasattr(self, "logits_processors"):
            raise SafetyError(
                f"The batched sampler cannot answer here ({reason})",
                f"{type(self).__name__} changes the scores of each token, which ParlAI's own search leaves out",
                "Leave that option out, or choose another agent",
            )
        if wanted == "fast":
            warn_once(f"ParlAI's own search is used: the batched sampler does not cover {reason}.")
        with _unsaid(self):
            return _owner(type(self), "_generate")._generate(self, batch, beam_size, max_ts, prefix_tokens)

    opt: Opt


def fast_generation(agent: Any) -> None:
    """Make a loaded `TorchGeneratorAgent` answer with the batched sampler from now on, and its clones too.

    The path under which the agent is saved stays that of its own class. Doing it twice changes nothing.

    Raises:
        SafetyError: the agent is no `TorchGeneratorAgent`, or its `--beam-block-list-filename` gave it no phrase.
    """
    if not isinstance(agent, TorchGeneratorAgent):
        raise SafetyError(
            f"The agent is a {type(agent).__name__}",
            "The sampler drives the decoder of a TorchGeneratorAgent",
            "Use such an agent, or leave its own generation as it is",
        )
    _check_block_list(agent.opt, agent.beam_block_list)
    agent.opt["generation"] = "fast"
    if not isinstance(agent, FastGenerationMixin):
        agent.__class__ = _fast_class(type(agent))  # type: ignore[arg-type]


@functools.cache
def _fast_class(kind: type[Any]) -> type[Any]:
    # The agent's own class comes first, as a loaded agent can change its class only to one of the same layout.
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, FastGenerationMixin), {**names, "_generate": FastGenerationMixin._generate})


def _owner(kind: type[Any], name: str) -> Any:
    """The class that defines a method of ParlAI's search, beside the mixin of this module."""
    ours = vars(FastGenerationMixin).get(name)
    return next(c for c in kind.__mro__ if name in vars(c) and vars(c)[name] is not ours)


def why_not(agent: Any, *, inference: str | None = None) -> str | None:
    """What the sampler does not cover of this agent, as an option or a part of it; None where it covers all.

    Args:
        agent: any agent.
        inference: the method in place of the one that the agent's options name.
    """
    if not isinstance(agent, TorchGeneratorAgent):
        return f"{type(agent).__name__}, which is no TorchGeneratorAgent"
    inference = inference or agent.opt.get("inference", "greedy")
    if inference not in METHODS:
        return f"--inference {inference}"
    if agent.show_token_details:
        return "--verbose, which asks for details of each token"
    if inference == "greedy" and agent.beam_size != 1:
        return f"--beam-size {agent.beam_size} with --inference greedy"
    for name in PARLAI_SEARCH:
        if _owner(type(agent), name) is not TorchGeneratorAgent:
            return f"{type(agent).__name__}, which has a {name} of its own"
    if not isinstance(_model(agent), TorchGeneratorModel):
        return f"the model {type(_model(agent)).__name__}, which is no TorchGeneratorModel"
    return None


def decoding_of(agent: Any, *, max_length: int, **overrides: Any) -> Decoding:
    """The decoding that an agent's options describe; ParlAI's beams of sampled replies are `samples` of ours.

    Args:
        agent: a `TorchGeneratorAgent`.
        max_length: new tokens of a reply, the end token included.
        overrides: fields of `Decoding` that count in place of the options; `method` decides which options are read.

    Raises:
        SafetyError: a field is unknown, or a value is out of range.
    """
    fields = [field.name for field in dataclasses.fields(Decoding)]
    for name in overrides:
        if name not in fields:
            raise SafetyError(
                f"There is no decoding option {name!r}",
                f"The options are {', '.join(fields)}",
                did_you_mean(name, fields, "Choose one of them"),
            )
    opt = agent.opt
    method = overrides.get("method", opt.get("inference", "greedy"))
    beam = method == "beam"
    phrases = agent.beam_block_list.items() if agent.beam_block_list is not None else ()
    described = {
        "method": method,
        "beam_size": agent.beam_size if beam else 1,
        "topk": opt.get("topk", 10),
        "topp": opt.get("topp", 0.9),
        "temperature": agent.temperature,
        "min_length": 0 if method == "greedy" else max(0, agent.beam_min_length),  # as ParlAI's greedy search
        "max_length": max_length,
        "block_ngram": agent.beam_block_ngram,
        "context_block_ngram": agent.beam_context_block_ngram,
        "length_penalty": opt.get("beam_length_penalty", 0.65),
        "blocked": tuple(tuple(phrase) for size, listed in phrases if size for phrase in listed),
        "samples": 1 if beam else agent.beam_size,
    }
    return Decoding(**{**described, **overrides})


def lengths_of(contexts: Sequence[Sequence[str]]) -> list[int]:
    """The letters of each context."""
    return [sum(map(len, context)) for context in contexts]


def batches(
    lengths: Sequence[int], batch_size: int, known: Container[int]
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Batches of items of like length, the same ones whatever is known.

    Args:
        lengths: of the items.
        batch_size: items a batch, at least 1.
        known: indices that are done; a batch of which all are known is left out.

    Yields:
        Where the batch stands among all, its indices, and those that are not known.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        wanted = [index for index in chosen if index not in known]
        if wanted:
            yield start, chosen, wanted


def sample_replies(
    agent: Any,
    contexts: Sequence[Sequence[str]],
    *,
    samples: int,
    seed: int,
    batch_size: int = 64,
    known: Container[int] = (),
    progress: Callable[[int], Any] | None = None,
    **overrides: Any,
) -> Iterator[Replies]:
    """Yield several replies for each context, from one encoding, batch by batch.

    Batches and their seeds depend on the contexts alone, so a run that is resumed with `known` gives the replies that a
    straight run would have given. No random state but its own is drawn from. The model is left in evaluation mode.

    Args:
        agent: a `TorchGeneratorAgent`.
        contexts: turns, oldest first, the last one to be answered.
        samples: replies a context, at least 1.
        seed: each batch has a seed of its own made from it.
        batch_size: contexts a batch, at least 1.
        known: indices that were answered before; a batch of which all are known is not run.
        progress: called with the number of new contexts of each batch.
        overrides: fields of `Decoding` in place of what the agent's options say, such as `method="nucleus"`.

    Yields:
        Replies out of order, each index at most once.

    Raises:
        SafetyError: the sampler does not cover the agent, or an override is out of range.
    """
    reason = why_not(agent, inference=overrides.get("method"))
    if reason is not None:
        raise SafetyError(
            f"The batched sampler does not cover {reason}",
            "Several replies from one encoding are found by that sampler alone",
            "Load the agent with options that it covers: greedy, beam, topk or nucleus, and no --verbose",
        )
    length = agent.label_truncate or 256
    decoding = decoding_of(agent, **{"max_length": length, **overrides, "samples": samples})
    if decoding.method == "beam":
        decoding = dataclasses.replace(decoding, beam_size=max(decoding.beam_size, samples))
    clones = [agent.clone() for _ in range(min(batch_size, len(contexts)))]
    for start, chosen, wanted in batches(lengths_of(contexts), batch_size, known):
        batch = _batch(agent, clones, [join_context(contexts[index]) for index in chosen])
        answered = {}
        if batch.text_vec is not None:  # beside others, ParlAI gives a context without text a row of padding
            told = (batch.text_vec != agent.NULL_IDX).any(1).tolist()
            answered = {row: int(place) for row, place in enumerate(batch.valid_indices) if told[row]}
        yield from (Replies(i, [], []) for j, i in enumerate(chosen) if j not in answered.values() and i in wanted)
        if not answered:
            if progress is not None:
                progress(len(wanted))
            continue
        device = batch.text_vec.device
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + start)
        agent.model.eval()
        prefix = agent.get_prefix_tokens(batch)
        _check_prefix(agent, prefix)
        found = _run(agent, batch, decoding, prefix, generator)
        lengths, scores, tokens = found.lengths.tolist(), found.scores.tolist(), found.tokens.cpu()
        for row, place in answered.items():
            index = chosen[place]
            if index not in known:
                kept = [j for j, length in enumerate(lengths[row]) if length]
                texts = [agent._v2t(tokens[row, j, : lengths[row][j]]) for j in kept]
                yield Replies(index, texts, [scores[row][j] for j in kept])
        if progress is not None:
            progress(len(wanted))


def _model(agent: Any) -> Any:
    """The generator itself, out of its data-parallel wrapper."""
    wrapped = isinstance(agent.model, torch.nn.parallel.DistributedDataParallel)
    return agent.model.module if wrapped else agent.model


def _run(
    agent: Any, batch: Batch, decoding: Decoding, prefix: Tensor | None, generator: torch.Generator | None = None
) -> Generated:
    """Answer a batch with what the agent says beside its options: encoder's input, first tokens, processors."""
    vectors = batch.text_vec if batch.text_vec is not None else batch.label_vec
    context = agent._get_batch_context(batch) if decoding.context_block_ngram > 0 else None
    return generate(
        _model(agent),
        agent._encoder_input(batch),
        decoding,
        start=agent._get_initial_decoder_input(1, 1, vectors.device)[0].tolist(),
        end=agent.END_IDX,
        null=agent.NULL_IDX,
        also_end=getattr(agent, "also_end", ()),
        unsaid=getattr(agent, "unsaid", ()),
        context=context,
        prefix=prefix,
        processors=agent.logits_processors(batch) if hasattr(agent, "logits_processors") else (),
        generator=generator,
    )


def _check_block_list(opt: Opt, listed: Any) -> None:
    """ParlAI goes on without the list where its file cannot be read."""
    named = opt.get("beam_block_list_filename")
    if named and not listed:
        raise SafetyError(
            f"--beam-block-list-filename got {str(named)!r}, and no phrase could be read there",
            "Replies would be said of which nothing is blocked",
            "Give a file of one word or phrase a line, or leave the flag out; a model that was saved with it takes "
            "--beam-block-list-filename ''",
        )


def _check_prefix(agent: Any, prefix: Tensor | None) -> None:
    unsaid = torch.tensor(getattr(agent, "unsaid", ()), dtype=torch.int64)
    if prefix is not None and torch.isin(prefix.cpu(), unsaid).any():
        raise SafetyError(
            f"Replies were to begin with one of the tokens {unsaid.tolist()}",
            f"{type(agent).__name__} never says them",
            "Leave them out of what get_prefix_tokens returns",
        )


@contextmanager
def _unsaid(agent: Any) -> Iterator[None]:
    """Let ParlAI's search give what an agent never says a score that no other one is below."""
    ids = list(getattr(agent, "unsaid", ()))
    if not ids:
        yield
        return
    activation = agent._generation_activation

    def without(score: Tensor) -> Any:
        return activation(score.index_fill(-1, torch.tensor(ids, device=score.device), -torch.inf))

    agent._generation_activation = without
    try:
        yield
    finally:
        del agent._generation_activation


def _search(
    agent: Any, batch: Batch, beam_size: int, max_ts: int, prefix_tokens: Tensor | None
) -> tuple[list[tuple[Tensor, Tensor, None]], list[_Found]]:
    """What ParlAI's `_generate` returns, found by the sampler."""
    decoding = decoding_of(agent, max_length=max_ts)
    if decoding.method == "beam":
        # All hypotheses that have ended, of which there may be as many at each step as the beam is wide.
        decoding = dataclasses.replace(decoding, beam_size=beam_size, samples=beam_size * max_ts)
    else:
        decoding = dataclasses.replace(decoding, samples=beam_size)
    found = _run(agent, batch, decoding, prefix_tokens)
    first = found.tokens.new_tensor([agent.START_IDX])
    beams = [
        _as_parlai(found.tokens[row], found.lengths[row].tolist(), found.scores[row], first, agent.END_IDX)
        for row in range(len(found.tokens))
    ]
    if hasattr(agent, "_rerank_beams"):
        beams = agent._rerank_beams(batch, beams)
    return [replies[0] for replies in beams], [_Found(replies) for replies in beams]


def _as_parlai(
    tokens: Tensor, lengths: list[int], scores: Tensor, first: Tensor, end: int
) -> list[tuple[Tensor, Tensor, None]]:
    """One context's replies as ParlAI gives them: those that ended, the best first; else the first, made to end."""
    said = [tokens[j, :length] for j, length in enumerate(lengths)]
    ended = [j for j, reply in enumerate(said) if len(reply) and reply[-1] == end]
    if not ended:
        said[0] = torch.cat((said[0][:-1], said[0].new_tensor([end])))
        ended = [0]
    ended.sort(key=lambda j: -float(scores[j]))
    return [(torch.cat((first, said[j])), scores[j], None) for j in ended]


def _batch(agent: Any, clones: Sequence[Any], texts: Sequence[str]) -> Batch:
    observations = []
    for clone, text in zip(clones, texts, strict=False):
        clone.reset()
        observations.append(clone.observe(Message({"id": "context", "text": text, "episode_done": True})))
    return agent.batchify(observations)
