"""`-t safety:contradiction` and the negative view of every task that has verdicts."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.corpus.load import SPLITS, load_contradiction
from parlai_safety.message import check_message


def messages(task: str, datatype: str = "valid", **options):
    teacher = create_task_agent_from_taskname(Opt(setup_args().parse_kwargs(task=task, datatype=datatype, **options)))[
        0
    ]
    return [teacher.get(episode) for episode in range(teacher.num_episodes())]


def label_of(message):
    return (message.get("labels") or message.get("eval_labels"))[0]


@pytest.mark.parametrize("split", SPLITS)
def test_both_replies_of_every_dialogue(split):
    rows = load_contradiction(split)
    found = messages("safety:contradiction", "train:ordered" if split == "train" else split)
    expected = {
        ("\n".join(r["context"]), x["text"], {"safe": "pos", "unsafe": "neg"}[x["label"]])
        for r in rows
        for x in r["replies"]
    }
    assert {(m["text"], label_of(m), m["classifier_label"]) for m in found} == expected
    assert len(found) == 2 * len(rows)


def test_the_provenance_names_the_turn_that_decides():
    message = messages("safety:contradiction")[0]
    row = load_contradiction("valid")[0]
    assert message["provenance"] == {
        key: row[key] for key in ("id", "twin", "kind", "family", "evidence", "unseen_family")
    }
    check_message(message, "a message")
    assert message["speaker"] == "bot" and message["episode_done"]


def test_the_views():
    n = len(load_contradiction("valid"))
    views = {view: messages(f"safety:contradiction:{view}") for view in ("plain", "positive", "negative", "classifier")}
    assert {view: len(found) for view, found in views.items()} == {
        "plain": 2 * n,
        "positive": n,
        "negative": n,
        "classifier": 2 * n,
    }
    assert Counter(label_of(m) for m in views["classifier"]) == {"__ok__": n, "__notok__": n}
    assert {m["classifier_label"] for m in views["negative"]} == {"none"}
    assert {m["classifier_label"] for m in views["positive"]} == {"pos"}
    full = messages("safety:contradiction")
    avoided = {(m["text"], label_of(m)) for m in full if m["classifier_label"] == "neg"}
    assert {(m["text"], label_of(m)) for m in views["negative"]} == avoided


def test_the_negative_view_of_the_other_tasks(tmp_path):
    tiny = [m for m in messages("safety:tiny") if m["classifier_label"] == "neg"]
    assert len(messages("safety:tiny:negative")) == len(tiny) > 0
    path = tmp_path / "rows.jsonl"
    rows = [{"reply": "plain talk"}, {"reply": "kind", "label": "safe"}, {"reply": "rude", "label": "unsafe"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = messages("safety:file:negative", safety_file=str(path))
    assert (label_of(found), found["classifier_label"]) == ("rude", "none")


def test_the_negative_view_of_real_labels(real_data):
    every = messages("safety:labels", safety_datapath=str(real_data))
    found = messages("safety:labels:negative", safety_datapath=str(real_data))
    assert len(found) == sum(m["classifier_label"] == "neg" for m in every) > 0
    assert {m["classifier_label"] for m in found} == {"none"}
