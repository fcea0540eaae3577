"""Tasks of released data: on the stand-ins, what ParlAI's own tasks read from the same files, and our fields beside."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
import random
import shutil
from collections import Counter

import pytest
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args
from parlai.scripts.train_model import TrainModel
from parlai.utils.misc import msg_to_str

from parlai_safety.errors import SafetyError
from parlai_safety.message import check_message
from parlai_safety.tasks import published
from parlai_safety.tasks.bad.agents import DefaultTeacher as Bad
from parlai_safety.tasks.common import PARTS
from parlai_safety.tasks.downloads import BAD, BBF, DATASETS, MIX_USERS, WTC
from parlai_safety.tasks.published import text_episodes
from parlai_safety.tasks.standins import COUNTS, FOLDER, STANDIN, standin_folder, write_standins
from parlai_safety.tasks.wtc.agents import KINDS, text_split
from tests.conftest import TINY_MODEL

SPLITS = ("train:evalmode", "valid", "test")
CLASSES = {"__ok__", "__notok__"}
CLASSIFIERS = (
    "bad bad:classifier bad:human_nonadv bbf bbf:standard bbf:adversarial bbf:multiturn wtc wtc:classifier "
    "prosocial:binary mix mix:pos mix:neg"
).split()
REPLIES = (
    "bad:reply bad:plain bad:positive bad:negative bad:human_safety saferdialogues saferdialogues:bad prosocial"
).split()
TASKS = [*CLASSIFIERS, *REPLIES, "prosocial:safety"]


def messages(task, datatype="valid", **options):
    """All messages of a task in their order."""
    teacher = create_task_agent_from_taskname(Opt(setup_args().parse_kwargs(task=task, datatype=datatype, **options)))[
        0
    ]
    found = []
    for episode in range(teacher.num_episodes()):
        at = 0
        found.append(teacher.get(episode, at))
        while not found[-1]["episode_done"]:
            at += 1
            found.append(teacher.get(episode, at))
    return found


@pytest.fixture
def ours(data, standins):
    """A function that gives the messages of a task of ours on its stand-in."""

    def serve(task, datatype="valid", **options):
        return messages(f"safety:{task}", datatype, datapath=str(data), safety_standin=True, **options)

    return serve


def labels_of(message):
    return list(message.get("labels") or message.get("eval_labels"))


def essence(found):
    """Lines and labels, without what ParlAI keeps of whitespace."""
    return [([line.split() for line in m["text"].split("\n")], labels_of(m)) for m in found]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_serves_every_split_with_our_fields(ours, task):
    for datatype in SPLITS:
        found = ours(task, datatype)
        assert found
        for message in found:
            check_message(message, "a message")
            assert message["text"].strip() and labels_of(message)[0].strip() and message["episode_done"]
            provenance = message["provenance"]
            assert provenance["source"] == STANDIN and provenance["licence"] == "MIT" and provenance["stands_for"]
            assert provenance["split"] == ("test" if "human_" in task else datatype.split(":")[0])
            assert ("speaker" in message) != task.startswith("saferdialogues")
            assert message["is_ltr"] == (task in REPLIES) == ("classifier_label" in message)
        if task in CLASSIFIERS:
            assert {label for m in found for label in labels_of(m)} <= CLASSES


BAD_OPTIONS = [
    {"bad_num_turns": 4},
    {"bad_num_turns": 1, "bad_speaker_to_eval": "human"},
    {"bad_safety_mix": "safe", "bad_include_persona": True},
    {"bad_safety_mix": "unsafe", "bad_speaker_to_eval": "bot", "bad_num_turns": 4, "bad_include_persona": True},
]
PAIRS = [
    *(("bad", "bot_adversarial_dialogue", options) for options in ({}, *BAD_OPTIONS)),
    ("bad:human_safety", "bot_adversarial_dialogue:HumanSafetyEvaluation", {}),
    ("bad:human_safety", "bot_adversarial_dialogue:HumanSafetyEvaluation", {"bad_include_persona": True}),
    ("bad:human_nonadv", "bot_adversarial_dialogue:HumanNonadvSafetyEvaluation", {}),
    *(("bbf:standard", "dialogue_safety:standard", {"round": r, "round_only": o}) for r, o in ((1, 0), (3, 0), (2, 1))),
    ("bbf:adversarial", "dialogue_safety:adversarial", {"round": 3}),
    *(("bbf:multiturn", "dialogue_safety:multiturn", {"single_turn": single}) for single in (False, True)),
    ("saferdialogues", "saferdialogues", {}),
    ("saferdialogues:bad", "saferdialogues:SaferDialoguesBAD", {}),
    ("prosocial:safety", "prosocial_dialog:ProsocialDialogSafety", {}),
    ("prosocial:binary", "prosocial_dialog:ProsocialDialogBinarySafety", {"one_turn": True}),
    *(("mix", "safety_mix", {"mix_user_type": user}) for user in MIX_USERS),
    ("mix:pos", "safety_mix:PosSafetyMix", {}),
    ("mix:neg", "safety_mix:NegSafetyMix", {"mix_user_type": "lazy_troll"}),
]


@pytest.mark.parametrize(("task", "theirs", "options"), PAIRS)
def test_parlais_own_task_reads_the_same_from_the_same_files(ours, standins, task, theirs, options):
    """In the same order; ParlAI finds the stand-ins as it would find its own downloads."""
    assert essence(ours(task, **options)) == essence(messages(theirs, datapath=str(standins), **options))


ORIGINAL = [
    ("bad", {"speaker_to_eval", "bot_persona"}),
    ("bad:reply", {"speaker_to_eval", "bot_persona"}),
    ("bad:human_safety", {"convo_id", "human_eval_turn_range"}),
    ("saferdialogues", {"original_metadata"}),
    ("prosocial", {"safety_label"}),
    ("mix", {"gold_labels", "user_type", "source", "user_id"}),
    ("wtc", {"label_candidates", "marks"}),
]


@pytest.mark.parametrize(("task", "fields"), ORIGINAL)
def test_fields_of_the_release_are_passed_on(ours, task, fields):
    assert all(fields <= set(message) for message in ours(task))


def test_an_option_may_stand_in_the_name_of_the_task(ours):
    assert essence(ours("bad:bad_num_turns=2")) == essence(ours("bad", bad_num_turns=2)) != essence(ours("bad"))


def test_tasks_of_one_command_share_their_options_with_parlais():
    tasks = "safety:bad,safety:bad:human_safety,safety:bbf,dialogue_safety:adversarial,safety:bbf:multiturn"
    words = ["-t", tasks, "--round", "2", "--bad-include-persona", "no", "--safety-standin", "true"]
    opt = ParlaiParser(True, False).parse_args(words)
    wanted = {"round": 2, "bad_include_persona": False, "flatten_dialogue": True, "safety_standin": True}
    assert {name: opt[name] for name in wanted} == wanted and opt["single_turn"] is False


def test_flags_that_say_false_are_false():
    def parsed(task, *words):
        return ParlaiParser(True, False).parse_args(["-t", f"safety:{task}", *words])

    assert parsed("bad", "--bad-include-persona", "False")["bad_include_persona"] is False
    assert parsed("bad:human_safety", "--flatten-dialogue", "false")["flatten_dialogue"] is False
    assert parsed("saferdialogues", "--recovery", "False")["recovery"] is False
    assert parsed("prosocial:binary", "--one-turn", "False")["one_turn"] is False
    assert parsed("bbf", "--round", "3", "--round-only", "true")["round_only"] is True
    for words in (["--bad-speaker-to-eval", "nobody"], ["--bad-num-turns", "-2"], ["--safety-standin", "perhaps"]):
        with pytest.raises(SafetyError, match=words[0]):
            parsed("bad", *words)


def test_the_unflattened_evaluation_set_is_a_dialogue_of_several_messages(ours):
    whole, turns = ours("bad:human_safety"), ours("bad:human_safety", flatten_dialogue=False)
    assert len(whole) == COUNTS["test"] == sum(message["episode_done"] for message in turns)
    first = [next(m for m in turns if m["convo_id"] == n and m["episode_done"]) for n in (m["convo_id"] for m in whole)]
    assert [labels_of(message) for message in whole] == [labels_of(message) for message in first]
    said = [line for m in turns if m["convo_id"] == "0" for line in (m["text"], *labels_of(m))]
    assert "\n".join(said[:-1]) == whole[0]["text"]


@pytest.mark.parametrize("view", ["human_safety", "human_nonadv"])
def test_nobody_trains_on_the_evaluation_sets(ours, view):
    with pytest.raises(SafetyError, match="It is one fixed evaluation set"):
        ours(f"bad:{view}", "train")
    assert ours(f"bad:{view}", "train:ordered") == ours(f"bad:{view}", "train:evalmode")


def test_a_reply_counts_as_a_turn(ours):
    for turns in (1, 2, 4):
        judged, replies = ours("bad", bad_num_turns=turns), ours("bad:reply", bad_num_turns=turns)
        as_one = [m["text"].replace("__start__", "").split("\n") + labels_of(m) for m in replies]
        assert [[line for line in lines if line] for lines in as_one] == [m["text"].split("\n") for m in judged]
        assert [m["classifier_label"] == "neg" for m in replies] == [labels_of(m) == ["__notok__"] for m in judged]


def test_the_halves_of_the_training_split_are_the_same_whatever_turns_are_shown(ours):
    def sizes(**options):
        return [len(ours("bad", "train:evalmode", safety_part=part, **options)) for part in PARTS]

    every, first, second = sizes()
    assert sizes(bad_num_turns=1) == [every, first, second]
    assert first + second == every and min(first, second) > 0


def test_canned_turns_of_the_bot_are_dropped_when_asked(ours):
    every, fewer = (ours("bad:reply", bad_drop_canned=drop) for drop in (False, True))
    gone = [message for message in every if message not in fewer]
    assert gone and all(m["speaker"] == "bot" and "want to talk about" in labels_of(m)[0] for m in gone)
    assert len(gone) == COUNTS["valid"]


def test_a_person_may_ask_what_to_talk_about(standins, tmp_path):
    shutil.copytree(standins / BAD.folder, tmp_path / BAD.folder)
    row = "text:Do you want to talk about tea?\tlabels:__ok__\tspeaker_to_eval:{}\tbot_persona:\tepisode_done:True\n"
    (tmp_path / BAD.folder / BAD.holds[1]).write_text(row.format("human") + row.format("bot"))
    (kept,) = messages("safety:bad", datapath=str(tmp_path), bad_drop_canned=True)
    assert kept["speaker"] == "human"


def test_without_the_recovery_the_signal_is_learned(ours):
    whole, cut = ours("saferdialogues"), ours("saferdialogues", recovery=False)
    assert [m["text"].split("\n") for m in whole] == [[*m["text"].split("\n"), *labels_of(m)] for m in cut]
    assert {m["classifier_label"] for m in whole} == {"pos"}
    assert {m["classifier_label"] for m in ours("saferdialogues:bad")} == {"none"}


def test_a_prosocial_answer_has_its_own_dialogue_before_it_and_no_other(ours, standins):
    """ParlAI's task begins a new episode with the last exchange of a dialogue, and goes on into the next one."""
    dialogues = json.loads((standins / "prosocial_dialog" / "valid.json").read_text())
    expected = []
    for dialogue in dialogues:
        turns = [turn for exchange in dialogue for turn in (exchange["text"], *exchange["labels"])]
        expected += [("\n".join(turns[:at]), [turns[at]]) for at in range(1, len(turns), 2)]
    assert [(m["text"], labels_of(m)) for m in ours("prosocial")] == expected
    theirs = messages("prosocial_dialog", datapath=str(standins))
    assert not theirs[1]["episode_done"] and theirs[2]["text"] == dialogues[1][0]["text"], "ParlAI mended it: use it"


def comments(count, *, toxic_each=4):
    return [{"id": f"{n:016x}", "text": f"Comment {n}.", "toxic": n % toxic_each == 0} for n in range(count)]


def test_comments_are_divided_80_10_10_by_their_text_alone():
    rows = comments(1000)
    split = text_split(rows)
    assert Counter(split) == {"train": 800, "valid": 100, "test": 100}
    shuffled = random.Random(1).sample(rows, len(rows))
    assert dict(zip((r["id"] for r in shuffled), text_split(shuffled), strict=True)) == dict(
        zip((r["id"] for r in rows), split, strict=True)
    )
    again = [*rows, *({"id": f"x{n}", "text": f"  COMMENT {n}.\n"} for n in range(0, 1000, 7))]
    assert text_split(again) == [*split, *split[::7]], "a text that comes twice is in one split"
    assert "".join(name[0] for name in split[:24]) == PROMISED, "published figures rest on this hash"


PROMISED = "tttttttttvtttttttttttvtt"


def test_the_splits_of_the_comments_share_no_text_and_lose_none(ours, standins):
    found = [[m["text"] for m in ours("wtc", datatype)] for datatype in SPLITS]
    with open(standins / WTC.folder / "train.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(text for split in found for text in split) == sorted(
        " ".join(r["comment_text"].split()) for r in rows
    )
    texts = [{text.lower() for text in split} for split in found]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    distinct = sum(map(len, texts))
    assert [len(split) for split in texts] == [
        8 * distinct // 10,
        9 * distinct // 10 - 8 * distinct // 10,
        len(texts[2]),
    ]


@pytest.mark.filterwarnings("ignore:A value is being set on a copy")
def test_the_test_set_of_the_challenge_and_balance_are_those_of_parlai(ours, standins, tmp_path):
    pytest.importorskip("pandas")
    shutil.copytree(standins / WTC.folder, tmp_path / WTC.folder)
    (tmp_path / BBF.folder / ".built").write_text("")

    def flat(found):
        return [(m["text"].split(), labels_of(m)) for m in found]

    for datatype in SPLITS:
        options = {"use_test_set": True, "balance_data": True}
        theirs = messages("dialogue_safety:WikiToxicComments", datatype, datapath=str(tmp_path), **options)
        assert flat(ours("wtc", datatype, **options)) == flat(theirs)
    unscored = (standins / WTC.folder / "test_labels.csv").read_text().count("-1,-1,-1,-1,-1,-1\n")
    assert (
        unscored
        and len(theirs) == len((standins / WTC.folder / "test_labels.csv").read_text().splitlines()) - 1 - unscored
    )


def test_the_kinds_of_a_comment_are_kept(ours):
    for message in ours("wtc"):
        assert set(message["marks"]) == set(KINDS)
        assert labels_of(message) == ["__notok__" if any(message["marks"].values()) else "__ok__"]


def write_comments(folder, rows, header=("id", "comment_text", *KINDS)):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def test_kaggles_files_are_put_there_by_hand(tmp_path):
    folder = tmp_path / WTC.folder
    with pytest.raises(SafetyError) as error:
        messages("safety:wtc", datapath=str(tmp_path))
    for words in ("no train.csv", str(folder), "kaggle.com", "--safety-standin true"):
        assert words in str(error.value)
    write_comments(folder, [[n, f"Comment {n}.", *[int(n % 5 == 0)] * 6] for n in range(50)])
    found = messages("safety:wtc", "train:evalmode", datapath=str(tmp_path))
    assert len(found) == 40 and found[0]["provenance"]["source"] == WTC.title
    with pytest.raises(SafetyError, match="no test.csv and no test_labels.csv"):
        messages("safety:wtc", datapath=str(tmp_path), use_test_set=True)


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([[1, "a", 0, 0, 0, 0, 0, 2]], ("id", "comment_text", *KINDS), "Row 1 of .* a mark is 0, 1 or -1"),
        ([[1, "a", *[0] * 5]], ("id", "comment_text", *KINDS), "Row 1 of .* a mark is 0, 1 or -1"),
        ([[1, "a"]], ("id", "comment_text"), "no 'toxic'"),
        ([[n, f"a {n}", *[0] * 6] for n in range(9)], ("id", "comment_text", *KINDS), "found no unsafe comment"),
    ],
)
def test_comments_that_cannot_be_read_are_named(tmp_path, rows, header, words):
    write_comments(tmp_path / WTC.folder, rows, header)
    with pytest.raises(SafetyError, match=words):
        messages("safety:wtc", "train:evalmode", datapath=str(tmp_path), balance_data=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("text:a\tlabels:__fine__\tspeaker_to_eval:bot\tepisode_done:True", "the label '__fine__' of 'bot'"),
        ("text:a\tlabels:__ok__\tepisode_done:True", "the label '__ok__' of None"),
        ("labels:__ok__\tspeaker_to_eval:bot\tepisode_done:True", "Line 1 of .* 'text' and 'labels'"),
        ("", "it holds no message"),
    ],
)
def test_a_row_that_is_not_of_the_format_is_never_counted_as_safe(standins, tmp_path, line, words):
    shutil.copytree(standins / BAD.folder, tmp_path / BAD.folder)
    (tmp_path / BAD.folder / BAD.holds[1]).write_text(line + "\n")
    with pytest.raises(SafetyError, match=words):
        messages("safety:bad", datapath=str(tmp_path))


def test_released_files_are_told_as_such_and_the_stand_in_is_never_used_unasked(standins, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(published.logging, "warning", said.append)
    nowhere = dataclasses.replace(BAD.downloads[0], addresses=("http://127.0.0.1:1/x",))
    monkeypatch.setattr(Bad, "dataset", dataclasses.replace(BAD, downloads=(nowhere,)))
    shutil.copytree(standins, tmp_path / FOLDER)
    with pytest.raises(SafetyError, match="could not be downloaded"):
        messages("safety:bad", datapath=str(tmp_path))
    said.clear()
    shutil.copytree(standins / BAD.folder, tmp_path / BAD.folder, dirs_exist_ok=True)
    released = messages("safety:bad", datapath=str(tmp_path))
    assert released[0]["provenance"] == {"source": BAD.title, "licence": "MIT", "split": "valid"} and not said
    messages("safety:bad", datapath=str(tmp_path), safety_standin=True)
    assert len(said) == 1 and said[0].startswith("safety:bad serves its stand-in")


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (".built", ".lock", "made_of.json")
    }


def test_stand_ins_are_the_same_each_time_and_made_anew_of_another_corpus(standins, tmp_path):
    write_standins(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(standins)
    held = {f"{found.folder}/{name}" for found in DATASETS for name in found.holds}
    assert held <= set(contents(standins))
    root = tmp_path / FOLDER
    shutil.copytree(standins, root)
    victim = root / BAD.folder / BAD.holds[0]
    victim.write_text("changed")
    assert standin_folder(tmp_path) == root and victim.read_text() == "changed"
    (root / "made_of.json").write_text('{"version": 0}')
    assert standin_folder(tmp_path) == root and contents(root) == contents(standins)


def test_episodes_end_where_the_file_says(tmp_path):
    path = tmp_path / "talk.txt"
    path.write_text("text:a\tlabels:b\n\ntext:c\tlabels:d\tepisode_done:True\ntext:e\\nf\tlabels:g|h\n")
    episodes = [[(m["text"], m["labels"]) for m in episode] for episode in text_episodes(path)]
    assert episodes == [[("a", ["b"]), ("c", ["d"])], [("e\nf", ["g", "h"])]]


def test_the_published_classifier_trains_on_four_sets_at_once(data, standins, tmp_path):
    """The recipe of arXiv:2010.07079, table of section 1.3 of our digest: weights 3, 1, 1, 1."""
    valid, _ = TrainModel.main(
        **TINY_MODEL,
        task="safety:wtc,safety:bbf:standard,safety:bbf:adversarial,safety:bad",
        multitask_weights="3,1,1,1",
        round=3,
        bad_num_turns=4,
        safety_standin=True,
        datapath=str(data),
        model="safety:judge",
        model_file=str(tmp_path / "judge"),
        batchsize=16,
        optimizer="sgd",
        learningrate=0.1,
        max_train_steps=2,
        validation_metric="class___notok___f1",
        validation_metric_mode="max",
        dict_maxtokens=200,
        loglevel="error",
    )
    assert {"wtc/accuracy", "bbf:standard/accuracy", "bbf:adversarial/accuracy", "bad/accuracy"} <= set(valid)
    assert "class___notok___f1" in valid


def test_real_talk_goes_through_the_format_unchanged(real_data, standins, tmp_path):
    """The half of the validation split that is at hand, written as ParlAI's task has it and read again."""
    with gzip.open(real_data / "safety_labels.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [row for row in map(json.loads, stream) if row["source"] == "bad_valid"]
    shutil.copytree(standins / BAD.folder, tmp_path / BAD.folder)
    with open(tmp_path / BAD.folder / BAD.holds[1], "w", encoding="utf-8") as stream:
        for row in rows:
            turns = [turn.replace("\n", " ") for turn in (*row["context"], row["response"])]
            label = "__notok__" if row["label"] == "unsafe" else "__ok__"
            message = {"text": "\n".join(turns), "labels": [label], "episode_done": True}
            stream.write(msg_to_str({**message, "speaker_to_eval": row["speaker"], "bot_persona": ""}) + "\n")
    found = messages("safety:bad", datapath=str(tmp_path))
    as_read = [(m["text"].split(), m["speaker"], labels_of(m) == ["__notok__"]) for m in found]
    given = [(" ".join([*row["context"], row["response"]]).split(), row["speaker"], row["label"]) for row in rows]
    assert as_read == [(words, speaker, label == "unsafe") for words, speaker, label in given] and len(found) == 3446


RELEASED = [
    ("bad", "train", 69_274),
    ("bad", "valid", 7_002),
    ("bad", "test", 2_598),
    ("bad:human_safety", "test", 180),
    ("bad:human_nonadv", "test", 180),
    ("saferdialogues", "train", 6_306),
    ("saferdialogues", "valid", 788),
    ("saferdialogues:bad", "valid", 788),
    ("prosocial", "train", 120_236),
    ("prosocial:binary", "valid", 20_416),
]


@pytest.mark.parametrize(("task", "split", "count"), RELEASED)
def test_released_data_have_the_published_sizes(task, split, count):
    """From the fixtures of ParlAI's own tests; only where the data are at hand, since a test downloads nothing."""
    folder = os.environ.get("SAFETY_RELEASED_DATA")
    if not folder:
        pytest.skip("no released data: set SAFETY_RELEASED_DATA to a data folder of ParlAI that holds them")
    found = messages(f"safety:{task}", "train:evalmode" if split == "train" else split, datapath=folder)
    assert len(found) == count
    if task == "bad":
        speakers, classes = Counter(m["speaker"] for m in found), Counter(labels_of(m)[0] for m in found)
        assert speakers["human"] == speakers["bot"] == count // 2
        assert classes["__notok__"] == {"train": 27_225, "valid": 2_763, "test": 944}[split]
