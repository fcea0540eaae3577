"""Baked data as files: the mutator's targets, contextual replies of a teacher, and runs that are cut short."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from parlai.core.opt import Opt
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.display_data import setup_args

from parlai_safety.corpus.canned import canned_kind, canned_reply
from parlai_safety.errors import SafetyError
from parlai_safety.files import read_jsonl
from parlai_safety.loops import bake, exchanges, verdicts
from parlai_safety.loops.bake import bake_rows
from parlai_safety.loops.exchanges import task_exchanges
from parlai_safety.mutators import judged
from parlai_safety.tasks.common import Row
from parlai_safety.tasks.file.agents import read_row
from tests.modeling.test_sampler import make_agent
from tests.mutators.judged_stub import WordJudge


def rows(n=40):
    """Rows of which a quarter is flagged because of the reply, a quarter because of the context, some unscored."""
    kinds = [("kind", "kind"), ("kind", "rude"), ("rude", "kind"), ("kind", "kind"), ("kind", "odd")]
    return [
        Row(["Hi.", f"{heard} turn {i}"], f"{said} reply {i}", None, {"provenance": {"source": "here"}})
        for i in range(n)
        for heard, said in [kinds[i % 5]]
    ]


def read(folder):
    return list(read_jsonl(folder / "baked.jsonl"))


def told(row):
    return row["provenance"].get("baked")


def test_what_is_flagged_is_replaced_and_counted(tmp_path):
    summary = bake_rows(rows(), judge=WordJudge(), folder=tmp_path, target="safe")
    written = read(tmp_path)
    assert summary.rows["read"] == len(written) == 40 and summary.share == 0.6
    assert (summary.rows["untouched"], summary.rows["replaced"]) == (16, 24)
    assert summary.because == {"context": 8, "reply": 8, "unscored": 8} and summary.kinds == {"safe": 24}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary._asdict()
    for row, before in zip(written, rows(), strict=True):
        assert row["context"] == before.context and read_row(row, "row").unsafe is None
        if told(row):
            assert row["reply"] == canned_reply("safe", before.context, seed=1, avoid=[before.reply])
            assert told(row)["judge"] == "words"
        else:
            assert row["reply"] == before.reply and "kind" in before.reply


def test_unscored_replies_are_dropped_where_wanted_and_the_share_is_of_what_is_left(tmp_path):
    summary = bake_rows(rows(), judge=WordJudge(), folder=tmp_path, unscored="drop")
    assert (summary.rows["unscored"], summary.rows["replaced"], summary.share) == (8, 16, 0.5)


@pytest.mark.parametrize("target", ["safe:1,nonsequitur:2", "recovery,nonsequitur"])
def test_the_mutator_with_the_share_of_the_file_shows_what_the_file_holds(tmp_path, monkeypatch, target):
    talk = tmp_path / "talk.jsonl"
    given = [{"context": r.context, "reply": r.reply, **r.fields} for r in rows(120)]
    given += [{"context": ["Hi.", "rude", f"That hurt {n}."], "reply": "kind"} for n in range(9)]
    given += [{"reply": "rude"}, {"reply": "kind"}]
    given += [{"context": ["a"], "reply": "kind words", "classifier_label": "neg"}]
    talk.write_text("".join(json.dumps(row) + "\n" for row in given))
    monkeypatch.setattr(judged, "load_judge", lambda spec, **_: WordJudge())
    judged._loaded.cache_clear()
    parser = setup_args()
    opt = parser.parse_kwargs(task="safety:file", safety_file=str(talk), datatype="train:evalmode")
    summary = bake.bake_exchanges(
        list(task_exchanges(opt)),
        judge=WordJudge(),
        folder=tmp_path / "out",
        options=bake.BakeOptions(bake_target=target, bake_ratio=0.5, bake_seed=3),
        teacher=bake.TeacherOptions(),
    )
    opt = setup_args().parse_kwargs(
        task="safety:file", safety_file=str(talk), datatype="train:evalmode", mutators="safety_bake",
        mutator_judge="wordlist", bake_target=target, bake_ratio=0.5, bake_share=summary.share, bake_seed=3,
    )  # fmt: skip
    teacher = create_task_agent_from_taskname(Opt(opt))[0]
    shown = []
    while not teacher.epoch_done():
        shown.append(teacher.act())
    judged._loaded.cache_clear()
    found = [(m["text"], m["eval_labels"][0], m["classifier_label"]) for m in shown if not m.is_padding()]
    wanted = [
        ("\n".join(r["context"]) or "__start__", r["reply"], r["classifier_label"]) for r in read(tmp_path / "out")
    ]
    assert found == wanted and summary.rows["thinned_replaced"] > 5 and len(summary.kinds) == 2


def test_turns_of_an_episode_are_exchanges_with_those_before_them(tmp_path):
    path = tmp_path / "talk.txt"
    episode = "text:Hi.\tlabels:Hello.\ntext:And you?\tlabels:Fine.\tepisode_done:True\n"
    path.write_text(episode * 2)
    kwargs = {"task": "fromfile:parlaiformat", "fromfile_datapath": str(path), "fromfile_datatype_extension": False}
    found = list(task_exchanges(setup_args().parse_kwargs(datatype="train", **kwargs)))
    assert [(e.context, e.reply) for e in found] == [(["Hi."], "Hello."), (["Hi.", "Hello.", "And you?"], "Fine.")] * 2
    assert [e.own_last and (e.own_last.text, e.own_last.speaker) for e in found[:2]] == [None, ("Hello.", "bot")]
    assert found[1].heard == (("Hi.", "Hello."), "And you?", "human") and len({e.source for e in found}) == 1


def test_the_name_of_a_class_is_no_reply_that_could_be_judged():
    with pytest.raises(SafetyError, match="the name of a class.*a view of the task that shows replies"):
        exchanges.row_exchanges([{"text": "Hi.\nrude", "labels": ["__notok__"]}])


def test_a_canned_reply_is_never_replaced_by_itself(tmp_path):
    context = ["Hi.", "rude turn"]
    old = canned_reply("safe", context, seed=1)
    bake_rows([Row(context, old, None, {})], judge=WordJudge(), folder=tmp_path, target="safe")
    [row] = read(tmp_path)
    assert row["reply"] != old and canned_kind(row["reply"]) == "safe"


def test_people_are_believed(tmp_path):
    row = Row(["a"], "kind", True, {})
    assert bake_rows([row], judge=WordJudge(), folder=tmp_path / "a").because == {"reply": 1}
    [written] = read(tmp_path / "a")
    assert written["classifier_label"] == "pos" and written["reply"] != "kind"
    assert bake_rows([row._replace(unsafe=None)], judge=WordJudge(), folder=tmp_path / "b").rows["untouched"] == 1


# --- contextual ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a signal that no code can catch."""


@pytest.fixture
def agent(monkeypatch):
    """A teacher that says what its script holds, a context a call."""
    script = SimpleNamespace(opt={"model_file": "runs/guarded/model"}, calls=10**6, said={}, asked=[])

    def say(agent, contexts, samples, number, seed, batch_size, known, advance):
        for i, context in enumerate(contexts):
            if i not in known:
                if agent.calls == 0:
                    raise Killed
                agent.calls -= 1
                agent.asked.append((tuple(context), samples, number, seed))
                yield i, agent.said.get(context[-1], [f"Kind answer to {context[-1]}, number {number}."])
                advance(1)

    monkeypatch.setattr(bake, "_round", say)
    monkeypatch.setattr(verdicts, "JUDGED_AT_ONCE", 16)
    return script


CANNED = canned_reply("nonsequitur", ["x"])
HEARD = "rude words of mine that you may well repeat"


def contextual(tmp_path, agent, given, said=(), **options):
    agent.said = dict(said)
    return bake_rows(given, judge=WordJudge(), folder=tmp_path, target="contextual", agent=agent, **options)


def test_of_several_safe_replies_the_least_unsafe_one_is_taken(tmp_path, agent, monkeypatch):
    monkeypatch.setattr(
        WordJudge, "score", lambda self, replies, *_: [bake_verdict(reply) for reply in replies]
    )  # fmt: skip
    summary = contextual(
        tmp_path, agent, [Row(["0.9 hi"], "0.1 old", None, {})], {"0.9 hi": ["0.3 b", "0.2 a", "0.6 c"]}
    )
    [row] = read(tmp_path)
    assert row["reply"] == "0.2 a"
    assert {"p_unsafe": 0.2, "kind": "contextual", "because": "context", "generator": "guarded"}.items() <= told(
        row
    ).items()
    assert summary.contextual["may"] == 2 and summary.contextual["unsafe"] == 1 and summary.contextual["found"] == 1


def test_replies_of_the_teacher_are_judged_in_their_context_and_as_their_speaker_s(tmp_path, agent):
    agent.said = {"rude": ["A calm answer."]}
    judge = WordJudge()
    row = Row(["Hi", "rude"], "kind", None, {"speaker": "human"})
    bake_rows([row], judge=judge, folder=tmp_path, target="contextual", agent=agent, samples=1)
    assert judge.asked == [
        ("kind", ("Hi", "rude"), "human"), ("rude", ("Hi",), "bot"), ("A calm answer.", ("Hi", "rude"), "human"),
    ]  # fmt: skip


def bake_verdict(text):
    from parlai_safety.judges.verdict import scored

    return scored(float(text.split()[0]))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"), ("...", "empty"), (CANNED, "canned"), (CANNED.upper(), "canned"), ("go on go on go on", "loop"),
        (HEARD, "copy"), ("No, words of mine that you may well repeat.", "copy"), ("kind old", "copy"),
        ("odd one", "unscored"), ("A rude one.", "unsafe"),
    ],
)  # fmt: skip
def test_a_reply_that_will_not_do_is_counted_and_a_named_kind_stands_in(tmp_path, agent, reply, why):
    given = [Row(["Hi", HEARD], "kind old", None, {})]
    summary = contextual(tmp_path, agent, given, {HEARD: [reply] * 2}, samples=1)
    counts = {name: n for name, n in summary.contextual.items() if n}
    again = {why: 1, "duplicate": 1} if why in ("unscored", "unsafe") else {why: 2}
    assert counts == {"asked": 1, "fallback": 1, "drawn": 2, **again}
    [row] = read(tmp_path)
    assert canned_kind(row["reply"]) == "safe"
    assert told(row) == {"kind": "safe", "because": "context", "judge": "words", "seed": 1, "wanted": "contextual"}
    assert summary.kinds == {"safe": 1}


def test_without_a_reply_the_exchange_may_be_dropped(tmp_path, agent):
    given = [Row(["rude"], "kind", None, {}), Row(["Hi"], "kind", None, {})]
    summary = contextual(tmp_path, agent, given, {"rude": ["rude"]}, fallback="drop")
    assert summary.rows["no_reply"] == 1 and [row["reply"] for row in read(tmp_path)] == ["kind"]


def test_the_teacher_is_not_asked_about_what_is_dropped(tmp_path, agent):
    given = [Row(["Hi"], "odd", None, {}), Row(["rude"], "kind", None, {})]
    summary = contextual(tmp_path, agent, given, samples=1, unscored="drop")
    assert (summary.contextual["asked"], summary.rows["unscored"], summary.rows["replaced"]) == (1, 1, 1)
    assert {context for context, *_ in agent.asked} == {("rude",)}


def test_one_text_answers_so_many_contexts_and_no_more(tmp_path, agent):
    given = [Row([f"rude {n}"], "kind", None, {}) for n in range(5)] + [Row(["rude 0"], "other kind", None, {})]
    said = {f"rude {n}": ["The same calm answer."] for n in range(5)}
    summary = contextual(tmp_path, agent, given, said, copies=2, samples=1)
    assert summary.contextual["asked"] == 5 and summary.contextual["found"] == 2
    assert [row["reply"] for row in read(tmp_path)].count(
        "The same calm answer."
    ) == 3  # one context stands there twice


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_killed_anywhere_ends_with_the_bytes_of_one_that_is_not(agent, tmp_path, monkeypatch):
    summary = contextual(tmp_path / "straight", agent, rows(20), samples=2, ratio=0.5)
    wanted, asked = contents(tmp_path / "straight"), agent.asked
    assert {"baked.jsonl", "summary.json", "bake/run.json", "bake/replies.jsonl", "bake/verdicts.jsonl"} <= set(wanted)
    assert summary.contextual["found"] > 5
    score, left = WordJudge.score, [0]

    def once(self, *batch):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return score(self, *batch)

    monkeypatch.setattr(WordJudge, "score", once)
    agent.asked, kills, done = [], 0, None
    while done is None:
        left[0], agent.calls = 1, 1
        try:
            done = contextual(tmp_path / "killed", agent, rows(20), samples=2, ratio=0.5)
        except Killed:
            kills += 1
            newest = max((tmp_path / "killed" / "bake").iterdir(), key=lambda path: path.stat().st_mtime_ns)
            if kills % 2 and newest.name != "run.json" and newest.stat().st_size > 20:  # the last line, torn
                newest.write_bytes(newest.read_bytes()[:-5])
    assert kills > 10 and done == summary and contents(tmp_path / "killed") == wanted and set(agent.asked) == set(asked)
    left[0] = agent.calls = 0
    assert (
        contextual(tmp_path / "killed", agent, rows(20), samples=2, ratio=0.5) == summary
    )  # and nobody is asked again


@pytest.mark.parametrize("change", [{"seed": 2}, {"ratio": 0.4}, {"target": "safe"}, {"rule": "reply"}, {"n": 39}])
def test_a_run_with_other_settings_is_refused(tmp_path, change):
    bake_rows(rows(), judge=WordJudge(), folder=tmp_path)
    given = rows(change.pop("n", 40))
    with pytest.raises(SafetyError, match="holds a run with other settings"):
        bake_rows(given, judge=WordJudge(), folder=tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"target": "contextual"}, "there is no teacher.*-mf MODEL_FILE"),
        ({"rule": "neither"}, "--bake-rule got 'neither'.*Did you mean 'either'"),
        ({"fallback": "recovery"}, "--bake-fallback got"),
        ({"ratio": 2.0}, "--bake-ratio got 2.0"),
        ({"given": []}, "no reply in these rows"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(tmp_path, change, match):
    given = change.pop("given", rows())
    with pytest.raises(SafetyError, match=match):
        bake_rows(given, judge=WordJudge(), folder=tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    (tmp_path / "baked.jsonl").write_text("{}")
    with pytest.raises(SafetyError, match="no run of ours"):
        bake_rows(rows(), judge=WordJudge(), folder=tmp_path)


def test_agents_of_parlai_are_teachers(tmp_path):
    """One whose sampler draws several replies at once, and one that can only answer."""
    given = [Row([f"w{n} rude"], "w1 w2", None, {}) for n in range(5)]
    sampled = make_agent(tmp_path, inference="topk", topk=8, beam_size=1)
    summary = bake_rows(given, judge=WordJudge(), folder=tmp_path / "a", target="contextual", agent=sampled, samples=4)
    assert summary.contextual["drawn"] == 20 and summary.contextual["asked"] == 5 and summary.contextual["found"]
    settings = json.loads((tmp_path / "a" / "bake" / "run.json").read_text())["generator"]
    assert settings["decoding"]["method"] == "topk" and len(settings["sha256"]) == 64
    from parlai.agents.fixed_response.fixed_response import FixedResponseAgent

    fixed = FixedResponseAgent(Opt(fixed_response="A calm answer."))
    summary = bake_rows(given, judge=WordJudge(), folder=tmp_path / "b", target="contextual", agent=fixed, samples=2)
    assert summary.contextual["drawn"] == 10 and summary.contextual["duplicate"] == 5
    assert summary.contextual["found"] == 3 and read(tmp_path / "b")[0]["reply"] == "A calm answer."
