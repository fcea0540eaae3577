"""The DIRECTOR loss: numbers, an independent reference, which token trains which head, the scores to decode with."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

import parlai_safety.losses.director as module
from parlai_safety.errors import SafetyError
from parlai_safety.losses.director import class_costs, director_loss, director_rows, director_scores, neutral_costs
from parlai_safety.losses.rows import promoted

from . import labelled
from .checks import NEGATIVE, PLAIN, POSITIVE, assert_same, random_batch
from .reference_labelled import reference_director


def class_logits_for(logits):
    """Any function of the logits will do where a check looks at the logits alone."""
    return promoted(logits.detach()).roll(1, -1).cos() * 3


def loss(logits, targets, labels, mask, **more):
    settings = {"gamma": 0.7, "lm_on_positive": True, "neutral_weight": 0.4, **more}
    return director_loss(logits, class_logits_for(logits), targets, labels, mask, **settings).loss


def test_hand_worked_numbers():
    """Three tokens, target 0 in each; logits ln 4, ln 2, ln 2; class logits ln 3, ln 1, ln 1.

    LM cost of a token: ln 2 = 0.693147. Class cost: negative -ln(1 - 3/4) = 1.386294, positive -ln(3/4) = 0.287682.
    gamma = 3, LM on plain alone:       0.693147     + 3 * (1.386294 + 0.287682) / 2 = 3.204111
    Regulariser: the other ids have sigmoid 1/2 and cost nothing; with class logits ln 3 everywhere they cost
    (3/4 - 1/2)^2 = 1/16 each, and 1/16 in the mean.
    """
    logits = torch.tensor([4.0, 2, 2], dtype=torch.float64).log().expand(3, 1, 3)
    class_logits = torch.tensor([3.0, 1, 1], dtype=torch.float64).log().expand(3, 1, 3)
    rest = (torch.zeros(3, 1, dtype=torch.int64), torch.tensor([PLAIN, NEGATIVE, POSITIVE]), torch.ones(3, 1) > 0)
    output = director_loss(logits, class_logits, *rest, gamma=3.0)
    assert abs(output.loss.item() - 3.204111) < 1e-6
    assert_same(output.lm_tokens.flatten().tolist(), [math.log(2), 0.0, 0.0])
    assert_same(output.class_tokens.flatten().tolist(), [0.0, math.log(4), math.log(4 / 3)])
    assert output.lm_mask.flatten().tolist() == [True, False, False]
    assert output.class_mask.flatten().tolist() == [False, True, True]
    both = director_loss(logits, class_logits, *rest, gamma=3.0, lm_on_positive=True)
    assert_same(both.lm_tokens.flatten().tolist(), [math.log(2), 0.0, math.log(2)])
    assert_same(both.loss, output.loss)
    flat = director_loss(logits, class_logits, *rest, gamma=3.0, neutral_weight=8.0)
    assert_same(flat.loss, output.loss)
    pulled = director_loss(logits, torch.full_like(class_logits, math.log(3)), *rest, gamma=3.0, neutral_weight=8.0)
    assert_same(pulled.loss - output.loss, torch.tensor(8 / 16, dtype=torch.float64))


def test_docstring_examples():
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("lm_on_positive", "neutral_weight"), [(False, 0.0), (True, 0.4)])
def test_it_is_the_reference(seed, lm_on_positive, neutral_weight):
    batch = random_batch(seed, *labelled.SHAPES[seed % 5])
    class_logits = random_batch(seed + 100, *labelled.SHAPES[seed % 5]).logits
    settings = {"gamma": 0.7, "lm_on_positive": lm_on_positive, "neutral_weight": neutral_weight}
    value = director_loss(batch.logits, class_logits, *batch[1:], **settings).loss
    arrays = (part.detach().numpy() for part in (batch.logits, class_logits, *batch[1:]))
    expected = reference_director(*arrays, **settings)
    assert_same(value.item(), expected.loss)
    found = labelled.gradient(value, batch.logits, class_logits)
    assert_same(found[0].numpy(), expected.logits_grad)
    assert_same(found[1].numpy(), expected.class_grad)


def test_a_step_moves_the_class_head_towards_the_label_at_the_target_alone():
    batch, class_logits = random_batch(7), random_batch(8).logits
    value = director_loss(batch.logits, class_logits, *batch[1:], gamma=1.0).loss
    at_target = torch.nn.functional.one_hot(batch.targets, 7).bool()
    (found,) = labelled.gradient(value, class_logits)
    assert found[~at_target].eq(0).all()
    push = found[at_target].view_as(batch.targets)
    assert push[batch.mask & (batch.labels == POSITIVE)].lt(0).all()
    assert push[batch.mask & (batch.labels == NEGATIVE)].gt(0).all()
    assert push[~batch.mask | (batch.labels == PLAIN)].eq(0).all()


def test_a_negative_reply_never_trains_the_language_model():
    batch = random_batch(7)
    value = loss(*batch)
    (found,) = labelled.gradient(value, batch.logits)
    assert found[batch.labels == NEGATIVE].eq(0).all()
    (found,) = labelled.gradient(loss(*batch, lm_on_positive=False), batch.logits)
    assert found[batch.labels != PLAIN].eq(0).all()


def test_parts_for_training_make_the_plain_form():
    """Training computes the class head at the target alone; the regulariser looks at all ids."""
    batch, class_logits = random_batch(3), random_batch(13).logits
    settings = {"gamma": 0.7, "lm_on_positive": True, "neutral_weight": 0.4}
    output = director_loss(batch.logits, class_logits, *batch[1:], **settings)
    lm = batch.mask & (batch.labels != NEGATIVE)
    labelled_tokens = batch.mask & (batch.labels != PLAIN)
    ids = batch.targets[labelled_tokens]
    rows = director_rows(batch.logits[lm], batch.targets[lm], batch.labels[lm])
    said = class_costs(class_logits[labelled_tokens, ids], batch.labels[labelled_tokens])
    neutral = neutral_costs(class_logits[labelled_tokens], ids)
    assert_same(rows.loss.mean() + 0.7 * said.mean() + 0.4 * neutral.mean(), output.loss)
    assert torch.equal(rows.correct, (batch.logits.argmax(-1) == batch.targets)[lm])
    assert_same(rows.nll, rows.loss.detach())


def test_scores_to_decode_with_are_the_formula():
    """log P = log P_LM + gamma * log sigmoid(c), made to sum to 1."""
    logits, class_logits = random_batch(1).logits, random_batch(2).logits
    for gamma in (0.0, 0.5, 3.0):
        found = director_scores(logits, class_logits, gamma).softmax(-1)
        plain = logits.softmax(-1) * class_logits.sigmoid() ** gamma
        assert_same(found, plain / plain.sum(-1, keepdim=True))
    assert torch.equal(director_scores(logits, class_logits, 0.0), logits)
    untrained = director_scores(logits, torch.zeros_like(logits), 2.0)
    assert_same(untrained.softmax(-1), logits.softmax(-1))


def test_scores_stay_finite_in_half_precision_and_at_ruled_out_ids():
    logits = torch.tensor([-65504.0, 1.0, 2.0], dtype=torch.float16)
    scores = director_scores(logits, torch.tensor([-65504.0, -6e4, 6e4], dtype=torch.float16), 5.0)
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert scores.argmax() == 2


def test_gradcheck():
    batch, other = random_batch(5, 2, 3, 4), random_batch(6, 2, 3, 4).logits
    assert torch.autograd.gradcheck(
        lambda logits, class_logits: (
            director_loss(logits, class_logits, *batch[1:], gamma=0.6, lm_on_positive=True, neutral_weight=0.5).loss
        ),
        (batch.logits, other),
    )


def test_it_keeps_what_every_labelled_loss_keeps():
    labelled.assert_edges(loss)
    labelled.assert_padding_may_hold_anything(loss)
    labelled.assert_half_precision(loss)
    labelled.assert_invariances(lambda *tensors, **named: loss(*tensors, **named), shift=False)
    labelled.assert_wrong_arguments_are_explained(loss, ("gamma", "neutral_weight"))


def test_class_logits_of_another_shape_are_refused():
    batch = random_batch(0)
    with pytest.raises(SafetyError, match="class_logits have shape"):
        director_loss(batch.logits, batch.logits[..., :3], *batch[1:])
