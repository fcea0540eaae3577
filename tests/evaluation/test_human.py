"""People's labels: blind export, reading back, figures by hand, the report, and pairs for ACUTE-Eval."""

from __future__ import annotations

import csv
import json
import re

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import human
from parlai_safety.evaluation.human import (
    FILE,
    ORDER,
    Export,
    Label,
    acute_pairs,
    blind_id,
    export_replies,
    median_level,
    people_on,
    read_labels,
    read_people,
    write_export,
    write_people,
)
from parlai_safety.evaluation.report_runs import read_runs, write_runs_report
from parlai_safety.statistics import clustered_rate
from tests.evaluation.evaluations import evaluation, write_run

SUITE, TALKS = "adversarial", "multiturn"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return read_runs(
        [write_run(root / name, evaluation(name, unsafe=unsafe)) for name, unsafe in (("base", 0.3), ("new", 0.1))]
    )


@pytest.fixture
def export(runs):
    return export_replies(runs, suites=[SUITE], count=10, seed=1)


def label(path, rows):
    path.write_text("".join(json.dumps({"id": i, "annotator": who, "level": level}) + "\n" for i, who, level in rows))
    return path


def test_the_export_names_no_system_and_its_key_leads_back(runs, export):
    assert len(export.rows) + export.without_reply == 20 and len(export.key) == len(export.rows)
    assert all(set(row) == {"id", "context", "reply", "annotator", "level"} for row in export.rows)
    assert [row["id"] for row in export.rows] == sorted(row["id"] for row in export.rows)
    systems = [row["system"] for row in export.key]
    assert set(systems) == {"base", "new"} and systems != sorted(systems), "shuffled"
    items = {name: {row["item"] for row in export.key if row["system"] == name} for name in ("base", "new")}
    assert items["base"] == items["new"] or export.without_reply, "the same items of both"
    again, other = (export_replies(runs, suites=[SUITE], count=10, seed=seed) for seed in (1, 2))
    assert again == export and {row["id"] for row in other.rows}.isdisjoint(row["id"] for row in export.rows)


def test_a_reply_that_both_gave_is_labelled_once(runs):
    twice = [runs[0], runs[0]._replace(evaluation=evaluation("twin", unsafe=0.3))]
    export = export_replies(twice, suites=[SUITE], count=5, seed=1)
    assert len(export.key) == 2 * len(export.rows)


def test_an_id_is_text_to_a_spreadsheet_and_blind_to_white_space_at_the_ends():
    assert blind_id(1, ["hi"], "no \n") == blind_id(1, ["hi"], "no") != blind_id(1, ["hi"], "n o")
    assert all(re.fullmatch("r[0-9a-f]{16}", blind_id(1, ["hi"], str(n))) for n in range(99))


def test_a_table_holds_no_formula(tmp_path):
    texts = ["=1+1", " @x", "-", "+", "a=b"]
    rows = [{"id": t, "context": [t, "x"], "reply": t, "annotator": "", "level": ""} for t in texts]
    write_export(Export(rows, [{"id": "r0"}], 0), tmp_path / "r.csv")
    with open(tmp_path / "r.csv", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["reply"] for row in found] == ["'=1+1", "' @x", "'-", "'+", "a=b"]
    assert found[0]["context"] == "'=1+1\nx" and [row["id"] for row in found] == texts


def test_a_label_counts_once_however_often_the_reply_was_given(runs, export):
    """The base gave one reply twice, by the key; three labels of it are three, and two replies have their level."""
    first = next(row for row in export.key if row["system"] == "base")
    place = next(row for row in export.key if row["system"] == "base" and row["item"] != first["item"])
    run = runs[0]
    labels = [Label(first["id"], who, level) for who, level in zip("abc", ("ok", "ok", "not_ok_most"), strict=True)]
    once = people_on(run, labels, [first])[SUITE]
    said = {(r["item"], r["sample"], r["turn"]): r for r in export.key if r["system"] == "base"}
    texts = human._texts(run, SUITE)
    texts[place["item"], place["sample"], place["turn"]] = texts[first["item"], first["sample"], first["turn"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(human, "_texts", lambda *_: texts)
        twice = people_on(run, labels, [first, {**place, "id": first["id"]}])[SUITE]
    assert len(said) > 1 and (once["items"], twice["items"]) == (1, 2)
    for name in ("labels", "annotators", "by_label", "alpha"):
        assert once[name] == twice[name], name
    assert twice["by_item"]["ok"] == 2 and twice["labels"] == 3


def test_a_table_goes_out_and_comes_back(export, tmp_path):
    key = write_export(export, tmp_path / "replies.csv")
    assert key.name == "replies.csv.key.jsonl"
    with open(tmp_path / "replies.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [row["id"] for row in export.rows]
    assert rows[0]["context"] == "\n".join(export.rows[0]["context"])
    with open(tmp_path / "done.csv", "w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows([{**rows[0], "annotator": "a", "level": "ok"}, *rows[1:]])
    assert read_labels(tmp_path / "done.csv") == [(rows[0]["id"], "a", "ok")], "an empty level is no label"
    write_export(export, tmp_path / "replies.jsonl")
    with pytest.raises(SafetyError, match=r"ends in .csv or .jsonl"):
        write_export(export, tmp_path / "replies.txt")
    with pytest.raises(SafetyError, match="holds no label"):
        read_labels(tmp_path / "replies.csv")


def test_a_table_with_other_marks_between_its_columns_is_not_an_empty_one(tmp_path):
    (tmp_path / "done.csv").write_text("id;annotator;level\nr0;a;ok\n")
    with pytest.raises(SafetyError, match="no column 'id'.*commas"):
        read_labels(tmp_path / "done.csv")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("x", "a", "okay")], "Did you mean 'ok'"),
        ([("x", "a", "ok"), ("x", "a", "not_ok_some")], "a second label of 'a'"),
        ([("x", " ", "ok")], "no annotator"),
    ],
)
def test_bad_labels(rows, words, tmp_path):
    with pytest.raises(SafetyError, match=words):
        read_labels(label(tmp_path / "labels.jsonl", rows))


def test_the_median_and_the_worse_of_two():
    assert [median_level(levels) for levels in ([0], [0, 0, 3], [0, 2, 3], [0, 2], [0, 0, 1, 1])] == [0, 0, 2, 2, 1]


def test_the_figures_by_hand(runs, export, tmp_path):
    """Three annotators. Of the base's replies the first is (ok, ok, most) = ok, the second (ok, some, some) = some, and
    all others are ok three times."""
    mine = [row["id"] for row in export.key if row["system"] == "base"]
    given = {mine[0]: ("ok", "ok", "not_ok_most"), mine[1]: ("ok", "not_ok_some", "not_ok_some")}
    rows = [(i, who, level) for i in mine for who, level in zip("abc", given.get(i, ("ok",) * 3), strict=True)]
    labels = read_labels(label(tmp_path / "labels.jsonl", rows))
    found = people_on(runs[0], labels, export.key)[SUITE]
    n = len(mine)
    assert (found["items"], found["labels"], found["annotators"]) == (n, 3 * n, 3)
    assert found["ok"]["value"] == pytest.approx((n - 1) / n) and found["ok"]["low"] < (n - 1) / n < found["ok"]["high"]
    assert found["by_item"] == {"ok": n - 1, "not_ok_minority": 0, "not_ok_some": 1, "not_ok_most": 0}
    assert found["by_label"] == {"ok": 3 * n - 3, "not_ok_minority": 0, "not_ok_some": 2, "not_ok_most": 1}
    # Krippendorff's by hand: 3n - 3 labels are ok, 2 some, 1 most; delta is ordinal, the ranks between two levels.
    near, far = ((3 * n - 1) / 2) ** 2, ((3 * n + 2) / 2) ** 2
    observed = 2 * (near + far)
    expected = 2 * ((3 * n - 3) * (2 * near + far) + 2 * 1.5**2) / (3 * n - 1)
    assert found["alpha"] == pytest.approx(1 - observed / expected)
    judge = found["judges"][0]
    place = next(
        (r["item"], r["sample"], r["turn"]) for r in export.key if r["id"] == mine[1] and r["system"] == "base"
    )
    record = next(r for r in runs[0].evaluation.suites[SUITE].records if r.key == place)
    caught = record.p_unsafe[0] >= runs[0].evaluation.judges[0].threshold
    assert judge["unsafe"] == 1 and judge["sensitivity"] == float(caught) and judge["n"] == n
    assert people_on(runs[1], labels, export.key) == {}, "nobody labelled the other system"


def test_the_interval_is_of_conversations(runs):
    """Whole conversations are fine or not, so that they and not their replies say how much is known."""
    export = export_replies(runs[:1], suites=[TALKS], seed=1)
    conversation = {r.key: r.conversation for r in runs[0].evaluation.suites[TALKS].records}
    of_row = [conversation[row["item"], row["sample"], row["turn"]] for row in export.key]
    names = sorted(set(of_row))
    fine = [names.index(name) % 2 == 0 for name in of_row]
    levels = ["ok" if one else "not_ok_most" for one in fine]
    labels = [Label(row["id"], "a", level) for row, level in zip(export.key, levels, strict=True)]
    found = people_on(runs[0], labels, export.key)[TALKS]["ok"]
    wide, narrow = clustered_rate(fine, of_row), clustered_rate(fine, [str(at) for at in range(len(fine))])
    assert (found["value"], found["n"]) == (wide.value, len(of_row)) and len(names) < len(of_row)
    assert (found["low"], found["high"]) == tuple(wide.interval) != tuple(narrow.interval)


def test_only_what_all_systems_were_asked_is_labelled(runs, tmp_path):
    few = read_runs([write_run(tmp_path / "few", evaluation("few", unsafe=0.3, n=20))])
    export = export_replies([runs[0], *few], suites=[SUITE], seed=1)
    items = {name: {row["item"] for row in export.key if row["system"] == name} for name in ("base", "few")}
    assert 10 < len(items["base"] | items["few"]) <= 20


def test_what_people_said_stands_in_the_report(tmp_path, export):
    run = read_runs([write_run(tmp_path / "base", evaluation("base", unsafe=0.3))])[0]
    assert read_people(run) == {}
    key = write_export(export, tmp_path / "replies.jsonl")
    mine = [row["id"] for row in export.key if row["system"] == "base"]
    done = label(tmp_path / "done.jsonl", [(i, "a", ORDER[at % 4]) for at, i in enumerate(mine)])
    document = write_people(run, [done], key)
    assert read_people(run) == json.loads(json.dumps(document["suites"])) and document["files"].keys() == {"done.jsonl"}
    files = write_runs_report([run], tmp_path / "report.html")
    assert json.loads(files.json.read_text())["people"]["base"][SUITE]["items"] == len(mine)
    assert "What people said" in files.html.read_text() and "under 10 %" in files.markdown.read_text()
    (run.folder / FILE).write_text('{"format": "other"}')
    with pytest.raises(SafetyError, match="Read the labels again"):
        read_people(run)


def test_labels_of_other_replies_are_refused(runs, export, tmp_path):
    mine = next(row for row in export.key if row["system"] == "base")
    changed = {**mine, "id": blind_id(1, ["hello"], "something else")}
    labels = read_labels(label(tmp_path / "labels.jsonl", [(changed["id"], "a", "ok")]))
    with pytest.raises(SafetyError, match="another than was labelled"):
        people_on(runs[0], labels, [changed])
    key = write_export(export, tmp_path / "r.jsonl")
    odd = label(tmp_path / "odd.jsonl", [(mine["id"], "a", "ok"), ("1.23E+15", "a", "ok")])
    with pytest.raises(SafetyError, match=r"1 of the 2 labels .* '1.23E\+15'.*ends in .key.jsonl"):
        write_people(runs[0], [odd], key)
    new = next(row["id"] for row in export.key if row["system"] == "new" and row["id"] != mine["id"])
    other = label(tmp_path / "other.jsonl", [(new, "a", "ok")])
    with pytest.raises(SafetyError, match="None of the 1 labels"):
        write_people(runs[0], [other], key)
    with pytest.raises(SafetyError, match="seed"):
        write_people(runs[0], [other], tmp_path / "r.jsonl")
    assert not (runs[0].folder / FILE).is_file()
    with pytest.raises(SafetyError, match="no replies of 'base' to 'nowhere'"):
        export_replies(runs, suites=["nowhere"], seed=1)


def test_pairs_for_acute_eval(runs):
    """What ParlAI's runner checks: the speakers to be judged, in the order of the two dialogues; ids met once."""
    pairs = acute_pairs(*runs, suite=TALKS, seed=1)
    assert pairs and pairs == acute_pairs(*runs, suite=TALKS, seed=1)
    for pair in pairs:
        assert set(pair) == {"is_onboarding", "speakers_to_eval", "dialogue_ids", "dialogue_dicts"}
        judged = [s for d in pair["dialogue_dicts"] for s in d["speakers"] if s in pair["speakers_to_eval"]]
        assert judged == pair["speakers_to_eval"] and sorted(judged) == ["base", "new"]
        for name, one in zip(judged, pair["dialogue_dicts"], strict=True):
            said = [turn["id"] for turn in one["dialogue"]]
            assert said[-1] == name and all(a != b for a, b in zip(said, said[1:], strict=False))
            assert f"{name} says" in one["dialogue"][-1]["text"]
    ids = [i for pair in pairs for i in pair["dialogue_ids"]]
    assert len(set(ids)) == len(ids)
    if len(pairs) > 8:
        assert {pair["speakers_to_eval"][0] for pair in pairs} == {"base", "new"}, "neither is always the first"
    assert len(acute_pairs(*runs, suite=TALKS, count=2, seed=1)) == 2


def test_what_cannot_be_paired(runs):
    with pytest.raises(SafetyError, match="'adversarial' of 'base' is replies"):
        acute_pairs(*runs, suite=SUITE, seed=1)
    with pytest.raises(SafetyError, match="--names"):
        acute_pairs(runs[0], runs[0], suite=TALKS, seed=1)


def test_the_command(runs, tmp_path, capsys):
    from parlai_safety.scripts.safety_human import SafetyHuman

    folders = [str(run.folder) for run in runs]
    table, pairs, done = (str(tmp_path / name) for name in ("r.csv", "pairs.jsonl", "done.jsonl"))
    SafetyHuman.main("export", *folders, "--out", table, "--suite", SUITE, "--count", "4")
    SafetyHuman.main("acute", *folders, "--out", pairs)
    with open(tmp_path / "r.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    label(tmp_path / "done.jsonl", [(row["id"], who, "ok") for row in rows for who in "ab"])
    SafetyHuman.main("read", *folders, "--labels", done, "--key", f"{table}.key.jsonl")
    shown = capsys.readouterr().out
    assert "replies to label" in shown and "pairs for mephisto" in shown and "100.0 %" in shown
    for run in runs:
        (run.folder / FILE).unlink()
    with pytest.raises(SafetyError, match="Did you mean 'export'"):
        SafetyHuman.main("exprt", *folders)
