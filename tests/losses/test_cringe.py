"""The CRINGE loss: every check of `checks.py`, then its arguments, labels and surroundings."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import parlai_safety.losses.cringe as cringe_module
from parlai_safety.errors import SafetyError
from parlai_safety.losses import TokenLabel, cringe_loss, parse_label

from .checks import CHECKS, Loss, random_batch, seeded


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_loss_passes(check: Callable[[Loss], None]) -> None:
    """Each check says in its docstring what must hold; `hand_worked_numbers` carries the arithmetic."""
    check(cringe_loss)


def test_no_check_was_lost() -> None:
    """A check that is renamed away would otherwise go unnoticed."""
    assert len(CHECKS) == 23


def test_docstring_example() -> None:
    """The numbers in the public docstring are those that the code gives."""
    results = doctest.testmod(cringe_module)
    assert results.attempted > 0
    assert results.failed == 0


GOOD = random_batch(0, examples=2, steps=3, vocabulary_size=5)._replace(mask=torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"logits": GOOD.logits[0]}, "logits have shape (3, 5)"),
        ({"logits": GOOD.logits.long()}, "type torch.int64"),
        ({"targets": GOOD.targets[:, :2]}, "targets have shape (2, 2)"),
        ({"targets": GOOD.targets.int()}, "type torch.int32"),
        ({"mask": GOOD.mask[:1]}, "mask has shape (1, 3)"),
        ({"mask": GOOD.mask.long()}, "type torch.int64"),
        ({"labels": torch.zeros(3)}, "labels have shape (3,)"),
        ({"labels": torch.zeros(2, 1)}, "labels have shape (2, 1)"),
        ({"labels": torch.tensor([1, 2])}, "the label 2"),
        ({"labels": torch.tensor([1, -2])}, "the label -2"),
        ({"labels": torch.tensor([1.0, 0.5])}, "the label 0.5"),
        ({"targets": GOOD.targets + 5}, "target id is"),
        ({"targets": torch.full((2, 3), -100)}, "target id is -100"),
        ({"k": 0}, "k is 0 for a vocabulary of 5"),
        ({"k": 5}, "k is 5 for a vocabulary of 5"),
        ({"logits": GOOD.logits[..., :1], "targets": torch.zeros(2, 3).long()}, "k is 1 for a vocabulary of 1"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"k": 2, "generator": None}, "generator is None while k is 2"),
        ({"k": 2, "logits": GOOD.logits.to("meta")}, "generator is on cpu while k is 2"),
    ],
)
def test_wrong_arguments_are_explained(changes: dict[str, Any], got: str) -> None:
    """Each wrong argument is named with its value, and what would do is named too."""
    arguments: dict[str, Any] = {**GOOD._asdict(), "generator": seeded(), **changes}
    with pytest.raises(SafetyError) as error:
        cringe_loss(**arguments)
    assert got in error.value.got
    assert error.value.why
    assert error.value.instead


def test_largest_k_is_allowed() -> None:
    """With k = V - 1 the candidates are the whole vocabulary without the negative id."""
    assert cringe_loss(*GOOD, k=4, generator=seeded()).loss.isfinite()


def test_generator_must_be_given() -> None:
    """None has to be said: nobody gets determinism, or the lack of it, by default."""
    with pytest.raises(TypeError, match="generator"):
        cringe_loss(*GOOD)  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    """Under autocast a layer gives half-precision logits; the loss stays fp32 and its gradient reaches the layer."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 5)
    states = torch.randn(2, 3, 8)
    with torch.autocast("cpu", dtype=dtype):
        logits = layer(states)
        assert logits.dtype == dtype
        output = cringe_loss(logits, *GOOD[1:], k=2, generator=seeded())
    assert output.loss.dtype == torch.float32
    output.loss.backward()  # type: ignore[no-untyped-call]
    gradient = layer.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_parts_carry_gradient() -> None:
    """A caller may weigh tokens or sequences itself, as pairwise CRINGE does."""
    batch = random_batch(1)
    output = cringe_loss(*batch, alpha=0.3, generator=None)
    own = (output.ce_tokens + 0.3 * output.contrastive_tokens).sum() / batch.mask.sum()
    (expected,) = torch.autograd.grad(output.loss, batch.logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(own, batch.logits)
    assert torch.equal(gradient, expected)


def test_arguments_are_left_alone() -> None:
    """Nothing is changed in place."""
    batch = random_batch(3)
    before = [part.clone() for part in batch]
    cringe_loss(*batch, k=3, generator=seeded())
    assert all(torch.equal(part, copy) for part, copy in zip(batch, before, strict=True))


@pytest.mark.parametrize(
    ("name", "label"), [("pos", TokenLabel.POSITIVE), ("neg", TokenLabel.NEGATIVE), ("none", TokenLabel.PLAIN)]
)
def test_label_names(name: str, label: TokenLabel) -> None:
    """The three names of the message field."""
    assert parse_label(name) is label


def test_label_numbers() -> None:
    """The numbers are ParlAI's `classifier_label_idx`; data on disk depends on them."""
    assert {label.name: label.value for label in TokenLabel} == {"POSITIVE": 1, "NEGATIVE": 0, "PLAIN": -1}


@pytest.mark.parametrize(("name", "hint"), [("nege", "'neg'"), ("__notok__", "'pos', 'neg', 'none'"), ("", "'pos'")])
def test_unknown_label_name(name: str, hint: str) -> None:
    """An unknown name is quoted, and near ones are offered."""
    with pytest.raises(SafetyError) as error:
        parse_label(name)
    assert repr(name) in error.value.got
    assert hint in error.value.instead


def test_losses_do_without_parlai() -> None:
    """The package is importable where ParlAI is not."""
    code = "import sys; sys.modules['parlai'] = None; import parlai_safety.losses"
    subprocess.run([sys.executable, "-c", code], check=True)
