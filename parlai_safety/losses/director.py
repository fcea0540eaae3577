"""The DIRECTOR loss: a language model, and beside it a head that says of every id whether it should be said.

Source: Arora et al. 2022, "Director: Generator-Classifiers For Supervised Language Modeling", arXiv:2206.07694. The
regulariser's form (the squared distance from one half) is a reconstruction. Deviation: the released code sums means
over examples, which grows with the batch; here each part is a mean over its own tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses, promoted
from parlai_safety.losses.whole import check_weight, checked_kinds, mean_where, spread


class DirectorOutput(NamedTuple):
    """The loss and its parts. Everything but `loss` has the shape (B, T)."""

    loss: Tensor
    """Scalar in nats per token, at least fp32, never negative."""
    lm_tokens: Tensor
    """Cross-entropy of the language model in nats, with gradient; 0 where `lm_mask` is False."""
    class_tokens: Tensor
    """Binary cross-entropy of the class head in nats, before gamma, with gradient; 0 where `class_mask` is False."""
    lm_mask: Tensor
    """Bool: the token is counted and trains the language model."""
    class_mask: Tensor
    """Bool: the token is counted and labelled, and trains the class head."""


def lm_tokens(labels: Tensor, mask: Tensor, lm_on_positive: bool) -> Tensor:
    """Which counted tokens train the language model: plain ones, and positive ones if so wished; (B, T) bool."""
    wanted = labels == TokenLabel.PLAIN
    if lm_on_positive:
        wanted = wanted | (labels == TokenLabel.POSITIVE)
    return mask & wanted


def director_rows(logits: Tensor, targets: Tensor, labels: Tensor) -> RowLosses:
    """What each of N tokens costs the language model: cross-entropy, whatever its label.

    Args:
        logits: (N, V) raw scores of the language model's head, any floating type.
        targets: (N,) int64.
        labels: (N,) values of `TokenLabel`; they decide by weights and not here.

    Returns:
        The rows; costs are in nats and at least fp32.
    """
    scores = promoted(logits)
    nll = F.cross_entropy(scores, targets, reduction="none")
    correct = scores.detach().gather(-1, targets[:, None]).squeeze(-1) >= scores.detach().amax(-1)
    return RowLosses(nll, nll.detach(), correct)


def class_costs(target_class_logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the class head at the target: -log sigmoid(c) if positive, -log(1 - sigmoid(c)) if not.

    Args:
        target_class_logits: (N,) the class head's logit of each labelled target, any floating type.
        labels: (N,) `TokenLabel.POSITIVE` or `TokenLabel.NEGATIVE`.

    Returns:
        (N,) nats, at least fp32, with gradient.
    """
    scores = promoted(target_class_logits)
    return -F.logsigmoid(torch.where(labels == TokenLabel.NEGATIVE, -scores, scores))


def neutral_costs(class_logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the ids that are not the target of (sigmoid(c) - 1/2)^2: nothing was said of them.

    Args:
        class_logits: (N, V) the class head's logits, any floating type; V is at least 2.
        targets: (N,) int64.

    Returns:
        (N,) from 0 to 1/4, at least fp32, with gradient.
    """
    distances = (promoted(class_logits).sigmoid() - 0.5) ** 2
    return distances.scatter(-1, targets[:, None], 0.0).sum(-1) / (distances.size(-1) - 1)


def director_scores(logits: Tensor, class_logits: Tensor, gamma: float) -> Tensor:
    """The scores to decode with: log P = log softmax(logits + gamma * log sigmoid(class logits)), up to a constant.

    By hand: equal logits, class probabilities 1/2 and 1/4, gamma = 2 give odds of (1/4) / (1/16), and so 0.8 and 0.2:

    >>> class_logits = torch.tensor([1.0, 1 / 3]).log()
    >>> [round(p, 4) for p in director_scores(torch.zeros(2), class_logits, gamma=2.0).softmax(-1).tolist()]
    [0.8, 0.2]

    Args:
        logits: (..., V) raw scores of the language model's head.
        class_logits: (..., V) the class head's logits.
        gamma: weight of the class head, 0 for the language model alone.

    Returns:
        (..., V), at least fp32; a softmax normalises it, as every decoder does.
    """
    return promoted(logits) + gamma * F.logsigmoid(promoted(class_logits))


def director_loss(
    logits: Tensor,
    class_logits: Tensor,
    targets: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lm_on_positive: bool = False,
    neutral_weight: float = 0.0,
) -> DirectorOutput:
    r"""Cross-entropy on plain tokens, and the class head's binary cross-entropy on labelled ones.

    With `s` the language model's logits of one position, `c` the class head's, `x` the target (arXiv:2206.07694)::

        loss = mean over LM tokens of -log softmax(s)[x]
             + gamma * mean over labelled tokens of -log( sigmoid(c[x]) if positive, 1 - sigmoid(c[x]) if negative )
             + neutral_weight * mean over labelled tokens and ids other than x of (sigmoid(c[id]) - 1/2)^2

    LM tokens are the plain ones; with `lm_on_positive` the positive ones too. Every token of a labelled sequence has
    the sequence's label. The last term's form is a reconstruction.

    By hand, for a vocabulary of three ids. A plain token with logits ln 4, ln 2, ln 2 and target 0 costs ln 2 =
    0.6931. A negative token whose class logit is ln 3 has sigmoid 3/4 and costs -ln(1/4) = 1.3863; a positive one
    costs -ln(3/4) = 0.2877. With gamma = 3 the loss is 0.6931 + 3 * (1.3863 + 0.2877) / 2 = 3.2041:

    >>> logits = torch.tensor([4.0, 2.0, 2.0]).log().expand(3, 1, 3)
    >>> class_logits = torch.tensor([3.0, 1.0, 1.0]).log().expand(3, 1, 3)
    >>> targets, mask = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1, dtype=torch.bool)
    >>> labels = torch.tensor([TokenLabel.PLAIN, TokenLabel.NEGATIVE, TokenLabel.POSITIVE])
    >>> print(f"{director_loss(logits, class_logits, targets, labels, mask, gamma=3.0).loss:.4f}")
    3.2041

    This is the plain form, for a caller that has both heads' scores. Training needs the class head at the target
    alone, as long as `neutral_weight` is 0: see `class_costs`.

    Args:
        logits: (B, T, V) raw scores of the language model's head, any floating type. Not checked for NaN.
        class_logits: (B, T, V) the class head's logits, any floating type.
        targets: (B, T) int64, ids in [0, V) where the mask is True, anything elsewhere.
        labels: (B,) or (B, T) values of `TokenLabel`; anything where the mask is False.
        mask: (B, T) bool, True where a target token counts, False on padding.
        gamma: weight of the class head's loss, finite and >= 0.
        lm_on_positive: positive examples train the language model as well.
        neutral_weight: weight of the regulariser, finite and >= 0.

    Returns:
        The loss, its parts per token and the two masks.

    Raises:
        SafetyError: a shape, type or range is not as stated above.
    """
    kinds = checked_kinds(logits, targets, labels, mask)
    check_weight("gamma", gamma)
    check_weight("neutral_weight", neutral_weight)
    if class_logits.shape != logits.shape or not class_logits.is_floating_point():
        raise SafetyError(
            f"class_logits have shape {tuple(class_logits.shape)} and type {class_logits.dtype}",
            f"The class head says one number of each of the {tuple(logits.shape)} scores",
            "Pass a floating tensor of the shape of the logits",
        )
    lm_mask = lm_tokens(kinds.labels, mask, lm_on_positive)
    class_mask = mask & (kinds.labels != TokenLabel.PLAIN)
    lm = spread(director_rows(logits[lm_mask], targets[lm_mask], kinds.labels[lm_mask]).loss, lm_mask)
    ids, rows = targets[class_mask], class_logits[class_mask]
    said = class_costs(rows.gather(-1, ids[:, None]).squeeze(-1), kinds.labels[class_mask])
    loss = mean_where(lm, lm_mask) + gamma * said.sum() / class_mask.sum().clamp(min=1)
    if neutral_weight:
        loss = loss + neutral_weight * neutral_costs(rows, ids).sum() / class_mask.sum().clamp(min=1)
    return DirectorOutput(loss, lm, spread(said, class_mask), lm_mask, class_mask)
