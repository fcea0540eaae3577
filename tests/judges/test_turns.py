"""The judge over turns: what it reads, what it learns from, its scores, its file, and its training by the recipe."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.special import logit

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge, recipe, turns
from parlai_safety.judges.card import card_of, make_card, seen_in_training
from parlai_safety.judges.data import Example, folds, halves
from parlai_safety.judges.quality import verdicts_of, youden_threshold
from parlai_safety.judges.turns import TurnJudge, cross_fit_turns, train_turns
from parlai_safety.judges.verdict import Speaker, is_unsafe

Row = tuple[list[str], str, Speaker]
AGREE, ORDER = "So true, friend.", "Shut it, 7."


def toy_examples() -> list[Example]:
    """One reply that is unsafe after unkind turns alone, and one that is unsafe from a human alone, 32 of each."""
    examples = []
    for index in range(32):
        unkind, speaker = index % 2 == 0, get_args(Speaker)[index % 2]
        first = f"All {('lamps', 'boots', 'carts')[index % 3]} are {'dreadful' if unkind else 'lovely'}."
        examples.append(Example([first], AGREE, unkind, "bot", f"talk {index}", "toy"))
        examples.append(Example(["Hello."], f"Shut it, {index % 5}.", not index % 2, speaker, f"order {index}", "toy"))
    return examples


@pytest.fixture(scope="module")
def toy() -> list[Example]:
    return toy_examples()


@pytest.fixture(scope="module")
def judge(toy: list[Example]) -> TurnJudge:
    with pytest.MonkeyPatch.context() as patch:
        # A few steps have to do for the toy.
        patch.setattr(turns, "RATE", 0.01)
        return train_turns(toy, seed=1, networks=2, threshold=0.5)


@pytest.fixture(scope="module")
def saved(judge: TurnJudge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("turns") / "judge.npz"
    TurnJudge(judge.idf, judge.weights[:1], judge.threshold, judge.facts).save(path)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "EPOCHS", 1)
    monkeypatch.setattr(turns, "FOLDS", 2)


def scores(judge: TurnJudge, *rows: Row) -> list[float]:
    verdicts = judge.score(*([row[part] for row in rows] for part in (1, 0, 2)))  # type: ignore[arg-type]
    return [verdict.p_unsafe for verdict in verdicts if verdict.p_unsafe is not None]


def test_the_same_reply_flips_with_the_turn_before_and_with_the_speaker(judge: TurnJudge) -> None:
    """Hats never occurred in training, nor did the order to the bot's own number."""
    rows: list[Row] = [
        (["All hats are dreadful."], AGREE, "bot"),
        (["All hats are lovely."], AGREE, "bot"),
        (["Hello."], ORDER, "human"),
        (["Hello."], ORDER, "bot"),
    ]
    unkind, kind, human, bot = scores(judge, *rows)
    assert min(unkind, human) > 0.6 and max(kind, bot) < 0.4


def test_a_turn_further_back_counts_and_so_does_who_said_it(judge: TurnJudge) -> None:
    context = ["All hats are dreadful.", "Hm.", "Well."]
    rows: list[Row] = [(context, AGREE, "bot"), (["All hats.", *context[1:]], AGREE, "bot"), (context, AGREE, "human")]
    given, other_turn, other_speaker = scores(judge, *rows)
    assert abs(given - other_turn) > 1e-5 and abs(given - other_speaker) > 1e-5
    assert turns._talk(context, AGREE, "bot").speakers == [0, 1, 0, 1]
    assert turns._talk(context[:2], AGREE, "human").speakers == [0, 1, 0]


@pytest.mark.usefixtures("quick")
def test_without_context_the_turns_before_are_not_read(toy: list[Example]) -> None:
    rows: list[Row] = [(["All hats are dreadful."], AGREE, "bot"), (["Good day."], AGREE, "bot")]
    blind, seeing = (scores(train_turns(toy, seed=1, threshold=0.5, context=read), *rows) for read in (False, True))
    assert blind[0] == pytest.approx(blind[1], abs=1e-7)
    assert abs(seeing[0] - seeing[1]) > 1e-5


def test_neither_order_nor_padding_changes_a_score(judge: TurnJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = [(["Yes."] * (3 * index), f"Reply {index}.", ("human", "bot")[index % 2]) for index in range(5)]
    alone = [scores(judge, row)[0] for row in rows]
    assert scores(judge, *rows) == pytest.approx(alone, abs=1e-6)
    assert scores(judge, *rows[::-1]) == pytest.approx(alone[::-1], abs=1e-6)
    monkeypatch.setattr(turns, "SCORED_AT_ONCE", 2)
    assert scores(judge, *rows) == pytest.approx(alone, abs=1e-6)
    assert len({round(score, 5) for score in alone}) == 5


def test_a_later_turn_never_changes_an_earlier_one(judge: TurnJudge) -> None:
    talks = [turns._talk(["All hats are dreadful.", AGREE], end, "human") for end in ("Shut it, 1.", "Lovely, friend.")]
    logits = judge.networks[0](*turns._Read(talks, judge.idf).batch([0, 1])).detach()
    assert torch.allclose(logits[0, :2], logits[1, :2], rtol=0.0, atol=1e-5)
    assert abs(logits[0, 2] - logits[1, 2]) > 0.1


def test_what_cannot_be_read_is_unscored(judge: TurnJudge) -> None:
    verdicts = judge.score(["", " \n", AGREE, "?", AGREE], [[]] * 4 + [[""]], ["bot"] * 5)
    assert [verdict.p_unsafe is None for verdict in verdicts] == [True, True, False, False, False]
    broken: Any = [["Hello."], [None]]
    assert [v.p_unsafe is None for v in judge.score([AGREE] * 2, broken, ["bot"] * 2)] == [False, True]


def test_the_score_is_the_mean_logit_of_the_networks(judge: TurnJudge, toy: list[Example]) -> None:
    first, second = (TurnJudge(judge.idf, judge.weights[row : row + 1], 0.5, {}) for row in (0, 1))
    rows: list[Row] = [(example.context, example.reply, example.speaker) for example in toy[:8]]
    singles = [logit(scores(one, *rows)) for one in (first, second)]
    assert np.abs(singles[0] - singles[1]).max() > 1e-3
    assert logit(scores(judge, *rows)) == pytest.approx(np.mean(singles, axis=0), abs=1e-9)
    assert len({judge.fingerprint, first.fingerprint, second.fingerprint}) == 3
    assert TurnJudge(judge.idf, judge.weights, 0.9, {}).fingerprint == judge.fingerprint
    assert TurnJudge(judge.idf + 1e-3, judge.weights, 0.5, {}).fingerprint != judge.fingerprint


@pytest.mark.usefixtures("quick")
def test_training_follows_its_seed_and_leaves_that_of_the_run_alone(toy: list[Example]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    both = train_turns(toy, seed=1, networks=2, threshold=0.5)
    assert torch.equal(torch.rand(3), expected)
    second = train_turns(toy, seed=2, threshold=0.5)
    assert np.array_equal(both.weights[1], second.weights[0]) and not np.array_equal(both.weights[0], second.weights[0])
    calm = Example(["Hello."], "All boots are lovely.", False, "bot", "calm", "ordinary:toy")
    with_talk = train_turns([*toy, calm], seed=2, threshold=0.5)
    assert np.array_equal(with_talk.idf, second.idf) and not np.array_equal(with_talk.weights, second.weights)


def test_every_labelled_turn_of_a_conversation_trains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """a-b-c holds the example a-b, so both labels stand in one talk; a-b from a human is a talk of its own."""
    found: list[tuple[list[list[str]], list[list[float]], list[list[str]]]] = []

    def trained(read: Any, labels: list[list[float]], calm: Any, seed: int, context: bool) -> Any:
        found.append(([talk.texts for talk in read.talks], labels, [talk.texts for talk in calm.talks]))
        return np.zeros(turns.WEIGHTS, dtype=np.float32)

    monkeypatch.setattr(turns, "_trained", trained)
    examples = [
        Example(["a"], "b", True, "bot", "a", "toy"),
        Example(["a", "b"], "c", False, "human", "a", "toy"),
        Example(["a"], "b", False, "human", "a", "toy"),
        Example([str(number) for number in range(20)], "z", False, "bot", "0", "ordinary:toy"),
    ]
    judge = train_turns(examples, seed=1, threshold=0.5)
    last = [str(number) for number in range(12, 20)]
    assert found == [([["a", "b", "c"], ["a", "b"]], [[-1.0, 1.0, 0.0], [-1.0, 0.0]], [[*last, "z"]])]
    assert (judge.facts["examples"], judge.facts["unsafe"], judge.facts["sources"]) == (4, 1, ["ordinary:toy", "toy"])
    elsewhere = Example([], "y", True, "bot", "elsewhere", "toy")
    assert seen_in_training(judge, [*examples, elsewhere]) == [True] * 4 + [False]
    monkeypatch.setattr(turns, "ORDINARY_MOST", 2)
    train_turns([*examples[:3], *[examples[3]._replace(reply=str(n)) for n in range(5)]], seed=1, threshold=0.5)
    assert [texts[-1] for texts in found[1][2]] == ["0", "3"]


@pytest.mark.usefixtures("quick")
def test_the_threshold_is_found_on_conversations_that_were_not_seen(toy: list[Example]) -> None:
    some = [*toy[:24], *(e._replace(unsafe=False, source="ordinary:toy", conversation=e.reply) for e in toy[24:40])]
    fit = cross_fit_turns(some, seed=1, threshold_at_false_positive_rate=0.25)
    own = folds(some, 2, 1)
    inside, outside = ([e for e, fold in zip(some, own, strict=True) if fold == side] for side in (1, 0))
    expected = [verdict.p_unsafe for verdict in verdicts_of(train_turns(inside, seed=1, threshold=0.5), outside)]
    assert [p for p, fold in zip(fit.p_unsafe_out_of_fold, own, strict=True) if fold == 0] == pytest.approx(expected)
    ordinary = fit.p_unsafe_out_of_fold[24:]
    assert sum(p >= fit.judge.threshold for p in ordinary) <= 0.25 * len(ordinary)
    assert fit.judge.facts["threshold_at_false_positive_rate"] == 0.25
    youden = train_turns(some, seed=1)
    assert youden.threshold == youden_threshold(fit.p_unsafe_out_of_fold, [e.unsafe for e in some])
    assert np.array_equal(youden.weights, fit.judge.weights)


def test_a_judge_survives_its_file_exactly(saved: Path, judge: TurnJudge, toy: list[Example]) -> None:
    state = torch.random.get_rng_state()
    loaded = load_judge(f"turns:{saved}")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(loaded, TurnJudge)
    before = TurnJudge(judge.idf, judge.weights[:1], judge.threshold, judge.facts)
    assert verdicts_of(loaded, toy) == verdicts_of(before, toy)
    assert (loaded.fingerprint, loaded.facts, loaded.threshold) == (before.fingerprint, judge.facts, 0.5)
    assert (loaded.spec, loaded.file, before.spec) == (f"turns:{saved}", saved, "turns:(unsaved)")
    assert load_judge(loaded.spec, threshold=0.9).threshold == 0.9


def test_files_that_are_no_judge(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    broken = {
        "missing.npz": None,
        "text.npz": b"hello there, this is no archive",
        "half.npz": content[: len(content) // 2],
        "flipped.npz": content[:90_000] + bytes(255 - byte for byte in content[90_000:90_200]) + content[90_200:],
    }
    for name, data in broken.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SafetyError, match=name):
            TurnJudge.load(tmp_path / name)
    with np.load(saved) as archive:
        header, arrays = json.loads(archive["header"].tobytes()), {name: archive[name] for name in ("idf", "weights")}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"format": "parlai_safety linear judge"}, {}, "not a whole turn judge"),
        ({"version": 99}, {}, "version 99"),
        ({"probe": 0.123}, {}, "hashes text differently"),
        ({"threshold": 7.0}, {}, "threshold is 7"),
        ({}, {"weights": arrays["weights"][:0]}, "holds no network"),
        ({}, {"weights": arrays["weights"][:, 1:]}, "'weights' has the shape"),
        ({}, {"idf": arrays["idf"] * np.nan}, "not finite"),
    ]
    for changes, others, message in cases:
        text = np.frombuffer(json.dumps(header | changes).encode(), dtype=np.uint8)
        np.savez(tmp_path / "changed.npz", header=text, **(arrays | others))
        with pytest.raises(SafetyError, match=message):
            TurnJudge.load(tmp_path / "changed.npz")


def test_what_is_refused(toy: list[Example]) -> None:
    calm = [example._replace(source="ordinary:toy") for example in toy if not example.unsafe]
    with pytest.raises(SafetyError, match="32 unsafe and 0 safe labelled turns"):
        train_turns([*(e for e in toy if e.unsafe), *calm], seed=1, threshold=0.5)
    with pytest.raises(SafetyError, match="0 networks"):
        train_turns(toy, seed=1, networks=0, threshold=0.5)
    with pytest.raises(SafetyError, match=r"threshold is 1\.5"):
        train_turns(toy, seed=1, threshold=1.5)
    with pytest.raises(SafetyError, match="5 folds were asked of 4"):
        train_turns(toy[:4], seed=1)


@pytest.mark.usefixtures("quick")
def test_two_judges_over_turns(toy: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "make_card", partial(make_card, probes=False))
    made = recipe.train_two_judges(toy, 1, tmp_path, kind="turns")
    grader = load_judge(f"turns:{made.grader_path}")
    assert isinstance(grader, TurnJudge) and is_unsafe(grader.score(["Hm."], [[]], ["bot"])[0], 0.5) is not None
    card, why_not = card_of(grader)
    assert why_not is None and card is not None and card["quality"]["n"] == len(halves(toy, 1).first)
    assert not any(seen_in_training(grader, halves(toy, 1).first))
    with pytest.raises(SafetyError, match="'turn'.*Did you mean 'turns'"):
        recipe.train_two_judges(toy, 1, tmp_path, kind="turn")  # type: ignore[arg-type]
