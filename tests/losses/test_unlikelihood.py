"""The unlikelihood loss: numbers, an independent reference, direction, and what happens where p is nearly 1."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

import parlai_safety.losses.unlikelihood as module
from parlai_safety.losses import TokenLabel
from parlai_safety.losses.rows import separate_weights
from parlai_safety.losses.unlikelihood import unlikelihood_loss, unlikelihood_rows

from . import labelled
from .checks import NEGATIVE, PLAIN, POSITIVE, assert_same, make_batch, random_batch
from .reference_labelled import reference_unlikelihood


def loss(*tensors, alpha=0.7, **named):
    return unlikelihood_loss(*tensors, alpha=alpha, **named).loss


def test_hand_worked_numbers():
    """Weights exp(logit) over three ids, alpha = 0.5; each part has a count of its own.

    positive  4 2 2, target 0: -ln(4 / 8)  = ln 2 = 0.693147
    plain     1 1 1, target 2: -ln(1 / 3)  = ln 3 = 1.098612
    negative  6 3 1, target 0: -ln(4 / 10)        = 0.916291
    loss = (0.693147 + 1.098612) / 2 + 0.5 * 0.916291 = 1.354025

    Gradient of the third token, times alpha: +p = 0.6 on id 0; -0.6 * 3/4 and -0.6 * 1/4 on the others.
    """
    weights = torch.tensor([[[4.0, 2, 2]], [[1, 1, 1]], [[6, 3, 1]]], dtype=torch.float64)
    batch = make_batch(weights.log(), [[0], [2], [0]], [POSITIVE, PLAIN, NEGATIVE])
    output = unlikelihood_loss(*batch, alpha=0.5)
    assert abs(output.loss.item() - 1.354025) < 1e-6
    assert_same(output.likelihood_tokens.flatten().tolist(), [math.log(2), math.log(3), 0.0])
    assert_same(output.unlikelihood_tokens.flatten().tolist(), [0.0, 0.0, -math.log(0.4)])
    assert output.follow_mask.flatten().tolist() == [True, True, False]
    assert output.avoid_mask.flatten().tolist() == [False, False, True]
    assert_same(labelled.gradient(output.loss, batch.logits)[0][2, 0].tolist(), [0.3, -0.225, -0.075])


def test_docstring_example():
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("seed", range(10))
def test_it_is_the_reference(seed):
    batch = random_batch(seed, *labelled.SHAPES[seed % 5])
    value = loss(*batch)
    expected = reference_unlikelihood(*(part.detach().numpy() for part in batch), alpha=0.7)
    assert_same(value.item(), expected.loss)
    assert_same(labelled.gradient(value, batch.logits)[0].numpy(), expected.logits_grad)


def test_rows_and_weights_make_the_loss():
    """The agent's road: rows of counted tokens times weights. The weights are fp32, hence the tolerance."""
    batch = random_batch(3)
    rows = unlikelihood_rows(batch.logits[batch.mask], batch.targets[batch.mask], batch.labels[batch.mask])
    weights = separate_weights(batch.labels, batch.mask, 0.7)
    assert_same((rows.loss * weights[batch.mask]).sum().item(), loss(*batch).item(), tolerance=1e-6)
    log_probabilities = batch.logits.log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1)
    assert_same(rows.nll, -log_probabilities[batch.mask].detach())
    assert torch.equal(rows.correct, (batch.logits.argmax(-1) == batch.targets)[batch.mask])
    assert not rows.nll.requires_grad


def test_no_alpha_is_maximum_likelihood_on_what_is_to_be_followed():
    batch = random_batch(2)
    follow = batch.mask & (batch.labels[:, None] != NEGATIVE)
    expected = torch.nn.functional.cross_entropy(batch.logits[follow], batch.targets[follow])
    assert_same(loss(*batch, alpha=0.0), expected)


def test_a_sure_token_still_has_its_gradient():
    """p is 1 to the last digit: the cost is the margin and the gradient 1, where a clamp would give 0.

    Logits 40, 0, 0: 1 - p = 2 e^-40 / (1 + 2 e^-40), and -log of it is 40 - ln 2 + 2 e^-40.
    """
    for dtype in (torch.float64, torch.float32):
        logits = torch.tensor([[[40.0, 0, 0]], [[0.0, 1e4, -1e4]]], dtype=dtype, requires_grad=True)
        batch = (torch.tensor([[0], [1]]), torch.tensor([NEGATIVE, NEGATIVE]), torch.ones(2, 1, dtype=torch.bool))
        output = unlikelihood_loss(logits, *batch)
        costs = output.unlikelihood_tokens.flatten()
        assert costs.tolist() == pytest.approx([40 - math.log(2), 1e4], rel=1e-6)
        (found,) = labelled.gradient(output.loss, logits)
        assert found[:, 0].tolist() == [pytest.approx([0.5, -0.25, -0.25]), pytest.approx([-0.5, 0.5, 0.0])]


def test_a_cost_is_exact_to_the_last_digit():
    """At a margin of 21 the cost is 21 + 7.6e-10, which float64 can tell from 21; others may all be very low."""
    batch = make_batch([[[21.0, -1e5, 0.0], [0.0, -3e4, -3e4]]], [[0, 0]], [NEGATIVE])
    expected = [[21 + math.log1p(math.exp(-21)), 3e4 - math.log(2)]]
    assert_same(unlikelihood_loss(*batch).unlikelihood_tokens.tolist(), expected, tolerance=1e-14)


def test_a_token_that_nobody_says_costs_nothing():
    batch = make_batch([[[-50.0, 0, 0]]], [[0]], [NEGATIVE])
    output = unlikelihood_loss(*batch)
    assert 0 < output.loss.item() < 1e-20
    assert labelled.gradient(output.loss, batch.logits)[0].abs().max() < 1e-20


def test_gradcheck():
    batch = random_batch(5, examples=2, steps=3, vocabulary_size=4)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, *batch[1:]), batch.logits)


def test_a_ruled_out_score_does_no_harm():
    """ParlAI's generator gives the start token the lowest number that the type holds."""
    for dtype, lowest in [(torch.float32, -1e20), (torch.float16, -65504.0)]:
        logits = torch.tensor([[[lowest, 1.0, 2.0]]], dtype=dtype, requires_grad=True)
        value = loss(logits, torch.tensor([[1]]), torch.tensor([NEGATIVE]), torch.ones(1, 1, dtype=torch.bool))
        assert value.item() == pytest.approx(0.7 * math.log1p(math.exp(-1.0)), rel=1e-3)
        assert labelled.gradient(value, logits)[0].isfinite().all()


def test_it_keeps_what_every_labelled_loss_keeps():
    labelled.assert_direction(loss)
    labelled.assert_edges(loss)
    labelled.assert_padding_may_hold_anything(loss)
    labelled.assert_half_precision(loss)
    labelled.assert_invariances(loss, shift=True)
    labelled.assert_wrong_arguments_are_explained(loss, ("alpha",))


def test_labels_per_example_and_per_token_are_the_same():
    batch = random_batch(2)
    assert_same(loss(*batch), loss(*batch._replace(labels=batch.labels[:, None].repeat(1, 5))))
    assert set(TokenLabel) == {POSITIVE, NEGATIVE, PLAIN}
