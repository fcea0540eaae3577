"""The sigmoid-only loss: numbers, an independent reference, and which term a token enters."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

import parlai_safety.losses.scones as module
from parlai_safety.losses.rows import separate_weights
from parlai_safety.losses.scones import scones_loss, scones_rows

from . import labelled
from .checks import NEGATIVE, PLAIN, POSITIVE, assert_same, make_batch, random_batch
from .reference_labelled import reference_scones


def loss(*tensors, alpha_pm=0.3, alpha_minus=0.7, **named):
    return scones_loss(*tensors, alpha_pm=alpha_pm, alpha_minus=alpha_minus, **named).loss


def test_hand_worked_numbers():
    """Logits as logs, so that sigmoid(ln w) = w / (1 + w); alpha_pm = 0.5, alpha_minus = 2.

    positive  w 3 1 1, target 0: L+ = -ln(3/4) = 0.287682, L+- = -2 ln(1/2)            = 1.386294
    plain     w 1 3 3, target 0: L+ = -ln(1/2) = 0.693147, L+- = -2 ln(1/4)            = 2.772589
    negative  w 3 9 9, target 0: L- = -ln(1/4) = 1.386294; the other ids cost nothing
    loss = (0.287682 + 0.693147) / 2 + 0.5 * (1.386294 + 2.772589) / 2 + 2 * 1.386294 = 4.302724

    Gradients: the first token has (3/4 - 1) / 2 on its target and 0.5 * 1/2 / 2 on the others; the third has
    2 * 3/4 on its target and 0 on the others.
    """
    weights = torch.tensor([[[3.0, 1, 1]], [[1, 3, 3]], [[3, 9, 9]]], dtype=torch.float64)
    batch = make_batch(weights.log(), [[0], [0], [0]], [POSITIVE, PLAIN, NEGATIVE])
    output = scones_loss(*batch, alpha_pm=0.5, alpha_minus=2.0)
    assert abs(output.loss.item() - 4.302724) < 1e-6
    assert_same(output.target_tokens.flatten().tolist(), [math.log(4 / 3), math.log(2), 0.0])
    assert_same(output.other_tokens.flatten().tolist(), [2 * math.log(2), 2 * math.log(4), 0.0])
    assert_same(output.avoid_tokens.flatten().tolist(), [0.0, 0.0, math.log(4)])
    assert output.follow_mask.flatten().tolist() == [True, True, False]
    assert output.avoid_mask.flatten().tolist() == [False, False, True]
    found = labelled.gradient(output.loss, batch.logits)[0]
    assert_same(found[0, 0].tolist(), [-0.125, 0.125, 0.125])
    assert_same(found[2, 0].tolist(), [1.5, 0.0, 0.0])


def test_docstring_example():
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_reference(seed):
    batch = random_batch(seed, *labelled.SHAPES[seed % 5])
    value = loss(*batch)
    expected = reference_scones(*(part.detach().numpy() for part in batch), alpha_pm=0.3, alpha_minus=0.7)
    assert_same(value.item(), expected.loss)
    assert_same(labelled.gradient(value, batch.logits)[0].numpy(), expected.logits_grad)


@pytest.mark.parametrize("alpha_pm", [0.0, 0.3])
def test_rows_and_weights_make_the_loss(alpha_pm):
    """The agent's road: rows of counted tokens times weights. The weights are fp32, hence the tolerance."""
    batch = random_batch(3)
    mask = batch.mask
    rows = scones_rows(batch.logits[mask], batch.targets[mask], batch.labels[mask], alpha_pm=alpha_pm)
    weights = separate_weights(batch.labels, mask, 0.7)
    assert_same((rows.loss * weights[mask]).sum().item(), loss(*batch, alpha_pm=alpha_pm).item(), tolerance=1e-6)
    log_probabilities = batch.logits.log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1)
    assert_same(rows.nll, -log_probabilities[mask].detach())
    assert torch.equal(rows.correct, (batch.logits.argmax(-1) == batch.targets)[mask])


def test_extreme_logits_neither_overflow_nor_vanish():
    """A cost is linear on one side and 0 on the other; the target's own size does not eat up the sum of the others."""
    batch = make_batch(
        [[[1e4, 0.0, 0.0], [-1e4, -1e4, 0.0]], [[1e4, 5.0, 5.0], [-1e4, 0.0, 0.0]]], [[0, 0], [0, 0]], [1, 0]
    )
    output = scones_loss(*batch)
    assert_same(output.target_tokens.tolist(), [[0.0, 1e4], [0.0, 0.0]])
    assert_same(output.other_tokens.tolist(), [[2 * math.log(2), math.log(2)], [0.0, 0.0]])
    assert_same(output.avoid_tokens.tolist(), [[0.0, 0.0], [1e4, 0.0]])
    single = scones_loss(batch.logits.detach().float(), *batch[1:])
    assert single.other_tokens[0, 0].item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_gradcheck():
    batch = random_batch(5, examples=2, steps=3, vocabulary_size=4)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, *batch[1:]), batch.logits)


def test_a_ruled_out_score_does_no_harm():
    """ParlAI's generator gives the start token the lowest number that the type holds: it costs nothing."""
    for dtype, lowest in [(torch.float32, -1e20), (torch.float16, -65504.0)]:
        logits = torch.tensor([[[lowest, 0.0, 0.0]]], dtype=dtype, requires_grad=True)
        value = loss(logits, torch.tensor([[1]]), torch.tensor([POSITIVE]), torch.ones(1, 1, dtype=torch.bool))
        assert value.item() == pytest.approx(1.3 * math.log(2), rel=1e-3)
        assert labelled.gradient(value, logits)[0].isfinite().all()


def test_it_keeps_what_every_labelled_loss_keeps():
    labelled.assert_direction(loss)
    labelled.assert_edges(loss)
    labelled.assert_padding_may_hold_anything(loss)
    labelled.assert_half_precision(loss)
    labelled.assert_invariances(loss, shift=False)
    labelled.assert_wrong_arguments_are_explained(loss, ("alpha_pm", "alpha_minus"))
