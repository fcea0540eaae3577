"""A frozen model beside the trained one: told by its weights, asked for log-probabilities, and these kept.

Left out: a frozen model whose weights are sharded over processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from parlai_safety.modeling.number_store import NumberStore
from parlai_safety.modeling.preference_output import reply_logps


def weights_hash(model: nn.Module, *, adapters: bool = True) -> str:
    """A name for the weights of a model: names, types, shapes and every number of its state.

    Args:
        model: any module.
        adapters: count low-rank adapters too; without them it is the base that is named, adapted or not.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if adapters or "lora_" not in name
    }
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def shape_hash(model: nn.Module) -> str:
    """A name for what beside its weights says what a model computes: the numbers and words that its modules hold."""
    held = [
        (name, sorted((key, str(value)) for key, value in vars(module).items() if _counts(key, value)))
        for name, module in model.named_modules()
    ]
    config = getattr(getattr(model, "lm", None), "config", None)
    settings = {} if config is None else config.to_dict()
    counted = sorted((key, str(value)) for key, value in settings.items() if _tells(key))
    told = [held, str(getattr(model, "compute", None)), counted]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _tells(key: str) -> bool:
    """Whether a setting of a config says what is computed, and not where the model came from or how it is trained."""
    return not key.startswith("_") and "drop" not in key and key not in ("transformers_version", "dtype", "use_cache")


def _counts(key: str, value: Any) -> bool:
    plain = isinstance(value, (bool, int, float, str)) or key == "scaling"  # which is a dict in low-rank adapters
    trained = key in ("training", "gradient_checkpointing", "p") or "drop" in key
    return plain and not trained and not key.startswith("_")


class FrozenScores:
    """Log-probabilities of replies under one frozen model: those that are stored, and the others computed and stored.

    Args:
        name: of the model: its weights and all else that its answers follow from.
        model: opens the model in evaluation mode; it is called only for what is not stored.
        store: where numbers are kept.
        null: id of padding.
        attention: the kernel of attention for a forward pass of that model.

    Attributes:
        hits: replies whose number was stored.
        misses: replies that had to be computed, each but once a call.
    """

    def __init__(
        self,
        name: str,
        model: Callable[[], AbstractContextManager[Any]],
        store: NumberStore,
        *,
        null: int,
        attention: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._name, self._model, self._store = bytes.fromhex(name), model, store
        self._null, self._attention = null, attention
        self.hits = self.misses = 0

    def logps(self, prompts: Tensor, replies: Tensor, example: Tensor, *, chunk: int) -> Tensor:
        """The log-probabilities of R replies to C contexts.

        Args:
            prompts: (C, S) int64, padded.
            replies: (R, T) int64, padded at the right.
            example: (R,) int64, the context in [0, C) of each reply.
            chunk: tokens a chunk of the output layer.

        Returns:
            (R,) nats, float64, on the device of the replies.
        """
        texts = [[id_ for id_ in row if id_ != self._null] for row in prompts.tolist()]
        said = [[id_ for id_ in row if id_ != self._null] for row in replies.tolist()]
        of = example.tolist()
        keys = [self._key(texts[place], reply) for place, reply in zip(of, said, strict=True)]
        known = self._store.look_up(sorted(set(keys)))
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in known:
                first.setdefault(key, row)
        self.hits, self.misses = self.hits + sum(key in known for key in keys), self.misses + len(first)
        if first:
            rows = list(first.values())
            used = sorted({of[row] for row in rows})
            new = {place: index for index, place in enumerate(used)}
            asked = torch.tensor([new[of[row]] for row in rows], device=example.device)
            with self._model() as model, self._attention(model):
                found = reply_logps(
                    model, prompts[used], replies=replies[rows], example=asked, null=self._null, chunk=chunk
                )
            fresh = dict(zip(first, found.double().tolist(), strict=True))
            self._store.store(fresh)
            known.update(fresh)
        return torch.tensor([known[key] for key in keys], dtype=torch.float64, device=replies.device)

    def _key(self, prompt: list[int], reply: list[int]) -> bytes:
        # As JSON, no two lists of ids are written alike.
        return hashlib.sha256(self._name + json.dumps([prompt, reply]).encode()).digest()
