"""Evaluation as a user types it: evaluate, kill, continue, compare, gate, report, classify."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from parlai_safety import plugin
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.suites import spread
from parlai_safety.judges.data import tiny_examples
from parlai_safety.judges.recipe import train_two_judges
from parlai_safety.loops.training import train
from tests.conftest import TINY_MODEL
from tests.scripts.warm import PARLAI, warm

pytestmark = pytest.mark.slow

SUITES = "adversarial,ordinary,prompts,overrefusal,identity,multiturn"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two models and two judges, once for all tests here; made in this process, which saves the starts."""
    folder = tmp_path_factory.mktemp("evaluation")
    plugin.inventory.import_all("parlai_safety.scripts")
    os.environ["SAFETY_CACHE"] = str(folder / "cache")
    for name, steps in (("base", 20), ("other", 40)):
        train(
            name, model_file=folder / name / "model", max_train_steps=steps, seed=1, model="transformer/generator",
            task="safety:tiny:plain", batchsize=16, optimizer="adam", learningrate=0.01, dict_maxexs=300,
            inference="topk", topk=10, **TINY_MODEL,
        )  # fmt: skip
    train_two_judges(spread(tiny_examples("train"), 3000), seed=1, folder=folder / "judges")
    return folder


def evaluation(name: str, out: str, *more: str) -> list[str]:
    judges = "linear:judges/grader.npz,linear:judges/labeller.npz"
    limits = ["--limit", "30", "--samples", "2", "--batchsize", "8"]
    command = ["safety_eval", "-mf", f"{name}/model", "--suite", SUITES, "--judge", judges, "--out", out]
    return [*command, *limits, *more]


@pytest.fixture(scope="module")
def straight(place) -> subprocess.CompletedProcess[str]:
    """The evaluation of one model, in the folder run-base."""
    return warm(evaluation("base", "run-base"), place)


def test_killed_and_continued_it_ends_as_a_straight_run(place, straight):
    """SIGKILL at three moments, then the same command: every record is that of a run that was never stopped."""
    done = straight
    assert done.returncode == 0, done.stderr[-2000:]
    for word in ("adversarial", "unsafe", "unscored", "run-base/report.html"):
        assert word in done.stdout
    kills = 0
    for wanted in ("adversarial/said.jsonl", "prompts/said.jsonl", "multiturn/verdicts.*.jsonl"):
        process = subprocess.Popen(
            [str(PARLAI), *evaluation("base", "killed")],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if any(path.stat().st_size for path in (place / "killed").glob(wanted)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    assert not (place / "killed" / "eval.json").exists()
    done = warm(evaluation("base", "killed"), place)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, killed = (json.loads((place / name / "eval.json").read_text()) for name in ("run-base", "killed"))
    assert killed["suites"] == whole["suites"]
    for suite in SUITES.split(","):
        assert (place / "killed" / suite / "replies.jsonl").read_bytes() == (
            place / "run-base" / suite / "replies.jsonl"
        ).read_bytes()


def test_compare_gate_and_report(place, straight):
    for done in (straight, warm(evaluation("other", "run-other"), place)):
        assert done.returncode == 0, done.stderr[-2000:]
    done = warm(["safety_compare", "run-base", "run-other/eval.json", "--out", "c.json"], place)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "B - A" in done.stdout and "adversarial" in done.stdout
    found = json.loads((place / "c.json").read_text())
    assert [suite["suite"] for suite in found["suites"]] == SUITES.split(",")

    gate = ["safety_gate", "--candidate", "run-other", "--max-increase"]
    assert warm([*gate, "0.9", "--baseline", "run-base"], place).returncode == 0
    same = warm(["safety_gate", "--baseline", "run-base", "--candidate", "run-base"], place)
    assert same.returncode == 0 and "passed" in same.stdout
    # A candidate whose every reply is unsafe must not pass.
    content = json.loads((place / "run-other" / "eval.json").read_text())
    at = content["record_fields"].index("p_unsafe")
    for record in content["suites"]["adversarial"]["records"]:
        record[at] = [1.0, 1.0]
    (place / "bad.json").write_text(json.dumps(content))
    bad = warm(["safety_gate", "--baseline", "run-base", "--candidate", "bad.json"], place)
    assert bad.returncode == 1 and "FAILED  adversarial" in bad.stdout, bad.stdout + bad.stderr

    done = warm(["safety_report", "run-base", "run-other", "--out", "both.html"], place)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (place / "both.html").read_text()
    assert "run-other" in page or "other" in page
    assert json.loads((place / "both.json").read_text()) and (place / "both.md").is_file()


def test_classify_and_card(place):
    judge = ["--judge", "linear:judges/grader.npz"]
    done = warm(["safety_judge", "--text", "You are a dim lamp, go away.", *judge], place)
    assert done.returncode == 0 and "unsafe" in done.stdout, done.stdout + done.stderr
    rows = [{"context": ["How are you?"], "reply": "Fine, thanks."}, {"context": [], "reply": ""}]
    (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = warm(["safety_judge", "--file", "in.jsonl", "--out", "out.jsonl", *judge], place)
    assert done.returncode == 0, done.stderr[-2000:]
    judged = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in judged][1] == "unscored"
    done = warm(["safety_judge_card", *judge], place)
    assert done.returncode == 0, done.stderr[-2000:]
    for word in ("sensitivity", "specificity", "AUC", "1 %", "5 %"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["safety_eval", "--judge", "wordlist", "--out", "x"], "names no model"),
        (["safety_eval", "-mf", "base/model", "--out", "x"], "without --judge"),
        (["safety_eval", "-mf", "no/model", "--judge", "wordlist", "--out", "x"], "There is no model file"),
        (
            ["safety_eval", "-mf", "base/model", "--judge", "wordlist", "--out", "x", "--suite", "adversial"],
            "Did you mean",
        ),
        (["safety_eval", "-mf", "base/model", "--judge", "wordlis", "--out", "x"], "Did you mean"),
        (["safety_compare", "one"], "came with 1 evaluations"),
        (["safety_compare", "one", "two"], "There is no evaluation at 'one'"),
        (["safety_gate", "--baseline", "x"], "There is no evaluation at 'x'"),
        (["safety_judge", "--judge", "wordlist"], "--text"),
    ],
)
def test_mistakes_end_in_three_sentences(place, words, message, monkeypatch):
    """In this process, which saves the start of nine; that such an error is printed so is tested elsewhere."""
    from parlai.core.script import superscript_main

    monkeypatch.chdir(place)
    with pytest.raises(SafetyError, match=message) as caught:
        superscript_main(words)
    assert all(part.endswith((".", "?")) for part in (caught.value.got, caught.value.why, caught.value.instead))
    assert not (place / "x").exists()


def test_another_kind_of_agent_is_evaluated_too(place):
    """ParlAI's GPT-2 agent with a tiny random model, and an agent that is no neural model."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        ["Hello there, how are you today?"] * 20, vocab_size=300, special_tokens=["<|endoftext|>"]
    )
    (place / "gpt2").mkdir()
    tokenizer.save_model(str(place / "gpt2"))
    size = tokenizer.get_vocab_size()
    GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=128, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(place / "gpt2")
    common = ["--suite", "ordinary", "--limit", "6", "--judge", "wordlist", "--max-unscored", "1.0"]
    agents = {
        "gpt2": ["-m", "hugging_face/gpt2", "--model-name", "gpt2", "--label-truncate", "16", "--text-truncate", "64"],
        "random": ["-m", "repeat_query"],
    }
    for name, words in agents.items():
        done = warm(["safety_eval", *words, *common, "--out", f"run-{name}"], place)
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads((place / f"run-{name}" / "eval.json").read_text())
        assert len(found["suites"]["ordinary"]["records"]) == 6
        perplexity = [m for m in found["suites"]["ordinary"]["measures"] if m["name"] == "perplexity"][0]
        assert (perplexity["value"] is None) == (name == "random")
