"""A loss of whole replies in chunks of contexts: log-probabilities, loss and gradients are those of the plain form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from parlai.agents.transformer.modules import TransformerGeneratorModel

from parlai_safety.losses.adpo import adpo_loss
from parlai_safety.modeling import preference_output
from parlai_safety.modeling.output import linear_output, logits_of
from parlai_safety.modeling.preference_output import Replies, reply_logps, summed_loss

from .small import WIDTH, WORDS, make_bart, make_seq2seq, make_transformer
from .test_output import gradients

TOKENS = [3, 2, 5, 1, 4, 2, 0, 3, 6]
CONTEXTS = [3, 3, 1, 2]
CHUNKS = (1, 4, 11, 1000)


class Capped(TransformerGeneratorModel):
    """A generator whose output layer is no linear map."""

    def output(self, tensor):
        return 5 * torch.tanh(super().output(tensor) / 5)


MODELS = {
    "transformer": make_transformer,
    "bart": make_bart,
    "seq2seq": make_seq2seq,
    "not linear": lambda: make_transformer(Capped),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def drawn(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(sum(TOKENS), WIDTH, generator=generator, dtype=dtype)
    return states, torch.randint(2, len(WORDS), (sum(TOKENS),), generator=generator)


def cost(logps, first, last):
    """Adversarial DPO of the three replies to a context; a context with another number of them counts each reply."""
    starts = [sum(CONTEXTS[:place]) for place in range(len(CONTEXTS))]
    total = logps.new_zeros(())
    for start, size in zip(starts, CONTEXTS, strict=True):
        if first <= start < last:
            own = logps[start - first : start - first + size]
            if size == 3:
                c, r, t = own[:, None]
                frozen = [torch.full_like(c, value) for value in (-9.0, -4.0, -12.0, -8.0, -7.0)]
                total = total + adpo_loss(c, r, t, *frozen, paired=True, beta=0.3, nll_weight=0.2,
                                          chosen_tokens=torch.ones_like(c)).loss  # fmt: skip
            else:
                total = total - own.sum() / 7
    return total


@every_model
def test_chunks_of_any_size_give_the_plain_form(make):
    model = make().double().eval()
    values, targets = drawn()
    replies = Replies(TOKENS, CONTEXTS)
    logits = logits_of(model, values[None])[0]
    nll = F.cross_entropy(logits, targets, reduction="none").split(TOKENS)
    correct = [(x.argmax(-1) == y).sum() for x, y in zip(logits.split(TOKENS), targets.split(TOKENS), strict=True)]
    found = {}
    for chunk in (*CHUNKS, None):
        states = values.clone().requires_grad_()
        more = {"chunk": 3, "plain": True} if chunk is None else {"chunk": chunk}
        whole = summed_loss(model, states, targets, replies, cost, **more)
        torch.testing.assert_close(whole.logps, -torch.stack([part.sum() for part in nll]).detach())
        assert whole.correct.tolist() == [int(part) for part in correct]
        found[chunk] = whole.loss.detach(), gradients(model, 3 * whole.loss, states)
    assert found[None][0].item() == pytest.approx(cost(whole.logps, 0, len(TOKENS)).item())
    assert found[None][1]["0"].abs().max() > 1e-3
    for chunk in CHUNKS:
        torch.testing.assert_close(found[chunk], found[None], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("chunk", "expected"), [(1, [3, 6, 7, 9]), (11, [3, 7, 9]), (17, [7, 9]), (25, [7, 9]), (26, [9])]
)
def test_a_chunk_holds_whole_contexts_up_to_its_size(chunk, expected):
    """The contexts have 10, 7, 0 and 9 tokens; one that is longer than a chunk stays whole."""
    seen = []
    values, targets = drawn()

    def noted(logps, first, last):
        seen.append((first, last))
        return cost(logps, first, last)

    summed_loss(make_transformer().double(), values, targets, Replies(TOKENS, CONTEXTS), noted, chunk=chunk)
    assert seen == list(zip([0, *expected], expected, strict=False))


@pytest.mark.parametrize("chunk", (4, 1000))
def test_nothing_is_computed_twice_in_a_linear_layer(chunk, monkeypatch):
    """Each token's scores are made once, and no tensor of all tokens' scores is kept for backward."""
    model = make_transformer().double().eval()
    values, targets = drawn()
    states = values.requires_grad_()
    assert linear_output(model, states) is not None
    monkeypatch.setattr(preference_output, "logits_of", None)  # the layer is read, not called
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        summed_loss(model, states, targets, Replies(TOKENS, CONTEXTS), cost, chunk=chunk).loss.backward()
    assert all(shape[:1] != targets.shape or shape[-1:] != (len(WORDS),) for shape in kept)


@pytest.mark.parametrize("how", ("autocast", "states"))
def test_half_precision_is_near(how):
    """Scores are bf16 where autocast or the states say so, sums fp32."""
    model = make_transformer().eval()
    values, targets = drawn(torch.float32)
    found = []
    for half in (False, True):
        states = values.to(torch.bfloat16 if half and how == "states" else torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half and how == "autocast"):
            whole = summed_loss(model, states, targets, Replies(TOKENS, CONTEXTS), cost, chunk=4)
        slopes = gradients(model, whole.loss, states)
        assert whole.logps.dtype == slopes["embeddings.weight"].dtype == torch.float32
        found.append((whole.logps, slopes))
    (logps, slopes), (near, near_slopes) = found
    assert not torch.equal(logps, near) and (logps - near).abs().max() < 0.2
    for name in ("0", "embeddings.weight"):
        assert torch.cosine_similarity(slopes[name].flatten(), near_slopes[name].float().flatten(), 0) > 0.999


@every_model
def test_reply_logps_are_those_of_each_reply_alone(make):
    model = make().double().eval()
    xs = torch.randint(4, 9, (2, 5))
    replies = torch.tensor([[5, 6, 2, 0], [7, 2, 0, 0], [4, 5, 6, 2]])
    example = torch.tensor([1, 0, 1])
    found = reply_logps(model, *model.inputs(xs), replies=replies, example=example, null=0, chunk=4)
    for place, (row, reply) in enumerate(zip(example, replies, strict=True)):
        ys = reply[reply != 0][None]
        scores = model(*model.inputs(xs[row][None]), ys=ys)[0]
        assert found[place].item() == pytest.approx(-F.cross_entropy(scores[0], ys[0], reduction="sum").item())
    assert not found.requires_grad
