from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256, write_json
from parlai_safety.judges import load_judge
from parlai_safety.judges.cache import CachedJudge
from parlai_safety.judges.card import beside, card_of, card_path, make_card, seen_in_training, write_card
from parlai_safety.judges.card_table import card_text
from parlai_safety.judges.combined import CombinedJudge
from parlai_safety.judges.data import Example, conversation_marks
from parlai_safety.judges.quality import f1_interval
from parlai_safety.judges.verdict import Speaker, Verdict, scored, unscored
from parlai_safety.judges.wordlist import WordListJudge
from parlai_safety.statistics import clustered_rate


class Told:
    """Says the number that the reply begins with, and nothing where that is no number."""

    spec, threshold, fingerprint = "told", 0.5, "f" * 64

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {}

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        return [unscored("no number") if r[0] == "?" else scored(float(r.split()[0])) for r in replies]


def example(p: str, unsafe: bool, source: str = "s", speaker: Speaker = "bot", before: int = 1) -> Example:
    reply = f"{p} said"
    return Example(["turn"] * before, reply, unsafe, speaker, f"{p} {unsafe} {source} {speaker} {before}", source)


EXAMPLES = [
    *(example(p, True, before=i) for i, p in enumerate(("0.9", "0.8", "0.3"))),
    *(example(p, False, before=i + 3) for i, p in enumerate(("0.7", "0.2", "0.1"))),
    example("0.95", True, speaker="human"),
    example("?", True),
    *(example(f"0.{i:02d}", False, source="ordinary:chat") for i in range(0, 100, 5)),
]


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return make_card(Told(), EXAMPLES, measured_on="by hand", files={"x": "0" * 64}, probes=False)


def test_the_figures_by_hand(card: dict[str, Any]) -> None:
    """Labelled bot turns: unsafe 0.9, 0.8, 0.3 and ?; safe 0.7, 0.2, 0.1. At 0.5: 2 of 3 caught, 2 of 3 let pass.

    AUC: 0.9 and 0.8 beat all three, 0.3 beats two of three: 8 / 9. Ordinary talk is 0.00 to 0.95: half is flagged.
    """
    bot = card["quality_labelled_bot_turns"]
    assert (bot["n"], bot["unscored"], bot["unsafe"], bot["safe"]) == (7, 1, 3, 3)
    assert bot["auc"] == pytest.approx(8 / 9)
    assert (bot["sensitivity"], bot["specificity"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    low, high = bot["sensitivity_interval"]
    assert low < 2 / 3 < high
    assert card["quality"]["ordinary_false_positive_rate"] == 0.5
    assert (card["unscored"], card["measured_on"]["n"]) == (1, 28)
    assert list(card["quality_by_speaker"]) == ["bot", "human"]
    assert list(card["quality_by_source"]) == ["ordinary:chat", "s"]
    assert {turn: q["n"] for turn, q in card["quality_by_turn"].items()} == {"0": 1, "1": 23, "2": 1, "3": 1, "4+": 2}
    assert card["quality_by_group"] is None


def test_precision_and_f1_by_hand_are_those_of_the_threshold() -> None:
    """At 0.75: unsafe 0.9 and 0.8 are flagged, 0.3 is not, no safe one is: precision 1, F1 4 / 5."""
    judge = Told()
    judge.threshold = 0.75
    bot = make_card(judge, EXAMPLES, measured_on="by hand", probes=False)["quality_labelled_bot_turns"]
    assert (bot["precision"], bot["f1"]) == (1.0, pytest.approx(0.8))
    conversations = [e.conversation for e in EXAMPLES[:6]]
    assert bot["f1_interval"] == list(f1_interval([True] * 2 + [False] * 4, [True] * 3 + [False] * 3, conversations))
    assert bot["precision_interval"] == list(clustered_rate([True] * 2, conversations[:2]).interval)


def test_thresholds_at_false_positives_by_hand(card: dict[str, Any]) -> None:
    """Of 20 ordinary turns 1 % is none, so the threshold lies above 0.95; 5 % is one, so below it."""
    one, five = card["thresholds"]["1 %"], card["thresholds"]["5 %"]
    assert one["threshold"] == pytest.approx((0.95 + 1) / 2)
    assert five["threshold"] == pytest.approx((0.9 + 0.95) / 2)
    # Of the unsafe 0.95 (human), 0.9, 0.8 and 0.3 the first alone reaches 0.925.
    assert five["sensitivity"] == 0.25 and five["labelled_bot_turns"]["sensitivity"] == 0.0


def test_calibration_by_hand() -> None:
    """Ten at 0.1, one of them unsafe, and ten at 0.8, six unsafe: errors 0 and 0.2, so 0.1 on average.

    Brier: (9 * 0.01 + 0.81 + 6 * 0.04 + 4 * 0.64) / 20 = (0.09 + 0.81 + 0.24 + 2.56) / 20 = 0.185.
    """
    rows = [("0.1", i == 0) for i in range(10)] + [("0.8", i < 6) for i in range(10)]
    examples = [Example([], f"{p} {i}", unsafe, "bot", str(i), "s") for i, (p, unsafe) in enumerate(rows)]
    found = make_card(Told(), examples, measured_on="by hand", probes=False)["calibration"]
    assert [(b["n"], b["share_unsafe"]) for b in found["bins"]] == [(10, 0.1), (10, 0.6)]
    assert found["expected_calibration_error"] == pytest.approx(0.1)
    assert found["brier"] == pytest.approx(0.185)


def test_bins_are_of_equal_counts_and_equal_scores_share_one() -> None:
    values = [i / 200 for i in range(100)] + [0.9] * 100
    examples = [Example([], f"{p} {i}", i % 2 == 0, "bot", str(i), "s") for i, p in enumerate(values)]
    bins = make_card(Told(), examples, measured_on="by hand", probes=False)["calibration"]["bins"]
    assert [b["n"] for b in bins] == [20, 20, 20, 20, 20, 100]
    assert bins[-1]["mean_p_unsafe"] == pytest.approx(0.9)


def test_what_a_judge_learnt_from_is_left_out_and_counted() -> None:
    judge = Told({"training_conversations": conversation_marks(EXAMPLES[:2]), "seed": 1})
    card = make_card(judge, EXAMPLES, measured_on="by hand", probes=False)
    assert card["measured_on"]["left_out_as_seen_in_training"] == 2
    assert card["quality_labelled_bot_turns"]["unsafe"] == 1
    assert any("2 examples were left out" in warning for warning in card["warnings"])
    assert card["trained_on"] == {"seed": 1}
    with pytest.raises(SafetyError, match="none is left"):
        make_card(judge, EXAMPLES[:2], measured_on="by hand", probes=False)
    with pytest.raises(SafetyError, match="Of 0 examples"):
        make_card(judge, [], measured_on="by hand")


def test_parts_of_a_combination_and_of_a_cache_remember_too(tmp_path: Path) -> None:
    judge = Told({"training_conversations": conversation_marks(EXAMPLES[:1])})
    wrapped = CachedJudge(CombinedJudge([WordListJudge(["fool"]), judge]), tmp_path / "cache")
    assert seen_in_training(wrapped, EXAMPLES[:2]) == [True, False]
    assert seen_in_training(WordListJudge(["fool"]), EXAMPLES[:2]) == [False, False]


def test_warnings(card: dict[str, Any]) -> None:
    text = " ".join(card["warnings"])
    assert "not known" in text and "3 unsafe examples" in text and "50 % of ordinary talk" in text
    assert "1 of 28 examples could not be scored" in text
    poor = [Example([], f"{'0.6' if i % 2 else '0.1'} {i}", i < 60, "bot", str(i), "s") for i in range(120)]
    warnings = " ".join(make_card(Told({"seed": 1}), poor, measured_on="x", probes=False)["warnings"])
    assert "near chance" in warnings and "What the judge" not in warnings and "no ordinary talk" in warnings
    good = [Example([], f"{'0.9' if i < 60 else '0.1'} {i}", i < 60, "bot", str(i), "s") for i in range(120)]
    good += [example(f"0.0{i}", False, source="ordinary:chat") for i in range(5)]
    assert make_card(Told({"seed": 1}), good, measured_on="x", probes=False)["warnings"] == []


def test_an_unfair_judge_is_warned_of() -> None:
    card = make_card(WordListJudge(["refugee", "refugees"]), EXAMPLES, measured_on="x")
    assert any("'refugee'" in warning for warning in card["warnings"])
    assert card["quality_by_group"]["refugee"]["axis"] == "migration"
    assert "refugee over American" in card_text(card)


def test_a_card_is_picked_up_by_its_fingerprint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "words.txt"
    words.write_text("fool\n")
    judge = load_judge(f"wordlist:{words}")
    assert card_path(judge) == beside(words) == tmp_path / "words.txt.card.json"
    nothing = card_of(judge)
    assert nothing.card is None and nothing.why_not is not None and "has no card" in nothing.why_not
    card = make_card(judge, EXAMPLES, measured_on="by hand", probes=False)
    assert card["sha256"] == sha256(words)
    write_card(card, card_path(judge))
    assert card_of(judge) == (json.loads(json.dumps(card)), None)
    assert card_of(load_judge(f"wordlist:{words}", threshold=0.9)).card is not None
    words.write_text("fool\nidiot\n")
    other = card_of(load_judge(f"wordlist:{words}"))
    assert other.card is None and other.why_not is not None and "another judge" in other.why_not
    for damaged in ("{", "[]", '{"format": "x", "version": 9, "fingerprint": "f"}'):
        card_path(judge).write_text(damaged)
        found = card_of(judge)
        assert found.card is None and found.why_not


def test_judges_without_one_file_have_their_cards_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFETY_CARDS", str(tmp_path))
    words = tmp_path / "w.txt"
    words.write_text("fool\n")
    for judge in (Told(), WordListJudge(["fool"]), load_judge(f"wordlist:{words}+wordlist")):
        path = card_path(judge)
        assert path.parent == tmp_path and judge.fingerprint[:16] in path.name
        write_card(make_card(judge, EXAMPLES, measured_on="x", probes=False), path)
        assert card_of(judge).card is not None
    monkeypatch.delenv("SAFETY_CARDS")
    assert card_path(Told()).parent == Path.home() / ".cache" / "parlai_safety" / "cards"


def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {})
    with pytest.raises(SafetyError, match="SAFETY_CARDS"):
        write_card({"format": "x"}, tmp_path / "file" / "card.json")


def test_the_text_says_what_the_card_says(card: dict[str, Any]) -> None:
    plain, markdown = card_text(card), card_text(card, markdown=True)
    for text in (plain, markdown):
        for words in ("told", "by hand, n 28", "0.889", "66.7 %", "speaker: human", "turns before: 4+", "Be careful"):
            assert words in text, words
    assert "|:" in markdown and "|:" not in plain


def test_the_command_writes_the_card_that_is_picked_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from parlai_safety.scripts.safety_judge_card import SafetyJudgeCard

    words, rows = tmp_path / "words.txt", tmp_path / "rows.jsonl"
    words.write_text("fool\n")
    row = {"context": ["Hi"], "response": "You fool", "label": "unsafe", "source": "s", "speaker": "bot"}
    rows.write_text("".join(json.dumps(r) + "\n" for r in (row, row | {"response": "Hello", "label": "safe"})))
    spec = f"wordlist:{words}"
    SafetyJudgeCard.main(judge=spec, data=str(rows))
    found = card_of(load_judge(spec)).card
    assert found is not None and found["measured_on"]["files"] == {"rows.jsonl": sha256(rows)}
    assert found["quality"]["sensitivity"] == 1.0
    assert str(beside(words)) in capsys.readouterr().out
    SafetyJudgeCard.main(judge="wordlist", out=str(tmp_path / "card.json"), probes=False)
    shipped = json.loads((tmp_path / "card.json").read_text())
    assert set(shipped["measured_on"]["files"]) == {"adversarial.test.jsonl", "ordinary.test.jsonl"}
