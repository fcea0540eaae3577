"""Every method over a causal language model, and every way to guide one while it decodes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from parlai.core.agents import create_agent_from_model_file

from parlai_safety.agents.causal import CausalDictionary
from parlai_safety.agents.word_block.word_block import WITHHELD, spelling
from parlai_safety.errors import SafetyError
from parlai_safety.modeling.chat import ChatFormat
from parlai_safety.modeling.output import decoder_states, linear_output
from tests.agents.small import gradients_of, loss_of, metrics_of, observe_all, options, run, write_talk
from tests.agents.small_pairs import PAIRS, observe_pairs, pair_options, write_pairs
from tests.agents.test_backbones import library_loss
from tests.agents.test_decoders import BEAM, Judge, acts, guided, said
from tests.modeling.test_chat import GEMMA, sentence_pieces
from tests.tiny_causal import tiny_causal

SIZES = {"initializer_range": 0.05, "num_hidden_layers": 1}
TRAINING = {
    "optimizer": "adamw", "learningrate": 0.01, "max_train_steps": 9, "log_every_n_steps": 4,
}  # fmt: skip
METHODS = {
    "cringe": {},
    "cringe-k5": {"cringe_k": 5},
    "unlikelihood": {},
    "scones": {},
    "director": {},
    "director-shared": {"director_shared": True, "director_neutral_weight": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp("causal") / "hf", "qwen2", seed=1, **SIZES)


def trained(method, folder, tmp_path, **more):
    tmp_path.mkdir(exist_ok=True)
    talk = write_talk(tmp_path / "talk.jsonl")
    model_file = tmp_path / "m" / "model"
    given = {**TRAINING, **METHODS.get(method, {}), **more}
    name = f"safety:{method.partition('-')[0]}/causal_lm"
    return run(**options(name, talk, model_file, hf_model=str(folder), **given))


def nll(agent, context, reply):
    """Nats of a reply as the search sees it, with both heads where there are two."""
    message = {"context": [context], "reply": reply}
    batch = agent.batchify(observe_all(agent, [message]))
    agent.model.eval()
    with torch.no_grad():
        states = decoder_states(agent.model, *agent._model_input(batch), ys=batch.label_vec)
        scores = agent.model.output(states)
    return torch.nn.functional.cross_entropy(scores[0], batch.label_vec[0]).item()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_over_single_replies(method, folder, tmp_path):
    loop, reports = trained(method, folder, tmp_path)
    agent = loop.agent
    assert float(reports[-1]["ppl"]) < float(reports[0]["ppl"])

    # The plain form is the library's loss, and the chunked one, over one linear map, is the plain one.
    agent.model.double().eval()
    batch = agent.batchify(observe_all(agent))
    language_model = getattr(agent.model, "language_model", agent.model)
    assert linear_output(language_model, torch.randn(2, 32, dtype=torch.float64)) is not None
    agent.output_options = dataclasses.replace(agent.output_options, full_logits=True)
    plain, plain_gradients, plain_metrics = loss_of(agent, batch), gradients_of(agent, batch), metrics_of(agent)
    if method != "cringe-k5":
        torch.testing.assert_close(plain, library_loss(agent, batch), rtol=1e-6, atol=0)
        agent.output_options = dataclasses.replace(agent.output_options, full_logits=False, chunk_tokens=5)
        torch.testing.assert_close(loss_of(agent, batch), plain, rtol=1e-12, atol=0)
        for name, gradient in gradients_of(agent, batch).items():
            torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-8, atol=1e-12, msg=name)
        assert metrics_of(agent) == pytest.approx(plain_metrics)
    else:  # with the same draws, the quick road is the plain one
        found = []
        for full in (True, False):
            agent.output_options = dataclasses.replace(agent.output_options, full_logits=full, chunk_tokens=5)
            agent._training_source = torch.Generator().manual_seed(3)
            found.append(loss_of(agent, batch))
        torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert any("embed" in name and gradient.any() for name, gradient in plain_gradients.items())


AVOIDED = ("How are you?", "Go away, you dim lamp.")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("cringe", {"cringe_alpha": 3.0}),
        ("cringe-k5", {"cringe_alpha": 3.0}),
        ("unlikelihood", {"unlikelihood_alpha": 3.0}),
        ("scones", {}),
        ("director", {"director_infer_gamma": 4.0}),
    ],
)
def test_what_is_to_be_avoided_becomes_less_likely(method, more, folder, tmp_path):
    before = nll(trained(method, folder, tmp_path / "a", learningrate=0.0, max_train_steps=1)[0].agent, *AVOIDED)
    after = nll(trained(method, folder, tmp_path / "b", max_train_steps=25, **more)[0].agent, *AVOIDED)
    assert after > before
    if method == "cringe":  # whereas learning all replies makes it likelier
        plain = trained("causal_lm", folder, tmp_path / "c", max_train_steps=25, mutators="safety_plain")[0].agent
        assert nll(plain, *AVOIDED) < before


@pytest.mark.parametrize("method", ["pairwise_cringe", "click"])
def test_a_method_over_pairs(method, folder, tmp_path):
    given = {**TRAINING, "hf_model": str(folder), "max_train_steps": 20}
    kwargs = pair_options(
        f"safety:{method}/causal_lm", write_pairs(tmp_path / "data"), tmp_path / "m" / "model", **given
    )
    kwargs.pop("dropout")
    loop, reports = run(**kwargs)
    agent = loop.agent
    assert float(reports[-1]["margin"]) > float(reports[0]["margin"])
    agent.model.double().eval()
    batch = agent.batchify(observe_pairs(agent))
    found = []
    for chunk in (None, 5):
        agent.output_options = dataclasses.replace(agent.output_options, full_logits=chunk is None, chunk_tokens=chunk)
        found.append((loss_of(agent, batch), gradients_of(agent, batch)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-8, atol=1e-12, msg=name)
    # Two rejected replies to one context each read the prompt that is theirs.
    context, _, rejected = PAIRS[2]
    apart = sum(nll(agent, context, text) * len(agent.dict.txt2vec(text) + [0]) for text in rejected)
    loss_of(agent, agent.batchify(observe_pairs(agent, [PAIRS[2]])))
    assert metrics_of(agent)["rejected_nll"] == pytest.approx(
        apart / sum(len(agent.dict.txt2vec(text)) + 1 for text in rejected), rel=1e-6
    )


def test_a_method_whose_scores_are_no_linear_map(tmp_path):
    """A model that caps its scores: the chunked form is still the plain one."""
    import transformers as hf

    folder = tiny_causal(tmp_path / "hf", "llama", seed=1, **SIZES)
    config = hf.Gemma2Config(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    agent = trained("cringe", folder, tmp_path, max_train_steps=2)[0].agent
    agent.model.double().eval()
    batch = agent.batchify(observe_all(agent))
    assert linear_output(agent.model, torch.randn(2, 32, dtype=torch.float64)) is None
    agent.output_options = dataclasses.replace(agent.output_options, full_logits=True)
    plain, gradients = loss_of(agent, batch), gradients_of(agent, batch)
    torch.testing.assert_close(plain, library_loss(agent, batch), rtol=1e-6, atol=0)
    agent.output_options = dataclasses.replace(agent.output_options, full_logits=False, chunk_tokens=5)
    torch.testing.assert_close(loss_of(agent, batch), plain, rtol=1e-12, atol=0)
    for name, gradient in gradients_of(agent, batch).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-8, atol=1e-12, msg=name)


# --- guidance over a causal base model ------------------------------------------------------------------------------

ANSWERS = {
    "Hello there.": ["you are a dim lamp", "you are a good friend", "you are a good lamp", "you are a dim friend"],
    "What do you like?": ["i like old tin", "i like old trains", "i like dim lamps"],
}
CONTEXTS = [[context] for context in ANSWERS]


def taught(folder, path, keep=lambda reply: True, **more):
    """A model that says all of `ANSWERS`, or some of them."""
    path.mkdir()
    rows = [{"context": [c], "reply": r} for c, some in ANSWERS.items() for r in some if keep(r)]
    (path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {**TRAINING, "max_train_steps": 60, "batchsize": 8, "label_truncate": 16, **more}
    run(**options("safety:causal_lm/causal_lm", path / "talk.jsonl", path / "model", hf_model=str(folder), **given))
    return str(path / "model")


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory):
    return taught(folder, tmp_path_factory.mktemp("base") / "m")


@pytest.fixture(scope="module")
def rude(base, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("rude") / "m"
    return taught(folder, path, lambda reply: "dim" in reply, init_model=base, max_train_steps=25)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "words.txt"
    path.write_text("dim\n")
    return str(path)


NUCLEUS = {"inference": "nucleus", "topp": 0.95}


def share(texts):
    return sum("dim" in text.split() for text in texts) / len(texts)


@pytest.fixture(scope="module")
def plain_share(base):
    agent = guided("word_block", base, word_list="", **NUCLEUS)
    del agent
    from parlai_safety.evaluation.generate import load_agent

    return share(said(load_agent(base, **NUCLEUS), contexts=CONTEXTS, times=20))


def test_the_guides_move_the_replies_of_a_causal_model(base, rude, listed, plain_share):
    assert 0.2 < plain_share < 0.9
    judge = f"wordlist:{listed}"
    ways = {
        "rerank": {"guidance_judge": judge, "rerank_candidates": 6},
        "fudge": {"guidance_judge": judge, "fudge_lambda": 5.0},
        "pacer": {"guidance_judge": judge, "pacer_share": 0.5, "rerank_candidates": 4},
        "dexperts": {"anti_expert": rude, "dexperts_alpha": 2.0},
        "word_block": {"word_list": listed},
    }
    for name, how in ways.items():
        found = share(said(guided(name, base, **NUCLEUS, **how), contexts=CONTEXTS, times=12))
        assert found < plain_share / 2, (name, found)
        assert name != "word_block" or found == 0


@pytest.mark.parametrize("inference", [{"inference": "greedy"}, BEAM], ids=["greedy", "beam"])
def test_an_anti_expert_like_the_base_model_changes_nothing(inference, base):
    plain = guided("dexperts", base, anti_expert=base, dexperts_alpha=0.0, **inference)
    steered = guided("dexperts", base, anti_expert=base, expert=base, dexperts_topp=1.0, **inference)
    assert [act["text"] for act in acts(steered, CONTEXTS)] == [act["text"] for act in acts(plain, CONTEXTS)]


def test_an_anti_expert_with_another_tokenizer_is_refused(base, tmp_path):
    from transformers import AutoTokenizer

    other = tiny_causal(tmp_path / "hf", "llama", seed=1, vocab_size=401, **SIZES)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["lampish"])
    tokenizer.save_pretrained(other)
    anti = taught(other, tmp_path / "m", max_train_steps=1)
    with pytest.raises(SafetyError, match="--anti-expert has a dictionary of 401 tokens"):
        guided("dexperts", base, anti_expert=anti)


def test_words_are_withheld_where_nothing_else_can_be_said(base, tmp_path):
    """All words that the model can say are listed."""
    path = tmp_path / "all.txt"
    path.write_text("\n".join({word for some in ANSWERS.values() for text in some for word in text.split()}))
    found = acts(guided("word_block", base, word_list=str(path), inference="greedy"), CONTEXTS)
    listed = set(path.read_text().split())
    for act in found:
        assert act.get("error") == WITHHELD or not listed & set(act["text"].split())


def test_a_special_token_within_a_word_hides_nothing(base, listed):
    """Texts leave it out, and so does what is blocked."""
    agent = guided("word_block", base, word_list=listed)
    blocker, chat = agent.resources[1], agent.base.dict.format
    place = blocker.start
    for id_ in chat.words("a di"):
        place = blocker.after(place, id_)
    assert place != blocker.start
    assert all(blocker.after(place, id_) == place for id_ in chat.special_ids)


def test_the_judge_sees_words_and_no_frame(base):
    judge = Judge(lambda reply: 0.1)
    agent = guided("rerank", base, guidance_judge="wordlist", rerank_candidates=3, **BEAM)
    agent.resources = judge
    acts(agent, CONTEXTS)
    assert judge.asked and all("<|" not in reply and reply == reply.strip() for reply, _, _ in judge.asked)
    assert {context for _, context, _ in judge.asked} == {tuple(context) for context in CONTEXTS}


def dictionary(tokenizer):
    """A dictionary of a tokenizer, without any model."""
    made = CausalDictionary.__new__(CausalDictionary)
    made.format = ChatFormat(tokenizer, template="plain")
    spelled = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    made.ind2tok, made._scores = {id_: spelled[id_] for id_ in range(len(tokenizer))}, len(tokenizer)
    return made


@pytest.mark.parametrize("text", ["a dim lamp, é 😀!", "Dim  lamps\nare 100% dim"])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_spelling_of_tokens_is_what_the_tokenizer_makes_of_them(kind, text, base):
    made = create_agent_from_model_file(base).dict if kind == "bytes" else dictionary(sentence_pieces(GEMMA))
    pieces = spelling(made)
    assert len(pieces) == len(made)
    assert b"".join(pieces[id_] for id_ in made.format.reply(text)).decode().strip() == text


def test_a_tokenizer_that_joins_otherwise_is_refused():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[E]": 2}, unk_token="[E]"))
    built.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="[E]", unk_token="[E]")
    with pytest.raises(SafetyError, match="WordPiece"):
        spelling(dictionary(tokenizer))
