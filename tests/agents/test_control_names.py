"""Control tokens by name in both backbones: learned, kept, asked for, and never typed or said."""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.scripts.interactive import Interactive

from parlai_safety.agents import control
from parlai_safety.agents.control import reply_control, token_names, toxic_control
from parlai_safety.agents.generation import sample_replies
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import agent_from
from parlai_safety.judges.wordlist import WordListJudge
from parlai_safety.message import control_token
from parlai_safety.modeling.control import first_row, named_row
from tests.agents.small import loss_of, metrics_of, run, weights, write_talk
from tests.agents.small_pairs import observe_pairs, pair_options, write_pairs
from tests.agents.test_control import (
    BACKBONES,
    EMBEDDINGS,
    REPLY,
    SEARCHES,
    changed,
    learned,
    load,
    observed,
    read,
    row,
    said,
    searching,
    train,
)
from tests.tiny_causal import tiny_causal

NAMES = ("safe", "unsafe", "f0m0", "f0m1", "calm")
TOKENS = {
    "control_tokens": ",".join(NAMES),
    "mutators": "safety_control_safety+safety_control_gender",
    "control_source": "label",
}


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    return write_talk(tmp_path_factory.mktemp("talk") / "talk.jsonl")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def plain(talk, llama, tmp_path_factory) -> dict[str, Path]:
    """Models without tokens, by backbone."""
    found = {}
    for backbone in BACKBONES:
        found[backbone] = tmp_path_factory.mktemp("plain") / "model"
        train(talk, llama, found[backbone], backbone, max_train_steps=1)
    return found


@pytest.fixture(scope="module")
def models(talk, llama, plain, tmp_path_factory) -> dict[str, Path]:
    """Models with tokens, begun from those without them, which their training's own `--control` is saved with."""
    found = {}
    for backbone in BACKBONES:
        found[backbone] = tmp_path_factory.mktemp("named") / "model"
        train(talk, llama, found[backbone], backbone, init_model=str(plain[backbone]), control="f0m0, Safe", **TOKENS)
    return found


@pytest.fixture(scope="module")
def agents(models) -> dict[str, Any]:
    """Those models, asked plainly; whoever changes one changes it back."""
    return {backbone: load(path, control="none") for backbone, path in models.items()}


def ids_of(agent: Any, *names: str) -> list[int]:
    return [agent.dict.tok2ind[control_token(name)] for name in names]


# --- nobody types it ------------------------------------------------------------------------------------------------

PIECES = (
    "[SAFE]", " [SAFE]", "[UNSAFE]", "[F0M0]", "[CALM]", "[SA", "FE]", "[", "SAFE", "UN", "]", "[safe]", "[Calm]", "\n",
    " ", "hello", "?", "[SA[CALM]FE]", "[\u200dSAFE]", "\uff3b\uff33\uff21\uff26\uff25\uff3d", "__null__", "<|im_end|>",
    "[TOXIC]",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)
SOME = st.lists(st.sampled_from(NAMES), unique=True, max_size=control.AT_ONCE)


@settings(max_examples=25)
@given(turns=st.lists(TEXTS | TEXTS.map(lambda text: text * 40), min_size=1, max_size=3), reply=TEXTS, names=SOME)
def test_no_text_reaches_a_token(agents, turns, reply, names):
    for backbone, agent in agents.items():
        tokens, clone = {*ids_of(agent, *NAMES)}, agent.clone()
        assert tokens == {*agent.unsaid} and len(tokens) == len(NAMES)
        for text in turns:
            seen = clone.observe(Message({"id": "task", "text": text, "episode_done": False, "control": names}))
            batch = agent.batchify([seen])
            if batch.text_vec is not None:
                (before,) = read(agent, batch)
                with reply_control(agent, names):
                    (behind,) = read(agent, batch)
                    assert behind == learned(agent, batch)[0]
                assert tokens.isdisjoint(before) and before == learned(agent, batch)[0] == read(agent, batch)[0]
                asked = ids_of(agent, *(name for name in NAMES if name in names))
                assert behind == (before + asked)[-agent.text_truncate :]
                # A template's prompt loses nothing to them.
                assert not backbone or len(before) + control.AT_ONCE <= agent.text_truncate
            clone.self_observe(Message({"text": reply}))
        told = "".join(clone.history.history_raw_strings)
        assert not any(control_token(name) in told for name in NAMES)


@settings(max_examples=20)
@given(text=TEXTS, reply=TEXTS, key=st.sampled_from(["labels", "eval_labels"]), names=SOME.filter(bool))
def test_labels_are_learned_behind_their_own_tokens_and_hold_none(agents, text, reply, key, names):
    for agent in agents.values():
        asked = row(text, control=names[0] if len(names) == 1 else names, **{key: [reply]})
        batch = observed(agent, asked, row(text, **{key: [reply]}))
        assert not torch.isin(batch.label_vec, torch.tensor(ids_of(agent, *NAMES))).any()
        assert not any(control_token(name) in label for name in NAMES for label in batch.labels)
        if batch.text_vec is None:
            continue
        behind, plainly = learned(agent, batch)
        own = ids_of(agent, *(name for name in NAMES if name in names))
        assert behind == (plainly + own)[-agent.text_truncate :]
        assert read(agent, batch) == [plainly, plainly]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_strip_alone_is_enough(backbone, agents, monkeypatch):
    agent = agents[backbone]
    (token,) = ids_of(agent, "calm")
    message = row("Hello [CALM] there", labels=["[CALM] a"])
    ready = row("x", labels=["y"], label_candidates=["z"], text_vec=[token, 5], labels_vec=[token, 6])
    ready["label_candidates_vecs"] = [[token, 7]]
    monkeypatch.setattr(control, "without_tokens", lambda text, tokens: text)
    batch = observed(agent, message)
    assert token not in read(agent, batch)[0] and token not in batch.label_vec
    batch = observed(agent, ready)
    assert read(agent, batch) == [[5]] and batch.label_vec.tolist() == [[6]]
    assert [list(ids) for ids in batch.candidate_vecs[0]] == [[7]]
    monkeypatch.setattr(control, "without_id", lambda ids, token: ids)
    if not backbone:  # the chat format of the other one has a strip of its own
        assert token in read(agent, observed(agent, message))[0]
    assert token in read(agent, observed(agent, ready))[0]


# --- nobody says it -------------------------------------------------------------------------------------------------


def forced(agent: Any, names: tuple[str, ...]):
    """All of the model's mass on some tokens."""
    output, tokens = agent.model.output, ids_of(agent, *names)

    def biased(states: torch.Tensor) -> torch.Tensor:
        logits = output(states)
        at = torch.zeros_like(logits)
        at[..., tokens] = 1e4
        return logits + at

    return changed(agent.model, "output", biased)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_search_says_it(backbone, agents):
    agent = agents[backbone]
    tokens = {*ids_of(agent, *NAMES)}
    batch = observed(agent, row("How are you?"), row("What do you like?"))
    agent.model.eval()
    with forced(agent, NAMES), torch.no_grad():
        for how in SEARCHES[:4]:
            for generation in ("fast", "parlai"):
                with searching(agent, generation=generation, **how):
                    for asked in (nullcontext(), reply_control(agent, ("safe",))):
                        with asked:
                            ids = said(agent, batch)
                        assert tokens.isdisjoint(ids) and len(ids) > 1, how
        (found,) = sample_replies(agent, [["Hello."]], samples=2, seed=1, method="nucleus", max_length=4)
        assert not any(control_token(name) in text for name in NAMES for text in found.texts)
        with pytest.MonkeyPatch.context() as patch:  # the force is one
            patch.setattr(control.ControlMixin, "unsaid", ())
            assert tokens & said(agent, batch)
    assert agent._v2t([*tokens, agent.dict["a"]]) == agent._v2t([agent.dict["a"]])


# --- where it is honoured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_evaluation_scores_labels_behind_what_is_asked_for_unless_a_message_says_otherwise(backbone, agents):
    agent = agents[backbone]
    safe, unsafe, f0m0 = ids_of(agent, "safe", "unsafe", "f0m0")
    messages = [row("How are you?", eval_labels=[REPLY], **fields) for fields in ({}, {"control": "unsafe"})]
    batch = observed(agent, *messages)
    plain = learned(agent, observed(agent, messages[0]))[0]
    assert learned(agent, batch) == [plain, [*plain, unsafe]]
    with reply_control(agent, ("f0m0", "safe")):
        assert learned(agent, batch) == [[*plain, safe, f0m0], [*plain, unsafe]]
        assert read(agent, batch) == [[*plain, safe, f0m0]] * 2
        training = observed(agent, *(row("How are you?", labels=[REPLY], **f) for f in ({}, {"control": "unsafe"})))
        assert training.is_training and learned(agent, training) == [plain, [*plain, unsafe]]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_that_of_the_label_behind_the_tokens(backbone, agents):
    agent = agents[backbone]
    agent.model.eval()

    def ppl(batch: Any) -> float:
        loss_of(agent, batch)
        return metrics_of(agent)["ppl"]

    with torch.no_grad():
        batch = observed(agent, row("How are you?", eval_labels=[REPLY]))
        own = observed(agent, row("How are you?", eval_labels=[REPLY], control=["calm", "safe"]))
        ids = torch.cat((batch.text_vec, torch.tensor([ids_of(agent, "safe", "calm")])), 1)
        logits = agent.model(ids, ys=batch.label_vec)[0]
        expected = float(torch.nn.functional.cross_entropy(logits[0], batch.label_vec[0]).exp())
        assert ppl(own) == pytest.approx(expected, rel=1e-4) and ppl(batch) != pytest.approx(expected, rel=1e-4)
        with reply_control(agent, ("safe", "calm")):
            assert ppl(batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_learned_behind_a_token_is_said_behind_it(backbone, talk, llama, tmp_path):
    """The whole way: labels become tokens, the model tells them apart, and `--control` asks for one kind."""
    rows = [("i like trains", "safe"), ("you are a dim lamp", "unsafe")]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps({"context": ["hi"], "reply": r, "label": kind}) + "\n" for r, kind in rows))
    more = {"optimizer": "adam", "learningrate": 0.02, "max_train_steps": 25, "log_every_n_steps": 25}
    more |= {} if backbone else {"dropout": 0.0}
    method = "causal_lm" if backbone else "mle"
    train(path, llama, tmp_path / "m", backbone, method, **{**TOKENS, "mutators": "safety_control_safety", **more})
    for reply, kind in rows:
        agent = load(tmp_path / "m", control=kind)
        agent.observe(row("hi"))
        assert agent.act()["text"] == reply


# --- the flags ------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch) -> list[str]:
    found: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(control.logging, level, found.append)
    return found


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_a_model_was_saved_with_counts_and_is_told(backbone, models, told, tmp_path):
    agent = load(models[backbone])
    assert [line for line in told if "--control" in line] == ["Replies are asked for behind [F0M0] [SAFE] (--control)."]
    batch = observed(agent, row("hello"))
    assert read(agent, batch)[0][-2:] == ids_of(agent, "safe", "f0m0") and read(agent.clone(), batch) == read(
        agent, batch
    )
    for asked, expected in (("none", []), ("calm", ["calm"])):
        told.clear()
        other = load(models[backbone], control=asked)
        found = [id_ for id_ in read(other, batch)[0] if id_ in ids_of(other, *NAMES)]
        assert found == ids_of(other, *expected) and any("--control" in line for line in told) == bool(expected)
        other.save(str(tmp_path / "model"))
        assert json.loads((tmp_path / "model.opt").read_text())["control"] == asked


def test_unsafe_replies_count_from_the_command_line_alone(models, told, tmp_path):
    agent = load(models[""], control="unsafe,f0m0")
    assert any("--control unsafe" in line and "research" in line for line in told)
    batch = observed(agent, row("hello"))
    assert read(agent, batch)[0][-2:] == ids_of(agent, "unsafe", "f0m0")
    agent.save(str(tmp_path / "model"))
    saved = json.loads((tmp_path / "model.opt").read_text())
    assert "control" not in saved and "unsafe" not in json.dumps(saved.get("override", {}).get("control", ""))
    assert saved["control_tokens"] == ",".join(NAMES)
    saved |= {"control": "unsafe,f0m0", "override": {"control": "unsafe,f0m0"}}
    (tmp_path / "model.opt").write_text(json.dumps(saved))
    told.clear()
    edited = load(tmp_path / "model")
    assert (
        read(edited, batch)[0][-1:] == ids_of(edited, "f0m0")
        and edited.control_ids["unsafe"] not in read(edited, batch)[0]
    )
    assert any("does not count" in line for line in told)
    file = tmp_path / "other.opt"
    for value in ("unsafe", "safe"):
        file.write_text(json.dumps({"control": value}))
        opt = Interactive.setup_args().parse_kwargs(model_file=str(models[""]), init_opt=str(file), loglevel="error")
        with pytest.raises(SafetyError, match="holds control = unsafe") if value == "unsafe" else nullcontext():
            control._asked_for(opt)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gentle", r"no control token \[GENTLE\]: its control tokens are safe, unsafe"),
        ("toxic", "--toxic-control true"),
        ("Sa fe", "names 'sa fe'"),
        (",".join(NAMES), "At most 4"),
    ],
)
def test_what_cannot_be_asked_for_says_so(asked, message, models):
    with pytest.raises(SafetyError, match=message):
        load(models[""], control=asked)


def test_a_model_without_the_tokens_refuses_them(plain, agents, tmp_path):
    agent = load(plain[""])
    with pytest.raises(SafetyError, match=r"no control token \[SAFE\]: it has none"):
        observed(agent, row("hello", labels=[REPLY], control="safe"))
    assert observed(agent, row("hello", control="safe")).batchsize == 1
    with pytest.raises(SafetyError, match="it has none"):
        load(plain["/causal_lm"], control="safe")
    with pytest.raises(SafetyError, match="no control token.*safe"), reply_control(agent, ["safe"]):
        pass
    assert not agent._switch.names
    for value in ([], ["safe", "safe"], ["safe", 1], "SAFE"):
        with pytest.raises(SafetyError, match="'control' = "):
            observed(agents[""], row("hello", labels=[REPLY], control=value))


def test_names_are_read_in_any_case_and_bad_ones_are_refused():
    assert token_names(" Safe, f0m0,,safe") == ("safe", "f0m0") and token_names(None) == ()
    for listed in ("none", "so calm", "1st", "[safe]", "\u00e9"):
        with pytest.raises(SafetyError, match="A name begins with a letter"):
            token_names(listed)


# --- dictionary and weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tokens_that_come_later_leave_the_earlier_ones_where_they_are(backbone, talk, llama, plain, tmp_path):
    """Each row is told by its name; the toxic one keeps the row that it always had."""
    still = {"learningrate": 0.0, "max_train_steps": 1}
    steps = [
        {"control_tokens": "safe", "toxic_token": True},
        {"control_tokens": "calm,safe"},
        {"control_tokens": "f0m0"},
    ]
    begun, name = plain[backbone], EMBEDDINGS[backbone]
    base = weights(begun)[name]
    for i, more in enumerate(steps):
        agent = train(talk, llama, tmp_path / str(i) / "m", backbone, init_model=str(begun), **still, **more)
        begun = tmp_path / str(i) / "m"
    size = len(base)
    assert agent.opt["control_tokens"] == "safe,toxic,calm,f0m0" and agent.opt["toxic_token"] is True
    assert [*ids_of(agent, "safe", "toxic", "calm", "f0m0")] == [size, size + 1, size + 2, size + 3]
    assert len(agent.dict) == size + 4
    found = weights(begun)[name]
    assert torch.equal(found[:size], base)
    torch.testing.assert_close(found[size], named_row(base, "[SAFE]"))
    torch.testing.assert_close(found[size + 1], first_row(base))
    torch.testing.assert_close(found[size + 2], named_row(found[: size + 2], "[CALM]"))
    shutil.copytree(begun.parent, tmp_path / "again")
    agent = load(tmp_path / "again" / "m")
    with toxic_control(agent), reply_control(agent, ["calm", "safe"]):
        (ids,) = read(agent, observed(agent, row("hello [SAFE] [TOXIC]", control="f0m0")))
    assert ids[-3:] == [size, size + 2, size + 1] and not {*ids[:-3]} & {*agent.unsaid}
    batch = observed(agent, row("hello", labels=[REPLY], control=["toxic", "calm"]))
    assert learned(agent, batch)[0][-2:] == [size + 2, size + 1]
    scored = observed(agent, row("hello", eval_labels=[REPLY], control="toxic"), row("hello", eval_labels=[REPLY]))
    (first, *_) = read(agent, scored)
    with reply_control(agent, ["safe"]):  # a label of the toxic model is scored as that
        assert learned(agent, scored) == [[*first, size + 1], [*first, size]]


def test_adapters_tell_tokens_apart_whose_rows_are_frozen(talk, llama, tmp_path):
    lora = {"lora_rank": 2, "learningrate": 0.05, "optimizer": "adam"}
    agent = train(talk, llama, tmp_path / "a" / "model", "/causal_lm", **lora, **TOKENS)
    assert all("lora_" in name for name in weights(tmp_path / "a" / "model"))
    agent.model.eval()
    loaded = load(tmp_path / "a" / "model")
    losses = []
    with torch.no_grad():
        for name in NAMES:
            batch = observed(agent, row("How are you?", labels=[REPLY], control=name))
            losses.append(float(loss_of(agent, batch)))
            torch.testing.assert_close(loss_of(loaded, batch), loss_of(agent, batch))
    assert len({round(loss, 5) for loss in losses}) == len(NAMES)


@pytest.mark.parametrize("kind", ["re", "bytelevelbpe", "gpt2"])
def test_each_kind_of_dictionary_takes_them(kind, talk, llama, tmp_path):
    from tests.integrations.test_vocabularies import byte_words

    more: dict[str, Any] = {"dict_tokenizer": kind}
    if kind != "re":
        found = json.loads(byte_words())["model"]
        (tmp_path / "gpt2").mkdir()
        for name in ("vocab.json", "gpt2/encoder.json"):
            (tmp_path / name).write_text(json.dumps(found["vocab"]))
        for name in ("merges.txt", "gpt2/vocab.bpe"):
            (tmp_path / name).write_text("\n".join(["#version: 0.2", *map(" ".join, found["merges"]), ""]))
        more |= {"bpe_vocab": str(tmp_path / "vocab.json"), "bpe_merge": str(tmp_path / "merges.txt")}
        more |= {"dict_maxexs": 0, "datapath": str(tmp_path)}
    agent = train(talk, llama, tmp_path / "m" / "model", "", max_train_steps=1, **more, **TOKENS)
    loaded = load(tmp_path / "m" / "model", **({"datapath": str(tmp_path)} if "datapath" in more else {}))
    assert loaded.control_ids == agent.control_ids and len({*agent.control_ids.values()}) == len(NAMES)
    text = "Hello [SAFE] there [F0M0] [CALM]"
    assert {*loaded.dict.txt2vec(text)} > {*ids_of(loaded, "safe", "f0m0", "calm")}
    assert read(loaded, observed(loaded, row(text))) == read(loaded, observed(loaded, row("Hello there")))


def test_another_kind_of_agent_says_that_it_takes_none(talk, tmp_path):
    from tests.agents.small import options

    with pytest.raises(SafetyError, match="--control-tokens got safe"):
        run(**options("safety:cringe/seq2seq", talk, tmp_path / "a" / "model", control_tokens="safe"))


# --- with other parts -----------------------------------------------------------------------------------------------


def test_a_preference_is_measured_behind_the_tokens_in_both_models(models, tmp_path):
    """At the first step the model is its reference, so each pair costs log 2 whatever stands behind its prompt."""
    more = {"init_model": str(models[""]), "dict_file": f"{models['']}.dict", "dict_tokenizer": "space"}
    kwargs = pair_options("safety:dpo", write_pairs(tmp_path / "data"), tmp_path / "model", **more, max_train_steps=1)
    loop, _ = run(**{**kwargs, "learningrate": 0.0})
    agent = loop.agent
    agent.model.eval()
    seen = observe_pairs(agent)[:2]
    for message in seen:
        message.force_set("control", ["unsafe", "calm"])
    with torch.no_grad():
        for batch in (agent.batchify(seen), agent.batchify(observe_pairs(agent)[:2])):
            assert float(loss_of(agent, batch)) == pytest.approx(math.log(2), rel=1e-6)
        with reply_control(agent, ["calm"]):
            batch["is_training"] = False
            assert float(loss_of(agent, batch)) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ["word_block", "rerank"])
def test_a_decoder_around_asks_the_base_model(name, backbone, models, plain, tmp_path, monkeypatch):
    words = tmp_path / "words.txt"
    words.write_text("dim lamp\n")
    how = {"word_list": str(words)} if name == "word_block" else {"guidance_judge": f"wordlist:{words}"}

    def make(base: Path, **more: Any) -> Any:
        kwargs = {"model": f"safety:{name}", "base_model": str(base), "loglevel": "error", "label_truncate": 6}
        kwargs |= {**how, "inference": "beam", "beam_size": 3, **more}
        return agent_from(Opt({**kwargs, "override": dict(kwargs)}))

    for asked, expected in (({}, ["safe", "f0m0"]), ({"control": "calm"}, ["calm"]), ({"control": "none"}, [])):
        agent = make(models[backbone], **asked)
        seen: list[list[int]] = []
        encoder_input = agent.base._encoder_input
        monkeypatch.setattr(
            agent.base, "_encoder_input", lambda b, f=encoder_input, s=seen: s.append(f(b)[0][0].tolist()) or f(b)
        )
        with forced(agent.base, NAMES):
            agent.observe(row("How are you? [SAFE]"))
            text = agent.act().get("text", "")
        assert not any(control_token(name) in text for name in NAMES) and text
        tokens = {*ids_of(agent.base, *NAMES)}
        assert [id_ for id_ in seen[0] if id_ in tokens] == ids_of(agent.base, *expected)
    with pytest.raises(SafetyError, match="no control token"):
        make(plain[backbone], control="safe")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_phrases_are_never_said_behind_a_token(backbone, models, tmp_path):
    """Neighbouring words of what the model says, in other casings and with other white space between them."""
    from tests.agents.test_decoders import guided, said

    contexts = [["How are you?"], ["What do you like?"]]
    sampled = {"inference": "topk", "topk": 1000, "label_truncate": 10, "control": "safe"}
    plain = said(load(models[backbone], **sampled), contexts=contexts, times=20)
    pairs = {found for text in plain for found in re.findall(r"(?=(?<!\w)(\w+\s+\w+))", text)}
    assert len(pairs) > 20
    words = tmp_path / "words.txt"
    words.write_text("\n".join("   ".join(pair.split()).swapcase() for pair in sorted(pairs)))
    agent = guided("word_block", models[backbone], word_list=str(words), **sampled)
    texts = said(agent, contexts=contexts, times=20)
    judge = WordListJudge(sorted(pairs))
    assert sum(map(judge.matches, plain)) > 15 and sum(map(bool, texts)) > 30
    assert not any(judge.matches(text) for text in texts if text)
    if not backbone:  # whose words are whole: what no search says is no way out of a phrase
        assert {*agent.base.unsaid} <= agent.resources[1]._silent


def test_a_model_of_parlai_cannot_be_asked(talk, tmp_path):
    from tests.agents.small import TRANSFORMER, options

    kwargs = options("transformer/generator", talk, tmp_path / "model", max_train_steps=1, **TRANSFORMER)
    loop, _ = run(**kwargs)
    loop.agent.save()
    opt = {"model": "safety:word_block", "base_model": str(tmp_path / "model"), "loglevel": "error", "control": "safe"}
    with pytest.raises(SafetyError, match="holds a model of the agent TransformerGenerator.* trained by this package"):
        agent_from(Opt({**opt, "override": dict(opt)}))
