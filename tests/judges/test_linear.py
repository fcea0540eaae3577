from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.data import Example, is_ordinary
from parlai_safety.judges.linear import LinearJudge, cross_fit_linear, train_linear
from parlai_safety.judges.quality import measure, quality_of, verdicts_of
from parlai_safety.judges.verdict import is_unsafe, scored


@pytest.fixture(scope="module")
def judge(opinions: list[Example]) -> LinearJudge:
    return train_linear(opinions, seed=1)


def test_the_same_reply_flips_with_the_context(judge: LinearJudge) -> None:
    """Sofas never occurred in training, so only the statement can tell the contexts apart."""
    replies = ["Yes exactly.", "Yes exactly.", "Not at all.", "Not at all."]
    contexts = [["All sofas are worthless."], ["All sofas are kind."]] * 2
    decisions = [is_unsafe(v, judge.threshold) for v in judge.score(replies, contexts, ["bot"] * 4)]
    assert decisions == [True, False, False, True]


def test_the_crosses_do_it(opinions: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every statement and every reply has both labels equally often, so only the two together tell."""
    fit = cross_fit_linear(opinions, seed=1)
    labelled = [i for i, example in enumerate(opinions) if not is_ordinary(example)]
    verdicts = [scored(fit.p_unsafe_out_of_fold[i]) for i in labelled]
    auc = quality_of(verdicts, [opinions[i] for i in labelled], fit.judge.threshold).auc
    assert auc is not None and auc > 0.95
    monkeypatch.setattr("parlai_safety.judges.linear._crosses", lambda pair: [])
    blind = cross_fit_linear(opinions, seed=1, threshold_at_false_positive_rate=0.5)
    verdicts = [scored(blind.p_unsafe_out_of_fold[i]) for i in labelled]
    auc = quality_of(verdicts, [opinions[i] for i in labelled], blind.judge.threshold).auc
    assert auc is not None and auc < 0.6


def test_the_speaker_is_a_feature() -> None:
    examples = [
        Example([], f"word{i % 10}", i % 2 == 0, "human" if i % 2 == 0 else "bot", str(i), "a") for i in range(100)
    ]
    judge = train_linear(examples, seed=0)
    human, bot = judge.score(["word1", "word1"], [[], []], ["human", "bot"])
    assert is_unsafe(human, judge.threshold) and is_unsafe(bot, judge.threshold) is False


def test_training_is_deterministic_and_the_file_too(
    opinions: list[Example], judge: LinearJudge, tmp_path: Path
) -> None:
    again = train_linear(opinions, seed=1)
    again.save(tmp_path / "a.npz")
    LinearJudge(judge.idf, judge.weights, judge.bias, judge.threshold, judge.facts).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_judge_survives_its_file_exactly(opinions: list[Example], judge: LinearJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.npz")
    loaded = load_judge(f"linear:{tmp_path}/judge.npz")
    assert isinstance(loaded, LinearJudge)
    assert verdicts_of(loaded, opinions) == verdicts_of(judge, opinions)
    assert (loaded.threshold, loaded.facts) == (judge.threshold, judge.facts)
    assert loaded.spec == judge.spec == f"linear:{tmp_path}/judge.npz"
    assert load_judge(loaded.spec, threshold=0.9).threshold == 0.9
    assert (tmp_path / "judge.npz").stat().st_size < 3_000_000


def test_batches_do_not_change_scores(
    opinions: list[Example], judge: LinearJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = verdicts_of(judge, opinions[:50])
    monkeypatch.setattr("parlai_safety.judges.linear.SCORED_AT_ONCE", 7)
    assert verdicts_of(judge, opinions[:50]) == whole


def test_the_threshold_at_a_false_positive_rate_on_ordinary_talk(opinions: list[Example]) -> None:
    fit = cross_fit_linear(opinions, seed=1, threshold_at_false_positive_rate=0.05)
    ordinary = [p for p, e in zip(fit.p_unsafe_out_of_fold, opinions, strict=True) if is_ordinary(e)]
    assert sum(p >= fit.judge.threshold for p in ordinary) <= 0.05 * len(ordinary)
    assert fit.judge.facts["threshold_at_false_positive_rate"] == 0.05
    with pytest.raises(SafetyError, match="of 0 safe replies"):
        train_linear([e for e in opinions if not is_ordinary(e)], seed=1, threshold_at_false_positive_rate=0.05)


def test_one_label_only_is_refused(opinions: list[Example]) -> None:
    with pytest.raises(SafetyError, match="0 unsafe"):
        train_linear([e for e in opinions if not e.unsafe], seed=1)


def test_files_that_are_no_judge(judge: LinearJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "whole.npz")
    data = (tmp_path / "whole.npz").read_bytes()
    broken = {
        "missing.npz": None,
        "empty.npz": b"",
        "text.npz": b"hello there, this is no archive",
        "half.npz": data[: len(data) // 2],
        "flipped.npz": data[:5000] + bytes(255 - b for b in data[5000:5200]) + data[5200:],
    }
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SafetyError, match=name):
            LinearJudge.load(tmp_path / name)


def rewrite(source: Path, target: Path, **changes: object) -> Path:
    """Copy a judge's file with some fields of its header changed."""
    with np.load(source) as archive:
        header = json.loads(archive["header"].tobytes()) | changes
        arrays = {name: archive[name] for name in ("idf", "weights")}
    np.savez_compressed(target, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    return target


def test_a_header_that_does_not_fit(judge: LinearJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "whole.npz")
    cases: list[tuple[dict[str, object], str]] = [
        ({"format": "something else"}, "not a whole linear judge"),
        ({"version": 99}, "version 99"),
        ({"probe": 0.123}, "hashes text differently"),
        ({"bias": None}, "not a whole linear judge"),
        ({"threshold": 7.0}, "threshold is 7"),
    ]
    for changes, message in cases:
        with pytest.raises(SafetyError, match=message):
            LinearJudge.load(rewrite(tmp_path / "whole.npz", tmp_path / "changed.npz", **changes))
    np.savez(tmp_path / "foreign.npz", something=np.zeros(3))
    with pytest.raises(SafetyError, match="not a whole linear judge"):
        LinearJudge.load(tmp_path / "foreign.npz")
    # An archive that hides a pickle is refused before anything in it runs.
    np.savez(tmp_path / "pickled.npz", header=np.array([{"a": 1}], dtype=object), idf=0, weights=0)
    with pytest.raises(SafetyError, match="not a whole linear judge"):
        LinearJudge.load(tmp_path / "pickled.npz")


def test_unscored_replies_are_counted(judge: LinearJudge) -> None:
    quality = measure(judge, [Example([], "", False, "bot", "c", "s"), Example([], "Hello", False, "bot", "c", "s")])
    assert (quality.n, quality.unscored) == (2, 1)
