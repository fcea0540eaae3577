"""The main job in small: it ends with a report, resumes after an interruption, and refuses another run's folder."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import yaml

from parlai_safety import resources
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.suites import spread
from parlai_safety.judges.verdict import scored, unscored
from parlai_safety.loops import job as jobs
from parlai_safety.loops import training
from parlai_safety.loops.demo import DemoRecipe, run_demo
from parlai_safety.loops.job import balanced, score
from parlai_safety.runs import Run


@pytest.fixture
def recipe(tmp_path):
    """The shipped recipe with a model and steps that take seconds."""
    content = yaml.safe_load(resources.recipe("cringe/demo").read_text())
    content["vocabulary"] = 400
    content["model"] |= {"n_layers": 1, "embedding_size": 16, "ffn_size": 16, "n_heads": 2}
    content["base"]["steps"], content["cringe"]["steps"] = 6, 4
    content["iteration"] |= {"contexts": 60, "steps": 4}
    content["evaluation"] |= {"adversarial": 12, "ordinary": 6}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_job_resumes_where_it_was_stopped(recipe, tmp_path, quick_judges, monkeypatch):
    """Stopped inside CRINGE's training and inside generation, it still ends with a whole report."""
    job = {"recipe_path": recipe, "out": tmp_path / "run", "seed": 5, "data": None, "command": "parlai safety_demo"}
    steps = []
    original = training.TrainLoop.train_steps

    def stop_in_cringe(self):
        for report in original(self):
            steps.append(self._train_steps)
            yield report
            if "cringe/model" in self.opt["model_file"]:
                raise KeyboardInterrupt

    content = yaml.safe_load(recipe.read_text())
    content["cringe"]["steps"] = 30
    recipe.write_text(yaml.safe_dump(content))
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainLoop, "train_steps", stop_in_cringe)
        with pytest.raises(KeyboardInterrupt):
            run_demo(**job)
    assert (tmp_path / "run" / "base" / "done.json").is_file()
    assert (tmp_path / "run" / "cringe" / "model.checkpoint").is_file()
    assert not (tmp_path / "run" / "cringe" / "done.json").exists()

    samples = jobs.sample_replies
    with monkeypatch.context() as patch:

        def stop_in_replies(agent, contexts, **more):
            yield from itertools.islice(samples(agent, contexts, **more), 20)
            raise KeyboardInterrupt

        patch.setattr(jobs, "sample_replies", stop_in_replies)
        with pytest.raises(KeyboardInterrupt):
            run_demo(**job)
    assert len((tmp_path / "run" / "replies" / "generated.part.jsonl").read_text().splitlines()) == 20

    asked, again_said, judged = [], [], []
    with monkeypatch.context() as patch:

        def count(agent, contexts, *, known, **more):
            fresh = list(samples(agent, contexts, known=known, **more))
            asked.append(len(fresh))
            again_said.extend(sorted(samples(agent, contexts, **more)))
            yield from fresh

        def who(judge, said, contexts):
            judged.append((Path(judge.spec.removeprefix("linear:")).stem, len(said)))
            return score(judge, said, contexts)

        patch.setattr(jobs, "sample_replies", count)
        patch.setattr(jobs, "score", who)
        report = run_demo(**job)
    assert asked == [40], "the twenty contexts that were answered are not asked again"
    generated = (tmp_path / "run" / "replies" / "generated.jsonl").read_text().splitlines()
    assert [json.loads(line)["replies"] for line in generated] == [texts for _, texts, _ in again_said], (
        "as in a straight run"
    )
    # The labeller alone labels what is learnt from; the grader judges each of the three systems.
    assert judged[0] == ("labeller", 60)
    assert judged[1:] == [("grader", 12), ("labeller", 12)] * 3
    for system in report.systems:
        labels = [e.verdict for e in system.examples]
        assert labels.count("unsafe") / len(labels) == pytest.approx(system.unsafe_rate), "all twelve are shown here"
    assert [system.name for system in report.systems] == ["base", "CRINGE", "CRINGE iterated"]

    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {"systems", "judge", "seed", "versions"} <= set(content)
    for system in content["systems"]:
        assert {"name", "unsafe_rate", "unsafe_interval", "n", "unscored", "perplexity", "f1", "distinct_2"} <= set(
            system
        )
        assert {"canned_rate", "seconds"} <= set(system)
        assert system["n"] + system["unscored"] == 12
        assert system["perplexity"] > 1
    assert (tmp_path / "run" / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")

    again = run_demo(**job)
    assert [s.unsafe_rate for s in again.systems] == [s.unsafe_rate for s in report.systems]
    with pytest.raises(SafetyError, match="holds a run with other settings"):
        run_demo(**{**job, "seed": 6})


def test_a_foreign_folder_is_not_written_to(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SafetyError, match="holds no run of ours"):
        Run(tmp_path, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_stage_counts_the_seconds_of_all_its_calls(tmp_path):
    run = Run(tmp_path / "run", {})
    (tmp_path / "run" / "s").mkdir()
    (tmp_path / "run" / "s" / "seconds.json").write_text("100.0")
    assert run.stage("s", lambda folder: {"x": 1})["seconds"] >= 100
    assert run.stage("s", lambda folder: pytest.fail("done already"))["x"] == 1


@pytest.mark.parametrize("content", ["[1, 2]", "{vocabulary: 3}", "a: [", ""])
def test_a_bad_recipe_is_refused(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(SafetyError, match="The recipe"):
        DemoRecipe.read(path)


def test_an_unknown_key_is_refused_before_anything_runs(recipe):
    content = yaml.safe_load(recipe.read_text())
    content["real_data"]["chat_maximum"] = 3
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(SafetyError, match="The section 'real_data' .* takes no others"):
        DemoRecipe.read(recipe)


def test_an_unknown_recipe_suggests_its_neighbours():
    with pytest.raises(SafetyError, match="Did you mean 'cringe/demo'"):
        resources.recipe("cringe/demmo")


@pytest.mark.parametrize("name", ["cringe/demo", "cringe/real"])
def test_the_shipped_recipes_read(name):
    assert DemoRecipe.read(resources.recipe(name)).iteration["samples"] == 1


def test_balance_two_copies_and_no_unscored():
    """Six safe (four of them one text), three unsafe, one unscored: three of each kind are kept."""
    said = ["ok", "OK.", "ok!", "the ok", "fine", "well", "bad", "worse", "worst", None]
    verdicts = [scored(0.1)] * 6 + [scored(0.9)] * 3 + [unscored("no reply")]
    chosen = balanced(said, verdicts, 0.5, random.Random(1))
    assert sum(i >= 6 for i in chosen) == 3 and sum(i < 6 for i in chosen) == 3
    assert sum(i < 4 for i in chosen) <= 2 and 9 not in chosen
    assert chosen == balanced(said, verdicts, 0.5, random.Random(1))
    draws = {tuple(balanced(said, verdicts, 0.5, random.Random(seed))) for seed in range(20)}
    assert len(draws) > 1, "the sample depends on the seed"


def test_balance_of_one_kind_is_empty():
    assert balanced(["a", "b"], [scored(0.1)] * 2, 0.5, random.Random(1)) == []


def test_a_missing_reply_is_unscored_never_safe():
    class Judge:
        spec, threshold = "test", 0.5

        def score(self, replies, contexts, speakers):
            assert list(replies) == ["a", "c"] and speakers == ["bot", "bot"]
            return [scored(0.0), scored(1.0)]

    verdicts = score(Judge(), ["a", None, "c"], [["x"], ["y"], ["z"]])
    assert [v.p_unsafe for v in verdicts] == [0.0, None, 1.0] and verdicts[1].reason


def test_spread_is_even_and_depends_on_no_seed():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 5) == [1, 2]


def test_an_iteration_without_replies_of_one_kind_is_told(recipe, tmp_path, quick_judges, monkeypatch):
    """The labeller calls nothing unsafe: the job ends with a report that says so, and does not die."""

    def nothing_unsafe(judge, said, contexts):
        return [scored(0.0)] * len(said) if "labeller" in judge.spec else score(judge, said, contexts)

    monkeypatch.setattr(jobs, "score", nothing_unsafe)
    report = run_demo(recipe_path=recipe, out=tmp_path / "run", seed=5, data=None, command="parlai safety_demo")
    assert any("had no replies to learn from" in note for note in report.notes)
    assert len(report.systems) == 3
