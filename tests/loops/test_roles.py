"""Who judges what, on which split: the grader grades the test split and nothing else, the labeller labels the rest."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from parlai_safety.judges.data import halves
from parlai_safety.loops import job as jobs
from parlai_safety.loops import rounds as driver
from parlai_safety.loops.job import Job
from parlai_safety.loops.methods import run_methods
from parlai_safety.loops.rounds import run_rounds
from parlai_safety.loops.sources import source_of
from parlai_safety.loops.training import train
from tests.loops.test_methods import half_unsafe
from tests.loops.test_methods import small as small_methods


@pytest.fixture
def watched(monkeypatch):
    """Every judging, sampling and measuring of a job: (what, role or None, contexts)."""
    seen = []

    def judged(where):
        def score(judge, said, contexts):
            seen.append((where, judge.spec.rpartition("/")[2], [tuple(c) for c in contexts]))
            return half_unsafe(judge, said, contexts)

        return score

    samples, losses = jobs.sample_replies, driver.losses

    def sampled(agent, contexts, **more):
        seen.append(("own", None, [tuple(c) for c in contexts]))
        return samples(agent, contexts, **more)

    def measured(agent, contexts, references, **more):
        seen.append(("cost", None, list(zip(map(tuple, contexts), references, strict=True))))
        return losses(agent, contexts, references, **more)

    monkeypatch.setattr(jobs, "score", judged("job"))
    monkeypatch.setattr(driver, "score", judged("health"))
    monkeypatch.setattr(jobs, "sample_replies", sampled)
    monkeypatch.setattr(driver, "losses", measured)
    return seen


def test_splits_and_roles_in_rounds(toy, tmp_path, quick_judges, watched):
    rows = {split: list(source_of(None).adversarial(split)) for split in ("train", "valid", "test")}
    contexts = {split: {tuple(row.context) for row in listed} for split, listed in rows.items()}
    path = toy(
        "cringe/rounds",
        method={"steps": 3, "learningrate": 0.01},
        rounds={"count": 1, "steps": 2, "contexts": 12, "samples": 3, "valid": 4},
        stop={"positive_nll": 9, "loop_rate": 9, "canned_rate": 9},
    )
    run_rounds(recipe_path=path, out=tmp_path / "run", seed=3, data=None, command="parlai safety_rounds")
    kinds = [(where, role) for where, role, _ in watched]
    # Rounds 0 and 1 have their health taken; round 1 has its own replies labelled; three systems are graded at the end.
    health = [("cost", None), ("health", "labeller.npz")]
    assert kinds[:6] == [*health, ("own", None), ("job", "labeller.npz"), *health]
    assert kinds[6:] == [("job", "grader.npz"), ("job", "labeller.npz")] * 3
    safe = {(tuple(row.context), row.reply) for row in rows["valid"] if not row.unsafe}
    for where, _, seen in watched[:6]:
        if where == "cost":
            assert len(seen) == 4 and set(seen) <= safe
        else:
            assert set(seen) <= contexts["valid" if where == "health" else "train"] and seen
    assert all(set(seen) <= contexts["test"] for _, _, seen in watched[6:])


def test_round_0_has_steps_of_its_own(toy, tmp_path, quick_judges, watched, monkeypatch):
    trained, real = [], jobs.train
    monkeypatch.setattr(jobs, "train", lambda title, **o: trained.append(o["max_train_steps"]) or real(title, **o))
    path = toy(
        "cringe/rounds",
        method={"steps": 3, "learningrate": 0.01},
        rounds={"count": 1, "steps": 2, "contexts": 12, "samples": 3, "valid": 4},
        stop={"positive_nll": 9, "loop_rate": 9, "canned_rate": 9},
    )
    run_rounds(recipe_path=path, out=tmp_path / "run", seed=3, data=None, command="parlai safety_rounds")
    assert trained == [4, 3, 2]


def test_decoders_are_guided_by_the_labellers_half(toy, tmp_path, quick_judges, monkeypatch):
    """`<labeller>` is the labeller, and the judge of unfinished replies learns from its half, which grades nothing."""
    monkeypatch.setattr(jobs, "score", half_unsafe)
    learnt, guided = [], []

    def fit(examples, seed):
        learnt.extend(examples)
        return SimpleNamespace(judge=jobs.load_judge(f"linear:{tmp_path / 'run' / 'judges' / 'labeller.npz'}"))

    monkeypatch.setattr(jobs, "cross_fit_linear", fit)
    agent = Job.agent

    def loaded(self, system, **decoding):
        if system.decodes:
            guided.append((system.name, system.options["guidance_judge"]))
        return agent(self, system, **decoding)

    monkeypatch.setattr(Job, "agent", loaded)
    methods = [
        {"name": "reranker", "agent": "safety:rerank", "decode": True, "options": {"guidance_judge": "<labeller>"}},
        {"name": "FUDGE", "agent": "safety:fudge", "decode": True, "options": {"guidance_judge": "<prefix judge>"}},
    ]
    out = tmp_path / "run"
    path = small_methods(toy, "cringe/methods", methods=methods)
    run_methods(recipe_path=path, out=out, seed=3, data=None, command="parlai safety_methods")
    first, second = halves(source_of(None).judge_examples(3), 3)
    conversations = {example.conversation for example in learnt}
    assert conversations == {e.conversation for e in first} and not conversations & {e.conversation for e in second}
    assert len(learnt) > len(first), "unfinished replies are among them"
    assert dict(guided) == {
        "reranker": f"linear:{out / 'judges' / 'labeller.npz'}",
        "FUDGE": f"linear:{out / 'prefix_judge' / 'prefix.npz'}",
    }


def test_the_seed_reaches_every_draw():
    seeds = [Job._seed_of(SimpleNamespace(seed=seed), what) for seed in (1, 2) for what in ("a", "b")]
    assert len(set(seeds)) == 4


def test_a_training_depends_on_its_seed_and_on_nothing_before_it(tmp_path):
    def weights(seed, name):
        random.seed(len(name))
        torch.manual_seed(len(name))
        train(
            name, model_file=tmp_path / name / "model", max_train_steps=2, seed=seed, model="safety:mle",
            task="safety:tiny:plain", batchsize=4, n_layers=1, n_heads=2, embedding_size=8, ffn_size=8,
            text_truncate=16, label_truncate=16, dict_maxexs=50, learningrate=0.01,
        )  # fmt: skip
        return torch.load(tmp_path / name / "model", weights_only=False)["model"]["embeddings.weight"]

    first, again, other = weights(1, "a"), weights(1, "longer"), weights(2, "c")
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_training_that_was_only_to_be_saved_gets_no_further_update(tmp_path):
    options = {
        "seed": 1, "model": "safety:mle", "task": "safety:tiny:plain", "batchsize": 4, "n_layers": 1, "n_heads": 2,
        "embedding_size": 8, "ffn_size": 8, "text_truncate": 16, "label_truncate": 16, "dict_maxexs": 50,
        "max_train_steps": 2, "model_file": tmp_path / "model", "learningrate": 0.01,
    }  # fmt: skip
    train("once", **options)
    before = torch.load(tmp_path / "model", weights_only=False)["model"]["embeddings.weight"]
    train("again", **options)
    assert torch.equal(before, torch.load(tmp_path / "model", weights_only=False)["model"]["embeddings.weight"])
