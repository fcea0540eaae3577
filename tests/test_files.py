"""Files are whole or absent, and broken input is named by its line."""

from __future__ import annotations

import gzip
import json

import pytest

from parlai_safety import files
from parlai_safety.errors import SafetyError, did_you_mean


def test_an_interrupted_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old\n")
    with pytest.raises(KeyboardInterrupt), files.completed(path) as stream:
        stream.write("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"rate": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_jsonl_round_trip_plain_and_gzip(tmp_path):
    rows = [{"a": 1}, {"b": "ü\u2028"}]
    assert files.write_jsonl(tmp_path / "a.jsonl", rows) == 2
    assert list(files.read_jsonl(tmp_path / "a.jsonl")) == rows
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n\n" for row in rows)
    assert list(files.read_jsonl(tmp_path / "a.jsonl.gz")) == rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ('{"a": 1}\n{"a": \n', "Line 2 of"),
        ("[1, 2]\n", "holds a JSON list"),
    ],
)
def test_broken_input_is_named(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(SafetyError, match=words):
        list(files.read_jsonl(path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": "\xff"}\n', "cannot be read to its end"),
        ("a.jsonl.gz", b'{"a": 1}\n', "cannot be read to its end"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 50, mtime=0)[:-9], "cannot be read to its end"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', "lone surrogate"),
    ],
)
def test_bytes_that_are_no_text_are_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SafetyError, match=words):
        list(files.read_jsonl(path))


def test_whole_surrogate_pairs_are_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n')
    assert list(files.read_jsonl(path)) == [{"a": "\U0001f600"}]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SafetyError, match="There is no file"):
        list(files.read_jsonl(tmp_path / "none.jsonl"))


def test_errors_have_three_sentences_and_survive_pickling():
    import pickle

    error = SafetyError("Got this", "That cannot work", "Type that?")
    assert str(error) == "Got this. That cannot work. Type that?"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_near_names_are_suggested():
    assert did_you_mean("crnge", ["cringe", "judge"], "no") == "Did you mean 'cringe'?"
    assert did_you_mean("xyz", ["cringe"], "The names are: cringe.") == "The names are: cringe."
