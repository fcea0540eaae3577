"""CRINGE over a linear output layer in chunks, with gradients written out: the quick road of `safety:cringe`.

Source of the loss: Adolphs et al. 2022, arXiv:2211.05826, Algorithm 1; `parlai_safety.losses.cringe` is its plain form
and gives the same numbers. What makes this one quick: a token to follow needs one softmax, in place; a token to avoid
is looked at once, and as its gradient touches two scores alone, there is no product over the vocabulary in backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parlai_safety.losses.cringe import draw_candidates
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses
from parlai_safety.modeling.output import LinearGradients, LinearOutput, WeightedLoss, even_chunk

GROUP = 64
"""Scores in a group, of which the best ids are searched: first among the groups' maxima, then among their members."""


def cringe_weighted_loss(
    layer: LinearOutput,
    targets: Tensor,
    labels: Tensor,
    weights: Tensor,
    draws: Tensor,
    *,
    k: int,
    detach_positive: bool,
    chunk: int,
) -> WeightedLoss:
    """The weighted sum of `cringe_rows`, a chunk of tokens at a time; the gradients are taken on the way.

    Args:
        layer: the output layer and the (N, D) states of the counted tokens.
        targets: (N,) int64.
        labels: (N,) values of `TokenLabel`.
        weights: (N,) fp32.
        draws: (N,) float64, from `uniform_draws`.
        k: number of candidates for the positive.
        detach_positive: stop the gradient through the positive's logit.
        chunk: tokens a chunk, at least 1.

    Returns:
        The scalar loss, with gradient, and the rows for metrics.
    """
    with torch.no_grad(), torch.autocast(layer.states.device.type, enabled=False):
        gradients = LinearGradients(layer, weights)
        wide = gradients.shares.dtype
        rows = RowLosses(
            torch.empty(len(targets), dtype=wide, device=targets.device),
            torch.empty(len(targets), dtype=wide, device=targets.device),
            torch.empty(len(targets), dtype=torch.bool, device=targets.device),
        )
        negative = labels == TokenLabel.NEGATIVE
        follow, avoid = (~negative).nonzero().squeeze(-1), negative.nonzero().squeeze(-1)
        scores = _Scores(gradients, max(even_chunk(len(follow), chunk), even_chunk(len(avoid), chunk)))
        for places in _pieces(follow, chunk):
            _follow(scores, gradients, rows, places, targets[places])
        for places in _pieces(avoid, chunk):
            _avoid(scores, gradients, rows, places, targets[places], draws[places], k, detach_positive)
        loss = (weights * rows.loss).sum()
    return WeightedLoss(gradients.attach(loss), rows)


def _pieces(places: Tensor, chunk: int) -> tuple[Tensor, ...]:
    return torch.split(places, even_chunk(len(places), chunk)) if len(places) else ()


class _Scores:
    """The one buffer of scores, padded to whole groups, and an fp32 one where scores are of half precision."""

    def __init__(self, gradients: LinearGradients, size: int) -> None:
        self._gradients, self._vocabulary_size = gradients, len(gradients.weight)
        self._own = gradients.states.new_empty(size, -(-self._vocabulary_size // GROUP) * GROUP)
        same = self._own.dtype == gradients.shares.dtype
        self._wide = self._own if same else torch.empty_like(self._own, dtype=gradients.shares.dtype)

    def of(self, places: Tensor) -> Tensor:
        """The scores of some tokens in at least fp32, and -inf as padding; what stood here before is gone."""
        own, wide = self._own[: len(places)], self._wide[: len(places)]
        self._gradients.scores(places, out=own[:, : self._vocabulary_size])
        own[:, self._vocabulary_size :] = -torch.inf
        return own if wide.dtype == own.dtype else wide.copy_(own)

    def as_gradient(self, scores: Tensor) -> Tensor:
        """What now stands in the scores' place, without the padding and in the type of the output layer."""
        own = self._own[: len(scores)]
        whole = scores if scores.dtype == own.dtype else own.copy_(scores)
        return whole[:, : self._vocabulary_size]


def _follow(scores: _Scores, gradients: LinearGradients, rows: RowLosses, places: Tensor, targets: Tensor) -> None:
    """Cross-entropy; its gradient is softmax less the target."""
    logits, ids = scores.of(places), targets[:, None]
    best, own = logits.amax(-1), logits.gather(-1, ids).squeeze(-1)
    p = torch.softmax(logits, -1, out=logits)
    rows.loss[places] = rows.nll[places] = (best - own) - p.amax(-1).log()
    rows.correct[places] = own == best
    p.scatter_add_(-1, ids, p.new_full((), -1.0).expand(ids.shape))
    gradients.add(places, scores.as_gradient(p), gradients.shares[places][:, None])


def _avoid(
    scores: _Scores,
    gradients: LinearGradients,
    rows: RowLosses,
    places: Tensor,
    negative_ids: Tensor,
    draws: Tensor,
    k: int,
    detach_positive: bool,
) -> None:
    """The contrast with one of the best other ids; its gradient is a sigmoid on the one and less it on the other."""
    logits, ids = scores.of(places), negative_ids[:, None]
    own = logits.gather(-1, ids).squeeze(-1)
    others = logits.scatter_(-1, ids, -torch.inf)
    best = best_ids(others, k)
    place = best.ids.new_zeros(len(ids), 1) if k == 1 else draw_candidates(best.scores, draws)
    positive_ids, positive = best.ids.gather(-1, place).squeeze(-1), best.scores.gather(-1, place).squeeze(-1)

    rows.loss[places] = -F.logsigmoid(positive - own)
    rows.correct[places] = own >= best.scores[:, 0]
    # -log p of the negative id: the others' total, which the softmax over them tells at their best, and its own score.
    p = torch.softmax(others, -1, out=others).gather(-1, best.ids[:, :1]).squeeze(-1)
    rows.nll[places] = torch.logaddexp(best.scores[:, 0] - p.log(), own) - own

    push = gradients.shares[places] * torch.sigmoid(own - positive)
    gradients.add_ids(places, negative_ids, push)
    if not detach_positive:
        gradients.add_ids(places, positive_ids, -push)


class BestIds(NamedTuple):
    """The k best of each row, best first: (N, k) scores and (N, k) int64 ids."""

    scores: Tensor
    ids: Tensor


def best_ids(scores: Tensor, k: int) -> BestIds:
    """The k best ids of each row: exact, and quicker than a search among all.

    The k best lie in the k groups with the highest maxima: if one lay elsewhere, each of those k groups would hold a
    higher one.

    Args:
        scores: (N, G * GROUP); a padding of -inf is never among the k best where a row has k others.
        k: how many, at most the number of finite scores.

    Returns:
        Scores and ids; among equal scores any may be first.
    """
    groups = scores.view(len(scores), -1, GROUP)
    chosen = groups.amax(-1).topk(min(k, groups.size(1)), -1).indices
    members = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    best = members.topk(k, -1)
    ids = chosen.gather(-1, best.indices // GROUP) * GROUP + best.indices % GROUP
    return BestIds(best.values, ids)
