"""The one exception that users of parlai_safety are meant to see.

An error of ours has three sentences: what we got, why that cannot work, and what to type instead. The class makes
the three parts explicit so that none of them is forgotten, and the command line prints them without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SafetyError(Exception):
    """A mistake that the person at the keyboard can mend.

    Deliberately not a `ValueError`: argparse would swallow one raised by an option's type and print its own text.

    Args:
        got: what was found, with the value as the user typed it.
        why: why that cannot work.
        instead: what to type or do instead.
    """

    def __init__(self, got: str, why: str, instead: str) -> None:
        self.got, self.why, self.instead = (_sentence(part) for part in (got, why, instead))
        super().__init__(f"{self.got} {self.why} {self.instead}")

    def __reduce__(self) -> tuple[type[SafetyError], tuple[str, str, str]]:
        """Pickle by the three parts, so that the error crosses process borders whole."""
        return type(self), (self.got, self.why, self.instead)


class MissingPartError(SafetyError):
    """An optional package is not installed.

    Args:
        package: the module that could not be imported.
        purpose: what it is needed for, as in "Reading Parquet files".
        extra: the extra of ours that brings it, as in "hf".
    """

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        self.package, self.purpose, self.extra = package, purpose, extra
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f"It is an optional part of parlai_safety (extra [{extra}]) and is imported only where it is used",
            f"Install it with: pip install 'parlai_safety[{extra}]'",
        )

    def __reduce__(self) -> tuple[type[MissingPartError], tuple[str, str, str]]:  # type: ignore[override]
        """Pickle by this class's own arguments."""
        return type(self), (self.package, self.purpose, self.extra)


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A closing sentence that names the nearest known names, or `otherwise` where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else otherwise


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "?", "!")) else text + "."
