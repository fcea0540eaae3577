"""`-m safety:director/bart`: DIRECTOR on ParlAI's BART."""

from __future__ import annotations

from parlai.agents.bart import bart

from parlai_safety.agents.backbones import BartBackbone
from parlai_safety.agents.director.director import DirectorMixin


class BartAgent(DirectorMixin, BartBackbone, bart.BartAgent):
    """DIRECTOR on `bart`."""

    backbone = bart.BartAgent
