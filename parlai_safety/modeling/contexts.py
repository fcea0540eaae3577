"""Several replies to one context: the context is encoded once, and its encoding repeated for each reply."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parlai_safety.modeling.output import decoder_states


def reply_states(model: Any, *inputs: Any, ys: Tensor, example: Tensor) -> Tensor:
    """The decoder's states under teacher forcing, of R replies to B contexts.

    The encoder runs once over the B contexts, in the model's own forward, as a data-parallel wrapper wants it. Replies
    to one context therefore also share the encoder's dropout in training.

    Args:
        model: a `TorchGeneratorModel`, or that model in a data-parallel wrapper.
        inputs: what the model's encoder takes, for B contexts.
        ys: (R, T) int64 replies.
        example: (R,) int64, the context in [0, B) of each reply.

    Returns:
        (R, T, D), with gradient.
    """
    inner = getattr(model, "module", model)
    decode = inner.decode_forced
    inner.decode_forced = lambda encoded, ys: decode(inner.reorder_encoder_states(encoded, example), ys)
    try:
        return decoder_states(model, *inputs, ys=ys)
    finally:
        del inner.decode_forced
