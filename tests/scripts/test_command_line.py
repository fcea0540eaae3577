"""The command line as a user meets it, in new processes: one start costs seconds, so each test does much or is warm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.scripts.warm import warm

PARLAI = [str(Path(sys.executable).parent / "parlai")]
MODULE = [sys.executable, "-m", "parlai_safety"]
SMALL = "--n-layers 1 --embedding-size 16 --ffn-size 32 --n-heads 2 --max-train-steps 10 -lstep 5 -bs 4".split()


def run(command: list[str], cwd: Path, *, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        input=stdin,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        timeout=300,
        check=False,
    )


@pytest.fixture
def talk(tmp_path) -> Path:
    path = tmp_path / "talk.jsonl"
    rows = [{"context": ["How are you?"], "reply": "Fine, thanks.", "label": "safe"}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_train_eval_and_talk_with_plain_parlai(talk, tmp_path):
    """The whole life of a model, with the default learning-rate scheduler, which stock ParlAI cannot start."""
    model = ["-mf", str(tmp_path / "m" / "model")]
    task = ["-t", "safety:file", "--safety-file", str(talk)]
    # Long enough to know the one reply by heart from any initial weights: an untrained model may say nothing at all.
    learn = [*SMALL, "--max-train-steps", "200", "--optimizer", "adam", "-lr", "0.02"]
    done = run([*PARLAI, "train_model", "-m", "safety:cringe", *task, *model, *learn], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ppl" in done.stdout + done.stderr

    done = warm(["eval_model", *task, *model, "-dt", "valid"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]

    done = warm(["interactive", *model], tmp_path, stdin="How are you?\n[EXIT]\n")
    assert "thanks" in done.stdout.split("Enter Your Message")[1], done.stdout[-500:] + done.stderr[-2000:]

    done = warm(["self_chat", *model, "--num-self-chats", "1", "--selfchat-max-turns", "2"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]

    done = run([*MODULE, "display_data", "-t", "safety:tiny", "-n", "2", "-dt", "valid"], tmp_path)
    assert done.returncode == 0 and "loaded" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("door", [PARLAI, MODULE], ids=["parlai", "python -m parlai_safety"])
def test_both_doors_list_the_same(door, tmp_path):
    done = run([*door, "safety_plugins"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "repair" not in done.stderr
    for word in ("-m safety:cringe", "-t safety:tiny:classifier", "--mutators safety_reply", "wordlist[:FILE]"):
        assert word in done.stdout


def test_the_doctor_fits_a_screen_and_names_what_is_missing(tmp_path):
    done = run([*PARLAI, "safety_doctor"], tmp_path, SAFETY_DATA=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lr-scheduler" in done.stdout and "applied" in done.stdout
    assert "pip install '.[crowd]'" in done.stdout
    assert "plain `parlai` knows us" in done.stdout
    assert len(done.stdout.splitlines()) <= 50


CASES = [
    ("wrong option", ["--cringe-alpha", "lots"], None, "--cringe-alpha got 'lots'"),
    ("out of range", ["--cringe-k", "0"], None, "--cringe-k got '0'"),
    ("empty file", [], "", "holds no rows"),
    ("broken line", [], '{"reply": "a"}\n{"reply"\n', "Line 2 of"),
    ("unknown verdict", [], '{"reply": "a", "label": "bad"}\n', "'label' = 'bad'"),
]


def three_sentences(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if words in line]
    assert told and len(re.findall(r"[.?](?: |$)", told[-1])) >= 3, "what was got, why, what to type instead"
    assert words in done.stderr, done.stderr[-1500:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "content", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_input_ends_in_three_sentences_and_writes_nothing(talk, tmp_path, arguments, content, words):
    if content is not None:
        talk.write_text(content)
    command = ["train_model", "-m", "safety:cringe", "-t", "safety:file", "--safety-file", str(talk)]
    three_sentences(warm([*command, "-mf", str(tmp_path / "m" / "model"), *SMALL, *arguments], tmp_path), words)
    assert not list((tmp_path / "m").glob("*")) if (tmp_path / "m").exists() else True


def new(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return run([*PARLAI, *arguments], cwd)


@pytest.mark.parametrize(
    ("start", "arguments", "words"),
    [
        (new, ["-m", "safety:crnge", "-t", "safety:tiny"], "Did you mean 'safety:cringe'"),
        (warm, ["-m", "safety:cringe", "-t", "safety:tinny"], "Did you mean 'safety:tiny"),
        (
            warm,
            ["-m", "safety:cringe", "-t", "safety:tiny", "--mutators", "safty_reply"],
            "Did you mean 'safety_reply'",
        ),
    ],
)
def test_unknown_names_suggest_their_neighbours(tmp_path, start, arguments, words):
    command = ["train_model", "-mf", str(tmp_path / "m" / "model"), *arguments]
    three_sentences(start(command, tmp_path), words)


def test_a_users_own_parlai_internal_goes_on_working(tmp_path):
    """As a namespace it is joined with ours; as a regular package it hides ours, and our own door still works."""
    scripts = tmp_path / "parlai_internal" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "theirs.py").write_text(
        "from parlai.core.script import ParlaiScript, register_script\n"
        "from parlai.core.params import ParlaiParser\n"
        "@register_script('their_script')\n"
        "class Theirs(ParlaiScript):\n"
        "    @classmethod\n"
        "    def setup_args(cls): return ParlaiParser(False, False, 'theirs')\n"
        "    def run(self): print('THEIRS RAN')\n"
    )
    path = {"PYTHONPATH": str(tmp_path)}
    assert "THEIRS RAN" in run([*PARLAI, "their_script"], tmp_path, **path).stdout
    assert "-m safety:cringe" in run([*PARLAI, "safety_plugins"], tmp_path, **path).stdout

    for folder in (scripts, scripts.parent):
        (folder / "__init__.py").write_text("")
    assert "THEIRS RAN" in run([*PARLAI, "their_script"], tmp_path, **path).stdout
    assert "-m safety:cringe" in run([*MODULE, "safety_plugins"], tmp_path, **path).stdout
    doctor = run([*MODULE, "safety_doctor"], tmp_path, **path).stdout
    assert "shadowed by your own regular package" in doctor and "extend_path" in doctor

    assert "-m safety:cringe" in run([*MODULE, "safety_plugins"], tmp_path, **path).stdout
    mutated = [*MODULE, "display_data", "-t", "safety:tiny", "-dt", "valid", "-n", "1", "--mutators", "safety_plain"]
    mutators = scripts.parent / "mutators"
    mutators.mkdir()
    (mutators / "__init__.py").write_text("")
    assert run(mutated, tmp_path, **path).returncode == 0
    (mutators / "__init__.py").unlink()

    (scripts / "aaa.py").write_text("import no_such_module")
    for folder in (scripts, scripts.parent):
        (folder / "__init__.py").unlink()
    assert "does NOT know us" in run([*MODULE, "safety_doctor"], tmp_path, **path).stdout
    (scripts / "aaa.py").unlink()

    joined = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'
    for folder in (scripts, scripts.parent):
        (folder / "__init__.py").write_text(joined)
    assert "-m safety:cringe" in run([*PARLAI, "safety_plugins"], tmp_path, **path).stdout


def test_a_broken_module_of_ours_is_told_not_swallowed(tmp_path):
    """ParlAI drops an ImportError of a hook in silence; ours is printed, and ParlAI's own commands go on."""
    code = (
        "import sys; sys.modules['parlai_safety.inventory'] = None\n"
        "from parlai.core.script import superscript_main; superscript_main(['help'])"
    )
    done = run([sys.executable, "-c", code], ROOT)
    assert "parlai_safety could not be registered" in done.stderr
    assert "train_model" in done.stdout
