"""The trainers in two processes: data-parallel training, and the loss inside torch's own sharded wrappers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_causal import tiny_causal

from .trl_rows import TRAINERS, model_of, weights_of

WAYS = ("ddp", "fsdp1", "fsdp2")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """One launch of two processes for everything below."""
    root = tmp_path_factory.mktemp("two")
    tiny_causal(root / "model", vocab_size=410)
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    modes = [f"{method}.{way}" for method in TRAINERS for way in WAYS]
    done = subprocess.run(
        [*command, str(root / "model"), str(root), *modes],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def of_rank(root: Path, mode: str, rank: int):
    return torch.load(root / f"{mode}.{rank}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINERS)
def test_two_processes_train_as_one(launched, method):
    """Two steps with four rows each in two processes are two steps with eight in one: weights, and the evaluation."""
    one = TRAINERS[method](launched / "model", launched / "one", model=model_of(launched / "model", torch.float32))
    start = weights_of(one)
    one.train()
    expected, evaluated = weights_of(one), one.evaluate(one.train_dataset)
    assert max((expected[name] - start[name]).abs().max() for name in start) > 1e-3
    (first, of_first), (second, of_second) = (of_rank(launched, f"{method}.ddp", rank) for rank in (0, 1))
    for name, weight in expected.items():
        torch.testing.assert_close(first[name], weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(second[name], first[name])
    for name in ("eval_loss", *(name for name in evaluated if "/" in name)):
        assert abs(of_first[name] - evaluated[name]) < 1e-5 * max(1, abs(evaluated[name])), name
        assert of_second[name] == of_first[name]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp1", "fsdp2"])
@pytest.mark.parametrize("method", TRAINERS)
def test_the_loss_is_taken_where_sharded_weights_are_whole(launched, method, way):
    """Four rows in one process and three in the other: loss and gradients are those of seven in one."""
    one = TRAINERS[method](launched / "model", launched / "one", model=model_of(launched / "model", torch.float32))
    batch = one.collate([one.train_dataset[i] for i in range(7)])
    _, items = one.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss = one.compute_loss(one.model, batch, num_items_in_batch=items)
    loss.backward()
    (first, of_first), (second, of_second) = (of_rank(launched, f"{method}.{way}", rank) for rank in (0, 1))
    assert abs((of_first + of_second) / 2 - loss.item()) < 1e-5
    assert of_first != of_second
    for name, weight in one.model.named_parameters():
        assert weight.grad.abs().max() > 1e-4
        torch.testing.assert_close(first[name], weight.grad, rtol=1e-4, atol=2e-6)
        assert torch.equal(second[name], first[name])
