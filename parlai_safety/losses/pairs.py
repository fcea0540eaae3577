"""Chosen and rejected replies: what a loss over pairs knows of them once their tokens are summed.

A loss of this kind is a function of sums over the tokens of each reply, and of nothing else. So its gradient reaches a
token through one number a reply: the derivative of the loss with respect to that reply's sum. A caller may therefore
sum first, ask for the derivatives, and only then run the tokens with gradient, a chunk at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import cringe_loss
from parlai_safety.losses.labels import TokenLabel


class PairSums(NamedTuple):
    """Sums over the tokens of each reply: B examples, P pairs; an example is in no pair, in one or in several."""

    chosen_nll: Tensor
    """(B,) nats: -log p(chosen reply)."""
    chosen_tokens: Tensor
    """(B,) int64: counted tokens of the chosen reply."""
    rejected_nll: Tensor
    """(P,) nats: -log p(rejected reply)."""
    rejected_cost: Tensor
    """(P,) nats: the method's own cost of the rejected reply; zeros where it has none."""
    rejected_tokens: Tensor
    """(P,) int64: counted tokens of the rejected reply."""
    example: Tensor
    """(P,) int64 in [0, B): the example that the pair belongs to."""


def pair_margins(sums: PairSums, *, per_token: bool = False) -> Tensor:
    """How much more likely the chosen reply is than the rejected one, as log p(chosen) - log p(rejected).

    Args:
        sums: the sums of a batch.
        per_token: compare mean log-probabilities of a token and not those of whole replies, so that a long reply is
            not unlikely by its length alone. The papers compare whole replies.

    Returns:
        (P,) nats, or nats a token; above 0 where the model prefers the chosen reply.
    """
    chosen_nll, rejected_nll = sums.chosen_nll[sums.example], sums.rejected_nll
    if per_token:
        chosen_nll = chosen_nll / sums.chosen_tokens[sums.example].clamp(min=1)
        rejected_nll = rejected_nll / sums.rejected_tokens.clamp(min=1)
    return rejected_nll - chosen_nll


def in_no_pair(sums: PairSums) -> Tensor:
    """(B,) bool: the example has no rejected reply and is ordinary talk."""
    return torch.ones_like(sums.chosen_tokens, dtype=torch.bool).index_fill(0, sums.example, False)


def token_nll(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """-log p of each counted token, with gradient; the arguments are checked as those of `cringe_loss` are.

    Args:
        logits: (B, T, V) raw scores, any floating type.
        targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        mask: (B, T) bool, True where a target token counts.

    Returns:
        (B, T) nats, at least fp32; 0 where the mask is False.
    """
    return cringe_loss(logits, targets, torch.full_like(targets, TokenLabel.POSITIVE), mask, generator=None).ce_tokens


def check_pairs(chosen_targets: Tensor, rejected_targets: Tensor, example: Tensor | None) -> Tensor:
    """The example of each pair, checked.

    Args:
        chosen_targets: (B, T).
        rejected_targets: (P, T').
        example: (P,) int64, or None where pair i is that of example i.

    Returns:
        (P,) int64.

    Raises:
        SafetyError: pairs and examples do not fit together.
    """
    examples, pairs = len(chosen_targets), len(rejected_targets)
    if example is None:
        if examples != pairs:
            raise SafetyError(
                f"there are {examples} chosen and {pairs} rejected replies",
                "Without `example` the first rejected reply belongs to the first chosen one, and so on",
                "Pass as many of each, or `example` with the chosen reply's place for each rejected one",
            )
        return torch.arange(examples, device=chosen_targets.device)
    inside = example.shape == (pairs,) and example.dtype == torch.int64
    if not inside or ((example < 0) | (example >= examples)).any():
        raise SafetyError(
            f"example is {example.tolist()} of type {example.dtype}",
            f"It must say for each of the {pairs} rejected replies which of the {examples} chosen ones it belongs to",
            f"Pass an int64 tensor of shape ({pairs},) with values from 0 to {examples - 1}",
        )
    return example
