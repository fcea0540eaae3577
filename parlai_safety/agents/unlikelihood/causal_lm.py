"""`-m safety:unlikelihood/causal_lm`: unlikelihood on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.unlikelihood.unlikelihood import UnlikelihoodMixin


class CausalLmAgent(UnlikelihoodMixin, CausalBackbone):
    """Unlikelihood on a causal language model."""

    backbone = CausalBackbone
