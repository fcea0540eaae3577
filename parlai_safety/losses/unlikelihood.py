"""The unlikelihood loss: raise the probability of each token to follow, lower that of each token to avoid.

Source: Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training", arXiv:1908.04319; Li et al. 2020,
"Don't Say That! Making Inconsistent Dialogue Unlikely with Unlikelihood Training", arXiv:1911.03860, whose sequences
labelled as a whole are the ones here. Left out: the token-level and sequence-level penalties on repetition, which need
no labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses, promoted
from parlai_safety.losses.whole import check_weight, checked_kinds, mean_where, spread


class UnlikelihoodOutput(NamedTuple):
    """The loss and its parts. Everything but `loss` has the shape (B, T)."""

    loss: Tensor
    """Scalar in nats per token, at least fp32, never negative."""
    likelihood_tokens: Tensor
    """-log p in nats, with gradient; 0 where the token is no counted token to follow."""
    unlikelihood_tokens: Tensor
    """-log(1 - p) in nats, before alpha, with gradient; 0 where the token is no counted token to avoid."""
    follow_mask: Tensor
    """Bool: the token is counted and positive or plain."""
    avoid_mask: Tensor
    """Bool: the token is counted and negative."""


def unlikelihood_rows(logits: Tensor, targets: Tensor, labels: Tensor) -> RowLosses:
    """What each of N tokens costs: -log p of a token to follow, -log(1 - p) of a token to avoid.

    Both follow from one log-sum-exp over the *other* ids, `o`: p = sigmoid(s[x] - o), so -log p = softplus(o - s[x])
    and -log(1 - p) = softplus(s[x] - o). Neither cancels, whatever p is.

    Args:
        logits: (N, V) raw scores, any floating type; V is at least 2.
        targets: (N,) int64.
        labels: (N,) values of `TokenLabel`.

    Returns:
        The rows; costs are in nats and at least fp32.
    """
    margins, correct = _Margins.apply(promoted(logits), targets[:, None])  # type: ignore[no-untyped-call]
    # Not softplus: torch cuts that off at 20, which a float64 comparison sees.
    loss = -F.logsigmoid(torch.where(labels == TokenLabel.NEGATIVE, -margins, margins))
    return RowLosses(loss, -F.logsigmoid(margins.detach()), correct)


class _Margins(torch.autograd.Function):
    """s[x] minus the log-sum-exp of the other scores, (N, V), (N, 1) -> (N,), and whether s[x] is the highest, (N,).

    By hand, as one pass over the vocabulary each way does what autograd does in four.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        others = scores.scatter(-1, targets, -torch.inf)
        best = others.amax(-1, keepdim=True)
        log_shares = F.log_softmax(others, dim=-1)
        # The best of the others has the log share best - o.
        total = best - log_shares.amax(-1, keepdim=True)
        chosen = scores.gather(-1, targets)
        ctx.save_for_backward(log_shares, targets)
        correct = (chosen >= best).squeeze(-1)
        ctx.mark_non_differentiable(correct)
        return (chosen - total).squeeze(-1), correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        log_shares, targets = ctx.saved_tensors
        pull = outer[0][:, None]
        return log_shares.exp().mul_(-pull).scatter_(-1, targets, pull), None


def unlikelihood_loss(
    logits: Tensor, targets: Tensor, labels: Tensor, mask: Tensor, *, alpha: float = 1.0
) -> UnlikelihoodOutput:
    r"""Cross-entropy on tokens to follow, unlikelihood on tokens to avoid, each part by its own token count.

    With `p` the softmax of the logits of one position, `x` a target to follow and `x-` one to avoid (Li et al. 2020)::

        loss = mean over follow of -log p[x]  +  alpha * mean over avoid of -log(1 - p[x-])

    The gradient of -log(1 - p) is +p on the target's logit and -p * q on any other, with q the softmax without the
    target: what is taken from the token goes to the others by their own shares.

    By hand, for a vocabulary of three ids. A token to follow with logits ln 4, ln 2, ln 2 and target 0 costs
    -ln(4 / 8) = ln 2 = 0.6931. A token to avoid with logits ln 6, ln 3, ln 1 and target 0 has p = 6 / 10 and costs
    -ln(4 / 10) = 0.9163. With alpha = 0.5 the loss is 0.6931 + 0.5 * 0.9163 = 1.1513:

    >>> logits = torch.tensor([[[4.0, 2.0, 2.0]], [[6.0, 3.0, 1.0]]]).log()
    >>> targets, mask = torch.tensor([[0], [0]]), torch.tensor([[True], [True]])
    >>> labels = torch.tensor([TokenLabel.POSITIVE, TokenLabel.NEGATIVE])
    >>> print(f"{unlikelihood_loss(logits, targets, labels, mask, alpha=0.5).loss:.4f}")
    1.1513

    Limits: alpha = 0 is maximum likelihood on the tokens to follow. The cost of a token to avoid goes to 0 with p and
    grows linearly in its logit as p goes to 1. Adding a constant to a position's logits changes nothing.

    Deviation: the released code clamps 1 - p at 1e-20 (1e-6 in half precision), beyond which the cost is constant and
    its gradient zero, just where the token is the surest. Nothing is clamped here. It also leaves the unlikelihood
    out when evaluating; here both parts are always there, and a caller picks.

    Args:
        logits: (B, T, V) raw scores, any floating type. Not checked for NaN. V is at least 2.
        targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        labels: (B,) or (B, T) values of `TokenLabel`; anything where the mask is False.
        mask: (B, T) bool, True where a target token counts, False on padding.
        alpha: weight of the unlikelihood part, finite and >= 0.

    Returns:
        The loss, its parts per token and the two masks.

    Raises:
        SafetyError: a shape, type or range is not as stated above.
    """
    kinds = checked_kinds(logits, targets, labels, mask)
    check_weight("alpha", alpha)
    rows = unlikelihood_rows(logits[mask], targets[mask], kinds.labels[mask])
    costs = spread(rows.loss, mask)
    return UnlikelihoodOutput(
        loss=mean_where(costs, kinds.follow) + alpha * mean_where(costs, kinds.avoid),
        likelihood_tokens=torch.where(kinds.follow, costs, 0.0),
        unlikelihood_tokens=torch.where(kinds.avoid, costs, 0.0),
        follow_mask=kinds.follow,
        avoid_mask=kinds.avoid,
    )
