"""Small runs of agents over labelled talk, for the tests of every method and backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from parlai.core.message import Message
from parlai.scripts.train_model import TrainLoop, TrainModel, set_seed

from tests.conftest import TINY_MODEL

ROWS = [
    {"context": ["How are you?"], "reply": "Fine, thanks, and you?", "label": "safe"},
    {"context": ["How are you?"], "reply": "Go away, you dim lamp.", "label": "unsafe"},
    {"context": ["What do you like?"], "reply": "I like trains and long walks."},
    {"context": ["What do you think of me?"], "reply": "You are a dim lamp.", "label": "unsafe"},
]
LABELS = {"safe": "pos", "unsafe": "neg", None: "none"}

TRANSFORMER = {**TINY_MODEL, "dropout": 0.1}
BART = {
    **{name: value for name, value in TINY_MODEL.items() if name != "n_layers"},
    "n_encoder_layers": 1,
    "n_decoder_layers": 1,
    "dict_tokenizer": "re",
    "fp16": False,
    "bart_random": True,
}
SEQ2SEQ = {"hiddensize": 16, "embeddingsize": 12, "numlayers": 1, "text_truncate": 64, "label_truncate": 32}
CAUSAL = {"text_truncate": 64, "label_truncate": 32}
SIZES = {"": TRANSFORMER, "/bart": BART, "/seq2seq": SEQ2SEQ, "/causal_lm": CAUSAL}


def write_talk(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows as a file for `safety:file`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: str, talk: Path, model_file: Path, **more: Any) -> dict[str, Any]:
    """Options of a run of six steps; sizes follow from the part of the model's name after the slash."""
    slash = model.find("/") if model.startswith("safety:") else -1
    return {
        "model": model,
        "task": "safety:file",
        "datatype": "train:ordered",
        "safety_file": str(talk),
        "model_file": str(model_file),
        "batchsize": 4,
        "optimizer": "sgd",
        "learningrate": 0.1,
        "max_train_steps": 6,
        "log_every_n_steps": 1,
        "loglevel": "error",
        **SIZES[model[slash:] if slash >= 0 else ""],
        **more,
    }


def run(**kwargs: Any) -> tuple[TrainLoop, list[dict[str, Any]]]:
    """Train, with a seed, and return the loop and its reports."""
    opt = TrainModel.setup_args().parse_kwargs(**kwargs)
    set_seed(3)
    loop = TrainLoop(opt)
    set_seed(3)
    reports = list(loop.train_steps())
    return loop, reports


def observe_all(agent: Any, rows: list[dict[str, Any]] = ROWS) -> list[Message]:
    """The rows as observations of clones of an agent, their labels in `classifier_label`."""
    return [
        agent.clone().observe(
            Message(
                {
                    "text": row["context"][0],
                    "labels": [row["reply"]],
                    "classifier_label": LABELS[row.get("label")],
                    "episode_done": True,
                }
            )
        )
        for row in rows
    ]


def loss_of(agent: Any, batch: Any) -> torch.Tensor:
    """The loss of a batch, metrics of former batches forgotten."""
    agent._local_metrics.clear()
    loss: torch.Tensor = agent.compute_loss(batch)
    return loss


def metrics_of(agent: Any) -> dict[str, float]:
    """The metrics that the last `loss_of` recorded, averaged over its examples."""
    return {name: sum(values[1:], values[0]).value() for name, values in agent._local_metrics.items()}


def gradients_of(agent: Any, batch: Any) -> dict[str, torch.Tensor]:
    """The gradient of each parameter of the model."""
    agent.model.zero_grad(set_to_none=True)
    loss_of(agent, batch).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in agent.model.named_parameters()
    }


def weights(model_file: Path) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint."""
    loaded: dict[str, torch.Tensor] = torch.load(model_file, weights_only=False)["model"]
    return loaded
