"""`-m safety:click/causal_lm`: Click on any causal language model of transformers."""

from __future__ import annotations

from parlai_safety.agents.causal import CausalBackbone
from parlai_safety.agents.click.click import ClickMixin


class CausalLmAgent(ClickMixin, CausalBackbone):
    """Click on a causal language model."""

    backbone = CausalBackbone
