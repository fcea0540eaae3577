"""`-m safety:cringe`: contrastive iterative negative generation (CRINGE) on ParlAI's transformer generator.

Source: Adolphs et al. 2022, arXiv:2211.05826; the loss is `parlai_safety.losses.cringe`. The agent gathers the tensors,
calls the loss and records metrics. It leaves out the iterations, which are a loop around it (`parlai_safety.loops`).

Each example may carry `classifier_label`: "pos" (follow it), "neg" (avoid it) or "none" (plain language modelling, the
default). With `alpha = 0`, or without negatives, this is ParlAI's own generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.metrics import AverageMetric
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch
from parlai.core.torch_generator_agent import PPLMetric
from parlai.utils.distributed import get_rank

from parlai_safety.agents.common import SafetyAgentMixin
from parlai_safety.errors import SafetyError
from parlai_safety.losses.cringe import CringeOutput, cringe_loss
from parlai_safety.losses.labels import TokenLabel, parse_label
from parlai_safety.options import add_options, option, options_from


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


class CringeMixin(SafetyAgentMixin):
    """CRINGE for any TorchGeneratorAgent: put it before the class and name that class as `backbone`.

    Metrics, beside ParlAI's: `ce_loss` and `cringe_loss` (mean a token of their kind, before alpha), `ppl` and
    `token_acc` over positive and plain tokens, `ppl_neg` and `token_acc_neg` over negative tokens (a good model's
    `ppl_neg` is high), `share_pos`, `share_neg`, `share_plain` of the target tokens.
    """

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the backbone's flags and those of `CringeOptions`."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        add_options(parser, CringeOptions, "CRINGE")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.cringe = options_from(opt, CringeOptions)
        self._training_sampler: torch.Generator | None = None
        self._sampler_state: tuple[str, torch.Tensor] | None = None
        super().__init__(opt, shared)
        if self.cringe.cringe_k > len(self.dict) - 1:
            raise SafetyError(
                f"--cringe-k got {self.cringe.cringe_k}",
                f"The dictionary has only {len(self.dict)} tokens, and one of them is the negative token itself",
                f"Give --cringe-k at most {len(self.dict) - 1}; the papers use 1 and 5",
            )

    def batchify(self, obs_batch: list[Any], sort: bool = False) -> Batch:
        """Add `token_labels` (B,), a `TokenLabel` for each example, to ParlAI's batch."""
        batch = super().batchify(obs_batch, sort=sort)  # type: ignore[misc]
        if batch.batchsize:
            batch["token_labels"] = torch.tensor(
                [parse_label(obs_batch[i].get("classifier_label", "none")) for i in batch.valid_indices]
            )
        return batch

    def compute_loss(self, batch: Batch, return_output: bool = False) -> Any:
        """CE on positive and plain replies plus alpha times the contrastive loss on negative ones.

        Returns:
            The scalar loss, mean over target tokens; with `return_output`, the pair (loss, model output).
        """
        if batch.label_vec is None:
            raise ValueError("Cannot compute loss without a label.")
        model_output = self.model(*self._model_input(batch), ys=batch.label_vec)
        logits, predictions, *_ = model_output
        targets = batch.label_vec
        labels = batch.get("token_labels")
        if labels is None:
            labels = targets.new_full((len(targets),), TokenLabel.PLAIN)
        output = cringe_loss(
            logits,
            targets,
            labels,
            targets.ne(self.NULL_IDX),
            k=self.cringe.cringe_k,
            alpha=self.cringe.cringe_alpha,
            detach_positive=self.cringe.cringe_detach_positive,
            generator=self._sampler(logits.device),
        )
        self._record(output, logits.detach(), predictions, targets, labels)
        return (output.loss, model_output) if return_output else output.loss

    def state_dict(self) -> dict[str, Any]:
        """ParlAI's state with the sampler's, so that a resumed run draws what the straight run would have drawn."""
        states: dict[str, Any] = super().state_dict()  # type: ignore[misc]
        sampler = self._training_sampler
        # A model that was loaded and not trained on hands its state over as it got it.
        state = self._sampler_state if sampler is None else (sampler.device.type, sampler.get_state())
        if state is not None:
            states["cringe_sampler"] = state
        return states

    def load(self, path: str) -> dict[str, Any]:
        """Load ParlAI's state, and the sampler's where a run goes on; one from `--init-model` starts a new sampler."""
        states: dict[str, Any] = super().load(path)  # type: ignore[misc]
        own = str(self.opt.get("model_file"))
        if path in (own, f"{own}.checkpoint"):
            self._sampler_state = states.get("cringe_sampler")
        return states

    def _sampler(self, device: torch.device) -> torch.Generator | None:
        """The source of positive tokens: none for k = 1, a fresh one for each batch of evaluation, one for training."""
        if self.cringe.cringe_k == 1:
            return None
        if not torch.is_grad_enabled():
            return torch.Generator(device=device).manual_seed(self.cringe.cringe_seed)
        if self._training_sampler is None:
            sampler = torch.Generator(device=device).manual_seed(self.cringe.cringe_seed + get_rank())
            # Ranks draw different tokens, and only the first one's state is in the checkpoint. A state of another kind
            # of device has another form, and there the sampler starts anew.
            if self._sampler_state is not None and get_rank() == 0 and self._sampler_state[0] == device.type:
                sampler.set_state(self._sampler_state[1].cpu())
            self._training_sampler = sampler
        return self._training_sampler

    def _record(
        self,
        output: CringeOutput,
        logits: torch.Tensor,
        predictions: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        positive, negative = output.positive_mask, output.negative_mask
        counted = positive | negative
        ce, contrastive = output.ce_tokens.detach(), output.contrastive_tokens.detach()
        correct = predictions == targets
        plain = positive & (labels == TokenLabel.PLAIN).unsqueeze(-1)

        def record(name: str, value: Any) -> None:
            self.record_local_metric(name, value)  # type: ignore[attr-defined]

        record("loss", AverageMetric.from_mask(ce + self.cringe.cringe_alpha * contrastive, counted))
        record("share_pos", AverageMetric.from_mask(positive & ~plain, counted))
        record("share_neg", AverageMetric.from_mask(negative, counted))
        record("share_plain", AverageMetric.from_mask(plain, counted))
        # A batch without tokens of a kind says nothing of that kind: a metric of 0/0 would read as a perplexity of 1.
        if positive.any():
            record("ce_loss", AverageMetric.from_mask(ce, positive))
            record("ppl", PPLMetric.from_mask(ce, positive))
            record("token_acc", AverageMetric.from_mask(correct, positive))
            whole = ((correct | ~positive).all(-1)) & positive.any(-1)
            record("token_em", [AverageMetric(int(w), int(p)) for w, p in zip(whole, positive.any(-1), strict=True)])
        if negative.any():
            with torch.no_grad():
                negative_ce = torch.zeros_like(ce)
                negative_ce[negative] = F.cross_entropy(
                    logits[negative].float(), targets[negative], reduction="none"
                ).to(ce.dtype)
            record("cringe_loss", AverageMetric.from_mask(contrastive, negative))
            record("ppl_neg", PPLMetric.from_mask(negative_ce, negative))
            record("token_acc_neg", AverageMetric.from_mask(correct, negative))

    model: Any
    dict: Any
    NULL_IDX: int
    _model_input: Any


class CringeAgent(CringeMixin, TransformerGeneratorAgent):
    """CRINGE on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
