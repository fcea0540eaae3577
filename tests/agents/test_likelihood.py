"""The loss that an evaluation reads from an agent is the likelihood of the reply, whatever the method's own loss is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parlai.core.message import Message

from parlai_safety.evaluation.generate import losses
from tests.agents.small import options, run, write_talk
from tests.agents.small_pairs import pair_options, write_pairs

CONTEXTS = [["How are you?"], ["What do you like?"], ["What do you think of me?"]]
REPLIES = ["Fine, thanks, and you?", "I like trains and long walks.", "You are a dim lamp."]


@pytest.fixture(params=["mle", "cringe", "unlikelihood", "scones", "director", "pairwise_cringe", "click"])
def agent(request, tmp_path):
    if request.param in ("pairwise_cringe", "click"):
        kwargs = pair_options(f"safety:{request.param}", write_pairs(tmp_path / "data"), tmp_path / "m" / "model")
    else:
        kwargs = options(f"safety:{request.param}", write_talk(tmp_path / "talk.jsonl"), tmp_path / "m" / "model")
    return run(**kwargs)[0].agent


def softmax_cost(agent, context, reply):
    """Nats of the reply under the softmax of the agent's language model, and its tokens, by ParlAI's own forward."""
    message = Message({"text": context[0], "labels": [reply], "episode_done": True})
    batch = agent.batchify([agent.clone().observe(message)])
    model = agent.model
    with torch.no_grad():
        layer = getattr(model, "language_model", model).output  # a directed model's own is the combined one
        states, _ = model.decoder(
            torch.cat((torch.full((1, 1), agent.START_IDX), batch.label_vec[:, :-1]), 1),
            model.encoder(*agent._encoder_input(batch)),
        )
        logits = layer(states)[0]
    return F.cross_entropy(logits, batch.label_vec[0], reduction="sum").item(), batch.label_vec.size(1)


def test_an_evaluation_reads_the_likelihood_alone_and_in_a_batch(agent):
    agent.model.eval()
    expected = [softmax_cost(agent, context, reply) for context, reply in zip(CONTEXTS, REPLIES, strict=True)]
    for size in (1, 3):
        found = sorted(losses(agent, CONTEXTS, REPLIES, batch_size=size))
        assert [loss.tokens for loss in found] == [tokens for _, tokens in expected]
        assert [loss.nats for loss in found] == pytest.approx([nats for nats, _ in expected], rel=1e-4)
