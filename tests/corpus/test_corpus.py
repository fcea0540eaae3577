"""The shipped corpus: its rows, its splits, its hashes, and that single words do not give the labels away."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from parlai_safety.corpus import build, ordinary, statistics
from parlai_safety.corpus.load import DATA_FOLDER, SPLITS, load_adversarial, load_ordinary
from parlai_safety.corpus.near import groups, near_pairs, tokens
from parlai_safety.corpus.records import STYLES
from parlai_safety.errors import SafetyError

PAIRS_OF_SPLITS = [("train", "valid"), ("train", "test"), ("valid", "test")]
FORBIDDEN = re.compile(r"https?:|www\.|\w@\w|\d{5,}|[<>{}\[\]_\\]|  |[^\x20-\x7e]|^\s|\s$|^$")


@pytest.fixture(scope="module")
def corpus():
    return statistics.load_corpus()


@pytest.fixture(scope="module")
def measured(corpus):
    return statistics.measure(corpus)


def all_texts(corpus):
    for split in SPLITS:
        for row in corpus.ordinary[split]:
            yield from row["turns"]
        for row in corpus.adversarial[split]:
            yield from row["context"]
            yield from (reply["text"] for reply in row["replies"])


def test_ordinary_rows_follow_the_schema(corpus):
    families = {*ordinary.FRAMES, "written"}
    topics = {*ordinary.topics(), "smalltalk"}
    for split in SPLITS:
        for row in corpus.ordinary[split]:
            assert list(row) == ["id", "topic", "family", "turns"]
            assert re.fullmatch(r"o-\d{5}", row["id"])
            assert row["topic"] in topics and row["family"] in families
            assert len(row["turns"]) in (4, 6, 8, 10), row["id"]
            assert len(set(row["turns"])) == len(row["turns"]), row["id"]
            assert all(isinstance(turn, str) and turn[-1] in ".?!" and not turn[0].islower() for turn in row["turns"])


def test_adversarial_rows_follow_the_schema(corpus):
    for split in SPLITS:
        for row in corpus.adversarial[split]:
            assert set(row) == {"id", "style", "family", "context", "replies", "unseen_family"}
            assert re.fullmatch(r"a-\d{5}", row["id"])
            assert row["style"] in STYLES and isinstance(row["unseen_family"], bool)
            assert len(row["context"]) in (1, 3, 5, 7)
            labels = Counter(reply["label"] for reply in row["replies"])
            assert set(labels) == {"safe", "unsafe"} and min(labels.values()) >= 2, row["id"]
            assert len({reply["text"] for reply in row["replies"]}) == len(row["replies"]), row["id"]


def test_every_written_dialogue_has_an_even_number_of_turns():
    rows = ordinary.written()
    assert len(rows) >= 40
    assert all(len(row["turns"]) in (4, 6, 8, 10) for row in rows)


def test_every_thing_has_every_key():
    things = [(topic, thing) for topic, material in ordinary.topics().items() for thing in material["things"]]
    assert len(things) == 4 * len(ordinary.topics())
    keys = set("name did ask ans react good bad fix why know fact more then gripe calm".split())
    for topic, thing in things:
        assert set(thing) - {"many"} == keys, (topic, thing["name"])
        for key in ("did", "good", "bad", "fix", "why"):
            assert not thing[key].endswith("."), (topic, thing["name"], key)


def test_counts_are_what_the_corpus_promises(measured):
    parts = measured.ordinary.values()
    assert sum(part.exchanges for part in parts) >= 4500
    assert len(measured.topics) >= 33
    assert sum(part.exchanges for part in measured.adversarial.values()) >= 1500
    assert set(measured.styles) == set(STYLES) and min(measured.styles.values()) >= 200


def test_bot_turns_and_vocabulary_are_varied_but_learnable(corpus):
    turns = [turn for split in SPLITS for row in corpus.ordinary[split] for turn in row["turns"]]
    bots = [turn for split in SPLITS for row in corpus.ordinary[split] for turn in row["turns"][1::2]]
    assert 2800 <= len(set(bots)) <= 5000
    assert 3000 <= len({word for turn in turns for word in tokens(turn)}) <= 6000
    lengths = [len(tokens(turn)) for turn in turns]
    assert 8 <= sum(lengths) / len(lengths) <= 14
    assert max(lengths) <= 36


def test_rude_words_occur_in_safe_talk(corpus):
    words = {
        word for split in SPLITS for row in corpus.ordinary[split] for t in row["turns"][1::2] for word in tokens(t)
    }
    assert {"stupid", "useless", "hate", "lazy", "ugly", "idiot", "horrible", "greedy", "rude", "worthless"} <= words


@pytest.mark.parametrize("first, second", PAIRS_OF_SPLITS)
def test_no_id_is_in_two_splits(corpus, first, second):
    for half in corpus:
        assert not {row["id"] for row in half[first]} & {row["id"] for row in half[second]}


@pytest.mark.parametrize("first, second", PAIRS_OF_SPLITS)
def test_no_dialogue_or_context_is_in_two_splits(corpus, first, second):
    for half, field in ((corpus.ordinary, "turns"), (corpus.adversarial, "context")):
        texts = [{" ".join(tokens(" ".join(row[field]))) for row in half[split]} for split in (first, second)]
        assert not texts[0] & texts[1]


@pytest.mark.parametrize("first, second", PAIRS_OF_SPLITS)
def test_no_near_duplicate_across_splits(corpus, first, second):
    """By brute force over all pairs, independently of the prefix filter that the build uses."""
    for half, field, shortest in ((corpus.ordinary, "turns", 0), (corpus.adversarial, "context", 8)):
        sides = []
        for split in (first, second):
            texts = [tokens(" ".join(row[field])) for row in half[split]]
            sides.append([frozenset(words) for words in texts if len(words) >= shortest])
        near = 0
        for left in sides[0]:
            for right in sides[1]:
                if 0.8 <= len(left) / len(right) <= 1.25:
                    shared = len(left & right)
                    near += shared >= 0.8 * (len(left) + len(right) - shared)
        assert near == 0, field


def test_unseen_families_are_only_in_the_test_split(corpus):
    unseen = {row["family"] for row in corpus.adversarial["test"] if row["unseen_family"]}
    families = {row["family"] for split in SPLITS for row in corpus.adversarial[split]}
    for split in ("train", "valid"):
        assert not any(row["unseen_family"] or row["family"] in unseen for row in corpus.adversarial[split])
    assert all(row["unseen_family"] == (row["family"] in unseen) for row in corpus.adversarial["test"])
    assert 0.12 <= len(unseen) / len(families) <= 0.18
    assert {row["style"] for row in corpus.adversarial["test"] if row["unseen_family"]} == set(STYLES)


def test_splits_have_their_sizes(measured):
    for parts, shares in (
        (measured.ordinary, build.ORDINARY_SHARES),
        (measured.adversarial, build.ADVERSARIAL_SHARES),
    ):
        total = sum(part.exchanges for part in parts.values())
        for split, part in parts.items():
            assert part.exchanges / total == pytest.approx(shares[split], abs=0.02), split


def test_length_of_dialogues_is_alike_in_all_splits(measured):
    """A split by exchanges that looked at the length would send the short dialogues to the small splits."""
    means = [part.exchanges / part.conversations for part in measured.ordinary.values()]
    assert max(means) - min(means) < 0.25


def test_labels_are_balanced(measured):
    for part in measured.adversarial.values():
        assert part.unsafe_share == pytest.approx(0.5, abs=0.05)


def test_single_words_do_not_give_the_label_away(measured):
    judge = measured.word_judge
    for area in (judge.adversarial, judge.with_ordinary, judge.seen, judge.unseen):
        assert 0.6 < area < 0.95


def test_near_duplicate_bot_turns_stay_below_the_measured_share(measured):
    assert measured.ordinary["train"].near_share < 0.52  # measured 0.49: material meets again in other frames
    assert measured.ordinary["test"].near_share < 0.16  # measured 0.13
    assert measured.adversarial["train"].near_share < 0.78  # measured 0.75: short answers are meant to recur
    assert measured.test_turns_seen_in_train < 0.40  # measured 0.37


def test_no_forbidden_content(corpus):
    offending = [text for text in all_texts(corpus) if FORBIDDEN.search(text)]
    assert offending == []


def test_rebuilding_in_another_process_gives_the_shipped_hashes():
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    command = [sys.executable, "-m", "parlai_safety.corpus.build", "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_a_file_that_was_changed(tmp_path, capsys, monkeypatch, corpus):
    monkeypatch.setattr(build, "build", lambda seed: corpus)  # rebuilding is the test above
    folder = tmp_path / "data"
    shutil.copytree(DATA_FOLDER, folder)
    build.check(folder)
    (folder / "ordinary.test.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(SafetyError, match=r"'ordinary\.test\.jsonl' has different hashes.*--write"):
        build.check(folder)
    with pytest.raises(SafetyError, match="There is no manifest"):
        build.check(folder, tmp_path / "nothing.json")
    monkeypatch.setattr(build.check, "__defaults__", (folder, build.MANIFEST_FILE))
    assert build.main(["--check"]) == 1
    assert "different hashes" in capsys.readouterr().err


def test_write_makes_files_that_check_accepts(tmp_path, corpus, monkeypatch, measured):
    monkeypatch.setattr(build, "build", lambda seed: corpus)
    monkeypatch.setattr(build, "measure", lambda _: measured)
    build.write(corpus, build.SEED, tmp_path, tmp_path / "manifest.json")
    build.check(tmp_path, tmp_path / "manifest.json")
    written, shipped = (json.loads(path.read_text()) for path in (tmp_path / "manifest.json", build.MANIFEST_FILE))
    assert all(written[key] == shipped[key] for key in ("version", "seed", "licence", "rows", "sha256"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4_000_000


def test_another_seed_gives_other_dialogues_from_the_same_material():
    first, second = ordinary.build(1), ordinary.build(2)
    assert first == ordinary.build(1)
    assert [row["turns"] for row in first] != [row["turns"] for row in second]
    assert {row["topic"] for row in first} == {row["topic"] for row in second}


def test_manifest_and_data_statement_hold_the_current_numbers(measured):
    """All tables but the last: an area under a curve may move in its third digit with the library."""
    table = statistics.as_markdown(measured).split("| AUC")[0]
    assert table in (Path(build.__file__).parent / "README.md").read_text(encoding="utf-8")
    manifest = json.loads(build.MANIFEST_FILE.read_text(encoding="utf-8"))
    stored = manifest["statistics"]["word_judge"]
    assert stored["adversarial"] == pytest.approx(measured.word_judge.adversarial, abs=0.01)


def test_load_refuses_an_unknown_split():
    with pytest.raises(SafetyError, match="no split 'tests'.*Did you mean 'test'"):
        load_ordinary("tests")
    with pytest.raises(SafetyError, match="Use one of train, valid, test"):
        load_adversarial("dev0")


def test_assign_keeps_chains_of_near_duplicates_together():
    """a-b and b-c are near, a-c is not: all three must share a split. Words: 9 shared of 11 or 10."""
    a = "one two three four five six seven eight nine ten"
    b = "one two three four five six seven eight nine eleven"
    c = "one two three four five six seven eight twelve eleven"
    assert list(near_pairs([a, b, c], 0.8)) == [(0, 1), (1, 2)]
    others = [f"w{i} x{i} y{i} z{i}" for i in range(400)]
    texts = [a, *others[:200], b, *others[200:], c]
    items = [build.Item(text, 1, "same", None) for text in texts]
    names = build.assign(items, build.ORDINARY_SHARES, random.Random(0), shortest=0)
    assert names[0] == names[201] == names[-1]
    assert Counter(names)["train"] == pytest.approx(0.8 * len(items), abs=3)


def test_assign_refuses_a_group_that_is_too_large():
    items = [build.Item("the very same words again and again", 1, "same", None)] * 10
    with pytest.raises(SafetyError, match="10 of 10 conversations are near-duplicates.*Vary the generator"):
        build.assign(items, build.ORDINARY_SHARES, random.Random(0), shortest=0)


def test_near_pairs_agree_with_brute_force():
    rng = random.Random(7)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(300)] + ["", "?!"]
    sets = [set(tokens(text)) for text in texts]
    for threshold in (0.5, 0.8, 1.0):
        expected = {
            (i, j)
            for j in range(len(sets))
            for i in range(j)
            if sets[i] | sets[j] and len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
        }
        found = list(near_pairs(texts, threshold))
        assert len(found) == len(set(found)) and set(found) == expected
        assert len(expected) > 20


def test_groups_join_through_a_common_member():
    assert groups(6, [(0, 3), (5, 3), (1, 2)]) == [[0, 3, 5], [1, 2], [4]]


def test_mattr_by_hand():
    """Windows of 2 over a b a a: {a,b} {b,a} {a} have 2, 2 and 1 types, so (1 + 1 + 1/2) / 3."""
    assert statistics.mattr(list("abaa"), 2) == pytest.approx(2.5 / 3)
    assert statistics.mattr(list("aab"), 500) == pytest.approx(2 / 3)
    with pytest.raises(SafetyError, match="no words"):
        statistics.mattr([])


def test_near_share_counts_repeats_and_near_turns():
    """Two equal turns and two near ones (5 of 6 words) of five turns are 4/5."""
    turns = ["Yes.", "yes", "one two three four five", "one two three four five six", "something else"]
    assert statistics.near_share(turns) == pytest.approx(0.8)
