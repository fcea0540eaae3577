"""Direct preference optimization (DPO): a chosen reply over a rejected one, measured against a frozen reference.

Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290, Eq. 7; label smoothing is Mitchell's conservative DPO (cDPO, Eq. 3 of his note), `preference="ipo"`
Eq. 17 of Azar et al. 2023, arXiv:2310.12036; the likelihood term on the chosen reply is common practice against a
falling likelihood of both replies. Left out: other divergences than the reverse KL, and a moving reference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.losses.rows import promoted
from parlai_safety.losses.whole import check_weight

PREFERENCES = ("sigmoid", "ipo")


class DPOOutput(NamedTuple):
    """The loss of a batch and what each of its B pairs did."""

    loss: Tensor
    """Scalar, at least fp32: the mean of `losses`."""
    losses: Tensor
    """(B,) with gradient: what each pair costs, whatever else is in the batch."""
    chosen_rewards: Tensor
    """(B,) no gradient: beta * (log p of the chosen reply under the policy - under the reference)."""
    rejected_rewards: Tensor
    """(B,) no gradient: the same of the rejected reply."""


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    preference: str = "sigmoid",
    label_smoothing: float = 0.0,
    per_token: bool = False,
    nll_weight: float = 0.0,
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
) -> DPOOutput:
    r"""DPO on pairs of replies to the same context.

    With D(y) = log p(y | x) under the policy minus that under the reference, and z = D(chosen) - D(rejected)::

        sigmoid: loss = -(1 - eps) * log sigmoid(beta * z) - eps * log sigmoid(-beta * z)    arXiv:2305.18290; cDPO
        ipo:     loss = (z - 1 / (2 * beta))^2                                               arXiv:2310.12036, Eq. 17
        plus     nll_weight * -log p(chosen | x) / tokens of the chosen reply

    By hand, for one pair with beta = 0.5: log p is -2 for the chosen reply under the policy and -3 under the reference,
    -4 and -3.5 for the rejected one. So D is 1 and -0.5, z = 1.5, and the loss is -log sigmoid(0.75) = 0.3869:

    >>> import torch
    >>> output = dpo_loss(*torch.tensor([[-2.0], [-4.0], [-3.0], [-3.5]]), beta=0.5)
    >>> print(f"{output.loss:.4f} {output.chosen_rewards.item():.2f} {output.rejected_rewards.item():.2f}")
    0.3869 0.50 -0.25

    Limits: where the policy is the reference the loss is ln 2 (IPO: 1 / (4 * beta^2)), whatever the replies are. A
    small beta lets the policy go far from the reference, a large one holds it. With label smoothing the cost has its
    minimum at beta * z = log((1 - eps) / eps) and not at infinity; with IPO at z = 1 / (2 * beta).

    Args:
        policy_chosen_logps: (B,) nats, log p of the whole chosen reply (sum over its tokens) under the trained model.
        policy_rejected_logps: (B,) as above, of the rejected reply.
        reference_chosen_logps: (B,) as above, of the chosen reply under the frozen reference.
        reference_rejected_logps: (B,) as above, of the rejected reply under the frozen reference.
        beta: strength of the pull to the reference, finite and above 0; 0.1 to 0.5 is common.
        preference: "sigmoid" or "ipo".
        label_smoothing: eps, the share of pairs that are believed to be swapped, in [0, 0.5); sigmoid only.
        per_token: compare mean log-probabilities of a token and not those of whole replies. The paper of DPO compares
            whole replies; implementations of IPO mostly compare means.
        nll_weight: weight of the likelihood term, finite and >= 0.
        chosen_tokens: (B,) tokens of the chosen replies, at least 1; needed with `per_token` and with `nll_weight`.
        rejected_tokens: (B,) tokens of the rejected replies, at least 1; needed with `per_token`.

    Returns:
        The loss, the cost of each pair and the implicit rewards.

    Raises:
        SafetyError: a shape or a range is not as stated above, or token counts are missing.
    """
    check_preference(beta, preference, label_smoothing)
    check_weight("nll_weight", nll_weight)
    check_logps(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
        chosen_tokens=needed_tokens("chosen_tokens", chosen_tokens, per_token=per_token, nll_weight=nll_weight),
        rejected_tokens=needed_tokens("rejected_tokens", rejected_tokens, per_token=per_token),
    )
    chosen = log_ratios(policy_chosen_logps, reference_chosen_logps, chosen_tokens if per_token else None)
    rejected = log_ratios(policy_rejected_logps, reference_rejected_logps, rejected_tokens if per_token else None)
    losses = preference_costs(chosen - rejected, beta=beta, preference=preference, label_smoothing=label_smoothing)
    losses = losses + nll_costs(policy_chosen_logps, chosen_tokens, nll_weight)
    return DPOOutput(mean(losses), losses, beta * chosen.detach(), beta * rejected.detach())


def log_ratios(policy_logps: Tensor, reference_logps: Tensor, tokens: Tensor | None) -> Tensor:
    """D(y): log p under the policy minus that under a frozen model, divided by the reply's tokens where they are given.

    Returns:
        (B,) nats, or nats a token; at least fp32.
    """
    ratios = promoted(policy_logps) - promoted(reference_logps)
    return ratios if tokens is None else ratios / tokens


def preference_costs(margins: Tensor, *, beta: float, preference: str, label_smoothing: float) -> Tensor:
    """What each pair costs, from z (B,) as in `dpo_loss`."""
    if preference == "ipo":
        return (margins - 1 / (2 * beta)).square()
    kept = -F.logsigmoid(beta * margins)
    if label_smoothing == 0:
        return kept
    return (1 - label_smoothing) * kept - label_smoothing * F.logsigmoid(-beta * margins)


def nll_costs(policy_chosen_logps: Tensor, chosen_tokens: Tensor | None, nll_weight: float) -> Tensor | float:
    """The likelihood term of each chosen reply (B,), after its weight; 0 where it has none."""
    if nll_weight == 0 or chosen_tokens is None:
        return 0.0
    return -nll_weight * promoted(policy_chosen_logps) / chosen_tokens


def mean(costs: Tensor) -> Tensor:
    """Mean over the pairs; 0, with a zero gradient, where there are none."""
    return costs.sum() / max(1, len(costs))


def needed_tokens(
    name: str, tokens: Tensor | None, *, per_token: bool = False, nll_weight: float = 0.0
) -> Tensor | None:
    """The token counts, where the settings need them.

    Raises:
        SafetyError: they are needed and not there.
    """
    if not per_token and nll_weight == 0:
        return None
    if tokens is None:
        raise SafetyError(
            f"{name} is missing",
            "The mean log-probability of a token needs the number of tokens of each reply",
            f"Pass {name}, or set per_token=False and nll_weight=0",
        )
    return tokens


def check_logps(**named: Tensor | None) -> None:
    """Refuse tensors that do not hold one number for each of the same B pairs; None is passed over.

    Raises:
        SafetyError: the first one is no vector, or another one has another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items() if tensor is not None}
    first, shape = next(iter(shapes.items()))
    for name, found in shapes.items():
        if len(found) != 1 or found != shape:
            raise SafetyError(
                f"{name} has shape {found} and {first} has {shape}",
                "Each pair has one log-probability, or one count of tokens, for each reply and model",
                "Pass tensors of one shape (B,): sums over the tokens of a reply",
            )


def check_preference(beta: float, preference: str, label_smoothing: float) -> None:
    """Refuse settings of the preference term that are out of their range.

    Raises:
        SafetyError: as said in `dpo_loss`.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise SafetyError(
            f"beta is {beta}",
            "It multiplies the log-ratio: at 0 nothing is learned, and below 0 the rejected reply would be preferred",
            "Choose a finite beta above 0; 0.1 is the default",
        )
    if preference not in PREFERENCES:
        raise SafetyError(
            f"preference is {preference!r}",
            f"The forms of the preference term are {' and '.join(PREFERENCES)}",
            did_you_mean(preference, PREFERENCES, "Use sigmoid"),
        )
    if not 0 <= label_smoothing < 0.5 or (preference == "ipo" and label_smoothing > 0):
        raise SafetyError(
            f"label_smoothing is {label_smoothing} with the preference {preference!r}",
            "It is the share of swapped pairs in the sigmoid form: from one half on, the labels would say the opposite",
            "Choose a number from 0 up to, but not including, 0.5, and 0 with ipo",
        )
