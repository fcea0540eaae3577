"""`parlai safety_zoo`: its verbs, and what it says to mistakes."""

from __future__ import annotations

import json

import pytest

from parlai_safety import zoo
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.model_card import card_of_model
from parlai_safety.loops import zoo as loop
from parlai_safety.scripts.safety_zoo import SafetyZoo
from tests.zoo.conftest import RECIPE
from tests.zoo.test_entries import FIGURE
from tests.zoo.test_store import CONTENT, entry


def run(tmp_path, *words):
    SafetyZoo.main(*words, "--datapath", str(tmp_path / "data"))


def test_list_and_show(site, write_registry, tmp_path, capsys):
    write_registry(
        toy=entry(site, task="Chats. A lot.", published=[FIGURE]), made={"build": RECIPE}, dark=entry(site, known=False)
    )
    run(tmp_path, "list")
    toy, made, dark, *_ = capsys.readouterr().out.splitlines()
    assert toy.split() == "toy generator absent Chats (downloaded)".split()
    assert made.endswith("Chats (built here)") and dark.endswith("(downloaded, checksum unknown)")
    run(tmp_path)
    assert capsys.readouterr().out.startswith(toy), "no word at all lists too"
    run(tmp_path, "show", "toy")
    shown = capsys.readouterr().out
    assert "zoo:safety/toy/model" in shown and "It says nothing." in shown and "size unknown" in shown
    assert "F1               0.500 [0.400, 0.600], n 10, on test; paper" in shown


def test_download(site, write_registry, tmp_path, capsys):
    write_registry(toy=entry(site), dark=entry(site, known=False))
    run(tmp_path, "download", "toy")
    assert "as the registry says" in capsys.readouterr().out
    assert (tmp_path / "data" / "models" / "safety" / "toy" / "model").read_bytes() == CONTENT
    with pytest.raises(SafetyError, match="--accept-unverified true"):
        run(tmp_path, "download", "dark")
    run(tmp_path, "download", "dark", "--accept-unverified", "true")
    assert "which nobody could check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("built", "words"),
    [
        ((True, None), "toy is built: FOLDER\n"),
        ((False, None), "toy was built already: FOLDER\n"),
        ((True, []), "Every file has the same bytes as in the first build."),
        ((True, ["model"]), "Other bytes than in the first build: model"),
    ],
)
def test_build(write_registry, tmp_path, capsys, monkeypatch, built, words):
    write_registry(toy={"build": RECIPE})
    asked, shared = [], set()

    def stand_in(name, datapath, *, seed, again, runs):
        asked.append((name, datapath, seed, again, runs.is_dir()))
        shared.add(runs)
        return loop.Built("FOLDER", *built)

    monkeypatch.setattr(loop, "build", stand_in)
    run(tmp_path, "build", "toy", "toy", "--seed", "3", "--again", "true")
    assert asked == [("toy", str(tmp_path / "data"), 3, True, True)] * 2
    (runs,) = shared
    assert not runs.exists()
    assert words in capsys.readouterr().out


def test_stopping_a_build_says_how_to_go_on(write_registry, tmp_path, capsys, monkeypatch):
    write_registry(toy={"build": RECIPE})

    def stopped(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "build", stopped)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "build", "toy")
    assert end.value.code == 130 and "Finished steps are kept: type the same command again" in capsys.readouterr().out


def test_card_and_check(toy, write_registry, tmp_path, capsys):
    described, measured = toy
    folder = write_registry(toy={"build": RECIPE, "card": "cards/toy.md"})
    with pytest.raises(SafetyError, match="Build the model first"):
        run(tmp_path, "card", "toy")
    place = zoo.folder_of(described, tmp_path / "data")
    place.mkdir(parents=True)
    (place / "evaluation.json").write_text(json.dumps(measured))
    run(tmp_path, "card", "toy")
    assert (place / "card.md").read_text() == card_of_model(described, measured)
    with pytest.raises(SafetyError, match="The zoo has 2 faults: .*is not there"):
        run(tmp_path, "check")
    write_registry(
        toy={"build": RECIPE, "card": "cards/toy.md"}, grader={"kind": "judge", "build": {**RECIPE, "judged_by": None}}
    )
    run(tmp_path, "card", "toy", "--out", str(folder / "cards"))
    with pytest.raises(SafetyError, match="The zoo has 1 faults: The entry 'grader' is built here and has no card"):
        run(tmp_path, "check")
    run(tmp_path, "show", "toy")
    assert "unsafe  " in capsys.readouterr().out, "the figures of the committed evaluation"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("builds", "toy"), "got 'builds'. It can list, .*Did you mean 'build'"),
        (("list", "toy"), "safety_zoo list came with 1 names. 'list' is about the whole zoo"),
        (("build",), "safety_zoo build came with 0 names. 'build' is about models"),
        (("show", "toyy"), "Did you mean 'toy'"),
        (("card", "toy"), "was trained by its publishers"),
        (("build", "toy"), "is not built"),
    ],
)
def test_mistakes_end_in_three_sentences(site, write_registry, tmp_path, words, message):
    write_registry(toy=entry(site))
    with pytest.raises(SafetyError, match=message):
        run(tmp_path, *words)
