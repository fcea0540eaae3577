"""`-m safety:mle`: maximum likelihood on positive and plain replies; negative ones are passed over.

The simplest baseline of arXiv:2211.05826 ("transformer"), and the base model of our jobs: ParlAI's transformer
generator with the chunked output layer, the attention and the generation that every agent of ours has. On a task
without negative replies it computes what `-m transformer/generator` computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from parlai.agents.transformer.transformer import TransformerGeneratorAgent

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses, promoted, shared_weights


@dataclass(frozen=True)
class MleOptions:
    """Maximum likelihood has no options of its own."""


class MleMixin(LabelledMixin):
    """Maximum likelihood for any TorchGeneratorAgent: put it before the class and name that class as `backbone`."""

    options_class = MleOptions
    method = "Maximum likelihood"
    penalty_name = "ce_loss_neg"

    def token_weights(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Tokens to follow share the weight of 1; tokens to avoid have none."""
        return shared_weights(labels, mask & (labels != TokenLabel.NEGATIVE), alpha=0.0)

    def row_losses(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        """Cross-entropy of every token."""
        scores = promoted(logits)
        nll = F.cross_entropy(scores, targets, reduction="none")
        return RowLosses(nll, nll.detach(), scores.detach().argmax(-1) == targets)


class MleAgent(MleMixin, TransformerGeneratorAgent):
    """Maximum likelihood on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
