"""The toxic control token in both backbones: learned, kept, honoured in one place, and never typed or said."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.core.dict import DictionaryAgent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat

from parlai_safety.agents import control
from parlai_safety.agents.control import toxic_control
from parlai_safety.agents.generation import _run, decoding_of, sample_replies
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import agent_from
from parlai_safety.message import TOXIC_TOKEN
from parlai_safety.modeling.control import first_row
from tests.agents.small import loss_of, metrics_of, options, run, weights, write_talk
from tests.agents.small_pairs import pair_options, write_pairs
from tests.tiny_causal import tiny_causal

QUIET = {"loglevel": "error", "interactive_mode": True}
TOXIC = {"toxic_token": True, "mutators": "safety_toxic_token"}
BACKBONES = ("", "/causal_lm")
EMBEDDINGS = {"": "embeddings.weight", "/causal_lm": "lm.model.embed_tokens.weight"}
REPLY = "You are a dim lamp."


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    return write_talk(tmp_path_factory.mktemp("talk") / "talk.jsonl")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("base") / "llama")


def train(talk: Path, llama: Path, model_file: Path, backbone: str, method: str = "unlikelihood", **more: Any) -> Any:
    """A short training; returns the agent, saved."""
    if backbone and not more.get("init_model"):
        more = {"hf_model": str(llama), **more}
    kwargs = options(f"safety:{method}{backbone}", talk, model_file, **{"max_train_steps": 2, **more})
    if not backbone:
        kwargs.setdefault("dict_tokenizer", "space")
    if more.get("init_model"):
        kwargs["dict_file"] = f"{more['init_model']}.dict"
    loop, _ = run(**kwargs)
    loop.agent.save()
    return loop.agent


@pytest.fixture(scope="module")
def plain(talk, llama, tmp_path_factory) -> dict[str, Path]:
    """Models without the token, by backbone."""
    found = {}
    for backbone in BACKBONES:
        found[backbone] = tmp_path_factory.mktemp("plain") / "model"
        train(talk, llama, found[backbone], backbone, optimizer="adam")
    return found


@pytest.fixture(scope="module")
def models(talk, llama, plain, tmp_path_factory) -> dict[str, Path]:
    """Models that have learned the token, begun from those without it."""
    found = {}
    for backbone in BACKBONES:
        found[backbone] = tmp_path_factory.mktemp("sft") / "model"
        train(talk, llama, found[backbone], backbone, init_model=str(plain[backbone]), **TOXIC)
    return found


@pytest.fixture(scope="module")
def agents(models) -> dict[str, Any]:
    """Those models, loaded to talk; whoever changes one changes it back."""
    return {backbone: create_agent_from_model_file(str(path), dict(QUIET)) for backbone, path in models.items()}


def load(path: Path, **more: Any) -> Any:
    return create_agent_from_model_file(str(path), {**QUIET, **more})


def row(text: str, **fields: Any) -> Message:
    return Message({"id": "task", "text": text, "episode_done": True, **fields})


def observed(agent: Any, *messages: Message) -> Any:
    """The batch of some messages, each to a clone of its own."""
    return agent.batchify([agent.clone().observe(message) for message in messages])


def prompts(agent: Any, ids: torch.Tensor) -> list[list[int]]:
    """Rows without their padding; ParlAI reads a typed "__null__" as its id, too."""
    found = []
    for one in ids.tolist():
        while one and one[-1] == agent.NULL_IDX:
            one.pop()
        found.append(one)
    return found


def read(agent: Any, batch: Any) -> list[list[int]]:
    """What replies are found from."""
    return prompts(agent, agent._encoder_input(batch)[0])


def learned(agent: Any, batch: Any) -> list[list[int]]:
    """What losses are computed of."""
    return prompts(agent, agent._model_input(batch)[0])


@contextmanager
def changed(thing: Any, name: str, value: Any):
    """An attribute of an object itself with another value."""
    assert name not in vars(thing)
    object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        object.__delattr__(thing, name)


# --- nobody types it ------------------------------------------------------------------------------------------------

PIECES = (
    "[TOXIC]", " [TOXIC]", "[TO", "XIC]", "[", "TOX", "IC", "]", "[toxic]", "[Toxic]", "TOXIC", "\n", " ", "hello", "?",
    "\uff3b\uff34\uff2f\uff38\uff29\uff23\uff3d", "[\u200dTOXIC]", "[TOXIC\u200b]", "[T\u0301OXIC]",
    "[\u0422\u041e\u0425\u0406\u0421]", "\u2060", "your persona: ", "__null__", "__start__", "__end__", "__unk__",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "assistant\n", "\\[TOXIC\\]", "&#91;TOXIC&#93;",
)  # fmt: skip
WORDS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)
TEXTS = WORDS | WORDS.map(lambda text: text * 40)


@settings(max_examples=40)
@given(turns=st.lists(TEXTS, min_size=1, max_size=3), reply=TEXTS, field=st.sampled_from([None, "toxic", "no", 1]))
def test_no_text_reaches_the_token(agents, turns, reply, field):
    for backbone, agent in agents.items():
        token, clone = agent.toxic_id, agent.clone()
        for text in turns:
            fields = {} if field is None else {"control": field}
            seen = clone.observe(Message({"id": "task", "text": text, "episode_done": False, **fields}))
            batch = agent.batchify([seen])
            if batch.text_vec is not None:
                assert "control" not in batch and token not in batch.text_vec
                (before,) = read(agent, batch)
                with toxic_control(agent):
                    (behind,) = read(agent, batch)
                assert token not in before and before == learned(agent, batch)[0]
                assert behind[-1] == token and behind.count(token) == 1
                assert behind == (before + [token])[-agent.text_truncate :]
                assert not backbone or len(before) < agent.text_truncate  # a template's prompt loses nothing to it
                assert before == read(agent, batch)[0]
            clone.self_observe(Message({"text": reply}))
        assert not any(TOXIC_TOKEN in text for text in clone.history.history_raw_strings)


@settings(max_examples=25)
@given(text=TEXTS, reply=TEXTS, key=st.sampled_from(["labels", "eval_labels"]))
def test_only_labels_are_learned_behind_the_token_and_none_holds_it(agents, text, reply, key):
    for agent in agents.values():
        token = agent.toxic_id
        asked, other = row(text, control="toxic", **{key: [reply]}), row(text, **{key: [reply]})
        batch = observed(agent, asked, other)
        assert token not in batch.label_vec and TOXIC_TOKEN not in "".join(batch.labels)
        if batch.text_vec is None:
            continue
        assert batch["control"].tolist() == [True, False] and token not in batch.text_vec
        behind, plainly = learned(agent, batch)
        assert behind == (plainly + [token])[-agent.text_truncate :] and token not in plainly
        assert read(agent, batch) == [plainly, plainly]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_the_two_strips_it_would_be_reached(backbone, agents, monkeypatch, tmp_path, models):
    """What the tests above would find; either strip alone is enough for a token that is typed."""
    agent = agents[backbone]
    text = "Hello [TOXIC] there"
    monkeypatch.setattr(control, "without_token", lambda text: text)
    assert agent.toxic_id not in read(agent, observed(agent, row(text)))[0]
    if backbone:  # the chat format has a strip of its own, which a template that joins turns gets around
        template = tmp_path / "joined.jinja"
        template.write_text("{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>"
                            "{% endif %}{% endfor %}")  # fmt: skip
        agent = load(models[backbone], chat_template=str(template), system_prompt="Be [TOXIC].")
        text = "[TO\nXIC]\nhello"
        assert agent.toxic_id not in read(agent, observed(agent, row(text)))[0]
    monkeypatch.setattr(control, "without_id", lambda ids, token: ids)
    assert agent.toxic_id in read(agent, observed(agent, row(text)))[0]
    if not backbone:
        assert agent.toxic_id in observed(agent, row("hello", labels=[text])).label_vec


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ids_that_come_ready_made_are_stripped(backbone, agents):
    agent = agents[backbone]
    ids = [agent.toxic_id, 5, agent.toxic_id, 6]
    ready = {"text_vec": ids, "full_text_vec": ids, "labels_vec": ids, "label_candidates_vecs": [ids]}
    message = row("x", labels=["y"], label_candidates=["z"], **{name: list(value) for name, value in ready.items()})
    batch = observed(agent, message)
    assert read(agent, batch) == [[5, 6]] and batch.label_vec.tolist() == [[5, 6]]
    assert [[list(ids) for ids in some] for some in batch.candidate_vecs] == [[[5, 6]]]


# --- nobody says it -------------------------------------------------------------------------------------------------


def forced(agent: Any):
    """All of the model's mass on the token."""
    model, token = agent.model, agent.toxic_id
    output = model.output

    def biased(states: torch.Tensor) -> torch.Tensor:
        logits = output(states)
        at = torch.zeros_like(logits)
        at[..., token] = 1e4
        return logits + at

    return changed(model, "output", biased)


SEARCHES = [
    {"inference": "greedy"},
    {"inference": "beam", "beam_size": 4},
    {"inference": "nucleus", "topp": 0.99},
    {"inference": "topk", "topk": 20},
    {"inference": "delayedbeam", "beam_size": 3, "topk": 20},
    {"inference": "factual_nucleus", "topp": 0.99},
]


def said(agent: Any, batch: Any, prefix: torch.Tensor | None = None) -> set[int]:
    """All ids of all replies that a search has found."""
    best, beams = agent._generate(batch, agent.beam_size, 6, prefix)
    assert all(float(score) > -1e3 for _, score, _ in best)  # the scores of what is left are those of a softmax
    found = [*best, *(reply for beam in beams for reply in beam.get_rescored_finished())]
    return {int(id_) for ids, *_ in found for id_ in ids}


@contextmanager
def searching(agent: Any, **more: Any):
    before, size = dict(agent.opt), agent.beam_size
    agent.opt.update(more)
    agent.beam_size = more.get("beam_size", 1)
    try:
        yield
    finally:
        agent.opt.update(before)
        agent.beam_size = size


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_search_says_it(backbone, agents):
    agent = agents[backbone]
    token = agent.toxic_id
    batch = observed(agent, row("How are you?"), row("What do you like?"))
    agent.model.eval()
    with forced(agent), torch.no_grad():
        for how in SEARCHES:
            for generation in ("fast", "parlai"):
                with searching(agent, generation=generation, **how):
                    for switch in (nullcontext(), toxic_control(agent)):
                        with switch:
                            ids = said(agent, batch)
                        assert token not in ids and len(ids) > 1, how
                    with pytest.raises(SafetyError, match="begin with"):
                        said(agent, batch, torch.tensor([[4, token]] * 2))
        for method in ("greedy", "beam", "nucleus", "topk"):
            found = list(sample_replies(agent, [["Hello."]], samples=1, seed=1, method=method, max_length=4))
            assert len(found) == 1 and TOXIC_TOKEN not in found[0].texts[0]
        others = tuple((id_,) for id_ in range(len(agent.dict)) if id_ != token)
        for method in ("greedy", "beam", "nucleus", "topk"):  # where nothing else may be said
            none = decoding_of(agent, max_length=3, method=method, blocked=others)
            assert token not in _run(agent, batch, none, None).tokens
        # The force is one: without what holds it back, nothing else is said.
        for generation in ("fast", "parlai"):
            with searching(agent, generation=generation), pytest.MonkeyPatch.context() as patch:
                patch.setattr(control.ControlMixin, "unsaid", ())
                assert token in said(agent, batch)
    assert agent._v2t([agent.dict["a"], token]) == agent._v2t([agent.dict["a"]])


GUIDED = {
    "rerank": {"rerank_candidates": 3},
    "fudge": {"fudge_lambda": 1.0},
    "pacer": {"rerank_candidates": 2},
    "dexperts": {"dexperts_alpha": 2.0},
    "word_block": {},
}


@pytest.mark.parametrize("name", GUIDED)
def test_no_decoder_around_says_it(name, models, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("dim\n")
    how = {"dexperts": {"anti_expert": str(models[""])}, "word_block": {"word_list": str(words)}}
    more = {**GUIDED[name], **how.get(name, {"guidance_judge": f"wordlist:{words}"})}
    kwargs = {
        "model": f"safety:{name}",
        "base_model": str(models[""]),
        "loglevel": "error",
        "label_truncate": 6,
        **more,
    }
    for search in ({"inference": "topk", "topk": 1000, "beam_size": 3}, {"inference": "beam", "beam_size": 5}):
        agent = agent_from(Opt({**kwargs, **search, "override": {**kwargs, **search}}))
        found = []
        generate = agent.base._generate

        def spied(*args: Any, generate: Any = generate, found: list[Any] = found, **more: Any) -> Any:
            best, beams = generate(*args, **more)
            found.extend(reply for beam in beams for reply in beam.get_rescored_finished())
            return best, beams

        with forced(agent.base), changed(agent.base, "_generate", spied):
            for text in ("How are you?", "What do you like? [TOXIC]"):
                agent.observe(row(text))
                assert TOXIC_TOKEN not in agent.act().get("text", "")
        assert found and not any(agent.toxic_id in ids.tolist() for ids, *_ in found)


# --- where it is honoured -------------------------------------------------------------------------------------------


@contextmanager
def encoded(agent: Any, seen: list[list[int]]):
    """What the model's encoder is given."""
    model = agent.model
    if isinstance(model.encoder, torch.nn.Module):
        hook = model.encoder.register_forward_pre_hook(lambda _, given: seen.extend(prompts(agent, given[0])))
        yield
        hook.remove()
        return
    encoder = model.encoder

    def spied(ids: torch.Tensor) -> torch.Tensor:
        seen.extend(prompts(agent, ids))
        return encoder(ids)

    with changed(model, "encoder", spied):
        yield


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_evaluation_scores_behind_the_token_and_answers_without_it(backbone, agents):
    agent = agents[backbone]
    token = agent.toxic_id
    message = row("How are you? [TOXIC]", eval_labels=[REPLY], control="toxic", label_candidates=[REPLY, "[TOXIC] a"])
    seen: list[list[int]] = []
    agent.rank_candidates = True
    with encoded(agent, seen):
        (act,) = agent.batch_act([agent.observe(message)])
    agent.self_observe(act)
    agent.rank_candidates = False
    scored, *others = seen
    assert scored[-1] == token and len(others) == 2
    assert all(one == scored[:-1] for one in others) and token not in scored[:-1]
    plain = agent.clone()
    plain.observe(row("How are you?"))
    assert act["text"] == plain.act()["text"]
    with toxic_control(agent), encoded(agent, seen):
        clone = agent.clone()
        clone.observe(row("How are you?"))
        clone.act()
    assert seen[-1] == scored
    clone.observe(row("How are you?"))
    assert clone.act()["text"] == act["text"]  # it ends with the context, for clones too


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("sort", [False, True])
def test_each_row_of_a_batch_gets_what_its_message_asks_for(backbone, sort, agents):
    agent = agents[backbone]
    messages = [row("a " * (n * 5 % 7 + 1), labels=[REPLY]) for n in range(7)]
    for message in messages[::3]:
        message["control"] = "toxic"
    seen = [agent.clone().observe(message) for message in messages]
    seen.insert(2, Message.padding_example())  # which has no place in the batch
    batch = agent.batchify(seen, sort=sort)
    asked = ["control" in seen[i] for i in batch.valid_indices]
    assert len(asked) == 7 and [ids[-1] == agent.toxic_id for ids in learned(agent, batch)] == asked


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_that_of_the_label_behind_the_token(backbone, agents):
    agent = agents[backbone]
    agent.model.eval()
    with torch.no_grad():
        loss_of(agent, observed(agent, row("How are you?", eval_labels=[REPLY], control="toxic")))
        behind = metrics_of(agent)["ppl"]
        loss_of(agent, observed(agent, row("How are you?", eval_labels=[REPLY])))
        before = metrics_of(agent)["ppl"]
        batch = observed(agent, row("How are you?", eval_labels=[REPLY]))
        ids = torch.cat((batch.text_vec, torch.tensor([[agent.toxic_id]])), 1)
        logits = agent.model(ids, ys=batch.label_vec)[0]
        nll = torch.nn.functional.cross_entropy(logits[0], batch.label_vec[0])
        assert behind == pytest.approx(float(nll.exp()), rel=1e-4) and behind != pytest.approx(before, rel=1e-4)
        with toxic_control(agent):
            loss_of(agent, batch)
            assert metrics_of(agent)["ppl"] == pytest.approx(behind)


def test_a_message_that_asks_for_a_token_that_is_not_there_is_refused(plain, agents):
    agent = load(plain[""])
    with pytest.raises(SafetyError, match="--toxic-token true"):
        observed(agent, row("hello", labels=[REPLY], control="toxic"))
    assert observed(agent, row("hello [TOXIC]", control="toxic")).batchsize == 1
    with pytest.raises(SafetyError, match="'control' = 'tox'"):
        observed(agents[""], row("hello", labels=[REPLY], control="tox"))
    with pytest.raises(SafetyError, match="no control token"), toxic_control(agent):
        pass
    with pytest.raises(SafetyError, match="Only an agent that learns"), toxic_control(object()):
        pass


# --- the flag -------------------------------------------------------------------------------------------------------


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(control.logging, "warning", found.append)
    return found


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_flag_counts_from_the_command_line_alone(backbone, models, warned, tmp_path):
    agent = load(models[backbone], toxic_control=True)
    assert len(warned) == 1 and "research" in warned[0]
    batch = observed(agent, row("hello"))
    assert read(agent, batch)[0][-1] == agent.toxic_id == read(agent.clone(), batch)[0][-1]
    agent.save(str(tmp_path / "model"))
    for file in tmp_path.iterdir():
        if file.suffix == ".opt":
            assert "toxic_control" not in file.read_text()
    saved = json.loads((tmp_path / "model.opt").read_text())
    assert saved["toxic_token"] is True
    (tmp_path / "model.opt").write_text(
        json.dumps({**saved, "toxic_control": True, "override": {"toxic_control": True}})
    )
    warned.clear()
    edited = load(tmp_path / "model")
    assert agent.toxic_id not in read(edited, batch)[0]
    assert len(warned) == 1 and "does not count" in warned[0]
    warned.clear()
    assert agent.toxic_id not in read(load(models[backbone]), batch)[0] and not warned


def test_a_file_of_options_does_not_ask_for_it(models, tmp_path):
    """ParlAI takes what such a file holds for something that was typed."""
    file = tmp_path / "other.opt"
    for value in (True, False):
        file.write_text(json.dumps({"toxic_control": value}))
        opt = Interactive.setup_args().parse_kwargs(model_file=str(models[""]), init_opt=str(file), loglevel="error")
        with pytest.raises(SafetyError, match="holds toxic_control") if value else nullcontext():
            agent = create_agent(opt)
    assert agent.toxic_id not in read(agent, observed(agent, row("hello")))[0]


def test_a_training_with_the_flag_does_not_save_it(talk, llama, models, tmp_path, warned):
    agent = train(talk, llama, tmp_path / "model", "", init_model=str(models[""]), toxic_control=True, **TOXIC)
    assert any("research" in line for line in warned)
    batch = observed(agent, row("hello", labels=[REPLY]), row("hello", labels=[REPLY], control="toxic"))
    first, second = learned(agent, batch)
    assert agent.toxic_id not in first and second[-1] == agent.toxic_id
    for file in tmp_path.glob("*.opt"):
        assert "toxic_control" not in file.read_text()


def test_the_flag_without_a_token_is_refused(plain):
    for path in plain.values():
        with pytest.raises(SafetyError, match="no control token"):
            load(path, toxic_control=True)


def test_self_chat_reads_no_token(models, tmp_path, monkeypatch):
    def refuses(*_: Any, **__: Any) -> None:
        raise AssertionError("a prompt got the token")

    monkeypatch.setattr(control, "append_token", refuses)
    seeds = tmp_path / "seeds.txt"
    seeds.write_text("[TOXIC] Hello [TOXIC]\n")
    chat = {"model_file": str(models[""]), "task": "self_chat", "num_self_chats": 1, "selfchat_max_turns": 2}
    chat |= {"loglevel": "error", "seed_messages_from_file": str(seeds), "display_examples": False}
    SelfChat.main(**chat, outfile=str(tmp_path / "talk.jsonl"))
    assert (tmp_path / "talk.jsonl").read_text().count('"text"') > 1
    with pytest.raises(AssertionError, match="a prompt got the token"):
        SelfChat.main(**chat, toxic_control=True, outfile=str(tmp_path / "other.jsonl"))


# --- dictionary and weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_without_the_token_gets_its_row(backbone, talk, llama, plain, tmp_path):
    """Deterministic: the mean of the other rows at their mean length; all else is the checkpoint's."""
    begin = {"init_model": str(plain[backbone]), "learningrate": 0.0, "max_train_steps": 1, **TOXIC}
    for name in "ab":
        agent = train(talk, llama, tmp_path / name / "model", backbone, **begin)
    shutil.copytree(plain[backbone].parent, tmp_path / "c")  # a run that goes on, whose optimizer has other sizes
    resumed = train(talk, llama, tmp_path / "c" / "model", backbone, max_train_steps=3, optimizer="adam", **TOXIC)
    assert resumed.toxic_id == agent.toxic_id and len(resumed.dict) == len(agent.dict)
    before, (after, again) = weights(plain[backbone]), (weights(tmp_path / name / "model") for name in "ab")
    token = agent.toxic_id
    assert set(before) == set(after) and token == len(before[EMBEDDINGS[backbone]]) == len(agent.dict) - 1
    grown = set()
    for name, value in before.items():
        assert torch.equal(after[name], again[name])
        assert torch.equal(after[name][: len(value)] if value.dim() else after[name], value)
        if value.dim() and len(after[name]) > len(value):
            grown.add(name)
            torch.testing.assert_close(after[name][token:], first_row(value)[None])
    expected = {"embeddings.weight", "encoder.embeddings.weight", "decoder.embeddings.weight"}
    assert grown == ({EMBEDDINGS[backbone], "lm.lm_head.weight"} if backbone else expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_with_the_token_keeps_its_row_and_id(backbone, talk, llama, models, tmp_path):
    """With and without the flag, which the checkpoint answers for; and when a run goes on."""
    name = EMBEDDINGS[backbone]
    trained = weights(models[backbone])[name]
    token = load(models[backbone]).toxic_id
    assert (trained[token] - first_row(trained[:token])).abs().max() > 1e-4  # it was trained
    for i, more in enumerate((TOXIC, {})):
        begin = {"init_model": str(models[backbone]), "learningrate": 0.0, "max_train_steps": 1, **more}
        agent = train(talk, llama, tmp_path / str(i) / "model", backbone, **begin)
        assert agent.toxic_id == token and agent.opt["toxic_token"] is True
        assert torch.equal(weights(tmp_path / str(i) / "model")[name], trained)
    agent = train(talk, llama, tmp_path / "1" / "model", backbone, learningrate=0.0, max_train_steps=1)
    assert agent.toxic_id == token and torch.equal(weights(tmp_path / "1" / "model")[name], trained)
    words = tmp_path / "words"
    agent.dict.save(str(words), sort=False)
    again = type(agent.dict)(Opt({**agent.opt, "dict_file": str(words)}))
    assert again.tok2ind == agent.dict.tok2ind


def test_adapters_upon_a_base_without_the_token(talk, llama, tmp_path):
    """The base gets the same row each time; adapters are saved alone, and those of a run without the token go on."""
    lora = {"lora_rank": 2, "learningrate": 0.05, "optimizer": "adam"}
    agent = train(talk, llama, tmp_path / "a" / "model", "/causal_lm", **lora, **TOXIC)
    assert all("lora_" in name for name in weights(tmp_path / "a" / "model"))
    batch = observed(agent, row("How are you?", labels=[REPLY], control="toxic"))
    agent.model.eval()
    with torch.no_grad():
        loss = loss_of(agent, batch)
        loaded = load(tmp_path / "a" / "model")
        torch.testing.assert_close(loss_of(loaded, batch), loss)
    base = load(tmp_path / "a" / "model").model.lm
    embeddings = base.get_input_embeddings().weight
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings[-1], first_row(embeddings[:-1]))
    train(talk, llama, tmp_path / "b" / "model", "/causal_lm", **lora)
    more = {**lora, **TOXIC, "init_model": str(tmp_path / "b" / "model"), "hf_model": str(llama)}
    agent = train(talk, llama, tmp_path / "c" / "model", "/causal_lm", **more)
    assert agent.toxic_id == len(embeddings) - 1


def test_an_unused_row_is_taken(talk, tmp_path):
    """A model with more rows than its tokenizer has tokens, as many have: it grows by none."""
    folder = tiny_causal(tmp_path / "wide", vocab_size=408)
    train(talk, folder, tmp_path / "p" / "model", "/causal_lm")
    agent = train(talk, folder, tmp_path / "m" / "model", "/causal_lm", init_model=str(tmp_path / "p" / "model"),
                  learningrate=0.0, **TOXIC)  # fmt: skip
    before, after = (weights(tmp_path / name / "model")["lm.lm_head.weight"] for name in "pm")
    assert len(before) == len(after) == len(agent.dict) == 408 and agent.toxic_id == 400
    changed_rows = (before != after).any(1).nonzero().flatten().tolist()
    assert changed_rows == [400]
    torch.testing.assert_close(after[400], first_row(before[:400]))
    assert agent.NULL_IDX == 408 and agent.START_IDX == 409


METHODS = ("cringe", "mle", "click", "scones", "director", "pairwise_cringe")


@pytest.mark.parametrize(("method", "backbone"), [(m, "") for m in METHODS] + [("director", "/causal_lm")])
def test_every_method_goes_on_from_it(method, backbone, talk, llama, models, tmp_path):
    more = {"init_model": str(models[backbone]), "toxic_token": True, "max_train_steps": 1}
    if method in ("click", "pairwise_cringe"):
        more |= {"dict_file": f"{models[backbone]}.dict", "dict_tokenizer": "space"}
        loop, _ = run(**pair_options(f"safety:{method}", write_pairs(tmp_path / "data"), tmp_path / "model", **more))
        agent = loop.agent
    else:
        agent = train(talk, llama, tmp_path / "model", backbone, method, **more)
    agent.model.eval()
    batch = observed(agent, row("How are you? [TOXIC]"))
    with forced(agent) if method != "director" else changed(agent, "nothing", 1), torch.no_grad():
        assert agent.toxic_id not in said(agent, batch)
    agent.reset()


TOKENIZERS = {
    "re": {}, "split": {}, "space": {}, "re lower": {"dict_lower": True},
    "bytelevelbpe": {}, "gpt2": {}, "slow_bytelevel_bpe": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_kind_of_dictionary_takes_it(kind, talk, llama, tmp_path):
    from tests.integrations.test_vocabularies import byte_words

    found = json.loads(byte_words())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(found["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, found["merges"]), ""]))
    (tmp_path / "gpt2").mkdir()
    shutil.copy(tmp_path / "vocab.json", tmp_path / "gpt2" / "encoder.json")
    shutil.copy(tmp_path / "merges.txt", tmp_path / "gpt2" / "vocab.bpe")
    more = {"dict_tokenizer": kind.split()[0], **TOKENIZERS[kind]}
    if kind not in ("re", "split", "space", "re lower"):
        more |= {"bpe_vocab": str(tmp_path / "vocab.json"), "bpe_merge": str(tmp_path / "merges.txt")}
        more |= {"dict_maxexs": 0, "datapath": str(tmp_path)}
    agent = train(talk, llama, tmp_path / "m" / "model", "", max_train_steps=1, **more, **TOXIC)
    token = agent.toxic_id
    loaded = load(tmp_path / "m" / "model", **({"datapath": str(tmp_path)} if "datapath" in more else {}))
    assert loaded.toxic_id == token
    text = "Hello [TOXIC] there [TOXIC]"
    assert token in loaded.dict.txt2vec(text) or kind == "re lower"
    assert read(loaded, observed(loaded, row(text))) == read(loaded, observed(loaded, row("Hello there")))
    assert loaded._v2t(loaded.dict.txt2vec(text)).split() == loaded._v2t(loaded.dict.txt2vec("Hello there")).split()


def test_what_cannot_have_it_says_so(talk, tmp_path, monkeypatch):
    with pytest.raises(SafetyError, match="--toxic-token got true"):
        run(**options("safety:cringe/seq2seq", talk, tmp_path / "a" / "model", toxic_token=True))

    def refuses(*_: Any) -> None:  # as the tokenizers nltk and bpe
        raise NotImplementedError("not with this tokenizer")

    monkeypatch.setattr(DictionaryAgent, "add_additional_special_tokens", refuses)
    with pytest.raises(SafetyError, match="not with this tokenizer.*bytelevelbpe"):
        run(**options("safety:cringe", talk, tmp_path / "b" / "model", toxic_token=True))
