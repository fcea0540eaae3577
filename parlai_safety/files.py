"""Files that are whole or absent: every writer here completes a temporary name and then renames it.

Rename is atomic on one file system, so a reader never meets half a file and an interrupted writer leaves the old one.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from parlai_safety.errors import SafetyError


@contextlib.contextmanager
def completed(path: str | Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file for writing that appears under `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file atomically."""
    with completed(path) as stream:
        stream.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document atomically: two-space indent, keys in the order given, trailing newline.

    Raises:
        ValueError: a float is NaN or infinite, which JSON cannot say.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line atomically; returns the number of rows."""
    count = 0
    with completed(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, gzip or plain, in order.

    Raises:
        SafetyError: the file is missing, empty, or a line is not a JSON object (the line's number is named).
    """
    path = Path(path)
    if not path.is_file():
        raise SafetyError(
            f"There is no file {str(path)!r}",
            "Rows are read from a file of one JSON object a line",
            "Check the path, or make the file first",
        )
    opener = gzip.open if path.suffix == ".gz" else open
    count = 0
    with opener(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SafetyError(
                    f"Line {number} of {str(path)!r} is not JSON ({error.msg} at column {error.colno})",
                    "Every line must be one whole JSON object, and a broken line may hide lost data",
                    f"Mend or remove line {number} (sed -n {number}p shows it) and run the command again",
                ) from error
            if not isinstance(row, dict):
                raise SafetyError(
                    f"Line {number} of {str(path)!r} holds a JSON {type(row).__name__}",
                    "Every line must be one JSON object, with the field names of the format",
                    f"Write line {number} as {{...}} and run the command again",
                )
            count += 1
            yield row
    if not count:
        raise SafetyError(
            f"The file {str(path)!r} holds no rows",
            "There is nothing to learn from or to judge in an empty file",
            "Name a file with at least one JSON object a line",
        )


def sha256(path: str | Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
