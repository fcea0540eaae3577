"""Tiny generators of ParlAI's three families, without an agent: modules, a dictionary of 23 words, random weights."""

from __future__ import annotations

from typing import Any

import torch
from parlai.agents.bart.modules import BartModel
from parlai.agents.seq2seq.modules import Seq2seq
from parlai.agents.transformer.modules import TransformerGeneratorModel
from torch import Tensor

WORDS = ["__null__", "__start__", "__end__", "__unk__", *(f"w{i}" for i in range(19))]
WIDTH = 8


class Words:
    """As much of a dictionary as a model asks for."""

    null_token, start_token, end_token, unk_token = WORDS[:4]

    def __len__(self) -> int:
        return len(WORDS)

    def __getitem__(self, word: str) -> int:
        return WORDS.index(word)


def make_transformer(kind: Any = TransformerGeneratorModel, **more: Any) -> Any:
    """A transformer; `kind` is the class."""
    torch.manual_seed(5)
    sizes = {"embedding_size": WIDTH, "ffn_size": 12, "n_layers": 2, "n_heads": 2, "n_positions": 32}
    model = kind({**sizes, "truncate": 32, "dropout": 0.0, **more}, Words())
    model.width, model.inputs = WIDTH, _alone
    return model


def make_bart(**more: Any) -> Any:
    """A BART."""
    return make_transformer(BartModel, variant="bart", activation="gelu", **more)


def make_seq2seq() -> Any:
    """An LSTM whose output layer has weights and a bias of its own, and a projection before them."""
    torch.manual_seed(5)
    model = Seq2seq(len(WORDS), 6, WIDTH, padding_idx=0, start_idx=1, end_idx=2, unknown_idx=3, longest_label=9)
    model.width, model.inputs = WIDTH, _alone
    return model


def _alone(xs: Tensor) -> tuple[Tensor]:
    return (xs,)
