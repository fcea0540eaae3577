"""Numbers that are found again by a key: SQLite of the standard library, or memory alone.

Left out: eviction, and what the keys were made of.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from parlai_safety.errors import SafetyError

# What SQLite of every supported Python takes as the parameters of one statement.
LOOKED_UP_AT_ONCE = 900
WAIT_SECONDS = 60.0


class NumberStore:
    """Numbers by keys; several processes may share the file, as a transaction is short and the others wait for it.

    Args:
        path: the file, which is made where there is none; None keeps the numbers in memory.
        table: name of the table within the file, an identifier of SQL.
        column: name of the column of numbers in it, likewise.

    Raises:
        SafetyError: the file is damaged, is another kind of file, or cannot be written.
    """

    def __init__(self, path: str | Path | None, *, table: str = "numbers_1", column: str = "number") -> None:
        self.path = None if path is None else Path(path)
        self._table, self._column = table, column
        self._memory: dict[bytes, float] = {}
        if self.path is not None:
            with self._open(self.path) as connection:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, {column} REAL NOT NULL) WITHOUT ROWID"
                )

    def look_up(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """The numbers that are known.

        Raises:
            SafetyError: the file is damaged.
        """
        if self.path is None:
            return {key: self._memory[key] for key in keys if key in self._memory}
        known: dict[bytes, float] = {}
        with self._open(self.path) as connection:
            for start in range(0, len(keys), LOOKED_UP_AT_ONCE):
                some = keys[start : start + LOOKED_UP_AT_ONCE]
                places = ",".join("?" * len(some))
                query = f"SELECT key, {self._column} FROM {self._table} WHERE key IN ({places})"
                known.update(connection.execute(query, some).fetchall())
        return known

    def store(self, numbers: Mapping[bytes, float]) -> None:
        """Keep numbers; one that is known already stays as it is.

        Raises:
            SafetyError: the file cannot be written.
        """
        if self.path is None:
            for key, number in numbers.items():
                self._memory.setdefault(key, number)
        elif numbers:
            with self._open(self.path) as connection:
                # Another process may have stored the same number meanwhile.
                connection.executemany(f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)", numbers.items())

    @staticmethod
    @contextlib.contextmanager
    def _open(path: Path) -> Iterator[sqlite3.Connection]:
        """One transaction. A connection of its own for each works in any thread and after a fork."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as connection, connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise SafetyError(
                f"The file {str(path)!r} cannot be used ({error})",
                "It is damaged, is another kind of file, or lies where it cannot be written",
                "Name another file, or delete this one: the numbers in it are then computed again",
            ) from error
