"""`-m safety:adpo/causal_lm`: adversarial DPO (a reconstruction) on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.adpo.adpo import AdpoMixin
from parlai_safety.agents.causal import CausalBackbone


class CausalLmAgent(AdpoMixin, CausalBackbone):
    """Adversarial DPO (a reconstruction) on a causal language model."""

    backbone = CausalBackbone
