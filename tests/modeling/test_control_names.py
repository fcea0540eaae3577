"""Several control tokens in tensors: behind prompts, out of texts, and a row for each name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.modeling.control import append_tokens, first_row, named_row, with_rows, without_tokens

NULL = 0
ROWS = st.lists(st.integers(1, 8), max_size=6)


@given(st.lists(st.tuples(ROWS, st.lists(st.integers(10, 12), max_size=3)), min_size=1, max_size=4), st.integers(0, 8))
def test_each_row_ends_with_its_own_tokens(pairs, limit):
    limit = limit or None
    width, most = (max(len(pair[i]) for pair in pairs) + 1 for i in (0, 1))
    prompts = torch.tensor([row + [NULL] * (width - len(row)) for row, _ in pairs])
    tokens = torch.tensor([own + [NULL] * (most - len(own)) for _, own in pairs])
    found = append_tokens(prompts, tokens, NULL, limit=limit)
    expected = [(row + own)[-limit:] if limit else row + own for row, own in pairs]
    longest = max(map(len, expected))
    assert found.tolist() == [row + [NULL] * (longest - len(row)) for row in expected]


NAMES = ("[SAFE]", "[UNSAFE]", "[F0M0]")


@given(st.lists(st.sampled_from([*NAMES, "[SA", "FE]", "[UN", "[", "]", " ", "\n", "a"])).map("".join))
def test_no_text_holds_a_name_afterwards(text):
    found = without_tokens(text, NAMES)
    assert not any(name in found for name in NAMES) and found.count("\n") == text.count("\n")
    assert without_tokens(found, NAMES) == found == without_tokens(f"{found} [F0M0] [SAFE]", NAMES)
    assert without_tokens(text, ()) == text


def reference_row(rows: np.ndarray, name: str) -> np.ndarray:
    """The definition in numpy: mean plus or minus a standard deviation by the bits of SHAKE-256, at the mean length."""
    import hashlib

    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(-(-rows.shape[1] // 8)), dtype=np.uint8)
    bits = np.unpackbits(drawn, bitorder="little")[: rows.shape[1]]
    row = rows.mean(0) + np.where(bits == 1, 1, -1) * rows.std(0)
    return row / np.linalg.norm(row) * np.linalg.norm(rows, axis=1).mean()


def test_a_row_is_told_by_its_name():
    rows = torch.randn(50, 21, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
    state = torch.get_rng_state()
    found = {name: named_row(rows, name) for name in NAMES}
    assert torch.equal(torch.get_rng_state(), state)
    for name, row in found.items():
        np.testing.assert_allclose(row.numpy(), reference_row(rows.numpy(), name), rtol=1e-10)
    # Two names differ by as much as two tokens do, which frozen embeddings need.
    apart = (found["[SAFE]"] - found["[UNSAFE]"]).norm()
    assert apart > 0.5 * (rows[0] - rows[1]).norm()
    bias = torch.tensor([1.0, 4.0])
    assert named_row(bias, "[SAFE]") == first_row(bias) == 2.5
    assert named_row(rows.bfloat16(), "[SAFE]").dtype == torch.bfloat16
    assert torch.equal(named_row(torch.zeros(3, 4), "[SAFE]"), torch.zeros(4))


class Model(torch.nn.Module):
    """As much of a generator of ParlAI as is looked at."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embeddings = torch.nn.Embedding(rows, 4)
        self.other = torch.nn.Linear(4, 2)


@pytest.mark.parametrize("spare", [0, 2])
def test_new_rows_stand_behind_those_of_the_checkpoint(spare):
    """With the toxic token among them, and with rows that ParlAI adds for fp16."""
    state, model = Model(6).state_dict(), Model(9 + spare)
    old = state["embeddings.weight"].clone()
    grown = with_rows(state, model, {6: "[SAFE]", 7: "[TOXIC]", 8: "[F0M0]"})
    found = grown["embeddings.weight"]
    assert found.shape == (9 + spare, 4) and torch.equal(found[:6], old)
    assert torch.equal(state["embeddings.weight"], old) and grown["other.bias"] is state["other.bias"]
    for id_, name in {6: "[SAFE]", 8: "[F0M0]"}.items():
        torch.testing.assert_close(found[id_], named_row(old, name))
    for id_ in (7, *range(9, 9 + spare)):
        torch.testing.assert_close(found[id_], first_row(old))
