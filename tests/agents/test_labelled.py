"""What `LabelledMixin` does for every method: sizes of chunks, the two forms of attention, ranks, and its refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parlai.agents.transformer.modules import MultiHeadAttention

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.errors import SafetyError
from parlai_safety.modeling import cringe_output, output

from .small import gradients_of, loss_of, metrics_of, observe_all, options, run, write_talk

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with talk and a trained CRINGE, its dictionary beside it."""
    folder = tmp_path_factory.mktemp("trained")
    run(**options("safety:cringe", write_talk(folder / "talk.jsonl"), folder / "model"))
    return folder


def agent_of(folder: Path, tmp_path: Path, model: str = "safety:cringe", **more):
    """That model in an agent of float64 without dropout, which has taken no step."""
    more = {"init_model": str(folder / "model"), "dict_file": str(folder / "model.dict"), **more}
    loop, _ = run(
        **options(model, folder / "talk.jsonl", tmp_path / "model", max_train_steps=1, learningrate=0, **more)
    )
    loop.agent.model.double().eval()
    return loop.agent


def set_output(agent, **changes) -> None:
    agent.output_options = dataclasses.replace(agent.output_options, **changes)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("detach_positive", [False, True])
def test_every_form_of_cringe_is_the_same_method(trained, tmp_path, k, detach_positive, monkeypatch):
    """Plain, quick and generic in chunks: loss, metrics and the gradients of all parameters, drawn ids included."""
    more = {"cringe_k": k, "cringe_detach_positive": detach_positive, "cringe_alpha": 0.7}
    agent = agent_of(trained, tmp_path, **more)
    batch = agent.batchify(observe_all(agent))
    loss_of(agent, batch)
    state = agent._training_source.get_state() if k > 1 else None

    def found(**changes):
        set_output(agent, **{"full_logits": False, "chunk_tokens": None, **changes})
        if state is not None:
            agent._training_source.set_state(state)
        gradients = gradients_of(agent, batch)
        return gradients, metrics_of(agent)

    gradients, metrics = found(full_logits=True)
    assert sum(g.abs().sum() for g in gradients.values()) > 0
    for changes in ({}, {"chunk_tokens": 1}, {"chunk_tokens": 7}, {"chunk_tokens": 5, "known": False}):
        if not changes.pop("known", True):
            monkeypatch.setattr("parlai_safety.agents.cringe.cringe.linear_output", lambda *_: None)
            monkeypatch.setattr(output, "linear_output", lambda *_: None)
        other, other_metrics = found(**changes)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-13, msg=name)
        assert other_metrics == pytest.approx(metrics)


def test_the_quick_road_is_the_one_taken(trained, tmp_path, monkeypatch):
    """In training alone, and not where the plain form is asked for."""
    agent = agent_of(trained, tmp_path)
    batch = agent.batchify(observe_all(agent))
    taken: list[int] = []

    def noting(*args, chunk, **kwargs):
        taken.append(chunk)
        return cringe_output.cringe_weighted_loss(*args, chunk=chunk, **kwargs)

    monkeypatch.setattr("parlai_safety.agents.cringe.cringe.cringe_weighted_loss", noting)
    set_output(agent, chunk_tokens=6)
    loss_of(agent, batch)
    set_output(agent, full_logits=True)
    loss_of(agent, batch)
    set_output(agent, full_logits=False)
    with torch.no_grad():
        loss_of(agent, batch)
    assert taken == [6]


def test_chunks_follow_from_the_vocabulary(trained, tmp_path, monkeypatch):
    """As many tokens as the allowed scores hold, at least 16; a number that the user gives is taken as it is."""
    agent = agent_of(trained, tmp_path)
    mask = torch.ones(3, 100, dtype=torch.bool)
    monkeypatch.setattr("parlai_safety.agents.labelled.CHUNK_SCORES", {"cpu": 40 * len(agent.dict)})
    assert agent._chunk(mask) == 40
    monkeypatch.setattr("parlai_safety.agents.labelled.CHUNK_SCORES", {"cpu": 1})
    assert agent._chunk(mask) == 16
    set_output(agent, chunk_tokens=3)
    assert agent._chunk(mask) == 3
    set_output(agent, full_logits=True)
    assert agent._chunk(mask) == 300


def test_a_batch_without_a_counted_token_has_a_loss_of_zero(trained, tmp_path):
    agent = agent_of(trained, tmp_path)
    batch = agent.batchify(observe_all(agent))
    batch.label_vec = torch.full_like(batch.label_vec, agent.NULL_IDX)
    loss = loss_of(agent, batch)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("kernel", ["sdpa", "parlai"])
def test_attention_is_the_users_choice(trained, tmp_path, kernel, monkeypatch):
    """Both give the same loss; ParlAI's own runs where it is asked for, and where layers are computed again."""
    agent = agent_of(trained, tmp_path, attention_kernel=kernel)
    batch = agent.batchify(observe_all(agent))
    own = loss_of(agent, batch)
    set_output(agent, attention_kernel="parlai" if kernel == "sdpa" else "sdpa")
    # ParlAI takes its softmax in fp32 even here.
    torch.testing.assert_close(loss_of(agent, batch), own, rtol=1e-6, atol=0)
    calls: list[str] = []
    forward = MultiHeadAttention.forward
    monkeypatch.setattr(MultiHeadAttention, "forward", lambda *a, **k: calls.append("parlai") or forward(*a, **k))
    for asked, again, expected in (("sdpa", False, 0), ("parlai", False, 3), ("sdpa", True, 3)):
        set_output(agent, attention_kernel=asked)
        agent.opt["checkpoint_activations"] = again
        calls.clear()
        loss_of(agent, batch)
        assert len(calls) == expected


def test_an_unknown_attention_is_refused(trained, tmp_path):
    with pytest.raises(SafetyError, match="--attention-kernel got 'flash'"):
        agent_of(trained, tmp_path, attention_kernel="flash")


def test_sharded_weights_are_refused(trained, tmp_path, monkeypatch):
    agent = agent_of(trained, tmp_path)
    monkeypatch.setattr("parlai_safety.agents.labelled.should_use_fsdp", lambda opt: True)
    with pytest.raises(SafetyError, match="--ddp-backend got zero2"):
        type(agent)({**agent.opt, "ddp_backend": "zero2"})


def test_model_output_is_there_where_token_details_are_shown(trained, tmp_path):
    agent = agent_of(trained, tmp_path)
    batch = agent.batchify(observe_all(agent))
    agent._local_metrics.clear()
    assert agent.compute_loss(batch, return_output=True)[1] is None
    agent.show_token_details = True
    agent._local_metrics.clear()
    logits, predictions, _ = agent.compute_loss(batch, return_output=True)[1]
    assert logits.shape == (*batch.label_vec.shape, len(agent.dict)) and torch.equal(predictions, logits.argmax(-1))


def test_a_method_must_say_what_it_does():
    bare = object.__new__(LabelledMixin)
    for ask in (lambda: bare.row_losses(*[torch.ones(1)] * 3), lambda: bare.token_weights(*[torch.ones(1)] * 2)):
        with pytest.raises(NotImplementedError, match="LabelledMixin"):
            ask()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("backbone", ["", "/seq2seq"])
def test_two_ranks_are_one(tmp_path, backbone):
    """Parameters after three steps, k = 1; seq2seq has an output layer that its forward does not use."""
    talk, name = write_talk(tmp_path / "talk.jsonl"), f"safety:cringe{backbone}"
    run(**options(name, talk, tmp_path / "model", max_train_steps=1))
    more = {"init_model": str(tmp_path / "model"), "dict_file": str(tmp_path / "model.dict"), "dropout": 0.0}
    kwargs = options(name, talk, tmp_path / "unused", chunk_tokens=4, **more)
    del kwargs["model_file"]
    (tmp_path / "options.json").write_text(json.dumps(kwargs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).parent / "two_ranks.py"), str(tmp_path / "options.json")]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(ranks)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for ranks in (1, 2)
        for rank in range(ranks)
    ]
    for process in started:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()[-2000:]
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    before = torch.load(tmp_path / "model", weights_only=False)["model"]
    # Three steps of fp32, added up in two orders.
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-6, msg=key)
    learned = [key for key in one if "weight" in key and "position" not in key]
    assert learned and all(not torch.equal(one[key], before[key]) for key in learned)
