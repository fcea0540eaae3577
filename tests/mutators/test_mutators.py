"""A mutator's test is a folder: NAME.in.jsonl goes in, NAME.out.jsonl must come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt

from parlai_safety import inventory
from parlai_safety.errors import SafetyError

FILES = Path(__file__).parent / "files"
CASES = sorted(FILES.glob("*/*.in.jsonl"))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mutate(name: str, rows: list[dict], opt: Opt | None = None) -> list[dict]:
    (kind,) = Mutator.load_mutator_types(name)
    return [dict(message) for message in kind(opt or Opt())(Message(row) for row in rows)]


def options_beside(case: Path) -> Opt:
    """The options of NAME.opt.json, where `{folder}` is the folder of the case; none without that file."""
    path = case.with_name(case.name.replace(".in.jsonl", ".opt.json"))
    text = path.read_text() if path.is_file() else "{}"
    return Opt(json.loads(text.replace("{folder}", str(case.parent))))


def test_every_mutator_of_ours_has_a_folder():
    names = {item.name.removeprefix("--mutators ") for item in inventory.mutators()}
    assert names == {folder.name for folder in FILES.iterdir()}
    assert len(CASES) == 22


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name.split('.')[0]}")
def test_in_becomes_out(case):
    expected = read(case.with_name(case.name.replace(".in.", ".out.")))
    assert mutate(case.parent.name, read(case), options_beside(case)) == expected


def test_eval_labels_are_mutated_too():
    (row,) = mutate("safety_reply", [{"text": "a\nb", "eval_labels": ["__ok__"], "episode_done": True}])
    assert row["eval_labels"] == ["b"] and row["text"] == "a" and row["classifier_label"] == "pos"


def test_an_unknown_class_is_named():
    with pytest.raises(SafetyError, match="met the class '__maybe__'"):
        mutate("safety_reply", [{"text": "a\nb", "labels": ["__maybe__"], "episode_done": True}])


def test_they_compose():
    rows = [{"text": "a\nb", "labels": [label], "episode_done": True} for label in ("__ok__", "__notok__")]
    reply, positive = Mutator.load_mutator_types("safety_reply+safety_positive")
    found = [dict(m) for m in positive(Opt())(reply(Opt())(Message(row) for row in rows))]
    assert [m["labels"] for m in found] == [["b"]] and found[0]["classifier_label"] == "pos"


@pytest.mark.parametrize("name, dropped", [("safety_positive", "neg"), ("safety_negative", "pos")])
def test_a_pass_in_order_ends_though_its_last_episode_is_dropped(name, dropped):
    row = {"text": "a", "labels": ["b"], "classifier_label": dropped, "episode_done": True}
    (left,) = mutate(name, [row], Opt(datatype="train:ordered"))
    assert left["batch_padding"] and mutate(name, [row], Opt(datatype="train")) == []
