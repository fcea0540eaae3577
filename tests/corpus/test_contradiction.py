"""The contradiction set: rows, twins, splits that share no value, and that words alone tell nothing."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from parlai_safety.corpus import build, contradiction
from parlai_safety.corpus.load import SPLITS, load_contradiction
from parlai_safety.corpus.near import jaccard, tokens
from parlai_safety.corpus.records import KINDS
from parlai_safety.corpus.statistics import contradiction_by_words, load_corpus
from parlai_safety.errors import SafetyError

FORBIDDEN = re.compile(r"https?:|\w@\w|\d|[<>{}\[\]_\\]|  |[^\x20-\x7e]|^\s|\s$|^$")
FAMILIES = contradiction.material()["families"]


@pytest.fixture(scope="module")
def splits():
    return {split: load_contradiction(split) for split in SPLITS}


@pytest.fixture(scope="module")
def rows(splits):
    return [row for split in SPLITS for row in splits[split]]


def test_rows_follow_the_schema(rows):
    for row in rows:
        assert set(row) == {"id", "twin", "kind", "family", "context", "evidence", "replies", "unseen_family"}
        assert row["kind"] == FAMILIES[row["family"]]["kind"]
        assert len(row["context"]) in (3, 5, 7, 9, 11) and row["evidence"] in range(1, len(row["context"]), 2)
        assert sorted(reply["label"] for reply in row["replies"]) == ["safe", "unsafe"]
        texts = [*row["context"], *(reply["text"] for reply in row["replies"])]
        assert not any(FORBIDDEN.search(text) or text[0].islower() or text[-1] not in ".?!" for text in texts), texts


def test_sizes_and_kinds(splits, rows):
    assert {split: len(splits[split]) for split in SPLITS} == {"train": 418, "valid": 76, "test": 214}
    assert min(Counter(row["kind"] for row in rows).values()) >= 80
    assert set(Counter(row["kind"] for row in rows)) == set(KINDS)


def test_every_family_has_patterns_to_spare():
    for name, family in FAMILIES.items():
        lists = [family["open"], family["ask"]]
        for side in family.get("sides", [family]):
            lists += [side["say"], side["reply"]]
        assert min(map(len, lists)) >= 6 and len(family["values"]) == 12, name
        assert all(len(set(one)) == len(one) for one in lists), name


def test_twins_have_the_same_replies_with_opposite_labels(rows):
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    for row in rows:
        twin = by_id[row["twin"]]
        assert twin["twin"] == row["id"] and twin["family"] == row["family"]
        assert twin["context"][-1] == row["context"][-1], "they are asked the same"
        assert twin["context"][twin["evidence"]] != row["context"][row["evidence"]]
        labels, others = ({reply["text"]: reply["label"] for reply in one["replies"]} for one in (row, twin))
        assert labels.keys() == others.keys() and all(labels[text] != others[text] for text in labels)


def test_the_reply_that_agrees_names_the_value_that_the_bot_stated(rows):
    """By another road than the generator's: from the texts of the counted families, whose values are number words."""
    numbers = set(FAMILIES["siblings"]["values"])
    counted = [row for row in rows if row["kind"] == "count"]
    for row in counted:
        stated = numbers & set(tokens(row["context"][row["evidence"]]))
        for reply in row["replies"]:
            named = numbers & set(tokens(reply["text"]))
            assert len(named) == 1 and (named == stated) == (reply["label"] == "safe"), row
    assert len(counted) > 100


def test_no_value_of_a_family_is_in_two_splits(splits):
    for name, family in FAMILIES.items():
        forms = [value["v"] if isinstance(value, dict) else value for value in family["values"]]
        # The longest first, so that "eight" is not found in "a quarter to eight".
        pattern = re.compile("|".join(sorted(map(re.escape, forms), key=len, reverse=True)))
        found = {
            split: {
                match
                for row in splits[split]
                if row["family"] == name
                for match in pattern.findall(row["context"][row["evidence"]])
            }
            for split in SPLITS
        }
        assert not found["train"] & found["test"] and not found["train"] & found["valid"], name
        assert not found["valid"] & found["test"], name
        assert len(found["test"]) >= 2, name


def test_families_and_patterns_kept_for_the_test_split(splits):
    unseen = {row["family"] for row in splits["test"] if row["unseen_family"]}
    assert {FAMILIES[name]["kind"] for name in unseen} == set(KINDS) and len(unseen) == len(KINDS)
    kept = {pattern for family in FAMILIES.values() for pattern in (*family["open"][-2:], *family["ask"][-2:])}
    kept = {pattern for pattern in kept if "{" not in pattern}
    for split in ("train", "valid"):
        assert not any(row["family"] in unseen or row["unseen_family"] for row in splits[split])
        assert not kept & {turn for row in splits[split] for turn in row["context"]}
    assert kept & {turn for row in splits["test"] for turn in row["context"]}


@pytest.mark.parametrize(("first", "second"), [("train", "valid"), ("train", "test"), ("valid", "test")])
def test_no_near_context_in_two_splits(splits, first, second):
    sides = [[set(tokens(" ".join(row["context"]))) for row in splits[split]] for split in (first, second)]
    assert max(jaccard(left, right) for left in sides[0] for right in sides[1]) < 0.8


def test_a_context_holds_no_facts_that_stand_apart(rows):
    """The bot that has brothers and no sisters must not speak of its sister elsewhere in the dialogue."""
    for row in rows:
        bot = " ".join(row["context"][1::2])
        assert not ("brothers" in bot and re.search(r"[Mm]y sister|sister of mine", bot)), row["context"]


def test_words_alone_tell_nothing():
    """An additive score cannot: each reply and each context carries both labels. So exactly one half, not nearly."""
    corpus = load_corpus()
    assert contradiction_by_words(corpus, with_context=False) == pytest.approx(0.5, abs=0.01)
    assert contradiction_by_words(corpus, with_context=True) == pytest.approx(0.5, abs=0.01)


def test_in_a_share_of_the_contexts_the_human_names_the_other_value(rows):
    numbers = set(FAMILIES["siblings"]["values"])
    counted = [row for row in rows if row["kind"] == "count"]
    heard = sum(bool(numbers & set(tokens(" ".join(row["context"][0:-1:2])))) for row in counted)
    assert 0.3 < heard / len(counted) < 0.7


def test_the_seed_decides():
    assert contradiction.build(build.SEED) == {split: load_contradiction(split) for split in SPLITS}
    assert contradiction.build(1) != contradiction.build(2)


def test_too_little_text_is_named(monkeypatch):
    monkeypatch.setattr(contradiction, "UNSEEN_TWINS", 4000)
    monkeypatch.setattr(contradiction, "_ATTEMPTS", 1)
    with pytest.raises(SafetyError, match="gave too few contexts for the split.*text/contradiction.yaml"):
        contradiction.build(1)


def test_load_refuses_an_unknown_split():
    with pytest.raises(SafetyError, match="no split 'tests'"):
        load_contradiction("tests")
