"""What every method over labelled replies shares: labels into the batch, the chunked output layer, the metrics.

A method of this kind learns from replies to follow and from replies to avoid, token by token. It declares its options,
what a token costs (`row_losses`) and what that cost counts for (`token_weights`); the rest is here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from parlai.core.metrics import AverageMetric
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch
from parlai.core.torch_generator_agent import PPLMetric
from parlai.utils.fsdp import should_use_fsdp

from parlai_safety.agents.common import SafetyAgentMixin
from parlai_safety.agents.control import ControlMixin
from parlai_safety.agents.generation import FastGenerationMixin
from parlai_safety.errors import SafetyError
from parlai_safety.losses.labels import TokenLabel, parse_label
from parlai_safety.losses.rows import RowLosses
from parlai_safety.modeling.attention import fused_attention
from parlai_safety.modeling.output import WeightedLoss, decoder_states, logits_of, weighted_loss
from parlai_safety.options import add_options, option, options_from


@dataclass(frozen=True)
class OutputOptions:
    """How attention, the output layer and the loss are computed; the result is the same."""

    full_logits: bool = option(
        False, "Compute the scores of all target tokens at once (the plain form), not a chunk at a time."
    )
    chunk_tokens: int | None = option(
        None, "Target tokens a chunk of the output layer; left out, chosen from the vocabulary's size.", low=1
    )
    attention_kernel: str = option(
        "sdpa",
        "How ParlAI's transformer attends while a loss is computed: torch's fused attention, or ParlAI's own.",
        choices=("sdpa", "parlai"),
    )


class LabelledMixin(ControlMixin, FastGenerationMixin, SafetyAgentMixin):
    """Learning from labelled replies, for any TorchGeneratorAgent: put it before the class and name it as `backbone`.

    Metrics, beside ParlAI's: `ppl` and `token_acc` over tokens to follow, `ppl_neg` and `token_acc_neg` over tokens to
    avoid (a good model's `ppl_neg` is high), the method's `follow_name` and `penalty_name` (mean cost of a token of
    each kind, before its weight), `share_pos`, `share_neg`, `share_plain` of the target tokens.
    """

    options_class: type[Any]
    """The dataclass of the method's options; they are read into `self.settings`."""
    method = ""
    """The method's name, as the title of its group of flags."""
    follow_name = "ce_loss"
    """The metric that holds the mean cost of a token to follow."""
    penalty_name = "penalty"
    """The metric that holds the mean cost of a token to avoid."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the backbone's flags, those of the method and those of the output layer."""
        super().add_cmdline_args(parser, partial_opt)  # type: ignore[misc]
        add_options(parser, cls.options_class, cls.method)
        add_options(parser, OutputOptions, "Speed and memory")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.settings = options_from(opt, self.options_class)
        self.output_options = options_from(opt, OutputOptions)
        if should_use_fsdp(opt):
            raise SafetyError(
                f"--ddp-backend got {opt['ddp_backend']}",
                f"{type(self).__name__} computes its loss outside of the model's forward, where sharded weights "
                "are not to be had",
                "Type --ddp-backend ddp",
            )
        super().__init__(opt, shared)

    # --- what a method says -----------------------------------------------------------------------------------------

    def row_losses(self, logits: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        """What each of N tokens costs: logits (N, V), targets (N,), labels (N,)."""
        raise NotImplementedError(type(self).__name__)

    def token_weights(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What each token's cost counts for: (B, T), (B, T) -> (B, T) fp32, 0 where the mask is False."""
        raise NotImplementedError(type(self).__name__)

    def weighted_loss(
        self, states: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, chunk: int
    ) -> WeightedLoss:
        """The weighted sum over N tokens; a method with a quicker way of its own overrides this."""
        return weighted_loss(self.model, states, targets, labels, weights, self.row_losses, chunk=chunk)

    def side_loss(
        self, states: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor | None:
        """A further term from the decoder states (B, T, D), such as a second head's; None where there is none."""
        return None

    # --- what ParlAI calls ------------------------------------------------------------------------------------------

    def batchify(self, obs_batch: list[Any], sort: bool = False) -> Batch:
        """Add `token_labels` (B,), a `TokenLabel` for each example, to ParlAI's batch."""
        batch = super().batchify(obs_batch, sort=sort)  # type: ignore[misc]
        if batch.batchsize:
            batch["token_labels"] = torch.tensor(
                [parse_label(obs_batch[i].get("classifier_label", "none")) for i in batch.valid_indices]
            )
        return batch

    def compute_loss(self, batch: Batch, return_output: bool = False) -> Any:
        """The method's loss of a batch.

        Returns:
            The scalar loss; with `return_output`, the pair (loss, model output), where the model output is None unless
            token details are shown, as nothing else of ParlAI looks at it.
        """
        if batch.label_vec is None:
            raise ValueError("Cannot compute loss without a label.")
        targets = batch.label_vec
        labels = batch.get("token_labels")
        if labels is None:
            labels = targets.new_full((len(targets),), TokenLabel.PLAIN)
        labels = labels.to(targets.device)[:, None].expand_as(targets)
        mask = targets.ne(self.NULL_IDX)
        with self._attention():
            states = decoder_states(self.model, *self._model_input(batch), ys=targets)
        weights = self.token_weights(labels, mask)
        found = self.weighted_loss(states[mask], targets[mask], labels[mask], weights[mask], self._chunk(mask))
        loss = found.loss
        side = self.side_loss(states, targets, labels, mask)
        if side is not None:
            loss = loss + side
        self._record(found.rows, weights, labels, mask, None if side is None else side.detach())
        return self._answer(loss, states, return_output)

    def _attention(self) -> AbstractContextManager[Any]:
        """The attention that the options name, for a forward pass of the loss."""
        # Layers that are computed again in backward must then be what they were in forward.
        fused = self.output_options.attention_kernel == "sdpa" and not self.opt.get("checkpoint_activations")
        return fused_attention(self.model) if fused else nullcontext()

    def _answer(self, loss: torch.Tensor, states: torch.Tensor, return_output: bool) -> Any:
        """What `compute_loss` returns: the loss, or the loss with the model output of the labels' states (B, T, D)."""
        if not return_output:
            return loss
        if not self.show_token_details:
            return loss, None
        logits = logits_of(self.model, states)
        return loss, (logits, logits.argmax(-1), None)

    def _chunk(self, mask: torch.Tensor) -> int:
        counted = max(1, int(mask.sum()))
        if self.output_options.full_logits:
            return counted
        scores = CHUNK_SCORES.get(mask.device.type, CHUNK_SCORES_ELSEWHERE)
        return self.output_options.chunk_tokens or max(16, scores // len(self.dict))

    def _record(
        self,
        rows: RowLosses,
        weights: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
        side: torch.Tensor | None,
    ) -> None:
        def whole(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)

        def record(name: str, value: Any) -> None:
            self.record_local_metric(name, value)  # type: ignore[attr-defined]

        cost, nll, correct = whole(rows.loss.detach()), whole(rows.nll), whole(rows.correct)
        negative = mask & (labels == TokenLabel.NEGATIVE)
        positive = mask & ~negative
        plain = mask & (labels == TokenLabel.PLAIN)
        # The weights hold the batch's denominator: a mean over counted tokens of (count * weighted cost) is the loss.
        share = cost * weights * mask.sum()
        record("loss", AverageMetric.from_mask(share if side is None else share + side, mask))
        record("share_pos", AverageMetric.from_mask(positive & ~plain, mask))
        record("share_neg", AverageMetric.from_mask(negative, mask))
        record("share_plain", AverageMetric.from_mask(plain, mask))
        # A batch without tokens of a kind says nothing of that kind: a metric of 0/0 would read as a perplexity of 1.
        if positive.any():
            record(self.follow_name, AverageMetric.from_mask(cost, positive))
            record("ppl", PPLMetric.from_mask(nll, positive))
            record("token_acc", AverageMetric.from_mask(correct, positive))
            exact = ((correct | ~positive).all(-1)) & positive.any(-1)
            record("token_em", [AverageMetric(int(w), int(p)) for w, p in zip(exact, positive.any(-1), strict=True)])
        if negative.any():
            record(self.penalty_name, AverageMetric.from_mask(cost, negative))
            record("ppl_neg", PPLMetric.from_mask(nll, negative))
            record("token_acc_neg", AverageMetric.from_mask(correct, negative))

    model: Any
    dict: Any
    NULL_IDX: int
    show_token_details: bool
    _model_input: Any


CHUNK_SCORES = {"cpu": 2**24}
"""Scores a chunk holds at most, by kind of device: 64 MB of fp32 on the CPU."""
CHUNK_SCORES_ELSEWHERE = 2**26
"""On an accelerator, whose matrix products want more rows: 256 MB of fp32."""
