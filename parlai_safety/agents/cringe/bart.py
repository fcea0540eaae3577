"""`-m safety:cringe/bart`: CRINGE on ParlAI's BART."""

from __future__ import annotations

from parlai.agents.bart import bart

from parlai_safety.agents.backbones import BartBackbone
from parlai_safety.agents.cringe.cringe import CringeMixin


class BartAgent(CringeMixin, BartBackbone, bart.BartAgent):
    """CRINGE on `bart`."""

    backbone = bart.BartAgent
