"""What both ways out of fairseq share: settings with their defaults, refusals, positions and embeddings.

fairseq counts positions from `<pad>` + 1 = 2, so that the first two rows of a table of positions belong to no token.
Its sinusoids are those of tensor2tensor: first all sines, then all cosines.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.fairseq.checkpoint import Checkpoint
from parlai_safety.integrations.fairseq.training import TRAINING
from parlai_safety.integrations.fairseq.words import BOS, EOS, PAD, UNK

POSITION_OFFSET = PAD + 1
MOST_POSITIONS = 2**17
_LARGEST = 2**24
# Setting -> what else it changes in the model. Each is off where it is absent, None, False, 0 or empty.
_UNKNOWN = {
    "adaptive_input": "embeddings of several widths",
    "adaptive_softmax_cutoff": "an output layer in clusters",
    "character_embeddings": "embeddings made of characters",
    "char_inputs": "embeddings made of characters",
    "no_token_positional_embeddings": "a model without positions",
    "no_cross_attention": "a decoder that does not look at the source",
    "cross_self_attention": "one attention over source and target",
    "encoder_layers_to_keep": "layers that are dropped at loading",
    "decoder_layers_to_keep": "layers that are dropped at loading",
    "base_layers": "layers of experts",
    "scale_fc": "norms of NormFormer",
    "scale_attn": "norms of NormFormer",
    "scale_heads": "scales of NormFormer",
    "scale_resids": "scales of NormFormer",
    "encoder_xformers_att_config": "another attention",
    "decoder_xformers_att_config": "another attention",
    "use_relative_pos": "positions relative to one another",
    "alibi": "positions relative to one another",
    "use_rope": "positions by rotation",
    "moe_freq": "layers of experts",
    "merge_src_tgt_embed": "one table of words for two dictionaries",
    "quant_noise_pq": "weights for a quantised model",
    "quant_noise_scalar": "weights for a quantised model",
}
# Settings that are used, by what they must be.
_SWITCHES = tuple(
    """encoder_normalize_before decoder_normalize_before encoder_learned_pos decoder_learned_pos
layernorm_embedding no_decoder_final_norm no_scale_embedding share_decoder_input_output_embed share_all_embeddings
add_bos_token""".split()
)
_SHARES = ("dropout", "attention_dropout", "activation_dropout", "relu_dropout")
_TEXTS = ("activation_fn", "arch", "_name", "task")
_NUMBERS = tuple(
    """encoder_embed_dim decoder_embed_dim encoder_ffn_embed_dim decoder_ffn_embed_dim encoder_layers
decoder_layers encoder_attention_heads decoder_attention_heads decoder_input_dim decoder_output_dim max_source_positions
max_target_positions tokens_per_sample""".split()
)
_SYMBOLS = {"bos": BOS, "pad": PAD, "eos": EOS, "unk": UNK}
# With these a model computes the same, whatever they are, as long as what is refused above is off.
_SAME_NUMBERS = tuple(
    """adaptive_input_cutoff adaptive_input_factor adaptive_softmax_dropout adaptive_softmax_factor
tie_adaptive_proj tie_adaptive_weights base_shuffle base_sublayers char_embedder_highway_layers character_embedding_dim
character_filters checkpoint_activations offload_activations min_params_to_wrap encoder_layerdrop decoder_layerdrop
encoder_embed_path decoder_embed_path export pooler_activation_fn pooler_dropout quant_noise_pq_block_size
spectral_norm_classification_head tpu""".split()
)
# What fairseq 0.12.2 registers for its classes transformer, bart and transformer_lm.
_ARCHITECTURES = frozenset(
    """transformer transformer_tiny transformer_iwslt_de_en transformer_wmt_en_de
transformer_wmt_en_de_big transformer_wmt_en_de_big_t2t transformer_vaswani_wmt_en_de_big
transformer_vaswani_wmt_en_fr_big bart bart_base bart_large mbart_base mbart_large mbart_base_wmt20 transformer_lm
transformer_lm_big transformer_lm_wiki103 transformer_lm_baevski_wiki103 transformer_lm_gbw transformer_lm_baevski_gbw
transformer_lm_gpt transformer_lm_gpt2_small transformer_lm_gpt2_medium transformer_lm_gpt2_big
transformer_lm_gpt2_big_wide transformer_lm_gpt2_bigger transformer_lm_gpt3_small transformer_lm_gpt3_medium
transformer_lm_gpt3_large transformer_lm_gpt3_xl transformer_lm_gpt3_2_7 transformer_lm_gpt3_6_7 transformer_lm_gpt3_13
transformer_lm_gpt3_175""".split()
)
_IGNORE = "If it changes no number that the model computes, add --ignore-settings {}"
# Entries of a state that are no weights of their own: notes, and the copies for torch's fused encoder layer that
# fairseq 0.12.2 saves and makes anew when it loads.
_NO_WEIGHTS = re.compile(
    r"(encoder|decoder)\.(version|embed_positions\.(_float_tensor|weights)|layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias))"
)


def check_settings(checkpoint: Checkpoint, ignored: Collection[str] = ()) -> None:
    """Refuse what neither ParlAI's transformer nor a Hugging Face layout has, and what is not known at all.

    A setting is known if it is used, if its other values are refused, or if the model computes the same whatever it
    is. Settings of the task and of the training do not matter. An unknown one that is off (None, False, 0 or empty) is
    let through: additions to fairseq's models are switched on.

    Args:
        checkpoint: as read.
        ignored: names of unknown settings that change no number.

    Raises:
        SafetyError: a setting is of another type, asks for what is not there or is unknown; the error names it.
    """
    settings = checkpoint.settings
    for name, meaning in _UNKNOWN.items():
        if settings.get(name):
            raise cannot(name, settings[name], meaning)
    for name in _SWITCHES:
        if settings.get(name) not in (None, False, True):
            raise _wrong(name, settings[name], "It must be a switch, True or False")
    for name in _SHARES:
        value = settings.get(name) or 0
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise _wrong(name, value, "It must be a share from 0 to 1")
    for name in _TEXTS:
        value = settings.get(name) or ""
        if not isinstance(value, str) or "${" in value:
            raise _wrong(name, value, "It must be a word")
    for name, index in _SYMBOLS.items():
        if settings.get(name) not in (None, index):
            raise cannot(name, settings[name], f"another place in the dictionary than {index}")
    known = {*_UNKNOWN, *_SWITCHES, *_SHARES, *_TEXTS, *_SYMBOLS, *_NUMBERS, *_SAME_NUMBERS, *TRAINING, *ignored}
    name = architecture(settings)
    if name and name not in _ARCHITECTURES and "arch" not in ignored:
        raise cannot("arch", name, "an architecture that may compute something else", _IGNORE.format("arch"))
    for name, value in settings.items():
        if value and name not in known and name not in checkpoint.others:
            raise cannot(name, value, "a setting that is not known here", _IGNORE.format(name))


def architecture(settings: Mapping[str, Any]) -> str:
    """The name of the architecture; empty where the settings have none."""
    return str(settings.get("arch") or settings.get("_name") or "")


def cannot(name: str, value: Any, meaning: str, instead: str = "Train a model without it to import it") -> SafetyError:
    """The error for a setting that has no counterpart."""
    return SafetyError(
        f"The checkpoint was trained with {name} = {reprlib.repr(value)}",
        f"That is {meaning}, which the imported model lacks",
        instead,
    )


def _wrong(name: str, value: Any, why: str) -> SafetyError:
    return SafetyError(
        f"The settings of the checkpoint say {name} = {reprlib.repr(value)}",
        why,
        "Import a checkpoint that fairseq-train saved, with its settings whole",
    )


def heads(settings: Mapping[str, Any], side: str) -> int:
    """The attention heads of the encoder or decoder.

    Raises:
        SafetyError: the setting is absent, or the width is no multiple of it.
    """
    count, size = number(settings, f"{side}_attention_heads"), number(settings, f"{side}_embed_dim")
    if size % count:
        raise _wrong(f"{side}_attention_heads", count, f"Heads of one width cannot make {side}_embed_dim = {size}")
    return count


def layers(settings: Mapping[str, Any], weights: Mapping[str, Tensor], side: str) -> int:
    """The layers of the encoder or decoder.

    Raises:
        SafetyError: the setting is absent, or the weights are those of another number of layers.
    """
    count = number(settings, f"{side}_layers")
    found = {name.split(".")[2] for name in weights if name.startswith(f"{side}.layers.")}
    if len(found) != count:
        raise _wrong(f"{side}_layers", count, f"There are weights for {len(found)} layers")
    return count


def number(settings: Mapping[str, Any], name: str, most: int = _LARGEST) -> int:
    """A setting that must be there and above zero, as the number of heads: no tensor tells it.

    Raises:
        SafetyError: it is absent, no such number or larger than any model has it.
    """
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _wrong(name, value, f"The model cannot be built again without this number, from 1 to {most:,}")
    return value


def embedding_scale(settings: Mapping[str, Any], size: int) -> float:
    """By what fairseq multiplies the embedding of a word."""
    return 1.0 if settings.get("no_scale_embedding") else math.sqrt(size)


def same_table(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tables of words are one: absent, or equal in every number."""
    return other is None or (one.shape == other.shape and bool(torch.equal(one, other)))


def positions(
    weights: Mapping[str, Tensor], side: str, settings: Mapping[str, Any], limit: int, like: Tensor
) -> Tensor:
    """The positions of the encoder or decoder, (limit, D): row 0 is that of the first token.

    Args:
        weights: of the checkpoint.
        side: "encoder" or "decoder".
        settings: of the checkpoint.
        limit: the longest input in tokens.
        like: (V, D) embeddings, whose type and width the positions have.

    Raises:
        SafetyError: the positions are learned, and there is no table of them or one of another length.
    """
    name = f"{side}.embed_positions.weight"
    if not settings.get(f"{side}_learned_pos"):
        return sinusoids(limit + POSITION_OFFSET, like.size(-1))[POSITION_OFFSET:].type_as(like)
    table = weights.get(name)
    rows = None if table is None or table.dim() != 2 else len(table)
    if table is None or rows != limit + POSITION_OFFSET:
        found = "no" if rows is None else rows
        raise SafetyError(
            f"The checkpoint has {found} rows in {name}, and its settings say {limit} positions",
            f"With {side}_learned_pos there are {POSITION_OFFSET} rows more than positions",
            "Import a checkpoint that fairseq-train saved, with its settings whole",
        )
    return table[POSITION_OFFSET:]


def sinusoids(rows: int, size: int) -> Tensor:
    """Sines and cosines of rising wavelengths, (rows, size) fp32, in fairseq's order and rounding.

    Computed in fp32 from fp32 frequencies: at position 1000, a more precise table would differ by 1e-5 and more.
    """
    half = size // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(rows, dtype=torch.float)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(table, (0, size - 2 * half))


def without_weights(name: str) -> bool:
    """Whether an entry of a state is a note or a copy, and no weight of its own."""
    return _NO_WEIGHTS.fullmatch(name) is not None


def split_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with query, key and value apart; releases before 0.8 saved them as one `in_proj`."""
    apart: dict[str, Tensor] = {}
    for name, weight in weights.items():
        prefix, joined, kind = name.rpartition("in_proj_")
        if not joined or not prefix.endswith("attn."):
            apart[name] = weight
            continue
        if not weight.dim() or len(weight) % 3:
            raise leftover({name})
        for part, piece in zip("qkv", weight.chunk(3), strict=True):
            apart[f"{prefix}{part}_proj.{kind}"] = piece
    return apart


def refuse_old_norms(settings: Mapping[str, Any], weights: Mapping[str, Tensor], side: str) -> None:
    """Refuse a model that fairseq would load without its last norm.

    Raises:
        SafetyError: its norms come before the blocks and its version is below 2.
    """
    tensor = weights.get(f"{side}.version")
    version = None if tensor is None or tensor.numel() != 1 else float(tensor)
    if settings.get(f"{side}_normalize_before") and (version is None or version < 2):
        raise SafetyError(
            f"The checkpoint has {side}.version = {version}",
            "fairseq drops the last norm of such an old model, which the imported model has",
            "Save the model anew with a release of fairseq from 0.6 on",
        )


def leftover(names: set[str]) -> SafetyError:
    """The error for weights that have no place."""
    some = ", ".join(sorted(names)[:3])
    return SafetyError(
        f"The checkpoint has weights of no known part: {some}{', …' if len(names) > 3 else ''}",
        "A part that is left out would change what the model says",
        "Only fairseq's transformer, bart and transformer_lm are imported, without additions",
    )
