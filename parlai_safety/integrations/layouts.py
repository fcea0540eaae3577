"""ParlAI's transformer generators in the layouts of transformers: the same numbers under other names.

What a layout of transformers computes decides which variant of ParlAI fits it:

| `--variant` | layout | why |
|---|---|---|
| `prelayernorm` | Blenderbot | norms before attention, one after the last layer |
| `bart` | Bart | norms after attention, one after words and positions |
| `xlm` | BlenderbotSmall | as Bart, but the decoder's norm comes before the positions |
| `aiayn` | Marian | norms after attention, none after the words |

Marian computes its positions, sines first and cosines second, where ParlAI alternates them: all weights are put in that
order of the states, which changes nothing. Segments, of which a generator uses the first alone, become part of the
encoder's positions. BlenderbotSmall's decoder takes words as they are, scaled or not (transformers 5.23): where ParlAI
scales them, the scaled ones are kept beside those of the output layer. The score of ParlAI's start token is held at its
lowest by the bias of the scores. Logits are those of ParlAI for contexts that are padded at the right.

Left out: models with a second head or with layers of another kind, which no layout has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.modeling.output import lowest

LAYOUTS = {"prelayernorm": "Blenderbot", "bart": "Bart", "xlm": "BlenderbotSmall", "aiayn": "Marian"}
"""ParlAI's `--variant` -> the layout of transformers."""
WORDS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
"""Where a layout keeps the embedding of words."""
_UNUSED_BY_BART = 2
"""Rows of positions that BART's layout never reads."""


def as_transformers(model: Any) -> Any:
    """A generator of ParlAI as a model of transformers, in fp32.

    Args:
        model: a `TransformerGeneratorModel` or `BartModel`, with ParlAI's ids of padding, start and end.

    Returns:
        A `...ForConditionalGeneration` (or `MarianMTModel`) with the same logits.

    Raises:
        SafetyError: no layout has what an option made of it.
    """
    import transformers

    is_bart = _check_kind(model)
    encoder, decoder = model.encoder, model.decoder
    layout = LAYOUTS[encoder.variant]
    apart = layout == "BlenderbotSmall" and bool(encoder.embeddings_scale)
    vocabulary, width = model.embeddings.weight.shape
    settings = {
        "vocab_size": vocabulary,
        "d_model": width,
        "encoder_layers": len(encoder.layers),
        "decoder_layers": len(decoder.layers),
        "encoder_attention_heads": encoder.n_heads,
        "decoder_attention_heads": decoder.n_heads,
        "encoder_ffn_dim": encoder.ffn_size,
        "decoder_ffn_dim": decoder.ffn_size,
        "activation_function": encoder.activation,
        "max_position_embeddings": encoder.n_positions,
        "scale_embedding": bool(encoder.embeddings_scale) and not apart,
        "dropout": float(model.opt.get("dropout", 0.0)),
        "attention_dropout": float(model.opt.get("attention_dropout", 0.0)),
        "activation_dropout": float(model.opt.get("relu_dropout", 0.0)),
        "pad_token_id": int(model.NULL_IDX),
        "bos_token_id": model.START_IDX,
        "eos_token_id": model.END_IDX,
        "forced_eos_token_id": None,
        "decoder_start_token_id": model.END_IDX if is_bart else model.START_IDX,
        "tie_word_embeddings": not apart,
    }
    if layout == "Bart":
        settings["forced_bos_token_id"] = model.START_IDX if is_bart else None
    if layout == "Marian":
        settings |= {"decoder_vocab_size": vocabulary, "share_encoder_decoder_embeddings": True}
    made = transformers.AutoModelForSeq2SeqLM.from_config(getattr(transformers, f"{layout}Config")(**settings))
    states = {name: value.detach().float() for name, value in _states(model, layout)}
    if layout == "Marian":
        states = _as_marian(made, states)
    if apart:
        states["lm_head.weight"] = states["model.shared.weight"]
        scaled = states["model.shared.weight"] * width**0.5
        states |= {f"model.{place}.weight": scaled for place in WORDS}
    bias = torch.zeros(1, vocabulary)
    if not is_bart:
        bias[0, model.START_IDX] = lowest(torch.float32)
    states["final_logits_bias"] = bias
    missing, unexpected = made.load_state_dict(states, strict=False)
    tied = set() if apart else {"lm_head.weight", *(f"model.{place}.weight" for place in WORDS)}
    assert not unexpected and set(missing) <= tied, (missing, unexpected)
    made.tie_weights()
    return made.eval()


def _check_kind(model: Any) -> bool:
    """Whether it is ParlAI's BART; an error where it is no generator that a layout has."""
    from parlai.agents.bart.modules import BartModel
    from parlai.agents.transformer.modules import (
        TransformerDecoder,
        TransformerDecoderLayer,
        TransformerEncoder,
        TransformerEncoderLayer,
        TransformerGeneratorModel,
    )

    if type(model) not in (BartModel, TransformerGeneratorModel):
        raise _no_layout(f"a {type(model).__name__}", "parts that a plain encoder and decoder do not have")
    encoder, decoder = model.encoder, model.decoder
    parts = [(encoder, TransformerEncoder), (decoder, TransformerDecoder)]
    parts += [(layer, TransformerEncoderLayer) for layer in encoder.layers]
    parts += [(layer, TransformerDecoderLayer) for layer in decoder.layers]
    for part, kind in parts:
        if type(part) is not kind:
            raise _no_layout(f"{type(part).__name__} among its layers", "layers of a kind of its own")
    if encoder.output_scaling != 1.0:
        raise _no_layout(f"--output-scaling {encoder.output_scaling}", "states of the encoder that are scaled")
    if bool(encoder.embeddings_scale) != bool(decoder.embeddings_scale):
        raise _no_layout("--embeddings-scale for one of encoder and decoder", "words that are scaled on one side alone")
    if LAYOUTS[encoder.variant] == "Marian" and encoder.n_segments:
        raise _no_layout("--n-segments with --variant aiayn", "positions that are more than sines and cosines")
    return type(model) is BartModel


def _no_layout(got: str, what: str) -> SafetyError:
    return SafetyError(
        f"The model has {got}",
        f"Bart, Blenderbot, BlenderbotSmall and Marian are the layouts of transformers, and none has {what}",
        "Go on with it in ParlAI, or train a model without that option and export it",
    )


def _states(model: Any, layout: str) -> Iterator[tuple[str, Tensor]]:
    """Names of transformers with ParlAI's weights."""
    yield "model.shared.weight", model.embeddings.weight
    for side in ("encoder", "decoder"):
        half = getattr(model, side)
        positions = half.position_embeddings.weight
        if side == "encoder" and half.n_segments:
            positions = positions + half.segment_embeddings.weight[0]
        if layout == "Bart":
            positions = torch.cat((positions.new_zeros(_UNUSED_BY_BART, positions.size(1)), positions))
        yield f"model.{side}.embed_positions.weight", positions
        if layout != "Marian":
            name = "layer_norm" if layout == "Blenderbot" else "layernorm_embedding"
            yield from _both(f"model.{side}.{name}", half.norm_embeddings)
        for number, layer in enumerate(half.layers):
            place = f"model.{side}.layers.{number}"
            if side == "encoder":
                parts = {"self_attn": layer.attention}
                norms = {"self_attn_layer_norm": layer.norm1, "final_layer_norm": layer.norm2}
            else:
                parts = {"self_attn": layer.self_attention, "encoder_attn": layer.encoder_attention}
                norms = {
                    "self_attn_layer_norm": layer.norm1,
                    "encoder_attn_layer_norm": layer.norm2,
                    "final_layer_norm": layer.norm3,
                }
            for name, attention in parts.items():
                for letter in ("q", "k", "v", "out"):
                    yield from _both(f"{place}.{name}.{letter}_proj", getattr(attention, f"{letter}_lin"))
            for name, norm in norms.items():
                yield from _both(f"{place}.{name}", norm)
            yield from _both(f"{place}.fc1", layer.ffn.lin1)
            yield from _both(f"{place}.fc2", layer.ffn.lin2)


def _both(name: str, module: Any) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", module.weight
    yield f"{name}.bias", module.bias


def _as_marian(made: Any, states: dict[str, Tensor]) -> dict[str, Tensor]:
    """The states in Marian's order, whose positions are computed and not kept."""
    width = states["model.shared.weight"].size(1)
    order = torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))
    ordered = {}
    for name, value in states.items():
        part = name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1]
        if part in ("q_proj", "k_proj", "v_proj", "fc1"):  # from the states to something else
            ordered[name] = value[:, order] if name.endswith("weight") else value
        elif part in ("out_proj", "fc2") or value.dim() == 1:  # back to the states
            ordered[name] = value[order]
        else:
            ordered[name] = value[:, order]
    for side in ("encoder", "decoder"):
        positions = getattr(made.model, side).embed_positions.weight
        mine = ordered[f"model.{side}.embed_positions.weight"]
        if not torch.allclose(positions, mine, atol=1e-6):
            raise _no_layout("--learn-positional-embeddings with --variant aiayn", "these norms with learned positions")
    return ordered
