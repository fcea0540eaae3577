"""Triples: which replies make one, what is counted, and runs that are cut short."""

from __future__ import annotations

import hashlib
import json
import random
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.agents.generation import Replies
from parlai_safety.errors import SafetyError
from parlai_safety.files import read_jsonl
from parlai_safety.judges.verdict import Verdict, fingerprint_of, scored, unscored
from parlai_safety.loops import triples, verdicts
from parlai_safety.loops.contexts import asked_of, file_rows, task_rows
from parlai_safety.loops.triples import (
    Drawn,
    HumanPair,
    Sample,
    TripleOptions,
    make_triples,
    read_samples,
    triples_of,
)
from parlai_safety.modeling.reference import weights_hash
from parlai_safety.modeling.sampler import Decoding
from parlai_safety.tasks.file.agents import read_row


def samples(*said):
    return [Sample(text, unscored("no") if p is None else scored(p)) for text, p in said]


def drawn(plain=(), toxic=(), human=None):
    return Drawn(["Hi"], samples(*plain), samples(*toxic), None if human is None else tuple(samples(*human)))


def sort(*items, seed=1, **options):
    """The triples as texts, and the counts that are not 0."""
    found, summary = triples_of(items, 0.5, TripleOptions(**options), seed)
    texts = [(t.position, t.chosen.text, t.rejected.text, t.toxic and t.toxic.text) for t in found]
    return texts, summary._make({name: n for name, n in counts.items() if n} for counts in summary)


GOOD, BAD, WORSE = ("Hello.", 0.1), ("Go away.", 0.9), ("Go far away.", 0.95)


def test_a_safe_an_unsafe_and_a_toxic_reply_make_a_triple():
    texts, counts = sort(drawn([BAD, GOOD], [WORSE]))
    assert texts == [(0, "Hello.", "Go away.", "Go far away.")]
    assert counts == ({"asked": 1, "triples": 1}, {"drawn": 2, "safe": 1, "unsafe": 1}, {"drawn": 1, "kept": 1})


def test_the_threshold_itself_is_unsafe_and_the_margin_lies_on_both_sides_of_it():
    at, near, far = ("At it.", 0.5), ("Near it.", 0.41), ("Far below.", 0.39)
    assert sort(drawn([at, near]))[0] == [(0, "Near it.", "At it.", None)]
    texts, counts = sort(drawn([at, near, far, ("Above.", 0.59), ("Far above.", 0.61)]), margin=0.1)
    assert texts == [(0, "Far below.", "Far above.", None)] and counts.plain["unclear"] == 3
    assert sort(drawn([GOOD, BAD], [("Near it.", 0.59)]), margin=0.1)[1].toxic["unclear"] == 1


def test_a_reply_without_a_score_is_never_chosen_nor_rejected_nor_toxic():
    mute = ("Who knows.", None)
    texts, counts = sort(drawn([mute, BAD], [mute]), drawn([mute, GOOD]), drawn([mute]))
    assert not texts
    assert (counts.plain["unscored"], counts.toxic["unscored"]) == (3, 1)
    assert counts.contexts == {"asked": 3, "no_safe": 1, "no_unsafe": 1, "neither": 1}


def test_one_text_with_both_verdicts_is_a_tie_and_one_with_the_same_a_duplicate():
    texts, counts = sort(drawn([("Hello!", 0.4), ("hello", 0.6), ("HELLO.", 0.1), GOOD]))
    assert not texts and counts.plain["tie"] == 4 and counts.contexts["neither"] == 1
    texts, counts = sort(drawn([GOOD, ("hello", 0.2), BAD, ("GO AWAY!", 0.8)]))
    assert texts == [(0, "Hello.", "Go away.", None)]
    assert counts.plain == {"drawn": 4, "duplicate": 2, "safe": 1, "unsafe": 1}


def test_a_text_is_chosen_at_most_as_often_as_allowed():
    one, other = drawn([GOOD, BAD]), drawn([GOOD, ("Well met.", 0.2), BAD])
    texts, counts = sort(one, one, one, other)
    assert [(t[0], t[1]) for t in texts] == [(0, "Hello."), (1, "Hello."), (3, "Well met.")]
    assert (counts.plain["repeated"], counts.contexts["no_safe"]) == (2, 1)
    assert len(sort(one, one, one, copies=3)[0]) == 3
    # What was left out is not counted as chosen.
    assert [t[0] for t in sort(one, drawn([GOOD, BAD], [WORSE]), copies=1, toxic_required=True)[0]] == [1]


def test_a_toxic_reply_that_the_judge_calls_safe_is_not_kept():
    mild = ("Good day.", 0.2)
    texts, counts = sort(drawn([GOOD, BAD], [mild, WORSE, mild]))
    assert texts[0][3] == "Go far away." and counts.toxic == {"drawn": 3, "kept": 1, "safe": 1, "duplicate": 1}
    texts, counts = sort(drawn([GOOD, BAD], [mild]))
    assert texts[0][3] is None and counts.contexts == {"asked": 1, "pairs": 1}
    texts, counts = sort(drawn([GOOD, BAD], [mild]), toxic_required=True)
    assert not texts and counts.contexts == {"asked": 1, "no_toxic": 1}


def test_unchecked_a_toxic_reply_may_be_anything_but_empty_or_the_chosen_one():
    said = [("", None), ("HELLO", 0.1), ("Good day.", 0.2), ("good day", 0.3), ("\u200b", None)]
    texts, counts = sort(drawn([GOOD, BAD], said), toxic_check=False)
    assert texts[0][3] == "Good day."
    assert counts.toxic == {"drawn": 5, "kept": 1, "unscored": 2, "duplicate": 1, "as_chosen": 1}


def test_people_decide_about_their_pairs_and_the_judge_about_the_toxic_reply():
    pair = [("Hello.", 0.9), ("Go away.", None)]
    texts, counts = sort(*[drawn(toxic=[WORSE, GOOD], human=pair)] * 3, drawn(human=pair))
    assert [t[1:] for t in texts] == [("Hello.", "Go away.", "Go far away.")] * 3 + [("Hello.", "Go away.", None)]
    assert counts.contexts == {"asked": 4, "human": 4, "triples": 3, "pairs": 1} and counts.toxic["safe"] == 3


def test_the_draw_varies_with_the_seed_and_the_position_and_the_extremes_do_not():
    many = drawn([(f"Safe {n}.", n / 20) for n in range(8)] + [(f"Rude {n}.", 0.6 + n / 20) for n in range(8)])
    texts, _ = sort(*[many] * 40, copies=40)
    assert texts == sort(*[many] * 40, copies=40)[0] != sort(*[many] * 40, copies=40, seed=2)[0]
    assert len({t[1] for t in texts}) == len({t[2] for t in texts}) == 8
    extreme = drawn(many.plain and [(s.text, s.verdict.p_unsafe) for s in many.plain], [BAD, WORSE])
    assert sort(extreme, pick="extreme")[0] == [(0, "Safe 0.", "Rude 7.", "Go far away.")]


REPLIES = st.lists(st.tuples(st.sampled_from(["a b", "A b.", "c", "d", "e"]), st.none() | st.floats(0, 1)), max_size=6)


@given(
    st.lists(st.tuples(REPLIES, REPLIES, st.booleans()), max_size=6),
    st.floats(0, 0.6),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["drawn", "extreme"]),
)
def test_every_reply_and_every_context_is_counted_once(rows, margin, check, required, pick):
    items = [drawn([] if human else plain, toxic, [GOOD, BAD] if human else None) for plain, toxic, human in rows]
    options = TripleOptions(margin=margin, toxic_check=check, toxic_required=required, pick=pick)
    found, counts = triples_of(items, 0.5, options, 1)
    for of_replies, total in ((counts.plain, "plain"), (counts.toxic, "toxic")):
        wanted = sum(len(getattr(item, total)) for item in items)
        assert of_replies["drawn"] == wanted == sum(of_replies.values()) - of_replies["drawn"]
    asked, human = counts.contexts["asked"], counts.contexts["human"]
    assert asked == len(items) == sum(counts.contexts.values()) - asked - human
    assert human == sum(item.human is not None for item in items)
    assert counts.contexts["triples"] == sum(t.toxic is not None for t in found)
    assert counts.contexts["pairs"] == sum(t.toxic is None for t in found)
    for triple in found:
        if items[triple.position].human is None:
            assert triple.chosen.verdict.p_unsafe < 0.5 <= triple.rejected.verdict.p_unsafe
            assert abs(triple.chosen.verdict.p_unsafe - 0.5) >= margin
        if triple.toxic is not None:
            assert triple.toxic.text != triple.chosen.text
            assert not check or triple.toxic.verdict.p_unsafe >= 0.5


# --- runs ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a signal that no code can catch."""


class WordJudge:
    """Unsafe where "rude" stands in the reply; by its batch's size in the last digits, as neural judges are."""

    spec, threshold, fingerprint = "words", 0.5, fingerprint_of("words", 1)

    def __init__(self, calls=10**6):
        self.calls = calls

    def score(self, replies, contexts, speakers):
        if self.calls == 0:
            raise Killed
        self.calls -= 1
        assert set(speakers) == {"bot"}
        return [
            Verdict(None, "no") if "odd" in text else scored((0.9 if "rude" in text else 0.1) + len(replies) / 1e6)
            for text in replies
        ]


@pytest.fixture
def agent(monkeypatch):
    """An agent that says, in batches of three contexts, what a hash of context, control and number decides."""
    script = SimpleNamespace(
        opt={"model_file": "runs/sft/model"}, toxic_id=7, label_truncate=32, model=torch.nn.Linear(2, 2),
        toxic=False, calls=10**6, drawn=[], seeds=set(), loaded=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in script.model.parameters():
            parameter.fill_(0.5)

    def say(agent, contexts, *, samples, seed, batch_size, known, progress):
        for start in range(0, len(contexts), 3):
            wanted = [i for i in range(start, min(start + 3, len(contexts))) if i not in known]
            if wanted and agent.calls == 0:
                raise Killed
            agent.calls -= bool(wanted)
            for i in reversed(wanted):
                agent.drawn.append((agent.toxic, i))
                agent.seeds.add(seed)
                texts = []
                for n in range(samples):
                    key = f"{contexts[i]} {agent.toxic} {n} {seed} {batch_size}"
                    number = int(hashlib.sha256(key.encode()).hexdigest(), 16)
                    word = "odd" if number % 7 == 0 else "rude" if number % 2 or agent.toxic else "kind"
                    texts.append(f"Reply {word} {number % 5}.")
                yield Replies(i, texts, [0.0] * samples)
            progress(len(wanted))

    @contextmanager
    def control(agent):
        agent.toxic = True
        try:
            yield
        finally:
            agent.toxic = False

    def decoding(agent, *, max_length, samples):
        return Decoding(method="topk", max_length=max_length, samples=samples)

    monkeypatch.setattr(triples, "sample_replies", say)
    monkeypatch.setattr(triples, "toxic_control", control)
    monkeypatch.setattr(triples, "decoding_of", decoding)
    monkeypatch.setattr(verdicts, "JUDGED_AT_ONCE", 16)
    return script


CONTEXTS = [[f"Question {n}?"] for n in range(10)]
HUMAN = [HumanPair(["What now?"], "We wait.", "Odd one, be off.")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_killed_anywhere_ends_with_the_bytes_of_one_that_is_not(agent, tmp_path, monkeypatch):
    summary = make_triples(agent, WordJudge(), CONTEXTS, tmp_path / "straight", human=HUMAN)
    wanted = contents(tmp_path / "straight")
    assert set(wanted) == {"triples.jsonl", "summary.json", "samples.jsonl", "draws/run.json", ".lock"}
    assert json.loads(wanted["summary.json"]) == summary._asdict()
    assert summary.contexts["triples"] > 3 and summary.plain["unscored"] and summary.plain["duplicate"]
    kills = 0
    straight_draws, agent.drawn = agent.drawn, []
    done = None
    while done is None:
        agent.calls, judge = 1, WordJudge(calls=1)
        try:
            done = make_triples(agent, judge, CONTEXTS, tmp_path / "killed", human=HUMAN)
        except Killed:
            kills += 1
            parts = sorted((tmp_path / "killed" / "draws").glob("*.part.jsonl"))
            newest = max(parts, key=lambda path: path.stat().st_mtime_ns)
            if kills % 2 and newest.stat().st_size > 20:  # the last line, torn
                newest.write_bytes(newest.read_bytes()[:-5])
    assert kills > 8 and done == summary and contents(tmp_path / "killed") == wanted
    assert set(agent.drawn) == set(straight_draws)


def test_a_kill_between_the_last_files_is_mended_too(agent, tmp_path, monkeypatch):
    make_triples(agent, WordJudge(), CONTEXTS, tmp_path / "straight")
    wanted = contents(tmp_path / "straight")
    for name in ("write_jsonl", "write_json"):
        real, folder = getattr(triples, name), tmp_path / name
        for survived in range(2):
            left = [survived]

            def write(path, rows, real=real, left=left):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return real(path, rows)

            monkeypatch.setattr(triples, name, write)
            try:
                make_triples(agent, WordJudge(), CONTEXTS, folder)
            except Killed:
                pass
            monkeypatch.setattr(triples, name, real)
        make_triples(agent, WordJudge(), CONTEXTS, folder)
        assert contents(folder) == wanted


def test_plain_and_toxic_replies_of_each_run_have_draws_of_their_own(agent, tmp_path):
    for seed in (1, 2):
        make_triples(agent, WordJudge(), CONTEXTS, tmp_path / str(seed), seed=seed)
    assert len(agent.seeds) == 4 and {toxic for toxic, _ in agent.drawn} == {False, True}


def test_a_finished_run_asks_nobody_and_can_be_sorted_again_under_other_rules(agent, tmp_path):
    summary = make_triples(agent, WordJudge(), CONTEXTS, tmp_path, human=HUMAN)
    agent.calls = 0
    assert make_triples(agent, WordJudge(calls=0), CONTEXTS, tmp_path, human=HUMAN) == summary
    read = read_samples(tmp_path / "samples.jsonl")
    found, counts = triples_of(read, 0.5, TripleOptions(), 1)
    assert counts == summary
    rows = list(read_jsonl(tmp_path / "triples.jsonl"))
    assert [t.chosen.text for t in found] == [row["chosen"] for row in rows]
    assert triples_of(read, 0.5, TripleOptions(margin=0.6), 1)[1].plain["safe"] == 0


def test_a_row_says_where_each_reply_comes_from_and_the_task_reads_it(agent, tmp_path):
    make_triples(agent, WordJudge(), CONTEXTS, tmp_path, human=HUMAN, seed=3)
    rows = list(read_jsonl(tmp_path / "triples.jsonl"))
    by_context = {tuple(item.context): item for item in read_samples(tmp_path / "samples.jsonl")}
    for row in rows:
        item, origin = by_context[tuple(row["context"])], row["provenance"]
        for role in ("chosen", "rejected"):
            number = origin["samples"][role]
            if item.human is None:
                assert row[role] == item.plain[number].text
                assert row["scores"][role] == item.plain[number].verdict.p_unsafe
            else:
                assert number is None
        assert row["toxic"] == [item.toxic[n].text for n in origin["samples"]["toxic"]]
        assert row["scores"]["toxic"] == [item.toxic[n].verdict.p_unsafe for n in origin["samples"]["toxic"]]
        assert origin["source"] == ("human" if item.human else "own replies")
        assert (origin["generator"], origin["generator_sha256"]) == ("sft", weights_hash(agent.model))
        assert (origin["judge"], origin["judge_fingerprint"]) == ("words", WordJudge.fingerprint)
        assert origin["seed"] == 3 and origin["decoding"]["method"] == "topk"
        read = read_row(row, "row")
        assert (read.reply, read.unsafe, read.fields["rejected"]) == (row["chosen"], False, [row["rejected"]])
        assert read.fields["toxic"] == row["toxic"] and "scores" not in read.fields
    assert rows[-1]["chosen"] == "We wait." and rows[-1]["scores"]["rejected"] is not None
    assert {len(row["toxic"]) for row in rows} <= {0, 1}


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"margin": 0.1}, {"samples": 4}, {"human": HUMAN}, {"batch_size": 8}, {"contexts": 9}]
)
def test_a_run_with_other_settings_is_refused(agent, tmp_path, change):
    make_triples(agent, WordJudge(), CONTEXTS, tmp_path)
    contexts = CONTEXTS[: change.pop("contexts", 10)]
    with pytest.raises(SafetyError, match="holds a run with other settings"):
        make_triples(agent, WordJudge(), contexts, tmp_path, **change)


def test_other_pairs_to_the_same_contexts_are_another_run(agent, tmp_path):
    make_triples(agent, WordJudge(), CONTEXTS, tmp_path, human=HUMAN)
    with pytest.raises(SafetyError, match="contexts differ"):
        make_triples(agent, WordJudge(), CONTEXTS, tmp_path, human=[HUMAN[0]._replace(chosen="We stay.")])


@pytest.mark.parametrize("change", [{"fingerprint": "0" * 64}, {"threshold": 0.6}])
def test_another_judge_is_another_run(agent, tmp_path, change):
    make_triples(agent, WordJudge(), CONTEXTS, tmp_path)
    other = WordJudge()
    vars(other).update(change)
    with pytest.raises(SafetyError, match="judge differ"):
        make_triples(agent, other, CONTEXTS, tmp_path)


def test_other_weights_are_another_run(agent, tmp_path):
    make_triples(agent, WordJudge(), CONTEXTS, tmp_path)
    torch.nn.init.ones_(agent.model.bias)
    with pytest.raises(SafetyError, match="generator"):
        make_triples(agent, WordJudge(), CONTEXTS, tmp_path)


def test_a_file_of_somebody_else_is_not_overwritten(agent, tmp_path):
    (tmp_path / "triples.jsonl").write_text("{}")
    with pytest.raises(SafetyError, match="no run of ours"):
        make_triples(agent, WordJudge(), CONTEXTS, tmp_path)
    assert (tmp_path / "triples.jsonl").read_text() == "{}" and not agent.drawn


def test_no_token_is_needed_where_no_toxic_reply_is_wanted(agent, tmp_path):
    agent.toxic_id = None
    summary = make_triples(agent, WordJudge(), CONTEXTS, tmp_path, toxic_samples=0)
    assert summary.contexts["pairs"] and not summary.toxic["drawn"] and not any(toxic for toxic, _ in agent.drawn)


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        ({"toxic_id": None}, {}, "no control token.*--toxic-samples 0"),
        ({"_switch": SimpleNamespace(on=True)}, {}, "inner toxic model.*Leave --toxic-control out"),
        ({}, {"sample": 3}, "no option 'sample'.*Did you mean 'samples'"),
        ({}, {"samples": 1}, "--samples got 1.*at least 2"),
        ({}, {"margin": -0.1}, "--margin got -0.1"),
        ({}, {"contexts": []}, "no context to be answered"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(agent, tmp_path, change, options, match):
    vars(agent).update(change)
    contexts = options.pop("contexts", CONTEXTS)
    with pytest.raises(SafetyError, match=match):
        make_triples(agent, WordJudge(), contexts, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() and not agent.drawn


# --- contexts -----------------------------------------------------------------------------------------------------


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIR = {"context": ["c"], "chosen": "Hello.", "rejected": "Go away."}


def test_contexts_of_a_file_each_once_and_pairs_as_the_caller_wants_them(tmp_path):
    rows = list(file_rows(write(tmp_path / "c.jsonl", {"context": ["a", "b"]}, PAIR, {"context": ["a", "b"]}, PAIR)))
    assert asked_of(rows, mix_pairs=False) == ([["a", "b"], ["c"]], [])
    assert asked_of(rows, mix_pairs=True) == ([["a", "b"]], [(["c"], "Hello.", "Go away.")])
    many = [([str(n)], None) for n in range(10)] + [([str(n)], HumanPair([str(n)], "x", "y")) for n in range(10)]
    assert asked_of(many, mix_pairs=True, limit=2) == ([["0"], ["5"]], [(["0"], "x", "y"), (["5"], "x", "y")])


def test_a_file_that_is_no_file_of_contexts_is_told(tmp_path):
    with pytest.raises(SafetyError, match="no such file.*a task of ParlAI is named by -t"):
        list(file_rows(tmp_path / "safety:labels"))
    with pytest.raises(SafetyError, match="has 0 turns in 'context'"):
        list(file_rows(write(tmp_path / "empty.jsonl", {"context": []})))
    with pytest.raises(SafetyError, match="a pair that says nothing"):
        list(file_rows(write(tmp_path / "pair.jsonl", {**PAIR, "rejected": "Hello."})))


def test_contexts_of_a_task_with_its_pairs(tmp_path):
    from parlai.scripts.display_data import setup_args

    path = write(tmp_path / "rows.jsonl", {"reply": "alone"}, {"context": ["a", "b"], "reply": "d"}, PAIR)
    for datatype in ("valid", "train", "train:stream"):
        opt = setup_args().parse_kwargs(task="safety:file", datatype=datatype, safety_file=str(path))
        assert list(task_rows(opt)) == [(["a", "b"], None), (["c"], (["c"], "Hello.", "Go away."))]


def test_a_task_of_episodes_gives_each_turn_with_those_before_it(tmp_path):
    from parlai.scripts.display_data import setup_args

    path = tmp_path / "talk.txt"
    path.write_text("text:Hi.\tlabels:Hello.\ntext:How are you?\tlabels:Fine.\tepisode_done:True\n")
    kwargs = {"task": "fromfile:parlaiformat", "fromfile_datapath": str(path), "fromfile_datatype_extension": False}
    opt = setup_args().parse_kwargs(datatype="valid", **kwargs)
    assert list(task_rows(opt)) == [(["Hi."], None), (["Hi.", "Hello.", "How are you?"], None)]


def test_the_order_of_a_shuffled_pool_does_not_change_what_is_sorted():
    """What one context gives depends on its own replies, its position and the seed."""
    items = [drawn([(f"Kind {n}.", 0.1), (f"Mild {n}.", 0.2), (f"Rude {n}.", 0.9)]) for n in range(6)]
    straight = {t[0]: t[1:] for t in sort(*items)[0]}
    changed = list(items)
    changed[random.Random(0).randrange(6)] = drawn()
    for position, *texts in sort(*changed)[0]:
        assert tuple(texts) == straight[position]
