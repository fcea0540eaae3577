"""Pairs of replies for the tests of the agents that learn from them; all contexts are of the train split."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from parlai.core.message import Message

from tests.agents.small import loss_of, options, run

PAIRS = [
    ("How are you?", "Fine, thanks, and you?", ["Go away, you dim lamp."]),
    ("What is your hobby?", "I like trains and long walks.", ["Nothing, least of all talk like yours, lamp."]),
    ("Tell me a story.", "Once a fox met a bear.", ["No, and do not ask me again.", "You would not get it, lamp."]),
    ("Is it late?", "Not yet, it is nine.", []),
]
"""Context, chosen reply, rejected replies; the last example is ordinary talk."""


def write_pairs(folder: Path) -> Path:
    """The pairs as the file that `-t safety:pairs` reads; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "preference_pairs.jsonl.gz", "wt", encoding="utf-8") as stream:
        for context, chosen, rejected in PAIRS:
            for text in rejected:
                row = {"context": [context], "chosen": chosen, "rejected": text, "source": "test"}
                stream.write(json.dumps(row) + "\n")
    return folder


def pair_options(model: str, folder: Path, model_file: Path, **more: Any) -> dict[str, Any]:
    """Options of a run of six steps on those pairs, without dropout: it draws from a state that nothing saves."""
    settings = {"task": "safety:pairs", "safety_datapath": str(folder), "dropout": 0.0}
    if "bart" in model:
        settings["attention_dropout"] = 0.0
    kwargs = options(model, folder, model_file, **{**settings, **more})
    if kwargs["task"] == "safety:pairs":
        del kwargs["safety_file"]
    return kwargs


def observe_pairs(agent: Any, pairs: list[Any] = PAIRS) -> list[Message]:
    """The pairs as observations of clones of an agent."""
    found = []
    for context, chosen, rejected in pairs:
        message = Message({"text": context, "labels": [chosen], "classifier_label": "pos", "episode_done": True})
        if rejected:
            message["rejected"] = rejected
        found.append(agent.clone().observe(message))
    return found


def scores_apart(agent: Any, context: str, reply: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, T, V) and targets (1, T) of one reply by ParlAI's own forward, alone in its batch."""
    message = Message({"text": context, "labels": [reply], "episode_done": True})
    batch = agent.batchify([agent.clone().observe(message)])
    return agent.model(*agent._model_input(batch), ys=batch.label_vec)[0], batch.label_vec


def trained(model: str, tmp_path: Path, **more: Any) -> Any:
    """An agent after a short run."""
    loop, _ = run(**pair_options(model, write_pairs(tmp_path / "data"), tmp_path / "m" / "model", **more))
    return loop.agent


def evaluated(agent: Any, batch: Any) -> torch.Tensor:
    """The loss of a batch without gradient."""
    with torch.no_grad():
        return loss_of(agent, batch)
