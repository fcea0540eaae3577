"""The output layer in chunks: a loss over the vocabulary without the (B, T, V) logits ever existing at once.

`decoder_states` runs a generator up to its output layer; `weighted_loss` takes the output layer and the loss of a few
target tokens at a time. Each token's weight in the loss is known beforehand. So, where the layer is one linear map,
the forward pass takes the gradient of each chunk at once and backward only scales it: no score is kept or computed
twice. Any other layer is computed again in backward.

Left out: sharded parameters (ParlAI's `--ddp-backend zero2` and `zero3`), whose weights exist in forward alone, and
second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from parlai_safety.losses.rows import RowLosses

Kernel = Callable[..., RowLosses]
"""(logits (n, V), targets (n,), labels (n,), *further columns (n,)) -> what each token costs.

It looks at each row alone, changes nothing in place, and gives the same answer when it is asked again.
"""


class WeightedLoss(NamedTuple):
    """The loss of a batch and, for metrics, what each of the N counted tokens cost (no gradient)."""

    loss: Tensor
    rows: RowLosses


@contextmanager
def _states_as_output(model: Any) -> Iterator[None]:
    """Let a generator's forward return its decoder states where it would return logits."""
    if "output" in model._modules:
        layer = model._modules["output"]
        model._modules["output"] = nn.Identity()
        try:
            yield
        finally:
            model._modules["output"] = layer
    else:
        model.output = lambda states: states
        try:
            yield
        finally:
            del model.output


def decoder_states(model: Any, *inputs: Any, ys: Tensor) -> Tensor:
    """The decoder's states under teacher forcing, which the output layer turns into logits.

    Args:
        model: a `TorchGeneratorModel`, or that model in a data-parallel wrapper, whose own forward is called.
        inputs: what the model's encoder takes.
        ys: (B, T) int64 targets.

    Returns:
        (B, T, D), with gradient.
    """
    inner = getattr(model, "module", model)
    with _states_as_output(inner):
        states: Tensor = model(*inputs, ys=ys)[0]
    return states


def logits_of(model: Any, states: Tensor) -> Tensor:
    """The output layer of a generator: (B, T, D) -> (B, T, V)."""
    logits: Tensor = getattr(model, "module", model).output(states)
    return logits


class LinearOutput(NamedTuple):
    """An output layer that is one linear map: scores = states @ weight.T + bias, but for one score that is held."""

    states: Tensor
    """(N, D) what the map is applied to, with gradient."""
    weight: Tensor
    """(V, D)."""
    bias: Tensor | None
    """(V,)."""
    held_id: int | None
    """The id that is never to be said: its score is the lowest of the type, and nothing is learned through it."""


def linear_output(model: Any, states: Tensor) -> LinearOutput | None:
    """Read a generator's output layer as one linear map.

    Known are the layers of ParlAI's `TransformerGeneratorModel`, `BartModel` and `Seq2seq`, and told by identity: a
    subclass with an output of its own is not taken for its parent. A model may also say it itself, by a method
    `linear_output(states)`.

    Args:
        model: the generator, or that model in a data-parallel wrapper.
        states: (N, D) decoder states.

    Returns:
        The map, or None where the layer is not known to be one.
    """
    from parlai.agents.bart.modules import BartModel
    from parlai.agents.seq2seq.modules import OutputLayer
    from parlai.agents.transformer.modules import TransformerGeneratorModel

    inner = getattr(model, "module", model)
    if hasattr(inner, "linear_output"):
        own: LinearOutput | None = inner.linear_output(states)
        return own
    layer = inner._modules.get("output")
    if layer is not None:
        if type(layer) is not OutputLayer or layer.numsoftmax != 1:
            return None
        held_id = layer.padding_idx if layer.padding_idx >= 0 else None
        return LinearOutput(layer.dropout(layer.o2e(states)), layer.weight, layer.bias, held_id)
    if "output" in vars(inner):
        return None
    if type(inner).output is TransformerGeneratorModel.output:
        return LinearOutput(states, inner.embeddings.weight, None, inner.start_idx)
    if type(inner).output is BartModel.output:
        return LinearOutput(states, inner.embeddings.weight, None, None)
    return None


def weighted_loss(
    model: Any,
    states: Tensor,
    targets: Tensor,
    labels: Tensor,
    weights: Tensor,
    kernel: Kernel,
    *,
    chunk: int,
    columns: Sequence[Tensor] = (),
) -> WeightedLoss:
    """The weighted sum of what N target tokens cost, a chunk of tokens at a time.

    Args:
        model: the generator whose output layer is applied.
        states: (N, D) decoder states of the counted tokens.
        targets: (N,) int64.
        labels: (N,) values of `TokenLabel`.
        weights: (N,) fp32.
        kernel: the method's row losses. If they have parameters of their own, these get their gradients too.
        chunk: tokens a chunk, at least 1; N or more means all at once, which is the plain form.
        columns: (N,) each, what the kernel wants to know of a token beside its target and label.

    Returns:
        The scalar loss, with gradient, and the rows for metrics.
    """
    table = (targets, labels, *columns)
    if chunk >= len(states):
        return _part(model, kernel, states, weights, *table)
    if not torch.is_grad_enabled():
        return joined(
            [_part(model, kernel, *rows) for rows in zip(*_split(chunk, states, weights, *table), strict=True)]
        )
    layer = linear_output(model, states)
    if layer is not None and _is_alone(kernel, layer, table):
        return _linear_weighted_loss(layer, weights, kernel, table, chunk)
    return joined(
        [
            checkpoint(_part, model, kernel, *rows, use_reentrant=False)
            for rows in zip(*_split(chunk, states, weights, *table), strict=True)
        ]
    )


def joined(parts: Sequence[WeightedLoss]) -> WeightedLoss:
    """One loss from those of several sets of tokens, which follow each other."""
    losses, rows = zip(*parts, strict=True)
    return WeightedLoss(
        torch.stack(losses).sum(), RowLosses(*(torch.cat(column) for column in zip(*rows, strict=True)))
    )


def _split(chunk: int, *columns: Tensor) -> list[tuple[Tensor, ...]]:
    return [torch.split(column, even_chunk(len(column), chunk)) for column in columns]


def even_chunk(count: int, chunk: int) -> int:
    """The size that makes as many chunks as `chunk` does, of nearly equal sizes: a short last one wastes time."""
    pieces = max(1, -(-count // chunk))
    return max(1, -(-count // pieces))


def _part(model: Any, kernel: Kernel, states: Tensor, weights: Tensor, *table: Tensor) -> WeightedLoss:
    rows = kernel(logits_of(model, states[None])[0], *table)
    return WeightedLoss(
        (weights * rows.loss).sum(), RowLosses(rows.loss.detach(), rows.nll.detach(), rows.correct.detach())
    )


def _is_alone(kernel: Kernel, layer: LinearOutput, table: Sequence[Tensor]) -> bool:
    """Whether logits are all that a kernel's gradient reaches; it is asked about one token of each label."""
    asked = torch.stack([(table[1] == label).nonzero()[0, 0] for label in torch.unique(table[1])])
    logits = torch.zeros(len(asked), len(layer.weight), dtype=layer.states.dtype, device=layer.states.device)
    with torch.enable_grad():
        cost = kernel(logits.requires_grad_(), *(column[asked] for column in table)).loss.sum()
    nodes, leaves = [cost.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None:
            if hasattr(node, "variable"):
                leaves.add(id(node.variable))
            nodes += [before for before, _ in node.next_functions]
    return leaves <= {id(logits)}


class LinearGradients:
    """A linear output layer, chunk by chunk: makes scores, and adds up what their gradients mean for its inputs.

    Scores are computed in the type that autocast would choose, gradients of half precision are added up in fp32.
    Weights of tokens enter as shares of the largest one, so that fp16 holds a gradient before any loss scaling.
    """

    def __init__(self, layer: LinearOutput, weights: Tensor) -> None:
        states, weight, bias = layer.states, layer.weight, layer.bias
        device = states.device.type
        kind = states.dtype
        if torch.is_autocast_enabled(device) and kind != torch.float64:
            kind = torch.get_autocast_dtype(device)
        wide = torch.promote_types(kind, torch.float32)
        self.layer = layer
        self.states, self.weight = states.detach().to(kind), weight.detach().to(kind)
        self.bias = None if bias is None else bias.detach().to(kind)
        self.scale = weights.abs().amax().clamp(min=torch.finfo(weights.dtype).tiny).to(wide)
        self.shares = weights.to(wide) / self.scale
        self.of_states = torch.zeros_like(self.states, dtype=wide)
        self.of_weight = torch.zeros_like(self.weight, dtype=wide) if weight.requires_grad else None
        self.of_bias = (
            torch.zeros_like(self.bias, dtype=wide) if self.bias is not None and bias.requires_grad else None  # type: ignore[union-attr]
        )

    def scores(self, rows: Any, out: Tensor) -> None:
        """Write the scores of some tokens: rows (slice or indices) -> out (n, V)."""
        if self.bias is None:
            torch.mm(self.states[rows], self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, self.states[rows], self.weight.t(), out=out)
        if self.layer.held_id is not None:
            out[:, self.layer.held_id] = lowest(out.dtype)

    def add(self, rows: Any, gradient: Tensor, shares: Tensor | None = None) -> None:
        """Take the gradient (n, V) of some tokens' scores, in the scores' type; it is changed.

        `shares` (n, 1), where given, still have to be multiplied with it.
        """
        if self.layer.held_id is not None:
            gradient[:, self.layer.held_id] = 0
        of_states = torch.mm(gradient, self.weight).to(self.of_states.dtype)
        states = self.states[rows]
        self.of_states[rows] = of_states if shares is None else of_states.mul_(shares)
        if self.of_weight is not None:
            weighted = states if shares is None else (states * shares).to(states.dtype)
            if self.of_weight.dtype == gradient.dtype:
                self.of_weight.addmm_(gradient.t(), weighted)
            else:
                self.of_weight += torch.mm(gradient.t(), weighted)
        if self.of_bias is not None:
            wide = gradient.to(self.of_bias.dtype)
            self.of_bias += wide.sum(0) if shares is None else (wide.t() @ shares).squeeze(-1)

    def add_ids(self, rows: Tensor, ids: Tensor, gradient: Tensor) -> None:
        """Take the gradient (n,) of one score of each token, that of the given id (n,)."""
        if self.layer.held_id is not None:
            gradient = gradient.masked_fill(ids == self.layer.held_id, 0.0)
        pull = gradient[:, None]
        self.of_states.index_add_(0, rows, self.weight[ids] * pull)
        if self.of_weight is not None:
            self.of_weight.index_add_(0, ids, self.states[rows] * pull)
        if self.of_bias is not None:
            self.of_bias.index_add_(0, ids, gradient)

    def attach(self, loss: Tensor) -> Tensor:
        """The loss, with its gradient for states, weight and bias."""
        pairs = (
            (self.layer.states, self.of_states),
            (self.layer.weight, self.of_weight),
            (self.layer.bias, self.of_bias),
        )
        known = [(tensor, gradient) for tensor, gradient in pairs if tensor is not None and gradient is not None]
        tensors, gradients = zip(*known, strict=True)
        attached: Tensor = _Known.apply(loss, self.scale, gradients, *tensors)  # type: ignore[no-untyped-call]
        return attached


class _Known(torch.autograd.Function):
    """A scalar whose gradients were taken while it was computed, each but for one common factor."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: Tensor, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(scale, *gradients)
        ctx.kinds = [tensor.dtype for tensor in tensors]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scale, *gradients = ctx.saved_tensors
        factor = outer[0] * scale
        return None, None, None, *((factor * g).to(kind) for g, kind in zip(gradients, ctx.kinds, strict=True))


def _linear_weighted_loss(
    layer: LinearOutput, weights: Tensor, kernel: Kernel, table: Sequence[Tensor], chunk: int
) -> WeightedLoss:
    parts = []
    with torch.no_grad(), torch.autocast(layer.states.device.type, enabled=False):
        gradients = LinearGradients(layer, weights)
        size = even_chunk(len(weights), chunk)
        scores = gradients.states.new_empty(size, len(layer.weight))
        for start in range(0, len(weights), size):
            rows = slice(start, start + size)
            logits = scores[: len(weights[rows])]
            gradients.scores(rows, out=logits)
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                found = kernel(leaf, *(column[rows] for column in table))
                cost = (gradients.shares[rows] * found.loss).sum()
            gradients.add(rows, *torch.autograd.grad(cost, leaf))
            parts.append(RowLosses(found.loss.detach(), found.nll.detach(), found.correct.detach()))
        rows_found = RowLosses(*(torch.cat(column) for column in zip(*parts, strict=True)))
        loss = (weights * rows_found.loss).sum()
    return WeightedLoss(gradients.attach(loss), rows_found)


def lowest(kind: torch.dtype) -> float:
    """The score that ParlAI gives an id which is never to be said."""
    from parlai.utils.torch import neginf

    score: float = neginf(kind)
    return score
