"""`-m safety:click/bart`: Click on ParlAI's BART."""

from __future__ import annotations

from parlai.agents.bart import bart

from parlai_safety.agents.backbones import BartBackbone
from parlai_safety.agents.click.click import ClickMixin


class BartAgent(ClickMixin, BartBackbone, bart.BartAgent):
    """Click on `bart`."""

    backbone = bart.BartAgent
