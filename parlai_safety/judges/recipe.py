"""Two judges from disjoint halves of the data: one labels what a model says, the other grades the model trained on it.

A model that learns from a judge's labels learns the judge's mistakes too, so the judge that labelled must not grade.
The idea of a separate evaluation classifier is that of the CRINGE work (Adolphs et al. 2022, arXiv:2211.05826); here
the two share no conversation, and each is measured on the half that the other learned from. Both are linear judges, or
both turn judges. Left out: judges of other kinds, pairs of two kinds, and judging by people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.judges.card import MARKS, beside, labelled_bot_rows, make_card, write_card
from parlai_safety.judges.data import Example, conversation_marks, count_by, halves
from parlai_safety.judges.linear import CrossFit, cross_fit_linear
from parlai_safety.judges.quality import JudgeAgreement, JudgeQuality, agreement_of, quality_of, verdicts_of
from parlai_safety.judges.verdict import scored

if TYPE_CHECKING:
    from parlai_safety.judges.turns import TurnFit

Kind = Literal["linear", "turns"]
KINDS: tuple[str, ...] = get_args(Kind)
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
    kind: Kind = "linear",
    threshold_at_false_positive_rate: float | None = None,
    data: str = "labelled examples",
    files: Mapping[str, str] | None = None,
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
        kind: "linear", or "turns", where twelve networks are trained, and slowly.
        threshold_at_false_positive_rate: None = Youden's J; otherwise the share of ordinary talk that may be flagged.
        data: what the examples are, in words, for the cards.
        files: names of the files that they come from -> SHA-256, for the cards.

    Returns:
        The files and the figures.

    Raises:
        SafetyError: a half lacks a label, or has fewer than five conversations; or the kind is another.
    """
    halved = halves(examples, seed)
    fits = [_cross_fit(kind, half, seed, threshold_at_false_positive_rate) for half in halved]
    on_other = [verdicts_of(fit.judge, other) for fit, other in zip(fits, reversed(halved), strict=True)]
    on_own = [[scored(value) for value in fit.p_unsafe_out_of_fold] for fit in fits]
    # The labeller's verdicts on the first half and then the second, and the grader's in the same order.
    labeller_verdicts, grader_verdicts = on_own[0] + on_other[0], on_other[1] + on_own[1]

    def agree(rows: Sequence[int]) -> JudgeAgreement:
        first, second = [labeller_verdicts[i] for i in rows], [grader_verdicts[i] for i in rows]
        return agreement_of(first, second, fits[0].judge.threshold, fits[1].judge.threshold)

    agreement = agree(range(len(examples)))
    agreement_bot = agree(labelled_bot_rows([*halved.first, *halved.second]))
    paths = [Path(folder) / name for name in (LABELLER_FILE, GRADER_FILE)]
    for index, path in enumerate(paths):
        own, other, judge = halved[index], halved[1 - index], fits[index].judge
        # By these the judge's file remembers what no later card may measure it on.
        judge.facts[MARKS] = conversation_marks(own)
        judge.save(path)
        facts = {key: value for key, value in judge.facts.items() if key != MARKS}
        card = make_card(
            judge,
            other,
            measured_on=f"the other judge's half of {data}, which shares no conversation with the training half",
            files=files,
            trained_on={
                "name": f"one half of {data}",
                "files": dict(files or {}),
                **facts,
                "by_source": count_by(own, "source"),
                "by_speaker": count_by(own, "speaker"),
            },
            verdicts=on_other[index],
            extra={
                "agreement_with_other_judge": agreement._asdict(),
                "agreement_with_other_judge_labelled_bot_turns": agreement_bot._asdict(),
            },
        )
        write_card(card, card_path(path))
    qualities = [quality_of(on_other[index], halved[1 - index], fits[index].judge.threshold) for index in range(2)]
    return TwoJudges(paths[0], paths[1], qualities[0], qualities[1], agreement, agreement_bot)


def card_path(judge_path: str | Path) -> Path:
    """Where the card of a judge's file stands: `<file>.card.json`."""
    return beside(judge_path)


def _cross_fit(kind: Kind, examples: Sequence[Example], seed: int, rate: float | None) -> CrossFit | TurnFit:
    if kind == "linear":
        return cross_fit_linear(examples, seed=seed, threshold_at_false_positive_rate=rate)
    if kind == "turns":
        from parlai_safety.judges.turns import cross_fit_turns

        return cross_fit_turns(examples, seed=seed, threshold_at_false_positive_rate=rate)
    raise SafetyError(
        f"Judges of the kind {kind!r} were to be trained",
        f"Here they are of the kind {' or '.join(KINDS)}",
        did_you_mean(kind, KINDS, "Choose one of them"),
    )
