"""Hashed n-grams as features: what the linear judge, the toxicity scorer and the coherence scorer have in common.

Texts are counted without a vocabulary, since a column is a hash (Weinberger et al. 2009, arXiv:0902.2206); counts are
weighted by log term frequency times inverse document frequency and scaled to length 1. scikit-learn and SciPy are
imported at the first call. Left out: which n-grams of which text are counted, which each scorer says itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

DIMENSION = 2**18
SCORED_AT_ONCE = 4096
# Words with their inner apostrophes, and the two marks that change what a sentence does.
TOKEN = r"(?u)\w+(?:'\w+)*|[?!]"

_Floating = TypeVar("_Floating", np.float32, np.float64)


class Counts(NamedTuple):
    """What N texts hold.

    Attributes:
        blocks: raw counts, one sparse matrix (N, 2**18) a block.
        marks: further columns that are neither weighted nor scaled, shape (N, M), float64.
    """

    blocks: list[Any]
    marks: NDArray[np.float64]

    def rows(self, chosen: NDArray[np.bool_]) -> Counts:
        """The chosen ones of the N texts."""
        return Counts([block[chosen] for block in self.blocks], self.marks[chosen])


class Fitted(NamedTuple):
    """A fitted linear model: one weight a column, shape (columns,), float64, and the intercept."""

    weights: NDArray[np.float64]
    bias: float


def hashed_counts(texts: Sequence[Any], *, columns: int = DIMENSION, **how: Any) -> Any:
    """Raw counts of hashed n-grams.

    Args:
        texts: N texts, or what the `analyzer` takes.
        columns: of the result; n-grams that share a column are counted together.
        how: which n-grams, as scikit-learn's `HashingVectorizer` takes it.

    Returns:
        Sparse, shape (N, columns), float64 unless `how` names another dtype.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    # Counts stay plain: with signs, the logarithm would break.
    return HashingVectorizer(n_features=columns, alternate_sign=False, norm=None, **how).transform(texts)


def idf_of(counts: Counts) -> NDArray[np.float32]:
    """Inverse document frequencies, shape (blocks, 2**18): log((1 + N) / (1 + n)) + 1 for a column in n of N texts."""
    frequencies = np.stack([np.bincount(block.indices, minlength=DIMENSION) for block in counts.blocks])
    return cast("NDArray[np.float32]", (np.log((1.0 + len(counts.marks)) / (1.0 + frequencies)) + 1.0).astype("f4"))


def unit_rows(counts: Any, idf: NDArray[np.float32]) -> Any:
    """Counts (N, columns) weighted by (1 + log count) * idf, each row scaled to length 1.

    A column whose idf is 0 is dropped, and a row with no other column stays empty. The dtype is that of the counts.
    """
    from scipy import sparse

    rows = counts.copy()
    rows.data = ((1.0 + np.log(rows.data)) * idf[rows.indices]).astype(counts.dtype)
    rows.eliminate_zeros()
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    length[length == 0.0] = 1.0
    return sparse.csr_matrix(sparse.diags((1.0 / length).astype(counts.dtype)) @ rows)


def weighted(counts: Counts, idf: NDArray[np.float32]) -> Any:
    """The feature matrix, shape (N, blocks * 2**18 + M), float64 sparse: the blocks as `unit_rows`, then the marks."""
    from scipy import sparse

    blocks = [unit_rows(block, block_idf) for block, block_idf in zip(counts.blocks, idf, strict=True)]
    return sparse.hstack([*blocks, sparse.csr_matrix(counts.marks)]).tocsr()


def fitted(model: Any, features: Any, targets: NDArray[Any]) -> Fitted:
    """Fit a linear model of scikit-learn to sparse features (N, columns) and N targets."""
    # A column that no text fills keeps the weight 0, so only the others are fitted.
    filled = np.unique(features.indices)
    model.fit(features[:, filled], targets)
    weights = np.zeros(features.shape[1])
    weights[filled] = np.ravel(model.coef_)
    return Fitted(weights, float(np.ravel(model.intercept_)[0]))


def sigmoid(logits: NDArray[_Floating]) -> NDArray[_Floating]:
    """1 / (1 + exp(-x)), of any shape, without overflow."""
    from scipy.special import expit

    return cast("NDArray[_Floating]", expit(logits))
