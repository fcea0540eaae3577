"""Click: maximum likelihood, and a margin between the likelihoods of a chosen and a rejected reply.

Source: Zheng, Ke, Zhang, Huang 2023, "Click: Controllable Text Generation with Sequence Likelihood Contrastive
Learning", Findings of ACL 2023; the form and the constants are those of the released code. Left out: the making of the
pairs, which are a model's own replies sorted by a judge.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.pairs import PairSums, check_pairs, in_no_pair, pair_margins, token_nll
from parlai_safety.losses.whole import check_weight


class ClickOutput(NamedTuple):
    """The loss of a batch, its two parts, and what each of its P pairs did."""

    loss: Tensor
    """Scalar in nats, at least fp32, never negative."""
    nll: Tensor
    """Scalar, no gradient: nats per counted token of the likelihood part."""
    margins: Tensor
    """(P,) nats, no gradient: log p(chosen) - log p(rejected)."""
    hinges: Tensor
    """(P,) nats, no gradient: what the pair lacks to the margin, before the weight; 0 where it is met."""


def click_loss(
    chosen_logits: Tensor,
    chosen_targets: Tensor,
    chosen_mask: Tensor,
    rejected_logits: Tensor,
    rejected_targets: Tensor,
    rejected_mask: Tensor,
    *,
    example: Tensor | None = None,
    margin: float = 20.0,
    weight: float = 0.5,
    chosen_nll: bool = True,
) -> ClickOutput:
    r"""Mean negative log-likelihood of a token, plus a hinge on the log-probabilities of whole replies.

    For a context `x` with the chosen reply `y+` and the rejected reply `y-` (released code of Click)::

        loss = mean over counted tokens of -log p(token)
             + weight * mean over pairs of max( 0, margin - (log p(y+ | x) - log p(y- | x)) )

    Log-probabilities of replies are sums over their tokens. An example without a rejected reply is ordinary talk and
    is in the first mean alone; an example with several is in the second mean once for each.

    In the released code the first mean is over the replies of a corpus, and the chosen replies, which are the model's
    own, are in the second alone. `chosen_nll=False` is that; by default they are in both.

    By hand, for one pair over a vocabulary of three ids, one token each, margin 1 and weight 0.5. The chosen token
    with probabilities 1/2, 1/4, 1/4 and target 0 costs ln 2 = 0.6931. The rejected one with 3/5, 3/10, 1/10 and target
    0 has -log p = 0.5108. The hinge is 1 + 0.6931 - 0.5108 = 1.1823, and the loss 0.6931 + 0.5 * 1.1823 = 1.2843:

    >>> chosen, rejected = torch.tensor([[[4.0, 2.0, 2.0]]]).log(), torch.tensor([[[6.0, 3.0, 1.0]]]).log()
    >>> target, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> output = click_loss(chosen, target, mask, rejected, target, mask, margin=1.0)
    >>> print(f"{output.loss:.4f} {output.nll:.4f} {output.hinges.item():.4f}")
    1.2843 0.6931 1.1823

    Limits: weight = 0 is maximum likelihood. A pair whose margin is met has no gradient through the hinge; one that is
    not has a gradient of the same size however far it is, weight / P on each token's log-probability.

    Args:
        chosen_logits: (B, T, V) raw scores, any floating type.
        chosen_targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        chosen_mask: (B, T) bool, True where a target token counts.
        rejected_logits: (P, T', V) as `chosen_logits`, after the context of the pair's example.
        rejected_targets: (P, T') int64.
        rejected_mask: (P, T') bool.
        example: (P,) int64, the example in [0, B) of each pair; left out, pair i is that of example i.
        margin: nats by which the chosen reply shall be the likelier one, finite and >= 0.
        weight: weight of the hinge, finite and >= 0.
        chosen_nll: count the chosen replies of pairs in the first mean.

    Returns:
        The loss, its parts, and margins and hinges of the pairs.

    Raises:
        SafetyError: a shape or range is not as stated above.
    """
    example = check_pairs(chosen_targets, rejected_targets, example)
    rejected_nll = token_nll(rejected_logits, rejected_targets, rejected_mask).sum(-1)
    sums = PairSums(
        chosen_nll=token_nll(chosen_logits, chosen_targets, chosen_mask).sum(-1),
        chosen_tokens=chosen_mask.sum(-1),
        rejected_nll=rejected_nll,
        rejected_cost=torch.zeros_like(rejected_nll),
        rejected_tokens=rejected_mask.sum(-1),
        example=example,
    )
    return click_terms(sums, margin=margin, weight=weight, chosen_nll=chosen_nll)


def click_terms(sums: PairSums, *, margin: float, weight: float, chosen_nll: bool) -> ClickOutput:
    """The loss of `click_loss` from the sums of the replies, where its arguments are explained.

    Args:
        sums: of a batch; `rejected_cost` is not read.
        margin: nats by which the chosen reply shall be the likelier one.
        weight: weight of the hinge.
        chosen_nll: count the chosen replies of pairs in the mean over tokens.

    Returns:
        The loss, with gradient to the sums, and its parts.

    Raises:
        SafetyError: margin or weight is out of its range.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise SafetyError(
            f"margin is {margin}",
            "It is how many nats likelier the chosen reply shall be; below zero the rejected one would be preferred",
            "Choose a finite margin of 0 or more; 20 is the default",
        )
    check_weight("weight", weight)
    counted = torch.ones_like(sums.chosen_tokens, dtype=torch.bool) if chosen_nll else in_no_pair(sums)
    nll = sums.chosen_nll[counted].sum() / sums.chosen_tokens[counted].sum().clamp(min=1)
    margins = pair_margins(sums)
    hinges = torch.relu(margin - margins)
    loss = nll + weight * hinges.sum() / max(1, len(hinges))
    return ClickOutput(loss, nll.detach(), margins.detach(), hinges.detach())
