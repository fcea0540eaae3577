"""Building: twice the same bytes, usable wherever ParlAI takes a model file, judged by a judge that was built too."""

from __future__ import annotations

import functools
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.scripts.train_model import TrainModel

from parlai_safety import resources, zoo
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import load_agent, replies
from parlai_safety.evaluation.model_card import FILE, card_of_model, read_measured
from parlai_safety.judges import load_judge
from parlai_safety.judges.card import card_of
from parlai_safety.judges.data import Measuring, tiny_examples
from parlai_safety.judges.recipe import card_path, train_two_judges
from parlai_safety.judges.timed import TimedJudge
from parlai_safety.loops import sources
from parlai_safety.loops import zoo as loop
from parlai_safety.loops.zoo import build, new_runs
from tests.evaluation.fakes import NoDetector
from tests.zoo.conftest import TEXTS

Place = namedtuple("Place", "datapath second")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A registry of a judge and of a CRINGE model in small, and both built, the latter twice."""
    folder = tmp_path_factory.mktemp("zoo")
    content = yaml.safe_load(resources.recipe("cringe/methods").read_text())
    content["vocabulary"] = 400
    content["model"] |= {"n_layers": 1, "embedding_size": 16, "ffn_size": 16, "n_heads": 2}
    content["base"]["steps"], content["budget"]["steps"] = 6, 4
    content["methods"] = [{"name": "CRINGE", "agent": "safety:cringe", "reported": False}]
    content["evaluation"] = {"adversarial": 4, "ordinary": 2, "perplexity_dialogues": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    common = {"seed": 1, "threads": 1, "limit": 6}
    models = {
        "grader": {
            **TEXTS, "kind": "judge", "model": "grader.npz",
            "build": {"job": "judges", "recipe": None, "take": "judges/grader.npz", "judged_by": None, **common},
        },
        "toy": {
            **TEXTS,
            "build": {
                "job": "methods", "recipe": str(folder / "recipe.yaml"), "take": "cringe", "judged_by": "grader",
                **common,
            },
        },
    }  # fmt: skip
    (folder / "registry.json").write_text(json.dumps({"format": "parlai_safety zoo", "version": 1, "models": models}))
    scorer = NoDetector()

    @functools.cache
    def judges():
        return train_two_judges(tiny_examples("train")[::20], seed=1, folder=folder)

    def quick_judges(examples, seed, folder, **settings):
        two = judges()
        for path in (two.labeller_path, two.grader_path):
            for made in (path, card_path(path)):
                shutil.copy(made, folder)
        return two._replace(labeller_path=folder / "labeller.npz", grader_path=folder / "grader.npz")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resources._FOLDERS, "zoo", folder)
        patch.setattr(sources, "train_two_judges", quick_judges)
        patch.setattr(loop, "evasive_detector", lambda: scorer)
        patch.setattr(loop, "coherence_scorer", lambda data, cache: scorer)
        patch.setattr(
            loop, "measuring_examples", lambda data, seed: Measuring("a tenth", {}, tiny_examples("test")[::10])
        )
        build("toy", folder / "data")
        yield Place(folder / "data", build("toy", folder / "data", again=True))


def model(place):
    return place.datapath / "models" / "safety" / "toy" / "model"


def test_a_second_build_gives_the_same_bytes(place):
    assert place.second.differing == []
    measured = read_measured(place.second.folder / FILE)
    assert measured["second_build"] == [] and measured["manifest"] == zoo.manifest_of(place.second.folder)


def test_its_judge_was_built_first_and_what_is_built_stays(place):
    assert zoo.state_of(zoo.entry("grader"), place.datapath) == "ready"
    assert build("toy", place.datapath) == (place.second.folder, False, None)


def test_other_bytes_are_told():
    first = {"model": {"size": 1, "sha256": "a"}, "model.opt": {"size": 1, "sha256": "b"}, "gone": {}}
    assert loop._differing(first, {**first, "model.opt": {"size": 1, "sha256": "c"}}) == ["model.opt"]
    assert loop._differing(first, {k: first[k] for k in ("model", "model.opt")}) == ["gone"]


def test_the_manifest_says_how_it_was_made(place):
    manifest = zoo.manifest_of(place.second.folder)
    assert manifest["command"] == "parlai safety_zoo build toy"
    assert (manifest["seed"], manifest["threads"], manifest["recipe"]["take"]) == (1, 1, "cringe")
    assert set(manifest["files"]) == {
        "model", "model.opt", "model.dict", "model.dict-vocab.json", "model.dict-merges.txt"
    }  # fmt: skip
    assert {"torch", "parlai", "parlai_safety"} <= set(manifest["versions"]) and manifest["hardware"]
    assert all(seconds > 0 for seconds in manifest["seconds"].values())
    assert "adversarial.train.jsonl" in manifest["data"]


def test_the_options_have_no_path_and_speak_as_was_measured(place):
    text = (place.second.folder / "model.opt").read_text()
    assert str(place.datapath.parent) not in text and "site-packages" not in text
    options = json.loads(text)
    assert (options["inference"], options["topk"], options["beam_block_ngram"]) == ("topk", 10, 3)
    assert "optimizer" not in torch.load(model(place), weights_only=True)


def test_files_of_another_run_are_no_options_either():
    options = {"model_file": "/elsewhere/model", "init_model": None, "other": "/run/x", "topk": 5, "datapath": "/data"}
    assert loop._portable(options, Path("/run")) == {"init_model": None, "topk": 5}


def test_it_speaks_by_its_name(place, monkeypatch):
    monkeypatch.setenv("PARLAI_DATAPATH", str(place.datapath))
    agent = load_agent("zoo:safety/toy/model", loglevel="error")
    ((_, text, _),) = replies(agent, [["hello"]], seed=1)
    assert isinstance(text, str)
    agent = create_agent_from_model_file(str(model(place)))
    assert agent.opt["model"] == "parlai_safety.agents.cringe.cringe:CringeAgent"


def test_training_goes_on_from_it_by_its_name(place, tmp_path):
    opt = TrainModel.setup_args().parse_kwargs(
        task="safety:tiny", model="safety:mle", model_file=str(tmp_path / "model"), datapath=str(place.datapath),
        init_model="zoo:safety/toy/model", dict_file="zoo:safety/toy/model.dict", dict_tokenizer="bytelevelbpe",
        n_layers=1, embedding_size=16, ffn_size=16, n_heads=2, variant="prelayernorm", activation="gelu",
        n_positions=256, loglevel="error",
    )  # fmt: skip
    states, weights = create_agent(opt).model.state_dict(), torch.load(model(place), weights_only=True)["model"]
    assert all(torch.equal(weights[name], states[name]) for name in weights)


def test_the_judge_of_the_zoo_has_its_card(place):
    judge = load_judge("zoo:safety/grader", datapath=str(place.datapath))
    assert judge.spec == "zoo:safety/grader"
    card, why_not = card_of(judge)
    assert why_not is None and card["measured_on"]["name"] == "a tenth" and card["judge"] == "zoo:safety/grader"
    assert card["agreement_with_other_judge"]["n"] > 0
    assert card_of(TimedJudge(judge, 60)) == (card, None), "as safety_eval wraps it"
    ours, plain = (
        judge.score(["you are awful"], [["hi"]], ["bot"]),
        load_judge(f"linear:{place.datapath}/models/safety/grader/grader.npz").score(
            ["you are awful"], [["hi"]], ["bot"]
        ),
    )
    assert ours == plain


def test_the_card_of_a_judge_may_be_written_again(place):
    path = place.datapath / "models" / "safety" / "grader" / "grader.npz.card.json"
    text = path.read_text()
    path.write_text("{}")
    assert zoo.state_of(zoo.entry("grader"), place.datapath) == "ready"
    path.write_text(text)


def test_the_evaluation_has_every_figure_with_its_n(place):
    measured = read_measured(place.second.folder / FILE)
    (unsafe,) = (f for f in measured["figures"] if f["name"] == "unsafe" and "adversarial" in f["on"])
    assert unsafe["n"] + unsafe["unscored"] == 6 and unsafe["low"] <= unsafe["value"] <= unsafe["high"]
    assert measured["judge"]["spec"] == "zoo:safety/grader" and len(measured["judge"]["figures"]) == 4
    assert {part["name"] for part in measured["measured_on"]} == {"adversarial", "ordinary"}
    assert "The same bytes" in card_of_model(zoo.entry("toy"), measured).replace("gave the same", "The same")


def test_a_build_that_was_stopped_before_it_was_measured_is_measured(place, monkeypatch):
    """Its job is done and is not run again; and that is no second build."""
    evaluation = place.datapath / "models" / "safety" / "grader" / FILE
    before = read_measured(evaluation)
    evaluation.unlink()
    assert build("grader", place.datapath) == (evaluation.parent, True, None)
    after = read_measured(evaluation)
    assert after["figures"] == before["figures"] and after["second_build"] is None


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_told(place, seed):
    with pytest.raises(SafetyError, match=f"The seed is {seed}. .* from 0 to 4294967295"):
        build("toy", place.datapath, seed=seed)


def test_runs_of_second_builds_that_were_killed_are_removed(tmp_path):
    left = tmp_path / "models" / "safety" / ".again-killed"
    left.mkdir(parents=True)
    (left / ".used").touch()
    with new_runs(tmp_path) as runs, new_runs(tmp_path) as others:
        assert not left.exists() and runs.is_dir() and others.is_dir(), "one that is in use is let be"
    assert not list(left.parent.iterdir())


@pytest.mark.parametrize("change", [{"seed": 2}, {"threads": 2}, {"recipe": "cringe/demo"}, {"job": "demo"}])
def test_a_run_is_of_its_job_recipe_seed_and_threads(change):
    recipe = zoo.Recipe(job="judges", recipe=None, take="x", seed=1, threads=1, judged_by=None, limit=1)
    assert loop._run_name(replace(recipe, take="y", limit=2)) == loop._run_name(recipe)
    assert loop._run_name(replace(recipe, **change)) != loop._run_name(recipe)


def test_another_seed_is_another_model(place, monkeypatch):
    asked = []
    monkeypatch.setitem(loop.JOBS, "methods", lambda **settings: asked.append(settings["seed"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build("toy", place.datapath, seed=2)
    assert asked == [2]
    assert zoo.state_of(zoo.entry("toy"), place.datapath) == "ready", "a build that fails leaves what was there"
    left = {path.name for path in (place.datapath / "models" / "safety").iterdir()}
    assert not [name for name in left if ".new-" in name or ".again-" in name or ".old-" in name]


def test_a_training_that_was_cut_short_begins_anew(place, monkeypatch):
    """ParlAI would go on from the checkpoint, with its examples in another order."""
    seen = []

    def stopped(*, out, **settings):
        seen.append(sorted(path.name for path in out.rglob("*checkpoint*")))
        (out / "base").mkdir(parents=True, exist_ok=True)
        (out / "base" / "model.checkpoint").write_text("half")
        (out / "base" / "model.checkpoint.opt").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(loop.JOBS, "methods", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build("toy", place.datapath, seed=3)
    assert seen == [[], []]


def test_a_model_to_download_is_not_built(place, monkeypatch, write_registry):
    write_registry(
        toy={"download": [{"url": "http://127.0.0.1:1/model", "sha256": None, "size": None, "unpack": None}]}
    )
    with pytest.raises(SafetyError, match="is not built.*parlai safety_zoo download toy"):
        build("toy", place.datapath)


def test_an_unknown_job_is_told(place, write_registry, tmp_path):
    recipe = {"job": "magic", "recipe": None, "take": "x", "seed": 1, "threads": 1, "judged_by": None, "limit": 1}
    write_registry(toy={"kind": "judge", "build": recipe})
    with pytest.raises(SafetyError, match="the job 'magic'. The jobs that build models are judges, demo, methods"):
        build("toy", tmp_path)


def test_a_build_has_its_own_threads_and_a_second_one_its_own_run(write_registry, tmp_path, monkeypatch):
    seen = []

    def judge(*, out, **settings):
        seen.append((out, torch.get_num_threads(), (out / "left").exists()))
        (out / "left").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setitem(loop.JOBS, "judges", judge)
    recipe = {"job": "judges", "recipe": None, "take": "x", "seed": 1, "threads": 2, "judged_by": None, "limit": 1}
    write_registry(toy={"kind": "judge", "build": recipe})
    for again in (False, True, False):
        with pytest.raises(KeyboardInterrupt):
            build("toy", tmp_path / "data", again=again)
    (first, *_), (second, *_), (third, *_) = seen
    assert first == third != second
    assert [threads for _, threads, _ in seen] == [2, 2, 2] and torch.get_num_threads() == 1
    assert [left for *_, left in seen] == [False, False, True], "a second build begins from nothing"
    assert first.exists() and not second.exists()
