from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse

from parlai_safety.judges.features import (
    DIMENSION,
    TOKEN,
    Counts,
    fitted,
    hashed_counts,
    idf_of,
    sigmoid,
    unit_rows,
    weighted,
)


def test_counts_are_plain_and_say_what_the_tokens_are() -> None:
    """Five distinct words and marks: i, don't, know twice, ?, !."""
    counts = hashed_counts(["I don't know, know?!", ""], token_pattern=TOKEN)
    assert counts.shape == (2, DIMENSION) and counts.dtype == np.float64
    assert sorted(counts[0].data.tolist()) == [1.0, 1.0, 1.0, 1.0, 2.0] and counts[1].nnz == 0
    small = hashed_counts(["a b c"] * 3, columns=2, dtype=np.float32, analyzer=str.split)
    assert small.shape == (3, 2) and small.dtype == np.float32 and small.sum() == 9


def test_idf_by_hand() -> None:
    """Of three texts, a column is in all, one in one, the rest in none: log(4/4) + 1, log(4/2) + 1, log(4/1) + 1."""
    block = sparse.csr_matrix(([1.0, 5.0, 1.0, 2.0], ([0, 1, 2, 2], [7, 7, 7, 9])), shape=(3, DIMENSION))
    idf = idf_of(Counts([block, block], np.zeros((3, 1))))
    assert idf.shape == (2, DIMENSION) and idf.dtype == np.float32
    assert idf[0, [7, 9, 8]].tolist() == pytest.approx([1.0, 1 + math.log(2), 1 + math.log(4)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_rows_by_hand(dtype: type[np.floating]) -> None:
    """Row 1: (1 + log 1) * 3 = 3 and (1 + log e) * 2 = 4, of length 5; row 2 holds a dropped column alone."""
    counts = sparse.csr_matrix(np.array([[1.0, math.e, 6.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=dtype))
    rows = unit_rows(counts, np.array([3.0, 2.0, 0.0], dtype=np.float32))
    assert rows.dtype == dtype and rows.nnz == 2
    assert rows.toarray() == pytest.approx(np.array([[0.6, 0.8, 0.0], [0.0] * 3, [0.0] * 3]), abs=1e-6)
    assert counts.toarray()[0, 2] == 6.0, "the counts are left as they were"


def test_blocks_are_scaled_apart_and_marks_are_left_alone() -> None:
    block = sparse.csr_matrix(([1.0, 1.0], ([0, 1], [2, 2])), shape=(2, DIMENSION))
    counts = Counts([block, block], np.array([[0.0, 5.0], [7.0, 0.0]]))
    features = weighted(counts, np.ones((2, DIMENSION), dtype=np.float32))
    assert features.shape == (2, 2 * DIMENSION + 2)
    assert features[0].indices.tolist() == [2, DIMENSION + 2, 2 * DIMENSION + 1]
    assert features[0].data.tolist() == [1.0, 1.0, 5.0] and features[1].data.tolist() == [1.0, 1.0, 7.0]
    second = counts.rows(np.array([False, True]))
    assert second.marks.tolist() == [[7.0, 0.0]] and second.blocks[0].shape == (1, DIMENSION)


def test_only_filled_columns_get_a_weight() -> None:
    """y = 2 x + 1 in column 3 of 6; the same for a model whose coefficients stand in a table of one row."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    features = sparse.csr_matrix(([1.0, 2.0, 3.0], ([0, 1, 2], [3, 3, 3])), shape=(3, 6))
    found = fitted(LinearRegression(), features, np.array([3.0, 5.0, 7.0]))
    assert found.weights == pytest.approx(np.array([0, 0, 0, 2.0, 0, 0])) and found.bias == pytest.approx(1.0)
    found = fitted(LogisticRegression(), features, np.array([False, True, True]))
    assert found.weights.shape == (6,) and np.flatnonzero(found.weights).tolist() == [3]


def test_sigmoid() -> None:
    assert sigmoid(np.array([0.0, math.log(3), -1000.0, 1000.0])).tolist() == pytest.approx([0.5, 0.75, 0.0, 1.0])
