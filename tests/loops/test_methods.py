"""`safety_methods` in small: every method of the shipped recipes runs, on the data and from the model that it names."""

from __future__ import annotations

import json

import pytest
import yaml

from parlai_safety import resources
from parlai_safety.errors import SafetyError
from parlai_safety.loops import job as jobs
from parlai_safety.loops import methods
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
def test_every_method_of_the_recipe_of_the_papers_sizes_runs_at_toy_size(toy, tmp_path, quick_judges, monkeypatch):
    monkeypatch.setattr(jobs, "score", half_unsafe)
    path = small(toy, "cringe/full")
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


def test_the_recipes_list_the_same_methods():
    """What runs at toy size above runs in the other two recipes as well: they differ in strength and in length."""

    def listed(name):
        read = MethodsRecipe.read(resources.recipe(name)).methods
        free = ("steps", "options")
        kept = [{key: value for key, value in method.items() if key not in free} for method in read]
        return kept, [sorted(method.get("options") or {}) for method in read]

    assert listed("cringe/methods") == listed("cringe/methods_real") == listed("cringe/full")


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


MLE = {"name": "a", "agent": "safety:mle"}


@pytest.mark.parametrize(
    "listed, message",
    [
        ([{**MLE, "start": "b"}, {**MLE, "name": "b"}], "builds on 'b'"),
        ([{**MLE, "options": {"init_model": "<model of z>"}}], "builds on 'z'"),
        ([MLE, MLE], "name 'a' of a method is taken"),
        ([{**MLE, "name": "word-block"}, {**MLE, "name": "Word block"}], "'Word block' of a method is taken"),
        ([{**MLE, "name": "Judges"}], "'Judges' of a method is taken"),
        ([{**MLE, "name": "!!!"}], "has no letters"),
        ([{"name": "a"}], "lacks \\['agent'\\]"),
        ([{**MLE, "stepps": 3}], "unknown \\['stepps'\\]"),
        ([{**MLE, "steps": 0}], "steps is 0"),
        ([{**MLE, "view": "replly"}], "view is 'replly'.*Did you mean 'reply'"),
        ([{**MLE, "own": "pair"}], "own is 'pair'.*Did you mean 'pairs'"),
        ([{**MLE, "agent": "safety:mlee"}], "names the agent 'safety:mlee'"),
        ([{**MLE, "agent": "safety:judge"}], "writes no replies of its own"),
        ([{**MLE, "options": {"lernrate": 1}}], "has the option 'lernrate'"),
        ([{**MLE, "decode": True}], "Write decode: false"),
        ([{"name": "r", "agent": "safety:rerank"}], "Write decode: true"),
        ([{"name": "r", "agent": "safety:fudge", "decode": True, "options": {"fudge_lamda": 3}}], "'fudge_lambda'"),
        (
            [{"name": "r", "agent": "safety:rerank", "decode": True, "options": {"guidance_judge": "<labeler>"}}],
            "Did you mean '<labeller>'",
        ),
        ([{"name": "r", "agent": "safety:rerank", "decode": True}, {**MLE, "start": "r"}], "builds on is 'r'"),
        (["safety:mle"], "the method 'safety:mle'"),
        (3, "the method 3"),
    ],
)
def test_a_bad_method_is_refused_before_anything_runs(toy, listed, message):
    with pytest.raises(SafetyError, match=message):
        MethodsRecipe.read(small(toy, "cringe/methods", methods=listed))


@pytest.mark.parametrize(
    "section, value, message",
    [
        ("decoding", {"inferense": "beam"}, "Did you mean 'inference'"),
        ("model", {"n_layerss": 3}, "Did you mean 'n_layers'"),
        ("optimisation", {"lerningrate": 3}, "has the option 'lerningrate'"),
        ("base", {"steps": "many"}, "base: steps is 'many'"),
        ("evaluation", {"adversarial": 0}, "evaluation: adversarial is 0"),
    ],
)
def test_a_bad_section_is_refused_before_anything_runs(toy, section, value, message):
    with pytest.raises(SafetyError, match=message):
        MethodsRecipe.read(small(toy, "cringe/methods", methods=[MLE], **{section: value}))


def test_a_section_that_is_no_mapping_is_refused(toy):
    path = small(toy, "cringe/methods", methods=[MLE])
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "model": None}))
    with pytest.raises(SafetyError, match="The section 'model'"):
        MethodsRecipe.read(path)


def test_a_changed_way_of_decoding_is_not_taken_for_the_one_that_was_measured(toy, tmp_path, quick_judges, monkeypatch):
    monkeypatch.setattr(jobs, "score", half_unsafe)
    job = {"out": tmp_path / "run", "seed": 3, "data": None, "command": "parlai safety_methods"}
    rerank = {"name": "r", "agent": "safety:rerank", "decode": True}
    options = {"guidance_judge": "<labeller>", "rerank_candidates": 2}
    run_methods(recipe_path=small(toy, "cringe/methods", methods=[{**rerank, "options": options}]), **job)
    changed = small(toy, "cringe/methods", methods=[{**rerank, "options": {**options, "rerank_candidates": 3}}])
    with pytest.raises(SafetyError, match="evaluation/r' began with other settings \\(options differ\\)"):
        run_methods(recipe_path=changed, **job)
    more = [{**rerank, "options": options}, {"name": "on", "agent": "safety:mle", "view": "plain"}]
    report = run_methods(recipe_path=small(toy, "cringe/methods", methods=more), **job)
    assert [s.name for s in report.systems] == ["base", "r", "on"], "a finished run takes a further method"


def test_a_method_without_own_replies_of_both_kinds_is_left_out_and_said(toy, tmp_path, quick_judges, monkeypatch):
    from parlai_safety.judges.verdict import scored

    monkeypatch.setattr(jobs, "score", lambda judge, said, contexts: [scored(0.0)] * len(said))
    methods = [
        {"name": "Click", "agent": "safety:click", "view": "positive", "own": "pairs"},
        {"name": "Click, again", "agent": "safety:click", "view": "positive", "start": "Click"},
        {"name": "on", "agent": "safety:mle", "view": "plain"},
    ]
    path = small(toy, "cringe/methods", methods=methods)
    report = run_methods(recipe_path=path, out=tmp_path / "run", seed=3, data=None, command="parlai safety_methods")
    assert [s.name for s in report.systems] == ["base", "on"]
    assert [line.split(" (")[0] for line in report.data["outcome"]] == ["Left out: Click", "Left out: Click, again"]
    assert set(report.data["outcome"]) <= set(report.notes)
    assert "Left out: Click" in jobs.summary(report, tmp_path / "run")


def test_rounds_of_own_replies_are_counted_along_the_chain():
    recipe = MethodsRecipe.read(resources.recipe("cringe/methods_real"))
    names = ("base", "CRINGE", "CRINGE round 1", "CRINGE round 2", "pairwise CRINGE")
    assert [methods._round(recipe, name) for name in names] == [0, 1, 2, 3, 1]


def test_the_budget_is_one_for_all():
    """No trained method has steps of its own but the control of the rounds, whose name says so."""
    for name in RECIPES[:2]:
        recipe = MethodsRecipe.read(resources.recipe(name))
        longer = [m["name"] for m in recipe.methods if "steps" in m]
        assert longer == ["trained on 3 rounds longer"]
        assert not any("learningrate" in (m.get("options") or {}) for m in recipe.methods)
