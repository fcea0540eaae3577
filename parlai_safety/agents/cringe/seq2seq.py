"""`-m safety:cringe/seq2seq`: CRINGE on ParlAI's recurrent encoder and decoder."""

from __future__ import annotations

from parlai.agents.seq2seq import seq2seq

from parlai_safety.agents.backbones import Seq2seqBackbone
from parlai_safety.agents.cringe.cringe import CringeMixin


class Seq2seqAgent(CringeMixin, Seq2seqBackbone, seq2seq.Seq2seqAgent):
    """CRINGE on `seq2seq`."""

    backbone = seq2seq.Seq2seqAgent
