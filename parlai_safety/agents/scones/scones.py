"""`-m safety:scones`: sigmoid-only training (SCONES) on labelled replies, on ParlAI's transformer generator.

Source: the baseline "Sigmoid-only" of Adolphs et al. 2022, arXiv:2211.05826, after arXiv:2205.00704; the loss, and what
its source leaves open, is in `parlai_safety.losses.scones`. The trained model is a plain generator: replies come from
its logits through a softmax, and so do the perplexities. The metric `sigmoid_loss` is the cost of a token to follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.losses.rows import RowLosses, separate_weights
from parlai_safety.losses.scones import scones_rows
from parlai_safety.options import option


@dataclass(frozen=True)
class SconesOptions:
    """The options of sigmoid-only training, declared once."""

    scones_alpha_pm: float = option(
        1.0, "Weight of the other ids of the vocabulary at a token to follow.", symbol="alpha_pm", low=0
    )
    scones_alpha_minus: float = option(1.0, "Weight of the tokens to avoid.", symbol="alpha_minus", low=0)


class SconesMixin(LabelledMixin):
    """Sigmoid-only training for any TorchGeneratorAgent: put it before the class and name that as `backbone`."""

    options_class = SconesOptions
    method = "SCONES"
    follow_name = "sigmoid_loss"
    penalty_name = "scones_loss"

    def token_weights(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Each kind of token has a denominator of its own."""
        return separate_weights(labels, mask, self.settings.scones_alpha_minus)

    def row_losses(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        """L+ and L+- of tokens to follow, L- of tokens to avoid."""
        return scones_rows(logits, targets, labels, alpha_pm=self.settings.scones_alpha_pm)


class SconesAgent(SconesMixin, TransformerGeneratorAgent):
    """Sigmoid-only training on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
