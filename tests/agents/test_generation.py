"""Agents answer by the sampler what they would answer by ParlAI's search, and say so where they cannot."""

from __future__ import annotations

import pytest
import torch
from parlai.agents.test_agents.transformer_generator_prefix import TransformerGeneratorPrefixAgent
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.message import Message
from parlai.core.params import ParlaiParser
from parlai.utils import misc

from parlai_safety.agents import generation
from parlai_safety.agents.common import dotted_path
from parlai_safety.agents.generation import FastGenerationMixin, fast_generation, sample_replies, why_not
from parlai_safety.errors import SafetyError
from tests.modeling.test_sampler import make_agent

CONTEXTS = [["w1 w2 w3"], ["w9", "w4 w5"], ["w7"], ["w3 w3 w8 w20"], ["w11 w12"], ["w30 w2 w2 w6"], ["w5 w21"]]


class FastAgent(FastGenerationMixin, TransformerGeneratorAgent):
    """ParlAI's generator with the sampler."""


@pytest.fixture
def agent(tmp_path):
    return make_agent(tmp_path)


def say(agent, **options):
    """The acts of a batch, with options set as a command line would have set them."""
    agent.opt.update({"inference": "greedy", "beam_size": 1, **options})
    agent.beam_size = agent.opt["beam_size"]
    for name in ("beam_min_length", "beam_block_ngram", "beam_context_block_ngram", "beam_block_full_context"):
        setattr(agent, name, agent.opt[name])
    clones = [agent.clone() for _ in CONTEXTS]
    observed = [
        clone.observe(Message({"text": "\n".join(context), "episode_done": True}))
        for clone, context in zip(clones, CONTEXTS, strict=True)
    ]
    return agent.batch_act(observed)


OPTIONS = {
    "greedy": {},
    "beam": {"inference": "beam", "beam_size": 3, "beam_min_length": 3},
    "blocking": {"inference": "beam", "beam_size": 3, "beam_block_ngram": 2, "beam_context_block_ngram": 1},
    "full context": {"beam_context_block_ngram": 1, "beam_block_full_context": True, "beam_block_ngram": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_acts_are_those_of_parlais_search(agent, name, monkeypatch):
    theirs = say(agent, **OPTIONS[name])
    fast_generation(agent)
    monkeypatch.setattr(TransformerGeneratorAgent, "_treesearch_factory", None)  # ParlAI's search would fail
    monkeypatch.setattr(generation, "why_not", lambda agent: None)
    ours = say(agent, **OPTIONS[name])
    assert [act["text"] for act in ours] == [act["text"] for act in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert [text for text, _ in mine["beam_texts"]] == [text for text, _ in other["beam_texts"]]
        scores = [score for _, score in other["beam_texts"]]
        assert [score for _, score in mine["beam_texts"]] == pytest.approx(scores, abs=1e-4)


def test_the_block_list_counts(agent):
    fast_generation(agent)
    word = say(agent)[0]["text"].split()[0]
    agent.beam_block_list.add(word)
    assert all(word not in act["text"].split() for act in say(agent))


def test_prefix_tokens_count(tmp_path):
    agent = make_agent(tmp_path, TransformerGeneratorPrefixAgent)
    theirs = say(agent, inference="beam", beam_size=2)
    fast_generation(agent)
    assert [act["text"] for act in say(agent, inference="beam", beam_size=2)] == [act["text"] for act in theirs]


def test_of_several_sampled_replies_the_best_is_said(agent):
    """Of those that ended, as ParlAI has it."""
    fast_generation(agent)
    torch.manual_seed(2)
    for act in say(agent, inference="topk", topk=5, beam_size=8, beam_length_penalty=0.65):
        texts, scores = zip(*act["beam_texts"], strict=True)
        assert act["text"] == texts[0] and list(scores) == sorted(scores, reverse=True)


def test_clones_are_fast_too_and_doing_it_twice_changes_nothing(agent):
    path = dotted_path(type(agent))
    fast_generation(agent)
    kind = type(agent)
    fast_generation(agent)
    assert type(agent) is kind and isinstance(agent.clone(), FastGenerationMixin)
    assert dotted_path(kind) == path
    shared = agent.share()
    assert isinstance(shared["class"](agent.opt, shared), FastGenerationMixin)


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.setattr(misc, "_seen_logs", set())
    heard: list[str] = []
    monkeypatch.setattr(misc.logging, "warning", lambda text, *_: heard.append(text))
    monkeypatch.setattr(misc.logging, "warn", lambda text, *_: heard.append(text), raising=False)
    return heard


def test_what_is_not_covered_goes_to_parlai_and_is_said_once(agent, lines):
    options = {"inference": "delayedbeam", "beam_size": 2, "beam_delay": 0, "topk": 5}
    theirs = say(agent, **options)
    fast_generation(agent)
    assert why_not(agent) == "--inference delayedbeam"
    for _ in range(2):
        assert [act["text"] for act in say(agent, **options)] == [act["text"] for act in theirs]
    assert len([line for line in lines if "--inference delayedbeam" in line]) == 1


def test_the_user_may_ask_for_parlais_search(tmp_path, lines, monkeypatch):
    parser = ParlaiParser(True, True)
    FastAgent.add_cmdline_args(parser)
    assert parser.parse_kwargs()["generation"] == "fast"
    agent = make_agent(tmp_path, FastAgent)
    agent.opt["generation"] = "parlai"
    monkeypatch.setattr(generation, "generate", None)
    assert all(act["text"] for act in say(agent)) and not lines
    agent.opt["generation"] = "quick"
    with pytest.raises(SafetyError, match="quick"):
        say(agent)


def test_reasons(agent):
    assert why_not(agent) is None
    agent.show_token_details = True
    assert "--verbose" in why_not(agent)
    agent.show_token_details = False
    agent.beam_size = 2
    assert "--beam-size 2" in why_not(agent)
    assert why_not(agent, inference="nucleus") is None

    with pytest.raises(SafetyError, match="no TorchGeneratorAgent|TorchGeneratorAgent"):
        fast_generation(object())


class Own(FastAgent):
    """An agent with a search of its own, which the sampler does not know."""

    def _treesearch_factory(self, *args, **kwargs):
        return super()._treesearch_factory(*args, **kwargs)


def test_an_agent_with_a_search_of_its_own_keeps_it(tmp_path, lines):
    agent = make_agent(tmp_path, Own)
    assert "_treesearch_factory" in why_not(agent)
    assert all(act["text"] for act in say(agent)) and len(lines) == 1


class Silence:
    def begin(self, context_of_row):
        pass

    def __call__(self, logits, tokens):
        logits[:, 7] += 1e4
        return logits

    def select(self, rows):
        pass


def test_processors_of_an_agent_count_and_are_never_left_out_in_silence(agent):
    fast_generation(agent)
    agent.logits_processors = lambda batch: [Silence()]
    word = agent.dict[7]
    assert all(set(act["text"].split()) == {word} for act in say(agent))
    with pytest.raises(SafetyError, match="--inference factual_nucleus"):
        say(agent, inference="factual_nucleus")


def test_several_replies_a_context_and_a_resumed_run_gives_what_the_straight_run_gave(agent):
    def run(**more):
        found = sample_replies(agent, CONTEXTS, samples=4, seed=7, batch_size=3, method="nucleus", topp=0.95, **more)
        return {item.position: item for item in found}

    new: list[int] = []
    state = torch.random.get_rng_state()
    straight = run(progress=new.append)
    assert sorted(straight) == list(range(len(CONTEXTS))) and sum(new) == len(CONTEXTS)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(len(item.texts) == len(item.scores) == 4 for item in straight.values())
    assert any(len(set(item.texts)) > 1 for item in straight.values())
    known = set(list(straight)[:4])
    assert run(known=known) == {i: item for i, item in straight.items() if i not in known}
    assert run() == straight


def test_replies_go_to_their_own_contexts(agent):
    """One context at a time gives the greedy replies that the batch gives, whatever its order."""
    together = {item.position: item.texts for item in sample_replies(agent, CONTEXTS, samples=1, seed=0)}
    for i, context in enumerate(CONTEXTS):
        assert next(sample_replies(agent, [context], samples=1, seed=0)).texts == together[i]
    assert len({texts[0] for texts in together.values()}) > 1


def test_what_sample_replies_cannot_do_is_refused(agent):
    with pytest.raises(SafetyError, match="topq"):
        next(sample_replies(agent, CONTEXTS, samples=2, seed=0, method="nucleus", topq=0.9))
    agent.opt["inference"] = "factual_nucleus"
    with pytest.raises(SafetyError, match="factual_nucleus"):
        next(sample_replies(agent, CONTEXTS, samples=2, seed=0))
    assert next(sample_replies(agent, CONTEXTS, samples=2, seed=0, method="topk")).texts


@pytest.mark.parametrize("contexts", [[[]], [[""]], [[], ["  "]]], ids=str)
def test_contexts_without_text_get_no_replies(agent, contexts):
    """As ParlAI's agents, which do not answer an empty message; alone in their batch as well."""
    new: list[int] = []
    found = list(sample_replies(agent, contexts, samples=3, seed=1, method="nucleus", progress=new.append))
    assert sorted(found) == [(i, [], []) for i in range(len(contexts))] and sum(new) == len(contexts)
    resumed = sample_replies(agent, contexts, samples=3, seed=1, method="nucleus", known={0})
    assert list(resumed) == [one for one in found if one.position != 0]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_among_others_a_context_without_text_shifts_no_reply(agent, batch_size):
    alone = {one.position: one.texts for one in sample_replies(agent, CONTEXTS, samples=1, seed=1)}
    mixed = [[], *CONTEXTS[:3], [""], *CONTEXTS[3:]]
    found = list(sample_replies(agent, mixed, samples=1, seed=1, batch_size=batch_size))
    texts = {one.position: one.texts for one in found}
    assert len(found) == len(texts) == len(mixed) and texts.pop(0) == texts.pop(4) == []
    assert list(dict(sorted(texts.items())).values()) == [alone[i] for i in range(len(CONTEXTS))]


class Ending:
    """Makes replies end, so that a beam has as many as it is wide."""

    def begin(self, context_of_row):
        pass

    def __call__(self, logits, tokens):
        return logits.index_add(1, torch.tensor([2]), torch.full((len(logits), 1), 10.0))

    def select(self, rows):
        pass


def test_a_beam_is_as_wide_as_the_replies_that_are_wanted(agent):
    """Whatever the options say of its width; a wider one gives its best."""
    agent.logits_processors = lambda batch: [Ending()]
    assert agent.beam_size == 1
    for one in sample_replies(agent, CONTEXTS, samples=5, seed=1, method="beam"):
        assert len(one.texts) == len(one.scores) == 5 and one.scores == sorted(one.scores, reverse=True)
        assert len(set(one.scores)) > 1
    wide, narrow = (
        {one.position: one for one in sample_replies(agent, CONTEXTS, samples=n, seed=1, method="beam", beam_size=5)}
        for n in (5, 2)
    )
    assert all(one.texts == wide[i].texts[:2] for i, one in narrow.items())
