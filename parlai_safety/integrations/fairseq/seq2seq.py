"""fairseq's `transformer` and `bart` as ParlAI's transformer/generator.

Both libraries compute the same; names, the order of special symbols and the table of positions differ:

- ParlAI's ids are fairseq's, but for `<pad>`, which moves from 1 to 0, and `<s>`, which moves to the end as an ordinary
  word. Row 1 becomes ParlAI's start symbol.
- A decoder of fairseq begins with `</s>`, so the start symbol has the row of `</s>`. ParlAI forbids it in replies, and
  thus the probabilities of all words are fairseq's.
- fairseq ends the source with `</s>`; ParlAI does with `--history-add-global-end-token end`, which is set.

ParlAI has one table for source words, target words and output, so a model with several is refused. With `--fp16 true`
it wants a multiple of eight rows. Those that `fp16_rows` adds are zeros; as the table is the output too, they have the
score 0 and take a share of the probability, as in any model that ParlAI trains so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.fairseq.checkpoint import Checkpoint
from parlai_safety.integrations.fairseq.settings import (
    MOST_POSITIONS,
    cannot,
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
from parlai_safety.integrations.fairseq.words import BOS, EOS, PAD, UNK, Words

NULL, START, END, UNKNOWN = "__null__", "__start__", "__end__", "__unk__"
_ROWS_OF_FP16 = 8
_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
_SAME_ON_BOTH_SIDES = ("embed_dim", "ffn_embed_dim", "attention_heads", "normalize_before", "learned_pos")
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_ENCODER_PARTS = {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"}
_DECODER_PARTS = {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"}
_LINEAR = {"q_proj": "q_lin", "k_proj": "k_lin", "v_proj": "v_lin", "out_proj": "out_lin"}


class Generator(NamedTuple):
    """A model as ParlAI stores it."""

    options: dict[str, Any]
    """The options of transformer/generator that describe it."""
    weights: dict[str, Tensor]
    """The state of its module."""
    symbols: list[str]
    """Its dictionary: the word of each id."""


def parlai_symbols(words: Words) -> list[str]:
    """The dictionary in ParlAI's order: special symbols, the words, and `<s>` at the end."""
    return [NULL, START, END, UNKNOWN, *words.symbols[UNK + 1 :], words.symbols[BOS]]


def parlai_ids(fairseq_ids: Tensor, size: int) -> Tensor:
    """What ids of fairseq are in ParlAI.

    Args:
        fairseq_ids: int64 of any shape, values in [0, size).
        size: symbols of fairseq's dictionary.
    """
    return torch.where(fairseq_ids == PAD, 0, torch.where(fairseq_ids == BOS, size, fairseq_ids))


def to_generator(checkpoint: Checkpoint, words: Words, *, fp16_rows: bool = False) -> Generator:
    """Turn a checkpoint of `transformer` or `bart` into a transformer/generator.

    Args:
        checkpoint: as read.
        words: its vocabulary.
        fp16_rows: fill the dictionary up to a multiple of eight, which `--fp16 true` needs.

    Raises:
        SafetyError: the model has a part or a setting that ParlAI's has not; the error names it.
    """
    settings = checkpoint.settings
    weights = split_projections(checkpoint.weights)
    table = _table(weights)
    options = _options(settings, weights, words)
    for side in ("encoder", "decoder"):
        refuse_old_norms(settings, weights, side)
    # One length for both sides in ParlAI; rows beyond a side's own length are never reached, as inputs are cut.
    limits = {"encoder": options["text_truncate"], "decoder": options["label_truncate"]}
    placed = {"START": torch.tensor([1])}
    symbols = parlai_symbols(words)
    fillers = [f"__FP16_PAD_{i}__" for i in range(-len(symbols) % _ROWS_OF_FP16 if fp16_rows else 0)]
    zeros = table.new_zeros(len(fillers), table.size(-1))
    shuffled = torch.cat([table[[PAD, EOS, EOS]], table[UNK:], table[[BOS]], zeros])
    for name in ("embeddings", "encoder.embeddings", "decoder.embeddings"):
        placed[f"{name}.weight"] = shuffled
    for side, limit in limits.items():
        rows = positions(weights, side, settings, limit, table)
        filler = rows.new_zeros(options["n_positions"] - limit, rows.size(-1))
        placed[f"{side}.position_embeddings.weight"] = torch.cat([rows, filler])
    unused = set()
    for name, weight in weights.items():
        new = _new_name(name, options["variant"])
        if new is not None:
            placed[new] = weight
        elif name not in _TABLES and not name.endswith("embed_positions.weight") and not without_weights(name):
            unused.add(name)
    if unused:
        raise leftover(unused)
    return Generator({**options, "force_fp16_tokens": fp16_rows}, placed, [*symbols, *fillers])


def _table(weights: Mapping[str, Tensor]) -> Tensor:
    source, target, output = (weights.get(name) for name in _TABLES)
    if source is None or target is None:
        raise SafetyError(
            "The checkpoint has no words for an encoder and a decoder",
            f"A transformer of fairseq has {_TABLES[0]} and {_TABLES[1]}",
            "Import a checkpoint of a transformer, bart or transformer_lm",
        )
    if not same_table(source, target) or not same_table(target, output):
        raise cannot(
            "share_all_embeddings",
            False,
            "a model with more than one table of words",
            "Train with --joined-dictionary and --share-all-embeddings to import a model into ParlAI",
        )
    return source


def _options(settings: Mapping[str, Any], weights: Mapping[str, Tensor], words: Words) -> dict[str, Any]:
    for name in _SAME_ON_BOTH_SIDES:
        encoder, decoder = settings.get(f"encoder_{name}"), settings.get(f"decoder_{name}")
        if (encoder or False) != (decoder or False):
            raise cannot(f"decoder_{name}", decoder, f"another value than encoder_{name} = {encoder!r}")
    for name in ("input", "output"):
        size = settings.get(f"decoder_{name}_dim")
        if size not in (None, settings.get("decoder_embed_dim")):
            raise cannot(f"decoder_{name}_dim", size, "a projection between the words and the layers")
    activation = settings.get("activation_fn") or "relu"
    if activation not in ("relu", "gelu"):
        raise cannot("activation_fn", activation, "another function than relu and gelu")
    norms_first, norms_embedding = (
        bool(settings.get("encoder_normalize_before")),
        bool(settings.get("layernorm_embedding")),
    )
    if norms_first and norms_embedding:
        raise cannot("layernorm_embedding", True, "a norm of the embeddings beside norms before the blocks")
    if norms_first and settings.get("no_decoder_final_norm"):
        raise cannot("no_decoder_final_norm", True, "a decoder without a last norm")
    source, target = (number(settings, f"max_{side}_positions", MOST_POSITIONS) for side in ("source", "target"))
    options = {
        "model": "transformer/generator",
        "embedding_size": number(settings, "encoder_embed_dim"),
        "ffn_size": number(settings, "encoder_ffn_embed_dim"),
        "n_heads": heads(settings, "encoder"),
        "n_layers": layers(settings, weights, "encoder"),
        "n_encoder_layers": layers(settings, weights, "encoder"),
        "n_decoder_layers": layers(settings, weights, "decoder"),
        "n_positions": max(source, target),
        "text_truncate": source,
        "label_truncate": target,
        "truncate": -1,
        "variant": "prelayernorm" if norms_first else "bart" if norms_embedding else "aiayn",
        "activation": activation,
        "embeddings_scale": not settings.get("no_scale_embedding"),
        "learn_positional_embeddings": bool(settings.get("encoder_learned_pos")),
        "dropout": float(settings.get("dropout") or 0),
        "attention_dropout": float(settings.get("attention_dropout") or 0),
        "relu_dropout": float(settings.get("activation_dropout") or settings.get("relu_dropout") or 0),
        "history_add_global_end_token": "end",
        "dict_tokenizer": "space",
        # With single spaces between words a line break would be part of a word; turns are parted by </s>.
        "delimiter": END,
    }
    if words.merges is not None:
        options |= {"dict_tokenizer": "bytelevelbpe", "delimiter": "\n"}
    return options


def _new_name(name: str, variant: str) -> str | None:
    """ParlAI's name of a weight; None where it has none of its own."""
    whole = {"bart": "layernorm_embedding", "prelayernorm": "layer_norm"}.get(variant)
    side, _, rest = name.partition(".")
    if whole and side in ("encoder", "decoder") and rest in (f"{whole}.weight", f"{whole}.bias"):
        return f"{side}.norm_embeddings.{rest.rpartition('.')[2]}"
    match = _LAYER.match(name)
    if not match:
        return None
    side, layer, part, kind = match.groups()
    attention, _, linear = part.partition(".")
    names = _ENCODER_PARTS if side == "encoder" else _DECODER_PARTS
    if part in names:
        new = names[part]
    elif part in ("fc1", "fc2"):
        new = f"ffn.lin{part[-1]}"
    elif linear in _LINEAR and attention == "self_attn":
        new = f"{'attention' if side == 'encoder' else 'self_attention'}.{_LINEAR[linear]}"
    elif linear in _LINEAR and attention == "encoder_attn" and side == "decoder":
        new = f"encoder_attention.{_LINEAR[linear]}"
    else:
        return None
    return f"{side}.layers.{layer}.{new}.{kind}"
