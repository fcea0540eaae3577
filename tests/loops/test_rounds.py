"""`safety_rounds` in small: each round learns from the last model's own replies, and a collapse ends the rounds."""

from __future__ import annotations

import json

import pytest

from parlai_safety import resources
from parlai_safety.errors import SafetyError
from parlai_safety.loops import job as jobs
from parlai_safety.loops import rounds as driver
from parlai_safety.loops.rounds import RoundsRecipe, run_rounds
from tests.loops.test_methods import half_unsafe


@pytest.fixture
def small(toy):
    def make(name, count=2, **changes):
        method = {"steps": 2, "learningrate": 0.01, **changes.pop("method", {})}
        rounds = {"count": count, "steps": 2, "contexts": 12, "samples": 3, "valid": 4}
        return toy(name, method=method, rounds=rounds, **changes)

    return make


@pytest.fixture(autouse=True)
def every_second_is_unsafe(monkeypatch):
    monkeypatch.setattr(jobs, "score", half_unsafe)
    monkeypatch.setattr(driver, "score", half_unsafe)


def run(path, out, **more):
    return run_rounds(recipe_path=path, out=out, seed=3, data=None, command="parlai safety_rounds", **more)


def watched(monkeypatch):
    trained, train = [], jobs.train
    monkeypatch.setattr(jobs, "train", lambda title, **options: trained.append(options) or train(title, **options))
    return trained


def test_each_round_goes_on_from_the_last(small, tmp_path, quick_judges, monkeypatch):
    trained = watched(monkeypatch)
    out = tmp_path / "run"
    path = small("cringe/rounds", stop={"positive_nll": 9, "loop_rate": 9, "canned_rate": 9})
    report = run(path, out)
    assert [s.name for s in report.systems] == ["base", "round 0", "round 1", "round 2"]
    assert [options.get("init_model") for options in trained] == [
        None, *(str(out / folder / "model") for folder in ("base", "round0/model", "round1/model"))
    ]  # fmt: skip
    assert [options["task"] for options in trained[1:]] == ["safety:tiny", *["safety:tiny,safety:file"] * 2]
    assert trained[3]["safety_file"] == str(out / "round2" / "own" / "labelled.jsonl")
    first = json.loads((out / "round1" / "own" / "labelled.jsonl").read_text().splitlines()[0])
    assert first["provenance"] == {"generator": "round 0", "judge": "labeller", "seed": 3, "round": 1}
    assert report.data["chosen"] == "round 2"
    assert [entry["round"] for entry in report.data["rounds"]] == [0, 1, 2]
    assert all("unsafe_rate_by_labeller" in s.extra for s in report.systems), "both judges are reported"

    more = run(path, out, rounds=3)
    assert len(trained) == 5, "a longer job trains the new round alone"
    assert [s.unsafe_rate for s in more.systems[:4]] == [s.unsafe_rate for s in report.systems]


def test_a_collapse_ends_the_rounds_and_the_round_before_is_chosen(small, tmp_path, quick_judges, monkeypatch):
    healths = iter([0.1, 0.15, 0.9, 0.1])

    def sick(job, system, number):
        return job.run.stage(
            f"round{number}/health",
            lambda folder: {"positive_nll": 1.0, "loop_rate": next(healths), "canned_rate": 0.0},
        )

    monkeypatch.setattr(driver, "_health", sick)
    report = run(small("cringe/rounds", count=3), tmp_path / "run")
    assert [s.name for s in report.systems] == ["base", "round 0", "round 1", "round 2"], "the collapsed one is shown"
    assert report.data["chosen"] == "round 1"
    assert report.data["rounds"][-1]["collapsed"] == ["loop_rate rose from 0.100 to 0.900, by more than 0.1"]
    assert any("ended early" in note and "loop_rate" in note for note in report.notes)


def test_a_silent_model_is_canned(small, tmp_path, quick_judges, monkeypatch):
    """A model that says nothing must not look healthy."""
    answers = jobs.Job.answers
    monkeypatch.setattr(
        jobs.Job, "answers",
        lambda self, system, contexts, path, decoding: [None] * len(contexts)
        if "health" in str(path) and system.name == "round 1"
        else answers(self, system, contexts, path, decoding),
    )  # fmt: skip
    report = run(
        small("cringe/rounds", count=2, stop={"loop_rate": 2, "canned_rate": 0.5, "positive_nll": 9}), tmp_path / "r"
    )
    assert report.data["rounds"][1]["health"]["canned_rate"] == 1.0
    assert report.data["chosen"] == "round 0"


def test_rounds_of_pairs_have_pairs_from_the_start(small, tmp_path, quick_judges, monkeypatch):
    trained = watched(monkeypatch)
    out = tmp_path / "run"
    run(small("cringe/pco", count=1, stop={"positive_nll": 9, "loop_rate": 9, "canned_rate": 9}), out)
    assert [options.get("safety_file") for options in trained] == [
        None, str(out / "round0" / "own" / "pairs.jsonl"), str(out / "round1" / "own" / "pairs.jsonl")
    ]  # fmt: skip
    row = json.loads((out / "round1" / "own" / "pairs.jsonl").read_text().splitlines()[0])
    assert {"context", "chosen", "rejected"} <= set(row) and row["provenance"]["generator"] == "round 0"


def test_no_replies_of_one_kind_end_the_rounds(small, tmp_path, quick_judges, monkeypatch):
    from parlai_safety.judges.verdict import scored

    monkeypatch.setattr(jobs, "score", lambda judge, said, contexts: [scored(0.0)] * len(said))
    report = run(small("cringe/rounds"), tmp_path / "run")
    assert [s.name for s in report.systems] == ["base", "round 0"] and report.data["chosen"] == "round 0"
    assert any("no replies of both kinds" in note for note in report.notes)


def test_what_is_not_a_number_is_no_health(small, tmp_path, quick_judges, monkeypatch):
    values = iter([1.0, float("nan")])

    def sick(job, system, number):
        return {"positive_nll": next(values), "loop_rate": 0.0, "canned_rate": 0.0}

    monkeypatch.setattr(driver, "_health", sick)
    report = run(small("cringe/rounds", count=3), tmp_path / "run")
    assert report.data["chosen"] == "round 0" and "round 1 collapsed" in report.data["outcome"][1]
    assert "Chosen: round 0." in jobs.summary(report, tmp_path / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stop": {"positive_nll": "high"}}, "stop: positive_nll is 'high'"),
        ({"method": {"cringe_alhpa": 1}}, "Did you mean 'cringe_alpha'"),
        ({"method": {"view": "replly"}}, "Did you mean 'reply'"),
        ({"method": {"agent": "safety:rerank"}}, "way of decoding another model"),
        ({"method": {"steps": 0}}, "method: steps is 0"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_runs(small, changes, message):
    with pytest.raises(SafetyError, match=message):
        RoundsRecipe.read(small("cringe/rounds", **changes))


def test_a_negative_number_of_rounds_is_refused(small, tmp_path):
    with pytest.raises(SafetyError, match="--rounds is -2"):
        run(small("cringe/rounds"), tmp_path / "run", rounds=-2)


def test_a_recipe_with_another_kind_of_own_replies_is_refused(small):
    with pytest.raises(SafetyError, match="own is 'both'"):
        RoundsRecipe.read(small("cringe/rounds", method={"own": "both"}))


@pytest.mark.parametrize("name", ["cringe/rounds", "cringe/pco"])
def test_the_shipped_recipes_read(name):
    assert RoundsRecipe.read(resources.recipe(name)).rounds["count"] == 3
