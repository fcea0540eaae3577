"""ParlAI's multi-head attention through torch's `scaled_dot_product_attention`: one set of parameters.

The numbers are the same but for rounding: ParlAI takes its softmax in fp32, in float64 models too, and this does not.

ParlAI's own computes and keeps the scores of all pairs of tokens, a copy of the mask for each head and the softmax. The
fused form keeps none of them where torch has a kernel for it, so that long contexts gain most. Left out: the third
result of ParlAI's forward, the scores before softmax, which its transformers do not use; and steps of incremental
decoding, which stay ParlAI's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch.nn.functional as F
from parlai.agents.transformer.modules import MultiHeadAttention
from torch import Tensor, nn


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[int]:
    """Let every attention of a model that is exactly ParlAI's `MultiHeadAttention` take the fused form for a while.

    The modules keep their class, their parameters and, afterwards, their forward: checkpoints interchange, and code
    that asks whether a module is ParlAI's own finds that it is. An attention with a forward of its own is left alone.

    Args:
        model: any module.

    Yields:
        The number of attentions that take the fused form.
    """
    found = [m for m in model.modules() if type(m) is MultiHeadAttention and "forward" not in vars(m)]
    for module in found:
        module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
    try:
        yield len(found)
    finally:
        for module in found:
            del module.forward


def _forward(
    self: Any,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    mask: Tensor | None = None,
    incr_state: dict[str, Tensor] | None = None,
    static_kv: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """What ParlAI's forward takes and gives, but for the scores; see the module's docstring."""
    if incr_state or mask is None:
        whole: tuple[Tensor, dict[str, Tensor], Tensor | None] = MultiHeadAttention.forward(
            self, query, key, value, mask, incr_state, static_kv, **kwargs
        )
        return whole
    key = query if key is None else key
    value = key if value is None else value

    def heads(states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.n_heads, -1).transpose(1, 2)

    q, k, v = heads(self.q_lin(query)), heads(self.k_lin(key)), heads(self.v_lin(value))
    rows = mask[:, None] if mask.dim() == 2 else mask
    allowed = (rows[:1] if rows.stride(0) == 0 else rows)[:, None] != 0
    some = allowed.any(-1, keepdim=True)
    dropout = self.attn_dropout.p if self.attn_dropout.training else 0.0
    # Where all is blocked, ParlAI attends to all evenly, which a query of zeros does too. A term as low as ParlAI's
    # would give that as well in forward, but torch's backward then takes each weight for 1.
    mixed = F.scaled_dot_product_attention(q * some, k, v, attn_mask=allowed | ~some, dropout_p=dropout)
    out = self.out_lin(mixed.transpose(1, 2).flatten(2))
    return out, {"prev_key": k, "prev_value": v, "prev_mask": mask}, None
