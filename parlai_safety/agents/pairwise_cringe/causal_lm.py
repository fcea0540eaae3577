"""`-m safety:pairwise_cringe/causal_lm`: pairwise CRINGE on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.pairwise_cringe.pairwise_cringe import PairwiseCringeMixin


class CausalLmAgent(PairwiseCringeMixin, CausalBackbone):
    """Pairwise CRINGE on a causal language model."""

    backbone = CausalBackbone
