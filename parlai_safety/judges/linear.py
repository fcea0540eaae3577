"""A linear judge of one reply in its context: hashed n-grams, crosses of context and reply, logistic regression.

It trains in well under a minute on one core, fits in a file of about two megabytes, and is the baseline that larger
judges must beat. N-grams under a logistic regression are an old recipe; what is ours is the crosses. "Yes, exactly." is
unsafe after a hateful statement and safe after a kind one, and no sum of a context term and a reply term can say so.
Therefore each of the reply's first two words is crossed with each word of the turn that it answers.

Features: words 1-2-grams of the reply; characters 2-5-grams of the reply, within words; words 1-2-grams of the turn
that it answers; the crosses; and one column that is 1 for a human's reply. Each of the four blocks is hashed to 2**18
columns, weighted by log term frequency times inverse document frequency, and scaled to length 1.

Files are archives without pickle (see `parlai_safety.archive`), so a judge from elsewhere cannot run code. Left out:
turns before the last one, word vectors, and a step of calibration after the training. Classes are weighted to equal
shares, which aims p_unsafe at data with as many unsafe as safe examples. Measured, its calibration error was 0.02 on
real labelled replies (19 % unsafe) and 0.06 on the test split that ships (43 %); a judge's card has its own figure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlai_safety.archive import ArchiveFormat, array_digest
from parlai_safety.errors import SafetyError
from parlai_safety.judges.data import Example, folds, is_ordinary
from parlai_safety.judges.features import (
    DIMENSION,
    SCORED_AT_ONCE,
    TOKEN,
    Counts,
    fitted,
    hashed_counts,
    idf_of,
    sigmoid,
    weighted,
)
from parlai_safety.judges.quality import threshold_at_false_positive_rate as highest_ordinary_threshold
from parlai_safety.judges.quality import youden_threshold
from parlai_safety.judges.verdict import Speaker, Verdict, check_threshold, fingerprint_of, judged

FORMAT, VERSION = "parlai_safety linear judge", 1
BLOCKS = 4
FOLDS = 5
# Chosen on one half of the development data: AUC moves by less than 0.01 between 1 and 16.
INVERSE_REGULARISATION = 4.0
ARCHIVE = ArchiveFormat(
    FORMAT,
    VERSION,
    "parlai safety_judges --out FOLDER",
    {"threshold": float, "bias": float, "facts": dict},
    {"idf": (BLOCKS, DIMENSION), "weights": (BLOCKS * DIMENSION + 1,)},
)

_WORDS = re.compile(TOKEN)


class LinearJudge:
    """A trained linear judge; made by `train_linear` or `LinearJudge.load`.

    Args:
        idf: inverse document frequencies, shape (4, 2**18), float32.
        weights: one weight a column, shape (4 * 2**18 + 1,), float32.
        bias: the intercept.
        threshold: a reply with p_unsafe >= threshold is unsafe; strictly between 0 and 1.
        facts: what the header says of the training: seed, counts, sources.
        path: the file it was read from or saved to; None before that.
    """

    def __init__(
        self,
        idf: NDArray[np.float32],
        weights: NDArray[np.float32],
        bias: float,
        threshold: float,
        facts: dict[str, Any],
        path: str | None = None,
    ) -> None:
        self.idf, self.weights, self.bias = idf, weights, bias
        self.threshold, self.facts = check_threshold(threshold), facts
        self.spec = "linear:(unsaved)" if path is None else f"linear:{path}"

    @cached_property
    def fingerprint(self) -> str:
        """Of the arrays, the bias and the version of the format."""
        digests = [array_digest(array) for array in (self.idf, self.weights)]
        return fingerprint_of("linear", VERSION, format=FORMAT, arrays=digests, bias=self.bias)

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch by the replies, the last turns of their contexts and the speakers; see `Judge.score`."""
        return judged(replies, contexts, speakers, self._probabilities)

    def save(self, path: str | Path) -> None:
        """Write the judge to one file, which appears when it is complete. The same judge gives the same bytes."""
        ARCHIVE.write(path, self, probe=self._probe())
        self.spec = f"linear:{path}"

    @classmethod
    def load(cls, path: str | Path, *, threshold: float | None = None) -> LinearJudge:
        """Read a judge that `save` wrote.

        Args:
            path: the file.
            threshold: replaces the stored threshold.

        Raises:
            SafetyError: the file is missing, truncated or not a linear judge, its version is another, or this
                installation hashes text differently from the one that wrote it.
        """
        stored = ARCHIVE.read(path)
        parts = stored.parts if threshold is None else {**stored.parts, "threshold": threshold}
        judge = cls(**parts, path=str(path))
        ARCHIVE.check_probe(path, stored, judge._probe())
        return judge

    def _probabilities(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(replies), SCORED_AT_ONCE):
            rows = slice(start, start + SCORED_AT_ONCE)
            features = weighted(_counted(replies[rows], contexts[rows], speakers[rows]), self.idf)
            values.extend(sigmoid(features @ self.weights.astype(np.float64) + self.bias).tolist())
        return values

    def _probe(self) -> float:
        # Words, letters, crosses and the speaker all take part, so a change in any of them moves the score.
        return self._probabilities(
            ["I don't think so, you know?"], [["Isn't this a fine day for all of us!"]], ["bot"]
        )[0]


class CrossFit(NamedTuple):
    """A judge and what it would have said of its own training examples had it not seen them.

    Attributes:
        judge: trained on all examples.
        p_unsafe_out_of_fold: for each example, the score of a judge trained without the example's fold.
    """

    judge: LinearJudge
    p_unsafe_out_of_fold: list[float]


def train_linear(
    examples: Sequence[Example], *, seed: int, threshold_at_false_positive_rate: float | None = None
) -> LinearJudge:
    """Train a judge, with the threshold from a cross-validation on the same examples.

    Args:
        examples: labelled examples of both labels; ordinary talk should be among them.
        seed: chooses the folds and the order in which the solver visits the examples.
        threshold_at_false_positive_rate: None = the threshold is where Youden's J is largest on the out-of-fold
            scores; otherwise the lowest that flags at most this share of the ordinary examples.

    Returns:
        The judge, not yet saved.

    Raises:
        SafetyError: a label is missing, there are fewer conversations than folds, or the scores tell nothing apart.
    """
    return cross_fit_linear(
        examples, seed=seed, threshold_at_false_positive_rate=threshold_at_false_positive_rate
    ).judge


def cross_fit_linear(
    examples: Sequence[Example], *, seed: int, threshold_at_false_positive_rate: float | None = None
) -> CrossFit:
    """Train as `train_linear` does, and keep the out-of-fold scores that chose the threshold."""
    labels = np.array([example.unsafe for example in examples], dtype=bool)
    _check_labels(labels)
    features = _counted([e.reply for e in examples], [e.context for e in examples], [e.speaker for e in examples])
    fold_of = np.array(folds(examples, FOLDS, seed))
    out_of_fold = np.zeros(len(examples))
    for fold in range(FOLDS):
        inside, outside = fold_of != fold, fold_of == fold
        fit = _fit(features.rows(inside), labels[inside], seed)
        out_of_fold[outside] = fit.p_unsafe(features.rows(outside))
    scores = out_of_fold.tolist()
    if threshold_at_false_positive_rate is None:
        threshold = youden_threshold(scores, labels.tolist())
    else:
        ordinary = [p for p, example in zip(scores, examples, strict=True) if is_ordinary(example)]
        threshold = highest_ordinary_threshold(ordinary, threshold_at_false_positive_rate)
    whole = _fit(features, labels, seed)
    facts = {
        "seed": seed,
        "examples": len(examples),
        "unsafe": int(labels.sum()),
        "sources": sorted({example.source for example in examples}),
        "threshold_at_false_positive_rate": threshold_at_false_positive_rate,
    }
    return CrossFit(LinearJudge(whole.idf, whole.weights, whole.bias, threshold, facts), scores)


def load_spec(argument: str | None, threshold: float | None, datapath: str | None) -> LinearJudge:
    """Load `linear:FILE`; see `parlai_safety.judges.spec`. The datapath is not used."""
    return LinearJudge.load(argument or "", threshold=threshold)


class _Fit(NamedTuple):
    idf: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: float

    def p_unsafe(self, counts: Counts) -> NDArray[np.float64]:
        return sigmoid(weighted(counts, self.idf) @ self.weights.astype(np.float64) + self.bias)


def _counted(replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]) -> Counts:
    """The four blocks, and one mark: 1.0 for a human."""
    answered = [context[-1] if context else "" for context in contexts]
    blocks = [
        hashed_counts(replies, ngram_range=(1, 2), token_pattern=TOKEN),
        hashed_counts(replies, ngram_range=(2, 5), analyzer="char_wb"),
        hashed_counts(answered, ngram_range=(1, 2), token_pattern=TOKEN),
        hashed_counts(list(zip(answered, replies, strict=True)), analyzer=_crosses),
    ]
    return Counts(blocks, np.array([[float(speaker == "human")] for speaker in speakers]))


def _crosses(pair: tuple[str, str]) -> list[str]:
    """Each of the reply's first two words with each word of the turn that it answers, once each."""
    answered, reply = (_WORDS.findall(text.lower()) for text in pair)
    return [f"{first} | {word}" for first in dict.fromkeys(reply[:2]) for word in dict.fromkeys(answered)]


def _fit(counts: Counts, labels: NDArray[np.bool_], seed: int) -> _Fit:
    from sklearn.linear_model import LogisticRegression

    _check_labels(labels)
    # With far more columns than rows, dual coordinate descent reaches the same optimum as lbfgs in less time.
    model = LogisticRegression(
        C=INVERSE_REGULARISATION,
        class_weight="balanced",
        solver="liblinear",
        dual=True,
        max_iter=1000,
        random_state=seed,
    )
    idf = idf_of(counts)
    weights, bias = fitted(model, weighted(counts, idf), labels)
    return _Fit(idf, weights.astype(np.float32), bias)


def _check_labels(labels: NDArray[np.bool_]) -> None:
    if labels.all() or not labels.any():
        raise SafetyError(
            f"A judge was to be trained on {int(labels.sum())} unsafe and {int((~labels).sum())} safe examples",
            "It learns what tells the two apart, in every fold of the cross-validation",
            "Give examples of both labels, from several conversations each",
        )
