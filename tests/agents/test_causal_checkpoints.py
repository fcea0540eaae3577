"""What causal language models keep: whole checkpoints, adapters alone, the types of their weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from parlai.core.agents import create_agent_from_model_file
from parlai.scripts.train_model import TrainModel

from parlai_safety.errors import SafetyError
from parlai_safety.modeling import hf
from tests.agents import two_ranks
from tests.agents.small import ROWS, gradients_of, loss_of, observe_all, run, write_talk
from tests.conftest import ROOT
from tests.tiny_causal import tiny_causal

LORA = {"lora_rank": 3}
INFERENCE = {"interactive_mode": True, "loglevel": "error"}


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    return write_talk(tmp_path_factory.mktemp("talk") / "talk.jsonl")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("base") / "llama", "llama")


def options(talk: Path, model_file: Path, base: Path | str, **more: Any) -> dict[str, Any]:
    return {
        "model": "safety:causal_lm",
        "hf_model": str(base),
        "task": "safety:file",
        "datatype": "train:ordered",
        "safety_file": str(talk),
        "model_file": str(model_file),
        "batchsize": 2,
        "text_truncate": 48,
        "label_truncate": 24,
        "optimizer": "adam",
        "learningrate": 0.01,
        "max_train_steps": 4,
        "log_every_n_steps": 1,
        "loglevel": "error",
        **more,
    }


def parameters(agent: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in agent.model.state_dict().items()}


def states(model_file: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(model_file, weights_only=False)
    return found


@pytest.fixture(scope="module")
def adapted(talk, base, tmp_path_factory) -> Path:
    """A CRINGE model with adapters of its own, upon the base."""
    model_file = tmp_path_factory.mktemp("adapted") / "model"
    loop, _ = run(**options(talk, model_file, base, model="safety:cringe/causal_lm", **LORA))
    loop.agent.save()
    return model_file


@pytest.fixture(scope="module")
def whole(talk, base, tmp_path_factory) -> Path:
    """A model all of whose weights were trained."""
    model_file = tmp_path_factory.mktemp("whole") / "model"
    loop, _ = run(**options(talk, model_file, base))
    loop.agent.save()
    return model_file


# --- adapters -----------------------------------------------------------------------------------------------------


def test_cringe_with_adapters_changes_them_alone_and_keeps_them_alone(talk, base, adapted):
    from transformers import AutoModelForCausalLM

    trained = create_agent_from_model_file(str(adapted), {"loglevel": "error"})
    untrained = AutoModelForCausalLM.from_pretrained(base).state_dict()
    now = {name: value for name, value in parameters(trained).items() if name != "START"}
    kept = {name.removeprefix("lm.").replace(".base_layer.", "."): v for name, v in now.items() if "lora_" not in name}
    assert kept.keys() == untrained.keys()
    assert all(torch.equal(kept[name], value) for name, value in untrained.items())
    # B begins as zero: whatever it holds was learned.
    learned = {name: value for name, value in now.items() if "lora_B" in name}
    assert len(learned) == 2 * 7 and all(value.abs().sum() > 0 for value in learned.values())

    saved = states(adapted)
    assert saved["model"] and all("lora_" in name for name in saved["model"])
    assert all(torch.equal(value, now[name]) for name, value in saved["model"].items())
    assert saved["base"]["hf_model"] == str(base)
    numbers = sum(value.numel() for value in saved["model"].values())
    assert numbers == sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
    assert numbers < 0.2 * sum(value.numel() for value in now.values())
    # The optimizer holds the moments of the adapters and of nothing else.
    moments = [entry["exp_avg"].numel() for entry in saved["optimizer"]["state"].values()]
    assert sum(moments) == numbers


def test_a_second_head_is_kept_beside_adapters(talk, base, tmp_path):
    loop, _ = run(**options(talk, tmp_path / "m" / "model", base, model="safety:director/causal_lm", **LORA))
    loop.agent.save()
    saved = states(tmp_path / "m" / "model")["model"]
    assert all("lora_" in name or name.startswith("class_head.") for name in saved)
    assert saved["class_head.weight"].abs().sum() > 0
    again = parameters(create_agent_from_model_file(str(tmp_path / "m" / "model"), {"loglevel": "error"}))
    assert all(torch.equal(value, again[name]) for name, value in saved.items())


def test_adapters_are_refused_upon_other_weights(adapted, tmp_path):
    other = tiny_causal(tmp_path / "other", seed=1)
    with pytest.raises(SafetyError, match="adapters that were trained upon"):
        create_agent_from_model_file(str(adapted), {"hf_model": str(other), "loglevel": "error"})


def test_adapters_load_upon_the_same_weights_in_another_folder_and_type(adapted, base, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    agent = create_agent_from_model_file(str(adapted), {"hf_model": str(moved), "dtype": "bf16", "loglevel": "error"})
    kinds = {name: value.dtype for name, value in agent.model.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}


def test_adapters_without_a_place_are_refused(adapted):
    with pytest.raises(SafetyError, match="--lora-rank is 0"):
        create_agent_from_model_file(str(adapted), {"lora_rank": 0, "loglevel": "error"})


@pytest.mark.parametrize("other", [{"lora_rank": 5}, {"lora_targets": "q_proj"}])
def test_adapters_of_another_form_are_refused(adapted, other):
    with pytest.raises(SafetyError, match="does not fit the model"):
        create_agent_from_model_file(str(adapted), {**other, "loglevel": "error"})


def test_a_checkpoint_that_lacks_an_adapter_is_refused(adapted, tmp_path):
    place = shutil.copytree(adapted.parent, tmp_path / "m") / "model"
    saved = states(place)
    lost = sorted(saved["model"])[3]
    del saved["model"][lost]
    torch.save(saved, place)
    with pytest.raises(SafetyError, match=lost.rsplit(".", 3)[0]):
        create_agent_from_model_file(str(place), {"loglevel": "error"})


def test_a_base_that_is_gone_is_named(adapted, tmp_path):
    with pytest.raises(SafetyError, match="--hf-model got .*gone"):
        create_agent_from_model_file(str(adapted), {"hf_model": str(tmp_path / "gone"), "loglevel": "error"})


def test_a_base_of_other_sizes_is_refused(adapted, tmp_path):
    other = tiny_causal(tmp_path / "other", hidden_size=48)
    with pytest.raises(SafetyError, match="--hf-model got"):
        create_agent_from_model_file(str(adapted), {"hf_model": str(other), "loglevel": "error"})


def test_adapters_begin_where_a_model_is_named(talk, adapted, tmp_path):
    with pytest.raises(SafetyError, match="--hf-model is empty"):
        run(**options(talk, tmp_path / "m" / "model", "", init_model=str(adapted), **LORA))


def test_new_adapters_upon_a_whole_checkpoint(talk, whole, tmp_path):
    """Its weights become the frozen base; as they are nowhere else, the new checkpoint holds them too."""
    more = {"init_model": str(whole), **LORA}
    loop, _ = run(**options(talk, tmp_path / "m" / "model", "", **more))
    loop.agent.save()
    before, saved = states(whole)["model"], states(tmp_path / "m" / "model")
    assert "base" not in saved
    found = {name.replace(".base_layer.", "."): v for name, v in saved["model"].items() if "lora_" not in name}
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)
    again = create_agent_from_model_file(str(tmp_path / "m" / "model"), {"loglevel": "error"})
    assert all(torch.equal(value, saved["model"][name]) for name, value in again.model.state_dict().items())


def test_a_new_run_goes_on_from_adapters(talk, base, adapted, tmp_path):
    more = {"init_model": str(adapted), "max_train_steps": 1, "learningrate": 1e-30, **LORA}
    loop, _ = run(**options(talk, tmp_path / "m" / "model", base, **more))
    now = parameters(loop.agent)
    assert all(torch.allclose(now[name], value, atol=1e-12) for name, value in states(adapted)["model"].items())


def test_rank_alpha_dropout_and_targets_reach_the_layers(talk, base, tmp_path):
    """y = Wx + alpha / r * BAx, alpha twice the rank where it is left out."""
    more = {"lora_rank": 4, "lora_dropout": 0.25, "lora_targets": "q_proj, v_proj", "max_train_steps": 1}
    loop, _ = run(**options(talk, tmp_path / "m" / "model", base, **more))
    places = {name.rsplit(".lora_A", 1)[0] for name in parameters(loop.agent) if "lora_A" in name}
    assert {name.rsplit(".", 1)[1] for name in places} == {"q_proj", "v_proj"} and len(places) == 4
    layer = loop.agent.model.lm.model.layers[0].self_attn.q_proj
    assert layer.r["default"] == 4 and layer.scaling["default"] == 2.0 and layer.lora_dropout["default"].p == 0.25
    loop.agent.model.eval()
    states_in = torch.randn(2, 32)
    low = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(states_in), states_in @ (layer.base_layer.weight + 2.0 * low).T)
    lm = hf.load_lm(None, loop.agent.dict.config, dtype=torch.float32)
    hf.add_lora(lm, hf.LoraSettings(4, 2.0, targets="q_proj"))
    assert lm.model.layers[0].self_attn.q_proj.scaling["default"] == 0.5


@pytest.mark.parametrize("more", [{"lora_alpha": 60.0}, {"lora_alpha": 6.5}])
def test_adapters_keep_their_scale(talk, base, adapted, tmp_path, more):
    """It is in no tensor, so that another one would change the model without a word; here it is twice the rank."""
    with pytest.raises(SafetyError, match=f"--lora-alpha is {more['lora_alpha']:g} here.* trained with 6"):
        run(**options(talk, tmp_path / "m" / "model", base, init_model=str(adapted), **LORA, **more))
    with pytest.raises(SafetyError, match="trained with 6"):
        create_agent_from_model_file(str(adapted), {**more, "loglevel": "error"})
    create_agent_from_model_file(str(adapted), {"lora_alpha": 6.0, "loglevel": "error"})


def test_adapters_that_count_nothing_are_refused(talk, base, tmp_path):
    with pytest.raises(SafetyError, match="--lora-alpha got 0"):
        run(**options(talk, tmp_path / "m" / "model", base, lora_alpha=0, **LORA))


def test_an_origin_that_would_be_passed_over_is_refused(talk, base, whole, tmp_path):
    """All weights are the checkpoint's."""
    other = tiny_causal(tmp_path / "other", seed=1)
    for lora in ({}, LORA):
        with pytest.raises(SafetyError, match="--hf-model got .*other.* was begun from .*llama"):
            run(**options(talk, tmp_path / "a" / "model", other, init_model=str(whole), **lora))
    with pytest.raises(SafetyError, match="--hf-model got .*other"):
        create_agent_from_model_file(str(whole), {"hf_model": str(other), "loglevel": "error"})
    loop, _ = run(**options(talk, tmp_path / "b" / "model", "", init_model=str(whole), max_train_steps=1))
    assert loop.agent.opt["hf_model"] == str(base)


@pytest.mark.parametrize("targets", ["no_such_layer", ",", "norm", "q_proj,v_porj", "proj"])
def test_targets_that_cannot_have_adapters_are_refused(base, targets):
    config = hf.read_source(str(base))[1]
    lm = hf.load_lm(None, config, dtype=torch.float32)
    with pytest.raises(SafetyError, match="--lora-targets got"):
        hf.add_lora(lm, hf.LoraSettings(2, 4.0, targets=targets))


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [{}, LORA], ids=["whole", "adapters"])
def test_a_resumed_run_is_the_straight_run(talk, base, tmp_path, lora):
    """To the last bit; a whole model goes on even after the folder that it began from is gone."""
    origin = shutil.copytree(base, tmp_path / "origin")
    more = {"model": "safety:cringe/causal_lm", "cringe_k": 3, **lora}
    straight, _ = run(**options(talk, tmp_path / "a" / "model", origin, **more))
    first, _ = run(**options(talk, tmp_path / "b" / "model", origin, max_train_steps=2, **more))
    first.save_model(".checkpoint")
    if not lora:
        shutil.rmtree(origin)
    second, _ = run(**options(talk, tmp_path / "b" / "model", origin, **more))
    assert straight._train_steps == second._train_steps == 4
    after = parameters(straight.agent)
    assert all(torch.equal(value, after[name]) for name, value in parameters(second.agent).items())
    # Each step counts, or the above says little.
    assert not all(torch.equal(value, after[name]) for name, value in parameters(first.agent).items())
    moments = [loop.agent.optimizer.state_dict()["state"] for loop in (straight, second)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])


def test_a_whole_checkpoint_needs_no_origin(whole, base, tmp_path):
    """Tokenizer, template and config are in the `.dict`."""
    place = shutil.copytree(whole.parent, tmp_path / "moved") / "model"
    opt = json.loads(Path(f"{place}.opt").read_text())
    Path(f"{place}.opt").write_text(json.dumps({**opt, "hf_model": "gone"}))
    text = Path(f"{place}.dict").read_text()
    assert str(base) not in text
    agents = [create_agent_from_model_file(str(m), {"loglevel": "error"}) for m in (whole, place)]
    said = []
    for agent in agents:
        agent.observe({"text": "How are you?", "episode_done": True})
        said.append(agent.act()["text"])
    assert said[0] == said[1]
    assert all(torch.equal(v, agents[1].model.state_dict()[name]) for name, v in parameters(agents[0]).items())


# --- types and kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [{}, LORA], ids=["whole", "adapters"])
def test_bf16_computes_nearly_the_same_and_trains_fp32_weights(talk, base, tmp_path, lora):
    more = {"model": "safety:cringe/causal_lm", "max_train_steps": 1, "optimizer": "sgd", "learningrate": 1e-30, **lora}
    full, _ = run(**options(talk, tmp_path / "a" / "model", base, **more))
    half, _ = run(**options(talk, tmp_path / "b" / "model", base, dtype="bf16", **more))
    for name, parameter in half.agent.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    losses = []
    for loop in (full, half):
        loop.agent.model.eval()
        batch = loop.agent.batchify(observe_all(loop.agent, ROWS))
        losses.append(loss_of(loop.agent, batch).item())
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    batch = half.agent.batchify(observe_all(half.agent, ROWS))
    assert half.agent.model(batch.text_vec, ys=batch.label_vec)[0].dtype == torch.bfloat16
    assert all(torch.isfinite(g).all() for g in gradients_of(half.agent, batch).values())


def test_an_evaluation_holds_all_weights_in_the_type(whole):
    agent = create_agent_from_model_file(str(whole), {"dtype": "bf16", **INFERENCE})
    assert {value.dtype for value in agent.model.parameters()} == {torch.bfloat16}
    agent.observe({"text": "How are you?", "episode_done": True})
    assert isinstance(agent.act()["text"], str)
    half = create_agent_from_model_file(str(whole), {"dtype": "fp16", **INFERENCE})
    assert {value.dtype for value in half.model.parameters()} == {torch.float16}


def test_training_in_fp16_is_refused(talk, base, tmp_path):
    with pytest.raises(SafetyError, match="--dtype got fp16 in training"):
        run(**options(talk, tmp_path / "m" / "model", base, dtype="fp16"))


@pytest.mark.parametrize("lora", [{}, LORA], ids=["whole", "adapters"])
def test_checkpointed_layers_give_the_same_gradients(talk, base, tmp_path, lora):
    found = []
    for place, checkpointing in (("a", False), ("b", True)):
        more = {"gradient_checkpointing": checkpointing, "max_train_steps": 1, "learningrate": 1e-30, **lora}
        loop, _ = run(**options(talk, tmp_path / place / "model", base, **more))
        agent = loop.agent
        with torch.no_grad():  # B begins as zero, and then A has no gradient
            for name, parameter in agent.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
                if "lora_A" in name:
                    parameter.copy_(torch.linspace(1, -2, parameter.numel()).view_as(parameter))
        agent.model.train()
        assert agent.model.lm.is_activation_checkpointing == checkpointing
        found.append(gradients_of(agent, agent.batchify(observe_all(agent, ROWS))))
    trained = [name for name, value in found[0].items() if value.abs().sum() > 0]
    assert len(trained) == (28 if lora else len(found[0]))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_both_kernels_of_attention_agree(base):
    _, config = hf.read_source(str(base))
    ids = torch.arange(24).view(2, 12) + 5
    eager, sdpa = (
        hf.load_lm(str(base), config, dtype=torch.float32, attention=kind)(ids).logits for kind in ("eager", "sdpa")
    )
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=1e-4)
    assert hf.load_lm(str(base), config, dtype=torch.float32, attention="eager").config._attn_implementation == "eager"


@pytest.fixture
def no_extras(monkeypatch):
    """As on a machine without the packages of the two kernels."""
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"attn": "flash_attention_2", "dtype": "bf16"}, "--attn got flash_attention_2"),
        ({"load_4bit": True, **LORA}, "--load-4bit got true"),
    ],
)
def test_what_is_not_installed_is_named(talk, base, tmp_path, no_extras, setting, said):
    with pytest.raises(SafetyError, match=said):
        run(**options(talk, tmp_path / "m" / "model", base, **setting))


def test_four_bits_without_adapters_are_refused(talk, base, tmp_path):
    with pytest.raises(SafetyError, match="--load-4bit got true without adapters"):
        run(**options(talk, tmp_path / "m" / "model", base, load_4bit=True))


# --- two processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_ranks_are_one(talk, base, adapted, tmp_path):
    """The output layer is not tied to the embedding, and forward alone does not use it."""
    runs = {}
    for name, more in {"whole": {}, "adapters": {"init_model": str(adapted), **LORA}}.items():
        kwargs = options(talk, tmp_path, base, model="safety:cringe/causal_lm", chunk_tokens=4, **more)
        runs[name] = {key: value for key, value in kwargs.items() if key != "model_file"}
    (tmp_path / "options.json").write_text(json.dumps(runs))
    places = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).parent / "causal_ranks.py"), str(tmp_path / "options.json")]
    started = [
        subprocess.Popen([*command, rank], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in "01"
    ]
    alone = {}
    for name, kwargs in runs.items():
        opt = TrainModel.setup_args().parse_kwargs(**kwargs, model_file=str(tmp_path / f"{name}.model"))
        (tmp_path / "alone").mkdir(exist_ok=True)
        two_ranks.train(opt, tmp_path / "alone", 0, 1)
        alone[name] = torch.load(tmp_path / "alone" / "1.pt")
    for process in started:
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said.decode()[-2000:]
    untrained = hf.load_lm(str(base), hf.read_source(str(base))[1], dtype=torch.float32).state_dict()
    for name, one in alone.items():
        two = torch.load(tmp_path / name / "2.pt")
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
        changed = {key for key, value in untrained.items() if not torch.equal(value, one[_adapted(f"lm.{key}", one)])}
        assert changed == (set() if name == "adapters" else set(untrained))
    before = states(adapted)["model"]
    assert all(not torch.equal(value, alone["adapters"][key]) for key, value in before.items())


def _adapted(name: str, names: dict[str, torch.Tensor]) -> str:
    """The name of a weight, which may stand inside of a layer with adapters."""
    return name if name in names else name.replace(".weight", ".base_layer.weight")
