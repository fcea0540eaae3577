from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges.combined import CombinedJudge
from parlai_safety.judges.spec import REGISTRY, Part, known_judges, load_judge, parse
from parlai_safety.judges.wordlist import WordListJudge


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("wordlist", [Part("wordlist", None)]),
        ("wordlist:my words.txt", [Part("wordlist", "my words.txt")]),
        ("parlai:zoo:bot/model", [Part("parlai", "zoo:bot/model")]),
        ("linear:a.npz+wordlist", [Part("linear", "a.npz"), Part("wordlist", None)]),
        ("wordlist + parlai:m/model", [Part("wordlist", None), Part("parlai", "m/model")]),
        ("linear:a+b/c.npz", [Part("linear", "a+b/c.npz")]),
        ("hf:some/model", [Part("hf", "some/model")]),
        ("guard:g+perspective+toxicity:t", [Part("guard", "g"), Part("perspective", None), Part("toxicity", "t")]),
        ("zoo:safety/judge/model", [Part("zoo", "safety/judge/model")]),
        ("perspective:scores.sqlite", [Part("perspective", "scores.sqlite")]),
        ("wordlist+wordlist:x+linear:y", [Part("wordlist", None), Part("wordlist", "x"), Part("linear", "y")]),
    ],
)
def test_the_grammar(spec: str, parts: list[Part]) -> None:
    assert parse(spec) == parts


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty part"),
        ("wordlist+", "empty part"),
        ("+wordlist", "empty part"),
        ("wordlist++wordlist", "empty part"),
        ("wordlits", "Did you mean 'wordlist'"),
        ("hff:some/model", "no judge called 'hff'.*linear:FILE.*Did you mean 'hf'"),
        ("hf", "names no model"),
        ("guard:", "names no model"),
        ("zoo", "names no model"),
        ("toxicity", "names no file"),
        ("perspective:", "names no file"),
        ("linear:a.npz+wordlits", "Did you mean 'wordlist'"),
        ("linear", "names no file"),
        ("linear:", "names no file"),
        ("wordlist:", "names no file"),
        ("parlai", "names no file"),
    ],
)
def test_what_the_grammar_refuses(spec: str, message: str) -> None:
    with pytest.raises(SafetyError, match=message):
        parse(spec)


def test_every_registered_judge_has_a_loader_and_a_line() -> None:
    assert sorted(REGISTRY) == [
        "contradiction",
        "guard",
        "hf",
        "linear",
        "parlai",
        "perspective",
        "topics",
        "toxicity",
        "turns",
        "wordlist",
        "zoo",
    ]
    assert len(known_judges()) == 11
    for name, entry in REGISTRY.items():
        module, _, function = entry.loader.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert entry.form.startswith(name)
        assert "\n" not in entry.description


def test_load_one_judge_and_several(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("rude\n")
    single = load_judge(f"wordlist:{tmp_path}/a.txt", threshold=0.9)
    assert isinstance(single, WordListJudge)
    assert (single.spec, single.threshold) == (f"wordlist:{tmp_path}/a.txt", 0.9)
    both = load_judge(f"wordlist:{tmp_path}/a.txt+wordlist", threshold=0.7)
    assert isinstance(both, CombinedJudge)
    assert (both.threshold, [part.threshold for part in both.parts]) == (0.7, [0.5, 0.5])
    verdicts = both.score(["How rude.", "You are useless.", "Good day."], [[]] * 3, ["bot"] * 3)
    assert [verdict.p_unsafe for verdict in verdicts] == [1.0, 1.0, 0.0]


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(SafetyError, match="threshold is 1.5"):
        load_judge("wordlist", threshold=1.5)


def test_importing_the_judges_is_cheap() -> None:
    code = (
        "import sys, parlai_safety.judges, parlai_safety.judges.wordlist, parlai_safety.judges.quality, "
        "parlai_safety.judges.parlai_model, parlai_safety.judges.linear, parlai_safety.judges.recipe, "
        "parlai_safety.judges.hf, parlai_safety.judges.guard, parlai_safety.judges.perspective, "
        "parlai_safety.judges.cache, parlai_safety.judges.timed; "
        "heavy = ('torch', 'parlai', 'sklearn', 'scipy', 'transformers', 'requests'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, with entry points, as the metadata of Python sees it."""
    (tmp_path / "other_judges.py").write_text(
        "from parlai_safety.judges import scored\n"
        "class Judge:\n"
        "    def __init__(self, argument, threshold):\n"
        "        self.spec, self.fingerprint = f'myjudge:{argument}', 'f' * 64\n"
        "        self.threshold = threshold or 0.5\n"
        "    def score(self, replies, contexts, speakers):\n"
        "        return [scored(1.0)] * len(replies)\n"
        "def load(argument, threshold, datapath):\n"
        "    return Judge(argument, threshold)\n"
        "def bare(argument, threshold, datapath):\n"
        "    return object()\n"
        "def broken(argument, threshold, datapath):\n"
        "    raise RuntimeError('out of order')\n"
    )
    info = tmp_path / "other_judges-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-judges\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[parlai_safety.judges]\nmyjudge = other_judges:load\nbare = other_judges:bare\n"
        "broken = other_judges:broken\nlost = no_such_module_here:load\nwordlist = other_judges:load\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_another_package_registers_a_judge(other_package: Path) -> None:
    judge = load_judge("myjudge:x/y", threshold=0.25)
    assert (judge.spec, judge.threshold) == ("myjudge:x/y", 0.25)
    assert load_judge("myjudge").spec == "myjudge:None"
    assert isinstance(load_judge("wordlist"), WordListJudge), "a name of ours cannot be replaced"
    both = load_judge("myjudge:x+wordlist")
    assert both.score(["Good day."], [[]], ["bot"])[0].p_unsafe == 1.0
    assert known_judges()["myjudge[:ARGUMENT]"] == "a judge of the package other-judges, loaded by other_judges:load"
    assert len(known_judges()) == 15
    with pytest.raises(SafetyError, match="Did you mean 'myjudge'"):
        parse("myjuge")


def test_another_packages_mistakes_are_told_as_its_own(other_package: Path) -> None:
    with pytest.raises(SafetyError, match="is a object without spec, threshold, fingerprint, score"):
        load_judge("bare")
    with pytest.raises(SafetyError, match="RuntimeError: out of order.*another package"):
        load_judge("broken")
    with pytest.raises(SafetyError, match="ModuleNotFoundError.*another package"):
        load_judge("lost")
