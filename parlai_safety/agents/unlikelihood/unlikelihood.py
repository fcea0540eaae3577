"""`-m safety:unlikelihood`: unlikelihood training on labelled replies, on ParlAI's transformer generator.

Source: Welleck et al. 2019, arXiv:1908.04319; Li et al. 2020, arXiv:1911.03860; the loss is
`parlai_safety.losses.unlikelihood`. Each example may carry `classifier_label`: "pos", "neg" or "none" (the default).
With `alpha = 0`, or without negatives, this is maximum likelihood on what is to be followed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.losses.rows import RowLosses, separate_weights
from parlai_safety.losses.unlikelihood import unlikelihood_rows
from parlai_safety.options import option


@dataclass(frozen=True)
class UnlikelihoodOptions:
    """The options of unlikelihood training, declared once."""

    unlikelihood_alpha: float = option(1.0, "Weight of the unlikelihood part.", symbol="alpha", low=0)


class UnlikelihoodMixin(LabelledMixin):
    """Unlikelihood for any TorchGeneratorAgent: put it before the class and name that class as `backbone`."""

    options_class = UnlikelihoodOptions
    method = "Unlikelihood"
    penalty_name = "unlikelihood_loss"

    def token_weights(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Each kind of token has a denominator of its own, as in the released code."""
        return separate_weights(labels, mask, self.settings.unlikelihood_alpha)

    def row_losses(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        """-log p of tokens to follow, -log(1 - p) of tokens to avoid."""
        return unlikelihood_rows(logits, targets, labels)


class UnlikelihoodAgent(UnlikelihoodMixin, TransformerGeneratorAgent):
    """Unlikelihood on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
