"""`safety:pairwise_cringe` as an agent: the gate in training, the options, the draws."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parlai_safety.agents.pairwise_cringe.pairwise_cringe import PairwiseCringeAgent
from parlai_safety.errors import SafetyError
from parlai_safety.losses import TokenLabel, cringe_loss
from tests.agents.small import gradients_of, loss_of, metrics_of, run
from tests.agents.small_pairs import PAIRS, evaluated, observe_pairs, pair_options, scores_apart, trained, write_pairs

MODEL = "safety:pairwise_cringe"


def log_p(agent, context, reply):
    scores, targets = scores_apart(agent, context, reply)
    return -torch.nn.functional.cross_entropy(scores[0], targets[0], reduction="sum").item()


def test_chosen_replies_gain_and_rejected_ones_lose(tmp_path):
    before = trained(MODEL, tmp_path / "a", max_train_steps=1, learningrate=0.0)
    after = trained(MODEL, tmp_path / "b", max_train_steps=60, learningrate=0.2)
    for agent in (before, after):
        agent.model.eval()
    for context, chosen, rejected in PAIRS[:3]:
        gained = log_p(after, context, chosen) - log_p(before, context, chosen)
        for text in rejected:
            lost = log_p(before, context, text) - log_p(after, context, text)
            assert gained > 2 and gained + lost > 4


def test_the_gate_falls_as_the_margin_is_met(tmp_path):
    """From half open to nearly shut; the loss falls with it, and with a far margin it stays open."""
    options = {"pairwise_temperature": 2.0, "learningrate": 0.3, "max_train_steps": 60}
    folder = write_pairs(tmp_path / "data")
    _, reports = run(**pair_options(MODEL, folder, tmp_path / "m" / "model", **options))
    gates = [float(report["gate"]) for report in reports]
    assert gates[-1] < 0.05 and max(gates[:5]) > 4 * max(gates[-5:])
    assert float(reports[-1]["loss"]) < 0.1 * float(reports[0]["loss"])
    far = {**options, "pairwise_margin": 500.0}
    _, reports = run(**pair_options(MODEL, folder, tmp_path / "n" / "model", **far))
    assert float(reports[-1]["gate"]) == pytest.approx(1)


def test_a_met_hard_margin_teaches_nothing(tmp_path):
    """With every gate shut the loss is 0 and its gradient zero, in chunks as in the plain form."""
    for form in ({"chunk_tokens": 4}, {"full_logits": True}):
        folder = "-".join(form)
        agent = trained(MODEL, tmp_path / folder, pairwise_temperature=0.0, pairwise_margin=-1000.0, **form)
        agent.model.eval()
        batch = agent.batchify(observe_pairs(agent, PAIRS[:3]))
        assert loss_of(agent, batch).item() == 0 and metrics_of(agent)["gate"] == 0
        assert all(gradient.eq(0).all() for gradient in gradients_of(agent, batch).values())


def test_without_a_gate_it_is_cringe_on_the_two_replies(tmp_path):
    agent = trained(MODEL, tmp_path, pairwise_margin=1e6, pairwise_alpha=0.3, chunk_tokens=5)
    agent.model.double().eval()
    context, chosen, (rejected,) = PAIRS[0]
    ours = loss_of(agent, agent.batchify(observe_pairs(agent, PAIRS[:1])))
    rows = [scores_apart(agent, context, text) for text in (chosen, rejected)]
    parts = [
        cringe_loss(scores, targets, torch.tensor([label]), targets != agent.NULL_IDX, alpha=0.3, generator=None)
        for (scores, targets), label in zip(rows, (TokenLabel.POSITIVE, TokenLabel.NEGATIVE), strict=True)
    ]
    counts = [targets.numel() for _, targets in rows]
    expected = sum(part.loss.item() * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    assert ours.item() == pytest.approx(expected, rel=1e-9)


def test_options_reach_the_loss(tmp_path):
    agent = trained(MODEL, tmp_path, max_train_steps=1)
    batch = agent.batchify(observe_pairs(agent))
    agent.model.double().eval()
    base = loss_of(agent, batch).item()
    changes = {
        "pairwise_margin": 7.0,
        "pairwise_temperature": 3.0,
        "pairwise_alpha": 0.1,
        "pairwise_k": 5,
        "pairwise_per_token": True,
    }
    kept = agent.settings
    for name, value in changes.items():
        agent.settings = type(kept)(**{**vars(kept), name: value})
        assert abs(loss_of(agent, batch).item() - base) > 1e-6, name
    agent.settings = kept
    held = gradients_of(agent, batch)
    agent.settings = type(kept)(**{**vars(kept), "pairwise_stop_gradient": False})
    free = gradients_of(agent, batch)
    assert loss_of(agent, batch).item() == pytest.approx(base)
    assert any((held[name] - free[name]).abs().max() > 1e-6 for name in held)


def test_evaluation_draws_nothing_from_the_source_of_training(tmp_path):
    agent = trained(MODEL, tmp_path, pairwise_k=3)
    batch = agent.batchify(observe_pairs(agent))
    agent.model.eval()
    loss_of(agent, batch)
    before = agent._training_source.get_state()
    assert evaluated(agent, batch).item() == evaluated(agent, batch).item()
    assert torch.equal(agent._training_source.get_state(), before)


def test_a_new_run_from_a_model_draws_by_its_own_seed(tmp_path):
    """The draws go on in their own run only; elsewhere --pairwise-seed decides."""
    trained(MODEL, tmp_path, pairwise_k=3)

    def state(seed: int) -> torch.Tensor:
        more = {"init_model": str(tmp_path / "m" / "model"), "pairwise_k": 3, "pairwise_seed": seed}
        run(**pair_options(MODEL, tmp_path / "data", tmp_path / str(seed) / "model", **more))
        kind, drawn = torch.load(tmp_path / str(seed) / "model", weights_only=False)["pairwise_draws"]
        assert kind == "cpu"
        return drawn

    assert not torch.equal(state(1), state(2))


def test_draws_of_another_device_start_anew(tmp_path):
    trained(MODEL, tmp_path, pairwise_k=3, max_train_steps=3)
    model_file = tmp_path / "m" / "model"
    states = torch.load(model_file, weights_only=False)
    states["pairwise_draws"] = ("cuda", torch.zeros(16, dtype=torch.uint8))
    torch.save(states, model_file)
    loop, _ = run(**pair_options(MODEL, tmp_path / "data", model_file, pairwise_k=3, max_train_steps=6))
    assert loop._train_steps == 6


def test_a_loaded_model_hands_its_draws_over(tmp_path):
    """Loading and saving without training keeps the state as it was."""
    agent = trained(MODEL, tmp_path, pairwise_k=3)
    before = torch.load(tmp_path / "m" / "model", weights_only=False)["pairwise_draws"][1]
    agent.save(str(tmp_path / "copy"))
    assert torch.equal(torch.load(tmp_path / "copy", weights_only=False)["pairwise_draws"][1], before)


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"pairwise_k": 5000}, "--pairwise-k got 5000"),
        ({"pairwise_k": 0}, "--pairwise-k got"),
        ({"pairwise_temperature": -1.0}, "--pairwise-temperature got"),
        ({"pairwise_alpha": -0.5}, "--pairwise-alpha got"),
        ({"pairwise_margin": math.nan}, "--pairwise-margin got"),
    ],
)
def test_options_out_of_range_are_refused(more, got, tmp_path):
    with pytest.raises(SafetyError, match=got):
        trained(MODEL, tmp_path, **more)


def test_the_saved_model_loads_without_our_hook(tmp_path):
    trained(MODEL, tmp_path, max_train_steps=1)
    model_file = tmp_path / "m" / "model"
    path = "parlai_safety.agents.pairwise_cringe.pairwise_cringe:PairwiseCringeAgent"
    assert json.loads(Path(f"{model_file}.opt").read_text())["model"] == path
    code = (
        "import sys; from parlai.core.agents import create_agent_from_model_file as load;"
        f"agent = load({str(model_file)!r}); assert 'parlai_safety.plugin' not in sys.modules;"
        "agent.observe({'text': 'How are you?', 'episode_done': True}); print('REPLY', agent.act()['text'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "REPLY" in done.stdout, done.stderr[-2000:]
    assert PairwiseCringeAgent.backbone.__name__ == "TransformerGeneratorAgent"
