"""The sampler finds what ParlAI's own search finds, token for token, on every kind of decoder that it drives."""

from __future__ import annotations

import random

import pytest
import torch
from parlai.agents.bart.bart import BartAgent
from parlai.agents.bart.modules import BartModel
from parlai.agents.seq2seq.seq2seq import Seq2seqAgent
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.message import Message
from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError
from parlai_safety.modeling import sampler
from parlai_safety.modeling.decoder_fast import PlainSteps, TransformerSteps, has_known_decoder
from parlai_safety.modeling.sampler import Decoding, generate

WORDS = 36
SPECIAL = ("__null__", "__start__", "__end__", "__unk__")
MAX_LENGTH = 12


class TinyBart(TransformerGeneratorAgent):
    """BART's model and first tokens at random, where ParlAI's agent would download the real one."""

    def build_model(self):
        return BartModel(self.opt, self.dict)

    _get_initial_decoder_input = BartAgent._get_initial_decoder_input


MODELS = {
    "post-layernorm": (TransformerGeneratorAgent, {"variant": "aiayn"}),
    "pre-layernorm": (TransformerGeneratorAgent, {"variant": "prelayernorm", "activation": "gelu", "n_segments": 2}),
    "xlm": (TransformerGeneratorAgent, {"variant": "xlm", "learn_positional_embeddings": True}),
    "bart": (TinyBart, {"variant": "bart", "activation": "gelu", "embeddings_scale": False, "ends": 0.5}),
    "lstm": (Seq2seqAgent, {"hiddensize": 16, "embeddingsize": 16, "numlayers": 1}),
    "gru with attention": (
        Seq2seqAgent,
        {"hiddensize": 16, "embeddingsize": 16, "numlayers": 2, "rnn_class": "gru", "attention": "general"},
    ),
}
KNOWN = ("post-layernorm", "pre-layernorm", "xlm", "bart")


def make_agent(folder, kind=TransformerGeneratorAgent, spread=0.3, ends=1.5, **options):
    """An untrained agent over a small dictionary.

    Its weights are spread, and the end token's score by the factor `ends` further, so that replies differ and some end.
    """
    file = folder / "dict"
    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    file.write_text("".join(f"{word}\t{1000 - i}\n" for i, word in enumerate(words)))
    sizes = {"n_layers": 2, "embedding_size": 16, "ffn_size": 32, "n_heads": 2, "n_positions": 64}
    parser = ParlaiParser(True, True)
    kind.add_cmdline_args(parser)
    opt = parser.parse_kwargs(
        dict_file=str(file),
        dict_tokenizer="space",
        text_truncate=32,
        label_truncate=MAX_LENGTH,
        no_cuda=True,
        loglevel="error",
    )
    opt.update({**(sizes if issubclass(kind, TransformerGeneratorAgent) else {}), **options})
    torch.manual_seed(0)
    agent = kind(opt)
    agent.model.eval()
    with torch.no_grad():
        for weights in agent.model.parameters():
            weights += torch.randn_like(weights) * spread
        embeddings = agent.model.embeddings if hasattr(agent.model, "embeddings") else agent.model.decoder.lt
        embeddings.weight[agent.END_IDX] *= ends
    return agent


def make_batch(agent, size, words=7):
    draw = random.Random(size)
    texts = [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(words - i % 3)) for i in range(size)]
    return agent.batchify([agent.clone().observe(Message({"text": t, "episode_done": True})) for t in texts], sort=True)


@pytest.fixture(scope="module", params=MODELS)
def agent(request, tmp_path_factory):
    kind, options = MODELS[request.param]
    agent = make_agent(tmp_path_factory.mktemp("model"), kind, **options)
    assert has_known_decoder(agent.model) == (request.param in KNOWN)
    return agent


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_agent(tmp_path_factory.mktemp("model"))


def found_by_parlai(agent, batch, decoding, prefix=None):
    """All hypotheses of ParlAI's search: a list of (tokens without the start, score) for each context."""
    beam_size = decoding.beam_size
    agent.opt.update(inference=decoding.method, beam_size=beam_size, beam_length_penalty=decoding.length_penalty)
    agent.beam_size, agent.beam_min_length = beam_size, decoding.min_length
    agent.beam_block_ngram, agent.beam_context_block_ngram = decoding.block_ngram, decoding.context_block_ngram
    agent.temperature = decoding.temperature
    agent.beam_block_list.clear()
    for phrase in decoding.blocked:
        agent.beam_block_list._phrase_ngrams.setdefault(len(phrase), []).append(list(phrase))
    with torch.no_grad():
        _, beams = agent._generate(batch, beam_size, decoding.max_length, prefix_tokens=prefix)
    agent.beam_block_list.clear()
    return [
        [(tokens[1:].tolist(), float(score)) for tokens, score, _ in beam.get_rescored_finished()] for beam in beams
    ]


def found_by_us(agent, batch, decoding, **more):
    found = generate(
        agent.model,
        agent._encoder_input(batch),
        decoding,
        start=agent._get_initial_decoder_input(1, 1, batch.text_vec.device)[0].tolist(),
        end=agent.END_IDX,
        null=agent.NULL_IDX,
        context=batch.text_vec,
        **more,
    )
    replies = []
    for tokens, lengths, scores in zip(found.tokens, found.lengths.tolist(), found.scores.tolist(), strict=True):
        some = [(row[:n].tolist(), score) for row, n, score in zip(tokens, lengths, scores, strict=True) if n]
        # ParlAI puts the end token in the place of the last one of a reply that never ended.
        replies.append([(said if said[-1] == agent.END_IDX else [*said[:-1], agent.END_IDX], s) for said, s in some])
        assert all((row[n:] == agent.NULL_IDX).all() for row, n in zip(tokens, lengths, strict=True))
    return replies


def assert_same(agent, batch, decoding, prefix=None):
    theirs, ours = found_by_parlai(agent, batch, decoding, prefix), found_by_us(agent, batch, decoding, prefix=prefix)
    assert [[tokens for tokens, _ in some] for some in ours] == [[tokens for tokens, _ in some] for some in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert [score for _, score in mine] == pytest.approx([score for _, score in other], abs=1e-4)
    return ours


GREEDY = {"method": "greedy", "min_length": 0, "max_length": MAX_LENGTH}
BEAM = {"method": "beam", "beam_size": 4, "samples": 100, "max_length": MAX_LENGTH}
SETTINGS = {
    "plain": {},
    "own n-grams": {"block_ngram": 2},
    "own words": {"block_ngram": 1},
    "n-grams of the context": {"context_block_ngram": 2},
    "words of the context": {"context_block_ngram": 1},
    "block list": {"blocked": ((5,), (6,), (7, 8), (9, 10, 11), (12, 13))},
    "length penalty": {"length_penalty": 2.0},
    "temperature": {"temperature": 0.5},
}


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_is_parlais(agent, setting, size):
    assert_same(agent, make_batch(agent, size), Decoding(**GREEDY, **SETTINGS[setting]))


def test_the_models_are_worth_comparing_on(agent):
    """Untrained models like to say one word for ever; where they must not, their replies differ from row to row."""
    replies = found_by_us(agent, make_batch(agent, 12), Decoding(**GREEDY, block_ngram=1))
    assert len({tuple(some[0][0]) for some in replies}) > 5
    assert len({token for some in replies for token in some[0][0]}) > 10


@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize("setting", [*SETTINGS, "least length"])
def test_beam_is_parlais_with_every_hypothesis_that_ended(agent, setting, size):
    more = {"min_length": 6} if setting == "least length" else SETTINGS[setting]
    assert_same(agent, make_batch(agent, size), Decoding(**BEAM, **more))


@pytest.mark.parametrize("beam_size", [1, 2, 30])
def test_beams_of_other_sizes(agent, beam_size):
    assert_same(agent, make_batch(agent, 4), Decoding(**{**BEAM, "beam_size": beam_size, "samples": 500}))


@pytest.mark.parametrize("method", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_a_prefix_is_forced(agent, method):
    prefix = torch.tensor([[5, 9, 5]]).repeat(3, 1)
    replies = assert_same(agent, make_batch(agent, 3), Decoding(**method), prefix)
    assert all(tokens[:3] == [5, 9, 5] for some in replies for tokens, _ in some)


def test_each_row_is_forced_to_its_own_prefix(plain):
    """ParlAI would let a row take the prefix token of another; see the module."""
    batch, prefix = make_batch(plain, 4), torch.tensor([[5, 6], [7, 8], [9, 10], [11, 12]])
    for method in (GREEDY, BEAM):
        replies = found_by_us(plain, batch, Decoding(**method), prefix=prefix)
        assert all(tokens[:2] == prefix[i].tolist() for i, some in enumerate(replies) for tokens, _ in some)


def test_replies_end_at_different_steps_and_the_batch_shrinks(plain, monkeypatch):
    """Rows that leave the batch change nothing for those that stay, whether they leave at once or never."""
    batch = make_batch(plain, 16)
    for method in (GREEDY, BEAM):
        replies = []
        for worth in (lambda dropped, of: True, lambda dropped, of: False):
            monkeypatch.setattr(sampler, "_worth_dropping", worth)
            replies.append(assert_same(plain, batch, Decoding(**method, block_ngram=1)))
        first, second = ([[tokens for tokens, _ in some] for some in found] for found in replies)
        assert first == second
        assert len({len(tokens) for some in first for tokens in some}) > 3


def test_the_output_layer_in_blocks_changes_nothing(plain, monkeypatch):
    monkeypatch.setattr(sampler, "LEAST_BLOCK", 3)
    monkeypatch.setattr(sampler, "BLOCK_SCORES", 1)
    for method in (GREEDY, BEAM):
        assert_same(plain, make_batch(plain, 7), Decoding(**method))


@pytest.mark.parametrize("name", KNOWN)
def test_fast_steps_are_the_decoders_own_when_contexts_have_unlike_numbers_of_rows(name, tmp_path):
    """As with several samples a context, some of which have ended; long enough for the caches to grow."""
    kind, options = MODELS[name]
    agent = make_agent(tmp_path, kind, **options)
    contexts, draw = 4, torch.Generator().manual_seed(3)
    with torch.no_grad():
        states = agent.model.encoder(*agent._encoder_input(make_batch(agent, contexts)))
        both = PlainSteps(agent.model, states, contexts), TransformerSteps(agent.model, states, 1)
        tokens = torch.full((contexts, 1), 1)
        moves = {2: [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], 5: [0, 1, 2, 3, 6, 8, 9], 9: [1, 2, 4, 5], 12: [0, 3]}
        for step in range(20):
            plain, fast = (steps(tokens) for steps in both)
            torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)
            if step in moves:
                rows = torch.tensor(moves[step])
                tokens = tokens[rows]
                for steps in both:
                    steps.select(rows)
            tokens = torch.cat((tokens, torch.randint(4, 40, (len(tokens), 1), generator=draw)), dim=1)


class Recorder:
    """Leaves the scores alone and keeps what it was told, so that its own order of rows can be checked."""

    def begin(self, context_of_row):
        self.owner, self.said = context_of_row, torch.empty((len(context_of_row), 0), dtype=torch.int64)

    def __call__(self, logits, tokens):
        assert len(logits) == len(tokens) == len(self.owner)
        assert torch.equal(tokens[:, : self.said.size(1)], self.said)
        self.said = tokens
        return logits + 0

    def select(self, rows):
        self.owner, self.said = self.owner[rows], self.said[rows]


class Forbid:
    def begin(self, context_of_row):
        self.owner = context_of_row

    def __call__(self, logits, tokens):
        # Context i must not say the word 4 + i.
        return logits.scatter(1, (4 + self.owner)[:, None], -torch.inf)

    def select(self, rows):
        self.owner = self.owner[rows]


@pytest.mark.parametrize("method", [GREEDY, BEAM, {"method": "nucleus", "samples": 5, "max_length": MAX_LENGTH}])
def test_processors_follow_their_rows(plain, method):
    batch = make_batch(plain, 8)
    decoding = Decoding(**method)
    torch.manual_seed(1)
    expected = found_by_us(plain, batch, decoding)
    torch.manual_seed(1)
    assert found_by_us(plain, batch, decoding, processors=[Recorder()]) == expected
    for context, some in enumerate(found_by_us(plain, batch, decoding, processors=[Forbid()])):
        assert all(4 + context not in tokens for tokens, _ in some)


def test_inference_leaves_no_trace(plain):
    """What comes out can be trained on: an ordinary tensor, from a model whose weights still take gradients."""
    found = generate(
        plain.model, plain._encoder_input(make_batch(plain, 2)), Decoding(**GREEDY), start=1, end=2, null=0
    )
    assert not found.tokens.is_inference() and found.tokens.dtype == found.lengths.dtype == torch.int64
    assert found.scores.dtype == torch.float32 and torch.is_grad_enabled()
    assert any(weights.requires_grad for weights in plain.model.parameters())


WRONG = [
    ({"method": "beem"}, "beam"),
    ({"method": "beam", "beam_size": 0}, "beam_size"),
    ({"method": "topk", "topk": 0}, "topk"),
    ({"method": "nucleus", "topp": 0.0}, "topp"),
    ({"method": "nucleus", "topp": 1.1}, "topp"),
    ({"temperature": 0.0}, "temperature"),
    ({"min_length": -1}, "min_length"),
    ({"max_length": 0}, "max_length"),
    ({"length_penalty": float("nan")}, "length_penalty"),
    ({"samples": 2}, "greedy"),
    ({"method": "topk", "beam_size": 2}, "beam"),
    ({"blocked": ((),)}, "blocked"),
]


@pytest.mark.parametrize(("options", "names"), WRONG)
def test_wrong_decodings_are_refused(options, names):
    with pytest.raises(SafetyError, match=names):
        Decoding(**options)


def test_what_does_not_fit_is_refused(plain):
    batch = make_batch(plain, 2)
    inputs, names = plain._encoder_input(batch), {"start": 1, "end": 2, "null": 0}
    with pytest.raises(SafetyError, match="no context"):
        generate(plain.model, inputs, Decoding(context_block_ngram=2), **names)
    with pytest.raises(SafetyError, match="prefix has shape"):
        generate(plain.model, inputs, Decoding(), prefix=torch.zeros((3, 1), dtype=torch.int64), **names)
    with pytest.raises(SafetyError, match="n-positions"):
        generate(plain.model, inputs, Decoding(max_length=100, min_length=100), **names)
    with pytest.raises(SafetyError, match="smaller beam"):
        generate(plain.model, inputs, Decoding("beam", beam_size=len(plain.dict) + 1), **names)
    plain.model.train()
    with pytest.raises(SafetyError, match="training mode"):
        generate(plain.model, inputs, Decoding(), **names)
    plain.model.eval()


@pytest.mark.parametrize("left", [(2,), (2, 7)], ids=["the end", "the end and a word"])
@pytest.mark.parametrize("beam_size", [4, 8])
def test_a_beam_wider_than_the_tokens_that_are_left(plain, left, beam_size):
    """Its other places hold what is forbidden, and an end token there completes nothing."""
    others = tuple((token,) for token in range(WORDS + len(SPECIAL)) if token not in left)
    decoding = Decoding(**{**BEAM, "beam_size": beam_size, "min_length": 0, "blocked": others})
    for some in assert_same(plain, make_batch(plain, 3), decoding):
        assert some and all(set(tokens) <= set(left) and score > -1e3 for tokens, score in some)
        assert len({tuple(tokens) for tokens, _ in some}) == len(some) <= (1 if left == (2,) else MAX_LENGTH)


@pytest.mark.parametrize("name", KNOWN)
def test_long_beams_are_parlais_too(name, tmp_path):
    """Long enough for the caches of keys and values to grow twice."""
    kind, options = MODELS[name]
    agent = make_agent(tmp_path, kind, **options)
    decoding = Decoding(**{**BEAM, "beam_size": 3, "max_length": 38, "min_length": 35, "block_ngram": 2})
    assert len(assert_same(agent, make_batch(agent, 2), decoding)[0][0][0]) > 35


@pytest.mark.parametrize("method", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_each_block_meets_the_prefix_and_the_context_of_its_own_rows(plain, method, monkeypatch):
    batch, prefix = make_batch(plain, 7), torch.arange(5, 19).view(7, 2)
    blocks = Decoding(**method, context_block_ngram=1)
    expected = found_by_us(plain, batch, blocks), found_by_us(plain, batch, Decoding(**method), prefix=prefix)
    monkeypatch.setattr(sampler, "LEAST_BLOCK", 3)
    monkeypatch.setattr(sampler, "BLOCK_SCORES", 1)
    found = found_by_us(plain, batch, blocks), found_by_us(plain, batch, Decoding(**method), prefix=prefix)
    for ours, wanted in zip(found, expected, strict=True):
        assert [[tokens for tokens, _ in some] for some in ours] == [[tokens for tokens, _ in some] for some in wanted]
    for row, (free, forced) in enumerate(zip(*found, strict=True)):
        assert not any(set(tokens) & set(batch.text_vec[row].tolist()) - {2} for tokens, _ in free)
        assert all(tokens[:2] == prefix[row].tolist() for tokens, _ in forced)


def test_the_state_of_a_plain_decoder_is_reordered_once_between_two_steps(tmp_path, monkeypatch):
    """As in ParlAI's search, which does so whether rows move or not, so that a model may count on it."""
    kind, options = MODELS["gru with attention"]
    agent, reordered = make_agent(tmp_path, kind, **options), []
    original = agent.model.reorder_decoder_incremental_state

    def noting(state, rows):
        reordered.append(rows.tolist())
        return original(state, rows)

    monkeypatch.setattr(agent.model, "reorder_decoder_incremental_state", noting)
    with torch.no_grad():
        steps = PlainSteps(agent.model, agent.model.encoder(*agent._encoder_input(make_batch(agent, 3))), 3)
        for length in range(1, 4):
            steps(torch.ones((3, length), dtype=torch.int64))
        steps.select(torch.tensor([2, 0]))
        steps(torch.ones((2, 4), dtype=torch.int64))
    assert reordered == [[0, 1, 2], [0, 1, 2], [2, 0]]
