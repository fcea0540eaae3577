"""Replies and losses of any ParlAI agent, in batches.

The agent's own `observe`/`batch_act` are used, as in ParlAI's batch world; an agent that acts on one message alone is
asked one by one. Nothing is known of the model inside. A reply that the agent did not give is None, never an empty
safe one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.torch_generator_agent import TorchGeneratorAgent
from parlai.core.worlds import create_task

from parlai_safety.agents.generation import FastGenerationMixin, batches, fast_generation, lengths_of
from parlai_safety.message import join_context

INFERENCE = {"skip_generation": False, "interactive_mode": False, "no_cuda": False, "datatype": "valid"}


class Likelihood(NamedTuple):
    """How well a model predicts the labels of a task.

    Attributes:
        perplexity: exp of the mean negative log-likelihood a target token, at least 1.
        examples: how many labels.
    """

    perplexity: float
    examples: int


class Said(NamedTuple):
    """What an agent said in one context.

    Attributes:
        position: of the context.
        text: the reply, or None where the agent gave none.
        reason: why there is none, as far as the agent told; None where there is one.
    """

    position: int
    text: str | None
    reason: str | None


class Loss(NamedTuple):
    """The loss of one label.

    Attributes:
        position: of the example.
        nats: summed negative log-likelihood of its tokens, at least 0.
        tokens: how many, the end token included.
    """

    position: int
    nats: float
    tokens: int


def load_agent(model_file: str, **overrides: Any) -> Any:
    """Load an agent for inference, with ParlAI options overridden (`inference="beam"`, `beam_size=5`, ...)."""
    return quick(create_agent_from_model_file(model_file, {**INFERENCE, **overrides}))


def agent_from(opt: Opt) -> Any:
    """The agent that a command line describes, by model file or by name, made ready for inference."""
    ready = {key: value for key, value in INFERENCE.items() if key != "no_cuda"}  # the user may have said --no-cuda
    opt = Opt({**opt, **ready})
    opt["override"] = {**opt.get("override", {}), **ready}
    return quick(create_agent(opt, requireModelExists=True))


def quick(agent: Any) -> Any:
    """Let a generator of ParlAI's own answer with the batched sampler too; what that does not cover stays ParlAI's."""
    if isinstance(agent, TorchGeneratorAgent) and not isinstance(agent, FastGenerationMixin):
        fast_generation(agent)
    return agent


def replies(
    agent: Any,
    contexts: Sequence[Sequence[str]],
    *,
    seed: int,
    batch_size: int = 64,
    known: Container[int] = (),
    progress: Callable[[int], Any] | None = None,
    heard: Callable[[int, Mapping[str, Any]], Any] | None = None,
) -> Iterator[Said]:
    """Yield a reply for each context, batch by batch; contexts of like length share a batch.

    Batches and their seeds depend on the contexts alone, so a run that is resumed with `known` gives the replies that a
    straight run would have given, sampled ones too. The caller's random state is left as it was.

    Args:
        agent: any ParlAI agent.
        contexts: turns, oldest first, the last one to be answered.
        seed: of sampled decoding; each batch has a seed of its own made from it.
        batch_size: contexts a batch, at least 1.
        known: indices that were answered before; a batch of which all are known is not run.
        progress: called with the number of new replies of each batch.
        heard: called with the index and the whole act of each new reply, before it is yielded.

    Yields:
        Replies out of order, each index at most once.
    """
    clones = [agent.clone() for _ in range(min(batch_size, len(contexts)))]
    for start, chosen, wanted in batches(lengths_of(contexts), batch_size, known):
        messages = [{"text": join_context(contexts[index])} for index in chosen]
        with _seeded(seed * 1_000_003 + start):
            acts = _acts(agent, clones, messages)
        for index, act in zip(chosen, acts, strict=True):
            if index not in known:
                if heard is not None:
                    heard(index, act)
                text = act.get("text")
                said = text if isinstance(text, str) and text.strip() else None
                yield Said(index, said, None if said else str(act.get("error") or "the model gave no reply"))
        if progress is not None:
            progress(len(wanted))


def losses(
    agent: Any,
    contexts: Sequence[Sequence[str]],
    references: Sequence[str],
    *,
    batch_size: int = 64,
    known: Container[int] = (),
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Loss]:
    """Yield the loss of each reference reply (teacher forcing, no generation).

    Args:
        agent: a ParlAI generator that reports its loss per example, as every `TorchGeneratorAgent` does.
        contexts: turns, oldest first.
        references: one reply a context.
        batch_size: examples a batch.
        known: indices whose loss is known; a batch of which all are known is not run.
        progress: called with the number of new losses of each batch.

    Yields:
        Losses out of order; none at all where the agent reports no loss.
    """
    lengths = [length + len(reply) for length, reply in zip(lengths_of(contexts), references, strict=True)]
    was = getattr(agent, "skip_generation", None)
    clones = [agent.clone() for _ in range(min(batch_size, len(contexts)))]
    agent.skip_generation = True
    try:
        for _, chosen, wanted in batches(lengths, batch_size, known):
            messages = [{"text": join_context(contexts[i]), "eval_labels": [references[i]]} for i in chosen]
            acts = _acts(agent, clones, messages)
            for index, act in zip(chosen, acts, strict=True):
                # The loss of a method may be something else; its perplexity is always that of the reference.
                metrics = act.get("metrics", {})
                loss = metrics.get("ppl", metrics.get("loss"))
                if loss is None:
                    return
                if index not in known:
                    yield Loss(index, float(loss._numer), int(loss._denom))
            if progress is not None:
                progress(len(wanted))
    finally:
        if was is None:
            del agent.skip_generation
        else:
            agent.skip_generation = was


def _acts(agent: Any, clones: Sequence[Any], messages: Sequence[dict[str, Any]]) -> list[Any]:
    """One act a message, each message an episode of its own."""
    observations = []
    used = clones[: len(messages)]
    for clone, message in zip(used, messages, strict=True):
        clone.reset()
        observations.append(clone.observe(Message({"id": "context", "episode_done": True, **message})))
    acts = agent.batch_act(observations) if hasattr(agent, "batch_act") else [clone.act() for clone in used]
    for clone, act in zip(used, acts, strict=True):
        if hasattr(clone, "self_observe"):
            clone.self_observe(act)
    return list(acts)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every generator that an agent may draw from, and put their states back."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def likelihood(agent: Any, task: str, *, split: str = "test", batch_size: int = 64, **options: Any) -> Likelihood:
    """The perplexity of an agent on a task's labels (teacher forcing, no generation).

    Args:
        agent: a ParlAI generator.
        task: as after `-t`.
        split: "valid" or "test".
        batch_size: examples a batch.
        options: further options of the task, such as `safety_datapath`.
    """
    opt = agent.opt.copy()
    opt.update({"task": task, "datatype": split, "batchsize": batch_size, "skip_generation": True, **options})
    was = agent.skip_generation
    agent.skip_generation = True
    try:
        world = create_task(opt, agent)
        while not world.epoch_done():
            world.parley()
        report = world.report()
        world.shutdown()
    finally:
        agent.skip_generation = was
        agent.reset()
    return Likelihood(float(report["ppl"]), int(report["exs"]))
