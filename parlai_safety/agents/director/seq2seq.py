"""`-m safety:director/seq2seq`: DIRECTOR on ParlAI's recurrent encoder and decoder."""

from __future__ import annotations

from parlai.agents.seq2seq import seq2seq

from parlai_safety.agents.backbones import Seq2seqBackbone
from parlai_safety.agents.director.director import DirectorMixin


class Seq2seqAgent(DirectorMixin, Seq2seqBackbone, seq2seq.Seq2seqAgent):
    """DIRECTOR on `seq2seq`."""

    backbone = seq2seq.Seq2seqAgent
