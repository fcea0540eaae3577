"""Pairwise CRINGE: CRINGE on a chosen and a rejected reply, gated by how far apart the model already holds them.

Source: Xu, Lee, Sukhbaatar, Weston 2023, "Some things are more CRINGE than others", arXiv:2312.16682. The paper's
text was not at hand: the equation below is a reconstruction from memory, whose structure (binary CRINGE behind a soft
margin of whole replies, through a sigmoid) a review of the paper confirms. Left out: the iterations (PCO), which are a
loop around training.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import cringe_loss
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.pairs import PairSums, check_pairs, in_no_pair, pair_margins, token_nll


class PairwiseTerms(NamedTuple):
    """The loss of a batch and what each of its P pairs did."""

    loss: Tensor
    """Scalar in nats per counted token, at least fp32, never negative."""
    margins: Tensor
    """(P,) log p(chosen) - log p(rejected), no gradient."""
    gates: Tensor
    """(P,) in [0, 1]: the share of its CRINGE loss that a pair pays, no gradient."""


class PairwiseOutput(NamedTuple):
    """The loss of a batch, its pairs and its tokens."""

    loss: Tensor
    """Scalar in nats per counted token, at least fp32, never negative."""
    margins: Tensor
    """(P,) log p(chosen) - log p(rejected), no gradient."""
    gates: Tensor
    """(P,) in [0, 1]: the share of its CRINGE loss that a pair pays, no gradient."""
    chosen_tokens: Tensor
    """(B, T) cross-entropy in nats, before the gate, with gradient; 0 where the mask is False."""
    rejected_tokens: Tensor
    """(P, T') contrastive loss in nats, before alpha and the gate, with gradient; 0 where the mask is False."""
    sampled_positive: Tensor
    """(P, T') int64: the id that was preferred to the rejected token; -1 where the mask is False."""


def pairwise_cringe_loss(
    chosen_logits: Tensor,
    chosen_targets: Tensor,
    chosen_mask: Tensor,
    rejected_logits: Tensor,
    rejected_targets: Tensor,
    rejected_mask: Tensor,
    *,
    example: Tensor | None = None,
    margin: float = 0.0,
    temperature: float = 10.0,
    alpha: float = 1.0,
    k: int = 1,
    stop_gradient: bool = True,
    per_token: bool = False,
    generator: torch.Generator | None,
) -> PairwiseOutput:
    r"""CRINGE on pairs, each weighed by a sigmoid that closes as the chosen reply becomes the likelier one.

    For a context `x` with the chosen reply `y+` and the rejected reply `y-` (reconstruction of arXiv:2312.16682)::

        M    = log p(y+ | x) - log p(y- | x)                 sums over the tokens of the replies
        g    = sigmoid( (b - M) / tau )
        loss = sum over pairs of g * ( sum of L_CE over y+  +  alpha * sum of L_Cr over y- )  /  counted tokens

    with `L_CE` and `L_Cr` as in `parlai_safety.losses.cringe`, b the `margin` and tau the `temperature`. Chosen and
    rejected tokens share one denominator, as in CRINGE. An example without a rejected reply is ordinary talk: plain
    cross-entropy, with no gate. An example with several counts as that many pairs, its chosen tokens in each.

    By hand, for one pair over a vocabulary of three ids, one token each, b = 0, tau = 1, alpha = 0.5. The chosen token
    with logits ln 4, ln 2, ln 2 and target 0 costs ln 2 = 0.6931, which is its -log p too. The rejected token with
    logits ln 6, ln 3, ln 1 and target 0 meets id 1 and costs ln 3 = 1.0986, and its log p is ln(6 / 10) = -0.5108. So
    M = -0.6931 + 0.5108 = ln(5 / 6), g = 1 / (1 + 5 / 6) = 6 / 11, and
    loss = 6 / 11 * (0.6931 + 0.5 * 1.0986) / 2 = 0.3389:

    >>> chosen, rejected = torch.tensor([[[4.0, 2.0, 2.0]]]).log(), torch.tensor([[[6.0, 3.0, 1.0]]]).log()
    >>> target, mask = torch.tensor([[0]]), torch.tensor([[True]])
    >>> output = pairwise_cringe_loss(
    ...     chosen, target, mask, rejected, target, mask, temperature=1.0, alpha=0.5, generator=None
    ... )
    >>> print(f"{output.loss:.4f} {output.margins.item():.4f} {output.gates.item():.4f}")
    0.3389 -0.1823 0.5455

    Limits: b = inf opens every gate and leaves CRINGE on the two replies; tau = 0 is the hard margin, where a pair
    counts in full while M < b, by half at M = b, and not at all beyond. Growing tau makes all gates 1/2.

    Open in our source: whether the gradient passes the gate. With `stop_gradient` (the default here) a pair's gradient
    is g times that of CRINGE, and so never pushes the chosen reply down. Without it the gate's own slope is added: it
    lowers g by widening M, that is, it too raises the chosen and lowers the rejected reply, the more the larger the
    pair's CRINGE loss is.

    Args:
        chosen_logits: (B, T, V) raw scores, any floating type.
        chosen_targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        chosen_mask: (B, T) bool, True where a target token counts.
        rejected_logits: (P, T', V) as `chosen_logits`, after the context of the pair's example.
        rejected_targets: (P, T') int64.
        rejected_mask: (P, T') bool.
        example: (P,) int64, the example in [0, B) of each pair; left out, pair i is that of example i.
        margin: b, in the unit of M, above -inf; inf opens every gate.
        temperature: tau, in the unit of M, finite and >= 0.
        alpha: weight of the contrastive part, finite and >= 0.
        k: number of candidates for the positive token, in [1, V - 1].
        stop_gradient: treat the gate as a number.
        per_token: M is the difference of mean log-probabilities of a token; the paper's is of whole replies.
        generator: source of the draws, on the device of the logits. May be None where k is 1, which draws nothing.

    Returns:
        The loss, margins and gates of the pairs, the parts per token and the ids that were drawn.

    Raises:
        SafetyError: a shape, type or range is not as stated above.
    """
    example = check_pairs(chosen_targets, rejected_targets, example)
    chosen_nll = token_nll(chosen_logits, chosen_targets, chosen_mask)
    negative = torch.full_like(rejected_targets, TokenLabel.NEGATIVE)
    rejected = cringe_loss(
        rejected_logits, rejected_targets, negative, rejected_mask, k=k, alpha=alpha, generator=generator
    )
    sums = PairSums(
        chosen_nll=chosen_nll.sum(-1),
        chosen_tokens=chosen_mask.sum(-1),
        rejected_nll=token_nll(rejected_logits, rejected_targets, rejected_mask).sum(-1),
        rejected_cost=rejected.contrastive_tokens.sum(-1),
        rejected_tokens=rejected_mask.sum(-1),
        example=example,
    )
    terms = pairwise_terms(
        sums, margin=margin, temperature=temperature, alpha=alpha, stop_gradient=stop_gradient, per_token=per_token
    )
    return PairwiseOutput(*terms, chosen_nll, rejected.contrastive_tokens, rejected.sampled_positive)


def pairwise_terms(
    sums: PairSums, *, margin: float, temperature: float, alpha: float, stop_gradient: bool, per_token: bool
) -> PairwiseTerms:
    """The loss of `pairwise_cringe_loss` from the sums of the replies, where its arguments are explained.

    Args:
        sums: with the contrastive loss of CRINGE, before alpha, as `rejected_cost`.
        margin: b.
        temperature: tau.
        alpha: weight of the contrastive part.
        stop_gradient: treat the gate as a number.
        per_token: M is the difference of mean log-probabilities of a token.

    Returns:
        The loss, with gradient to the sums, and the pairs' margins and gates.

    Raises:
        SafetyError: margin or temperature is out of its range.
    """
    _check_gate(margin, temperature)
    margins = pair_margins(sums, per_token=per_token)
    gates = _gates(margins.detach() if stop_gradient else margins, margin, temperature)
    binary = sums.chosen_nll[sums.example] + alpha * sums.rejected_cost
    plain = in_no_pair(sums)
    counted = (sums.chosen_tokens[sums.example] + sums.rejected_tokens).sum() + sums.chosen_tokens[plain].sum()
    loss = ((gates * binary).sum() + sums.chosen_nll[plain].sum()) / counted.clamp(min=1)
    return PairwiseTerms(loss, margins.detach(), gates.detach())


def _gates(margins: Tensor, margin: float, temperature: float) -> Tensor:
    if temperature == 0:
        return torch.heaviside(margin - margins.detach(), margins.new_tensor(0.5))
    return torch.sigmoid((margin - margins) / temperature)


def _check_gate(margin: float, temperature: float) -> None:
    if math.isnan(margin) or margin == -math.inf:
        raise SafetyError(
            f"margin is {margin}",
            "A pair is worked on until log p(chosen) exceeds log p(rejected) by it, so below every number nothing is",
            "Choose a number, or math.inf for CRINGE without a gate; 0 is the default",
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise SafetyError(
            f"temperature is {temperature}",
            "It is the width of the soft margin: below zero the gate would open as the pair is learned",
            "Choose a finite temperature of 0 or more; 0 is the hard margin and 10 the default",
        )
