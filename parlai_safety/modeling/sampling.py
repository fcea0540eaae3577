"""Drawing the next token of many rows at once: top-k and nucleus, without a sort of the vocabulary.

Sources: top-k, Fan et al. 2018, arXiv:1805.04833; nucleus, Holtzman et al. 2020, arXiv:1904.09751. The score of a drawn
token is the one that ParlAI counts: for top-k its log-probability in the whole vocabulary, for nucleus its
log-probability among the tokens that it was drawn from.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BINS, _BINS_A_NAT = 1024, 64
"""A histogram of log-probabilities: 16 nats below the best token, and everything lower in the last bin."""


def draw_topk(
    logprobs: Tensor, k: int, count: int = 1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw from the k best tokens, with replacement, in proportion to their probabilities.

    Args:
        logprobs: (R, V) fp32, natural logarithms; they need not be normalised.
        k: how many tokens are candidates, at least 1; more than V is all of them.
        count: draws a row.
        generator: source of the draws, on the device of the scores; None is torch's own.

    Returns:
        (R, count) int64 tokens, and (R, count) fp32 their log-probabilities as they were given.
    """
    values, tokens = logprobs.topk(min(k, logprobs.size(-1)), dim=-1)
    places = _draw(values.softmax(-1), count, generator)
    return tokens.gather(-1, places), values.gather(-1, places)


def draw_nucleus(
    logprobs: Tensor, p: float, count: int = 1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw from the nucleus, with replacement, in proportion to the probabilities.

    Args:
        logprobs: (R, V) fp32, natural logarithms; they need not be normalised.
        p: mass of the nucleus, see `nucleus_threshold`.
        count: draws a row.
        generator: source of the draws, on the device of the scores; None is torch's own.

    Returns:
        (R, count) int64 tokens, and (R, count) fp32 their log-probabilities within the nucleus.
    """
    probabilities = logprobs.softmax(-1)
    probabilities.masked_fill_(logprobs < nucleus_threshold(logprobs, probabilities, p), 0)
    tokens = _draw(probabilities, count, generator)
    mass = probabilities.sum(-1, keepdim=True)
    return tokens, (probabilities.gather(-1, tokens) / mass).log()


def nucleus_threshold(logprobs: Tensor, probabilities: Tensor, p: float) -> Tensor:
    """The lowest log-probability in the nucleus: tokens in falling order, until those before one have the mass p.

    A token belongs to it where the tokens that are likelier have a mass of less than p, so the best token always does.
    Tokens of exactly the same score as the last one belong to it too; a sort would take some of them in no set order.

    With probabilities 0.5, 0.3, 0.15, 0.05 the likelier tokens have the mass 0, 0.5, 0.8 and 0.95: p = 0.8 keeps two
    tokens (up to rounding), p = 0.81 keeps three.

    Exact, and without a sort: a histogram finds the bin in which the mass p is reached, and only the tokens of that bin
    are put in order.

    Args:
        logprobs: (R, V) fp32.
        probabilities: (R, V), their softmax.
        p: mass, above 0 and at most 1.

    Returns:
        (R, 1) fp32.
    """
    best = logprobs.amax(-1, keepdim=True)
    bins = ((best - logprobs) * _BINS_A_NAT).clamp_(max=_BINS - 1).to(torch.int64)
    mass = probabilities.new_zeros((len(logprobs), _BINS)).scatter_add_(-1, bins, probabilities).cumsum(-1)
    # Rounding may leave the whole mass under p: then the last bin is the one.
    reached = (mass < p).sum(-1, keepdim=True).clamp_(max=_BINS - 1)
    before = torch.where(reached > 0, mass.gather(-1, (reached - 1).clamp(min=0)), 0)
    inside = bins == reached
    most = max(1, int(inside.sum(-1).max()))
    # An empty bin can be reached by rounding only; then its row keeps all that is above it.
    ordered = torch.where(inside, logprobs, -torch.inf).topk(most, dim=-1)
    held = torch.where(inside, probabilities, 0).gather(-1, ordered.indices)
    likelier = before + held.cumsum(-1) - held
    kept = ((likelier < p) & ordered.values.isfinite()).sum(-1, keepdim=True).clamp_(min=1)
    return ordered.values.gather(-1, kept - 1)


def _draw(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Places drawn in proportion to weights: (R, W) not negative -> (R, count). A weight of 0 is never drawn."""
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1:]
    uniform = torch.rand((len(weights), count), dtype=weights.dtype, device=weights.device, generator=generator)
    # The product may round up to the total, which lies behind the last place.
    points = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, points, right=True)
