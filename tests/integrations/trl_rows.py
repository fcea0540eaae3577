"""Rows, models and trainers of the tests of `parlai_safety.integrations.trl`; the two-process test runs them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parlai_safety.integrations.trl import ADPOConfig, ADPOTrainer, CringeConfig, CringeTrainer

TOXIC = "<|toxic|>"
WORDS = ["good", "day", "to", "you", "and", "the", "little", "cat"]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def bot(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def words(i: int, count: int) -> str:
    """Some words; the number of tokens differs from row to row."""
    return " ".join(WORDS[(i * 3 + j * j) % len(WORDS)] for j in range(count))


def cringe_rows(count: int = 16) -> list[dict[str, Any]]:
    """Replies of unlike lengths to follow, to avoid, and plain."""
    return [
        {
            "prompt": user(words(i, 1 + i % 3)),
            "completion": bot(words(i + 1, 1 + (i * 5) % 7)),
            "label": [True, False, None][i % 3],
        }
        for i in range(count)
    ]


def adpo_rows(count: int = 16, chat: bool = True) -> list[dict[str, Any]]:
    """Triples of unlike lengths; every fourth context has no toxic reply."""
    rows = [
        {
            "prompt": words(i, 1 + i % 3),
            "chosen": words(i + 1, 1 + (i * 5) % 7),
            "rejected": words(i + 2, 1 + i % 4),
            "toxic": None if i % 4 == 3 else words(i + 3, 2 + i % 3),
        }
        for i in range(count)
    ]
    if not chat:
        return [{name: text and (text if name == "prompt" else " " + text) for name, text in r.items()} for r in rows]
    return [
        {name: text and (user(text) if name == "prompt" else bot(text)) for name, text in row.items()} for row in rows
    ]


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer, with the control token, which takes the place of no word."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [TOXIC]})
    return tokenizer


def model_of(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


QUIET = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
}


def cringe_trainer(folder: Path, out: Path, *, model: Any = None, rows: Any = None, more: Any = None, **settings: Any):
    return CringeTrainer(
        model_of(folder) if model is None else model,
        CringeConfig(output_dir=str(out), **{**QUIET, "alpha": 0.7, **settings}),
        train_dataset=cringe_rows() if rows is None else rows,
        processing_class=tokenizer_of(folder),
        **(more or {}),
    )


def adpo_trainer(folder: Path, out: Path, *, model: Any = None, rows: Any = None, more: Any = None, **settings: Any):
    return ADPOTrainer(
        model_of(folder) if model is None else model,
        args=ADPOConfig(output_dir=str(out), **{**QUIET, "toxic_token": TOXIC, "beta": 0.2, **settings}),
        train_dataset=adpo_rows() if rows is None else rows,
        processing_class=tokenizer_of(folder),
        **(more or {}),
    )


TRAINERS = {"cringe": cringe_trainer, "adpo": adpo_trainer}


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}
