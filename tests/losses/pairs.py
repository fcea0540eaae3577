"""Batches of pairs for the tests of pairwise CRINGE and Click."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from .reference_pairs import Array


class PairBatch(NamedTuple):
    """The tensors of a loss over pairs, in the order of its arguments, and the example of each pair."""

    chosen_logits: Tensor
    chosen_targets: Tensor
    chosen_mask: Tensor
    rejected_logits: Tensor
    rejected_targets: Tensor
    rejected_mask: Tensor
    example: Tensor

    def call(self, loss: Any, **settings: Any) -> Any:
        """The loss of this batch."""
        return loss(*self[:6], example=self.example, **settings)

    def arrays(self) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array], list[int]]:
        """The same for a reference in numpy."""
        parts = [tensor.detach().numpy().copy() for tensor in self]
        return (parts[0], parts[1], parts[2]), (parts[3], parts[4], parts[5]), parts[6].tolist()

    def gradients(self, output: Any) -> tuple[Tensor, Tensor]:
        """Gradients of the loss with respect to both logits."""
        found = torch.autograd.grad(
            output.loss, (self.chosen_logits, self.rejected_logits), allow_unused=True, materialize_grads=True
        )
        return found[0], found[1]


def pair_batch(seed: int, example: tuple[int, ...] = (0, 2, 2), examples: int = 4, spread: float = 2.0) -> PairBatch:
    """Float64; by default four examples, of which two are in no pair and one is in two; the sides differ in length."""
    generator = torch.Generator().manual_seed(seed)
    sides: list[Tensor] = []
    for rows, steps in ((examples, 4), (len(example), 3)):
        mask = torch.rand(rows, steps, generator=generator) < 0.75
        mask[:, :1] = True
        logits = spread * torch.randn(rows, steps, 6, generator=generator, dtype=torch.float64)
        sides += [logits.requires_grad_(), torch.randint(6, (rows, steps), generator=generator), mask]
    return PairBatch(*sides, torch.tensor(example, dtype=torch.int64))


seeds = st.integers(0, 10_000)


def hand_worked() -> PairBatch:
    """One pair of two tokens each over three ids; scores are written as weights exp(logit).

    chosen    weights 4 2 2, target 0: p = 1/2;   weights 1 1 2, target 2: p = 1/2      -log p = ln 4  = 1.386294
    rejected  weights 6 3 1, target 0: p = 3/5;   weights 1 3 1, target 0: p = 1/5      -log p = ln 25/3 = 2.120264
    M = ln 25/3 - ln 4 = ln 25/12 = 0.733969
    The contrast of the rejected tokens: ln(1 + 6/3) = ln 3, and ln(1 + 1/3) = ln 4/3; together ln 4 = 1.386294.
    """

    def scores(*weights: list[float]) -> Tensor:
        return torch.tensor([weights], dtype=torch.float64).log().requires_grad_()

    mask = torch.ones(1, 2, dtype=torch.bool)
    return PairBatch(
        scores([4, 2, 2], [1, 1, 2]),
        torch.tensor([[0, 2]]),
        mask,
        scores([6, 3, 1], [1, 3, 1]),
        torch.tensor([[0, 0]]),
        mask,
        torch.tensor([0]),
    )
