"""What holds of each loss over labelled replies: the checks that the tests of unlikelihood, SCONES and DIRECTOR share.

A loss is handed over as a function of (logits, targets, labels, mask) that returns the scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.losses import TokenLabel

from .checks import Batch, assert_same, batches, random_batch

Scalar = Callable[..., Tensor]
SHAPES = [(4, 5, 7), (1, 1, 2), (3, 2, 40), (2, 9, 3), (6, 1, 5)]
quick = settings(max_examples=40, deadline=None, database=None, derandomize=True, phases=[Phase.generate])


def gradient(loss: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a scalar, zero where it does not depend on a tensor."""
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True))


def assert_invariances(loss: Scalar, *, shift: bool) -> None:
    """Padding and the order of examples change nothing; neither does a shift of the logits, if `shift` says so."""

    @quick
    @given(batches(), st.randoms(use_true_random=False), st.floats(-50, 50, width=32))
    def holds(batch: Batch, random: Any, amount: float) -> None:
        whole = loss(*batch)
        assert whole.isfinite() and whole >= 0
        longer = Batch(*(torch.cat((part, part[:, :1]), 1) if part.dim() > 1 else part for part in batch))
        longer.mask[:, -1:] = False
        assert_same(loss(*longer), whole)
        order = random.sample(range(len(batch.targets)), len(batch.targets))
        assert_same(loss(*(part[order] for part in batch)), whole)
        if shift:
            assert_same(loss(batch.logits + amount, *batch[1:]), whole, tolerance=1e-11)

    holds()


def assert_direction(loss: Scalar) -> None:
    """A step down the gradient on the logits: targets to follow gain probability, targets to avoid lose it."""
    batch = random_batch(7)
    stepped = batch.logits - 0.5 * gradient(loss(*batch), batch.logits)[0]
    before, after = (
        logits.log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1) for logits in (batch.logits, stepped)
    )
    avoid = batch.mask & (batch.labels == TokenLabel.NEGATIVE)
    follow = batch.mask & ~avoid
    assert avoid.any() and follow.any()
    assert after[follow].gt(before[follow]).all()
    assert after[avoid].lt(before[avoid]).all()


def assert_edges(loss: Scalar) -> None:
    """One kind of token, nothing counted, no example, no step: finite, and a gradient all the same."""
    whole = random_batch(0)
    for label in TokenLabel:
        assert loss(*whole._replace(labels=torch.full((4,), label))).isfinite()
    nothing = whole._replace(mask=torch.zeros_like(whole.mask))
    for batch in (nothing, random_batch(0, examples=0), random_batch(0, steps=0)):
        value = loss(*batch)
        assert value.item() == 0
        assert gradient(value, batch.logits)[0].eq(0).all()


def assert_padding_may_hold_anything(loss: Scalar) -> None:
    """Ids outside the vocabulary and unknown labels are no error where the mask is False, and get no gradient."""
    batch = random_batch(1)
    dirty = batch._replace(
        targets=batch.targets.where(batch.mask, -100), labels=batch.labels.where(batch.mask, 7), mask=batch.mask
    )
    value = loss(*dirty)
    assert_same(value, loss(*batch))
    assert gradient(value, batch.logits)[0][~batch.mask].eq(0).all()


def assert_half_precision(loss: Scalar) -> None:
    """Half precision gives exactly the fp32 loss of the rounded logits, up to the largest that half holds."""
    for dtype in (torch.float16, torch.bfloat16):
        for spread in (3.0, 4e4):
            batch = random_batch(0, spread=spread)
            half = batch.logits.detach().clamp(-6e4, 6e4).to(dtype).requires_grad_()
            value = loss(half, *batch[1:])
            assert value.dtype == torch.float32 and value.isfinite()
            assert torch.equal(value, loss(half.detach().float(), *batch[1:]))
            (found,) = gradient(value, half)
            assert found.dtype == dtype and found.isfinite().all()


def assert_wrong_arguments_are_explained(loss: Scalar, weights: tuple[str, ...]) -> None:
    """Each wrong argument is named with its value; `weights` are the keywords that must be finite and >= 0."""
    good = random_batch(0, examples=2, steps=3, vocabulary_size=5)._replace(mask=torch.ones(2, 3, dtype=torch.bool))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"logits": good.logits[0]}, "logits have shape (3, 5)"),
        ({"targets": good.targets[:, :2]}, "targets have shape (2, 2)"),
        ({"targets": good.targets + 5}, "target id is"),
        ({"mask": good.mask.long()}, "type torch.int64"),
        ({"labels": torch.zeros(3)}, "labels have shape (3,)"),
        ({"labels": torch.tensor([1, 2])}, "the label 2"),
        ({"logits": good.logits[..., :1], "targets": torch.zeros(2, 3).long()}, "a vocabulary of 1"),
        *(({name: -0.1}, f"{name} is -0.1") for name in weights),
        *(({name: float("nan")}, f"{name} is nan") for name in weights),
    ]
    for changes, got in wrong:
        with pytest.raises(SafetyError) as error:
            loss(**{**good._asdict(), **changes})
        assert got in error.value.got
