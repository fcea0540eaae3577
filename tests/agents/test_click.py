"""`safety:click` as an agent: the hinge in training, and its options."""

from __future__ import annotations

import pytest
import torch

from parlai_safety.errors import SafetyError
from tests.agents.small import gradients_of, loss_of, metrics_of, run
from tests.agents.small_pairs import PAIRS, observe_pairs, pair_options, scores_apart, trained, write_pairs

MODEL = "safety:click"


def test_the_hinge_closes_and_stays_closed(tmp_path):
    """The margin is reached and not run away from; likelihood goes on alone."""
    more = {"click_margin": 4.0, "learningrate": 0.2, "max_train_steps": 80}
    folder = write_pairs(tmp_path / "data")
    loop, reports = run(**pair_options(MODEL, folder, tmp_path / "m" / "model", **more))
    hinges = [float(report["hinge"]) for report in reports]
    assert hinges[0] > 1 and max(hinges[-10:]) < 0.5
    assert float(reports[-1]["pair_acc"]) == 1 and float(reports[-1]["ppl"]) < float(reports[0]["ppl"]) / 2
    agent = loop.agent
    agent.model.eval()
    for context, chosen, rejected in PAIRS[:3]:
        found = []
        for text in (chosen, *rejected):
            scores, targets = scores_apart(agent, context, text)
            found.append(-torch.nn.functional.cross_entropy(scores[0], targets[0], reduction="sum").item())
        assert all(found[0] > other + 3 for other in found[1:])


def test_weight_0_is_likelihood(tmp_path):
    agent = trained(MODEL, tmp_path, click_weight=0.0, chunk_tokens=5)
    agent.model.eval()
    pairs, talk = (agent.batchify(observe_pairs(agent, rows)) for rows in (PAIRS, [(c, r, []) for c, r, _ in PAIRS]))
    assert loss_of(agent, pairs).item() == pytest.approx(loss_of(agent, talk).item(), rel=1e-6)
    first, second = gradients_of(agent, pairs), gradients_of(agent, talk)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-4, msg=name)


def test_the_released_arrangement_counts_ordinary_talk_alone(tmp_path):
    agent = trained(MODEL, tmp_path, click_chosen_nll=False, click_margin=0.0, max_train_steps=1)
    agent.model.double().eval()
    batch, talk = (agent.batchify(observe_pairs(agent, rows)) for rows in (PAIRS, PAIRS[3:]))
    loss, hinge = loss_of(agent, batch).item(), metrics_of(agent)["hinge"]
    assert loss == pytest.approx(loss_of(agent, talk).item() + 0.5 * hinge, rel=1e-9) and hinge > 0


@pytest.mark.parametrize(
    ("more", "got"), [({"click_margin": -1.0}, "--click-margin got"), ({"click_weight": -1.0}, "--click-weight got")]
)
def test_options_out_of_range_are_refused(more, got, tmp_path):
    with pytest.raises(SafetyError, match=got):
        trained(MODEL, tmp_path, **more)
