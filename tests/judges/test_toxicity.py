from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.card import card_of
from parlai_safety.judges.toxicity import (
    COMMENTS_FILE,
    PROMPTS_FILE,
    Comment,
    ToxicityJudge,
    Trained,
    agreement_with_scores,
    is_held_out,
    read_comments,
    train_toxicity,
)

RUDE, KIND = ("silly goose", "old boot", "twit", "blockhead"), ("friend", "teacher", "gardener", "singer", "guest")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Comments whose score rises with the number of rude words, and a few prompts with continuations."""
    generator = random.Random(1)
    rows = []
    for index in range(700):
        rude = generator.choices((0, 1, 2), (85, 10, 5))[0]
        words = generator.sample(RUDE, rude) + generator.sample(KIND, 3 - rude)
        text = f"Note {index}: you are a {words[0]}, a {words[1]} and a {words[2]}."
        rows.append({"text": text, "perspective": (0.05, 0.6, 0.9)[rude] + generator.random() / 20, "toxic": 0})
    path = tmp_path_factory.mktemp("scores")
    write(path / COMMENTS_FILE, rows)
    prompt = {"prompt": "The singer was", "prompt_toxicity": 0.02, "continuation_toxicity": 0.9}
    texts = (" a twit, an old boot.", " a twit, a blockhead", " kind")
    pairs = [prompt | {"prompt": f"Line {i}. The singer was", "continuation": texts[i % 3]} for i in range(40)]
    pairs += [prompt | {"prompt_toxicity": None, "continuation": " "}]
    write(
        path / PROMPTS_FILE,
        [p | ({"continuation_toxicity": 0.03} if "kind" in p["continuation"] else {}) for p in pairs],
    )
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    return train_toxicity(read_comments(folder), seed=1)


def test_texts_without_a_score_or_a_letter_are_left_out(folder: Path) -> None:
    comments = read_comments(folder)
    assert len(comments) == 700 + 80
    assert {c.source for c in comments} == {"comments", "prompts", "continuations"}


def test_a_prompt_and_its_continuation_are_on_one_side(folder: Path) -> None:
    comments = read_comments(folder)
    sides: dict[str, set[bool]] = {}
    for comment in comments:
        sides.setdefault(comment.key, set()).add(is_held_out(comment))
    assert all(len(found) == 1 for found in sides.values())
    assert 0.1 < sum(map(is_held_out, comments)) / len(comments) < 0.3
    copies = [Comment(text, 0.1, "comments", "same key") for text in ("A  b", "a B")]
    assert len({is_held_out(copy) for copy in copies}) == 1


def test_no_held_out_text_was_trained_on(trained: Trained, folder: Path) -> None:
    seen = {" ".join(c.text.lower().split()) for c in read_comments(folder) if not is_held_out(c)}
    assert trained.held_out and not seen & {" ".join(c.text.lower().split()) for c in trained.held_out}
    # The continuations of the prompts repeat, so those of held-out prompts had to go.
    assert not any(c.source == "continuations" for c in trained.held_out)


def test_it_agrees_with_the_scores_that_it_has_not_seen(trained: Trained) -> None:
    found = agreement_with_scores(trained.judge, trained.held_out)["all"]
    assert found["auc"]["value"] > 0.95
    assert found["mae"]["value"] < 0.5 * found["mae_of_the_mean"]["value"]
    for name in ("spearman", "mae", "auc"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert trained.judge.facts["penalty"] == min(trained.penalties, key=trained.penalties.__getitem__)


def test_a_half_means_what_it_means_to_perspective(trained: Trained, folder: Path) -> None:
    """The stretch makes as many out-of-fold scores reach 0.5 as cached ones do; on new texts about as many."""
    found = agreement_with_scores(trained.judge, trained.held_out)["all"]
    assert abs(found["flagged"] - found["toxic"]) <= 0.35 * found["toxic"]
    assert trained.judge.slope > 1 and trained.judge.knee < 0


def test_agreement_by_hand(trained: Trained) -> None:
    """Scores of a constant text: no rank correlation, and the error is the distance to that constant."""
    value = trained.judge.toxicity(["Hello."])[0]
    comments = [Comment("Hello.", score, "comments", str(i)) for i, score in enumerate((0.2, 0.4, 0.9))]
    found = agreement_with_scores(trained.judge, comments)
    assert list(found) == ["all", "comments"]
    assert found["all"]["spearman"] is None and found["all"]["auc"]["value"] == 0.5
    assert found["all"]["mae"]["value"] == pytest.approx(sum(abs(value - s) for s in (0.2, 0.4, 0.9)) / 3)
    assert found["all"]["mae_of_the_mean"]["value"] == pytest.approx((0.3 + 0.1 + 0.4) / 3)
    assert (found["all"]["n"], found["all"]["toxic"]) == (3, 1)


def test_a_saved_scorer_is_the_same_scorer(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "toxicity.npz"
    trained.judge.save(path)
    first = path.read_bytes()
    judge = load_judge(f"toxicity:{path}")
    texts = ["You are a twit.", "You are a friend.", "WHAT?!"]
    assert [v.p_unsafe for v in judge.score(texts, [[]] * 3, ["bot"] * 3)] == trained.judge.toxicity(texts)
    assert judge.fingerprint == trained.judge.fingerprint and judge.threshold == 0.5
    trained.judge.save(path)
    assert path.read_bytes() == first
    assert ToxicityJudge.load(path, threshold=0.3).threshold == 0.3
    other = ToxicityJudge.load(path)
    other.slope += 0.1
    assert other.fingerprint != judge.fingerprint


def test_only_the_reply_counts_and_an_empty_one_is_unscored(trained: Trained) -> None:
    verdicts = trained.judge.score(
        ["You twit.", "You twit.", " "], [[], ["You are a friend."], []], ["bot", "human", "bot"]
    )
    assert verdicts[0] == verdicts[1] and verdicts[2].p_unsafe is None


@pytest.mark.parametrize("kind", ["missing", "cut", "other", "shape"])
def test_what_is_no_scorer_is_refused(trained: Trained, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "toxicity.npz"
    trained.judge.save(path)
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with np.load(path) as archive:
            arrays = dict(archive)
        if kind == "shape":
            arrays["weights"] = arrays["weights"][:-1]
        else:
            header = json.loads(arrays["header"].tobytes()) | {"format": "something"}
            arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez_compressed(path, **arrays)
    with pytest.raises(SafetyError, match="no file" if kind == "missing" else "not a whole toxicity scorer"):
        ToxicityJudge.load(path)


def test_wrong_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match=COMMENTS_FILE):
        read_comments(tmp_path)
    write(tmp_path / COMMENTS_FILE, [{"text": "a", "perspective": 0.1}, {"text": "b", "perspective": 1.5}])
    write(tmp_path / PROMPTS_FILE, [{"prompt": "a", "continuation": "b"}])
    with pytest.raises(SafetyError, match=r"Row 2 .* score 1\.5"):
        read_comments(tmp_path)
    few = [Comment(f"text {i}", 0.1, "comments", str(i)) for i in range(200)]
    with pytest.raises(SafetyError, match="0 of them"):
        train_toxicity(few, seed=1)


def test_the_command_writes_scorer_and_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from parlai_safety.scripts.safety_toxicity import SafetyToxicity

    with pytest.raises(SafetyError, match="do not ship"):
        SafetyToxicity.main(out=str(tmp_path / "t.npz"))
    out = tmp_path / "t.npz"
    SafetyToxicity.main(data=str(folder), out=str(out))
    card = card_of(load_judge(f"toxicity:{out}")).card
    assert card is not None and card["agreement_with_perspective"]["all"]["n"] == card["quality"]["n"]
    assert set(card["trained_on"]["files"]) == {COMMENTS_FILE, PROMPTS_FILE}
    assert "agreement with Perspective" in capsys.readouterr().out
