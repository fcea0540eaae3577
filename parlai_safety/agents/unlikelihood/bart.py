"""`-m safety:unlikelihood/bart`: unlikelihood on ParlAI's BART."""

from __future__ import annotations

from parlai.agents.bart import bart

from parlai_safety.agents.backbones import BartBackbone
from parlai_safety.agents.unlikelihood.unlikelihood import UnlikelihoodMixin


class BartAgent(UnlikelihoodMixin, BartBackbone, bart.BartAgent):
    """unlikelihood on `bart`."""

    backbone = bart.BartAgent
