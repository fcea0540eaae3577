"""Replies and perplexities of any ParlAI agent, in batches.

The agent's own `observe`/`batch_act` are used, as in ParlAI's batch world; nothing is known of the model inside. A
reply that the agent did not give is None, never an empty safe one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from parlai.core.agents import create_agent_from_model_file
from parlai.core.message import Message
from parlai.core.worlds import create_task

from parlai_safety.message import join_context


class Likelihood(NamedTuple):
    """How well a model predicts the labels of a task.

    Attributes:
        perplexity: exp of the mean negative log-likelihood a target token, at least 1.
        examples: how many labels.
    """

    perplexity: float
    examples: int


def load_agent(model_file: str, **overrides: Any) -> Any:
    """Load an agent for inference, with ParlAI options overridden (`inference="beam"`, `beam_size=5`, ...)."""
    defaults = {"skip_generation": False, "interactive_mode": False, "no_cuda": False, "datatype": "valid"}
    return create_agent_from_model_file(model_file, {**defaults, **overrides})


def replies(
    agent: Any,
    contexts: Sequence[Sequence[str]],
    *,
    seed: int,
    batch_size: int = 64,
    known: Container[int] = (),
    progress: Callable[[int], Any] | None = None,
) -> Iterator[tuple[int, str | None]]:
    """Yield (index, reply) for each context, batch by batch; contexts of like length share a batch.

    Batches and their seeds depend on the contexts alone, so a run that is resumed with `known` gives the replies that a
    straight run would have given, sampled ones too. The caller's random state is left as it was.

    Args:
        agent: a ParlAI agent that can act in batches.
        contexts: turns, oldest first, the last one to be answered.
        seed: of sampled decoding; each batch has a seed of its own made from it.
        batch_size: contexts a batch, at least 1.
        known: indices that were answered before; a batch of which all are known is not run.
        progress: called with the number of new replies of each batch.

    Yields:
        Indices come out of order, each at most once; the reply is None where the agent gave no text.
    """
    order = sorted(range(len(contexts)), key=lambda i: (sum(map(len, contexts[i])), i))
    clones = [agent.clone() for _ in range(min(batch_size, len(order)))]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        wanted = [index for index in chosen if index not in known]
        if not wanted:
            continue
        observations = []
        for clone, index in zip(clones, chosen, strict=False):
            clone.reset()
            message = {"id": "context", "text": join_context(contexts[index]), "episode_done": True}
            observations.append(clone.observe(Message(message)))
        with torch.random.fork_rng():
            torch.manual_seed(seed * 1_000_003 + start)
            acts = agent.batch_act(observations)
        for clone, index, act in zip(clones, chosen, acts, strict=False):
            clone.self_observe(act)
            if index not in known:
                text = act.get("text")
                yield index, text if text and text.strip() else None
        if progress is not None:
            progress(len(wanted))


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
