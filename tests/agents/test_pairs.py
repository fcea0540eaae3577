"""One contract for the agents that learn from pairs of replies, on every backbone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.agents import create_agent_from_model_file
from parlai.core.message import Message
from parlai.core.worlds import create_task

from parlai_safety.agents import labelled
from parlai_safety.errors import SafetyError
from parlai_safety.losses.click import click_loss
from parlai_safety.losses.pairwise import pairwise_cringe_loss
from tests.agents.small import gradients_of, loss_of, metrics_of, options, run, weights, write_talk
from tests.agents.small_pairs import (
    PAIRS,
    evaluated,
    observe_pairs,
    pair_options,
    scores_apart,
    trained,
    write_pairs,
)

METHODS = ["pairwise_cringe", "click"]
MODELS = [f"safety:{method}{backbone}" for method in METHODS for backbone in ("", "/bart", "/seq2seq")]
# A temperature and a margin near the margins of the tiny batch, so that gates are neither open nor shut.
GATE = {"pairwise_margin": 5.0, "pairwise_temperature": 4.0, "pairwise_alpha": 0.7}
VARIANTS = [
    ("safety:pairwise_cringe", {**GATE}),
    ("safety:pairwise_cringe", {**GATE, "pairwise_stop_gradient": False}),
    ("safety:pairwise_cringe", {**GATE, "pairwise_k": 3}),
    ("safety:pairwise_cringe", {**GATE, "pairwise_k": 3, "pairwise_stop_gradient": False, "pairwise_per_token": True}),
    ("safety:pairwise_cringe", {"pairwise_margin": -1.0, "pairwise_temperature": 0.0}),
    ("safety:pairwise_cringe/bart", {**GATE, "pairwise_stop_gradient": False}),
    ("safety:pairwise_cringe/seq2seq", {**GATE, "pairwise_k": 3}),
    ("safety:click", {"click_margin": 4.0}),
    ("safety:click", {"click_chosen_nll": False, "click_weight": 2.0}),
    ("safety:click/bart", {}),
    ("safety:click/seq2seq", {"click_margin": 4.0}),
]
names = [f"{model}-{'-'.join(map(str, more.values()))}" for model, more in VARIANTS]
every_variant = pytest.mark.parametrize(("model", "more"), VARIANTS, ids=names)
every_method = pytest.mark.parametrize("method", METHODS)


def library_loss(agent, batch):
    """The loss as a user of the library computes it, each reply scored apart by ParlAI's own forward."""
    vocabulary = len(agent.dict)
    ordered = [PAIRS[i] for i in batch.valid_indices]  # the draws are in the order of the batch

    def side(replies):
        scored = [scores_apart(agent, context, reply) for context, reply in replies]
        steps = max(targets.size(1) for _, targets in scored)
        logits = torch.zeros(len(scored), steps, vocabulary, dtype=torch.float64)
        ids = torch.zeros(len(scored), steps, dtype=torch.int64)
        mask = torch.zeros(len(scored), steps, dtype=torch.bool)
        for row, (scores, targets) in enumerate(scored):
            length = targets.size(1)
            logits[row, :length], ids[row, :length], mask[row, :length] = scores[0, :, :vocabulary], targets[0], True
        return logits, ids, mask

    chosen = side([(context, reply) for context, reply, _ in ordered])
    rejected = side([(context, text) for context, _, texts in ordered for text in texts])
    example = torch.tensor([i for i, (_, _, texts) in enumerate(ordered) for _ in texts])
    opt = agent.settings
    if "click" in agent.opt["model"]:
        more = {"margin": opt.click_margin, "weight": opt.click_weight, "chosen_nll": opt.click_chosen_nll}
        return click_loss(*chosen, *rejected, example=example, **more).loss
    return pairwise_cringe_loss(
        *chosen,
        *rejected,
        example=example,
        margin=opt.pairwise_margin,
        temperature=opt.pairwise_temperature,
        alpha=opt.pairwise_alpha,
        k=opt.pairwise_k,
        stop_gradient=opt.pairwise_stop_gradient,
        per_token=opt.pairwise_per_token,
        generator=torch.Generator().manual_seed(opt.pairwise_seed),
    ).loss


@every_variant
def test_chunks_are_the_plain_form_and_that_is_the_library(model, more, tmp_path):
    """Loss, gradients and metrics in float64, for chunks of one token, of some, and of all but one."""
    agent = trained(model, tmp_path, max_train_steps=2, **more)
    agent.model.double().eval()
    batch = agent.batchify(observe_pairs(agent))
    tokens = int(batch.label_vec.ne(0).sum() + batch.rejected_vec.ne(0).sum())

    def form(full_logits=False, chunk_tokens=None):
        agent._training_source = agent._source_state = None
        # The library's loss is of ParlAI's own forward, whose attention takes its softmax in fp32.
        agent.output_options = dataclasses.replace(
            agent.output_options, full_logits=full_logits, chunk_tokens=chunk_tokens, attention_kernel="parlai"
        )

    form(full_logits=True)
    plain_gradients = gradients_of(agent, batch)
    form(full_logits=True)
    plain, plain_metrics = loss_of(agent, batch), metrics_of(agent)
    torch.testing.assert_close(plain, library_loss(agent, batch), rtol=1e-12, atol=0)
    for chunk in (1, 5, tokens - 1):
        form(chunk_tokens=chunk)
        torch.testing.assert_close(loss_of(agent, batch), plain, rtol=1e-12, atol=0)
        assert metrics_of(agent) == pytest.approx(plain_metrics)
        form(chunk_tokens=chunk)
        found = gradients_of(agent, batch)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-8, atol=1e-13, msg=name)
        torch.testing.assert_close(evaluated(agent, batch), plain, rtol=1e-12, atol=0)
    assert sum(gradient.abs().sum() for gradient in plain_gradients.values()) > 0
    form(full_logits=True)
    torch.testing.assert_close(evaluated(agent, batch), plain, rtol=1e-12, atol=0)


def test_the_attention_kernel_is_that_of_the_option(tmp_path, monkeypatch):
    agent = trained("safety:click", tmp_path, max_train_steps=2)
    agent.model.eval()
    batch = agent.batchify(observe_pairs(agent))
    entered, fused = [], labelled.fused_attention
    monkeypatch.setattr(labelled, "fused_attention", lambda model: entered.append(model) or fused(model))
    losses = {}
    for kernel in ("sdpa", "parlai"):
        agent.output_options = dataclasses.replace(agent.output_options, attention_kernel=kernel)
        losses[kernel] = loss_of(agent, batch)
    assert entered == [agent.model]
    torch.testing.assert_close(losses["sdpa"], losses["parlai"], rtol=1e-5, atol=0)


@every_method
def test_the_context_is_encoded_once(method, tmp_path):
    agent = trained(f"safety:{method}", tmp_path, max_train_steps=1)
    seen = []
    agent.model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    loss_of(agent, agent.batchify(observe_pairs(agent)))
    assert seen == [4]
    assert "decode_forced" not in vars(agent.model)


def test_pairs_stay_with_their_examples(tmp_path):
    """A padding example drops out of the batch; sorting by length moves rows: rejected replies must follow."""
    agent = trained("safety:click", tmp_path, max_train_steps=1)
    observations = observe_pairs(agent)
    batch = agent.batchify([Message.padding_example(), *observations])
    assert batch.rejected_example.tolist() == [0, 1, 2, 2]
    texts = [agent._v2t(row) for row in batch.rejected_vec]
    assert texts[0].startswith("Go away") and texts[2].startswith("No") and texts[3].startswith("You would")
    batch = agent.batchify(observations, sort=True)
    order = batch.valid_indices.tolist()
    assert sorted(order) == [0, 1, 2, 3] and order != [0, 1, 2, 3]
    assert [order[row] for row in batch.rejected_example.tolist()] == [i for i in order for _ in PAIRS[i][2]]


@every_method
def test_ordinary_talk_is_parlais_generator(method, tmp_path):
    """Without pairs: the loss and perplexity of `transformer/generator` to the last digit, and no metric of pairs."""
    agent = trained(f"safety:{method}", tmp_path, max_train_steps=2)
    agent.model.eval()
    batch = agent.batchify([agent_message for agent_message in observe_pairs(agent)[3:]])
    ours, metrics = loss_of(agent, batch).item(), metrics_of(agent)
    agent._local_metrics.clear()
    theirs = TransformerGeneratorAgent.compute_loss(agent, batch).item()
    assert ours == pytest.approx(theirs, rel=1e-6) and metrics["loss"] == pytest.approx(theirs, rel=1e-6)
    for name, value in metrics_of(agent).items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name
    assert not {"margin", "pair_acc", "ppl_neg", agent.strength_name} & set(metrics)


@every_method
def test_metrics_are_those_of_the_replies(method, tmp_path):
    agent = trained(f"safety:{method}", tmp_path, max_train_steps=2)
    agent.model.double().eval()
    batch = agent.batchify(observe_pairs(agent))
    loss, metrics = loss_of(agent, batch), metrics_of(agent)

    def nll(context, reply):
        scores, targets = scores_apart(agent, context, reply)
        found = torch.nn.functional.cross_entropy(scores[0], targets[0], reduction="sum")
        return found.item(), targets.numel()

    chosen = [nll(context, reply) for context, reply, _ in PAIRS]
    rejected = [(i, *nll(PAIRS[i][0], text)) for i in range(4) for text in PAIRS[i][2]]
    margins = [value - chosen[i][0] for i, value, _ in rejected]
    total = sum(count for _, _, count in rejected)
    assert metrics["loss"] == pytest.approx(loss.item())
    assert metrics["margin"] == pytest.approx(sum(margins) / 4)
    assert metrics["pair_acc"] == pytest.approx(sum(margin > 0 for margin in margins) / 4)
    assert metrics["rejected_nll"] == pytest.approx(sum(value for _, value, _ in rejected) / total)
    assert metrics["chosen_nll"] == pytest.approx(sum(v for v, _ in chosen[:3]) / sum(n for _, n in chosen[:3]))
    mean = sum(value for value, _ in chosen) / sum(count for _, count in chosen)
    assert metrics["ppl"] == pytest.approx(torch.tensor(mean).exp().item())
    assert metrics["share_pairs"] == 0.75
    if method == "click":
        assert metrics["hinge"] == pytest.approx(sum(max(0, 20 - margin) for margin in margins) / 4)
    else:
        gates = torch.sigmoid(-torch.tensor(margins) / 10)
        assert metrics["gate"] == pytest.approx(gates.mean().item())


@every_method
def test_words_of_rejected_replies_are_in_the_dictionary(method, tmp_path):
    agent = trained(f"safety:{method}", tmp_path, max_train_steps=1)
    assert agent.dict.txt2vec("lamp") != [agent.dict["__unk__"]]


@every_method
def test_a_reply_to_avoid_that_is_not_in_a_pair_is_refused(method, tmp_path):
    agent = trained(f"safety:{method}", tmp_path, max_train_steps=1)
    observations = observe_pairs(agent)
    observations[3].force_set("classifier_label", "neg")
    with pytest.raises(SafetyError, match="has classifier_label 'neg'"):
        agent.batchify(observations)
    observations[3].force_set("classifier_label", "bad")
    with pytest.raises(SafetyError, match="bad"):
        agent.batchify(observations)


@pytest.mark.parametrize("rejected", ["Go away.", ["Go away.", 3], ["  "], {"text": "Go away."}])
def test_a_field_of_another_kind_is_refused(rejected, tmp_path):
    agent = trained("safety:click", tmp_path, max_train_steps=1)
    message = Message({"text": "Hi", "labels": ["Hello"], "rejected": rejected, "episode_done": True})
    with pytest.raises(SafetyError, match="has 'rejected' ="):
        agent.clone().observe(message)


@pytest.mark.parametrize("model", MODELS)
def test_it_trains_saves_and_answers(model, tmp_path):
    folder, model_file = write_pairs(tmp_path / "data"), tmp_path / "m" / "model"
    loop, reports = run(**pair_options(model, folder, model_file, max_train_steps=30, learningrate=0.2))
    first, last = ({name: float(value) for name, value in report.items()} for report in (reports[0], reports[-1]))
    agent = loop.agent
    assert last["margin"] > first["margin"] + 2 and last["ppl"] < first["ppl"] and last["pair_acc"] == 1
    assert last["rejected_nll"] > last["chosen_nll"] and last["loss"] < first["loss"]
    assert last[agent.strength_name] < first[agent.strength_name]
    loop.save_model()
    loaded = create_agent_from_model_file(str(model_file))
    assert loaded.opt["model"].startswith("parlai_safety.agents.")
    loaded.observe({"text": "How are you?", "episode_done": True})
    assert isinstance(loaded.act()["text"], str)


@every_method
def test_eval_reports_pairs(method, tmp_path):
    agent = trained(f"safety:{method}", tmp_path)
    opt = agent.opt.copy()
    opt.update(datatype="train:evalmode", batchsize=3, skip_generation=True)
    world = create_task(opt, agent)
    while not world.epoch_done():
        world.parley()
    report = world.report()
    assert int(report["exs"]) == 4
    assert {"margin", "pair_acc", "chosen_nll", "rejected_nll", "ppl", "ppl_neg"} <= set(report)


@every_method
def test_a_resumed_run_is_the_straight_run(method, tmp_path):
    folder = write_pairs(tmp_path / "data")
    more = {"optimizer": "adam", "learningrate": 0.01, "chunk_tokens": 7}
    more |= {"pairwise_k": 3} if method == "pairwise_cringe" else {}
    model = f"safety:{method}"
    run(**pair_options(model, folder, tmp_path / "a" / "model", max_train_steps=6, **more))
    first, _ = run(**pair_options(model, folder, tmp_path / "b" / "model", max_train_steps=3, **more))
    first.save_model(".checkpoint")
    second, _ = run(**pair_options(model, folder, tmp_path / "b" / "model", max_train_steps=6, **more))
    assert second._train_steps == 6
    straight, resumed = (weights(tmp_path / name / "model") for name in "ab")
    for name in straight:
        torch.testing.assert_close(straight[name], resumed[name], atol=1e-6, rtol=1e-5, msg=name)


@every_method
def test_it_continues_from_a_plain_generator(method, tmp_path):
    folder = write_pairs(tmp_path / "data")
    run(**options("transformer/generator", write_talk(tmp_path / "talk"), tmp_path / "p" / "model"))
    plain = str(tmp_path / "p" / "model")
    more = {"init_model": plain, "dict_file": f"{plain}.dict", "learningrate": 0.0, "max_train_steps": 1}
    run(**pair_options(f"safety:{method}", folder, tmp_path / "m" / "model", **more))
    before, after = (weights(tmp_path / name / "model") for name in "pm")
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_method
@pytest.mark.parametrize("chunks", [{}, {"chunk_tokens": 6}])
def test_it_works_under_autocast(method, chunks, tmp_path):
    agent = trained(f"safety:{method}", tmp_path, **chunks)
    batch = agent.batchify(observe_pairs(agent))
    agent.model.eval()
    full = loss_of(agent, batch).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(agent, batch)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(full, rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in agent.model.parameters() if p.grad is not None)


def test_pairs_and_ordinary_talk_mix_in_multitasking(tmp_path):
    folder = write_pairs(tmp_path / "data")
    talk = write_talk(tmp_path / "talk.jsonl")
    more = {"task": "safety:pairs,safety:file:positive", "datatype": "train", "safety_file": str(talk)}
    _, reports = run(**pair_options("safety:click", folder, tmp_path / "m" / "model", max_train_steps=12, **more))
    shares = [float(report["share_pairs"]) for report in reports]
    assert any(0 < share < 1 for share in shares)
