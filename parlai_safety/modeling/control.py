"""Control tokens: behind a prompt, out of texts and token lists, and the embeddings that they begin with.

A token at the end of the context says what a reply is to be like: `[TOXIC]` makes a model that was trained so answer as
its inner toxic model (adversarial DPO, Kim and Lee 2024, arXiv:2405.12900), `[SAFE]` or `[F0M0]` ask for what "Recipes
for Safety" (Xu et al. 2020, arXiv:2010.07079) tells apart by a judge or by gendered words. That such a token is
appended is the papers', all else here is ours. The agents (`parlai_safety.agents.control`) say where it is honoured.
Knows neither options nor ParlAI's agents.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parlai_safety.message import TOXIC_TOKEN


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
    return append_tokens(prompts, prompts.new_full((len(prompts), 1), id), null, limit=limit)


def append_tokens(prompts: Tensor, tokens: Tensor, null: int, *, limit: int | None = None) -> Tensor:
    """Each prompt with tokens of its own behind its last one.

    >>> append_tokens(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[9, 0], [3, 4]]), 0)
    tensor([[5, 6, 7, 9],
            [8, 3, 4, 0]])

    Args:
        prompts: (B, S) int64, see `append_token`.
        tokens: (B, N) int64, padded at the right; a row of padding alone adds nothing.
        null: id of padding.
        limit: tokens of a row at most, the new ones counted, at least 1; a row that has more loses its first ones, with
            or without new ones. None for any number.

    Returns:
        (B, S') int64, padded at the right, where S' is at most S + N.
    """
    grown = F.pad(prompts, (0, tokens.size(1)), value=null)
    lengths = ((grown != null) * torch.arange(1, grown.size(1) + 1, device=grown.device)).amax(1)
    places = lengths[:, None] + torch.arange(tokens.size(1), device=grown.device)
    grown.scatter_(1, places, tokens)
    lengths += (tokens != null).sum(1)
    first = lengths.new_zeros(lengths.shape) if limit is None else (lengths - limit).clamp(min=0)
    longest = int((lengths - first).max()) if len(prompts) else 0
    place = torch.arange(longest, device=grown.device) + first[:, None]
    behind = place >= lengths[:, None]
    return grown.gather(1, place.clamp_(max=grown.size(1) - 1)).masked_fill(behind, null)


def without_token(text: str) -> str:
    """A text without the toxic token's name; see `without_tokens`.

    >>> without_token("Hello  there. [TOXIC]"), without_token("[TO[TOXIC]XIC] you")
    ('Hello  there.', '[TO XIC] you')
    """
    return without_tokens(text, (TOXIC_TOKEN,))


def without_tokens(text: str, tokens: Sequence[str]) -> str:
    """A text without the names of control tokens and a space on either side of them; within a line one space is left.

    Names that were written behind a text, with a space, are gone without a trace.

    >>> without_tokens("Hello  there. [SAFE] [F0M0]", ("[SAFE]", "[F0M0]"))
    'Hello  there.'
    """
    return _named(tuple(tokens)).sub(_gap, text) if any(token in text for token in tokens) else text


@functools.lru_cache(maxsize=64)
def _named(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"(?: ?(?:{'|'.join(map(re.escape, tokens))}))+ ?")


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


def named_row(rows: Tensor, name: str) -> Tensor:
    """The embedding that a token with a name begins with: the mean of other rows, a standard deviation off.

    Each number lies one standard deviation above or below its mean, as a hash of the name says, and the whole is scaled
    to the rows' mean length: as far from the mean as a token is, and another row for each name, so that also a model
    whose embeddings are frozen tells them apart. Nothing is drawn.

    Args:
        rows: (V, D) the embeddings of other tokens; or (V,), a bias, of which it is the mean.
        name: of the token.

    Returns:
        (D,), or a scalar, in their type, no gradient.
    """
    if rows.dim() < 2:
        return first_row(rows)
    rows = rows.detach()
    wide = torch.promote_types(rows.dtype, torch.float32)
    mean = rows.mean(0, dtype=wide)
    squares = torch.linalg.vector_norm(rows, dim=0, dtype=wide).square() / len(rows)
    row: Tensor = mean + _signs(name, len(mean)).to(mean) * (squares - mean.square()).clamp(min=0).sqrt()
    length = torch.linalg.vector_norm(rows, dim=1, dtype=wide).mean()
    row *= length / row.norm().clamp(min=torch.finfo(wide).tiny)
    return row.to(rows.dtype)


def _signs(name: str, count: int) -> Tensor:
    """Numbers 1 and -1, (count,) int64, the same ones for a name everywhere."""
    drawn = torch.tensor(list(hashlib.shake_256(name.encode()).digest((count + 7) // 8)))
    return (((drawn[:, None] >> torch.arange(8)) & 1) * 2 - 1).flatten()[:count]


def _begin(rows: Tensor, token: str) -> Tensor:
    return first_row(rows) if token == TOXIC_TOKEN else named_row(rows, token)


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


def with_rows(state: Mapping[str, Tensor], model: Any, tokens: Mapping[int, str]) -> dict[str, Tensor]:
    """The parameters of a model without some control tokens, for a model that has them.

    Args:
        state: a checkpoint's parameters.
        model: the model that is to load them, with no fewer rows, see `token_tensors`; a class head keeps what it
            begins with in rows that the checkpoint has not.
        tokens: the new tokens by their ids, behind those of the checkpoint's tokens: the toxic one begins as
            `first_row` says, any other one as `named_row`. Further rows that the model has, such as those that ParlAI
            adds for fp16, begin as `first_row` says.

    Returns:
        A new mapping.
    """
    own = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    places = {tensor.data_ptr() for tensor in token_tensors(model)}
    grown = dict(state)
    for name in state.keys() & own.keys():
        old, mine = state[name], own[name]
        if mine.data_ptr() in places and len(old) <= len(mine):
            others = old[: min(tokens)]
            row = first_row(others)
            grown[name] = torch.cat((old, row.expand(len(mine) - len(old), *row.shape)))
            for id_, token in tokens.items():
                grown[name][id_] = _begin(others, token)
        elif name.startswith("class_head.") and old.dim() and len(old) < len(mine):
            grown[name] = torch.cat((old, mine[len(old) :].to(old)))
    return grown


def add_row(lm: Any, id: int, token: str = TOXIC_TOKEN) -> None:  # noqa: A002
    """Give a causal language model of transformers the row of a new token, in place; nothing is drawn.

    Args:
        lm: the model, without adapters.
        id: where the model has too few rows, they are added, else a row that no token uses is taken.
        token: its name; the toxic one begins as `first_row` says, any other one as `named_row`.
    """
    rows = lm.get_input_embeddings().weight.size(0)
    if id >= rows:
        with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
            lm.resize_token_embeddings(id + 1, mean_resizing=False)
    with torch.no_grad():
        for tensor in token_tensors(lm):
            row = _begin(tensor[: min(rows, id)], token)
            tensor[rows:] = row
            tensor[id] = row
