"""A linear judge of one reply in its context: hashed n-grams, crosses of context and reply, logistic regression.

It trains in well under a minute on one core, fits in a file of about two megabytes, and is the baseline that larger
judges must beat. N-grams under a logistic regression are an old recipe; what is ours is the crosses. "Yes, exactly." is
unsafe after a hateful statement and safe after a kind one, and no sum of a context term and a reply term can say so.
Therefore each of the reply's first two words is crossed with each word of the turn that it answers.

Features: words 1-2-grams of the reply; characters 2-5-grams of the reply, within words; words 1-2-grams of the turn
that it answers; the crosses; and one column that is 1 for a human's reply. Each of the four blocks is hashed to 2**18
columns, weighted by log term frequency times inverse document frequency, and scaled to length 1.

Files hold arrays and a JSON header and are read without pickle, so a judge from elsewhere cannot run code. Left out:
turns before the last one, word vectors, and calibration (classes are weighted to equal shares, so p_unsafe ranks
replies and is not their frequency).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from parlai_safety.errors import SafetyError
from parlai_safety.files import completed
from parlai_safety.judges.data import Example, folds, is_ordinary
from parlai_safety.judges.quality import threshold_at_false_positive_rate as highest_ordinary_threshold
from parlai_safety.judges.quality import youden_threshold
from parlai_safety.judges.verdict import Speaker, Verdict, check_threshold, fingerprint_of, judged

FORMAT, VERSION = "parlai_safety linear judge", 1
BLOCKS, DIMENSION = 4, 2**18
FOLDS = 5
# Chosen on one half of the development data: AUC moves by less than 0.01 between 1 and 16.
INVERSE_REGULARISATION = 4.0
SCORED_AT_ONCE = 4096

_TOKEN = r"(?u)\w+(?:'\w+)*|[?!]"
_WORDS = re.compile(_TOKEN)


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
        digests = [hashlib.sha256(array.astype("<f4").tobytes()).hexdigest() for array in (self.idf, self.weights)]
        return fingerprint_of("linear", VERSION, format=FORMAT, arrays=digests, bias=self.bias)

    def score(
        self, replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]
    ) -> list[Verdict]:
        """Judge a batch by the replies, the last turns of their contexts and the speakers; see `Judge.score`."""
        return judged(replies, contexts, speakers, self._probabilities)

    def save(self, path: str | Path) -> None:
        """Write the judge to one file, which appears when it is complete.

        The file is a NumPy archive (.npz) of a JSON header and the arrays. The same judge gives the same bytes.
        """
        header = {
            "format": FORMAT,
            "version": VERSION,
            "threshold": self.threshold,
            "bias": self.bias,
            "facts": self.facts,
            "probe": self._probe(),
        }
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
        with completed(path) as stream:
            np.savez_compressed(
                cast(io.TextIOWrapper, stream).buffer,
                header=np.frombuffer(text.encode(), dtype=np.uint8),
                idf=self.idf,
                weights=self.weights,
            )
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
        header, idf, weights = _read(Path(path))
        judge = cls(
            idf,
            weights,
            float(header["bias"]),
            float(header["threshold"] if threshold is None else threshold),
            dict(header["facts"]),
            str(path),
        )
        probe = judge._probe()
        if abs(probe - header["probe"]) > 1e-6:
            raise SafetyError(
                f"The judge {str(path)!r} scores its test sentence {probe:.6f} here, and {header['probe']:.6f} "
                "where it was saved",
                "This version of scikit-learn hashes text differently, so every score would be wrong",
                "Install the scikit-learn that wrote the file, or train the judge again",
            )
        return judge

    def _probabilities(self, replies: list[str], contexts: list[list[str]], speakers: list[Speaker]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(replies), SCORED_AT_ONCE):
            rows = slice(start, start + SCORED_AT_ONCE)
            features = _weighted(_counted(replies[rows], contexts[rows], speakers[rows]), self.idf)
            values.extend(_sigmoid(features @ self.weights.astype(np.float64) + self.bias).tolist())
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


class _Counts(NamedTuple):
    """Raw counts: one sparse matrix (B, 2**18) a block, and the speaker column (B,), 1.0 for a human."""

    blocks: list[Any]
    human: NDArray[np.float64]

    def rows(self, chosen: NDArray[np.bool_]) -> _Counts:
        return _Counts([block[chosen] for block in self.blocks], self.human[chosen])


class _Fit(NamedTuple):
    idf: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: float

    def p_unsafe(self, counts: _Counts) -> NDArray[np.float64]:
        return _sigmoid(_weighted(counts, self.idf) @ self.weights.astype(np.float64) + self.bias)


def _counted(replies: Sequence[str], contexts: Sequence[Sequence[str]], speakers: Sequence[Speaker]) -> _Counts:
    from sklearn.feature_extraction.text import HashingVectorizer

    def count(texts: Sequence[Any], **how: Any) -> Any:
        # No vocabulary to store: columns are hashes, and counts stay plain because signs would break the log.
        return HashingVectorizer(n_features=DIMENSION, alternate_sign=False, norm=None, **how).transform(texts)

    answered = [context[-1] if context else "" for context in contexts]
    blocks = [
        count(replies, ngram_range=(1, 2), token_pattern=_TOKEN),
        count(replies, ngram_range=(2, 5), analyzer="char_wb"),
        count(answered, ngram_range=(1, 2), token_pattern=_TOKEN),
        count(list(zip(answered, replies, strict=True)), analyzer=_crosses),
    ]
    return _Counts(blocks, np.array([float(speaker == "human") for speaker in speakers]))


def _crosses(pair: tuple[str, str]) -> list[str]:
    """Each of the reply's first two words with each word of the turn that it answers, once each."""
    answered, reply = (_WORDS.findall(text.lower()) for text in pair)
    return [f"{first} | {word}" for first in dict.fromkeys(reply[:2]) for word in dict.fromkeys(answered)]


def _weighted(counts: _Counts, idf: NDArray[np.float32]) -> Any:
    """The feature matrix, shape (B, 4 * 2**18 + 1), float64 sparse."""
    from scipy import sparse

    columns = []
    for block, block_idf in zip(counts.blocks, idf, strict=True):
        values = block.copy()
        values.data = (1.0 + np.log(values.data)) * block_idf[values.indices]
        length = np.sqrt(np.asarray(values.multiply(values).sum(axis=1)).ravel())
        length[length == 0.0] = 1.0
        columns.append(sparse.diags(1.0 / length) @ values)
    return sparse.hstack([*columns, sparse.csr_matrix(counts.human[:, None])]).tocsr()


def _fit(counts: _Counts, labels: NDArray[np.bool_], seed: int) -> _Fit:
    from sklearn.linear_model import LogisticRegression

    _check_labels(labels)
    frequencies = np.stack([np.bincount(block.indices, minlength=DIMENSION) for block in counts.blocks])
    idf = (np.log((1.0 + len(labels)) / (1.0 + frequencies)) + 1.0).astype(np.float32)
    # With far more columns than rows, dual coordinate descent reaches the same optimum as lbfgs in less time.
    model = LogisticRegression(
        C=INVERSE_REGULARISATION,
        class_weight="balanced",
        solver="liblinear",
        dual=True,
        max_iter=1000,
        random_state=seed,
    )
    features = _weighted(counts, idf)
    # A column that no example fills keeps the weight 0, so only the others are fitted.
    filled = np.unique(features.indices)
    model.fit(features[:, filled], labels)
    weights = np.zeros(features.shape[1], dtype=np.float32)
    weights[filled] = model.coef_[0]
    return _Fit(idf, weights, float(model.intercept_[0]))


def _check_labels(labels: NDArray[np.bool_]) -> None:
    if labels.all() or not labels.any():
        raise SafetyError(
            f"A judge was to be trained on {int(labels.sum())} unsafe and {int((~labels).sum())} safe examples",
            "It learns what tells the two apart, in every fold of the cross-validation",
            "Give examples of both labels, from several conversations each",
        )


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    return cast("NDArray[np.float64]", expit(logits))


def _read(path: Path) -> tuple[dict[str, Any], NDArray[np.float32], NDArray[np.float32]]:
    if not path.is_file():
        raise SafetyError(
            f"There is no file {str(path)!r}",
            "A linear judge is read from the file that train_linear(...).save(...) wrote",
            "Check the path, or train a judge first",
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"its header says {header['format']!r}")
            if header["version"] != VERSION:
                raise SafetyError(
                    f"The judge {str(path)!r} has format version {header['version']}",
                    f"This version of parlai_safety reads version {VERSION}",
                    "Train the judge again, or install the version that wrote it",
                )
            idf, weights = archive["idf"], archive["weights"]
        if idf.shape != (BLOCKS, DIMENSION) or weights.shape != (BLOCKS * DIMENSION + 1,):
            raise ValueError(f"its arrays have the shapes {idf.shape} and {weights.shape}")
        if not (np.isfinite(idf).all() and np.isfinite(weights).all()):
            raise ValueError("its arrays hold values that are not finite")
        for name in ("bias", "threshold", "probe"):
            float(header[name])
        dict(header["facts"])
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise SafetyError(
            f"The file {str(path)!r} is not a whole linear judge ({error})",
            "It is truncated, damaged, or something else",
            "Name a file that train_linear(...).save(...) wrote, or train the judge again",
        ) from error
    return header, idf, weights
