"""The file of an evaluation: read back as written, and refused where it is something else."""

from __future__ import annotations

import json

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.results import (
    MEASURES,
    Measure,
    folder_of,
    read_evaluation,
    write_evaluation,
)
from tests.evaluation.evaluations import evaluation


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "eval.json"
    write_evaluation(evaluation("base"), path)
    return path


def test_it_is_read_back_as_written(path, tmp_path):
    again = read_evaluation(path)
    write_evaluation(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert read_evaluation(path.parent) == again
    records = sum(len(suite.records) for suite in again.suites.values())
    assert records > 50
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines < 60 * records, "a record is one line"


def records(document):
    return document["suites"]["adversarial"]["records"]


def score(document, values):
    records(document)[0][document["record_fields"].index("p_unsafe")] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="another"), "is not a whole evaluation"),
        (lambda d: d.update(version=99), "format version 99"),
        (lambda d: d.pop("judges"), "is not a whole evaluation"),
        (lambda d: d["suites"]["adversarial"]["measures"][0].update(name="unsaf"), "called 'unsaf'"),
        (lambda d: d["suites"]["adversarial"]["records"][0].pop(), "is not a whole evaluation"),
        (lambda d: score(d, [float("nan"), 0.1]), "NaN is no number"),
        (lambda d: score(d, [7, 0.1]), "has the score 7"),
        (lambda d: score(d, ["0.1", 0.1]), "has the score '0.1'"),
        (lambda d: score(d, [0.1]), "1 scores for 2 judges"),
        (lambda d: records(d).append(records(d)[0]), "stand twice"),
    ],
)
def test_what_is_no_evaluation_is_refused(path, change, message):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(SafetyError, match=message):
        read_evaluation(path)


def test_no_file_and_half_a_file(path, tmp_path):
    with pytest.raises(SafetyError, match="There is no evaluation at"):
        read_evaluation(tmp_path / "nowhere")
    path.write_text(path.read_text(encoding="utf-8")[:300])
    with pytest.raises(SafetyError, match="is not a whole evaluation"):
        read_evaluation(path)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(float("nan"), None, None), (0.5, 0.4, None), (None, 0.1, 0.2), (0.5, float("inf"), 1.0)]
)
def test_a_measure_is_a_number_with_both_ends_or_none(value, low, high):
    with pytest.raises(SafetyError):
        Measure("unsafe", value, low, high)


def test_each_measure_says_what_it_is():
    for name, kind in MEASURES.items():
        assert kind.title and kind.about.endswith("."), name


def test_folders_of_suites_are_plain_and_differ():
    assert folder_of("adversarial") == "adversarial"
    names = ["task:a:b", "task:a-b", "file:/x/../y.jsonl", "file:/x/y.jsonl"]
    folders = [folder_of(name) for name in names]
    assert len(set(folders)) == 4
    assert all("/" not in folder and ":" not in folder and ".." not in folder for folder in folders), folders
