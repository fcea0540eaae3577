"""Damaged copies of the CRINGE loss, each of which a named check must catch.

A mutant is the module's source with one exact string replaced. A test that passes on every mutant proves nothing; so
each check has at least one mutant that it catches.
"""

from __future__ import annotations

import inspect
from functools import cache
from types import ModuleType

import pytest

import parlai_safety.losses.cringe as cringe_module
from parlai_safety.losses import cringe_loss

from .checks import CHECKS, Loss

DROPPED = "torch.where(top.indices == negative_ids[:, None], place, k).amin(-1, keepdim=True)"
DRAW = "(reached[:, :-1] <= draws[:, None]).sum(-1, keepdim=True)"
CE = 'ce = F.cross_entropy(promoted(logits[~negative]), targets[~negative], reduction="none")'
CONTRAST = "-F.logsigmoid(positive_logits - negative_logits)"
MEAN = "(ce_tokens + alpha * contrastive_tokens).sum() / mask.sum().clamp(min=1)"
KIND = "    negative = labels == TokenLabel.NEGATIVE\n\n    # L_CE"
PROMOTED = "from parlai_safety.losses.rows import RowLosses, promoted"

MUTANTS = [
    # name, what the source says, what the mutant says, check that must fail
    ("contrast with the wrong sign", CONTRAST, "-F.logsigmoid(negative_logits - positive_logits)", "step_direction"),
    ("contrast by plain exp", CONTRAST, "(negative_logits - positive_logits).exp().log1p()", "extreme_logits"),
    ("contrast cut off at 20", CONTRAST, "F.softplus(negative_logits - positive_logits)", "extreme_logits"),
    ("contrast as a hinge", CONTRAST, "F.relu(1 + negative_logits - positive_logits)", "two_way_cross_entropy"),
    ("contrast of clipped logits", "promoted(pairs).unbind", "promoted(pairs).relu().unbind", "logit_shift"),
    ("smoothed cross-entropy", CE, CE.replace('none")', 'none", label_smoothing=0.1)'), "numpy_reference"),
    ("padding as positive", "positive_mask=mask & ~", "positive_mask=~", "hand_worked_numbers"),
    ("padding as negative", "negative_mask = mask & (", "negative_mask = (", "hand_worked_numbers"),
    ("padding is validated", "targets[mask], token_labels[mask]", "targets, token_labels", "padding_may_hold_anything"),
    ("labels swapped", KIND, KIND.replace("==", "!="), "labels_choose_the_term"),
    ("plain as negative", KIND, KIND.replace("== TokenLabel.NEGATIVE", "<= 0"), "labels_choose_the_term"),
    ("label of the next example", "labels[:, None]", "labels.roll(1)[:, None]", "label_for_each_example"),
    ("label of the first example", "labels[:, None]", "labels[:1, None]", "batch_order"),
    ("alpha ignored", "alpha * contrastive_tokens)", "contrastive_tokens)", "alpha"),
    ("alpha on everything", MEAN, f"alpha * {MEAN.replace('alpha * ', '')}", "alpha"),
    ("mean over all positions", "mask.sum().clamp(min=1)", "mask.numel()", "padding_changes_nothing"),
    ("mean over positives", "mask.sum().clamp", "(mask & ~negative_mask).sum().clamp", "shared_denominator"),
    ("mean of example means", MEAN, f"({MEAN.replace('.sum()', '.sum(-1)')}).mean()", "batch_split"),
    ("mean over nothing", ".clamp(min=1)", "", "one_sided_and_empty_batches"),
    (
        "wrong id for padding",
        "full_like(targets, -1).masked_scatter(m",
        "zeros_like(targets).masked_scatter(m",
        "hand_worked_numbers",
    ),
    (
        "wrong id for a token to follow",
        "full_like(targets, -1).masked_scatter(n",
        "zeros_like(targets).masked_scatter(n",
        "hand_worked_numbers",
    ),
    ("negative id may be drawn", DROPPED, "torch.full_like(negative_ids[:, None], k)", "negative_id_is_never_drawn"),
    ("best id always dropped", DROPPED, "torch.zeros_like(negative_ids[:, None])", "best_other_id_for_k_of_one"),
    (
        "k of one draws",
        "if k == 1:\n        return draws",
        "if k == 0:\n        return draws",
        "best_other_id_for_k_of_one",
    ),
    ("never draws", DRAW, "scores.argmax(-1, keepdim=True)", "drawing_frequencies"),
    ("draws evenly", ".softmax(-1)", ".mul(0).softmax(-1)", "drawing_frequencies"),
    ("draws from a sharper softmax", ".softmax(-1)", ".mul(1.1).softmax(-1)", "drawing_frequencies"),
    ("draws from torch's generator", "generator=generator, dtype", "dtype", "randomness_is_the_generators"),
    ("detach ignored", "if detach_positive:", "if False:", "detach_positive"),
    ("always detached", "if detach_positive:", "if True:", "gradient_on_two_logits"),
    ("cross-entropy held", CE, CE.replace("logits[~negative]", "logits[~negative].detach()"), "gradcheck"),
    ("no promotion", PROMOTED, f"{PROMOTED}; promoted = lambda scores: scores", "half_precision"),
]


def make_mutant(old: str, new: str) -> Loss:
    """The loss of a copy of the module in which `old`, which must occur exactly once, reads `new`."""
    source = inspect.getsource(cringe_module)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in the source"
    module = ModuleType("cringe_mutant")
    exec(source.replace(old, new), module.__dict__)  # noqa: S102  our own source with one string replaced
    mutant: Loss = module.cringe_loss
    return mutant


@cache
def run_on_original(check: str) -> None:
    """Once for each check, however many mutants name it."""
    CHECKS[check](cringe_loss)


@pytest.mark.parametrize(("old", "new", "check"), [row[1:] for row in MUTANTS], ids=[row[0] for row in MUTANTS])
def test_mutant_is_caught(old: str, new: str, check: str) -> None:
    """The named check passes on the loss and fails on the mutant."""
    mutant = make_mutant(old, new)
    run_on_original(check)
    with pytest.raises(AssertionError):
        CHECKS[check](mutant)


def test_a_copy_without_damage_passes() -> None:
    """Mutants die of their damage and not of being copies."""
    copy = make_mutant("def cringe_loss(", "def cringe_loss(")
    for check in CHECKS.values():
        check(copy)


def test_every_check_catches_a_mutant() -> None:
    """No check that cannot fail."""
    assert {row[3] for row in MUTANTS} == set(CHECKS)
