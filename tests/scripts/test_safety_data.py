"""`parlai safety_bake` and `parlai safety_filter`: data in, data out, and counts alone on the screen."""

from __future__ import annotations

import json

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.files import read_jsonl
from parlai_safety.scripts.safety_bake import SafetyBake
from parlai_safety.scripts.safety_filter import SafetyFilter


@pytest.fixture
def talk(tmp_path):
    rows = [
        {"context": ["Hi."], "reply": f"{word} {n}", "user_id": f"u{n % 2}"}
        for n, word in enumerate(["hi", "idiot"] * 6)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = tmp_path / "words.txt"
    words.write_text("idiot\n")
    return {"task": "safety:file", "safety_file": str(tmp_path / "talk.jsonl"), "judge": f"wordlist:{words}"}


def test_bake(talk, tmp_path, capsys):
    out = tmp_path / "out"
    SafetyBake.main(**talk, out=str(out), bake_target="safe", loglevel="error")
    shown = capsys.readouterr().out
    assert "replaced 6" in shown and "share flagged: 0.5000" in shown and "idiot" not in shown
    assert not any("idiot" in row["reply"] for row in read_jsonl(out / "baked.jsonl"))


def test_filter(talk, tmp_path, capsys):
    out = tmp_path / "out"
    SafetyFilter.main(**talk, out=str(out), loglevel="error")
    assert "kept 6, reply 6" in capsys.readouterr().out and len(list(read_jsonl(out / "kept.jsonl"))) == 6
    SafetyFilter.main(**talk, out=str(tmp_path / "by"), rule="author", filter_author_min=6, loglevel="error")
    assert "known 2, judged 2, dropped 1" in capsys.readouterr().out and (tmp_path / "by" / "authors.json").is_file()


@pytest.mark.parametrize("command", [SafetyBake, SafetyFilter])
@pytest.mark.parametrize("missing", ["judge", "out", "task"])
def test_what_is_missing_is_told(talk, tmp_path, command, missing):
    given = {**talk, "out": str(tmp_path / "out")}
    del given[missing]
    if missing == "task":
        del given["safety_file"]
    with pytest.raises(SafetyError, match=f"came without --{missing}"):
        command.main(**given, loglevel="error")


def test_contextual_replies_need_a_model(talk, tmp_path):
    with pytest.raises(SafetyError, match="names no model"):
        SafetyBake.main(**talk, out=str(tmp_path / "out"), bake_target="contextual", loglevel="error")
