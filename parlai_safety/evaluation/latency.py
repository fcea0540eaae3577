"""How long a person waits for a reply: several systems, one message at a time, interleaved on one machine.

Two runs one after the other differ by whatever else the machine did meanwhile; systems that answer the same context in
turn share that, and the median of their ratios does not care for single slow replies. Left out: batches, the loading of
a model, and the first replies of each system, which warm it up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from parlai.core.message import Message

from parlai_safety.message import join_context

WARM_UP = 3


class Latency(NamedTuple):
    """How long one system takes for a reply.

    Attributes:
        milliseconds: median over contexts, at least 0.
        ratio: median over contexts of its time divided by the first system's for the same context.
    """

    milliseconds: float
    ratio: float


def latencies(agents: Mapping[str, Any], contexts: Sequence[Sequence[str]], *, seed: int) -> dict[str, Latency]:
    """The latency of each agent.

    Args:
        agents: name -> agent of ParlAI, ready to speak; the first one is what the others are compared with.
        contexts: turns, oldest first; every agent answers each of them as an episode of its own.
        seed: of sampled decoding; the agents draw alike.

    Returns:
        Name -> latency; observing the message, judging it and replying are all in it.

    Raises:
        ValueError: there is no context.
    """
    names = list(agents)
    for name in names:
        for context in contexts[:WARM_UP]:
            _seconds(agents[name], context, seed)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number, context in enumerate(contexts):
        first = number % len(names)  # none of them always comes first
        for name in names[first:] + names[:first]:
            taken[name].append(_seconds(agents[name], context, seed + number))
    base = taken[names[0]]
    return {
        name: Latency(
            1000 * statistics.median(seconds),
            statistics.median(one / other for one, other in zip(seconds, base, strict=True)),
        )
        for name, seconds in taken.items()
    }


def _seconds(agent: Any, context: Sequence[str], seed: int) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        agent.reset()
        began = time.perf_counter()
        agent.observe(Message({"id": "context", "text": join_context(context), "episode_done": True}))
        agent.act()
        return time.perf_counter() - began
