"""Draws have the distribution that they should have: by hand, by chi-square, and beside ParlAI's own sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.torch_generator_agent import NucleusSampling, TopKSampling
from scipy.stats import chi2_contingency, chisquare

from parlai_safety.modeling.sampler import Decoding, generate
from parlai_safety.modeling.sampling import draw_nucleus, draw_topk, nucleus_threshold
from tests.modeling.test_sampler import make_agent, make_batch

DRAWS = 40_000
SURE = 1e-4
"""A right sampler fails a chi-square test at this level once in ten thousand seeds; the seeds here are fixed."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def nucleus_by_definition(logprobs: np.ndarray, p: float) -> set[int]:
    """Each token for which the strictly likelier ones have a mass of less than p."""
    probabilities = np.exp(logprobs - logprobs.max())
    probabilities /= probabilities.sum()
    likelier = (probabilities[None] > probabilities[:, None]) @ probabilities
    return set(np.flatnonzero(likelier < p).tolist())


def kept(logprobs: torch.Tensor, p: float) -> list[set[int]]:
    threshold = nucleus_threshold(logprobs, logprobs.softmax(-1), p)
    return [set(row.nonzero().squeeze(-1).tolist()) for row in logprobs >= threshold]


@pytest.mark.parametrize(("p", "expected"), [(0.49, 1), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1.0, 4)])
def test_the_nucleus_by_hand(p, expected):
    logprobs = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    assert kept(logprobs, p) == [set([1, 3, 0, 2][:expected])]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 600), st.floats(0.02, 0.999), st.sampled_from([0.01, 0.3, 2.0, 9.0]), st.integers(0, 10**6))
def test_the_nucleus_is_that_of_the_definition(vocabulary, p, spread, seed):
    """Flat and peaked distributions; up to the one token at which rounding decides."""
    logprobs = (torch.randn((3, vocabulary), generator=seeded(seed)) * spread).log_softmax(-1)
    for row, found in enumerate(kept(logprobs, p)):
        exact = logprobs[row].double().numpy()
        assert nucleus_by_definition(exact, p - 1e-5) <= found <= nucleus_by_definition(exact, p + 1e-5)


def test_tokens_of_equal_score_belong_together():
    assert kept(torch.zeros((2, 50)), 0.3) == [set(range(50))] * 2


def test_forbidden_tokens_stay_out_and_a_forced_one_is_certain():
    logprobs = torch.full((1, 3000), -1e20)
    logprobs[0, 1234] = -7.0
    for tokens, _ in (draw_nucleus(logprobs, 0.9, 50, seeded()), draw_topk(logprobs, 10, 50, seeded())):
        assert (tokens == 1234).all()


def test_draws_follow_the_probabilities_and_are_scored_as_parlai_scores_them():
    probabilities = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2]])
    logprobs = probabilities.log()
    tokens, gains = draw_topk(logprobs, 3, DRAWS, seeded(1))
    assert (
        chisquare(np.bincount(tokens[0], minlength=5)[[1, 3, 4]], DRAWS * np.array([0.4, 0.25, 0.2]) / 0.85).pvalue
        > SURE
    )
    assert gains[0].tolist() == pytest.approx(logprobs[0, tokens[0]].tolist())
    tokens, gains = draw_nucleus(logprobs, 0.8, DRAWS, seeded(2))
    assert set(tokens[0].tolist()) == {1, 3, 4}
    assert (
        chisquare(np.bincount(tokens[0], minlength=5)[[1, 3, 4]], DRAWS * np.array([0.4, 0.25, 0.2]) / 0.85).pvalue
        > SURE
    )
    assert gains[0].tolist() == pytest.approx((logprobs[0, tokens[0]] - np.log(0.85)).tolist(), abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_distribution_draw_no_forbidden_token(uniform, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, uniform))
    logprobs = torch.tensor([[-1e20, 0.3, 0.2, -1e20]])
    for tokens, gains in (draw_nucleus(logprobs, 1.0), draw_topk(logprobs, 4)):
        assert tokens.item() == (1 if uniform == 0 else 2) and gains.isfinite().all()


@pytest.mark.parametrize(("name", "search"), [("topk", TopKSampling(6, 1)), ("nucleus", NucleusSampling(0.85, 1))])
def test_draws_are_distributed_as_parlais(name, search):
    logprobs = (torch.randn(1, 40, generator=seeded(3)) * 1.5).log_softmax(-1)
    torch.manual_seed(4)
    rows = logprobs.expand(DRAWS, -1).clone()
    theirs = search.select_paths(rows, torch.zeros(1), 0)
    draw = (
        draw_topk(logprobs, 6, DRAWS, seeded(5)) if name == "topk" else draw_nucleus(logprobs, 0.85, DRAWS, seeded(5))
    )
    counts = np.stack([np.bincount(x.flatten(), minlength=40) for x in (theirs.token_ids, draw[0])])
    counts = counts[:, counts.sum(0) > 0]
    assert counts.shape[1] > 5 and chi2_contingency(counts).pvalue > SURE
    scores = dict(zip(theirs.token_ids.tolist(), theirs.scores.tolist(), strict=True))
    for token, gain in zip(draw[0][0, :200].tolist(), draw[1][0, :200].tolist(), strict=True):
        assert gain == pytest.approx(scores[token], abs=1e-5)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return make_agent(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("method", ["topk", "nucleus"])
def test_whole_replies_have_the_probabilities_that_the_model_gives_them(agent, method):
    """The first two tokens of many samples from one encoding, against the exact probability of each pair."""
    inputs, names = agent._encoder_input(make_batch(agent, 1)), {"start": 1, "end": 2, "null": 0}
    decoding = Decoding(method, topk=3, topp=0.6, temperature=1.3, min_length=2, max_length=2, samples=20_000)
    found = generate(agent.model, inputs, decoding, **names, generator=seeded(6)).tokens[0]

    def next_tokens(said: list[int]) -> dict[int, float]:
        with torch.no_grad():
            states = agent.model.encoder(*inputs)
            latent, _ = agent.model.decoder(torch.tensor([[1, *said]]), states)
            logprobs = (agent.model.output(latent)[0, -1] / 1.3).log_softmax(-1)
        logprobs[2] = -1e20
        if method == "topk":
            chosen = logprobs.topk(3).indices.tolist()
        else:
            chosen = sorted(nucleus_by_definition(logprobs.double().numpy(), 0.6))
        return dict(zip(chosen, logprobs[chosen].softmax(0).tolist(), strict=True))

    exact = {(a, b): p * q for a, p in next_tokens([]).items() for b, q in next_tokens([a]).items()}
    pairs = [tuple(pair) for pair in found.tolist()]
    assert set(pairs) <= set(exact) and len(exact) > 3
    common = [pair for pair, p in exact.items() if p * len(pairs) >= 5]
    observed = [pairs.count(pair) for pair in common]
    expected = [exact[pair] * len(pairs) for pair in common]
    rest = len(pairs) - sum(observed), len(pairs) - sum(expected)
    if rest[1] > 1e-3:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    assert chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > SURE


def test_a_seed_decides_and_samples_differ(agent):
    inputs, names = agent._encoder_input(make_batch(agent, 3)), {"start": 1, "end": 2, "null": 0}
    decoding = Decoding("nucleus", max_length=12, samples=6)
    first, again, other = (
        generate(agent.model, inputs, decoding, **names, generator=seeded(seed)).tokens for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape[:2] == (3, 6) and len({tuple(reply) for reply in first[0].tolist()}) > 1
