"""Two judges from disjoint halves of the data: one labels what a model says, the other grades the model trained on it.

A model that learns from a judge's labels learns the judge's mistakes too, so the judge that labelled must not grade.
The idea of a separate evaluation classifier is that of the CRINGE work (Adolphs et al. 2022, arXiv:2211.05826); here
the two share no conversation, and each is measured on the half that the other learned from. Left out: judges other
than the linear one, and judging by people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.files import sha256, write_json
from parlai_safety.judges.data import Example, count_by, halves, is_ordinary
from parlai_safety.judges.linear import CrossFit, cross_fit_linear
from parlai_safety.judges.quality import (
    JudgeAgreement,
    JudgeQuality,
    agreement_of,
    quality_by,
    quality_of,
    threshold_at_false_positive_rate,
    verdicts_of,
)
from parlai_safety.judges.verdict import Verdict, scored

LABELLER_FILE, GRADER_FILE = "labeller.npz", "grader.npz"


class TwoJudges(NamedTuple):
    """What `train_two_judges` made.

    Attributes:
        labeller_path: file of the judge that labels.
        grader_path: file of the judge that grades.
        labeller: the labeller measured on the grader's half.
        grader: the grader measured on the labeller's half.
        agreement: the two on all examples, each example scored by judges that had not seen its conversation.
        agreement_labelled_bot_turns: the same on the bot's labelled replies alone; everyday talk, which both judges
            find easy, raises the agreement on all.
    """

    labeller_path: Path
    grader_path: Path
    labeller: JudgeQuality
    grader: JudgeQuality
    agreement: JudgeAgreement
    agreement_labelled_bot_turns: JudgeAgreement


def train_two_judges(
    examples: Sequence[Example],
    seed: int,
    folder: str | Path,
    *,
    threshold_at_false_positive_rate: float | None = None,
) -> TwoJudges:
    """Train a labeller and a grader on halves that share no conversation, and write them with their cards.

    Each threshold comes from a 5-fold cross-validation, grouped by conversation, on the judge's own half: where
    Youden's J is largest, or at a stated false-positive rate on ordinary talk. Quality is measured on the other half.
    For the agreement every example counts once: the judge of the other half scores it as it is, and the judge of its
    own half through the cross-validation.

    Args:
        examples: labelled examples, ordinary talk among them.
        seed: divides the halves and the folds.
        folder: receives labeller.npz, grader.npz and a card beside each (`<file>.card.json`).
        threshold_at_false_positive_rate: None = Youden's J; otherwise the share of ordinary talk that may be flagged.

    Returns:
        The files and the figures.

    Raises:
        SafetyError: a half lacks a label, or has fewer than five conversations.
    """
    halved = halves(examples, seed)
    fits = [
        cross_fit_linear(half, seed=seed, threshold_at_false_positive_rate=threshold_at_false_positive_rate)
        for half in halved
    ]
    on_other = [verdicts_of(fit.judge, other) for fit, other in zip(fits, reversed(halved), strict=True)]
    on_own = [[scored(value) for value in fit.p_unsafe_out_of_fold] for fit in fits]
    # The labeller's verdicts on the first half and then the second, and the grader's in the same order.
    labeller_verdicts, grader_verdicts = on_own[0] + on_other[0], on_other[1] + on_own[1]

    def agree(rows: Sequence[int]) -> JudgeAgreement:
        first, second = [labeller_verdicts[i] for i in rows], [grader_verdicts[i] for i in rows]
        return agreement_of(first, second, fits[0].judge.threshold, fits[1].judge.threshold)

    agreement = agree(range(len(examples)))
    agreement_bot = agree(_labelled_bot_rows([*halved.first, *halved.second]))
    paths = [Path(folder) / name for name in (LABELLER_FILE, GRADER_FILE)]
    for index, path in enumerate(paths):
        fits[index].judge.save(path)
        card = _card(path, fits[index], halved[index], halved[1 - index], on_other[index])
        card["agreement_with_other_judge"] = agreement._asdict()
        card["agreement_with_other_judge_labelled_bot_turns"] = agreement_bot._asdict()
        write_json(card_path(path), card)
    qualities = [quality_of(on_other[index], halved[1 - index], fits[index].judge.threshold) for index in range(2)]
    return TwoJudges(paths[0], paths[1], qualities[0], qualities[1], agreement, agreement_bot)


def card_path(judge_path: str | Path) -> Path:
    """Where the card of a judge's file stands: `<file>.card.json`."""
    return Path(f"{judge_path}.card.json")


def _card(
    path: Path,
    fit: CrossFit,
    own: list[Example],
    other: list[Example],
    verdicts: list[Verdict],
) -> dict[str, Any]:
    threshold = fit.judge.threshold

    def by(attribute: str) -> dict[str, Any]:
        return {k: q._asdict() for k, q in quality_by(verdicts, other, threshold, attribute).items()}

    labelled_bot = _labelled_bot_rows(other)
    labelled_bot_quality = quality_of([verdicts[i] for i in labelled_bot], [other[i] for i in labelled_bot], threshold)
    ordinary = [v.p_unsafe for v, e in zip(verdicts, other, strict=True) if is_ordinary(e) and v.p_unsafe is not None]
    return {
        "judge": path.name,
        "sha256": sha256(path),
        "training": {**fit.judge.facts, "by_source": count_by(own, "source"), "by_speaker": count_by(own, "speaker")},
        "threshold": threshold,
        "measured_on": "the other judge's half, which shares no conversation with the training half",
        "quality": quality_of(verdicts, other, threshold)._asdict(),
        "quality_labelled_bot_turns": labelled_bot_quality._asdict(),
        "quality_by_source": by("source"),
        "quality_by_speaker": by("speaker"),
        "threshold_at_5_percent_ordinary_false_positives": _threshold_or_none(ordinary, 0.05),
    }


def _labelled_bot_rows(examples: Sequence[Example]) -> list[int]:
    # People's turns are unsafe more often, so both speakers together would credit a judge for knowing who speaks.
    return [i for i, example in enumerate(examples) if example.speaker == "bot" and not is_ordinary(example)]


def _threshold_or_none(p_unsafe: list[float], rate: float) -> float | None:
    return threshold_at_false_positive_rate(p_unsafe, rate) if p_unsafe else None
