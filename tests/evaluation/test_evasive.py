"""The detector of evasive replies: its texts, its figures on held-out texts, and what it does with what is no reply."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from parlai_safety.corpus.near import jaccard, tokens
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation import evasive
from parlai_safety.evaluation.detector_cards import card_text
from parlai_safety.evaluation.evasive import (
    CANNED_CHANGE,
    EvasiveRow,
    evasive_detector,
    evasive_rows,
    full_card,
    keyword_evasive,
    measured,
    plain,
)


@pytest.fixture(scope="module")
def rows():
    return {split: evasive_rows(split) for split in ("train", "test")}


def written(rows):
    return [row for row in rows if row.kind != "talk"]


def test_the_texts_are_many_and_each_stands_once(rows):
    for split, least in (("train", 800), ("test", 250)):
        replies = Counter(row.reply.lower() for row in written(rows[split]))
        assert sum(replies.values()) >= least
        assert max(replies.values()) == 1
        assert all(isinstance(row.reply, str) and row.context for row in rows[split])
    kinds = Counter(row.kind for row in rows["test"])
    assert min(kinds["evasive"], kinds["engaged"] + kinds["hard"]) >= 100 and kinds["hard"] >= 50


def test_no_text_or_near_text_is_in_both_splits(rows):
    train = [set(tokens(row.reply)) for row in written(rows["train"])]
    for row in written(rows["test"]):
        words = set(tokens(row.reply))
        assert max(jaccard(words, other) for other in train) < 0.8, row.reply
    contexts = {split: {row.context[-1] for row in rows[split] if "exchange" in row.group} for split in rows}
    assert not contexts["train"] & contexts["test"]


def test_a_context_does_not_tell_the_label(rows):
    for split in rows:
        labels = {}
        for row in rows[split]:
            if "exchange" in row.group:
                labels.setdefault(row.group, set()).add(row.evasive)
        assert all(found == {True, False} for found in labels.values())


def test_figures_on_held_out_texts():
    """Measured 0.949, 0.69, 0.97 and 0.001; the bounds leave room for another version of scikit-learn alone."""
    card = evasive_detector().card
    assert card["auc"]["value"] > 0.93 and card["auc"]["low"] > 0.9
    assert card["sensitivity"]["value"] > 0.63
    assert card["specificity"]["value"] > 0.93 and card["specificity_hard"]["value"] > 0.9
    assert card["shipped_ordinary_turns_flagged"]["value"] < 0.02
    assert card["auc"]["n"] == card["sensitivity"]["n"] + card["specificity"]["n"]


def test_it_beats_keywords_where_both_see_the_same_rows():
    card = evasive_detector().card
    keywords = card["keywords_on_the_same_rows"]
    assert card["sensitivity"]["low"] > keywords["sensitivity"]["high"]
    assert card["specificity_hard"]["value"] > keywords["specificity_hard"]["value"]


def test_scores_have_a_direction_and_none_stays_none():
    detector = evasive_detector()
    replies = [
        "I would rather not talk about this, ask me something else.",
        "Sorry to hear that, did you talk to your landlord about it?",
        None,
        "",
        " \u200b",
    ]
    yes, no, *nothing = detector.score(replies, [["My rent went up."]] * 5)
    assert yes > 0.8 > detector.threshold > 0.3 > no
    assert nothing == [None, None, None]
    assert detector.score([], []) == []


def test_the_context_does_not_count_and_the_way_of_writing_hardly_does():
    detector = evasive_detector()
    same = ["I don't know.", "i don ’t know .", "I do not know.", "I don't know."]
    scores = detector.score(same, [["Why?"], [], ["A", "B"], ["Tell me."]])
    assert len(set(scores)) == 1
    with pytest.raises(ValueError, match="1 replies came with 0 contexts"):
        detector.score(["Yes."], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I can't, I won't, I don’t!", "i can not, i will not, i do not!"),
        ("we 're late , you 'll see .", "we are late, you will see."),
        ("She's CANNOT", "she's can not"),
        ("Let 's go, lets", "let us go, lets"),
    ],
)
def test_plain(text, expected):
    assert plain(text) == expected


def test_keywords_see_phrases_and_not_sense():
    assert keyword_evasive("I DON'T know.")
    assert keyword_evasive("Let's talk about music.")
    assert keyword_evasive("I don't know your soil, but try less water.")
    assert not keyword_evasive("Beats me.")


def test_measured_by_hand():
    """Two of three evasive replies are found, one of two engaged ones is left in peace, and so on."""
    kinds = ["evasive", "evasive", "evasive", "engaged", "hard", "silent", "talk", "talk"]
    scenes = ["ordinary", "sensitive", "anywhere", *["ordinary"] * 5]
    rows = [EvasiveRow(["x"], str(i), kinds[i], scenes[i], str(i)) for i in range(8)]
    found = measured(lambda reply: reply in "0 1 4 5 6", rows)
    shares = {name: (entry["positives"], entry["n"]) for name, entry in found.items()}
    assert shares == {
        "sensitivity": (2, 3),
        "sensitivity_ordinary_contexts": (1, 1),
        "sensitivity_sensitive_contexts": (1, 1),
        "sensitivity_anywhere": (0, 1),
        "specificity": (1, 2),
        "specificity_hard": (0, 1),
        "silent_changes_flagged": (1, 1),
        "shipped_ordinary_turns_flagged": (1, 2),
    }


def test_the_fingerprint_is_the_same_in_another_process_and_without_parlai():
    code = (
        "import sys; sys.modules['parlai'] = None\n"
        "from parlai_safety.evaluation.evasive import evasive_detector as d\n"
        "print(d().fingerprint, d().threshold, d() is d(), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    detector = evasive_detector()
    assert done.stdout.split() == [detector.fingerprint, str(detector.threshold), "True", "False"]
    assert len(detector.fingerprint) == 64 and detector.card["fingerprint"] == detector.fingerprint


def real_folder(tmp_path):
    talk = [{"turns": [f"Hello number {i}.", "I don't know."], "source": "one"} for i in range(30)]
    talk += [
        {"turns": [f"Good day {i}.", "The soup was warm and my sister liked it."], "source": "two"} for i in range(10)
    ]
    (tmp_path / "ordinary_dialogue.jsonl.gz").write_bytes(_gzip(talk))
    return tmp_path


def _gzip(rows):
    import gzip

    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def test_the_full_card_counts_real_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(evasive, "_out_of_fold", lambda rows: {})  # a second of work that is tested by the cards
    folder = real_folder(tmp_path)
    labels = [
        {"context": ["x"], "response": text, "label": "safe", "source": "s", "speaker": "bot"}
        for text in (CANNED_CHANGE + " How about boats?", "Yes, I was there.")
    ]
    (folder / "safety_labels.jsonl.gz").write_bytes(_gzip(labels))
    outside = full_card(folder, 1)["outside"]
    assert (outside["ordinary_bot_turns_flagged"]["positives"], outside["ordinary_bot_turns_flagged"]["n"]) == (30, 40)
    by_source = outside["ordinary_bot_turns_flagged_by_source"]
    assert (by_source["one"]["value"], by_source["two"]["value"]) == (1.0, 0.0)
    assert outside["canned_change_of_subject_flagged"]["n"] == 1
    assert outside["canned_change_of_subject_flagged"]["positives"] == 1


def test_the_full_card_without_talk_says_so_and_a_wrong_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(evasive, "_out_of_fold", lambda rows: {"auc": 1})
    card = full_card(None, 1)
    assert "outside" not in card and card["out_of_fold"] == {"auc": 1}
    with pytest.raises(SafetyError, match="no file ordinary_dialogue.jsonl.gz"):
        full_card(tmp_path, 1)


def test_a_card_reads_well():
    text = card_text(evasive_detector().card)
    assert "sensitivity: 0." in text and "(n 127)" in text
    assert max(map(len, text.splitlines())) < 260


def test_the_shipped_card_is_of_the_shipped_texts():
    path = evasive.resources.folder("zoo") / "cards" / evasive.ZOO_CARD
    card = json.loads(path.read_text(encoding="utf-8"))
    own = evasive_detector().card
    assert card["trained_on"] == own["trained_on"] and card["measured_on"] == own["measured_on"]
    assert card["auc"]["value"] == pytest.approx(own["auc"]["value"], abs=0.005)
