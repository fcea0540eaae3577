"""The second door is open where ParlAI cannot be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.conftest import ROOT

WITHOUT_PARLAI = """
import runpy, sys
sys.modules["parlai"] = None  # importing it is an ImportError from here on
runpy.run_path(sys.argv[1], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("parlai.")]
"""


def test_the_plain_loop_learns_without_parlai():
    """In one process: the example's loss falls, replies to follow and to avoid alike."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PARLAI, str(ROOT / "projects" / "second_door" / "plain_loop.py")],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    numbers = [[float(n) for n in re.findall(r"\d+\.\d+", line)] for line in done.stdout.splitlines()]
    assert len(numbers) == 2 and all(len(row) == 3 for row in numbers)
    assert all(end < 0.5 * start for start, end in zip(*numbers, strict=True))
