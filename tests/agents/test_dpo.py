"""`safety:dpo` as an agent: its frozen reference, what is stored of it, resumed runs, adapters, dropout."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from parlai.core.agents import create_agent_from_model_file

from parlai_safety.agents.reference import ReferenceMixin
from parlai_safety.errors import SafetyError
from parlai_safety.modeling.frozen import adapters_add_nothing
from tests.agents.small import gradients_of, loss_of, metrics_of, options, run, weights
from tests.agents.small_triples import BACKBONES, TRIPLES, batch_of, begun, log_p, triple_options

MODELS = {"": "safety:dpo", "/causal_lm": "safety:dpo/causal_lm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {backbone: begun(backbone, tmp_path_factory.mktemp("dpo")) for backbone in BACKBONES}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of what the transformer begins from, which a test may change."""
    return shutil.copytree(folders[""], tmp_path / "begun")


def train(model, folder, model_file, **more):
    """A run, the agent in evaluation mode, and its reports."""
    loop, reports = run(**triple_options(model, folder, model_file, **more))
    loop.agent.model.eval()
    return loop.agent, reports


def no_reference(*_):
    raise AssertionError("the reference was opened")


def test_what_is_stored_is_not_asked_again(folders, tmp_path, monkeypatch):
    """A second run from the same model with the same data opens no reference, and learns the same."""
    folder, shared = folders[""], {"reference_cache": str(tmp_path / "shared")}
    _, first = train(MODELS[""], folder, tmp_path / "a" / "model", **shared)
    monkeypatch.setattr(ReferenceMixin, "_taken", no_reference)
    monkeypatch.setattr(ReferenceMixin, "_copy", no_reference)
    _, second = train(MODELS[""], folder, tmp_path / "b" / "model", **shared)
    assert [float(report["loss"]) for report in first] == [float(report["loss"]) for report in second]
    # Another model's numbers are others.
    other = shutil.copytree(folder, tmp_path / "other")
    run(**options("safety:mle", other / "triples.jsonl", other / "base", toxic_token=True, max_train_steps=3))
    with pytest.raises(AssertionError, match="the reference was opened"):
        train(MODELS[""], other, tmp_path / "c" / "model", **shared)


def test_only_the_missing_is_computed(folders, tmp_path):
    agent, _ = train(MODELS[""], folders[""], tmp_path / "model")
    loss_of(agent, batch_of(agent))
    scores = agent._scores
    assert scores.hits == 7 and scores.misses == 0  # of three examples, one with two rejected replies
    context, chosen, rejected, _ = TRIPLES[0]
    loss_of(agent, batch_of(agent, [(context, chosen, [*rejected, "Be quiet."], []), *TRIPLES[1:]]))
    assert scores.hits == 14 and scores.misses == 1
    loss_of(agent, batch_of(agent, [("How old are you?", chosen, rejected, [])]))
    assert scores.misses == 3


KINDS = {
    "file": ("", {}),
    "kept": ("", {"init_model": None}),
    "hf": ("/causal_lm", {"init_model": None, "dict_file": None, "toxic_token": None}),
    "base": ("/causal_lm", {"init_model": None, "dict_file": None, "toxic_token": None, "lora_rank": 2}),
}
"""Where a reference can come from, as the checkpoint names it: the backbone and the settings; None leaves one out."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_measured_against_where_it_began(kind, folders, tmp_path):
    """Its weights are those of a run that was never stopped, though nothing was stored of the reference."""
    backbone, more = KINDS[kind]
    if backbone:
        more = {**more, "hf_model": str(folders[backbone] / "hf")}

    def go(name, steps):
        file = tmp_path / name / "model"
        settings = {**triple_options(MODELS[backbone], folders[backbone], file, max_train_steps=steps), **more}
        return run(**{key: value for key, value in settings.items() if value is not None})

    go("straight", 6)
    go("resumed", 3)
    (tmp_path / "resumed" / "model.reference" / "logps.sqlite").unlink()
    loop, reports = go("resumed", 6)
    assert loop.agent._origin.kind == kind
    straight, resumed = (weights(tmp_path / name / "model") for name in ("straight", "resumed"))
    for name in straight:
        torch.testing.assert_close(resumed[name], straight[name], rtol=1e-4, atol=1e-6)
    assert abs(float(reports[-1]["logps_chosen_drift"])) > 1e-3


def test_a_reference_that_is_gone_or_another_is_refused(folder, tmp_path):
    model_file = tmp_path / "m" / "model"
    stored = tmp_path / "m" / "model.reference" / "logps.sqlite"
    train(MODELS[""], folder, model_file, max_train_steps=2)

    def go_on(**more):
        # A copy each: a run that is refused may have been begun.
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(model_file.parent, place)
        return train(MODELS[""], folder, place / "model", max_train_steps=4, dict_file=f"{model_file}.dict", **more)

    moved = shutil.copytree(folder, tmp_path / "moved") / "base"
    run(**options("safety:mle", folder / "triples.jsonl", folder / "base", toxic_token=True, max_train_steps=4))
    go_on()  # everything is stored
    stored.unlink()
    with pytest.raises(SafetyError, match="is not the reference that this run began with"):
        go_on()
    (folder / "base").unlink()
    with pytest.raises(SafetyError, match="is not there"):
        go_on()
    go_on(reference_model=str(moved))
    with pytest.raises(SafetyError, match="is not the reference that this run began with"):
        go_on(reference_model=str(model_file))


def test_another_reference_by_its_file(folders, tmp_path):
    """Rewards are then not 0 at the beginning, and both models answer as they are."""
    folder = folders[""]
    train(MODELS[""], folder, tmp_path / "first" / "model")
    first = tmp_path / "first" / "model"
    agent, reports = train(MODELS[""], folder, tmp_path / "m" / "model", reference_model=str(first), learningrate=0.0)
    reference, start = create_agent_from_model_file(str(first)), create_agent_from_model_file(str(folder / "base"))
    context, chosen, *_ = TRIPLES[2]
    for other in (reference, start):
        other.model.eval()
    loss_of(agent, batch_of(agent, TRIPLES[2:3]))
    with torch.no_grad():
        expected = log_p(start, context, chosen) - log_p(reference, context, chosen)
    assert metrics_of(agent)["logps_chosen_drift"] == pytest.approx(expected.item(), rel=1e-3) and abs(expected) > 0.1
    assert len(agent.monitor.state()["window"]) == 6  # its own updates, and not those of the reference's training
    assert float(reports[0]["rewards_margins"]) < -0.01


def test_a_reference_of_another_kind_is_refused(folder, tmp_path):
    """Whose numbers would be of other words or other layers, though its weights have the same shapes."""
    base = folder / "base"

    def changed(name, change):
        place = shutil.copytree(folder, tmp_path / name)
        change(place)
        return str(place / "base")

    def other_words(place):
        lines = (place / "base.dict").read_text().splitlines()
        lines[6], lines[9] = lines[9], lines[6]
        (place / "base.dict").write_text("\n".join(lines) + "\n")

    def other_heads(place):
        opt = json.loads((place / "base.opt").read_text())
        (place / "base.opt").write_text(json.dumps({**opt, "n_heads": 1}))

    def fewer_words(place):
        for file in place.glob("base*"):
            file.unlink()
        run(**options("safety:mle", place / "triples.jsonl", place / "base", max_train_steps=1))

    for number, (change, got) in enumerate(
        (
            (other_words, "has another dictionary than"),
            (other_heads, "has --n-heads than"),
            (fewer_words, "has another dictionary than"),
            (lambda place: (place / "base.dict").unlink(), "has no file base.dict"),
        )
    ):
        named = changed(str(number), change)
        with pytest.raises(SafetyError, match=got):
            train(MODELS[""], folder, tmp_path / "m" / "model", init_model=str(base), reference_model=named)


def test_the_toxic_model_must_have_learned_the_token(folder, tmp_path):
    """Its row in a checkpoint without the token would be made up."""
    plain = tmp_path / "plain"
    words = {"dict_textfields": "text,labels,rejected,toxic", "max_train_steps": 1}
    run(**options("safety:mle", folder / "triples.jsonl", plain, **words))
    begun = {"init_model": str(plain), "dict_file": f"{plain}.dict"}
    for more in (begun, {"reference_model": str(plain)}):
        with pytest.raises(SafetyError, match="the checkpoint of the reference has no control token"):
            train("safety:adpo", folder, tmp_path / "m" / "model", **more)
        train("safety:adpo", folder, tmp_path / f"{len(more)}" / "model", **more, adpo_lambda=0.0, max_train_steps=1)


@pytest.fixture(scope="module")
def adapted(folders, tmp_path_factory):
    """A model with adapters after some steps, and its file."""
    file = tmp_path_factory.mktemp("adapted") / "model"
    settings = triple_options(MODELS["/causal_lm"], folders["/causal_lm"], file, lora_rank=2, lora_dropout=0.3)
    for name in ("init_model", "dict_file", "toxic_token"):
        del settings[name]
    loop, reports = run(**settings, hf_model=str(folders["/causal_lm"] / "hf"))
    return loop.agent, file, reports


def test_new_adapters_need_no_second_model(folders, adapted):
    """Switched off they leave the base; afterwards they are on, trained, and in the mode that they were in."""
    agent, _, reports = adapted
    assert float(reports[0]["logps_chosen_drift"]) == pytest.approx(0, abs=1e-4) and agent._frozen is None
    ids = torch.arange(4, 9)[None]
    agent.model.eval()
    modes = {name: module.training for name, module in agent.model.named_modules()}
    wanted = {name: weight.requires_grad for name, weight in agent.model.named_parameters()}
    with torch.no_grad():
        own = agent.model(ids, ys=ids)[0]
        with agent._opened() as model:
            assert model is agent.model
            base = model(ids, ys=ids)[0]
        again = agent.model(ids, ys=ids)[0]
    assert torch.equal(own, again) and not torch.allclose(own, base)
    assert modes == {name: module.training for name, module in agent.model.named_modules()}
    assert wanted == {name: weight.requires_grad for name, weight in agent.model.named_parameters()}
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(folders["/causal_lm"] / "hf")
    with torch.no_grad():
        logits = lm(input_ids=torch.cat((ids, ids), 1)).logits[:, 4:9]
    torch.testing.assert_close(base, logits, rtol=1e-4, atol=1e-4)


def test_trained_adapters_have_a_frozen_copy(folders, adapted, tmp_path):
    """A run from a model with adapters begins at a drift of 0, and its reference keeps the adapters."""
    _, file, _ = adapted
    settings = triple_options(MODELS["/causal_lm"], folders["/causal_lm"], tmp_path / "model", lora_rank=2)
    settings.update(init_model=str(file), dict_file=f"{file}.dict", toxic_token=False)
    loop, reports = run(**settings, hf_model=str(folders["/causal_lm"] / "hf"))
    assert float(reports[0]["logps_chosen_drift"]) == pytest.approx(0, abs=1e-4)
    assert abs(float(reports[-1]["logps_chosen_drift"])) > 1e-3
    with loop.agent._opened() as model:
        assert model is not loop.agent.model
        assert any(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)
        assert not any(weight.requires_grad for weight in model.parameters())


def test_a_named_reference_has_none_of_the_adapters_that_are_trained(folders, tmp_path):
    folder, file = folders["/causal_lm"], tmp_path / "model"
    more = {"lora_rank": 2, "reference_model": str(folder / "base")}
    train(MODELS["/causal_lm"], folder, file, max_train_steps=2, **more)
    (tmp_path / "model.reference" / "logps.sqlite").unlink()
    agent, _ = train(MODELS["/causal_lm"], folder, file, max_train_steps=3, **more)
    with agent._opened() as model:
        assert adapters_add_nothing(model) and not adapters_add_nothing(agent.model)


@pytest.mark.parametrize("kept", (False, True))
def test_dropout_is_off_unless_it_is_wished(kept, folders, tmp_path):
    agent, _ = train(
        MODELS[""], folders[""], tmp_path / "model", dropout=0.5, preference_dropout=kept, max_train_steps=1
    )
    batch = batch_of(agent)
    agent.model.train()
    losses = {loss_of(agent, batch).item() for _ in range(3)}
    assert (len(losses) > 1) == kept
    with agent._opened() as model:
        assert not model.training


def test_evaluation_measures_against_the_same_reference(folders, tmp_path):
    """A model that is loaded to be evaluated finds it again, and stores nothing beside the model."""
    agent, _ = train(MODELS[""], folders[""], tmp_path / "m" / "model")
    expected = loss_of(agent, batch_of(agent)).item()
    shutil.rmtree(tmp_path / "m" / "model.reference")
    loaded = create_agent_from_model_file(str(tmp_path / "m" / "model"), {"datatype": "valid"})
    loaded.model.eval()
    seen = loaded.monitor.state()
    with torch.no_grad():
        for asked in (loaded.clone(), loaded):
            assert loss_of(asked, batch_of(asked)).item() == pytest.approx(expected, rel=1e-6)
    assert not (tmp_path / "m" / "model.reference").exists() and metrics_of(loaded)["rewards_margins"] != 0
    assert loaded.monitor.state() == seen


def test_pairs_that_come_late_are_measured_against_the_beginning(folders, folder, tmp_path):
    """The reference is asked after the first update, when the model is another one already."""
    rows = [json.loads(line) for line in (folder / "triples.jsonl").read_text().splitlines()]
    talk = [{"context": row["context"], "reply": row["reply"]} for row in rows]
    (folder / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*talk, *rows)))
    settings = triple_options(MODELS[""], folder, tmp_path / "model", max_train_steps=3, learningrate=1.0)
    _, reports = run(**{**settings, "init_model": str(folders[""] / "base")})
    assert float(reports[1]["logps_chosen_drift"]) > 0.01 and "logps_chosen_drift" not in reports[0]


def test_an_evaluation_is_told_where_the_reference_is_now(folder, folders, tmp_path):
    file = tmp_path / "m" / "model"
    agent, _ = train(MODELS[""], folder, file)
    expected = loss_of(agent, batch_of(agent)).item()
    shutil.rmtree(folder)
    for place, refused in ((folders[""] / "base", None), (file, "is not the reference that this run began with")):
        loaded = create_agent_from_model_file(str(file), {"datatype": "valid", "reference_model": str(place)})
        loaded.model.eval()
        if refused is None:
            assert loss_of(loaded, batch_of(loaded)).item() == pytest.approx(expected, rel=1e-6)
        else:
            with pytest.raises(SafetyError, match=refused):
                loss_of(loaded, batch_of(loaded))


def test_an_update_of_several_batches_is_their_mean(folders, tmp_path):
    """The same batch twice is what it is once, and the monitor counts updates."""
    for freq in (1, 2):
        train(MODELS[""], folders[""], tmp_path / f"{freq}" / "model", max_train_steps=3, update_freq=freq)
    once, twice = (torch.load(tmp_path / freq / "model", weights_only=False) for freq in "12")
    assert once["number_training_updates"] == twice["number_training_updates"] == 3
    for name, weight in once["model"].items():
        torch.testing.assert_close(twice["model"][name], weight, rtol=1e-5, atol=1e-7)
    (_, nats, tokens), (_, more, double) = (states["collapse"]["window"][-1] for states in (once, twice))
    assert double == 2 * tokens and more == pytest.approx(2 * nats, rel=1e-4)
    assert len(twice["collapse"]["window"]) == 3


def test_loss_and_gradients_are_those_of_trls_trainer(folders, tmp_path):
    """On the same tokens, of a model that has left its reference."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    place = folders["/causal_lm"] / "hf"
    settings = triple_options(MODELS["/causal_lm"], folders["/causal_lm"], tmp_path / "model", max_train_steps=2)
    for name in ("init_model", "dict_file", "toxic_token"):
        del settings[name]
    agent = run(**settings, hf_model=str(place))[0].agent
    agent.model.eval()
    batch = batch_of(agent, [TRIPLES[0], TRIPLES[2]])
    columns = {"prompt_ids": batch.text_vec, "chosen_ids": batch.label_vec, "rejected_ids": batch.rejected_vec}
    rows = [
        {name: [id_ for id_ in ids[row].tolist() if id_ != agent.NULL_IDX] for name, ids in columns.items()}
        for row in range(2)
    ]
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.eos_token
    kept = agent.settings
    for theirs, ours in (
        ({"beta": 0.3}, {"beta": 0.3}),
        ({"beta": 0.2, "loss_type": ["ipo"]}, {"beta": 0.2, "dpo_preference": "ipo", "dpo_per_token": True}),
    ):
        model, reference = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32) for _ in range(2))
        model.load_state_dict(agent.model.lm.state_dict())
        more = {"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False, **theirs}
        trainer = Tokenized(
            model,
            reference,
            DPOConfig(output_dir=str(tmp_path), **more),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        expected.backward()
        agent.settings = type(kept)(**{**vars(kept), **ours})
        found = gradients_of(agent, batch)
        assert loss_of(agent, batch).item() == pytest.approx(expected.item(), rel=1e-5)
        assert abs(metrics_of(agent)["rewards_margins"]) > 1e-3
        for name, parameter in trainer.model.named_parameters():
            torch.testing.assert_close(found[f"lm.{name}"], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"beta": 0.0}, "beta is 0"),
        ({"dpo_beta": -1.0}, "--beta got"),
        ({"dpo_preference": "hinge"}, "--dpo-preference got"),
        ({"dpo_label_smoothing": 0.5}, "--dpo-label-smoothing got"),
        ({"dpo_preference": "ipo", "dpo_label_smoothing": 0.1}, "label_smoothing is 0.1 with the preference 'ipo'"),
        ({"collapse_action": "shrug"}, "--collapse-action got"),
        ({"reference_model": "/nowhere/model"}, "the reference /nowhere/model is not there"),
        ({"model": "safety:adpo", "adpo_gamma": 0.0}, "gamma is 0"),
        ({"model": "safety:adpo", "adpo_anchor": "toxin"}, "--adpo-anchor got"),
    ],
)
def test_options_out_of_range_are_refused(more, got, folders, tmp_path):
    with pytest.raises(SafetyError, match=got):
        run(**{**triple_options(MODELS[""], folders[""], tmp_path / "model"), **more})


def test_the_toxic_anchor_needs_the_token(folders, tmp_path):
    folder = folders[""]
    settings = triple_options("safety:adpo", folder, tmp_path / "model")
    for name in ("init_model", "dict_file", "toxic_token"):
        del settings[name]
    with pytest.raises(SafetyError, match="--toxic-token true .* --adpo-anchor reference"):
        run(**settings)
    run(**{**settings, "adpo_anchor": "reference", "model_file": str(tmp_path / "other"), "max_train_steps": 1})
