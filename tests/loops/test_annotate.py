"""Scores for any task: what the judge is asked, what the rows hold, resume, pseudo labels, Conversations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.utils.conversations import Conversations

from parlai_safety.errors import SafetyError
from parlai_safety.judges.verdict import Speaker, Verdict, fingerprint_of, scored, unscored
from parlai_safety.loops.annotate import AnnotateOptions, annotate, messages, summary_of, worlds
from parlai_safety.scripts.safety_annotate import SafetyAnnotate

ROWS: list[dict[str, Any]] = [
    {"context": ["Hello?", "Who is there?"], "reply": "p30 A kettle.", "speaker": "human", "user_id": "u1"},
    {"context": [], "reply": "p05 Good morning.", "provenance": {"source": "talk"}},
    {"context": ["p80 You dim lamp."], "reply": "p95 No, you are.", "classifier_label": "none"},
    {"context": ["Fine day."], "reply": "p99 It is not, you spoon.", "label": "safe"},
    {"context": ["What now?"], "reply": "broken reply"},
    {"context": ["broken turn"], "reply": "p02 What a turn.", "classifier_label": "neg", "rejected": ["Go away."]},
    {"context": ["One", "Two", "Three"], "reply": "p50 Four."},
]


class ToldJudge:
    """P(unsafe) stands in the text, as in p95; without a number it is 0.2, and what is broken has no score."""

    spec, threshold, fingerprint = "told", 0.5, fingerprint_of("told", 1)

    def __init__(self, calls: int = 1000) -> None:
        self.asked: list[tuple[str, list[str], str]] = []
        self.calls = calls

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.asked += [(r, list(c), s) for r, c, s in zip(replies, contexts, speakers, strict=True)]
        return [self._one(reply) for reply in replies]

    @staticmethod
    def _one(text: str) -> Verdict:
        if text.startswith("broken"):
            return unscored("cannot read it")
        return scored(int(text[1:3]) / 100 if text[:1] == "p" and text[1:3].isdigit() else 0.2)


def options_of(task: str, **more: Any) -> Opt:
    """ParlAI's options for a task."""
    found: Opt = ParlaiParser(True, False).parse_kwargs(task=task, datatype="train", batchsize=2, **more)
    return found


def talk(folder: Path, rows: Iterable[dict[str, Any]] = ROWS) -> Opt:
    """The rows as a task."""
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return options_of("safety:file", safety_file=str(path))


def run(opt: Opt, out: Path, judge: ToldJudge | None = None, **more: Any) -> dict[str, Any]:
    settings = {"options": {"safety_file": opt.get("safety_file")}}
    return annotate(opt, judge or ToldJudge(), out, options=AnnotateOptions(**more), settings=settings)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(opt: Opt) -> list[dict[str, Any]]:
    """The messages of a task."""
    return [dict(act) for world in worlds(opt) for _, act in messages(world)]


def test_labels_and_last_turns_are_asked_in_their_context_and_as_their_speakers(tmp_path: Path) -> None:
    judge = ToldJudge()
    run(talk(tmp_path), tmp_path / "out.jsonl", judge)
    assert ("p30 A kettle.", ["Hello?", "Who is there?"], "human") in judge.asked
    assert ("Who is there?", ["Hello?"], "bot") in judge.asked
    assert ("p80 You dim lamp.", [], "human") in judge.asked
    assert ("p95 No, you are.", ["p80 You dim lamp."], "bot") in judge.asked
    assert len(judge.asked) == 7 + 6


def test_rows_are_read_back_without_loss(tmp_path: Path) -> None:
    opt, out = talk(tmp_path), tmp_path / "out.jsonl"
    run(opt, out)
    before, after = shown(opt), shown(options_of("safety:file", safety_file=str(out)))
    scores = []
    for old, new in zip(before, after, strict=True):
        found = new["provenance"].pop("toxicity")
        scores.append((new.pop("toxicity", None), new.pop("context_toxicity", None), found.pop("unscored", None)))
        assert found.pop("context_unscored", None) == ("cannot read it" if "broken turn" in new["text"] else None)
        assert found == {"judge": "told", "fingerprint": ToldJudge.fingerprint, "threshold": 0.5}
        assert new.pop("speaker") == old.pop("speaker", "bot")
        assert new.pop("provenance") == old.pop("provenance", {})
        assert new == old
    assert scores == [
        (0.3, 0.2, None), (0.05, None, None), (0.95, 0.8, None), (0.99, 0.2, None), (None, 0.2, "cannot read it"),
        (0.02, None, None), (0.5, 0.2, None),
    ]  # fmt: skip


def test_the_summary_counts_and_gives_an_interval(tmp_path: Path) -> None:
    summary = run(talk(tmp_path), tmp_path / "out.jsonl")
    labels, turns = summary["labels"], summary["last turns"]
    assert (labels["n"], labels["unsafe"], labels["unscored"]) == (6, 3, 1)  # 0.5 is at the threshold
    assert (turns["n"], turns["unsafe"], turns["unscored"]) == (5, 1, 1)
    low, high = labels["95%"]
    assert 0 < low < labels["share"] == 0.5 < high < 1
    assert summary["unscored"] == {"cannot read it": 2} and summary["rows written"] == summary["rows"] == 7
    assert json.loads((tmp_path / "out.jsonl.run" / "summary.json").read_text()) == summary
    assert summary_of(iter(read(tmp_path / "out.jsonl")), 0.4)["labels"]["unsafe"] == 3
    assert summary_of(iter(read(tmp_path / "out.jsonl")), 0.3)["labels"]["unsafe"] == 4


@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("torn", [b"", b'{"context": ["Fin', b'{"context": [], "reply": "half a batch"}\n{"c'])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, calls: int, torn: bytes) -> None:
    opt = talk(tmp_path)
    run(opt, tmp_path / "straight.jsonl")
    out, judge = tmp_path / "out.jsonl", ToldJudge(calls)
    with pytest.raises(KeyboardInterrupt):
        run(opt, out, judge)
    assert not out.exists()
    with open(tmp_path / "out.jsonl.run" / "scores" / "rows.jsonl", "ab") as journal:
        journal.write(torn)
    again = ToldJudge()
    run(opt, out, again)
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert len(judge.asked) + len(again.asked) == 13, "nothing is scored twice"


def test_pseudo_labels_stand_where_the_judge_is_sure_and_train_a_classifier(tmp_path: Path) -> None:
    opt, out = talk(tmp_path), tmp_path / "out.jsonl"
    summary = run(opt, out, label="pos_neg", low=0.3, high=0.9)
    assert summary["pseudo labels"] == {"pos": 2, "neg": 1, "unsure": 2}
    rows = read(out)
    labels = [row.get("classifier_label") for row in rows]
    assert labels == ["pos", "pos", "neg", "pos", "none", "neg", "none"]  # verdicts of the task are kept
    pseudo = {"pseudo": True, "judge": "told", "fingerprint": ToldJudge.fingerprint, "low": 0.3, "high": 0.9}
    assert [row["provenance"].get("classifier_label") for row in rows] == [pseudo] * 3 + [None] * 4
    # What is unsure is no ordinary talk: the classifier does not learn that it is safe.
    view = shown(options_of("safety:file:classifier", safety_file=str(out)))
    assert [(act["text"].split("\n")[-1][:3], act["eval_labels"][0]) for act in view] == [
        ("p30", "__ok__"), ("p05", "__ok__"), ("p95", "__notok__"), ("p99", "__ok__"), ("p02", "__notok__"),
    ]  # fmt: skip
    assert len(shown(options_of("safety:file:classifier", safety_file=opt["safety_file"]))) == 7
    positive = shown(options_of("safety:file:positive", safety_file=str(out)))
    assert [act["eval_labels"][0][:3] for act in positive] == ["p30", "p05", "p99"]


def test_other_cuts_need_no_second_scoring(tmp_path: Path) -> None:
    opt, out = talk(tmp_path), tmp_path / "out.jsonl"
    run(opt, out, label="pos_neg")
    judge = ToldJudge(0)
    summary = run(opt, out, judge, label="pos_neg", low=0.5, high=0.5, unsure="drop")
    assert summary["pseudo labels"] == {"pos": 2, "neg": 2, "unsure": 1} and not judge.asked
    assert summary["rows written"] == len(read(out)) == 6


def test_conversations_are_read_by_parlai_and_scored_with_all_turns_before(tmp_path: Path) -> None:
    rows = [
        {"context": ["Hello?"], "reply": "p10 Who is there?"},
        {"context": ["Hello?", "p10 Who is there?", "Me.", "Still me."], "reply": "p70 Go away."},
        {"context": [], "reply": "Another talk."},
    ]
    out, judge = tmp_path / "out.jsonl", ToldJudge()
    summary = run(talk(tmp_path, rows), out, judge, format="conversations")
    path = tmp_path / summary["conversations"]
    talks = Conversations(str(path))
    assert [len(each) for each in talks] == [4, 2] and talks.metadata.speakers == ["human", "bot"]
    second = talks[0].turns[3]
    assert (second.id, second.text, second.toxicity) == ("bot", "p70 Go away.", 0.7)
    assert second.provenance["toxicity"]["judge"] == "told"
    opt = options_of("jsonfile", jsonfile_datapath=str(path), jsonfile_datatype_extension=False)
    again = ToldJudge()
    run(opt, tmp_path / "again.jsonl", again)
    assert sorted(again.asked) == sorted(judge.asked)
    assert [(row["context"], row["reply"]) for row in read(tmp_path / "again.jsonl")] == [
        (row["context"], row["reply"]) for row in rows
    ]


def test_a_class_name_is_the_verdict_of_the_last_line(tmp_path: Path) -> None:
    opt = talk(tmp_path, ROWS[:4])
    opt["task"] = "safety:file:classifier"
    run(opt, tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [(row["context"], row["reply"]) for row in rows] == [(row["context"], row["reply"]) for row in ROWS[:4]]
    assert {row["classifier_label"] for row in rows} == {"pos"} and "is_ltr" not in rows[0]


def test_a_line_that_is_blank_is_no_turn(tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_text("text:Hello?\\n\\nMe.\\n \tlabels:p10 Well.\tepisode_done:True\n")
    kwargs = {"fromfile_datapath": str(path), "fromfile_datatype_extension": False}
    judge = ToldJudge()
    run(options_of("fromfile:parlaiformat", **kwargs), tmp_path / "out.jsonl", judge)
    assert judge.asked == [("p10 Well.", ["Hello?", "Me."], "bot"), ("Me.", ["Hello?"], "human")]


def test_mutators_act_and_several_tasks_are_read(tmp_path: Path) -> None:
    opt = talk(tmp_path)
    opt = options_of("safety:file,safety:file:positive", safety_file=opt["safety_file"], mutators="word_reverse")
    judge = ToldJudge()
    summary = run(opt, tmp_path / "out.jsonl", judge)
    assert summary["rows"] == 7 + 6
    assert ("p99 It is not, you spoon.", ["day. Fine"], "bot") in judge.asked


def test_what_is_refused(tmp_path: Path) -> None:
    opt, out = talk(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(SafetyError, match="--low got 0.9"):
        run(opt, out, low=0.9, high=0.1)
    out.write_text("mine\n")
    with pytest.raises(SafetyError, match="overwrites nothing"):
        run(opt, out)
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(opt, out, ToldJudge(2))
    other = talk(tmp_path, [ROWS[1], *ROWS[1:]])
    with pytest.raises(SafetyError, match="its row 1 is another one now"):
        run(other, out)
    with pytest.raises(SafetyError, match="it has 3 rows now"):
        run(talk(tmp_path, ROWS[:3]), out)
    opt["batchsize"] = 3
    with pytest.raises(SafetyError, match="batchsize differ"):
        run(opt, out)


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opt, out = talk(tmp_path), tmp_path / "out.jsonl"
    (tmp_path / "words.txt").write_text("lamp\n")
    told = {"task": "safety:file", "safety_file": opt["safety_file"], "judge": f"wordlist:{tmp_path}/words.txt"}
    SafetyAnnotate.main(**told, out=str(out), label="pos_neg")
    text = capsys.readouterr().out
    assert "labels: 0 of 7 unsafe (0.0 % [0.0" in text and "last turns: 1 of 6 unsafe (16.7 %" in text
    assert "pseudo labels: pos 5, neg 0, unsure 0" in text and f"Rows: 7 in {out}" in text
    with pytest.raises(SafetyError, match="without --judge"):
        SafetyAnnotate.main(task="safety:file", out=str(out))
