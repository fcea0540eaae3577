"""`-m safety:scones/bart`: SCONES on ParlAI's BART."""

from __future__ import annotations

from parlai.agents.bart import bart

from parlai_safety.agents.backbones import BartBackbone
from parlai_safety.agents.scones.scones import SconesMixin


class BartAgent(SconesMixin, BartBackbone, bart.BartAgent):
    """SCONES on `bart`."""

    backbone = bart.BartAgent
