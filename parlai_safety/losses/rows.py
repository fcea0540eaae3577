"""Losses one target token at a time: what lets a method run on a chunk of tokens as well as on a whole batch.

A method is two functions. Its *row losses* look at the scores of N tokens and say what each token costs; its *token
weights* say what each cost counts for, its share of the batch's denominator included. The loss of a batch is the
weighted sum. As the weights depend on labels and padding alone, they are known before any score is computed, and a
chunk's gradient can be taken at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from parlai_safety.losses.labels import TokenLabel


class RowLosses(NamedTuple):
    """What each of N target tokens costs."""

    loss: Tensor
    """(N,) nats, at least fp32, with gradient: the method's own cost of the token, before its weight."""
    nll: Tensor
    """(N,) nats, no gradient: -log p(token) under the model, for metrics."""
    correct: Tensor
    """(N,) bool: the token has the highest score."""


def promoted(scores: Tensor) -> Tensor:
    """Half precision to fp32; fp32 and float64 as they are."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def shared_weights(labels: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Weights with one denominator for both kinds of token: 1 / n for tokens to follow, alpha / n for tokens to avoid.

    Args:
        labels: (B, T) values of `TokenLabel`.
        mask: (B, T) bool, True where a token counts.
        alpha: weight of the tokens to avoid.

    Returns:
        (B, T) fp32, 0 where the mask is False; all 0 where no token counts.
    """
    kind = torch.where(labels == TokenLabel.NEGATIVE, alpha, 1.0)
    return (kind * mask / mask.sum().clamp(min=1)).float()


def separate_weights(labels: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Weights with a denominator for each kind: 1 / n_follow for tokens to follow, alpha / n_avoid for tokens to avoid.

    Args and result are those of `shared_weights`.
    """
    avoid = mask & (labels == TokenLabel.NEGATIVE)
    follow = mask & ~avoid
    return (follow / follow.sum().clamp(min=1) + alpha * avoid / avoid.sum().clamp(min=1)).float()
