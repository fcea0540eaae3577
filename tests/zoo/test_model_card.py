"""Cards: every section is required, every figure stands with its n, and the committed ones are what is made today."""

from __future__ import annotations

import json

import pytest

from parlai_safety import zoo
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.model_card import (
    FORMAT,
    SECTIONS,
    card_of_model,
    check_zoo,
    evaluation_of_generator,
    evaluation_of_judge,
    read_measured,
    write_card_of_model,
)
from tests.evaluation.evaluations import evaluation
from tests.zoo.conftest import MANIFEST, RECIPE

QUALITY = {
    "n": 101, "unscored": 1, "unsafe": 40, "safe": 60, "auc": 0.9, "auc_interval": [0.8, 0.95], "sensitivity": 0.75,
    "sensitivity_interval": [0.6, 0.86], "specificity": 0.8, "specificity_interval": None,
}  # fmt: skip
JUDGE_CARD = {
    "fingerprint": "f" * 64, "threshold": 0.4, "warnings": ["It is a stand-in."],
    "trained_on": {"by_source": {"tiny": {"safe": 3, "unsafe": 5}}},
    "measured_on": {"name": "the test split", "n": 301, "files": {}},
    "quality_labelled_bot_turns": QUALITY,
    "quality": {"ordinary_false_positive_rate": 0.01, "ordinary_false_positive_interval": [0.0, 0.03], "ordinary": 200},
    "agreement_with_other_judge_labelled_bot_turns": {"n": 11, "spearman": 0.5, "kappa": 0.25},
}  # fmt: skip


@pytest.fixture
def judge(write_registry):
    write_registry(toy={"kind": "judge", "build": {**RECIPE, "judged_by": None}, "card": "cards/toy.md"})
    entry = zoo.entry("toy")
    return entry, {**evaluation_of_judge(entry, JUDGE_CARD), "second_build": None, "manifest": MANIFEST}


def test_a_card_has_every_section_in_order(toy):
    text = card_of_model(*toy)
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert text.startswith("# toy\n\n`zoo:safety/toy/model`") and text.endswith("\n") and "\n\n\n" not in text
    for words in ("parlai safety_zoo build toy", "an abacus", "4.0 min", "energy was not measured", "b" * 64, "seed 1"):
        assert words in text


def test_a_generators_figures_are_those_of_the_evaluation(toy):
    found = evaluation()
    wanted = [measure for suite in found.suites.values() for measure in suite.measures]
    got = [f for f in toy[1]["figures"] if "corrected" not in f["name"]]
    assert [(f["value"], f["low"], f["high"], f["n"], f["unscored"]) for f in got] == [
        (m.value, m.low, m.high, m.n, m.unscored) for m in wanted
    ]
    corrected = [m.detail["corrected"]["value"] for m in wanted if m.detail.get("corrected")]
    assert [f["value"] for f in toy[1]["figures"] if "corrected" in f["name"]] == corrected


def test_a_judges_error_rates_stand_with_the_counts_that_they_are_of(judge):
    figures = {f["name"]: (f["value"], f["low"], f["high"], f["n"]) for f in judge[1]["figures"]}
    assert figures == {
        "AUC": (0.9, 0.8, 0.95, 100),
        "sensitivity": (0.75, 0.6, 0.86, 40),
        "specificity": (0.8, None, None, 60),
        "ordinary talk flagged": (0.01, 0.0, 0.03, 200),
    }
    text = card_of_model(*judge)
    assert "| sensitivity | labelled bot turns | 0.750 | [0.600, 0.860] | 40 | 1 |" in text
    assert "| specificity | labelled bot turns | 0.800 | none | 60 | 1 |" in text
    assert "| tiny | 3 | 5 |" in text and "It is a stand-in." in text and "11 labelled bot turns" in text


def test_a_rate_that_could_not_be_corrected_says_why(toy):
    found = evaluation()
    object.__setattr__(found, "judges", found.judges[:1])
    object.__setattr__(found.judges[0], "spec", "zoo:safety/grader")
    (first, *_) = (measure for suite in found.suites.values() for measure in suite.measures if measure.name == "unsafe")
    object.__setattr__(first, "detail", {"uncorrected": "its card cannot explain such a rate"})
    measured = {**toy[1], **evaluation_of_generator(toy[0], found)}
    words = "is not corrected for the judge's errors: its card cannot explain such a rate."
    assert words in measured["remarks"][0] and words in card_of_model(toy[0], measured)


def test_what_could_not_be_scored_is_not_zero(toy):
    toy[1]["figures"][0] |= {"value": None, "low": None, "high": None, "n": 0, "unscored": 6}
    assert "| unscored | none | 0 | 6 |" in card_of_model(*toy)


@pytest.mark.parametrize(
    ("second", "words"),
    [(None, "was not tried"), ([], "gave the same bytes in every file"), (["model"], "gave other bytes in model")],
)
def test_the_second_build_is_told_as_it_was(toy, second, words):
    toy[1]["second_build"] = second
    assert words in card_of_model(*toy)


@pytest.mark.parametrize(
    ("part", "key", "value", "section"),
    [
        ("entry", "task", " ", "Task"),
        ("entry", "intended_use", "", "Intended use"),
        ("entry", "limits", (), "Limits and what it is not for"),
        ("manifest", "data", {}, "Training data"),
        ("measured", "figures", [], "Evaluation"),
        ("manifest", "hardware", "", "Evaluation"),
        ("measured", "judge", None, "The judge and its own errors"),
        ("manifest", "seconds", {}, "Time and energy"),
        ("manifest", "files", {}, "Version"),
        ("entry", "citation", "", "Citation"),
    ],
)
def test_a_card_with_an_empty_section_is_refused(toy, part, key, value, section):
    entry, measured = toy
    if part == "entry":
        object.__setattr__(entry, key, value)
    else:
        (measured if part == "measured" else measured["manifest"])[key] = value
    with pytest.raises(SafetyError, match=f"The card of 'toy' has nothing under .*'{section}'"):
        card_of_model(entry, measured)


def test_a_generator_whose_judge_was_never_measured_has_no_card(toy):
    toy[1]["judge"] |= {"figures": [], "warnings": []}
    with pytest.raises(SafetyError, match="nothing under 'The judge and its own errors'"):
        card_of_model(*toy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: [f.update(value=None, low=None, high=None) for f in m["figures"]], "nothing could be scored"),
        (lambda m: [f.update(low=None, high=None) for f in m["figures"]], "no figure has an interval"),
        (lambda m: m["figures"][0].update(n=0), r"with n 0"),
        (lambda m: m["figures"][0].update(value=5.0), r"is 5\.0 outside its interval"),
        (lambda m: m["figures"][0].update(value=-5.0), r"is -5\.0 outside its interval"),
        (lambda m: m["figures"][0].update(value=float("nan")), "a number that is none"),
        (lambda m: m["figures"][0].update(low=None), "half an interval"),
        (lambda m: m["figures"][0].update(value=None), "half an interval, or one of nothing"),
        (lambda m: m["judge"]["figures"][0].update(value=5.0), "outside its interval"),
        (lambda m: m.update(command=""), "it has no command"),
        (lambda m: m.update(measured_on=[]), "does not say on what"),
        (lambda m: m.update(seed=99), "measured with seed 99 and built with 1"),
        (lambda m: m["manifest"].update(entry={"name": "other"}), "its manifest is of .*other"),
        (lambda m: m["manifest"].update(command="make"), "it was built by 'make'"),
        (lambda m: m["judge"].update(spec="wordlist"), "judged by 'wordlist' and not by 'zoo:safety/grader'"),
        (lambda m: m["judge"].update(figures=[], warnings=["x"]), "nothing under 'The judge and its own errors'"),
        (lambda m: m["manifest"].pop("hardware"), "lacks a field .*KeyError: 'hardware'"),
        (lambda m: m["figures"][0].pop("n"), "lacks a field .*KeyError: 'n'"),
        (lambda m: m["figures"].append(1), "lacks a field .*TypeError"),
    ],
)
def test_what_cannot_be_so_has_no_card(toy, change, words):
    change(toy[1])
    with pytest.raises(SafetyError, match=words):
        card_of_model(*toy)


def test_a_judge_is_not_judged_by_another(judge):
    judge[1]["judge"]["spec"] = "zoo:safety/other"
    with pytest.raises(SafetyError, match="not by 'zoo:safety/toy'"):
        card_of_model(*judge)


def test_a_card_is_of_its_own_model_and_version(toy):
    with pytest.raises(SafetyError, match="is of 'toy' version '0'"):
        card_of_model(toy[0], {**toy[1], "entry_version": "0"})


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"format": FORMAT, "version": 99})])
def test_something_else_is_no_evaluation(tmp_path, content):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(SafetyError, match="no whole evaluation|version 99"):
        read_measured(tmp_path / "evaluation.json")


def test_check_finds_what_is_wrong(toy, write_registry):
    entry, measured = toy
    folder = write_registry(toy={"build": RECIPE, "card": "cards/toy.md"})
    write_registry(
        toy={"build": RECIPE, "card": "cards/toy.md"},
        grader={"kind": "judge", "build": {**RECIPE, "judged_by": None}},
        bare={"build": {**RECIPE, "judged_by": "toy"}, "card": "cards/bare.md"},
    )
    card = write_card_of_model(entry, measured, folder / "cards")
    wrong = check_zoo()
    assert wrong == [
        "The entry 'grader' is built here and has no card.",
        "The entry 'bare' is judged by 'toy', which is no judge of the registry.",
        "The card of 'bare', cards/bare.md, is not there.",
    ]
    card.write_text(card.read_text().replace("0.", "9.", 1))
    (folder / "cards" / "lost.md").write_text("x")
    assert check_zoo()[0] == "The card of 'toy' is not what its evaluation and the registry give today."
    assert check_zoo()[-1] == "The card lost.md belongs to no entry."
    measured["manifest"]["seed"] = measured["seed"] = 2
    write_card_of_model(entry, measured, folder / "cards")
    assert check_zoo()[0] == "The card of 'toy' is of seed 2, not 1."
    card.with_suffix(".json").unlink()
    assert "There is no whole evaluation" in check_zoo()[0]


def test_the_shipped_zoo_is_in_order():
    assert check_zoo() == []
