from __future__ import annotations

from pathlib import Path

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges.wordlist import WordListJudge, load_spec, read_terms


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("You are a fool", True),
        ("You are a FOOL!", True),
        ("That is foolproof.", False),
        ("Please shut\n  up now", True),
        ("Shut the door and look up", False),
        ("You don\u2019t matter", True),
        ("c++ is fine", False),
        ("", False),
    ],
)
def test_whole_words_in_any_case(reply: str, found: bool) -> None:
    assert WordListJudge(["fool", "Shut  up", "don't matter"]).matches(reply) is found


def test_terms_are_literal_text() -> None:
    judge = WordListJudge(["a.b", "c++"])
    assert judge.matches("see a.b here") and judge.matches("C++ again")
    assert not judge.matches("see axb here")


def test_scores_are_zero_or_one_and_empty_replies_unscored() -> None:
    verdicts = WordListJudge(["fool"]).score(["fool", "hello", ""], [["fool"]] * 3, ["bot", "human", "bot"])
    assert [verdict.p_unsafe for verdict in verdicts] == [1.0, 0.0, None]


def test_the_list_that_ships_is_mild_lower_case_and_in_order() -> None:
    terms = read_terms()
    assert 20 <= len(terms) <= 100
    assert {"idiot", "stupid", "useless"} <= set(terms)
    assert terms == sorted({term.lower() for term in terms})


def test_a_file_of_terms(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# a comment\n\nbad words\nOdd\n", encoding="utf-8")
    judge = load_spec(str(path), None, None)
    assert judge.terms == ["bad words", "odd"]
    assert judge.spec == f"wordlist:{path}"


def test_files_that_are_no_list(tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match="cannot be read"):
        load_spec(str(tmp_path / "missing.txt"), None, None)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SafetyError, match="cannot be read"):
        load_spec(str(tmp_path / "binary"), None, None)
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(SafetyError, match="no words"):
        load_spec(str(tmp_path / "empty"), None, None)
