"""`-m safety:director`: DIRECTOR, a generator whose class head directs its replies, on ParlAI's transformer generator.

Source: Arora et al. 2022, arXiv:2206.07694; the loss is `parlai_safety.losses.director`, the model
`parlai_safety.modeling.class_head`. Plain examples train the language model; "pos" and "neg" ones train the class head,
and "pos" ones the language model too with `--director-lm-on-positive true`. Replies come from both heads. Perplexities
(`ppl`, `ppl_neg`, token accuracies) are those of the language model's head alone; candidates are ranked with both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.metrics import AverageMetric
from torch.utils.checkpoint import checkpoint

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.losses.director import class_costs, director_rows, lm_tokens, neutral_costs
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.rows import RowLosses, shared_weights
from parlai_safety.losses.whole import spread
from parlai_safety.modeling.class_head import Directed, OwnHead, SharedHead, direct
from parlai_safety.modeling.output import WeightedLoss, weighted_loss
from parlai_safety.options import option

_HEAD = "class_head."


@dataclass(frozen=True)
class DirectorOptions:
    """The options of DIRECTOR, declared once; the weights' defaults are those of the paper's safety experiment."""

    director_train_gamma: float = option(3.0, "Weight of the class head's loss in training.", symbol="gamma", low=0)
    director_infer_gamma: float = option(
        1.0,
        "Weight of the class head in replies; 0 answers with the language model alone.",
        symbol="gamma_infer",
        low=0,
    )
    director_shared: bool = option(
        False, "The class head is the language model's logits, scaled and shifted, and not a layer of its own."
    )
    director_lm_on_positive: bool = option(
        False,
        "Positive examples train the language model as well.",
        aliases=("--train-generator-with-pos-feedback-examples",),
    )
    director_neutral_weight: float = option(
        0.0, "Weight of the pull of the class head towards one half at ids that are not the target.", low=0
    )


class DirectorMixin(LabelledMixin):
    """DIRECTOR for any TorchGeneratorAgent: put it before the class and name that class as `backbone`.

    Further metrics: `class_loss` (mean binary cross-entropy of a labelled token, before gamma) and `class_acc` (share
    of labelled tokens whose class the head gets right at one half).
    """

    options_class = DirectorOptions
    method = "DIRECTOR"
    penalty_name = "ce_loss_neg"

    def build_model(self) -> Any:
        """ParlAI's model with a class head beside its output layer."""
        model = super().build_model()  # type: ignore[misc]
        if hasattr(model, "states_size"):
            size = model.states_size
        else:  # a recurrent decoder's states have a size of their own
            size = self.opt["hiddensize"] if "hiddensize" in self.opt else self.opt["embedding_size"]
        head = SharedHead() if self.settings.director_shared else OwnHead(len(self.dict), size)
        return direct(model, head, self.settings.director_infer_gamma)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load model parameters; a checkpoint of a plain generator leaves the class head as it begins."""
        if not any(name.startswith(_HEAD) for name in state_dict):
            fresh = {name: value for name, value in self.model.state_dict().items() if name.startswith(_HEAD)}
            state_dict = {**state_dict, **fresh}
        super().load_state_dict(state_dict)

    def token_weights(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The language model's tokens share the weight of 1; the others have none here."""
        return shared_weights(labels, lm_tokens(labels, mask, self.settings.director_lm_on_positive), alpha=0.0)

    def row_losses(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        """Cross-entropy of the language model's head."""
        return director_rows(logits, targets, labels)

    def weighted_loss(
        self, states: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, chunk: int
    ) -> WeightedLoss:
        """The weighted sum over N tokens under the language model's head."""
        model = self._directed().language_model
        return weighted_loss(model, states, targets, labels, weights, self.row_losses, chunk=chunk)

    def side_loss(
        self, states: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The class head's loss on labelled tokens, at the target alone but for the regulariser."""
        labelled = mask & (labels != TokenLabel.PLAIN)
        model = self._directed()
        rows, ids, kinds = states[labelled], targets[labelled], labels[labelled]
        said = model.class_head.at_targets(rows, ids, model.language_model)
        costs = class_costs(said, kinds)
        if labelled.any():
            right = (said > 0) == (kinds == TokenLabel.POSITIVE)
            self._record_tokens("class_loss", costs.detach(), labelled)
            self._record_tokens("class_acc", right, labelled)
        total = self.settings.director_train_gamma * costs.sum()
        if self.settings.director_neutral_weight:
            total = total + self.settings.director_neutral_weight * self._neutral(model, rows, ids, self._chunk(mask))
        loss: torch.Tensor = total / labelled.sum().clamp(min=1)
        return loss

    def _neutral(self, model: Directed, states: torch.Tensor, ids: torch.Tensor, chunk: int) -> torch.Tensor:
        def part(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return neutral_costs(model.class_scores(states[None])[0], ids).sum()

        pieces = zip(torch.split(states, chunk), torch.split(ids, chunk), strict=True)
        return torch.stack([checkpoint(part, *piece, use_reentrant=False) for piece in pieces]).sum()

    def _directed(self) -> Directed:
        model: Directed = getattr(self.model, "module", self.model)
        return model

    def _record_tokens(self, name: str, values: torch.Tensor, where: torch.Tensor) -> None:
        self.record_local_metric(name, AverageMetric.from_mask(spread(values, where), where))  # type: ignore[attr-defined]


class DirectorAgent(DirectorMixin, TransformerGeneratorAgent):
    """DIRECTOR on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
