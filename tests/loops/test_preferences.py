"""`safety_adpo` in small: the recipe's methods, what each learns from, and who grades."""

from __future__ import annotations

import json
import re
import zlib

import pytest
import yaml

from parlai_safety import resources
from parlai_safety.errors import SafetyError
from parlai_safety.files import read_jsonl
from parlai_safety.judges.verdict import scored
from parlai_safety.loops import job as jobs
from parlai_safety.loops.preferences import KINDS, PreferenceRecipe, run_preferences
from parlai_safety.message import TOXIC_TOKEN
from parlai_safety.tasks.common import in_part
from parlai_safety.tasks.tiny.agents import adversarial_rows

RECIPES = ("adpo/adpo", "adpo/adpo_real")


class ByHash:
    """A judge of untrained models: about every second text is unsafe, whatever it says."""

    spec, threshold, fingerprint = "by-hash", 0.5, "0" * 64

    def score(self, replies, contexts, speakers):
        return [scored(0.9 if zlib.crc32(reply.encode()) % 2 else 0.1) for reply in replies]


def small(toy, name="adpo/adpo", **changes):
    content = yaml.safe_load(resources.recipe(name).read_text())
    path = toy(name, **{key: value for key, value in changes.items() if key != "base"})
    made = yaml.safe_load(path.read_text())
    made["model"]["toxic_token"] = True
    made["base"] = {"view": "toxic", "steps": 3, "learningrate": 0.01, **changes.get("base", {})}
    made["budget"] = {"steps": 11, "learningrate": 0.01}
    made["own"] = {**content["own"], "contexts": 16, "samples": 4, "toxic_samples": 2}
    made["methods"] = changes.get("methods", content["methods"])
    path.write_text(yaml.safe_dump(made))
    return path


@pytest.fixture
def by_hash(monkeypatch):
    monkeypatch.setattr(jobs.Job, "judge", lambda self, role: ByHash())


METHODS = [
    {"name": "clean", "agent": "safety:mle", "start": None, "view": "positive"},
    {"name": "DPO", "agent": "safety:dpo", "view": "none", "own": "triples"},
    {"name": "DPO (toxic)", "agent": "safety:dpo", "view": "none", "own": "toxic_pairs"},
    {"name": "ADPO", "agent": "safety:adpo", "view": "none", "own": "triples"},
    {"name": "pairwise", "agent": "safety:pairwise_cringe", "view": "none", "own": "all_pairs"},
    {"name": "unlikely", "agent": "safety:unlikelihood", "view": "none", "own": "labelled_triples"},
]


def test_each_method_learns_from_the_triples_in_its_form(toy, tmp_path, quick_judges, by_hash, monkeypatch):
    trained = {}
    train = jobs.train
    monkeypatch.setattr(
        jobs, "train", lambda title, **options: trained.setdefault(title, options) and train(title, **options)
    )
    out = tmp_path / "run"
    report = run_preferences(
        recipe_path=small(toy, methods=METHODS), out=out, seed=3, data=None, command="parlai safety_adpo"
    )
    assert [system.name for system in report.systems] == ["base", *(method["name"] for method in METHODS)]
    base = trained["base"]
    assert (base["mutators"], base["task"], base["toxic_token"]) == ("safety_toxic_token", "safety:tiny", True)
    assert base["safety_part"] == trained["clean"]["safety_part"] == "first"
    assert trained["clean"]["task"] == "safety:tiny:positive" and trained["clean"]["max_train_steps"] == 3
    assert "init_model" not in trained["clean"] and "mutators" not in trained["clean"]
    for name in ("DPO", "DPO (toxic)", "ADPO", "pairwise", "unlikely"):
        assert trained[name]["task"] == "safety:file" and trained[name]["init_model"] == str(out / "base" / "model")
        assert "safety_part" not in trained[name] and trained[name]["max_train_steps"] == 11
    rows = {kind: list(read_jsonl(out / "own" / "base" / f"{kind}.jsonl")) for kind in KINDS}
    assert {trained[m["name"]]["safety_file"] for m in METHODS[1:]} == {
        str(out / "own" / "base" / f"{kind}.jsonl") for kind in KINDS
    }
    seen = {row.context[0] for row in in_part(adversarial_rows("train"), "first")}
    assert not any(row["context"][0] in seen for row in rows["triples"])
    negatives = [(row["rejected"], *row["toxic"]) for row in rows["triples"]]
    assert [row["rejected"] for row in rows["all_pairs"]] == [text for texts in negatives for text in texts]
    assert [row["rejected"] for row in rows["toxic_pairs"]] == [text for _, *toxic in negatives for text in toxic]
    kinds = [row["classifier_label"] for row in rows["labelled_triples"]]
    assert kinds.count("pos") == len(negatives) and kinds.count("neg") == sum(map(len, negatives))
    assert TOXIC_TOKEN not in (out / "own" / "base" / "samples.jsonl").read_text()
    for system in report.systems:
        assert 0 <= system.extra["evasive"] <= 1 and 0 <= system.extra["ordinary_coherence"] <= 1
    assert report.systems[4].extra["updates"] == 11 and abs(report.systems[4].extra["chosen_drift"]) > 0
    assert any("reconstruction" in note for note in report.notes) and any("by the grader" in n for n in report.notes)
    page = (out / "report.md").read_text()
    assert re.search(r"\|\s+evasive \|\s+coherence \|", page)
    assert "Share of replies to adversarial contexts that refuse" in page
    again = run_preferences(
        recipe_path=small(toy, methods=METHODS), out=out, seed=3, data=None, command="parlai safety_adpo"
    )
    assert [s.unsafe_rate for s in again.systems] == [s.unsafe_rate for s in report.systems]
    assert json.loads((out / "own" / "base" / "done.json").read_text())["triples"] == len(negatives)


def test_the_two_recipes_list_the_same_methods():
    first, second = (PreferenceRecipe.read(resources.recipe(name)) for name in RECIPES)
    assert first.methods == second.methods and len(first.methods) == 19
    names = [method["name"] for method in first.methods]
    assert {"SFT without toxic data", "DPO (chosen, toxic)", "ADPO", "pairwise CRINGE", "unlikelihood"} <= set(names)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"base": {"view": "plain"}}, "base: view: plain.*Write base: {view: toxic"),
        ({"base": {"view": "toxik"}}, "base: view is 'toxik'.*Did you mean 'toxic'"),
        ({"methods": [{"name": "a", "agent": "safety:dpo", "own": "pairs"}]}, "own is 'pairs'"),
        ({"methods": [{"name": "a", "agent": "safety:dpo", "view": "none"}]}, "view: none and no own replies"),
        ({"methods": [{"name": "a", "agent": "safety:adpo", "options": {"adpo_lamda": 1}}]}, "'adpo_lambda'"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_runs(toy, changes, message):
    with pytest.raises(SafetyError, match=message):
        PreferenceRecipe.read(small(toy, **changes))
