"""`-m safety:click`: likelihood with a margin between chosen and rejected replies, on ParlAI's transformer generator.

Source: Zheng, Ke, Zhang, Huang 2023, "Click", Findings of ACL 2023; the loss is `parlai_safety.losses.click`. The agent
gathers the tensors, calls the loss and records metrics. It leaves out the making of the pairs, which are a model's own
replies sorted by a judge (`parlai_safety.loops`).

Data: messages with `labels` and `rejected`, such as those of `-t safety:pairs`, and ordinary talk beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from parlai.agents.transformer.transformer import TransformerGeneratorAgent

from parlai_safety.agents.pairs import PairMixin, PairTerms
from parlai_safety.losses.click import click_terms
from parlai_safety.losses.pairs import PairSums
from parlai_safety.options import option


@dataclass(frozen=True)
class ClickOptions:
    """The options of Click, declared once."""

    click_margin: float = option(
        20.0, "Nats by which the chosen reply shall be likelier than the rejected one.", symbol="alpha", low=0
    )
    click_weight: float = option(0.5, "Weight of the hinge beside the likelihood.", low=0)
    click_chosen_nll: bool = option(
        True,
        "Count the likelihood of chosen replies too; false is the released code, where chosen replies are the model's "
        "own and the likelihood is that of ordinary talk alone.",
    )


class ClickMixin(PairMixin):
    """Click for any TorchGeneratorAgent: put it before the class and name that class as `backbone`."""

    options_class = ClickOptions
    method = "Click"
    strength_name = "hinge"

    def pair_terms(self, sums: PairSums) -> PairTerms:
        """Likelihood and hinge; the strength of a pair is what it lacks to the margin."""
        settings = self.settings
        output = click_terms(
            sums,
            margin=settings.click_margin,
            weight=settings.click_weight,
            chosen_nll=settings.click_chosen_nll,
        )
        return PairTerms(output.loss, output.margins, output.hinges)


class ClickAgent(ClickMixin, TransformerGeneratorAgent):
    """Click on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
