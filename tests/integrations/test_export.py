"""What is exported answers as the agent did: the same logits, the same tokens, the same greedy replies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from parlai.core.agents import create_agent_from_model_file
from parlai.core.message import Message

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.export import _begin, _runs, export
from parlai_safety.modeling.chat import Turn
from tests.agents.small import BART, TRANSFORMER, run, write_talk
from tests.tiny_causal import tiny_causal

INFERENCE = {"interactive_mode": True, "loglevel": "error"}
TALK = ["How are you?\nFine, thanks, and you?\nI'm well — ½ of the time.", "What do you like?"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    return write_talk(tmp_path_factory.mktemp("talk") / "talk.jsonl")


def train(talk: Path, model_file: Path, model: str, **more: Any) -> Path:
    loop, _ = run(
        model=model,
        task="safety:file",
        datatype="train:ordered",
        safety_file=str(talk),
        model_file=str(model_file),
        batchsize=2,
        loglevel="error",
        **{"optimizer": "adam", "learningrate": 0.01, "max_train_steps": 4, **more},
    )
    loop.agent.save()
    return model_file


def said(agent: Any, text: str) -> str:
    agent.reset()
    agent.observe(Message({"text": text, "episode_done": True}))
    return str(agent.act()["text"])


def load(folder: Path, kind: str = "AutoModelForCausalLM") -> tuple[Any, Any]:
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


# --- causal language models ---------------------------------------------------------------------------------------

SIZES = {"text_truncate": 96, "label_truncate": 24}


@pytest.fixture(scope="module")
def adapted(talk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    base = tiny_causal(folder / "base", "gpt2")
    more = {"hf_model": str(base), "lora_rank": 2, "system_prompt": "Be kind.", **SIZES}
    return train(talk, folder / "model", "safety:cringe/causal_lm", **more)


def messages(text: str, system: str = "") -> list[dict[str, str]]:
    lines = text.split("\n")
    found = [{"role": "system", "content": system}] if system else []
    roles = ["assistant" if (len(lines) - 1 - i) % 2 else "user" for i in range(len(lines))]
    return found + [{"role": role, "content": line} for role, line in zip(roles, lines, strict=True)]


def check_causal(model_file: Path, folder: Path, system: str = "") -> None:
    """Prompts, logits and greedy replies of the folder are those of the agent."""
    from transformers import GenerationConfig

    agent = create_agent_from_model_file(str(model_file), INFERENCE)
    agent.model.eval()
    model, tokenizer = load(folder)
    assert not list(folder.parent.glob(".*.part"))
    decoding = GenerationConfig.from_pretrained(folder)
    ends = decoding.eos_token_id if isinstance(decoding.eos_token_id, list) else [decoding.eos_token_id]
    assert ends == [agent.END_IDX, *agent.also_end]
    for text in TALK:
        agent.reset()
        observed = agent.observe(Message({"text": text, "episode_done": True}))
        ids = tokenizer.apply_chat_template(messages(text, system), add_generation_prompt=True, return_dict=False)
        assert ids == observed["text_vec"].tolist()
        prompt = torch.tensor([ids])
        replies = torch.arange(20, 27)[None]
        with torch.no_grad():
            ours = agent.model(prompt, ys=replies)[0]
            theirs = model(torch.cat((prompt, replies), 1)).logits[:, prompt.size(1) - 1 : -1]
        torch.testing.assert_close(theirs, ours, atol=1e-6 * float(ours.abs().max()), rtol=1e-5)
        new = model.generate(prompt, generation_config=decoding)[0, len(ids) :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == said(agent, text)


TEMPLATES = {
    "a space before the reply": "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}",
    "thoughts before the reply": "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}(none)"
    "{% endif %}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is not defined or enable_thinking %}(think){% endif %}{% endif %}",
}


@pytest.mark.parametrize("chat", ["tokenizer", "plain", *TEMPLATES])
def test_a_whole_model_goes_on_in_transformers(talk, tmp_path, chat):
    base = tiny_causal(tmp_path / "base", chat=chat == "tokenizer")
    template = chat
    if chat in TEMPLATES:
        template = str(tmp_path / "mine.jinja")
        Path(template).write_text(TEMPLATES[chat])
    more = {"hf_model": str(base), "chat_template": template, **SIZES}
    model_file = train(talk, tmp_path / "m" / "model", "safety:causal_lm", **more)
    shutil.rmtree(base)
    export(model_file, tmp_path / "out")
    check_causal(model_file, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= names


def test_a_reply_ends_where_the_agent_ends_it(talk, tmp_path):
    """At the end of a document too, here the likelier; and padding is the tokenizer's own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    base = tiny_causal(tmp_path / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model.get_output_embeddings().weight.data[0] *= 3.5
    model.save_pretrained(base)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    more = {"hf_model": str(base), "optimizer": "sgd", "learningrate": 1e-9, "max_train_steps": 1, **SIZES}
    model_file = train(talk, tmp_path / "m" / "model", "safety:causal_lm", **more)
    export(model_file, tmp_path / "out")
    decoding = GenerationConfig.from_pretrained(tmp_path / "out")
    assert decoding.eos_token_id == [2, 0] and decoding.pad_token_id == 0
    agent = create_agent_from_model_file(str(model_file), INFERENCE)
    model, tokenizer = load(tmp_path / "out")
    prompt = torch.tensor([tokenizer.apply_chat_template(messages("cat"), add_generation_prompt=True)["input_ids"]])
    new = model.generate(prompt, generation_config=decoding)[0, prompt.size(1) :]
    assert new[-1] == 0 and 2 not in new and len(new) < 20
    assert tokenizer.decode(new, skip_special_tokens=True).strip() == said(agent, "cat")


def test_merged_adapters_are_rounded_once(adapted, tmp_path):
    export(adapted, tmp_path / "full")
    export(adapted, tmp_path / "half", dtype="bf16")
    full, half = (load(tmp_path / place)[0].state_dict() for place in ("full", "half"))
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in full.items())
    assert not any(torch.equal(value, value.bfloat16().float()) for name, value in full.items() if "c_attn.w" in name)


def test_adapters_are_merged(adapted, tmp_path):
    export(adapted, tmp_path / "out")
    check_causal(adapted, tmp_path / "out", "Be kind.")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert "lora" not in json.dumps(json.loads((tmp_path / "out" / "config.json").read_text()))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "low-rank adapters of rank 2, merged" in text and "'Be kind.'" in text


def test_adapters_go_alone(adapted, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export(adapted, tmp_path / "out", adapter=True)
    check_causal(adapted, tmp_path / "out", "Be kind.")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "adapter_config.json" in names and "model.safetensors" not in names
    base = AutoModelForCausalLM.from_pretrained(adapted.parent / "base")
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        plain = base(ids).logits
        by_peft = PeftModel.from_pretrained(base, tmp_path / "out").eval()(ids).logits
        ours = load(tmp_path / "out")[0](ids).logits
    torch.testing.assert_close(by_peft, ours, atol=1e-6 * float(ours.abs().max()), rtol=1e-5)
    assert (plain - ours).abs().max() > 0.1


def test_the_control_token_goes_along_and_is_never_said(adapted, talk, tmp_path):
    base = json.loads(Path(f"{adapted}.opt").read_text())["hf_model"]
    more = {"text_truncate": 48, "label_truncate": 8, "toxic_token": True, "mutators": "safety_toxic_token"}
    model_file = train(talk, tmp_path / "m" / "model", "safety:causal_lm", hf_model=base, lora_rank=2, **more)
    folder = export(model_file, tmp_path / "out")
    model, words = load(folder)
    agent = create_agent_from_model_file(str(model_file), INFERENCE)
    assert words.convert_tokens_to_ids("[TOXIC]") == agent.toxic_id == len(words) - 1
    assert model.generation_config.suppress_tokens == [agent.toxic_id]
    assert "inner toxic model" in (folder / "README.md").read_text()
    ids = torch.tensor([[*agent.dict.format.prompt([Turn("user", "How are you?")]), agent.toxic_id]])
    ours = agent.model(ids, ys=torch.tensor([[5]]))[0][0, 0]
    torch.testing.assert_close(model(ids).logits[0, -1], ours)

    def forced(_: Any, __: Any, scores: torch.Tensor) -> torch.Tensor:
        scores[..., agent.toxic_id] += 1e4
        return scores

    model.lm_head.register_forward_hook(forced)
    assert model(ids).logits.argmax(-1)[0, -1] == agent.toxic_id
    assert agent.toxic_id not in model.generate(ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1]))
    with pytest.raises(SafetyError, match="control token"):
        export(model_file, tmp_path / "adapters", adapter=True)


def test_the_card_says_what_is_known(adapted, tmp_path):
    copy = shutil.copytree(adapted.parent, tmp_path / "m") / "model"
    report = {"ppl": 12.345, "f1": 0.25, "exs": 9, "gpu_mem": None}
    Path(f"{copy}.trainstats").write_text(json.dumps({"train_steps": 77, "final_valid_report": report}))
    export(copy, tmp_path / "out", licence="apache-2.0", dtype="bf16")
    text = (tmp_path / "out" / "README.md").read_text()
    for words in (
        "license: apache-2.0",
        "Content warning",
        "CRINGE",
        "77 steps",
        "on 9 examples",
        "- ppl: 12.35",
        "- f1: 0.25",
    ):
        assert words in text, words
    assert "exs" not in text and str(tmp_path) not in text.replace(f"`{talk}`", "")
    weights = load(tmp_path / "out")[0]
    assert {value.dtype for value in weights.parameters()} == {torch.bfloat16}


# --- generators of ParlAI -----------------------------------------------------------------------------------------

VARIANTS = {
    "aiayn": {"variant": "aiayn"},
    "xlm": {"variant": "xlm", "activation": "gelu", "learn_positional_embeddings": True},
    "prelayernorm": {"variant": "prelayernorm", "embeddings_scale": False, "n_segments": 2, "force_fp16_tokens": True},
    "bart-like": {"variant": "bart", "learn_positional_embeddings": True, "n_segments": 1},
}


def check_generator(model_file: Path, folder: Path) -> None:
    """Tokens, logits under padding, and greedy replies of the folder are those of the agent."""
    agent = create_agent_from_model_file(str(model_file), INFERENCE)
    agent.model.eval()
    model, tokenizer = load(folder, "AutoModelForSeq2SeqLM")
    seen = [agent.clone().observe(Message({"text": text, "episode_done": True})) for text in TALK]
    batch = agent.batchify(seen)
    given = tokenizer(TALK, return_tensors="pt", padding=True)
    assert given["input_ids"].tolist() == batch.text_vec.tolist()
    assert (given["attention_mask"] == 0).any()
    assert tokenizer.model_max_length == TRANSFORMER["text_truncate"] and tokenizer.truncation_side == "left"
    replies = torch.randint(4, len(agent.dict), (2, 9), generator=torch.Generator().manual_seed(0))
    begun = agent.model._get_initial_forced_decoder_input(2, replies[:, :-1])
    with torch.no_grad():
        ours = agent.model(batch.text_vec, ys=replies)[0]
        inputs = {key: given[key] for key in ("input_ids", "attention_mask")}
        theirs = model(**inputs, decoder_input_ids=begun).logits[:, -ours.size(1) :]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    for text in TALK:
        found = model.generate(**{k: v for k, v in tokenizer(text, return_tensors="pt").items() if k in inputs})
        assert tokenizer.decode(found[0], skip_special_tokens=True).strip() == said(agent, text).strip()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_transformer_of_each_variant_is_a_layout_of_transformers(talk, tmp_path, variant):
    kind = "transformer/generator" if variant == "xlm" else "safety:cringe"
    model_file = train(talk, tmp_path / "m" / "model", kind, **{**TRANSFORMER, **VARIANTS[variant]})
    export(model_file, tmp_path / "out")
    check_generator(model_file, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "padded at the right" in text and "base_model" not in text


def test_logits_agree_to_the_tenth_digit(monkeypatch):
    """In float64, where only a wrong formula is left to differ; ParlAI's own softmax is always one of fp32."""
    from parlai_safety.integrations.layouts import as_transformers
    from tests.modeling.small import make_transformer

    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
    for variant in ("aiayn", "xlm", "prelayernorm", "bart"):
        model = make_transformer(variant=variant, embeddings_scale=True, activation="gelu", embedding_size=16)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases begin as ones and zeros
                    parameter += torch.linspace(-0.5, 0.5, len(parameter))
        ours, theirs = model.eval().double(), as_transformers(model).double()
        context = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 0, 0, 0]])
        replies = torch.tensor([[12, 13, 14, 2], [15, 16, 17, 2]])
        with torch.no_grad():
            want = ours(context, ys=replies)[0]
            begun = torch.cat((torch.ones(2, 1, dtype=torch.long), replies[:, :-1]), 1)
            got = theirs(input_ids=context, attention_mask=context != 0, decoder_input_ids=begun).logits
        keep = [i for i in range(want.size(-1)) if i != 1]
        torch.testing.assert_close(got[..., keep], want[..., keep], atol=1e-10, rtol=1e-10, msg=variant)
        assert (got[..., 1] < -1e19).all()


def test_a_bart_of_parlai_is_one_of_transformers(talk, tmp_path):
    more = {**BART, "activation": "gelu", "variant": "bart", "learn_positional_embeddings": True}
    model_file = train(talk, tmp_path / "m" / "model", "safety:cringe/bart", **more)
    export(model_file, tmp_path / "out")
    check_generator(model_file, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "bart"


# --- refused ------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_left_alone(adapted, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SafetyError, match="exists"):
        export(adapted, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SafetyError, match="exists"):
        export(adapted, tmp_path / "link")


def test_a_place_where_no_folder_can_be_is_named(adapted, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SafetyError, match="--out got .*file/out"):
        export(adapted, tmp_path / "file" / "out")


def test_what_killed_exports_left_is_removed(tmp_path, monkeypatch):
    """Neither what a living process writes nor what is of another name."""
    monkeypatch.setattr("parlai_safety.integrations.export._runs", lambda process: process == 7, raising=True)
    names = {".out.6.part": False, ".out.7.part": True, ".out.mine.part": True, ".out.old.6.part": True, "out.6": True}
    for name in names:
        (tmp_path / name).mkdir()
    part = _begin(tmp_path / "out")
    assert {name: (tmp_path / name).exists() for name in names} == names
    assert part.is_dir() and _begin(tmp_path / "out2").is_dir()


def test_processes_that_run_are_told_from_those_that_do_not():
    assert _runs(os.getppid())
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not _runs(gone.pid) and not _runs(10**30)
    assert not _runs(os.getpid())  # a folder with our number was another's


def test_a_damaged_weight_file_is_named(adapted, tmp_path):
    copy = shutil.copytree(adapted.parent, tmp_path / "m") / "model"
    whole = copy.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b""):
        copy.write_bytes(content)
        with pytest.raises(SafetyError, match="cannot be loaded"):
            export(copy, tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_of_the_words_that_the_model_reads(talk, tmp_path, tied):
    """Merged where the scores have weights of their own."""
    base = tiny_causal(tmp_path / "base", tie_word_embeddings=tied)
    more = {"hf_model": str(base), "lora_rank": 2, "lora_targets": "embed_tokens", **SIZES}
    model_file = train(talk, tmp_path / "m" / "model", "safety:causal_lm", **more)
    if tied:
        with pytest.raises(SafetyError, match="embed_tokens cannot be merged.*change one of the two"):
            export(model_file, tmp_path / "out")
    else:
        export(model_file, tmp_path / "out")
        check_causal(model_file, tmp_path / "out")


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SafetyError, match="There is no model"):
        export(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_that_stand_upon_nothing_are_refused(talk, tmp_path):
    base = tiny_causal(tmp_path / "base")
    more = {"hf_model": str(base), "hf_random": True, "lora_rank": 2, **SIZES}
    model_file = train(talk, tmp_path / "m" / "model", "safety:causal_lm", **more)
    with pytest.raises(SafetyError, match="in its own checkpoint alone"):
        export(model_file, tmp_path / "out", adapter=True)
    export(model_file, tmp_path / "out")
    check_causal(model_file, tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "more", "match"),
    [
        ("safety:director", {}, "has a class head"),
        ("safety:cringe", {"variant": "aiayn", "learn_positional_embeddings": True}, "--learn-positional-embeddings"),
        ("safety:cringe", {"output_scaling": 0.5}, "--output-scaling 0.5"),
        ("safety:cringe", {"history_reversed": True}, "--history-reversed"),
        ("safety:cringe", {"variant": "aiayn", "n_segments": 2}, "--n-segments"),
    ],
)
def test_what_no_layout_has_is_refused(talk, tmp_path, model, more, match):
    model_file = train(talk, tmp_path / "m" / "model", model, **{**TRANSFORMER, **more})
    with pytest.raises(SafetyError, match=match):
        export(model_file, tmp_path / "out")
    with pytest.raises(SafetyError, match="--adapter got true|has a class head|--history-reversed"):
        export(model_file, tmp_path / "out", adapter=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
