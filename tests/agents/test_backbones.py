"""One contract for every method of ours over labelled replies, on every backbone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from parlai.core.agents import create_agent_from_model_file
from parlai.scripts.train_model import TrainModel

from parlai_safety.agents.generation import why_not
from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import cringe_loss
from parlai_safety.losses.director import director_loss
from parlai_safety.losses.scones import scones_loss
from parlai_safety.losses.unlikelihood import unlikelihood_loss
from parlai_safety.modeling.output import decoder_states
from tests.agents.small import (
    BART,
    ROWS,
    SEQ2SEQ,
    TRANSFORMER,
    gradients_of,
    loss_of,
    metrics_of,
    observe_all,
    options,
    run,
    weights,
    write_talk,
)

PLAIN = {"": ("transformer/generator", TRANSFORMER), "/bart": ("bart", BART), "/seq2seq": ("seq2seq", SEQ2SEQ)}
METHODS = ["cringe", "unlikelihood", "scones", "director"]
MODELS = [f"safety:{method}{backbone}" for method in METHODS for backbone in PLAIN]
VARIANTS = [(model, {}) for model in MODELS] + [
    (f"safety:director{backbone}", {"director_shared": True, "director_neutral_weight": 0.5}) for backbone in PLAIN
]
every_variant = pytest.mark.parametrize(
    ("model", "more"), VARIANTS, ids=[f"{model}{'-shared' * bool(more)}" for model, more in VARIANTS]
)


def library_loss(agent, batch):
    """The loss as a user of the library computes it from the scores of ParlAI's own forward."""
    model = getattr(agent.model, "language_model", agent.model)
    logits = model(*agent._model_input(batch), ys=batch.label_vec)[0]
    rest = (batch.label_vec, batch.token_labels, batch.label_vec != agent.NULL_IDX)
    if "cringe" in agent.opt["model"]:
        return cringe_loss(logits, *rest, generator=None).loss
    if "unlikelihood" in agent.opt["model"]:
        return unlikelihood_loss(logits, *rest).loss
    if "scones" in agent.opt["model"]:
        return scones_loss(logits, *rest).loss
    class_logits = agent.model.class_scores(decoder_states(agent.model, *agent._model_input(batch), ys=batch.label_vec))
    weight = agent.opt["director_neutral_weight"]
    return director_loss(logits, class_logits, *rest, gamma=3.0, neutral_weight=weight).loss


@every_variant
def test_it_keeps_the_contract(model, more, tmp_path):
    talk = write_talk(tmp_path / "talk.jsonl")
    model_file = tmp_path / "m" / "model"
    steps = {"max_train_steps": 25, "optimizer": "adam", "learningrate": 0.01}
    loop, reports = run(**options(model, talk, model_file, **steps, **more))
    agent = loop.agent

    # It trains: what is to be followed becomes likelier. (DIRECTOR's language model learns from plain talk alone.)
    ppl = [float(report["ppl"]) for report in reports]
    assert ppl[-1] < ppl[0]
    last = {name: float(value) for name, value in reports[-1].items()}
    assert {"loss", "ppl", "ppl_neg", "token_acc", agent.penalty_name} <= set(last)
    assert last["share_pos"] + last["share_neg"] + last["share_plain"] == pytest.approx(1)

    # The plain form is the library's loss, and the chunked form is the plain one, to rounding. (The agent's token
    # weights are fp32, hence the first tolerance.)
    agent.model.double().eval()
    batch = agent.batchify(observe_all(agent))
    assert sorted(batch.token_labels.tolist()) == [-1, 0, 0, 1]
    agent.output_options = dataclasses.replace(agent.output_options, full_logits=True)
    plain, plain_gradients = loss_of(agent, batch), gradients_of(agent, batch)
    plain_metrics = metrics_of(agent)
    torch.testing.assert_close(plain, library_loss(agent, batch), rtol=1e-6, atol=0)
    for chunk in (1, 5):
        agent.output_options = dataclasses.replace(agent.output_options, full_logits=False, chunk_tokens=chunk)
        torch.testing.assert_close(loss_of(agent, batch), plain, rtol=1e-12, atol=0)
        for name, gradient in gradients_of(agent, batch).items():
            torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-9, atol=1e-13, msg=name)
        assert metrics_of(agent) == pytest.approx(plain_metrics)

    # It answers, and a saved model answers the same; with the batched sampler and with ParlAI's own search.
    loop.save_model()
    del agent
    replies = []
    for generation in ("fast", "parlai"):
        loaded = create_agent_from_model_file(str(model_file), {"generation": generation})
        assert why_not(loaded) is None
        loaded.observe({"text": "How are you?", "episode_done": True})
        replies.append(loaded.act()["text"])
        assert loaded.opt["model"].startswith("parlai_safety.agents.")
    assert isinstance(replies[0], str) and replies[0] == replies[1]


@every_variant
def test_it_starts_from_the_plain_agent(model, more, tmp_path):
    talk = write_talk(tmp_path / "talk.jsonl")
    backbone = model.removeprefix("safety:").partition("/")
    name, sizes = PLAIN[backbone[1] + backbone[2]]
    kwargs = {**options("transformer/generator", talk, tmp_path / "p" / "model"), "model": name}
    kwargs = {key: value for key, value in kwargs.items() if key not in TRANSFORMER} | sizes
    kwargs.pop("bart_random", None)
    plain = TrainModel.setup_args().parse_kwargs(**kwargs)
    plain["converting"] = True  # the mark by which ParlAI's BART downloads nothing
    from parlai.scripts.train_model import TrainLoop

    list(TrainLoop(plain).train_steps())
    before = weights(tmp_path / "p" / "model")
    begin = {"init_model": str(tmp_path / "p" / "model"), "learningrate": 0.0, "max_train_steps": 1, **more}
    run(**options(model, talk, tmp_path / "m" / "model", **begin))
    after = weights(tmp_path / "m" / "model")
    assert set(before) <= set(after) and all(name.startswith("class_head.") for name in set(after) - set(before))
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_is_the_straight_run(model, tmp_path):
    talk = write_talk(tmp_path / "talk.jsonl")
    # Dropout draws from torch's own generator, whose state no ParlAI checkpoint holds.
    more = {"optimizer": "adam", "learningrate": 0.01, "dropout": 0.0}
    if "bart" in model:
        more["attention_dropout"] = 0.0
    run(**options(model, talk, tmp_path / "a" / "model", max_train_steps=6, **more))
    first, _ = run(**options(model, talk, tmp_path / "b" / "model", max_train_steps=3, **more))
    first.save_model(".checkpoint")
    second, _ = run(**options(model, talk, tmp_path / "b" / "model", max_train_steps=6, **more))
    assert second._train_steps == 6
    straight, resumed = (weights(tmp_path / name / "model") for name in "ab")
    for name in straight:
        torch.testing.assert_close(straight[name], resumed[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_bart_that_cannot_be_downloaded_is_explained(tmp_path, monkeypatch):
    from parlai.agents.bart import bart

    def no_network(datapath):
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(bart, "download", no_network)
    talk = write_talk(tmp_path / "talk.jsonl")
    with pytest.raises(SafetyError, match="--bart-random true") as error:
        run(**options("safety:cringe/bart", talk, tmp_path / "m" / "model", bart_random=False))
    assert "the network is unreachable" in error.value.got


def test_checkpoints_of_other_sizes_are_refused_by_seq2seq_too(tmp_path):
    talk = write_talk(tmp_path / "talk.jsonl")
    run(**options("safety:cringe/seq2seq", talk, tmp_path / "m" / "model"))
    begin = {"init_model": str(tmp_path / "m" / "model"), "hiddensize": 8}
    with pytest.raises(SafetyError, match="does not fit the model"):
        run(**options("safety:cringe/seq2seq", talk, tmp_path / "n" / "model", **begin))


def test_seq2seq_keeps_the_longest_label_seen(tmp_path):
    talk = write_talk(tmp_path / "talk.jsonl")
    loop, _ = run(**options("safety:cringe/seq2seq", talk, tmp_path / "m" / "model"))
    assert loop.agent.model.longest_label > 1
    loaded = create_agent_from_model_file(str(tmp_path / "m" / "model"))
    assert loaded.model.longest_label == loop.agent.model.longest_label


def documents(monkeypatch):
    """A retriever for FiD that answers with two lines of text, whatever was asked."""
    from parlai.agents.fid import fid
    from parlai.agents.rag.retrievers import Document, RagRetriever

    class Shelf(RagRetriever):
        def tokenize_query(self, query):
            return [1, 2]

        def get_delimiter(self):
            return "\n"

        def retrieve_and_score(self, query):
            found = [Document("1", "Trains", "trains are long"), Document("2", "Lamps", "lamps are dim")]
            return [found] * len(query), torch.ones(len(query), 2)

    monkeypatch.setattr(
        fid.FidModel, "build_retriever", classmethod(lambda cls, opt, dictionary, shared: Shelf(opt, dictionary))
    )


def test_fid(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    documents(monkeypatch)
    talk = write_talk(tmp_path / "talk.jsonl")
    kwargs = options("safety:cringe", talk, tmp_path / "m" / "model", max_train_steps=25, learningrate=0.3)
    fid_options = {"model": "safety:cringe/fid", "generation_model": "transformer/generator", "n_docs": 2}
    loop, reports = run(**{**kwargs, **fid_options, "dict_tokenizer": "re"})
    agent = loop.agent
    assert float(reports[-1]["ppl"]) < float(reports[0]["ppl"])
    agent.model.double().eval()
    batch = agent.batchify(observe_all(agent))
    agent.output_options = dataclasses.replace(agent.output_options, full_logits=True)
    plain, plain_gradients = loss_of(agent, batch), gradients_of(agent, batch)
    logits = agent.model(*agent._model_input(batch), ys=batch.label_vec)[0]
    mask = batch.label_vec != agent.NULL_IDX
    expected = cringe_loss(logits, batch.label_vec, batch.token_labels, mask, generator=None).loss
    torch.testing.assert_close(plain, expected, rtol=1e-6, atol=0)
    agent.output_options = dataclasses.replace(agent.output_options, full_logits=False, chunk_tokens=3)
    torch.testing.assert_close(loss_of(agent, batch), plain, rtol=1e-12, atol=0)
    for name, gradient in gradients_of(agent, batch).items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-9, atol=1e-13, msg=name)
    agent.observe({"text": ROWS[0]["context"][0], "episode_done": True})
    assert agent.act()["text"]


def test_fid_without_its_libraries_is_listed_and_explained():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from parlai_safety.agents.cringe.fid import FidAgent\n"
        "from parlai_safety.errors import SafetyError\n"
        "for use in (lambda: FidAgent.add_cmdline_args(None), lambda: FidAgent({})):\n"
        "    try:\n"
        "        use()\n"
        "    except SafetyError as error:\n"
        "        assert 'transformers' in error.got and 'pip install' in error.instead, error\n"
        "    else:\n"
        "        raise AssertionError('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_fid_refuses_a_second_retrieval():
    pytest.importorskip("transformers")
    from parlai_safety.agents.cringe.fid import FidAgent

    with pytest.raises(SafetyError, match="--regret"):
        FidAgent({"regret": True})
