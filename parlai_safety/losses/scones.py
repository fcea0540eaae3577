"""The sigmoid-only loss (SCONES): each id of the vocabulary is a yes-or-no question of its own.

Source: the baseline "Sigmoid-only" of Adolphs et al. 2022, arXiv:2211.05826, after Stahlberg and Kumar 2022, "Jam or
Cream First? Modeling Ambiguity in Neural Machine Translation with SCONES", arXiv:2205.00704. The three terms are the
paper's. It does not say which of them a token enters, by what they are counted, or how the model decodes; our readings
are in `scones_loss`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses, promoted
from parlai_safety.losses.whole import check_weight, checked_kinds, mean_where, spread


class SconesOutput(NamedTuple):
    """The loss and its parts. Everything but `loss` has the shape (B, T)."""

    loss: Tensor
    """Scalar in nats per token, at least fp32, never negative."""
    target_tokens: Tensor
    """L+ in nats, with gradient; 0 where the token is no counted token to follow."""
    other_tokens: Tensor
    """L+- in nats, before alpha_pm, summed over the other ids, with gradient; 0 where L+ is."""
    avoid_tokens: Tensor
    """L- in nats, before alpha_minus, with gradient; 0 where the token is no counted token to avoid."""
    follow_mask: Tensor
    """Bool: the token is counted and positive or plain."""
    avoid_mask: Tensor
    """Bool: the token is counted and negative."""


def _other_costs(scores: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log(1 - sigmoid(s)) over all ids but the target: (N, V), (N,) -> (N,)."""
    # The threshold, above which softplus(s) is s: e^-40 is less than float64 can add to 40.
    return F.softplus(scores, threshold=40.0).scatter(-1, targets[:, None], 0.0).sum(-1)


def scones_rows(logits: Tensor, targets: Tensor, labels: Tensor, *, alpha_pm: float = 1.0) -> RowLosses:
    """What each of N tokens costs: L+ + alpha_pm * L+- of a token to follow, L- of a token to avoid.

    Args:
        logits: (N, V) raw scores, any floating type; V is at least 2.
        targets: (N,) int64.
        labels: (N,) values of `TokenLabel`.
        alpha_pm: weight of the other ids at a token to follow.

    Returns:
        The rows; costs are in nats and at least fp32. `nll` is that of the softmax, see `scones_loss` on decoding.
    """
    scores = promoted(logits)
    avoid = labels == TokenLabel.NEGATIVE
    target_scores = scores.gather(-1, targets[:, None]).squeeze(-1)
    loss = -F.logsigmoid(torch.where(avoid, -target_scores, target_scores))
    if alpha_pm:
        loss = loss + alpha_pm * spread(_other_costs(scores[~avoid], targets[~avoid]), ~avoid)
    known = scores.detach()
    nll = F.cross_entropy(known, targets, reduction="none")
    return RowLosses(loss, nll, target_scores.detach() >= known.amax(-1))


def scones_loss(
    logits: Tensor, targets: Tensor, labels: Tensor, mask: Tensor, *, alpha_pm: float = 1.0, alpha_minus: float = 1.0
) -> SconesOutput:
    r"""The three sigmoid terms: say the target, say no other, do not say what is to be avoided.

    With `s` the raw logits of one position, `x` a target to follow and `x-` one to avoid (arXiv:2211.05826)::

        L+  = -log sigmoid(s[x])
        L+- = -sum over ids other than x and x- of log(1 - sigmoid(s[id]))
        L-  = -log(1 - sigmoid(s[x-]))
        loss = mean over follow of (L+ + alpha_pm * L+-)  +  alpha_minus * mean over avoid of L-

    What the paper leaves open, as far as we could read it, and what is chosen here. A labelled sequence has only one
    of `x` and `x-` at a position: a token to follow has L+ and, over all ids but `x`, L+-; a token to avoid has L-
    alone, as nothing is known there of any other id. L+- is a sum over the vocabulary, not a mean. Each kind of token
    is averaged over its own count, so that alpha_minus does not change meaning with the share of negatives. The
    weights of the experiments are not known: both default to 1.

    Decoding: the logits are used as they are, through a softmax, so that any decoder of a plain generator serves and
    perplexities compare with other methods'. The best token is the same as with sigmoids; a sampled one is not quite,
    as sigmoids near 1 differ less than the softmax says.

    By hand, with sigmoid(ln 3) = 3/4 and sigmoid(0) = 1/2. A token to follow with logits ln 3, 0, 0 and target 0 has
    L+ = -ln(3/4) = 0.2877 and L+- = -2 ln(1/2) = 1.3863. A token to avoid with logit ln 3 has L- = -ln(1/4) = 1.3863.
    With alpha_pm = 0.5 and alpha_minus = 2 the loss is 0.2877 + 0.5 * 1.3863 + 2 * 1.3863 = 3.7534:

    >>> logits = torch.tensor([[[3.0, 1.0, 1.0]], [[3.0, 1.0, 1.0]]]).log()
    >>> targets, mask = torch.tensor([[0], [0]]), torch.tensor([[True], [True]])
    >>> labels = torch.tensor([TokenLabel.POSITIVE, TokenLabel.NEGATIVE])
    >>> print(f"{scones_loss(logits, targets, labels, mask, alpha_pm=0.5, alpha_minus=2).loss:.4f}")
    3.7534

    Limits: unlike a softmax loss it changes when a constant is added to the logits. alpha_pm = 0 with no negatives
    lets all logits rise without end.

    Args:
        logits: (B, T, V) raw scores, any floating type. Not checked for NaN. V is at least 2.
        targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        labels: (B,) or (B, T) values of `TokenLabel`; anything where the mask is False.
        mask: (B, T) bool, True where a target token counts, False on padding.
        alpha_pm: weight of the other ids at a token to follow, finite and >= 0.
        alpha_minus: weight of the tokens to avoid, finite and >= 0.

    Returns:
        The loss, its three terms per token and the two masks.

    Raises:
        SafetyError: a shape, type or range is not as stated above.
    """
    kinds = checked_kinds(logits, targets, labels, mask)
    check_weight("alpha_pm", alpha_pm)
    check_weight("alpha_minus", alpha_minus)
    costs = spread(scones_rows(logits[mask], targets[mask], kinds.labels[mask], alpha_pm=0.0).loss, mask)
    others = spread(_other_costs(promoted(logits[kinds.follow]), targets[kinds.follow]), kinds.follow)
    follow_loss = mean_where(costs + alpha_pm * others, kinds.follow)
    return SconesOutput(
        loss=follow_loss + alpha_minus * mean_where(costs, kinds.avoid),
        target_tokens=torch.where(kinds.follow, costs, 0.0),
        other_tokens=others,
        avoid_tokens=torch.where(kinds.avoid, costs, 0.0),
        follow_mask=kinds.follow,
        avoid_mask=kinds.avoid,
    )
