"""The toxic control token: behind a prompt, out of texts and token lists, and the embedding that it begins with.

One added token at the end of the context makes a model that was trained so answer as its inner toxic model. Source:
adversarial DPO, Kim and Lee 2024, arXiv:2405.12900; that such a token is appended is the paper's, all else here is
ours. The agents (`parlai_safety.agents.control`) say where it is honoured. Knows neither options nor ParlAI's agents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parlai_safety.message import TOXIC_TOKEN

_NAMED = re.compile(f"(?: ?{re.escape(TOXIC_TOKEN)})+ ?")


def append_token(prompts: Tensor, id: int, null: int, *, limit: int | None = None) -> Tensor:  # noqa: A002
    """Each prompt with a token behind its last one.

    >>> append_token(torch.tensor([[5, 6, 7], [8, 0, 0]]), 9, 0, limit=3)
    tensor([[6, 7, 9],
            [8, 9, 0]])

    Args:
        prompts: (B, S) int64, padded at the right; a row of padding alone is a prompt without a token. Padding between
            tokens, as ParlAI makes it of a typed "__null__", counts as one of them.
        id: the token.
        null: id of padding.
        limit: tokens of a row at most, the new one counted, at least 1; a row that has more loses its first ones. None
            for any number.

    Returns:
        (B, S') int64, padded at the right, where S' is at most S + 1.
    """
    grown = F.pad(prompts, (0, 1), value=null)
    lengths = ((grown != null) * torch.arange(1, grown.size(1) + 1, device=grown.device)).amax(1)
    first = lengths.new_zeros(lengths.shape) if limit is None else (lengths + 1 - limit).clamp(min=0)
    longest = int((lengths + 1 - first).max()) if len(prompts) else 0
    grown[torch.arange(len(grown), device=grown.device), lengths] = id
    place = torch.arange(longest, device=grown.device) + first[:, None]
    behind = place > lengths[:, None]
    return grown.gather(1, place.clamp_(max=grown.size(1) - 1)).masked_fill(behind, null)


def without_token(text: str) -> str:
    """A text without the control token's name and a space on either side of it; within a line one space is left.

    A name that was written behind a text, with a space, is gone without a trace.

    >>> without_token("Hello  there. [TOXIC]"), without_token("[TO[TOXIC]XIC] you")
    ('Hello  there.', '[TO XIC] you')
    """
    return _NAMED.sub(_gap, text) if TOXIC_TOKEN in text else text


def _gap(found: re.Match[str]) -> str:
    before, after = found.string[max(0, found.start() - 1) : found.start()], found.string[found.end() : found.end() + 1]
    return " " if before.strip("\n") and after.strip("\n") else ""


def without_id(ids: Any, token: int) -> Any:
    """Token ids, a tensor (T,) or a list, without one of them; the kind is kept."""
    if isinstance(ids, Tensor):
        return ids[ids != token]
    return [id_ for id_ in ids if int(id_) != token]


def first_row(rows: Tensor) -> Tensor:
    """The embedding that a new token begins with: the mean of other rows, scaled to their mean length.

    The mean alone is much shorter than any of them. Nothing is drawn: the same rows give the same row.

    Args:
        rows: (V, D) the embeddings of other tokens; or (V,), a bias, of which it is the mean.

    Returns:
        (D,), or a scalar, in their type, no gradient.
    """
    rows = rows.detach()
    wide = torch.promote_types(rows.dtype, torch.float32)
    mean = rows.mean(0, dtype=wide)
    if rows.dim() > 1:
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=wide)
        mean = mean * (lengths.mean() / mean.norm().clamp(min=torch.finfo(wide).tiny))
    return mean.to(rows.dtype)


def token_tensors(model: Any) -> list[Tensor]:
    """The tensors of a generator with a row for each token: embeddings, and the output layer where it has its own.

    Args:
        model: a generator of ParlAI with `embeddings`, a `CausalLM`, or a causal language model of transformers.
    """
    lm = getattr(model, "lm", model)
    if not hasattr(lm, "get_input_embeddings"):
        return [lm.embeddings.weight]
    layers = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    held = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
    return [tensor for tensor in held if tensor is not None]


def with_row(state: Mapping[str, Tensor], model: Any, token: int) -> dict[str, Tensor]:
    """The parameters of a model without the control token, for a model that has it.

    Args:
        state: a checkpoint's parameters.
        model: the model that is to load them, with no fewer rows, see `token_tensors`; a class head keeps what it
            begins with in rows that the checkpoint has not.
        token: id of the token, behind those of the checkpoint's tokens. Rows that the model has behind it, such as
            those that ParlAI adds for fp16, begin as the token's does.

    Returns:
        A new mapping.
    """
    own = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    places = {tensor.data_ptr() for tensor in token_tensors(model)}
    grown = dict(state)
    for name in state.keys() & own.keys():
        old, mine = state[name], own[name]
        if mine.data_ptr() in places and len(old) <= len(mine):
            row = first_row(old[:token])
            grown[name] = torch.cat((old, row.expand(len(mine) - len(old), *row.shape)))
            grown[name][token] = row
        elif name.startswith("class_head.") and old.dim() and len(old) < len(mine):
            grown[name] = torch.cat((old, mine[len(old) :].to(old)))
    return grown


def add_row(lm: Any, token: int) -> None:
    """Give a causal language model of transformers the row of a new token, in place; nothing is drawn.

    Args:
        lm: the model, without adapters.
        token: the id; where the model has too few rows, they are added, else a row that no token uses is taken.
    """
    rows = lm.get_input_embeddings().weight.size(0)
    if token >= rows:
        with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
            lm.resize_token_embeddings(token + 1, mean_resizing=False)
    with torch.no_grad():
        for tensor in token_tensors(lm):
            row = first_row(tensor[: min(rows, token)])
            tensor[rows:] = row
            tensor[token] = row
