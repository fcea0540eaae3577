"""`safety:unlikelihood` as an agent: maximum likelihood where nothing is to be avoided, and what is avoided falls."""

from __future__ import annotations

import pytest
import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.worlds import create_task

from parlai_safety.errors import SafetyError
from tests.agents.small import ROWS, loss_of, metrics_of, observe_all, options, run, write_talk


def train(tmp_path, name="m", model="safety:unlikelihood", **more):
    talk = write_talk(tmp_path / "talk.jsonl")
    return run(**options(model, talk, tmp_path / name / "model", **more))[0]


@pytest.mark.parametrize("rows", [[ROWS[2]], [ROWS[0], ROWS[2]]])
def test_without_negatives_it_is_parlais_generator(tmp_path, rows):
    """The same loss, perplexity and gradient."""
    agent = train(tmp_path).agent
    agent.model.eval()
    batch = agent.batchify(observe_all(agent, rows))
    ours = loss_of(agent, batch)
    gradients = torch.autograd.grad(ours, agent.model.embeddings.weight)
    ppl = metrics_of(agent)["ppl"]
    agent._local_metrics.clear()
    theirs = TransformerGeneratorAgent.compute_loss(agent, batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert ppl == pytest.approx(metrics_of(agent)["ppl"], rel=1e-6)
    expected = torch.autograd.grad(theirs, agent.model.embeddings.weight)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_with_alpha_of_zero_negatives_teach_nothing(tmp_path):
    agent = train(tmp_path, unlikelihood_alpha=0.0).agent
    agent.model.eval()
    with_negatives = loss_of(agent, agent.batchify(observe_all(agent)))
    without = loss_of(agent, agent.batchify(observe_all(agent, [ROWS[0], ROWS[2]])))
    assert with_negatives.item() == pytest.approx(without.item(), rel=1e-5)


@pytest.mark.parametrize("model", ["safety:unlikelihood", "safety:scones"])
def test_what_is_avoided_falls_and_would_rise_without(tmp_path, model):
    """Perplexity of the negative replies, before and after sixty steps."""

    def avoided(name, **more):
        agent = train(tmp_path, name, model=model, learningrate=0.5, dropout=0.0, log_every_n_steps=20, **more).agent
        agent.model.eval()
        with torch.no_grad():
            loss_of(agent, agent.batchify(observe_all(agent)))
        return metrics_of(agent)["ppl_neg"]

    before = avoided("a", max_train_steps=1, mutators="safety_plain")
    assert avoided("b", max_train_steps=60) > 1.2 * before
    assert avoided("c", max_train_steps=60, mutators="safety_plain") < before


def test_evaluation_scores_both_kinds(tmp_path):
    agent = train(tmp_path).agent
    opt = agent.opt.copy()
    opt.update(datatype="valid", batchsize=4, skip_generation=True)
    world = create_task(opt, agent)
    while not world.epoch_done():
        world.parley()
    report = {name: float(value) for name, value in world.report().items()}
    assert report["ppl"] > 1 and report["ppl_neg"] > 1 and report["unlikelihood_loss"] > 0
    assert report["loss"] == pytest.approx(report["ce_loss"] + report["unlikelihood_loss"], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", ["safety:unlikelihood", "safety:scones", "safety:director"])
def test_it_works_under_autocast(tmp_path, model, dtype):
    agent = train(tmp_path, model=model).agent
    batch = agent.batchify(observe_all(agent))
    agent.model.eval()
    full = loss_of(agent, batch).item()
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(agent, batch)
    loss.backward()
    assert loss.item() == pytest.approx(full, rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in agent.model.parameters() if p.grad is not None)


def test_a_weight_below_zero_is_refused(tmp_path):
    with pytest.raises(SafetyError, match="--unlikelihood-alpha got '-1.0'"):
        train(tmp_path, unlikelihood_alpha=-1.0)
