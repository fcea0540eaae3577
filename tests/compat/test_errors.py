"""Bad input to ParlAI's own file task and mutator option ends in our three sentences."""

from __future__ import annotations

import json

import pytest
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.errors import SafetyError

GOOD = {"dialog": [[{"id": "a", "text": "hi"}, {"id": "b", "text": "hello"}]]}


def teacher(path):
    opt = setup_args().parse_kwargs(task="jsonfile", jsonfile_datapath=str(path), datatype="valid")
    return create_task_agent_from_taskname(Opt(opt))[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no exchange"),
        (json.dumps({"dialog": []}), "holds no exchange"),
        (json.dumps(GOOD) + "\n{broken", "Line 2 of .* holds no JSON"),
        (json.dumps({"text": "a"}), "Line 1 of .* holds no list 'dialog'"),
    ],
)
def test_a_bad_conversation_file_is_named(tmp_path, content, words):
    path = tmp_path / "talk.jsonl"
    path.write_text(content)
    with pytest.raises(SafetyError, match=words):
        teacher(path)


def test_a_good_conversation_file_reads_as_before(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps(GOOD))
    assert teacher(path).num_examples() == 1


def test_our_fields_of_a_turn_are_carried_and_checked(tmp_path):
    path = tmp_path / "talk.jsonl"
    answer = {"id": "b", "text": "go away", "classifier_label": "neg"}
    path.write_text(json.dumps({"dialog": [[{"id": "a", "text": "hi"}, answer]]}))
    assert teacher(path).get(0)["classifier_label"] == "neg"
    path.write_text(json.dumps({"dialog": [[{"id": "a", "text": "hi"}, {**answer, "classifier_label": "bad"}]]}))
    with pytest.raises(SafetyError, match="'classifier_label' = 'bad'"):
        teacher(path)


def test_an_unknown_mutator_is_named():
    with pytest.raises(SafetyError, match="--mutators got 'flaten'.*Did you mean 'flatten'"):
        Mutator.load_mutator_types("flaten")
    assert [kind.__name__ for kind in Mutator.load_mutator_types("flatten+safety_plain")][1] == "PlainMutator"
