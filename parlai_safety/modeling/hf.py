"""Causal language models of transformers: load them, put adapters in, and keep tokenizer and config in one file.

A checkpoint of ParlAI is a file of weights with an `.opt` and a `.dict` beside it. Here the `.dict` holds what
transformers keeps in several files (tokenizer, chat template, config), so that a model goes on without its origin.
"""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parlai_safety.errors import SafetyError
from parlai_safety.files import write_json

FORMAT = "parlai_safety/causal_lm/1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOOKED_AT = 5
"""Numbers of each tensor that a fingerprint holds."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), made by peft.

    Attributes:
        rank: of the update of each adapted layer.
        alpha: the update is scaled by alpha / rank.
        dropout: before the update, in [0, 1).
        targets: names of layers with commas between them, or "all-linear": all but the output layer.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str = "all-linear"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """None of the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Errors of transformers while a model is looked for, as ours."""
    from safetensors import SafetensorError

    try:
        with without_bars():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise SafetyError(
            f"--hf-model got {source!r} ({' '.join(str(error).split())[:200]})",
            "It is the name of a model on the Hugging Face hub, or a folder with one, and none could "
            "be loaded from there",
            "Check the name and the connection, or give a folder that holds config.json, the tokenizer and the weights",
        ) from error


def read_source(source: str) -> tuple[Any, Any]:
    """Tokenizer and config of a model, by its name on the hub or its folder.

    Raises:
        SafetyError: there is none, or its code is not part of transformers.
    """
    from transformers import AutoConfig, AutoTokenizer

    _need_source(source)
    with _explained(source):
        return (
            AutoTokenizer.from_pretrained(source, trust_remote_code=False),
            AutoConfig.from_pretrained(source, trust_remote_code=False),
        )


def _need_source(source: str) -> None:
    if not source:
        raise SafetyError(
            "--hf-model is empty and no checkpoint holds its weights",
            "The agent trains a model that exists, or one with random weights of an existing config",
            "Give --hf-model NAME_OR_FOLDER, for example --hf-model HuggingFaceTB/SmolLM2-135M-Instruct",
        )


def add_special_token(tokenizer: Any, token: str) -> int:
    """Let a tokenizer read a word as one special token, whatever its normaliser does to texts; returns the id.

    Doing it twice changes nothing.
    """
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(token))


def pack(path: str | Path, tokenizer: Any, config: Any) -> None:
    """Write tokenizer and config as one JSON file, whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        files = {file.name: _as_json(file.read_bytes()) for file in sorted(Path(folder).iterdir()) if file.is_file()}
    write_json(path, {"format": FORMAT, "files": files})


def unpack(path: str | Path) -> tuple[Any, Any]:
    """Read what `pack` wrote: tokenizer and config.

    Raises:
        SafetyError: the file is of another kind.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        kept = content["files"].items() if content["format"] == FORMAT else None
        files = kept and {Path(name).name: _as_bytes(file) for name, file in kept}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        files = None
    if not files:
        raise SafetyError(
            f"--dict-file {path} is not the tokenizer of a causal language model",
            "Beside a checkpoint of these agents it holds tokenizer and config, and this file is of another kind",
            "Give a --model-file that does not exist yet, or leave --dict-file out",
        )
    with tempfile.TemporaryDirectory() as folder:
        with _explained(str(path)):
            for name, file in files.items():
                (Path(folder) / name).write_bytes(file)
            return (
                AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
                AutoConfig.from_pretrained(folder, trust_remote_code=False),
            )


def _as_json(content: bytes) -> dict[str, str]:
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def _as_bytes(content: dict[str, str]) -> bytes:
    return content["text"].encode("utf-8") if "text" in content else base64.b64decode(content["base64"])


def load_lm(
    source: str | None, config: Any, *, dtype: torch.dtype, attention: str | None = None, four_bit: bool = False
) -> Any:
    """A causal language model.

    Args:
        source: name or folder of the weights; None for random ones.
        config: its config.
        dtype: of all parameters.
        attention: "sdpa", "eager" or "flash_attention_2", for which see `need_flash`; None for transformers' choice.
        four_bit: weights of linear layers in four bits, by bitsandbytes; only with a source.

    Raises:
        SafetyError: the weights, or what a choice needs, are not there.
    """
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": False}
    if four_bit:
        settings["quantization_config"] = _four_bits(source, dtype)
        settings["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    missing: list[str] = []
    if source is not None:
        _need_source(source)
    with _explained(source if source is not None else "the config of the checkpoint"):
        if source is None:
            lm = AutoModelForCausalLM.from_config(config, **settings)
        else:
            lm, found = AutoModelForCausalLM.from_pretrained(
                source, config=config, output_loading_info=True, **settings
            )
            missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random ones
        raise SafetyError(
            f"--hf-model got {source!r}, which has no weights {', '.join(missing[:3])}",
            f"{type(lm).__name__}, which its config describes, is made of these",
            "Give a model with all weights, or --hf-random true to train one from the beginning",
        )
    lm.generation_config.max_length = None
    return lm


def checkpoint_layers(lm: Any) -> None:
    """Let each layer be computed again in backward, which holds one layer's states at a time.

    Raises:
        SafetyError: the model has no layers that can.
    """
    # The first name is that of transformers 5.20 and later.
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise SafetyError(
            f"--gradient-checkpointing got true for {type(lm).__name__}",
            "The layers of this model cannot be computed again in backward",
            "Leave --gradient-checkpointing out",
        ) from error


def add_lora(lm: Any, lora: LoraSettings) -> None:
    """Put adapters into a model; all else is frozen from then on. Adapters are fp32 whatever the model is.

    Raises:
        SafetyError: peft is not installed, or a target is no layer of the model.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SafetyError(
            f"--lora-rank got {lora.rank}",
            "Adapters are made by peft, which is not installed",
            "Type pip install 'parlai_safety[hf]', or leave --lora-rank out to train all weights",
        ) from error
    targets: str | list[str] = lora.targets
    if lora.targets != "all-linear":
        targets = [name.strip() for name in lora.targets.split(",")]
        places = [f".{place}" for place, _ in lm.named_modules() if place]
        for name in targets:  # peft is content where one of them is there
            if not any(place.endswith(f".{name}") for place in places):
                raise _no_target(lora, f"there is no {name!r}")
    alpha: Any = lora.alpha  # peft takes fractions, though it says int
    settings = LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        with warnings.catch_warnings():  # of GPT-2's layers, which peft turns by itself
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            lm.add_adapter(settings)
    except ValueError as error:
        raise _no_target(lora, str(error)[:120]) from error
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _no_target(lora: LoraSettings, why: str) -> SafetyError:
    return SafetyError(
        f"--lora-targets got {lora.targets!r} ({why})",
        "Adapters are put beside layers of these names, and each name has to be that of one that can have them",
        "Give all-linear, or names such as q_proj,v_proj that its modules end with",
    )


def merge_lora(lm: Any) -> None:
    """Add the adapters of a model to the weights that they change, in fp32, and take them out.

    Raises:
        SafetyError: the scores share their weights with the words that the model reads, and one has adapters.
    """
    from peft.tuners.lora import LoraLayer

    read, scores = lm.get_input_embeddings(), lm.get_output_embeddings()
    shared = read.weight if scores is not None and scores.weight is read.weight else None
    for place, module in list(lm.named_modules()):
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            if base.weight is shared:
                raise SafetyError(
                    f"The adapters of {place} cannot be merged",
                    "Its weights are those of the words that the model reads and of its scores, and the adapters "
                    "change one of the two",
                    "Write the adapters alone, with --adapter true",
                )
            adapters: Any = module  # its kinds have this method, their common class has not
            change = sum(adapters.get_delta_weight(name).float() for name in module.active_adapters)
            base.weight.data = (base.weight.data.float() + change).to(base.weight.dtype)
            parent, _, last = place.rpartition(".")
            setattr(lm.get_submodule(parent), last, base)
    lm._hf_peft_config_loaded = False
    del lm.peft_config


def fingerprint(lm: nn.Module) -> dict[str, list[float]]:
    """A few numbers of each base weight, by which one set of weights is told from another in any type.

    Adapters do not count, nor does the place of a layer inside of one; weights of four bits are left out.
    """
    found = {}
    for name, tensor in lm.named_parameters():
        if "lora_" not in name and tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().flatten()
            places = torch.linspace(0, len(flat) - 1, LOOKED_AT, dtype=torch.float64).long().to(flat.device)
            found[name.replace(".base_layer.", ".")] = flat[places].float().tolist()
    return found


def same_weights(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    """Whether two fingerprints are of the same weights, but for the rounding of their types."""
    both = sorted(one.keys() & other.keys())
    if not both or any(len(one[name]) != len(other[name]) for name in both):
        return False
    first, second = (torch.tensor([prints[name] for name in both]) for prints in (one, other))
    return torch.allclose(first, second, rtol=0.01, atol=1e-5)


def need_flash(compute: torch.dtype) -> None:
    """See that what flash attention needs is there.

    Args:
        compute: the type of the computation.

    Raises:
        SafetyError: it is not.
    """
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available() or compute == torch.float32:
        raise SafetyError(
            "--attn got flash_attention_2",
            "It wants a CUDA device, the package flash-attn and --dtype bf16 or fp16, and one of them is missing",
            "Give --attn sdpa, which has kernels of the same kind",
        )


def _four_bits(source: str | None, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if source is None or not is_bitsandbytes_available():
        raise SafetyError(
            "--load-4bit got true",
            "Four-bit weights are made by bitsandbytes from the weights of --hf-model, and one of the two is missing",
            "Type pip install bitsandbytes and give --hf-model, or leave --load-4bit out",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
