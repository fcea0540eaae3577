"""`-m safety:director/causal_lm`: DIRECTOR on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.director.director import DirectorMixin


class CausalLmAgent(DirectorMixin, CausalBackbone):
    """DIRECTOR on a causal language model."""

    backbone = CausalBackbone
