from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import (
    Example,
    among,
    conversation_marks,
    count_by,
    folder_examples,
    folds,
    halves,
    is_ordinary,
    label_file_examples,
    measuring_examples,
    ordinary_file_examples,
    split_of,
    tiny_examples,
)

rows = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["a", "b", "ordinary:c"])), max_size=80)


def make(pairs: list[tuple[int, str]]) -> list[Example]:
    return [Example([], f"reply {i}", i % 3 == 0, "bot", str(c), s) for i, (c, s) in enumerate(pairs)]


@given(rows, st.integers(0, 1000))
def test_halves_are_disjoint_by_conversation_whole_and_in_order(pairs: list[tuple[int, str]], seed: int) -> None:
    examples = make(pairs)
    halved = halves(examples, seed)
    assert not {e.conversation for e in halved.first} & {e.conversation for e in halved.second}
    place = {e.reply: i for i, e in enumerate(examples)}
    assert sorted([*halved.first, *halved.second], key=lambda e: place[e.reply]) == examples
    for half in halved:
        assert [place[e.reply] for e in half] == sorted(place[e.reply] for e in half)


@given(rows, st.integers(0, 1000), st.randoms())
def test_the_side_of_a_conversation_does_not_depend_on_the_order(
    pairs: list[tuple[int, str]], seed: int, generator: Any
) -> None:
    examples = make(pairs)
    shuffled = list(examples)
    generator.shuffle(shuffled)
    assert set(map(_key, halves(examples, seed).first)) == set(map(_key, halves(shuffled, seed).first))


def _key(example: Example) -> str:
    return example.reply


def test_each_source_is_halved_and_the_seed_matters() -> None:
    examples = [Example([], str(i), False, "bot", str(i), "a" if i % 5 else "b") for i in range(200)]
    halved = halves(examples, 7)
    for source, size in (("a", 80), ("b", 20)):
        assert [sum(e.source == source for e in half) for half in halved] == [size, size]
    assert halves(examples, 8).first != halved.first
    assert halves(examples, 7) == halved


def test_folds_keep_conversations_whole_and_use_every_fold() -> None:
    examples = [Example([], str(i), False, "bot", str(i // 4), "a") for i in range(100)]
    numbers = folds(examples, 5, 1)
    assert sorted(set(numbers)) == [0, 1, 2, 3, 4]
    assert all(numbers[i] == numbers[i - i % 4] for i in range(100))
    assert max(map(numbers.count, range(5))) <= 20


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_conversations_or_folds(count: int) -> None:
    examples = [Example([], str(i), False, "bot", str(i % 3), "a") for i in range(9)]
    with pytest.raises(SafetyError, match=f"{count} folds were asked of 3"):
        folds(examples, count, 1)


def write(path: Path, objects: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in objects)
    return path


LABELLED = {"context": ["Hi", "Hello"], "response": "Go away", "label": "unsafe", "source": "s", "speaker": "human"}


def test_label_file_rows_become_examples(tmp_path: Path) -> None:
    alone = {"context": [], "response": "Hi", "label": "safe", "source": "s", "speaker": "bot", "license": "MIT"}
    assert label_file_examples(write(tmp_path / "l.jsonl.gz", [LABELLED, alone])) == [
        Example(["Hi", "Hello"], "Go away", True, "human", "Hi", "s"),
        Example([], "Hi", False, "bot", "Hi", "s"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "fine"}, "Row 2 .* label 'fine'"),
        ({"speaker": None}, "Row 2 .* speaker None"),
        ({"response": 3}, "Row 2 .* int as 'response'"),
        ({"context": "Hi"}, "Row 2 .* str as 'context'"),
        ({"context": [1]}, "Row 2 .* not text"),
    ],
)
def test_a_row_out_of_format_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "l.jsonl.gz", [LABELLED, LABELLED | change])
    with pytest.raises(SafetyError, match=message):
        label_file_examples(path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    row = {name: value for name, value in LABELLED.items() if name != "source"}
    with pytest.raises(SafetyError, match="no field 'source'"):
        label_file_examples(write(tmp_path / "l.jsonl.gz", [row]))


def test_ordinary_turns_are_sampled_one_a_dialogue_with_alternating_speakers(tmp_path: Path) -> None:
    dialogues = [{"turns": [f"{i}.{j}" for j in range(6)], "source": "chat"} for i in range(60)]
    path = write(tmp_path / "o.jsonl.gz", [*dialogues, {"turns": ["alone"], "source": "chat"}])
    examples = ordinary_file_examples(path, count=40, seed=3)
    assert len(examples) == len({e.conversation for e in examples}) == 40
    for example in examples:
        dialogue, turn = example.reply.split(".")
        assert example.context == [f"{dialogue}.{j}" for j in range(int(turn))]
        assert example.speaker == ("bot" if int(turn) % 2 else "human")
        assert is_ordinary(example) and not example.unsafe
    assert {e.speaker for e in examples} == {"bot", "human"}
    assert ordinary_file_examples(path, count=40, seed=3) == examples
    assert ordinary_file_examples(path, count=40, seed=4) != examples
    assert len(ordinary_file_examples(path, count=999, seed=3)) == 60


def test_a_folder_mixes_labelled_and_ordinary(tmp_path: Path) -> None:
    write(tmp_path / "safety_labels.jsonl.gz", [LABELLED] * 10)
    write(tmp_path / "ordinary_dialogue.jsonl.gz", [{"turns": ["a", "b"], "source": "chat"}] * 30)
    assert count_by(folder_examples(tmp_path, seed=1, ordinary_share=0.5), "source") == {
        "ordinary:chat": {"safe": 5, "unsafe": 0},
        "s": {"safe": 0, "unsafe": 10},
    }
    assert len(folder_examples(tmp_path, seed=1)) == 20
    assert len(folder_examples(tmp_path, seed=1, ordinary_share=0)) == 10
    with pytest.raises(SafetyError, match="-1"):
        folder_examples(tmp_path, seed=1, ordinary_share=-1)


def test_the_shipped_corpus_has_both_labels_and_ordinary_talk() -> None:
    examples = tiny_examples("valid")
    counts = count_by(examples, "source")
    assert set(counts) == {"tiny", "ordinary:tiny"}
    assert counts["tiny"]["safe"] > 0 and counts["tiny"]["unsafe"] > 0
    assert counts["ordinary:tiny"]["safe"] > 0 and counts["ordinary:tiny"]["unsafe"] == 0
    # Every scored turn answers a person, so an odd number of turns stands before it.
    assert all(e.speaker == "bot" and len(e.context) % 2 for e in examples)


@given(rows, st.integers(0, 12))
def test_marks_tell_the_conversations_that_were_given(pairs: list[tuple[int, str]], cut: int) -> None:
    examples = make(pairs)
    inside = [e for e in examples if int(e.conversation) < cut]
    assert among(examples, conversation_marks(inside)) == [int(e.conversation) < cut for e in examples]


def test_marks_are_short_ignore_case_and_damage_is_named() -> None:
    marks = conversation_marks([LABELLED_EXAMPLE, LABELLED_EXAMPLE._replace(conversation=" hi ")])
    assert len(marks) == 8 and "Hi" not in marks
    with pytest.raises(SafetyError, match="cannot be read"):
        among([LABELLED_EXAMPLE], "not base64!")


LABELLED_EXAMPLE = Example(["Hi"], "Go away", True, "bot", "Hi", "s")


def test_what_judges_are_measured_on(tmp_path: Path) -> None:
    shipped = measuring_examples(None, seed=1)
    assert shipped.examples == tiny_examples("test") and len(shipped.files) == 2
    rows = [LABELLED | {"context": [f"Hi {i}"]} for i in range(200)]
    labels = write(tmp_path / "safety_labels.jsonl.gz", rows)
    write(tmp_path / "ordinary_dialogue.jsonl.gz", [{"turns": [f"a {i}", "b"], "source": "c"} for i in range(300)])
    folder = measuring_examples(tmp_path, seed=1)
    assert 0 < len(folder.examples) < 100 and {split_of(e.conversation) for e in folder.examples} == {"test"}
    assert {is_ordinary(e) for e in folder.examples} == {True, False}
    assert sorted(folder.files) == ["ordinary_dialogue.jsonl.gz", "safety_labels.jsonl.gz"]
    assert len(measuring_examples(labels, seed=1).examples) == 200
    write(labels, rows[:1])
    write(tmp_path / "ordinary_dialogue.jsonl.gz", [{"turns": ["train", "b"], "source": "c"}])
    with pytest.raises(SafetyError, match="test split"):
        measuring_examples(tmp_path, seed=1)
