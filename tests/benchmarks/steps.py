"""What the benchmarks of a training step share: a Trainer's steps one by one, time, memory, and how far two models are.

Import it behind the settings of the environment, since it loads torch.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback


class AtSteps(TrainerCallback):
    """Calls two functions, each with the number of the step."""

    def __init__(self, before: Callable[[int], None], after: Callable[[int], None]) -> None:
        self.before, self.after = before, after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after(state.global_step - 1)


def apart(one: Any, other: Any, begun: Any) -> float:
    """How far two trained models are from each other, as a share of the way that one went."""
    far, went = 0.0, 0.0
    for a, b, c in zip(one.parameters(), other.parameters(), begun.parameters(), strict=True):
        far += float((a - b).detach().double().square().sum())
        went += float((a - c).detach().double().square().sum())
    return (far / went) ** 0.5


class Took(NamedTuple):
    """Seconds: on the clock, and of this process alone, which other work on the machine disturbs less."""

    wall: float
    cpu: float


def now() -> Took:
    return Took(time.perf_counter(), time.process_time())


def since(before: Took) -> Took:
    return Took(*(b - a for a, b in zip(before, now(), strict=True)))


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status, such as VmRSS (now) and VmHWM (the highest since it was set back)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Peak:
    """Resident memory of a step at its peak: `step` above what was there before it, `whole` above the beginning."""

    def __init__(self) -> None:
        self.begun = resident("VmRSS")
        self.step = self.whole = 0
        self._before = 0

    def begin(self, step: int) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def end(self, step: int) -> None:
        highest = resident("VmHWM")
        self.step, self.whole = highest - self._before, highest - self.begun
