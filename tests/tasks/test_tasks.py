"""Teachers: what a message looks like in each view, splits without leaks, errors that name the place."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.corpus.load import load_adversarial, load_ordinary
from parlai_safety.errors import SafetyError
from parlai_safety.message import check_message
from parlai_safety.tasks.common import PARTS, Row, classifier_view, split_of


def messages(task: str, datatype: str = "valid", **options):
    """All messages of a task as its agent would observe them, with labels under "labels"."""
    opt = Opt(setup_args().parse_kwargs(task=task, datatype=datatype, **options))
    teacher = create_task_agent_from_taskname(opt)[0]
    found = []
    for episode in range(teacher.num_episodes()):
        found.append(teacher.get(episode))
    return found


def labels_of(message):
    return message.get("labels") or message.get("eval_labels")


def test_tiny_holds_each_bot_turn_and_each_labelled_reply_once():
    ordinary = sum(len(dialogue["turns"]) // 2 for dialogue in load_ordinary("valid"))
    replies = Counter(reply["label"] for row in load_adversarial("valid") for reply in row["replies"])
    found = Counter(message["classifier_label"] for message in messages("safety:tiny"))
    assert found == {"none": ordinary, "pos": replies["safe"], "neg": replies["unsafe"]}


def test_the_views_of_tiny():
    plain = messages("safety:tiny:plain")
    assert {message["classifier_label"] for message in plain} == {"none"}
    assert len(plain) == len(messages("safety:tiny"))
    assert "neg" not in {message["classifier_label"] for message in messages("safety:tiny:positive")}
    classified = messages("safety:tiny:classifier")
    assert {labels_of(message)[0] for message in classified} == {"__ok__", "__notok__"}
    assert len(messages("safety:tiny:ordinary")) + len(messages("safety:tiny:adversarial")) == len(plain)


@pytest.mark.parametrize("view", ["", ":plain", ":positive", ":classifier", ":ordinary", ":adversarial"])
def test_every_message_of_tiny_fits_the_schema(view):
    for message in messages(f"safety:tiny{view}"):
        check_message(message, "a message")
        assert message["text"].strip() and labels_of(message)[0].strip()
        assert message["episode_done"]


def test_the_classifier_sees_the_reply_as_the_last_line():
    row = load_adversarial("valid")[0]
    message = next(
        m for m in messages("safety:tiny:classifier") if m["text"].startswith("\n".join(row["context"]) + "\n")
    )
    assert message["text"].split("\n")[-1] in [reply["text"] for reply in row["replies"]]


def test_an_empty_reply_is_not_classified_by_the_turn_before_it():
    assert classifier_view(Row(["Hello.", "Go away."], " ", True, {})) is None
    assert classifier_view(Row([], "Go away.", True, {}))["labels"] == ["__notok__"]


def rows_file(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_file_reads_every_spelling(tmp_path):
    path = rows_file(
        tmp_path,
        {"context": ["a b", "c"], "reply": "d", "label": "unsafe"},
        {"text": "a\nb", "labels": ["c", "other"], "classifier_label": "pos"},
        {"response": "alone"},
    )
    first, second, third = messages("safety:file", safety_file=path)
    assert (first["text"], labels_of(first), first["classifier_label"]) == ("a b\nc", ["d"], "neg")
    assert (second["text"], labels_of(second), second["classifier_label"]) == ("a\nb", ["c"], "pos")
    assert (third["text"], labels_of(third), third["classifier_label"]) == ("__start__", ["alone"], "none")


def test_file_takes_one_file_a_split(tmp_path):
    (tmp_path / "t.train.jsonl").write_text('{"reply": "x"}\n')
    (tmp_path / "t.valid.jsonl").write_text('{"reply": "y"}\n{"reply": "z"}\n')
    pattern = str(tmp_path / "t.{split}.jsonl")
    assert len(messages("safety:file", "train:ordered", safety_file=pattern)) == 1
    assert len(messages("safety:file", "valid", safety_file=pattern)) == 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"context": ["a"]}, "row 1 of .* no reply to learn from"),
        ({"context": "a", "reply": "b"}, "has a str as 'context'"),
        ({"context": ["a", 3, None], "reply": "b"}, "a turn in 'context' that is not text"),
        ({"text": 5, "reply": "b"}, "has a int as 'text'"),
        ({"labels": "xyz"}, "has a str as 'labels'"),
        ({"reply": ["b"]}, "has a list as 'reply'"),
        ({"reply": "b", "label": "safe", "classifier_label": "neg"}, "contradict each other"),
        ({"reply": "b", "label": "bad"}, "'label' = 'bad'.*one of safe, unsafe"),
        ({"reply": "b", "classifier_label": "negative"}, "Did you mean 'neg'"),
        ({"reply": "b", "speaker": "robot"}, "'speaker' = 'robot'"),
    ],
)
def test_file_names_what_is_wrong(tmp_path, row, words):
    with pytest.raises(SafetyError, match=words):
        messages("safety:file", safety_file=rows_file(tmp_path, row))


@pytest.mark.parametrize("task", ["safety:labels", "safety:pairs", "safety:chat"])
def test_missing_data_is_told_in_three_sentences(task, tmp_path, monkeypatch):
    monkeypatch.delenv("SAFETY_DATA", raising=False)
    with pytest.raises(SafetyError, match="neither --safety-datapath nor SAFETY_DATA is set"):
        messages(task)
    with pytest.raises(SafetyError, match="There is no file"):
        messages(task, safety_datapath=str(tmp_path))


@pytest.fixture
def small_data(tmp_path):
    """The three files in their real layout, with forty conversations each."""

    def write(name, rows):
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)

    labels = []
    for i in range(40):
        for j, speaker in ((0, "human"), (1, "bot")):
            row = {"context": [f"talk {i}"][:j], "response": f"reply {i} {j}" if j else f"talk {i}"}
            row |= {"label": "unsafe" if j else "safe", "source": "s", "speaker": speaker, "license": "MIT"}
            labels.append(row)
    write("safety_labels.jsonl.gz", labels)
    pairs = [{"context": [f"talk {i}"], "chosen": "yes", "rejected": "no", "source": "s"} for i in range(40)]
    write("preference_pairs.jsonl.gz", pairs)
    chat = [{"turns": [f"talk {i}", "b", "c", "d", "e"], "source": "s"} for i in range(40)]
    write("ordinary_dialogue.jsonl.gz", chat)
    return str(tmp_path)


SPLITS = ("train:ordered", "valid", "test")


def test_splits_share_no_conversation_and_lose_none(small_data):
    for task, count in (("safety:labels", 80), ("safety:pairs", 40), ("safety:chat", 160)):
        found = [messages(task, split, safety_datapath=small_data) for split in SPLITS]
        assert sum(map(len, found)) == count
        assert all(found)
        firsts = [
            {(m["text"] if m["text"] != "__start__" else labels_of(m)[0]).split("\n")[0] for m in split}
            for split in found
        ]
        if task != "safety:chat":  # its context is cut to the last turns, which these dialogues share
            assert not firsts[0] & firsts[1] and not firsts[0] & firsts[2] and not firsts[1] & firsts[2]


@pytest.mark.parametrize(
    ("task", "name", "row", "words"),
    [
        ("labels", "safety_labels", {"label": "bad"}, "Row 41 of .* has label 'bad'"),
        ("labels", "safety_labels", {"label": None}, "Row 41 of .* has label None"),
        ("labels", "safety_labels", {"context": "a"}, "has a str as 'context'"),
        ("pairs", "preference_pairs", {"context": []}, "Row 41 of .* has 0 turns in 'context'"),
        ("pairs", "preference_pairs", {"rejected": None}, "as 'rejected'"),
        ("chat", "ordinary_dialogue", {"turns": []}, "has 0 turns in 'turns'"),
        ("chat", "ordinary_dialogue", {"turns": ["a", 1]}, "that is not text"),
    ],
)
def test_a_wrong_row_of_real_data_is_named_and_never_counted_as_safe(small_data, task, name, row, words):
    path = Path(small_data) / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = stream.readlines()[:40]
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines([*lines, json.dumps({**json.loads(lines[-1]), **row}) + "\n"])
    with pytest.raises(SafetyError, match=words):
        messages(f"safety:{task}", safety_datapath=small_data)


def test_nothing_is_left_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = messages("safety:tiny:adversarial", "train:stream")
    assert len(found) == sum(len(row["replies"]) for row in load_adversarial("train"))
    assert list(tmp_path.iterdir()) == []


def test_a_reply_to_avoid_is_no_reference_of_f1(tmp_path):
    """The agent repeats the unsafe reply: no F1 comes of it, while its own metrics still count."""
    from parlai.core.message import Message
    from parlai.core.metrics import AverageMetric

    opt = setup_args().parse_kwargs(
        task="safety:file",
        datatype="valid",
        safety_file=rows_file(tmp_path, {"context": ["hi"], "reply": "you lamp", "label": "unsafe"}),
    )
    teacher = create_task_agent_from_taskname(Opt(opt))[0]
    teacher.act()
    teacher.observe(Message({"text": "you lamp", "metrics": {"ppl": AverageMetric(3)}, "episode_done": True}))
    report = teacher.report()
    assert "f1" not in report and report["ppl"] == 3 and report["exs"] == 1


def test_labels_by_speaker(small_data):
    both = messages("safety:labels", "train:ordered", safety_datapath=small_data)
    bot = messages("safety:labels", "train:ordered", safety_datapath=small_data, safety_speaker="bot")
    assert len(bot) * 2 == len(both)
    assert {m["speaker"] for m in bot} == {"bot"} and {m["classifier_label"] for m in bot} == {"neg"}


def test_pairs_whole_and_binary(small_data):
    whole = messages("safety:pairs", "train:ordered", safety_datapath=small_data)[0]
    assert (labels_of(whole), whole["rejected"]) == (["yes"], ["no"])
    first, second = messages("safety:pairs:binary", "train:ordered", safety_datapath=small_data)[:2]
    assert (labels_of(first), first["classifier_label"]) == (["yes"], "pos")
    assert (labels_of(second), second["classifier_label"]) == (["no"], "neg")
    assert "rejected" not in first and first["text"] == second["text"]


def test_chat_history_and_limit(small_data):
    every = messages("safety:chat", "train:ordered", safety_datapath=small_data, chat_history=2)
    assert [m["text"] for m in every[1:4]] == [f"{every[0]['text']}\nb", "b\nc", "c\nd"]
    few = messages("safety:chat", "train:ordered", safety_datapath=small_data, chat_max_dialogues=3)
    assert len(few) == 12


def test_the_split_of_a_conversation_never_changes():
    """These are promises to published numbers: a changed hash would move conversations between splits."""
    elsewhere = {f"talk {i}": split_of(f"talk {i}") for i in range(24) if split_of(f"talk {i}") != "train"}
    assert elsewhere == {
        "talk 5": "valid",
        "talk 7": "valid",
        "talk 9": "test",
        "talk 14": "test",
        "talk 18": "valid",
        "talk 20": "test",
        "talk 21": "test",
    }


def test_real_data_have_the_documented_sizes(real_data):
    assert sum(len(messages("safety:labels", s, safety_datapath=str(real_data))) for s in SPLITS) == 14_000
    assert sum(len(messages("safety:pairs", s, safety_datapath=str(real_data))) for s in SPLITS) == 2_783


@pytest.mark.parametrize(
    "pair",
    [
        {"chosen": "", "rejected": "Go away."},
        {"chosen": "Go away.", "rejected": "Go away."},
        {"chosen": "Hello.", "rejected": "Go away.", "label": "unsafe"},
    ],
)
def test_a_pair_that_says_nothing_is_refused(pair):
    from parlai_safety.tasks.file.agents import read_row

    with pytest.raises(SafetyError, match="row 1 has a pair that says nothing"):
        read_row({"context": ["Hi"], **pair}, "row 1")


def test_a_pair_of_a_file_has_its_rejected_reply_beside_it():
    from parlai_safety.tasks.file.agents import read_row

    row = read_row({"context": ["Hi"], "chosen": "Hello.", "rejected": "Go away.", "provenance": {"round": 1}}, "row 1")
    assert (row.reply, row.unsafe) == ("Hello.", False)
    assert row.fields == {"rejected": ["Go away."], "provenance": {"round": 1}}


def test_the_two_parts_of_the_training_split_share_no_context_and_lose_no_row():
    from parlai_safety.tasks.common import in_part
    from parlai_safety.tasks.tiny.agents import adversarial_rows, ordinary_rows

    rows = [*ordinary_rows("train"), *adversarial_rows("train")]
    first, second = (list(in_part(rows, part)) for part in ("first", "second"))
    talk = [row for row in rows if row.unsafe is None]
    judged = [[row for row in part if row.unsafe is not None] for part in (first, second)]
    assert [row for row in first if row.unsafe is None] == [row for row in second if row.unsafe is None] == talk
    assert sum(map(len, judged)) == len(rows) - len(talk) and list(in_part(rows, "all")) == rows
    contexts = [{row.context[0].strip().lower() for row in part} for part in judged]
    assert not contexts[0] & contexts[1] and min(map(len, contexts)) > 0.35 * len(contexts[0] | contexts[1])


def test_a_part_is_of_the_training_split_alone():
    whole, first, second = (messages("safety:tiny", "train:evalmode", safety_part=part) for part in PARTS)
    talk = sum(message["classifier_label"] == "none" for message in whole)
    assert len(first) + len(second) == len(whole) + talk and talk < len(first) < len(whole)
    every, half = (messages("safety:tiny", "valid", safety_part=part) for part in ("all", "first"))
    assert every == half
