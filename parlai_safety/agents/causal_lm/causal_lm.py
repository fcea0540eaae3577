"""`-m safety:causal_lm`: any causal language model of transformers, trained by maximum likelihood.

Replies to follow and plain ones are learned, replies to avoid are passed over, as by `-m safety:mle`. What is learned
are the tokens of the reply and the token that ends it; the prompt is not.
"""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.mle.mle import MleMixin


class CausalLmAgent(MleMixin, CausalBackbone):
    """Maximum likelihood on a causal language model."""

    backbone = CausalBackbone
