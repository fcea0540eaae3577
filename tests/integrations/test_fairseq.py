"""Import of fairseq checkpoints, against logits that the real fairseq computed; see tests/fixtures/fairseq/make.py."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.fairseq import import_checkpoint
from parlai_safety.integrations.fairseq.checkpoint import read_checkpoint
from parlai_safety.integrations.fairseq.seq2seq import parlai_ids
from parlai_safety.integrations.fairseq.settings import sinusoids
from parlai_safety.integrations.fairseq.words import read_dictionary, read_words

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "fairseq"
BPE = {"bpe_encoder": FIXTURES / "bpe" / "encoder.json", "bpe_merges": FIXTURES / "bpe" / "vocab.bpe"}
SEQ2SEQ = ("transformer", "transformer_prenorm", "bart", "transformer_0.12.2")
LM = ("lm_sinusoidal", "lm_gpt3", "lm_gpt", "lm_gpt_0.12.2")
PAD, TOLERANCE = 1, 1e-5


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("checkpoints")

    def unpack(name: str) -> Path:
        path = folder / f"{name}.pt"
        if not path.exists():
            path.write_bytes(gzip.decompress((FIXTURES / name / "checkpoint.pt.gz").read_bytes()))
        return path

    return unpack


@pytest.fixture(scope="module")
def imported(unpacked, tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("imported")

    def make(name: str) -> Path:
        out = folder / name
        if not out.exists():
            import_checkpoint(unpacked(name), dictionary_of(name), out, **files_of(name))
        return out

    return make


@pytest.fixture
def changed(unpacked, tmp_path) -> Callable[..., Path]:
    """A checkpoint saved anew with other settings or weights."""

    def change(
        name: str, weights: dict[str, torch.Tensor | None] | None = None, legacy: bool = False, **settings: Any
    ) -> Path:
        read = read_checkpoint(unpacked(name))
        state = {key: weight for key, weight in {**read.weights, **(weights or {})}.items() if weight is not None}
        args = argparse.Namespace(**{**read.settings, **settings})
        path = tmp_path / "changed.pt"
        torch.save({"args": args, "model": state}, path, _use_new_zipfile_serialization=not legacy)
        return path

    return change


def dictionary_of(name: str) -> Path:
    return FIXTURES / "bpe" / "dict.txt" if name == "bart" else FIXTURES / "dict.txt"


def files_of(name: str) -> dict[str, Path]:
    return BPE if name == "bart" else {}


def expected(name: str) -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / name / "expected.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def agent_of(model_file: Path, **more: Any) -> Any:
    from parlai.core.agents import create_agent_from_model_file

    return create_agent_from_model_file(str(model_file), more)


def parlai_logits(agent: Any, batch: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    """The scores of fairseq's symbols in fairseq's order, where the decoder begins as ParlAI lets it begin."""
    source, previous = parlai_ids(batch["src_tokens"], size), parlai_ids(batch["prev_output_tokens"], size)
    model = agent.model.eval()
    with torch.no_grad():
        begun = torch.cat([model.START.expand(len(previous), 1), previous[:, 1:]], dim=1)
        hidden, _ = model.decoder(begun, model.encoder(source))
        return model.output(hidden)[..., parlai_ids(torch.arange(size), size)]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_seq2seq_model_has_the_logits_of_fairseq(name, imported):
    batch = expected(name)
    agent = agent_of(imported(name))
    logits = parlai_logits(agent, batch, size=batch["logits"].size(-1))
    counted = batch["prev_output_tokens"] != PAD
    assert counted.any() and not counted.all()  # there is padding on both sides
    assert (batch["src_tokens"] == PAD).any()
    torch.testing.assert_close(logits[counted], batch["logits"][counted], atol=TOLERANCE, rtol=0)
    # The start symbol alone is added, and can never be said: the probabilities are fairseq's too.
    assert len(agent.dict) == batch["logits"].size(-1) + 1


def test_a_text_becomes_what_fairseq_would_read(imported):
    agent = agent_of(imported("transformer"))
    symbols = read_dictionary(FIXTURES / "dict.txt")
    text = "you want tea in the garden"
    agent.observe({"text": text, "episode_done": True})
    vector = agent.history.get_history_vec()
    ids = [symbols.index(word) for word in text.split()] + [symbols.index("</s>")]
    assert list(vector) == parlai_ids(torch.tensor(ids), len(symbols)).tolist()
    assert isinstance(agent.act()["text"], str)
    # An unknown word is fairseq's <unk>, and turns are parted by </s>.
    assert agent.dict.txt2vec("tea zzz") == [symbols.index("tea"), symbols.index("<unk>")]
    agent.reset()
    agent.history.update_history({"text": "tea", "episode_done": False})
    agent.history.update_history({"text": "time", "episode_done": False})
    end = symbols.index("</s>")
    assert list(agent.history.get_history_vec()) == [symbols.index("tea"), end, symbols.index("time"), end]


def test_a_bpe_of_gpt2_gives_the_numbers_of_fairseq(imported):
    agent = agent_of(imported("bart"))
    stored = json.loads((FIXTURES / "bpe" / "text.json").read_text())
    symbols = read_dictionary(FIXTURES / "bpe" / "dict.txt")
    wanted = [symbols.index(str(number)) for number in stored["numbers"]]
    assert agent.dict.txt2vec(stored["text"]) == parlai_ids(torch.tensor(wanted), len(symbols)).tolist()
    assert agent.dict.vec2txt(agent.dict.txt2vec(stored["text"])) == stored["text"]


def test_rows_for_half_precision_have_the_score_zero(unpacked, tmp_path):
    import_checkpoint(unpacked("transformer"), FIXTURES / "dict.txt", tmp_path / "m", fp16_rows=True)
    agent, batch = agent_of(tmp_path / "m", fp16=True), expected("transformer")
    assert len(agent.dict) == 120 and agent.dict[119] == "__FP16_PAD_6__"
    size = batch["logits"].size(-1)
    counted = batch["prev_output_tokens"] != PAD
    logits = parlai_logits(agent, batch, size)[counted]
    torch.testing.assert_close(logits, batch["logits"][counted], atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        assert (agent.model.output(torch.ones(1, 1, 8))[..., size + 1 :] == 0).all()


def test_the_imported_model_trains_on(imported):
    """One update of transformer/generator; the sinusoids stay as they are."""
    agent = agent_of(imported("transformer"), datatype="train", learningrate=0.1, optimizer="sgd", gradient_clip=-1)
    before = {name: weight.clone() for name, weight in agent.model.state_dict().items()}
    agent.observe({"text": "you want tea", "labels": ["good morning to you"], "episode_done": True})
    agent.act()
    after = agent.model.state_dict()
    assert not torch.equal(before["embeddings.weight"], after["embeddings.weight"])
    for side in ("encoder", "decoder"):
        name = f"{side}.position_embeddings.weight"
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("name", LM)
def test_a_language_model_has_the_logits_of_fairseq(name, imported):
    from transformers import AutoModelForCausalLM

    batch, folder = expected(name), imported(name)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    previous = batch["prev_output_tokens"]
    counted = previous != PAD
    assert not counted.all()
    with torch.no_grad():
        logits = model(previous, attention_mask=counted.long()).logits
        left = torch.stack([row.roll(int((row == PAD).sum())) for row in previous])
        padded_left = model(left, attention_mask=(left != PAD).long()).logits
    torch.testing.assert_close(logits[counted], batch["logits"][counted], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(padded_left[left != PAD], batch["logits"][counted], atol=TOLERANCE, rtol=0)
    assert model.config.tie_word_embeddings == (name in ("lm_gpt", "lm_gpt_0.12.2"))


def test_the_tokenizer_of_a_language_model_gives_the_ids_of_fairseq(imported):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(imported("lm_gpt"))
    symbols = read_dictionary(FIXTURES / "dict.txt")
    assert [tokenizer.convert_tokens_to_ids(symbol) for symbol in symbols] == list(range(len(symbols)))
    assert tokenizer("you want zzz").input_ids == [2, symbols.index("you"), symbols.index("want"), 3]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "</s>", "<unk>")
    assert tokenizer.decode(tokenizer("you want", add_special_tokens=False).input_ids) == "you want"


def test_the_tokenizer_of_a_language_model_may_be_a_bpe():
    from tokenizers import Tokenizer

    from parlai_safety.integrations.fairseq.language_model import tokenizer_json

    words = read_words(FIXTURES / "bpe" / "dict.txt", 272, encoder=BPE["bpe_encoder"], merges=BPE["bpe_merges"])
    built = Tokenizer.from_str(tokenizer_json(words, start=0, prefix_space=False))
    stored = json.loads((FIXTURES / "bpe" / "text.json").read_text())
    symbols = read_dictionary(FIXTURES / "bpe" / "dict.txt")
    assert built.encode(stored["text"]).ids == [0] + [symbols.index(str(n)) for n in stored["numbers"]]
    spaced = Tokenizer.from_str(tokenizer_json(words, start=2, prefix_space=True))
    assert spaced.encode("tea").tokens[:2] == ["</s>", "Ġt"]


def test_settings_are_read_whatever_object_held_them(unpacked, changed):
    """omegaconf's object in lm_gpt, a Namespace inside a dictionary in transformer, a flat Namespace of old."""
    assert read_checkpoint(unpacked("lm_gpt")).settings["decoder_attention_heads"] == 2
    assert read_checkpoint(unpacked("lm_gpt")).settings["activation_fn"] == "gelu"
    assert read_checkpoint(unpacked("transformer")).settings["task"] == "translation"
    for legacy in (False, True):
        path = changed("transformer", legacy=legacy, encoder_attention_heads=1)
        read = read_checkpoint(path)
        assert read.settings["encoder_attention_heads"] == 1 and read.settings["max_target_positions"] == 20
        before = read_checkpoint(unpacked("transformer")).weights
        assert all(torch.equal(before[name], weight) for name, weight in read.weights.items())


def test_settings_in_sections_are_flattened(unpacked, tmp_path):
    """`transformer` as a dataclass of fairseq 0.12 has sections for its two sides."""
    read = read_checkpoint(unpacked("transformer"))
    model = {"encoder": {"embed_dim": 8}, "decoder": {"layers": 1, "learned_pos": False}, "dropout": 0.1}
    torch.save({"cfg": {"model": model, "task": {"_name": "denoising"}}, "model": read.weights}, tmp_path / "c.pt")
    settings = read_checkpoint(tmp_path / "c.pt").settings
    assert settings == {
        "encoder_embed_dim": 8,
        "decoder_layers": 1,
        "decoder_learned_pos": False,
        "dropout": 0.1,
        "task": "denoising",
    }


def test_references_of_omegaconf_are_followed(unpacked, tmp_path):
    read = read_checkpoint(unpacked("lm_gpt"))
    task = {"_name": "language_modeling", "add_bos_token": False, "own": {"flag": 1}}
    model = {**read.settings, "add_bos_token": "${task.add_bos_token}", "tpu": "${task.absent}", "own": 1}
    torch.save({"cfg": {"model": model, "task": task}, "model": read.weights}, tmp_path / "c.pt")
    again = read_checkpoint(tmp_path / "c.pt")
    assert again.settings["add_bos_token"] is False and again.settings["tpu"] == "${task.absent}"
    # `own` is the task's.
    import_checkpoint(tmp_path / "c.pt", FIXTURES / "dict.txt", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] == 2


def test_an_unknown_setting_may_be_ignored(changed, tmp_path):
    path = changed("transformer", rms_norm=True, arch="mine", off=False)
    with pytest.raises(SafetyError, match=r"--ignore-settings rms_norm"):
        import_checkpoint(path, FIXTURES / "dict.txt", tmp_path / "out", ignore_settings=["arch"])
    import_checkpoint(path, FIXTURES / "dict.txt", tmp_path / "out", ignore_settings=["arch", "rms_norm"])


@pytest.mark.parametrize("name", ("transformer", "lm_sinusoidal"))
def test_half_precision_is_imported_in_full(name, unpacked, changed, tmp_path):
    """Sinusoids and scaled tables are made from what was read: in half precision they would be rounded."""
    from safetensors.torch import load_file

    weights = {
        key: value for key, value in read_checkpoint(unpacked(name)).weights.items() if value.is_floating_point()
    }
    made = []
    for kind in ("half", "full"):
        rounded = {key: value.half() if kind == "half" else value.half().float() for key, value in weights.items()}
        out = tmp_path / kind
        import_checkpoint(changed(name, rounded), FIXTURES / "dict.txt", out)
        made.append(torch.load(out)["model"] if out.is_file() else load_file(out / "model.safetensors"))
    assert made[0].keys() == made[1].keys()
    for key, value in made[1].items():
        torch.testing.assert_close(made[0][key], value, atol=0, rtol=0)


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", (False, True))
def test_an_attack_is_refused_and_not_run(legacy, tmp_path):
    state = {"model": {"a": torch.ones(1)}, "args": _Attack(tmp_path / "run")}
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SafetyError, match=r"names posix\.system\. .*nothing was loaded"):
        import_checkpoint(tmp_path / "c.pt", FIXTURES / "dict.txt", tmp_path / "out")
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ("builtins eval", "torch.hub load", "torch.storage _load_from_bytes", "numpy load"))
def test_a_harmless_looking_name_calls_nothing(name, tmp_path):
    """By hand: a pickle that calls `name` with a text. What is not refused by name is inert, or refused by torch."""
    module, function = name.split()
    call = b"\x80\x02}(X\x05\x00\x00\x00modelc" + f"{module}\n{function}\n".encode() + b"X\x04\x00\x00\x001/0 \x85Ru."
    (tmp_path / "plain.pt").write_bytes(call)
    with pytest.raises(SafetyError):
        read_checkpoint(tmp_path / "plain.pt")


def _repacked(path: Path, how: int, **entries: bytes) -> None:
    """The same entries, those of the given names with other content, and further ones."""
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    prefix = next(iter(old)).partition("/")[0]
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in {**old, **{f"{prefix}/{name}.pkl": content for name, content in entries.items()}}.items():
            archive.writestr(name, content)


_BEGIN = b"\x80\x02}(X\x05\x00\x00\x00model}X\x04\x00\x00\x00args}X\x01\x00\x00\x00a"


@pytest.mark.parametrize("case", ("compressed", "two", "large", "deep", "stack_global", "wide", "names", "unhashable"))
def test_an_odd_file_ends_in_an_error_of_this_package(case, tmp_path):
    path = tmp_path / "c.pt"
    model = {"decoder.embed_tokens.weight": torch.ones(1).expand(1000, 1000) if case == "wide" else torch.ones(1)}
    torch.save({"model": {1: torch.ones(1)} if case == "names" else model, "args": {"a": 1}}, path)
    match = {
        "compressed": "compressed", "two": "2 entries", "large": "more than 16,000,000", "stack_global": "STACK_GLOBAL",
        "wide": "more numbers than are stored", "names": "a weight has the name 1",
    }  # fmt: skip
    if case == "compressed":
        _repacked(path, zipfile.ZIP_DEFLATED)
    elif case == "two":
        _repacked(path, zipfile.ZIP_STORED, **{"inner/data": b"\x80\x02N."})
    elif case == "large":
        _repacked(path, zipfile.ZIP_STORED, data=b"\x80\x02" + bytes(16_000_001))
    elif case == "deep":
        _repacked(path, zipfile.ZIP_STORED, data=_BEGIN + b"]" * 5000 + b"a" * 4999 + b"su.")
    elif case == "stack_global":
        _repacked(path, zipfile.ZIP_STORED, data=b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.")
    elif case == "unhashable":
        _repacked(path, zipfile.ZIP_STORED, data=b"\x80\x02}(]K\x01u.")
    with pytest.raises(SafetyError, match=match.get(case, "cannot be read as a checkpoint")):
        read_checkpoint(path)


@pytest.mark.parametrize("cycle", (False, True))
def test_settings_that_hold_themselves_end_the_reading(cycle, tmp_path):
    args: dict[str, Any] = {"a": ["x"] * 2}
    for _ in range(30):
        args["a"] = [args["a"], args["a"]]
    if cycle:
        args["a"] = args
    torch.save({"model": {"a": torch.ones(1)}, "args": args}, tmp_path / "c.pt")
    with pytest.raises(SafetyError, match="settings have more than"):
        read_checkpoint(tmp_path / "c.pt")


def test_names_of_builtins_are_refused_by_the_scan(tmp_path):
    torch.save({}, tmp_path / "c.pt")
    _repacked(tmp_path / "c.pt", zipfile.ZIP_STORED, data=b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.")
    with pytest.raises(SafetyError, match=r"names builtins\.eval"):
        read_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "content", (b"", b"PK\x03\x04", b"no pickle", pickle.dumps({"model": 1}, protocol=4), pickle.dumps([1], protocol=2))
)
def test_what_is_no_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(SafetyError, match="cannot be read as a checkpoint of fairseq"):
        read_checkpoint(tmp_path / "c.pt")
    with pytest.raises(SafetyError, match="There is no file"):
        read_checkpoint(tmp_path / "absent.pt")
    torch.save({"model": {}, "args": None}, tmp_path / "c.pt")
    with pytest.raises(SafetyError, match="no settings in it"):
        read_checkpoint(tmp_path / "c.pt")


def test_one_table_for_all_words_is_asked_for(unpacked, tmp_path):
    with pytest.raises(SafetyError, match="share_all_embeddings = False"):
        import_checkpoint(unpacked("transformer_unshared"), FIXTURES / "dict.txt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


SEQ2SEQ_REFUSALS = [
    {"adaptive_softmax_cutoff": "40,80"},
    {"cross_self_attention": True},
    {"encoder_layers_to_keep": "0"},
    {"no_token_positional_embeddings": True},
    {"scale_fc": True},
    {"decoder_normalize_before": True},
    {"decoder_learned_pos": True},
    {"decoder_attention_heads": 4},
    {"decoder_input_dim": 4},
    {"activation_fn": "tanh"},
    {"max_source_positions": None},
    {"encoder_attention_heads": 0},
    {"encoder_attention_heads": 3, "decoder_attention_heads": 3},
    {"decoder_layers": 10**9},
    {"max_source_positions": 10**9},
    {"dropout": "${x}"},
    {"dropout": 5.0},
    {"no_scale_embedding": "False"},
    {"rms_norm": True},
    {"quant_noise_scalar": 0.5},
    {"arch": "something_else"},
    {"pad": 0},
]


@pytest.mark.parametrize("settings", SEQ2SEQ_REFUSALS, ids=lambda settings: next(iter(settings)))
def test_a_setting_without_counterpart_is_refused_by_name(settings, changed, tmp_path):
    with pytest.raises(SafetyError, match=next(iter(settings))):
        import_checkpoint(changed("transformer", **settings), FIXTURES / "dict.txt", tmp_path / "out")


@pytest.mark.parametrize("setting", ("layernorm_embedding", "no_decoder_final_norm"))
def test_a_combination_of_norms_without_counterpart_is_refused(setting, changed, tmp_path):
    with pytest.raises(SafetyError, match=setting):
        import_checkpoint(changed("transformer_prenorm", **{setting: True}), FIXTURES / "dict.txt", tmp_path / "out")


@pytest.mark.parametrize(
    "settings",
    ({"decoder_input_dim": 4}, {"layernorm_embedding": True}, {"activation_fn": "swish"}, {"base_layers": 1})
    + ({"decoder_layers": 3}, {"decoder_attention_heads": 3}, {"disable_bias": True}, {"add_bos_token": "${task.x}"}),
)
def test_a_language_model_without_counterpart_is_refused_by_name(settings, changed, tmp_path):
    with pytest.raises(SafetyError, match=next(iter(settings))):
        import_checkpoint(changed("lm_gpt", **settings), FIXTURES / "dict.txt", tmp_path / "out")


def test_weights_that_have_no_place_or_do_not_fit_are_refused(changed, tmp_path):
    extra = {"decoder.layers.0.self_attn.c_attn": torch.ones(2)}
    for name in ("transformer", "lm_gpt"):
        with pytest.raises(SafetyError, match=r"weights of no known part|have the shape"):
            import_checkpoint(changed(name, extra), FIXTURES / "dict.txt", tmp_path / "out")
    with pytest.raises(SafetyError, match=r"shape \(12,\), and the settings of the checkpoint say \(9,\)"):
        import_checkpoint(
            changed("transformer", encoder_ffn_embed_dim=9, decoder_ffn_embed_dim=9),
            FIXTURES / "dict.txt",
            tmp_path / "out",
        )
    with pytest.raises(SafetyError, match="None"):
        missing = changed("lm_gpt", {"decoder.layers.1.fc1.bias": None})
        import_checkpoint(missing, FIXTURES / "dict.txt", tmp_path / "out")
    with pytest.raises(SafetyError, match="rows in decoder.embed_positions.weight"):
        import_checkpoint(changed("lm_gpt", max_target_positions=25), FIXTURES / "dict.txt", tmp_path / "out")
    with pytest.raises(SafetyError, match=r"encoder\.version = 1\.0"):
        old = changed("transformer_prenorm", {"encoder.version": torch.tensor([1.0])})
        import_checkpoint(old, FIXTURES / "dict.txt", tmp_path / "out")
    with pytest.raises(SafetyError, match="no output layer"):
        headless = changed("lm_sinusoidal", {"decoder.output_projection.weight": None})
        import_checkpoint(headless, FIXTURES / "dict.txt", tmp_path / "out")


def test_notes_and_names_of_old_releases_are_known(unpacked, changed, imported, tmp_path):
    """Before 0.12.3 sinusoids left a note in the state; the output layer of a language model was once `embed_out`."""
    from safetensors.torch import load_file

    output = read_checkpoint(unpacked("lm_sinusoidal")).weights["decoder.output_projection.weight"]
    old = {
        "decoder.embed_positions._float_tensor": torch.zeros(1),
        "decoder.output_projection.weight": None,
        "decoder.embed_out": output,
    }
    import_checkpoint(changed("lm_sinusoidal", old), FIXTURES / "dict.txt", tmp_path / "out")
    again, first = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", imported("lm_sinusoidal")))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_joined_projections_of_old_releases_are_taken_apart(unpacked, changed, imported, tmp_path):
    read = read_checkpoint(unpacked("transformer"))
    joined: dict[str, torch.Tensor | None] = {}
    for kind in ("weight", "bias"):
        parts = [f"encoder.layers.0.self_attn.{part}_proj.{kind}" for part in "qkv"]
        joined[f"encoder.layers.0.self_attn.in_proj_{kind}"] = torch.cat([read.weights[part] for part in parts])
        joined |= dict.fromkeys(parts)
    import_checkpoint(changed("transformer", joined), FIXTURES / "dict.txt", tmp_path / "out")
    again = torch.load(tmp_path / "out", weights_only=True)["model"]
    first = torch.load(imported("transformer"), weights_only=True)["model"]
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_an_import_replaces_nothing_unasked_and_names_no_folder(imported, unpacked, tmp_path):
    out = tmp_path / "model"
    for name in ("transformer", "lm_gpt"):
        import_checkpoint(unpacked(name), FIXTURES / "dict.txt", out, overwrite=name == "lm_gpt" and not out.exists())
        with pytest.raises(SafetyError, match="There is already"):
            import_checkpoint(unpacked(name), FIXTURES / "dict.txt", out)
        import_checkpoint(unpacked(name), FIXTURES / "dict.txt", out, overwrite=True)
        if name == "transformer":
            assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.dict", "model.opt"]
            assert str(tmp_path) not in Path(f"{out}.opt").read_text()
            with pytest.raises(SafetyError, match="is a file or a link"):
                import_checkpoint(unpacked("lm_gpt"), FIXTURES / "dict.txt", out, overwrite=True)
            for path in tmp_path.iterdir():
                path.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_an_import_did_not_write_is_left_alone(unpacked, imported, tmp_path):
    own = tmp_path / "home"
    own.mkdir()
    (own / "precious").write_text("x")
    for name in ("transformer", "lm_gpt"):
        with pytest.raises(SafetyError, match="is a folder|holds precious"):
            import_checkpoint(unpacked(name), FIXTURES / "dict.txt", own, overwrite=True)
    # An earlier import with a file of the user in it, too.
    shutil.copytree(imported("lm_gpt"), own, dirs_exist_ok=True)
    with pytest.raises(SafetyError, match="holds config.json"):
        import_checkpoint(unpacked("lm_gpt"), FIXTURES / "dict.txt", own, overwrite=True)
    assert (own / "precious").read_text() == "x"
    (tmp_path / "m.dict").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for out in (tmp_path / "m", tmp_path / "link"):
        with pytest.raises(SafetyError, match="There is already"):
            import_checkpoint(unpacked("transformer"), FIXTURES / "dict.txt", out)
    with pytest.raises(SafetyError, match="cannot be made"):
        import_checkpoint(unpacked("transformer"), FIXTURES / "dict.txt", tmp_path / "m.dict" / "m")
    with pytest.raises(SafetyError, match="is a file or a link"):
        import_checkpoint(unpacked("lm_gpt"), FIXTURES / "dict.txt", tmp_path / "link", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "link", "m.dict"]
    assert (tmp_path / "m.dict").read_text() == "mine"


def test_the_dictionary_must_be_that_of_the_model(unpacked, changed, tmp_path):
    lines = (FIXTURES / "dict.txt").read_text().splitlines()

    def refused(text: str, match: str, **more: Any) -> None:
        (tmp_path / "dict.txt").write_text(text)
        with pytest.raises(SafetyError, match=match):
            import_checkpoint(unpacked("transformer"), tmp_path / "dict.txt", tmp_path / "out", **more)

    refused("\n".join(lines[:-3]), "gives 109 symbols, and the model has 112 rows")
    refused("\n".join([*lines, "one"]), "is 'one'")
    refused("\n".join([*lines, lines[0]]), "again")
    refused("\n".join([f"\u2581{line}" for line in lines]), "pieces of sentencepiece")
    refused("\n".join([f"{line.split()[0]}@@ 1" for line in lines]), "pieces of subword-nmt")
    refused("\n".join([f"{i} 1" for i in range(len(lines))]), "--bpe-encoder")
    refused("\n".join(["__end__ 1", *lines[1:]]), "ParlAI keeps for itself")
    refused("\n".join(lines), "BPE files were given", **BPE)
    refused("\n".join(lines), "can only be one of auto, space, gpt2", tokenizer="spm")
    refused("\n".join(lines[:-1]), "gives 111 symbols, and the model has 112 rows")
    refused("\n".join([*lines[:-1], "a\tb 3"]), "is 'a.*tb 3'")
    # One row more than the dictionary: <mask>, which tasks of denoising add.
    (tmp_path / "dict.txt").write_text("\n".join(lines[:-1]))
    assert read_words(tmp_path / "dict.txt", 112, mask=True).symbols[-1] == "<mask>"
    for settings in ({"task": "denoising"}, {"arch": "bart_large"}):
        import_checkpoint(changed("transformer", **settings), tmp_path / "dict.txt", tmp_path / "out", overwrite=True)
        assert "<mask>" in (tmp_path / "out.dict").read_text()
    # Pieces that the caller splits are taken as they are.
    (tmp_path / "dict.txt").write_text("\n".join([f"\u2581{line}" for line in lines]))
    assert read_words(tmp_path / "dict.txt", 112, tokenizer="space").merges is None


def test_bpe_files_must_fit_the_dictionary(tmp_path):
    encoder = json.loads(BPE["bpe_encoder"].read_text())
    tokens = list(encoder)

    def refused(numbers: Any, merges: str, match: str) -> None:
        (tmp_path / "encoder.json").write_text(json.dumps(numbers))
        (tmp_path / "vocab.bpe").write_text(merges)
        with pytest.raises(SafetyError, match=match):
            read_words(
                FIXTURES / "bpe" / "dict.txt", 272, encoder=tmp_path / "encoder.json", merges=tmp_path / "vocab.bpe"
            )

    merges = BPE["bpe_merges"].read_text()
    refused({**encoder, "new": 9999}, merges, "1 tokens that the dictionary has not")
    refused({token: encoder[token] for token in tokens[:-1]}, merges, "lacks 1 of its")
    refused({**encoder, tokens[0]: encoder[tokens[1]]}, merges, "two tokens have one number")
    refused([1], merges, "no BPE encoder")
    refused(encoder, merges + "x x\n", "has the merge 'x x'")


def test_sinusoids_are_sines_then_cosines():
    """By hand, width 4: frequencies 1 and 1/10000; row 1 is sin 1, sin 1e-4, cos 1, cos 1e-4."""
    wanted = [0.8414710, 0.0001, 0.5403023, 1.0]
    torch.testing.assert_close(sinusoids(2, 4)[1], torch.tensor(wanted), atol=1e-6, rtol=0)
    assert sinusoids(3, 5)[:, -1].tolist() == [0, 0, 0]


def test_the_command_imports_and_says_how_to_go_on(unpacked, tmp_path, capsys):
    from parlai_safety.scripts.safety_fairseq import SafetyFairseq

    out = tmp_path / "model"
    checkpoint, words = str(unpacked("transformer")), str(FIXTURES / "dict.txt")
    SafetyFairseq.main("import", checkpoint, "--dict", words, "--out", str(out))
    assert f"parlai interactive -mf {out}" in capsys.readouterr().out and out.is_file()
    with pytest.raises(SafetyError, match="one action, import"):
        SafetyFairseq.main("export", "c.pt")
    with pytest.raises(SafetyError, match="came without --dict"):
        SafetyFairseq.main("import", "c.pt", "--out", str(out))


def test_without_transformers_the_error_says_what_to_install(unpacked, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SafetyError, match=r"pip install 'parlai_safety\[hf\]'"):
        import_checkpoint(unpacked("lm_gpt"), FIXTURES / "dict.txt", tmp_path / "out")
