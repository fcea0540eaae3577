"""`-m safety:pairwise_cringe`: CRINGE on pairs of replies, behind a soft margin, on ParlAI's transformer generator.

Source: Xu, Lee, Sukhbaatar, Weston 2023, arXiv:2312.16682. The loss, a reconstruction, is
`parlai_safety.losses.pairwise`; the agent gathers the tensors, calls the loss and records metrics. It leaves out the
iterations, which are a loop around it (`parlai_safety.loops.rounds`). The values that the paper chose are recalled and
not confirmed (alpha 0.005, k 5, b -10, tau 10); the defaults here are our own.

Data: messages with `labels` and `rejected`, such as those of `-t safety:pairs`, and ordinary talk beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from parlai.core.opt import Opt

from parlai_safety.agents.draws import DrawsMixin
from parlai_safety.agents.pairs import PairMixin, PairTerms
from parlai_safety.errors import SafetyError
from parlai_safety.losses.pairs import PairSums
from parlai_safety.losses.pairwise import pairwise_terms
from parlai_safety.options import option


@dataclass(frozen=True)
class PairwiseCringeOptions:
    """The options of pairwise CRINGE, declared once."""

    pairwise_margin: float = option(
        0.0, "A pair counts by half where log p(chosen) - log p(rejected) is this (reconstruction).", symbol="b"
    )
    pairwise_temperature: float = option(
        10.0, "Width of the soft margin, in nats; 0 is a hard margin (reconstruction).", symbol="tau", low=0
    )
    pairwise_alpha: float = option(1.0, "Weight of the contrastive part.", symbol="alpha", low=0)
    pairwise_k: int = option(
        1,
        "The positive token is sampled among the k highest logits without the rejected token.",
        symbol="k",
        low=1,
    )
    pairwise_stop_gradient: bool = option(
        True, "Treat the gate as a number; false lets the gradient pass it. Our source does not say which."
    )
    pairwise_per_token: bool = option(
        False, "Compare mean log-probabilities of a token; the paper compares whole replies."
    )
    pairwise_seed: int = option(0, "Seed of the sampling of positive tokens; the rank is added.", low=0)


class PairwiseCringeMixin(DrawsMixin, PairMixin):
    """Pairwise CRINGE for any TorchGeneratorAgent: put it before the class and name that class as `backbone`."""

    options_class = PairwiseCringeOptions
    method = "Pairwise CRINGE"
    strength_name = "gate"
    draws_name = "pairwise_draws"

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        super().__init__(opt, shared)
        if self.candidates > len(self.dict) - 1:
            raise SafetyError(
                f"--pairwise-k got {self.candidates}",
                f"The dictionary has only {len(self.dict)} tokens, and one of them is the rejected token itself",
                f"Give --pairwise-k at most {len(self.dict) - 1}",
            )

    @property
    def candidates(self) -> int:  # type: ignore[override]
        """CRINGE's k."""
        k: int = self.settings.pairwise_k
        return k

    def draws_seed(self) -> int:
        """`--pairwise-seed`."""
        seed: int = self.settings.pairwise_seed
        return seed

    def pair_terms(self, sums: PairSums) -> PairTerms:
        """Gated CRINGE; the strength of a pair is its gate."""
        settings = self.settings
        return PairTerms(
            *pairwise_terms(
                sums,
                margin=settings.pairwise_margin,
                temperature=settings.pairwise_temperature,
                alpha=settings.pairwise_alpha,
                stop_gradient=settings.pairwise_stop_gradient,
                per_token=settings.pairwise_per_token,
            )
        )


class PairwiseCringeAgent(PairwiseCringeMixin, TransformerGeneratorAgent):
    """Pairwise CRINGE on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
