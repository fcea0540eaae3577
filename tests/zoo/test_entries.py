"""The registry is checked field by field when it is read, and the shipped one is in order."""

from __future__ import annotations

import pytest

from parlai_safety import resources, zoo
from parlai_safety.errors import SafetyError
from parlai_safety.loops.zoo import JOBS
from tests.zoo.conftest import RECIPE

FILE = {"url": "http://example.org/model", "sha256": "a" * 64, "size": 3, "unpack": None}
FIGURE = {"name": "F1", "on": "test", "value": 0.5, "n": 10, "source": "paper", "low": 0.4, "high": 0.6}


def test_an_entry_is_read_whole(write_registry):
    second = {**FILE, "size": 4}
    write_registry(toy={"download": [FILE, second], "published": [FIGURE]}, made={"build": RECIPE})
    toy, made = zoo.registry().values()
    assert toy.download == (zoo.Remote(**FILE), zoo.Remote(**second)) and toy.size == 7 and toy.verified
    assert toy.published == (zoo.Published(**FIGURE),) and toy.build is None
    assert made.build == zoo.Recipe(**RECIPE) and made.size is None and made.verified
    assert (toy.zoo_path, toy.download[0].name) == ("zoo:safety/toy/model", "model")


def test_what_is_not_known_is_said(write_registry):
    write_registry(toy={"download": [FILE, {**FILE, "sha256": None, "size": None}]})
    assert not zoo.entry("toy").verified and zoo.entry("toy").size is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"download": [FILE], "build": RECIPE}, "entry 'toy' has both or neither"),
        ({}, "entry 'toy' has both or neither"),
        ({"download": []}, r"entry 'toy' has \[\] as 'download'"),
        ({"download": [FILE], "task": " "}, "entry 'toy' has ' ' as 'task'"),
        ({"download": [FILE], "limits": []}, "as 'limits'"),
        ({"download": [FILE], "limits": ["fine", ""]}, "as 'limits'"),
        ({"download": [FILE], "kind": "poem"}, "one of classifier, generator, judge"),
        ({"download": [FILE], "model": "../model"}, r"has '../model' as 'model'"),
        ({"download": [FILE], "model": "/model"}, "as 'model'"),
        ({"download": [FILE], "licences": "MIT"}, "unknown fields 'licences'"),
        ({"download": [FILE], "context_turns": 4}, "is a generator with context_turns 4"),
        ({"download": [FILE], "kind": "classifier"}, "is a classifier with context_turns None"),
        ({"download": [{**FILE, "sha256": "abc"}]}, "File 1 of the registry entry 'toy' has 'abc' as 'sha256'"),
        ({"download": [{**FILE, "sha256": "A" * 64}]}, "as 'sha256'"),
        ({"download": [{**FILE, "size": 0}]}, "has 0 as 'size'"),
        ({"download": [{**FILE, "size": True}]}, "has True as 'size'"),
        ({"download": [{**FILE, "url": "ftp://example.org/x"}]}, "as 'url'"),
        ({"download": [{**FILE, "unpack": "../x/"}]}, "as 'unpack'"),
        ({"download": [{key: FILE[key] for key in ("url", "sha256", "size")}]}, "has no field 'unpack'"),
        ({"download": ["model"]}, "File 1 of the registry entry 'toy' is a str"),
        ({"build": {**RECIPE, "seed": -1}}, "The recipe of the registry entry 'toy' has -1 as 'seed'"),
        ({"build": {**RECIPE, "threads": 0}}, "as 'threads'"),
        ({"build": {**RECIPE, "judged_by": None}}, "names its judge"),
        ({"build": RECIPE, "kind": "judge"}, "is a judge judged by 'grader'"),
        ({"download": [FILE], "published": [{**FIGURE, "n": 0}]}, "Figure 1 of the registry entry 'toy' has 0 as 'n'"),
        ({"download": [FILE], "published": [{**FIGURE, "low": None}]}, "one end of an interval"),
        ({"download": [FILE], "published": [{**FIGURE, "value": 0.7}]}, "outside"),
        ({"download": [FILE], "published": [{**FIGURE, "value": float("nan")}]}, "as 'value'"),
    ],
)
def test_a_faulty_entry_is_told_by_its_field(write_registry, fields, words):
    write_registry(toy=fields)
    with pytest.raises(SafetyError, match=words):
        zoo.registry()


def test_names_are_names_of_modules(write_registry):
    write_registry(**{"toy.one": {"download": [FILE]}})
    with pytest.raises(SafetyError, match=r"'toy\.one' has a name of other characters"):
        zoo.registry()


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"format": "x", "version": 1, "models": {}}', "is 'x'")],
)
def test_another_file_is_no_registry(write_registry, text, words):
    (write_registry() / "registry.json").write_text(text)
    with pytest.raises(SafetyError, match=words):
        zoo.registry()


def test_unknown_names_are_told(write_registry):
    write_registry(toy={"download": [FILE]})
    with pytest.raises(SafetyError, match=r"The registry lists toy\. Did you mean 'toy'"):
        zoo.entry("toyy")


def test_the_shipped_registry_is_in_order():
    models = zoo.registry()
    assert {"grader", "labeller", "tiny_base", "tiny_cringe", "bad_multi_turn", "blender_90m"} <= set(models)
    for entry in models.values():
        if entry.build is None:
            assert not entry.verified and entry.card is None, "of these nothing was measured here"
        else:
            assert entry.build.job in JOBS
            assert entry.build.recipe is None or resources.recipe(entry.build.recipe).is_file()


def test_what_has_no_checksum_comes_by_https():
    plain = [r.url for e in zoo.registry().values() for r in e.download if r.sha256 is None and "https:" not in r.url]
    assert plain == []
