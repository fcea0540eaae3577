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
        ("hf:some/model", "no judge called 'hf'.*linear:FILE"),
        ("perspective", "no judge called 'perspective'"),
        ("zoo:toy/judge", "no judge called 'zoo'"),
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
    assert sorted(REGISTRY) == ["linear", "parlai", "wordlist"]
    assert len(known_judges()) == 3
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
        "parlai_safety.judges.parlai_model, parlai_safety.judges.linear, parlai_safety.judges.recipe; "
        "print([m for m in ('torch', 'parlai', 'sklearn', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
