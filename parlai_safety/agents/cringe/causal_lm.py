"""`-m safety:cringe/causal_lm`: CRINGE on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.cringe.cringe import CringeMixin


class CausalLmAgent(CringeMixin, CausalBackbone):
    """CRINGE on a causal language model."""

    backbone = CausalBackbone
