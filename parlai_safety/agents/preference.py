"""What DPO and adversarial DPO share: replies into the batch, the frozen models, the one pass, metrics, the monitor.

A message has the chosen reply as its label and others in `rejected`; each of these makes a pair with the label. It may
have one reply in `toxic`, whose term of the loss counts once, with the first pair. A message without `rejected` is
ordinary talk, mixed in by multitasking, and is language modelling: it costs the mean -log p of a token. The loss of a
batch is the mean over pairs and pieces of ordinary talk.

The loss of adversarial DPO is a reconstruction, see `parlai_safety.losses.adpo`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parlai.core.exceptions import StopTrainException
from parlai.core.metrics import AverageMetric
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import Batch
from parlai.core.torch_generator_agent import PPLMetric
from parlai.utils import logging
from parlai.utils.distributed import is_distributed
from torch import Tensor

from parlai_safety.agents.collapse import CollapseMonitor, CollapseOptions
from parlai_safety.agents.reference import ReferenceMixin
from parlai_safety.agents.replies import RepliesMixin
from parlai_safety.agents.reply_layout import ReplyLayout, reply_layout
from parlai_safety.errors import SafetyError
from parlai_safety.losses.adpo import ADPOOutput, adpo_loss, check_adpo
from parlai_safety.losses.dpo import PREFERENCES
from parlai_safety.modeling.contexts import reply_states
from parlai_safety.modeling.control import append_token
from parlai_safety.modeling.frozen import silence_dropout
from parlai_safety.modeling.preference_output import Replies, SummedLoss, summed_loss
from parlai_safety.options import add_options, option, options_from


@dataclass(frozen=True)
class PreferenceOptions:
    """The options that DPO and adversarial DPO share, declared once."""

    beta: float = option(
        0.1, "Strength of the pull to the reference; above 0.", symbol="beta", low=0, aliases=("--dpo-beta",)
    )
    dpo_preference: str = option("sigmoid", "Form of the chosen-rejected term.", choices=PREFERENCES)
    dpo_label_smoothing: float = option(
        0.0,
        "Share of pairs that are believed to be swapped (cDPO), below one half.",
        low=0,
        high=0.49,
    )
    dpo_per_token: bool = option(False, "Compare mean log-probabilities of a token and not those of whole replies.")
    dpo_nll_weight: float = option(
        0.0, "Weight of the likelihood of chosen replies, per token, which holds them up.", low=0
    )
    preference_dropout: bool = option(
        False, "Keep dropout in training; without it the model differs from its reference by its weights alone."
    )


class LossSettings(NamedTuple):
    """The settings of `parlai_safety.losses.adpo_loss`, by its names."""

    beta: float
    gamma: float
    toxic_weight: float
    anchor: str
    paired: bool
    joint: bool
    preference: str
    label_smoothing: float
    per_token: bool
    nll_weight: float


class _Frozen(NamedTuple):
    """What the frozen models say of the R replies, in nats; 0 where they were not asked."""

    reference: Tensor
    """(R,)."""
    toxic: Tensor
    """(R,) behind the control token."""


class PreferenceMixin(ReferenceMixin, RepliesMixin):
    """DPO's family for any TorchGeneratorAgent: put it before the class and name it as `backbone`.

    Metrics, beside ParlAI's: `rewards_chosen`, `rewards_rejected`, `rewards_toxic` (beta or gamma times the log-ratio
    to the reference or anchor), `rewards_margins` (chosen minus rejected), `rewards_accuracies` (share of pairs where
    it is above 0), `rewards_toxic_accuracies` (share where the log-ratio to the reference is higher for the chosen
    than for the toxic reply), `toxic_gap` (g of the loss: log p of the toxic reply under the toxic model minus that
    under the reference), `logps_chosen`, `logps_rejected`, `logps_toxic` (nats a reply), `logps_chosen_drift` (nats
    that a chosen reply gained since the reference), `chosen_drift` (the same in nats a token; far below 0 the model is
    collapsing), `kl_ref` (mean log p under the reference minus log p, nats a token of chosen and rejected replies: an
    estimate of the divergence KL(reference || model), as far as these replies are the reference's own), `chosen_nll`
    and `rejected_nll` (nats a token), `share_pairs` (share of examples that are in a pair), `collapsed` (1 where the
    monitor says so). `ppl` and `token_acc` are over labels (chosen replies and ordinary talk), `ppl_neg` and
    `token_acc_neg` over rejected replies.
    """

    reply_fields = ("rejected", "toxic")

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of the method, of the reference and of the monitor."""
        super().add_cmdline_args(parser, partial_opt)
        add_options(parser, CollapseOptions, "Collapse")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.monitor = CollapseMonitor(options_from(opt, CollapseOptions))
        super().__init__(opt, shared)
        terms = self.loss_settings()
        checked = terms._asdict()
        del checked["paired"], checked["per_token"]
        check_adpo(**checked)
        if terms.toxic_weight > 0 and terms.anchor == "toxic" and (self.toxic_id is None or self.resized_embeddings):
            whose = "model" if self.toxic_id is None else "checkpoint of the reference"
            raise SafetyError(
                f"--adpo-anchor is toxic, and the {whose} has no control token",
                "The toxic reply is measured against the reference behind that token, which it learned in an earlier "
                "training",
                "Begin from a model that was trained with --toxic-token true and give that flag here too, or give "
                "--adpo-anchor reference",
            )
        if shared is None and not self.settings.preference_dropout:
            silence_dropout(self.model)

    # --- what a method says -----------------------------------------------------------------------------------------

    def loss_settings(self) -> LossSettings:
        """The settings of the loss; without a toxic term it is DPO."""
        options = self.settings
        return LossSettings(
            beta=options.beta,
            gamma=0.1,
            toxic_weight=0.0,
            anchor="reference",
            paired=False,
            joint=False,
            preference=options.dpo_preference,
            label_smoothing=options.dpo_label_smoothing,
            per_token=options.dpo_per_token,
            nll_weight=options.dpo_nll_weight,
        )

    # --- what ParlAI calls ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """ParlAI's state, and the monitor's."""
        return {**super().state_dict(), "collapse": self.monitor.state()}

    def load(self, path: str) -> dict[str, Any]:
        """Load ParlAI's state, and the monitor's where a run goes on."""
        states = super().load(path)
        if self._is_own(path) and "collapse" in states:
            self.monitor.restore(states["collapse"])
        return states

    def batchify(self, obs_batch: list[Any], sort: bool = False) -> Batch:
        """See that toxic replies stand where they can count, and the control token where the model may read it.

        Raises:
            SafetyError: a message has several toxic replies, has one and no rejected reply, or has a rejected one and
                asks for the control token.
        """
        batch = super().batchify(obs_batch, sort=sort)
        toxic = [] if batch.get("toxic_example") is None else batch["toxic_example"].tolist()
        paired = set() if batch.get("rejected_example") is None else set(batch["rejected_example"].tolist())
        if len(set(toxic)) < len(toxic) or not paired.issuperset(toxic):
            raise SafetyError(
                "a message has several replies in 'toxic', or one there and none in 'rejected'",
                "The loss compares a chosen, a rejected and at most one toxic reply to a context",
                "Give one toxic reply a message and a rejected one beside it; to learn from chosen and toxic replies "
                "alone, give the toxic one as 'rejected' to -m safety:dpo",
            )
        control = batch.get("control")
        if control is not None and control[sorted(paired)].any():
            raise SafetyError(
                "a message has 'rejected', and its 'control' asks for the control token",
                "The token makes the toxic model of the frozen one; the model that is trained never reads it beside a "
                "preference",
                "Leave 'control' out of messages with rejected replies",
            )
        return batch

    def compute_loss(self, batch: Batch, return_output: bool = False) -> Any:
        """The method's loss of a batch.

        Returns:
            The scalar loss; with `return_output`, the pair (loss, model output), where the model output is None unless
            token details are shown, as nothing else of ParlAI looks at it.

        Raises:
            StopTrainException: training collapsed, and `--collapse-action` is stop.
        """
        if batch.label_vec is None:
            raise ValueError("Cannot compute loss without a label.")
        layout = reply_layout(batch, self.NULL_IDX, with_toxic=self.loss_settings().toxic_weight > 0)
        mask, chunk = layout.mask, self._chunk(layout.mask)
        frozen = self._ask_frozen(batch, layout, chunk)
        with self._attention():
            states = reply_states(self.model, *self._model_input(batch), ys=layout.targets, example=layout.example)

        def cost(logps: Tensor, first: int, last: int) -> Tensor:
            return self._costs(layout, frozen, logps, first, last).sum() / layout.rows

        found = summed_loss(
            self.model,
            states[mask],
            layout.targets[mask],
            Replies(layout.counts, layout.sizes),
            cost,
            chunk=chunk,
            plain=self.output_options.full_logits,
        )
        self._record_preferences(layout, frozen, found)
        if torch.is_grad_enabled() and self.model.training:
            self._watch(layout, frozen, found)
        if not return_output:
            return found.loss
        return self._answer(found.loss, states[layout.label], return_output)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _ask_frozen(self, batch: Batch, layout: ReplyLayout, chunk: int) -> _Frozen:
        """The log-probabilities of the frozen models; ordinary talk needs none."""
        nothing = torch.zeros(len(layout.targets), dtype=torch.float64, device=layout.targets.device)
        frozen = _Frozen(nothing, nothing.clone())
        terms, prompts = self.loss_settings(), self.named_prompts(batch)
        if not layout.chosen_places:
            return frozen
        plain = torch.ones_like(layout.example, dtype=torch.bool).index_fill(0, layout.talk, False).nonzero()[:, 0]
        asked, of = plain, layout.example[plain]
        if terms.anchor == "toxic" and terms.toxic_weight > 0:
            triples = layout.pairs[layout.has_toxic]
            behind = torch.cat((triples[:, 2], triples[:, 0])) if terms.paired else triples[:, 2]
            assert self.toxic_id is not None
            toxic = append_token(prompts, self.toxic_id, self.NULL_IDX, limit=self.prompt_limit)
            width = max(prompts.size(1), toxic.size(1))
            prompts = torch.cat([F.pad(ids, (0, width - ids.size(1)), value=self.NULL_IDX) for ids in (prompts, toxic)])
            asked = torch.cat((plain, behind))
            of = torch.cat((of, layout.example[behind] + len(batch.text_vec)))
        found = self.reference_logps(prompts, layout.targets[asked], of, chunk=chunk)
        frozen.reference[plain] = found[: len(plain)]
        frozen.toxic[asked[len(plain) :]] = found[len(plain) :]
        return frozen

    def _costs(self, layout: ReplyLayout, frozen: _Frozen, logps: Tensor, first: int, last: int) -> Tensor:
        """What each pair and each piece of ordinary talk costs, of the replies [first, last) with these log p."""
        costs = []
        begin, end = (bisect_left(layout.chosen_places, place) for place in (first, last))
        if end > begin:
            costs.append(self._terms(layout, frozen, logps, first, slice(begin, end)).losses)
        begin, end = (bisect_left(layout.talk_places, place) for place in (first, last))
        if end > begin:
            talk = layout.talk[begin:end]
            costs.append(-logps[talk - first] / layout.tokens[talk])
        return torch.cat(costs)

    def _terms(self, layout: ReplyLayout, frozen: _Frozen, logps: Tensor, first: int, pairs: slice) -> ADPOOutput:
        """The loss of some pairs, from the log p of the replies from `first` on."""
        triples = layout.pairs[pairs]
        policy = logps[triples - first]
        reference, toxic = (scores[triples].to(logps.dtype) for scores in frozen)
        tokens = layout.tokens[triples]
        return adpo_loss(
            policy_chosen_logps=policy[:, 0],
            policy_rejected_logps=policy[:, 1],
            policy_toxic_logps=policy[:, 2],
            reference_chosen_logps=reference[:, 0],
            reference_rejected_logps=reference[:, 1],
            reference_toxic_logps=reference[:, 2],
            toxic_chosen_logps=toxic[:, 0],
            toxic_toxic_logps=toxic[:, 2],
            chosen_tokens=tokens[:, 0],
            rejected_tokens=tokens[:, 1],
            toxic_tokens=tokens[:, 2],
            has_toxic=layout.has_toxic[pairs],
            **self.loss_settings()._asdict(),
        )

    def _watch(self, layout: ReplyLayout, frozen: _Frozen, found: SummedLoss) -> None:
        """Let the monitor see the batch; the processes of a data-parallel run see the same.

        Raises:
            StopTrainException: as in `compute_loss`.
        """
        chosen = layout.pairs[:, 0]
        gained = (found.logps[chosen] - frozen.reference[chosen]).double().sum()
        seen = torch.stack((found.loss.detach().double(), gained, layout.tokens[chosen].sum().double()))
        if is_distributed():
            torch.distributed.all_reduce(seen)
        loss, nats, tokens = seen.tolist()
        why = self.monitor.see(self._number_training_updates, nats, tokens, loss=loss)
        self.global_metrics.add("collapsed", AverageMetric(int(self.monitor.collapsed)))
        if why is None:
            return
        logging.error(f"Training collapsed: {why}")
        if self.monitor.stops:
            raise StopTrainException(f"a collapse: {why}")

    def _record_preferences(self, layout: ReplyLayout, frozen: _Frozen, found: SummedLoss) -> None:
        examples, pairs = len(layout.label), layout.pairs
        logps, tokens, correct = found.logps.double(), layout.tokens, found.correct
        of = layout.example[pairs[:, 0]]
        ones = torch.ones_like(of)
        columns: list[tuple[str, Tensor, Tensor, Any]] = []

        def by_example(values: Tensor) -> Tensor:
            return values.new_zeros(examples).index_add(0, of, values)

        def record(name: str, values: Tensor, counts: Tensor, kind: Any = AverageMetric) -> None:
            columns.append((name, values, counts, kind))

        def of_pairs(name: str, values: Tensor, counts: Tensor = ones, kind: Any = AverageMetric) -> None:
            record(name, by_example(values), by_example(counts), kind)

        label, each = layout.label, torch.ones_like(layout.label)
        costs = -logps / tokens.clamp(min=1)
        talk = torch.zeros(examples, dtype=torch.float64, device=of.device)
        talk[layout.example[layout.talk]] = costs[layout.talk]
        record("ppl", -logps[label], tokens[label], PPLMetric)
        record("token_acc", correct[label], tokens[label])
        record("token_em", (correct == tokens)[label], each)
        record("share_pairs", by_example(ones).clamp(max=1), each)
        if not len(pairs):  # a metric of 0/0 would read as a margin of 0
            record("loss", talk, each)
            self._write(columns)
            return
        terms = self._terms(layout, frozen, logps, 0, slice(None))
        chosen, rejected, toxic = pairs.unbind(1)
        gained = logps - frozen.reference
        margins = terms.chosen_rewards - terms.rejected_rewards
        both = tokens[chosen] + tokens[rejected]
        record("loss", by_example(terms.losses) + talk, by_example(ones).clamp(min=1))
        of_pairs("rewards_chosen", terms.chosen_rewards)
        of_pairs("rewards_rejected", terms.rejected_rewards)
        of_pairs("rewards_margins", margins)
        of_pairs("rewards_accuracies", (margins > 0).long())
        of_pairs("logps_chosen", logps[chosen])
        of_pairs("logps_rejected", logps[rejected])
        of_pairs("logps_chosen_drift", gained[chosen])
        of_pairs("chosen_drift", gained[chosen], tokens[chosen])
        of_pairs("kl_ref", -gained[chosen] - gained[rejected], both)
        of_pairs("chosen_nll", -logps[chosen], tokens[chosen])
        of_pairs("rejected_nll", -logps[rejected], tokens[rejected])
        of_pairs("ppl_neg", -logps[rejected], tokens[rejected], PPLMetric)
        of_pairs("token_acc_neg", correct[rejected], tokens[rejected])
        if terms.toxic_rewards is not None and layout.has_toxic.any():
            has = layout.has_toxic.long()
            of_pairs("rewards_toxic", terms.toxic_rewards, has)
            of_pairs("rewards_toxic_accuracies", (gained[chosen] > gained[toxic]).long() * has, has)
            of_pairs("logps_toxic", logps[toxic] * has, has)
            if self.loss_settings().anchor == "toxic":
                of_pairs("toxic_gap", (frozen.toxic - frozen.reference)[toxic] * has, has)
        self._write(columns)

    def _write(self, columns: list[tuple[str, Tensor, Tensor, Any]]) -> None:
        # One transfer from the device for all.
        table = torch.stack([part.double() for _, values, counts, _ in columns for part in (values, counts)]).tolist()
        for place, (name, _, _, kind) in enumerate(columns):
            self.record_local_metric(name, kind.many(table[2 * place], table[2 * place + 1]))

    global_metrics: Any
    record_local_metric: Any
    resized_embeddings = False
    _model_input: Any
