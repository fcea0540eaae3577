"""`-m safety:scones/causal_lm`: SCONES on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.scones.scones import SconesMixin


class CausalLmAgent(SconesMixin, CausalBackbone):
    """SCONES on a causal language model."""

    backbone = CausalBackbone
