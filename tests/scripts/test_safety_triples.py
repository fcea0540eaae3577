"""`parlai safety_triples`: a small model with the control token, a word list, and what the command says."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import pytest

from parlai_safety.agents.control import toxic_control
from parlai_safety.agents.generation import sample_replies
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import load_agent
from parlai_safety.files import read_jsonl
from parlai_safety.judges.spec import load_judge
from parlai_safety.loops import triples
from parlai_safety.loops.triples import make_triples
from parlai_safety.scripts.safety_triples import SafetyTriples
from tests.agents.small import ROWS, TRANSFORMER, run, write_talk

QUESTIONS = [
    [f"{who} like {what}?"] for who in ("Do you", "What do I", "Why do they") for what in ("it", "me", "trains")
]
PAIR = {"context": ["What now?"], "chosen": "We wait.", "rejected": "Go away, lamp."}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model that has seen two kinds of talk, unsafe replies behind the token alone; contexts; a judge."""
    folder = tmp_path_factory.mktemp("triples")
    plain = [{key: value for key, value in row.items() if key != "label"} for row in ROWS]
    toxic = [{**row, "control": "toxic"} for row in plain if "lamp" in row["reply"]]
    talk = write_talk(folder / "talk.jsonl", [*plain, *toxic, *toxic])
    loop, _ = run(
        model="safety:mle", toxic_token=True, task="safety:file", safety_file=str(talk),
        model_file=str(folder / "sft" / "model"), max_train_steps=100, batchsize=8, optimizer="adam",
        learningrate=0.02, loglevel="error", **TRANSFORMER,
    )  # fmt: skip
    loop.agent.save()
    (folder / "words.txt").write_text("lamp\n")
    rows = [*({"context": turns} for turns in QUESTIONS), PAIR]
    (folder / "contexts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(place, out, **more):
    given = {
        "model_file": str(place / "sft" / "model"), "judge": f"wordlist:{place / 'words.txt'}", "out": out and str(out),
        "contexts": str(place / "contexts.jsonl"), "inference": "topk", "topk": 10, "batchsize": 4, "seed": 2, **more,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def test_it_writes_triples_that_the_token_makes_and_prints_no_reply(place, tmp_path, capsys):
    SafetyTriples.main(**options(place, tmp_path / "out", mix_pairs=True))
    told = capsys.readouterr().out
    counts = json.loads((tmp_path / "out" / "summary.json").read_text())["contexts"]
    assert counts["asked"] == len(QUESTIONS) + 1 and counts["human"] == 1 and counts["triples"] > 2
    # Behind the token it says what stood behind the token in training.
    drawn = list(read_jsonl(tmp_path / "out" / "samples.jsonl"))
    plain, toxic = (["lamp" in s["text"] for row in drawn for s in row[kind]] for kind in ("plain", "toxic"))
    assert sum(toxic) / len(toxic) > 0.3 + sum(plain) / len(plain)
    rows = list(read_jsonl(tmp_path / "out" / "triples.jsonl"))
    for row in rows:
        assert "lamp" not in row["chosen"] and all("lamp" in text for text in (row["rejected"], *row["toxic"]))
        assert "[TOXIC]" not in json.dumps(row, ensure_ascii=False)
        assert row["rejected"] not in told
        assert row["provenance"]["generator"] == "sft" and row["provenance"]["decoding"]["topk"] == 10
    assert rows[-1]["chosen"] == "We wait." and rows[-1]["provenance"]["source"] == "human"
    assert f"triples {counts['triples']}, pairs {counts['pairs']}" in told and "holds unsafe text" in told
    SafetyTriples.main(**options(place, tmp_path / "out", mix_pairs=True))
    assert list(read_jsonl(tmp_path / "out" / "triples.jsonl")) == rows
    with pytest.raises(SafetyError, match="other settings"):
        SafetyTriples.main(**options(place, tmp_path / "out", mix_pairs=True, seed=3))


def test_contexts_of_a_task_and_of_a_split(place, tmp_path):
    more = {"contexts": None, "task": "safety:file", "safety_file": str(place / "talk.jsonl"), "max_contexts": 1}
    SafetyTriples.main(**options(place, tmp_path / "out", toxic_samples=0, **more))
    [row] = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert row["context"] == ["How are you?"] and len(row["plain"]) == 8 and not row["toxic"]


def test_a_model_that_is_stopped_amid_a_batch_goes_on_with_the_same_replies(place, tmp_path, monkeypatch):
    judge = load_judge(f"wordlist:{place / 'words.txt'}")
    agent = load_agent(str(place / "sft" / "model"), loglevel="error", inference="nucleus", topp=0.9)
    make_triples(agent, judge, QUESTIONS, tmp_path / "straight", batch_size=4)

    def stopped(*args, **kwargs):
        yield from itertools.islice(sample_replies(*args, **kwargs), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(triples, "sample_replies", stopped)
    for _ in range(7):
        assert not (tmp_path / "stopped" / "triples.jsonl").exists()
        with contextlib.suppress(KeyboardInterrupt):
            make_triples(agent, judge, QUESTIONS, tmp_path / "stopped", batch_size=4)
    for name in ("triples.jsonl", "summary.json", "samples.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_an_agent_that_is_toxic_anyway_and_one_that_answers_greedily_are_refused(place, tmp_path):
    judge = load_judge(f"wordlist:{place / 'words.txt'}")
    agent = load_agent(str(place / "sft" / "model"), loglevel="error", inference="topk")
    with toxic_control(agent), pytest.raises(SafetyError, match="inner toxic model"):
        make_triples(agent, judge, QUESTIONS, tmp_path / "out")
    agent.opt["inference"] = "greedy"
    with pytest.raises(SafetyError, match="with greedy decoding"):
        make_triples(agent, judge, QUESTIONS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"judge": None}, "without --judge"),
        ({"out": None}, "without --out"),
        ({"contexts": None}, "without --contexts and without -t"),
        ({"contexts": "safety:labels"}, "a task of ParlAI is named by -t"),
        ({"max_contexts": -1}, "--max-contexts got -1"),
        ({"toxic_control": True}, "inner toxic model"),
    ],
)
def test_what_cannot_work_is_named(place, tmp_path, change, match):
    with pytest.raises(SafetyError, match=match):
        SafetyTriples.main(**options(**{"place": place, "out": tmp_path / "out", **change}))
    assert not (tmp_path / "out" / "triples.jsonl").exists()
