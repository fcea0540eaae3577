"""A classifier of the zoo as a judge: downloaded, unpacked, and read with as many turns as it was trained on."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.card import card_path
from parlai_safety.judges.data import tiny_examples
from parlai_safety.judges.linear import LinearJudge, train_linear
from tests.judges.test_parlai_model import KIND, RUDE, train


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A tiny classifier in an archive laid out as ParlAI's are: a folder a model."""
    folder = tmp_path_factory.mktemp("classifier")
    train(folder, ("__ok__", "__notok__"), "__notok__")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as opened:
        for path in sorted(folder.glob("model*")):
            opened.add(path, f"single_turn/{path.name}")
        opened.add(folder / "model.opt", "multi_turn/model.opt")
    return whole.getvalue()


@pytest.mark.parametrize("form", ["zoo:safety/toy", "zoo:safety/toy/model", "parlai:zoo:safety/toy/model"])
def test_it_judges_by_each_of_its_names(site, write_registry, tmp_path, monkeypatch, packed, form):
    monkeypatch.setenv("PARLAI_DATAPATH", str(tmp_path / "data"))
    site.files["/a.tgz"] = packed
    file = {"url": f"{site.url}/a.tgz", "sha256": hashlib.sha256(packed).hexdigest(), "size": len(packed)}
    write_registry(toy={"kind": "classifier", "context_turns": 2, "download": [{**file, "unpack": "single_turn/"}]})
    judge = load_judge(form)
    verdicts = judge.score([*RUDE, *KIND], [["hello"]] * 4, ["bot"] * 4)
    assert [verdict.p_unsafe > judge.threshold for verdict in verdicts] == [True, True, False, False]
    assert judge.spec == form
    folder = tmp_path / "data" / "models" / "safety" / "toy"
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".opt") == ["model.dict.opt", "model.opt"]
    if form.startswith("zoo:"):
        assert judge.context_turns == 2, "as its entry says"
        assert card_path(judge) == folder / "model.card.json"
        assert load_judge(form, threshold=0.25).threshold == 0.25


def test_a_judge_that_was_not_built_is_told(write_registry, tmp_path, monkeypatch):
    monkeypatch.setenv("PARLAI_DATAPATH", str(tmp_path))
    recipe = {"job": "judges", "recipe": None, "take": "judges/toy.npz", "seed": 1, "threads": 1, "limit": 1}
    write_registry(toy={"kind": "judge", "model": "toy.npz", "build": {**recipe, "judged_by": None}})
    with pytest.raises(SafetyError, match="parlai safety_zoo build toy"):
        load_judge("zoo:safety/toy")
    with pytest.raises(SafetyError, match="Did you mean 'toy'"):
        load_judge("zoo:safety/toyy")


def test_a_linear_judge_is_its_main_file(site, write_registry, tmp_path):
    train_linear(tiny_examples("train")[::200], seed=1).save(tmp_path / "judge.npz")
    content = site.files["/judge.npz"] = (tmp_path / "judge.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    file = {"url": f"{site.url}/judge.npz", "sha256": digest, "size": len(content), "unpack": None}
    write_registry(small={"kind": "judge", "model": "judge.npz", "download": [file]})
    judge = load_judge("zoo:safety/small", threshold=0.25, datapath=str(tmp_path))
    assert isinstance(judge, LinearJudge) and (judge.spec, judge.threshold) == ("zoo:safety/small", 0.25)
    assert load_judge("zoo:safety/small/judge.npz", datapath=str(tmp_path)).fingerprint == judge.fingerprint
    with pytest.raises(SafetyError, match="no file.*small/model'"):
        load_judge("zoo:safety/small/model", datapath=str(tmp_path))
