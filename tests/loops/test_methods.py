"""`safety_methods` in small: every method of the shipped recipes runs, on the data and from the model that it names."""

from __future__ import annotations

import json

import pytest
import yaml

from parlai_safety import resources
from parlai_safety.errors import SafetyError
from parlai_safety.loops import job as jobs
from parlai_safety.loops.methods import MethodsRecipe, run_methods

RECIPES = ("cringe/methods", "cringe/methods_real", "cringe/full")


def small(toy, name, **changes):
    return toy(
        name,
        budget={"steps": 2, "learningrate": 0.01},
        own={"contexts": 12, "samples": 3, "decoding": {"inference": "topk", "topk": 20}, "weight": 0.5},
        **changes,
    )


def half_unsafe(judge, said, contexts):
    """A labeller of untrained models: every second reply is unsafe, whatever it says."""
    from parlai_safety.judges.verdict import scored, unscored

    return [unscored("none") if text is None else scored(0.9 * (i % 2)) for i, text in enumerate(said)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_method_of_a_shipped_recipe_runs_at_toy_size(name, toy, tmp_path, quick_judges, monkeypatch):
    monkeypatch.setattr(jobs, "score", half_unsafe)
    path = small(toy, name)
    content = yaml.safe_load(path.read_text())
    for method in content["methods"]:
        if "steps" in method:
            method["steps"] = 2
    path.write_text(yaml.safe_dump(content))
    report = run_methods(recipe_path=path, out=tmp_path / "run", seed=3, data=None, command="parlai safety_methods")
    names = [system.name for system in report.systems]
    assert names == ["base", *(m["name"] for m in content["methods"] if m.get("reported", True))]
    assert len(names) == 20
    reported = [method for method in content["methods"] if method.get("reported", True)]
    for system, method in zip(report.systems[1:], reported, strict=True):
        assert (system.perplexity is None) == bool(method.get("decode")), system.name
        assert system.n + system.unscored == 8
    own = report.data["own_replies"]
    assert set(own) == {"base", "CRINGE", "CRINGE round 1", "CRINGE round 2", "pairwise CRINGE"}
    assert all(made["generated"] == 36 and made["kept"] and made["pairs"] for made in own.values())


def test_a_method_learns_from_the_view_and_the_start_that_it_names(toy, tmp_path, quick_judges, monkeypatch):
    monkeypatch.setattr(jobs, "score", half_unsafe)
    methods = [
        {"name": "on", "agent": "safety:mle", "view": "plain"},
        {
            "name": "Of own, 2nd!",
            "agent": "safety:cringe",
            "start": "on",
            "own": "labelled",
            "own_of": "on",
            "steps": 3,
        },
    ]
    path = small(toy, "cringe/methods", methods=methods)
    trained = []
    train = jobs.train
    monkeypatch.setattr(jobs, "train", lambda title, **options: trained.append(options) or train(title, **options))
    run_methods(recipe_path=path, out=tmp_path / "run", seed=3, data=None, command="parlai safety_methods")
    base, on, own = trained
    assert (base["model"], base["task"], base.get("init_model")) == ("safety:mle", "safety:tiny:plain", None)
    assert on["init_model"] == str(tmp_path / "run" / "base" / "model") and on["max_train_steps"] == 2
    assert own["init_model"] == str(tmp_path / "run" / "on" / "model") and own["max_train_steps"] == 3
    assert own["task"] == "safety:tiny,safety:file" and own["multitask_weights"] == [1.0, 0.5]
    rows = [json.loads(line) for line in open(own["safety_file"], encoding="utf-8")]
    kinds = [row["classifier_label"] for row in rows]
    assert kinds.count("pos") == kinds.count("neg") > 0 and rows[0]["provenance"]["generator"] == "on"
    assert (tmp_path / "run" / "of_own_2nd" / "model").is_file()


@pytest.mark.parametrize(
    "methods, message",
    [
        ([{"name": "a", "agent": "safety:mle", "start": "b"}, {"name": "b", "agent": "safety:mle"}], "builds on 'b'"),
        ([{"name": "a", "agent": "safety:mle", "options": {"anti_expert": "<model of z>"}}], "builds on 'z'"),
        ([{"name": "a", "agent": "safety:mle"}, {"name": "a", "agent": "safety:mle"}], "two methods named 'a'"),
        ([{"name": "a"}], "lacks \\['agent'\\]"),
        ([{"name": "a", "agent": "safety:mle", "stepps": 3}], "unknown \\['stepps'\\]"),
    ],
)
def test_a_bad_method_is_refused_before_anything_runs(toy, methods, message):
    with pytest.raises(SafetyError, match=message):
        MethodsRecipe.read(small(toy, "cringe/methods", methods=methods))


def test_the_budget_is_one_for_all():
    """No trained method has steps of its own but the control of the rounds, whose name says so."""
    for name in RECIPES[:2]:
        recipe = MethodsRecipe.read(resources.recipe(name))
        longer = [m["name"] for m in recipe.methods if "steps" in m]
        assert longer == ["trained on 3 rounds longer"]
        assert not any("learningrate" in (m.get("options") or {}) for m in recipe.methods)
