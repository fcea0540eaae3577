"""CRINGE's quick road is CRINGE: against the plain form, which `tests/losses` holds against a reference in numpy."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import parlai_safety.modeling.cringe_output as cringe_output_module
from parlai_safety.losses.cringe import cringe_rows, uniform_draws
from parlai_safety.losses.rows import shared_weights
from parlai_safety.modeling.cringe_output import GROUP, best_ids, cringe_weighted_loss
from parlai_safety.modeling.output import LinearOutput, WeightedLoss


class Case(NamedTuple):
    """A layer over N tokens, and the tokens."""

    layer: LinearOutput
    targets: Tensor
    labels: Tensor
    weights: Tensor


LABELS = {
    "mixed": lambda n: torch.arange(n) % 3 - 1,
    "all to follow": lambda n: torch.ones(n).long(),
    "all to avoid": lambda n: torch.zeros(n).long(),
}


def make_case(
    count: int = 11,
    vocabulary_size: int = 150,
    labels: str = "mixed",
    *,
    bias: bool = True,
    held_id: int | None = 1,
    kind: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """Random states and weights; the vocabulary is no whole number of groups, as is the rule."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind).requires_grad_()

    layer = LinearOutput(
        normal(count, 8), normal(vocabulary_size, 8), normal(vocabulary_size) if bias else None, held_id
    )
    targets = torch.randint(vocabulary_size, (count,), generator=generator)
    if held_id is not None and count > 3:
        targets[2:4] = held_id  # a token of each kind that is the id nobody may say
    chosen = LABELS[labels](count)
    weights = shared_weights(chosen[None], torch.ones(1, count).bool(), 0.7)[0]
    return Case(layer, targets, chosen, weights)


def scores_of(layer: LinearOutput) -> Tensor:
    scores = F.linear(layer.states, layer.weight, layer.bias)
    return scores if layer.held_id is None else scores.index_fill(1, torch.tensor([layer.held_id]), -1e20)


def plain(case: Case, k: int, detach_positive: bool, draws: Tensor) -> WeightedLoss:
    rows = cringe_rows(scores_of(case.layer), case.targets, case.labels, draws, k=k, detach_positive=detach_positive)
    return WeightedLoss((case.weights * rows.loss).sum(), rows)


def gradients(loss: Tensor, layer: LinearOutput) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x for x in layer[:3] if x is not None]))


def assert_same(
    case: Case, chunk: int, k: int, detach_positive: bool = False, module: Any = cringe_output_module
) -> None:
    """Loss, rows and gradients, in float64 to rounding."""
    draws = uniform_draws(case.labels, k=k, generator=torch.Generator().manual_seed(3))
    expected = plain(case, k, detach_positive, draws)
    found = module.cringe_weighted_loss(*case, draws, k=k, detach_positive=detach_positive, chunk=chunk)
    for one, other in zip((found.loss, *found.rows[:2]), (expected.loss, *expected.rows[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert torch.equal(found.rows.correct, expected.rows.correct)
    for one, other in zip(gradients(found.loss * 3, case.layer), gradients(expected.loss * 3, case.layer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("detach_positive", [False, True])
def test_it_is_the_plain_form(labels, k, detach_positive):
    """For every size of chunk up to all tokens."""
    case = make_case(labels=labels)
    for chunk in range(1, 12):
        assert_same(case, chunk, k, detach_positive)


@pytest.mark.parametrize(("vocabulary_size", "k"), [(2, 1), (3, 2), (GROUP, 63), (GROUP + 1, 64), (4 * GROUP, 5)])
@pytest.mark.parametrize("held_id", [None, 0])
def test_it_is_the_plain_form_at_the_edges_of_the_vocabulary(vocabulary_size, k, held_id):
    """Smaller than a group, one group, one id more, whole groups; k up to all ids but one."""
    for bias in (False, True):
        assert_same(make_case(7, vocabulary_size, bias=bias, held_id=held_id), 3, k)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 9), st.integers(2, 200), st.integers(0, 1000), st.data())
def test_it_is_the_plain_form_for_any_sizes(count, vocabulary_size, seed, data):
    case = make_case(count, vocabulary_size, held_id=None, seed=seed)
    k = data.draw(st.integers(1, vocabulary_size - 1))
    assert_same(case, data.draw(st.integers(1, count)), k, data.draw(st.booleans()))


def test_weights_may_be_of_either_sign_and_zero():
    """A pairwise loss hands over slopes, and those of a worse reply are negative."""
    for signs in ([-1.0], [0.0], [1.0, -2.0, 0.0]):
        weights = torch.tensor(signs).repeat(11)[:11]
        assert_same(make_case()._replace(weights=weights), 4, 3)


def test_ties_go_to_the_same_id():
    """Equal best others, for k = 1: both forms are free in their choice, and cost and gradient sums agree."""
    case = make_case(held_id=None, labels="all to avoid", bias=False)
    weight = case.layer.weight.detach().clone()
    weight[100] = weight[20] = 9.0
    layer = case.layer._replace(weight=weight.requires_grad_(), states=torch.ones(11, 8).double().requires_grad_())
    draws = torch.zeros(11).double()
    found = cringe_weighted_loss(layer, *case[1:], draws, k=1, detach_positive=False, chunk=4)
    expected = plain(case._replace(layer=layer), 1, False, draws)
    torch.testing.assert_close(found.rows.loss, expected.rows.loss)
    one, other = gradients(found.loss, layer)[1], gradients(expected.loss, layer)[1]
    torch.testing.assert_close(one[[20, 100]].sum(0), other[[20, 100]].sum(0))


def test_the_draws_decide_and_nothing_else():
    """Other numbers, other positives; torch's own generator is not touched."""
    case = make_case(40, labels="all to avoid", held_id=None)
    state = torch.random.get_rng_state()

    def costs(seed: int) -> Tensor:
        draws = uniform_draws(case.labels, k=5, generator=torch.Generator().manual_seed(seed))
        return cringe_weighted_loss(*case, draws, k=5, detach_positive=False, chunk=7).rows.loss

    assert torch.equal(costs(1), costs(1)) and not torch.equal(costs(1), costs(2))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("frozen", ["states", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    case = make_case()
    part = getattr(case.layer, frozen).requires_grad_(False)
    loss = cringe_weighted_loss(*case, torch.zeros(11).double(), k=1, detach_positive=False, chunk=4).loss
    loss.backward()
    assert part.grad is None
    expected = make_case()
    plain(expected, 1, False, torch.zeros(11).double()).loss.backward()
    for name in {"states", "weight", "bias"} - {frozen}:
        found, wanted = (getattr(c.layer, name).grad for c in (case, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_lower_precision(kind, autocast):
    """Against float64, relative to the largest gradient; k = 1 with clear margins, so that rounding changes no choice.

    Each score is a sum of 8 products of numbers about 1, and errs by less than 4 * eps * 8; a sigmoid or a softmax errs
    by a quarter of that, and so 8 * eps of the largest gradient leaves room for the sums that follow.
    """
    case = make_case(kind=kind, held_id=None, bias=False)
    best = case.layer.states.detach().clone().requires_grad_()
    double = case._replace(layer=LinearOutput(best.double(), case.layer.weight.double(), None, None))
    draws = torch.zeros(11).double()
    exact = plain(double, 1, False, draws)
    wanted = torch.autograd.grad(exact.loss, double.layer[:2])
    if autocast:
        if kind == torch.float32:
            pytest.skip("autocast has no fp32")
        wide = LinearOutput(*(x.detach().float().requires_grad_() for x in case.layer[:2]), None, None)
        case = case._replace(layer=wide)
    with torch.autocast("cpu", dtype=kind if autocast else torch.bfloat16, enabled=autocast):
        found = cringe_weighted_loss(*case, draws, k=1, detach_positive=False, chunk=4)
    assert {x.dtype for x in (found.loss, found.rows.loss, found.rows.nll)} == {torch.float32}
    for one, other in zip(gradients(found.loss, case.layer), wanted, strict=True):
        assert one.dtype == (torch.float32 if autocast else kind)
        assert (one.double() - other).abs().max() <= 8 * torch.finfo(kind).eps * other.abs().max()


def test_extreme_scores():
    """Where fp32 would overflow or lose all, cost and gradient are those of the plain form."""
    weight = torch.tensor([[300.0], [-300.0], [0.0]]).requires_grad_()
    states = torch.tensor([[100.0], [-100.0], [1.0], [1.0]]).requires_grad_()
    layer = LinearOutput(states, weight, None, None)
    case = Case(layer, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), torch.full((4,), 0.25))
    draws = torch.zeros(4).double()
    found, expected = (
        cringe_weighted_loss(*case, draws, k=1, detach_positive=False, chunk=4),
        plain(case, 1, False, draws),
    )
    assert found.rows.loss.tolist() == expected.rows.loss.tolist() == [30000.0, 0.0, 0.0, 600.0]
    torch.testing.assert_close(found.rows.nll, expected.rows.nll)
    torch.testing.assert_close(gradients(found.loss, layer), gradients(expected.loss, layer))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.data())
def test_best_ids_are_those_of_a_full_search(rows, groups, seed, data):
    scores = torch.randn(rows, groups * GROUP, generator=torch.Generator().manual_seed(seed))
    k = data.draw(st.integers(1, groups * GROUP))
    found, expected = best_ids(scores, k), scores.topk(k, -1)
    assert torch.equal(found.scores, expected.values) and torch.equal(found.ids, expected.indices)


MUTANTS = {
    "target not taken off": ("p.new_full((), -1.0)", "p.new_full((), 0.0)"),
    "pushed the wrong way": ("torch.sigmoid(own - positive)", "-torch.sigmoid(own - positive)"),
    "cost the wrong way": ("-F.logsigmoid(positive - own)", "-F.logsigmoid(own - positive)"),
    "positive not pulled": ("if not detach_positive:", "if False:"),
    "negative id among the others": ("logits.scatter_(-1, ids, -torch.inf)", "logits.clone()"),
    "padding of zeros": ("own[:, self._vocabulary_size :] = -torch.inf", "own[:, self._vocabulary_size :] = 0.0"),
    "own score not counted": (
        "torch.logaddexp(best.scores[:, 0] - p.log(), own) - own",
        "best.scores[:, 0] - p.log() - own",
    ),
    "always the best": ("draw_candidates(best.scores, draws)", "best.ids.new_zeros(len(ids), 1)"),
    "weights forgotten": ("gradients.shares[places] * torch", "torch"),
    "never right": ("rows.correct[places] = own == best", "rows.correct[places] = False"),
}


@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_the_comparison_catches_a_mutant(old, new):
    source = inspect.getsource(cringe_output_module)
    assert source.count(old) == 1
    mutant = ModuleType("cringe_output_mutant")
    exec(source.replace(old, new), mutant.__dict__)  # noqa: S102  our own source with one string replaced
    # Ten states along the targets' own weights, so that some targets have the best score.
    case = make_case(30, held_id=None, bias=False)
    states = (0.2 * case.layer.states + case.layer.weight[case.targets]).detach().requires_grad_()
    case = case._replace(layer=case.layer._replace(states=states))
    assert_same(case, 4, 5)
    with pytest.raises(AssertionError):
        assert_same(case, 4, 5, module=mutant)
