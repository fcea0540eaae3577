"""The CRINGE loss a second time, in float64 and plain loops, written from the formulas and not from our code.

It draws nothing: for k = 1 the positive follows from the scores, for k > 1 the caller says which id was drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class ReferenceOutput(NamedTuple):
    """Loss, parts per token (B, T) and gradient of the loss with respect to the logits (B, T, V)."""

    loss: float
    ce_tokens: Array
    contrastive_tokens: Array
    logits_grad: Array


def reference_candidates(scores: Array, negative_id: int, k: int) -> dict[int, float]:
    """The k best ids other than the negative one, each with its probability of being drawn; best first."""
    others = [i for i in range(len(scores)) if i != negative_id]
    best = sorted(others, key=lambda i: float(-scores[i]))[:k]
    weights = [float(np.exp(scores[i] - scores[best[0]])) for i in best]
    return {i: weight / sum(weights) for i, weight in zip(best, weights, strict=True)}


def reference_cringe(
    logits: Array, targets: Array, labels: Array, mask: Array, *, k: int, alpha: float, drawn: Array | None = None
) -> ReferenceOutput:
    """The loss of Algorithm 1, arXiv:2211.05826, with `drawn` (B, T) as the positive ids where k > 1.

    Labels are 1, 0, -1, of shape (B,) or (B, T). A drawn id that is no candidate is an AssertionError.
    """
    logits = logits.astype(np.float64)
    examples, steps, vocabulary_size = logits.shape
    ce_tokens, contrastive_tokens = np.zeros((examples, steps)), np.zeros((examples, steps))
    logits_grad = np.zeros_like(logits)
    counted = 0
    for b in range(examples):
        for t in range(steps):
            if not mask[b, t]:
                continue
            counted += 1
            scores, target = logits[b, t], int(targets[b, t])
            if (labels[b] if labels.ndim == 1 else labels[b, t]) != 0:
                log_total = np.logaddexp.reduce(scores)
                ce_tokens[b, t] = log_total - scores[target]
                for i in range(vocabulary_size):
                    logits_grad[b, t, i] = np.exp(scores[i] - log_total) - (i == target)
            else:
                candidates = reference_candidates(scores, target, k)
                positive = next(iter(candidates)) if k == 1 else int(drawn[b, t])  # type: ignore[index]
                assert positive in candidates, f"{positive} is not among the candidates {candidates}"
                difference = scores[target] - scores[positive]
                contrastive_tokens[b, t] = np.logaddexp(0.0, difference)
                logits_grad[b, t, target] = alpha / (1 + np.exp(-difference))
                logits_grad[b, t, positive] = -alpha / (1 + np.exp(-difference))
    loss = (ce_tokens.sum() + alpha * contrastive_tokens.sum()) / max(counted, 1)
    return ReferenceOutput(float(loss), ce_tokens, contrastive_tokens, logits_grad / max(counted, 1))
