"""ParlAI's train loop with a progress bar and a clean stop: what the loops call for each stage of training.

The loop itself, its checkpoints and its resume are ParlAI's. What is added: a bar with an ETA instead of log lines, a
checkpoint at Ctrl-C, and no final evaluation (the loops evaluate with judges of their own).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any

from parlai.scripts.train_model import TrainLoop, TrainModel, set_seed
from parlai.utils import logging
from tqdm import tqdm

SAVE_EVERY_SECONDS = 30


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ParlAI's own log lines below an error off the screen while the block runs."""
    before = logging.logger.level
    logging.logger.setLevel(ERROR)
    try:
        yield
    finally:
        logging.logger.setLevel(before)


def train(title: str, *, model_file: Path, max_train_steps: int, seed: int, **options: Any) -> float:
    """Train, or continue a training that was interrupted, and save the model.

    A training that goes on from a checkpoint sees its examples in another order than one that was never stopped: ParlAI
    keeps no state of that order.

    Args:
        title: stands before the progress bar.
        model_file: where the model goes; a `.checkpoint` beside it is continued.
        max_train_steps: updates in all, over all calls.
        seed: of the order of examples and of the initial weights.
        options: ParlAI's options of `train_model`, by their names in Python.

    Returns:
        Seconds of this call.
    """
    start = time.monotonic()
    with quiet():
        opt = TrainModel.setup_args().parse_kwargs(
            model_file=str(model_file),
            max_train_steps=max_train_steps,
            save_every_n_secs=SAVE_EVERY_SECONDS,
            log_every_n_steps=10,
            loglevel="error",
            **options,
        )
        opt["loglevel"] = "error"
        set_seed(seed)
        loop = TrainLoop(opt)
        set_seed(seed + loop._train_steps)
        with tqdm(total=max_train_steps, initial=loop._train_steps, desc=title, unit="step", dynamic_ncols=True) as bar:
            try:
                if loop._train_steps >= max_train_steps:
                    loop.save_model()  # ParlAI's loop would train once more before it looks
                for _ in loop.train_steps() if loop._train_steps < max_train_steps else ():
                    bar.update(loop._train_steps - bar.n)
                    loss = loop.train_reports[-1].get("loss")
                    if loss is not None:
                        bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
                bar.update(loop._train_steps - bar.n)
                if loop._train_steps < max_train_steps:  # an agent's monitor may end its training
                    bar.write(f"{title}: stopped after {loop._train_steps} of {max_train_steps} updates", sys.stderr)
            except KeyboardInterrupt:
                loop.save_model(".checkpoint")
                raise
    for leftover in model_file.parent.glob(f"{model_file.name}.checkpoint*"):
        leftover.unlink()
    return time.monotonic() - start
