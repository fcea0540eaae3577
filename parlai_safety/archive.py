"""Files of what was trained here: a JSON header and named arrays in one NumPy archive, which no code can hide in.

A pickle runs code when it is read, so none is read or written. The same object gives the same bytes. The header names
the format and its version, and keeps a probe: the score that the object gave to a fixed text when it was saved. Where
another score comes out after loading, the text is hashed differently here, and every score would be wrong. Left out:
what the arrays mean, and tensors of neural models, for which safetensors exists.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from parlai_safety.errors import SafetyError
from parlai_safety.files import completed


class Stored(NamedTuple):
    """What an archive holds.

    Attributes:
        parts: name -> what the format's fields and shapes name: finite numbers as float, objects as dict, and arrays,
            finite and of the wanted shape.
        probe: the score of the fixed text where the archive was written.
    """

    parts: dict[str, Any]
    probe: float


@dataclass(frozen=True)
class ArchiveFormat:
    """A kind of archive, and how to speak of it.

    Attributes:
        name: what the header calls it, "parlai_safety" and a noun of two words: "parlai_safety linear judge".
        version: of the format.
        command: the command that makes such a file, for the errors.
        fields: names of the header's fields in their order -> float or dict.
        shapes: names of the arrays in their order -> shape, with None for a length that is free.
        tolerance: by how much the probe's score, a probability, may differ.
    """

    name: str
    version: int
    command: str
    fields: Mapping[str, type[float] | type[dict[str, Any]]]
    shapes: Mapping[str, tuple[int | None, ...]]
    tolerance: float = 1e-6

    @property
    def noun(self) -> str:
        """The name without the package: "linear judge"."""
        return self.name.partition(" ")[2]

    def write(self, path: str | Path, trained: object, *, probe: float) -> None:
        """Write an object, whose attributes are the fields and the arrays, to a file that appears when it is whole.

        Raises:
            ValueError: a number in the header is not finite.
        """
        header = {
            "format": self.name,
            "version": self.version,
            **{name: getattr(trained, name) for name in self.fields},
            "probe": probe,
        }
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
        arrays = {name: getattr(trained, name) for name in self.shapes}
        with completed(path) as stream:
            np.savez_compressed(
                cast(io.TextIOWrapper, stream).buffer, header=np.frombuffer(text.encode(), dtype=np.uint8), **arrays
            )

    def read(self, path: str | Path) -> Stored:
        """Read what `write` wrote. Compare the probe after that, with `check_probe`.

        Raises:
            SafetyError: the file is missing, damaged or something else, or its version is another.
        """
        path = Path(path)
        if not path.is_file():
            raise SafetyError(
                f"There is no file {str(path)!r}",
                f"A {self.noun} is read from the file that a training wrote",
                f"Check the path, or train one: {self.command}",
            )
        try:
            return self._stored(path)
        except SafetyError:
            raise
        # Bytes from anywhere make the readers of zip, zlib, JSON and NumPy raise errors of many kinds.
        except Exception as error:
            raise self.damaged(path, error) from error

    def damaged(self, path: str | Path, reason: object) -> SafetyError:
        """The error for a file that is not whole, for a check that only the caller can make."""
        return SafetyError(
            f"The file {str(path)!r} is not a whole {self.noun} ({reason})",
            "It is truncated, damaged, or something else",
            f"Name another file, or delete this one and train again: {self.command}",
        )

    def check_probe(self, path: str | Path, stored: Stored, here: float) -> None:
        """Compare the score of the fixed text here with the stored one.

        Raises:
            SafetyError: they differ by more than the tolerance.
        """
        if not abs(here - stored.probe) <= self.tolerance:
            raise SafetyError(
                f"The {self.noun} {str(path)!r} scores its test sentence {here:.6f} here, and {stored.probe:.6f} "
                "where it was saved",
                "This version of scikit-learn hashes text differently, so every score would be wrong",
                "Install the scikit-learn that wrote the file, or delete the file and train again: " + self.command,
            )

    def _stored(self, path: Path) -> Stored:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            if header["format"] != self.name:
                raise ValueError(f"its header says {header['format']!r}")
            if header["version"] != self.version:
                raise SafetyError(
                    f"The {self.noun} {str(path)!r} has format version {header['version']}",
                    f"This version of parlai_safety reads version {self.version}",
                    "Install the version that wrote it, or delete the file and train again: " + self.command,
                )
            arrays = {name: archive[name] for name in self.shapes}
        for name, shape in self.shapes.items():
            found = arrays[name].shape
            if len(found) != len(shape) or any(want not in (None, n) for n, want in zip(found, shape, strict=True)):
                raise ValueError(f"its array {name!r} has the shape {found}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"its array {name!r} holds values that are not finite")
        fields = {
            name: _finite(header, name) if kind is float else dict(header[name]) for name, kind in self.fields.items()
        }
        return Stored({**fields, **arrays}, _finite(header, "probe"))


def array_digest(array: NDArray[Any]) -> str:
    """The SHA-256 of an array's values, the same on machines of either byte order: 64 hexadecimal digits."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def _finite(header: Mapping[str, Any], name: str) -> float:
    value = float(header[name])
    if not math.isfinite(value):
        raise ValueError(f"its {name} is {value}")
    return value
