"""Click's loss: numbers, gradients, limits, invariances; and damaged copies that these checks catch."""

from __future__ import annotations

import doctest
import inspect
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import parlai_safety.losses.click as click_module
from parlai_safety.errors import SafetyError
from parlai_safety.losses.click import click_loss

from .checks import assert_same
from .pairs import hand_worked, pair_batch, seeds
from .reference_pairs import reference_click, slopes

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def check_hand_worked_numbers(loss: Any) -> None:
    """The batch of `hand_worked` with margin 2 and weight 0.25.

    hinge = 2 - ln 25/12 = 1.266031; the likelihood part is ln 4 / 2 = 0.693147
    loss = 0.693147 + 0.25 * 1.266031 = 1.009655; without the chosen reply in the first part 0.316508
    """
    batch = hand_worked()
    output = batch.call(loss, margin=2.0, weight=0.25)
    assert abs(output.loss.item() - 1.009655) < 1e-6
    assert_same(output.nll.item(), math.log(2))
    assert_same(output.margins.tolist(), [math.log(25 / 12)])
    assert_same(output.hinges.tolist(), [2 - math.log(25 / 12)])
    alone = batch.call(loss, margin=2.0, weight=0.25, chosen_nll=False)
    assert alone.nll.item() == 0.0
    assert_same(alone.loss.item(), 0.25 * (2 - math.log(25 / 12)))


def check_numpy_reference(loss: Any) -> None:
    """Loss and gradient are those of the loops, with some margins met and some not."""
    for seed, example in enumerate([(0, 2, 2), (0, 1, 2, 3), (3,)]):
        for chosen_nll in (True, False):
            batch = pair_batch(seed, example)
            more = {"margin": 1.5, "weight": 0.7, "chosen_nll": chosen_nll}
            output = batch.call(loss, **more)
            chosen, rejected, of = batch.arrays()
            assert_same(output.loss.item(), reference_click(chosen, rejected, of, **more))

            def value(parts: Any = (chosen, rejected, of), more: Any = more) -> float:
                return reference_click(*parts, **more)

            for found, array in zip(batch.gradients(output), (chosen[0], rejected[0]), strict=True):
                np.testing.assert_allclose(found.numpy(), slopes(value, array), atol=1e-8)


def check_step_direction(loss: Any) -> None:
    """A step of gradient descent widens every margin that is not met and lowers log p of the rejected replies."""
    batch = pair_batch(6, (0, 1, 2, 3))
    before = batch.call(loss)
    first, second = batch.gradients(before)
    stepped = batch._replace(chosen_logits=batch.chosen_logits - first, rejected_logits=batch.rejected_logits - second)
    after = stepped.call(loss)
    assert (after.margins > before.margins).all() and after.nll < before.nll
    only_rejected = batch._replace(rejected_logits=stepped.rejected_logits).call(loss)
    assert (only_rejected.margins > before.margins).all()


def check_a_met_margin_has_no_gradient(loss: Any) -> None:
    """Beyond the margin the rejected reply is left alone; at weight 0 always."""
    batch = hand_worked()
    for more, moved in (({"margin": 0.7}, False), ({"margin": 0.75}, True), ({"margin": 5.0, "weight": 0.0}, False)):
        output = batch.call(loss, **more)
        assert (batch.gradients(output)[1].abs().sum() > 0).item() is moved
        assert output.hinges.min() >= 0


def check_mean_over_pairs(loss: Any) -> None:
    """The hinge is a mean: a batch twice over has the loss of the batch."""
    batch = pair_batch(1, (0, 1, 2, 3))
    twice = batch._replace(
        **{name: torch.cat((getattr(batch, name),) * 2) for name in batch._fields[:-1]}, example=torch.arange(8)
    )
    assert_same(twice.call(loss).loss, batch.call(loss).loss)


def check_no_pairs_and_nothing(loss: Any) -> None:
    """Without pairs the loss is the mean cost of a token; of nothing it is 0, with a zero gradient."""
    batch = pair_batch(3, ())
    chosen, _, _ = batch.arrays()
    from .reference_pairs import log_p

    for chosen_nll in (True, False):
        output = batch.call(loss, chosen_nll=chosen_nll)
        assert_same(output.loss.item(), -sum(log_p(*chosen)) / chosen[2].sum())
    nothing = batch._replace(chosen_mask=torch.zeros_like(batch.chosen_mask))
    output = nothing.call(loss)
    assert output.loss.item() == 0.0
    assert all(part.eq(0).all() for part in nothing.gradients(output))


def check_invariances(loss: Any) -> None:
    """Padding, the order of the pairs and a constant on each position's logits change nothing."""

    @quick
    @given(seeds)
    def holds(seed: int) -> None:
        batch = pair_batch(seed)
        expected = batch.call(loss).loss
        wide = torch.nn.functional.pad
        longer = batch._replace(
            rejected_logits=wide(batch.rejected_logits, (0, 0, 0, 2), value=9.0),
            rejected_targets=wide(batch.rejected_targets, (0, 2), value=-1),
            rejected_mask=wide(batch.rejected_mask, (0, 2)),
        )
        assert_same(longer.call(loss).loss, expected)
        turned = batch._replace(**{name: getattr(batch, name).flip(0) for name in batch._fields[3:]})
        assert_same(turned.call(loss).loss, expected)
        moved = batch._replace(chosen_logits=batch.chosen_logits + 7, rejected_logits=batch.rejected_logits - 5)
        assert_same(moved.call(loss).loss, expected, 1e-11)

    holds()


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_loss_passes(check: Any) -> None:
    check(click_loss)


MUTANTS = [
    # what the source says, what the mutant says, check that must fail
    ("torch.relu(margin - margins)", "torch.relu(margins - margin)", "hand_worked_numbers"),
    ("torch.relu(margin - margins)", "torch.relu(margin + margins)", "step_direction"),
    ("torch.relu(margin - margins)", "(margin - margins)", "a_met_margin_has_no_gradient"),
    ("torch.relu(margin - margins)", "torch.nn.functional.softplus(margin - margins)", "numpy_reference"),
    ("nll + weight * hinges.sum()", "nll + hinges.sum()", "hand_worked_numbers"),
    ("hinges.sum() / max(1, len(hinges))", "hinges.sum()", "mean_over_pairs"),
    ("max(1, len(hinges))", "len(hinges)", "no_pairs_and_nothing"),
    ("counted].sum().clamp(min=1)", "counted].sum()", "no_pairs_and_nothing"),
    ("if chosen_nll else in_no_pair(sums)", "if True else in_no_pair(sums)", "hand_worked_numbers"),
    ("if chosen_nll else in_no_pair(sums)", "if chosen_nll else ~in_no_pair(sums)", "no_pairs_and_nothing"),
    ("rejected_mask).sum(-1)\n", "rejected_mask).mean(-1)\n", "invariances"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "check"), MUTANTS)
def test_a_mutant_is_caught(old: str, new: str, check: str) -> None:
    source = inspect.getsource(click_module)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    module = ModuleType("click_mutant")
    exec(source.replace(old, new), module.__dict__)  # noqa: S102  our own source with one string replaced
    with pytest.raises((AssertionError, ZeroDivisionError)):
        CHECKS[check](module.click_loss)


def test_every_check_catches_a_mutant() -> None:
    assert {row[2] for row in MUTANTS} == set(CHECKS)


def test_docstring_example() -> None:
    results = doctest.testmod(click_module)
    assert results.attempted > 0 and results.failed == 0


GOOD = pair_batch(0)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"margin": -1.0}, "margin is -1"),
        ({"margin": math.inf}, "margin is inf"),
        ({"weight": -0.5}, "weight is -0.5"),
        ({"weight": math.nan}, "weight is nan"),
        ({"example": None}, "4 chosen and 3 rejected"),
        ({"rejected_mask": GOOD.rejected_mask.long()}, "mask has shape"),
        ({"rejected_targets": GOOD.rejected_targets + 6}, "target id is"),
    ],
)
def test_wrong_arguments_are_explained(changes: dict[str, Any], got: str) -> None:
    arguments: dict[str, Any] = {**GOOD._asdict(), **changes}
    with pytest.raises(SafetyError) as error:
        click_loss(**arguments)
    assert got in error.value.got and error.value.why and error.value.instead
