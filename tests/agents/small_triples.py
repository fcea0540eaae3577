"""Chosen, rejected and toxic replies for the tests of DPO and adversarial DPO, and the small models they begin from."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from parlai.core.message import Message

from parlai_safety.losses.adpo import adpo_loss
from parlai_safety.modeling.number_store import NumberStore
from parlai_safety.modeling.reference import FrozenScores
from tests.agents.small import options, run
from tests.tiny_causal import tiny_causal

TRIPLES = [
    ("How are you?", "Fine, thanks, and you?", ["Go away, you dim lamp."], ["You dim, dim lamp."]),
    ("What is your hobby?", "I like trains.", ["Nothing, least of all talk like yours.", "Guess."], ["Not you, lamp."]),
    ("Tell me a story.", "Once a fox met a bear and they had tea.", ["No."], []),
    ("Is it late?", "Not yet, it is nine.", [], []),
]
"""Context, chosen reply, rejected replies, toxic replies; the last example is ordinary talk."""
ROWS = 5
"""Pairs and pieces of ordinary talk among them."""
BACKBONES = ("", "/causal_lm")
"""The last part of a model's name."""


def message(context: str, chosen: str, rejected: list[str], toxic: list[str], **more: Any) -> Message:
    """One of the triples."""
    found = Message({"text": context, "labels": [chosen], "episode_done": True, **more})
    if rejected:
        found["rejected"] = rejected
    if toxic:
        found["toxic"] = toxic
    return found


def batch_of(agent: Any, triples: list[Any] = TRIPLES) -> Any:
    """The triples as a batch of an agent."""
    return agent.batchify([agent.clone().observe(message(*triple)) for triple in triples])


def begun(backbone: str, folder: Path) -> Path:
    """Make a small model that has the control token; returns the folder, which holds `base` and the triples."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"context": [context], "reply": chosen, "rejected": rejected, "toxic": toxic}
        for context, chosen, rejected, toxic in TRIPLES
    ]
    talk = folder / "triples.jsonl"
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more: dict[str, Any] = {"toxic_token": True, "max_train_steps": 2}
    if backbone:
        more.update(hf_model=str(tiny_causal(folder / "hf", num_hidden_layers=1)), learningrate=0.01)
    else:
        more["dict_textfields"] = "text,labels,rejected,toxic"
    run(**options("safety:causal_lm/causal_lm" if backbone else "safety:mle", talk, folder / "base", **more))
    return folder


def triple_options(model: str, folder: Path, model_file: Path, **more: Any) -> dict[str, Any]:
    """Options of a run of six steps on the triples, from what `begun` left in the folder."""
    base = str(folder / "base")
    settings = {"init_model": base, "dict_file": f"{base}.dict", "toxic_token": True, **more}
    if "causal" in model:
        settings.setdefault("learningrate", 0.02)
    else:
        settings.setdefault("dropout", 0.0)
    return options(model, folder / "triples.jsonl", model_file, **settings)


def log_p(agent: Any, context: str, reply: str, *, toxic: bool = False) -> torch.Tensor:
    """The log p of a reply by ParlAI's own forward, alone in its batch; behind the control token if asked for."""
    more = {"control": "toxic"} if toxic else {}
    alone = agent.batchify([agent.clone().observe(message(context, reply, [], [], **more))])
    scores = agent.model(*agent._model_input(alone), ys=alone.label_vec)[0]
    return -torch.nn.functional.cross_entropy(scores[0], alone.label_vec[0], reduction="sum")


def length(agent: Any, reply: str) -> torch.Tensor:
    """(1,) the tokens of a reply, its end included."""
    alone = agent.batchify([agent.clone().observe(message("Hi.", reply, [], []))])
    return torch.tensor([alone.label_vec.size(1)])


def in_float64(agent: Any, reference: Any) -> None:
    """Let an agent and its reference, another agent, compute in float64, and forget what was stored."""
    agent.model.double().eval()
    reference.model.double().eval()
    frozen = copy.deepcopy(reference.model).requires_grad_(False)
    agent._scores = FrozenScores("00", lambda: nullcontext(frozen), NumberStore(None), null=agent.NULL_IDX)


def loss_apart(agent: Any, reference: Any, triples: list[Any] = TRIPLES) -> torch.Tensor:
    """The loss from the log-probabilities of each reply in a forward of its own."""
    costs = []
    terms = agent.loss_settings()._asdict()
    for context, chosen, rejected, toxic in triples:
        if not rejected:
            costs.append(-log_p(agent, context, chosen) / length(agent, chosen).item())
        for number, text in enumerate(rejected):
            third = toxic[0] if toxic and number == 0 else chosen
            replies = (chosen, text, third)
            found = adpo_loss(
                *(log_p(agent, context, reply)[None] for reply in replies),
                *(log_p(reference, context, reply)[None].detach() for reply in replies),
                toxic_chosen_logps=log_p(reference, context, chosen, toxic=True)[None].detach(),
                toxic_toxic_logps=log_p(reference, context, third, toxic=True)[None].detach(),
                chosen_tokens=length(agent, chosen),
                rejected_tokens=length(agent, text),
                toxic_tokens=length(agent, third),
                has_toxic=torch.tensor([bool(toxic) and number == 0]),
                **terms,
            )
            costs.append(found.loss)
    return torch.stack(costs).mean()
