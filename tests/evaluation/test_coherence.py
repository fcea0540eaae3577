"""The coherence scorer, trained on a part of the shipped corpus."""

import json
import subprocess
import sys

import numpy as np
import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import coherence
from parlai_safety.evaluation.coherence import (
    CoherenceScorer,
    Pair,
    coherence_scorer,
    file_pairs,
    shipped_pairs,
    train_coherence,
)


def some_pairs():
    """Every third training dialogue of the corpus, and the other splits whole."""
    pairs = shipped_pairs()
    names = sorted({pair.dialogue for pair in pairs if pair.split == "train"})[::3]
    kept = set(names) | {pair.dialogue for pair in pairs if pair.split != "train"}
    return [pair for pair in pairs if pair.dialogue in kept]


@pytest.fixture(scope="module")
def pairs():
    return some_pairs()


@pytest.fixture(scope="module")
def scorer(pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coherence, "PAIRS_TO_SEE", 12_000)
        return train_coherence(pairs, 1)


def test_it_tells_true_from_shuffled_replies_of_held_out_dialogues(scorer):
    card = scorer.card
    assert card["auc"]["value"] > 0.9 and card["auc"]["low"] > 0.88  # measured 0.94
    assert card["auc"]["value"] > card["auc_of_word_overlap_alone"]["high"]
    means = card["mean_probability"]
    assert means["true replies"]["low"] > 0.7 > 0.3 > means["shuffled replies"]["high"]
    assert card["auc"]["n"] == 2 * card["measured_on"]["pairs"] == 2 * 1143


def test_the_card_says_what_fools_it(scorer):
    copied = scorer.card["mean_probability"]["copies of the last turn"]["value"]
    assert copied > 0.95
    assert any(f"a mean of {100 * copied:.0f} %" in limit for limit in scorer.card["limits"])
    assert scorer.card["fingerprint"] == scorer.fingerprint and len(scorer.fingerprint) == 64
    json.dumps(scorer.card, allow_nan=False)


def test_scores_follow_the_subject(scorer):
    contexts = [["Hello!", "My bread never rises, the dough stays flat."]] * 2
    near, far = scorer.score(["Give the dough more time in a warm place.", "The cat climbs up the curtains."], contexts)
    assert near > 0.5 > far


def test_what_is_no_reply_or_has_no_context_is_unscored(scorer):
    replies = ["A warm soup.", None, "", " \n", "A warm soup.", "A warm soup."]
    contexts = [["Hi.", "Soup?"], ["Hi."], ["Hi."], ["Hi."], [], ["Soup?"]]
    scores = scorer.score(replies, contexts)
    assert [score is None for score in scores] == [False, True, True, True, True, False]
    assert scorer.score([], []) == []
    with pytest.raises(ValueError, match="1 replies came with 2 contexts"):
        scorer.score(["x"], [["a"], ["b"]])
    with pytest.raises(TypeError, match="not one string"):
        scorer.score(["x"], ["Hello"])


def test_a_score_depends_on_nothing_but_its_row(scorer, pairs, monkeypatch):
    rows = [pair for pair in pairs if pair.split == "test"][:40]
    whole = scorer.score([row.reply for row in rows], [row.context for row in rows])
    # turns before the last two are not used
    alone = [scorer.score([row.reply], [["Something else.", *row.context]])[0] for row in rows if len(row.context) > 1]
    assert alone == pytest.approx([s for s, row in zip(whole, rows, strict=True) if len(row.context) > 1], abs=1e-5)
    monkeypatch.setattr(coherence, "SCORED_AT_ONCE", 7)
    assert scorer.score([r.reply for r in rows], [r.context for r in rows]) == pytest.approx(whole, abs=1e-5)


def test_features_by_hand(scorer):
    """The overlap of a reply with itself is 1, and half of that one turn back; length counts the reply's columns."""
    text = "The bread smells good."
    features = scorer.features([text, text, text], [[text], [text, "Zzqx?"], ["Qqwx."]])
    assert features[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert features[1, 1] == pytest.approx(0.5, abs=0.05)  # "?" stands in both
    assert features[0, 2] == features[1, 2] == features[2, 2] > np.log(20)
    assert features[:, 3] == pytest.approx(features[:, 0] * features[:, 2])


def test_training_is_repeatable_and_the_seed_counts(pairs, monkeypatch):
    monkeypatch.setattr(coherence, "PAIRS_TO_SEE", 1)
    monkeypatch.setattr(coherence, "PASSES_AT_LEAST", 1)
    few = [pair for pair in pairs if pair.split != "train" or hash_even(pair.dialogue)]
    first, again, other = (train_coherence(few, seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert {k: v for k, v in first.card.items() if k != "trained_on"} == {
        k: v for k, v in again.card.items() if k != "trained_on"
    }


def hash_even(name):
    return sum(name.encode()) % 4 == 0


def test_save_and_load_give_the_same_scores(scorer, tmp_path):
    paths = tmp_path / "a.npz", tmp_path / "b.npz"
    for path in paths:
        scorer.save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = CoherenceScorer.load(paths[0])
    assert (loaded.fingerprint, loaded.card) == (scorer.fingerprint, scorer.card)
    texts = ["The soup was warm.", "No."], [["Did you eat?"], ["Hi.", "Is it far?"]]
    assert loaded.score(*texts) == scorer.score(*texts)


def test_a_file_that_is_none_of_ours_is_refused(scorer, tmp_path):
    path = tmp_path / "scorer.npz"
    with pytest.raises(SafetyError, match="no file"):
        CoherenceScorer.load(path)
    path.write_text("hello")
    with pytest.raises(SafetyError, match="not a whole coherence scorer"):
        CoherenceScorer.load(path)
    scorer.save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SafetyError, match="not a whole coherence scorer"):
        CoherenceScorer.load(path)
    wrong = CoherenceScorer(scorer.idf, scorer.embeddings[1:], scorer.maps, scorer.weights, scorer.bias, scorer.card)
    np.savez(path, **{"header": np.frombuffer(_header(scorer), dtype=np.uint8), **vars_of(wrong)})
    with pytest.raises(SafetyError, match="'embeddings'"):
        CoherenceScorer.load(path)


def _header(scorer):
    header = {"format": coherence.FORMAT, "version": coherence.VERSION, "bias": scorer.bias, "card": {}, "probe": 0.5}
    return json.dumps(header).encode()


def vars_of(scorer):
    return {name: getattr(scorer, name) for name in ("idf", "embeddings", "maps", "weights")}


def test_the_fingerprint_stays_what_it_was_when_cards_were_first_written():
    def ramp(*shape):
        return (np.arange(np.prod(shape)) % 7 / 8).reshape(shape)

    idf = np.zeros(coherence.COLUMNS, np.float32)
    idf[:3] = 1
    arrays = idf, ramp(3, 64).astype(np.float16), ramp(3, 64, 64).astype(np.float32), np.arange(4) / 8
    assert CoherenceScorer(*arrays, 0.5, {}).fingerprint.startswith("bc1732f45ce75bb0")


def test_another_hashing_is_noticed(scorer, tmp_path, monkeypatch):
    path = tmp_path / "scorer.npz"
    scorer.save(path)
    real = coherence._counted
    monkeypatch.setattr(coherence, "_counted", lambda texts: real([text[::-1] for text in texts]))
    with pytest.raises(SafetyError, match="hashes text differently"):
        CoherenceScorer.load(path)


def test_scoring_needs_neither_torch_nor_parlai(scorer, tmp_path):
    scorer.save(tmp_path / "scorer.npz")
    code = (
        "import sys; sys.modules['parlai'] = None\n"
        "from parlai_safety.evaluation.coherence import CoherenceScorer\n"
        f"scorer = CoherenceScorer.load({str(tmp_path / 'scorer.npz')!r})\n"
        "print(scorer.fingerprint, scorer.score(['Soup.'], [['Soup?']]) == [None], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [scorer.fingerprint, "False", "False"]


def test_shuffled_replies_come_from_another_dialogue_of_the_source():
    pairs = [Pair(["x"], f"{s}{d}{i}", f"{s}{d}", s, "test") for s in "ab" for d in range(3) for i in range(4)]
    other = coherence._shuffled(pairs, "test", 1)
    assert all(o[0] == pair.source and not o.startswith(pair.dialogue) for o, pair in zip(other, pairs, strict=True))
    assert other == coherence._shuffled(pairs, "test", 1) != coherence._shuffled(pairs, "test", 2)
    with pytest.raises(SafetyError, match=r"one dialogue alone of the sources \['c'\]"):
        coherence._shuffled([*pairs, Pair(["x"], "y", "c1", "c", "test")], "test", 1)
    with pytest.raises(SafetyError, match="has 0 pairs"):
        coherence._shuffled([], "valid", 1)


def test_a_batch_is_of_one_source_and_every_pair_comes_up():
    pairs = [Pair(["x"], "y", str(i), "a" if i < 10 else "b", "train") for i in range(16)]
    batches = coherence._batches(pairs, 4, 2, np.random.default_rng(0))
    assert all(len({pairs[i].source for i in rows}) == 1 for rows in batches)
    # a: 4 + 4 and a rest of 2, b: 4 and a rest of 2; a rest below half a batch would be left out
    assert sorted(len(rows) for rows in batches) == [2, 2, 2, 2, 4, 4, 4, 4, 4, 4]
    assert sorted(np.concatenate(batches).tolist()) == sorted(list(range(16)) * 2)


def test_pairs_of_a_file_keep_the_splits_of_the_chat_task(tmp_path):
    tasks = pytest.importorskip("parlai_safety.tasks.common")
    rows = [{"turns": [f"Hello {i}", "b", "", "d"], "source": "s"} for i in range(40)]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = file_pairs(path, count=30, seed=1)
    assert len({pair.dialogue for pair in pairs}) == 30
    assert all(pair.split == tasks.split_of(pair.dialogue) for pair in pairs)
    assert {(tuple(pair.context[1:]), pair.reply) for pair in pairs} == {((), "b"), (("",), "d")}
    assert file_pairs(path, count=30, seed=1) == pairs != file_pairs(path, count=30, seed=2)


def test_the_cache_is_used_and_knows_its_data(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(coherence, "PAIRS_TO_SEE", 1)
    monkeypatch.setattr(coherence, "PASSES_AT_LEAST", 1)
    few = [pair for pair in pairs if pair.split != "train" or hash_even(pair.dialogue)]
    monkeypatch.setattr(coherence, "shipped_pairs", lambda: few)
    first = coherence_scorer(None, tmp_path / "cache")
    assert [path.name[:10] for path in (tmp_path / "cache").iterdir()] == ["coherence-"]
    assert set(first.card["trained_on"]["files"]) == {f"ordinary.{split}.jsonl" for split in ("train", "valid", "test")}
    monkeypatch.setattr(coherence, "train_coherence", None)  # a second training would fail
    assert coherence_scorer(None, tmp_path / "cache").fingerprint == first.fingerprint
    with pytest.raises(SafetyError, match="no file .*ordinary_dialogue"):
        coherence_scorer(tmp_path, tmp_path / "cache")
