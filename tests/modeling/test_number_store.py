"""Numbers by keys, in a file and in memory."""

from __future__ import annotations

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.modeling import number_store
from parlai_safety.modeling.number_store import NumberStore


@pytest.mark.parametrize("in_file", (True, False))
def test_numbers_are_found_again(in_file, tmp_path, monkeypatch):
    """Also more of them than one statement takes; what is known stays as it is."""
    monkeypatch.setattr(number_store, "LOOKED_UP_AT_ONCE", 3)
    path = tmp_path / "deep" / "numbers.sqlite" if in_file else None
    store = NumberStore(path)
    numbers = {bytes([i]): i / 3 for i in range(8)}
    store.store(numbers)
    store.store({bytes([2]): 7.0, b"new": -1.5})
    store.store({})
    again = NumberStore(path) if in_file else store
    assert again.look_up([*numbers, b"new", b"unknown"]) == {**numbers, b"new": -1.5}
    assert again.look_up([]) == {}


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes").write_text("no database " * 100)
    with pytest.raises(SafetyError, match="cannot be used"):
        NumberStore(tmp_path / "notes")
    with pytest.raises(SafetyError, match="cannot be used"):
        NumberStore(tmp_path / "notes" / "below")
