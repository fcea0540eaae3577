"""`-m safety:pairwise_cringe/bart`: pairwise CRINGE on ParlAI's BART."""

from __future__ import annotations

from parlai.agents.bart import bart

from parlai_safety.agents.backbones import BartBackbone
from parlai_safety.agents.pairwise_cringe.pairwise_cringe import PairwiseCringeMixin


class BartAgent(PairwiseCringeMixin, BartBackbone, bart.BartAgent):
    """Pairwise CRINGE on `bart`."""

    backbone = bart.BartAgent
