"""What our commands share: they write to standard output as programs do, without ParlAI's log prefix."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line, or lines, to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
