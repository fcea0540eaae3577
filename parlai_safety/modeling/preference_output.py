"""The output layer in chunks of whole contexts: a loss of the log-probabilities of whole replies, in one pass.

A preference loss is a function of log p of the replies to one context, sums over their tokens. So a chunk holds all
replies to a context: their sums, what the context costs and what each token weighs in it are all known while the
chunk's scores are, and its gradient is taken at once. Nothing is computed twice, and no score is kept.

Where the output layer is not one linear map, a chunk is computed again in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parlai_safety.losses.rows import promoted
from parlai_safety.modeling.contexts import reply_states
from parlai_safety.modeling.output import LinearGradients, LinearOutput, linear_output, logits_of

Cost = Callable[[Tensor, int, int], Tensor]
"""(log p (r,) of the replies [first, last), first, last) -> their share of the batch's loss, a scalar.

The replies are those of whole contexts. It must not reach parameters, and gives the same answer when asked again.
"""


class Replies(NamedTuple):
    """The R replies of a batch, ordered by context, and the N counted tokens, ordered by reply."""

    tokens: Sequence[int]
    """R numbers: the tokens of each reply, which may be 0."""
    contexts: Sequence[int]
    """The replies of each context, at least 1 each; they sum up to R."""


class SummedLoss(NamedTuple):
    """The loss of a batch and what is known of its R replies."""

    loss: Tensor
    """Scalar, with gradient."""
    logps: Tensor
    """(R,) nats, at least fp32, no gradient: log p of the whole reply."""
    correct: Tensor
    """(R,) int64: tokens of the reply that have the highest score."""


class _Chunk(NamedTuple):
    """Replies [first, last) with the tokens [start, stop)."""

    first: int
    last: int
    start: int
    stop: int


class _Sums(NamedTuple):
    logps: Tensor
    correct: Tensor


def summed_loss(
    model: Any,
    states: Tensor,
    targets: Tensor,
    replies: Replies,
    cost: Cost,
    *,
    chunk: int,
    plain: bool = False,
) -> SummedLoss:
    """A loss of the log-probabilities of whole replies, a few contexts at a time.

    Args:
        model: the generator whose output layer is applied.
        states: (N, D) decoder states of the counted tokens.
        targets: (N,) int64.
        replies: whose tokens these are.
        cost: what some contexts cost; the loss is the sum over all.
        chunk: tokens a chunk, at least 1; one context with more of them is a chunk all the same.
        plain: compute all scores at once and leave the gradient to autograd.

    Returns:
        The loss, with gradient, and the sums for metrics.
    """
    chunks = _chunks(replies, len(targets) if plain else chunk)
    owner = _owners(replies, states.device)
    if torch.is_grad_enabled() and not plain:
        layer = linear_output(model, states)
        if layer is not None:
            return _linear_summed_loss(layer, targets, owner, chunks, cost)
    losses, parts = [], []
    for part in chunks:
        rows = slice(part.start, part.stop)
        inputs = states[rows], targets[rows], owner[rows] - part.first, part.last - part.first
        again = len(chunks) > 1 and torch.is_grad_enabled()
        found = _Sums(*(checkpoint(_sums, model, *inputs, use_reentrant=False) if again else _sums(model, *inputs)))
        losses.append(cost(found.logps, part.first, part.last))
        parts.append(_Sums(found.logps.detach(), found.correct))
    return SummedLoss(torch.stack(losses).sum(), *(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def reply_logps(model: Any, *inputs: Any, replies: Tensor, example: Tensor, null: int, chunk: int) -> Tensor:
    """The log-probabilities of R replies to B contexts, without gradient.

    Args:
        model: a `TorchGeneratorModel`, in evaluation mode.
        inputs: what its encoder takes, for B contexts.
        replies: (R, T) int64, padded at the right.
        example: (R,) int64, the context in [0, B) of each reply.
        null: id of padding.
        chunk: tokens a chunk of the output layer.

    Returns:
        (R,) nats, at least fp32.
    """
    mask = replies != null
    states = reply_states(model, *inputs, ys=replies, example=example)[mask]
    tokens = mask.sum(-1).tolist()
    rows = Replies(tokens, [1] * len(tokens))
    return summed_loss(model, states, replies[mask], rows, lambda logps, *_: logps.sum(), chunk=chunk).logps


def _chunks(replies: Replies, chunk: int) -> list[_Chunk]:
    """Chunks of whole contexts, with at most `chunk` tokens where a context has no more."""
    last = list(accumulate(replies.contexts))
    stop = [0, *accumulate(replies.tokens)]
    found: list[_Chunk] = []
    for first, end in zip([0, *last], last, strict=False):
        if found and stop[end] - found[-1].start <= chunk:
            found[-1] = found[-1]._replace(last=end, stop=stop[end])
        else:
            found.append(_Chunk(first, end, stop[first], stop[end]))
    return found


def _owners(replies: Replies, device: torch.device) -> Tensor:
    """(N,) the reply of each token."""
    tokens = torch.tensor(replies.tokens)
    return torch.repeat_interleave(torch.arange(len(tokens)), tokens).to(device)


def _sums(model: Any, states: Tensor, targets: Tensor, owner: Tensor, count: int) -> _Sums:
    logits = promoted(logits_of(model, states[None])[0])
    logps = logits.new_zeros(count).index_add(0, owner, -F.cross_entropy(logits, targets, reduction="none"))
    return _Sums(logps, owner.new_zeros(count).index_add(0, owner, _correct(logits.detach(), targets)))


def _correct(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) int64: 1 where the target has the highest score."""
    return (logits.gather(-1, targets[:, None]).squeeze(-1) == logits.amax(-1)).long()


def _linear_summed_loss(
    layer: LinearOutput, targets: Tensor, owner: Tensor, chunks: Sequence[_Chunk], cost: Cost
) -> SummedLoss:
    """The gradient of -log p is softmax less the target; what each reply's tokens weigh is the slope of the cost."""
    replies = chunks[-1].last
    # Weights are not known yet; the share of one reply is what they are near to.
    kind = torch.promote_types(layer.states.dtype, torch.float32)
    gradients = LinearGradients(layer, layer.states.new_full((len(targets),), 1 / replies, dtype=kind))
    with torch.no_grad(), torch.autocast(layer.states.device.type, enabled=False):
        wide = gradients.shares.dtype
        own = gradients.states.new_empty(max(part.stop - part.start for part in chunks), len(layer.weight))
        scores = own if own.dtype == wide else torch.empty_like(own, dtype=wide)
        losses: list[Tensor] = []
        logps = torch.zeros(replies, dtype=wide, device=targets.device)
        correct = torch.zeros(replies, dtype=torch.int64, device=targets.device)
        for part in chunks:
            rows, size = slice(part.start, part.stop), part.stop - part.start
            gradients.scores(rows, out=own[:size])
            logits = scores[:size] if scores is own else scores[:size].copy_(own[:size])
            ids, of = targets[rows, None], owner[rows]
            correct.index_add_(0, of, _correct(logits, targets[rows]))
            best, said = logits.amax(-1), logits.gather(-1, ids).squeeze(-1)
            p = torch.softmax(logits, -1, out=logits)
            logps.index_add_(0, of, said - best + p.amax(-1).log())
            with torch.enable_grad():
                leaf = logps[part.first : part.last].clone().requires_grad_()
                share = cost(leaf, part.first, part.last)
            (slopes,) = torch.autograd.grad(share, leaf, allow_unused=True, materialize_grads=True)
            losses.append(share.detach())
            p.scatter_add_(-1, ids, p.new_full((), -1.0).expand(ids.shape))
            weights = (-slopes / gradients.scale)[of - part.first, None]
            gradients.add(rows, p if scores is own else own[:size].copy_(p), weights)
        loss = torch.stack(losses).sum()
    return SummedLoss(gradients.attach(loss), logps, correct)
