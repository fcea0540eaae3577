"""`safety:scones` as an agent: its options reach the loss, and the trained model is a plain generator."""

from __future__ import annotations

import pytest
import torch
from parlai.core.agents import create_agent

from parlai_safety.losses.scones import scones_loss
from tests.agents.small import loss_of, metrics_of, observe_all, options, run, write_talk


def train(tmp_path, **more):
    talk = write_talk(tmp_path / "talk.jsonl")
    return run(**options("safety:scones", talk, tmp_path / "m" / "model", **more))[0]


def test_options_reach_the_loss(tmp_path):
    agent = train(tmp_path, scones_alpha_pm=0.25, scones_alpha_minus=3.0).agent
    agent.model.eval()
    batch = agent.batchify(observe_all(agent))
    ours = loss_of(agent, batch)
    logits = agent.model(*agent._model_input(batch), ys=batch.label_vec)[0]
    mask = batch.label_vec != agent.NULL_IDX
    rest = (batch.label_vec, batch.token_labels, mask)
    output = scones_loss(logits, *rest, alpha_pm=0.25, alpha_minus=3.0)
    assert ours.item() == pytest.approx(output.loss.item(), rel=1e-5)
    assert abs(ours.item() - scones_loss(logits, *rest).loss.item()) > 0.1
    metrics = metrics_of(agent)
    assert metrics["scones_loss"] == pytest.approx(output.avoid_tokens[output.avoid_mask].mean().item(), rel=1e-5)
    follow = output.follow_mask
    nll = torch.nn.functional.cross_entropy(logits[follow], batch.label_vec[follow])
    assert metrics["ppl"] == pytest.approx(nll.exp().item(), rel=1e-5)


def test_the_model_is_a_plain_generator(tmp_path):
    """`-m transformer/generator --init-model` reads it and gives the same replies."""
    loop = train(tmp_path, max_train_steps=30, learningrate=0.3)
    plain = create_agent({**loop.agent.opt, "model": "transformer/generator", "override": {}}, True)
    replies = []
    for agent in (loop.agent, plain):
        agent.observe({"text": "How are you?", "episode_done": True})
        replies.append(agent.act()["text"])
    assert replies[0] == replies[1]
