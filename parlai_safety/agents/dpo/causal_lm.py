"""`-m safety:dpo/causal_lm`: direct preference optimization on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.dpo.dpo import DpoMixin


class CausalLmAgent(DpoMixin, CausalBackbone):
    """DPO on a causal language model."""

    backbone = CausalBackbone
