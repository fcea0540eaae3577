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
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from parlai_safety.errors import SafetyError


@contextlib.contextmanager
def completed(path: str | Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing, UTF-8 text or binary, that appears under `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "newline": "\n"}
        with open(handle, "wb" if binary else "w", **text) as stream:
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
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    count += 1
                    yield _object(line, number, path)
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SafetyError(
            f"The file {str(path)!r} cannot be read to its end ({error})",
            "It must be UTF-8 text, whole, and compressed by gzip if its name ends in .gz",
            "Copy the file again, or save it as UTF-8",
        ) from error
    if not count:
        raise SafetyError(
            f"The file {str(path)!r} holds no rows",
            "There is nothing to learn from or to judge in an empty file",
            "Name a file with at least one JSON object a line",
        )


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of `read_jsonl`, each with its place for an error text, as in "Row 3 of 'talk.jsonl'"."""
    for number, row in enumerate(read_jsonl(path), 1):
        yield f"Row {number} of {str(path)!r}", row


def _object(line: str, number: int, path: Path) -> dict[str, Any]:
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
    # JSON can spell half of a character ("\\ud800"), which no file and no tokeniser can hold.
    if "\\u" in line and not _is_text(json.dumps(row, ensure_ascii=False)):
        raise SafetyError(
            f"Line {number} of {str(path)!r} holds a lone surrogate, which is half a character",
            "It cannot be written as UTF-8, and a tokeniser would stop at it",
            f"Remove the \\ud... escape from line {number} and run the command again",
        )
    return row


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def row_field(row: dict[str, Any], name: str, kind: type[Any], where: str) -> Any:
    """A field of a row, of the wanted type.

    Args:
        row: a JSON object.
        name: the field.
        kind: str, list, int, ...
        where: names the row for the error text, as in "Row 3 of 'talk.jsonl'".

    Raises:
        SafetyError: the field is absent or of another type.
    """
    value = row.get(name)
    if not isinstance(value, kind):
        found = f"no field {name!r}" if name not in row else f"a {type(value).__name__} as {name!r}"
        raise bad_row(where, found, f"{name!r} is a {kind.__name__}")
    return value


def row_turns(row: dict[str, Any], name: str, where: str, *, at_least: int = 0) -> list[str]:
    """A field that holds turns, a list of texts.

    Raises:
        SafetyError: it is no list of texts, or it has fewer turns than `at_least`.
    """
    turns = row_field(row, name, list, where)
    if not all(isinstance(turn, str) for turn in turns):
        raise bad_row(where, f"a turn in {name!r} that is not text", "every turn is a string")
    if len(turns) < at_least:
        raise bad_row(where, f"{len(turns)} turns in {name!r}", f"it holds at least {at_least}")
    return list(turns)


def bad_row(where: str, found: str, rule: str) -> SafetyError:
    """The error for a row that breaks a rule of its format."""
    return SafetyError(f"{where} has {found}", f"In this format {rule}", "Mend the row or leave it out, and try again")


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
