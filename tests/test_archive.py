"""Archives of trained objects: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parlai_safety.archive import ArchiveFormat, Stored, array_digest
from parlai_safety.errors import SafetyError

PEBBLE = ArchiveFormat(
    "parlai_safety toy pebble",
    3,
    "parlai safety_pebbles --out FILE",
    {"bias": float, "facts": dict},
    {"weights": (4,), "table": (None, 2)},
    tolerance=1e-3,
)


def pebble(**changed: Any) -> SimpleNamespace:
    parts = {
        "bias": 0.1 + 0.2,
        "facts": {"name": "grey, naïve", "seed": 1},
        "weights": np.array([1.5, -2.0, 0.0, 3.25], dtype=np.float32),
        "table": np.arange(6, dtype=np.float16).reshape(3, 2),
    }
    return SimpleNamespace(**(parts | changed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "pebble.npz"
    PEBBLE.write(path, pebble(), probe=0.25)
    return path


def rewritten(path: Path, header: dict[str, Any] | None = None, **arrays: Any) -> Path:
    """Change fields of the header and arrays; a field of None is taken away."""
    with np.load(path) as archive:
        found = dict(archive)
    changed = json.loads(found.pop("header").tobytes()) | (header or {})
    text = json.dumps({name: value for name, value in changed.items() if value is not None})
    np.savez_compressed(path, header=np.frombuffer(text.encode(), dtype=np.uint8), **(found | arrays))
    return path


def test_what_was_written_is_read_to_the_last_bit(path: Path) -> None:
    found, expected = PEBBLE.read(path), pebble()
    assert list(found.parts) == ["bias", "facts", "weights", "table"] and found.probe == 0.25
    assert (found.parts["bias"], found.parts["facts"]) == (expected.bias, expected.facts)
    for name in ("weights", "table"):
        array = getattr(expected, name)
        assert found.parts[name].dtype == array.dtype and np.array_equal(found.parts[name], array)


def test_equal_objects_give_equal_bytes_and_leave_nothing_beside(path: Path) -> None:
    PEBBLE.write(path.parent / "again.npz", pebble(), probe=0.25)
    assert (path.parent / "again.npz").read_bytes() == path.read_bytes()
    PEBBLE.write(path.parent / "other.npz", pebble(bias=0.5), probe=0.25)
    assert (path.parent / "other.npz").read_bytes() != path.read_bytes()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        PEBBLE.write(path, pebble(bias=float("nan")), probe=0.25)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["again.npz", "other.npz", "pebble.npz"]


def test_the_header_stands_first_and_names_the_format(path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["header", "weights", "table"]
        header = json.loads(archive["header"].tobytes())
    assert list(header) == ["format", "version", "bias", "facts", "probe"]
    assert (header["format"], header["version"]) == ("parlai_safety toy pebble", 3)


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        ({"format": "another"}, {}, "whole toy pebble .*says 'another'"),
        ({"format": None}, {}, "whole toy pebble .*'format'"),
        ({"version": 4}, {}, "toy pebble .* version 4. .*reads version 3. Install the version"),
        ({"bias": None}, {}, "whole toy pebble .*'bias'"),
        ({"bias": "much"}, {}, "whole toy pebble .*much"),
        ({"bias": 10**400}, {}, "whole toy pebble"),
        ({"bias": float("inf")}, {}, "whole toy pebble .*bias is inf"),
        ({"probe": float("nan")}, {}, "whole toy pebble .*probe is nan"),
        ({"facts": 7}, {}, "whole toy pebble"),
        ({}, {"weights": np.zeros(5)}, r"whole toy pebble .*'weights' has the shape \(5,\)"),
        ({}, {"table": np.zeros((3, 3))}, r"whole toy pebble .*'table' has the shape \(3, 3\)"),
        ({}, {"table": np.zeros(2)}, r"whole toy pebble .*'table' has the shape \(2,\)"),
        ({}, {"weights": np.array([0, 1, np.nan, 2])}, "whole toy pebble .*'weights' holds values that are not"),
        ({}, {"weights": np.array(list("abcd"))}, "whole toy pebble"),
        ({}, {"header": np.zeros(3)}, "whole toy pebble"),
        ({}, {"weights": np.array([{}] * 4, dtype=object)}, "whole toy pebble .*allow_pickle=False"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, header: dict[str, Any], arrays: dict[str, Any], message: str) -> None:
    if "header" in arrays:
        np.savez(path, **arrays)
    else:
        rewritten(path, header, **arrays)
    with pytest.raises(SafetyError, match=message) as caught:
        PEBBLE.read(path)
    assert str(path) in str(caught.value) and PEBBLE.command in str(caught.value)


def test_a_length_that_is_free_is_free(path: Path) -> None:
    assert len(PEBBLE.read(rewritten(path, table=np.zeros((9, 2)))).parts["table"]) == 9


def test_no_pickle_is_ever_opened(path: Path) -> None:
    """An object that would write a file when it is unpickled; so would a plain pickle under the same name."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (path.with_suffix(".sprung").write_text, ("here",))

    np.savez(path, header=np.array([Trap()], dtype=object), weights=0, table=0)
    with pytest.raises(SafetyError, match="whole toy pebble"):
        PEBBLE.read(path)
    np.array([Trap()], dtype=object).dump(path)
    with pytest.raises(SafetyError, match="whole toy pebble"):
        PEBBLE.read(path)
    assert not path.with_suffix(".sprung").exists()


def test_a_missing_file_and_one_cut_short_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for length in {*range(0, len(data), 37), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(SafetyError, match="whole toy pebble"):
            PEBBLE.read(path)
    path.unlink()
    with pytest.raises(SafetyError, match="no file .*Check the path, or train one: parlai safety_pebbles"):
        PEBBLE.read(path)


def test_a_flipped_byte_is_refused_or_changes_nothing(path: Path) -> None:
    """Whatever byte is damaged, the values are the old ones or the error is ours."""
    data, expected = path.read_bytes(), pebble()
    generator, refused = random.Random(1), 0
    for place in generator.sample(range(len(data)), 400):
        path.write_bytes(data[:place] + bytes([data[place] ^ generator.randrange(1, 256)]) + data[place + 1 :])
        try:
            found = PEBBLE.read(path)
        except SafetyError:
            refused += 1
            continue
        assert (found.parts["bias"], found.parts["facts"]) == (expected.bias, expected.facts)
        assert np.array_equal(found.parts["weights"], expected.weights)
        assert np.array_equal(found.parts["table"], expected.table)
    assert refused > 200


def test_the_probe_may_differ_by_the_tolerance_and_no_more(path: Path) -> None:
    stored = PEBBLE.read(path)
    PEBBLE.check_probe(path, stored, 0.2509)
    PEBBLE.check_probe(path, stored, 0.2491)
    for here in (0.2512, 0.2488, float("nan")):
        with pytest.raises(SafetyError, match="toy pebble .*hashes text differently.*safety_pebbles"):
            PEBBLE.check_probe(path, stored, here)
    with pytest.raises(SafetyError, match="scores its test sentence 0.900000 here, and 0.250000 where"):
        PEBBLE.check_probe(path, Stored({}, 0.25), 0.9)


def test_a_digest_is_of_the_values_and_not_of_their_layout() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    by_hand = hashlib.sha256(b"".join(np.float32(i / np.float32(7)).tobytes() for i in range(6))).hexdigest()
    if np.little_endian:
        assert array_digest(array) == by_hand
    assert array_digest(array) == array_digest(array.astype(">f4")) == array_digest(np.asfortranarray(array))
    assert array_digest(array) != array_digest(array.astype(np.float64)) != array_digest(array[::-1])
