"""`safety:cringe` as an agent: gathers the right tensors, trains, resumes, and loads without our hook."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.core.worlds import create_task
from parlai.scripts.train_model import TrainLoop, TrainModel, set_seed

from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import cringe_loss
from tests.conftest import TINY_MODEL

ROWS = [
    {"context": ["How are you?"], "reply": "Fine, thanks, and you?", "label": "safe"},
    {"context": ["How are you?"], "reply": "Go away, you dim lamp.", "label": "unsafe"},
    {"context": ["What do you like?"], "reply": "I like trains and long walks."},
    {"context": ["What do you think of me?"], "reply": "You are a dim lamp.", "label": "unsafe"},
]


@pytest.fixture
def talk(tmp_path) -> Path:
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def options(talk: Path, model_file: Path, **more):
    return {
        "model": "safety:cringe",
        "task": "safety:file",
        "safety_file": str(talk),
        "model_file": str(model_file),
        "batchsize": 4,
        "optimizer": "sgd",
        "learningrate": 0.1,
        "max_train_steps": 6,
        "log_every_n_steps": 1,
        "loglevel": "error",
        **TINY_MODEL,
        **more,
    }


def run(**kwargs):
    opt = TrainModel.setup_args().parse_kwargs(**kwargs)
    set_seed(3)
    loop = TrainLoop(opt)
    set_seed(3)
    reports = list(loop.train_steps())
    return loop, reports


def observe_all(agent, rows):
    observations = []
    for row, label in zip(rows, ("pos", "neg", None, "neg"), strict=True):
        message = {"text": row["context"][0], "labels": [row["reply"]], "episode_done": True}
        if label:
            message["classifier_label"] = label
        observations.append(agent.clone().observe(Message(message)))
    return observations


@pytest.fixture
def agent(talk, tmp_path):
    loop, _ = run(**options(talk, tmp_path / "m" / "model"))
    return loop.agent


def test_it_trains_and_reports_each_kind_of_token_apart(talk, tmp_path):
    loop, reports = run(**options(talk, tmp_path / "m" / "model"))
    assert loop._train_steps == 6
    last = {name: float(value) for name, value in reports[-1].items()}
    assert {"loss", "ce_loss", "cringe_loss", "ppl", "ppl_neg", "token_acc", "token_acc_neg", "gnorm"} <= set(last)
    assert last["share_pos"] + last["share_neg"] + last["share_plain"] == pytest.approx(1)
    assert last["loss"] > 0


def test_the_batch_carries_the_labels_and_the_loss_is_that_of_the_library(agent):
    batch = agent.batchify(observe_all(agent, ROWS))
    assert batch.token_labels.tolist() == [1, 0, -1, 0]
    agent.model.eval()
    agent._local_metrics.clear()
    agent.show_token_details = True
    loss, output = agent.compute_loss(batch, return_output=True)
    expected = cringe_loss(
        output[0], batch.label_vec, torch.tensor([1, 0, -1, 0]), batch.label_vec != agent.NULL_IDX, generator=None
    )
    assert loss.item() == pytest.approx(expected.loss.item())
    as_plain = cringe_loss(
        output[0], batch.label_vec, torch.full((4,), -1), batch.label_vec != agent.NULL_IDX, generator=None
    )
    assert abs(loss.item() - as_plain.loss.item()) > 1e-3


def test_labels_stay_with_their_rows_when_observations_are_invalid_or_sorted(agent):
    """A padding example drops out of the batch; sorting by length moves rows: labels must move with them."""
    observations = observe_all(agent, ROWS)
    observations.insert(0, Message.padding_example())
    batch = agent.batchify(observations)
    assert batch.batchsize == 4 and batch.token_labels.tolist() == [1, 0, -1, 0]
    long = agent.clone().observe(
        Message({"text": "How are you? " * 3, "labels": ["Fine"], "classifier_label": "neg", "episode_done": True})
    )
    batch = agent.batchify([*observe_all(agent, ROWS)[:1], long], sort=True)
    assert batch.valid_indices.tolist() == [1, 0] and batch.token_labels.tolist() == [0, 1]


def test_a_new_run_from_a_model_draws_by_its_own_seed(talk, tmp_path):
    """The sampler of the checkpoint goes on in its own run only; elsewhere --cringe-seed decides."""
    run(**options(talk, tmp_path / "m" / "model", cringe_k=3))

    def state(seed: int) -> torch.Tensor:
        more = {"init_model": str(tmp_path / "m" / "model"), "cringe_k": 3, "cringe_seed": seed}
        run(**options(talk, tmp_path / str(seed) / "model", **more))
        kind, drawn = torch.load(tmp_path / str(seed) / "model", weights_only=False)["cringe_sampler"]
        assert kind == "cpu"
        return drawn

    assert not torch.equal(state(1), state(2))


def test_a_sampler_of_another_device_starts_anew(talk, tmp_path):
    model_file = tmp_path / "m" / "model"
    run(**options(talk, model_file, cringe_k=3, max_train_steps=3))
    states = torch.load(model_file, weights_only=False)
    states["cringe_sampler"] = ("cuda", torch.zeros(16, dtype=torch.uint8))
    torch.save(states, model_file)
    loop, _ = run(**options(talk, model_file, cringe_k=3, max_train_steps=6))
    assert loop._train_steps == 6


def test_evaluation_draws_nothing_from_the_training_sampler(agent):
    agent.settings = dataclasses.replace(agent.settings, cringe_k=3)
    batch = agent.batchify(observe_all(agent, ROWS))
    agent._local_metrics.clear()
    agent.compute_loss(batch)
    before = agent._training_source.get_state()
    losses = []
    for _ in range(2):
        agent._local_metrics.clear()
        with torch.no_grad():
            losses.append(agent.compute_loss(batch).item())
    assert torch.equal(agent._training_source.get_state(), before) and losses[0] == losses[1]


def test_metrics_of_an_absent_kind_are_absent(agent):
    observations = observe_all(agent, ROWS)
    agent._local_metrics.clear()
    agent.compute_loss(agent.batchify([observations[1], observations[3]]))
    assert "ppl_neg" in agent._local_metrics and "ppl" not in agent._local_metrics
    agent._local_metrics.clear()
    agent.compute_loss(agent.batchify([observations[0], observations[2]]))
    assert "ppl" in agent._local_metrics and "ppl_neg" not in agent._local_metrics


def test_perplexity_is_that_of_the_plain_generator_on_positive_talk(agent):
    """On plain talk CRINGE is ParlAI's generator: the same loss to the last digit."""
    from parlai.agents.transformer.transformer import TransformerGeneratorAgent

    batch = agent.batchify([observe_all(agent, ROWS)[2]])
    agent.model.eval()
    agent._local_metrics.clear()
    ours = agent.compute_loss(batch).item()
    ppl = agent._local_metrics["ppl"][0].value()
    agent._local_metrics.clear()
    theirs = TransformerGeneratorAgent.compute_loss(agent, batch).item()
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ppl == pytest.approx(agent._local_metrics["ppl"][0].value(), rel=1e-6)


def test_training_unlearns_what_is_negative(talk, tmp_path):
    """After some steps the negative replies are less likely than for a model that never saw verdicts."""

    def negative_perplexity(name: str, mutators: str | None) -> float:
        more = {"mutators": mutators} if mutators else {}
        loop, _ = run(**options(talk, tmp_path / name / "model", max_train_steps=60, learningrate=0.5, **more))
        loop.agent.model.eval()
        batch = loop.agent.batchify([observe_all(loop.agent, ROWS)[i] for i in (1, 3)])
        loop.agent._local_metrics.clear()
        with torch.no_grad():
            loop.agent.compute_loss(batch)
        metrics = loop.agent._local_metrics["ppl_neg"]
        return (metrics[0] + metrics[1]).value()

    assert negative_perplexity("cringe", None) > 3 * negative_perplexity("plain", "safety_plain")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_works_under_autocast(agent, dtype):
    batch = agent.batchify(observe_all(agent, ROWS))
    agent.model.eval()
    agent._local_metrics.clear()
    full = agent.compute_loss(batch).item()
    agent._local_metrics.clear()
    with torch.autocast("cpu", dtype=dtype):
        loss = agent.compute_loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(full, rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in agent.model.parameters() if p.grad is not None)


def test_gradient_accumulation_takes_the_update_of_the_large_batch(talk, tmp_path):
    """Two batches of two with --update-freq 2 are one batch of four where the batches have as many tokens each."""
    rows = [ROWS[0], ROWS[1], ROWS[0], ROWS[1]]
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"datatype": "train:ordered", "dict_maxexs": -1}
    large, _ = run(**options(talk, tmp_path / "a" / "model", batchsize=4, max_train_steps=2, **more))
    small, _ = run(**options(talk, tmp_path / "b" / "model", batchsize=2, update_freq=2, max_train_steps=2, **more))
    for (name, a), (_, b) in zip(
        large.agent.model.state_dict().items(), small.agent.model.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=name)


def test_a_resumed_run_is_the_straight_run(talk, tmp_path):
    """Same order of data (ordered), k = 3: the sampler's state is in the checkpoint."""
    more = {"datatype": "train:ordered", "cringe_k": 3, "optimizer": "adam"}
    run(**options(talk, tmp_path / "a" / "model", max_train_steps=6, **more))
    first, _ = run(**options(talk, tmp_path / "b" / "model", max_train_steps=3, **more))
    first.save_model(".checkpoint")
    second, _ = run(**options(talk, tmp_path / "b" / "model", max_train_steps=6, **more))
    assert second._train_steps == 6
    straight, resumed = (weights(tmp_path / name / "model") for name in "ab")
    for name in straight:
        torch.testing.assert_close(straight[name], resumed[name], atol=1e-6, rtol=1e-5, msg=name)
    # What the loop evaluates at its end is what it saved (stock ParlAI evaluates the checkpoint: see compat).
    for name, value in second.agent.model.state_dict().items():
        torch.testing.assert_close(value, resumed[name], atol=0, rtol=0, msg=name)


def weights(model_file: Path) -> dict[str, torch.Tensor]:
    return torch.load(model_file, weights_only=False)["model"]


def test_options_reach_the_loss(talk, tmp_path):
    loop, _ = run(
        **options(talk, tmp_path / "m" / "model", ct_loss_weight=0.25, cringe_k=2, cringe_detach_positive=True)
    )
    assert loop.agent.settings.cringe_alpha == 0.25
    assert loop.agent.settings.cringe_k == 2
    assert loop.agent.settings.cringe_detach_positive is True


def test_the_saved_opt_names_the_dotted_path_and_loads_without_our_hook(talk, tmp_path):
    model_file = tmp_path / "m" / "model"
    run(**options(talk, model_file))
    assert (
        json.loads(Path(f"{model_file}.opt").read_text())["model"] == "parlai_safety.agents.cringe.cringe:CringeAgent"
    )
    code = (
        "import sys; from parlai.core.agents import create_agent_from_model_file as load;"
        f"agent = load({str(model_file)!r}); assert 'parlai_safety.plugin' not in sys.modules;"
        "agent.observe({'text': 'How are you?', 'episode_done': True}); print('REPLY', agent.act()['text'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "REPLY" in done.stdout


def test_an_unknown_verdict_in_another_tasks_data_is_refused(agent):
    observations = observe_all(agent, ROWS)
    observations[0].force_set("classifier_label", "bad")
    with pytest.raises(SafetyError, match="bad"):
        agent.batchify(observations)


def test_k_beyond_the_dictionary_is_refused(talk, tmp_path):
    with pytest.raises(SafetyError, match="--cringe-k got 5000"):
        run(**options(talk, tmp_path / "m" / "model", cringe_k=5000))


def test_a_checkpoint_of_another_agent_is_refused_and_kept(talk, tmp_path):
    model_file = tmp_path / "m" / "model"
    judge = options(talk, model_file, model="safety:judge", task="safety:file:classifier")
    run(**judge)
    before = {path.name: path.read_bytes() for path in model_file.parent.iterdir()}
    with pytest.raises(
        SafetyError, match="holds a checkpoint of the agent 'parlai_safety.agents.judge.judge:JudgeAgent'"
    ):
        run(**options(talk, model_file))
    assert {path.name: path.read_bytes() for path in model_file.parent.iterdir()} == before


def test_a_plain_generator_is_not_overwritten(talk, tmp_path):
    model_file = tmp_path / "m" / "model"
    run(**options(talk, model_file, model="transformer/generator"))
    before = model_file.read_bytes()
    with pytest.raises(SafetyError, match="would overwrite another agent's model"):
        run(**options(talk, model_file))
    assert model_file.read_bytes() == before


def test_a_checkpoint_without_its_options_is_refused(talk, tmp_path):
    model_file = tmp_path / "m" / "model"
    model_file.parent.mkdir()
    model_file.write_bytes(b"who knows")
    with pytest.raises(SafetyError, match="does not say which agent saved it"):
        create_agent(TrainModel.setup_args().parse_kwargs(**options(talk, model_file, dict_file=str(tmp_path / "d"))))
    assert model_file.read_bytes() == b"who knows"


def test_a_checkpoint_of_other_sizes_is_refused(talk, tmp_path):
    run(**options(talk, tmp_path / "m" / "model"))
    small = options(talk, tmp_path / "n" / "model", init_model=str(tmp_path / "m" / "model"), embedding_size=32)
    with pytest.raises(SafetyError, match="does not fit the model"):
        run(**small)


def test_it_continues_from_a_plain_generator(talk, tmp_path):
    plain = options(talk, tmp_path / "m" / "model", model="transformer/generator")
    run(**plain)
    loop, _ = run(**options(talk, tmp_path / "n" / "model", init_model=str(tmp_path / "m" / "model")))
    assert loop._train_steps == 6


def test_eval_scores_negative_examples_too(talk, tmp_path):
    loop, _ = run(**options(talk, tmp_path / "m" / "model"))
    opt = loop.agent.opt.copy()
    opt.update(datatype="valid", batchsize=4, skip_generation=True)
    world = create_task(opt, loop.agent)
    while not world.epoch_done():
        world.parley()
    report = world.report()
    assert float(report["ppl"]) > 1 and float(report["ppl_neg"]) > 1
    assert int(report["exs"]) == 4
