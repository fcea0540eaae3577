"""`safety:mle` follows what is to be followed, and learns nothing from the rest."""

from __future__ import annotations

import pytest
import torch
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.core.opt import Opt

from tests.conftest import TINY_MODEL

ROWS = [("How are you?", "Fine, thanks.", "pos"), ("Hello.", "Go away, you dim lamp.", "neg"), ("Hi.", "Hi you.", None)]


@pytest.fixture
def agent(tmp_path):
    words = tmp_path / "m.dict"
    tokens = sorted(
        {w for row in ROWS for text in row[:2] for w in text.replace(",", " , ").replace(".", " . ").split()}
    )
    words.write_text("".join(f"{t}\t1\n" for t in ["__null__", "__start__", "__end__", "__unk__", *tokens]))
    options = {"model": "safety:mle", "dict_file": str(words), "loglevel": "error", **TINY_MODEL}
    from parlai.core.params import ParlaiParser

    parser = ParlaiParser(True, True)
    opt = parser.parse_kwargs(**options)
    torch.manual_seed(0)
    return create_agent(Opt(opt))


def batch_of(agent, rows):
    observations = []
    for text, reply, label in rows:
        message = {"text": text, "labels": [reply], "episode_done": True}
        observations.append(
            agent.clone().observe(Message({**message, **({"classifier_label": label} if label else {})}))
        )
    return agent.batchify(observations)


def test_a_reply_to_avoid_changes_neither_loss_nor_gradient(agent):
    agent.model.eval()

    def loss_and_gradient(rows):
        agent.model.zero_grad()
        agent._local_metrics.clear()
        loss = agent.compute_loss(batch_of(agent, rows))
        loss.backward()
        return loss.item(), agent.model.embeddings.weight.grad.clone()

    every, gradient = loss_and_gradient(ROWS)
    followed, expected = loss_and_gradient([ROWS[0], ROWS[2]])
    assert every == pytest.approx(followed, rel=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().sum() > 0


def test_the_loss_is_the_mean_cross_entropy_of_the_tokens_to_follow(agent):
    agent.model.eval()
    batch = batch_of(agent, [ROWS[0], ROWS[2]])
    with torch.no_grad():
        logits = agent.model(*agent._model_input(batch), ys=batch.label_vec)[0]
        targets = batch.label_vec
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=agent.NULL_IDX
        )
        assert agent.compute_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("tokenizer", ["re", "bytelevelbpe"])
def test_a_model_that_began_from_another_keeps_its_dictionary(tokenizer, tmp_path):
    """ParlAI leaves a dictionary of the new task's words under the new name; with it the model could not be read."""
    from tests.agents.small import options, run, weights, write_talk

    more = {}
    if tokenizer == "bytelevelbpe":
        from tokenizers import ByteLevelBPETokenizer

        learnt = ByteLevelBPETokenizer(add_prefix_space=True)
        learnt.train_from_iterator(["lamp Hello there you dim lamp"] * 3, vocab_size=280, show_progress=False)
        learnt.save_model(str(tmp_path), "bpe")
        more = {"bpe_vocab": str(tmp_path / "bpe-vocab.json"), "bpe_merge": str(tmp_path / "bpe-merges.txt")}
    first = write_talk(tmp_path / "first.jsonl", [{"context": ["Hello there."], "reply": "Hello you."}] * 3)
    other = write_talk(tmp_path / "other.jsonl", [{"context": ["What is it?"], "reply": "It is a green lamp."}] * 3)
    more |= {"dict_tokenizer": tokenizer, "max_train_steps": 1}
    run(**options("safety:mle", first, tmp_path / "first", **more))
    run(**options("safety:mle", other, tmp_path / "second", init_model=str(tmp_path / "first"), **more))
    again = run(**options("safety:mle", other, tmp_path / "second", **{**more, "max_train_steps": 2}))[0].agent
    words, kept = ([line.split("\t")[0] for line in open(tmp_path / f"{name}.dict")] for name in ("first", "second"))
    assert kept == words and "lamp" not in words
    assert len(again.dict) == len(weights(tmp_path / "first")["embeddings.weight"])
