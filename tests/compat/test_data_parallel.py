"""Two processes on the CPU: the workers know us, train together, agree with one process, and end when one fails."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("compat_helpers", Path(__file__).parent / "helpers.py")
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

pytestmark = [pytest.mark.slow, pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")]

# Speeds, and sizes of a step: two processes take two batches at a time.
OF_A_STEP = {"exps", "tps", "ctps", "ltps", "tpb", "ctpb", "ltpb", "gpu_mem", "ups"}


def knows_us(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("knows_us.*"))}


def test_two_processes_train_and_agree_with_one(tmp_path):
    result = helpers.run(helpers.prepare(tmp_path), "data_parallel.py", "train+eval", NOTE_RANKS="1")
    assert knows_us(tmp_path) == {"knows_us.0": "True", "knows_us.1": "True"}
    two, one = ({k: v for k, v in result[size].items() if k not in OF_A_STEP} for size in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-5)
    assert one["exs"] == 7
    # Without learning it is about as large as the vocabulary, 17.
    assert one["ppl"] < 4 and one["f1"] > 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_failure_of_one_process_ends_both(tmp_path, rank):
    """The time limit of `helpers.run` is the assertion: in stock ParlAI the other process waits for ever."""
    done = helpers.run(helpers.prepare(tmp_path), "data_parallel.py", "train", check=False, FAILING_RANK=rank)
    assert done.returncode == 1
    assert "RuntimeError: this rank fails" in done.stderr + done.stdout
