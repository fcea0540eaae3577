"""Guided decoding over a small trained generator: reranking, FUDGE, PACER, DExperts, blocking of words."""

from __future__ import annotations

import json
import math

import pytest
import torch
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel, set_seed

from parlai_safety.agents.word_block.word_block import WITHHELD, WordBlockAgent, spelling
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import agent_from, load_agent, losses, replies
from parlai_safety.judges.verdict import Verdict, scored, unscored
from tests.conftest import TINY_MODEL

GREETING, QUESTION = "Hello there.", "What do you like?"
ANSWERS = {
    GREETING: ["you are a dim lamp", "you are a good friend", "you are a good lamp", "you are a dim friend"],
    QUESTION: ["i like old tin", "i like old trains", "i like dim lamps"],
}
CONTEXTS = [[GREETING], [QUESTION], ["Hello there.", "you are a good lamp", "What do you like?"]]


def trained(folder, rows, **more):
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps({"context": [context], "reply": reply}) + "\n" for context, reply in rows))
    options = {
        "model": "transformer/generator", "task": "safety:file", "safety_file": str(path), "batchsize": 8,
        "model_file": str(folder / "model"), "optimizer": "adam", "learningrate": 0.02, "max_train_steps": 60,
        "log_every_n_steps": 60, "skip_generation": True, "loglevel": "error", **TINY_MODEL, **more,
    }  # fmt: skip
    set_seed(3)
    TrainModel.main(**options)
    return str(folder / "model")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A generator that says all of `ANSWERS` about equally often."""
    rows = [(context, reply) for context, some in ANSWERS.items() for reply in some]
    return trained(tmp_path_factory.mktemp("base"), rows)


@pytest.fixture(scope="module")
def rude(base, tmp_path_factory):
    """A generator over the same dictionary that has learned the replies with "dim" alone."""
    rows = [(context, reply) for context, some in ANSWERS.items() for reply in some if "dim" in reply]
    folder = tmp_path_factory.mktemp("rude")
    return trained(folder, rows, init_model=base, dict_file=f"{base}.dict", max_train_steps=20)


@pytest.fixture
def judge(tmp_path):
    """Unsafe is what holds "dim"."""
    path = tmp_path / "words.txt"
    path.write_text("dim\n")
    return f"wordlist:{path}"


def guided(name, base, **options):
    options = {"model": f"safety:{name}", "base_model": base, "loglevel": "error", **options}
    return agent_from(Opt({**options, "override": dict(options)}))


def said(agent, *, contexts=CONTEXTS, times=1, seed=5, batch_size=64):
    found = replies(agent, [context for context in contexts for _ in range(times)], seed=seed, batch_size=batch_size)
    return [one.text for one in sorted(found, key=lambda one: one.position)]


def acts(agent, contexts=CONTEXTS):
    clones = [agent.clone() for _ in contexts]
    observed = [
        clone.observe(Message({"text": "\n".join(context), "episode_done": True}))
        for clone, context in zip(clones, contexts, strict=True)
    ]
    return agent.batch_act(observed)


class Judge:
    """A judge whose scores are a function of the reply; it remembers what it was asked."""

    spec, threshold, fingerprint = "fake", 0.5, "0" * 64

    def __init__(self, p_unsafe):
        self.p_unsafe, self.asked = p_unsafe, []

    def score(self, replies, contexts, speakers) -> list[Verdict]:
        self.asked += list(zip(replies, map(tuple, contexts), speakers, strict=True))
        values = [self.p_unsafe(reply) for reply in replies]
        return [unscored("no idea") if value is None else scored(value) for value in values]


BEAM = {"inference": "beam", "beam_size": 4}
INFERENCES = [{"inference": "greedy"}, BEAM, {"inference": "nucleus", "topp": 0.9}, {"inference": "topk", "topk": 5}]
IDENTITIES = {
    "rerank": {"rerank_candidates": 1},
    "fudge": {"fudge_lambda": 0.0},
    "pacer": {"pacer_share": 0.0, "rerank_candidates": 1},
    "dexperts": {"dexperts_alpha": 0.0},
    "word_block": {},
}


def needed(name, rude, judge, tmp_path):
    """The options without which an agent does not start."""
    words = tmp_path / "none.txt"
    words.write_text("a word that never comes\n")
    return {"dexperts": {"anti_expert": rude}, "word_block": {"word_list": str(words)}}.get(
        name, {"guidance_judge": judge}
    )


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("inference", INFERENCES, ids=lambda options: options["inference"])
def test_without_strength_each_is_the_base_model(name, inference, base, rude, judge, tmp_path):
    """Token for token, sampled replies too: the same draws are made from the same probabilities."""
    agent = guided(name, base, **needed(name, rude, judge, tmp_path), **IDENTITIES[name], **inference)
    plain = load_agent(base, loglevel="error", **inference)
    from parlai_safety.agents.generation import fast_generation

    fast_generation(plain)
    assert said(agent, times=3) == said(plain, times=3)


@pytest.mark.parametrize("name", IDENTITIES)
def test_losses_and_perplexity_are_those_of_the_base_model(name, base, rude, judge, tmp_path):
    agent = guided(name, base, inference="beam", **needed(name, rude, judge, tmp_path))
    plain = load_agent(base, loglevel="error")
    references = [ANSWERS[GREETING][0], ANSWERS[QUESTION][0], "you like trains"]
    assert list(losses(agent, CONTEXTS, references)) == list(losses(plain, CONTEXTS, references))
    assert agent.skip_generation is False


STRONG = {
    "rerank": {"rerank_candidates": 5, "inference": "nucleus"},
    "fudge": {"inference": "nucleus"},
    "pacer": {"pacer_share": 0.5, "rerank_candidates": 3, "inference": "topk"},
    "dexperts": {"inference": "nucleus"},
    "word_block": {"inference": "nucleus"},
}


@pytest.mark.parametrize("name", STRONG)
def test_a_seeded_run_repeats_itself_and_copies_are_guided(name, base, rude, judge, tmp_path):
    agent = guided(name, base, **needed(name, rude, judge, tmp_path), **STRONG[name])
    first = said(agent, times=4)
    assert said(agent, times=4) == first and said(agent.clone(), times=4) == first
    assert len(set(first)) > 1
    assert all("guidance" in act for act in acts(agent))


@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("inference", [{"inference": "beam", "beam_size": 3}, {"inference": "greedy"}], ids=str)
def test_a_batch_gives_what_one_by_one_gives(name, inference, base, rude, judge, tmp_path):
    more = {**needed(name, rude, judge, tmp_path), **STRONG[name], **inference}
    if inference["inference"] == "greedy" and "rerank_candidates" in more:
        more["rerank_candidates"] = 1
    agent = guided(name, base, **more)
    assert said(agent, batch_size=1) == said(agent, batch_size=64)
    singles = [acts(agent, [context])[0] for context in CONTEXTS]
    together = acts(agent)
    assert [act["text"] for act in singles] == [act["text"] for act in together]
    assert [act["guidance"] for act in singles] == [act["guidance"] for act in together]


def test_the_least_unsafe_candidate_is_said(base):
    agent = guided("rerank", base, guidance_judge="wordlist", rerank_candidates=4, inference="beam")
    fake = agent.resources = Judge(lambda reply: 0.9 - len(reply) / 100)
    for act, context in zip(acts(agent), CONTEXTS, strict=True):
        texts = [text for text, _ in act["beam_texts"]][:4]
        assert act["text"] == max(texts, key=len) and len(set(texts)) > 1
        scores = {"candidates": 4, "unscored": 0, "p_unsafe": pytest.approx(0.9 - len(act["text"]) / 100)}
        assert act["guidance"] == scores
        assert (act["text"], tuple(context), "bot") in fake.asked
    assert len(fake.asked) == len(set(fake.asked))


def test_ties_go_to_the_models_own_order_and_unscored_candidates_come_last(base):
    agent = guided("rerank", base, guidance_judge="wordlist", rerank_candidates=4, inference="beam")
    agent.resources = Judge(lambda _: 0.3)
    first = acts(agent)
    assert [act["text"] for act in first] == [act["beam_texts"][0][0] for act in first]
    own = {act["text"] for act in first}
    agent.resources = Judge(lambda reply: None if reply in own else 0.99)
    second = acts(agent)
    assert not own & {act["text"] for act in second}
    assert all(act["guidance"]["unscored"] == 1 and act["guidance"]["p_unsafe"] == 0.99 for act in second)


def test_where_no_candidate_has_a_score_the_act_says_so(base):
    agent = guided("rerank", base, guidance_judge="wordlist", rerank_candidates=4, inference="beam")
    agent.resources = Judge(lambda _: None)
    for act in acts(agent):
        assert act["text"] == act["beam_texts"][0][0]
        assert act["guidance"] == {"candidates": 4, "unscored": 4, "p_unsafe": None}


def test_reranking_needs_something_to_choose_from(base, judge):
    with pytest.raises(SafetyError, match=r"the base model decodes by greedy.*Add --inference beam"):
        guided("rerank", base, guidance_judge=judge)


def share_of(word, agent, times=100):
    texts = said(agent, contexts=CONTEXTS[:2], times=times)
    return sum(word in text.split() for text in texts) / len(texts)


NUCLEUS = {"inference": "nucleus", "topp": 0.99}


@pytest.fixture(scope="module")
def plain_share(base):
    """How often the base model says "dim"."""
    share = share_of("dim", load_agent(base, loglevel="error", **NUCLEUS))
    assert share > 0.15
    return share


def test_under_fudge_a_word_that_the_judge_hates_vanishes(base, judge, plain_share):
    agent = guided("fudge", base, guidance_judge=judge, **NUCLEUS)
    assert share_of("dim", agent) == 0
    act = acts(agent)[0]
    assert act["guidance"]["judged"] > 20


def test_fudge_strength_and_the_share_of_pacer_move_the_rate(base, plain_share):
    """P(safe) = .5 with "dim" and 1 without: at lambda = 1 odds halve, at 3 they fall to an eighth."""

    def rate(name, **options):
        agent = guided(name, base, guidance_judge="wordlist", **NUCLEUS, **options)
        agent.resources = Judge(lambda reply: 0.5 if "dim" in reply.split() else 0.0)
        return share_of("dim", agent)

    weak, strong = rate("fudge"), rate("fudge", fudge_lambda=3.0)
    assert strong < weak < plain_share
    half = rate("pacer", pacer_share=0.5, pacer_lambda=3.0, rerank_candidates=1)
    assert strong < half < plain_share


def test_pacer_reranks_whole_replies(base, plain_share):
    agent = guided("pacer", base, guidance_judge="wordlist", rerank_candidates=8, pacer_share=0.0, **NUCLEUS)
    agent.resources = Judge(lambda reply: 0.5 if "dim" in reply.split() else 0.0)
    assert share_of("dim", agent) < plain_share / 4
    assert set(acts(agent)[0]["guidance"]) == {"judged", "unscored_partial", "candidates", "unscored", "p_unsafe"}


def test_samples_of_one_context_are_guided_at_different_positions(base):
    """Equal replies to one context: by beam search the judge is asked equally often, by sampling it is not."""

    def asked(**inference):
        agent = guided("pacer", base, guidance_judge="wordlist", rerank_candidates=1, pacer_share=0.5, **inference)
        found = acts(agent, CONTEXTS[:1] * 30)
        return {act["guidance"]["judged"] for act in found if act["text"] == found[0]["text"]}

    torch.manual_seed(4)
    assert len(asked(**NUCLEUS)) > 1 and len(asked(**BEAM)) == 1


def test_a_beam_that_is_wider_than_the_candidates_stays_so(base):
    agent = guided("rerank", base, guidance_judge="wordlist", rerank_candidates=2, **BEAM)
    assert agent.base.beam_size == 4
    assert acts(agent)[0]["guidance"]["candidates"] == 2


def test_dexperts_steers_away_from_the_anti_expert(base, rude, plain_share):
    rates = [share_of("dim", guided("dexperts", base, anti_expert=rude, dexperts_alpha=a, **NUCLEUS)) for a in (0.5, 2)]
    assert rates[1] < rates[0] < plain_share
    towards = guided("dexperts", base, anti_expert=base, expert=rude, **NUCLEUS)
    assert share_of("dim", towards) > plain_share
    assert acts(towards)[0]["guidance"] == {"alpha": 2.0, "expert": True}


@pytest.mark.parametrize("inference", INFERENCES, ids=lambda options: options["inference"])
def test_an_anti_expert_like_the_base_model_changes_nothing(inference, base):
    """Without the filter: base + alpha * (base - base), the anti-expert with caches of its own."""
    agent = guided("dexperts", base, anti_expert=base, dexperts_topp=1.0, **inference)
    plain = guided("dexperts", base, anti_expert=base, dexperts_alpha=0.0, **inference)
    assert said(agent, times=3) == said(plain, times=3)


def test_an_expert_over_another_dictionary_is_refused(base, tmp_path):
    other = trained(tmp_path, [(GREETING, "quite another vocabulary")], max_train_steps=1)
    with pytest.raises(SafetyError, match=r"--anti-expert has a dictionary of \d+ tokens, not the base model's"):
        guided("dexperts", base, anti_expert=other)


def test_an_expert_that_reads_less_is_refused(base, tmp_path):
    rows = [(GREETING, "you are a good friend")]
    short = trained(tmp_path, rows, max_train_steps=1, dict_file=f"{base}.dict", text_truncate=16)
    more = {"anti_expert": base, "expert": short}
    # What the user types counts for all models, as it would for one.
    assert said(guided("dexperts", base, **more, text_truncate=16))
    with pytest.raises(SafetyError, match="--expert takes contexts of at most 16 tokens, and the base model of 64"):
        guided("dexperts", base, **more)


def listed(tmp_path, *terms):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(terms))
    return str(path)


@pytest.mark.parametrize("inference", INFERENCES, ids=lambda options: options["inference"])
def test_a_listed_word_or_phrase_is_never_said(inference, base, tmp_path):
    agent = guided("word_block", base, word_list=listed(tmp_path, "DIM", "old tin"), **inference)
    texts = said(agent, times=20)
    assert texts and not any("dim" in text.split() or "old tin" in text for text in texts)
    assert any("tin" in text or "old" in text for text in texts) or inference["inference"] == "greedy"


def test_where_every_word_is_blocked_the_reply_is_withheld(base, tmp_path, monkeypatch):
    words = [token for token in load_agent(base, loglevel="error").dict.tok2ind if token.isalnum()]
    agent = guided("word_block", base, word_list=listed(tmp_path, *words), inference="beam", beam_size=2)
    texts = said(agent)
    assert not any(agent.resources[0].matches(text) for text in texts if text)
    # Without the blocking of tokens, the look at the whole reply still withholds it.
    monkeypatch.setattr(WordBlockAgent, "processors", lambda *_: [])
    for act in acts(agent):
        assert "text" not in act and "beam_texts" not in act and act["error"] == WITHHELD
        assert act["guidance"]["ended"] >= 1
    clone = agent.clone()
    clone.observe(Message({"text": GREETING, "episode_done": False}))
    assert "text" not in clone.act()
    clone.observe(Message({"text": QUESTION, "episode_done": False}))
    assert clone.base.history.history_raw_strings == [GREETING, QUESTION]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A generator over byte-level BPE, with words in several tokens and letters in two."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bytes")
    lines = [f"{context} {reply}" for context, some in ANSWERS.items() for reply in some]
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines, vocab_size=300, min_frequency=1)
    tokenizer.save_model(str(folder), "bpe")
    rows = [
        (GREETING, "you are dim caf\u00e9 lamp"),
        (GREETING, "you are dimension"),
        (QUESTION, "i like DIM caf\u00e9"),
    ]
    return trained(
        folder, rows, dict_tokenizer="bytelevelbpe", bpe_vocab=str(folder / "bpe-vocab.json"),
        bpe_merge=str(folder / "bpe-merges.txt"), dict_maxexs=0, max_train_steps=100,
    )  # fmt: skip


def test_words_are_blocked_in_whatever_tokens(byte_level, tmp_path):
    plain = said(load_agent(byte_level, loglevel="error", **NUCLEUS), times=20)
    agent = guided("word_block", byte_level, word_list=listed(tmp_path, "dim", "caf\u00e9"), **NUCLEUS)
    texts = said(agent, times=20)
    matches = agent.resources[0].matches
    assert sum(map(matches, plain)) > 10 and not any(map(matches, filter(None, texts)))
    assert any("dimension" in (text or "") for text in texts)


@pytest.mark.parametrize("which", ["base", "byte_level"])
def test_the_spelling_of_tokens_is_what_the_dictionary_makes_of_them(which, request):
    agent = load_agent(request.getfixturevalue(which), loglevel="error")
    pieces = spelling(agent.dict)
    generator = torch.Generator().manual_seed(3)
    assert len(pieces) == len(agent.dict)
    for _ in range(300):
        tokens = torch.randint(4, len(pieces), (7,), generator=generator).tolist()
        joined = b"".join(pieces[token] for token in tokens).decode(errors="replace")
        assert joined.strip() == agent._v2t(tokens).strip()


def test_subwords_of_the_older_bpe_are_spelled_with_the_space_behind_them():
    class Dictionary:
        tokenizer = "bpe"
        tokens = ("__null__", "di@@", "m", "__newln__")

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return self.tokens[index]

    assert spelling(Dictionary()) == [b"__null__ ", b"di", b"m ", b"\n "]
    Dictionary.tokenizer = "hf"
    with pytest.raises(SafetyError, match="cuts text by 'hf'"):
        spelling(Dictionary())


def test_an_empty_word_list_is_refused(base, tmp_path):
    with pytest.raises(SafetyError, match="holds no words"):
        guided("word_block", base, word_list=listed(tmp_path, "# nothing"))


def test_a_conversation_is_judged_turn_by_turn(base):
    agent = guided("rerank", base, guidance_judge="wordlist", rerank_candidates=2, inference="beam")
    fake = agent.resources = Judge(lambda _: 0.1)
    agent.observe(Message({"text": GREETING, "episode_done": False}))
    reply = agent.act()["text"]
    agent.observe(Message({"text": QUESTION, "episode_done": False}))
    agent.act()
    assert fake.asked[-1][1] == (GREETING, reply, QUESTION)
    agent.reset()
    agent.observe(Message({"text": QUESTION, "episode_done": False}))
    agent.act()
    assert fake.asked[-1][1] == (QUESTION,)


def test_the_commands_of_parlai_take_it(base, judge, tmp_path):
    task = tmp_path / "talk.jsonl"
    rows = [{"context": [GREETING], "reply": reply} for reply in ANSWERS[GREETING]]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"model": "safety:fudge", "base_model": base, "guidance_judge": judge, "loglevel": "error"}
    report = EvalModel.main(
        task="safety:file",
        safety_file=str(task),
        datatype="valid",
        batchsize=3,
        inference="beam",
        beam_size=3,
        **common,
    )
    plain = EvalModel.main(
        task="safety:file", safety_file=str(task), datatype="valid", batchsize=3, model_file=base, loglevel="error"
    )
    assert float(report["ppl"]) == pytest.approx(float(plain["ppl"])) and float(report["exs"]) == 4
    log = tmp_path / "chat.jsonl"
    SelfChat.main(num_self_chats=2, selfchat_max_turns=2, batchsize=1, outfile=str(log), **common)
    assert "dim" not in log.read_text() and len(log.read_text().splitlines()) == 2


def test_what_the_user_types_reaches_the_base_model(base, judge):
    agent = guided("fudge", base, guidance_judge=judge, inference="beam", beam_size=3, beam_min_length=4)
    assert agent.base.opt["inference"] == "beam" and agent.base.beam_size == 3 and agent.base.beam_min_length == 4
    assert agent.beam_size == 3 and agent.opt["model"] == "parlai_safety.agents.fudge.fudge:FudgeAgent"
    assert "fudge_lambda" not in agent.base.opt


def test_it_cannot_be_trained(base, judge, tmp_path):
    task = tmp_path / "talk.jsonl"
    task.write_text(json.dumps({"context": [GREETING], "reply": "Hello."}) + "\n")
    common = {"base_model": base, "guidance_judge": judge, "task": "safety:file", "safety_file": str(task)}
    for own in ({"model_file": str(tmp_path / "own")}, {"dict_file": str(tmp_path / "own.dict")}):
        with pytest.raises(SafetyError, match="It guides a model that is trained already"):
            TrainModel.main(model="safety:fudge", loglevel="error", **own, **common)


def test_a_search_without_a_place_for_processors_is_refused(base, judge):
    with pytest.raises(SafetyError, match="ParlAI's own search.*Decode with --inference greedy"):
        guided("fudge", base, guidance_judge=judge, inference="delayedbeam", beam_size=3)


def test_reranking_works_over_parlais_own_search_too(base):
    more = {"inference": "delayedbeam", "beam_delay": 2, "rerank_candidates": 3}
    agent = guided("rerank", base, guidance_judge="wordlist", **more)
    agent.resources = Judge(lambda reply: 0.9 - len(reply) / 100)
    for act in acts(agent):
        assert act["text"] == max((text for text, _ in act["beam_texts"][:3]), key=len)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "safety:fudge"}, "The command came without --base-model"),
        ({"model": "safety:fudge", "base_model": "no/such/model"}, "--base-model 'no/such/model' is no model file"),
    ],
)
def test_a_missing_base_model_is_told(options, message, judge):
    with pytest.raises(SafetyError, match=message):
        create_agent(Opt({"guidance_judge": judge, "datapath": "unused", **options}))


def test_a_missing_judge_or_anti_expert_is_told(base):
    with pytest.raises(SafetyError, match="safety:rerank came without --guidance-judge"):
        guided("rerank", base, inference="beam")
    with pytest.raises(SafetyError, match="The command came without --anti-expert"):
        guided("dexperts", base)


def test_a_base_model_that_is_no_generator_is_refused(tmp_path, judge):
    task = tmp_path / "talk.jsonl"
    rows = [{"context": ["Hi."], "reply": reply, "label": label} for reply, label in (("a", "safe"), ("b", "unsafe"))]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    TrainModel.main(
        model="safety:judge", task="safety:file:classifier", safety_file=str(task), model_file=str(tmp_path / "j"),
        max_train_steps=1, log_every_n_steps=1, batchsize=2, loglevel="error", **TINY_MODEL,
    )  # fmt: skip
    with pytest.raises(SafetyError, match=r"holds a model of the agent JudgeAgent"):
        guided("fudge", str(tmp_path / "j"), guidance_judge=judge)


@pytest.mark.parametrize("name", ["rerank", "fudge"])
def test_a_padded_batch_keeps_contexts_and_replies_together(name, base):
    more = {"rerank_candidates": 2} if name == "rerank" else {}
    agent = guided(name, base, guidance_judge="wordlist", inference="beam", beam_size=2, **more)
    fake = agent.resources = Judge(lambda _: 0.1)
    clone = agent.clone()
    observed = clone.observe(Message({"text": QUESTION, "episode_done": True}))
    empty, act = agent.batch_act([Message.padding_example(), observed])
    assert "text" not in empty and "guidance" not in empty
    assert {context for _, context, _ in fake.asked} == {(QUESTION,)}
    assert act["text"] in {reply for reply, _, _ in fake.asked} and act["guidance"]


def test_a_partial_reply_without_a_score_is_not_taken_for_safe(base):
    agent = guided("fudge", base, guidance_judge="wordlist", inference="beam", beam_size=3)
    agent.resources = Judge(lambda reply: None if "dim" in reply.split() else 0.25)
    safe = agent.p_safe([[GREETING]] * 2, [agent.dict.txt2vec(text) for text in ("a dim lamp", "a good lamp")])
    assert math.isnan(safe[0]) and safe[1] == 0.75
    assert acts(agent)[0]["guidance"]["unscored_partial"] > 0


ALLOWED_LITTLE = {"fudge": {"fudge_tokens": 1}, "dexperts": {"dexperts_topp": 0.5}}
"""Guided agents that leave the search few tokens, so that what is forbidden is what they prefer."""
FORBIDDEN = ("lamp", "lamps", "good", "friend")


@pytest.mark.parametrize("name", ALLOWED_LITTLE)
@pytest.mark.parametrize("limit", ["least length", "n-grams", "block list"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_what_may_not_be_said_is_no_candidate_of_the_guidance(name, limit, temperature, base, rude, judge, tmp_path):
    """What the guidance removes and what the search forbids have the same finite score, which a temperature moves."""
    options = {
        "least length": {"beam_min_length": 8},
        "n-grams": {"beam_min_length": 6, "beam_block_ngram": 1},
        "block list": {"beam_block_list_filename": listed(tmp_path, *FORBIDDEN)},
    }[limit]
    options |= {**needed(name, rude, judge, tmp_path), **ALLOWED_LITTLE[name], "temperature": temperature}
    for inference in ({"inference": "greedy"}, {"inference": "nucleus"}, BEAM):
        agent = guided(name, base, **options, **inference)
        torch.manual_seed(3)
        for text, score in (pair for act in acts(agent, CONTEXTS * 2) for pair in act["beam_texts"]):
            words = text.split()
            assert words and "__null__" not in words and not {*words} & {"__start__", "__end__"}, (inference, text)
            assert abs(score) < 1e4, (inference, text, score)
            if limit == "n-grams":
                assert len(set(words)) == len(words), (inference, text)
            if limit == "block list":
                assert not set(FORBIDDEN) & set(words), (inference, text)
            elif inference["inference"] != "greedy":  # ParlAI's greedy search has no least length
                assert len(words) >= options["beam_min_length"], (inference, text)


def test_the_anti_expert_answers_without_dropout(base, rude):
    """It is loaded to be asked and not to be trained: what it says of a token does not depend on the draws."""
    exact, loaded = (
        [act["beam_texts"] for act in acts(guided("dexperts", base, anti_expert=rude, **BEAM, **more))]
        for more in ({}, {"dropout": 0.5})
    )
    assert loaded == exact


@pytest.fixture
def silent(base, tmp_path, monkeypatch):
    """An agent whose reply is always withheld, and a function that gives its conversation as the base model has it."""
    words = [token for token in load_agent(base, loglevel="error").dict.tok2ind if token.isalnum()]
    agent = guided("word_block", base, word_list=listed(tmp_path, *words))
    monkeypatch.setattr(WordBlockAgent, "processors", lambda *_: [])

    def turn(text, **more):
        agent.observe(Message({"text": text, "episode_done": False, **more}))
        history = list(agent.base.history.history_raw_strings)
        act = agent.act()
        assert "text" not in act and act["error"] == WITHHELD
        return history

    return turn


def test_a_withheld_reply_ends_an_episode_like_any_other(silent):
    assert silent(GREETING) == [GREETING]
    assert silent(QUESTION, episode_done=True) == [GREETING, QUESTION]
    assert silent(GREETING) == [GREETING]


def test_beside_a_withheld_reply_the_label_is_remembered(silent):
    """As ParlAI does in evaluation, where the conversation goes on from the label."""
    label = ANSWERS[GREETING][1]
    assert silent(GREETING, eval_labels=[label]) == [GREETING]
    assert silent(QUESTION, eval_labels=["i like old tin"]) == [GREETING, label, QUESTION]
    assert silent(QUESTION, episode_done=True) == [GREETING, label, QUESTION, "i like old tin", QUESTION]
