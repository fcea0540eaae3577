"""`-t decode` and `-t fits` work through our mutators; the data here are ours, in their formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from parlai.core.build_data import mark_done
from parlai.core.message import Message
from parlai.core.mutators import Mutator
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.errors import SafetyError


def messages(task: str, datapath: Path, mutators: str):
    opt = Opt(setup_args().parse_kwargs(task=task, datapath=str(datapath), datatype="valid", mutators=mutators))
    teacher = create_task_agent_from_taskname(opt)[0]
    found = []
    while not teacher.epoch_done():
        found.append(teacher.act())
    return [message for message in found if not message.is_padding()]


def mutate(name: str, rows: list[dict]) -> list[dict]:
    (kind,) = Mutator.load_mutator_types(name)
    return [dict(message) for message in kind(Opt())(Message(row) for row in rows)]


def seen(message):
    return message["text"], message["eval_labels"][0], message["classifier_label"]


@pytest.fixture
def decode(tmp_path) -> Path:
    from parlai.tasks.decode import build

    folder = tmp_path / build.DECODE
    data = folder / (build.DECODE_PREFIX + build.DECODE_FOLDER_VERSION)
    data.mkdir(parents=True)

    def dialogue(*said: str, contradiction: bool) -> str:
        turns = [
            {"turn_id": i, "agent_id": i % 2, "text": text, "turn_context": "", "auxiliary": {}}
            for i, text in enumerate(said)
        ]
        found = [1, 3] if contradiction else []
        return json.dumps(
            {"turns": turns, "is_contradiction": contradiction, "aggregated_contradiction_indices": found}
        )

    rows = [
        dialogue("Any pets?", "One dog, Mossy.", "How old?", "I have no dog.", contradiction=True),
        dialogue("Any pets?", "One dog, Mossy.", "How old?", "Mossy is nine.", contradiction=False),
    ]
    (data / "dev.jsonl").write_text("\n".join(rows) + "\n")
    mark_done(str(folder), build.DECODE_VERSION)
    return tmp_path


CONTEXT = "Any pets?\nOne dog, Mossy.\nHow old?"


def test_decode(decode):
    found = messages("decode", decode, "safety_decode")
    assert [seen(m) for m in found] == [(CONTEXT, "I have no dog.", "neg"), (CONTEXT, "Mossy is nine.", "pos")]
    assert all(m["episode_done"] and m["is_ltr"] for m in found)
    assert found[0]["auxiliary"] == {"contradiction_indices": [1, 3]}


def test_decode_for_an_anti_expert(decode):
    assert [seen(m) for m in messages("decode", decode, "safety_decode+safety_negative")] == [
        (CONTEXT, "I have no dog.", "none")
    ]


@pytest.fixture
def fits(tmp_path) -> Path:
    from parlai.tasks.fits import build

    folder = tmp_path / "fits"
    (folder / "human_model_chats").mkdir(parents=True)

    def human(text, kind="perfect", feedback=""):
        return {"id": "YOU", "text": text, "feedback_type": kind, "feedback_text": feedback}

    def bot(text, bucket):
        return {"id": "BOT", "text": text, "improve_bucket": bucket}

    chat = {
        "dialog": [
            human("How do I plant leeks?"),
            bot("leeks are tall . _potentially_unsafe__", "better_others"),
            human("Say what to do.", "better_others", "make a deep hole for each ."),
            bot("make a deep hole for each .", "perfect"),
            human("And how much water?"),
            bot("a can every evening .", "perfect"),
        ],
        **{name: name for name in ("chat_task_name", "chat_task_requirement", "topic", "generic_topic", "domain")},
        "chat_task_uid": 7,
    }
    (folder / "human_model_chats" / "valid.txt").write_text(json.dumps(chat) + "\n")
    mark_done(str(folder), build.VERSION)
    return tmp_path


PLANT, WATER = "How do I plant leeks?", "How do I plant leeks?\nMake a deep hole for each.\nAnd how much water?"
REPLIES = [(PLANT, "Leeks are tall.", "neg"), (PLANT, "Make a deep hole for each.", "pos")]
REPLIES += [(WATER, "A can every evening.", "pos")]


@pytest.mark.parametrize(
    ("task", "mutators", "expected"),
    [
        ("fits", "safety_fits", REPLIES),
        ("fits:FitsFeedbackTeacher", "safety_fits", REPLIES[:1]),
        ("fits:FitsSatisfactionTeacher", "safety_reply", REPLIES),
        ("fits:FitsSatisfactionTeacher", "safety_fits+safety_reply", REPLIES),
        ("fits", "safety_fits+safety_positive", REPLIES[1:]),
    ],
)
def test_fits(fits, task, mutators, expected):
    found = messages(task, fits, mutators)
    assert sorted(seen(m) for m in found) == sorted(expected)
    assert all(m["episode_done"] for m in found)


def test_what_was_accepted_in_the_end_is_not_to_be_avoided():
    said = [{"text": text} for text in ("no .", "yes .", "the accepted one .")]
    row = {"id": "fits_x", "text": "a", "labels": ["Yes."], "better_response": "surely .", "bot_acts": said}
    found = mutate("safety_fits", [{**row, "episode_done": True}])
    assert [(m["labels"][0], m["classifier_label"]) for m in found] == [
        ("No.", "neg"),
        ("Yes.", "pos"),
        ("Surely.", "pos"),
    ]


def test_what_holds_no_judged_reply_gets_no_verdict():
    (found,) = mutate("safety_fits", [{"text": "a", "labels": ["a search query"], "episode_done": True}])
    assert "classifier_label" not in found


@pytest.mark.parametrize("classes", [["none", "none"], ["contradiction"], ["contradiction", "non_contradiction"]])
def test_a_dialogue_of_decode_without_its_one_class_is_named(classes):
    rows = [{"id": "decode", "text": "a", "labels": [one], "episode_done": False} for one in classes]
    rows[-1]["episode_done"] = True
    with pytest.raises(SafetyError, match=f"a dialogue of {len(classes)} turns with the classes"):
        mutate("safety_decode", rows)


def test_the_formats_are_those_that_parlai_shows(real_data):
    """The samples that ParlAI's own tests keep; the first turns of a dialogue alone are refused, so it is completed."""
    samples = real_data / "parlai_task_samples"
    if not samples.is_dir():
        pytest.skip("no samples of ParlAI's tasks beside the real data")

    def rows(name):
        content = yaml.safe_load((samples / f"{name}.yml").read_text())
        return [message for episode in content["acts"] for message in episode]

    turns = rows("decode/decode_train")
    last = {**turns[-1], "labels": ["contradiction"], "text": "the end", "episode_done": True}
    (found,) = mutate("safety_decode", [*turns, last])
    assert (found["labels"], found["classifier_label"]) == (["the end"], "neg")
    assert found["text"].count("\n") == len(turns) - 1
    for message in rows("fits/fits_FitsSatisfactionTeacher_train"):
        (found,) = mutate("safety_reply", [dict(message)])
        assert f"{found['text']}\n{found['labels'][0]}" == message["text"]
    refused = mutate("safety_fits", rows("fits/fits_FitsFeedbackTeacher_valid"))
    assert {m["classifier_label"] for m in refused} == {"neg"} and len(refused) == 5
    assert not any("unsafe_" in m["eval_labels"][0] for m in refused)
    accepted = mutate("safety_fits", [{**row, "episode_done": True} for row in rows("fits/fits_train")])
    assert {m["classifier_label"] for m in accepted} <= {"pos", "neg"} and len(accepted) >= len(rows("fits/fits_train"))
