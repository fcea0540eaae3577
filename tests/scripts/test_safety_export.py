"""`parlai safety_export`: what it says, and what it refuses."""

from __future__ import annotations

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.scripts.safety_export import SafetyExport
from tests.agents.small import TRANSFORMER, run, write_talk


def test_it_writes_a_folder_and_names_its_files(tmp_path, capsys):
    talk = write_talk(tmp_path / "talk.jsonl")
    more = {"task": "safety:file", "safety_file": str(talk), "max_train_steps": 1, "batchsize": 2}
    loop, _ = run(model="safety:mle", model_file=str(tmp_path / "model"), **more, **TRANSFORMER)
    loop.agent.save()
    SafetyExport.main(model_file=str(tmp_path / "model"), out=str(tmp_path / "a" / "out"), licence="mit")
    told = capsys.readouterr().out
    for name in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json", "README.md"):
        assert (tmp_path / "a" / "out" / name).is_file() and name in told
    assert "license: mit" in (tmp_path / "a" / "out" / "README.md").read_text()
    SafetyExport.main(model_file=str(tmp_path / "model"), out=str(tmp_path / "b"), tokenizer=False, dtype="bf16")
    assert not list((tmp_path / "b").glob("tokenizer*"))
    small, large = ((tmp_path / place / "model.safetensors").stat().st_size for place in ("b", "a/out"))
    assert small < 0.8 * large


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"out": "o"}, "without --model-file"),
        ({"model_file": "m"}, "without --out"),
        ({"model_file": "m", "out": "o", "to": "onnx"}, "--to got 'onnx'"),
        ({"model_file": "m", "out": "o", "dtype": "int8"}, "--dtype got 'int8'"),
    ],
)
def test_what_it_was_not_told_is_named(options, match):
    with pytest.raises(SafetyError, match=match):
        SafetyExport.main(**options)
