"""The control token in tensors: behind prompts, out of texts and ids, and the row that it begins with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlai_safety.modeling.control import add_row, append_token, first_row, token_tensors, without_id, without_token
from parlai_safety.modeling.hf import add_special_token, load_lm, read_source
from tests.tiny_causal import tiny_causal

NULL, TOKEN = 0, 9


@given(
    st.lists(st.lists(st.integers(0, 8), max_size=6).filter(lambda row: row[-1:] != [NULL]), min_size=1, max_size=4),
    st.integers(1, 8) | st.none(),
)
def test_each_row_ends_with_the_token(rows, limit):
    width = max(map(len, rows)) + 1  # a column of padding alone, as fp16 has it
    prompts = torch.tensor([row + [NULL] * (width - len(row)) for row in rows])
    given_prompts = prompts.clone()
    found = append_token(prompts, TOKEN, NULL, limit=limit)
    expected = [([*row, TOKEN] if limit is None else [*row, TOKEN][-limit:]) for row in rows]
    longest = max(map(len, expected))
    assert found.tolist() == [row + [NULL] * (longest - len(row)) for row in expected]
    assert torch.equal(prompts, given_prompts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello  there ", "hello  there "),
        ("hello [TOXIC]", "hello"),
        ("one\n[TOXIC] two  three [TOXIC]\nfour  five", "one\ntwo  three\nfour  five"),
        ("[TOXIC] [TOXIC] a [TOXIC][TOXIC] b[TOXIC]c", "a b c"),
        ("Hello  there. [TOXIC]", "Hello  there."),
        ("[TO[TOXIC]XIC] you", "[TO XIC] you"),
        ("[toxic]", "[toxic]"),
    ],
)
def test_a_text_without_the_name(text, expected):
    assert without_token(text) == expected


@given(st.lists(st.sampled_from(["[TOXIC]", "[TO", "XIC]", "[", "]", " ", "\n", "a"])).map("".join))
def test_no_text_holds_the_name_afterwards(text):
    found = without_token(text)
    assert "[TOXIC]" not in found and found.count("\n") == text.count("\n")
    assert without_token(found) == found == without_token(f"{found} [TOXIC]")


def test_ids_keep_their_kind():
    assert without_id([1, 9, 2, 9], 9) == [1, 2]
    found = without_id(torch.tensor([1, 9, 2, 9]), 9)
    assert torch.equal(found, torch.tensor([1, 2])) and found.dtype == torch.int64


def test_the_first_row_worked_by_hand():
    """Rows (3, 0) and (0, 4): the mean is (1.5, 2) of length 2.5, and their mean length is 3.5."""
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(first_row(rows), torch.tensor([1.5, 2.0], dtype=torch.float64) * 3.5 / 2.5)
    assert first_row(torch.tensor([1.0, 4.0])) == 2.5
    assert torch.equal(first_row(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), torch.zeros(2))
    assert first_row(rows.bfloat16()).dtype == torch.bfloat16
    assert math.isclose(float(first_row(rows).norm()), 3.5)


@pytest.mark.parametrize(("kind", "unused"), [("llama", 0), ("qwen2", 0), ("llama", 3)])
def test_a_model_of_transformers_gets_the_row(kind, unused, tmp_path):
    """With its own output layer, with a shared one, and with a row that no token uses."""
    sizes = {"vocab_size": 400 + unused} if unused else {}
    tokenizer, config = read_source(str(tiny_causal(tmp_path / kind, kind, **sizes)))
    lm = load_lm(str(tmp_path / kind), config, dtype=torch.float32)
    token = add_special_token(tokenizer, "[TOXIC]")
    assert token == len(tokenizer) - 1 == add_special_token(tokenizer, "[TOXIC]")
    before = [tensor.clone() for tensor in token_tensors(lm)]
    state = torch.get_rng_state()
    add_row(lm, token)
    assert torch.equal(torch.get_rng_state(), state)
    after = token_tensors(lm)
    assert len(after) == len(before) == 2
    assert (after[0] is after[1]) == (kind == "qwen2")
    for old, new in zip(before, after, strict=True):
        assert len(new) == max(len(old), token + 1)
        assert torch.equal(new[:token], old[:token]) and torch.equal(new[token + 1 :], old[token + 1 :])
        torch.testing.assert_close(new[token], first_row(old[:token]))
        assert new.requires_grad and new.is_leaf
    assert lm.config.vocab_size == len(after[0])
    assert lm(input_ids=torch.tensor([[1, token]])).logits.size(-1) == len(after[0])
