"""Pairwise CRINGE and Click a second time, in float64 and plain loops, written from the formulas and not from our code.

Gradients are left to finite differences of these losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .reference import reference_candidates

Array = npt.NDArray[Any]


def log_p(logits: Array, targets: Array, mask: Array) -> list[float]:
    """log p of each reply: the sum over its counted tokens."""
    found = []
    for scores, ids, counts in zip(logits, targets, mask, strict=True):
        steps = [t for t in range(len(ids)) if counts[t]]
        found.append(float(sum(scores[t, ids[t]] - np.logaddexp.reduce(scores[t]) for t in steps)))
    return found


def contrast(logits: Array, targets: Array, mask: Array, drawn: Array) -> list[float]:
    """The contrastive loss of each reply; `drawn` says which id was preferred to each token."""
    found = []
    for scores, ids, counts, preferred in zip(logits, targets, mask, drawn, strict=True):
        total = 0.0
        for t in range(len(ids)):
            if counts[t]:
                total += float(np.logaddexp(0.0, scores[t, ids[t]] - scores[t, preferred[t]]))
        found.append(total)
    return found


def best_other(logits: Array, targets: Array) -> Array:
    """The best id other than the target, for k = 1."""
    pairs = [
        next(iter(reference_candidates(row, int(i), 1)))
        for row, i in zip(logits.reshape(-1, logits.shape[-1]), targets.flat, strict=True)
    ]
    return np.array(pairs).reshape(targets.shape)


def reference_pairwise(
    chosen: tuple[Array, Array, Array],
    rejected: tuple[Array, Array, Array],
    example: list[int],
    *,
    margin: float,
    temperature: float,
    alpha: float,
    per_token: bool = False,
    drawn: Array | None = None,
    gates: list[float] | None = None,
) -> tuple[float, list[float], list[float]]:
    """Loss, margins and gates; given `gates` stand in the place of the computed ones."""
    log_chosen, log_rejected = log_p(*chosen), log_p(*rejected)
    costs = contrast(*rejected, best_other(rejected[0], rejected[1]) if drawn is None else drawn)
    total, counted = 0.0, 0
    margins, found = [], []
    for pair, i in enumerate(example):
        m, n = int(chosen[2][i].sum()), int(rejected[2][pair].sum())
        if per_token:
            margins.append(log_chosen[i] / m - log_rejected[pair] / n)
        else:
            margins.append(log_chosen[i] - log_rejected[pair])
        found.append(1 / (1 + float(np.exp((margins[-1] - margin) / temperature))))
        total += (found if gates is None else gates)[pair] * (-log_chosen[i] + alpha * costs[pair])
        counted += m + n
    for i in range(len(log_chosen)):
        if i not in example:
            total -= log_chosen[i]
            counted += int(chosen[2][i].sum())
    return total / counted, margins, found


def reference_click(
    chosen: tuple[Array, Array, Array],
    rejected: tuple[Array, Array, Array],
    example: list[int],
    *,
    margin: float,
    weight: float,
    chosen_nll: bool,
) -> float:
    """The loss of Click."""
    log_chosen, log_rejected = log_p(*chosen), log_p(*rejected)
    total, counted = 0.0, 0
    for i, value in enumerate(log_chosen):
        if chosen_nll or i not in example:
            total -= value
            counted += int(chosen[2][i].sum())
    hinges = [max(0.0, margin - log_chosen[i] + log_rejected[pair]) for pair, i in enumerate(example)]
    return total / max(counted, 1) + weight * sum(hinges) / len(hinges)


def slopes(loss: Any, array: Array, step: float = 1e-6) -> Array:
    """Central differences of a scalar function, called without arguments, of an array that it reads."""
    found = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        up = loss()
        array[place] = kept - step
        found[place] = (up - loss()) / (2 * step)
        array[place] = kept
    return found
