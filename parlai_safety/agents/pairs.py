"""What the methods over chosen and rejected replies share: pairs into the batch, the two passes, the metrics.

A message of a pair has the chosen reply as its label and the other in `rejected`; with several there, each makes a
pair with the label. A message without `rejected` is ordinary talk, mixed in by multitasking, and is language modelling.

The loss of such a method is a function of sums over the tokens of each reply. So the chunked output layer is passed
twice: first without gradient for the sums of the pairs, which say what each token weighs, and then with gradient for
the weighted sum of tokens. The result is exactly that of the plain form.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parlai.core.metrics import AverageMetric
from parlai.core.torch_agent import Batch
from parlai.core.torch_generator_agent import PPLMetric
from torch import Tensor

from parlai_safety.agents.replies import RepliesMixin
from parlai_safety.losses.cringe import cringe_rows, uniform_draws
from parlai_safety.losses.labels import TokenLabel
from parlai_safety.losses.pairs import PairSums
from parlai_safety.losses.rows import RowLosses, promoted
from parlai_safety.modeling.contexts import reply_states
from parlai_safety.modeling.cringe_output import cringe_weighted_loss
from parlai_safety.modeling.output import WeightedLoss, linear_output, logits_of, weighted_loss


class PairTerms(NamedTuple):
    """What a method makes of the sums of a batch."""

    loss: Tensor
    """Scalar, with gradient to the sums."""
    margins: Tensor
    """(P,) log p(chosen) - log p(rejected), no gradient."""
    strength: Tensor
    """(P,) how much the method still works on the pair, no gradient; recorded under `strength_name`."""


class _Replies(NamedTuple):
    """The R = B + P replies of a batch: first the labels of B examples, then the P rejected ones; N tokens count."""

    targets: Tensor
    """(R, T)."""
    mask: Tensor
    """(R, T) bool."""
    example: Tensor
    """(R,) the example of each reply."""
    pairs: int
    """P."""
    labels: Tensor
    """(N,) POSITIVE in chosen replies, NEGATIVE in rejected ones, PLAIN in ordinary talk."""

    def sums(self, values: Tensor) -> Tensor:
        """(N,) -> (R,), the sum over the tokens of each reply."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values).sum(-1)

    def each(self, values: Tensor) -> Tensor:
        """(R,) -> (N,), the value of its reply for each token."""
        return values[:, None].expand(self.mask.shape)[self.mask]

    def pair_sums(self, nll: Tensor, cost: Tensor) -> PairSums:
        """From sums (R,) of -log p, and of the cost of rejected replies."""
        examples, tokens = len(self.targets) - self.pairs, self.mask.sum(-1)
        return PairSums(
            chosen_nll=nll[:examples],
            chosen_tokens=tokens[:examples],
            rejected_nll=nll[examples:],
            rejected_cost=cost[examples:],
            rejected_tokens=tokens[examples:],
            example=self.example[examples:],
        )


class _Tokens(NamedTuple):
    """The N counted tokens, or some of them."""

    states: Tensor
    """(N, D) decoder states, with gradient."""
    targets: Tensor
    """(N,)."""
    kinds: Tensor
    """(N,) NEGATIVE where the token's cost is CRINGE's contrast; elsewhere it is its -log p."""
    draws: Tensor
    """(N,) float64, the random numbers of the contrast."""

    def at(self, places: Tensor) -> _Tokens:
        """Those at some places, which may repeat."""
        return _Tokens(*(column[places] for column in self))


class PairMixin(RepliesMixin):
    """Learning from pairs of replies, for any TorchGeneratorAgent: put it before the class and name it as `backbone`.

    Metrics, beside ParlAI's: `margin` (mean log p(chosen) - log p(rejected)), `pair_acc` (share of pairs with a margin
    above 0), `chosen_nll` and `rejected_nll` (nats a token of the pairs' replies) and the method's `strength_name`.
    `ppl` and `token_acc` are over labels (chosen replies and ordinary talk), `ppl_neg` and `token_acc_neg` over
    rejected replies. `share_pairs` is the share of examples that are in a pair.
    """

    strength_name = "strength"
    """The metric that holds the mean of `PairTerms.strength`."""
    candidates = 0
    """CRINGE's k where the method contrasts rejected tokens; 0 where it only sums their log-probabilities."""

    # --- what a method says -----------------------------------------------------------------------------------------

    def pair_terms(self, sums: PairSums) -> PairTerms:
        """The method's loss of a batch from its sums."""
        raise NotImplementedError(type(self).__name__)

    def source(self, device: torch.device) -> torch.Generator | None:
        """The source of random numbers, for a method that draws."""
        return None

    # --- what ParlAI calls ------------------------------------------------------------------------------------------

    def compute_loss(self, batch: Batch, return_output: bool = False) -> Any:
        """The method's loss of a batch.

        Returns:
            The scalar loss; with `return_output`, the pair (loss, model output), where the model output is None unless
            token details are shown, as nothing else of ParlAI looks at it.
        """
        if batch.label_vec is None:
            raise ValueError("Cannot compute loss without a label.")
        replies = self._replies(batch)
        mask, labels = replies.mask, replies.labels
        with self._attention():
            whole = reply_states(self.model, *self._model_input(batch), ys=replies.targets, example=replies.example)
        kinds = labels if self.candidates else torch.full_like(labels, TokenLabel.POSITIVE)
        draws = uniform_draws(kinds, k=max(1, self.candidates), generator=self.source(whole.device))
        tokens = _Tokens(whole[mask], replies.targets[mask], kinds, draws)
        chunk = self._chunk(mask)
        if chunk >= len(kinds):
            terms, rows = self._at_once(tokens, replies)
        else:
            terms, rows = self._in_two_passes(tokens, replies, chunk)
        self._record_pairs(terms, rows, replies)
        return self._answer(terms.loss, whole[: len(batch.label_vec)], return_output)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _replies(self, batch: Batch) -> _Replies:
        chosen = batch.label_vec
        rejected, of = batch.get("rejected_vec"), batch.get("rejected_example")
        if rejected is None or of is None:
            rejected, of = chosen[:0], chosen.new_zeros(0)
        of = of.to(chosen.device)
        width = max(chosen.size(1), rejected.size(1))
        targets = torch.cat([F.pad(ids, (0, width - ids.size(1)), value=self.NULL_IDX) for ids in (chosen, rejected)])
        labels = targets.new_full((len(targets),), TokenLabel.PLAIN)
        labels[of] = TokenLabel.POSITIVE
        labels[len(chosen) :] = TokenLabel.NEGATIVE
        mask = targets.ne(self.NULL_IDX)
        example = torch.cat((torch.arange(len(chosen), device=of.device), of))
        return _Replies(targets, mask, example, len(of), labels[:, None].expand_as(targets)[mask])

    def _at_once(self, tokens: _Tokens, replies: _Replies) -> tuple[PairTerms, RowLosses]:
        """The plain form: the logits of all tokens, and autograd."""
        logits = logits_of(self.model, tokens.states[None])[0]
        nll = F.cross_entropy(promoted(logits), tokens.targets, reduction="none")
        rows = self._kernel()(logits, tokens.targets, tokens.kinds, tokens.draws)
        return self.pair_terms(replies.pair_sums(replies.sums(nll), replies.sums(rows.loss))), rows

    def _in_two_passes(self, tokens: _Tokens, replies: _Replies, chunk: int) -> tuple[PairTerms, RowLosses]:
        """The chunked form: the sums of the pairs, what each token weighs, and the weighted sum with gradient.

        Where the output layer itself has dropout, as in ParlAI's seq2seq, each pass draws its own in training.
        """
        training = torch.is_grad_enabled()
        wide = torch.promote_types(tokens.states.dtype, torch.float32)
        nothing = tokens.states.new_zeros(len(tokens.states), dtype=wide)
        rows = RowLosses(nothing, nothing.clone(), torch.zeros_like(replies.labels, dtype=torch.bool))
        # Ordinary talk weighs the same whatever it costs: its one pass is the second.
        plain = replies.labels == TokenLabel.PLAIN
        with torch.no_grad():
            first = (~plain if training else torch.ones_like(plain)).nonzero().squeeze(-1)
            _write(rows, first, self._weighted(tokens.at(first), nothing[first], chunk).rows)
        sums = replies.sums(rows.nll), replies.sums(rows.loss)
        if not training:
            return self.pair_terms(replies.pair_sums(*sums)), rows

        leaves = [part.requires_grad_() for part in sums]
        slopes = torch.autograd.grad(
            self.pair_terms(replies.pair_sums(*leaves)).loss, leaves, allow_unused=True, materialize_grads=True
        )
        by_nll, by_cost = (replies.each(slope) for slope in slopes)
        likely, contrasted = (weights.nonzero().squeeze(-1) for weights in (by_nll, by_cost))
        if not len(likely):
            likely = likely.new_zeros(1)  # a weight of 0, so that the loss has a gradient, if a zero one
        followed = tokens._replace(kinds=torch.full_like(tokens.kinds, TokenLabel.POSITIVE)).at(likely)
        found = self._weighted(
            _Tokens(*map(torch.cat, zip(followed, tokens.at(contrasted), strict=True))),
            torch.cat((by_nll[likely], by_cost[contrasted])),
            chunk,
        )
        talk = plain[likely].nonzero().squeeze(-1)
        _write(rows, likely[talk], RowLosses(*(part[talk] for part in found.rows)))
        with torch.no_grad():
            terms = self.pair_terms(replies.pair_sums(replies.sums(rows.nll), replies.sums(rows.loss)))
        return terms._replace(loss=terms.loss + (found.loss - found.loss.detach())), rows

    def _weighted(self, tokens: _Tokens, weights: Tensor, chunk: int) -> WeightedLoss:
        states, targets, kinds, draws = tokens
        layer = linear_output(self.model, states) if torch.is_grad_enabled() else None
        if layer is None:
            columns = (draws,)
            return weighted_loss(
                self.model, states, targets, kinds, weights, self._kernel(), chunk=chunk, columns=columns
            )
        k = max(1, self.candidates)
        return cringe_weighted_loss(layer, targets, kinds, weights, draws, k=k, detach_positive=False, chunk=chunk)

    def _kernel(self) -> Any:
        return partial(cringe_rows, k=max(1, self.candidates), detach_positive=False)

    def _record_pairs(self, terms: PairTerms, rows: RowLosses, replies: _Replies) -> None:
        examples = len(replies.targets) - replies.pairs
        of = replies.example[examples:]

        def record(name: str, values: Tensor, counts: Tensor, kind: Any = AverageMetric) -> None:
            self.record_local_metric(name, kind.many(values.tolist(), counts.tolist()))  # type: ignore[attr-defined]

        def by_example(values: Tensor) -> Tensor:
            return values.new_zeros(examples).index_add(0, of, values)

        tokens, nll, correct = replies.mask.sum(-1), replies.sums(rows.nll), replies.sums(rows.correct.long())
        pairs = by_example(torch.ones_like(of))
        counted = tokens[:examples] + by_example(tokens[examples:])
        # A mean over tokens, so that batches of a report weigh what they weigh in training.
        record("loss", terms.loss.detach() * counted, counted)
        record("ppl", nll[:examples], tokens[:examples], PPLMetric)
        record("token_acc", correct[:examples], tokens[:examples])
        record("token_em", (correct == tokens)[:examples].long(), torch.ones_like(pairs))
        record("share_pairs", pairs.clamp(max=1), torch.ones_like(pairs))
        # A batch without pairs says nothing of them: a metric of 0/0 would read as a margin of 0.
        if replies.pairs:
            rejected = by_example(nll[examples:]), by_example(tokens[examples:])
            record("margin", by_example(terms.margins), pairs)
            record("pair_acc", by_example((terms.margins > 0).long()), pairs)
            record(self.strength_name, by_example(terms.strength), pairs)
            record("chosen_nll", nll[:examples] * pairs.clamp(max=1), tokens[:examples] * pairs.clamp(max=1))
            record("rejected_nll", *rejected)
            record("ppl_neg", *rejected, PPLMetric)
            record("token_acc_neg", by_example(correct[examples:]), rejected[1])


def _write(rows: RowLosses, places: Tensor, found: RowLosses) -> None:
    for column, part in zip(rows, found, strict=True):
        column[places] = part
