"""`safety:adpo` as an agent: the whole family against replies computed apart, the control token, refusals, metrics."""

from __future__ import annotations

import pytest
import torch
from parlai.core.agents import create_agent_from_model_file

from parlai_safety.errors import SafetyError
from tests.agents.small import gradients_of, loss_of, metrics_of, run, weights
from tests.agents.small_triples import (
    BACKBONES,
    ROWS,
    TRIPLES,
    batch_of,
    begun,
    in_float64,
    length,
    log_p,
    loss_apart,
    message,
    triple_options,
)

MEMBERS = [
    {},
    {"adpo_pair": True},
    {"adpo_anchor": "reference"},
    {"adpo_anchor": "reference", "adpo_pair": True},
    {"adpo_joint": True},
    {"adpo_joint": True, "adpo_pair": True, "dpo_label_smoothing": 0.2, "adpo_gamma": 0.02},
    {"beta": 0.7, "adpo_lambda": 0.3, "adpo_gamma": 0.4, "dpo_per_token": True},
    {"dpo_preference": "ipo", "dpo_nll_weight": 0.5},
    {"adpo_lambda": 0.0},
]


@pytest.fixture(scope="module", params=BACKBONES)
def folder(request, tmp_path_factory):
    return begun(request.param, tmp_path_factory.mktemp("adpo"))


@pytest.fixture(scope="module")
def made(folder):
    """An agent after six steps, and its reference as an agent of its own, both of float64; and the settings."""
    model = "safety:adpo/causal_lm" if (folder / "hf").is_dir() else "safety:adpo"
    loop, reports = run(**triple_options(model, folder, folder / "m" / "model"))
    reference = create_agent_from_model_file(str(folder / "base"))
    in_float64(loop.agent, reference)
    return loop.agent, reference, reports


@pytest.fixture
def agents(made):
    """The agent, with the settings of the command line again afterwards, and the reference."""
    agent, reference, _ = made
    settings, output = agent.settings, agent.output_options
    state = {name: value.clone() for name, value in agent.model.state_dict().items()}
    yield agent, reference
    agent.settings, agent.output_options = settings, output
    agent.model.load_state_dict(state)


def change(agent, settings):
    agent.settings = type(agent.settings)(**{**vars(agent.settings), **settings})


def in_chunks(agent, chunk):
    kept = vars(agent.output_options)
    agent.output_options = type(agent.output_options)(**{**kept, "chunk_tokens": chunk, "full_logits": chunk is None})


@pytest.mark.parametrize("settings", MEMBERS, ids=lambda settings: ",".join(settings) or "default")
def test_loss_is_that_of_replies_computed_apart(agents, settings):
    """In float64, over a batch with two rejected replies to one context, none, and no toxic one."""
    agent, reference = agents
    change(agent, settings)
    found = loss_of(agent, batch_of(agent)).item()
    # ParlAI's own attention, which the replies apart take, has an fp32 softmax.
    assert found == pytest.approx(loss_apart(agent, reference).item(), rel=1e-6)
    assert metrics_of(agent)["loss"] == pytest.approx(found, rel=1e-9)


def test_a_context_that_was_cut_makes_room_for_the_token(agents):
    """As it did in the training that taught the token."""
    agent, reference = agents
    long = [("How are you, and how is your hobby of late? " * 9, *TRIPLES[0][1:])]
    assert batch_of(agent, long).text_vec.size(1) >= 63
    assert loss_of(agent, batch_of(agent, long)).item() == pytest.approx(
        loss_apart(agent, reference, long).item(), rel=1e-6
    )


@pytest.mark.parametrize("settings", [MEMBERS[0], MEMBERS[5], MEMBERS[7]], ids=lambda settings: ",".join(settings))
def test_gradients_are_those_of_replies_computed_apart(agents, settings):
    """Of every parameter, in chunks of any size and in the plain form."""
    agent, reference = agents
    change(agent, settings)
    agent.model.zero_grad(set_to_none=True)
    loss_apart(agent, reference).backward()
    wanted = {n: p.grad.clone() for n, p in agent.model.named_parameters() if p.grad is not None}
    batch = batch_of(agent)
    for chunk in (1, 20, 1000, None):
        in_chunks(agent, chunk)
        found = gradients_of(agent, batch)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_row_costs_the_same_in_any_batch(agents):
    """The loss is the mean over pairs and ordinary talk; without either part it is that of the other."""
    agent, _ = agents
    rows = (1, 2, 1, 1)
    alone = [loss_of(agent, batch_of(agent, [triple])).item() for triple in TRIPLES]
    assert loss_of(agent, batch_of(agent)).item() == pytest.approx(
        sum(loss * count for loss, count in zip(alone, rows, strict=True)) / ROWS, rel=1e-6
    )
    assert loss_of(agent, batch_of(agent, TRIPLES[:3])).item() * 4 == pytest.approx(alone[0] + 2 * alone[1] + alone[2])
    assert set(metrics_of(agent)) > {"rewards_toxic", "toxic_gap", "kl_ref"}
    loss_of(agent, batch_of(agent, TRIPLES[2:]))
    assert {"rewards_toxic", "toxic_gap"}.isdisjoint(metrics_of(agent)) and "rewards_chosen" in metrics_of(agent)
    loss_of(agent, batch_of(agent, TRIPLES[3:]))
    assert {"rewards_chosen", "kl_ref", "ppl_neg"}.isdisjoint(metrics_of(agent))


def test_the_toxic_term_counts_once_a_message(agents):
    """With the pairs' term switched off by IPO's minimum left out, what lambda adds does not grow with the pairs."""
    agent, _ = agents
    context, chosen, rejected, toxic = TRIPLES[1]
    added = []
    for texts in (rejected, rejected[:1]):
        batch = batch_of(agent, [(context, chosen, texts, toxic)])
        change(agent, {"adpo_lambda": 1.0})
        more = loss_of(agent, batch).item() * len(texts)
        change(agent, {"adpo_lambda": 0.0})
        added.append(more - loss_of(agent, batch).item() * len(texts))
    assert added[0] == pytest.approx(added[1], rel=1e-6) and added[0] > 0.01


@pytest.mark.parametrize("settings", MEMBERS[:5], ids=lambda settings: ",".join(settings) or "default")
def test_every_member_lowers_toxic_replies(agents, settings):
    """A step against the gradient; and further than DPO's step does."""
    agent, _ = agents
    batch, (context, _, _, (toxic,)) = batch_of(agent, TRIPLES[:1]), TRIPLES[0]
    before, start = log_p(agent, context, toxic).item(), {n: p.clone() for n, p in agent.model.state_dict().items()}
    after = []
    for weight in (1.0, 0.0):
        change(agent, {**settings, "adpo_lambda": weight})
        slopes = gradients_of(agent, batch)
        with torch.no_grad():
            for name, parameter in agent.model.named_parameters():
                parameter -= 1e-3 * slopes[name]
        after.append(log_p(agent, context, toxic).item())
        agent.model.load_state_dict(start)
    assert after[0] < before - 1e-5 and after[0] < after[1] - 1e-5


def test_metrics_are_what_they_say(agents):
    agent, reference = agents
    context, chosen, (rejected,), (toxic,) = TRIPLES[0]
    loss_of(agent, batch_of(agent, TRIPLES[:1]))
    found = metrics_of(agent)
    with torch.no_grad():
        c, r, t = (log_p(agent, context, reply).item() for reply in (chosen, rejected, toxic))
        c0, r0, t0 = (log_p(reference, context, reply).item() for reply in (chosen, rejected, toxic))
        t1 = log_p(reference, context, toxic, toxic=True).item()
    tokens, more = length(agent, chosen).item(), length(agent, rejected).item()
    expected = {
        "rewards_chosen": 0.1 * (c - c0),
        "rewards_rejected": 0.1 * (r - r0),
        "rewards_toxic": 0.1 * (t - t1),
        "rewards_margins": 0.1 * (c - c0 - r + r0),
        "rewards_accuracies": float(c - c0 > r - r0),
        "rewards_toxic_accuracies": float(c - c0 > t - t0),
        "toxic_gap": t1 - t0,
        "logps_chosen": c,
        "logps_rejected": r,
        "logps_toxic": t,
        "logps_chosen_drift": c - c0,
        "chosen_drift": (c - c0) / tokens,
        "kl_ref": (c0 - c + r0 - r) / (tokens + more),
        "chosen_nll": -c / tokens,
        "rejected_nll": -r / more,
        "share_pairs": 1.0,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert found["ppl"] == pytest.approx(torch.tensor(-c / tokens).exp().item(), rel=1e-5)


def test_training_moves_what_it_says(made):
    """Rewards begin at 0 and the margin grows; the toxic reply falls."""
    _, _, reports = made
    first, last = reports[0], reports[-1]
    assert float(first["rewards_margins"]) == pytest.approx(0, abs=1e-5) == float(first["chosen_drift"])
    assert float(last["rewards_margins"]) > 0.01 and float(last["loss"]) < float(first["loss"])
    assert float(last["logps_toxic"]) < float(first["logps_toxic"]) and float(last["collapsed"]) == 0


def read_ids(model, calls):
    """Note the ids that a model's embedding reads."""
    layer = model.lm.get_input_embeddings() if hasattr(model, "lm") else model.embeddings
    return layer.register_forward_pre_hook(lambda _, given: calls.append(given[0].clone()))


def test_the_model_never_reads_the_token_and_the_toxic_model_reads_it_last(agents):
    agent, _ = agents
    own, frozen = [], []
    with agent._scores._model() as model:
        hooks = [read_ids(agent.model, own), read_ids(model, frozen)]
    kept, agent._scores._store._memory = agent._scores._store._memory, {}
    loss_of(agent, batch_of(agent, TRIPLES[:1]))
    for hook in hooks:
        hook.remove()
    agent._scores._store._memory = kept
    assert own and not any((ids == agent.toxic_id).any() for ids in own)
    assert sum(int((ids == agent.toxic_id).sum()) for ids in frozen) == 1


def test_lambda_zero_is_dpo_to_the_last_bit(folder, tmp_path):
    """In its loss and in the weights after six steps."""
    last = "/causal_lm" if (folder / "hf").is_dir() else ""
    found = {}
    for model, more in (("safety:dpo", {}), ("safety:adpo", {"adpo_lambda": 0.0}), ("safety:adpo", {})):
        name = model[7:] + "-".join(more)
        _, reports = run(**triple_options(model + last, folder, tmp_path / name / "model", **more))
        found[name] = [float(report["loss"]) for report in reports], weights(tmp_path / name / "model")
    (losses, ours), (same, other) = found["dpo"], found["adpoadpo_lambda"]
    assert losses == same and all(torch.equal(ours[name], other[name]) for name in ours)
    assert losses != found["adpo"][0]


@pytest.mark.parametrize(
    ("triple", "more", "got"),
    [
        (("Hi.", "Hello.", ["No."], ["Lamp.", "Dim lamp."]), {}, "several replies in 'toxic'"),
        (("Hi.", "Hello.", [], ["Lamp."]), {}, "several replies in 'toxic'"),
        (("Hi.", "Hello.", ["No."], []), {"control": "toxic"}, "'control' asks for the control token"),
        (("Hi.", "Hello.", [], []), {"classifier_label": "neg"}, "classifier_label 'neg'"),
        (("Hi.", "Hello.", ["No."], ["  "]), {}, "'toxic' = "),
    ],
)
def test_messages_that_say_nothing_are_refused(made, triple, more, got):
    agent = made[0]
    with pytest.raises(SafetyError, match=got):
        agent.batchify([agent.clone().observe(message(*triple, **more))])
