"""The output layer in chunks: which layers are known, and that loss, rows and gradients are those of the plain form."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parlai.agents.bart.modules import BartModel
from parlai.agents.seq2seq.modules import OutputLayer, Seq2seq
from parlai.agents.transformer.modules import TransformerGeneratorModel
from torch import Tensor, nn

from parlai_safety.losses.cringe import cringe_rows
from parlai_safety.losses.rows import RowLosses
from parlai_safety.modeling import output as output_module
from parlai_safety.modeling.cringe_output import cringe_weighted_loss
from parlai_safety.modeling.output import (
    LinearGradients,
    LinearOutput,
    decoder_states,
    even_chunk,
    joined,
    linear_output,
    logits_of,
    weighted_loss,
)

from .small import WORDS, make_bart, make_seq2seq, make_transformer

MODELS = {"transformer": make_transformer, "bart": make_bart, "seq2seq": make_seq2seq}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def ce_rows(logits: Tensor, targets: Tensor, labels: Tensor) -> RowLosses:
    """Cross-entropy of each token, times 2 where it is to be avoided, so that labels matter."""
    nll = F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, targets, reduction="none")
    return RowLosses(nll * (1 + (labels == 0)), nll.detach(), logits.argmax(-1) == targets)


def table(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, labels and weights of tokens; some weights are 0, one is negative."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(WORDS), (count,), generator=generator)
    labels = torch.randint(-1, 2, (count,), generator=generator)
    weights = torch.rand(count, generator=generator)
    weights[1], weights[2] = 0.0, -0.3
    return targets, labels, weights


def gradients(model: nn.Module, loss: Tensor, *more: Tensor) -> dict[str, Tensor]:
    """Of all parameters, and of further tensors by number; zeros where the loss does not reach."""
    wanted = {**dict(model.named_parameters()), **{str(i): x for i, x in enumerate(more)}}
    wanted = {name: x for name, x in wanted.items() if x.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(wanted.items(), found, strict=True)}


@every_model
def test_states_are_what_the_output_layer_takes(make):
    """Also, the layer is back in its place afterwards."""
    model = make().double().eval()
    xs, ys = torch.randint(4, 9, (3, 5)), torch.randint(4, 9, (3, 4))
    before = dict(model._modules), dict(vars(model))
    expected = model(*model.inputs(xs), ys=ys)[0]
    states = decoder_states(model, *model.inputs(xs), ys=ys)
    assert states.shape[:2] == ys.shape
    torch.testing.assert_close(logits_of(model, states), expected, rtol=1e-12, atol=1e-13)
    assert dict(model._modules) == before[0] and vars(model).keys() == before[1].keys()


@every_model
def test_the_output_layer_is_back_after_an_error(make):
    model = make()
    with pytest.raises(AssertionError):
        decoder_states(model, torch.ones(1, 2).long(), ys=torch.full((1, 2), model.START_IDX))
    assert logits_of(model, torch.zeros(1, 1, model.width)).size(-1) == len(WORDS)


@every_model
def test_the_linear_map_is_the_layer(make):
    model = make().double().eval()
    states = torch.randn(7, model.width, dtype=torch.float64)
    layer = linear_output(model, states)
    assert layer is not None
    scores = F.linear(layer.states, layer.weight, layer.bias)
    expected = logits_of(model, states[None])[0]
    if layer.held_id is not None:
        assert expected[:, layer.held_id].unique().tolist() == [-1e20]
        scores[:, layer.held_id] = -1e20
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    assert (layer.held_id is None) == isinstance(model, BartModel)


def test_a_layer_of_ones_own_is_not_taken_for_a_known_one():
    """Not by inheritance, not as an attribute of the object, not a mixture of softmaxes, not a foreign module."""

    class Scaled(TransformerGeneratorModel):  # type: ignore[misc, valid-type]
        def output(self, tensor):
            return 2 * super().output(tensor)

    states = torch.randn(3, 8)
    assert linear_output(make_transformer(Scaled), states) is None
    model = make_transformer()
    model.output = lambda tensor: tensor
    assert linear_output(model, states) is None
    mixed = make_seq2seq()
    mixed.output = OutputLayer(len(WORDS), 6, 8, numsoftmax=2)
    assert linear_output(mixed, states) is None
    mixed.output = nn.Linear(8, len(WORDS))
    assert linear_output(mixed, states) is None


@every_model
@pytest.mark.parametrize("chunk", [1, 2, 4, 10, 11])
def test_chunks_are_the_plain_form(make, chunk):
    """In float64 to rounding: loss, rows, gradients of the states and of every parameter of the model."""
    model = make().double().eval()
    count = 11
    states = torch.randn(count, model.width, dtype=torch.float64, requires_grad=True)
    targets, labels, weights = table(count)
    plain = weighted_loss(model, states, targets, labels, weights, ce_rows, chunk=count)
    expected = gradients(model, plain.loss, states)
    assert expected["0"].abs().sum() > 0
    found = weighted_loss(model, states, targets, labels, weights, ce_rows, chunk=chunk)
    for one, other in zip((found.loss, *found.rows), (plain.loss, *plain.rows), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    for name, gradient in gradients(model, 3 * found.loss, states).items():
        torch.testing.assert_close(gradient, 3 * expected[name], rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("known", [True, False])
def test_no_scores_of_all_tokens_ever_exist(known, monkeypatch):
    """Neither in forward nor in backward does a chunk hold more rows than it may, whether the layer is known or not."""
    model = make_transformer()
    rows_seen: list[int] = []

    def noting(logits: Tensor, targets: Tensor, labels: Tensor) -> RowLosses:
        rows_seen.append(len(logits))
        return ce_rows(logits, targets, labels)

    if not known:
        monkeypatch.setattr(output_module, "linear_output", lambda *_: None)
    states = torch.randn(11, 8, requires_grad=True)
    weighted_loss(model, states, *table(11), noting, chunk=4).loss.backward()
    assert max(rows_seen) == 4
    # A known layer: one question about a token of each label, then each chunk once. Another: each in both directions.
    assert sorted(rows_seen) == ([3, 3, 4, 4] if known else [3, 3, 4, 4, 4, 4])


def test_the_generic_road_is_the_plain_form(monkeypatch):
    model = make_transformer().double()
    states = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    plain = weighted_loss(model, states, *table(11), ce_rows, chunk=11)
    expected = gradients(model, plain.loss, states)
    monkeypatch.setattr(output_module, "linear_output", lambda *_: None)
    found = weighted_loss(model, states, *table(11), ce_rows, chunk=3)
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-12, atol=0)
    for name, gradient in gradients(model, found.loss, states).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13, msg=name)


def test_a_kernel_with_parameters_of_its_own_gets_their_gradient():
    model = make_transformer().double()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def scaled(logits: Tensor, targets: Tensor, labels: Tensor) -> RowLosses:
        return ce_rows(logits * scale, targets, labels)

    states = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(weighted_loss(model, states, *table(9), scaled, chunk=9).loss, scale)
    (found,) = torch.autograd.grad(weighted_loss(model, states, *table(9), scaled, chunk=2).loss, scale)
    assert expected.abs() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_further_columns_go_with_their_rows():
    model = make_transformer().double()
    column = torch.arange(9.0, dtype=torch.float64)

    def marked(logits: Tensor, targets: Tensor, labels: Tensor, marks: Tensor) -> RowLosses:
        rows = ce_rows(logits, targets, labels)
        return rows._replace(loss=rows.loss * marks)

    states = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    losses = [
        weighted_loss(model, states, *table(9), marked, chunk=chunk, columns=(column,)).loss for chunk in (9, 4, 1)
    ]
    torch.testing.assert_close(losses[1:], [losses[0]] * 2, rtol=1e-12, atol=0)


def test_without_gradient_nothing_is_kept():
    model = make_transformer()
    states = torch.randn(9, 8, requires_grad=True)
    with torch.no_grad():
        found = weighted_loss(model, states, *table(9), ce_rows, chunk=2)
    plain = weighted_loss(model, states, *table(9), ce_rows, chunk=9)
    assert not found.loss.requires_grad
    torch.testing.assert_close(found.loss, plain.loss.detach())
    torch.testing.assert_close(found.rows.nll, plain.rows.nll)


@pytest.mark.parametrize("frozen", ["weight", "states"])
def test_what_is_frozen_gets_no_gradient(frozen):
    model = make_transformer().double()
    model.embeddings.weight.requires_grad_(frozen != "weight")
    states = torch.randn(9, 8, dtype=torch.float64, requires_grad=frozen != "states")
    plain = weighted_loss(model, states, *table(9), ce_rows, chunk=9)
    found = weighted_loss(model, states, *table(9), ce_rows, chunk=4)
    expected = gradients(model, plain.loss, states)
    for name, gradient in gradients(model, found.loss, states).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13, msg=name)
    assert ("embeddings.weight" in expected) == (frozen != "weight") and ("0" in expected) == (frozen != "states")


def test_everything_frozen_is_a_loss_without_gradient():
    model = make_transformer()
    model.requires_grad_(False)
    found = weighted_loss(model, torch.randn(9, 8), *table(9), ce_rows, chunk=4)
    assert found.loss.isfinite() and not found.loss.requires_grad


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_lower_precision(kind, autocast):
    """Against the plain form in float64, relative to the largest gradient: as good as the type's own plain form.

    Sums over 8 states and 23 words of products rounded to the type's precision err by a few units in the last place;
    8 * eps, 1e-6 in fp32, leaves room for the orders in which two ways of adding up differ.
    """
    model = make_transformer()
    states, rest = torch.randn(11, 8), table(11)
    double = copy.deepcopy(model).double()
    exact_states = states.double().requires_grad_()
    exact = gradients(double, weighted_loss(double, exact_states, *rest, ce_rows, chunk=11).loss, exact_states)
    if not autocast:
        model, states = model.to(kind), states.to(kind)
    elif kind == torch.float32:
        pytest.skip("autocast has no fp32")
    states.requires_grad_()
    with torch.autocast("cpu", dtype=kind if autocast else torch.bfloat16, enabled=autocast):
        found = weighted_loss(model, states, *rest, ce_rows, chunk=4)
    assert found.loss.dtype == torch.float32 and found.rows.nll.dtype == torch.float32
    for name, gradient in gradients(model, found.loss, states).items():
        assert gradient.dtype == (torch.float32 if autocast else kind)
        error = (gradient.double() - exact[name]).abs().max()
        assert error <= 8 * torch.finfo(kind).eps * exact[name].abs().max().clamp(min=0.1), name


def test_small_weights_survive_half_precision():
    """A token's share of a large batch is below what fp16 holds, and a loss scale multiplies only afterwards.

    2^-26 is 0 in fp16; scaled by 2^26 its gradient must be that of weight 1.
    """
    weight = torch.randn(23, 8).half().requires_grad_()
    states = torch.randn(6, 8).half().requires_grad_()
    layer = LinearOutput(states, weight, None, None)
    targets, labels = torch.arange(6), torch.ones(6).long()
    found = []
    for share in (1.0, 2.0**-26):
        loss = output_module._linear_weighted_loss(layer, torch.full((6,), share), ce_rows, (targets, labels), 3).loss
        found.append(torch.autograd.grad(loss * (1 / share), (states, weight)))
    for one, small in zip(*found, strict=True):
        assert torch.equal(one, small) and one.abs().sum() > 0


def test_backward_twice_needs_the_usual_flag():
    model = make_transformer()
    states = torch.randn(9, 8, requires_grad=True)
    loss = weighted_loss(model, states, *table(9), ce_rows, chunk=4).loss
    first = torch.autograd.grad(loss, states, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, states)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, states)


def test_the_scores_of_one_id_each():
    """`add_ids` is `add` of a gradient that is 0 but for one id a row, ids that repeat and the held one included."""
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    states = torch.randn(6, 3, dtype=torch.float64)
    layer = LinearOutput(states.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), 2)
    ids, values = torch.tensor([1, 1, 2, 0, 4, 1]), torch.randn(6, dtype=torch.float64)
    with torch.no_grad():
        one, other = LinearGradients(layer, torch.ones(6)), LinearGradients(layer, torch.ones(6))
        one.add_ids(torch.arange(6), ids, values)
        other.add(slice(0, 6), torch.zeros(6, 5, dtype=torch.float64).scatter_(1, ids[:, None], values[:, None]))
    for name in ("of_states", "of_weight", "of_bias"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-14)
    assert one.of_states[2].eq(0).all() and one.of_weight[2].eq(0).all()


def test_shares_may_be_left_to_the_products():
    """A gradient without its row factors, and the factors beside it, is the gradient with them."""
    weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(5, requires_grad=True)
    layer = LinearOutput(torch.randn(4, 3, requires_grad=True), weight, bias, None)
    gradient, factors = torch.randn(4, 5), torch.rand(4, 1)
    with torch.no_grad():
        one, other = LinearGradients(layer, torch.ones(4)), LinearGradients(layer, torch.ones(4))
        one.add(torch.arange(4), gradient.clone(), factors)
        other.add(torch.arange(4), gradient * factors)
    for name in ("of_states", "of_weight", "of_bias"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_even_chunks():
    assert [even_chunk(count, 4) for count in (0, 1, 4, 5, 8, 9)] == [1, 1, 4, 3, 4, 3]


def test_joining_keeps_the_order():
    model = make_transformer()
    states, (targets, labels, weights) = torch.randn(9, 8), table(9)
    parts: list[Any] = [
        weighted_loss(model, states[s], targets[s], labels[s], weights[s], ce_rows, chunk=9)
        for s in (slice(0, 4), slice(4, 9))
    ]
    whole = weighted_loss(model, states, targets, labels, weights, ce_rows, chunk=9)
    both = joined(parts)
    torch.testing.assert_close(both.loss, whole.loss)
    torch.testing.assert_close(both.rows.nll, whole.rows.nll)


def test_it_takes_the_cringe_kernel():
    model = make_transformer().double()
    states = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    rows, draws = partial(cringe_rows, k=3, detach_positive=False), torch.rand(9, dtype=torch.float64)
    losses = [weighted_loss(model, states, *table(9), rows, chunk=c, columns=(draws,)).loss for c in (9, 2)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    assert isinstance(make_seq2seq(), Seq2seq)


@pytest.mark.parametrize("label", [0, -1])
def test_parameters_that_only_a_later_label_uses_get_their_gradient(label):
    """The batch begins with another label, and so would a question about its first token alone."""
    model = make_transformer().double()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def scaled(logits: Tensor, targets: Tensor, labels: Tensor) -> RowLosses:
        rows, mine = ce_rows(logits, targets, labels), labels == label
        # Without such a row the parameter is not even part of the graph.
        return rows._replace(loss=torch.where(mine, rows.loss * scale, rows.loss)) if mine.any() else rows

    states = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    targets, labels, weights = table(9)
    labels[:4], labels[6] = 1, label
    rest = (targets, labels, weights)
    plain, found = (
        gradients(model, weighted_loss(model, states, *rest, scaled, chunk=chunk).loss, states, scale)
        for chunk in (100, 3)
    )
    assert plain["1"].abs() > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("label", [0, 1])
def test_a_tie_for_the_best_score_counts_as_correct_on_cringes_quick_road_too(label):
    """All scores equal, then the target below one other: the plain form says what is correct."""
    weight, draws = torch.ones(7, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    weight[5] = 2.0
    states = torch.tensor([[0.0], [0.0], [1.0], [-1.0]], dtype=torch.float64).expand(4, 3).contiguous()
    layer = LinearOutput(states.requires_grad_(), weight.requires_grad_(), None, None)
    targets, labels = torch.tensor([0, 5, 0, 0]), torch.full((4,), label)
    more: Any = {"k": 2, "detach_positive": False}
    found = cringe_weighted_loss(layer, targets, labels, torch.ones(4), draws, **more, chunk=3).rows.correct
    assert found.tolist() == cringe_rows(states @ weight.T, targets, labels, draws, **more).correct.tolist()
    assert found.tolist() == [True, True, False, True]
