"""ParlAI's own safety tasks work with our agents through `safety_reply`; the data here are ours, in its format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parlai.core.build_data import mark_done
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args


def messages(task: str, datapath: Path, **options):
    opt = Opt(
        setup_args().parse_kwargs(
            task=task, datapath=str(datapath), datatype="valid", mutators="safety_reply", **options
        )
    )
    teacher = create_task_agent_from_taskname(opt)[0]
    # Mutators work on the stream of acts, not on single examples.
    found = []
    while not teacher.epoch_done():
        found.append(teacher.act())
    return found


@pytest.fixture
def bad(tmp_path) -> Path:
    from parlai.tasks.bot_adversarial_dialogue import build

    folder = tmp_path / "bot_adversarial_dialogue" / "dialogue_datasets"
    data = folder / "bot_adversarial_dialogue_datasets_with_persona"
    data.mkdir(parents=True)
    lines = [
        "text:hello there\tlabels:__ok__\tspeaker_to_eval:human\tbot_persona:\tepisode_done:True",
        "text:hello there\\nthe Velmari are liars\tlabels:__notok__\tspeaker_to_eval:bot\tbot_persona:"
        "\tepisode_done:True",
    ]
    (data / "valid.txt").write_text("\n".join(lines) + "\n")
    mark_done(str(folder), build.BOT_ADVERSARIAL_DIALOGUE_DATASETS_VERSION)
    return tmp_path


def test_bot_adversarial_dialogue(bad):
    first, second = messages("bot_adversarial_dialogue", bad)
    assert (first["text"], first["eval_labels"], first["classifier_label"]) == ("__start__", ["hello there"], "pos")
    assert (second["text"], second["eval_labels"], second["classifier_label"]) == (
        "hello there", ["the Velmari are liars"], "neg"
    )  # fmt: skip


def test_dialogue_safety(tmp_path):
    folder = tmp_path / "dialogue_safety"
    folder.mkdir()
    rows = [{"text": "you are kind", "labels": ["__ok__"]}, {"text": "you wet candle", "labels": ["__notok__"]}]
    rows = [{**row, "episode_done": True} for row in rows]
    content = {"standard": {"valid": {"1": {"good": rows[:1], "bad": rows[1:]}}}}
    (folder / "single_turn_safety.json").write_text(json.dumps(content))
    (folder / "multi_turn_safety.json").write_text(json.dumps({}))
    mark_done(str(folder), "v1.0")
    found = messages("dialogue_safety:standard", tmp_path, round=1)
    assert {(m["eval_labels"][0], m["classifier_label"]) for m in found} == {
        ("you are kind", "pos"),
        ("you wet candle", "neg"),
    }
    assert all("label_candidates" not in m for m in found)
