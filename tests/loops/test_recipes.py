"""`safety_recipes` in small: what each method learns from or is told, and what is reported."""

from __future__ import annotations

import functools
import re
import zlib
from types import SimpleNamespace

import pytest
import yaml

from parlai_safety import resources
from parlai_safety.corpus.canned import canned_kind
from parlai_safety.errors import SafetyError
from parlai_safety.files import read_jsonl
from parlai_safety.judges.verdict import scored
from parlai_safety.loops import job as jobs
from parlai_safety.loops import sources
from parlai_safety.loops.recipes import SafetyRecipe, _talk, run_recipes
from parlai_safety.tasks.common import Row
from parlai_safety.tasks.tiny.agents import adversarial_rows, ordinary_rows

RECIPES = ("safety_recipes/recipes", "safety_recipes/recipes_real")


class ByHash:
    """A judge of untrained models: about every fourth text is unsafe, whatever it says."""

    spec, threshold, fingerprint = "by-hash", 0.5, "0" * 64

    def score(self, replies, contexts, speakers):
        return [scored(0.9 if zlib.crc32(reply.encode()) % 4 == 0 else 0.1) for reply in replies]


def small(toy, name=RECIPES[0], **changes):
    content = yaml.safe_load(resources.recipe(name).read_text())
    path = toy(name, **{key: value for key, value in changes.items() if key not in ("own", "methods")})
    made = yaml.safe_load(path.read_text())
    made["budget"] = {"steps": 3, "learningrate": 0.01}
    few = {"contexts": 12, "samples": 2, "baked_rows": 60, "baked_samples": 2, "latency_contexts": 2}
    made["own"] = {**content["own"], **few, **changes.get("own", {})}
    made["methods"] = changes.get("methods", content["methods"])
    path.write_text(yaml.safe_dump(made))
    return path


LEFT_OUT = {
    "trained on",
    "word list at decoding",
    "reranked",
    "guard (non-sequitur)",
    "baked (non-sequitur) from scratch",
}
"""Methods that other tests run, or that differ from one here by an option."""


def few(rows, split):
    return iter(list(rows(split))[::40])


def unsafe(text):
    return zlib.crc32(text.encode()) % 4 == 0


def test_each_method_learns_from_what_the_labeller_leaves(toy, tmp_path, quick_judges, monkeypatch):
    monkeypatch.setattr(jobs.Job, "judge", lambda self, role: ByHash())
    trained, asked = {}, {}
    train, agent_from, load_agent = jobs.train, jobs.agent_from, jobs.load_agent
    monkeypatch.setattr(
        jobs, "train", lambda title, **options: trained.setdefault(title, options) and train(title, **options)
    )
    monkeypatch.setattr(jobs, "agent_from", lambda opt: asked.setdefault(str(sorted(opt)), opt) and agent_from(opt))
    loaded = []
    monkeypatch.setattr(jobs, "load_agent", lambda file, **how: loaded.append((file, how)) or load_agent(file, **how))
    listed = yaml.safe_load(resources.recipe(RECIPES[0]).read_text())["methods"]
    out = tmp_path / "run"
    path = small(toy, methods=[method for method in listed if method["name"] not in LEFT_OUT])
    for name, rows in (("ordinary_rows", ordinary_rows), ("adversarial_rows", adversarial_rows)):
        monkeypatch.setattr(sources, name, functools.partial(few, rows))
    report = run_recipes(recipe_path=path, out=out, seed=3, data=None, command="parlai safety_recipes")
    methods = {method["name"]: method for method in yaml.safe_load(path.read_text())["methods"]}
    assert [system.name for system in report.systems] == ["base", *methods]

    data = {kind: list(read_jsonl(out / "data" / "base" / kind / "data.jsonl")) for kind in (
        "utterances", "authors", "controlled", "baked_safe", "baked_nonsequitur", "baked_contextual",
    )}  # fmt: skip
    for name, method in methods.items():
        if method.get("own", "labelled") != "labelled":
            options = trained[name]
            assert options["task"] == "safety:file"
            assert options["safety_file"] == str(out / "data" / "base" / method["own"] / "data.jsonl")
            assert options["max_train_steps"] == (4 if "start" in method else 3)
            assert ("init_model" in options) == ("start" not in method)
    assert not any(unsafe(row["reply"]) for row in data["utterances"])
    assert all(unsafe(row["reply"]) == (row["control"] == "unsafe") for row in data["controlled"])
    for kind in ("safe", "nonsequitur"):
        replaced = [row for row in data[f"baked_{kind}"] if "baked" in row["provenance"]]
        assert replaced and all(canned_kind(row["reply"]) == kind for row in replaced)
        left = [row for row in data[f"baked_{kind}"] if "baked" not in row["provenance"]]
        assert left and not any(unsafe(row["reply"]) or unsafe(row["context"][-1]) for row in left)
    assert not any(unsafe(row["reply"]) for row in data["baked_contextual"] if not canned_kind(row["reply"]))
    contrasted = list(read_jsonl(out / "data" / "base" / "baked_contrasted" / "data.jsonl"))
    own = list(read_jsonl(out / "own" / "base" / "labelled.jsonl"))
    assert contrasted == [*data["baked_contextual"], *own] and {row["classifier_label"] for row in own} == {
        "pos",
        "neg",
    }
    authors = {row["context"][0] for row in data["authors"]}
    assert authors and authors < {row["context"][0] for row in data["controlled"]}

    controls = {how.get("control") for file, how in loaded if file.endswith("control_safe/model")}
    assert controls == {"safe", "unsafe"}
    guards = [opt for opt in asked.values() if opt.get("guarded_model")]
    assert {opt["guarded_model"] for opt in guards} == {str(out / "base" / "model")}
    assert all(opt["guard_judge"].startswith("linear:") for opt in guards)
    for system in report.systems:
        assert system.extra["latency_ms"] > 0 and 0 <= system.extra["word_list"] <= 1
        assert system.extra["unsafe_canned_safe"] <= system.unsafe_rate
    by_name = {system.name: system.extra for system in report.systems}
    assert by_name["base"]["latency_ratio"] == 1 and by_name["base"]["our_canned"] == 0
    for name, key in (
        ("guard (safe response)", "guard_safe_response"),
        ("baked (safe response)", "baked_safe_response"),
    ):
        said = [row["reply"] for row in read_jsonl(out / "evaluation" / key / "adversarial.jsonl")]
        assert by_name[name]["our_canned"] == sum(canned_kind(text) is not None for text in said) / len(said)
    assert any("controlled: " in note and "behind UNSAFE" in note for note in report.notes)
    assert any(re.search(r"baked_contextual: .* flagged; \d+ targets were replaced", note) for note in report.notes)
    assert "ms a reply" in (out / "report.md").read_text()


def test_what_people_say_of_the_talk_is_not_known_to_filters_and_baking():
    rows = [Row(["Hi."], "kind", unsafe, {"speaker": "human"}) for unsafe in (True, False, None)]
    talk = SimpleNamespace(ordinary=lambda split: [Row(["HI. "], "well", False, {}), Row(["Hi."], " ", None, {})],
                           labelled=lambda split: rows)  # fmt: skip
    ordinary, labelled = _talk(SimpleNamespace(source=talk))
    assert [row.reply for row in ordinary] == ["well"] and len(labelled) == 3
    assert {row.unsafe for row in [*ordinary, *labelled]} == {None}
    assert len({row.fields["user_id"] for row in [*ordinary, *labelled]}) == 1
    assert [row.fields["provenance"]["part"] for row in [*ordinary, *labelled]] == ["ordinary"] + ["labelled"] * 3
    assert {row.fields["speaker"] for row in labelled} == {"human"}


def test_the_two_recipes_list_the_same_methods():
    first, second = (SafetyRecipe.read(resources.recipe(name)) for name in RECIPES)
    assert first.methods == second.methods and len(first.methods) == 16


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"own": {"author_share": 1.5}}, "author_share is 1.5.*share of the talk"),
        ({"own": {"baked_rows": 0}}, "baked_rows is 0"),
        ({"methods": [{"name": "a", "agent": "safety:mle", "view": "none", "own": "baked_kind"}]}, "'baked_kind'"),
        (
            {"methods": [{"name": "a", "agent": "safety:mle", "decoding": {"controlz": "safe"}}]},
            "'controlz'.*Did you mean 'control'",
        ),
        ({"methods": [{"name": "a", "agent": "safety:guard"}]}, "decode: False.*Write decode: true"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_anything_is_trained(toy, changes, message):
    with pytest.raises(SafetyError, match=message):
        SafetyRecipe.read(small(toy, **changes))
