"""`safety:director` as an agent: which head learns from what, and how the class head directs the replies."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.agents import create_agent_from_model_file

from parlai_safety.agents.generation import sample_replies
from parlai_safety.errors import SafetyError
from parlai_safety.modeling.output import decoder_states
from tests.agents.small import ROWS, gradients_of, loss_of, metrics_of, observe_all, options, run, weights, write_talk


def train(tmp_path, name="m", **more):
    talk = write_talk(tmp_path / "talk.jsonl")
    return run(**options("safety:director", talk, tmp_path / name / "model", **more))[0]


def reply(agent):
    agent.reset()
    agent.observe({"text": "How are you?", "episode_done": True})
    return agent.act()["text"]


def directed_nll(agent, rows):
    """Mean -log p a token of some replies under both heads, as the search sees them."""
    agent.model.eval()
    batch = agent.batchify(observe_all(agent, rows))
    with torch.no_grad():
        states = decoder_states(agent.model, *agent._model_input(batch), ys=batch.label_vec)
        scores = agent.model.output(states)
    mask = batch.label_vec != agent.NULL_IDX
    return torch.nn.functional.cross_entropy(scores[mask], batch.label_vec[mask]).item()


def test_on_plain_talk_it_is_parlais_generator(tmp_path):
    agent = train(tmp_path).agent
    agent.model.eval()
    batch = agent.batchify(observe_all(agent, [ROWS[2]]))
    ours = loss_of(agent, batch).item()
    assert metrics_of(agent).keys() & {"class_loss", "class_acc"} == set()
    agent._local_metrics.clear()
    agent.model.class_gamma = 0.0  # ParlAI's own loss asks the model for its scores, which both heads make
    assert ours == pytest.approx(TransformerGeneratorAgent.compute_loss(agent, batch).item(), rel=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_avoided_falls_and_would_rise_without(tmp_path, shared):
    negative = [ROWS[1], ROWS[3]]
    more = {
        "learningrate": 0.5,
        "dropout": 0.0,
        "director_shared": shared,
        "director_infer_gamma": 5.0,
        "log_every_n_steps": 20,
    }
    before = directed_nll(train(tmp_path, "a", max_train_steps=1, **more).agent, negative)
    assert directed_nll(train(tmp_path, "b", max_train_steps=60, **more).agent, negative) > before + 0.3
    plain = train(tmp_path, "c", max_train_steps=60, mutators="safety_plain", **more).agent
    assert directed_nll(plain, negative) < before


def test_the_class_head_learns_the_labels(tmp_path):
    loop = train(tmp_path, max_train_steps=100, learningrate=0.5, dropout=0.0, log_every_n_steps=20)
    agent = loop.agent
    agent.model.eval()
    loss_of(agent, agent.batchify(observe_all(agent)))
    found = metrics_of(agent)
    assert found["class_acc"] > 0.9 and found["class_loss"] < 0.3
    # "You are a dim lamp." has words of its own; its head says no to them and not to others.
    assert agent.model.class_head.bias[agent.dict["lamp"]] < 0 < agent.model.class_head.bias[agent.dict["thanks"]]


def test_which_example_trains_which_head(tmp_path):
    agent = train(tmp_path).agent
    agent.model.eval()

    def reached(row):
        """The ids whose class logit gets a gradient, and the ids of the reply."""
        batch = agent.batchify(observe_all(agent, [row]))
        found = gradients_of(agent, batch)["class_head.bias"]
        return set(found.nonzero().flatten().tolist()), set(batch.label_vec[0].tolist())

    assert reached(ROWS[2])[0] == set()
    for row in (ROWS[0], ROWS[1]):
        touched, ids = reached(row)
        assert touched == ids
    # A labelled reply reaches the decoder only through the class head.
    with torch.no_grad():
        agent.model.class_head.weight.zero_()
    for row in (ROWS[0], ROWS[1]):
        found = gradients_of(agent, agent.batchify(observe_all(agent, [row])))
        assert not found["embeddings.weight"].any()


def test_positive_replies_train_the_language_model_where_so_wished(tmp_path):
    agent = train(tmp_path, train_generator_with_pos_feedback_examples=True).agent
    assert agent.settings.director_lm_on_positive is True
    with torch.no_grad():
        agent.model.class_head.weight.zero_()
    for row, wanted in ((ROWS[0], True), (ROWS[1], False)):
        found = gradients_of(agent, agent.batchify(observe_all(agent, [row])))
        assert found["embeddings.weight"].any().item() is wanted


def test_a_batch_without_labels_gives_the_head_a_gradient_of_zero(tmp_path):
    """And not none: data-parallel training waits for every parameter's gradient."""
    agent = train(tmp_path).agent
    agent.model.zero_grad(set_to_none=True)
    loss_of(agent, agent.batchify(observe_all(agent, [ROWS[2]]))).backward()
    assert agent.model.class_head.weight.grad is not None
    assert agent.model.class_head.weight.grad.eq(0).all()


@pytest.mark.parametrize("inference", [{"inference": "greedy"}, {"inference": "beam", "beam_size": 3}])
def test_the_class_head_directs_the_replies(tmp_path, inference):
    """A head that says no to each word of the plain reply forbids that reply; gamma of 0 does not listen to it."""
    loop = train(tmp_path, max_train_steps=30, learningrate=0.5, dropout=0.0, **inference)
    agent = loop.agent
    agent.model.class_gamma = 0.0
    plain = reply(agent)
    ids = [i for i in agent.dict.txt2vec(plain) if i != agent.END_IDX]
    assert ids
    with torch.no_grad():
        agent.model.class_head.bias[ids] = -30.0
    assert reply(agent) == plain
    agent.model.class_gamma = 1.0
    assert not set(agent.dict.txt2vec(reply(agent))) & set(ids)
    sampled = next(sample_replies(agent, [["How are you?"]], samples=5, seed=1, method="topk", beam_size=1))
    assert not set(agent.dict.txt2vec(" ".join(sampled.texts))) & set(ids)
    loop.save_model()
    model_file = str(tmp_path / "m" / "model")
    for gamma, wanted in ((0.0, plain), (1.0, reply(agent))):
        loaded = create_agent_from_model_file(model_file, {"director_infer_gamma": gamma})
        assert reply(loaded) == reply(loaded.clone()) == wanted


def test_perplexity_is_the_language_models(tmp_path):
    """Whatever the class head says, and in whatever form the loss is computed."""
    loop = train(tmp_path, max_train_steps=30, learningrate=0.5)
    agent = loop.agent
    agent.model.eval()
    batch = agent.batchify(observe_all(agent))
    found = []
    for gamma in (0.0, 5.0):
        agent.model.class_gamma = gamma
        loss = loss_of(agent, batch).item()
        metrics = metrics_of(agent)
        found.append([loss, metrics["ppl"], metrics["ppl_neg"], metrics["token_acc"]])
    assert found[0] == found[1]


def test_a_plain_generators_replies_stay_until_the_head_has_learnt(tmp_path):
    talk = write_talk(tmp_path / "talk.jsonl")
    plain, _ = run(
        **options("transformer/generator", talk, tmp_path / "p" / "model", max_train_steps=30, learningrate=0.5)
    )
    loop = train(tmp_path, init_model=str(tmp_path / "p" / "model"), learningrate=0.0, director_infer_gamma=5.0)
    assert reply(loop.agent) == reply(plain.agent)
    assert weights(tmp_path / "m" / "model")["class_head.weight"].eq(0).all()


def test_heads_of_another_kind_are_refused(tmp_path):
    train(tmp_path, "own")
    train(tmp_path, "shared", director_shared=True)
    for name, shared in (("own", True), ("shared", False)):
        with pytest.raises(SafetyError, match="does not fit the model"):
            train(tmp_path, f"{name}2", init_model=str(tmp_path / name / "model"), director_shared=shared)


def test_it_loads_without_our_hook(tmp_path):
    train(tmp_path)
    code = (
        "import sys; from parlai.core.agents import create_agent_from_model_file as load;"
        f"agent = load({str(tmp_path / 'm' / 'model')!r}); assert 'parlai_safety.plugin' not in sys.modules;"
        "agent.observe({'text': 'How are you?', 'episode_done': True}); print('REPLY', agent.act()['text'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "REPLY" in done.stdout
