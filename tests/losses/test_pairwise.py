"""Pairwise CRINGE: numbers, limits, gradients, invariances; and damaged copies that these checks catch."""

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

import parlai_safety.losses.pairwise as pairwise_module
from parlai_safety.errors import SafetyError
from parlai_safety.losses import TokenLabel, cringe_loss
from parlai_safety.losses.pairwise import pairwise_cringe_loss

from .checks import assert_same, seeded
from .pairs import hand_worked, pair_batch, seeds
from .reference_pairs import reference_pairwise, slopes

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def check_hand_worked_numbers(loss: Any) -> None:
    """The batch of `hand_worked` with b = 1, tau = 0.5, alpha = 0.1.

    M = ln 25/12 = 0.733969, g = 1 / (1 + exp((0.733969 - 1) / 0.5)) = 1 / (1 + (25/12)^2 / e^2) = 0.629964
    loss = g * (ln 4 + 0.1 * ln 4) / 4 = 0.629964 * 1.1 * 1.386294 / 4 = 0.240162
    """
    output = hand_worked().call(loss, margin=1.0, temperature=0.5, alpha=0.1, generator=None)
    gate = 1 / (1 + (25 / 12) ** 2 / math.e**2)
    assert abs(output.loss.item() - 0.240162) < 1e-6
    assert_same(output.margins.tolist(), [math.log(25 / 12)])
    assert_same(output.gates.tolist(), [gate])
    assert_same(output.loss.item(), gate * 1.1 * math.log(4) / 4)
    assert_same(output.chosen_tokens.tolist(), [[math.log(2), math.log(2)]])
    assert_same(output.rejected_tokens.tolist(), [[math.log(3), math.log(4 / 3)]])
    assert output.sampled_positive.tolist() == [[1, 1]]


def check_numpy_reference(loss: Any) -> None:
    """Loss, margins and gates are those of the loops, examples without a pair and with two of them included."""
    for seed, example in enumerate([(0, 2, 2), (0, 1, 2, 3), (), (3,), (1, 1, 1)]):
        for per_token in (False, True):
            batch = pair_batch(seed, example)
            more = {"margin": 0.7, "temperature": 1.3, "alpha": 0.4, "per_token": per_token}
            for k in (1, 3):
                output = batch.call(loss, k=k, generator=seeded(), **more)
                expected, margins, gates = reference_pairwise(
                    *batch.arrays(), drawn=output.sampled_positive.numpy(), **more
                )
                assert_same(output.loss.item(), expected)
                assert_same(output.margins.tolist(), margins)
                assert_same(output.gates.tolist(), gates)
            first, *_ = reference_pairwise(*batch.arrays(), **more)
            assert_same(batch.call(loss, generator=None, **more).loss.item(), first)


def check_gradient_through_the_gate(loss: Any) -> None:
    """Finite differences: with the gate let through they are the gradient; stopped, the gate is a number."""
    batch = pair_batch(4)
    more = {"margin": 0.5, "temperature": 2.0, "alpha": 0.3}
    chosen, rejected, example = batch.arrays()
    *_, gates = reference_pairwise(chosen, rejected, example, **more)
    for stop_gradient, given_gates in ((False, None), (True, gates)):
        output = batch.call(loss, stop_gradient=stop_gradient, generator=None, **more)

        def value(given_gates: Any = given_gates) -> float:
            return reference_pairwise(chosen, rejected, example, gates=given_gates, **more)[0]

        for found, array in zip(batch.gradients(output), (chosen[0], rejected[0]), strict=True):
            np.testing.assert_allclose(found.numpy(), slopes(value, array), atol=1e-8)


def check_binary_cringe_without_a_gate(loss: Any) -> None:
    """b = inf: CRINGE on the two replies as rows of one batch, with the same draws and the same gradient."""
    batch = pair_batch(1, (0, 1, 2, 3))
    output = batch.call(loss, margin=math.inf, temperature=1.0, alpha=0.3, k=3, generator=seeded(5))
    wide = torch.nn.functional.pad
    rows = cringe_loss(
        torch.cat((batch.chosen_logits, wide(batch.rejected_logits, (0, 0, 0, 1)))),
        torch.cat((batch.chosen_targets, wide(batch.rejected_targets, (0, 1)))),
        torch.tensor([TokenLabel.POSITIVE] * 4 + [TokenLabel.NEGATIVE] * 4),
        torch.cat((batch.chosen_mask, wide(batch.rejected_mask, (0, 1)))),
        alpha=0.3,
        k=3,
        generator=seeded(5),
    )
    assert output.gates.tolist() == [1.0] * 4
    assert_same(output.loss, rows.loss)
    through = batch.call(loss, margin=math.inf, alpha=0.3, k=3, stop_gradient=False, generator=seeded(5))
    expected = batch.gradients(rows)
    assert_same(batch.gradients(output), expected)
    assert_same(batch.gradients(through), expected)


def check_hard_margin(loss: Any) -> None:
    """tau = 0: all or nothing, half at M = b; a small tau comes near; and no gradient passes a hard gate."""
    batch = hand_worked()
    (at,) = batch.call(loss, generator=None).margins.tolist()
    for margin, gate in ((at + 0.01, 1.0), (at - 0.01, 0.0), (at, 0.5)):
        for stop_gradient in (True, False):
            hard = batch.call(loss, margin=margin, temperature=0.0, stop_gradient=stop_gradient, generator=None)
            assert hard.gates.tolist() == [gate]
            assert (batch.gradients(hard)[1].abs().sum() > 0) == (gate > 0)
        assert_same(batch.call(loss, margin=margin, temperature=1e-5, generator=None).gates.tolist(), [gate])
    assert_same(batch.call(loss, margin=at + 0.01, temperature=1e9, generator=None).gates.tolist(), [0.5], 1e-8)


def check_step_direction(loss: Any) -> None:
    """A step of gradient descent widens every margin, closes every gate, and unmakes the rejected token."""
    for stop_gradient in (True, False):
        for per_token in (False, True):
            batch = pair_batch(6, (0, 1, 2, 3))
            more = {"generator": None, "stop_gradient": stop_gradient, "per_token": per_token}
            before = batch.call(loss, **more)
            first, second = batch.gradients(before)
            stepped = batch._replace(
                chosen_logits=batch.chosen_logits - first, rejected_logits=batch.rejected_logits - second
            )
            after = stepped.call(loss, **more)
            assert (after.margins > before.margins).all()
            assert (after.gates < before.gates).all()
            assert (after.chosen_tokens < before.chosen_tokens)[batch.chosen_mask].all()
            assert (after.rejected_tokens < before.rejected_tokens)[batch.rejected_mask].all()


def check_gate_slope_adds_to_the_step(loss: Any) -> None:
    """With the gradient let through the gate, the chosen token is pushed up harder, and so the rejected down."""
    batch = hand_worked()
    held, free = (batch.call(loss, stop_gradient=stop, temperature=1.0, generator=None) for stop in (True, False))
    assert_same(held.loss, free.loss)
    for (weak, strong), targets in zip(
        zip(batch.gradients(held), batch.gradients(free), strict=True),
        (batch.chosen_targets, batch.rejected_targets),
        strict=True,
    ):
        weak, strong = (part.gather(-1, targets[..., None]).abs() for part in (weak, strong))
        assert (strong > weak + 0.01).all()


def check_pairs_of_one_example(loss: Any) -> None:
    """An example with two rejected replies counts as two examples of one pair each."""
    shared = pair_batch(2, (0, 0), examples=1)
    apart = shared._replace(
        chosen_logits=shared.chosen_logits.detach().repeat(2, 1, 1).requires_grad_(),
        chosen_targets=shared.chosen_targets.repeat(2, 1),
        chosen_mask=shared.chosen_mask.repeat(2, 1),
        example=torch.tensor([0, 1]),
    )
    one, two = (batch.call(loss, generator=None, stop_gradient=False) for batch in (shared, apart))
    assert_same(one.loss, two.loss)
    assert_same(shared.gradients(one)[0][0], apart.gradients(two)[0].sum(0))


def check_ordinary_talk(loss: Any) -> None:
    """Without pairs the loss is cross-entropy, whatever the gate; nothing at all is 0 with a zero gradient."""
    batch = pair_batch(3, ())
    plain = cringe_loss(
        batch.chosen_logits, batch.chosen_targets, torch.full((4,), -1), batch.chosen_mask, generator=None
    )
    assert_same(batch.call(loss, margin=-50.0, generator=None).loss, plain.loss)
    nothing = pair_batch(3, (0, 1))._replace(
        chosen_mask=torch.zeros_like(batch.chosen_mask), rejected_mask=torch.zeros(2, 3, dtype=torch.bool)
    )
    for per_token in (False, True):
        output = nothing.call(loss, generator=None, per_token=per_token, stop_gradient=False)
        assert output.loss.item() == 0.0
        assert all(part.eq(0).all() for part in nothing.gradients(output))


def check_invariances(loss: Any) -> None:
    """Padding, the order of the pairs and a constant on each position's logits change nothing."""

    @quick
    @given(seeds)
    def holds(seed: int) -> None:
        batch = pair_batch(seed)
        expected = batch.call(loss, generator=None).loss
        wide = torch.nn.functional.pad
        longer = batch._replace(
            chosen_logits=wide(batch.chosen_logits, (0, 0, 0, 2), value=9.0),
            chosen_targets=wide(batch.chosen_targets, (0, 2), value=-1),
            chosen_mask=wide(batch.chosen_mask, (0, 2)),
        )
        assert_same(longer.call(loss, generator=None).loss, expected)
        turned = batch._replace(**{name: getattr(batch, name).flip(0) for name in batch._fields[3:]})
        assert_same(turned.call(loss, generator=None).loss, expected)
        moved = batch._replace(
            chosen_logits=batch.chosen_logits + 7, rejected_logits=batch.rejected_logits - 5 * torch.arange(3)[:, None]
        )
        assert_same(moved.call(loss, generator=None).loss, expected, 1e-11)

    holds()


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_loss_passes(check: Any) -> None:
    check(pairwise_cringe_loss)


MUTANTS = [
    # what the source says, what the mutant says, check that must fail
    ("(margin - margins) / temperature", "(margins - margin) / temperature", "hand_worked_numbers"),
    ("(margin - margins) / temperature", "(margin - margins) * temperature", "hand_worked_numbers"),
    ("alpha * sums.rejected_cost", "sums.rejected_cost", "hand_worked_numbers"),
    ("+ alpha * sums", "- alpha * sums", "step_direction"),
    ("margins.detach() if stop_gradient else margins", "margins", "gradient_through_the_gate"),
    ("margins.detach() if stop_gradient else margins", "margins.detach()", "gate_slope_adds_to_the_step"),
    ("margin - margins.detach(), margins.new_tensor(0.5)", "margins.detach() - margin, margins.new_tensor(0.5)",
     "hard_margin"),
    ("margins.new_tensor(0.5)", "margins.new_tensor(1.0)", "hard_margin"),
    ("per_token=per_token)\n    gates", "per_token=False)\n    gates", "numpy_reference"),
    ("(gates * binary).sum()", "binary.sum()", "hand_worked_numbers"),
    ("+ sums.chosen_nll[plain].sum()) /", ") /", "ordinary_talk"),
    (" + sums.chosen_tokens[plain].sum()", "", "ordinary_talk"),
    ("counted.clamp(min=1)", "counted", "ordinary_talk"),
    ("(sums.chosen_tokens[sums.example] + sums", "(sums.chosen_tokens.sum() + sums", "pairs_of_one_example"),
    ("sums.chosen_nll[sums.example] + alpha", "sums.chosen_nll[: len(sums.example)] + alpha", "numpy_reference"),
    ("rejected_mask.sum(-1)", "rejected_mask.sum(-1) * 0 + rejected_mask.size(1)", "binary_cringe_without_a_gate"),
    ("rejected_mask, k=k, alpha", "rejected_mask, k=1, alpha", "binary_cringe_without_a_gate"),
    ("chosen_nll=chosen_nll.sum(-1)", "chosen_nll=chosen_nll.sum(-1) + chosen_logits.sum((1, 2))", "invariances"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "check"), MUTANTS)
def test_a_mutant_is_caught(old: str, new: str, check: str) -> None:
    source = inspect.getsource(pairwise_module)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    module = ModuleType("pairwise_mutant")
    exec(source.replace(old, new), module.__dict__)  # noqa: S102  our own source with one string replaced
    with pytest.raises(AssertionError):
        CHECKS[check](module.pairwise_cringe_loss)


def test_every_check_catches_a_mutant() -> None:
    assert {row[2] for row in MUTANTS} == set(CHECKS)


def test_docstring_example() -> None:
    results = doctest.testmod(pairwise_module)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    batch = pair_batch(0)
    half = batch._replace(
        chosen_logits=batch.chosen_logits.detach().to(dtype), rejected_logits=batch.rejected_logits.detach().to(dtype)
    )
    output = half.call(pairwise_cringe_loss, generator=None)
    assert output.loss.dtype == output.margins.dtype == torch.float32
    single = half._replace(chosen_logits=half.chosen_logits.float(), rejected_logits=half.rejected_logits.float())
    assert torch.equal(output.loss, single.call(pairwise_cringe_loss, generator=None).loss)


GOOD = pair_batch(0)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"margin": math.nan}, "margin is nan"),
        ({"margin": -math.inf}, "margin is -inf"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"k": 6}, "k is 6"),
        ({"k": 2}, "generator is None"),
        ({"example": None}, "4 chosen and 3 rejected"),
        ({"example": torch.tensor([0, 1])}, "example is [0, 1]"),
        ({"example": torch.tensor([0, 1, 4])}, "example is [0, 1, 4]"),
        ({"example": torch.tensor([0, -1, 1])}, "example is [0, -1, 1]"),
        ({"example": torch.tensor([0.0, 1.0, 2.0])}, "torch.float32"),
        ({"chosen_mask": GOOD.chosen_mask.long()}, "mask has shape"),
        ({"rejected_targets": GOOD.rejected_targets + 6}, "target id is"),
        ({"chosen_targets": GOOD.chosen_targets - 6}, "target id is"),
    ],
)
def test_wrong_arguments_are_explained(changes: dict[str, Any], got: str) -> None:
    arguments: dict[str, Any] = {**GOOD._asdict(), "generator": None, **changes}
    with pytest.raises(SafetyError) as error:
        pairwise_cringe_loss(**arguments)
    assert got in error.value.got and error.value.why and error.value.instead
