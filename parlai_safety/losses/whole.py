"""A whole batch from its rows: what the losses over (B, T, V) logits share beside their formula."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import _check_counted_values, _check_tensors
from parlai_safety.losses.labels import TokenLabel


class Kinds(NamedTuple):
    """Which target tokens are of which kind; each mask has the shape (B, T) and leaves out what is not counted."""

    labels: Tensor
    """Values of `TokenLabel`, one for each token."""
    follow: Tensor
    """Bool: the token is positive or plain."""
    avoid: Tensor
    """Bool: the token is negative."""


def checked_kinds(logits: Tensor, targets: Tensor, labels: Tensor, mask: Tensor) -> Kinds:
    """Check the four tensors of a labelled batch and say which token is of which kind.

    Args:
        logits: (B, T, V) raw scores, V at least 2.
        targets: (B, T) int64, ids in [0, V) where the mask is True.
        labels: (B,) or (B, T) values of `TokenLabel`; anything where the mask is False.
        mask: (B, T) bool, True where a token counts.

    Raises:
        SafetyError: a shape, type or range is not as stated above.
    """
    _check_tensors(logits, targets, labels, mask)
    if logits.size(-1) < 2:
        raise SafetyError(
            f"logits have a vocabulary of {logits.size(-1)}",
            "A token can only be made less likely where there is another one to say",
            "Use a vocabulary of at least 2",
        )
    token_labels = labels if labels.dim() == 2 else labels[:, None].expand_as(targets)
    _check_counted_values(targets[mask], token_labels[mask], vocabulary_size=logits.size(-1))
    avoid = mask & (token_labels == TokenLabel.NEGATIVE)
    return Kinds(token_labels, mask & ~avoid, avoid)


def check_weight(name: str, value: float) -> None:
    """Refuse a weight that is negative or not finite.

    Raises:
        SafetyError: the weight is below 0, infinite or no number.
    """
    if not (math.isfinite(value) and value >= 0):
        raise SafetyError(
            f"{name} is {value}",
            "A weight below zero would turn the term's direction round, and the loss must stay finite",
            f"Choose a finite {name} of 0 or more",
        )


def spread(values: Tensor, where: Tensor) -> Tensor:
    """Put N values where a (B, T) mask is True, and 0 elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of a (B, T) tensor where the mask is True; 0, with a zero gradient, where it is nowhere True."""
    return torch.where(where, values, 0.0).sum() / where.sum().clamp(min=1)
