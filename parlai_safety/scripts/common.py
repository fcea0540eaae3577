"""What our commands share: they write to standard output as programs do, without ParlAI's log prefix."""

from __future__ import annotations

import sys

from parlai.core.params import ParlaiParser


def say(text: str) -> None:
    """Write a line, or lines, to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def job_parser(description: str, *, out: str, out_help: str) -> ParlaiParser:
    """A parser with what every job of ours is told: where to (`--out`), where from (`--data`), and the seed."""
    parser = ParlaiParser(False, False, description)
    parser.add_argument("--out", type=str, default=out, help=out_help)
    parser.add_argument("--data", type=str, default=None, help="Folder of real data; the shipped corpus if absent.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of everything that is random.")
    return parser
