import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import plots
from parlai_safety.evaluation.page import to_html
from parlai_safety.evaluation.report_figures import largest_gap
from parlai_safety.evaluation.report_replies import ReportedRun, differ, suite_replies
from parlai_safety.evaluation.report_runs import (
    _part_cell,
    read_runs,
    runs_document,
    runs_page,
    write_runs_report,
)
from parlai_safety.evaluation.results import JudgeEntry, Measure
from tests.conftest import ROOT
from tests.evaluation.evaluations import GROUPS, HOSTILE, LINEAR, SUITES, card, evaluation, three_runs, write_run
from tests.evaluation.html_page import Page, outside

NAME = "CRINGE $a$ <b>"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return three_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def files(paths, tmp_path_factory):
    return write_runs_report(read_runs(paths), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def text(files):
    return files.html.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


@pytest.fixture(scope="module")
def document(files):
    return json.loads(files.json.read_text(encoding="utf-8"))


def words(listed):
    return " ".join("".join(listed).replace("\N{NO-BREAK SPACE}", " ").split())


def run(*args, **changed):
    return ReportedRun(evaluation(*args, **changed))


def with_measures(found, suite, change):
    """The evaluation with its measures of a suite changed one by one."""
    suites = dict(found.suites)
    suites[suite] = dataclasses.replace(suites[suite], measures=[change(m) for m in suites[suite].measures])
    return dataclasses.replace(found, suites=suites)


def test_the_page_is_well_formed_and_says_everything(page, document):
    said = words(page.text)
    assert document["headline"] in said
    assert document["headline"].startswith(f"{NAME}: 10.3 % unsafe replies against 29.3 % of base.")
    for needed in [
        *document["remarks"],
        "29.3 % [19.2, 42.0] n 58, 2 unscored corrected 26.4 % [20.5, 35.2]",
        "27.6 % [17.8, 40.2] n 58, 2 unscored uncorrected",
        "no card: error rates unknown",
        "1" * 64,
        "2" * 64,
        "0.953 [0.940, 0.965] n 1210",
        "88.0 % [83.0, 92.0] n 400",
        "1 % 0.71 80.0 % [75.8, 83.6] n 400",
        "Careful: Made-up warning",
        "the shipped corpus, half B",
        "shipped evasive replies",
        "AUC0.970 [0.940, 0.990] (n 200)",
        "on hard ones0.900 (n 40)",
        "on easy onesn/a (n 0)",
        "base, adversarial 53 0.812 0.640 0.633",
        "base, identity 0 n/a n/a n/a",
        "parlai safety_eval -mf models/2",
        "2 CPU cores, no GPU",
        "torch2.13",
        hashlib.sha256(b"multiturn").hexdigest(),
        "unsafe, by wordlist",
    ]:
        assert needed in said, needed
    assert "script" not in {tag for tag, _ in page.tags}


def test_the_page_can_be_heard_and_walked_through(page):
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    # Three of the frontier, categories, groups, survival.
    assert len(pictures) == 6
    assert all(attrs["role"] == "img" and "base" in attrs["aria-label"] for attrs in pictures)
    counted = [tag for tag, _ in page.tags]
    assert counted.count("table") == counted.count("caption") > 10
    assert {attrs.get("scope") for tag, attrs in page.tags if tag == "th"} == {"col", "row"}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {
        attrs[name][1:] for _, attrs in page.tags for name in ("href", "xlink:href") if attrs.get(name, "")[:1] == "#"
    }
    assert targets and targets <= set(ids)


def test_pictures_are_painted_in_the_colours_of_the_page(text, page):
    painted = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))))
    patterns = {colour for colour in painted if colour.startswith("url(#")}
    assert painted - patterns <= {"currentColor", "var(--accent)", "var(--paper)", "none"}
    assert {base for base in ("base", NAME)} <= set(page.svg_text)
    assert not re.search(r"#(?:0[1-9]){3}", text)


def test_many_systems_are_told_apart_without_colour():
    names = [f"system {place}" for place in range(5)]
    sections = {
        section.anchor: section for section in runs_page([run(n, seed=i) for i, n in enumerate(names)]).sections
    }
    bars, frontier = (
        next(block for block in sections[anchor].blocks if block.kind == "figure") for anchor in ("suite-0", "traded")
    )
    (svg,) = bars.panels
    filled = re.findall(r"fill: (url\(#[^)]*\)|var\(--\w+\))", svg[svg.rindex("axes_2") :])
    # Every system has a filling of its own in the legend: paper, full, and three hatches.
    assert len(set(filled)) == 5
    assert len(frontier.panels) == 3 and "hollow mark" not in frontier.caption
    for panel in frontier.panels:
        assert re.findall(r">(system \d)</text>", panel) == names


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_stands_out_from_the_paper(text, scheme):
    blocks = dict(zip(("light", "dark", "print"), re.findall(r":root \{(.*?)\}", text, re.DOTALL), strict=True))
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in ("ink", "quiet", "accent", "bad", "good"):
        for ground in ("paper", "shade"):
            low, high = sorted(luminance(colours[key]) for key in (name, ground))
            # WCAG 2.2, 1.4.3: 4.5 to 1 for text of the usual size.
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_the_page_asks_the_network_for_nothing(text):
    assert outside(text) == []


def test_a_failed_evaluation_is_seen_and_not_headlined(page, document, text):
    said = words(page.text)
    assert "Failed: broken. 300 of 600 replies (50 %) of the suite 'ordinary' are unscored" in said
    assert "broken" not in document["headline"] and "broken (failed)" in said
    assert not any("broken" in drawn for drawn in page.svg_text)
    assert said.index("Failed: broken") < said.index(document["headline"])
    shown = {said["system"] for entries in document["replies"].values() for entry in entries for said in entry["said"]}
    assert shown == {"base", NAME}


def test_nothing_is_headlined_where_nothing_is_complete():
    found = runs_page([run("a", status="it stopped."), run("b", status="it stopped too")])
    assert found.headline == "No evaluation is complete, so there is nothing to headline."
    assert len(found.bands) == 2 and "<svg" not in to_html(found)


def test_a_part_of_nothing_is_not_nought():
    assert _part_cell(None, Measure("sensitive_topic", None, n=0, unscored=3)) == ("n/a", "n 0")
    assert _part_cell(None, Measure("sensitive_topic", 0.5, n=4)) == ("0.0 %", "n 4")


def test_what_is_missing_is_never_nought(page, document):
    said = words(page.text)
    assert f"{GROUPS[3]} unscored n 0, 15 unscored" in said
    assert "F1" in said and "unscored n 0, 60 unscored" in said
    identity = document["systems"][0]["suites"]["identity"]
    assert [m["value"] for m in identity["by_group"][GROUPS[3]]][:2] == [None, None]
    assert "unscored" in page.svg_text
    blank = evaluation("blank")
    for suite in SUITES:
        blank = with_measures(blank, suite, lambda m: Measure(m.name, None, unscored=60, judge=m.judge))
    suites = {
        name: dataclasses.replace(s, by_category={}, by_group={}, survival=[]) for name, s in blank.suites.items()
    }
    blank = dataclasses.replace(blank, suites=suites, detectors={}, judges=[JudgeEntry(LINEAR, "1" * 64, 0.5, None)])
    found = runs_page([ReportedRun(blank)])
    assert found.headline == "blank: unscored."
    shown = words(Page(to_html(found)).text)
    assert "unscored n 0, 60 unscored" in shown and not re.search(r"\b0\.0+ ?%|\b0\.000\b", shown)


@pytest.mark.parametrize("bars", [True, False])
def test_an_unscored_bar_is_not_drawn(bars):
    def picture(bar):
        return plots.shares(["a"], [("group", [bar])], "%", bars=bars, name="x", spoken="")

    nothing = picture(plots.Bar(None, None, "unscored"))
    assert "var(--accent)" not in nothing and ">unscored</text>" in nothing
    assert "var(--accent)" in picture(plots.Bar(0.0, (0.0, 0.1), "0.0 %"))


def test_hostile_replies_and_names_stay_text_and_hidden(page, text, files):
    assert "<script" not in text.lower() and "&lt;script&gt;alert(" in text
    assert HOSTILE in "".join(page.text)
    assert "turnip" not in "".join(page.outside) and "what of hat" not in "".join(page.outside)
    assert not [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs]
    assert "<b>:" not in text and "CRINGE $a$ &lt;b&gt;" in text
    assert "turnip" not in files.markdown.read_text(encoding="utf-8")


def test_the_same_evaluations_give_the_same_bytes(paths, files, tmp_path):
    code = (
        "import sys\n"
        "from parlai_safety.evaluation.report_runs import read_runs, write_runs_report\n"
        "write_runs_report(read_runs(sys.argv[2:]), sys.argv[1])\n"
        "print({'parlai', 'torch'} & {name.split('.')[0] for name in sys.modules})"
    )
    again = tmp_path / "report.html"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(again), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    assert done.stdout.strip() == "set()"
    for path in files:
        assert path.read_bytes() == again.with_suffix(path.suffix).read_bytes()


def test_the_json_says_the_same_as_the_evaluations(paths, document):
    runs = read_runs(paths)
    assert document == json.loads(json.dumps(runs_document(runs), allow_nan=False))
    for found, (source, _) in zip(document["systems"], runs, strict=True):
        assert {key: found[key] for key in ("name", "seed", "command", "status")} == {
            key: getattr(source, key) for key in ("name", "seed", "command", "status")
        }
        for name, suite in source.suites.items():
            again = [Measure(**m) for m in found["suites"][name]["measures"]]
            assert again == list(suite.measures)
            assert set(found["suites"][name]["by_group"]) == set(suite.by_group)
            assert "records" not in found["suites"][name]
        assert found["suites"]["multiturn"]["survival"][0]["share"] == list(
            source.suites["multiturn"].survival[0].share
        )


def test_the_markdown_says_the_same(files, document):
    text = files.markdown.read_text(encoding="utf-8")
    assert text.startswith("# Evaluation of base, CRINGE $a$ \\<b> and broken\n\n> **Failed: broken.")
    assert document["headline"].replace("<b>", "\\<b>") in text
    assert re.search(
        r"\| adversarial +\| 29\.3 %; \[19\.2, 42\.0\]; n 58, 2 unscored; corrected 26\.4 % \[20\.5, 35\.2\] \|", text
    )
    assert "| loaded question \\| with a bar |" in text
    assert "no card: error rates unknown" in text and "parlai safety_eval -mf models/1" in text


def test_replies_are_drawn_evenly_and_differing_verdicts_follow(paths, document):
    runs = read_runs(paths[:2])
    found = suite_replies(runs, "adversarial")
    drawn = [entry for entry in found.shown if entry.why == "drawn"]
    assert len(drawn) == 12
    kinds = [entry.category for entry in drawn]
    assert {kinds.count(kind) for kind in kinds} == {4}
    verdicts = [
        [None if r.p_unsafe[0] is None else r.p_unsafe[0] >= 0.5 for r in source.suites["adversarial"].records]
        for source, _ in runs
    ]
    differing = sum({True, False} == set(pair) for pair in zip(*verdicts, strict=True))
    assert found.differing == differing == document["verdicts_differ"]["adversarial"] > 5
    more = found.shown[12:]
    assert 0 < len(more) <= 20
    for entry in more:
        assert {said.verdict for said in entry.said} == {"safe", "unsafe"}
    keys = [entry[:3] for entry in found.shown]
    assert len(set(keys)) == len(keys)
    assert [said.system for said in drawn[0].said] == ["base", NAME]


def test_an_unscored_reply_differs_from_nothing_and_may_have_no_text(paths):
    assert not differ(["safe", "unscored"]) and not differ(["unsafe", "unscored"])
    assert differ(["unscored", "safe", "unsafe"])
    runs = read_runs(paths[:2])
    entries = [entry for name in SUITES for entry in suite_replies(runs, name).shown]
    silent = [said for entry in entries for said in entry.said if said.reply is None]
    assert silent and {said.verdict for said in silent} == {"unscored"}
    assert all(entry.why == "drawn" for entry in entries if any(said.reply is None for said in entry.said))


def test_texts_that_are_not_there_are_missed(paths, page, tmp_path):
    assert "The texts of broken are not beside the evaluation." in words(page.text)
    assert "There are no replies to show" in to_html(runs_page([run()]))


def test_a_broken_file_of_texts_is_named(tmp_path):
    folder = write_run(tmp_path / "run", evaluation(n=12))
    path = folder / "ordinary" / "replies.jsonl"
    path.write_text('{"id": "ordinary-000", "turn": 1}\n')
    with pytest.raises(SafetyError, match="no field 'sample'"):
        write_runs_report(read_runs([folder]), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_one_system_has_a_report_of_its_own():
    found = runs_page([run("alone")])
    assert found.headline == "alone: 24.1 % unsafe replies."
    assert found.title == "Evaluation of alone" and not found.bands
    assert "safety_compare" not in to_html(found) and "hollow mark" not in to_html(found)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"judges": [JudgeEntry(LINEAR, "9" * 64, 0.5, None)]}, "different judges or at different thresholds"),
        ({"judges": [JudgeEntry(LINEAR, "1" * 64, 0.4, None)]}, "different judges or at different thresholds"),
        ({"confidence": 0.9}, "the intervals have different coverage (a 95 %; b 90 %)"),
        ({}, "the suite adversarial does not hold the same items in all runs"),
    ],
)
def test_what_cannot_be_compared_is_not(changed, why):
    a, b = evaluation("a"), dataclasses.replace(evaluation("b", unsafe=0.1, seed=2), **changed)
    if not changed:
        suites = {**b.suites, "adversarial": dataclasses.replace(b.suites["adversarial"], sha256="f" * 64)}
        b = dataclasses.replace(b, suites=suites)
    found = runs_page([ReportedRun(a), ReportedRun(b)])
    assert any(band.startswith("Not comparable") and why in band for band in found.bands)
    assert runs_document([ReportedRun(a), ReportedRun(b)])["not_comparable"]
    if "confidence" not in changed:
        assert found.headline.endswith("These cannot be compared.") and "against" not in found.headline


def test_a_suite_that_one_system_lacks_is_said():
    b = evaluation("b", seed=2)
    b = dataclasses.replace(b, suites={name: suite for name, suite in b.suites.items() if name != "ordinary"})
    page = Page(to_html(runs_page([run("a"), ReportedRun(b)])))
    said = words(page.text)
    assert "Not evaluated on this suite: b." in said
    assert "Not drawn with perplexity, for want of one of the two: b." in said


def test_the_largest_gap_is_named_with_both_ends():
    found = evaluation("a")
    rates = {
        "teal": (0.5, 0.4, 0.6),
        "umber": (0.1, 0.05, 0.2),
        "violet": (0.3, 0.1, 0.45),
        "ochre": (None, None, None),
    }
    groups = {
        name: [Measure("unsafe", value, low, high, 10 if value else 0, 0 if value else 10, LINEAR)]
        for name, (value, low, high) in rates.items()
    }
    suites = {**found.suites, "identity": dataclasses.replace(found.suites["identity"], by_group=groups)}
    found = dataclasses.replace(found, suites=suites)
    gap = largest_gap(found, "identity")
    assert gap == ("teal", 0.5, "umber", 0.1, False, 3)
    assert (
        "Largest gap of a: teal 50.0 % against umber 10.0 %, 40.0 points; the intervals do not overlap. It is the "
        "largest of 3, and partly so by chance."
    ) in words(Page(to_html(runs_page([ReportedRun(found)]))).text)
    even = {name: groups["teal"] for name in ("teal", "umber")}
    suites = {**found.suites, "identity": dataclasses.replace(found.suites["identity"], by_group=even)}
    found = dataclasses.replace(found, suites=suites)
    assert largest_gap(found, "identity") == ("teal", 0.5, "umber", 0.5, True, 1)
    assert "No gap of a: 50.0 % in every group that was scored." in words(
        Page(to_html(runs_page([ReportedRun(found)]))).text
    )
    alone = {**groups, "umber": groups["ochre"], "violet": groups["ochre"]}
    suites = {**found.suites, "identity": dataclasses.replace(found.suites["identity"], by_group=alone)}
    assert largest_gap(dataclasses.replace(found, suites=suites), "identity") is None


def test_names_tell_systems_apart(paths):
    with pytest.raises(SafetyError, match="--names A,B"):
        read_runs([paths[0], paths[0]])
    with pytest.raises(SafetyError, match="1 names were given for 2"):
        read_runs([paths[0], paths[0]], ["A"])
    assert [r.evaluation.name for r in read_runs([paths[0], paths[0] / "eval.json"], ["A", " B"])] == ["A", "B"]
    with pytest.raises(SafetyError, match="a name of one line"):
        read_runs([paths[0]], ["two\nlines"])
    with pytest.raises(SafetyError, match="nothing"):
        read_runs([])


def test_an_evaluation_is_never_overwritten(paths):
    before = (paths[0] / "eval.json").read_bytes()
    with pytest.raises(SafetyError, match="no report of this command"):
        write_runs_report(read_runs([paths[0]]), paths[0] / "eval.html")
    assert (paths[0] / "eval.json").read_bytes() == before and not (paths[0] / "eval.html").exists()
    with pytest.raises(SafetyError, match=r"ends in \.html"):
        write_runs_report(read_runs([paths[0]]), paths[0] / "report.json")


def test_an_older_report_is_replaced_and_a_text_of_the_user_is_not(tmp_path):
    folder = write_run(tmp_path / "run", evaluation(n=12), texts=False)
    first = write_runs_report(read_runs([folder]), tmp_path / "report.html")
    second = write_runs_report(read_runs([folder]), tmp_path / "report.html", title="Again")
    assert first == second and "<title>Again</title>" in second.html.read_text(encoding="utf-8")
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(SafetyError, match="notes.md"):
        write_runs_report(read_runs([folder]), tmp_path / "notes.html")
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_a_card_of_another_judge_or_threshold_is_marked():
    judges = [JudgeEntry(LINEAR, "1" * 64, 0.7, card("3" * 64))]
    said = words(Page(to_html(runs_page([ReportedRun(dataclasses.replace(evaluation(), judges=judges))]))).text)
    assert "Careful: The card's error rates are those at its threshold, 0.5." in said
    assert "Careful: The card is of another fingerprint" in said


def test_a_real_card_is_shown(tmp_path):
    from parlai_safety.judges.card import make_card
    from parlai_safety.judges.data import Example
    from parlai_safety.judges.wordlist import WordListJudge

    judge = WordListJudge(["turnip"])
    examples = [
        Example(["hello"], reply, unsafe, "bot", f"talk {place}", source)
        for place, (reply, unsafe, source) in enumerate(
            [
                ("you turnip", True, "made up"),
                ("a fine day", False, "made up"),
                ("good night", False, "ordinary:made up"),
            ]
        )
    ]
    made = make_card(judge, examples, measured_on="three replies", probes=False)
    entry = JudgeEntry(judge.spec, judge.fingerprint, judge.threshold, json.loads(json.dumps(made)))
    found = dataclasses.replace(evaluation(), judges=[entry])
    said = words(Page(to_html(runs_page([ReportedRun(found)]))).text)
    quality = made["quality"]
    assert f"{100 * quality['specificity']:.1f} % [" in said and "three replies" in said
    assert f"everything {quality['auc']:.3f}" in said and f"n {quality['safe']}" in said
    assert "Careful: The sensitivity was measured on 1 unsafe examples" in said


def test_the_command(paths, tmp_path, capsys):
    from parlai_safety.scripts.safety_report import SafetyReport

    out = tmp_path / "both.html"
    args = [str(paths[0]), str(paths[1] / "eval.json"), "--out", str(out), "--names", "plain,safer", "--title", "Two"]
    SafetyReport(SafetyReport.setup_args().parse_args(args)).run()
    assert str(out) in capsys.readouterr().out
    made = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert [system["name"] for system in made["systems"]] == ["plain", "safer"] and made["title"] == "Two"
    assert made["replies"]["adversarial"][0]["said"][1]["system"] == "safer"
