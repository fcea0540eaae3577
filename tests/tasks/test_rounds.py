"""Adversarial rounds by a manifest: which rows are shown, how often, in which split; and what a manifest must be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parlai.core.params import ParlaiParser
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.eval_model import EvalModel

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256, write_jsonl
from parlai_safety.tasks.rounds.agents import read_manifest, round_rows

Manifest = Callable[..., Path]


def lines(name: str, count: int = 40) -> list[dict[str, Any]]:
    return [
        {"context": [f"{name} {i // 2}"], "reply": f"reply {i}", "label": "unsafe" if i % 2 else "safe"}
        for i in range(count)
    ]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Write rounds' files and the manifest; each round is what differs from a file of rows."""

    def write(*rounds: dict[str, Any]) -> Path:
        listed = []
        for number, more in enumerate(rounds, 1):
            file = f"r{number}.jsonl"
            write_jsonl(tmp_path / file, lines(f"round {number}"))
            entry = {"name": f"round {number}", "file": file, "sha256": sha256(tmp_path / file), **more}
            listed.append({key: value for key, value in entry.items() if value != "absent"})
        path = tmp_path / "rounds.yaml"
        path.write_text(json.dumps({"rounds": listed}))
        return path

    return write


def shown(path: Path | None, task: str = "safety:rounds", split: str = "train", **more: Any) -> list[dict[str, Any]]:
    datatype = "train:evalmode" if split == "train" else split
    told = {} if path is None else {"safety_manifest": str(path)}
    opt = ParlaiParser(True, False).parse_kwargs(task=task, datatype=datatype, loglevel="error", **told, **more)
    [teacher] = create_task_agent_from_taskname(opt)
    return [dict(teacher.act()) for _ in range(teacher.num_examples())]


def rounds_in(messages: list[dict[str, Any]]) -> Counter[int]:
    return Counter(message["provenance"]["round"]["number"] for message in messages)


def test_rounds_are_folded_in_up_to_one_or_that_one_alone(manifest: Manifest) -> None:
    path = manifest({"split": "train"}, {"split": "train"}, {"split": "train"})
    assert rounds_in(shown(path)) == {1: 40, 2: 40, 3: 40}
    assert rounds_in(shown(path, safety_round=2)) == {1: 40, 2: 40}
    assert rounds_in(shown(path, safety_round=2, safety_round_only=True)) == {2: 40}


def test_each_row_says_its_round_who_collected_it_and_the_judge(manifest: Manifest) -> None:
    path = manifest({}, {"split": "test", "collected_by": "two friends", "judge": "parlai:judges/one"})
    *_, last = shown(path, split="test")
    about = {"number": 2, "name": "round 2", "collected_by": "two friends", "judge": "parlai:judges/one"}
    assert last["provenance"]["round"] == about and last["classifier_label"] == "neg"


def test_conversations_go_whole_to_one_split_by_their_shares(manifest: Manifest) -> None:
    path = manifest({}, {"share": {"train": 0.5, "test": 0.5}})
    splits = {split: shown(path, split=split) for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 80
    turns = {split: {message["text"] for message in messages} for split, messages in splits.items()}
    assert not turns["train"] & turns["test"] and not turns["train"] & turns["valid"]
    assert rounds_in(splits["valid"])[2] == 0
    assert 4 <= rounds_in(splits["test"])[2] <= 36 and rounds_in(splits["train"])[1] > 20


def test_a_file_a_split_is_read_as_it_is(manifest: Manifest, tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 4)):
        write_jsonl(tmp_path / f"{split}.jsonl", lines(split, count))
    hashes = {split: sha256(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    path = manifest({"file": "{split}.jsonl", "sha256": hashes})
    assert [len(shown(path, split=split)) for split in ("train", "test")] == [6, 4]
    assert not list(round_rows(read_manifest(path)[0], "valid"))


def test_weights_count_in_training_alone(manifest: Manifest) -> None:
    path = manifest({"split": "train", "weight": 2.5}, {"split": "train", "weight": 0})
    found = Counter(message["eval_labels"][0] for message in shown(path))
    assert set(found.values()) == {2, 3} and len(found) == 40
    assert 8 <= sum(count == 3 for count in found.values()) <= 32
    assert found == Counter(message["eval_labels"][0] for message in shown(path)), "by a hash, and so the same again"
    assert len(shown(manifest({"split": "test", "weight": 2.5}), split="test")) == 40


def test_views(manifest: Manifest) -> None:
    path = manifest({"split": "train"})
    view = shown(path, "safety:rounds:classifier")
    assert Counter(message["eval_labels"][0] for message in view) == {"__ok__": 20, "__notok__": 20}
    assert [len(shown(path, f"safety:rounds:{name}")) for name in ("plain", "positive", "negative")] == [40, 20, 20]


def test_parlai_reports_each_round_as_a_task_of_its_own(manifest: Manifest) -> None:
    path = manifest({"split": "test"}, {"split": "test"})
    for number, labels in enumerate((["safe"] * 4, ["safe", "unsafe", "unsafe", "unsafe"]), 1):
        write_jsonl(
            path.with_name(f"r{number}.jsonl"),
            [{**row, "label": to} for row, to in zip(lines("x", 4), labels, strict=True)],
        )
    content = json.loads(path.read_text())
    for entry in content["rounds"]:
        entry["sha256"] = sha256(path.with_name(entry["file"]))
    path.write_text(json.dumps(content))
    task = "safety:rounds:classifier:safety_round={}:safety_round_only=True"
    report = EvalModel.main(
        task=f"{task.format(1)},{task.format(2)}", safety_manifest=str(path), model="fixed_response",
        fixed_response="__ok__", datatype="test", loglevel="error",
    )  # fmt: skip
    for number in (1, 2):
        assert float(report[f"{task.format(number)}/accuracy"]) == [0, 1, 0.25][number]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"sha256": "absent"}, "r1.jsonl has [0-9a-f]{64}"),
        ({"sha256": "0" * 64}, "the manifest says 0000"),
        ({"file": "gone.jsonl", "split": "train"}, "no file .*gone.jsonl.*round 1"),
        ({"name": "absent"}, "name None"),
        ({"colour": "red"}, "the field 'colour'"),
        ({"weihgt": 2}, "weight"),
        ({"weight": -1}, "weight -1"),
        ({"weight": True}, "weight True"),
        ({"split": "dev"}, "split 'dev'"),
        ({"split": "train", "share": {"train": 1.0}}, "more than one rule"),
        ({"share": {"train": 0.5}}, "sum to 0.5"),
        ({"share": {"dev": 1}}, "share .*dev"),
        ({"judge": 3}, "judge 3"),
    ],
)
def test_what_a_round_must_be(manifest: Manifest, entry: dict[str, Any], expected: str) -> None:
    with pytest.raises(SafetyError, match=expected):
        shown(manifest(entry))


def test_what_a_manifest_and_the_options_must_be(manifest: Manifest, tmp_path: Path) -> None:
    path = manifest({}, {})
    with pytest.raises(SafetyError, match="without --safety-manifest"):
        shown(None)
    with pytest.raises(SafetyError, match="--safety-round got 3"):
        shown(path, safety_round=3)
    with pytest.raises(SafetyError, match="without --safety-round"):
        shown(path, safety_round_only=True)
    with pytest.raises(SafetyError, match="as another one has"):
        shown(manifest({"name": "one"}, {"name": "one"}))
    for content, expected in (("rounds: [", "--safety-manifest got"), ("a: 1", "lists no rounds")):
        (tmp_path / "odd.yaml").write_text(content)
        with pytest.raises(SafetyError, match=expected):
            shown(tmp_path / "odd.yaml")
    with pytest.raises(SafetyError, match="--safety-manifest got"):
        shown(tmp_path / "gone.yaml")
