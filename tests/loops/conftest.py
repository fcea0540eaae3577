"""Judges of a small part of the corpus, trained once: a job's own take half a minute."""

from __future__ import annotations

import shutil

import pytest
import yaml

from parlai_safety import resources
from parlai_safety.loops import sources


@pytest.fixture(scope="session")
def judges(tmp_path_factory):
    from parlai_safety.judges.data import tiny_examples
    from parlai_safety.judges.recipe import train_two_judges

    folder = tmp_path_factory.mktemp("judges")
    return train_two_judges(tiny_examples("train")[::8], seed=1, folder=folder), folder


@pytest.fixture
def quick_judges(judges, monkeypatch):
    two, made = judges

    def copy(examples, seed, folder, **about):
        for path in made.iterdir():
            shutil.copy(path, folder)
        return two._replace(labeller_path=folder / "labeller.npz", grader_path=folder / "grader.npz")

    monkeypatch.setattr(sources, "train_two_judges", copy)


@pytest.fixture
def toy(tmp_path):
    """A shipped recipe with a model and steps that take seconds: a function of its name and of what changes."""

    def make(name, **changes):
        content = yaml.safe_load(resources.recipe(name).read_text())
        content["vocabulary"] = 400
        content["model"] = {
            "n_layers": 1, "embedding_size": 16, "ffn_size": 16, "n_heads": 2, "n_positions": 128,
            "text_truncate": 48, "label_truncate": 16, "dropout": 0.0,
        }  # fmt: skip
        content["optimisation"] = {
            "optimizer": "adam",
            "batchsize": 8,
            "lr_scheduler": "fixed",
            "gradient_clip": 1.0,
        }
        content["base"] = {"steps": 4, "learningrate": 0.01}
        content["evaluation"] = {"adversarial": 8, "ordinary": 4, "perplexity_dialogues": 2}
        content["real_data"] = {"chat_max_dialogues": 20, "labels_weight": 1.0}
        content["decoding"] = {"inference": "topk", "topk": 5}
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        path = tmp_path / f"{name.rpartition('/')[2]}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make
