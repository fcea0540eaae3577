"""Models of transformers: loaded whole or not at all, told by their weights, kept in one file."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from parlai_safety.errors import SafetyError
from parlai_safety.modeling import hf
from tests.tiny_causal import CHATML, tiny_causal

ODD = ("[]", "{}", '{"config.json": "{}"}', '{"config.json": {"base64": 1}}', '{"config.json": {"text": 1}}')
"""What a dictionary may hold as its files in error."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def packed(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.dict"
    hf.pack(path, *hf.read_source(str(base)))
    return path


def test_tokenizer_template_and_config_are_one_file(base, packed):
    tokenizer, config = hf.unpack(packed)
    before = hf.read_source(str(base))
    assert tokenizer.chat_template == CHATML
    assert config.to_diff_dict() == before[1].to_diff_dict()
    text = "Hello <|im_end|> wörld 🙂"
    assert tokenizer(text)["input_ids"] == before[0](text)["input_ids"]
    assert tokenizer.all_special_tokens == before[0].all_special_tokens


def test_a_tokenizer_in_bytes_is_kept(packed, tmp_path):
    """As those of sentencepiece; here any file that is no text."""
    content = bytes(range(256))
    assert hf._as_bytes(json.loads(json.dumps(hf._as_json(content)))) == content
    assert "text" in hf._as_json("ä".encode())


@pytest.mark.parametrize(
    "content",
    [
        "hello\t3\n",
        "[]",
        '{"format": "other", "files": {"config.json": {"text": "{}"}}}',
        '{"files": {}}',
        *(f'{{"format": "{hf.FORMAT}", "files": {files}}}' for files in ODD),
    ],
)
def test_a_dictionary_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "model.dict").write_text(content)
    with pytest.raises(SafetyError, match="is not the tokenizer of a causal language model"):
        hf.unpack(tmp_path / "model.dict")


@pytest.mark.parametrize("name", ["", "..", "a\\u0000b", "x" * 300])
def test_a_dictionary_with_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    files = f'{{"{name}": {{"text": "{{}}"}}}}'
    (tmp_path / "model.dict").write_text(f'{{"format": "{hf.FORMAT}", "files": {files}}}')
    with pytest.raises(SafetyError, match="model.dict"):
        hf.unpack(tmp_path / "model.dict")


@pytest.mark.parametrize("source", ["", "/no/such/folder"])
def test_a_model_that_is_not_there_is_refused(source):
    with pytest.raises(SafetyError, match="--hf-model"):
        hf.read_source(source)


def test_a_model_that_lacks_weights_is_refused(base, tmp_path):
    """Transformers would fill the gap with random numbers."""
    from safetensors.torch import load_file, save_file

    tokenizer, config = hf.read_source(str(base))
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SafetyError, match=r"no weights model\.layers\.1\.mlp\.up_proj\.weight"):
        hf.load_lm(str(tmp_path), config, dtype=torch.float32)


def test_a_model_that_is_no_causal_one_is_refused():
    from transformers import T5Config

    with pytest.raises(SafetyError, match="--hf-model got"):
        hf.load_lm(None, T5Config(d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8), dtype=torch.float32)


def test_weights_are_told_from_others_in_any_type(base, tmp_path):
    _, config = hf.read_source(str(base))
    found = hf.fingerprint(hf.load_lm(str(base), config, dtype=torch.float32))
    assert len(found) == 21 and all(len(numbers) == hf.LOOKED_AT for numbers in found.values())
    lm = hf.load_lm(str(base), config, dtype=torch.bfloat16)
    hf.add_lora(lm, hf.LoraSettings(2, 4.0))
    assert hf.same_weights(found, hf.fingerprint(lm))
    other = hf.fingerprint(hf.load_lm(None, config, dtype=torch.float32))
    assert not hf.same_weights(found, other)
    assert not hf.same_weights(found, {}) and not hf.same_weights({}, {})
    # One tensor is enough: the head alone was trained further.
    name = "lm_head.weight"
    assert not hf.same_weights(found, {**found, name: [1.03 * number for number in found[name]]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_added_in_fp32_and_rounded_once(base, dtype):
    """W' = W + alpha / r * BA, of weights in any type."""
    lm = hf.load_lm(str(base), hf.read_source(str(base))[1], dtype=dtype)
    hf.add_lora(lm, hf.LoraSettings(2, 3.0, targets="q_proj"))
    layer = lm.model.layers[1].self_attn.q_proj
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        high.copy_(torch.linspace(-1, 2, high.numel()).view_as(high))
        want = (layer.base_layer.weight.float() + (high @ low) * 1.5).to(dtype)
    hf.merge_lora(lm)
    merged = lm.model.layers[1].self_attn.q_proj.weight
    torch.testing.assert_close(merged, want, rtol=0, atol=0)
    assert not [name for name, _ in lm.named_parameters() if "lora_" in name]


@pytest.mark.parametrize(("dtype", "there"), [(torch.float32, True), (torch.bfloat16, False)])
def test_flash_attention_without_what_it_needs_is_refused(monkeypatch, dtype, there):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: there)
    with pytest.raises(SafetyError, match="--attn got flash_attention_2"):
        hf.need_flash(dtype)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    hf.need_flash(torch.bfloat16)


@pytest.mark.parametrize("there", [True, False])
def test_four_bits_without_what_they_need_are_refused(monkeypatch, base, there):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: there)
    _, config = hf.read_source(str(base))
    with pytest.raises(SafetyError, match="--load-4bit got true"):
        hf.load_lm(None if there else str(base), config, dtype=torch.bfloat16, four_bit=True)


def test_layers_that_cannot_be_computed_again_are_named(base):
    lm = hf.load_lm(None, hf.read_source(str(base))[1], dtype=torch.float32)
    lm.supports_gradient_checkpointing = False
    with pytest.raises(SafetyError, match="--gradient-checkpointing got true for LlamaForCausalLM"):
        hf.checkpoint_layers(lm)


def test_without_peft_the_package_is_named(base, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    lm = hf.load_lm(None, hf.read_source(str(base))[1], dtype=torch.float32)
    with pytest.raises(SafetyError, match=r"parlai_safety\[hf\]"):
        hf.add_lora(lm, hf.LoraSettings(2, 4.0))


def test_code_that_comes_with_a_model_is_not_run(base, tmp_path, monkeypatch):
    """And nobody is asked whether to."""
    folder = shutil.copytree(base, tmp_path / "hf")
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "mine.py").write_text("raise SystemError('was run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("was asked"))
    with pytest.raises(SafetyError, match="custom code"):
        hf.read_source(str(folder))


def test_weights_that_are_cut_off_are_named(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "hf")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SafetyError, match="--hf-model got"):
        hf.load_lm(str(folder), hf.read_source(str(folder))[1], dtype=torch.float32)


def test_a_length_that_the_folder_names_is_no_limit_of_replies(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"max_length": 20}')
    lm = hf.load_lm(str(folder), hf.read_source(str(folder))[1], dtype=torch.float32)
    assert lm.generation_config.max_length is None
