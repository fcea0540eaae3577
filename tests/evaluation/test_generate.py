"""Asking an agent: replies and losses do not depend on how often one was interrupted."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from parlai_safety.evaluation.generate import likelihood, load_agent, losses, replies
from parlai_safety.loops.training import train
from parlai_safety.tasks.tiny.agents import ordinary_rows
from tests.conftest import TINY_MODEL
from tests.evaluation.fakes import Parrot


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("generate") / "model"
    train(
        "tiny", model_file=path, max_train_steps=20, seed=1, model="transformer/generator", task="safety:tiny:ordinary",
        batchsize=16, optimizer="adam", learningrate=0.01, dict_maxexs=200, **TINY_MODEL,
    )  # fmt: skip
    return load_agent(str(path), loglevel="error", inference="topk", topk=5, beam_min_length=2)


@pytest.fixture(scope="module")
def rows():
    return list(itertools.islice(ordinary_rows("test"), 90))


@pytest.mark.parametrize("kind", ["transformer", "parrot"])
def test_replies_are_the_same_however_they_are_asked_for(kind, model, rows):
    agent = model if kind == "transformer" else Parrot({"id": "parrot"})
    contexts = [row.context for row in rows]
    settings = {"seed": 7, "batch_size": 16}
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    before = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    straight = {said.position: said.text for said in replies(agent, contexts, **settings)}
    assert (torch.rand(1), random.random(), np.random.rand()) == before, "the caller's random states are untouched"
    assert sorted(straight) == list(range(90))
    part = {s.position: s.text for s in itertools.islice(replies(agent, contexts, **settings), 23)}
    rest = {s.position: s.text for s in replies(agent, contexts, known=frozenset(part), **settings)}
    assert not set(part) & set(rest)
    assert {**part, **rest} == straight
    assert len(set(straight.values())) > 3
    other = {s.position: s.text for s in replies(agent, contexts, seed=8, batch_size=16)}
    assert other != straight


def test_no_context_leaks_into_another(model, rows):
    """Greedy replies to a context alone and among others are the same."""
    greedy = model.clone()
    greedy.opt = {**greedy.opt, "inference": "greedy"}
    contexts = [row.context for row in rows[:12]]
    together = {s.position: s.text for s in replies(greedy, contexts, seed=1, batch_size=5)}
    alone = [next(iter(replies(greedy, [context], seed=1))).text for context in contexts]
    assert [together[i] for i in range(12)] == alone


def test_losses_give_the_perplexity_of_parlai(model, rows):
    every = list(ordinary_rows("test"))
    found = list(losses(model, [row.context for row in every], [row.reply for row in every], batch_size=16))
    assert sorted(loss.position for loss in found) == list(range(len(every)))
    perplexity = math.exp(sum(loss.nats for loss in found) / sum(loss.tokens for loss in found))
    parlai = likelihood(model, "safety:tiny:ordinary", batch_size=32)
    assert parlai.examples == len(every)
    assert perplexity == pytest.approx(parlai.perplexity, rel=1e-4)
    assert model.skip_generation is False
    again = {s.position: s.nats for s in losses(model, [row.context for row in every], [row.reply for row in every],
                                                 batch_size=16, known=frozenset(range(40)))}  # fmt: skip
    assert again == {s.position: s.nats for s in found if s.position >= 40}


def test_an_agent_that_tells_no_loss_has_none(rows):
    assert list(losses(Parrot({"id": "parrot"}), [rows[0].context], [rows[0].reply])) == []
