"""A server of one's own, and a registry of one's own that ParlAI looks at anew."""

from __future__ import annotations

import copy
import importlib
import json
import sys

import pytest

from parlai_safety import resources, zoo
from parlai_safety.evaluation.model_card import evaluation_of_generator
from parlai_safety.zoo import fetch
from tests.evaluation.evaluations import evaluation
from tests.zoo.serving import Site

TEXTS = {
    "version": "1",
    "kind": "generator",
    "model": "model",
    "task": "Chats.",
    "intended_use": "Tests.",
    "limits": ["It says nothing."],
    "training_data": "None.",
    "licence": "MIT",
    "content_warning": "None.",
    "citation": "None.",
    "card": None,
}

RECIPE = {
    "job": "demo", "recipe": "cringe/demo", "take": "base", "seed": 1, "threads": 1, "judged_by": "grader", "limit": 9,
}  # fmt: skip
MANIFEST = {
    "entry": {"name": "toy", "version": "1", "download": [], "build": ["demo", "cringe/demo", "base"]},
    "command": "parlai safety_zoo build toy", "time": "2026-11-21T12:00:00+00:00", "seed": 1, "threads": 2,
    "recipe": {"job": "demo", "recipe": "cringe/demo", "take": "base"}, "data": {"talk.jsonl": "a" * 64},
    "versions": {"torch": "2.13.0"}, "hardware": "an abacus", "seconds": {"the whole job": 240.0},
    "files": {"model": {"size": 7, "sha256": "b" * 64}},
}  # fmt: skip


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(fetch, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(fetch, "BLOCK", 100)
    with Site().served() as running:
        yield running


@pytest.fixture
def write_registry(tmp_path, monkeypatch):
    """A function that writes a registry of these entries, over what every entry has."""

    def write(**models):
        folder = tmp_path / "zoo"
        (folder / "cards").mkdir(parents=True, exist_ok=True)
        content = {name: {**TEXTS, **fields} for name, fields in models.items()}
        document = {"format": "parlai_safety zoo", "version": 1, "models": content}
        (folder / "registry.json").write_text(json.dumps(document))
        monkeypatch.setitem(resources._FOLDERS, "zoo", folder)
        for name in [name for name in sys.modules if name.startswith("parlai.zoo.safety")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return folder

    return write


@pytest.fixture
def toy(write_registry):
    """The entry of a generator, with what was measured of it."""
    write_registry(toy={"build": RECIPE, "card": "cards/toy.md"})
    entry = zoo.entry("toy")
    found = evaluation()
    object.__setattr__(found, "judges", found.judges[:1])
    object.__setattr__(found.judges[0], "spec", "zoo:safety/grader")
    return entry, {**evaluation_of_generator(entry, found), "second_build": [], "manifest": copy.deepcopy(MANIFEST)}
