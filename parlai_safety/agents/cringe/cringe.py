"""`-m safety:cringe`: contrastive iterative negative generation (CRINGE) on ParlAI's transformer generator.

Source: Adolphs et al. 2022, arXiv:2211.05826; the loss is `parlai_safety.losses.cringe`. The agent gathers the tensors,
calls the loss and records metrics. It leaves out the iterations, which are a loop around it (`parlai_safety.loops`).

Each example may carry `classifier_label`: "pos" (follow it), "neg" (avoid it) or "none" (plain language modelling, the
default). With `alpha = 0`, or without negatives, this is ParlAI's own generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.opt import Opt

from parlai_safety.agents.draws import DrawsMixin
from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import cringe_rows, uniform_draws
from parlai_safety.losses.rows import shared_weights
from parlai_safety.modeling.cringe_output import cringe_weighted_loss
from parlai_safety.modeling.output import WeightedLoss, linear_output, weighted_loss
from parlai_safety.options import option


@dataclass(frozen=True)
class CringeOptions:
    """The options of CRINGE, declared once."""

    cringe_alpha: float = option(
        1.0, "Weight of the contrastive part.", symbol="alpha", low=0, aliases=("--ct-loss-weight",)
    )
    cringe_k: int = option(
        1,
        "The positive token is sampled among the k highest logits without the negative token.",
        symbol="k",
        low=1,
        aliases=("--ct-num-pos-predictions",),
    )
    cringe_detach_positive: bool = option(
        False, "Stop the gradient through the sampled positive token.", aliases=("--ct-detach-positives",)
    )
    cringe_seed: int = option(0, "Seed of the sampling of positive tokens; the rank is added.", low=0)


class CringeMixin(DrawsMixin, LabelledMixin):
    """CRINGE for any TorchGeneratorAgent: put it before the class and name that class as `backbone`."""

    options_class = CringeOptions
    method = "CRINGE"
    penalty_name = "cringe_loss"
    draws_name = "cringe_sampler"

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        super().__init__(opt, shared)
        if self.settings.cringe_k > len(self.dict) - 1:
            raise SafetyError(
                f"--cringe-k got {self.settings.cringe_k}",
                f"The dictionary has only {len(self.dict)} tokens, and one of them is the negative token itself",
                f"Give --cringe-k at most {len(self.dict) - 1}; the papers use 1 and 5",
            )

    def draws_seed(self) -> int:
        """As `DrawsMixin` says."""
        return int(self.settings.cringe_seed)

    def token_weights(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Both kinds of token share one denominator, as in the released code."""
        return shared_weights(labels, mask, self.settings.cringe_alpha)

    def weighted_loss(
        self, states: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, chunk: int
    ) -> WeightedLoss:
        """CRINGE over the counted tokens: in training the quick road, where the output layer is known to be linear."""
        k, detach_positive = self.settings.cringe_k, self.settings.cringe_detach_positive
        draws = uniform_draws(labels, k=k, generator=None if k == 1 else self.source(labels.device))
        if torch.is_grad_enabled() and not self.output_options.full_logits and len(states):
            layer = linear_output(self.model, states)
            if layer is not None:
                return cringe_weighted_loss(
                    layer, targets, labels, weights, draws, k=k, detach_positive=detach_positive, chunk=chunk
                )
        rows = partial(cringe_rows, k=k, detach_positive=detach_positive)
        return weighted_loss(self.model, states, targets, labels, weights, rows, chunk=chunk, columns=(draws,))


class CringeAgent(CringeMixin, TransformerGeneratorAgent):
    """CRINGE on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
