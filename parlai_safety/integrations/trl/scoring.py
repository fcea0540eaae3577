"""What a causal language model says of the tokens of completions, within one call of its forward.

A wrapper that shards weights (FSDP, DeepSpeed ZeRO) has them whole while the wrapped module's own forward runs, and
only then. So the tokens are scored inside of it: for one call the model's `forward` stands aside for a function that
runs the decoder, picks the completion's states and hands them to the output layer; for that one call the layer's
`forward` stands aside too, for one that works a chunk of tokens at a time. The scores of all tokens never exist
together: a chunk is computed again in backward. The output layer is entered once, however many chunks there are, so
that processes with different numbers of tokens stay in step.

Left out: adapters that add virtual tokens to the prompt, and the load-balancing loss of mixture-of-experts models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Kernel = Callable[..., tuple[Tensor, ...]]
"""(scores (n, V), targets (n,), *columns (n,)) -> tensors (n,) each. It looks at each row alone."""

CHUNK_SCORES = 2**24
"""Scores that a chunk may hold where the number of its tokens is not given: 64 MiB in fp32."""


def even_chunks(tokens: int, chunk: int) -> int:
    """The size that makes as many chunks as `chunk` does, of nearly equal sizes."""
    pieces = max(1, -(-tokens // chunk))
    return max(1, -(-tokens // pieces))


def base_of(inner: Any) -> Any:
    """The causal language model itself, under adapters if it has any."""
    return inner.get_base_model() if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model") else inner


def completion_rows(
    model: nn.Module,
    inner: Any,
    batch: dict[str, Tensor],
    kernel: Kernel,
    columns: Sequence[Tensor] = (),
    *,
    chunk: int | None = None,
    full_logits: bool = False,
) -> tuple[Tensor, ...]:
    """Run a model once and ask a kernel about each of the N tokens of the batch's completions.

    Args:
        model: what is called: the causal language model, or a wrapper around it.
        inner: the causal language model, with its adapters if it has any; `model` itself where nothing wraps it.
        batch: `input_ids`, `attention_mask`, `completion_mask` (R, T), as `rows.padded` makes them.
        kernel: what to ask.
        columns: (N,) each, what the kernel wants to know of a token beside its id.
        chunk: tokens a chunk; left out, as many as `CHUNK_SCORES` allows.
        full_logits: take the scores from the model's own forward, all at once: for models that do more to their scores
            than the output layer does.

    Returns:
        What the kernel says, (N,) each, in the order of the rows and of the tokens in them.
    """
    mask = batch["completion_mask"][:, 1:]
    table = (batch["input_ids"][:, 1:][mask], *columns)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if full_logits:
        return kernel(model(**inputs, use_cache=False).logits[:, :-1][mask], *table)
    base = base_of(inner)

    def forward(**given: Tensor) -> tuple[Tensor, ...]:
        states = base.base_model(**given, use_cache=False).last_hidden_state
        return _through_head(base.get_output_embeddings(), states[:, :-1][mask], kernel, table, chunk)

    with _forward_replaced(inner, forward):
        found: tuple[Tensor, ...] = model(**inputs)
    return found


def _through_head(
    head: Any, states: Tensor, kernel: Kernel, table: Sequence[Tensor], chunk: int | None
) -> tuple[Tensor, ...]:
    scores_of = head.forward

    def part(states: Tensor, *table: Tensor) -> tuple[Tensor, ...]:
        return kernel(scores_of(states), *table)

    def in_chunks(states: Tensor) -> tuple[Tensor, ...]:
        size = even_chunks(len(states), chunk or max(1, CHUNK_SCORES // head.weight.size(0)))
        pieces = list(zip(*(torch.split(column, size) for column in (states, *table)), strict=True))
        if len(pieces) == 1 or not torch.is_grad_enabled():
            parts = [part(*piece) for piece in pieces]
        else:
            parts = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    with _forward_replaced(head, in_chunks):
        found: tuple[Tensor, ...] = head(states)
    return found


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module's forward be another function, hooks and wrappers around it as they are."""
    own = vars(module).get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]
