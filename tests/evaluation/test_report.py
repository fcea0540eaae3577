import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import report as module
from parlai_safety.evaluation.report import (
    Example,
    Report,
    SystemResult,
    headline,
    markdown_table,
    plot_svg,
    remarks,
    terminal_table,
    to_html,
    to_json,
    write_report,
)
from tests.evaluation.html_page import Page

ATTACK = "<script>alert('silly turnip')</script>"
SYSTEM_KEYS = {
    "name",
    "unsafe_rate",
    "unsafe_interval",
    "n",
    "unscored",
    "perplexity",
    "f1",
    "distinct_2",
    "canned_rate",
    "seconds",
    "extra",
    "examples",
}


def system(name, unsafe_rate=0.312, unsafe_interval=(0.27, 0.357), n=500, **changed):
    fields = {
        "unscored": 0,
        "perplexity": 18.214,
        "f1": 0.1425,
        "distinct_2": 0.31,
        "canned_rate": 0.021,
        "seconds": 41.2,
    }
    return SystemResult(name, unsafe_rate, unsafe_interval, n, **{**fields, **changed})


@pytest.fixture
def report():
    examples = [
        Example(("hello", "what of my hat?"), ATTACK, 0.93, "unsafe"),
        Example(("hello",), "a quiet reply", None, "unscored"),
    ]
    return Report(
        title="Toy run & more",
        systems=[
            system("base", examples=examples, extra={"labeller_rate": 0.25, "F1": {"recall": float("nan")}}),
            system("CRINGE $a$ <b>", 0.081, (0.06, 0.109), unscored=4, perplexity=20.0, seconds=190),
            system("broken", None, None, 0, unscored=500, perplexity=float("inf"), f1=None, seconds=None),
        ],
        judge={"spec": "parlai:judge/model", "auc": np.float64(0.953), "sensitivity": 0.88, "source": {"n": 600}},
        seed=11,
        versions={"python": "3.11"},
        data={"corpus": {"name": "toy", "sha256": "0" * 64}},
        commands=["parlai safety_demo --seed 11"],
        hardware="2 CPU cores",
        notes=["Nothing here is real."],
    )


def test_terminal_table_is_exact(report):
    table, judge = terminal_table(report).split("\n\n")
    assert table.split("\n") == [
        "system                unsafe [95 %]    n    unscored    perplexity     F1    distinct-2    canned     time",
        "--------------  -------------------  ---  ----------  ------------  -----  ------------  --------  -------",
        "base            31.2 % [27.0, 35.7]  500           0         18.21  0.142         0.310     2.1 %   41.2 s",
        "CRINGE $a$ <b>    8.1 % [6.0, 10.9]  500           4         20.00  0.142         0.310     2.1 %  3.2 min",
        "broken                     unscored    0         500           n/a    n/a         0.310     2.1 %      n/a",
    ]
    assert judge == (
        "judge parlai:judge/model: AUC 0.953, sensitivity 0.88, specificity n/a; rates are not corrected for its errors"
    )


def test_markdown_table_is_exact_and_escapes(report):
    one = dataclasses.replace(report, systems=[system("a|b <i>", None, None, 3, f1=0.0)])
    assert markdown_table(one).split("\n") == [
        "| system    |   unsafe [95 %] |   n |   unscored |   perplexity |    F1 |   distinct-2 |   canned |   time |",
        "|:----------|----------------:|----:|-----------:|-------------:|------:|-------------:|---------:|-------:|",
        r"| a\|b \<i> |        unscored |   3 |          0 |        18.21 | 0.000 |        0.310 |    2.1 % | 41.2 s |",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1.0 min"), (3599, "1.0 h"), (9000, "2.5 h"), (None, "n/a")],
)
def test_durations(seconds, shown):
    assert module._duration(seconds) == shown


def test_json_has_the_keys_and_no_nan(report):
    document = to_json(report)
    text = json.dumps(document, allow_nan=False)
    assert "NaN" not in text
    assert set(document) == {
        "title",
        "confidence",
        "systems",
        "judge",
        "seed",
        "versions",
        "data",
        "commands",
        "hardware",
        "notes",
    }
    assert [set(row) for row in document["systems"]] == [SYSTEM_KEYS] * 3
    base, cringe, broken = document["systems"]
    assert base["unsafe_interval"] == [0.27, 0.357]
    assert base["extra"] == {"labeller_rate": 0.25, "F1": {"recall": None}}
    assert base["examples"][0] == {
        "context": ["hello", "what of my hat?"],
        "reply": ATTACK,
        "p_unsafe": 0.93,
        "verdict": "unsafe",
    }
    assert (cringe["unsafe_rate"], cringe["unscored"]) == (0.081, 4)
    assert [broken[key] for key in ("unsafe_rate", "unsafe_interval", "perplexity", "f1", "seconds")] == [None] * 5
    assert json.loads(text) == document


def test_json_refuses_what_it_cannot_say(report):
    with pytest.raises(TypeError, match="no form in JSON"):
        to_json(dataclasses.replace(report, seed=object()))


def test_written_files_are_whole_and_the_same_each_time(report, tmp_path):
    first, second = write_report(report, tmp_path / "a"), write_report(report, tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.json", "report.md"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert json.loads(first.json.read_text(encoding="utf-8")) == to_json(report)
    text = first.markdown.read_text(encoding="utf-8")
    assert markdown_table(report).split("\n")[3] in text and "parlai safety_demo --seed 11" in text
    assert "turnip" not in text


def test_a_report_that_cannot_be_rendered_leaves_no_file(report, tmp_path):
    with pytest.raises(TypeError):
        write_report(dataclasses.replace(report, data={"x": object()}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_html_is_well_formed_and_says_everything(report):
    page = Page(to_html(report))
    text = " ".join("".join(page.text).replace("\N{NO-BREAK SPACE}", " ").split())
    assert headline(report) in text
    for row in module._rows(report):
        assert " ".join(row) in text
    for needed in [
        *remarks(report),
        *report.notes,
        *report.commands,
        "0" * 64,
        "2 CPU cores",
        "3.11",
        "0.953",
        "n 600",
    ]:
        assert needed in text
    tags = [tag for tag, _ in page.tags]
    assert dict(page.tags)["html"]["lang"] == "en"
    assert "caption" in tags and "script" not in tags
    assert {attrs.get("scope") for tag, attrs in page.tags if tag == "th"} == {"col", "row"}


def test_html_asks_the_network_for_nothing(report):
    text = to_html(report)
    namespaces = re.findall(r'xmlns(?::\w+)?="(https?://[^"]*)"', text)
    assert len(namespaces) == text.count("http://") + text.count("https://")
    assert not re.search(r"@import|@font-face|<script|<iframe|<img|<base|srcset=|\bsrc=", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    for _, attrs in Page(text).tags:
        for name in ("href", "xlink:href", "src"):
            assert attrs.get(name, "#").startswith(("#", "data:,"))


def test_html_escapes_replies_and_hides_them(report):
    text = to_html(report)
    page = Page(text)
    assert "&lt;script&gt;alert(" in text and "<script" not in text
    assert ATTACK in "".join(page.text)
    outside = "".join(page.outside)
    for hidden in ("turnip", "what of my hat?", "a quiet reply"):
        assert hidden not in outside and hidden in "".join(page.text)
    (details,) = [attrs for tag, attrs in page.tags if tag == "details"]
    assert "open" not in details
    assert re.search(r"@media print \{.*?\.examples \{ display: none; \}", text, re.DOTALL)


def test_html_without_examples_has_no_warning(report):
    plain = dataclasses.replace(report, systems=[system("base")])
    assert "<details" not in to_html(plain)


def test_plot_names_each_drawn_system_and_the_text_names_the_others(report):
    page = Page(to_html(report))
    assert {"base", "CRINGE $a$ <b>"} <= set(page.svg_text)
    assert "broken" not in page.svg_text
    assert "Not drawn, for want of an unsafe rate or a perplexity: broken." in " ".join("".join(page.text).split())


def test_plot_colours_are_those_of_the_page(report):
    svg = plot_svg(report)
    assert svg is not None and svg.startswith('<svg role="img" aria-label="base: 31.2 % unsafe replies')
    assert "currentColor" in svg and "var(--accent)" in svg
    assert not re.search(r"#(?:0[1-9]){3}|<\?xml|<!DOCTYPE|<metadata", svg)
    # Whatever is painted is painted in a colour of the page.
    painted = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert painted <= {"currentColor", "var(--accent)", "var(--paper)", "none"}


def test_plot_ignores_the_style_of_the_reader(report):
    import matplotlib

    expected = plot_svg(report)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert plot_svg(report) == expected
        assert dict(matplotlib.rcParams) == before


def test_labels_of_a_crowded_plot_do_not_cover_each_other(report):
    names = [f"system {place}" for place in range(6)]
    crowd = [system(name, 0.1, (0.08, 0.13), perplexity=20 + 0.01 * i) for i, name in enumerate(names)]
    svg = plot_svg(dataclasses.replace(report, systems=crowd))
    boxes = []
    for name in names:
        found = re.search(rf'<text style="([^"]*)"([^>]*)>{name}</text>', svg)
        size = float(re.search(r"([\d.]+)px", found[1])[1])
        x, y = (float(re.search(rf'\b{axis}="([-\d.]+)"', found[2])[1]) for axis in "xy")
        # Half of the font's size a letter is what a usual sans-serif takes.
        width = 0.5 * size * len(name)
        anchor = re.search(r"text-anchor: (\w+)", found[1])
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor[1] if anchor else "start"]
        boxes.append((left, y - 0.8 * size, left + width, y))
    for place, a in enumerate(boxes):
        for b in boxes[:place]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_no_plot_is_said_in_words(report):
    unscored = dataclasses.replace(report, systems=[system("a", None, None, 0), system("b", perplexity=None)])
    assert plot_svg(unscored) is None
    assert "There is no plot: no system has both an unsafe rate and a perplexity (a, b)." in to_html(unscored)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], "base: 31.2 % unsafe replies."),
        ([("b", 0.2, (0.17, 0.24)), ("c", 0.081, (0.06, 0.11))], "c: 8.1 % unsafe replies against 31.2 % of base."),
        (
            [("b", 0.29, (0.25, 0.33))],
            "b: 29.0 % unsafe replies against 31.2 % of base. "
            "The intervals overlap, so this run does not settle which is lower.",
        ),
        ([("b", 0.4, (0.35, 0.45))], "No system gives fewer unsafe replies than base, with 31.2 %."),
        ([("b", None, None)], "base: 31.2 % unsafe replies. No other system could be scored."),
    ],
)
def test_headline(report, others, expected):
    systems = [system("base"), *(system(*other) for other in others)]
    assert headline(dataclasses.replace(report, systems=systems)) == expected


def test_headline_with_an_unscored_base(report):
    systems = [system("base", None, None, 0), system("b", 0.2, (0.17, 0.24))]
    assert headline(dataclasses.replace(report, systems=systems)) == (
        "b: 20.0 % unsafe replies. base is unscored, so there is nothing to compare with."
    )


def test_remarks_bound_the_unscored(report):
    # 0.2 of 80 replies are 16; with 20 unscored the rate lies between 16 / 100 and 36 / 100.
    told = remarks(dataclasses.replace(report, systems=[system("a", 0.2, (0.1, 0.3), 80, unscored=20)]))
    assert any("a 16.0 % and 36.0 % (20 of 100 unscored)" in sentence for sentence in told)
    assert any("not corrected for its errors" in sentence for sentence in told)


def test_remarks_give_the_price(report):
    assert remarks(report)[0] == (
        "CRINGE $a$ <b> against base: perplexity 20.00 against 18.21, F1 0.142 against 0.142, "
        "distinct-2 0.310 against 0.310, canned replies 2.1 % against 2.1 %."
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"unsafe_rate": 31.2}, "share and not a percentage"),
        ({"unsafe_interval": None}, "only with its interval"),
        ({"n": 0}, "only with its interval"),
        ({"unsafe_interval": (27.0, 35.7)}, "must hold the rate"),
        ({"unscored": -1}, "unscored -1"),
        ({"perplexity": 0.5}, "perplexity 0.5"),
        ({"name": "two\nlines"}, "one line"),
        ({"name": " "}, "one line"),
    ],
)
def test_impossible_results_are_refused(changed, why):
    with pytest.raises(SafetyError, match=why):
        dataclasses.replace(system("a"), **changed)


def test_a_rate_that_is_nan_is_unscored_and_an_interval_is_cut_to_shares():
    assert system("a", math.nan, (math.nan, math.nan)).unsafe_rate is None
    assert system("a", math.nan, (math.nan, math.nan)).unsafe_interval is None
    assert system("a", 0.02, (-0.01, 0.05)).unsafe_interval == (0.0, 0.05)


@pytest.mark.parametrize(
    ("p_unsafe", "verdict"), [(None, "safe"), (0.1, "unscored"), (math.nan, "safe"), (1.2, "unsafe"), (0.2, "fine")]
)
def test_impossible_examples_are_refused(p_unsafe, verdict):
    with pytest.raises(SafetyError):
        Example(("hi",), "hello", p_unsafe, verdict)


@pytest.mark.parametrize("changed", [{"systems": []}, {"systems": [system("a"), system("a")]}, {"judge": {"auc": 0.9}}])
def test_reports_without_systems_or_judge_are_refused(report, changed):
    with pytest.raises(SafetyError):
        dataclasses.replace(report, **changed)


def test_the_modules_need_neither_parlai_nor_torch_and_matplotlib_only_for_the_plot():
    code = (
        "import sys\n"
        "from parlai_safety.evaluation import page, plots, report, report_runs, statistics, textmetrics\n"
        "print(sorted({'parlai', 'torch', 'matplotlib', 'jinja2'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
