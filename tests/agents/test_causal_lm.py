"""`safety:causal_lm` as an agent: prompt, label and loss as transformers has them, replies, history, commands."""

from __future__ import annotations

import json

import pytest
import torch
from parlai.core.agents import create_agent
from parlai.core.message import Message
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel

from parlai_safety.agents.generation import sample_replies
from parlai_safety.errors import SafetyError
from parlai_safety.modeling.chat import Turn
from tests.agents.small import loss_of, metrics_of
from tests.tiny_causal import CHATML, KINDS, tiny_causal

TALKS = [
    (["How are you?"], "Fine, thanks, and you?"),
    (["What do you like?", "I like trains.", "Which ones?"], "Old ones, with é and 😀."),
    (["Hello."], "Hi."),
    (["I am here.", "Where is that?", "Not far from the old lamp, behind the house with the green door."], "I see."),
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp(request.param) / "hf", request.param, seed=6)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp("one") / "hf", "llama", seed=6)


def make(folder, **more):
    """An agent of a folder, without any training."""
    settings = {"datatype": "valid", "text_truncate": 128, "label_truncate": 32, "loglevel": "error", **more}
    opt = TrainModel.setup_args().parse_kwargs(model="safety:causal_lm", hf_model=str(folder), **settings)
    return create_agent(opt)


def observed(agent, context, reply=None, field="eval_labels", **more):
    message = Message({"text": "\n".join(context), "episode_done": True, **more})
    if reply is not None:
        message[field] = [reply]
    return agent.clone().observe(message)


def parts(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def messages(context, system=""):
    roles = ["user" if (len(context) - 1 - i) % 2 == 0 else "assistant" for i in range(len(context))]
    told = [{"role": role, "content": text} for role, text in zip(roles, context, strict=True)]
    return ([{"role": "system", "content": system}] if system else []) + told


def nll_alone(lm, prompt, reply):
    """-log p of each token of one reply, by the model's own forward, with nothing padded."""
    ids = torch.tensor([prompt + reply])
    with torch.no_grad():
        scores = lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return -scores.gather(-1, torch.tensor(reply)[:, None]).squeeze(-1)


JINJA = CHATML.replace("<|im_start|>{{ message['role'] }}\n", "<|im_start|>({{ message['role'] }}) ").replace(
    "<|im_start|>assistant\n", "<|im_start|>(assistant) "
)
FORMS = ["tokenizer", "plain", "system", "jinja"]


@pytest.mark.parametrize("form", FORMS)
def test_prompt_label_and_loss_are_those_of_transformers(folder, form, tmp_path):
    lm, tokenizer = parts(folder)
    system = "Be kind." if form == "system" else ""
    more = {"chat_template": form} if form == "plain" else {"system_prompt": system}
    if form == "jinja":
        path = tmp_path / "own.jinja"
        path.write_text(JINJA)
        more = {"chat_template": str(path)}
        tokenizer.chat_template = JINJA
    agent = make(folder, **more)
    batch = agent.batchify([observed(agent, context, reply) for context, reply in TALKS])
    wanted = []
    for row, (context, reply) in enumerate(TALKS):
        if form == "plain":
            prompt = [0, *tokenizer("\n".join(context) + "\n")["input_ids"]]
            said = [*tokenizer(reply)["input_ids"], tokenizer.eos_token_id]
        else:
            told = messages(context, system)
            prompt = tokenizer.apply_chat_template(told, add_generation_prompt=True, return_dict=False)
            whole = tokenizer.apply_chat_template([*told, {"role": "assistant", "content": reply}], return_dict=False)
            closing = len(whole) - whole[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
            if form == "jinja":  # the space before the reply is part of its first word
                prompt = prompt[:-1]
            said = whole[len(prompt) : closing]
        assert batch.text_vec[row][batch.text_vec[row] != agent.NULL_IDX].tolist() == prompt
        assert batch.label_vec[row][batch.label_vec[row] != agent.NULL_IDX].tolist() == said
        wanted.append(nll_alone(lm, prompt, said))
    loss = loss_of(agent, batch)
    torch.testing.assert_close(loss, torch.cat(wanted).mean(), atol=1e-5, rtol=1e-5)
    assert metrics_of(agent)["ppl"] == pytest.approx(torch.cat(wanted).mean().exp().item(), rel=1e-4)


def test_a_batch_padded_at_the_left_gives_the_same_loss(folder):
    agent = make(folder)
    batch = agent.batchify([observed(agent, context, reply) for context, reply in TALKS])
    lm, _ = parts(folder)
    rows = [
        (text[text != agent.NULL_IDX].tolist(), label[label != agent.NULL_IDX].tolist())
        for text, label in zip(batch.text_vec, batch.label_vec, strict=True)
    ]
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids, mask, told = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    told.fill_(-100)
    for row, (prompt, reply) in enumerate(rows):
        ids[row, -len(prompt + reply) :] = torch.tensor(prompt + reply)
        mask[row, -len(prompt + reply) :] = 1
        told[row, -len(reply) :] = torch.tensor(reply)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        theirs = lm(input_ids=ids, attention_mask=mask, position_ids=positions, labels=told).loss
    torch.testing.assert_close(loss_of(agent, batch), theirs, atol=1e-5, rtol=1e-5)


def say(agent, contexts, **options):
    for name, value in options.items():
        agent.opt[name] = value
        if hasattr(agent, name):
            setattr(agent, name, value)
    acts = agent.batch_act([observed(agent, context) for context in contexts])
    return acts


CONTEXTS = [context for context, _ in TALKS] + [["Yes."], ["No?", "Never.", "Why?"]]


def test_greedy_replies_are_those_of_generate(folder):
    lm, tokenizer = parts(folder)
    agent = make(folder)
    batch = agent.batchify([observed(agent, context) for context in CONTEXTS])
    width = batch.text_vec.size(1)
    told = tokenizer.apply_chat_template(
        [messages(context) for context in CONTEXTS], add_generation_prompt=True, padding=False, return_dict=False
    )
    ids = torch.tensor([[0] * (width - len(row)) + row for row in told])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in told])
    found = lm.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=32, eos_token_id=[2, 0], pad_token_id=0
    )  # fmt: skip
    theirs = []
    for row in found[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in (0, 2)), len(row) - 1)
        row = row[: stop + 1] if stop < len(row) - 1 else row[:-1]  # ParlAI ends what has not ended
        theirs.append(tokenizer.decode(row, skip_special_tokens=True).strip())
    ours = [act["text"] for act in say(agent, CONTEXTS)]
    assert ours == theirs and len(set(ours)) > 2
    agent.dict.also_end = []  # which ParlAI's search does not know
    ours = [act["text"] for act in say(agent, CONTEXTS)]
    assert [act["text"] for act in say(agent, CONTEXTS, generation="parlai")] == ours


def test_a_beam_is_parlais_beam(folder):
    agent = make(folder)
    agent.dict.also_end = []  # which ParlAI's search does not know
    how = {"inference": "beam", "beam_size": 3, "beam_min_length": 4, "beam_block_ngram": 2, "label_truncate": 12}
    ours = say(agent, CONTEXTS, **how)
    theirs = say(agent, CONTEXTS, generation="parlai")
    assert [act["text"] for act in ours] == [act["text"] for act in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        scores = [score for _, score in other["beam_texts"]]
        assert [score for _, score in mine["beam_texts"]] == pytest.approx(scores, abs=1e-4)


def test_several_samples_of_a_context(llama):
    agent = make(llama)
    found = list(sample_replies(agent, CONTEXTS, samples=5, seed=2, batch_size=3, method="nucleus", topp=0.9))
    assert sorted(one.position for one in found) == list(range(len(CONTEXTS)))
    assert all(len(one.texts) == len(one.scores) == 5 for one in found)
    assert any(len(set(one.texts)) > 1 for one in found)
    found = {one.position: one.texts for one in sample_replies(agent, [[], ["Hi."]], samples=2, seed=2, method="topk")}
    assert found[0] == [] and len(found[1]) == 2


def test_ngrams_of_the_words_are_blocked_and_of_the_frame_are_not(llama):
    agent = make(llama, beam_block_ngram=1, beam_context_block_ngram=1, beam_block_full_context=True)
    context = ["trains and lamps", "user", "a b c"]
    message = observed(agent, context)
    words = [id_ for turn in context for id_ in agent.dict.format.words(turn)]
    assert [id_ for id_ in message["full_text_vec"] if id_ != agent.NULL_IDX] == words
    agent.model.eval()
    batch = agent.batchify([message, observed(agent, ["Hi."])])
    found = agent._generate(batch, 1, 20)[0][0][0].tolist()[1:]
    said = [id_ for id_ in found if id_ != agent.END_IDX]
    assert len(said) > 3 and len(set(said)) == len(said) and not set(said) & set(words)
    agent.beam_block_full_context = False
    blocked = set(agent._get_batch_context(agent.batchify([message])).flatten().tolist())
    assert not blocked & set(agent.dict.format.special_ids) and set(words) <= blocked


@pytest.mark.parametrize(
    "options",
    [
        {"beam_block_ngram": 1, "generation": "parlai"},
        {"beam_context_block_ngram": 3, "inference": "delayedbeam", "beam_size": 2},
    ],
    ids=str,
)
def test_what_parlais_search_would_stumble_over_is_refused(llama, options):
    with pytest.raises(SafetyError, match="ParlAI's own search"):
        make(llama, **options)


def test_a_phrase_is_blocked_at_the_beginning_and_within(llama, tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("dim lamp\n")
    agent = make(llama, beam_block_list_filename=str(path))
    listed = {tuple(ngram) for _, some in agent.beam_block_list.items() for ngram in some}
    for text in ("dim lamp", "a dim lamp", "A Dim Lamps"):
        said = agent.dict.txt2vec(text)
        assert any(
            tuple(said[i : i + len(ngram)]) == ngram for ngram in listed for i in range(len(said))
        ), text  # fmt: skip


def test_candidates_are_ranked_by_their_likelihood(folder):
    lm, _ = parts(folder)
    agent = make(folder, rank_candidates=True, skip_generation=True)
    some = ["No.", "Fine, thanks, and you?", "Maybe so, or maybe not at all."]
    messages = [observed(agent, context, some[0], label_candidates=some) for context, _ in TALKS]
    for act, message in zip(agent.batch_act(messages), messages, strict=True):
        prompt = message["text_vec"].tolist()
        means = [nll_alone(lm, prompt, [*agent.dict.txt2vec(text), agent.END_IDX]).mean().item() for text in some]
        assert act["text_candidates"] == [text for _, text in sorted(zip(means, some, strict=True))]


def test_a_token_without_an_embedding_is_refused(tmp_path):
    folder = tiny_causal(tmp_path / "hf", "llama")
    tokenizer = parts(folder)[1]
    tokenizer.add_tokens(["lampish"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(SafetyError, match="'lampish'"):
        make(folder)


def test_a_mark_without_an_embedding_is_refused_where_it_is_used(tmp_path):
    folder = tiny_causal(tmp_path / "hf", "llama", template=CHATML.replace("<|im_start|>", "<new>"))
    tokenizer = parts(folder)[1]
    tokenizer.add_tokens(["<new>", "<unused>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(SafetyError, match="'<new>'"):
        make(folder)
    tokenizer.bos_token = "<unused>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(SafetyError, match="'<unused>'"):
        make(folder, chat_template="plain")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    agent = make(folder)
    assert agent.dict.blank == agent.END_IDX


def test_prefix_tokens_and_least_length(llama, monkeypatch):
    agent = make(llama)
    prefix = agent.dict.txt2vec("Well")
    monkeypatch.setattr(agent, "get_prefix_tokens", lambda batch: torch.tensor([prefix] * batch.batchsize))
    assert all(act["text"].startswith("Well") for act in say(agent, CONTEXTS))
    monkeypatch.undo()
    for one in sample_replies(agent, CONTEXTS, samples=3, seed=1, method="topk", topk=50, min_length=9, max_length=12):
        for text in one.texts:
            assert len(agent.dict.txt2vec(text)) >= 7  # some tokens are half a character or white space


def turns_of(agent):
    return [tuple(turn) for turn in agent.history.turns]


def test_a_live_conversation_keeps_who_said_what(llama):
    agent = make(llama)
    agent.observe(Message({"text": "Hi.\nHello.\nHow are you?", "episode_done": False}))
    reply = agent.act()["text"]
    agent.observe(Message({"text": "Two lines\nof one speaker", "episode_done": False}))
    assert turns_of(agent) == [
        ("user", "Hi."), ("assistant", "Hello."), ("user", "How are you?"), ("assistant", reply),
        ("user", "Two lines\nof one speaker"),
    ]  # fmt: skip
    vector = agent.observation["text_vec"].tolist()
    assert vector == agent.dict.format.prompt([Turn(*turn) for turn in turns_of(agent)])
    agent.act()
    agent.observe(Message({"text": "Bye.", "episode_done": True}))
    agent.act()
    assert turns_of(agent) == [] and agent.history.get_history_vec() == []
    agent.observe(Message({"text": "New.", "episode_done": False}))
    assert turns_of(agent) == [("user", "New.")]
    agent.reset()
    assert turns_of(agent) == []


@pytest.mark.parametrize(("use", "kept"), [("label", "Gold."), ("model", None), ("none", "")])
def test_the_label_or_the_reply_or_nothing_is_kept(llama, use, kept):
    agent = make(llama, use_reply=use)
    agent.observe(Message({"text": "Hi.", "eval_labels": ["Gold."], "episode_done": False}))
    reply = agent.act()["text"]
    expected = [("user", "Hi."), *([("assistant", reply if kept is None else kept)] if kept != "" else [])]
    assert reply and turns_of(agent) == expected


def test_history_size_counts_messages(llama):
    agent = make(llama, history_size=2)
    for text in ("One.\nTwo.\nThree.", "Four.", "Five."):
        agent.observe(Message({"text": text, "episode_done": False}))
        agent.act()
    assert len(agent.history.history_strings) == 2
    assert [text for _, text in turns_of(agent)] == agent.history.history_strings


def test_a_temporary_history_is_gone_at_the_next_turn(llama):
    agent = make(llama, use_reply="none")
    agent.observe(Message({"text": "Hi.", "temp_history": " (softly)", "episode_done": False}))
    assert agent.observation["text_vec"].tolist() == agent.dict.format.prompt([Turn("user", "Hi. (softly)")])
    agent.act()
    agent.observe(Message({"text": "Yes.", "episode_done": False}))
    assert turns_of(agent) == [("user", "Hi."), ("user", "Yes.")]
    assert agent.observation["text_vec"].tolist() == agent.dict.format.prompt([Turn("user", "Hi.\nYes.")])


def test_what_is_cut_off_is_counted(llama):
    agent = make(llama, text_truncate=24)
    context = ["A first turn that is long enough.", "Then a second one.", "Third."]
    message = observed(agent, context, "Fine.")
    whole = agent.dict.format.prompt([Turn(one["role"], one["content"]) for one in messages(context)])
    assert message["text_vec"].tolist() == agent.dict.format.prompt([Turn("user", "Third.")])
    assert message["context_original_length"] == len(whole) and message["context_truncate_rate"]
    assert message["context_truncated_length"] == len(whole) - len(message["text_vec"])
    assert not observed(agent, ["Third."])["context_truncate_rate"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"person_tokens": True}, "--person-tokens"),
        ({"history_add_global_end_token": "end"}, "--history-add-global-end-token"),
        ({"delimiter": "  "}, "--delimiter"),
        ({"text_truncate": 250, "label_truncate": 32}, "256 positions"),
    ],
    ids=str,
)
def test_options_without_a_meaning_here_are_refused(llama, options, said):
    with pytest.raises(SafetyError, match=said):
        make(llama, **options)


def test_replies_without_a_chat_template_are_refused_before_any_work(tmp_path):
    folder = tiny_causal(tmp_path / "hf", "gpt2", chat=False)
    with pytest.raises(SafetyError, match="--chat-template plain"):
        make(folder)
    assert say(make(folder, chat_template="plain"), [["Hi."]])[0]["text"] is not None


def write_rows(path):
    rows = [{"context": context, "reply": reply} for context, reply in TALKS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_parlais_commands_take_it_without_a_checkpoint(llama, tmp_path, monkeypatch, capsys):
    common = {
        "model": "safety:causal_lm", "hf_model": str(llama), "loglevel": "error", "text_truncate": 128,
        "label_truncate": 16,
    }  # fmt: skip
    report = EvalModel.main(
        **common, task="safety:file", safety_file=write_rows(tmp_path / "talk.jsonl"), datatype="train:evalmode:ordered"
    )
    agent = make(llama, label_truncate=16)
    batch = agent.batchify([observed(agent, context, reply) for context, reply in TALKS])
    loss_of(agent, batch)
    assert float(report["ppl"]) == pytest.approx(metrics_of(agent)["ppl"], rel=1e-4)

    out = tmp_path / "chats.jsonl"
    SelfChat.main(
        **common, task="self_chat", num_self_chats=1, selfchat_max_turns=4, outfile=str(out), save_format="parlai"
    )
    assert out.exists() or list(tmp_path.glob("chats*"))

    heard = iter(["Hello.", "And you?", "[EXIT]"])
    monkeypatch.setattr("builtins.input", lambda *_: next(heard))
    Interactive.main(**common, task="interactive", single_turn=False, display_prettify=False)
    assert "[CausalLm]" in capsys.readouterr().out


def test_an_evaluation_takes_it_without_a_checkpoint(llama, tmp_path):
    from parlai_safety.scripts.safety_eval import SafetyEval

    SafetyEval.main(
        model="safety:causal_lm", hf_model=str(llama), loglevel="error", text_truncate=128, label_truncate=16,
        suite="adversarial,ordinary", judge="wordlist", limit=4, out=str(tmp_path / "run"),
    )  # fmt: skip
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert len(found["suites"]["adversarial"]["records"]) == 4
    assert found["name"] == "hf"
    said = [json.loads(line) for line in (tmp_path / "run" / "adversarial" / "said.jsonl").read_text().splitlines()]
    assert len(said) == 4 and all(text for _, text, *_ in said)
    perplexity = next(m for m in found["suites"]["ordinary"]["measures"] if m["name"] == "perplexity")
    assert perplexity["value"] > 1


def test_all_ends_of_the_config_end_a_reply(tmp_path):
    folder = tiny_causal(tmp_path / "hf", "llama")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "eos_token_id": [0, 5, 4000]}))  # the last: no score
    agent = make(folder)
    assert agent.END_IDX == 2 and agent.also_end == [0, 5]


@pytest.mark.parametrize("text", ["   ", "\n", "<|im_end|>"])
def test_a_message_without_words_is_answered_within_the_frame(llama, text):
    agent = make(llama, system_prompt="Be kind.")
    wanted = agent.dict.format.prompt([Turn("user", "")])
    assert "Be kind." in agent.dict.format.tokenizer.decode(wanted)
    assert observed(agent, [text])["text_vec"].tolist() == wanted
    agent.observe(Message({"text": "Hi.", "episode_done": False}))
    reply = agent.act()["text"]
    agent.observe(Message({"text": text, "episode_done": False}))
    talk = [Turn("user", "Hi."), Turn("assistant", reply), Turn("user", "")]
    assert agent.observation["text_vec"].tolist() == agent.dict.format.prompt(talk)


def test_a_persona_belongs_to_the_users_first_turn(llama):
    agent = make(llama)
    message = observed(agent, ["your persona: I like trains.", "your persona: I am old.", "Hi."])
    persona = "your persona: I like trains.\nyour persona: I am old.\nHi."
    assert message["text_vec"].tolist() == agent.dict.format.prompt([Turn("user", persona)])


def test_another_message_has_another_prompt(llama):
    agent = make(llama, history_size=1)
    for text in ("One.", "Two."):
        agent.observe(Message({"text": text, "episode_done": False}))
        assert agent.observation["text_vec"].tolist() == agent.dict.format.prompt([Turn("user", text)])
        agent.self_observe(Message({"text": "", "episode_done": False}))


def words_beside(folder, source):
    parts(source)[1].save_pretrained(folder)
    return folder


def test_encoders_are_refused(llama, tmp_path):
    from transformers import AutoModelForMaskedLM, BertConfig

    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        initializer_range=0.3,
    )  # fmt: skip
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(SafetyError, match="depend on later tokens"):
        make(words_beside(tmp_path, llama))


def test_positions_are_read_by_their_name_in_mpt(llama, tmp_path):
    from transformers import AutoModelForCausalLM, MptConfig

    config = MptConfig(vocab_size=400, d_model=32, n_layers=1, n_heads=4, max_seq_len=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    agent = make(words_beside(tmp_path, llama), text_truncate=-1, label_truncate=8)
    assert agent.text_truncate == 56
