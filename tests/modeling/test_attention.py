"""The fused attention is ParlAI's attention: forward, gradients, padding, causal masks, and nothing left behind."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from parlai.agents.transformer.modules import MultiHeadAttention

from parlai_safety.modeling.attention import fused_attention

from .small import make_bart, make_seq2seq, make_transformer


@pytest.fixture
def own_softmax_in_float64(monkeypatch):
    """ParlAI takes its softmax in fp32 even of float64 scores; without that the two can be compared to rounding."""
    exact = SimpleNamespace(softmax=lambda scores, dim, dtype: torch.softmax(scores, dim))
    monkeypatch.setattr(sys.modules[MultiHeadAttention.__module__], "F", exact)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts of 6, 3 and 0 tokens, replies of 5, 2 and 4."""
    generator = torch.Generator().manual_seed(0)
    xs, ys = torch.randint(4, 23, (3, 6), generator=generator), torch.randint(4, 23, (3, 5), generator=generator)
    xs[1, 3:], xs[2], ys[1, 2:], ys[2, 4:] = 0, 0, 0, 0
    return xs, ys


def loss_and_gradients(model, xs, ys):
    logits, _, (states, _) = model(xs, ys=ys)
    kept = ys != 0
    loss = torch.nn.functional.cross_entropy(logits[kept].double(), ys[kept])
    model.zero_grad()
    loss.backward()
    return logits[kept], states, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("own_softmax_in_float64")
@pytest.mark.parametrize("variant", ["aiayn", "xlm", "prelayernorm", "bart"])
def test_it_is_parlais_attention(variant):
    """In float64 to rounding, with padded and with empty contexts (where torch's own mask gives another gradient)."""
    model = make_bart() if variant == "bart" else make_transformer(variant=variant)
    model.double()
    xs, ys = padded_batch()
    expected = loss_and_gradients(model, xs, ys)
    with fused_attention(model) as count:
        found = loss_and_gradients(model, xs, ys)
    assert count == 6  # two layers of the encoder, two of the decoder with two attentions each
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert found[2]["encoder.layers.0.attention.q_lin.weight"].abs().sum() > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(kind):
    """The output of one attention errs no more than ParlAI's own, and a few units in the last place.

    Values are about 1, the output of ParlAI's form is rounded at five places (q, scores, softmax, mixture, output).
    """
    torch.manual_seed(0)
    own = MultiHeadAttention({"n_heads": 2, "embedding_size": 8})
    query, mask = torch.randn(3, 6, 8), torch.ones(3, 6).bool()
    mask[1, 2:], mask[2] = False, False
    exact = copy.deepcopy(own).double()(query.double(), mask=mask)[0]
    own.to(kind)
    with fused_attention(own):
        found = own(query.to(kind), mask=mask)[0]
    assert found.dtype == kind and found.isfinite().all()
    error = (found.double() - exact)[:2].abs().max()
    assert error <= 5 * torch.finfo(kind).eps * exact.abs().max()


@pytest.mark.usefixtures("own_softmax_in_float64")
def test_a_mask_for_each_query_and_example():
    torch.manual_seed(0)
    own = MultiHeadAttention({"n_heads": 2, "embedding_size": 8}).double()
    query, key = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double()
    mask = torch.rand(3, 4, 5) < 0.6
    mask[1, 2] = False  # ParlAI then attends to all evenly
    query.requires_grad_(), key.requires_grad_()

    def out_and_gradients():
        out = own(query, key, mask=mask)[0]
        return out, *torch.autograd.grad(out.square().sum(), [query, key, *own.parameters()])

    expected = out_and_gradients()
    with fused_attention(own):
        torch.testing.assert_close(out_and_gradients(), expected, rtol=1e-11, atol=1e-12)
        value = torch.randn(3, 5, 8).double()
        assert not torch.allclose(own(query, key, value, mask=mask)[0], expected[0])


@pytest.mark.usefixtures("own_softmax_in_float64")
def test_steps_of_decoding_go_on_from_it():
    """The state that the first step leaves serves ParlAI's further steps, as in its generation."""
    model = make_transformer().double().eval()
    xs, ys = padded_batch()
    xs[2] = 5

    def decode():
        encoded = model.encoder(xs)
        scores, state = model.decoder(ys[:, :1], encoded, None)
        steps = [scores]
        for length in range(2, 5):
            state = model.reorder_decoder_incremental_state(state, torch.tensor([2, 0, 1]))
            scores, state = model.decoder(ys[:, :length], encoded, state)
            steps.append(scores)
        return torch.cat(steps, 1)

    expected = decode()
    with fused_attention(model):
        torch.testing.assert_close(decode(), expected, rtol=1e-11, atol=1e-12)


def test_dropout_is_drawn_in_training_alone():
    model = make_transformer(attention_dropout=0.5)
    xs, ys = padded_batch()
    with fused_attention(model):
        first, second = (model(xs, ys=ys)[0] for _ in range(2))
        assert not torch.equal(first, second)
        model.eval()
        first, second = (model(xs, ys=ys)[0] for _ in range(2))
        assert torch.equal(first, second)


def test_dropout_keeps_the_mean():
    """With value 1 everywhere, attention is what dropout leaves of a sum of 1: 0.5 on average, doubled."""
    own = MultiHeadAttention({"n_heads": 1, "embedding_size": 1}, dropout=0.5)
    for part in (own.q_lin, own.k_lin, own.v_lin, own.out_lin):
        torch.nn.init.ones_(part.weight), torch.nn.init.zeros_(part.bias)
    torch.manual_seed(0)
    with fused_attention(own):
        out = own(torch.ones(1, 4000, 1), torch.ones(1, 40, 1), mask=torch.ones(1, 40))[0]
    # 4,000 means of 40 draws of 0 or 2: standard error 1 / sqrt(160,000).
    assert abs(out.mean().item() - 1) < 4 / 400 and out.std() > 0.1


def test_nothing_is_left_behind():
    """Neither after use nor after an error: the modules are ParlAI's own again, and never had another class."""
    model = make_transformer()
    names = list(model.state_dict())
    with pytest.raises(KeyError), fused_attention(model):
        assert all("forward" in vars(m) for m in model.modules() if isinstance(m, MultiHeadAttention))
        assert list(model.state_dict()) == names
        raise KeyError
    assert not any("forward" in vars(m) for m in model.modules())
    assert {type(m) for m in model.modules() if isinstance(m, MultiHeadAttention)} == {MultiHeadAttention}


def test_what_is_not_parlais_is_left_alone():
    """A subclass, an attention with a forward of its own, a model without any."""

    class Other(MultiHeadAttention):
        pass

    model = make_transformer()
    model.encoder.layers[0].attention.__class__ = Other
    own = model.encoder.layers[1].attention
    own.forward = own.forward
    with fused_attention(model) as count:
        assert count == 4 and "forward" not in vars(model.encoder.layers[0].attention)
    assert "forward" in vars(own)
    with fused_attention(make_seq2seq()) as count:
        assert count == 0
