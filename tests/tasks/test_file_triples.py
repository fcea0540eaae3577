"""Rows of `safety:file` with a chosen, a rejected and a toxic reply."""

from __future__ import annotations

import json

import pytest
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.errors import SafetyError
from parlai_safety.tasks.file.agents import read_row

PAIR = {"context": ["Hi"], "chosen": "Hello.", "rejected": "Go away."}
SCORES = {"chosen": 0.1, "rejected": 0.9, "toxic": [0.95]}


@pytest.mark.parametrize(
    ("written", "read"),
    [("Go, lamp.", ["Go, lamp."]), (["Go, lamp.", "Away."], ["Go, lamp.", "Away."]), ([], []), (None, [])],
)
def test_a_message_holds_the_toxic_replies_as_a_list_and_no_scores(written, read, tmp_path):
    path = tmp_path / "triples.jsonl"
    path.write_text(json.dumps({**PAIR, "toxic": written, "scores": SCORES, "provenance": {"seed": 1}}) + "\n")
    opt = Opt(setup_args().parse_kwargs(task="safety:file", datatype="valid", safety_file=str(path)))
    message = create_task_agent_from_taskname(opt)[0].get(0)
    assert (message["text"], message["labels"], message["rejected"]) == ("Hi", ["Hello."], ["Go away."])
    assert message["toxic"] == read and message["classifier_label"] == "pos"
    assert message["provenance"] == {"seed": 1} and "scores" not in message and "chosen" not in message


def test_a_pair_without_the_field_has_none():
    assert "toxic" not in read_row(PAIR, "row 1").fields


def test_a_reply_may_have_toxic_ones_beside_it_too():
    assert read_row({"reply": "Hello.", "toxic": "Go, lamp."}, "row 1").fields == {"toxic": ["Go, lamp."]}


@pytest.mark.parametrize("wrong", [3, [3], [["x"]], "", [" "], {"text": "x"}])
def test_a_toxic_reply_that_is_no_text_is_told(wrong):
    with pytest.raises(SafetyError, match="row 1 has 'toxic' = .*a text, a list of texts, or null"):
        read_row({**PAIR, "toxic": wrong}, "row 1")
