"""Adversarial DPO (ADPO): DPO on a chosen and a rejected reply, and a penalty on a third one that is known to be toxic.

Source: San Kim and Gary Geunbae Lee 2024, "Adversarial DPO: Harnessing Harmful Data for Reducing Toxicity with Minimal
Impact on Coherence and Evasiveness in Dialogue Agents", arXiv:2405.12900. **The closed form here is a reconstruction.**
Only the paper's objective could be confirmed: a reward on the policy's replies with a KL-type regularizer, minus a
penalty on replies of the toxic model with another one. How this penalty becomes a loss could not; so the loss is a
family that covers every reading, with a documented default. It is none of the other methods that are called ADPO
(autoregressive, anchored, ambiguity-aware). Left out: the making of the triples, and the control token that turns the
fine-tuned model into the toxic one; both belong to what calls this.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.losses.dpo import (
    check_logps,
    check_preference,
    log_ratios,
    mean,
    needed_tokens,
    nll_costs,
    preference_costs,
)
from parlai_safety.losses.whole import check_weight

ANCHORS = ("toxic", "reference")


class ADPOOutput(NamedTuple):
    """The loss of a batch and what each of its B contexts did."""

    loss: Tensor
    """Scalar, at least fp32: the mean of `losses`."""
    losses: Tensor
    """(B,) with gradient: what each context costs, whatever else is in the batch."""
    chosen_rewards: Tensor
    """(B,) no gradient: beta * (log p of the chosen reply under the policy - under the reference)."""
    rejected_rewards: Tensor
    """(B,) no gradient: the same of the rejected reply."""
    toxic_rewards: Tensor | None
    """(B,) no gradient: gamma * (log p of the toxic reply under the policy - under the anchor), 0 where there is none;
    None where toxic_weight is 0, which looks at no toxic reply."""


def adpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    policy_toxic_logps: Tensor | None,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    reference_toxic_logps: Tensor | None = None,
    toxic_chosen_logps: Tensor | None = None,
    toxic_toxic_logps: Tensor | None = None,
    *,
    beta: float = 0.1,
    gamma: float = 0.1,
    toxic_weight: float = 1.0,
    anchor: str = "toxic",
    paired: bool = False,
    joint: bool = False,
    preference: str = "sigmoid",
    label_smoothing: float = 0.0,
    per_token: bool = False,
    nll_weight: float = 0.0,
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
    toxic_tokens: Tensor | None = None,
    has_toxic: Tensor | None = None,
) -> ADPOOutput:
    r"""A family of losses on triples (chosen c, rejected r, toxic t) of replies to one context; a reconstruction.

    Arguments are named role_reply_logps: the role is the model that scores (the policy, the frozen reference, the
    frozen toxic model), the reply is what it scores. With D_A(y) = log p(y) under the policy minus that under the model
    A, z = D_ref(c) - D_ref(r), and m = kappa * D_A(c) - D_A(t), where A is the `anchor` and kappa is 1 if `paired`::

        loss = -log sigmoid(beta * z)  -  lambda * log sigmoid(gamma * m)              two terms (the default)
        loss = -log sigmoid(beta * z + lambda * gamma * m)                             joint

    | `anchor`, `paired` | reading |
    |---|---|
    | "toxic", False (the default) | the penalty of the paper's objective as a log-ratio to the toxic model, unpaired |
    | "toxic", True | DPO of chosen against toxic, with the toxic model as the reference |
    | "reference", True | plain DPO with two rejected replies; an ablation |
    | "reference", False | the ordinary reference, unpaired |

    Every member lowers log p(t) under the policy. How strongly it does so at the start of training depends, with the
    toxic anchor, on the gap g = toxic_toxic_logps - reference_toxic_logps: where the model without its control token
    would hardly say t, the pull is already weak. If g is large (tens of nats), `paired` is nearly inert and `joint`
    takes the gradient of the ordinary pair away too; log g, and think of `per_token`.

    By hand, for one context with beta = gamma = 0.5 and the default form. log p of c, r, t is -2, -4, -5 under the
    policy, -3, -3.5, -5 under the reference, and that of t under the toxic model is -3. So z = 1 + 0.5 = 1.5 and
    m = -(-5 + 3) = 2, and the loss is -log sigmoid(0.75) - log sigmoid(1) = 0.3869 + 0.3133 = 0.7001:

    >>> import torch
    >>> policy, reference = torch.tensor([[-2.0], [-4.0], [-5.0]]), torch.tensor([[-3.0], [-3.5], [-5.0]])
    >>> output = adpo_loss(*policy, *reference, toxic_toxic_logps=torch.tensor([-3.0]), beta=0.5, gamma=0.5)
    >>> print(f"{output.loss:.4f} {output.toxic_rewards.item():.2f}")
    0.7001 -1.00

    Limits: `toxic_weight` = 0 is `dpo_loss`, to the last bit and in every form.

    `preference="ipo"` changes the pair's term alone: as a squared distance the toxic term would *raise* log p(t) where
    m is beyond its target, where the toxic anchor may begin. For the same reason label smoothing is read as "chosen and
    rejected are swapped" and never doubts the toxic reply.

    Args:
        policy_chosen_logps: (B,) nats, log p of the whole chosen reply (sum over its tokens) under the trained model.
        policy_rejected_logps: (B,) of the rejected reply.
        policy_toxic_logps: (B,) of the toxic reply; may be None where `toxic_weight` is 0.
        reference_chosen_logps: (B,) of the chosen reply under the frozen reference, the model before this training.
        reference_rejected_logps: (B,) of the rejected reply under the reference.
        reference_toxic_logps: (B,) of the toxic reply under the reference; needed with the anchor "reference".
        toxic_chosen_logps: (B,) of the chosen reply under the toxic model; needed with the anchor "toxic" if `paired`.
        toxic_toxic_logps: (B,) of the toxic reply under the toxic model; needed with the anchor "toxic".
        beta: strength of the pull to the reference, finite and above 0.
        gamma: the same of the toxic term, finite and above 0; of the unit of 1 / nats, or 1 / (nats a token).
        toxic_weight: lambda, finite and >= 0.
        anchor: "toxic" or "reference", the frozen model that the toxic reply is measured against.
        paired: measure the toxic reply against the chosen one too.
        joint: one sigmoid over both terms.
        preference: "sigmoid" or "ipo", as in `dpo_loss`; "ipo" has no joint form.
        label_smoothing: in [0, 0.5), as in `dpo_loss`.
        per_token: compare mean log-probabilities of a token and not those of whole replies.
        nll_weight: weight of -log p(chosen) / tokens of the chosen reply, finite and >= 0.
        chosen_tokens: (B,) tokens of the chosen replies, at least 1; needed with `per_token` and with `nll_weight`.
        rejected_tokens: (B,) tokens of the rejected replies, at least 1; needed with `per_token`.
        toxic_tokens: (B,) tokens of the toxic replies, at least 1 where there is one; needed with `per_token`.
        has_toxic: (B,) bool, False where a context has no toxic reply: it costs what DPO costs, and its toxic numbers
            may be anything. Left out, every context has one.

    Returns:
        The loss, the cost of each context and the implicit rewards.

    Raises:
        SafetyError: a shape or a range is not as stated above, or a tensor that the settings need is missing.
    """
    check_adpo(
        beta=beta,
        gamma=gamma,
        toxic_weight=toxic_weight,
        anchor=anchor,
        joint=joint,
        preference=preference,
        label_smoothing=label_smoothing,
        nll_weight=nll_weight,
    )
    chosen_counts = needed_tokens("chosen_tokens", chosen_tokens, per_token=per_token, nll_weight=nll_weight)
    rejected_counts = needed_tokens("rejected_tokens", rejected_tokens, per_token=per_token)
    check_logps(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
        chosen_tokens=chosen_counts,
        rejected_tokens=rejected_counts,
        has_toxic=has_toxic,
    )
    chosen = log_ratios(policy_chosen_logps, reference_chosen_logps, chosen_counts if per_token else None)
    rejected = log_ratios(policy_rejected_logps, reference_rejected_logps, rejected_counts)
    margins, toxic = chosen - rejected, None
    if toxic_weight == 0:
        losses = preference_costs(margins, beta=beta, preference=preference, label_smoothing=label_smoothing)
    else:
        anchor_chosen = reference_chosen_logps if anchor == "reference" else toxic_chosen_logps
        anchor_toxic = reference_toxic_logps if anchor == "reference" else toxic_toxic_logps
        needed = {"policy_toxic_logps": policy_toxic_logps, f"{anchor}_toxic_logps": anchor_toxic}
        if paired:
            needed[f"{anchor}_chosen_logps"] = anchor_chosen
        if per_token:
            needed["toxic_tokens"] = toxic_tokens
        _check_needed(anchor, policy_chosen_logps, needed)
        assert policy_toxic_logps is not None and anchor_toxic is not None
        # A context without a toxic reply may say that it has 0 tokens.
        toxic_counts = toxic_tokens.clamp(min=1) if per_token and toxic_tokens is not None else None
        toxic = log_ratios(policy_toxic_logps, anchor_toxic, toxic_counts)
        pulls = -toxic
        if paired:
            assert anchor_chosen is not None
            pulls = pulls + log_ratios(policy_chosen_logps, anchor_chosen, chosen_counts if per_token else None)
        if has_toxic is not None:
            toxic, pulls = toxic.where(has_toxic, 0.0), pulls.where(has_toxic, 0.0)
        if joint:
            pull = toxic_weight * gamma * pulls
            losses = -(1 - label_smoothing) * F.logsigmoid(beta * margins + pull)
            if label_smoothing > 0:
                losses = losses - label_smoothing * F.logsigmoid(-beta * margins + pull)
        else:
            penalties = -F.logsigmoid(gamma * pulls)
            if has_toxic is not None:
                penalties = penalties.where(has_toxic, 0.0)
            losses = preference_costs(margins, beta=beta, preference=preference, label_smoothing=label_smoothing)
            losses = losses + toxic_weight * penalties
    losses = losses + nll_costs(policy_chosen_logps, chosen_counts, nll_weight)
    return ADPOOutput(
        loss=mean(losses),
        losses=losses,
        chosen_rewards=beta * chosen.detach(),
        rejected_rewards=beta * rejected.detach(),
        toxic_rewards=None if toxic is None else gamma * toxic.detach(),
    )


def check_adpo(
    *,
    beta: float,
    gamma: float,
    toxic_weight: float,
    anchor: str,
    joint: bool,
    preference: str,
    label_smoothing: float,
    nll_weight: float,
) -> None:
    """Refuse settings of `adpo_loss` that are out of their range.

    Raises:
        SafetyError: as said there.
    """
    check_preference(beta, preference, label_smoothing)
    check_weight("toxic_weight", toxic_weight)
    check_weight("nll_weight", nll_weight)
    check_weight("gamma", gamma)
    if gamma == 0:
        raise SafetyError(
            "gamma is 0",
            "It multiplies the toxic reply's log-ratio, of which nothing would be left",
            "Choose a gamma above 0, or toxic_weight=0 for DPO",
        )
    if anchor not in ANCHORS:
        raise SafetyError(
            f"anchor is {anchor!r}",
            f"The toxic reply can be measured against the models {' and '.join(ANCHORS)}",
            did_you_mean(anchor, ANCHORS, "Use toxic"),
        )
    if joint and preference == "ipo":
        raise SafetyError(
            "joint is set together with preference='ipo'",
            "The joint form is one sigmoid over both terms, and ipo is a squared distance",
            "Leave one of the two out",
        )


def _check_needed(anchor: str, policy_chosen_logps: Tensor, needed: dict[str, Tensor | None]) -> None:
    for name, tensor in needed.items():
        if tensor is None:
            raise SafetyError(
                f"{name} is missing",
                f"With the anchor {anchor!r} and these settings the toxic reply cannot be weighed without it",
                "Pass it, or set toxic_weight=0 for DPO",
            )
    check_logps(**{"policy_chosen_logps": policy_chosen_logps, **needed})
