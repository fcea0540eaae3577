"""Unlikelihood, SCONES and DIRECTOR a second time, in float64 and plain loops, written from the formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Reference(NamedTuple):
    """The loss and its gradient with respect to the logits, and to the class logits where there are any."""

    loss: float
    logits_grad: Array
    class_grad: Array | None = None


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _sigmoid(score: float) -> float:
    return float(1 / (1 + np.exp(-score)) if score >= 0 else np.exp(score) / (1 + np.exp(score)))


def _softplus(score: float) -> float:
    return float(np.logaddexp(0.0, score))


def _positions(labels: Array, mask: Array) -> list[tuple[int, int, int]]:
    """Example, step and label of each counted token."""
    return [(int(b), int(t), int(labels[b] if labels.ndim == 1 else labels[b, t])) for b, t in np.argwhere(mask)]


def reference_unlikelihood(logits: Array, targets: Array, labels: Array, mask: Array, *, alpha: float) -> Reference:
    """Mean -log p over tokens to follow, plus alpha times mean -log(1 - p) over tokens to avoid."""
    places, gradient, loss = _positions(labels, mask), np.zeros_like(logits), 0.0
    n_avoid = sum(label == 0 for *_, label in places)
    for b, t, label in places:
        target, p = int(targets[b, t]), _softmax(logits[b, t])
        one_hot = np.eye(len(p))[target]
        if label == 0:
            others = np.delete(p, target).sum()
            loss -= alpha / n_avoid * np.log(others)
            gradient[b, t] = alpha / n_avoid * p[target] * (one_hot - (1 - one_hot) * p / others)
        else:
            n_follow = len(places) - n_avoid
            loss -= np.log(p[target]) / n_follow
            gradient[b, t] = (p - one_hot) / n_follow
    return Reference(float(loss), gradient)


def reference_scones(
    logits: Array, targets: Array, labels: Array, mask: Array, *, alpha_pm: float, alpha_minus: float
) -> Reference:
    """Mean L+ + alpha_pm L+- over tokens to follow, plus alpha_minus times mean L- over tokens to avoid."""
    places, gradient, loss = _positions(labels, mask), np.zeros_like(logits), 0.0
    n_avoid = sum(label == 0 for *_, label in places)
    for b, t, label in places:
        target = int(targets[b, t])
        if label == 0:
            loss += alpha_minus / n_avoid * _softplus(logits[b, t, target])
            gradient[b, t, target] = alpha_minus / n_avoid * _sigmoid(logits[b, t, target])
            continue
        n_follow = len(places) - n_avoid
        for i, score in enumerate(logits[b, t]):
            if i == target:
                loss += _softplus(-score) / n_follow
                gradient[b, t, i] = (_sigmoid(score) - 1) / n_follow
            else:
                loss += alpha_pm * _softplus(score) / n_follow
                gradient[b, t, i] = alpha_pm * _sigmoid(score) / n_follow
    return Reference(float(loss), gradient)


def reference_director(
    logits: Array,
    class_logits: Array,
    targets: Array,
    labels: Array,
    mask: Array,
    *,
    gamma: float,
    lm_on_positive: bool,
    neutral_weight: float,
) -> Reference:
    """Cross-entropy of LM tokens, gamma times the binary one of labelled tokens, the pull of the rest towards 1/2."""
    places, loss = _positions(labels, mask), 0.0
    gradient, class_gradient = np.zeros_like(logits), np.zeros_like(class_logits)
    lm_labels = (-1, 1) if lm_on_positive else (-1,)
    n_lm = sum(label in lm_labels for *_, label in places)
    n_class = sum(label != -1 for *_, label in places)
    for b, t, label in places:
        target, vocabulary_size = int(targets[b, t]), logits.shape[-1]
        if label in lm_labels:
            p = _softmax(logits[b, t])
            loss -= np.log(p[target]) / n_lm
            gradient[b, t] = (p - np.eye(vocabulary_size)[target]) / n_lm
        if label != -1:
            for i, score in enumerate(class_logits[b, t]):
                said = _sigmoid(score)
                if i == target:
                    loss += gamma / n_class * _softplus(-score if label == 1 else score)
                    class_gradient[b, t, i] = gamma / n_class * (said - label)
                else:
                    weight = neutral_weight / n_class / (vocabulary_size - 1)
                    loss += weight * (said - 0.5) ** 2
                    class_gradient[b, t, i] = weight * 2 * (said - 0.5) * said * (1 - said)
    return Reference(float(loss), gradient, class_gradient)
