"""Decoder steps with cached states: any generator through its own decoder, ParlAI's transformer in a fast form.

The fast form computes what `TransformerDecoder` computes, up to rounding: fused projections, caches that grow in place,
and the keys and values of the encoder once a context, whatever the number of its rows. It is used where every module is
exactly the class that it was written after; anything else goes through the model's own decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from parlai.agents.transformer.modules import (
    MultiHeadAttention,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerFFN,
)
from parlai.core.torch_generator_agent import TorchGeneratorModel
from parlai.utils.torch import neginf
from torch import Tensor, nn

from parlai_safety.errors import SafetyError

FIRST_CAPACITY = 16
"""Positions a cache holds at first; it doubles when it is full."""


class DecoderSteps(Protocol):
    """The decoder's state after the last token of each row. It begins with one row a context."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """(R, t) all tokens so far, the start included -> (R, D) states after the last one."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be named several times. Rows of a context stay together."""
        ...


def decoder_steps(model: TorchGeneratorModel, encoder_states: Any, contexts: int, beam_size: int = 1) -> DecoderSteps:
    """The fastest steps that this model allows.

    Args:
        model: the generator; one with a method `decoder_steps(encoder_states)` says itself how it steps.
        encoder_states: what its encoder returned for the contexts.
        contexts: how many.
        beam_size: above 1, each context has that many rows after the first selection, and they change places often.
    """
    if hasattr(model, "decoder_steps"):
        own: DecoderSteps = model.decoder_steps(encoder_states)
        return own
    if not has_known_decoder(model):
        return PlainSteps(model, encoder_states, contexts)
    return TransformerSteps(model, encoder_states, beam_size)


def has_known_decoder(model: TorchGeneratorModel) -> bool:
    """Whether the decoder and all its parts are exactly ParlAI's own classes, neither replaced nor hooked."""
    decoder = model.decoder
    if not _is_plain(decoder, TransformerDecoder) or getattr(decoder.layers, "is_model_parallel", False):
        return False
    for layer in decoder.layers:
        if not _is_plain(layer, TransformerDecoderLayer) or not _is_plain(layer.ffn, TransformerFFN):
            return False
        attentions = (layer.self_attention, layer.encoder_attention)
        if not all(_is_plain(attention, MultiHeadAttention) for attention in attentions):
            return False
        linear = [layer.ffn.lin1, layer.ffn.lin2]
        linear += [part for a in attentions for part in (a.q_lin, a.k_lin, a.v_lin, a.out_lin)]
        if not all(_is_plain(part, nn.Linear) for part in linear):
            return False
    return True


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Exactly that class, with the forward of its class and no hooks."""
    own_forward = "forward" not in vars(module)
    return type(module) is kind and own_forward and not module._forward_hooks and not module._forward_pre_hooks


class PlainSteps:
    """Steps of any generator through `model.decoder`, called as ParlAI's own search calls it."""

    def __init__(self, model: TorchGeneratorModel, encoder_states: Any, contexts: int) -> None:
        self._model = model
        self._encoder_states = encoder_states
        self._context_of_row: Tensor | None = None
        self._contexts = contexts
        self._state: Any = None
        self._settled = True

    def __call__(self, tokens: Tensor) -> Tensor:
        """One call of the decoder; see `DecoderSteps`."""
        if self._context_of_row is None:
            self._context_of_row = torch.arange(self._contexts, device=tokens.device)
        if not self._settled:  # some models tidy their state up in the reordering, so that it must not be left out
            self._reorder(torch.arange(len(tokens), device=tokens.device))
        states, self._state = self._model.decoder(tokens, self._encoder_states, self._state)
        self._settled = False
        last: Tensor = states[:, -1]
        return last

    def select(self, rows: Tensor) -> None:
        """Reorder the incremental state, and the encoder's where rows change their context; see `DecoderSteps`."""
        self._reorder(rows)
        assert self._context_of_row is not None
        chosen = self._context_of_row[rows]
        if not torch.equal(chosen, self._context_of_row):
            self._encoder_states = self._model.reorder_encoder_states(self._encoder_states, rows)
            self._context_of_row = chosen

    def _reorder(self, rows: Tensor) -> None:
        # None stands for a model without incremental decoding, which gets all tokens at each step.
        if self._state is not None:
            self._state = self._model.reorder_decoder_incremental_state(self._state, rows)
        self._settled = True


class _Layer(NamedTuple):
    """The weights of one decoder layer, fused: queries come out divided by the square root of the head's size."""

    self_qkv: tuple[Tensor, Tensor]
    self_out: tuple[Tensor, Tensor]
    cross_q: tuple[Tensor, Tensor]
    cross_out: tuple[Tensor, Tensor]
    ffn: nn.Module
    norms: tuple[nn.LayerNorm, nn.LayerNorm, nn.LayerNorm]


def _fused(layer: Any) -> _Layer:
    own, cross = layer.self_attention, layer.encoder_attention
    scale = math.sqrt(own.dim // own.n_heads)
    weights = (own.q_lin.weight / scale, own.k_lin.weight, own.v_lin.weight)
    biases = (own.q_lin.bias / scale, own.k_lin.bias, own.v_lin.bias)
    return _Layer(
        self_qkv=(torch.cat(weights), torch.cat(biases)),
        self_out=(own.out_lin.weight, own.out_lin.bias),
        cross_q=(cross.q_lin.weight / scale, cross.q_lin.bias / scale),
        cross_out=(cross.out_lin.weight, cross.out_lin.bias),
        ffn=layer.ffn,
        norms=(layer.norm1, layer.norm2, layer.norm3),
    )


class TransformerSteps:
    """Steps of ParlAI's `TransformerDecoder`, in all its variants."""

    def __init__(self, model: TorchGeneratorModel, encoder_states: tuple[Tensor, Tensor], beam_size: int) -> None:
        self._decoder = decoder = model.decoder
        self._layers = [_fused(layer) for layer in decoder.layers]
        self._before = decoder.variant == "prelayernorm"
        encoded, mask = encoder_states
        self._cross = _CrossAttention(decoder.layers, encoded, mask)
        self._ancestors: _Ancestors | None = None
        self._caches: list[_RowCache | _GroupCache] = [_RowCache() for _ in self._layers]
        if beam_size > 1:
            self._ancestors = _Ancestors(len(encoded), beam_size, encoded.device)
            self._caches = [_GroupCache(beam_size) for _ in self._layers]
        self._position = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """Run the layers on the tokens not yet seen, one position at a time; see `DecoderSteps`."""
        while self._position < tokens.size(1):
            states = self._step(tokens[:, self._position])
            self._position += 1
        return states

    def select(self, rows: Tensor) -> None:
        """Move the caches; see `DecoderSteps`."""
        if self._ancestors is None:
            kept: Tensor | None = rows
        else:
            kept = self._ancestors.select(rows)
        if kept is not None:
            for cache in self._caches:
                cache.keep(kept)
        self._cross.select(rows)

    def _step(self, token: Tensor) -> Tensor:
        x = self._embed(token)
        hidden = self._ancestors.step() if self._ancestors is not None else None
        for index, (layer, cache) in enumerate(zip(self._layers, self._caches, strict=True)):
            norm1, norm2, norm3 = layer.norms
            inner = norm1(x) if self._before else x
            fused = F.linear(inner, *layer.self_qkv)
            query, new = fused[:, : x.size(1)], fused[:, x.size(1) :]
            attended = cache.attend(query, new, self._position, self._cross.heads, hidden)
            x = x + F.linear(attended, *layer.self_out)
            x = x if self._before else norm1(x)
            inner = norm2(x) if self._before else x
            attended = self._cross.attend(index, F.linear(inner, *layer.cross_q))
            x = x + F.linear(attended, *layer.cross_out)
            x = x if self._before else norm2(x)
            x = x + layer.ffn(norm3(x) if self._before else x)
            x = x if self._before else norm3(x)
        return self._decoder.norm_embeddings(x) if self._before else x

    def _embed(self, token: Tensor) -> Tensor:
        decoder = self._decoder
        if self._position >= decoder.n_positions:
            raise SafetyError(
                f"A reply reached position {self._position} of the decoder",
                f"The model was built with --n-positions {decoder.n_positions}",
                "Give a --label-truncate (max_length) that is smaller",
            )
        x: Tensor = decoder.embeddings(token)
        if decoder.embeddings_scale:
            x = x * math.sqrt(decoder.dim)
        if decoder.variant == "xlm":
            x = decoder.norm_embeddings(x)
        x = x + decoder.position_embeddings.weight[self._position]
        return decoder.norm_embeddings(x) if decoder.variant == "bart" else x


class _RowCache:
    """Keys and values of one layer's self-attention where rows seldom change: (capacity, R, 2 D)."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def attend(self, query: Tensor, new: Tensor, position: int, heads: int, hidden: Tensor | None) -> Tensor:
        """Add the new keys and values (R, 2 D) at this position, and attend to all: (R, D) -> (R, D)."""
        rows, width = query.shape
        if self._kept is None or position == len(self._kept):
            larger = new.new_empty((max(FIRST_CAPACITY, 2 * position), rows, 2 * width))
            if self._kept is not None:
                larger[:position] = self._kept
            self._kept = larger
        self._kept[position] = new
        keys, values = self._kept[: position + 1].view(position + 1, rows, 2, heads, -1).unbind(2)
        # One query a row: products and sums read the cache once, where a batched matrix product has little to do.
        weights = (query.view(1, rows, heads, -1) * keys).sum(-1)
        weights = F.softmax(weights, dim=0, dtype=torch.float32).to(query.dtype)
        return (weights.unsqueeze(-1) * values).sum(0).view(rows, width)

    def keep(self, rows: Tensor) -> None:
        """Take these rows, in this order."""
        assert self._kept is not None
        self._kept = self._kept.index_select(1, rows)


class _Ancestors:
    """Which place of the beam each row's past stood at: the rows change places, their keys and values stay.

    A step writes the keys of place j into slot j of its position. A row sees, at each position, the one slot of its own
    ancestor; the others are hidden from it. This reads the caches once and never copies them.
    """

    def __init__(self, contexts: int, beam_size: int, device: torch.device) -> None:
        self._slots = torch.arange(beam_size, device=device)
        self._places = torch.empty((contexts, 1, 0), dtype=torch.int64, device=device)

    def step(self) -> Tensor:
        """Enter the new position: (C, 1, m, t * K) True where a key is hidden from a row."""
        contexts, rows, _ = self._places.shape
        own = self._slots[:rows].view(1, rows, 1).expand(contexts, rows, 1)
        self._places = torch.cat((self._places, own), dim=2)
        return (self._places.unsqueeze(-1) != self._slots).view(contexts, 1, rows, -1)

    def select(self, rows: Tensor) -> Tensor | None:
        """Move the rows; returns the contexts that are left, or None where all are."""
        contexts, before, length = self._places.shape
        self._places = self._places.view(contexts * before, length)[rows].view(-1, len(self._slots), length)
        kept = rows.view(-1, len(self._slots))[:, 0].div(before, rounding_mode="floor")
        return None if len(kept) == contexts else kept


class _GroupCache:
    """Keys and values of one layer's self-attention for a beam: (2, C, H, capacity, K, dh), see `_Ancestors`."""

    def __init__(self, beam_size: int) -> None:
        self._beam_size = beam_size
        self._kept: Tensor | None = None

    def attend(self, query: Tensor, new: Tensor, position: int, heads: int, hidden: Tensor | None) -> Tensor:
        """Add the new keys and values (R, 2 D) at this position, and attend to one's own past: (R, D) -> (R, D)."""
        assert hidden is not None
        contexts, _, rows, _ = hidden.shape
        size = query.size(1) // heads
        if self._kept is None or position == self._kept.size(3):
            capacity = max(FIRST_CAPACITY, 2 * position)
            # Zeros, since a slot that is never written has the weight 0, and 0 times anything must be 0.
            larger = new.new_zeros((2, contexts, heads, capacity, self._beam_size, size))
            if self._kept is not None:
                larger[:, :, :, :position] = self._kept
            self._kept = larger
        self._kept[:, :, :, position, :rows] = new.view(contexts, rows, 2, heads, size).permute(2, 0, 3, 1, 4)
        keys, values = self._kept[:, :, :, : position + 1].flatten(3, 4)
        scores = query.view(contexts, rows, heads, size).transpose(1, 2) @ keys.transpose(2, 3)
        return _weighted(scores, hidden, values)

    def keep(self, contexts: Tensor) -> None:
        """Take these contexts with all their places; the others are done."""
        assert self._kept is not None
        self._kept = self._kept.index_select(1, contexts)


class _CrossAttention:
    """Attention to the encoder's states: keys and values once a context, for all layers."""

    def __init__(self, layers: Iterable[Any], encoded: Tensor, mask: Tensor) -> None:
        attentions = [layer.encoder_attention for layer in layers]
        self.heads: int = attentions[0].n_heads
        contexts, length, width = encoded.shape
        shape = (contexts, length, self.heads, width // self.heads)
        self._keys, self._values = [], []
        for attention in attentions:
            self._keys.append(attention.k_lin(encoded).view(shape).permute(0, 2, 3, 1).contiguous())
            self._values.append(attention.v_lin(encoded).view(shape).transpose(1, 2).contiguous())
        self._hidden = (mask == 0)[:, None, None, :]
        self._context_of_row = torch.arange(contexts, device=encoded.device)
        self._most = 1
        self._slots: Tensor | None = None

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """(R, D) -> (R, D)."""
        contexts, rows, width = len(self._hidden), self._most, query.size(1)
        if self._slots is not None:  # contexts have unlike numbers of rows: each gets as many as the largest
            query = query.new_zeros((contexts * rows, width)).index_copy_(0, self._slots, query)
        scores = query.view(contexts, rows, self.heads, -1).transpose(1, 2) @ self._keys[layer]
        attended = _weighted(scores, self._hidden, self._values[layer])
        return attended if self._slots is None else attended[self._slots]

    def select(self, rows: Tensor) -> None:
        """Follow the rows, and drop contexts that have none left."""
        chosen = self._context_of_row[rows]
        if torch.equal(chosen, self._context_of_row):
            return
        kept, self._context_of_row, counts = torch.unique(chosen, return_inverse=True, return_counts=True)
        if len(kept) < len(self._hidden):
            self._keys = [keys.index_select(0, kept) for keys in self._keys]
            self._values = [values.index_select(0, kept) for values in self._values]
            self._hidden = self._hidden.index_select(0, kept)
        self._most = int(counts.max())
        self._slots = None
        if len(rows) < len(kept) * self._most:
            first = counts.cumsum(0) - counts
            place = torch.arange(len(rows), device=rows.device) - first[self._context_of_row]
            self._slots = self._context_of_row * self._most + place


def _weighted(scores: Tensor, hidden: Tensor, values: Tensor) -> Tensor:
    """Softmax over what is not hidden, and the mean of the values: (C, H, m, k), (C, H, k, dh) -> (C * m, D)."""
    scores.masked_fill_(hidden, neginf(scores.dtype))
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    contexts, heads, rows, size = (*scores.shape[:3], values.size(-1))
    return (weights @ values).transpose(1, 2).reshape(contexts * rows, heads * size)
