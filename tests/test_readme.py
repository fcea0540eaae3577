"""The README is a test: its commands run as they stand, its generated tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parlai_safety.agents.cringe.cringe import CringeOptions
from parlai_safety.options import options_table
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def test_the_option_table_is_the_codes():
    assert options_table(CringeOptions) in README


def test_no_command_is_longer_than_a_line():
    lines = [line for block in BLOCKS for line in block.splitlines()]
    assert len(lines) > 15
    assert max(map(len, lines)) <= 110


def test_every_path_that_is_named_exists():
    for path in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda block: block.split("\n")[0][:40])
def test_the_commands_run(block, tmp_path_factory):
    """All blocks but the first, which clones and runs the whole job, in one folder and in order."""
    folder = tmp_path_factory.getbasetemp() / "readme"
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
