"""`-m safety:click/seq2seq`: Click on ParlAI's recurrent encoder and decoder."""

from __future__ import annotations

from parlai.agents.seq2seq import seq2seq

from parlai_safety.agents.backbones import Seq2seqBackbone
from parlai_safety.agents.click.click import ClickMixin


class Seq2seqAgent(ClickMixin, Seq2seqBackbone, seq2seq.Seq2seqAgent):
    """Click on `seq2seq`."""

    backbone = seq2seq.Seq2seqAgent
