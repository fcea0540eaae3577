"""Several replies to one context, which is computed once.

An encoder's result is repeated for each reply. A model that is its own encoder, as a causal language model is, says
itself how replies share a context, by a method `decode_several(encoded, ys, example)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parlai_safety.modeling.output import decoder_states


def reply_states(model: Any, *inputs: Any, ys: Tensor, example: Tensor) -> Tensor:
    """The decoder's states under teacher forcing, of R replies to B contexts.

    All is computed in one call of the model's own forward, as a data-parallel wrapper wants it. Replies to one context
    share its computation and therefore, in training, also its dropout.

    Args:
        model: a `TorchGeneratorModel`, or that model in a data-parallel wrapper.
        inputs: what the model's encoder takes, for B contexts.
        ys: (R, T) int64 replies.
        example: (R,) int64, the context in [0, B) of each reply.

    Returns:
        (R, T, D), with gradient.
    """
    inner = getattr(model, "module", model)
    decode, several = inner.decode_forced, getattr(inner, "decode_several", None)
    if several is None:
        inner.decode_forced = lambda encoded, ys: decode(inner.reorder_encoder_states(encoded, example), ys)
    else:
        inner.decode_forced = lambda encoded, ys: several(encoded, ys, example)
    try:
        return decoder_states(model, *inputs, ys=ys)
    finally:
        del inner.decode_forced
