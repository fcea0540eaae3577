"""A class head beside a generator's output layer: what DIRECTOR adds to any TorchGeneratorModel.

A directed model answers with both heads: its `output` is log P_LM + gamma * log sigmoid(class logit), up to a constant,
so that every search and sampler over the model is directed, and none can forget it. Training and perplexity look at
`language_model`, which is the same model with its own output layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlai_safety.losses.director import director_scores
from parlai_safety.losses.rows import promoted
from parlai_safety.modeling.output import linear_output


class OwnHead(nn.Module):
    """A linear map of its own; it begins at zero, which says one half of everything and directs nothing.

    Args:
        vocabulary_size: V.
        states_size: D, the size of the decoder's states.
    """

    def __init__(self, vocabulary_size: int, states_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocabulary_size, states_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, states: Tensor, language_model: Any) -> Tensor:
        """Class logits of all ids: (B, T, D) -> (B, T, V)."""
        return F.linear(states.to(self.weight.dtype), self.weight, self.bias)

    def at_targets(self, states: Tensor, targets: Tensor, language_model: Any) -> Tensor:
        """Class logits of the targets alone: (N, D), (N,) -> (N,), at least fp32."""
        rows = F.embedding(targets, self.weight)
        return (promoted(states) * promoted(rows)).sum(-1) + promoted(self.bias[targets])


class SharedHead(nn.Module):
    """The language model's own logits, scaled and shifted by one number each; it begins as the logits themselves.

    That scale and shift are single numbers is our reading of "shared" in arXiv:2206.07694.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor, language_model: Any) -> Tensor:
        """Class logits of all ids: (B, T, D) -> (B, T, V)."""
        return promoted(language_model.output(states)) * self.scale + self.shift

    def at_targets(self, states: Tensor, targets: Tensor, language_model: Any) -> Tensor:
        """Class logits of the targets alone: (N, D), (N,) -> (N,), at least fp32."""
        layer = linear_output(language_model, states)
        if layer is None:
            logits = language_model.output(states[None])[0].gather(-1, targets[:, None]).squeeze(-1)
        else:
            logits = (promoted(layer.states) * promoted(F.embedding(targets, layer.weight))).sum(-1)
            if layer.bias is not None:
                logits = logits + promoted(layer.bias[targets])
        return promoted(logits) * self.scale + self.shift


class Directed:
    """The first base of a directed model, made by `direct`; the second is the model's former class."""

    former: type[nn.Module]
    class_head: OwnHead | SharedHead
    class_gamma: float

    @property
    def language_model(self) -> Any:
        """This model without its class head: an object of the former class that shares every part."""
        return _seen_as(self.former, self)

    def class_scores(self, states: Tensor) -> Tensor:
        """The class head's logits of all ids: (B, T, D) -> (B, T, V)."""
        scores: Tensor = self.class_head(states, self.language_model)
        return scores

    def output(self, states: Tensor) -> Tensor:
        """The scores to decode with: (B, T, D) -> (B, T, V)."""
        logits: Tensor = self.language_model.output(states)
        # Where the output layer is taken out to get at the states, there is nothing to direct.
        taken_out = isinstance(self.__dict__["_modules"].get("output"), nn.Identity)
        if taken_out or self.class_gamma == 0:
            return logits
        return director_scores(logits, self.class_scores(states), self.class_gamma)


def direct(model: Any, head: OwnHead | SharedHead, gamma: float) -> Any:
    """Give a generator a class head.

    Args:
        model: any `TorchGeneratorModel`.
        head: the head; its parameters become the model's, under `class_head`.
        gamma: weight of the class head in `output`, 0 for none.

    Returns:
        The model as an object of a class made of `Directed` and its former class; the old object shares every part.
    """
    model.class_head = head
    model.class_gamma = gamma
    former = type(model)
    return _seen_as(type(f"Directed{former.__name__}", (Directed, former), {"former": former}), model)


def _seen_as(kind: type[Any], model: Any) -> Any:
    """The same parts as an object of another class."""
    view = object.__new__(kind)
    object.__setattr__(view, "__dict__", model.__dict__)
    return view
