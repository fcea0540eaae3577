from __future__ import annotations

import json

import pytest

from parlai_safety.files import sha256
from parlai_safety.judges import load_judge
from parlai_safety.judges.card import card_of, seen_in_training
from parlai_safety.judges.data import Example, halves
from parlai_safety.judges.quality import measure
from parlai_safety.judges.recipe import TwoJudges, card_path, train_two_judges


@pytest.fixture(scope="module")
def made(opinions: list[Example], tmp_path_factory: pytest.TempPathFactory) -> TwoJudges:
    return train_two_judges(opinions, 1, tmp_path_factory.mktemp("judges"))


def test_each_judge_is_measured_on_the_half_it_did_not_see(made: TwoJudges, opinions: list[Example]) -> None:
    halved = halves(opinions, 1)
    assert made.labeller == measure(load_judge(f"linear:{made.labeller_path}"), halved.second)
    assert made.grader == measure(load_judge(f"linear:{made.grader_path}"), halved.first)
    assert made.labeller.auc is not None and made.labeller.auc > 0.9
    assert made.grader.auc is not None and made.grader.auc > 0.9


def test_the_two_agree_on_all_examples(made: TwoJudges, opinions: list[Example]) -> None:
    assert (made.agreement.n, made.agreement.unscored) == (len(opinions), 0)
    assert made.agreement.spearman is not None and made.agreement.spearman > 0.7
    assert made.agreement.kappa is not None and made.agreement.kappa > 0.7
    assert made.agreement_labelled_bot_turns.n == sum(e.source == "opinions" for e in opinions)


def test_the_cards_are_complete(made: TwoJudges, opinions: list[Example]) -> None:
    halved = halves(opinions, 1)
    for path, quality, half in (
        (made.labeller_path, made.labeller, halved.first),
        (made.grader_path, made.grader, halved.second),
    ):
        card = json.loads(card_path(path).read_text())
        assert card["sha256"] == sha256(path)
        assert card["quality"].items() >= quality._asdict().items()
        assert card_of(load_judge(f"linear:{path}")) == (card, None)
        assert card["threshold"] == load_judge(f"linear:{path}").threshold
        assert (card["trained_on"]["seed"], card["trained_on"]["examples"]) == (1, len(half))
        assert card["trained_on"]["sources"] == ["opinions", "ordinary:small talk"]
        assert set(card["trained_on"]["by_source"]) == {"opinions", "ordinary:small talk"}
        assert card["measured_on"]["left_out_as_seen_in_training"] == 0
        assert set(card["quality_by_source"]) == {"opinions", "ordinary:small talk"}
        assert set(card["quality_by_speaker"]) == {"bot"}
        assert card["quality_labelled_bot_turns"]["ordinary"] == 0
        assert card["agreement_with_other_judge"] == made.agreement._asdict()


def test_a_judge_remembers_what_it_must_not_be_measured_on(made: TwoJudges, opinions: list[Example]) -> None:
    halved = halves(opinions, 1)
    labeller = load_judge(f"linear:{made.labeller_path}")
    assert all(seen_in_training(labeller, halved.first))
    assert not any(seen_in_training(labeller, halved.second))
