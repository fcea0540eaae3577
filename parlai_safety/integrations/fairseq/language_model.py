"""fairseq's `transformer_lm` as a Hugging Face causal language model, in the layout of OPT.

OPT's layout has what these models have: norms before or after the blocks, any of the usual activations, positions from
a table that counts from 2. Ids stay fairseq's. Sinusoids become rows of that table, up to the model's longest input.
fairseq multiplies the embedding of a word by the root of its width, OPT does not: the factor goes into the table of
words, which then is no longer that of the output, and the file grows by one table. Left out are embeddings of another
width than the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.fairseq.checkpoint import Checkpoint
from parlai_safety.integrations.fairseq.settings import (
    MOST_POSITIONS,
    POSITION_OFFSET,
    cannot,
    embedding_scale,
    heads,
    layers,
    leftover,
    number,
    positions,
    refuse_old_norms,
    same_table,
    split_projections,
    without_weights,
)
from parlai_safety.integrations.fairseq.words import BOS, EOS, PAD, SPECIAL, UNK, Words

_EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = ("decoder.output_projection.weight", "decoder.embed_out")
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "tanh": "tanh"}


class LanguageModel(NamedTuple):
    """A model as transformers stores it."""

    config: dict[str, Any]
    """Fields of an OPTConfig."""
    weights: dict[str, Tensor]
    """The state of an OPTForCausalLM, without `lm_head` where that is the table of words."""


def to_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Turn a checkpoint of `transformer_lm` into OPT's layout.

    Raises:
        SafetyError: the model has a part or a setting that the layout has not; the error names it.
    """
    settings, weights = checkpoint.settings, split_projections(checkpoint.weights)
    refuse_old_norms(settings, weights, "decoder")
    if _EMBEDDING not in weights:
        raise leftover(set(weights))
    table = weights[_EMBEDDING]
    output = next((weights[name] for name in _OUTPUT if name in weights), None)
    if output is None and not settings.get("share_decoder_input_output_embed"):
        raise SafetyError(
            "The checkpoint has no output layer",
            f"Without share_decoder_input_output_embed a language model has {_OUTPUT[0]}",
            "Import a checkpoint that fairseq-train saved, whole",
        )
    config = _config(settings, weights)
    tied = same_table(table, output)
    scale = embedding_scale(settings, config["hidden_size"])
    config["tie_word_embeddings"] = tied and scale == 1.0
    rows = positions(weights, "decoder", settings, config["max_position_embeddings"], table)
    placed = {
        "model.decoder.embed_tokens.weight": table * scale,
        "model.decoder.embed_positions.weight": torch.cat([rows.new_zeros(POSITION_OFFSET, rows.size(-1)), rows]),
    }
    if not config["tie_word_embeddings"]:
        placed["lm_head.weight"] = table if output is None else output
    for name, weight in weights.items():
        if name.startswith("decoder.layers."):
            placed[f"model.{name}"] = weight
        elif name.startswith("decoder.layer_norm.") and config["do_layer_norm_before"]:
            placed[f"model.decoder.final_layer_norm.{name.rpartition('.')[2]}"] = weight
        elif name not in (_EMBEDDING, *_OUTPUT, "decoder.embed_positions.weight") and not without_weights(name):
            raise leftover({name})
    return LanguageModel(config, placed)


def tokenizer_json(words: Words, *, start: int, prefix_space: bool) -> str:
    """A tokenizer of the `tokenizers` library with fairseq's ids, which begins each text with the symbol `start`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {symbol: i for i, symbol in enumerate(words.symbols)}
    if words.merges is None:
        built = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[UNK]))
        built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        pairs = [(left, right) for left, right in (pair.split() for pair in words.merges)]
        built = Tokenizer(models.BPE(ids, pairs))
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        built.decoder = decoders.ByteLevel()
    built.add_special_tokens(list(SPECIAL))
    symbol = words.symbols[start]
    built.post_processor = processors.TemplateProcessing(
        single=f"{symbol} $A", pair=f"{symbol} $A $B", special_tokens=[(symbol, start)]
    )
    return str(built.to_str())


def _config(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    size = number(settings, "decoder_embed_dim")
    for name in ("input", "output"):
        width = settings.get(f"decoder_{name}_dim")
        if width not in (None, size):
            raise cannot(f"decoder_{name}_dim", width, f"a table of words narrower than the layers' {size}")
    if settings.get("layernorm_embedding"):
        raise cannot("layernorm_embedding", True, "a norm of the embeddings")
    activation = settings.get("activation_fn") or "relu"
    if activation not in _ACTIVATIONS:
        raise cannot("activation_fn", activation, f"another function than {', '.join(_ACTIVATIONS)}")
    before = bool(settings.get("decoder_normalize_before"))
    limit = "max_target_positions" if settings.get("max_target_positions") else "tokens_per_sample"
    start = BOS if settings.get("add_bos_token") else EOS
    return {
        "vocab_size": len(weights[_EMBEDDING]),
        "hidden_size": size,
        "word_embed_proj_dim": size,
        "ffn_dim": number(settings, "decoder_ffn_embed_dim"),
        "num_hidden_layers": layers(settings, weights, "decoder"),
        "num_attention_heads": heads(settings, "decoder"),
        "max_position_embeddings": number(settings, limit, MOST_POSITIONS),
        "activation_function": _ACTIVATIONS[activation],
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and bool(settings.get("no_decoder_final_norm")),
        "dropout": float(settings.get("dropout") or 0),
        "attention_dropout": float(settings.get("attention_dropout") or 0),
        "bos_token_id": start,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
    }
