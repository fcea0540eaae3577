"""`-m safety:adpo`: adversarial DPO, whose loss is a reconstruction, on ParlAI's transformer generator.

Source: Kim and Lee 2024, arXiv:2405.12900; the loss is `parlai_safety.losses.adpo`, **whose closed form is a
reconstruction**: a family with a documented default. The agent gathers the replies, asks the frozen models, calls the
loss and records metrics. One frozen model serves as the reference and, behind the control token, as the toxic model;
the trained model never reads the token. Left out: the training that teaches the token its meaning (the mutator
`safety_toxic_token`) and the making of the triples (`parlai safety_triples`).

Data: messages with `labels`, `rejected` and `toxic`, messages without a toxic reply, and ordinary talk beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from parlai.agents.transformer.transformer import TransformerGeneratorAgent

from parlai_safety.agents.preference import LossSettings, PreferenceMixin, PreferenceOptions
from parlai_safety.losses.adpo import ANCHORS
from parlai_safety.options import option


@dataclass(frozen=True)
class AdpoOptions(PreferenceOptions):
    """The options of adversarial DPO (a reconstruction), declared once."""

    adpo_anchor: str = option(
        "toxic",
        "The frozen model that the toxic reply is measured against (reconstruction).",
        choices=ANCHORS,
    )
    adpo_pair: bool = option(False, "Measure the toxic reply against the chosen one too (reconstruction).")
    adpo_joint: bool = option(False, "One sigmoid over both terms (reconstruction).")
    adpo_lambda: float = option(1.0, "Weight of the toxic term; 0 is DPO (reconstruction).", low=0)
    adpo_gamma: float = option(0.1, "Strength of the toxic term within its sigmoid; above 0 (reconstruction).", low=0)


class AdpoMixin(PreferenceMixin):
    """Adversarial DPO (a reconstruction) for any TorchGeneratorAgent: put it before the class, named as `backbone`."""

    options_class = AdpoOptions
    method = "Adversarial DPO (a reconstruction)"

    def loss_settings(self) -> LossSettings:
        """DPO's, and those of the toxic term."""
        options, pairs = self.settings, super().loss_settings()
        return pairs._replace(
            gamma=options.adpo_gamma,
            toxic_weight=options.adpo_lambda,
            anchor=options.adpo_anchor,
            paired=options.adpo_pair,
            joint=options.adpo_joint,
        )


class AdpoAgent(AdpoMixin, TransformerGeneratorAgent):
    """Adversarial DPO (a reconstruction) on `transformer/generator`."""

    backbone = TransformerGeneratorAgent
