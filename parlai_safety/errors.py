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


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A closing sentence that names the nearest known names, or `otherwise` where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else otherwise


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "?", "!")) else text + "."
