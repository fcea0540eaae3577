"""The CRINGE loss: follow positive examples, and prefer the model's own next choice to each token of a negative one.

Source: Adolphs et al. 2022, "The CRINGE Loss: Learning what language not to model", arXiv:2211.05826, Algorithm 1.
Left out: the iterations of Algorithm 2, which belong to a training driver; the pairwise gate of arXiv:2312.16682; and
two switches of the released code, a contrastive term on positive examples and cross-entropy on plain examples alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses, promoted


class CringeOutput(NamedTuple):
    """The loss and its parts. Everything but `loss` has the shape (B, T)."""

    loss: Tensor
    """Scalar in nats per counted token, at least fp32, never negative."""
    ce_tokens: Tensor
    """Cross-entropy in nats, with gradient; 0 where the token is no counted positive."""
    contrastive_tokens: Tensor
    """Contrastive loss in nats, before alpha, with gradient; 0 where the token is no counted negative."""
    positive_mask: Tensor
    """Bool: the token is counted and positive or plain."""
    negative_mask: Tensor
    """Bool: the token is counted and negative."""
    sampled_positive: Tensor
    """Int64: the id that was preferred to the negative token; -1 where the token is no counted negative."""


def cringe_loss(
    logits: Tensor,
    targets: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    k: int = 1,
    alpha: float = 1.0,
    detach_positive: bool = False,
    generator: torch.Generator | None,
) -> CringeOutput:
    r"""Cross-entropy on positive tokens, a two-way contrast on negative tokens.

    With `s` the raw logits of one position, `x` a positive target and `x-` a negative one (arXiv:2211.05826)::

        L_CE = -log( exp(s[x]) / sum over v of exp(s[v]) )
        L_Cr = -log( exp(s+) / (exp(s+) + exp(s[x-])) )                                     Algorithm 1
        loss = ( sum of L_CE over positive tokens + alpha * sum of L_Cr over negative tokens ) / counted tokens

    where `s+` is the logit of one id, drawn with softmax(s) from the `k` highest logits of the ids other than `x-`.
    The gradient of L_Cr reaches two logits only: +sigmoid(s[x-] - s+) on the negative token, the opposite on `s+`.

    By hand, for a vocabulary of three ids. A positive token with logits ln 4, ln 2, ln 2 and target 0 costs
    -ln(4 / 8) = ln 2 = 0.6931. A negative token with logits ln 6, ln 3, ln 1 and target 0 meets id 1, the best of the
    others, and costs ln(1 + 6 / 3) = ln 3 = 1.0986. With alpha = 0.5 the loss is (0.6931 + 0.5 * 1.0986) / 2 = 0.6212:

    >>> logits = torch.tensor([[[4.0, 2.0, 2.0]], [[6.0, 3.0, 1.0]]]).log()
    >>> targets, mask = torch.tensor([[0], [0]]), torch.tensor([[True], [True]])
    >>> labels = torch.tensor([TokenLabel.POSITIVE, TokenLabel.NEGATIVE])
    >>> output = cringe_loss(logits, targets, labels, mask, alpha=0.5, generator=None)
    >>> print(f"{output.loss:.4f}", output.sampled_positive.tolist())
    0.6212 [[-1], [1]]

    Limits: alpha = 0 is maximum likelihood on the positive tokens, scaled by their share of the counted tokens;
    k = V - 1 draws from the whole model without the negative id. L_Cr is ln 2 where the two logits are equal, goes to
    0 as the negative one falls, and grows linearly as it rises. Adding a constant to a position's logits changes
    nothing. As the parts share one denominator, the ratio of negative to positive tokens acts like a change of alpha.

    Deviation: the released implementation removes the negative id from the top-k by subtracting 1e10 from its logit,
    which half precision cannot hold. Here the id itself is dropped, and logits of less than fp32 are promoted before
    any arithmetic. The released one divides by the number of counted tokens even if that is 0; here the loss of such
    a batch is 0 and its gradient is zero. On every other batch the two agree.

    Args:
        logits: (B, T, V) raw scores, any floating type. Not checked for NaN. V is at least 2.
        targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        labels: (B,) or (B, T) values of `TokenLabel`; anything where the mask is False.
        mask: (B, T) bool, True where a target token counts, False on padding.
        k: number of candidates for the positive, in [1, V - 1].
        alpha: weight of the contrastive part, finite and >= 0.
        detach_positive: stop the gradient through `s+`, so that the negative token is pushed down and nothing up.
        generator: source of the draws, on the device of the logits. May be None where k is 1, which draws nothing.

    Returns:
        The loss, its parts per token, the two masks and the ids that were drawn.

    Raises:
        SafetyError: a shape, type or range is not as stated above.
    """
    _check_tensors(logits, targets, labels, mask)
    _check_settings(logits, k, alpha, generator)
    token_labels = labels if labels.dim() == 2 else labels[:, None].expand_as(targets)
    _check_counted_values(targets[mask], token_labels[mask], vocabulary_size=logits.size(-1))
    negative_mask = mask & (token_labels == TokenLabel.NEGATIVE)
    counted_labels = token_labels[mask]
    draws = uniform_draws(counted_labels, k=k, generator=generator)
    tokens = _cringe_tokens(
        logits[mask], targets[mask], counted_labels, k=k, detach_positive=detach_positive, draws=draws
    )
    no_tokens = tokens.loss.new_zeros(targets.shape)
    costs = no_tokens.masked_scatter(mask, tokens.loss)
    ce_tokens, contrastive_tokens = costs.where(~negative_mask, 0.0), costs.where(negative_mask, 0.0)
    return CringeOutput(
        loss=(ce_tokens + alpha * contrastive_tokens).sum() / mask.sum().clamp(min=1),
        ce_tokens=ce_tokens,
        contrastive_tokens=contrastive_tokens,
        positive_mask=mask & ~negative_mask,
        negative_mask=negative_mask,
        sampled_positive=torch.full_like(targets, -1).masked_scatter(mask, tokens.positive_ids),
    )


def cringe_rows(
    logits: Tensor, targets: Tensor, labels: Tensor, draws: Tensor, *, k: int, detach_positive: bool
) -> RowLosses:
    """The costs of `cringe_loss` for N tokens that all count, before alpha and before the denominator.

    Arguments are those of `cringe_loss`, a row for each token, and are not checked.

    Args:
        logits: (N, V) raw scores, any floating type.
        targets: (N,) int64, ids in [0, V).
        labels: (N,) values of `TokenLabel`.
        draws: (N,) float64 in [0, 1), from `uniform_draws`. As the numbers are drawn before, it does not matter which
            rows are looked at together, nor how often.
        k: number of candidates for the positive.
        detach_positive: stop the gradient through the positive's logit.

    Returns:
        Cross-entropy of the tokens to follow, the contrastive cost of the tokens to avoid, and what metrics need.
    """
    tokens = _cringe_tokens(logits, targets, labels, k=k, detach_positive=detach_positive, draws=draws)
    with torch.no_grad():
        nll = tokens.loss.detach().clone()
        negative = labels == TokenLabel.NEGATIVE
        nll[negative] = F.cross_entropy(promoted(logits[negative]), targets[negative], reduction="none")
        correct = logits.gather(-1, targets[:, None]).squeeze(-1) == logits.amax(-1)
    return RowLosses(tokens.loss, nll, correct)


def uniform_draws(labels: Tensor, *, k: int, generator: torch.Generator | None) -> Tensor:
    """The random numbers of a batch: one for each token to avoid, in the order of the tokens.

    Args:
        labels: (N,) values of `TokenLabel` of the counted tokens.
        k: number of candidates; 1 draws nothing.
        generator: source of the numbers, on the device of the labels; may be None where k is 1.

    Returns:
        (N,) float64 in [0, 1); 0 where the token is not to be avoided, and everywhere where k is 1.
    """
    draws = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
    if k == 1:
        return draws
    negative = labels == TokenLabel.NEGATIVE
    numbers = torch.rand(int(negative.sum()), generator=generator, dtype=torch.float64, device=labels.device)
    return draws.masked_scatter(negative, numbers)


def draw_candidates(scores: Tensor, draws: Tensor) -> Tensor:
    """Draw one candidate a row with softmax(scores), by the inverse of its distribution function.

    Args:
        scores: (N, K) logits of the candidates, at least fp32.
        draws: (N,) float64 in [0, 1).

    Returns:
        (N, 1) int64 places in [0, K).
    """
    reached = scores.double().softmax(-1).cumsum(-1)
    # The last place is what is left, however the sum was rounded.
    return (reached[:, :-1] <= draws[:, None]).sum(-1, keepdim=True)


class _CringeTokens(NamedTuple):
    loss: Tensor
    positive_ids: Tensor


def _cringe_tokens(
    logits: Tensor, targets: Tensor, labels: Tensor, *, k: int, detach_positive: bool, draws: Tensor
) -> _CringeTokens:
    negative = labels == TokenLabel.NEGATIVE

    # L_CE, arXiv:2211.05826.
    ce = F.cross_entropy(promoted(logits[~negative]), targets[~negative], reduction="none")

    # L_Cr, Algorithm 1, arXiv:2211.05826. The tokens to avoid alone are looked at, and one indexing fetches both
    # logits, so that backward makes one buffer of the size of the logits.
    rows = negative.nonzero().squeeze(-1)
    negative_ids = targets[rows]
    positive_ids = _draw_positive_ids(logits.detach()[rows], negative_ids, k, draws[rows])
    pairs = logits[rows[:, None], torch.stack((positive_ids, negative_ids), dim=-1)]
    positive_logits, negative_logits = promoted(pairs).unbind(-1)
    if detach_positive:
        positive_logits = positive_logits.detach()
    # Not softplus(negative - positive): torch cuts that off at 20, which a float64 comparison sees.
    contrastive = -F.logsigmoid(positive_logits - negative_logits)

    return _CringeTokens(
        loss=ce.new_zeros(targets.shape).masked_scatter(~negative, ce).masked_scatter(negative, contrastive),
        positive_ids=torch.full_like(targets, -1).masked_scatter(negative, positive_ids),
    )


def _draw_positive_ids(rows: Tensor, negative_ids: Tensor, k: int, draws: Tensor) -> Tensor:
    """Draw one id a row from the k highest logits other than the negative one: (N, V), (N,), (N,) -> (N,)."""
    top = rows.topk(k + 1, dim=-1)
    place = torch.arange(k + 1, device=rows.device)
    # Of the k + 1 ids, the negative one goes; where it is not among them, the lowest goes.
    dropped_place = torch.where(top.indices == negative_ids[:, None], place, k).amin(-1, keepdim=True)
    kept_places = place[:k] + (place[:k] >= dropped_place)
    candidate_ids = top.indices.gather(-1, kept_places)
    if k == 1:
        return candidate_ids.squeeze(-1)
    candidate_logits = promoted(top.values.gather(-1, kept_places))
    return candidate_ids.gather(-1, draw_candidates(candidate_logits, draws)).squeeze(-1)


def _check_tensors(logits: Tensor, targets: Tensor, labels: Tensor, mask: Tensor) -> None:
    if logits.dim() != 3 or not logits.is_floating_point():
        raise SafetyError(
            f"logits have shape {tuple(logits.shape)} and type {logits.dtype}",
            "The loss needs one score for each example, target token and word of the vocabulary",
            "Pass a floating tensor of shape (B, T, V)",
        )
    if targets.shape != logits.shape[:2] or targets.dtype != torch.int64:
        raise SafetyError(
            f"targets have shape {tuple(targets.shape)} and type {targets.dtype}",
            f"Each of the {tuple(logits.shape[:2])} scored positions needs one target id",
            "Pass an int64 tensor of shape (B, T)",
        )
    if mask.shape != targets.shape or mask.dtype != torch.bool:
        raise SafetyError(
            f"mask has shape {tuple(mask.shape)} and type {mask.dtype}",
            "It must say True or False once for each target token; numbers would be taken for positions",
            "Pass a bool tensor of shape (B, T), for instance targets != padding_index",
        )
    if labels.shape not in (targets.shape, targets.shape[:1]):
        raise SafetyError(
            f"labels have shape {tuple(labels.shape)}",
            f"They fit neither the {targets.size(0)} examples nor the {tuple(targets.shape)} target tokens",
            "Pass a tensor of shape (B,) or (B, T)",
        )


def _check_settings(logits: Tensor, k: int, alpha: float, generator: torch.Generator | None) -> None:
    vocabulary_size = logits.size(-1)
    if not 1 <= k <= vocabulary_size - 1:
        raise SafetyError(
            f"k is {k} for a vocabulary of {vocabulary_size}",
            "The positive is drawn from the k best ids, and the negative id is never one of them",
            f"Choose k from 1 to {vocabulary_size - 1}" if vocabulary_size > 1 else "Use a larger vocabulary",
        )
    if not (math.isfinite(alpha) and alpha >= 0):
        raise SafetyError(
            f"alpha is {alpha}",
            "A weight below zero would teach what is to be avoided, and the loss must stay finite",
            "Choose a finite alpha of 0 or more; 1 is the default",
        )
    if k > 1 and (generator is None or generator.device.type != logits.device.type):
        raise SafetyError(
            f"generator is {None if generator is None else f'on {generator.device}'} while k is {k}",
            f"With k above 1 the positive is drawn at random on {logits.device}, from that generator and no other",
            f"Pass torch.Generator({logits.device.type!r}) with a seed, or use k=1",
        )


def _check_counted_values(targets: Tensor, labels: Tensor, vocabulary_size: int) -> None:
    outside = (targets < 0) | (targets >= vocabulary_size)
    if outside.any():
        raise SafetyError(
            f"a counted target id is {targets[outside][0].item()}",
            f"The vocabulary has the ids 0 to {vocabulary_size - 1}",
            "Set the mask to False on padding, or make the vocabulary as large as the model's",
        )
    unknown = ~torch.isin(labels, torch.tensor(list(TokenLabel), device=labels.device))
    if unknown.any():
        raise SafetyError(
            f"a counted token has the label {labels[unknown][0].item()}",
            f"The labels are {', '.join(f'{label.value} ({label.name.lower()})' for label in TokenLabel)}",
            "Make labels with parse_label, or set the mask to False where there is none",
        )
